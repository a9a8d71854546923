"""Containers of images: zip and tar archives, and object stores; read in place, never unpacked to disk.

Archives are treated as hostile: names that lead out of them, links, encrypted or oversized members and decompression
bombs are refused, each with its reason. Of a damaged archive, the members before the damage can be read.
"""

from __future__ import annotations

import bz2
import functools
import gzip
import lzma
import os
import posixpath
import re
import stat
import struct
import sys
import tarfile
import threading
import time
import weakref
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple, Protocol

from fakereal.decoding import MAX_FILE_BYTES, is_image_name
from fakereal.errors import ConfigError, DataError, ImageRefused
from fakereal.file_types import HEAD_BYTES, begins_like_image
from fakereal.predict.image_table import Place
from fakereal.predict.tar_headers import BLOCK, files_in_tar
from fakereal.runtime import one_line

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
"""File names that count as archives, lower case; the compression of a tar is recognized by its content."""

FREE_BYTES, MAX_GROWTH = 2**30, 100
"""An archive may unpack to FREE_BYTES, or to MAX_GROWTH times its own size; images hardly grow at all."""

_MAX_HEADER_BYTES = 2**20  # a tar's header may claim any length, and would be read whole
_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    IndexError,
    KeyError,
    OverflowError,
    MemoryError,
)
"""Raised by the readers on damaged and hostile archives."""

_OPENERS: tuple[tuple[bytes, Callable[[Path], Any]], ...] = (
    (b"\x1f\x8b", gzip.open),
    (b"BZh", bz2.open),
    (b"\xfd7zXZ\0", lzma.open),
)
_DRIVE = re.compile(r"[A-Za-z]:")


class Member(NamedTuple):
    """One file of an archive."""

    name: str  # the path in the archive, with "/", without "." and empty parts
    problem: str | None = None  # why it can't be read, or None
    is_image: bool = True  # by its name, or by its content
    place: Place | None = None  # of its content, for `Tar.read`


class Archive(Protocol):
    """An archive whose members several threads can read by name."""

    path: Path
    sequential: bool  # True: members must be read in the order of their places
    damage: str | None  # why the list of members is not complete, or None

    def members(self) -> Iterator[Member]:
        """Yield the files, without folders; call it once, before anything is read."""

    def read(self, member: str | Place) -> bytes:
        """Return the content of the member with this name or, in a tar, at this place; may raise ImageRefused."""


def is_archive_name(name: str) -> bool:
    """Return whether a file counts as an archive by its name."""
    return name.lower().endswith(ARCHIVE_SUFFIXES)


def open_archive(path: Path) -> Archive:
    """Open a zip or a tar archive; the compression of a tar is recognized by its first bytes.

    Raises:
        DataError: it can't be opened, or is not an archive.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(BLOCK)
        if path.suffix.lower() == ".zip":
            return Zip(path)
        return Tar(path, next((opener for magic, opener in _OPENERS if start.startswith(magic)), None))
    except _DAMAGE as error:
        raise DataError(f"{path}: {_reason(error)}: download or pack it again") from error


def is_unsafe(name: str) -> bool:
    """Return whether a member's name leads out of the archive, on any system."""
    leads_up = ".." in name and ".." in re.split(r"[/\\]", name)
    return name[:1] in ("/", "\\") or leads_up or (name[1:2] == ":" and bool(_DRIVE.match(name)))


def _clean(name: str) -> str:
    return name if is_unsafe(name) else posixpath.normpath(name)


def _clean_in_zip(name: str) -> str:
    """Take backslashes as "/", too: some programs of Windows write them, though the format has only "/"."""
    return name if is_unsafe(name) else _clean(name.replace("\\", "/"))


def _is_image(name: str, problem: str | None, head: Callable[[], bytes]) -> bool:
    """Say whether a member is an image; `head` returns its first bytes, and is called only where the name isn't one."""
    if is_image_name(name.replace("\\", "/").rpartition("/")[2]):
        return True
    try:
        return problem is None and begins_like_image(head())
    except _DAMAGE:
        return False


def _leading_out(name: str) -> str | None:
    return "expected a name within the archive, got one that leads out of it" if is_unsafe(name) else None


class Zip:
    """A zip archive; its members can be read in any order."""

    sequential = False
    damage: str | None = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = zipfile.ZipFile(ReopeningArchive(partial(_open_plain, path)))
        self._members = {_clean_in_zip(info.filename): info for info in self._file.infolist() if not _is_folder(info)}

    def __getstate__(self) -> Path:
        return self.path

    def __setstate__(self, path: Path) -> None:
        self.__init__(path)

    def members(self) -> Iterator[Member]:
        """See `Archive`."""
        left = growth_limit(self.path)
        for info in self._file.infolist():
            if _is_folder(info):
                continue
            name, left = _clean_in_zip(info.filename), left - info.file_size
            problem = _leading_out(name) or _problem_in_zip(info) or _too_much(left)
            yield Member(name, problem, _is_image(name, problem, partial(self._head, info)))

    def _head(self, info: zipfile.ZipInfo) -> bytes:
        with self._file.open(info) as file:
            return file.read(HEAD_BYTES)

    def read(self, member: str | Place) -> bytes:
        """See `Archive`."""
        try:
            info = self._members[member]
            with self._file.open(info) as file:
                return file.read(info.file_size)  # never more than the size that was checked
        except _DAMAGE as error:
            raise ImageRefused("unreadable", _reason(error)) from error


class Tar:
    """A tar archive, compressed or not; only one that is not can be read in any order."""

    damage: str | None = None

    def __init__(self, path: Path, opener: Callable[[Path], Any] | None) -> None:
        self.path, self.sequential = path, opener is not None
        self._opener = opener or _open_plain
        self._become_readable()
        with self._opener(path) as file:  # raises where it is not a tar
            tarfile.open(fileobj=_Guarded(file, 2 * _MAX_HEADER_BYTES), mode="r:").close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None, "_file": None}

    def _become_readable(self) -> None:
        self._lock, self._file = threading.Lock(), ReopeningArchive(partial(self._opener, self.path))

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._become_readable()

    def members(self) -> Iterator[Member]:
        """See `Archive`."""
        limit = growth_limit(self.path) if self.sequential else sys.maxsize
        try:
            with self._opener(self.path) as file:
                guarded = _Guarded(file, limit)
                for found in files_in_tar(guarded, self.sequential):
                    name = _clean(found.name)
                    problem = _leading_out(name) or found.problem or _too_large(found.size)
                    is_image = _is_image(name, problem, partial(found.head, guarded))
                    yield Member(name, problem, is_image, (found.offset, found.size))
        except _DAMAGE as error:
            self.damage = _reason(error)

    def read(self, member: str | Place) -> bytes:
        """See `Archive`."""
        offset, size = member
        with self._lock:
            try:
                self._file.seek(offset)
                content = self._file.read(size)
            except _DAMAGE as error:
                raise ImageRefused("unreadable", _reason(error)) from error
        if len(content) < size:
            raise ImageRefused("truncated", f"expected {size:,} bytes, got {len(content):,}: the archive is cut off")
        return content


class _Guarded:
    """A file for tarfile to read headers from, which limits their length and the unpacked size."""

    def __init__(self, file: BinaryIO, limit: int) -> None:
        self._file, self._limit = file, limit

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._file.read(size)

    def seek(self, position: int) -> int:
        if position > self._limit:
            raise tarfile.ReadError(_too_much(-1) or "")
        return self._file.seek(position)

    def tell(self) -> int:
        return self._file.tell()


def growth_limit(path: Path) -> int:
    """Return how many bytes an archive may unpack to."""
    return max(FREE_BYTES, MAX_GROWTH * path.stat().st_size)


def _open_plain(path: Path) -> BinaryIO:
    return open(path, "rb")


def _is_folder(info: zipfile.ZipInfo) -> bool:
    return info.filename.endswith(("/", "\\"))


def _problem_in_zip(info: zipfile.ZipInfo) -> str | None:
    if stat.S_ISLNK(info.external_attr >> 16):
        return "expected a file, got a link"
    if info.flag_bits & 0x1:
        return "expected a file without a password, got an encrypted one"
    return _too_large(info.file_size)


def _too_large(size: int) -> str | None:
    if size <= MAX_FILE_BYTES:
        return None
    return f"expected at most {MAX_FILE_BYTES // 2**20} MB, got {size / 2**20:.0f} MB"


def _too_much(left: int) -> str | None:
    if left >= 0:
        return None
    return f"expected an archive that grows at most {MAX_GROWTH} times when unpacked, got more"


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, tarfile.ReadError) and text.startswith("expected"):
        return text
    if isinstance(error, OSError) and error.strerror:
        return f"expected a readable archive, got: {os.strerror(error.errno) if error.errno else error.strerror}"
    return f"expected an intact archive, got a damaged one ({type(error).__name__}: {text})"


MAX_OPEN_ARCHIVES = 16
"""The most archives that stay open: a process may open some hundred files, and a set may be thousands of archives."""

_opened: deque[weakref.ref[ReopeningArchive]] = deque()  # the oldest first


class ReopeningArchive:
    """A file that is closed while too many others are open, and opened again when it is next read.

    It has the methods that zipfile and tarfile need, for one thread at a time.
    """

    def __init__(self, opener: Callable[[], Any]) -> None:
        self._opener, self._file, self._position = opener, None, 0
        self._lock = threading.Lock()

    def read(self, size: int = -1) -> bytes:
        """Read from the current position."""
        with self._at_position() as file:
            return file.read(size)

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        """Change the position, and return it."""
        with self._at_position() as file:
            return file.seek(position, whence)

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seekable(self) -> bool:
        """Return True."""
        return True

    def close(self) -> None:
        """Close the file until it is read again."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __del__(self) -> None:
        with suppress(OSError):
            self._close()

    @contextmanager
    def _at_position(self) -> Iterator[Any]:
        with self._lock:
            is_new = self._file is None
            try:
                if is_new:
                    self._file = self._opener()
                    self._file.seek(self._position)
                yield self._file
                self._position = self._file.tell()
            except BaseException:
                self._close()  # whatever state it is in now
                self._position = 0
                raise
        if is_new:
            _opened.append(weakref.ref(self))
            _close_oldest()


def _close_oldest() -> None:
    """Close the oldest files. Never called with a lock held: it waits for a file that is being read."""
    while len(_opened) > MAX_OPEN_ARCHIVES:
        with suppress(IndexError):  # another thread was faster
            if (oldest := _opened.popleft()()) is not None:
                oldest.close()


_TRIES = 3
_PAUSE_S = 0.5  # between them; the stores' own packages also retry where a store asks them to


class StoreAddress(PurePosixPath):
    """The address of an object store in the place of an archive's path."""

    def stat(self) -> os.stat_result:
        """Return a constant: a resumed run assumes that the objects of a store have not changed."""
        return os.stat_result([0] * 10)


class ObjectStore:
    """The images below one address, by their names there; it can be pickled, and connects again where it arrives."""

    sequential = False

    def __init__(self, url: str) -> None:
        self.url = url
        self.path = StoreAddress(url)

    def read(self, member: str | Place) -> bytes:
        """Return an image's content; never asks for more than `MAX_FILE_BYTES`.

        Raises:
            ImageRefused: it can't be read, after three tries.
        """
        system, root = connect_store(self.url)
        path = posixpath.join(root, member)
        try:
            content = _store_content(system, path)
        except FileNotFoundError as error:
            raise ImageRefused("missing", "expected an object, got nothing there") from error
        except Exception as error:
            raise ImageRefused("unreadable", f"expected a readable object, got: {one_line(error)}") from error
        if len(content) > MAX_FILE_BYTES:
            raise ImageRefused("too_large", f"expected at most {MAX_FILE_BYTES // 2**20} MB, got more")
        return content

    def __reduce__(self) -> tuple[Any, ...]:
        return ObjectStore, (self.url,)


def _store_content(system: Any, path: str) -> bytes:
    for left in reversed(range(_TRIES)):
        try:
            return system.cat_file(path, start=0, end=MAX_FILE_BYTES + 1)
        except FileNotFoundError:
            raise
        except Exception:
            if left == 0:
                if system.size(path) == 0:  # some stores refuse ranges of an empty object
                    return b""
                raise
            time.sleep(_PAUSE_S)
    raise AssertionError("unreachable")


@functools.lru_cache(maxsize=16)
def connect_store(url: str) -> tuple[Any, str]:
    """Return the file system of an address and the path in it; one connection per process.

    Raises:
        ConfigError: fsspec, or its package for such addresses, is not installed.
        DataError: the address or the credentials can't be used.
    """
    try:
        import fsspec

        return fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        raise ConfigError(
            f"--input {url}: the package that reads such addresses is not installed ({one_line(error)}):"
            " pip install -r requirements-scale.txt"
        ) from error
    except Exception as error:
        raise DataError(f"--input {url}: expected an address that fsspec knows, got {store_reason(error)}") from error


def store_reason(error: BaseException) -> str:
    """Return why an object store refused, on one line."""
    return one_line(error) if isinstance(error, OSError) else f"{type(error).__name__}: {one_line(error)}"
