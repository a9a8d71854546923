"""How well copies of pictures are found, and how long it takes, side by side with imagededup where it is installed.

    python -m benchmarks.duplicates --cifake CIFAKE                 all 120,000 pictures: what is found, time, memory
    python -m benchmarks.duplicates --copies DIR [DIR ...]          1,000 of their pictures and a changed copy of each
    python -m benchmarks.duplicates --copies CIFAKE --limit 200 --others others.txt

A pair counts as found when both pictures are in one cluster. Every pair reported that is no picture with its own copy
counts as wrong, although sets of pictures hold near-copies of their own: --others lists these pairs, to be looked at.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import Image

from fakereal import cli
from fakereal.dataset.near_duplicates import find_duplicates
from fakereal.dataset.scan import scan
from fakereal.decoding import decode, is_image_name
from fakereal.preprocessing import Preprocessing

_FULL_PX = 65_500  # decode at full scale: a copy is made of the picture, not of a reduced one

Pairs = set[tuple[str, str]]
"""File names, the smaller first."""


def _jpeg60(image: Image.Image) -> Image.Image:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=60)
    return Image.open(content).convert("RGB")


def _half(image: Image.Image) -> Image.Image:
    return image.resize((max(1, image.width // 2), max(1, image.height // 2)), Image.Resampling.BICUBIC)


def _mirrored(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def _cropped(image: Image.Image) -> Image.Image:
    x, y = round(image.width * 0.05), round(image.height * 0.05)
    return image.crop((x, y, image.width - x, image.height - y))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG 60": _jpeg60,
    "half the size": _half,
    "mirrored": _mirrored,
    "all three": lambda image: _jpeg60(_half(_mirrored(image))),
    "turned by 90 degrees": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "5 % cropped a side": _cropped,
}


def main() -> int:
    """Prints the tables; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifake", type=Path, metavar="DIR", help="the official folder: train/, test/")
    parser.add_argument("--copies", type=Path, nargs="+", metavar="DIR", help="folders to draw pictures from")
    parser.add_argument("--limit", type=cli.parse_count, default=1000, metavar="N", help="pictures drawn")
    parser.add_argument("--others", type=Path, metavar="FILE", help="where to list the pairs that we did not make")
    options = parser.parse_args()
    if options.cifake:
        report_whole(options.cifake)
    if options.copies:
        report_copies(_drawn(options.copies, options.limit), options.others)
    return 0


def report_whole(root: Path) -> None:
    """Prints what a whole set holds, and what it took to find it."""
    began = time.perf_counter(), _processor_seconds()
    records = scan(root, Preprocessing()).records
    read = time.perf_counter(), _processor_seconds()
    clusters = find_duplicates(records)
    found = time.perf_counter(), _processor_seconds()
    print(f"{root}: {len(records):,} pictures")
    for words, start, end in (("reading", began, read), ("comparing", read, found)):
        print(f"{words}: {end[0] - start[0]:.0f} s, of the processors {end[1] - start[1]:.0f} s")
    print(f"peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    print("| clusters | number | pictures | largest | across classes | across splits | in test, also in train |")
    print("|---|---|---|---|---|---|---|")
    for kind in ("identical", "near"):
        of_kind = [cluster for cluster in clusters if cluster.kind == kind]
        sizes = [len(cluster.records) for cluster in of_kind]
        leaking = [
            sum(record.split == "test" for record in cluster.records)
            for cluster in of_kind
            if any(record.split == "train" for record in cluster.records)
        ]
        classes, splits = (sum(getattr(c, f"across_{name}") for c in of_kind) for name in ("classes", "splits"))
        print(
            f"| {kind} | {len(of_kind):,} | {sum(sizes):,} | {max(sizes, default=0)} | {classes:,} | {splits:,}"
            f" | {sum(leaking):,} |"
        )


def report_copies(pictures: list[Path], others: Path | None) -> None:
    """Prints recall and precision of each change, and lists the pairs that nobody made."""
    tools = {"fakereal": our_pairs} | _imagededup()
    print(f"{len(pictures):,} pictures, and a copy of each\n")
    print("| copies | " + " | ".join(f"{name}: recall | precision | processor seconds" for name in tools) + " |")
    print("|---" * (1 + 3 * len(tools)) + "|")
    natural: Counter[tuple[str, str, str]] = Counter()
    for words, change in CHANGES.items():
        with tempfile.TemporaryDirectory() as folder:
            _make(Path(folder), pictures, change)
            row = [words]
            for name, tool in tools.items():
                began = _processor_seconds()
                pairs = tool(Path(folder))
                seconds = _processor_seconds() - began
                made = {pair for pair in pairs if _number(pair[0]) == _number(pair[1])}
                natural.update((name, *sorted(map(_number, pair))) for pair in pairs - made)
                precision = f"{len(made) / len(pairs):.1%}" if pairs else "-"
                row += [f"{len(made) / len(pictures):.1%}", precision, f"{seconds:.1f}"]
            print(f"| {' | '.join(row)} |", flush=True)
    if others:
        lines = (f"{name}\t{pictures[int(a)]}\t{pictures[int(b)]}\t{count}" for (name, a, b), count in natural.items())
        others.write_text("tool\tone\tother\ttimes\n" + "".join(f"{line}\n" for line in sorted(lines)))


def our_pairs(folder: Path) -> Pairs:
    """Returns every pair that shares one of our clusters; reads the pictures too."""
    clusters = find_duplicates(scan(folder, Preprocessing()).records)
    return {pair for cluster in clusters for pair in _pairs(record.path.name for record in cluster.records)}


def _imagededup() -> dict[str, Callable[[Path], Pairs]]:
    """Returns imagededup's perceptual hash with its own threshold (10 of 64 bits) and with a stricter one."""
    try:
        from imagededup.methods import PHash
    except ImportError:
        return {}

    def pairs(folder: Path, distance: int) -> Pairs:
        method = PHash(verbose=False)
        codes = method.encode_images(image_dir=folder, recursive=True, num_enc_workers=0)
        found = method.find_duplicates(encoding_map=codes, max_distance_threshold=distance, num_dist_workers=0)
        return {
            pair for one, same in found.items() for other in same for pair in _pairs({Path(one).name, Path(other).name})
        }

    return {f"imagededup {bits}": lambda folder, bits=bits: pairs(folder, bits) for bits in (10, 6)}


def _processor_seconds() -> float:
    """Returns what this process and its children took; unlike the clock's, hardly more on a busy machine."""
    return sum(os.times()[:4])


def _pairs(names: Iterable[str]) -> Iterable[tuple[str, str]]:
    return combinations(sorted(names), 2)


def _number(name: str) -> str:
    return name.split("_")[0]


def _drawn(folders: list[Path], limit: int) -> list[Path]:
    found = [path for folder in folders for path in sorted(folder.rglob("*")) if is_image_name(path.name)]
    chosen = np.random.default_rng(0).permutation(len(found))[:limit]
    return [found[index] for index in sorted(chosen)]


def _make(folder: Path, pictures: list[Path], change: Callable[[Image.Image], Image.Image]) -> None:
    """Writes `real/<number>_original.*`, a link, and `fake/<number>_copy.png`."""
    for name in ("real", "fake"):
        (folder / name).mkdir()
    for number, path in enumerate(pictures):
        (folder / "real" / f"{number}_original{path.suffix}").symlink_to(path.resolve())
        change(decode(path, _FULL_PX)[0]).save(folder / "fake" / f"{number}_copy.png")


if __name__ == "__main__":
    sys.exit(cli.run_cli(lambda argv: main()))
