"""The commands of docs/train.md, "Common trainings", on tiny sets: fewer and smaller images, fewer epochs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import yaml
from conftest import ROOT, make_labeled_images
from PIL import Image

import train_model
from fakereal import config
from fakereal.cli import run_cli
from fakereal.model import model_file, networks
from fakereal.model.metadata import read_metadata
from fakereal.model.weights import BaseWeights
from fakereal.training import trainer
from fakereal.training.compare import EXPERIMENTS

PAGE = (ROOT / "docs" / "train.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("\n## Common trainings, one command each\n")[2].partition("\n## ")[0]
COMMANDS = re.findall(r"\| `(python [^`]+)` \|$", SECTION, re.MULTILINE)
EXAMPLE = re.search(r"```python\n(.*?)```", SECTION, re.DOTALL)[1]
TINY = {"image_size": 32, "report": {"resave_images": 0}, "data": {"cache_dir": "none", "audit": False}}


def documented(*words: str) -> list[str]:
    """The arguments of the only documented command with these words."""
    (command,) = [each for each in COMMANDS if all(word in each.split() for word in words)]
    return shlex.split(command)[2:]


def train(arguments: list[str], data: Path, output: Path, *more: str, **training):
    """Run a documented command on other images, its configuration made quick; return what the model file records."""
    place, folder = arguments.index("--config") + 1, arguments.index("--data") + 1
    tree = yaml.safe_load((ROOT / arguments[place]).read_text())
    quick = output.with_suffix(".yaml")
    quick.write_text(yaml.safe_dump({**tree, **TINY, "training": {**tree["training"], "batch_size": 16, **training}}))
    arguments = [*arguments[:place], str(quick), *arguments[place + 1 : folder], str(data), *arguments[folder + 1 :]]
    assert run_cli(train_model.main, [*arguments, "--output", str(output), *more]) == 0
    return read_metadata(output)


def imagenet_stand_in(name: str, path: Path) -> Path:
    """Random weights in a file like that of Keras' ImageNet weights, which tests can't download."""
    keras.utils.set_random_seed(0)
    networks.APPLICATIONS[name](include_top=False, weights=None, pooling="avg").save_weights(path)
    return path


@pytest.mark.slow
def test_efficientnetb4_trains_its_head_and_then_the_last_20_layers_at_a_rate_that_falls_on_a_plateau(tmp_path):
    base = imagenet_stand_in("efficientnetb4", tmp_path / "b4.weights.h5")
    data = make_labeled_images(tmp_path / "set", {"fake": 20, "real": 20})
    found = train(documented("configs/efficientnetb4.yaml"), data, tmp_path / "m.h5", "--weights", str(base),
                  epochs=1, fine_tune_epochs=1)  # fmt: skip
    assert [row["train"] for row in found.history] == ["head", "last20"]
    assert (found.config.network.name, found.base_weights) == ("efficientnetb4", base.name)
    assert [phase.schedule for phase in trainer.phases(found.config.training, BaseWeights("", pretrained=True))] == [
        "plateau", "plateau"]  # fmt: skip


@pytest.mark.slow
def test_vgg16_weights_its_classes_and_stops_early(tmp_path):
    base = imagenet_stand_in("vgg16", tmp_path / "vgg.weights.h5")
    data = make_labeled_images(tmp_path / "set", {"fake": 15, "real": 35})
    found = train(documented("configs/vgg16.yaml"), data, tmp_path / "m.h5", "--weights", str(base),
                  epochs=30, patience=1, learning_rate=1.0)  # fmt: skip
    assert found.config.training.class_weights
    assert {row["train"] for row in found.history} == {"head"}
    assert len(found.history) < 30


@pytest.mark.slow
def test_a_plain_cnn_learns_from_genuine_and_fake_tiffs_and_plain_keras_opens_it(tmp_path, capsys):
    data = make_labeled_images(tmp_path / "photos", {"fake": 30, "genuine": 0, "real": 30})
    for number, path in enumerate(sorted(data.glob("*/*.png"))):
        name = "fake" if path.parent.name == "fake" else "genuine"
        Image.open(path).save(data / name / f"{number}.{('tif', 'TIFF')[number % 2]}")
        path.unlink()
    (data / "real").rmdir()
    output = tmp_path / "models" / "my_trained_model.h5"
    output.parent.mkdir()
    found = train(documented("configs/cnn.yaml", "photos"), data, output, epochs=2)
    assert sum(sum(found.data[split].values()) for split in ("train", "val", "test")) == 60

    header, *lines = capsys.readouterr().out.splitlines()
    end = header.index("fake recall") + len("fake recall")
    (test,) = [line for line in lines if line.startswith("test ")]
    (caught, missed), _ = found.metrics["test"]["confusion"]
    assert float(test[:end].split()[-1]) == pytest.approx(caught / (caught + missed), abs=5e-5)

    images = np.stack([np.full((32, 32, 3), gray, np.uint8) for gray in (0, 90, 180, 255)])
    np.save(tmp_path / "images.npy", images)
    program = f"{EXAMPLE}\nimport numpy\nprint(model.predict(numpy.load('images.npy'), verbose=0)[:, 0].tolist())"
    done = subprocess.run([sys.executable, "-I", "-c", program], cwd=tmp_path, capture_output=True, text=True)
    shape, outputs = done.stdout.splitlines()
    assert shape == "(None, 32, 32, 3)"
    assert yaml.safe_load(outputs) == pytest.approx(model_file.load(output).p_real(images), abs=1e-6)


@pytest.mark.slow
def test_the_summary_comes_before_the_training(tmp_path, capfd):
    data = make_labeled_images(tmp_path / "set", {"fake": 20, "real": 20})
    train(documented("--summary"), data, tmp_path / "m.h5", epochs=1)
    out = capfd.readouterr().out
    assert out.index("Trainable params") < out.index("fake recall")


def test_the_five_experiments_are_one_command():
    arguments = documented("compare", "--data")
    assert arguments[:2] == ["fakereal", "compare"]
    assert [Path(word).stem for word in arguments if word.endswith(".yaml")] == list(EXPERIMENTS)
    assert all(config.load(ROOT / word) for word in arguments if word.endswith(".yaml"))
