"""Match the entries of a prediction file to images: exactly, or else in the only way that is possible.

An entry that matches no image exactly may differ from its image in case, extension and leading folders, provided that
exactly one image comes into question, and that no other entry means it. Indices that seem to count from another number
than the files are refused: each would label the neighbor of its image.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path, PurePosixPath

from fakereal.decoding import is_image_name
from fakereal.errors import DataError
from fakereal.files import display_path
from fakereal.prediction_files import Document, Problem
from fakereal.predictions_json import Prediction

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
    def _names(self) -> list[tuple[Path, str]]:
        """Each image with its path relative to the folder, and to the folder within that holds all images, if any.

        An image outside the folder is named by its absolute path.
        """
        prefix = f"{self.folder.as_posix().rstrip('/')}/"
        names = [(image, _composed(image.as_posix().removeprefix(prefix))) for image in self.images]
        shared = _shared_folders(name.split("/")[:-1] for _, name in names)
        if not shared or shared[0] == "":  # the second: absolute paths
            return names
        return [*names, *((image, name.split("/", len(shared))[-1]) for image, name in names)]

    @cached_property
    def exact(self) -> dict[Key, list[Path]]:
        """The images by number and by path."""
        found: dict[Key, list[Path]] = {}
        for image, name in self._names:
            found.setdefault(name, []).append(image)
            if "/" not in name and (number := _number_of(name)) is not None:
                found.setdefault(number, []).append(image)
        return found

    @cached_property
    def loose(self) -> dict[_LooseKey, list[Path]]:
        """The images by path without case and extension."""
        found: dict[_LooseKey, list[Path]] = {}
        for image, name in self._names:
            found.setdefault(_loose_key(name.split("/")), []).append(image)
        return found

    @cached_property
    def numbers(self) -> frozenset[int]:
        """The numbers that files are named by, wherever they lie."""
        return frozenset(number for image in self.images if (number := _number_of(image.name)) is not None)

    @cached_property
    def siblings(self) -> frozenset[str]:
        """The names of the folders beside this one, in lower case."""
        beside = self.folder.parent.iterdir() if self.folder.parent.is_dir() else ()
        return frozenset(path.name.casefold() for path in beside if path != self.folder and path.is_dir())


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
    shared = len(_shared_folders(_parts(item.image)[:-1] for item in document.predictions if item.image))
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
    own_name = index.folder.name.casefold()
    cuts = {cut for cut, part in enumerate(parts[:-1], start=1) if cut <= shared or part.casefold() == own_name}
    cuts = [0, *sorted(cut for cut in cuts if parts[cut - 1].casefold() not in index.siblings)]
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
    ends = {min(files) - min(indices), max(files) - max(indices)}
    best = max((1, -1, *(ends if len(ends) == 1 else ())), key=fitting)
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
    """Return the number that a key is, or that the file it names is called by."""
    if not isinstance(key, str):
        return key
    stem = _stem(key.rpartition("/")[2])
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


def _stem(name: str) -> str:
    """Like `Path.stem`, without a Path: there may be a million of them."""
    dot = name.rfind(".")
    return name[:dot] if 0 < dot < len(name) - 1 else name


def _parts(name: str) -> list[str]:
    return [part for part in _composed(name.replace("\\", "/")).split("/") if part not in ("", ".")]


def _loose_key(parts: Sequence[str]) -> _LooseKey:
    name = parts[-1] if parts else ""
    if not is_image_name(name, hidden=True):
        return tuple(part.casefold() for part in parts)
    number = _number_of(name)
    return (*(part.casefold() for part in parts[:-1]), _stem(name).casefold() if number is None else number)


def _shared_folders(folders: Iterable[Sequence[str]]) -> Sequence[str]:
    """Return the leading folders that all paths have in common."""
    shared: Sequence[str] | None = None
    for each in folders:
        if shared is None or each[: len(shared)] != shared:
            pairs = zip(each, each if shared is None else shared, strict=False)
            shared = [one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]
        if not shared:
            break
    return shared or ()
