"""Where pictures come from: folders, single files, patterns, lists of paths and archives. Finds; opens nothing."""

# Strings, not Path: a million of them.
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

from fakereal.decoding import SUFFIXES, is_image_name
from fakereal.errors import DataError, FakeRealError
from fakereal.files import is_folder, walk
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
from fakereal.runtime import log

_CHUNK_BYTES = 2**16


@dataclass
class FoundImages:
    """What one source holds; every entry of it is in exactly one of the lists."""

    base: str  # absolute: the folder, or the archive and a folder in it, that the names are relative to
    names: list[str] = field(default_factory=list)  # of pictures, with "/"
    problems: dict[str, str] = field(default_factory=dict)  # of names: why one can't even be opened
    other_files: list[str] = field(default_factory=list)  # files that are no pictures by name
    skipped_folders: list[str] = field(default_factory=list)  # not looked into, with "/" at the end
    archive: Archive | None = None  # what the names are read from, None: the file system
    inner: str = ""  # the folder in the archive that base names, "" or ending in "/"

    def add(self, name: str, problem: str | None) -> None:
        """Notes a picture."""
        self.names.append(name)
        if problem:
            self.problems[name] = problem


def find_images(inputs: Sequence[str], list_file: Path | None, recursive: bool) -> list[FoundImages]:
    """Looks into every input, and into every path that the list names.

    Args:
        inputs: folders, pictures, archives, or patterns such as `photos/**/*.jpg`.
        list_file: holds paths (not patterns), one a line or with NUL between them; `-` is standard input.
        recursive: look into sub-folders too (symbolic links to folders are not followed: they may form a ring).

    Raises:
        DataError: an input is not there or nothing that holds pictures. A path in a list keeps its place instead.
    """
    found: list[FoundImages] = []
    named: list[str] = []  # single files, absolute
    for value in inputs:
        if "://" in value:
            found.append(of_url(value, recursive))
        elif glob.has_magic(value) and not os.path.lexists(value):
            found += _of_pattern(value, recursive)
        else:
            found += _of_path(value, recursive, named)
    if named:
        found.append(_of_files(named, [os.path.dirname(path) for path in named]))
    if list_file is not None:
        found += _of_list(list_file, recursive)
    return found


def _of_path(value: str, recursive: bool, named: list[str]) -> list[FoundImages]:
    try:
        is_folder = stat.S_ISDIR(os.stat(value).st_mode)
    except (OSError, ValueError) as error:
        missing = "nothing there" if isinstance(error, FileNotFoundError) else getattr(error, "strerror", str(error))
        raise DataError(
            f"{value}: expected a folder of images, found {missing}: put images there, or name their folder"
            " with --input FOLDER"
        ) from error
    if is_folder:
        return [of_folder(value, recursive)]
    if is_archive_name(value):
        return [of_archive(value)]
    if not is_image_name(os.path.basename(value)):
        raise DataError(
            f"{value}: expected a folder of images, an image ({' '.join(SUFFIXES)}) or an archive"
            f" ({' '.join(containers.ARCHIVE_SUFFIXES)}), found another file: name the images with --input, or list them"
            " with --list FILE"
        )
    named.append(_absolute_file(value))
    return []


def _of_pattern(pattern: str, recursive: bool) -> list[FoundImages]:
    """Returns the files that match, with names from the part of the pattern that is fixed, and what else matches."""
    parts = Path(pattern).parts
    first = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    base = Path(_absolute(str(Path(*parts[:first]))))
    try:
        # Unlike the module glob, this follows no link to a folder on its way through **.
        matches = sorted(map(str, base.glob("/".join(parts[first:]))))
    except (OSError, ValueError) as error:
        reason = f"{pattern}: expected a pattern such as 'photos/**/*.jpg', found one that fails: {error}"
        raise DataError(reason) from error
    if not matches:
        raise DataError(f"{pattern}: expected files that match, found none: check the pattern with `ls`")
    return _of_many(matches, recursive, str(base))


def _of_list(list_file: Path, recursive: bool) -> list[FoundImages]:
    """Returns what a list names."""
    name = "standard input" if str(list_file) == "-" else str(list_file)
    try:
        if str(list_file) == "-":
            if sys.stdin.isatty():
                log("paths, one a line; Ctrl-D ends them:")
            paths = list(_paths_in(sys.stdin.buffer))
        else:
            with open(list_file, "rb") as file:
                paths = list(_paths_in(file))
    except OSError as error:
        raise DataError(f"--list: expected a readable list, found {name}: {error.strerror or error}") from error
    if not paths:
        raise DataError(f"--list: expected paths, one a line or with NUL between them, found none in {name}")
    if url := next((path for path in paths if "://" in path and not os.path.lexists(path)), None):
        raise DataError(f"--list: expected paths, found {url} in {name}: name addresses with --input")
    return _of_many(paths, recursive)


def _paths_in(file: BinaryIO) -> Iterator[str]:
    """Yields the paths of a list, whose first piece tells what stands between them: NUL, else the end of a line."""
    rest = file.read(_CHUNK_BYTES).removeprefix(b"\xef\xbb\xbf")
    if rest.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError("--list: expected paths in UTF-8, found UTF-16: save the list as UTF-8")
    end = b"\0" if b"\0" in rest else b"\n"
    while piece := file.read(_CHUNK_BYTES):
        *whole, rest = (rest + piece).split(end)
        yield from _decoded(whole, end)
    yield from _decoded(rest.split(end), end)


def _decoded(paths: Sequence[bytes], end: bytes) -> Iterator[str]:
    for path in paths:
        if name := path if end == b"\0" else path.rstrip(b"\r"):
            yield os.fsdecode(name)


def _of_many(paths: Sequence[str], recursive: bool, base: str | None = None) -> list[FoundImages]:
    """Returns what each path is; one that is not there, or no sound archive, keeps its place with the reason."""
    found, names = [], []
    others: list[str] = []
    for path in paths:
        if is_image_name(os.path.basename(path)):
            names.append(_absolute_file(path))
        elif os.path.isdir(path):
            found.append(of_folder(path, recursive, strict=False))
        elif is_archive_name(path):
            found.append(of_archive(path, strict=False))
        elif os.path.exists(path):
            others.append(_absolute_file(path))
        else:
            names.append(_absolute_file(path))
    files = [*names, *others]
    below = base is not None and all(path.startswith(os.path.join(base, "")) for path in files)  # ".." may lead out
    folders = [base] if below else [os.path.dirname(path) for path in files]
    return [*found, _of_files(names, folders, others)] if files else found


def _of_files(paths: Sequence[str], folders: Sequence[str], others: Sequence[str] = ()) -> FoundImages:
    """Returns single files, named from the deepest folder that holds all of `folders`."""
    found = FoundImages(common_folder(folders))
    skip = len(os.path.join(found.base, ""))
    for path in paths:
        found.add(path[skip:].replace(os.sep, "/"), problem_of(path))
    found.other_files += [path[skip:].replace(os.sep, "/") for path in others]
    return found


def common_folder(folders: Sequence[str]) -> str:
    """Returns the deepest folder that holds them all; they are absolute."""
    try:
        return os.path.commonpath(set(folders))
    except ValueError as error:
        raise DataError(
            f"--input: expected inputs on one drive, found several ({error}): predict them apart"
        ) from error


def of_folder(folder: str, recursive: bool, strict: bool = True) -> FoundImages:
    """List a folder; `strict`: one that can't be read is an error, else it keeps its place."""
    found = FoundImages(_absolute(folder))
    skip = len(os.path.join(found.base, ""))

    def refuse(path: str, error: OSError) -> None:
        reason = f"expected a readable folder, found: {error.strerror or error}"
        if path == found.base and strict:
            raise DataError(f"{folder}: {reason}") from error
        found.add(path[skip:].replace(os.sep, "/") or os.path.basename(found.base), reason)

    for entry, entered in walk(found.base, refuse, recursive=recursive, in_order=False):
        name = entry.path[skip:].replace(os.sep, "/")
        if is_image_name(entry.name):
            found.add(name, None if entry.is_file(follow_symlinks=False) else problem_of(entry.path))
        elif not is_folder(entry):
            found.other_files.append(name)
        elif not entered:
            found.skipped_folders.append(name + "/")
    return found


def of_archive(path: str, strict: bool = True) -> FoundImages:
    """Lists an archive; `strict`: one that can't be opened is an error, else it keeps its place."""
    own = _absolute_file(path)
    try:
        archive = open_archive(Path(own))
    except DataError as error:
        if strict:
            raise
        return _of_files_with(own, str(error).removeprefix(f"{own}: "))
    found = FoundImages(own, archive=archive)
    for member in archive.members():
        if is_image_name(member.name.replace("\\", "/").rpartition("/")[2]):
            found.add(member.name, member.problem)
        else:
            found.other_files.append(member.name)
    for name in archive.duplicates & set(found.names):
        found.problems[name] = "expected one file of this name, found several in the archive"
    found.names = list(dict.fromkeys(found.names))
    _start_below(found)
    if archive.damage:
        found.add(os.path.basename(own), archive.damage)
    return found


def _start_below(found: FoundImages) -> None:
    """Names an archive's pictures from the deepest folder in it that holds them all."""
    safe = [name for name in found.names if not is_unsafe(name)]
    folder = posixpath.commonpath({posixpath.dirname(name) for name in safe}) if safe else ""
    if not folder:
        return
    found.base, found.inner = os.path.join(found.base, folder), folder + "/"
    found.names = [name.removeprefix(found.inner) for name in found.names]
    found.problems = {name.removeprefix(found.inner): problem for name, problem in found.problems.items()}


def _of_files_with(path: str, problem: str) -> FoundImages:
    found = FoundImages(os.path.dirname(path))
    found.add(os.path.basename(path), problem)
    return found


def problem_of(path: str) -> str | None:
    """Says why a path can't be opened as a file: opening a pipe would wait for ever."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return f"expected a file, found {'a link that leads nowhere' if os.path.islink(path) else 'nothing there'}"
    except (OSError, ValueError) as error:
        return f"expected a readable file, found: {getattr(error, 'strerror', None) or error}"
    if stat.S_ISREG(mode):
        return None
    return f"expected a file, found {'a folder' if stat.S_ISDIR(mode) else 'a pipe, socket or device'}"


def _absolute(path: str) -> str:
    """Returns the path from the root; one with ".." in it is followed, since a link may stand before that."""
    return os.path.realpath(path) if ".." in Path(path).parts else os.path.abspath(path)


def _absolute_file(path: str) -> str:
    """Like `_absolute`, but a file that is a link keeps its own name."""
    folder, name = os.path.split(path)
    return _absolute(path) if name in ("", ".", "..") else os.path.join(_absolute(folder), name)


# ---- Pictures in an object store, or wherever else fsspec reaches: `s3://bucket/prefix`, `gs://...`, `https://...`.


def of_url(url: str, recursive: bool) -> FoundImages:
    """Lists what lies below an address, one folder after the other; nothing is opened.

    Raises:
        ConfigError: fsspec, or its part for such addresses, is not installed.
        DataError: the store can't be reached, or there is nothing.
    """
    url = url.rstrip("/")
    system, root = connect_store(url)
    try:
        if system.isfile(root):
            return _single(url)
        found = _found(url)
        for name, is_folder in _walk(system, root, recursive):
            if is_folder:
                found.skipped_folders.append(f"{name}/")
            elif is_image_name(posixpath.basename(name)):
                found.add(name, None)
            else:
                found.other_files.append(name)
    except FakeRealError:
        raise
    except FileNotFoundError:
        found = FoundImages(url)
    except Exception as error:
        raise DataError(f"{url}: expected a store that can be listed, found {store_reason(error)}") from error
    if not (found.names or found.other_files or found.skipped_folders):
        raise DataError(f"{url}: expected images, found nothing there: look for a slip in the address")
    return found


def _single(url: str) -> FoundImages:
    folder, _, name = url.rpartition("/")
    if not is_image_name(name):
        raise DataError(f"{url}: expected a folder or an image ({' '.join(SUFFIXES)}), found another object")
    found = _found(folder)
    found.add(name, None)
    return found


def _found(url: str) -> FoundImages:
    """Returns an empty list of what lies at an address, which stands among paths as /s3:/bucket/prefix."""
    return FoundImages("/" + posixpath.normpath(url), archive=ObjectStore(url))


def _walk(system: Any, root: str, recursive: bool) -> Iterator[tuple[str, bool]]:
    """Yields names below the root, and whether they are folders that are not looked into."""
    for folder, below, files in system.walk(root, maxdepth=None if recursive else 1, detail=False, on_error="raise"):
        start = folder.rstrip("/")[len(root.rstrip("/")) :].lstrip("/")
        for name in files:
            if name:  # some stores have an empty object that stands for the folder
                yield posixpath.join(start, name), False
        if not recursive:
            yield from ((name, True) for name in below)
