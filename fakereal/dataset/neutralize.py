"""One crop, size and JPEG encoding for all pictures, so that their files no longer tell fake from real.

Training does it on the fly (`settled`, `preprocessing_of`), or `write_copy` writes the pictures down; a network sees
the same arrays either way.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, replace
from itertools import chain, count
from pathlib import Path

import numpy as np

from fakereal.config import Config
from fakereal.dataset import image_metadata
from fakereal.dataset.scan import Dataset, Record, Skipped, skipped_lines
from fakereal.decoding import decode
from fakereal.errors import DataError, ImageRefused
from fakereal.files import locked_folders, relative_name, remove_partial_files, write_atomic
from fakereal.labels import FAKE, NAMES, REAL
from fakereal.preprocessing import Neutral, Preprocessing
from fakereal.runtime import log, parallel_map

SHARE = 0.75
"""Of the smaller class's short side. Both classes lose their finest detail then, and with it most of what an earlier
encoding left there; the blocks of an old JPEG are no longer 8 pixels wide."""

SIDES_PX = (28, 512)
"""Smallest and largest square: below, pictures of 32 px would lose what little they show; above, no network looks."""

QUALITIES = (60, 90)
"""Lowest and highest JPEG quality: below, little is left; above, an earlier encoding of a lower quality shows."""

NOTE = "neutralize.json"
"""In a copy's folder: its settings, and which pictures it is made of."""

_LOW = 0.1  # the size and quality that count for a class: a tenth of its pictures have less
_SAMPLE = 2000  # pictures of a class that are looked at


@dataclass(frozen=True)
class Copied:
    """What `write_copy` did."""

    folder: Path
    settings: Neutral
    written: int  # pictures, in this run
    kept: int  # pictures that an earlier, interrupted run had written
    skipped: tuple[Skipped, ...]  # files that are not in the copy, by path; what `scan` skipped among them

    @property
    def incomplete(self) -> bool:
        """Whether pictures are missing; other files are only listed."""
        return any(item.failed for item in self.skipped)


def settings_for(dataset: Dataset, side_px: int | None = None, quality: int | None = None) -> Neutral:
    """Chooses size and quality from the pictures so that both classes are really reduced; says it, and why, on stderr.

    Args:
        dataset: what `scan` found.
        side_px: a size to take in place of the chosen one.
        quality: a JPEG quality likewise.
    """
    found = {label: _facts_of(dataset, label) for label in (FAKE, REAL)}
    shorts = {label: np.array([min(each.width_px, each.height_px) for each in found[label]]) for label in found}
    sizes = {label: float(np.quantile(sides, _LOW)) for label, sides in shorts.items()}
    qualities = {label: _quality(each) for label, each in found.items()}
    chosen = Neutral(side_px or _side_for(min(sizes.values())), quality or _quality_for(min(qualities.values())))
    size = f"{chosen.side_px}x{chosen.side_px}"
    log(f"neutral: the centre square of every picture at {size} pixels, as JPEG of quality {chosen.quality}, 4:2:0")
    for label in found:
        said = f", JPEGs at quality {qualities[label]:.0f}" if qualities[label] < 100 else ""
        log(f"  nine in ten {NAMES[label]} pictures have a short side of at least {sizes[label]:.0f} pixels{said}")
        if enlarged := float(np.mean(shorts[label] < chosen.side_px)):
            log(f"  warning: {enlarged:.1%} of the {NAMES[label]} pictures are smaller and get enlarged, which shows")
    return chosen


def _facts_of(dataset: Dataset, label: int) -> list[image_metadata.FileFacts]:
    """Reads the headers of a class's pictures, of so many of them at most, drawn by their content."""
    records = [record for record in dataset.records if record.label == label]
    drawn = sorted(records, key=lambda record: record.sha256)[:_SAMPLE]
    found = [each for each in image_metadata.read_all_file_facts([record.path for record in drawn]) if each]
    if not found:
        raise DataError(f"{dataset.root}: expected the {NAMES[label]} pictures of a moment ago, found none: try again")
    return found


def _quality(found: list[image_metadata.FileFacts]) -> float:
    """Returns the JPEG quality that nine in ten of a class's pictures have at least; a PNG counts as 100."""
    return float(np.quantile([each.jpeg_quality or 100.0 for each in found], _LOW))


def _side_for(smallest_px: float) -> int:
    least = min(SIDES_PX[0], max(8, int(smallest_px)))  # icons are not enlarged, a JPEG block is left of them
    return min(max(round(SHARE * smallest_px), least), SIDES_PX[1])


def _quality_for(lowest: float) -> int:
    """What one class lost to its encoding long ago, the other must lose now."""
    return min(max(round(lowest), QUALITIES[0]), QUALITIES[1])


def resolve_neutral_settings(config: Config, dataset: Dataset) -> Config:
    """Returns the configuration with the neutral size and quality filled in, where they are wanted and not given."""
    wanted = config.neutralize
    if not wanted.enabled or (wanted.side_px and wanted.quality):
        return config
    chosen = settings_for(dataset, wanted.side_px, wanted.quality)
    return replace(config, neutralize=replace(wanted, **asdict(chosen)))


def preprocessing_of(config: Config, image_size_px: int) -> Preprocessing:
    """Returns how a run with a settled configuration reads its pictures, for a network of this size."""
    wanted = config.neutralize
    return Preprocessing(image_size_px, Neutral(wanted.side_px, wanted.quality) if wanted.enabled else None)


def write_copy(dataset: Dataset, out: Path, settings: Neutral) -> Copied:
    """Writes a neutral copy of every picture, in the same folders, as JPEG; `out/neutralize.json` records how.

    A run that was killed goes on when it is repeated. Nothing that was there before is changed or overwritten.

    Args:
        dataset: what `scan` found.
        out: a folder outside the data set: a new or empty one, or an earlier copy of the same pictures.
        settings: the size and quality.

    Raises:
        DataError: the folder is none of these, another run is at work there, or it can't be written.
    """
    note = _note(dataset, settings)
    _check_place(dataset.root, out, note)
    out.mkdir(parents=True, exist_ok=True)
    with locked_folders(out):
        _keep_note(out, {**note, "complete": False})
        remove_partial_files(out)
        outcomes = list(parallel_map(lambda each: _write(*each, settings), _places(dataset, out), "neutralizing"))
        new = [each for each in outcomes if isinstance(each, Skipped)]
        skipped = tuple(sorted((*dataset.skipped, *new), key=lambda item: item.path))
        left = [{"path": _name(item.path, dataset), "reason": item.reason} for item in skipped]
        _keep_note(out, {**note, "complete": True, "skipped": left})
    return Copied(out, settings, outcomes.count("written"), outcomes.count("kept"), skipped)


def summary(dataset: Dataset, copied: Copied) -> list[str]:
    """Returns lines for people: what there is now, and what is not in it."""
    size = f"{copied.settings.side_px}x{copied.settings.side_px} pixels"
    done = f"{copied.written + copied.kept} pictures in {copied.folder}: {size}, JPEG quality {copied.settings.quality}"
    return [f"{done}, 4:2:0", *skipped_lines(replace(dataset, skipped=copied.skipped))]


def _note(dataset: Dataset, settings: Neutral) -> dict[str, object]:
    names = (f"{_name(record.path, dataset)} {record.sha256}" for record in dataset.records)
    content = hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()
    return {
        "settings": {"crop": "centre square", **asdict(settings), "subsampling": "4:2:0"},
        "pictures": len(dataset.records),
        "content": content[:16],
    }


def _name(path: Path, dataset: Dataset) -> str:
    return relative_name(path, dataset.root)


def _keep_note(out: Path, note: dict[str, object]) -> None:
    write_atomic(out / NOTE, json.dumps(note, indent=4).encode())


def _check_place(root: Path, out: Path, note: dict[str, object]) -> None:
    inside, outside = out.resolve(), root.resolve()
    if inside.is_relative_to(outside) or outside.is_relative_to(inside):
        raise DataError(f"{out}: expected a folder outside of {root}, found one inside or around it: choose another")
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: expected a folder, found a file: choose another name")
    if not out.exists() or all(path.match(f".{NOTE}.*.part") for path in out.iterdir()):
        return
    earlier = _earlier_note(out)
    if any(earlier.get(key) != value for key, value in note.items()):
        found = "a copy of other pictures or with other settings" if earlier else "other files"
        raise DataError(f"{out}: expected a new or empty folder, found {found}: choose another, or delete it first")


def _earlier_note(out: Path) -> dict[str, object]:
    try:
        found = json.loads((out / NOTE).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _places(dataset: Dataset, out: Path) -> list[tuple[Record, Path]]:
    """Return each image's place in the copy: `name.jpg`, or `name.png.jpg` where that is taken, and so on.

    Names that differ in case only count as the same, for the disks that think so.
    """
    taken: set[str] = set()
    places: list[tuple[Record, Path]] = []
    for record in sorted(dataset.records, key=lambda record: record.path.suffix != ".jpg"):  # these keep their names
        old = record.path.relative_to(dataset.root)
        numbered = (old.with_name(f"{old.name}.{number}.jpg") for number in count(2))
        free = (
            place
            for place in chain([old.with_suffix(".jpg"), old.with_name(f"{old.name}.jpg")], numbered)
            if str(place).casefold() not in taken
        )
        place = next(free)
        taken.add(str(place).casefold())
        places.append((record, out / place))
    return places


def _write(record: Record, place: Path, settings: Neutral) -> str | Skipped:
    if os.path.lexists(place):
        return "kept" if _is_neutral(place, settings) else Skipped(record.path, f"another file is at {place}")
    try:
        image, _ = decode(record.path, settings.side_px)
    except ImageRefused as error:
        return Skipped(record.path, str(error))
    write_atomic(place, settings.encode(image))
    return "written"


def _is_neutral(place: Path, settings: Neutral) -> bool:
    found = image_metadata.read_file_facts(place)
    side = settings.side_px
    return found is not None and (found.format, found.width_px, found.height_px) == ("JPEG", side, side)
