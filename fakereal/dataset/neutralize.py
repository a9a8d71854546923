"""Neutralize images: one crop, size and JPEG encoding for all, so that their files no longer tell fake from real.

Training does it on the fly (`resolve_neutral_settings`, `preprocessing_of`), and `write_copy` writes a neutral copy;
a network sees the same arrays either way.
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
from fakereal.errors import DataError, ImageRefused
from fakereal.files import locked_folders, relative_name, remove_partial_files, write_atomic
from fakereal.labels import FAKE, NAMES, REAL
from fakereal.preprocessing import Neutral, Preprocessing
from fakereal.runtime import log, parallel_map

SHARE = 0.75
"""Of the short side of the class with the smaller images. Both classes lose their finest detail, and with it most
traces of an earlier encoding: the blocks of an old JPEG are no longer 8 pixels wide."""

SIDES_PX = (28, 512)
"""Smallest and largest square: below, images of 32 px would lose what little they show; above, no network looks."""

QUALITIES = (60, 90)
"""Lowest and highest JPEG quality: below, little is left; above, an earlier encoding of lower quality shows."""

NOTE = "neutralize.json"
"""File in a copy's folder with its settings, and a hash of the images that it was made of."""

_LOW_QUANTILE = 0.1  # of the sizes and qualities in a class: nine in ten of its images have at least this
_MAX_PER_CLASS = 2000  # headers read


@dataclass(frozen=True)
class NeutralCopy:
    """Result of `write_copy`."""

    folder: Path
    settings: Neutral
    written: int  # images, in this run
    kept: int  # images that an earlier, interrupted run wrote
    skipped: tuple[Skipped, ...]  # files that are not in the copy, by path, including those that `scan` skipped

    @property
    def incomplete(self) -> bool:
        """Whether images are missing; other files are only listed."""
        return any(item.failed for item in self.skipped)


def settings_for(dataset: Dataset, side_px: int | None = None, quality: int | None = None) -> Neutral:
    """Choose size and quality so that the images of both classes are reduced; log the choice and the reason.

    Args:
        dataset: what `scan` found.
        side_px: the size, where it is not to be chosen.
        quality: the JPEG quality, likewise.
    """
    found = {label: _facts_of(dataset, label) for label in (FAKE, REAL)}
    shorts = {label: np.array([min(each.width_px, each.height_px) for each in found[label]]) for label in found}
    sizes = {label: float(np.quantile(sides, _LOW_QUANTILE)) for label, sides in shorts.items()}
    qualities = {label: _quality(each) for label, each in found.items()}
    chosen = Neutral(side_px or _side_for(min(sizes.values())), quality or _quality_for(min(qualities.values())))
    size = f"{chosen.side_px}x{chosen.side_px}"
    log(f"neutral: the center square of every image at {size} pixels, as JPEG of quality {chosen.quality}, 4:2:0")
    for label in found:
        jpeg = f" and a JPEG quality of at least {qualities[label]:.0f}" if qualities[label] < 100 else ""
        log(f"  nine in ten {NAMES[label]} images have a short side of at least {sizes[label]:.0f} pixels{jpeg}")
        if enlarged := float(np.mean(shorts[label] < chosen.side_px)):
            log(f"  warning: {enlarged:.1%} of the {NAMES[label]} images are smaller: enlarging them leaves traces")
    return chosen


def _facts_of(dataset: Dataset, label: int) -> list[image_metadata.FileFacts]:
    """Read the headers of a class's images, sampled by their content where there are many."""
    records = [record for record in dataset.records if record.label == label]
    sample = sorted(records, key=lambda record: record.sha256)[:_MAX_PER_CLASS]
    found = [each for each in image_metadata.read_all_file_facts([record.path for record in sample]) if each]
    if not found:
        raise DataError(f"{dataset.root}: none of the {NAMES[label]} images can be read any more: run it again")
    return found


def _quality(found: list[image_metadata.FileFacts]) -> float:
    """Return the JPEG quality that nine in ten images have at least; other formats count as 100."""
    return float(np.quantile([each.jpeg_quality or 100.0 for each in found], _LOW_QUANTILE))


def _side_for(smallest_px: float) -> int:
    least = min(SIDES_PX[0], max(8, int(smallest_px)))  # icons are not enlarged, a JPEG block is left of them
    return min(max(round(SHARE * smallest_px), least), SIDES_PX[1])


def _quality_for(lowest: float) -> int:
    """What one class lost to its encoding long ago, the other has to lose now."""
    return min(max(round(lowest), QUALITIES[0]), QUALITIES[1])


def resolve_neutral_settings(config: Config, dataset: Dataset) -> Config:
    """Return the configuration with neutral size and quality filled in, where they are wanted and not given."""
    wanted = config.neutralize
    if not wanted.enabled or (wanted.side_px and wanted.quality):
        return config
    chosen = settings_for(dataset, wanted.side_px, wanted.quality)
    return replace(config, neutralize=replace(wanted, **asdict(chosen)))


def preprocessing_of(config: Config, image_size_px: int) -> Preprocessing:
    """Return the preprocessing of a resolved configuration, for a network of this image size."""
    wanted, views = config.neutralize, config.views
    neutral = Neutral(wanted.side_px, wanted.quality) if wanted.enabled else None
    return Preprocessing(image_size_px, neutral, views.square, views.crops)


def write_copy(dataset: Dataset, out: Path, settings: Neutral) -> NeutralCopy:
    """Write a neutral copy of every image, in the same folders, as JPEG; `out/neutralize.json` records the settings.

    Repeating an interrupted run resumes it. No existing file is changed or overwritten.

    Args:
        dataset: what `scan` found.
        out: a folder outside the data set: a new or empty one, or an earlier copy of the same images.
        settings: the size and quality.

    Raises:
        DataError: the folder is none of these, another run is writing to it, or it can't be written.
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
    return NeutralCopy(out, settings, outcomes.count("written"), outcomes.count("kept"), skipped)


def summary(dataset: Dataset, copied: NeutralCopy) -> list[str]:
    """Return lines for people: what was written, and what is not in it."""
    size = f"{copied.settings.side_px}x{copied.settings.side_px} pixels"
    done = f"{copied.written + copied.kept} images in {copied.folder}: {size}, JPEG quality {copied.settings.quality}"
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
        raise DataError(f"{out}: expected a folder outside of {root}, got one inside or around it: choose another")
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: expected a folder, got a file: choose another name")
    if not out.exists() or all(path.match(f".{NOTE}.*.part") for path in out.iterdir()):
        return
    earlier = _earlier_note(out)
    if any(earlier.get(key) != value for key, value in note.items()):
        content = "a copy of other images or with other settings" if earlier else "other files"
        raise DataError(f"{out}: the folder already contains {content}: choose another, or delete it first")


def _earlier_note(out: Path) -> dict[str, object]:
    try:
        found = json.loads((out / NOTE).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _places(dataset: Dataset, out: Path) -> list[tuple[Record, Path]]:
    """Return each image's place in the copy: `name.jpg`, or `name.png.jpg` where that is taken, and so on.

    Names that differ in case only count as the same, as on file systems that ignore case.
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
        return "kept" if _is_neutral(place, settings) else Skipped(record.path, f"another file is already at {place}")
    try:
        image, _ = Preprocessing(neutral=settings).decode(record.path)
    except ImageRefused as error:
        return Skipped(record.path, str(error))
    write_atomic(place, settings.encode(image))
    return "written"


def _is_neutral(place: Path, settings: Neutral) -> bool:
    found = image_metadata.read_file_facts(place)
    side = settings.side_px
    return found is not None and (found.format, found.width_px, found.height_px) == ("JPEG", side, side)
