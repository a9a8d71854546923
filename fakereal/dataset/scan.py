"""Find the labeled images in a folder; list every file that can't be used, with the reason."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from fakereal.cli import command_line
from fakereal.dataset.class_table import table_lines
from fakereal.dataset.label_file import read_labels
from fakereal.dataset.layout import LabelRules, Parts, Place, Unused, read_layout
from fakereal.decoding import has_image_content, is_image_name, read_bytes
from fakereal.errors import DataError, ImageRefused
from fakereal.files import is_folder, relative_name, walk
from fakereal.labels import FAKE, NAMES, REAL, known_folder_names, label_of_folder
from fakereal.preprocessing import Preprocessing
from fakereal.runtime import log, parallel_map

THUMBNAIL_PX = 16
"""Width and height of the gray thumbnail by which near-copies are found: 256 bytes per image."""

NO_RULES = LabelRules()
"""Only the names of the folders count."""

_PREDICTION_ENDINGS, _PREDICTION_SUFFIXES = ("_preds", "_predictions"), (".json", ".csv")
"""Of the files that predict the images of the folder beside them, see `fakereal.separation.pairing`."""

_UNREADABLE = "unreadable folder"
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
    class_folder: Path | None = None  # the folder that gives the label, or that the image lies in


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
    rules: LabelRules = NO_RULES  # what the user said about the folders


def labels_of(records: Sequence[Record]) -> np.ndarray:
    """Return the labels of records, int64 (n,)."""
    return np.array([record.label for record in records], dtype=np.int64)


def class_counts(records: Iterable[Record]) -> tuple[int, int]:
    """Return the number of fake and of real images."""
    counts = Counter(record.label for record in records)
    return counts[FAKE], counts[REAL]


def scan(root: Path, preprocessing: Preprocessing, rules: LabelRules = NO_RULES, one_class: bool = False) -> Dataset:
    """Read every image below `root` once, and return it with its label, split and source.

    The layouts are `<class>/`, `train|val|test/<class>/`, `<source>/<class>/` and `<class>/<source>/`, at any depth and
    mixed; `fakereal.dataset.layout` reads them. Which folder counts as what is logged before any image is read.

    Args:
        root: the folder.
        preprocessing: decides which images are identical: those whose preprocessed arrays are.
        rules: what the user says about folders.
        one_class: images of one class are enough.

    Raises:
        DataError: the folder is missing, or doesn't hold images of both classes (with `one_class`, of any), or a
            folder's class is unclear.
        ConfigError: a rule names no folder.
    """
    if not root.is_dir():
        state = "is a file" if root.exists() else "does not exist"
        raise DataError(f"{root}: {state}; expected a folder with {known_folder_names()}: check the path")
    wanted, skipped = _find(root, rules)
    records: list[Record] = []
    for item in parallel_map(lambda each: _read(*each, root, preprocessing), wanted, "reading images"):
        (records if isinstance(item, Record) else skipped).append(item)
    dataset = Dataset(root, _sorted(records, root), _sorted(skipped, root), rules)
    if not (one_class and records):
        _check_both_classes(dataset)
    return dataset


def _find(root: Path, rules: LabelRules) -> tuple[list[tuple[Path, Place]], list[Skipped]]:
    """Return the images with what their folders say, and the files that are none."""
    skipped: list[Skipped] = []
    images: dict[Parts, list[Path]] = defaultdict(list)
    for path in _files(root, skipped):
        reason = _why_no_image(path)
        if reason:
            skipped.append(Skipped(path, reason, is_image_name(path.name)))
        else:
            images[path.relative_to(root).parts[:-1]].append(path)
    places = _places(root, images, [item.path for item in skipped], rules)
    found = dict(Counter((path.relative_to(root).parts[:-1], place) for path, place in places))
    unreadable = [item for item in skipped if item.reason.startswith(_UNREADABLE)]
    found |= {(item.path.relative_to(root).parts, Unused(item.reason, state="unreadable")): 0 for item in unreadable}
    if found:
        log("\n".join(table_lines(str(root), found)))
    skipped += [Skipped(path, place.reason, place.failed) for path, place in places if isinstance(place, Unused)]
    return [(path, place) for path, place in places if isinstance(place, Place)], skipped


def _places(
    root: Path, images: Mapping[Parts, list[Path]], others: Sequence[Path], rules: LabelRules
) -> list[tuple[Path, Place | Unused]]:
    """Return what a file of labels, or else the folders, say of each image."""
    if rules.labels_file:
        every = [path for paths in images.values() for path in paths]
        return list(read_labels(rules.labels_file, root, every, rules).items())
    places = read_layout({folder: len(paths) for folder, paths in images.items()}, rules, str(root))
    classes = {place.folder: place.label for place in places.values() if isinstance(place, Place)}
    _check_predictions(root, classes, others, rules)
    return [(path, places[folder]) for folder, paths in images.items() for path in paths]


def _check_predictions(root: Path, classes: Mapping[Parts, int], files: Sequence[Path], rules: LabelRules) -> None:
    """Refuse a class folder that has predictions beside it: a raw folder, whose name may not be the truth.

    Args:
        root: the data set's folder.
        classes: the class folders with their labels.
        files: that are no images.
        rules: a folder that they name is fine.
    """
    by_name = {(*folder[:-1], folder[-1].lower()): folder for folder in classes if folder}
    for path in files:
        stem = path.stem.lower()
        ending = next((end for end in _PREDICTION_ENDINGS if stem.endswith(end)), None)
        if ending is None or path.suffix.lower() not in _PREDICTION_SUFFIXES:
            continue
        above, name = path.relative_to(root).parts[:-1], stem.removesuffix(ending)
        for folder in (by_name.get((*above, name)), by_name.get((*above, f"{name}_images"))):
            if folder and not rules.names(folder):
                name = "/".join(folder)
                raise DataError(
                    f"{root}: {name}/ has predictions beside it ({path.name}), so its name may not be the truth: sort"
                    f" its images with {command_line('separate', root.joinpath(*above))} --output data/clean, or go by"
                    f" the name with --class {name}={NAMES[classes[folder]]}"
                )


def _sorted(items: list, root: Path) -> tuple:
    return tuple(sorted(items, key=lambda item: relative_name(item.path, root)))


def _files(root: Path, skipped: list[Skipped]) -> Iterator[Path]:
    """Yield every file; links to folders are followed, to each folder once."""

    def refuse(folder: str, error: OSError) -> None:
        skipped.append(Skipped(Path(folder), f"{_UNREADABLE}: {error.strerror}"))

    def pass_over(path: str) -> None:
        skipped.append(Skipped(Path(path), "hidden, or left behind by a system", failed=False))

    for entry, entered in walk(root, refuse, follow_links=True, on_hidden=pass_over):
        if not is_folder(entry):
            yield Path(entry.path)
        elif not entered:
            reason = "folder already scanned under another name"
            skipped.append(Skipped(Path(entry.path), reason, failed=False))


def _why_no_image(path: Path) -> str:
    if path.name.startswith("."):
        return "hidden file"
    if not is_image_name(path.name) and not has_image_content(path):
        return f"not an image file name ({path.suffix.lower() or 'no extension'})"
    return ""


def _read(path: Path, place: Place, root: Path, preprocessing: Preprocessing) -> Record | Skipped:
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
        class_folder=root.joinpath(*place.folder),
    )


def thumbnail_of(image: np.ndarray) -> bytes:
    """Return a preprocessed image in gray, each of THUMBNAIL_PX x THUMBNAIL_PX pixels the mean of its area."""
    gray = Image.fromarray(image).convert("L")
    return gray.resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BOX).tobytes()


def _check_both_classes(dataset: Dataset) -> None:
    counts = class_counts(dataset.records)
    if all(counts):
        return
    if not (any(counts) or dataset.skipped):
        problem = "no files: put images into class folders, or check the path"
        raise DataError(f"{dataset.root}: {problem} ({known_folder_names()})")
    label = label_of_folder(dataset.root.resolve().name)
    if label is not None and not any(counts) and all(item.path.parent == dataset.root for item in dataset.skipped):
        raise DataError(
            f"{dataset.root}: a folder of {NAMES[label]} images by its name, without class folders in it: name the"
            f" folder that holds both classes, such as {dataset.root.resolve().parent}"
        )
    missing = f"a folder of {NAMES[counts.index(0)]} images" if any(counts) else "folders of fake and of real images"
    raise DataError(
        f"{dataset.root}: {counts[FAKE]} fake and {counts[REAL]} real images{_passed_over(dataset)}: add {missing}"
        f" ({known_folder_names()}), or say what a folder holds with --class NAME=fake|real"
    )


def _passed_over(dataset: Dataset) -> str:
    """Return the folders whose files were not used, with the reason, the most files first; unreadable ones before."""
    found: Counter[tuple[bool, str, str]] = Counter()
    images = [each for each in dataset.skipped if each.failed or each.reason.startswith("left out by")]
    for item in images or dataset.skipped:
        unreadable = item.reason.startswith(_UNREADABLE)
        folder = item.path if unreadable else item.path.parent
        found[not unreadable, relative_name(folder, dataset.root), item.reason] += 1
    rows = sorted(found.items(), key=lambda row: (row[0][0], -row[1], row[0]))
    texts = [
        f"{name}/ ({reason})" if not counted else f"{count:,} file{'s'[: count > 1]} in {name}/ ({reason})"
        for (counted, name, reason), count in rows
    ]
    return f"; passed over: {abbreviate(texts)}" if texts else ""


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
