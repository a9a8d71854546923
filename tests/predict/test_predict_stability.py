import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import predict_and_save_json as door
from fakereal.cli import run_cli
from fakereal.model.calibration import DecisionRule
from fakereal.model.resaves import STABILITY_RESAVES, resaved_views
from fakereal.predict import pipeline
from fakereal.predict.inputs import list_images
from fakereal.predict.run import PredictConfig, Predictor, complete
from fakereal.preprocessing import Preprocessing

PREPROCESSING = Preprocessing(32)


class Sharpness:
    """A network that calls sharp images real; remembers the shapes it saw."""

    def __init__(self):
        self.shapes = []

    def p_real(self, images):
        self.shapes.append(images.shape)
        steps = np.abs(np.diff(images.astype(np.float64), axis=2)).mean(axis=(1, 2, 3)) / 255
        return np.clip(2 * steps, 0, 1)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture
def pictures(tmp_path) -> Path:
    """1 is flat, 2 is a fine checkerboard that blurring destroys, 3 is broken, 4 is made of large squares."""
    board = np.indices((32, 32)).sum(axis=0) % 2 * 255
    save(tmp_path / "in/1.png", np.full((32, 32, 3), 90))
    save(tmp_path / "in/2.png", np.repeat(board[..., None], 3, axis=2))
    (tmp_path / "in/3.png").write_bytes(b"broken")
    save(tmp_path / "in/4.png", np.full((32, 32, 3), 91))
    return tmp_path / "in"


def run(source: Path, folder: Path, stability: int, batch_size: int = 16, network=None) -> int:
    config = PredictConfig(
        input=(str(source),),
        output=folder / "p.json",
        details=folder / "d.csv",
        batch_size=batch_size,
        stability=stability,
        strict=True,
    )
    identity = {"model": "m", "preprocessing": "p", "engine": "keras"}
    predictor = Predictor(network or Sharpness(), PREPROCESSING, DecisionRule(), identity)
    return complete(config, list_images(source), predictor)


def run_script(*arguments) -> int:
    return run_cli(door.main, [str(argument) for argument in arguments])


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "d.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_label_that_flips_is_called_unstable_and_says_by_what(tmp_path, pictures, capsys):
    assert run(pictures, tmp_path / "out", 5) == 1
    flat, fine, broken, other = rows(tmp_path / "out")
    assert (flat["prediction"], flat["stable"], flat["flips"]) == ("fake", "True", "")
    assert (fine["prediction"], fine["stable"]) == ("real", "False")
    assert "blur1" in fine["flips"].split()
    assert set(fine["flips"].split()) <= set(STABILITY_RESAVES)
    assert (broken["stable"], broken["flips"]) == ("", "")
    assert other["stable"] == "True"
    assert "of these unstable          1  (33.3 %)" in capsys.readouterr().out


def test_predictions_and_the_other_columns_are_the_same_with_and_without(tmp_path, pictures, capsys):
    run(pictures, tmp_path / "with", 5)
    run(pictures, tmp_path / "without", 0)
    assert (tmp_path / "with/p.json").read_bytes() == (tmp_path / "without/p.json").read_bytes()
    stripped = [{name: row[name] for name in row if name not in ("stable", "flips")} for row in rows(tmp_path / "with")]
    assert stripped == rows(tmp_path / "without")


@pytest.mark.parametrize("batch_size", [1, 2, 4, 6, 16])
def test_the_batch_size_changes_nothing_and_the_network_sees_whole_batches(tmp_path, pictures, batch_size, capsys):
    network = Sharpness()
    run(pictures, tmp_path / "out", 5, batch_size, network)
    run(pictures, tmp_path / "other", 5)
    assert rows(tmp_path / "out") == rows(tmp_path / "other")
    assert set(network.shapes) == {(batch_size, 32, 32, 3)}


def test_the_outputs_are_those_of_the_resaved_files(pictures):
    items = list_images(pictures).items
    network = Sharpness()
    found = list(pipeline.predict_batches(items, network, PREPROCESSING, 8, STABILITY_RESAVES[:3]))
    for outcome in (found[0], found[1], found[3]):
        again = np.stack(
            [
                views[0]
                for views in resaved_views(outcome.item.open().read_bytes(), PREPROCESSING, STABILITY_RESAVES[:3])
            ]
        )
        assert outcome.variants_p_real == tuple(round(float(p), 6) for p in network.p_real(again))
    assert found[2].variants_p_real == ()


def test_the_script_counts_what_is_unstable_and_resumes_what_it_asked(tmp_path, small_model, capsys):
    chance = np.random.default_rng(0)
    for number in range(6):
        save(tmp_path / f"in/{number}.png", chance.integers(0, 256, (32, 32, 3)))
    options = ["--input", tmp_path / "in", "--model", small_model, "--output", tmp_path / "p.json"]
    assert run_script(*options, "--stability", "--details", tmp_path / "d.jsonl") == 0
    assert "of these unstable" in capsys.readouterr().out
    table = [json.loads(line) for line in (tmp_path / "d.jsonl").read_text().splitlines()]
    assert all(isinstance(row["stable"], bool) and row["stable"] == (row["flips"] == "") for row in table)
