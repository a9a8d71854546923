"""The page in a real browser: Debian's chromium, without a window."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from web_apps import light_server, png

CHROMIUM = shutil.which("chromium")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (requirements-dev.txt)")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CHROMIUM, reason="needs chromium (apt-get install chromium)")]
PATIENCE_MS = 60_000
DONE = re.compile("^Done")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as found:
        chromium = found.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def served():
    with light_server(0.02, request_bytes=2**20, queue=6) as found:
        yield found


@pytest.fixture
def images(tmp_path):
    """Ten images, each with a bright spot on dark ground, by their numbers."""
    paths = []
    for number in range(1, 11):
        pixels = np.full((240, 320, 3), 20 * number, np.uint8)
        pixels[40:120, 60:140] = 250
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


@pytest.fixture
def open_page(browser, served):
    """A function that opens the page in a new window, and afterwards looks whether the console stayed silent.

    Chromium writes every 503 there, though the page waits and tries again as it should.
    """
    contexts, complaints = [], []

    def open_it(javascript=True, width=1200, height=900, dark=False, path="/"):
        context = browser.new_context(
            java_script_enabled=javascript,
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
        )
        contexts.append(context)
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.extend(_foreign(request.url, served)))
        page.goto(served.url + path)
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert [text for text in complaints if "status of 503" not in text] == []


def _foreign(url, served) -> list[str]:
    return [] if url.startswith((served.url, "data:", "blob:")) else [url]


def check(page, paths) -> None:
    page.set_input_files("#files", paths)
    page.locator("#status", has_text=DONE).wait_for()


def test_one_image_gets_a_card_with_its_verdict_and_heatmap(open_page, images):
    page = open_page()
    check(page, images[9])
    card = page.locator(".result")
    assert card.locator(".badge").inner_text() == "Probably real"
    assert "for real." in card.inner_text()
    assert page.locator("#status").inner_text().startswith("Done: 0 fake, 1 real")
    heat, image = card.locator(".heat").bounding_box(), card.locator(".preview").bounding_box()
    assert heat == image
    assert heat["width"] > 100


def test_the_slider_changes_how_strongly_the_heatmap_covers(open_page, images):
    page = open_page()
    check(page, images[9])
    slider, opacity = page.locator(".opacity"), "element => getComputedStyle(element).opacity"
    slider.focus()
    page.keyboard.press("Home")
    assert page.locator(".heat").evaluate(opacity) == "0"
    page.keyboard.press("End")
    assert page.locator(".heat").evaluate(opacity) == "1"


def test_many_images_are_checked_while_the_server_is_busy_and_keep_their_order(open_page, images, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(png(kind="JPEG")[:200])
    page = open_page()
    check(page, [*images, broken, *images])
    names = page.locator(".result .name").all_text_contents()
    assert names == [f"{number}.png" for number in range(1, 11)] + ["broken.jpg"] + [f"{n}.png" for n in range(1, 11)]
    assert page.locator(".badge.refused").text_content() == "Not readable"
    assert "truncated" in page.locator(".reason").text_content()


def test_the_download_is_what_the_script_would_write(open_page, images, tmp_path):
    for name in ("cat.png", "007.png", "notes.png"):
        (tmp_path / name).write_bytes(png(250) if name != "notes.png" else b"not an image")
    page = open_page()
    check(
        page,
        [images[9], tmp_path / "cat.png", *images[:2], images[6], tmp_path / "007.png", tmp_path / "notes.png"],
    )
    with page.expect_download() as download:
        page.get_by_role("button", name="Download predictions.json").click()
    text = (download.value.path()).read_text()
    assert text == json.dumps(json.loads(text), indent=4) + "\n"
    found = json.loads(text)
    assert [entry.get("index", entry.get("image")) for entry in found] == [
        1,
        2,
        10,
        "007.png",
        "7.png",
        "cat.png",
        "notes.png",
    ]
    assert found[0] == {"index": 1, "prediction": "fake"}
    assert found[-1]["prediction"] is None
    assert "not an image" in found[-1]["error"]


def test_too_large_a_file_is_refused_before_it_is_sent(open_page, tmp_path):
    (tmp_path / "large.png").write_bytes(bytes(2 * 2**20))
    page = open_page()
    check(page, tmp_path / "large.png")
    assert "expected at most 1 MB, got 2 MB" in page.locator(".reason").inner_text()


def test_the_stability_box_adds_a_table(open_page, images):
    page = open_page()
    page.get_by_role("checkbox").check()
    check(page, images[9])
    assert "Stable" in page.locator(".stability summary").inner_text()
    page.locator(".stability summary").click()
    assert page.locator(".stability tbody tr").count() == 5


def test_a_dropped_and_a_pasted_image_are_checked(open_page, images):
    page = open_page()
    page.evaluate(
        """async ([kind, name]) => {
            const canvas = document.createElement("canvas");
            canvas.width = canvas.height = 40;
            const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
            const transfer = new DataTransfer();
            transfer.items.add(new File([blob], "dropped.png", { type: "image/png" }));
            window.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, cancelable: true }));
            const board = new DataTransfer();
            board.items.add(new File([blob], "image.png", { type: "image/png" }));
            window.dispatchEvent(new ClipboardEvent("paste", { clipboardData: board }));
        }""",
        ["", ""],
    )
    page.locator(".result[data-verdict]").nth(1).wait_for()
    assert sorted(page.locator(".result .name").all_text_contents()) == ["dropped.png", "pasted-1.png"]


def test_the_keyboard_alone_is_enough(open_page, images):
    page = open_page()
    seen = []
    for _ in range(6):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
    assert seen[:1] == ["skip"]
    assert "files" in seen
    assert "stability" in seen
    with page.expect_file_chooser() as chooser:
        page.locator("#files").focus()
        page.keyboard.press("Space")
    chooser.value.set_files(images[0])
    page.locator("#status", has_text=DONE).wait_for()
    page.get_by_role("button", name="Clear").focus()
    page.keyboard.press("Enter")
    assert page.locator(".result").count() == 0
    assert page.evaluate("document.activeElement.id") == "files"


def test_a_screen_reader_finds_names_for_everything(open_page, images):
    page = open_page()
    check(page, images[9])
    tree = page.locator("body").aria_snapshot()
    for part in (
        'heading "Is this image fake or real?" [level=1]',
        'heading "Results" [level=2]',
        'img "The image 10.png"',
        'status: "Done: 0 fake, 1 real, 0 uncertain"',
        'slider "Opacity of the heatmap over 10.png, in percent"',
        "Choose images",
    ):
        assert part in tree, tree
    assert re.search(r'img ".* % fake, .* % real"', tree), tree


def test_without_scripts_one_image_is_checked_all_the_same(open_page, images):
    page = open_page(javascript=False)
    page.set_input_files("#files", images[9])
    page.get_by_role("button", name="Check").click()
    card = page.locator(".result")
    assert card.locator(".badge").inner_text() == "Probably real"
    assert card.locator(".heat").is_visible()
    assert not page.locator(".opacity").is_visible()
    assert page.get_by_role("link", name="Download predictions.json").is_visible()


@pytest.mark.parametrize("width", [320, 375, 1200])
def test_nothing_sticks_out_on_any_width(open_page, images, width):
    page = open_page(width=width, height=700)
    page.get_by_role("checkbox").check()
    check(page, images[:2])
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.goto(page.url + "model")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


CONTRASTS = """() => {
    const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const light = (rgb) => rgb.slice(0, 3).map((v) => v / 255)
        .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const ground = (element) => {
        for (let at = element; at; at = at.parentElement) {
            const colour = numbers(getComputedStyle(at).backgroundColor);
            if (colour.length === 3 || colour[3] === 1) return colour;
        }
        return [255, 255, 255];
    };
    const found = [];
    for (const element of document.querySelectorAll("body *")) {
        const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
        if (!own || !element.checkVisibility() || element.disabled) continue;
        const [a, b] = [light(numbers(getComputedStyle(element).color)), light(ground(element))];
        found.push([element.textContent.trim().slice(0, 30), (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)]);
    }
    return found;
}"""


@pytest.mark.parametrize("dark", [False, True])
def test_every_text_stands_out_from_its_ground(open_page, images, tmp_path, dark):
    (tmp_path / "notes.png").write_bytes(b"not an image")
    exif = Image.Exif()
    exif[0x010F] = "Canon"
    (tmp_path / "camera.jpg").write_bytes(png(90, kind="JPEG", exif=exif))
    page = open_page(dark=dark)
    page.get_by_role("checkbox").check()
    check(page, [images[0], images[5], images[9], tmp_path / "notes.png", tmp_path / "camera.jpg"])
    found = page.evaluate(CONTRASTS)
    assert len(found) > 40
    assert [each for each in found if each[1] < 4.5] == []
