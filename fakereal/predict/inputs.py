"""What is to be predicted: every picture of the inputs, each with its place, and everything that isn't one."""

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
from fakereal.predict.sources import FoundImages

_LONGEST_NUMBER = 255  # digits, which is more than a file system allows; archives have no such limit
_FILES = -1  # where items lie that lie in no archive

Stamp = tuple[int, int]
"""A file's size in bytes and the time of its last change in ns: equal ones mean that nothing changed."""


class Container(Protocol):
    """What holds pictures other than the file system: an archive, or whatever gives bytes for a name."""

    path: Path
    in_order: bool  # True: they must be read in the order of their positions, by one thread

    def position(self, name: str) -> int:
        """Returns where a picture lies."""

    def read(self, name: str) -> bytes:
        """Returns a picture's content, or raises ImageRefused."""


@dataclass(frozen=True, slots=True)
class Item:
    """One place in the result."""

    root: Path | Container  # the folder or the archive
    name: str  # what the result calls it: the path relative to the folder, with "/"
    key: int | str  # what the result is found by: the number that is the stem, else the name
    problem: str | None = None  # why it can't even be opened, None for a regular file
    member: str | None = None  # what an archive calls it

    @property
    def in_order(self) -> bool:
        """Says whether it must be opened after those that lie before it, by one thread."""
        return not isinstance(self.root, Path) and self.root.in_order

    def open(self) -> Path | bytes:
        """Returns what the preprocessing reads: a path, or the content where there is none.

        Raises:
            ImageRefused: the archive doesn't give it.
        """
        return self.root / self.name if isinstance(self.root, Path) else self.root.read(self.member or self.name)

    def stamp(self) -> Stamp | None:
        """Returns the stamp of the file, or of the archive that it is in; None where there is none."""
        try:
            status = (self.root / self.name if isinstance(self.root, Path) else self.root.path).stat()
        except (OSError, ValueError):
            return None
        return status.st_size, status.st_mtime_ns


class Names(Sequence[str]):
    """Many names in few bytes: as objects, a million of them would take 80 MB."""

    def __init__(self, names: Iterable[str]) -> None:
        text, ends = bytearray(), array("Q", [0])
        for name in names:
            text += name.encode("utf-8", "surrogatepass")  # a name that is no UTF-8 reaches us with surrogates
            ends.append(len(text))
        self._text, self._ends = bytes(text), ends

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, number: int) -> str:
        if not 0 <= number < len(self):
            raise IndexError(f"expected a number from 0 to {len(self) - 1}, found {number}")
        return self._text[self._ends[number] : self._ends[number + 1]].decode("utf-8", "surrogatepass")


class Items(Sequence[Item]):
    """All places in the order of the result; made when asked for, since a million of them would fill the memory."""

    def __init__(self, root: Path, found: Sequence[FoundImages], prefixes: Sequence[str]) -> None:
        self._root, self._found, self._prefixes = root, found, prefixes
        self._problems = {
            prefix + name: problem
            for each, prefix in zip(found, prefixes, strict=True)
            for name, problem in each.problems.items()
        }
        names = [prefix + name for each, prefix in zip(found, prefixes, strict=True) for name in each.names]
        homes = array("i")
        for number, each in enumerate(found):
            homes.extend([_FILES if each.archive is None else number] * len(each.names))
            each.names, each.problems = [], {}
        order, self.shared = _ordered(names)
        self.twice = len(names) - len(order)
        self.names, self._homes = Names(names[place] for place in order), array("i", (homes[place] for place in order))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: int) -> Item:
        name, home = self.names[number], self._homes[number]
        key = name if name in self.shared else _key(name)
        if home == _FILES:
            return Item(self._root, name, key, self._problems.get(name))
        source = self._found[home]
        member = source.inner + name[len(self._prefixes[home]) :]
        return Item(source.archive, name, key, self._problems.get(name), member)

    def reading_order(self) -> Iterable[int]:
        """Returns the numbers of all items in the order in which they are best read."""
        if not any(each.archive is not None and each.archive.in_order for each in self._found):
            return range(len(self))
        return sorted(range(len(self)), key=self._position)

    def _position(self, number: int) -> tuple[int, int]:
        item = self[number]
        if not item.in_order or item.problem:
            return _FILES, number
        return self._homes[number], item.root.position(item.member)


@dataclass(frozen=True)
class Listing:
    """What the inputs hold; every entry of them is in exactly one of the first three."""

    items: Items  # in the order of the result: 2 before 10, then names
    others: tuple[str, ...]  # files that are no pictures by name
    folders: tuple[str, ...]  # sub-folders that were not looked into, with "/" at the end
    shared: tuple[str, ...]  # those of the items whose number another file has too
    root: Path = Path()  # absolute: what all names are relative to
    archive_folders: tuple[str, ...] = ()  # the one folder of the one archive that root is, in words
    empty: tuple[str, ...] = ()  # inputs that hold no picture


def list_images(inputs: Path | Sequence[Path | str], recursive: bool = False, list_file: Path | None = None) -> Listing:
    """Lists the pictures of all inputs; names are relative to the deepest folder that holds every input.

    An archive counts as a folder: as that one in it, where there is one, that holds all of its pictures.

    Args:
        inputs: one or several folders, pictures, archives or patterns.
        recursive: look into sub-folders too.
        list_file: see `sources.find`.

    Raises:
        DataError: nothing is there, or no picture.
    """
    inputs = [inputs] if isinstance(inputs, (str, Path)) else inputs
    found = sources.find_images([str(each) for each in inputs], list_file, recursive)
    root = sources.common_folder([each.base for each in found])
    prefixes = ["" if each.base == root else _relative(each.base, root) + "/" for each in found]
    bases = {prefix for prefix in prefixes if prefix}
    others = {prefix + name for each, prefix in zip(found, prefixes, strict=True) for name in each.others}
    folders = {prefix + name for each, prefix in zip(found, prefixes, strict=True) for name in each.folders} - bases
    empty = tuple(sorted({each.base for each in found if not each.names}))
    items = Items(Path(root), found, prefixes)
    inner = tuple(f"{each.inner} in {each.archive.path.name}" for each in found if each.inner and each.base == root)
    if not len(items):
        shown = ", ".join(map(str, inputs)) or f"--list {list_file}"
        raise DataError(_nothing_found(shown, len(others), len(folders)))
    left = tuple(sorted(others)), tuple(sorted(folders))
    return Listing(items, *left, tuple(items.shared), Path(root), inner, empty)


def _relative(path: str, root: str) -> str:
    return os.path.relpath(path, root).replace(os.sep, "/")


def _key(name: str) -> int | str:
    """Like `predictions_json.key_of_file`, without a Path, since Python would keep 40 bytes of each name for ever."""
    stem = name.rpartition(".")[0]
    return int(stem) if stem.isascii() and stem.isdigit() and len(stem) <= _LONGEST_NUMBER else name


def _ordered(names: list[str]) -> tuple[list[int], dict[str, None]]:
    """Returns the places of different names, numbers first; and the names of those that share their number.

    Files of one number (`7.png` and `007.jpg`) have their names as keys, so that none hides another.
    """
    keys = list(map(_key, names))
    numbered = sorted((place for place, key in enumerate(keys) if isinstance(key, int)), key=names.__getitem__)
    numbered = _once(sorted(numbered, key=keys.__getitem__), names)
    alone: list[int] = []
    shared: list[int] = []
    for _, group in groupby(numbered, key=keys.__getitem__):
        same = list(group)
        (alone if len(same) == 1 else shared).extend(same)
    named = [place for place, key in enumerate(keys) if isinstance(key, str)]
    named = _once(sorted([*named, *shared], key=names.__getitem__), names)
    return alone + named, {names[place]: None for place in shared}


def _once(places: list[int], names: list[str]) -> list[int]:
    """Leaves out what was found twice; equal names are neighbours."""
    return [place for n, place in enumerate(places) if n == 0 or names[place] != names[places[n - 1]]]


def _nothing_found(shown: str, others: int, folders: int) -> str:
    advice = "add --recursive to look into them" if folders else "name the folder of images with --input FOLDER"
    found = f"{others} other files and {folders} sub-folders"
    return f"{shown}: expected images ({' '.join(SUFFIXES)}), found {found}: {advice}"
