"""An on-disk cache of arrays, decoded images and features, shared by runs. The folder may be deleted at any time.

A cache is a folder of sealed files. Each holds rows of one shape, an index of their names and checksums, and a tail; it
is written whole under a name of its own and never changed. So a kill leaves no half file, two runs may share a folder,
and damage is noticed: such rows are discarded and rebuilt. (joblib.Memory returned a changed byte as if it were sound.)
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import struct
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fakereal.config import DataConfig
from fakereal.errors import DataError
from fakereal.files import write_atomic
from fakereal.preprocessing import Preprocessing
from fakereal.runtime import log, one_line

FILE_BYTES = 64 * 2**20
"""Rows wait in memory up to this size; then they are written as one file."""

FREE_BYTES = 2**30
"""This much of the disk is left free, whatever the cache may hold."""

_DAY_S = 86_400
_GB = 10**9
_SUFFIX = ".rows"
_ENTRY = np.dtype([("key", "V16"), ("checksum", "<u4")])  # of the index
_TAIL = struct.Struct("<8sQI")  # mark, number of rows, checksum of the index
_MARK = b"fakerows"


@dataclass(frozen=True)
class _File:
    path: Path
    rows: np.ndarray  # mapped, (n, *shape)
    index: np.ndarray  # (n,) of _ENTRY


class Rows:
    """Arrays of one shape and type, by name; safe for use by several threads."""

    def __init__(
        self, cache: RowCache, folder: Path, shape: tuple[int, ...], dtype: np.dtype, essential: bool = True
    ) -> None:
        self._cache, self._folder, self._shape, self._dtype = cache, folder, shape, dtype
        self.essential = essential  # False: these rows make room for those that a run can't do without
        self.row_bytes = int(np.prod(shape)) * dtype.itemsize
        self._places: dict[bytes, tuple[_File, int]] = {}
        self._waiting: dict[bytes, np.ndarray] = {}
        self._lock = threading.RLock()
        for path in sorted(folder.glob(f"*{_SUFFIX}")):
            self._open(path)

    def get(self, name: str) -> np.ndarray | None:
        """Return a row, read-only, or None where there is none or it was damaged."""
        key = _key(name)
        row = self._waiting.get(key)
        if row is not None:
            return row
        file, number = self._places.get(key, (None, 0))
        if file is None:
            return None
        row = file.rows[number]
        if zlib.crc32(row) != file.index["checksum"][number]:
            with self._lock:
                self._places.pop(key, None)  # the file's other rows have checksums of their own and may stay in use
            _discard(file.path, "changed content")
            return None
        return row

    def put(self, name: str, row: np.ndarray) -> None:
        """Keep a row, or drop it where the cache has no room."""
        row = np.ascontiguousarray(row, self._dtype).reshape(self._shape)
        with self._lock:
            self._waiting[_key(name)] = row
            if len(self._waiting) * self.row_bytes >= FILE_BYTES:
                self.flush()

    def flush(self) -> None:
        """Write the rows that wait in memory to the disk."""
        with self._lock:
            if not self._waiting:
                return
            entries = [(key, zlib.crc32(row)) for key, row in self._waiting.items()]
            index = np.array(entries, dtype=_ENTRY).tobytes()
            tail = _TAIL.pack(_MARK, len(entries), zlib.crc32(index))
            path = self._folder / f"{secrets.token_hex(8)}{_SUFFIX}"
            if self._cache.write(path, b"".join([*self._waiting.values(), index, tail]), self.essential):
                self._open(path)
            self._waiting = {}

    def forget(self, path: Path) -> None:
        """Forget the rows of a file that makes room; arrays that were handed out stay valid."""
        with self._lock:
            self._places = {key: place for key, place in self._places.items() if place[0].path != path}

    def _open(self, path: Path) -> None:
        try:
            index = _read_index(path, self.row_bytes)
            rows = np.memmap(path, self._dtype, "r", shape=(len(index), *self._shape)).view(np.ndarray)
            os.utime(path)  # the least recently used files make room first
        except FileNotFoundError:
            return  # another run made room
        except (OSError, ValueError) as error:
            _discard(path, one_line(error))
            return
        keys = [entry.tobytes() for entry in index["key"]]
        if all(key in self._places for key in keys):  # two runs wrote the same rows: one file is enough
            with contextlib.suppress(OSError):
                path.unlink()
            return
        file = _File(path, rows, index)
        self._cache.in_use[path] = self
        self._places.update({key: (file, number) for number, key in enumerate(keys) if key not in self._places})


class RowCache:
    """A folder of rows of limited size."""

    def __init__(self, folder: Path, limit_bytes: int, keep_images: bool = True) -> None:
        self.folder, self.limit_bytes, self._keep_images = folder, limit_bytes, keep_images
        self.in_use: dict[Path, Rows] = {}  # the files that this run uses, and their rows
        self._kinds: dict[Path, Rows] = {}
        self._full = False
        for part in folder.rglob("*.part"):  # left by killed runs; a younger one may be in use by another run
            with contextlib.suppress(OSError):
                if time.time() - part.stat().st_mtime > _DAY_S:
                    part.unlink()

    def rows(self, meaning: str, shape: tuple[int, ...], dtype: str, essential: bool = True) -> Rows:
        """Return the rows of one meaning, whichever run wrote them.

        Args:
            meaning: everything that determines a row apart from its name.
            shape: of one row.
            dtype: of its numbers.
            essential: False where the run can do without; such rows make room for the others.
        """
        name = f"{meaning.split()[0]}-{hashlib.sha256(f'{meaning} {shape} {dtype}'.encode()).hexdigest()[:16]}"
        folder = self.folder / name
        if folder not in self._kinds:
            self._kinds[folder] = Rows(self, folder, shape, np.dtype(dtype), essential)
        return self._kinds[folder]

    def images(self, preprocessing: Preprocessing) -> Rows | None:
        """Return the decoded images, uint8 (S, S, 3), by the SHA-256 of their files; None where none are kept."""
        size = preprocessing.image_size_px
        if not self._keep_images:
            return None
        return self.rows(f"images {preprocessing.fingerprint}", (size, size, 3), "uint8", essential=False)

    def holds(self, rows: Rows, size: int) -> bool:
        """Return whether `size` bytes of essential rows fit beside the other essential rows of this run."""
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = sum(_file_size(path) for path, owner in self.in_use.items() if owner.essential and owner is not rows)
        files = sum(_file_size(path) for path in self.folder.rglob(f"*{_SUFFIX}"))
        on_disk = files - kept + shutil.disk_usage(self.folder).free - FREE_BYTES
        return size <= min(self.limit_bytes - kept, on_disk)

    def write(self, path: Path, content: bytes, essential: bool) -> bool:
        """Write a file where there is room; log once where there is none."""
        try:
            if self._make_room(len(content), essential):
                write_atomic(path, content)
                return True
            problem = f"data.cache_gb ({self.limit_bytes / _GB:g} GB) or the disk is full"
        except (OSError, DataError) as error:
            problem = one_line(error)
        if not self._full:
            log(f"cache: no more rows are stored: {problem}")
            self._full = True
        return False

    def flush(self) -> None:
        """Write all rows that wait in memory."""
        for rows in self._kinds.values():
            rows.flush()

    def _make_room(self, size: int, essential: bool) -> bool:
        """Delete the least recently used files until there is room; return False where there can be none.

        Essential rows may take the room of this run's decoded images, and of whatever else fills the disk here.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        files = []
        for path in self.folder.rglob(f"*{_SUFFIX}"):
            with contextlib.suppress(OSError):  # another run may delete it now
                status = path.stat()
                files.append((status.st_mtime, status.st_size, path))
        total = size + sum(each for _, each, _ in files)
        for _, each, path in sorted(files):
            if total <= self.limit_bytes and not (essential and self._disk_is_full(size)):
                break
            owner = self.in_use.get(path)
            if owner is None or (essential and not owner.essential):
                self.in_use.pop(path, None)
                if owner:
                    owner.forget(path)
                with contextlib.suppress(OSError):
                    path.unlink()
                total -= each
        return total <= self.limit_bytes and not self._disk_is_full(size)

    def _disk_is_full(self, size: int) -> bool:
        return shutil.disk_usage(self.folder).free < size + FREE_BYTES


@contextmanager
def open_cache(data: DataConfig) -> Iterator[RowCache]:
    """Open the cache that a configuration names; with `none`, or where that can't be written, a temporary one.

    A temporary one holds no images: decoding them again is slower, but needs no gigabytes of a temporary folder.
    """
    limit, folder = round(data.cache_gb * _GB), data.cache_folder
    if folder and _is_usable(folder):
        cache = RowCache(folder, limit)
        try:
            yield cache
        finally:
            cache.flush()
    else:
        with tempfile.TemporaryDirectory(prefix="fakereal-", ignore_cleanup_errors=True) as temporary:
            yield RowCache(Path(temporary), limit, keep_images=False)


def _is_usable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        log(f"cache: {folder} can't be written ({error.strerror or error}): nothing is cached for the next run")
        return False
    return True


def _file_size(path: Path) -> int:
    """Return the size of a file, 0 where another run has deleted it."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _key(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()[: _ENTRY["key"].itemsize]


def _read_index(path: Path, row_bytes: int) -> np.ndarray:
    """Return the index of a file; ValueError where the file is not what was written."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        file.seek(max(0, size - _TAIL.size))
        tail = file.read()
        mark, count, checksum = _TAIL.unpack(tail) if len(tail) == _TAIL.size else (b"", 0, 0)
        if mark != _MARK or size != count * (row_bytes + _ENTRY.itemsize) + _TAIL.size:
            raise ValueError("truncated")
        file.seek(count * row_bytes)
        index = file.read(count * _ENTRY.itemsize)
    if zlib.crc32(index) != checksum:
        raise ValueError("changed index")
    return np.frombuffer(index, dtype=_ENTRY)


def _discard(path: Path, damage: str) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
        log(f"cache: discarding {path.name} ({damage}); its rows will be rebuilt")
