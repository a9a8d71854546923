"""The three scripts, one after the other, as people type them: the exit code of each lets the next one start."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, make_labeled_images

SCRIPTS = [f"{sys.executable} {ROOT / name}" for name in ("image_separate.py", "train_model.py")]
PREDICT = f"{sys.executable} {ROOT / 'predict_and_save_json.py'}"


def chain(folder, training=""):
    """Run the scripts in a folder that holds `data/`, joined by &&."""
    separate, train = SCRIPTS
    command = f"{separate} data && {train} {training} && {PREDICT}"
    return subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, check=False)


def lay_out(folder, made):
    """Make the layout of a hackathon: images and predictions of two classes, and a folder without predictions."""
    rng = np.random.default_rng(0)
    for name in ("fake", "real"):
        images = folder / f"{name}_small_images"
        (made / name).rename(images)
        labels = [name if rng.random() > 0.1 else "real" for _ in range(1, 31)]
        entries = [{"index": number, "prediction": label} for number, label in enumerate(labels, start=1)]
        (folder / f"{name}_small_preds.json").write_text(json.dumps(entries[:-1]))
        for number in range(30, 0, -1):
            (images / f"{number - 1}.png").rename(images / f"{number}.png")
    shutil.copytree(folder / "real_small_images", folder / "test", ignore=shutil.ignore_patterns("2?.png"))
    (folder / "test" / "3.png").write_bytes(b"broken")
    (folder / "fake_small_images" / "4.png").write_bytes(b"broken")


@pytest.mark.slow
def test_the_scripts_chain_on_a_set_in_which_some_images_are_left_out(tmp_path):
    made = make_labeled_images(tmp_path / "made", {"fake": 30, "real": 30})
    (tmp_path / "data").mkdir()
    lay_out(tmp_path / "data", made)
    done = chain(tmp_path, "--network cnn --image-size 32 --epochs 1 --cache-dir none")
    assert done.returncode == 0, done.stderr
    entries = json.loads((tmp_path / "predictions.json").read_text())
    assert [entry["index"] for entry in entries if entry["prediction"] is None] == [3]
    assert len(entries) == 20
    report = json.loads((tmp_path / "data/clean/separation_report.json").read_text())
    assert {file["path"] for file in report["stayed"]} >= {"fake_small_images/4.png", "fake_small_images/30.png"}


@pytest.mark.data
@pytest.mark.slow
def test_the_scripts_chain_on_the_hackathon_set_from_its_original_layout(tmp_path, data_dir):
    shutil.copytree(data_dir("hackathon"), tmp_path / "data")
    done = chain(tmp_path, "--fine-tune none")  # all layers would take minutes, for the same way through the scripts
    assert done.returncode == 0, done.stderr
    expected = sum(1 for path in (tmp_path / "data" / "test").iterdir() if path.suffix == ".png")
    entries = json.loads((tmp_path / "predictions.json").read_text())
    assert len(entries) == expected > 0
    assert all(entry["prediction"] in ("fake", "real") for entry in entries)
