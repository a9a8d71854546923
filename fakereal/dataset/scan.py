"""Find the labeled images in a folder; list every file that can't be used, with the reason."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from fakereal.decoding import SUFFIXES, is_image_name, read_bytes
from fakereal.errors import DataError, ImageRefused
from fakereal.files import is_folder, relative_name, walk
from fakereal.labels import (
    FAKE,
    NAMES,
    REAL,
    is_plain_class_folder,
    known_folder_names,
    label_of_folder,
    split_of_folder,
)
from fakereal.preprocessing import Preprocessing
from fakereal.runtime import parallel_map

THUMBNAIL_PX = 16
"""Width and height of the gray thumbnail by which near-copies are found: 256 bytes per image."""

_NAMED = 3  # names in an abbreviated list


@dataclass(frozen=True)
class Record:
    """One labeled image."""

    path: Path  # as reachable from the current folder (root / relative)
    label: int  # 0 fake, 1 real
    source: str  # "" where the layout names none
    sha256: str  # of the file's bytes
    content: str  # hash of the preprocessed array: images that are identical to the network share it
    split: str | None  # the given split "train" | "val" | "test", or None
    shorter_px: int = 0  # the shorter side of the image as stored
    thumbnail: bytes = field(default=b"", repr=False)  # gray, 16 rows of 16 pixels; b"": none


@dataclass(frozen=True)
class Skipped:
    """A file that is not a labeled image."""

    path: Path
    reason: str  # one line why
    failed: bool = True  # False: not an image by its name, so nothing is lost


@dataclass(frozen=True)
class Dataset:
    """All files of a folder."""

    root: Path
    records: tuple[Record, ...]  # sorted by relative posix path
    skipped: tuple[Skipped, ...]  # likewise


@dataclass(frozen=True)
class _Place:
    """What the names of a file's folders say about it."""

    label: int
    source: str
    split: str | None


def labels_of(records: Sequence[Record]) -> np.ndarray:
    """Return the labels of records, int64 (n,)."""
    return np.array([record.label for record in records], dtype=np.int64)


def class_counts(records: Iterable[Record]) -> tuple[int, int]:
    """Return the number of fake and of real images."""
    counts = Counter(record.label for record in records)
    return counts[FAKE], counts[REAL]


def scan(root: Path, preprocessing: Preprocessing) -> Dataset:
    """Read every image below `root` once, and return it with its label, split and source.

    The layouts are `<class>/`, `train|val|test/<class>/` and `<source>/<class>/`, at any depth and mixed: of a file's
    folders the one with a class name gives the label, and those above it the split and the source.

    Args:
        root: the folder.
        preprocessing: decides which images are identical: those whose preprocessed arrays are.

    Raises:
        DataError: the folder is missing, or doesn't hold images of both classes.
    """
    if not root.is_dir():
        state = "is a file" if root.exists() else "does not exist"
        raise DataError(f"{root}: {state}; expected a folder with {known_folder_names()}: check the path")
    wanted: list[tuple[Path, _Place]] = []
    skipped: list[Skipped] = []
    for path in _files(root, skipped):
        folders = path.relative_to(root).parts[:-1]
        place = _place(folders)
        reason = _why_unused(path, folders, place)
        if place is None or reason:
            skipped.append(Skipped(path, reason, is_image_name(path.name)))
        else:
            wanted.append((path, place))
    records: list[Record] = []
    for item in parallel_map(lambda each: _read(*each, preprocessing), wanted, "reading images"):
        (records if isinstance(item, Record) else skipped).append(item)
    dataset = Dataset(root, _sorted(records, root), _sorted(skipped, root))
    _check_both_classes(dataset)
    return dataset


def _sorted(items: list, root: Path) -> tuple:
    return tuple(sorted(items, key=lambda item: relative_name(item.path, root)))


def _files(root: Path, skipped: list[Skipped]) -> Iterator[Path]:
    """Yield every file; links to folders are followed, to each folder once."""

    def refuse(folder: str, error: OSError) -> None:
        skipped.append(Skipped(Path(folder), f"unreadable folder: {error.strerror}"))

    for entry, entered in walk(root, refuse, follow_links=True):
        if not is_folder(entry):
            yield Path(entry.path)
        elif not entered:
            reason = "folder already scanned under another name"
            skipped.append(Skipped(Path(entry.path), reason, failed=False))


def _place(folders: tuple[str, ...]) -> _Place | None:
    """Return what the folders from the root down to a file say, or None where they don't name exactly one class."""
    depths = [depth for depth, name in enumerate(folders) if label_of_folder(name) is not None]
    # The plain words fake and real win: fake/nature/ and photos/fake/ are folders of fakes.
    depths = [depth for depth in depths if is_plain_class_folder(folders[depth])] or depths
    labels = {label_of_folder(folders[depth]) for depth in depths}
    if len(labels) == 1:
        above = folders[: depths[-1]]
        splits = [split for name in above if (split := split_of_folder(name))]
        source = "/".join(name for name in above if not split_of_folder(name))
        return _Place(labels.pop(), source, splits[-1] if splits else None)
    return None


def _why_unused(path: Path, folders: tuple[str, ...], place: _Place | None) -> str:
    if path.name.startswith("."):
        return "hidden file"
    if path.suffix.lower() not in SUFFIXES:
        return f"not an image file name ({path.suffix.lower() or 'no extension'})"
    if place is None and any(label_of_folder(name) is not None for name in folders):
        return "in folders of both classes, so its label is ambiguous"
    return "" if place else "not in a folder of fake or of real images"


def _read(path: Path, place: _Place, preprocessing: Preprocessing) -> Record | Skipped:
    try:
        data = read_bytes(path)
        image, info = preprocessing.read_with_info(data)
    except ImageRefused as error:
        return Skipped(path, str(error))
    return Record(
        path=path,
        label=place.label,
        source=place.source,
        sha256=hashlib.sha256(data).hexdigest(),
        content=hashlib.sha256(image).hexdigest(),
        split=place.split,
        shorter_px=min(info.width_px, info.height_px),
        thumbnail=thumbnail_of(image),
    )


def thumbnail_of(image: np.ndarray) -> bytes:
    """Return a preprocessed image in gray, each of THUMBNAIL_PX x THUMBNAIL_PX pixels the mean of its area."""
    gray = Image.fromarray(image).convert("L")
    return gray.resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BOX).tobytes()


def _check_both_classes(dataset: Dataset) -> None:
    counts = class_counts(dataset.records)
    if all(counts):
        return
    if any(counts):
        missing = NAMES[counts.index(0)]
        problem = f"{counts[FAKE]} fake and {counts[REAL]} real images: add a folder of {missing} images"
    elif dataset.skipped:
        reason = dataset.skipped[0].reason
        problem = f"no usable image among {len(dataset.skipped)} files (the first: {reason}): name the class folders"
    else:
        problem = "no files: put images into class folders, or check the path"
    raise DataError(f"{dataset.root}: {problem} ({known_folder_names()})")


def scanned_bytes(record: Record) -> bytes:
    """Return the bytes of an image's file, which must be those that were scanned: results are kept under their hash.

    Raises:
        ImageRefused: the file is gone, or its content has changed.
    """
    data = read_bytes(record.path)
    if record.sha256 and hashlib.sha256(data).hexdigest() != record.sha256:
        raise ImageRefused("missing", "the file has changed since it was scanned")
    return data


def skipped_lines(dataset: Dataset) -> list[str]:
    """Return one line per reason, with the number of files and the first few of them."""
    by_reason: dict[str, list[str]] = {}
    for item in dataset.skipped:
        by_reason.setdefault(item.reason, []).append(relative_name(item.path, dataset.root))
    return [f"skipped {len(paths)}: {reason} ({abbreviate(paths)})" for reason, paths in by_reason.items()]


def abbreviate(names: list[str]) -> str:
    """Return the first few names, and the number of the others."""
    more = f", and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
