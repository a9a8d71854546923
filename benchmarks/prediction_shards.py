"""Predict tiny images in tar shards, made on the spot: speed over the run, memory, and resuming after SIGKILL.

    python -m benchmarks.prediction_shards                     a million; says first how long it will take
    python -m benchmarks.prediction_shards --count 50000       some minutes

A few images and then --count images are predicted, each count in a process of its own, from a pattern of shards to
predictions.json. The larger run is repeated, killed at --kill-at of its images, and resumed. The images are different
names for a few JPEGs of 32x32; the network is a small CNN, trained on the spot: everything but the network counts.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from array import array
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from benchmarks._shared import (
    ROOT,
    Table,
    make_jpegs,
    make_labeled_set,
    new_parser,
    processor_seconds,
    run_python,
)

_FEW = 1_000  # images, which the memory of the larger run is compared with
_TRACE_EVERY = 100  # images
_DISK_BYTES = 2_500  # of an image: up to 2 kB in its shard, the rest in the journal, temporary files and results
_BESIDE_S = 1e-4  # per image: listing, reading the journal and writing the results


def main() -> int:
    """Parse the options, run the measurements and print them; return the exit code."""
    if sys.argv[1:2] == ["child"]:
        return traced(Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
    parser = new_parser(__doc__)
    parser.add_argument("--count", type=int, default=1_000_000, metavar="N", help="images (1000000)")
    parser.add_argument("--shard", type=int, default=10_000, metavar="N", help="images in a shard (10000)")
    parser.add_argument("--kill-at", type=float, default=0.7, metavar="SHARE", help="of the images (0.7)")
    parser.add_argument("--model", type=Path, help="predict with this model file instead of a small CNN")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), options)
    return 0


def measure(work: Path, options: argparse.Namespace) -> None:
    """Predict a few images, then all of them, and then all of them with a kill."""
    model = options.model or train_small(work)
    make_jpegs(work / "few", 100, (32, 32))
    pieces = [path.read_bytes() for path in sorted((work / "few").iterdir())]
    make_shards(work / "0", 10, 10, pieces)
    predict(work / "0", model)  # converts the model, which takes memory of its own
    making = make_shards(work / "1", _FEW, options.shard, pieces)
    few = predict(work / "1", model)
    count, stop = options.count, int(options.count * options.kill_at)
    announce(few, making / _FEW, count)
    make_shards(work / "2", count, options.shard, pieces)
    whole = predict(work / "2", model)
    report(few, whole, count)
    expected = (work / "2/out.json").read_bytes()
    predict(work / "2", model, stop_at=stop)
    resumed = predict(work / "2", model, resume=True)
    first_s, same = resumed.trace[0][0], (work / "2/out.json").read_bytes() == expected
    print(f"- Killed at {stop:,} and resumed: the first new batch after {first_s:.1f} s, {resumed.peak_mb:.1f} MB;")
    print(f"  the bytes of the unbroken run: {'yes' if same else 'NO'}.")


def train_small(work: Path) -> Path:
    """Train the cheapest network on a handful of images; in another process, whose memory is not measured."""
    make_labeled_set(work / "set", 80)
    (work / "small.yaml").write_text("network: {name: cnn, filters: [4, 8]}\nreport: {resave_images: 0}\n")
    options = ["--config", work / "small.yaml", "--weights", "none", "--image-size", "32", "--epochs", "1"]
    run_python(["train_model.py", "--data", work / "set", "--output", work / "small.h5", *options])
    return work / "small.h5"


def announce(few: Run, making_s: float, count: int) -> None:
    """Print how long all will take, estimated from the run of a few images, and how much disk."""
    (start_s, _, start), (end_s, _, end) = few.trace[0], few.trace[-1]
    minutes = (making_s + 2 * ((end_s - start_s) / (end - start) + _BESIDE_S)) * count / 60 + 1
    megabytes = count * _DISK_BYTES / 1e6
    print(f"{count:,} images take about {minutes:.0f} min and {megabytes:,.0f} MB of disk\n", flush=True)


def report(few: Run, whole: Run, count: int) -> None:
    """Print the measurements of the unbroken runs as they are pasted into docs/benchmarks.md."""
    table = Table(f"tenth of {count:,} images", *map(str, range(1, 11)))
    table.row("images per second", *(f"{rate:,.0f}" for rate in whole.rates(clock=0)))
    table.row("images per processor second", *(f"{rate:,.0f}" for rate in whole.rates(clock=1)))
    growth = whole.peak_mb / few.peak_mb - 1
    print(f"\n- {count:,} images in {whole.seconds:,.0f} s, the first batch after {whole.trace[0][0]:.1f} s.")
    print(
        f"- Peak memory: {whole.peak_mb:.1f} MB; for {_FEW:,} images {few.peak_mb:.1f} MB ({growth:+.1%}).", flush=True
    )


def make_shards(folder: Path, count: int, per_shard: int, pieces: list[bytes]) -> float:
    """Write `count` images, 1.jpg, 2.jpg, ..., into uncompressed tar files, as the makers of large sets do.

    Returns:
        Seconds that it took.
    """
    started = time.monotonic()
    folder.mkdir()
    for start in range(1, count + 1, per_shard):
        with open(folder / f"{start:08}.tar", "wb") as shard:
            for number in range(start, min(start + per_shard, count + 1)):
                content = pieces[number % len(pieces)]
                info = tarfile.TarInfo(f"{number}.jpg")
                info.size = len(content)
                shard.write(info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % tarfile.BLOCKSIZE))
            shard.write(bytes(2 * tarfile.BLOCKSIZE))
    return time.monotonic() - started


@dataclass(frozen=True)
class Run:
    """A prediction that ended or was killed."""

    seconds: float
    peak_mb: float
    trace: list[list[float]]  # seconds since the start, processor seconds and images finished, from the first batch on

    def rates(self, clock: int) -> list[float]:
        """Return the images per second of each tenth of the trace; `clock`: 0 the time, 1 the processor's."""
        last = len(self.trace) - 1
        marks = [self.trace[round(last * tenth / 10)] for tenth in range(11)]
        return [(end[2] - start[2]) / max(end[clock] - start[clock], 1e-9) for start, end in pairwise(marks)]


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
    return Run(seconds, usage.ru_maxrss / 1024, trace)


def traced(trace_file: Path, stop_at: int, arguments: list[str]) -> int:
    """Run predict_and_save_json.py in this process, and note when how many images are finished."""
    started = time.monotonic()
    from fakereal.predict.journal import Journal

    trace = array("d")  # compact: its memory is measured, too
    add, finished, noted = Journal.add, 0, 0

    def add_and_note(journal: Journal, predictions: list[tuple]) -> None:
        nonlocal finished, noted
        add(journal, predictions)
        finished += len(predictions)
        if not noted or finished >= noted + _TRACE_EVERY:
            trace.extend((time.monotonic() - started, processor_seconds(), finished))
            noted = finished
        if 0 < stop_at <= finished:
            os.kill(os.getpid(), signal.SIGKILL)

    Journal.add = add_and_note
    sys.argv = ["predict_and_save_json.py", *arguments]
    try:
        runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
    except SystemExit as end:
        code = end.code
    trace_file.write_text(json.dumps(list(zip(*[iter(trace)] * 3, strict=True))))
    return code


if __name__ == "__main__":
    sys.exit(main())
