"""A given split whose labels run against those of the training images."""

import sys

from conftest import make_labeled_images

import train_model
from fakereal.cli import run_cli


def test_a_test_split_whose_labels_are_swapped_is_said(tmp_path, capsys):
    data = make_labeled_images(tmp_path / "set", {"train/real": 24, "train/fake": 24, "val/real": 12, "val/fake": 12})
    test = make_labeled_images(tmp_path / "other", {"real": 14, "fake": 14}, seed=1)
    (data / "test").mkdir()
    (test / "real").rename(data / "test" / "fake")
    (test / "fake").rename(data / "test" / "real")
    words = ["--data", str(data), "--output", str(tmp_path / "model.h5"), "--network", "cnn", "--weights", "none"]
    words += ["--fine-tune", "all", "--image-size", "32", "--batch-size", "16", "--epochs", "8", "--quiet"]
    assert run_cli(train_model.main, words) == 0, sys.stderr
    said = [line for line in capsys.readouterr().err.splitlines() if "seem to be swapped" in line]
    assert len(said) == 1
    assert said[0].startswith("warning: the labels of test seem to be swapped against those of train: AUC 0.")
