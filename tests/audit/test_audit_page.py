"""The audit page in a real browser, without a window: people decide, save, and image_separate.py applies it."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from conftest import make_labeled_images
from separation_sets import separate, separated

from fakereal.__main__ import main
from fakereal.audit import audit, label_errors, report
from fakereal.dataset.scan import scan
from fakereal.preprocessing import Preprocessing

CHROMIUM = shutil.which("chromium")


def audited(root: Path, folder: Path, suspects: dict[str, float], reliable: bool = True) -> list[str]:
    """Write the report of an audit that suspects some images, by name with their score; return the commands to apply.

    The suspects are given, so that no network has to be trained on a set this small.
    """
    dataset = scan(root, Preprocessing(32))
    records = {record.path.relative_to(root).as_posix(): record for record in dataset.records}
    estimate = label_errors.Estimate(2, (1, 4), 0.97, 0.99 if reliable else 0.7, label_errors.Trial(5, 4, 20, 2))
    found = label_errors.LabelErrors(
        tuple(
            label_errors.Suspect(records[name], records[name].label, 1 - records[name].label, score, score)
            for name, score in suspects.items()
        ),
        len(records),
        estimate,
        (),
    )
    written = label_errors.write_given_labels(dataset, folder / "given_labels")
    commands = label_errors.separation_commands(written, dataset, folder / "given_labels", Path("decisions.json"))
    tree = label_errors.as_json(found, root)
    facts = audit.audit_dataset(dataset)
    report.write_report(
        folder, facts, audit.findings(facts, audit.label_error_findings(tree, ["apply"])), tree, commands
    )
    return commands


def test_the_banner_has_the_color_of_the_worst_finding(make_folder, make_image, tmp_path):
    root = make_folder({"fake": 12, "real": 12})

    def banner() -> str:
        page = (tmp_path / "report" / "report.html").read_text()
        return page[page.index('class="card verdict') :][:600]

    audited(root, tmp_path / "report", {})
    assert 'class="card verdict good"' in banner()
    assert "No findings" in banner()
    audited(root, tmp_path / "report", {"fake/1.png": 0.1}, reliable=False)
    assert 'class="card verdict doubtful"' in banner()
    assert "1 suspect label;" in banner()
    make_image(root / "real" / "99.png", 0)  # a copy of fake/1.png
    audited(root, tmp_path / "report", {"fake/1.png": 0.1}, reliable=False)
    assert 'class="card verdict bad"' in banner()
    assert "Identical images in both classes" in banner()
    assert "1 finding, 1 note; this is the most serious one" in banner()


def test_the_command_never_writes_into_the_audited_folder(make_folder, tmp_path, monkeypatch):
    make_folder({"clean/fake": 1, "clean/real": 1}, "data")
    monkeypatch.chdir(tmp_path)
    (command,) = audited(Path("data/clean"), Path("audit"), {})
    assert command == (
        "python image_separate.py data/clean --predictions audit/given_labels --decisions decisions.json"
        " --output data/clean_checked --mode copy"
    )
    other = make_folder({"fake": 1, "real": 1}, "other")
    (command,) = audited(other, Path("audit"), {})
    assert "--output data/clean --mode copy" in command


def test_decisions_of_all_splits_are_applied_split_by_split(make_folder, tmp_path, capsys):
    root = make_folder({f"{split}/{name}": 2 for split in ("train", "val") for name in ("fake", "real")})
    commands = audited(root, tmp_path / "audit", {"train/fake/1.png": 0.1, "val/fake/1.png": 0.2})
    assert [command.split()[2] for command in commands] == [f"{root}/train", f"{root}/val"]
    decided = [{"image": f"{split}/fake/1.png", "prediction": "real"} for split in ("train", "val")]
    (tmp_path / "decisions.json").write_text(json.dumps(decided))
    for split in ("train", "val"):
        places = (root / split, "--predictions", tmp_path / "audit" / "given_labels" / split, "--mode", "copy")
        assert separate(*places, "--decisions", tmp_path / "decisions.json", "--output", tmp_path / split) == 0
        assert separated(tmp_path / split) == {
            "real_images/fake__1.png",
            "fake_images/fake__2.png",
            "real_images/real__1.png",
            "real_images/real__2.png",
        }
        said = capsys.readouterr()
        assert "decided by people: 1" in said.out
        assert f"decisions about images outside {root / split}, not used: 1" in said.err


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (requirements-dev.txt)")
    with playwright.sync_playwright() as found:
        chromium = found.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def window(browser):
    """A browser window with its own storage; afterwards the console must have stayed silent."""
    context = browser.new_context(viewport={"width": 1000, "height": 800})
    complaints = []
    context.on("console", lambda message: complaints.append(message.text))
    context.on("weberror", lambda error: complaints.append(str(error.error)))
    yield context
    context.close()
    assert complaints == []


def in_browser(test):
    marked = pytest.mark.skipif(not CHROMIUM, reason="needs chromium (apt-get install chromium)")(test)
    return pytest.mark.slow(marked)


@pytest.mark.slow
def test_the_command_on_the_page_of_a_real_audit_applies_what_was_decided(tmp_path, monkeypatch):
    root = make_labeled_images(tmp_path / "set", {"fake": 20, "real": 20})
    (root / "fake" / "3.png").rename(root / "real" / "wrong.png")
    monkeypatch.chdir(tmp_path)
    assert main(["audit", "set", "--report", "audit", "--label-errors"]) == 0
    page = (tmp_path / "audit" / "report.html").read_text()
    assert "Enlarge real/wrong.png" in page
    command = re.search(r'<pre class="command">python image_separate.py (.*)</pre>', page)[1]
    Path("decisions.json").write_text(json.dumps([{"image": "real/wrong.png", "prediction": "fake"}]))
    assert separate(*shlex.split(command)) == 0
    found = separated(tmp_path / "data" / "clean")
    assert "fake_images/real__wrong.png" in found
    assert len(found) == 40
    assert len([name for name in found if name.startswith("fake_images/")]) == 20


SUSPECTS = {"fake/1.png": 0.01, "real/2.png": 0.02, "fake/3.png": 0.03, "real/4.png": 0.04}


def opened(window, folder: Path):
    page = window.new_page()
    page.goto((folder / "report.html").as_uri())
    return page


def saved(page, path: Path) -> list[dict]:
    with page.expect_download() as download:
        page.get_by_role("button", name="Save decisions.json").click()
    assert download.value.suggested_filename == "decisions.json"
    download.value.save_as(path)
    return json.loads(path.read_text())


@in_browser
def test_people_decide_by_key_and_mouse_save_and_separation_applies_it(window, make_folder, tmp_path):
    root = make_folder({"fake": 4, "real": 4})
    audited(root, tmp_path / "audit", SUSPECTS)
    page = opened(window, tmp_path / "audit")
    assert page.get_by_role("button", name="Save decisions.json").is_disabled()
    for key in ("ArrowRight", "r", "f", "k"):
        page.keyboard.press(key)
    assert page.locator("#count").inner_text() == "3 of 4 decided: 1 fake, 1 real, 1 kept."
    assert page.locator("progress").evaluate("bar => bar.value") == 3
    last = page.locator("#sheet figure").nth(3)
    last.get_by_role("button", name="fake").click()
    last.get_by_role("button", name="fake").click()  # takes it back
    assert page.locator("#count").inner_text().startswith("3 of 4 decided")
    decisions = saved(page, tmp_path / "decisions.json")
    assert decisions == [
        {"image": "fake/1.png", "prediction": "real"},
        {"image": "real/2.png", "prediction": "fake"},
        {"image": "fake/3.png", "prediction": "fake"},
    ]
    before = {path.relative_to(root): path.read_bytes() for path in root.rglob("*.png")}
    places = (root, "--predictions", tmp_path / "audit" / "given_labels", "--output", tmp_path / "clean")
    assert separate(*places, "--decisions", tmp_path / "decisions.json", "--mode", "copy") == 0
    swapped = {"real_images/fake__1.png", "fake_images/real__2.png"}
    assert separated(tmp_path / "clean") == swapped | {
        *(f"fake_images/fake__{number}.png" for number in (2, 3, 4)),
        *(f"real_images/real__{number}.png" for number in (1, 3, 4)),
    }
    assert {path.relative_to(root): path.read_bytes() for path in root.rglob("*.png")} == before


@in_browser
def test_a_closed_tab_loses_nothing_and_undo_goes_back_step_by_step(window, make_folder, tmp_path):
    root = make_folder({"fake": 4, "real": 4})
    audited(root, tmp_path / "audit", SUSPECTS)
    page = opened(window, tmp_path / "audit")
    for key in ("ArrowRight", "r", "ArrowLeft", "f", "r"):  # the first image real, then fake; the second real
        page.keyboard.press(key)
    page.close()
    page = opened(window, tmp_path / "audit")
    assert page.locator("#count").inner_text() == "2 of 4 decided: 1 fake, 1 real, 0 kept."
    page.keyboard.press("u")
    page.get_by_role("button", name="Undo").click()
    assert page.locator("#count").inner_text() == "1 of 4 decided: 0 fake, 1 real, 0 kept."
    assert page.locator("#sheet figure.current figcaption").inner_text().endswith("fake/1.png")
    page.keyboard.press("u")
    assert page.locator("#count").inner_text() == "0 of 4 decided."
    page.close()
    make_folder({"more/fake": 1}, "images")
    audited(root, tmp_path / "audit", {"real/1.png": 0.5})  # another audit has decisions of its own
    assert opened(window, tmp_path / "audit").locator("#count").inner_text() == "0 of 1 decided."


@in_browser
def test_an_image_is_enlarged_by_click_and_decided_there(window, make_folder, tmp_path):
    root = make_folder({"fake": 4, "real": 4})
    audited(root, tmp_path / "audit", SUSPECTS)
    page = opened(window, tmp_path / "audit")
    page.get_by_role("button", name="Enlarge real/2.png").click()
    dialog = page.get_by_role("dialog")
    assert dialog.locator("img").bounding_box()["width"] > 400
    assert "score 0.020" in dialog.inner_text()
    page.keyboard.press("k")  # and on to the next
    assert "fake/3.png" in dialog.inner_text()
    dialog.get_by_role("button", name="real").click()
    assert "real/4.png" in dialog.inner_text()
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert [each["prediction"] for each in saved(page, tmp_path / "decisions.json")] == ["real", "real"]


@in_browser
def test_on_a_phone_nothing_is_wider_than_the_screen(browser, make_folder, tmp_path):
    root = make_folder({"fake": 4, "real": 4})
    audited(root, tmp_path / "audit", SUSPECTS)
    context = browser.new_context(viewport={"width": 360, "height": 740}, has_touch=True)
    page = opened(context, tmp_path / "audit")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.get_by_role("button", name="Enlarge fake/1.png").tap()
    box = page.get_by_role("dialog").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 360
    assert box["height"] <= 740
    context.close()
