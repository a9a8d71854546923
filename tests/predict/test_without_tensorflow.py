"""Prediction where only requirements-predict.txt is installed."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import bare_python
import pytest
from conftest import ROOT

from fakereal.engines.card import card_path
from fakereal.model.metadata import PRETRAINED
from fakereal.predict.run import choose_model

EXPORTED = PRETRAINED.with_suffix(".tflite")
MOST_MB, MOST_SECONDS = 250, 2.0


@pytest.fixture
def bare(tmp_path) -> dict[str, str]:
    return bare_python.environment(tmp_path)


def predicted(environment, model, image, output, *options, python=sys.executable, code=0):
    """What the script prints, on stdout and stderr."""
    command = [python, ROOT / "predict_and_save_json.py", "--input", image, "--output", output, "--model", model]
    done = subprocess.run([*command, *options], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


def test_the_large_packages_are_absent():
    assert {"tensorflow", "keras", "h5py", "scipy", "sklearn", "matplotlib"} < bare_python.absent_modules()
    assert not {"numpy", "PIL", "ai_edge_litert", "flask"} & bare_python.absent_modules()


def test_both_requirements_files_have_the_same_bounds():
    few = bare_python.listed(bare_python.REQUIREMENTS).items()
    assert few <= bare_python.listed(ROOT / "requirements.txt").items()


@pytest.mark.parametrize("model", [PRETRAINED, EXPORTED], ids=lambda path: path.name)
def test_the_shipped_detector_predicts_without_tensorflow_and_without_a_conversion(bare, model, make_image, tmp_path):
    image = make_image(tmp_path / "photo.jpg", 1, (300, 200))
    out, err = predicted(bare, model, image, tmp_path / "p.json")
    assert "1 image in" in out
    assert "converting" not in err
    assert json.loads((tmp_path / "p.json").read_text())[0]["prediction"] in ("fake", "real")
    assert not (tmp_path / "cache").exists()


def test_both_files_of_the_shipped_detector_give_the_same_digits(bare, make_image, tmp_path):
    for number in range(3):
        make_image(tmp_path / "in" / f"{number}.png", number, (300, 200))
    details = [tmp_path / f"{model.name}.csv" for model in (PRETRAINED, EXPORTED)]
    for model, path in zip((PRETRAINED, EXPORTED), details, strict=True):
        predicted(bare, model, tmp_path / "in", tmp_path / "p.json", "--details", path)
    assert details[0].read_text() == details[1].read_text()


def test_what_needs_tensorflow_says_so_in_one_line(bare, make_image, small_model, tmp_path):
    image = make_image(tmp_path / "photo.jpg", 1)
    _, err = predicted(bare, PRETRAINED, image, tmp_path / "p.json", "--explain", tmp_path / "why", code=2)
    assert "pip install -r requirements.txt" in err.splitlines()[-1]
    model = shutil.copy(small_model, tmp_path / "mine.h5")
    _, err = predicted(bare, model, image, tmp_path / "p.json", code=2)
    assert "needs TensorFlow, as no mine.tflite made from it lies beside it" in err.splitlines()[-1]
    assert "fakereal export mine.h5 --format litert" in err.splitlines()[-1]


def test_the_exported_network_alone_is_the_default_model_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    for path in (EXPORTED, card_path(EXPORTED)):
        shutil.copy(path, tmp_path / "models" / path.name.replace("pretrained", "my_trained_model"))
    assert choose_model(None) == Path("models/my_trained_model.tflite")
    (tmp_path / "models" / "my_trained_model.h5").touch()
    assert choose_model(None) == Path("models/my_trained_model.h5")


@pytest.mark.parametrize("command", [["audit"], ["train", "--data"], ["evaluate", "--data"]])
def test_other_commands_say_what_to_install(bare, make_folder, command):
    folder = make_folder({"fake": 3, "real": 3})
    line = [sys.executable, "-m", "fakereal", *command, folder]
    done = subprocess.run(line, env=bare, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.splitlines()[-1].split(":")[0]) == (2, "error"), done.stderr
    assert "pip install -r requirements.txt" in done.stderr.splitlines()[-1]


def megabytes(folder: Path) -> float:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir()) / 1e6


@pytest.mark.network
def test_a_fresh_environment_gives_its_first_verdict_in_two_seconds(tmp_path, make_image, capsys):
    """`.ci/run` runs this by name: it installs requirements-predict.txt from the package index."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "x"], check=True)
    python = str(tmp_path / "x" / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"]
    subprocess.run([*install, bare_python.REQUIREMENTS], check=True)
    image = make_image(tmp_path / "some.jpg", 1, (1200, 800))
    size, before, started = megabytes(tmp_path / "x"), os.times(), time.perf_counter()
    predicted(environment, PRETRAINED, image, tmp_path / "p.json", python=python)
    seconds, after = time.perf_counter() - started, os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    with capsys.disabled():
        print(f"\n{size:.0f} MB installed, first verdict after {seconds:.2f} s ({used:.2f} s of processor time)")
    assert size < MOST_MB
    assert used < MOST_SECONDS  # the clock would count what else the machine does
