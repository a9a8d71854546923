"""Measure prediction from a folder to predictions.json against two plain scripts, and the memory of large folders.

    python -m benchmarks.prediction_speed speed --images DIR         about 40 minutes on 2 free cores
    python -m benchmarks.prediction_speed many --counts 1000 100000  about 20 minutes

speed: three sets (500 images of DIR, 500 JPEGs of 1024x1024 and 50 of 12 megapixels, generated), each way in a process
of its own, in turn, --repeats times. Medians; the start of Python is part of the time.

    one       benchmarks/plain_prediction.py: decode, resize and model.predict for each image
    batches   the same with image_dataset_from_directory and batches of 32
    ours      predict_and_save_json.py, whose conversion cache is warm
    keras     the same with --engine keras
    decode    benchmarks/prediction_limits.py: our decoding without a network
    network   our network on its engine, without decoding

many: peak memory of the process (getrusage) and images/s on folders of hard links to a few small images. A quick
check of everything: `--sets images --count 64 --repeats 1`.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks._shared import (
    ROOT,
    Table,
    Timed,
    images_in,
    link_numbered,
    make_jpegs,
    median_and_all,
    new_parser,
    run_python,
)

WAYS = ("one", "batches", "ours", "keras", "decode", "network")
SETS = ("images", "1024", "12mp")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")  # what image_dataset_from_directory takes too
_SIZES = {"1024": (1024, 1024), "12mp": (4000, 3000)}


def main() -> int:
    """Parse the options and run one part; return the exit code."""
    parser = new_parser(__doc__)
    parser.add_argument("part", choices=("speed", "many"))
    parser.add_argument("--images", type=Path, metavar="DIR", help="speed: folder that the first set is taken from")
    parser.add_argument("--model", type=Path, default=ROOT / "models/pretrained.h5")
    parser.add_argument("--engine", default="auto", help="of ours and of the network's limit")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument(
        "--count", type=int, default=500, help="images of the first two sets; a tenth of it for the third"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--counts", nargs="+", type=int, default=[1_000, 100_000], metavar="N", help="many: folders")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.part == "many":
            many(Path(folder), options)
        elif options.images or "images" not in options.sets:
            speed(Path(folder), options)
        else:
            parser.error("speed: expected --images DIR")
    return 0


def speed(work: Path, options: argparse.Namespace) -> None:
    """Time the ways in turn, set after set."""
    for name in options.sets:
        count = max(1, options.count // 10) if name == "12mp" else options.count
        folder = work / name
        if name == "images":
            paths = [path for path in images_in(options.images) if path.suffix.lower() in SUFFIXES]
            link_numbered(paths, folder, min(count, len(paths)))
        else:
            make_jpegs(folder, count, _SIZES[name])
        run_python(command("ours", folder, work, options))  # fills the conversion cache and the disk's
        runs: dict[str, list[Timed]] = {way: [] for way in options.ways}
        for repeat in range(options.repeats):
            for way in options.ways:
                run = run_python(command(way, folder, work, options))
                runs[way].append(run)
                print(f"{name} {way} {repeat + 1}: {run.seconds:.2f} s, {run.peak_mb:.0f} MB", file=sys.stderr)
        print_table(f"{len(list(folder.iterdir()))} x {name}", runs)
        print(agreement(work), flush=True)


def command(way: str, folder: Path, work: Path, options: argparse.Namespace) -> list[str]:
    """Return the arguments of Python for one way."""
    if way in ("one", "batches"):
        script = str(ROOT / "benchmarks/plain_prediction.py")
        return [script, way, str(folder), str(options.model), str(work / f"{way}.json")]
    if way in ("decode", "network"):
        return ["-m", "benchmarks.prediction_limits", way, str(folder), str(options.model), options.engine]
    script = [str(ROOT / "predict_and_save_json.py"), "--input", str(folder), "--model", str(options.model)]
    return [*script, "--output", str(work / f"{way}.json"), "--engine", "keras" if way == "keras" else options.engine]


def print_table(title: str, runs: dict[str, list[Timed]]) -> None:
    """Print the medians, and each way's time against ours and against the larger limit."""
    medians = {way: statistics.median(run.seconds for run in each) for way, each in runs.items()}
    print()
    table = Table(title, "seconds, median (all)", "times as long as ours", "peak memory, MB")
    for way, each in runs.items():
        ratio = f"{medians[way] / medians['ours']:.2f}" if "ours" in medians else ""
        seconds = median_and_all([run.seconds for run in each], ".2f")
        table.row(way, seconds, ratio, f"{max(run.peak_mb for run in each):.0f}")
    limits = [medians[way] for way in ("decode", "network") if way in medians]
    if limits and "ours" in medians:
        print(f"\nours takes {medians['ours'] / max(limits):.2f} times as long as the slower limit")


def agreement(work: Path) -> str:
    """Return on how many labels the ways agree with ours: they decode and resize differently, so not on all."""
    lines = []
    ours = labels(work / "ours.json")
    for way in ("one", "batches", "keras"):
        if (work / f"{way}.json").exists():
            theirs = labels(work / f"{way}.json")
            same = sum(a == b for a, b in zip(ours, theirs, strict=True))
            lines.append(f"{way} {same} of {len(ours)}")
    return "labels as ours: " + ", ".join(lines)


def labels(path: Path) -> list[str]:
    """Return the predictions of a document in the order of their images' numbers."""
    entries = json.loads(path.read_text())
    number = {id(entry): entry.get("index") or int(Path(entry["image"]).stem) for entry in entries}
    return [entry["prediction"] for entry in sorted(entries, key=lambda entry: number[id(entry)])]


def many(work: Path, options: argparse.Namespace) -> None:
    """Predict folders of growing size."""
    make_jpegs(work / "few", 100, (96, 96))
    few = sorted((work / "few").iterdir())
    run_python(command("ours", work / "few", work, options))  # converts the model, which takes memory of its own
    table = Table("images", "seconds", "images/s without the start", "peak memory, MB")
    for count in options.counts:
        folder = work / f"many{count}"
        folder.mkdir()
        for number in range(count):
            (folder / f"{number + 1}.jpg").hardlink_to(few[number % len(few)])
        run = run_python(command("ours", folder, work, options))
        speed = re.search(r"\(([\d.]+) images/s\)", run.stderr)
        table.row(f"{count:,}", f"{run.seconds:.1f}", speed[1] if speed else "", f"{run.peak_mb:.0f}")


if __name__ == "__main__":
    sys.exit(main())
