"""Measure recall, precision and time of the near-duplicate search, beside imagededup where it is installed.

    python -m benchmarks.duplicates --cifake CIFAKE                 all 120,000 images: duplicates, time, memory
    python -m benchmarks.duplicates --copies DIR [DIR ...]          1,000 of their images and a changed copy of each
    python -m benchmarks.duplicates --copies CIFAKE --limit 200 --others others.txt

A pair counts as found when both images are in one cluster. Every other reported pair counts as wrong, although image
sets contain near-copies of their own: --others lists these pairs for a look.
"""

from __future__ import annotations

import io
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

from benchmarks._shared import FULL_PX, Table, images_in, new_parser, processor_seconds
from fakereal import cli
from fakereal.dataset.near_duplicates import find_duplicates
from fakereal.dataset.scan import scan
from fakereal.decoding import decode
from fakereal.preprocessing import Preprocessing

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
    """Print the tables; return the exit code."""
    parser = new_parser(__doc__)
    parser.add_argument("--cifake", type=Path, metavar="DIR", help="the official folder: train/, test/")
    parser.add_argument("--copies", type=Path, nargs="+", metavar="DIR", help="folders to sample images from")
    parser.add_argument("--limit", type=cli.parse_count, default=1000, metavar="N", help="images sampled")
    parser.add_argument(
        "--others", type=Path, metavar="FILE", help="where to list the reported pairs that are no copies of ours"
    )
    options = parser.parse_args()
    if options.cifake:
        report_whole(options.cifake)
    if options.copies:
        report_copies(_sampled(options.copies, options.limit), options.others)
    return 0


def report_whole(root: Path) -> None:
    """Print the duplicates of a whole set, and what the search took."""
    began = time.perf_counter(), processor_seconds()
    records = scan(root, Preprocessing()).records
    read = time.perf_counter(), processor_seconds()
    clusters = find_duplicates(records)
    found = time.perf_counter(), processor_seconds()
    print(f"{root}: {len(records):,} images")
    for step, start, end in (("reading", began, read), ("comparing", read, found)):
        print(f"{step}: {end[0] - start[0]:.0f} s, processor time {end[1] - start[1]:.0f} s")
    print(f"peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    table = Table(
        "clusters", "number", "images", "largest", "across classes", "across splits", "in test, also in train"
    )
    for kind in ("identical", "near"):
        of_kind = [cluster for cluster in clusters if cluster.kind == kind]
        sizes = [len(cluster.records) for cluster in of_kind]
        leaking = [
            sum(record.split == "test" for record in cluster.records)
            for cluster in of_kind
            if any(record.split == "train" for record in cluster.records)
        ]
        classes, splits = (sum(getattr(c, f"across_{name}") for c in of_kind) for name in ("classes", "splits"))
        counts = (len(of_kind), sum(sizes), max(sizes, default=0), classes, splits, sum(leaking))
        table.row(kind, *(f"{count:,}" for count in counts))


def report_copies(images: list[Path], others: Path | None) -> None:
    """Print recall and precision for each change, and list the other reported pairs."""
    tools = {"fakereal": our_pairs} | _imagededup()
    print(f"{len(images):,} images, and a copy of each\n")
    titles = [f"{name}: {title}" for name in tools for title in ("recall", "precision", "processor seconds")]
    table = Table("copies", *titles)
    natural: Counter[tuple[str, str, str]] = Counter()
    for title, change in CHANGES.items():
        with tempfile.TemporaryDirectory() as folder:
            _make(Path(folder), images, change)
            row = [title]
            for name, tool in tools.items():
                began = processor_seconds()
                pairs = tool(Path(folder))
                seconds = processor_seconds() - began
                made = {pair for pair in pairs if _number(pair[0]) == _number(pair[1])}
                natural.update((name, *sorted(map(_number, pair))) for pair in pairs - made)
                precision = f"{len(made) / len(pairs):.1%}" if pairs else "-"
                row += [f"{len(made) / len(images):.1%}", precision, f"{seconds:.1f}"]
            table.row(*row)
    if others:
        lines = (f"{name}\t{images[int(a)]}\t{images[int(b)]}\t{count}" for (name, a, b), count in natural.items())
        others.write_text("tool\tone\tother\ttimes\n" + "".join(f"{line}\n" for line in sorted(lines)))


def our_pairs(folder: Path) -> Pairs:
    """Return every pair in one of our clusters; reading the images is part of the time."""
    clusters = find_duplicates(scan(folder, Preprocessing()).records)
    return {pair for cluster in clusters for pair in _pairs(record.path.name for record in cluster.records)}


def _imagededup() -> dict[str, Callable[[Path], Pairs]]:
    """Return imagededup's perceptual hash with its default threshold (10 of 64 bits) and with a stricter one."""
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


def _pairs(names: Iterable[str]) -> Iterable[tuple[str, str]]:
    return combinations(sorted(names), 2)


def _number(name: str) -> str:
    return name.split("_")[0]


def _sampled(folders: list[Path], limit: int) -> list[Path]:
    found = [path for folder in folders for path in images_in(folder)]
    chosen = np.random.default_rng(0).permutation(len(found))[:limit]
    return [found[index] for index in sorted(chosen)]


def _make(folder: Path, images: list[Path], change: Callable[[Image.Image], Image.Image]) -> None:
    """Write `real/<number>_original.*`, a link, and `fake/<number>_copy.png`."""
    for name in ("real", "fake"):
        (folder / name).mkdir()
    for number, path in enumerate(images):
        (folder / "real" / f"{number}_original{path.suffix}").symlink_to(path.resolve())
        change(decode(path, FULL_PX)[0]).save(folder / "fake" / f"{number}_copy.png")


if __name__ == "__main__":
    sys.exit(cli.run_cli(lambda argv: main()))
