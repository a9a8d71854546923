"""The wheel, built and installed into an environment of its own, and used from a folder without anything of ours."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from conftest import ROOT

pytest.importorskip("setuptools", minversion="77", reason="builds the wheel; see requirements-dev.txt")

pytestmark = pytest.mark.slow
NOT_OURS = shutil.ignore_patterns(".*", "__pycache__", "build", "*.egg-info", "my_*", "shared")
TRAINING = ("--network", "cnn", "--weights", "none", "--image-size", "32", "--epochs", "2", "--cache-dir", "none")


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The folder of commands of an environment with the wheel; the packages that it needs are those of the tests."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "source", ignore=NOT_OURS)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, folder / "source"]
    subprocess.run([*pip, *build], check=True, timeout=300)
    shutil.rmtree(folder / "source")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    (wheel,) = folder.glob("fakereal-*.whl")
    subprocess.run([*pip, "--python", python, "install", "--no-deps", "--no-index", wheel], check=True)
    packages = next((folder / "venv" / "lib").glob("python*")) / "site-packages"
    (packages / "tests.pth").write_text(sysconfig.get_path("purelib"))
    return python.parent


@pytest.fixture
def fakereal(installed, tmp_path):
    """A function that runs the installed command in an empty folder and returns what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*words: object) -> subprocess.CompletedProcess:
        command = [installed / "fakereal", *map(str, words)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done

    return run


def test_the_shipped_detector_predicts_from_an_empty_folder(fakereal, tmp_path, make_image):
    assert fakereal().stdout.startswith("usage: fakereal COMMAND")
    make_image(tmp_path / "cat.jpg", 1, size=(300, 200))
    done = fakereal("predict", "cat.jpg")
    assert "model: the shipped detector (models/my_trained_model.h5 does not exist here)" in done.stderr
    assert done.stdout.count("\n") == 1
    assert done.stdout.endswith(" %  cat.jpg\n")
    assert [path.name for path in tmp_path.iterdir()] == ["cat.jpg"]


def test_the_demo_set_is_cleaned_trained_on_and_predicted_by_the_installed_command(fakereal, tmp_path):
    fakereal("demo", "set")
    fakereal("separate", "set/raw")
    assert "mean" in fakereal("train", *TRAINING).stdout.splitlines()[-1]
    fakereal("predict", "set/test", "--output", "predictions.json")
    entries = json.loads((tmp_path / "predictions.json").read_text())
    assert len(entries) == 100
    assert {entry["prediction"] for entry in entries} <= {"fake", "real"}
    assert "configs/base.yaml" in fakereal("compare", "--write-configs", "configs").stdout
