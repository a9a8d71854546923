"""What is to be predicted: the pictures of a folder, each with its place, and everything that isn't one."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from fakereal.errors import DataError
from fakereal.predictions_json import key_of_file, prediction_for, sort_key
from fakereal.preprocessing import SUFFIXES, is_picture_name


@dataclass(frozen=True, slots=True)
class Item:
    """One place in the result; small, since all of a folder's are kept."""

    root: Path  # the folder
    name: str  # the path relative to the folder, with "/"
    key: int | str  # what the result is found by: the number that is the stem, else the name
    problem: str | None = None  # why it can't even be opened, None for a regular file

    @property
    def path(self) -> Path:
        """Where it lies on disk."""
        return self.root / self.name


@dataclass(frozen=True)
class Listing:
    """What a folder holds; every entry of it is in exactly one of the first three lists."""

    items: tuple[Item, ...]  # in the order of the result: 2 before 10, then names
    others: tuple[str, ...]  # files that are no pictures by name
    folders: tuple[str, ...]  # sub-folders that were not looked into, with "/" at the end
    shared: tuple[str, ...]  # those of the items whose number another file has too


def list_images(source: Path, recursive: bool = False) -> Listing:
    """Lists the pictures of a folder, or the one picture that `source` is.

    Args:
        source: a folder, or a single picture.
        recursive: look into sub-folders too (symbolic links to folders are not followed: they may form a ring).

    Raises:
        DataError: nothing is there, or no picture.
    """
    if not _is_folder(source):
        return Listing((_single(source),), (), (), ())
    items, others, folders = [], [], []
    for found in _walk(source, Path(), recursive):
        match found:
            case Item():
                items.append(found)
            case str() if found.endswith("/"):
                folders.append(found)
            case _:
                others.append(found)
    items, shared = _keep_apart(items)
    listing = Listing(tuple(sorted(items, key=_order)), tuple(sorted(others)), tuple(sorted(folders)), shared)
    if not items:
        raise DataError(_nothing_found(source, listing))
    return listing


def _is_folder(source: Path) -> bool:
    try:
        return stat.S_ISDIR(source.stat().st_mode)
    except OSError as error:
        found = "nothing there" if isinstance(error, FileNotFoundError) else error.strerror
        raise DataError(
            f"{source}: expected a folder of images, found {found}: put images there, or name their folder"
            " with --input FOLDER"
        ) from error


def _single(source: Path) -> Item:
    if not is_picture_name(source):
        raise DataError(
            f"{source}: expected a folder of images or one image ({' '.join(SUFFIXES)}), found another file:"
            " unpack an archive first, and name the folder with --input FOLDER"
        )
    return Item(source.parent, source.name, key_of_file(Path(source.name)), _problem_of(source))


def _walk(root: Path, below: Path, recursive: bool) -> Iterator[Item | str]:
    """Yields an item for each place in the result and the names of the rest, those of folders ending in "/"."""
    try:
        entries = list(os.scandir(root / below))
    except OSError as error:
        if below == Path():
            raise DataError(f"{root}: expected a readable folder, found: {error.strerror or error}") from error
        name = below.as_posix()
        yield Item(root, name, name, f"expected a readable folder, found: {error.strerror or error}")
        return
    for entry in entries:
        relative = below / entry.name
        is_folder = _leads_to_folder(entry)
        if is_picture_name(relative):
            yield _item(root, relative, _problem_of(root / relative))
        elif not is_folder:
            yield relative.as_posix()
        if is_folder and recursive and not entry.is_symlink():
            yield from _walk(root, relative, recursive)
        elif is_folder and not is_picture_name(relative):
            yield relative.as_posix() + "/"


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into a closed folder
        return False


def _item(root: Path, relative: Path, problem: str | None) -> Item:
    return Item(root, relative.as_posix(), key_of_file(relative), problem)


def _problem_of(path: Path) -> str | None:
    """Says why a path can't be opened as a file: opening a pipe would wait for ever."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "expected a file, found a link that leads nowhere"
    except OSError as error:
        return f"expected a readable file, found: {error.strerror or error}"
    if stat.S_ISREG(mode):
        return None
    return f"expected a file, found {'a folder' if stat.S_ISDIR(mode) else 'a pipe, socket or device'}"


def _keep_apart(items: list[Item]) -> tuple[list[Item], tuple[str, ...]]:
    """Gives files of one number (`7.png` and `007.jpg`) their names as keys, so that none hides another."""
    count = Counter(item.key for item in items)
    shared = sorted((item for item in items if count[item.key] > 1), key=_order)
    apart = [replace(item, key=item.name) if count[item.key] > 1 else item for item in items]
    return apart, tuple(item.name for item in shared)


def _order(item: Item) -> tuple[bool, int, str, str]:
    return *sort_key(prediction_for(item.key, None)), item.name


def _nothing_found(source: Path, listing: Listing) -> str:
    advice = "add --recursive to look into them" if listing.folders else "name the folder of images with --input FOLDER"
    return (
        f"{source}: expected images ({' '.join(SUFFIXES)}), found {len(listing.others)} other files and"
        f" {len(listing.folders)} sub-folders: {advice}"
    )
