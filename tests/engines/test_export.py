import dataclasses
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from small_networks import SIZE_PX, built, noise_images, write

import predict_and_save_json as prediction_door
from fakereal import __main__ as door
from fakereal.cli import EXPORT_FORMATS, run_cli
from fakereal.dataset.scan import Record
from fakereal.engines.card import _input_meaning
from fakereal.engines.engine import open_network
from fakereal.engines.export import KERAS, split_in_halves
from fakereal.engines.formats import RUNTIMES, ConvertedNetwork
from fakereal.errors import DataError
from fakereal.model.out_of_distribution import fit_prototypes
from fakereal.preprocessing import Preprocessing

PRETRAINED = ROOT / "models" / "pretrained.h5"
TEXTS = [path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))]
EXAMPLES = re.findall(r"^```python\n(.*?)^```", "\n".join(TEXTS), flags=re.DOTALL | re.MULTILINE)
MODULES = {"litert": "ai_edge_litert", "onnx": "onnxruntime", "openvino": "openvino"}


@pytest.fixture
def model(small_model) -> Path:
    return small_model


def rows_of(model, folder, output, *options):
    details = output.with_suffix(".csv.json")
    arguments = ["--input", str(folder), "--model", str(model), "--output", str(output), "--details", str(details)]
    assert prediction_door.main([*arguments, *options]) == 0
    return json.loads(details.read_text())


def example_of(name: str) -> str:
    """The program in the documentation that runs a format."""
    (example,) = [each for each in EXAMPLES if f"import {MODULES[name]}\n" in each or f"from {MODULES[name]}." in each]
    return example


def told(example: str, folder: Path, picture: str) -> dict:
    """What such a program prints, where the exported network lies in the folder."""
    (folder / "example.py").write_text(example)
    command = [sys.executable, "-I", "example.py", picture]
    return json.loads(subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout)


def export(*options) -> int:
    return run_cli(door.main, ["export", *map(str, options)])


def labeled(folder: Path, each: int) -> Path:
    for number in range(2 * each):
        path = folder / ("fake", "real")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise_images(1, seed=number)[0] // (4, 1)[number % 2]).save(path)
    return folder


def sure(sign: int = 1):
    """A network that calls bright images real (dark ones with sign -1), so sure that rounding flips no label."""
    network = built(5)
    output = network.get_layer("p_real")
    kernel, bias = (each * 0 for each in output.get_weights())
    output.set_weights([kernel + 1 / len(kernel), bias])
    p_real = [
        network.predict_on_batch(images.astype(np.float32)).mean() for images in (noise_images() // 4, noise_images())
    ]
    dark, bright = np.log(p_real) - np.log1p(-np.array(p_real))
    slope = sign * 8 / (bright - dark)
    output.set_weights([kernel + slope / len(kernel), bias - slope * (dark + bright) / 2])
    return network


def test_every_format_can_be_asked_for():
    assert set(EXPORT_FORMATS) - {KERAS} == set(RUNTIMES) == set(MODULES)


@pytest.mark.parametrize("name", sorted(RUNTIMES))
def test_what_is_written_gives_the_outputs_of_the_model(model, tmp_path, name, capsys):
    pytest.importorskip(MODULES[name])
    suffixes = RUNTIMES[name].suffixes
    output = tmp_path / f"detector{suffixes[0]}"
    assert export(model, "--format", name, "--output", output) == 0
    assert "verified: p_real differs from Keras by at most" in capsys.readouterr().out
    files = {suffix: output.with_suffix(suffix).read_bytes() for suffix in suffixes}
    expected = open_network(model, "keras").network.p_real(noise_images())
    assert ConvertedNetwork(RUNTIMES[name], files, SIZE_PX).p_real(noise_images()) == pytest.approx(expected, abs=1e-6)
    assert len(list(tmp_path.iterdir())) == len(suffixes) + 1


def test_the_card_says_all_that_others_need(model, tmp_path):
    output = tmp_path / "detector.tflite"
    assert export(model, "--format", "litert", "--output", output) == 0
    card = json.loads((tmp_path / "detector.tflite.json").read_text())
    metadata = open_network(model).metadata
    assert card["files"] == {"detector.tflite": hashlib.sha256(output.read_bytes()).hexdigest()}
    assert card["model_sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    assert card["input"]["shape"] == [1, SIZE_PX, SIZE_PX, 3]
    assert card["input"]["preprocessing"] == metadata.preprocessing.fingerprint
    assert "the whole image" in card["input"]["meaning"]
    assert card["class_order"] == ["fake", "real"]
    assert (card["decision"]["temperature"], card["decision"]["threshold"]) == (1.5, 0.5)
    assert all(name in card["decision"]["meaning"] for name in card["decision"] if name != "meaning")
    assert card["gate"]["max_difference"] < card["gate"]["limit"]


def test_the_result_lies_beside_the_model_unless_told_otherwise(tmp_path):
    path = write(tmp_path / "mine.h5", built(7))
    assert export(path, "--format", "litert") == 0
    assert {each.name for each in tmp_path.iterdir()} == {"mine.h5", "mine.tflite", "mine.tflite.json"}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--format", "litert", "--output", "x.onnx"], "expected a name ending in .tflite for litert, got x.onnx"),
        (["--format", "litert", "--int8"], "--int8 and --data DIR go together"),
        (["--format", "litert", "--data", "."], "--int8 and --data DIR go together"),
    ],
)
def test_what_does_not_fit_together_is_reported_at_once(model, options, told, capsys):
    assert export(model, *options) == 2
    assert told in capsys.readouterr().err


def test_a_package_that_is_missing_is_named(model, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(RUNTIMES, "onnx", dataclasses.replace(RUNTIMES["onnx"], package="no-such-package"))
    assert export(model, "--format", "onnx", "--output", tmp_path / "x.onnx") == 2
    assert "package no-such-package is not installed: pip install -r requirements-export.txt" in capsys.readouterr().err


def test_what_gives_other_outputs_is_refused_and_not_written(model, monkeypatch, tmp_path, capsys):
    from fakereal.engines import conversion

    other, real = built(8), conversion.convert
    monkeypatch.setattr(conversion, "convert", lambda model, name: real(other, name))
    assert export(model, "--format", "litert", "--output", tmp_path / "x.tflite") == 2
    assert "not written, because p_real differs from Keras by" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_int8_needs_enough_images_to_judge_it(model, tmp_path, capsys):
    data = labeled(tmp_path / "data", 10)
    assert export(model, "--format", "litert", "--int8", "--data", data, "--output", tmp_path / "x.tflite") == 2
    assert "expected at least 200 images there, got" in capsys.readouterr().err


def record(number: int, content: str) -> Record:
    return Record(Path(f"{number}.png"), number % 2, "", "", content, None)


def test_the_halves_share_no_image_and_do_not_depend_on_the_order():
    records = [record(number, str(number // 2)) for number in range(1000)]
    first, second = split_in_halves(records)
    assert {each.content for each in first} & {each.content for each in second} == set()
    assert len(first) + len(second) == 1000
    assert split_in_halves(records[::-1])[1][0].content == second[0].content
    with pytest.raises(DataError, match="got"):
        split_in_halves(records[:100])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["litert", "openvino"])
def test_int8_is_written_where_it_keeps_the_labels(tmp_path, name):
    pytest.importorskip("nncf")
    path = write(tmp_path / "m.h5", sure())
    output = tmp_path / f"x{RUNTIMES[name].suffixes[0]}"
    data = labeled(tmp_path / "data", 260)
    assert export(path, "--format", name, "--int8", "--data", data, "--output", output) == 0
    card = json.loads(output.with_name(f"{output.name}.json").read_text())
    assert card["precision"] == "int8"
    assert card["gate"]["label_agreement"] >= 0.995
    assert card["gate"]["accuracy_keras"] == 1
    assert card["gate"]["pictures"] >= 200
    float32 = tmp_path / f"y{RUNTIMES[name].suffixes[0]}"
    assert export(path, "--format", name, "--output", float32) == 0
    weights = RUNTIMES[name].suffixes[-1]
    assert output.with_suffix(weights).stat().st_size < float32.with_suffix(weights).stat().st_size


@pytest.mark.slow
def test_int8_that_changes_labels_is_refused_with_the_figures(model, tmp_path, capsys, monkeypatch):
    from fakereal.engines import conversion

    other, real = sure(-1), conversion.convert
    monkeypatch.setattr(conversion, "convert", lambda model, *options: real(other, *options))
    path = write(tmp_path / "m.h5", sure())
    data = labeled(tmp_path / "data", 260)
    assert export(path, "--format", "litert", "--int8", "--data", data, "--output", tmp_path / "x.tflite") == 2
    told = capsys.readouterr().err
    assert "error: --format litert --int8: not written, because" in told
    assert "; the limits are 99.5 % and an accuracy at most 0.2 points lower" in told
    assert not (tmp_path / "x.tflite").exists()


def test_the_example_also_decides_where_the_network_is_sure_to_the_last_bit(tmp_path):
    network = built(5)
    output = network.get_layer("p_real")
    kernel, bias = (each * 0 for each in output.get_weights())
    output.set_weights([kernel, bias - 200])
    path = write(tmp_path / "sure.h5", network)
    assert export(path, "--format", "litert", "--output", tmp_path / "detector.tflite") == 0
    Image.fromarray(noise_images(1)[0]).save(tmp_path / "photo.png")
    found = told(example_of("litert"), tmp_path, "photo.png")
    assert (found["p_real"], found["prediction"]) == (0.0, "fake")
    assert 0.999 < found["calibrated_p_fake"] < 1


@pytest.mark.parametrize("name", sorted(RUNTIMES))
def test_the_examples_take_p_real_from_a_network_that_also_gives_a_score(tmp_path, name):
    pytest.importorskip(MODULES[name])
    network = built(5)
    features = np.random.default_rng(0).normal(size=(20, network.get_layer("p_real").kernel.shape[0]))
    path = write(tmp_path / "scoring.h5", network, prototypes=fit_prototypes(features, features, 0))
    assert export(path, "--format", name, "--output", tmp_path / f"detector{RUNTIMES[name].suffixes[0]}") == 0
    Image.fromarray(noise_images(1)[0]).save(tmp_path / "photo.png")
    expected = open_network(path, "keras").network.outputs(noise_images(1))
    assert expected.shape == (1, 2)
    assert told(example_of(name), tmp_path, "photo.png")["p_real"] == pytest.approx(expected[0, 0], abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(RUNTIMES))
def test_the_example_in_the_documentation_says_what_this_project_says(tmp_path, name, make_image):
    pytest.importorskip(MODULES[name])
    example = example_of(name)
    assert "fakereal" not in example
    output = tmp_path / f"detector{RUNTIMES[name].suffixes[0]}"
    assert export(PRETRAINED, "--format", name, "--output", output) == 0
    folder = tmp_path / "pictures"
    make_image(folder / "photo.jpg", 3, (180, 240))
    make_image(folder / "large.jpg", 4, (1800, 1900))
    colours = np.asarray(Image.open(make_image(folder / "plain.png", 5, (180, 240))))
    holes = np.random.default_rng(6).integers(0, 256, (*colours.shape[:2], 1), dtype=np.uint8)
    Image.fromarray(np.concatenate([colours, holes], axis=2)).save(folder / "transparent.png")
    for row in rows_of(PRETRAINED, folder, tmp_path / "out.json"):
        found = told(example, tmp_path, f"pictures/{row['image']}")
        p_fake = row["confidence"] if row["prediction"] == "fake" else 1 - row["confidence"]
        assert found == {
            "p_real": pytest.approx(row["p_real"], abs=1e-3),
            "calibrated_p_fake": pytest.approx(p_fake, abs=1e-3),
            "prediction": row["prediction"],
        }


def test_the_card_says_how_several_views_become_one_output():
    meaning = _input_meaning(Preprocessing(160, square=True, crops=2))
    for part in ("center square resized", "crop of 160 x 160", "(0.5, 0.5), (0.2, 0.2)", "mean logit"):
        assert part in meaning
    assert "crop" not in _input_meaning(Preprocessing())
    assert "stretched to the square" in _input_meaning(Preprocessing())
