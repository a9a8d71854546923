"""Training on several devices and processes: what each reads, that they hold together, and that the result is one's."""

import csv
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fakereal import config
from fakereal.config import ClusterConfig
from fakereal.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
MEET = """
import sys, time
from fakereal.cli import run_cli
from fakereal.errors import DataError
from fakereal.training import peers
def main(argv):
    hosts, index, word, what = argv
    peers.SILENCE_S, peers._GREETING_S = 2.0, 1.0
    peers.ARRIVAL_S = 15.0
    each = peers.Peers(hosts.split(","), int(index))
    each.meet()
    try:
        each.agree(word, "options")
        print("together", flush=True)
        if what == "leave":
            each.leave()
            return 0
        if what == "fail":
            raise DataError("a.png: expected a picture, found nothing")
        time.sleep(60)
    except BaseException as error:
        each.fail(error)
sys.exit(run_cli(main, sys.argv[1:]))
"""


def free_hosts(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    names = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    return ",".join(names)


class Process:
    """A process with its output in files, so that nothing waits for a reader."""

    def __init__(self, folder, name, command, **environment):
        self.out, self.err = folder / f"{name}.out", folder / f"{name}.err"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, *command], cwd=ROOT, stdout=out, stderr=err, env={**os.environ, **environment}
            )

    def wait(self, timeout_s=120.0):
        try:
            return self.process.wait(timeout_s)
        finally:
            self.process.kill()

    def wait_for(self, text, timeout_s=120.0):
        deadline = time.monotonic() + timeout_s
        while text not in self.out.read_text() + self.err.read_text():
            assert self.process.poll() is None, self.err.read_text()
            assert time.monotonic() < deadline, self.err.read_text()
            time.sleep(0.05)

    @property
    def last_line(self):
        return self.err.read_text().splitlines()[-1]


@pytest.fixture
def met(tmp_path):
    """A function that starts processes which meet, one an argument: (the word to agree on, what it does then)."""
    started = []

    def start(*doings, hosts=None):
        hosts = hosts or free_hosts(len(doings))
        for index, (word, what) in enumerate(doings):
            command = ["-c", MEET, hosts, str(index), word, what]
            started.append(Process(tmp_path, f"peer{index}", command, PYTHONPATH="."))
        return started

    yield start
    for each in started:
        each.process.kill()
        each.process.wait()


def test_processes_that_agree_go_on_and_part_without_a_word(met):
    for each in (peers := met(("same", "leave"), ("same", "leave"), ("same", "leave"))):
        assert each.wait() == 0
    assert not any("error" in each.err.read_text() for each in peers)


@pytest.mark.parametrize("lost", [0, 2])
def test_the_loss_of_one_process_ends_all_others_with_one_line(met, lost):
    peers = met(("same", "stay"), ("same", "stay"), ("same", "stay"))
    for each in peers:
        each.wait_for("together")
    peers[lost].process.kill()
    started = time.monotonic()
    for number, each in enumerate(peers):
        if number != lost:
            assert each.wait() == 2
            assert each.last_line.startswith("error: ")
            assert f"process {lost} " in each.last_line
            assert each.err.read_text().count("error: ") == 1
    assert time.monotonic() - started < 5


def test_an_error_in_one_process_is_told_by_all(met):
    first, second = met(("same", "stay"), ("same", "fail"))
    assert (first.wait(), second.wait()) == (2, 2)
    assert second.last_line == "error: a.png: expected a picture, found nothing"
    assert first.last_line.startswith("error: process 1 (")
    assert first.last_line.endswith(": a.png: expected a picture, found nothing")


def test_a_process_that_falls_silent_counts_as_lost(met):
    first, second = met(("same", "stay"), ("same", "stay"))
    first.wait_for("together")
    second.process.send_signal(signal.SIGSTOP)
    assert first.wait() == 2
    assert "silent" in first.last_line


def test_processes_with_other_options_or_pictures_refuse_to_train_together(met):
    for each in met(("this", "leave"), ("that", "leave")):
        assert each.wait() == 2
        assert "the same options in all processes" in each.last_line or "process" in each.last_line


def test_a_stranger_at_the_port_is_sent_away(met, tmp_path):
    hosts = free_hosts(2)
    command = ["-c", MEET, hosts, "1", "same", "leave"]
    second = Process(tmp_path, "second", command, PYTHONPATH=".")
    second.wait_for("waiting")
    port = int(hosts.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as stranger, socket.create_connection(("127.0.0.1", port)):
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")  # the other one says nothing at all
        first = Process(tmp_path, "first", ["-c", MEET, hosts, "0", "same", "leave"], PYTHONPATH=".")
        assert (first.wait(), second.wait()) == (0, 0)


def test_a_process_that_is_started_late_is_waited_for_by_all(tmp_path):
    hosts = free_hosts(3)

    def start(index):
        return Process(tmp_path, f"late{index}", ["-c", MEET, hosts, f"{index}", "same", "leave"], PYTHONPATH=".")

    early = [start(0), start(1)]
    early[0].wait_for("waiting for process 2")
    time.sleep(3)  # longer than the silence after which a process counts as lost
    assert [each.wait() for each in (*early, start(2))] == [0, 0, 0]


@pytest.mark.parametrize(
    ("hosts", "index", "named"),
    [("a:1,b", 0, "'b'"), ("a:1,b:70000", 0, "'b:70000'"), ("a:1,a:1", 0, "a port for each"), ("a:1,b:1", 2, "0 to 1"),
     ("", 1, "no --hosts")],
)  # fmt: skip
def test_addresses_that_cannot_be_meant_are_refused(hosts, index, named):
    with pytest.raises(ConfigError, match=named):
        config.load(None, {"cluster.hosts": hosts, "cluster.index": index})


def test_several_processes_need_the_jax_backend():
    from fakereal.training import distributed

    several = config.Config(cluster=ClusterConfig("127.0.0.1:1,127.0.0.1:2"))
    with pytest.raises(ConfigError, match="KERAS_BACKEND=jax"), distributed.join_hosts(several):
        pass


@pytest.mark.parametrize(("count", "batch_size"), [(32, 8), (49, 16), (5, 32), (7, 3), (0, 4)])
def test_the_processes_read_every_picture_once_and_fill_batches_up_with_weight_0(count, batch_size):
    from fakereal.training.distributed import DistributedContext

    shares = [DistributedContext(2, index, 4).share(count, batch_size) for index in (0, 1)]
    counted = np.concatenate([share.rows[share.weights > 0] for share in shares])
    assert sorted(counted) == list(range(count))
    assert (shares[0].rows.size + shares[1].rows.size) == shares[0].filled.size
    assert (~shares[0].filled).sum() == count
    assert {share.rows.size % 2 for share in shares} == {0}  # each process has two devices


def test_the_weighted_mean_over_a_filled_batch_is_the_mean_over_its_pictures():
    from fakereal.training.distributed import DistributedContext

    losses = np.random.default_rng(0).random(5)
    shares = [DistributedContext(2, index, 4).share(5, 16) for index in (0, 1)]
    rows, weights = (np.concatenate([getattr(share, name) for share in shares]) for name in ("rows", "weights"))
    assert len(rows) == 8
    np.testing.assert_allclose((losses[rows] * weights).mean(), losses.mean(), rtol=1e-6)


def make_set(folder):
    """48 pictures to learn from and 18 to choose by, which can't be divided by 4; fakes carry a checkerboard."""
    rng = np.random.default_rng(0)
    board = (np.indices((32, 32)) // 2).sum(axis=0)[..., None] % 2 * 60
    for split, count in (("train", 24), ("val", 9), ("test", 5)):
        for name in ("fake", "real"):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                smooth = Image.fromarray(rng.integers(40, 180, (5, 5, 3), dtype=np.uint8)).resize((32, 32))
                array = np.asarray(smooth) + (board if name == "fake" else 0)
                Image.fromarray(array.astype(np.uint8)).save(folder / split / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    pytest.importorskip("jax", reason="jax is not installed (requirements-scale.txt)")
    return make_set(tmp_path_factory.mktemp("set"))


def training(data, output, *more):
    small = ["--network", "cnn", "--weights", "none", "--fine-tune", "all", "--image-size", "32", "--batch-size", "16"]
    return ["train_model.py", "--data", data, "--output", output, *small, "--no-audit", *more]


def curve(output):
    with output.with_name(f"{output.stem}_run").joinpath("history.csv").open() as file:
        return [[float(row[key]) for key in ("loss", "val_loss")] for row in csv.DictReader(file)]


@pytest.mark.slow
def test_two_processes_learn_what_one_learns_and_only_the_first_writes(pictures, tmp_path):
    hosts = free_hosts(2)
    names = ["--epochs", "4", "--hosts", hosts, "--host-index"]
    together = [
        Process(tmp_path, f"{n}", training(pictures, tmp_path / f"{n}.h5", *names, f"{n}"), KERAS_BACKEND="jax")
        for n in (0, 1)
    ]
    assert [each.wait(300) for each in together] == [0, 0], together[0].err.read_text()
    alone = Process(tmp_path, "alone", training(pictures, tmp_path / "alone.h5", "--epochs", "4"), KERAS_BACKEND="jax")
    assert alone.wait(300) == 0, alone.err.read_text()
    ours, expected = curve(tmp_path / "0.h5"), curve(tmp_path / "alone.h5")
    # The sums of 32-bit numbers run in another order; what that rounds otherwise grows from step to step.
    np.testing.assert_allclose(ours[0], expected[0], atol=1e-5)
    np.testing.assert_allclose(ours, expected, rtol=1e-3)
    assert together[0].out.read_text().splitlines()[0] == alone.out.read_text().splitlines()[0]  # the table alone
    assert together[1].out.read_text() == ""
    assert not (tmp_path / "1.h5").exists()
    assert not (tmp_path / "1_run").exists()
    written = [path for path in (tmp_path / "0.h5", *(tmp_path / "0_run").rglob("*")) if path.is_file()]
    assert not [path for path in written if hosts.encode() in path.read_bytes()]


@pytest.mark.slow
def test_a_killed_process_ends_the_training_of_the_other_and_resume_goes_on(pictures, tmp_path):
    def start(*more):
        hosts = free_hosts(2)
        return [
            Process(tmp_path, f"{n}", training(pictures, tmp_path / f"{n}.h5", "--hosts", hosts, "--host-index",
                    f"{n}", *more), KERAS_BACKEND="jax") for n in (0, 1)]  # fmt: skip

    first, second = start("--epochs", "400")
    first.wait_for("epoch 3/400", 300)
    first.process.kill()
    started = time.monotonic()
    assert second.wait(60) == 2
    assert time.monotonic() - started < 10
    assert "found that process 0 (" in second.last_line
    first, second = start("--epochs", "400", "--resume")
    first.wait_for("resuming after epoch", 300)
    second.wait_for("epoch 5/400", 300)
    second.process.kill()
    assert first.wait(60) == 2
    assert "found that process 1 (" in first.last_line
