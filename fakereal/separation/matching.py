"""Match the entries of a prediction file to images: exactly, or else in the only way that is possible.

An entry that matches no image exactly may differ from its image in case, extension and leading folders, provided that
exactly one image comes into question, and that no other entry means it. Indices that seem to count from another number
than the files are refused: each would label the neighbor of its image.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path, PurePosixPath

from fakereal.decoding import is_image_name
from fakereal.errors import DataError
from fakereal.files import display_path
from fakereal.prediction_files import Document, Problem
from fakereal.predictions_json import Prediction, key_of_file

Key = int | str
_MAX_DIGITS = 18  # of a number; int() refuses numbers of 5,000 digits
_LooseKey = tuple[str | int, ...]  # folders and stem, in lower case; the stem as a number where it is one


@dataclass(frozen=True)
class Match:
    """An entry with its image."""

    prediction: Prediction
    image: Path
    is_exact: bool


@dataclass(frozen=True)
class Matching:
    """Which entry of a document means which image."""

    matches: tuple[Match, ...]
    problems: tuple[Problem, ...]  # one for each entry that means none, or could mean several
    ambiguous: Mapping[Path, str]  # images that an entry could mean beside others, with a sentence


@dataclass(frozen=True)
class ImageIndex:
    """The images of a folder, to be found by what entries call them."""

    folder: Path
    images: tuple[Path, ...]

    @cached_property
    def _names(self) -> dict[Path, set[PurePosixPath]]:
        """Each image's path relative to the folder, and to the folder within that holds all images, if there is one.

        An image outside the folder is named by its absolute path.
        """
        inside = [image.relative_to(self.folder) for image in self.images if image.is_relative_to(self.folder)]
        shared = _shared_folders([path.parts[:-1] for path in inside]) if len(inside) == len(self.images) else ()
        names = {}
        for image in self.images:
            path = image.relative_to(self.folder) if image.is_relative_to(self.folder) else image
            name = PurePosixPath(_composed(path.as_posix()))
            names[image] = {name, PurePosixPath(*name.parts[len(shared) :])}
        return names

    @cached_property
    def exact(self) -> dict[Key, list[Path]]:
        """The images by number and by path."""
        found: dict[Key, list[Path]] = {}
        for image, names in self._names.items():
            for key in {key for name in names for key in (key_of_file(name), name.as_posix())}:
                found.setdefault(key, []).append(image)
        return found

    @cached_property
    def loose(self) -> dict[_LooseKey, list[Path]]:
        """The images by path without case and extension."""
        found: dict[_LooseKey, list[Path]] = {}
        for image, names in self._names.items():
            for key in {_loose_key(name.parts) for name in names}:
                found.setdefault(key, []).append(image)
        return found

    @cached_property
    def numbers(self) -> frozenset[int]:
        """The numbers that files are named by, wherever they lie."""
        return frozenset(number for image in self.images if (number := _number_of(image.name)) is not None)


def match_exactly(document: Document, index: ImageIndex) -> Matching:
    """Return which entry means which image, for documents whose names are known to be right."""
    return _matching(document, index, [(item, *_find_exact(item.key, index)) for item in document.predictions])


def match(document: Document, index: ImageIndex, name: str, shift: int | None = None) -> Matching:
    """Return which entry means which image.

    Args:
        document: the predictions.
        index: the images.
        name: what options call the document.
        shift: what to add to each index, and to each name that is a number; None: nothing, unless that is in doubt.

    Raises:
        DataError: the indices seem to be shifted against the files, or the shift doesn't fit them.
    """
    _check_shift(document, index, name, shift)
    shared = len(_shared_folders([_parts(item.image)[:-1] for item in document.predictions if item.image]))
    found = [(item, *_find(_shifted(item.key, shift or 0), index, shared)) for item in document.predictions]
    return _matching(document, index, found)


def _matching(document: Document, index: ImageIndex, found: Sequence[tuple[Prediction, list[Path], bool]]) -> Matching:
    """Return the entries that mean one image, and that no other means in another way.

    Args:
        document: the predictions.
        index: the images.
        found: each prediction with the images that it may mean, and whether they have the exact name.
    """
    keys: dict[Path, set[Key]] = {}
    for item, images, _ in found:
        for image in images:
            keys.setdefault(image, set()).add(item.key)
    matches, problems, ambiguous = [], [], {}
    for item, images, is_exact in found:
        if len(images) == 1 and (is_exact or len(keys[images[0]]) == 1):
            matches.append(Match(item, images[0], is_exact))
            continue
        problems.append(_problem(item.key, images, document, index))
        if len(images) > 1:
            ambiguous.update(dict.fromkeys(images, problems[-1].text.removeprefix(f"{problems[-1].file}: ")))
    return Matching(tuple(matches), tuple(problems), ambiguous)


def _find_exact(key: Key, index: ImageIndex) -> tuple[list[Path], bool]:
    return index.exact.get(_composed(key) if isinstance(key, str) else key, []), True


def _find(key: Key, index: ImageIndex, shared: int) -> tuple[list[Path], bool]:
    """Return the images that a key may mean, and whether it is their exact name.

    Args:
        key: a number or a name.
        index: the images.
        shared: number of leading folders that all names of the document share; they may be unknown here.
    """
    exact = _find_exact(key, index)
    if exact[0] or isinstance(key, int):
        return exact
    parts = _parts(key)
    own = [
        n for n, part in enumerate(parts[:-1], start=1) if part.casefold() == _composed(index.folder.name).casefold()
    ]
    cuts = sorted({*range(shared + 1), *own})
    return list(dict.fromkeys(image for cut in cuts for image in index.loose.get(_loose_key(parts[cut:]), ()))), False


def _problem(key: Key, images: Sequence[Path], document: Document, index: ImageIndex) -> Problem:
    file, folder = display_path(document.path), display_path(index.folder.name)
    entry = f"index {key}" if isinstance(key, int) else f"image {display_path(key)!r}"
    if not images:
        return Problem(f"{file}: {entry}: the folder has no such image", file, f"for no image in {folder}/", entry)
    names = ", ".join(display_path(image.name) for image in images)
    if len(images) == 1:
        return Problem(
            f"{file}: {entry}: another entry means {names}, too", file, "for the image of another entry", entry
        )
    return Problem(
        f"{file}: {entry}: {len(images)} images match ({names})", file, "that could mean several images", entry
    )


# Indices that count from another number than the files


def _check_shift(document: Document, index: ImageIndex, name: str, shift: int | None) -> None:
    keys = [*(item.key for item in document.predictions), *(problem.key for problem in document.problems)]
    indices = {number for key in keys if (number := _number_of(key)) is not None}
    files = index.numbers

    def fitting(by: int) -> int:
        return len({number + by for number in indices} & files)

    if shift == 0 or not fitting(0):
        return
    if shift is not None:
        if fitting(shift) < fitting(0):
            raise DataError(
                f"{display_path(document.path)}: --index-shift {name}={shift} doesn't fit: {fitting(shift):,} of"
                f" {len(indices):,} indices then name a file, without it {fitting(0):,}: leave it out"
            )
        return
    best = max((1, -1, min(files) - min(indices), max(files) - max(indices)), key=fitting)
    counts_from_0 = 0 in indices and 0 not in files
    if counts_from_0 or fitting(best) > fitting(0):
        best = 1 if counts_from_0 and fitting(best) <= fitting(1) else best
        raise DataError(
            f"{display_path(document.path)}: its indices run from {min(indices)} to {max(indices)}, but the files in"
            f" {display_path(index.folder.name)}/ are numbered from {min(files)} to {max(files)}:"
            f" pass --index-shift {name}={best} if index {min(indices)} means file {min(indices) + best},"
            f" or --index-shift {name}=0 if index {min(files)} means file {min(files)}"
        )


def _number_of(key: Key | None) -> int | None:
    if not isinstance(key, str):
        return key
    stem = PurePosixPath(key).stem
    return int(stem) if stem.isascii() and stem.isdigit() and len(stem) <= _MAX_DIGITS else None


def _shifted(key: Key, shift: int) -> Key:
    number = _number_of(key)
    if shift == 0 or number is None:
        return key
    if isinstance(key, int):
        return number + shift
    path = PurePosixPath(key)
    return str(path.with_name(f"{number + shift:0{len(path.stem)}}{path.suffix}"))


# Names


def _composed(name: str) -> str:
    """Compose accents: macOS stores é as two characters, and an entry written there must match its file anywhere."""
    return unicodedata.normalize("NFC", name)


def _parts(name: str) -> tuple[str, ...]:
    return PurePosixPath(_composed(name.replace("\\", "/"))).parts


def _loose_key(parts: Sequence[str]) -> _LooseKey:
    name = parts[-1] if parts else ""
    stem = PurePosixPath(name).stem if is_image_name(name, hidden=True) else name
    number = _number_of(name) if stem != name else None
    return (*(part.casefold() for part in parts[:-1]), stem.casefold() if number is None else number)


def _shared_folders(folders: Collection[Sequence[str]]) -> tuple[str, ...]:
    """Return the leading folders that all paths have in common."""
    levels = zip(*folders, strict=False) if folders else ()
    return tuple(level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels))
