"""List the images of all inputs in the order of the results, and every entry that is not an image."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, overload

from fakereal.decoding import SUFFIXES
from fakereal.errors import DataError
from fakereal.predict import sources
from fakereal.predict.image_table import ImageRow, ImageTable, Place
from fakereal.predict.sources import FoundImages
from fakereal.predictions_json import number_in

_READ_AT_ONCE = 500  # items, where all are iterated

Stamp = tuple[int, int]
"""A file's size in bytes and modification time in ns; equal stamps mean an unchanged file."""


class Container(Protocol):
    """What holds images besides the file system: an archive, or an object store."""

    path: Path
    sequential: bool  # True: must be read in the order of the places, by one thread

    def read(self, member: str | Place) -> bytes:
        """Return an image's content; may raise ImageRefused."""


@dataclass(frozen=True, slots=True)
class Item:
    """One image to predict, and its key in the result; a `pipeline.ImageSource`."""

    root: Path | Container  # the folder or the container
    name: str  # in the result: the path relative to the folder, with "/"
    key: int | str  # in the result: the number that is the stem, else the name
    problem: str | None = None  # why it can't be opened, None for a regular file
    member: str | Place | None = None  # in the container: the name or, in a tar, the place of the content

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
        found: the sources of the images.
        prefixes: what stands before the names of each element of `found`.
        images: those of all sources; arranged here.
    """

    def __init__(self, root: Path, found: Sequence[FoundImages], prefixes: Sequence[str], images: ImageTable) -> None:
        self._root, self._images = root, images
        self._sources = {each.number: (each, prefix) for each, prefix in zip(found, prefixes, strict=True)}
        images.arrange((number, each.inner, prefix) for number, (each, prefix) in self._sources.items())
        self.shared_numbers, self.duplicates = images.shared_numbers, images.duplicates

    def __len__(self) -> int:
        return len(self._images)

    @overload
    def __getitem__(self, number: int) -> Item: ...

    @overload
    def __getitem__(self, number: slice) -> list[Item]: ...

    def __getitem__(self, number: int | slice) -> Item | list[Item]:
        if isinstance(number, slice):
            start, stop, _ = number.indices(len(self))
            return [self._item(row) for row in self._images.rows(start, stop)]
        if not 0 <= number < len(self):
            raise IndexError(f"expected a number from 0 to {len(self) - 1}, got {number}")
        return self[number : number + 1][0]

    def __iter__(self) -> Iterator[Item]:
        for start in range(0, len(self), _READ_AT_ONCE):
            yield from self[start : start + _READ_AT_ONCE]

    def names(self) -> Iterator[str]:
        """Yield the names of all items."""
        return (item.name for item in self)

    def reading_order(self) -> Iterable[int]:
        """Return the numbers of all items in the order in which they should be read."""
        found = [each for each, _ in self._sources.values() if each.archive is not None]
        sequential = [each.number for each in found if each.archive.sequential]
        return self._images.by_place(sequential) if sequential else range(len(self))

    def _item(self, row: ImageRow) -> Item:
        key = int(number_in(row.name)) if row.numbered else row.name
        source, prefix = self._sources[row.source]
        if source.archive is None:
            return Item(self._root, row.name, key, row.problem)
        member = row.place or source.inner + row.name[len(prefix) :]
        return Item(source.archive, row.name, key, row.problem, member)


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
    images = ImageTable()
    found = sources.find_images(images, [str(each) for each in inputs], list_file, recursive)
    root = sources.common_folder([each.base for each in found])
    prefixes = ["" if each.base == root else _relative(each.base, root) + "/" for each in found]
    bases = {prefix for prefix in prefixes if prefix}
    others = {prefix + name for each, prefix in zip(found, prefixes, strict=True) for name in each.other_files}
    folders = {prefix + name for each, prefix in zip(found, prefixes, strict=True) for name in each.skipped_folders}
    folders -= bases
    hidden = {prefix + name for each, prefix in zip(found, prefixes, strict=True) for name in each.hidden}
    empty = tuple(sorted({each.base for each in found if not each.count}))
    items = Items(Path(root), found, prefixes, images)
    inner = tuple(f"{each.inner} in {each.archive.path.name}" for each in found if each.inner and each.base == root)
    if not len(items):
        shown = ", ".join(map(str, inputs)) or f"--list {list_file}"
        raise DataError(_nothing_found(shown, len(others), len(folders)))
    skipped = tuple(sorted(others)), tuple(sorted(folders))
    return Listing(items, *skipped, items.shared_numbers, Path(root), inner, empty, tuple(sorted(hidden)))


def _relative(path: str, root: str) -> str:
    return os.path.relpath(path, root).replace(os.sep, "/")


def _nothing_found(shown: str, others: int, folders: int) -> str:
    advice = "add --recursive to search the sub-folders" if folders else "name the folder of images with --input FOLDER"
    counts = f"{others} other files and {folders} sub-folders"
    return f"{shown}: no images ({' '.join(SUFFIXES)}) there, only {counts}: {advice}"
