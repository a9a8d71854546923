import csv
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from prediction_sets import Brightness, predict

import fakereal.__main__ as program
import predict_and_save_json as door
from fakereal.cli import run_cli
from fakereal.errors import DataError, ModelFileError
from fakereal.model import metadata
from fakereal.model.calibration import DecisionRule
from fakereal.predict import pipeline
from fakereal.predict import results as predict_results
from fakereal.predict import run as prediction
from fakereal.predict.inputs import list_images
from fakereal.predict.results import details_of, save
from fakereal.predict.run import TRAINED_MODEL, with_threshold
from fakereal.preprocessing import Preprocessing

SIZE_PX = 32
PREPROCESSING = Preprocessing(SIZE_PX)


def paint(path: Path, gray: int = 200, size=(20, 10)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (gray,) * 3).save(path)
    return path


def noise(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def predicted(folder: Path, network=None, recursive=False, batch_size=4, decision=None):
    listing = list_images(folder, recursive)
    return predict(listing, network or Brightness(), PREPROCESSING, decision or DecisionRule(), batch_size)


def entries_of(folder: Path, **options) -> list[dict]:
    output = folder.parent / "predictions.json"
    save(predicted(folder, **options), output)
    return json.loads(output.read_text())


def rows_of(folder: Path, **options) -> dict[str, dict]:
    return {row["image"]: row for row in map(details_of, predicted(folder, **options))}


@pytest.fixture
def model(small_model) -> Path:
    return small_model


@pytest.fixture
def detector(model):
    from fakereal.model import model_file

    return model_file.load(model)


# what the JSON holds


def test_numbered_images_give_exactly_the_documented_text(tmp_path):
    for index, gray in ((10, 250), (2, 10), (1, 240)):
        paint(tmp_path / "test" / f"{index}.png", gray)
    save(predicted(tmp_path / "test"), tmp_path / "p.json")
    assert (tmp_path / "p.json").read_text() == (
        "[\n"
        '    {\n        "index": 1,\n        "prediction": "real"\n    },\n'
        '    {\n        "index": 2,\n        "prediction": "fake"\n    },\n'
        '    {\n        "index": 10,\n        "prediction": "real"\n    }\n'
        "]\n"
    )


def test_other_names_stand_behind_the_numbers_with_their_path(tmp_path):
    for name in ("b.png", "a/7.PNG", "3.jpg", "a/deep/x.webp"):
        paint(tmp_path / "in" / name)
    names = [entry.get("index", entry.get("image")) for entry in entries_of(tmp_path / "in", recursive=True)]
    assert names == [3, "a/7.PNG", "a/deep/x.webp", "b.png"]


def test_files_of_one_number_keep_their_places_under_their_names(tmp_path):
    for name, gray in (("7.png", 255), ("007.png", 0), ("1.jpg", 0), ("1.png", 255), ("2.png", 255)):
        paint(tmp_path / "in" / name, gray)
    assert entries_of(tmp_path / "in") == [
        {"index": 2, "prediction": "real"},
        {"image": "007.png", "prediction": "fake"},
        {"image": "1.jpg", "prediction": "fake"},
        {"image": "1.png", "prediction": "real"},
        {"image": "7.png", "prediction": "real"},
    ]
    assert list_images(tmp_path / "in").shared_numbers == ("1.jpg", "1.png", "007.png", "7.png")


def test_a_file_that_cannot_be_read_keeps_its_place_with_the_reason(tmp_path):
    paint(tmp_path / "in/1.png")
    (tmp_path / "in/2.png").write_text("no picture")
    paint(tmp_path / "in/3.png")
    first, second, third = entries_of(tmp_path / "in")
    assert second["index"] == 2
    assert second["prediction"] is None
    assert second["error"] == "text, not an image"
    assert (first["prediction"], third["prediction"]) == ("real", "real")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_folders_pipes_and_dead_links_named_like_images_keep_their_places(tmp_path):
    paint(tmp_path / "in/1.png")
    (tmp_path / "in/2.png").mkdir()
    os.mkfifo(tmp_path / "in/3.png")
    (tmp_path / "in/4.png").symlink_to("nowhere.png")
    (tmp_path / "in/5.png").symlink_to("5.png")
    reasons = [entry.get("error", "") for entry in entries_of(tmp_path / "in")]
    assert reasons[0] == ""
    for reason, word in zip(
        reasons[1:], ("a folder", "a pipe", "a link to a missing file", "symbolic links"), strict=True
    ):
        assert word in reason


def test_every_entry_of_a_folder_is_listed_somewhere(tmp_path):
    for name in ("1.png", "notes.txt", ".hidden.png", "17", "sub/2.png", "odd.png/3.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"")
    flat, deep = list_images(tmp_path / "in"), list_images(tmp_path / "in", recursive=True)
    assert [item.name for item in flat.items] == ["1.png", "odd.png"]
    assert flat.other_files == deep.other_files == ("17", "notes.txt")
    assert flat.hidden == deep.hidden == (".hidden.png",)
    assert flat.skipped_folders == ("sub/",)
    assert [item.name for item in deep.items] == ["1.png", "odd.png", "odd.png/3.png", "sub/2.png"]
    assert deep.skipped_folders == ()


def test_a_ring_of_links_between_folders_is_not_followed(tmp_path):
    paint(tmp_path / "in/1.png")
    (tmp_path / "in/ring").symlink_to(tmp_path / "in")
    listing = list_images(tmp_path / "in", recursive=True)
    assert [item.name for item in listing.items] == ["1.png"]
    assert listing.skipped_folders == ("ring/",)


def test_one_image_can_be_predicted_by_itself(tmp_path):
    assert entries_of(paint(tmp_path / "7.png")) == [{"index": 7, "prediction": "real"}]


# the pipeline


def test_breaking_adding_and_removing_images_changes_no_other_row(tmp_path, detector):
    for number in range(1, 12):
        noise(tmp_path / "in" / f"{number}.png", number)
    before = rows_of(tmp_path / "in", network=detector)
    (tmp_path / "in/2.png").write_bytes((tmp_path / "in/2.png").read_bytes()[:300])
    (tmp_path / "in/5.png").unlink()
    noise(tmp_path / "in/0.png", 99)
    after = rows_of(tmp_path / "in", network=detector)
    untouched = before.keys() - {"2.png", "5.png"}
    assert {name: before[name] for name in untouched} == {name: after[name] for name in untouched}
    assert after["2.png"]["prediction"] is None
    assert len({row["p_real"] for row in before.values()}) == 11  # images that all look alike would prove nothing


def test_the_networks_output_is_the_same_to_the_bit_at_every_place_of_a_batch(detector):
    images = np.random.default_rng(0).integers(0, 256, (8, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
    expected = detector.p_real(images)
    for shift in range(1, 8):
        np.testing.assert_array_equal(np.roll(detector.p_real(np.roll(images, shift, axis=0)), -shift), expected)
    alone = np.zeros_like(images)
    alone[3] = images[0]
    assert detector.p_real(alone)[3] == expected[0]


def test_every_batch_has_the_same_shape(tmp_path):
    for number in range(5):
        paint(tmp_path / f"in/{number}.png")
    (tmp_path / "in/5.png").write_bytes(b"")
    network = Brightness()
    assert len(predicted(tmp_path / "in", network, batch_size=4)) == 6
    assert network.shapes == [(4, SIZE_PX, SIZE_PX, 3)] * 2


def test_a_folder_without_any_sound_image_never_asks_the_network(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/1.png").write_bytes(b"")
    network = Brightness()
    assert [result.label for result in predicted(tmp_path / "in", network)] == [None]
    assert network.shapes == []


def test_decoding_continues_while_the_network_computes(tmp_path):
    for number in range(12):
        paint(tmp_path / f"in/{number}.png")
    decoded, decoded_meanwhile = [], []

    class Counting(Preprocessing):
        def views(self, image):
            decoded.append(image)
            return super().views(image)

    class Slow(Brightness):
        def p_real(self, images):
            until = time.monotonic() + 10
            while len(decoded) < 12 and time.monotonic() < until:
                time.sleep(0.01)
            decoded_meanwhile.append(len(decoded))
            return super().p_real(images)

    items = list_images(tmp_path / "in").items
    assert len(list(pipeline.predict_batches(items, Slow(), Counting(SIZE_PX), 4))) == 12
    assert decoded_meanwhile[0] == 12


def test_only_a_bounded_number_of_files_is_read_ahead(tmp_path):
    paint(tmp_path / "in/1.png")
    (item,) = list_images(tmp_path / "in").items
    taken, lead = 0, []

    def endless():
        nonlocal taken
        while taken < 600:
            taken += 1
            yield item

    class Watching(Brightness):
        def p_real(self, images):
            lead.append(taken - 4 * len(self.shapes))
            return super().p_real(images)

    assert sum(1 for _ in pipeline.predict_batches(endless(), Watching(), PREPROCESSING, 4)) == 600
    assert max(lead) <= 4 * 3 + 16


def test_an_interrupt_ends_the_threads_and_writes_nothing(tmp_path):
    for number in range(60):
        paint(tmp_path / f"in/{number}.png")

    class Interrupted(Brightness):
        def p_real(self, images):
            raise KeyboardInterrupt

    def main(argv):
        save(predicted(tmp_path / "in", Interrupted()), tmp_path / "p.json")
        return 0

    assert run_cli(main, []) == 130
    assert not list(tmp_path.glob("*p.json*"))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_an_output_that_is_no_number_is_an_error_of_that_image_alone(tmp_path):
    paint(tmp_path / "in/1.png", 0)
    paint(tmp_path / "in/2.png", 255)

    class Broken(Brightness):
        def p_real(self, images):
            values = super().p_real(images)
            return np.where(values == 0, np.nan, values)

    first, second = entries_of(tmp_path / "in", network=Broken())
    assert "not a number" in first["error"]
    assert second == {"index": 2, "prediction": "real"}


def test_a_network_that_gives_no_probability_is_refused(tmp_path):
    paint(tmp_path / "in/1.png")

    class Logits(Brightness):
        def p_real(self, images):
            return super().p_real(images) * 10 - 20

    with pytest.raises(ModelFileError, match=r"from 0 to 1, got -12\.\d+ for 1.png"):
        predicted(tmp_path / "in", Logits())


# decisions and details


def test_a_threshold_of_ones_own_keeps_the_verdicts_in_order():
    decision = with_threshold(DecisionRule(0.5, 1.0, (0.4, 0.6)), 0.9)
    assert decision == DecisionRule(0.9, 1.0, (0.4, 0.9))
    assert with_threshold(decision, None) is decision


def test_details_hold_the_networks_output_and_the_calibrated_confidence(tmp_path):
    paint(tmp_path / "in/1.png", 51, size=(30, 20))
    (row,) = rows_of(tmp_path / "in", decision=DecisionRule(0.5, 2.0, (0.4, 0.6))).values()
    assert row == {
        "index": 1,
        "image": "1.png",
        "prediction": "fake",
        "verdict": "fake",
        "confidence": 0.666667,  # logit(0.2) / 2 = log(1/2): 2 to 1 for fake
        "reason": None,
        "p_fake": 0.8,
        "p_real": 0.2,
        "width": 30,
        "height": 20,
        "format": "PNG",
        "origin": None,
        "error": None,
    }


def test_the_three_formats_of_details_hold_the_same(tmp_path):
    paint(tmp_path / "in/2.png", 51)
    paint(tmp_path / 'in/a,"b"\nc.png')
    (tmp_path / "in/1.png").write_bytes(b"")
    rows = [details_of(result) for result in predicted(tmp_path / "in")]
    for suffix in predict_results.DETAILS_SUFFIXES:
        predict_results.write_details(tmp_path / f"d{suffix}", rows)
    assert json.loads((tmp_path / "d.json").read_text()) == rows
    assert [json.loads(line) for line in (tmp_path / "d.jsonl").read_text().splitlines()] == rows
    with open(tmp_path / "d.csv", newline="") as file:
        from_csv = list(csv.DictReader(file))
    assert from_csv == [{name: "" if value is None else str(value) for name, value in row.items()} for row in rows]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse file names that are no UTF-8")
def test_a_file_name_that_is_no_utf8_is_predicted_and_written(tmp_path):
    odd = os.fsdecode(b"caf\xe9.png")
    paint(tmp_path / "in/x.png").rename(tmp_path / "in" / odd)
    results = predicted(tmp_path / "in")
    for suffix in predict_results.DETAILS_SUFFIXES:
        save(results, tmp_path / "p.json", tmp_path / f"d{suffix}")
    (entry,) = json.loads((tmp_path / "p.json").read_text())
    assert os.fsencode(entry["image"]) == b"caf\xe9.png"
    assert r"caf\udce9.png" in (tmp_path / "d.csv").read_text(encoding="utf-8")


# the door


def run(*arguments) -> int:
    return run_cli(door.main, [str(argument) for argument in arguments])


def test_a_saved_model_predicts_a_folder_the_same_twice(tmp_path, model, capsys):
    for number in range(1, 7):
        noise(tmp_path / f"in/{number}.png", number)
    (tmp_path / "in/read me.txt").write_text("")
    (tmp_path / "in/4.png").write_bytes(b"")
    written, said = [], []
    for _ in range(2):
        output, table = tmp_path / "new/p.json", tmp_path / "new/d.csv"
        assert run("--input", tmp_path / "in", "--model", model, "--output", output, "--details", table) == 0
        written.append((output.read_bytes(), table.read_bytes()))
        said.append(capsys.readouterr())
    assert written[0] == written[1]
    assert said[0].out == said[1].out
    assert "4.png: the file is empty" in said[0].out
    assert f"predictions: {output}" in said[0].out
    assert "skipped files that are no images (1): read me.txt" in said[0].err
    labels = {entry["index"]: entry["prediction"] for entry in json.loads(written[0][0])}
    assert labels.keys() == set(range(1, 7))
    assert labels.pop(4) is None
    assert set(labels.values()) <= {"fake", "real"}


def test_the_threshold_option_decides(tmp_path, model, capsys):
    noise(tmp_path / "in/1.png", 1)
    answers = []
    for threshold in (0, 1):
        output = tmp_path / "p.json"
        assert run("--input", tmp_path / "in", "--model", model, "--output", output, "--threshold", threshold) == 0
        answers += [entry["prediction"] for entry in json.loads(output.read_text())]
    assert answers == ["fake", "real"]


def test_without_a_model_option_the_users_own_model_goes_before_the_shipped_one(tmp_path, model, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    noise(tmp_path / "data/test/1.png", 1)
    monkeypatch.setattr(metadata, "PRETRAINED", model)
    monkeypatch.setattr(prediction, "DEFAULT_MODELS", (TRAINED_MODEL, model))
    assert run() == 0
    assert "model: the shipped detector (models/my_trained_model.h5 does not exist here)" in capsys.readouterr().err
    assert run("--model", str(model)) == 0
    assert f"model: the shipped detector ({model})" in capsys.readouterr().err
    TRAINED_MODEL.parent.mkdir()
    TRAINED_MODEL.write_bytes(model.read_bytes())
    assert run() == 0
    assert f"model: {TRAINED_MODEL}\n" in capsys.readouterr().err
    assert json.loads(Path("predictions.json").read_text())[0]["index"] == 1


def command(*arguments) -> int:
    return run_cli(program.main, ["predict", *map(str, arguments)])


def test_the_command_prints_one_line_per_image_and_writes_no_file(tmp_path, model, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    noise(tmp_path / "cat.png", 1)
    noise(tmp_path / "more/dog.png", 2)
    (tmp_path / "more/bad.png").write_bytes(b"broken")
    before = sorted(tmp_path.rglob("*"))
    assert command("cat.png", "more", "--model", model) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert [re.fullmatch(r"(fake|real|uncertain) +(?:fake|real) +\d+\.\d %  (\S+)", lines[n])[2] for n in (0, 2)] == [
        "cat.png",
        "more/dog.png",
    ]
    assert lines[1].startswith("unreadable                 more/bad.png: ")
    assert "predictions:" not in said.err
    assert sorted(tmp_path.rglob("*")) == before
    assert command("cat.png", "more", "--model", model, "--strict", "--quiet") == 1
    assert capsys.readouterr() == (said.out, "")
    assert command("more/bad.png", "--model", model, "--quiet") == 2
    assert capsys.readouterr().err == "error: not a single image could be read: the lines above say why\n"


def test_sub_folders_that_are_left_out_count_under_strict(tmp_path, model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    noise(tmp_path / "in/1.png", 1)
    noise(tmp_path / "in/sub/2.png", 2)
    codes = [command("in", "--model", model, *more) for more in ([], ["--strict"], ["--strict", "--recursive"])]
    assert codes == [0, 1, 0]


def test_beyond_20_images_the_command_prints_the_summary(tmp_path, model, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    paths = [noise(tmp_path / f"in/{number}.png", number) for number in range(21)]
    assert command("in", "--model", model) == 0
    assert capsys.readouterr().out.startswith("21 images in in\n  fake ")
    assert command(*(path.relative_to(tmp_path) for path in paths), "--model", model) == 0
    assert capsys.readouterr().out.startswith("21 images in in/0.png, in/1.png, in/2.png, 18 more\n")


def test_the_command_writes_the_predictions_where_it_is_told_to(tmp_path, model, monkeypatch, capsysbinary):
    monkeypatch.chdir(tmp_path)
    noise(tmp_path / "1.png", 1)
    assert command("1.png", "--model", model, "--output", "p.json") == 0
    assert capsysbinary.readouterr().out.endswith(b" %  1.png\n")
    assert command("1.png", "--model", model, "--output", "-") == 0
    assert capsysbinary.readouterr().out == Path("p.json").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.png", "p.json"]


@pytest.mark.parametrize("output", [[], ["--output", "-"]])
def test_a_run_without_a_file_cannot_be_resumed(output, tmp_path, model, capsys):
    noise(tmp_path / "1.png", 1)
    assert command(tmp_path / "1.png", "--model", model, "--resume", *output) == 2
    assert "--resume: expected the --output of the run that was stopped" in capsys.readouterr().err


def test_predictions_of_other_images_are_kept_and_named(tmp_path, model, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        noise(tmp_path / name / f"{name}.png", 1)
    assert run("a", "--model", model, "--details", "d.csv") == 0
    before = {name: Path(name).read_bytes() for name in ("predictions.json", "d.csv")}
    assert run("a", "--model", model, "--details", "d.csv") == 0
    assert "replaced" not in capsys.readouterr().err
    assert run("b", "--model", model, "--details", "d.csv") == 0
    assert "replaced other results, which are kept as predictions.json.bak, d.csv.bak (" in capsys.readouterr().err
    assert {name: Path(f"{name}.bak").read_bytes() for name in before} == before
    assert run("a", "--model", model, "--force") == 0
    assert sorted(path.name for path in tmp_path.glob("*.bak*")) == ["d.csv.bak", "predictions.json.bak"]


def _mistakes(folder: Path):
    good = ["--input", folder / "in", "--model", folder / "model.h5"]
    yield ["--input", folder / "no", *good[2:]], "no: no such file or folder: check the path"
    yield ["--input", folder / "archive.zip", *good[2:]], "archive.zip: expected an intact archive, got a damaged one"
    yield ["--input", folder / "model.h5", *good[2:]], "an image (.jpg"
    yield ["--input", folder / "*.jpg", *good[2:]], "no file matches this pattern"
    yield ["--list", folder / "no.txt", *good[2:]], "--list: can't read"
    yield ["--input", folder / "empty", *good[2:]], "only 0 other files and 1 sub-folders: add --recursive"
    yield ["--input", folder / "empty", "--recursive", *good[2:]], "name the folder of images with --input"
    yield ["--input", folder / ("x" * 300), *good[2:]], ": File name too long: check the path"
    yield [*good[:2], "--model", folder / "no.h5"], "expected a model file (.h5, .keras or .tflite), got nothing there"
    yield [*good[:2], "--model", folder / "in"], "expected a model file (.h5, .keras or .tflite), got a folder"
    yield [*good, "--output", folder / "in"], "got the folder"
    yield [*good, "--output", folder / "in/1.png"], "expected a name ending in .json"
    yield [*good, "--output", folder / "model.h5/p.json"], "model.h5: Not a directory"
    yield [*good, "--output", folder / "p.csv"], "p.csv: for a table, add --details"
    yield [*good, "--details", folder / "d.xlsx"], "expected a name ending in .json, .jsonl, .csv"
    yield [*good, "--output", folder / "p.json", "--details", folder / "in/../p.json"], "name the same file"
    yield [*good, "--batch-size", "100000"], "expected at most 1024"
    yield [*good, "--stability", "6"], "expected 1 to 5 variants"
    yield [*good, "--explain", folder / "in"], "is inside the input folder"


@pytest.mark.parametrize("number", range(19))
def test_a_mistake_is_reported_in_one_line_before_any_work(number, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    paint(tmp_path / "in/1.png")
    (tmp_path / "empty/sub").mkdir(parents=True)
    (tmp_path / "archive.zip").write_bytes(b"PK")
    (tmp_path / "model.h5").write_bytes(b"never opened")
    before = sorted(tmp_path.rglob("*"))
    arguments, words = list(_mistakes(tmp_path))[number]
    assert run(*arguments) == 2
    said = capsys.readouterr()
    assert words in said.err
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_closed_files_and_folders_are_reported(tmp_path):
    paint(tmp_path / "in/1.png")
    paint(tmp_path / "in/2.png").chmod(0)
    (tmp_path / "in/closed").mkdir(mode=0)
    if os.access(tmp_path / "in/2.png", os.R_OK):
        pytest.skip("this user may read everything")
    _, file, folder = entries_of(tmp_path / "in", recursive=True)
    assert (file["index"], folder["image"]) == (2, "closed")
    assert "Permission denied" in file["error"]
    assert "Permission denied" in folder["error"]
    with pytest.raises(DataError, match="expected a readable folder"):
        list_images(tmp_path / "in/closed")


def test_help_imports_nothing_heavy():
    script = (
        "import sys, predict_and_save_json as door\ntry: door.main(['--help'])\n"
        "except SystemExit: print(sorted({'numpy', 'PIL', 'keras', 'tensorflow'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(door.__file__).parent
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert "--details FILE" in done.stdout
