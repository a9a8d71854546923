"""Evaluation where the labels run against the model, and on images of one class."""

import json
import re

import numpy as np
import pytest
from conftest import make_labeled_images
from small_networks import brightness_network, write

from fakereal import __main__ as door
from fakereal.cli import run_cli
from fakereal.labels import FAKE, REAL
from fakereal.model.calibration import DecisionRule
from fakereal.model.metrics import measure, measure_one_class, swapped_labels


@pytest.fixture
def model(tmp_path):
    """A detector that calls dark images fake."""
    network, config = brightness_network()
    return write(tmp_path / "dark.h5", network, name=config)


def evaluate(model, data, *options):
    """Run the command; return exit code and metrics.json."""
    code = run_cli(door.main, ["evaluate", str(model), "--data", str(data), "--engine", "keras", *options])
    metrics = model.with_name(f"{model.stem}_on_{data.name}") / "metrics.json"
    return code, json.loads(metrics.read_text(encoding="utf-8")) if metrics.is_file() else None


def test_labels_that_run_against_the_model_are_said_at_once_with_what_to_check(model, tmp_path, capsys):
    right = make_labeled_images(tmp_path / "set", {"real": 20, "fake": 20})
    swapped = tmp_path / "swapped"
    swapped.mkdir()
    (right / "real").rename(swapped / "fake")
    (right / "fake").rename(swapped / "real")
    code, tree = evaluate(model, swapped, "--resave-images", "0")
    assert code == 0
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "seem to be swapped" in line]
    assert re.match(
        r"warning: the labels seem to be swapped against this model: AUC 0\.\d\d \(95 % interval 0\.\d\d to 0\.\d\d;"
        r" chance is 0\.50\): look at a few images of each class: either fake and real are exchanged",
        said,
    )
    assert tree["subject"]["notes"][-1] == f"Suspicious: {said.removeprefix('warning: ')}."
    page = (tmp_path / "dark_on_swapped" / "report.html").read_text(encoding="utf-8")
    assert "the labels seem to be swapped against this model" in page


def test_an_auc_near_chance_or_of_few_images_is_not_called_swapped():
    assert "AUC 0.02 (95 % interval 0.01 to 0.03" in swapped_labels(0.02, (0.01, 0.03))
    assert not swapped_labels(0.45, (0.43, 0.47))  # a weak detector, not a swapped one
    assert not swapped_labels(0.2, (0.0, 0.7))
    assert not swapped_labels(None, (None, None))
    few = measure(np.array([FAKE, REAL]), np.array([0.9, 0.1]), DecisionRule())
    assert not swapped_labels(few["roc_auc"], few["intervals"]["roc_auc"])
    many = measure(np.repeat([FAKE, REAL], 20), np.repeat([0.9, 0.1], 20), DecisionRule())
    assert swapped_labels(many["roc_auc"], many["intervals"]["roc_auc"]).startswith("AUC 0.00")


@pytest.mark.parametrize(
    ("only", "other", "key", "title"),
    [
        ("fake", "real", "recall_fake", "recall of fake "),
        ("real", "fake", "false_positive_rate", "false alarms (reals called fake)"),
    ],
)
def test_images_of_one_class_give_recall_or_false_alarms(model, tmp_path, capsys, only, other, key, title):
    data = make_labeled_images(tmp_path / "set", {only: 12})
    code, tree = evaluate(model, data)
    assert code == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"12 images: {12 * (only == 'fake')} fake, {12 * (only == 'real')} real"
    assert printed[1].startswith(f"only {only} images show")
    assert re.fullmatch(re.escape(title) + r" *\d\.\d{4}  \(95 % interval 0\.\d{4} to \d\.\d{4}\)", printed[-1])
    assert tree["metrics"]["only"] == only
    assert tree["curves"] is None
    assert tree["calibration"] is None
    assert "roc_auc" not in tree["metrics"]
    low, high = tree["metrics"]["intervals"][key]
    assert low <= tree["metrics"][key] <= high
    assert tree["resaves"]["saved_again"]["jpeg50"]["accuracy"] >= 0
    rows = (tmp_path / "dark_on_set" / "predictions.csv").read_text().splitlines()[1:]
    called_fake = sum(row.split(",")[4] == "fake" for row in rows)
    assert tree["metrics"][key] == pytest.approx(called_fake / 12, abs=1e-6)
    page = (tmp_path / "dark_on_set" / "report.html").read_text(encoding="utf-8")
    assert any("AUC, precision and F1 need both classes" in note for note in tree["subject"]["notes"])
    assert 'aria-label="roc"' not in page
    assert 'aria-label="histogram"' in page
    assert f'<tr><th class="{only}">{only}</th>' in page
    assert f'<tr><th class="{other}">{other}</th>' not in page


def test_no_images_at_all_are_refused(model, tmp_path, capsys):
    (tmp_path / "set" / "fake").mkdir(parents=True)
    code, tree = evaluate(model, tmp_path / "set")
    assert (code, tree) == (2, None)
    assert "no files: put images into class folders" in capsys.readouterr().err


def test_the_interval_of_a_perfect_recall_is_open_below():
    perfect = measure_one_class(np.full(10, FAKE), np.full(10, 0.1), DecisionRule())
    assert perfect["recall_fake"] == 1.0
    low, high = perfect["intervals"]["recall_fake"]
    assert 0.6 < low < 0.9
    assert high == 1.0
    alarms = measure_one_class(np.full(10, REAL), np.full(10, 0.9), DecisionRule())
    assert alarms["false_positive_rate"] == 0.0
    assert alarms["intervals"]["false_positive_rate"][0] == 0.0
    assert 0.1 < alarms["intervals"]["false_positive_rate"][1] < 0.4
