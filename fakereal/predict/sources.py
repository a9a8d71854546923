"""Find images in folders, single files, patterns, lists of paths, archives and object stores; opens no image."""

# Strings, not Path, because there may be a million of them.
# ruff: noqa: PTH100, PTH110, PTH112, PTH114, PTH116, PTH118, PTH119, PTH120

from __future__ import annotations

import glob
import os
import posixpath
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from fakereal.decoding import SUFFIXES, file_type, has_image_content, is_image_name
from fakereal.errors import DataError, FakeRealError
from fakereal.files import is_folder, is_hidden, walk
from fakereal.predict import containers
from fakereal.predict.containers import (
    Archive,
    ObjectStore,
    connect_store,
    is_archive_name,
    is_unsafe,
    open_archive,
    store_reason,
)
from fakereal.predict.image_table import ImageTable, Place
from fakereal.runtime import log

_CHUNK_BYTES = 2**16


@dataclass
class FoundImages:
    """The contents of one source; every entry is an image, or in exactly one of the lists."""

    images: ImageTable  # those of all sources
    base: str  # absolute: the folder, or the archive and a folder in it, that the names are relative to
    number: int = field(init=False)  # of this source, from 0
    count: int = 0  # of its images
    other_files: list[str] = field(default_factory=list)  # images neither by their names nor by their content
    hidden: list[str] = field(default_factory=list)  # hidden files and folders, see `files.is_hidden`
    skipped_folders: list[str] = field(default_factory=list)  # not searched, with "/" at the end
    archive: Archive | ObjectStore | None = None  # what contains the images, None: the file system
    inner: str = ""  # the folder in the archive that is the base, "" or ending in "/"

    def __post_init__(self) -> None:
        self.number = self.images.new_source()

    def add(self, name: str, problem: str | None = None, place: Place | None = None) -> None:
        """Add an image: its name with "/", and why it can't be opened."""
        self.images.add(self.number, name, problem, place)
        self.count += 1


def find_images(
    images: ImageTable, inputs: Sequence[str], list_file: Path | None, recursive: bool
) -> list[FoundImages]:
    """Search every input, and every path in the list.

    Args:
        images: takes what is found.
        inputs: folders, images, archives, addresses, or patterns such as `photos/**/*.jpg`.
        list_file: contains paths (not patterns), one per line or separated by NUL; `-` is standard input.
        recursive: search sub-folders too, except symbolic links, which may form a ring.

    Raises:
        DataError: an input doesn't exist or can't contain images. A path in a list becomes a problem instead.
    """
    found: list[FoundImages] = []
    named: list[str] = []  # single files, absolute
    for value in inputs:
        if "://" in value:
            found.append(of_url(images, value, recursive))
        elif glob.has_magic(value) and not os.path.lexists(value):
            found += _of_pattern(images, value, recursive)
        else:
            found += _of_path(images, value, recursive, named)
    if named:
        found.append(_of_files(images, named, [os.path.dirname(path) for path in named]))
    if list_file is not None:
        found += _of_list(images, list_file, recursive)
    return found


def _of_path(images: ImageTable, value: str, recursive: bool, named: list[str]) -> list[FoundImages]:
    try:
        is_folder = stat.S_ISDIR(os.stat(value).st_mode)
    except (OSError, ValueError) as error:
        raise DataError(f"{value}: {_why_missing(error)}: check the path, or name other images or folders") from error
    if is_folder:
        return [of_folder(images, value, recursive)]
    if is_archive_name(value):
        return [of_archive(images, value)]
    if not _is_image(value):
        found = file_type(value)
        raise DataError(
            f"{value}: expected a folder of images, an image ({' '.join(SUFFIXES)}) or an archive"
            f" ({' '.join(containers.ARCHIVE_SUFFIXES)}), got another file{f' ({found.name})' if found else ''}: name"
            " the images with --input, or list them with --list FILE"
        )
    named.append(_absolute_file(value))
    return []


def _why_missing(error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file or folder"
    return getattr(error, "strerror", None) or str(error)


def _is_image(path: str) -> bool:
    """Say whether a file that the user named is an image, by its name or by its content."""
    return is_image_name(os.path.basename(path), hidden=True) or (problem_of(path) is None and has_image_content(path))


def _of_pattern(images: ImageTable, pattern: str, recursive: bool) -> list[FoundImages]:
    """Return everything that matches; names are relative to the fixed part of the pattern."""
    parts = Path(pattern).parts
    first = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    base = Path(_absolute(str(Path(*parts[:first]))))
    try:
        # Unlike the module glob, Path.glob follows no links to folders in **.
        matches = sorted(map(str, base.glob("/".join(parts[first:]))))
    except (OSError, ValueError) as error:
        reason = f"{pattern}: invalid pattern ({error}); a valid one is 'photos/**/*.jpg'"
        raise DataError(reason) from error
    if not matches:
        raise DataError(f"{pattern}: no file matches this pattern: check it with `ls`")
    return _of_many(images, matches, recursive, str(base))


def _of_list(images: ImageTable, list_file: Path, recursive: bool) -> list[FoundImages]:
    """Return the images that a list names."""
    name = "standard input" if str(list_file) == "-" else str(list_file)
    try:
        if str(list_file) == "-":
            if sys.stdin.isatty():
                log("enter paths, one per line; end with Ctrl-D:")
            paths = list(_paths_in(sys.stdin.buffer))
        else:
            with open(list_file, "rb") as file:
                paths = list(_paths_in(file))
    except OSError as error:
        raise DataError(f"--list: can't read {name}: {error.strerror or error}") from error
    if not paths:
        raise DataError(f"--list: no paths in {name}: write one per line, or separate them by NUL")
    if url := next((path for path in paths if "://" in path and not os.path.lexists(path)), None):
        raise DataError(f"--list: expected paths, got {url} in {name}: name addresses with --input")
    return _of_many(images, paths, recursive)


def _paths_in(file: BinaryIO) -> Iterator[str]:
    """Yield the paths of a list; its first piece decides whether they are separated by NUL or by line ends."""
    rest = file.read(_CHUNK_BYTES).removeprefix(b"\xef\xbb\xbf")
    if rest.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError("--list: expected paths in UTF-8, got UTF-16: save the list as UTF-8")
    end = b"\0" if b"\0" in rest else b"\n"
    while piece := file.read(_CHUNK_BYTES):
        *whole, rest = (rest + piece).split(end)
        yield from _decoded(whole, end)
    yield from _decoded(rest.split(end), end)


def _decoded(paths: Sequence[bytes], end: bytes) -> Iterator[str]:
    for path in paths:
        if name := path if end == b"\0" else path.rstrip(b"\r"):
            yield os.fsdecode(name)


def _of_many(images: ImageTable, paths: Sequence[str], recursive: bool, base: str | None = None) -> list[FoundImages]:
    """Return the images at each path; one that is missing, or a damaged archive, becomes an image with a problem."""
    found, names = [], []
    others, hidden = [], []
    for path in paths:
        if is_hidden(os.path.basename(path)):
            hidden.append(_absolute_file(path))
        elif _is_image(path):
            names.append(_absolute_file(path))
        elif os.path.isdir(path):
            found.append(of_folder(images, path, recursive, strict=False))
        elif is_archive_name(path):
            found.append(of_archive(images, path, strict=False))
        elif os.path.exists(path):
            others.append(_absolute_file(path))
        else:
            names.append(_absolute_file(path))
    files = [*names, *others, *hidden]
    # The pattern may contain "..", so that matches lie outside of its fixed part.
    below = base is not None and all(path.startswith(os.path.join(base, "")) for path in files)
    folders = [base] if below else [os.path.dirname(path) for path in files]
    return [*found, _of_files(images, names, folders, others, hidden)] if files else found


def _of_files(
    images: ImageTable,
    paths: Sequence[str],
    folders: Sequence[str],
    others: Sequence[str] = (),
    hidden: Sequence[str] = (),
) -> FoundImages:
    """Return single files, with names relative to the deepest folder that contains all of `folders`."""
    found = FoundImages(images, common_folder(folders))
    skip = len(os.path.join(found.base, ""))
    for path in paths:
        found.add(path[skip:].replace(os.sep, "/"), problem_of(path))
    found.other_files += [path[skip:].replace(os.sep, "/") for path in others]
    found.hidden += [path[skip:].replace(os.sep, "/") for path in hidden]
    return found


def common_folder(folders: Sequence[str]) -> str:
    """Return the deepest folder that contains all of these absolute folders."""
    try:
        return os.path.commonpath(set(folders))
    except ValueError as error:
        raise DataError(
            f"--input: the inputs are on several drives ({error}): predict each drive in its own run"
        ) from error


def of_folder(images: ImageTable, folder: str, recursive: bool, strict: bool = True) -> FoundImages:
    """List a folder; `strict`: one that can't be read is an error, else it becomes an image with a problem."""
    found = FoundImages(images, _absolute(folder))
    skip = len(os.path.join(found.base, ""))

    def refuse(path: str, error: OSError) -> None:
        reason = f"expected a readable folder, got: {error.strerror or error}"
        if path == found.base and strict:
            raise DataError(f"{folder}: {reason}") from error
        found.add(path[skip:].replace(os.sep, "/") or os.path.basename(found.base), reason)

    def pass_over(path: str) -> None:
        found.hidden.append(path[skip:].replace(os.sep, "/"))

    for entry, entered in walk(found.base, refuse, recursive=recursive, on_hidden=pass_over, in_order=False):
        name = entry.path[skip:].replace(os.sep, "/")
        if is_hidden(entry.name):
            found.hidden.append(name)
        elif is_image_name(entry.name):
            found.add(name, None if entry.is_file(follow_symlinks=False) else problem_of(entry.path))
        elif not is_folder(entry):
            is_image = problem_of(entry.path) is None and has_image_content(entry.path)
            (found.add if is_image else found.other_files.append)(name)
        elif not entered:
            found.skipped_folders.append(name + "/")
    return found


def of_archive(images: ImageTable, path: str, strict: bool = True) -> FoundImages:
    """List an archive; `strict`: one that can't be opened is an error, else it becomes an image with a problem."""
    own = _absolute_file(path)
    try:
        archive = open_archive(Path(own))
    except DataError as error:
        if strict:
            raise
        return _of_files_with(images, own, str(error).removeprefix(f"{own}: "))
    found, before = FoundImages(images, own, archive=archive), images.last()
    folders: set[str] = set()
    for member in archive.members():
        folder, _, base = member.name.rpartition("/")
        in_folder = folder or "\\" in base
        if _is_below_hidden(member.name) if in_folder else is_hidden(base):
            found.hidden.append(member.name)
            continue
        images.add(found.number, member.name, member.problem, member.place, member.is_image)
        if member.is_image:
            found.count += 1
            if member.problem is None or not is_unsafe(member.name):
                folders.add(folder)
    found.other_files = images.settle_equal_names(before, "expected one file of this name, got several in the archive")
    _start_below(found, folders)
    if archive.damage:
        found.add(os.path.basename(own), archive.damage)
    return found


def _is_below_hidden(name: str) -> bool:
    return any(map(is_hidden, name.replace("\\", "/").split("/")))


def _start_below(found: FoundImages, folders: set[str]) -> None:
    """Make an archive's names relative to the deepest folder in it that contains all of its images."""
    folder = posixpath.commonpath(folders) if folders else ""
    if folder:
        found.base, found.inner = os.path.join(found.base, folder), folder + "/"


def _of_files_with(images: ImageTable, path: str, problem: str) -> FoundImages:
    found = FoundImages(images, os.path.dirname(path))
    found.add(os.path.basename(path), problem)
    return found


def problem_of(path: str) -> str | None:
    """Return why a path can't be opened as a file, None where it can: opening a pipe would wait forever."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return f"expected a file, got {'a link to a missing file' if os.path.islink(path) else 'nothing there'}"
    except (OSError, ValueError) as error:
        return f"the file can't be read: {getattr(error, 'strerror', None) or error}"
    if stat.S_ISREG(mode):
        return None
    return f"expected a file, got {'a folder' if stat.S_ISDIR(mode) else 'a pipe, socket or device'}"


def _absolute(path: str) -> str:
    """Return the absolute path; links are resolved where it contains "..", since one may stand before that."""
    return os.path.realpath(path) if ".." in Path(path).parts else os.path.abspath(path)


def _absolute_file(path: str) -> str:
    """Like `_absolute`, but a file that is a link keeps its own name."""
    folder, name = os.path.split(path)
    return _absolute(path) if name in ("", ".", "..") else os.path.join(_absolute(folder), name)


def of_url(images: ImageTable, url: str, recursive: bool) -> FoundImages:
    """List what an object store, or whatever fsspec reaches, has below an address such as `s3://bucket/prefix`.

    Raises:
        ConfigError: fsspec, or its package for such addresses, is not installed.
        DataError: the store can't be reached, or is empty there.
    """
    url = url.rstrip("/")
    system, root = connect_store(url)
    try:
        if system.isfile(root):
            return _single(images, url)
        found = _found(images, url)
        for name, is_folder in _walk(system, root, recursive):
            if any(map(is_hidden, name.split("/"))):
                found.hidden.append(name)
            elif is_folder:
                found.skipped_folders.append(f"{name}/")
            elif is_image_name(posixpath.basename(name)):  # by name alone: a look inside would be a request for each
                found.add(name)
            else:
                found.other_files.append(name)
    except FakeRealError:
        raise
    except FileNotFoundError:
        found = FoundImages(images, url)
    except Exception as error:
        raise DataError(f"{url}: can't be listed: {store_reason(error)}") from error
    if not (found.count or found.other_files or found.skipped_folders or found.hidden):
        raise DataError(f"{url}: nothing there: check the address")
    return found


def _single(images: ImageTable, url: str) -> FoundImages:
    folder, _, name = url.rpartition("/")
    if not is_image_name(name):
        raise DataError(f"{url}: expected a folder or an image ({' '.join(SUFFIXES)}), got another object")
    found = _found(images, folder)
    found.add(name)
    return found


def _found(images: ImageTable, url: str) -> FoundImages:
    """Return an empty list for an address, which counts as the folder /s3:/bucket/prefix."""
    return FoundImages(images, "/" + posixpath.normpath(url), archive=ObjectStore(url))


def _walk(system: Any, root: str, recursive: bool) -> Iterator[tuple[str, bool]]:
    """Yield names below the root, and whether they are folders that are not searched."""
    for folder, below, files in system.walk(root, maxdepth=None if recursive else 1, detail=False, on_error="raise"):
        start = folder.rstrip("/")[len(root.rstrip("/")) :].lstrip("/")
        for name in files:
            if name:  # some stores have an empty object that represents the folder
                yield posixpath.join(start, name), False
        if not recursive:
            yield from ((name, True) for name in below)
