"""Prediction on a Ray cluster of two nodes on this machine, one worker killed half-way, against one process.

    python -m benchmarks.ray_prediction --pictures DIR [--count 2000] [--repeats 3] [--batch-size 32]

Each node is a raylet with one core of its own. In turn, --repeats times: predict_and_save_json.py by itself, on the
cluster, and on the cluster with a SIGKILL for one of the workers once a third of the pictures are done. The bytes of
predictions.json and of the details must be the same. Seconds are those of the pictures, as the script says them, and
of the whole process; the cluster's own start is not counted, as it is there before the pictures are. Both nodes share
this machine's cores, so what is measured is what Ray costs, not what a second machine gains.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WAYS = ("one process", "ray", "ray, one killed")


@dataclass(frozen=True)
class Run:
    """What one run came to."""

    seconds: float  # from start to end
    pictures_s: float  # of the pictures alone
    content: bytes  # of both results


def main() -> int:
    """Prints the table; returns the exit code: 1 where bytes differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, required=True, metavar="DIR")
    parser.add_argument("--model", type=Path, default=ROOT / "models/pretrained.h5")
    parser.add_argument("--count", type=int, default=2000, help="pictures; those of DIR are taken again where needed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args()
    from ray.cluster_utils import Cluster

    os.environ["PYTHONPATH"] = str(ROOT)
    node = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 200 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    cluster.add_node(num_cpus=1, object_store_memory=200 * 2**20)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            _link(options.pictures, Path(scratch) / "pictures", options.count)
            runs: dict[str, list[Run]] = {way: [] for way in WAYS}
            for _ in range(options.repeats):
                for way in WAYS:
                    runs[way].append(_run(way, cluster, Path(scratch), options))
    finally:
        cluster.shutdown()
    return _report(runs, options.count)


def _link(source: Path, folder: Path, count: int) -> None:
    folder.mkdir()
    paths = sorted(path for path in source.iterdir() if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"))
    for number in range(count):
        path = paths[number % len(paths)]
        (folder / f"{number + 1}{path.suffix}").symlink_to(path.resolve())


def _run(way: str, cluster: Any, scratch: Path, options: argparse.Namespace) -> Run:
    output = scratch / "predictions.json"
    command = [sys.executable, "predict_and_save_json.py", "--input", scratch / "pictures", "--model", options.model]
    command += ["--output", output, "--details", output.with_suffix(".csv"), "--batch-size", str(options.batch_size)]
    command += [] if way == WAYS[0] else ["--ray", cluster.address]
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as told:
        process = subprocess.Popen(list(map(str, command)), cwd=ROOT, stderr=told, stdout=subprocess.DEVNULL)
        if way == WAYS[2]:
            _kill_one(process, cluster, output.with_name(f"{output.name}.journal"), options.count // 3)
        code = process.wait()
        seconds = time.monotonic() - started
        told.seek(0)
        text = told.read()
    if code:
        raise SystemExit(text)
    took = float(re.search(r"images in ([\d.]+) s", text)[1])
    return Run(seconds, took, output.read_bytes() + output.with_suffix(".csv").read_bytes())


def _kill_one(process: subprocess.Popen[bytes], cluster: Any, journal: Path, done: int) -> None:
    while process.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < done):
        time.sleep(0.1)
    raylets = {str(info.process.pid) for node in cluster.list_all_nodes() for info in node.all_processes["raylet"]}
    listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=2) for line in listed.splitlines()[1:]]
    workers = [int(pid) for pid, parent, name in rows if parent in raylets and name.startswith("ray::MapWorker")]
    if not workers or process.poll() is not None:
        raise SystemExit("expected a worker to kill, found none: take more pictures")
    os.kill(workers[0], signal.SIGKILL)


def _report(runs: dict[str, list[Run]], count: int) -> int:
    first = runs[WAYS[0]][0].content
    base = statistics.median(run.pictures_s for run in runs[WAYS[0]])
    print(f"{'':<16} {'seconds':>8} {'pictures':>9} {'images/s':>9} {'of one':>7}  bytes")
    for way, each in runs.items():
        whole, pictures = (statistics.median(getattr(run, name) for run in each) for name in ("seconds", "pictures_s"))
        same = all(run.content == first for run in each)
        print(f"{way:<16} {whole:>8.1f} {pictures:>9.1f} {count / pictures:>9.1f} {pictures / base:>7.2f}"
              f"  {'same' if same else 'DIFFERENT'}")  # fmt: skip
    return 0 if all(run.content == first for each in runs.values() for run in each) else 1


if __name__ == "__main__":
    sys.exit(main())
