// The page with scripts: each image is sent in a request of its own, and the server renders its result card.
"use strict";

const PARALLEL_REQUESTS = 4;
const TRIES = 30; // while the server is busy
const LONGEST_WAIT_S = 60; // between two tries

const byId = (id) => document.getElementById(id);
const form = byId("form");
const drop = byId("drop");
const files = byId("files");
const cards = byId("cards");
const queue = []; // {file, card}
let running = 0;
let done = 0;
let total = 0;
let pasted = 0;
let controller = new AbortController();

document.documentElement.classList.add("js");

const nameOf = (file) => file.path || file.webkitRelativePath || file.name;

function placeholder(id, name) {
  const card = byId(id).content.firstElementChild.cloneNode(true);
  card.querySelector(".name").textContent = name;
  return card;
}

function add(chosen) {
  const list = [...chosen];
  if (!list.length) return;
  if (!running && !queue.length) [done, total] = [0, 0];
  for (const file of list) {
    const card = placeholder("waiting", nameOf(file));
    cards.append(card);
    queue.push({ file, card });
  }
  total += list.length;
  byId("results").hidden = false;
  if (controller.signal.aborted) controller = new AbortController();
  show();
  work();
}

function work() {
  while (running < PARALLEL_REQUESTS && queue.length) {
    const job = queue.shift();
    running += 1;
    check(job).finally(() => {
      running -= 1;
      done += 1;
      show();
      work();
    });
  }
}

async function check({ file, card }) {
  const signal = controller.signal;
  const most = Number(form.dataset.mostBytes);
  if (file.size > most) {
    const mb = (bytes) => (bytes / 2 ** 20).toFixed(0);
    fail(card, file, `expected at most ${mb(most)} MB, got ${mb(file.size)} MB`, false);
    return;
  }
  try {
    const answer = await send(file, signal);
    const kind = answer.headers.get("Content-Type") || "";
    if (kind.startsWith("text/html") && answer.ok) {
      replace(card, await answer.text());
    } else {
      const problem = kind.includes("json") ? await answer.json() : {};
      fail(card, file, problem.detail || `the server answered with status ${answer.status}`, answer.status >= 500);
    }
  } catch (error) {
    fail(card, file, signal.aborted ? "stopped" : "the server is not reachable", true);
  }
}

async function send(file, signal) {
  for (let attempt = 1; ; attempt += 1) {
    const body = new FormData();
    body.append("image", file, nameOf(file));
    if (byId("stability").checked) body.append("stability", "1");
    const answer = await fetch("/cards", { method: "POST", body, signal });
    if (answer.status !== 503 || attempt === TRIES) return answer;
    const seconds = Math.min(Number(answer.headers.get("Retry-After")) || 1, LONGEST_WAIT_S);
    await new Promise((resolve) => setTimeout(resolve, 1000 * seconds * (0.5 + Math.random())));
  }
}

function replace(card, html) {
  const holder = document.createElement("template");
  holder.innerHTML = html; // rendered by our own server, with every name escaped
  card.replaceWith(holder.content);
}

function fail(card, file, reason, again) {
  const failed = placeholder("failed", nameOf(file));
  failed.querySelector(".reason").textContent = reason;
  failed.dataset.verdict = "refused";
  failed.dataset.name = nameOf(file);
  failed.dataset.error = reason;
  const button = failed.querySelector(".again");
  button.hidden = !again;
  button.addEventListener("click", () => {
    failed.remove();
    add([file]);
  });
  card.replaceWith(failed);
}

function show() {
  const busy = running > 0 || queue.length > 0;
  const counts = { fake: 0, real: 0, uncertain: 0, refused: 0 };
  for (const card of cards.querySelectorAll("[data-verdict]")) counts[card.dataset.verdict] += 1;
  const parts = [`${counts.fake} fake`, `${counts.real} real`, `${counts.uncertain} uncertain`];
  if (counts.refused) parts.push(`${counts.refused} not checked`);
  byId("status").textContent = busy ? `Checking: ${done} of ${total} done` : cards.children.length ? `Done: ${parts.join(", ")}` : "";
  byId("progress").hidden = !busy;
  byId("bar").max = Math.max(total, 1);
  byId("bar").value = done;
  byId("stop").hidden = !busy;
  byId("clear").hidden = busy;
  byId("download").disabled = busy || !cards.querySelector("[data-verdict]");
  document.title = busy ? `${done} of ${total}: fake or real?` : cards.children.length ? "Results: fake or real?" : "Fake or real?";
}

// The text of predictions.json as predict_and_save_json.py writes it: numbers in order, then names. Files that share a
// number are listed by name.
function predictions() {
  const entries = [...cards.querySelectorAll("[data-verdict]")].map((card) => {
    const entry = card.dataset.entry ? JSON.parse(card.dataset.entry) : { prediction: null, error: card.dataset.error };
    return { name: card.dataset.name, entry };
  });
  const times = new Map();
  for (const { entry } of entries) times.set(entry.index, (times.get(entry.index) || 0) + 1);
  const keyed = entries.map(({ name, entry }) => {
    const { index, image, ...rest } = entry;
    return index !== undefined && times.get(index) === 1 ? { index, ...rest } : { image: image || name, ...rest };
  });
  const before = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
  keyed.sort((a, b) => (a.index === undefined) - (b.index === undefined) || before(a.index ?? 0, b.index ?? 0) || before(a.image ?? "", b.image ?? ""));
  return `${JSON.stringify(keyed, null, 4)}\n`;
}

function download() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([predictions()], { type: "application/json" }));
  link.download = "predictions.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// A dropped folder brings all its files, each named by its path.
async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry && item.webkitGetAsEntry());
  if (!entries.some((entry) => entry && entry.isDirectory)) return [...transfer.files];
  const found = [];
  for (const entry of entries) if (entry) await walk(entry, found);
  return found;
}

async function walk(entry, found) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    file.path = entry.fullPath.replace(/^\//, "");
    if (file.type.startsWith("image/")) found.push(file);
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // 100 at a time
    if (!some.length) return;
    for (const inner of some) await walk(inner, found);
  }
}

files.addEventListener("change", () => {
  add(files.files);
  files.value = ""; // the same file may be chosen again
});
form.addEventListener("submit", (event) => event.preventDefault());
for (const kind of ["dragenter", "dragover"]) {
  window.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
}
window.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) drop.classList.remove("over");
});
window.addEventListener("drop", async (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  add(await dropped(event.dataTransfer));
});
window.addEventListener("paste", (event) => {
  const chosen = [...event.clipboardData.files].filter((file) => file.type.startsWith("image/"));
  for (const file of chosen) file.path = /^image\.\w+$/.test(file.name) ? `pasted-${(pasted += 1)}.${file.name.split(".").pop()}` : file.name;
  add(chosen);
});
cards.addEventListener("input", (event) => {
  if (event.target.matches(".opacity")) {
    event.target.closest("figure").querySelector(".heat").style.opacity = event.target.value / 100;
  }
});
byId("download").addEventListener("click", download);
byId("stop").addEventListener("click", () => {
  controller.abort();
  for (const { file, card } of queue.splice(0)) {
    fail(card, file, "stopped", true);
    done += 1;
  }
  show();
});
byId("clear").addEventListener("click", () => {
  cards.replaceChildren();
  byId("results").hidden = true;
  show();
  files.focus();
});
show();
