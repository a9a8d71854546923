"""Files written whole, and what identifies a file's content."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from pathlib import Path

from fakereal.errors import DataError


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file so that a reader, or a kill, sees the old content or the new one, never a part.

    Raises:
        DataError: the folder or the file can't be written.
    """
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:  # Ctrl-C too must leave no part behind
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise DataError(f"{path}: expected to write the file, found {error.strerror or error}") from error
        raise


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes as 64 hexadecimal digits; reads it in pieces, so any size is fine."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
