"""Files written whole, and what identifies a file's content."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from fakereal.errors import DataError

try:
    import fcntl
except ImportError:  # Windows: two runs at once are then not told apart
    fcntl = None


def write_atomic(path: Path, content: bytes) -> None:
    """Writes a file so that a reader, or a kill, sees the old content or the new one, never a part.

    Raises:
        DataError: the folder or the file can't be written.
    """
    with open_atomic(path) as file:
        file.write(content)


@contextlib.contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """Like `write_whole`, for a content that comes in pieces: yields a file that counts once it is complete."""
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:  # Ctrl-C too must leave no part behind
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise DataError(f"{path}: expected to write the file, found {error.strerror or error}") from error
        raise


def remove_partial_files(path: Path) -> None:
    """Removes what killed processes left of a file that they were writing; only for the one that writes it now."""
    for part in path.parent.glob(f".{glob.escape(path.name[:100])}.????????.part"):
        with contextlib.suppress(OSError):
            part.unlink()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock file, which stays, while something is made that two runs must not make at once.

    Raises:
        DataError: another run holds it, or it can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "ab")  # noqa: SIM115 - closed below
    except OSError as error:
        raise DataError(f"{path}: expected to write the file, found {error.strerror or error}") from error
    with file:
        lock(path, file)
        yield


def lock(path: Path, file: BinaryIO) -> None:
    """Locks an open file until it is closed: alone where it can be written, else with other readers.

    Raises:
        DataError: another run holds it.
    """
    if fcntl is None:
        return
    try:
        fcntl.flock(file, (fcntl.LOCK_EX if file.writable() else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DataError(
            f"{path}: expected no other run with this --output, found one at work: wait for it, or take another"
            " --output"
        ) from error
    except OSError:
        return  # a file system without locks


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes as 64 hexadecimal digits; reads it in pieces, so any size is fine."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- What keeps a separation from being disturbed by another one.

try:
    import fcntl
except ImportError:  # Windows; two runs at once are not told apart there
    fcntl = None


@contextlib.contextmanager
def alone_in(*folders: Path) -> Iterator[None]:
    """Keeps a second run out of the folders; the lock dies with its process, however that ends.

    Raises:
        DataError: another run is at work there.
    """
    with contextlib.ExitStack() as stack:
        for folder in dict.fromkeys(folders):
            if fcntl is not None and folder.is_dir():
                with contextlib.suppress(PermissionError):  # what can't be read, the scan will name
                    handle = os.open(folder, os.O_RDONLY)
                    stack.callback(os.close, handle)
                    _lock_folder(handle, folder)
        yield


def _lock_folder(handle: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DataError(
            f"{display_path(folder)}: expected no other run at work there, found one: wait until it ends"
        ) from error
    except OSError:
        return  # some network file systems have no locks


def display_path(path: Path | str) -> str:
    """Returns a path on one line: newlines, control characters and bytes that are no UTF-8 are written as escapes."""
    text = os.fspath(path)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
