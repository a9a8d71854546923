"""List the images of all inputs in the order of the results, and every entry that is not an image."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Protocol

from fakereal.decoding import SUFFIXES
from fakereal.errors import DataError
from fakereal.predict import sources
from fakereal.predict.names import Names
from fakereal.predict.sources import FoundImages

_MAX_DIGITS = 255  # of a file's number: more than file systems allow; archives have no such limit
_FILES = -1  # in place of a container's number, for items that are files

Stamp = tuple[int, int]
"""A file's size in bytes and modification time in ns; equal stamps mean an unchanged file."""


class Container(Protocol):
    """What holds images besides the file system: an archive, or an object store."""

    path: Path
    sequential: bool  # True: must be read in the order of the positions, by one thread

    def position(self, name: str) -> int:
        """Return the position of an image."""

    def read(self, name: str) -> bytes:
        """Return an image's content; may raise ImageRefused."""


@dataclass(frozen=True, slots=True)
class Item:
    """One image to predict, and its key in the result; a `pipeline.ImageSource`."""

    root: Path | Container  # the folder or the container
    name: str  # in the result: the path relative to the folder, with "/"
    key: int | str  # in the result: the number that is the stem, else the name
    problem: str | None = None  # why it can't be opened, None for a regular file
    member: str | None = None  # the name in the container

    @property
    def sequential(self) -> bool:
        """Return whether it must be opened after the items before it, by one thread."""
        return not isinstance(self.root, Path) and self.root.sequential

    def open(self) -> Path | bytes:
        """Return the path, or the content where it is in a container.

        Raises:
            ImageRefused: the container can't read it.
        """
        return self.root / self.name if isinstance(self.root, Path) else self.root.read(self.member or self.name)

    def stamp(self) -> Stamp | None:
        """Return the stamp of the file, or of the archive that it is in; None where there is none."""
        try:
            status = (self.root / self.name if isinstance(self.root, Path) else self.root.path).stat()
        except (OSError, ValueError):
            return None
        return status.st_size, status.st_mtime_ns


class Items(Sequence[Item]):
    """All items in the order of the result; created on access, since a million of them would fill the memory.

    Args:
        root: the folder that names are relative to.
        found: the images; their lists are emptied, to save memory.
        prefixes: what stands before the names of each element of `found`.
    """

    def __init__(self, root: Path, found: Sequence[FoundImages], prefixes: Sequence[str]) -> None:
        self._root, self._found, self._prefixes = root, found, prefixes
        self._problems = {
            prefix + name: problem
            for each, prefix in zip(found, prefixes, strict=True)
            for name, problem in each.problems.items()
        }
        names = [prefix + name for each, prefix in zip(found, prefixes, strict=True) for name in each.names]
        containers = array("i")  # for each name, the number of its container in `found`
        for number, each in enumerate(found):
            containers.extend([_FILES if each.archive is None else number] * len(each.names))
            each.names, each.problems = [], {}
        order, self.shared_numbers = _result_order(names)
        self.duplicates = len(names) - len(order)
        self.names = Names(names[place] for place in order)
        self._containers = array("i", (containers[place] for place in order))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: int) -> Item:
        name, container = self.names[number], self._containers[number]
        key = name if name in self.shared_numbers else _key(name)
        if container == _FILES:
            return Item(self._root, name, key, self._problems.get(name))
        source = self._found[container]
        member = source.inner + name[len(self._prefixes[container]) :]
        return Item(source.archive, name, key, self._problems.get(name), member)

    def reading_order(self) -> Iterable[int]:
        """Return the numbers of all items in the order in which they should be read."""
        if not any(each.archive is not None and each.archive.sequential for each in self._found):
            return range(len(self))
        return sorted(range(len(self)), key=self._position)

    def _position(self, number: int) -> tuple[int, int]:
        item = self[number]
        if not item.sequential or item.problem:
            return _FILES, number
        return self._containers[number], item.root.position(item.member)


@dataclass(frozen=True)
class Listing:
    """The contents of the inputs; every entry is in exactly one of the first three, or hidden."""

    items: Items  # in the order of the result: 2 before 10, then names
    other_files: tuple[str, ...]  # images neither by their names nor by their content
    skipped_folders: tuple[str, ...]  # sub-folders that were not searched, with "/" at the end
    shared_numbers: tuple[str, ...]  # names of items whose number occurs more than once
    root: Path = Path()  # absolute: what all names are relative to
    archive_folders: tuple[str, ...] = ()  # description of the archive's folder that root is, if any
    empty_inputs: tuple[str, ...] = ()  # inputs without images
    hidden: tuple[str, ...] = ()  # hidden files and folders


def list_images(inputs: Path | Sequence[Path | str], recursive: bool = False, list_file: Path | None = None) -> Listing:
    """List the images of all inputs; names are relative to the deepest folder that contains every input.

    An archive counts as a folder: as the one inside it, if there is one, that contains all of its images.

    Args:
        inputs: one or several folders, images, archives or patterns.
        recursive: search sub-folders too.
        list_file: see `sources.find_images`.

    Raises:
        DataError: an input doesn't exist, or there is no image.
    """
    inputs = [inputs] if isinstance(inputs, (str, Path)) else inputs
    found = sources.find_images([str(each) for each in inputs], list_file, recursive)
    root = sources.common_folder([each.base for each in found])
    prefixes = ["" if each.base == root else _relative(each.base, root) + "/" for each in found]
    bases = {prefix for prefix in prefixes if prefix}
    others = {prefix + name for each, prefix in zip(found, prefixes, strict=True) for name in each.other_files}
    folders = {prefix + name for each, prefix in zip(found, prefixes, strict=True) for name in each.skipped_folders}
    folders -= bases
    hidden = {prefix + name for each, prefix in zip(found, prefixes, strict=True) for name in each.hidden}
    empty = tuple(sorted({each.base for each in found if not each.names}))
    items = Items(Path(root), found, prefixes)
    inner = tuple(f"{each.inner} in {each.archive.path.name}" for each in found if each.inner and each.base == root)
    if not len(items):
        shown = ", ".join(map(str, inputs)) or f"--list {list_file}"
        raise DataError(_nothing_found(shown, len(others), len(folders)))
    skipped = tuple(sorted(others)), tuple(sorted(folders))
    return Listing(items, *skipped, tuple(items.shared_numbers), Path(root), inner, empty, tuple(sorted(hidden)))


def _relative(path: str, root: str) -> str:
    return os.path.relpath(path, root).replace(os.sep, "/")


def _key(name: str) -> int | str:
    """Like `predictions_json.key_of_file`, without a Path, since Python would keep 40 bytes of each name forever."""
    before, dot, after = name.rpartition(".")
    stem = before if dot else after
    return int(stem) if stem.isascii() and stem.isdigit() and len(stem) <= _MAX_DIGITS else name


def _result_order(names: list[str]) -> tuple[list[int], dict[str, None]]:
    """Return the places of the different names, numbers first; and the names whose number occurs more than once.

    Files of one number (`7.png` and `007.jpg`) have their names as keys, so that none hides another.
    """
    keys = list(map(_key, names))
    numbered = sorted((place for place, key in enumerate(keys) if isinstance(key, int)), key=names.__getitem__)
    numbered = _without_duplicates(sorted(numbered, key=keys.__getitem__), names)
    unique: list[int] = []
    shared: list[int] = []
    for _, group in groupby(numbered, key=keys.__getitem__):
        same = list(group)
        (unique if len(same) == 1 else shared).extend(same)
    named = [place for place, key in enumerate(keys) if isinstance(key, str)]
    named = _without_duplicates(sorted([*named, *shared], key=names.__getitem__), names)
    return unique + named, {names[place]: None for place in shared}


def _without_duplicates(places: list[int], names: list[str]) -> list[int]:
    """Keep the first place of each name; equal names are neighbors."""
    return [place for n, place in enumerate(places) if n == 0 or names[place] != names[places[n - 1]]]


def _nothing_found(shown: str, others: int, folders: int) -> str:
    advice = "add --recursive to search the sub-folders" if folders else "name the folder of images with --input FOLDER"
    counts = f"{others} other files and {folders} sub-folders"
    return f"{shown}: no images ({' '.join(SUFFIXES)}) there, only {counts}: {advice}"
