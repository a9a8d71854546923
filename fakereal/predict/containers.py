"""Zip and tar archives, listed and read where they lie: nothing of them is ever written to disk."""

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
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol

from fakereal.decoding import MAX_FILE_BYTES
from fakereal.errors import ConfigError, DataError, ImageRefused
from fakereal.runtime import one_line

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
"""File names that count as archives, lower case; how a tar is compressed, its content says."""

FREE_BYTES, MAX_GROWTH = 2**30, 100
"""An archive may unpack to the first of these, or to so many times its own size; pictures hardly grow at all."""

_MAX_HEADER_BYTES = 2**20  # a tar's header may claim any length, and would be read whole
_BLOCK = 512  # of a tar
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
"""What the readers raise on damaged and hostile archives."""

_OPENERS: tuple[tuple[bytes, Callable[[Path], Any]], ...] = (
    (b"\x1f\x8b", gzip.open),
    (b"BZh", bz2.open),
    (b"\xfd7zXZ\0", lzma.open),
)
_DRIVE = re.compile(r"[A-Za-z]:")


@dataclass(frozen=True, slots=True)
class Member:
    """One file of an archive."""

    name: str  # the path in the archive, with "/", without "." and empty parts
    problem: str | None = None  # why it can't be read


class Archive(Protocol):
    """What pictures can be read from by name, from several threads."""

    path: Path
    sequential: bool  # True: reading members in another order than they lie in takes for ever
    damage: str | None  # why listing ended before the archive did
    duplicates: set[str]  # names that two members have

    def members(self) -> Iterator[Member]:
        """Lists the files, without folders; once, before anything is read."""

    def position(self, name: str) -> int:
        """Returns where a member lies, for those who read in order."""

    def read(self, name: str) -> bytes:
        """Returns a member's content, or raises ImageRefused."""


def is_archive_name(name: str) -> bool:
    """Says whether a file counts as an archive by its name."""
    return name.lower().endswith(ARCHIVE_SUFFIXES)


def open_archive(path: Path) -> Archive:
    """Returns a zip or a tar, after a look at its first bytes.

    Raises:
        DataError: it can't be opened, or is none.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(_BLOCK)
        if path.suffix.lower() == ".zip":
            return Zip(path)
        return Tar(path, next((opener for magic, opener in _OPENERS if start.startswith(magic)), None))
    except _DAMAGE as error:
        raise DataError(f"{path}: {_found(error)}: download or pack it again") from error


def is_unsafe(name: str) -> bool:
    """Says whether a member's name leads out of the archive, on any system."""
    return name[:1] in ("/", "\\") or ".." in re.split(r"[/\\]", name) or bool(_DRIVE.match(name))


def _clean(name: str) -> str:
    return name if is_unsafe(name) else posixpath.normpath(name)


def _leading_out(name: str) -> str | None:
    return "expected a name within the archive, found one that leads out of it" if is_unsafe(name) else None


class Zip:
    """A zip archive; its members can be read in any order."""

    sequential = False
    damage: str | None = None

    def __init__(self, path: Path) -> None:
        self.path, self.duplicates = path, set()
        self._file = zipfile.ZipFile(ReopeningArchive(partial(_open_plain, path)))
        self._members = {_clean(info.filename): info for info in self._file.infolist() if not info.is_dir()}

    def __getstate__(self) -> Path:
        return self.path

    def __setstate__(self, path: Path) -> None:
        self.__init__(path)

    def members(self) -> Iterator[Member]:
        """See `Archive`."""
        left = growth_limit(self.path)
        for info in self._file.infolist():
            if info.is_dir():
                continue
            name, left = _clean(info.filename), left - info.file_size
            if self._members[name] is not info:
                self.duplicates.add(name)
            yield Member(name, _leading_out(name) or _problem_in_zip(info) or _too_much(left))

    def position(self, name: str) -> int:
        """See `Archive`."""
        return self._members[name].header_offset

    def read(self, name: str) -> bytes:
        """See `Archive`."""
        try:
            info = self._members[name]
            with self._file.open(info) as file:
                return file.read(info.file_size)  # never more than was announced and found acceptable
        except _DAMAGE as error:
            raise ImageRefused("unreadable", _found(error)) from error


class Tar:
    """A tar archive, compressed or not; only one that is not can be read in any order."""

    damage: str | None = None

    def __init__(self, path: Path, opener: Callable[[Path], Any] | None) -> None:
        self.path, self.sequential, self.duplicates = path, opener is not None, set()
        self._opener = opener or _open_plain
        self._places: dict[str, tuple[int, int]] = {}  # offset and size of the content
        self._become_readable()
        with self._opener(path) as file:  # is it one at all?
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
                with tarfile.open(fileobj=guarded, mode="r:") as tar:
                    end = 0
                    while (info := tar.next()) is not None:
                        if tar.offset <= end:  # it would be found again, for ever
                            raise tarfile.ReadError(f"a file of {info.size:,} bytes")
                        end = tar.offset
                        tar.members.clear()  # 1.5 kB each
                        if not info.isdir():
                            yield self._member(info)
                    guarded.seek(tar.offset)
                    if guarded.read(_BLOCK).strip(b"\0") or guarded.tell() != tar.offset + _BLOCK:
                        raise tarfile.ReadError("no end mark where the last file ends")
        except _DAMAGE as error:
            self.damage = _found(error)

    def _member(self, info: tarfile.TarInfo) -> Member:
        name = _clean(info.name)
        if name in self._places:
            self.duplicates.add(name)
        self._places[name] = info.offset_data, info.size
        return Member(name, _leading_out(name) or _problem_in_tar(info))

    def position(self, name: str) -> int:
        """See `Archive`."""
        return self._places[name][0]

    def read(self, name: str) -> bytes:
        """See `Archive`."""
        offset, size = self._places[name]
        with self._lock:
            try:
                self._file.seek(offset)
                content = self._file.read(size)
            except _DAMAGE as error:
                raise ImageRefused("unreadable", _found(error)) from error
        if len(content) < size:
            raise ImageRefused(
                "truncated", f"expected {size:,} bytes, found the archive cut off after {len(content):,}"
            )
        return content


class _Guarded:
    """What tarfile reads headers from: none may be long, and nothing may unpack without end."""

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
    """Returns how many bytes an archive may unpack to."""
    return max(FREE_BYTES, MAX_GROWTH * path.stat().st_size)


def _open_plain(path: Path) -> BinaryIO:
    return open(path, "rb")


def _problem_in_zip(info: zipfile.ZipInfo) -> str | None:
    if stat.S_ISLNK(info.external_attr >> 16):
        return "expected a file, found a link"
    if info.flag_bits & 0x1:
        return "expected a file that needs no password, found an encrypted one"
    return _too_large(info.file_size)


def _problem_in_tar(info: tarfile.TarInfo) -> str | None:
    if not info.isreg():
        return f"expected a file, found a {'link' if info.issym() or info.islnk() else 'pipe or device'}"
    if info.issparse():
        return "expected a file that is stored whole, found a sparse one"
    return _too_large(info.size)


def _too_large(size: int) -> str | None:
    if size <= MAX_FILE_BYTES:
        return None
    return f"expected at most {MAX_FILE_BYTES // 2**20} MB, found {size / 2**20:.0f} MB"


def _too_much(left: int) -> str | None:
    if left >= 0:
        return None
    return f"expected an archive that grows at most {MAX_GROWTH} times when unpacked, found more"


def _found(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, tarfile.ReadError) and text.startswith("expected"):
        return text
    if isinstance(error, OSError) and error.strerror:
        return f"expected a readable archive, found: {os.strerror(error.errno) if error.errno else error.strerror}"
    return f"expected a sound archive, found a damaged one ({type(error).__name__}: {text})"


# ---- Files that are closed while too many are open, and opened again when they are next read.

MAX_OPEN_ARCHIVES = 16
"""So many stay open; a process may have some hundred, and a set of pictures may come as thousands of archives."""

_opened: deque[weakref.ref[ReopeningArchive]] = deque()  # the one opened longest ago first


class ReopeningArchive:
    """A file to be read, in any way that zipfile or tarfile want, by one thread at a time."""

    def __init__(self, opener: Callable[[], Any]) -> None:
        self._opener, self._file, self._place = opener, None, 0
        self._lock = threading.Lock()

    def read(self, size: int = -1) -> bytes:
        """Reads on from where the last call ended."""
        with self._at_its_place() as file:
            return file.read(size)

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        """Goes to a place, and returns it."""
        with self._at_its_place() as file:
            return file.seek(place, whence)

    def tell(self) -> int:
        """Returns the place."""
        return self._place

    def seekable(self) -> bool:
        """Returns True."""
        return True

    def close(self) -> None:
        """Closes the file; it can be read on all the same."""
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
    def _at_its_place(self) -> Iterator[Any]:
        with self._lock:
            is_new = self._file is None
            try:
                if is_new:
                    self._file = self._opener()
                    self._file.seek(self._place)
                yield self._file
                self._place = self._file.tell()
            except BaseException:
                self._close()  # whatever state it is in now
                self._place = 0
                raise
        if is_new:
            _opened.append(weakref.ref(self))
            _close_the_oldest()


def _close_the_oldest() -> None:
    """Never called with a lock held: a file that is being read is waited for."""
    while len(_opened) > MAX_OPEN_ARCHIVES:
        with suppress(IndexError):  # another thread was quicker
            if (oldest := _opened.popleft()()) is not None:
                oldest.close()


_TRIES = 3
_PAUSE_S = 0.5  # between them; the stores' own packages wait and try again by themselves where they are asked to


class StoreAddress(PurePosixPath):
    """What stands for an archive's path where people or the journal want one."""

    def stat(self) -> os.stat_result:
        """Says that nothing has changed: a resumed run takes what a store holds for what it held."""
        return os.stat_result([0] * 10)


class ObjectStore:
    """The pictures below one address, by their names there; another process that it is sent to connects anew."""

    sequential = False

    def __init__(self, url: str) -> None:
        self.url = url
        self.path = StoreAddress(url)

    def position(self, name: str) -> int:
        """Returns where a picture lies; one place is as good as another here."""
        return 0

    def read(self, name: str) -> bytes:
        """Returns a picture's content, asking for no more than a picture may have.

        Raises:
            ImageRefused: the store doesn't give it, also when asked again.
        """
        system, root = connect_store(self.url)
        path = posixpath.join(root, name)
        try:
            content = _store_content(system, path)
        except FileNotFoundError as error:
            raise ImageRefused("missing", "expected an object, found nothing there") from error
        except Exception as error:
            raise ImageRefused("unreadable", f"expected a readable object, found: {one_line(error)}") from error
        if len(content) > MAX_FILE_BYTES:
            raise ImageRefused("too_large", f"expected at most {MAX_FILE_BYTES // 2**20} MB, found more")
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
                if system.size(path) == 0:  # some stores find no such range in an empty object
                    return b""
                raise
            time.sleep(_PAUSE_S)
    raise AssertionError("unreachable")


@functools.lru_cache(maxsize=16)
def connect_store(url: str) -> tuple[Any, str]:
    """Returns the file system of an address and the address's path in it; one connection a process.

    Raises:
        ConfigError: fsspec, or its part for such addresses, is not installed.
        DataError: the address or the credentials can't be used.
    """
    try:
        import fsspec

        return fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        raise ConfigError(
            f"--input {url}: expected the package that reads such addresses, found none ({one_line(error)}):"
            " pip install -r requirements-scale.txt"
        ) from error
    except Exception as error:
        raise DataError(f"--input {url}: expected an address that fsspec knows, found {store_reason(error)}") from error


def store_reason(error: BaseException) -> str:
    """Return why an object store refused, on one line."""
    return one_line(error) if isinstance(error, OSError) else f"{type(error).__name__}: {one_line(error)}"
