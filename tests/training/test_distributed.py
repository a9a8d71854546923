"""Training on several devices of one machine: what each batch holds, and that the result is that of one device."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fakereal.training import distributed
from fakereal.training.distributed import fill_up

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("count", "batch_size"), [(32, 8), (49, 16), (5, 32), (7, 3), (0, 4)])
def test_every_image_counts_once_and_batches_are_filled_up_with_weight_0(count, batch_size):
    filled = fill_up(count, batch_size, devices=4)
    assert filled.rows[filled.weights > 0].tolist() == list(range(count))
    assert filled.rows[~filled.repeated].tolist() == list(range(count))
    assert len(filled.rows) % 4 == filled.batch_size % 4 == 0


def test_the_weighted_mean_over_a_filled_batch_is_the_mean_over_its_images():
    losses = np.random.default_rng(0).random(5)
    filled = fill_up(5, 16, devices=4)
    assert len(filled.rows) == 8
    np.testing.assert_allclose((losses[filled.rows] * filled.weights).mean(), losses.mean(), rtol=1e-6)


@pytest.mark.parametrize(("count", "batch_size"), [(32, 8), (49, 16), (5, 32)])
def test_processes_read_adjacent_parts_of_each_batch_and_together_what_one_process_reads(count, batch_size):
    alone = fill_up(count, batch_size, devices=4)
    parts = [fill_up(count, batch_size, devices=4, processes=2, index=index) for index in (0, 1)]
    assert parts[0].repeated.tolist() == parts[1].repeated.tolist() == alone.repeated.tolist()
    assert parts[0].batch_size == parts[1].batch_size == alone.batch_size // 2
    starts = range(0, len(alone.rows), alone.batch_size)
    for name in ("rows", "weights"):
        batches = [getattr(part, name)[start // 2 :][: alone.batch_size // 2] for start in starts for part in parts]
        assert np.concatenate(batches).tolist() == getattr(alone, name).tolist()


def test_on_tensorflow_nothing_is_divided():
    assert distributed.several_devices() is None


def train(data, output, devices, *more):
    small = ["--network", "cnn", "--weights", "none", "--fine-tune", "all", "--image-size", "32", "--batch-size", "16"]
    command = [sys.executable, "train_model.py", "--data", data, "--output", output, *small, "--no-audit", *more]
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "KERAS_BACKEND": "jax", "XLA_FLAGS": flags}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def curve(output):
    with output.with_name(f"{output.stem}_run").joinpath("history.csv").open() as file:
        return [[float(row[key]) for key in ("loss", "val_loss")] for row in csv.DictReader(file)]


@pytest.mark.slow
def test_three_devices_learn_what_one_learns_also_after_a_resume(images, tmp_path):
    pytest.importorskip("jax", reason="jax is not installed (requirements-scale.txt)")
    one = train(images, tmp_path / "one.h5", 1, "--epochs", "4")
    three = train(images, tmp_path / "three.h5", 3, "--epochs", "4")
    assert "divided among" not in one.stderr
    assert three.stderr.count("every batch is divided among 3 devices") == 1
    ours, expected = curve(tmp_path / "three.h5"), curve(tmp_path / "one.h5")
    # The sums of 32-bit numbers run in another order; that rounding grows from step to step. The logged training loss
    # also counts the images that batches are filled up with.
    np.testing.assert_allclose([row[1] for row in ours], [row[1] for row in expected], rtol=1e-3)
    again = train(images, tmp_path / "three.h5", 3, "--epochs", "4", "--resume")
    assert "resuming after epoch 4" in again.stderr
    assert curve(tmp_path / "three.h5") == ours


@pytest.mark.slow
def test_features_of_a_frozen_base_are_computed_for_several_devices_too(images, tmp_path):
    pytest.importorskip("jax", reason="jax is not installed (requirements-scale.txt)")
    train(images, tmp_path / "base.h5", 1, "--epochs", "1")
    more = ["--weights", tmp_path / "base.h5", "--fine-tune", "none", "--epochs", "3"]
    for devices in (1, 3):
        done = train(images, tmp_path / f"{devices}.h5", devices, *more, "--cache-dir", tmp_path / f"cache{devices}")
        assert "of each image computed once by Keras" in done.stderr
    ours, expected = ([row[1] for row in curve(tmp_path / f"{devices}.h5")] for devices in (3, 1))
    np.testing.assert_allclose(ours, expected, rtol=1e-3)
