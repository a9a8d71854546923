"""Development tool: fetch the public images behind models/pretrained.h5 and lay them out for train_model.py.

    python -m tools.assemble_pretraining_set --output pretraining_set --clones DIR [--sets SETS]

models/SOURCES.csv names every public image: repository, commit, path, label, source, generator, license, and whether it
trains (`train`), belongs to a source that is left out of training and chooses epoch, threshold and band (`val`), or to
one that only measures the result (`test`).
git fetches each repository at that commit. `--sets` adds unpacked image sets, `cifake/train/REAL|FAKE` and
`<set>/real|fake`, as training images.

Images of both classes take the same way: at most 1,024 px long, as most websites deliver them, and one JPEG encoding
(quality 95, 4:4:4), so that neither size nor format tells fake from real. The result is
`train|val|test/<source>/<class>/*.jpg`. What is there already is kept; run the tool again after a failed download.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from fakereal.decoding import decode
from fakereal.errors import DataError, ImageRefused
from fakereal.files import write_atomic
from fakereal.labels import NAMES, SPLITS, label_of_folder
from fakereal.runtime import log, parallel_map, progress_bar

SOURCES = Path(__file__).resolve().parents[1] / "models" / "SOURCES.csv"
COLUMNS = ("repo", "commit", "path", "tile", "label", "source", "generator", "licence", "split")  # of SOURCES.csv
LONGEST_PX = 1024
_FULL_PX = 2**16  # more than any image has: nothing is decoded at a reduced size
SMALLEST_PX = 100  # of the shorter side: smaller public images hold too little; those of CIFAKE have 32 by design
CIFAKE_IMAGES = 12_000  # of each class: a minority of the set
# Of each subject, in the order of the number in a file's name: `0001.jpg` shows an airplane, `0001 (2).jpg` a car.
CIFAKE_SUBJECTS = ("airplane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_FILTERS = (Image.Resampling.BICUBIC, Image.Resampling.LANCZOS, Image.Resampling.BOX)  # websites use all of these


@dataclass(frozen=True)
class SourceImage:
    """One image of the training set and where its bytes come from."""

    split: str  # train, val or test
    source: str
    label: str  # fake or real
    name: str  # unique and stable: repository, path and tile, or a path below --sets
    read: Callable[[], bytes]
    tile: str = ""  # where the file is a sheet of images: which one of them, see `cut_tile`
    smallest_px: int = SMALLEST_PX  # of the shorter side; smaller images are left out


def main(arguments: list[str] | None = None) -> int:
    """Run the tool; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where the training set goes")
    parser.add_argument("--clones", type=Path, required=True, metavar="DIR", help="where the repositories are kept")
    parser.add_argument("--sources", type=Path, default=SOURCES, metavar="FILE", help="default: models/SOURCES.csv")
    parser.add_argument("--sets", type=Path, metavar="DIR", help="unpacked image sets to add")
    parser.add_argument("--host", default="https://github.com", metavar="URL", help="where the repositories are")
    options = parser.parse_args(arguments)
    try:
        images = public_images(options.sources, options.clones, options.host)
    except (DataError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    images += set_images(options.sets) if options.sets else []
    results = list(parallel_map(partial(place, options.output), images, "assembling"))
    for image, result in zip(images, results, strict=True):
        if result not in ("written", "kept"):
            log(f"left out: {image.name}: {result}")
    counts = Counter("written" if result in ("written", "kept") else "left out" for result in results)
    print(f"{options.output}: {counts['written']:,} images, {counts['left out']:,} left out")
    return 0 if counts["written"] else 2


def public_images(sources: Path, clones: Path, host: str) -> list[SourceImage]:
    """Fetch the repositories that SOURCES.csv names; return their images, without those that could not be fetched."""
    rows = read_sources(sources)
    wanted = sorted({(row["repo"], row["commit"]) for row in rows})
    fetched = {}
    with progress_bar("fetching repositories", len(wanted)) as advance:
        for repo, commit in wanted:
            try:
                fetched[repo, commit] = fetch(repo, commit, clones, host)
            except DataError as error:
                count = sum((row["repo"], row["commit"]) == (repo, commit) for row in rows)
                log(f"left out: {count:,} images of {repo}: {error}")
            advance(1)
    return [
        SourceImage(
            row["split"],
            row["source"],
            row["label"],
            f"{row['repo']}/{row['path']} {row['tile']}".rstrip(),
            partial(_blob, fetched[row["repo"], row["commit"]], row["commit"], row["path"]),
            row["tile"],
        )
        for row in rows
        if (row["repo"], row["commit"]) in fetched
    ]


def read_sources(path: Path) -> list[dict[str, str]]:
    """Return the rows of a list of public images such as SOURCES.csv.

    Raises:
        DataError: a row has too many or too few columns, or a split or label that does not exist.
    """
    rows = []
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        for row in reader:
            # A comma that is not quoted moves every later column: the split would be read as part of the licence.
            if set(row) != set(COLUMNS) or row["split"] not in SPLITS or row["label"] not in NAMES:
                raise DataError(
                    f"{path}, line {reader.line_num}: expected {', '.join(COLUMNS)} with label fake or real and split"
                    f" train, val or test, found {list(row.values())}: quote values that contain a comma"
                )
            rows.append(row)
    return rows


def fetch(repo: str, commit: str, clones: Path, host: str) -> Path:
    """Return a bare clone that holds the commit, without its history.

    Raises:
        DataError: git could not fetch it.
    """
    folder = clones / f"{repo.replace('/', '+')}.git"
    if not folder.exists():
        _git("init", "--quiet", "--bare", str(folder))
    if subprocess.run(["git", "-C", folder, "cat-file", "-e", commit], capture_output=True, check=False).returncode:
        _git("-C", str(folder), "fetch", "--quiet", "--depth", "1", f"{host}/{repo}", commit)
    return folder


def _git(*arguments: str) -> bytes:
    done = subprocess.run(["git", *arguments], capture_output=True, check=False)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").splitlines() or ["no reason given"]
        reason = next((line for line in lines if line.startswith("fatal:")), lines[-1])
        raise DataError(f"git: {reason}")
    return done.stdout


def _blob(folder: Path, commit: str, path: str) -> bytes:
    return _git("-C", str(folder), "cat-file", "blob", f"{commit}:{path}")


def set_images(sets: Path) -> list[SourceImage]:
    """Return the images of unpacked sets; of CIFAKE the training part only, since its test part judges the result."""
    images = []
    for folder in sorted(path for path in sets.iterdir() if path.is_dir()):
        inside = folder / "train" if folder.name == "cifake" else folder
        for name in NAMES:
            label = NAMES.index(name)
            paths = [
                path for path in inside.rglob("*") if path.is_file() and label_of_folder(path.parent.name) == label
            ]
            paths.sort(key=lambda path: hashlib.sha256(path.relative_to(sets).as_posix().encode()).digest())
            paths = paths[:CIFAKE_IMAGES] if folder.name == "cifake" else paths
            images += [
                SourceImage(
                    "train",
                    _source_in_set(path, folder.name),
                    name,
                    path.relative_to(sets).as_posix(),
                    path.read_bytes,
                    smallest_px=0 if folder.name == "cifake" else SMALLEST_PX,
                )
                for path in paths
            ]
    return images


def _source_in_set(path: Path, set_name: str) -> str:
    """Return the source of a set's image: each subject of CIFAKE is one, since a single source is drawn too rarely."""
    if set_name != "cifake":
        return set_name
    number = re.search(r"\((\d+)\)$", path.stem)
    return f"cifake_{CIFAKE_SUBJECTS[int(number[1]) - 1 if number else 0]}"


def place(output: Path, image: SourceImage) -> str:
    """Write one image below `output`; return `written`, `kept` (it was there) or why it is left out."""
    digest = hashlib.sha256(image.name.encode()).digest()
    target = output / image.split / image.source / image.label / f"{digest[:8].hex()}.jpg"
    if target.exists():
        return "kept"
    try:
        rgb = cut_tile(decode(image.read(), _FULL_PX if image.tile else LONGEST_PX)[0], image.tile)
    except (DataError, ImageRefused, OSError) as error:
        return str(error)
    if min(rgb.size) < image.smallest_px:
        return f"shorter side of {min(rgb.size)} px, less than {image.smallest_px}"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(target, delivered(rgb, _FILTERS[digest[8] % len(_FILTERS)]))
    return "written"


def cut_tile(image: Image.Image, tile: str) -> Image.Image:
    """Return one image of a sheet.

    Args:
        image: the sheet at its full size.
        tile: a place in a grid, such as `0/4 2/4` for the first of four rows and the third of four columns; or
            `256x250+512+0` for 256 by 250 pixels that begin at x = 512 and y = 0; or empty, for the whole image.
    """
    if not tile:
        return image
    if "x" in tile:
        width, height, left, top = map(int, re.fullmatch(r"(\d+)x(\d+)\+(\d+)\+(\d+)", tile).groups())
    else:
        (row, rows), (column, columns) = (map(int, part.split("/")) for part in tile.split())
        width, height = image.width // columns, image.height // rows
        left, top = column * width, row * height
    return image.crop((left, top, left + width, top + height))


def delivered(image: Image.Image, resampling: Image.Resampling) -> bytes:
    """Return an RGB image as most websites deliver it: at most LONGEST_PX long, as a JPEG."""
    if max(image.size) > LONGEST_PX:
        scale = LONGEST_PX / max(image.size)
        image = image.resize([max(1, round(side * scale)) for side in image.size], resampling)
    image.info.clear()
    content = io.BytesIO()
    image.save(content, "JPEG", quality=95, subsampling="4:4:4")
    return content.getvalue()


if __name__ == "__main__":
    sys.exit(main())
