import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_networks import SIZE_PX, built, noise_images, write

import predict_and_save_json as prediction_door
from fakereal import __main__ as door
from fakereal.cli import run_cli
from fakereal.engines import export as exports
from fakereal.engines.card import card_path, find_beside, read_exported
from fakereal.engines.engine import open_network
from fakereal.errors import EngineRefused, ModelFileError
from fakereal.files import sha256_of
from fakereal.model import model_file
from fakereal.model.metadata import read_metadata


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with small.h5, and the network that was exported from it beside it."""
    folder = tmp_path_factory.mktemp("exported")
    model = write(folder / "small.h5", built(5))
    exports.export_beside(model, model_file.load(model))
    return folder


@pytest.fixture
def folder(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "models"))


@pytest.fixture
def exported(folder) -> Path:
    return folder / "small.tflite"


def change_card(exported: Path, **values) -> None:
    card = json.loads(card_path(exported).read_text())
    card_path(exported).write_text(json.dumps({**card, **values}))


def rows_of(model: Path, images: Path, output: Path, *options: str) -> list[dict]:
    arguments = ["--input", str(images), "--model", str(model), "--output", str(output / "p.json")]
    assert prediction_door.main([*arguments, "--details", str(output / "d.json"), *options]) == 0
    return json.loads((output / "d.json").read_text())


def test_an_exported_network_is_a_model_file_with_the_metadata_of_its_model(folder, exported):
    opened = open_network(exported)
    assert opened.metadata == read_metadata(folder / "small.h5")
    assert opened.model_sha256 == sha256_of(exported)
    expected = open_network(folder / "small.h5", "keras").network.p_real(noise_images())
    assert opened.network.p_real(noise_images()) == pytest.approx(expected, abs=1e-6)


def test_the_network_beside_a_model_file_runs_in_its_place(folder, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    opened = open_network(folder / "small.h5")
    assert opened.engine.startswith("litert ")
    assert opened.model_sha256 == sha256_of(folder / "small.h5")
    assert opened.file.detector is None
    assert not (tmp_path / "cache").exists()
    assert capsys.readouterr().err == ""


def test_model_file_and_exported_network_predict_the_same_digits(folder, exported, make_folder, tmp_path):
    images = make_folder({"in": 4})
    assert rows_of(folder / "small.h5", images / "in", tmp_path) == rows_of(exported, images / "in", tmp_path)


def test_a_renamed_pair_stays_a_model_file(exported, tmp_path):
    other = shutil.copy(exported, tmp_path / "mine.tflite")
    shutil.copy(card_path(exported), tmp_path / "mine.tflite.json")
    assert open_network(Path(other)).metadata.preprocessing.image_size_px == SIZE_PX


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.unlink(), "no such model file"),
        (lambda path: card_path(path).unlink(), "expected its card small.tflite.json beside it, found none"),
        (lambda path: card_path(path).write_text("{"), "damaged card"),
        (lambda path: card_path(path).write_text("[]"), "damaged card"),
        (lambda path: change_card(path, self_test={}), "damaged card"),
        (lambda path: change_card(path, fakereal_metadata={"format": 1}), "its metadata is damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "not the network that small.tflite.json describes"),
    ],
)
def test_a_network_without_its_own_card_is_refused(exported, damage, said):
    damage(exported)
    with pytest.raises(ModelFileError, match=said):
        open_network(exported)


def test_a_card_of_an_earlier_version_is_refused_with_what_to_do(exported):
    card = json.loads(card_path(exported).read_text())
    del card["fakereal_metadata"]
    card_path(exported).write_text(json.dumps(card))
    with pytest.raises(ModelFileError, match="exported by an earlier version of fakereal: export it again"):
        read_exported(exported)


def test_a_network_that_gives_other_outputs_here_is_refused(exported, folder):
    test = json.loads(card_path(exported).read_text())["self_test"]
    change_card(exported, self_test={**test, "p_real": [p + 0.01 for p in test["p_real"]]})
    with pytest.raises(EngineRefused, match=r"gives other outputs here: p_real differs by 0\.01"):
        open_network(exported)
    opened = open_network(folder / "small.h5")
    assert opened.engine.startswith("keras") or opened.engine.startswith("openvino")
    change_card(exported, self_test={**test, "p_real": [float("nan")] * 6})
    with pytest.raises(EngineRefused, match="p_real differs by nan"):
        open_network(exported)


def test_a_network_exported_from_another_model_is_not_used_and_that_is_said(exported, folder, capsys):
    write(folder / "small.h5", built(6))
    opened = open_network(folder / "small.h5")
    assert "was exported from another small.h5" in capsys.readouterr().err
    expected = open_network(folder / "small.h5", "keras").network.p_real(noise_images())
    assert opened.network.p_real(noise_images()) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("values", [{"precision": "int8"}, {"foreign_model": True}])
def test_an_int8_network_and_that_of_a_foreign_model_never_run_in_place_of_the_model_file(folder, exported, values):
    change_card(exported, **values)
    assert find_beside(folder / "small.h5", sha256_of(folder / "small.h5")) is None
    assert open_network(exported).engine.startswith("litert ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["predict", "--recursive", "--engine", "keras", "--input", "{images}", "--model"],
            "--engine keras: {model} is an exported",
        ),
        (
            ["predict", "--recursive", "--explain", "why", "--input", "{images}", "--model"],
            "got an exported network, which can only",
        ),
        (["export", "--format", "onnx"], "got an exported network, which can only predict"),
        (["train", "--data", "{images}", "--weights"], "got an exported network, which can only predict"),
    ],
)
def test_what_needs_the_keras_file_says_so(exported, make_folder, tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    images = make_folder({"real": 8, "fake": 8})
    names = {"model": exported, "images": images}
    assert run_cli(door.main, [*(word.format(**names) for word in arguments), str(exported)]) == 2
    assert said.format(**names) in capsys.readouterr().err.splitlines()[-1]


def test_an_exported_foreign_model_is_a_model_file_but_its_keras_file_stays_foreign(tmp_path):
    import keras

    layers = [keras.Input((48, 48, 3)), keras.layers.GlobalAveragePooling2D(), keras.layers.Rescaling(1 / 255)]
    foreign = keras.Sequential([*layers, keras.layers.Dense(1, activation="sigmoid")])
    foreign.save(tmp_path / "foreign.keras")
    command = ["export", str(tmp_path / "foreign.keras"), "--format", "litert"]
    assert run_cli(door.main, command) == 2
    assert run_cli(door.main, [*command, "--foreign-model"]) == 0
    opened = open_network(tmp_path / "foreign.tflite")
    expected = foreign.predict_on_batch(noise_images(size=48).astype(np.float32))[:, 0]
    assert opened.network.p_real(noise_images(size=48)) == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ModelFileError, match="add --foreign-model"):
        open_network(tmp_path / "foreign.keras")


def test_where_no_network_can_be_exported_the_one_of_the_earlier_model_goes(folder, exported, monkeypatch, capsys):
    def refuse(*ignored):
        raise EngineRefused("no room")

    monkeypatch.setattr("fakereal.engines.conversion.convert", refuse)
    exports.export_beside(folder / "small.h5", model_file.load(folder / "small.h5"))
    assert [path.name for path in folder.iterdir()] == ["small.h5"]
    assert capsys.readouterr().err == "no small.tflite for prediction without TensorFlow: no room\n"


def test_the_self_test_is_of_the_network_that_was_written(exported):
    found = read_exported(exported)
    assert found.difference(open_network(exported).network) == 0
    assert np.ptp(found.expected) > 0
