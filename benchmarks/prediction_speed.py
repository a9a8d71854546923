"""How long prediction takes, as a user starts it, against the scripts that people write; and what a large folder needs.

    python -m benchmarks.prediction_speed speed --pictures DIR       about 40 minutes on 2 free cores
    python -m benchmarks.prediction_speed many --counts 1000 100000  about 20 minutes

speed: three sets (500 pictures of DIR, 500 JPEGs of 1024x1024, 50 JPEGs of 12 megapixels, the latter two made on the
spot), each way in a process of its own, in turn, --repeats times; medians count, and the start of Python is part of it.

    one       benchmarks/plain_prediction.py: decode, resize and model.predict for each picture
    batches   the same with image_dataset_from_directory and batches of 32
    ours      predict_and_save_json.py, whose conversion cache is warm
    keras     the same with --engine keras
    decode    benchmarks/prediction_limits.py: our decoding without a network
    network   our network on its engine, without decoding

many: peak memory of the process (getrusage) and images/s on folders of hard links to a few small pictures. A quick
check of everything: `--sets pictures --count 64 --repeats 1`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
WAYS = ("one", "batches", "ours", "keras", "decode", "network")
SETS = ("pictures", "1024", "12mp")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")  # what image_dataset_from_directory takes too
_SIZES = {"1024": (1024, 1024), "12mp": (4000, 3000)}


@dataclass(frozen=True)
class Run:
    """What one process came to."""

    seconds: float  # from start to end
    peak_mb: float  # of its resident memory
    speed: float | None  # images/s without the start, where the script says it


def main() -> int:
    """Parses the options and runs one part; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("speed", "many"))
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="speed: where the first set is taken from")
    parser.add_argument("--model", type=Path, default=ROOT / "models/pretrained.h5")
    parser.add_argument("--engine", default="auto", help="of ours and of the network's limit")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--count", type=int, default=500, help="pictures of the first two sets; a tenth of the third")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--counts", nargs="+", type=int, default=[1_000, 100_000], metavar="N", help="many: folders")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.part == "many":
            many(Path(folder), options)
        elif options.pictures or "pictures" not in options.sets:
            speed(Path(folder), options)
        else:
            parser.error("speed: expected --pictures DIR, found none")
    return 0


def speed(work: Path, options: argparse.Namespace) -> None:
    """Times the ways in turn, set after set."""
    for name in options.sets:
        count = max(1, options.count // 10) if name == "12mp" else options.count
        folder = work / name
        if name == "pictures":
            link_pictures(options.pictures, folder, count)
        else:
            make_jpegs(folder, count, _SIZES[name])
        start(command("ours", folder, work, options), work)  # fills the conversion cache and the disk's
        runs: dict[str, list[Run]] = {way: [] for way in options.ways}
        for repeat in range(options.repeats):
            for way in options.ways:
                run = start(command(way, folder, work, options), work)
                runs[way].append(run)
                print(f"{name} {way} {repeat + 1}: {run.seconds:.2f} s, {run.peak_mb:.0f} MB", file=sys.stderr)
        print_table(f"{len(list(folder.iterdir()))} x {name}", runs)
        print(agreement(work), flush=True)


def command(way: str, folder: Path, work: Path, options: argparse.Namespace) -> list[str]:
    """Returns the arguments of Python for one way."""
    if way in ("one", "batches"):
        script = str(ROOT / "benchmarks/plain_prediction.py")
        return [script, way, str(folder), str(options.model), str(work / f"{way}.json")]
    if way in ("decode", "network"):
        return ["-m", "benchmarks.prediction_limits", way, str(folder), str(options.model), options.engine]
    script = [str(ROOT / "predict_and_save_json.py"), "--input", str(folder), "--model", str(options.model)]
    return [*script, "--output", str(work / f"{way}.json"), "--engine", "keras" if way == "keras" else options.engine]


def start(arguments: Sequence[str], work: Path) -> Run:
    """Runs Python to its end; takes its time and its highest memory."""
    errors = work / "stderr.txt"
    started = time.monotonic()
    with open(errors, "w") as err:
        process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=err, cwd=ROOT)
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    said = errors.read_text()
    if process.returncode:
        sys.exit(f"{' '.join(arguments)}: expected exit code 0, found {process.returncode}:\n{said}")
    own = re.search(r"\(([\d.]+) images/s\)", said)
    return Run(seconds, usage.ru_maxrss / 1024, float(own[1]) if own else None)


def print_table(title: str, runs: dict[str, list[Run]]) -> None:
    """Prints the medians, and each way's time against ours and against the larger limit."""
    medians = {way: statistics.median(run.seconds for run in each) for way, each in runs.items()}
    print(f"\n| {title} | seconds, median (all) | ours is so many times as fast | peak memory, MB |\n|---|---|---|---|")
    for way, each in runs.items():
        times = ", ".join(f"{run.seconds:.1f}" for run in each)
        ratio = f"{medians[way] / medians['ours']:.2f}" if "ours" in medians else ""
        print(f"| {way} | {medians[way]:.2f} ({times}) | {ratio} | {max(run.peak_mb for run in each):.0f} |")
    limits = [medians[way] for way in ("decode", "network") if way in medians]
    if limits and "ours" in medians:
        print(f"\nours takes {medians['ours'] / max(limits):.2f} times as long as the slower limit")


def agreement(work: Path) -> str:
    """Says on how many labels the ways agree with our own: they decode and resize otherwise, so not on all."""
    lines = []
    ours = labels(work / "ours.json")
    for way in ("one", "batches", "keras"):
        if (work / f"{way}.json").exists():
            theirs = labels(work / f"{way}.json")
            same = sum(a == b for a, b in zip(ours, theirs, strict=True))
            lines.append(f"{way} {same} of {len(ours)}")
    return "labels as ours: " + ", ".join(lines)


def labels(path: Path) -> list[str]:
    """Returns the predictions of a document by the number of their picture."""
    entries = json.loads(path.read_text())
    number = {id(entry): entry.get("index") or int(Path(entry["image"]).stem) for entry in entries}
    return [entry["prediction"] for entry in sorted(entries, key=lambda entry: number[id(entry)])]


def many(work: Path, options: argparse.Namespace) -> None:
    """Predicts folders of growing size."""
    make_jpegs(work / "few", 100, (96, 96))
    few = sorted((work / "few").iterdir())
    start(command("ours", work / "few", work, options), work)  # converting the model takes memory of its own, once
    print("| pictures | seconds | images/s without the start | peak memory, MB |\n|---|---|---|---|")
    for count in options.counts:
        folder = work / f"many{count}"
        folder.mkdir()
        for number in range(count):
            (folder / f"{number + 1}.jpg").hardlink_to(few[number % len(few)])
        run = start(command("ours", folder, work, options), work)
        print(f"| {count:,} | {run.seconds:.1f} | {run.speed} | {run.peak_mb:.0f} |", flush=True)


def link_pictures(source: Path, folder: Path, count: int) -> None:
    """Links the first pictures of a folder under numbers."""
    folder.mkdir()
    paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES)[:count]
    if not paths:
        sys.exit(f"--pictures: expected pictures in {source}, found none")
    for number, path in enumerate(paths, start=1):
        (folder / f"{number}{path.suffix.lower()}").symlink_to(path.resolve())


def make_jpegs(folder: Path, count: int, size: tuple[int, int]) -> None:
    """Writes smooth pictures with some grain, as cameras do; a tenth of them, the others are hard links."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    made = max(1, count // 10)
    for number in range(1, count + 1):
        path = folder / f"{number}.jpg"
        if number > made:
            path.hardlink_to(folder / f"{(number - 1) % made + 1}.jpg")
            continue
        smooth = Image.fromarray(rng.integers(20, 235, (24, 24, 3), dtype=np.uint8)).resize(
            size, Image.Resampling.BICUBIC
        )
        grain = rng.normal(0, 6, (size[1], size[0], 1)).astype(np.float32)
        Image.fromarray(np.clip(np.asarray(smooth) + grain, 0, 255).astype(np.uint8)).save(path, quality=90)


if __name__ == "__main__":
    sys.exit(main())
