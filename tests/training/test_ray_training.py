"""Training by Ray's workers: the result is that of one process, also where a worker is lost."""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fakereal.model import model_file
from fakereal.training import ray

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("--network", "cnn", "--weights", "none", "--fine-tune", "all", "--image-size", "32", "--batch-size", "16")
FIRST_EPOCH = re.compile(r", epoch 1/\d+: loss")


@pytest.fixture(scope="module")
def divided(make_set, tmp_path_factory):
    """A set with 48 training images, three batches for each number of workers."""
    folder = make_set(tmp_path_factory.mktemp("ray"))
    for label in ("fake", "real"):
        for number in range(40):
            split = "train" if number < 24 else "val" if number < 32 else "test"
            target = folder / split / label / f"{number}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            (folder / label / f"{number}.png").rename(target)
        (folder / label).rmdir()
    return folder


def start(data, output, *more, backend=""):
    """Start a training; its messages come through a pipe."""
    command = [sys.executable, "train_model.py", data, "--output", output, *SMALL, "--no-audit", *more]
    environment = {key: value for key, value in os.environ.items() if key != "KERAS_BACKEND"}
    environment |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"} | ({"KERAS_BACKEND": backend} if backend else {})
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


def follow(training, until=None):
    """Read the messages up to a line, or to the end."""
    told = ""
    for line in training.stderr:
        told += line
        if until and until.search(line):
            break
    return told


def workers_of(training):
    """The processes of Ray's workers that a training has started, directly or not."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=2) for line in listed.splitlines()[1:]]
    family, before = {str(training.pid)}, 0
    while len(family) > before:
        before = len(family)
        family |= {pid for pid, parent, _ in rows if parent in family}
    return [int(pid) for pid, _, name in rows if pid in family and "ray::RayTrainWorker" in name]


def curve(output):
    with output.with_name(f"{output.stem}_run").joinpath("history.csv").open() as file:
        return [[float(row[key]) for key in ("loss", "val_loss")] for row in csv.DictReader(file)]


@pytest.mark.parametrize(("more", "backend", "expected"), [
    (("--workers", "2"), "", "--workers needs --ray"),
    (("--ray", "local"), "torch", "expected the Keras backend jax, got KERAS_BACKEND=torch"),
])  # fmt: skip
def test_what_cannot_be_trained_by_workers_is_refused_in_one_line(divided, tmp_path, more, backend, expected):
    training = start(divided, tmp_path / "model.h5", *more, backend=backend)
    told = follow(training)
    assert training.wait() == 2
    assert told.startswith(f"error: {expected}")
    assert told.count("\n") == 1


def test_when_all_tries_are_spent_one_line_says_why_and_how_to_continue():
    spent = RuntimeError("Training failed due to worker errors")
    lost = "The actor died unexpectedly.\n\tclass_name: RayTrainWorker\nIts worker process has died."
    spent.worker_failures = {0: RuntimeError("Traceback:\n  File x\nXlaRuntimeError: reset"), 1: RuntimeError(lost)}
    told = str(ray._user_error(spent))
    assert told.startswith("--ray: workers failed 4 times, the last time with: XlaRuntimeError: reset; Its worker")
    assert told.endswith("continue with --resume")
    assert "\n" not in told


@pytest.fixture
def with_ray():
    pytest.importorskip("ray.train", reason="ray[train] is not installed (requirements-scale.txt)")
    pytest.importorskip("jax", reason="jax is not installed (requirements-scale.txt)")


@pytest.mark.slow
@pytest.mark.usefixtures("with_ray")
def test_two_workers_learn_what_one_process_learns_also_where_one_is_killed_after_the_first_epoch(divided, tmp_path):
    one, two = tmp_path / "one.h5", tmp_path / "two.h5"
    alone = start(divided, one, "--epochs", "20", backend="jax")
    told = follow(alone)
    assert alone.wait() == 0, told
    pair = start(divided, two, "--epochs", "20", "--ray", "local", "--workers", "2")
    while len(victims := workers_of(pair)) < 2 and pair.poll() is None:  # now, as the epochs take milliseconds
        time.sleep(0.1)
    told = follow(pair, FIRST_EPOCH)
    assert len(victims) == 2, told
    os.kill(victims[1], signal.SIGKILL)
    told += follow(pair)
    assert pair.wait() == 0, told
    assert "every batch is divided among 2 devices" in told
    lost = re.search(r"a worker was lost: all were started again, after epoch (\d+) of phase 1", told)
    assert lost, told
    assert 1 <= int(lost[1]) < 20
    assert pair.stdout.read().startswith("               images")  # nothing but the table
    ours, expected = curve(two), curve(one)
    np.testing.assert_allclose(ours[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(ours, expected, rtol=1e-3)  # rounding grows with the steps
    assert model_file.load(two).metadata.metrics["test"]["accuracy"] == pytest.approx(
        model_file.load(one).metadata.metrics["test"]["accuracy"], abs=0.1
    )
