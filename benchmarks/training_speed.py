"""Measure training time, F1 and memory of train_model.py against a plain Keras script.

    python -m benchmarks.training_speed head --data CLEAN --split split.csv           about 40 minutes on 2 free cores
    python -m benchmarks.training_speed last20 --data CLEAN --split split.csv         about 60 minutes
    python -m benchmarks.training_speed memory --counts 2000 20000 100000             about 40 minutes

Every way runs in a process of its own, in turn, --repeats times; medians. All start from the same base weights and use
the same images for train, val and test. `--limit 100 --epochs 3 --repeats 1` is a quick check.

    plain    benchmarks/plain_training.py: everything in one Sequential, every image decoded and computed in every epoch
    quick    the same without tf.data's autotuning, which TensorFlow 2.21 waits for at the end of every epoch
    nocache  train_model.py with its caches off: training.augmented_versions 0, --cache-dir none
    ours     train_model.py as it comes, with an empty cache
    again    the same, with the cache of the run before

Start, report and its re-saved images are part of our times, although the plain script writes no report. The last column
says where the seconds go, as cost.json has it: "start" is Python, TensorFlow and what no stage has.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from benchmarks._shared import ROOT, Table, make_labeled_set, median_and_all, new_parser, training_report

WAYS = ("plain", "quick", "nocache", "ours", "again")
SPLITS = ("train", "val", "test")
_POLL_S = 0.2


@dataclass(frozen=True)
class Run:
    """One measured training."""

    seconds: float  # of the whole process, with the start of Python and TensorFlow
    f1: float | None  # macro, on the test images, at the model's own threshold
    anonymous_mb: float  # peak; without the mapped files of the cache, which the system can drop
    epoch_s: float | None = None  # median of the last phase's epochs, validation included
    stages: dict[str, float] = field(default_factory=dict)  # where the seconds went


def main() -> int:
    """Run the ways in turn and print a table; return the exit code."""
    parser = new_parser(__doc__)
    parser.add_argument("part", choices=("head", "last20", "memory"))
    parser.add_argument("--data", type=Path, metavar="DIR", help="a labeled folder")
    parser.add_argument("--split", type=Path, metavar="FILE", help="its split.csv, of an earlier run")
    parser.add_argument("--weights", default="pretrained", help="as train_model.py takes it (default: pretrained)")
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--fine-tune-epochs", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=int, metavar="N", help="training images at most, to save time")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--counts", nargs="+", type=int, default=[2_000, 20_000, 100_000], metavar="N")
    options = parser.parse_args()
    if Path(options.weights).is_file():
        options.weights = str(Path(options.weights).resolve())  # the trainings run in another folder
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if options.part == "memory":
            memory(work, options.counts, options.epochs)
        elif options.data and options.split:
            speed(work, options)
        else:
            parser.error("expected both --data and --split")
    return 0


def speed(work: Path, options: argparse.Namespace) -> None:
    """Time the ways in turn."""
    counts = divide(options.data, options.split, work / "set", options.limit)
    print(f"{options.part}, {options.epochs} epochs, images: {counts}", flush=True)
    save_base(options.weights, work / "base.weights.h5")
    runs: dict[str, list[Run]] = {way: [] for way in options.ways}
    for repeat in range(options.repeats):
        for way in options.ways:
            run = train(way, work, options, options.seed + repeat)
            runs[way].append(run)
            print(f"{way} {repeat + 1}: {run.seconds:.1f} s, F1 {run.f1}, {run.anonymous_mb:.0f} MB", flush=True)
    print_table(runs)


def divide(data: Path, split: Path, target: Path, limit: int | None) -> dict[str, int]:
    """Link the images into train|val|test/fake|real, the layout that both scripts read; return their counts."""
    with open(split, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] in SPLITS]
    share = min(1.0, limit / sum(row["split"] == "train" for row in rows)) if limit else 1.0
    counts = {}
    for name in SPLITS:
        chosen = [row for row in rows if row["split"] == name]
        chosen = [chosen[int(n / share)] for n in range(round(len(chosen) * share))]
        counts[name] = len(chosen)
        for row in chosen:
            link = target / name / row["label"] / row["path"].replace("/", "__")
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to((data / row["path"]).resolve())
    return counts


def save_base(weights: str, target: Path) -> None:
    """Write the base's weights as the plain script loads them."""
    from fakereal import runtime

    runtime.start_keras()
    import keras

    from fakereal.config import NetworkConfig
    from fakereal.model import networks
    from fakereal.model.weights import load_base

    model = networks.build(NetworkConfig(), 224)
    load_base(model, NetworkConfig(), weights)
    base = keras.applications.EfficientNetB0(include_top=False, weights=None, input_shape=(224, 224, 3), pooling="avg")
    base.set_weights(model.get_layer(networks.BASE).get_weights())
    base.save_weights(target)


def train(way: str, work: Path, options: argparse.Namespace, seed: int) -> Run:
    """Train once, one way."""
    fine_tune = options.fine_tune_epochs if options.part == "last20" else 0
    epochs = ["--epochs", str(options.epochs), "--seed", str(seed)]
    if way in ("plain", "quick"):
        script = [str(ROOT / "benchmarks" / "plain_training.py"), str(work / "set"), str(work / "base.weights.h5")]
        script += ["--no-autotune"] if way == "quick" else []
        run = timed([*script, *epochs, "--fine-tune", str(fine_tune), "--output", str(work / "plain.keras")], work)
        found = json.loads(last_line(work))
        return replace(run, f1=found["f1_macro"], epoch_s=found["epoch_s"])
    tree = {"training": {"fine_tune_epochs": max(1, fine_tune)}}
    if way == "nocache":
        tree["training"]["augmented_versions"] = 0
    cache = work / "cache"
    if way == "ours":
        shutil.rmtree(cache, ignore_errors=True)
    (work / "recipe.yaml").write_text(yaml.safe_dump(tree))
    flags = ["--config", "recipe.yaml", "--data", "set", "--weights", options.weights, *epochs]
    flags += ["--fine-tune", "last20" if fine_tune else "none", "--output", "ours.h5"]
    flags += ["--cache-dir", "none" if way == "nocache" else str(cache)]
    run = timed([str(ROOT / "train_model.py"), *flags], work)
    report = training_report(work / "ours.h5")
    with open(work / "ours_run" / "history.csv", newline="") as file:
        history = list(csv.DictReader(file))
    epochs_s = [float(row["seconds"]) for row in history if row["phase"] == history[-1]["phase"]]
    f1, stages = (
        round(report["metrics"]["test"]["f1_macro"], 4),
        stages_of(work / "ours_run" / "cost.json", run.seconds),
    )
    return replace(run, f1=f1, epoch_s=statistics.median(epochs_s), stages=stages)


def stages_of(cost: Path, seconds: float) -> dict[str, float]:
    """Return the stages of a training that took so many seconds, the longest first."""
    tree = json.loads(cost.read_text())
    stages = {name.removeprefix("seconds_"): value for name, value in tree.items() if name.startswith("seconds_")}
    stages["start"] = seconds - sum(stages.values())
    return dict(sorted(stages.items(), key=lambda item: -item[1]))


def timed(command: Sequence[str], work: Path) -> Run:
    """Run a Python script to its end; measure its time and its peak of anonymous memory."""
    started = time.monotonic()
    with open(work / "out.txt", "w") as out, open(work / "err.txt", "w") as err:
        process = subprocess.Popen([sys.executable, *command], stdout=out, stderr=err, cwd=work)
        highest = [0]
        watcher = threading.Thread(target=watch_memory, args=(process, highest))
        watcher.start()
        process.wait()
        watcher.join()
    if process.returncode:
        sys.exit(f"{' '.join(command)}: exit code {process.returncode}\n{(work / 'err.txt').read_text()}")
    return Run(time.monotonic() - started, None, highest[0] / 1000)


def watch_memory(process: subprocess.Popen, highest: list[int]) -> None:
    """Note the peak of a process's anonymous memory in kB, from Linux' /proc, until it ends."""
    while process.poll() is None:
        with contextlib.suppress(OSError, IndexError):
            status = Path(f"/proc/{process.pid}/status").read_text()
            highest[0] = max(highest[0], int(status.split("RssAnon:")[1].split()[0]))
        time.sleep(_POLL_S)


def last_line(work: Path) -> str:
    """Return the last line that a script printed."""
    return (work / "out.txt").read_text().strip().splitlines()[-1]


def print_table(runs: dict[str, list[Run]]) -> None:
    """Print the medians, and how many times as fast as the first way each is."""
    first = statistics.median(run.seconds for run in next(iter(runs.values())))
    print()
    titles = (
        "way",
        "seconds, median (all)",
        "times as fast",
        "s per epoch, last phase",
        "F1, median (all)",
        "memory, MB",
        "where the seconds go",
    )
    table = Table(*titles)
    for way, each in runs.items():
        seconds, scores = [run.seconds for run in each], [run.f1 for run in each]
        ratio, epoch_s = first / statistics.median(seconds), statistics.median(run.epoch_s for run in each)
        memory_mb = max(run.anonymous_mb for run in each)
        row = median_and_all(seconds, ".0f"), f"{ratio:.1f}", f"{epoch_s:.1f}", median_and_all(scores, ".4f")
        middle = sorted(each, key=lambda run: run.seconds)[len(each) // 2]
        stages = ", ".join(f"{name} {value:.0f}" for name, value in middle.stages.items())
        table.row(way, *row, f"{memory_mb:.0f}", stages)


def memory(work: Path, counts: Sequence[int], epochs: int) -> None:
    """Train on generated sets of growing size at 32 pixels: the head from features, then the last 20 layers."""
    table = Table("images", "seconds", "ms per image", "anonymous memory, MB", "cache, MB")
    recipe = {"image_size": 32, "report": {"resave_images": 0}, "data": {"shares": [0.9, 0.05, 0.05]},
              "training": {"fine_tune_epochs": epochs}}  # fmt: skip
    (work / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for count in counts:
        data, cache = work / f"set{count}", work / "cache"
        make_labeled_set(data, count)
        shutil.rmtree(cache, ignore_errors=True)
        flags = ["--config", "recipe.yaml", "--data", str(data), "--weights", "pretrained", "--fine-tune", "last20"]
        flags += ["--epochs", str(epochs), "--batch-size", "128", "--cache-dir", str(cache), "--output", "m.h5"]
        run = timed([str(ROOT / "train_model.py"), *flags], work)
        kept = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) / 1e6
        cells = f"{run.seconds:.0f}", f"{1000 * run.seconds / count:.1f}", f"{run.anonymous_mb:.0f}", f"{kept:.0f}"
        table.row(f"{count:,}", *cells)
        shutil.rmtree(data)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.exit(main())
