"""Measure prediction on a Ray cluster of two local nodes, also with a worker killed, against one process.

    python -m benchmarks.ray_prediction --images DIR [--count 2000] [--repeats 3] [--batch-size 32]

Each node is a raylet with one core. In turn, --repeats times: predict_and_save_json.py by itself, on the cluster, and
on the cluster with a SIGKILL for one of the workers after a third of the images. The bytes of predictions.json and of
the details must be the same. Seconds are those of the images, as the script prints them, and of the whole process; the
cluster's own start is not counted. Both nodes share this machine's cores, so this measures the cost of Ray, not the
gain of a second machine.
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

from benchmarks._shared import ROOT, Table, images_in, link_numbered, new_parser

WAYS = ("one process", "ray", "ray, one killed")


@dataclass(frozen=True)
class Run:
    """One measured run."""

    seconds: float  # from start to end
    images_s: float  # of the images alone
    content: bytes  # of both results


def main() -> int:
    """Print the table; return the exit code: 1 where bytes differ."""
    parser = new_parser(__doc__)
    parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    parser.add_argument("--model", type=Path, default=ROOT / "models/pretrained.h5")
    parser.add_argument("--count", type=int, default=2000, help="images; those of DIR are repeated where needed")
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
            link_numbered(images_in(options.images), Path(scratch) / "images", options.count)
            runs: dict[str, list[Run]] = {way: [] for way in WAYS}
            for _ in range(options.repeats):
                for way in WAYS:
                    runs[way].append(_run(way, cluster, Path(scratch), options))
    finally:
        cluster.shutdown()
    return _report(runs, options.count)


def _run(way: str, cluster: Any, scratch: Path, options: argparse.Namespace) -> Run:
    output = scratch / "predictions.json"
    command = [sys.executable, "predict_and_save_json.py", "--input", scratch / "images", "--model", options.model]
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
    log = journal.with_name(f"{journal.name}-wal")
    while process.poll() is None and _saved_in(journal) + _saved_in(log) < done:
        time.sleep(0.1)
    raylets = {str(info.process.pid) for node in cluster.list_all_nodes() for info in node.all_processes["raylet"]}
    listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=2) for line in listed.splitlines()[1:]]
    workers = [int(pid) for pid, parent, name in rows if parent in raylets and name.startswith("ray::MapWorker")]
    if not workers or process.poll() is not None:
        raise SystemExit("no worker left to kill: take more images")
    os.kill(workers[0], signal.SIGKILL)


def _saved_in(file: Path) -> int:
    """Count predictions in the bytes of a journal, which the other process has locked; some are counted twice."""
    return file.read_bytes().count(b'"p_real"') if file.exists() else 0


def _report(runs: dict[str, list[Run]], count: int) -> int:
    first = runs[WAYS[0]][0].content
    base = statistics.median(run.images_s for run in runs[WAYS[0]])
    table = Table("way", "seconds", "seconds of the images", "images/s", "against one process", "bytes")
    for way, each in runs.items():
        whole, images = (statistics.median(getattr(run, name) for run in each) for name in ("seconds", "images_s"))
        same = all(run.content == first for run in each)
        rates = f"{count / images:.1f}", f"{images / base:.2f}"
        table.row(way, f"{whole:.1f}", f"{images:.1f}", *rates, "same" if same else "DIFFERENT")
    return 0 if all(run.content == first for each in runs.values() for run in each) else 1


if __name__ == "__main__":
    sys.exit(main())
