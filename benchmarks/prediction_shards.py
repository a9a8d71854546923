"""Predict tiny images in tar shards, made on the spot: speed over the run, memory, and resuming after SIGKILL.

    python -m benchmarks.prediction_shards --counts 1000 1000000    some hours on 2 free cores
    python -m benchmarks.prediction_shards --counts 1000 50000      a few minutes

Each count is predicted in a process of its own, from a pattern of shards to predictions.json, once without a break and,
the last count, once killed at --kill-at of the images and resumed. The images are different names for a few JPEGs of
32x32, the network is a small CNN with random weights, so that everything but the network counts.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import runpy
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks._shared import ROOT, Table, make_jpegs, new_parser, processor_seconds, run_python

_TRACE_EVERY = 100  # images


def main() -> int:
    """Parse the options, run every count and print the table; return the exit code."""
    if sys.argv[1:2] == ["child"]:
        return traced(Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
    if sys.argv[1:2] == ["model"]:
        return write_model(Path(sys.argv[2]))
    parser = new_parser(__doc__)
    parser.add_argument("--counts", nargs="+", type=int, default=[1_000, 1_000_000], metavar="N")
    parser.add_argument("--shard", type=int, default=10_000, help="images in a shard")
    parser.add_argument("--kill-at", type=float, default=0.7, metavar="SHARE", help="of the images of the last count")
    parser.add_argument("--model", type=Path, help="predict with this model instead of the small CNN")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), options)
    return 0


def measure(work: Path, options: argparse.Namespace) -> None:
    """Run every count, and the last one again with a kill."""
    make_jpegs(work / "few", 100, (32, 32))
    model = options.model or work / "small.h5"
    if options.model is None:  # by another process: peak memory counts what a process had when it started its children
        run_python(["-m", "benchmarks.prediction_shards", "model", model])
    pieces = [path.read_bytes() for path in sorted((work / "few").iterdir())]
    make_shards(work / "0", 10, 10, pieces)
    predict(work / "0", model)  # converts the model, which takes memory of its own
    table = Table(
        "images", "seconds", "to the first", "images per processor second: first tenth", "last tenth", "peak memory, MB"
    )
    for count in options.counts:
        make_shards(work / str(count), count, options.shard, pieces)
        whole = predict(work / str(count), model)
        table.row(f"{count:,}", f"{whole.seconds:.1f}", f"{whole.trace[0][0]:.1f} s", *whole.rates(), whole.peak_mb)
    count, whole = options.counts[-1], (work / str(options.counts[-1]) / "out.json").read_bytes()
    stop = int(count * options.kill_at)
    predict(work / str(count), model, stop_at=stop)
    resumed = predict(work / str(count), model, resume=True)
    same = (work / str(count) / "out.json").read_bytes() == whole
    row = f"resumed at {stop:,}", f"{resumed.seconds:.1f}", f"{resumed.trace[0][0]:.1f} s"
    table.row(*row, *resumed.rates(), resumed.peak_mb)
    print(f"\nthe resumed run wrote the bytes of the other one: {same}")


def write_model(path: Path) -> int:
    """Save a small CNN with random weights as a model file."""
    from fakereal.runtime import start_keras

    start_keras()
    from fakereal.config import Config, NetworkConfig
    from fakereal.model import model_file, networks
    from fakereal.model.metadata import Metadata
    from fakereal.preprocessing import Preprocessing

    network = NetworkConfig(name="cnn", filters=(4, 8))
    metadata = Metadata(Config(image_size=32, network=network), Preprocessing(32))
    model_file.save(path, model_file.Detector(networks.build(network, 32), metadata))
    return 0


def make_shards(folder: Path, count: int, per_shard: int, pieces: list[bytes]) -> None:
    """Write `count` images, 1.jpg, 2.jpg, ..., into uncompressed tar files, as the makers of large sets do."""
    folder.mkdir()
    for start in range(1, count + 1, per_shard):
        with tarfile.open(folder / f"{start:08}.tar", "w") as shard:
            for number in range(start, min(start + per_shard, count + 1)):
                content = pieces[number % len(pieces)]
                info = tarfile.TarInfo(f"{number}.jpg")
                info.size = len(content)
                shard.addfile(info, io.BytesIO(content))


@dataclass(frozen=True)
class Run:
    """A prediction that ended or was killed."""

    seconds: float
    peak_mb: int
    trace: list[list[float]]  # seconds since the start, processor seconds and images finished, from the first batch on

    def rates(self) -> tuple[str, str]:
        """Return the images per processor second of the first and the last tenth of the trace."""
        tenth = max(1, len(self.trace) // 10)
        spans = self.trace[: tenth + 1], self.trace[-tenth - 1 :]
        return tuple(f"{(span[-1][2] - span[0][2]) / max(span[-1][1] - span[0][1], 1e-9):.0f}" for span in spans)


def predict(folder: Path, model: Path, stop_at: int = 0, resume: bool = False) -> Run:
    """Predict the shards of a folder in a process of its own, which kills itself once `stop_at` images are finished."""
    child = [sys.executable, "-m", "benchmarks.prediction_shards", "child", str(folder / "trace.json"), str(stop_at)]
    options = ["--input", f"{folder}/*.tar", "--model", model, "--output", folder / "out.json", "--force"]
    command = [*child, *map(str, options), *(["--resume"] if resume else [])]
    started = time.monotonic()
    with tempfile.TemporaryFile() as err:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=err, cwd=ROOT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != (-9 if stop_at else 0):
            err.seek(0)
            raise SystemExit(f"exit code {process.returncode}: {err.read().decode(errors='replace')[-2000:]}")
    trace = [] if stop_at else json.loads((folder / "trace.json").read_text())
    return Run(seconds, round(usage.ru_maxrss / 1024), trace)


def traced(trace_file: Path, stop_at: int, arguments: list[str]) -> int:
    """Run predict_and_save_json.py in this process, and note when how many images are finished."""
    started = time.monotonic()
    from fakereal.predict.journal import Journal

    trace: list[tuple[float, float, int]] = []
    add, finished = Journal.add, 0

    def add_and_note(journal: Journal, predictions: list[tuple]) -> None:
        nonlocal finished
        add(journal, predictions)
        finished += len(predictions)
        if not trace or finished >= trace[-1][2] + _TRACE_EVERY:
            trace.append((time.monotonic() - started, processor_seconds(), finished))
        if 0 < stop_at <= finished:
            os.kill(os.getpid(), signal.SIGKILL)

    Journal.add = add_and_note
    sys.argv = ["predict_and_save_json.py", *arguments]
    try:
        runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
    except SystemExit as end:
        code = end.code
    trace_file.write_text(json.dumps(trace))
    return code


if __name__ == "__main__":
    sys.exit(main())
