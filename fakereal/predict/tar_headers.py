"""Read the headers of a tar archive, which is treated as hostile: what it holds, and where each file's content lies."""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from fakereal.file_types import HEAD_BYTES

BLOCK = 512
"""Bytes of a tar's header; contents are padded to a multiple of it."""

_PLAIN_HEADER = re.compile(  # of a regular file: the number is octal, and there is no prefix to the name
    rb"(?=(?P<name>[^\0]{1,100})).{124}(?P<size>[0-7]{11})[\0 ].{12}(?P<checksum>[0-7]{6})[\0 ]{2}[0\0]"
    rb".{100}ustar.{83}\0.{166}",
    re.DOTALL,
)


class FileInTar(NamedTuple):
    """A file, link or the like of a tar, as its header says."""

    name: str
    offset: int  # of the content
    size: int
    problem: str | None  # why it can't be read, whatever its name and size

    def head(self, file: BinaryIO) -> bytes:
        """Return the first bytes."""
        file.seek(self.offset)
        return file.read(min(HEAD_BYTES, self.size))  # no more: a compressed tar can't be read backwards


def files_in_tar(file: BinaryIO, sequential: bool) -> Iterator[FileInTar]:
    """Yield what a tar holds, without folders. Only the first and what is no plain header is left to the slow tarfile.

    Raises:
        tarfile.ReadError: the tar is damaged or cut off.
    """
    with tarfile.open(fileobj=file, mode="r:") as tar:
        end = 0
        while True:
            # tarfile has read the first header. It looks back by a byte, which a compressed tar is not fit for.
            plain = None if end == 0 or sequential or tar.pax_headers else _plain_file(file, tar.offset)
            if plain is not None:
                tar.offset = end = plain.offset + -(-plain.size // BLOCK) * BLOCK
                yield plain
                continue
            if not sequential:
                file.seek(0)  # from elsewhere, tarfile makes sure that the file before has its last byte
            if (info := tar.next()) is None:
                break
            if tar.offset <= end:  # a negative size: it would be found again, forever
                raise tarfile.ReadError(f"a file of {info.size:,} bytes")
            end = tar.offset
            tar.members.clear()  # 1.5 kB each
            if not info.isdir():
                yield FileInTar(info.name, info.offset_data, info.size, _problem_in_tar(info))
        file.seek(tar.offset)
        if file.read(BLOCK).strip(b"\0") or file.tell() != tar.offset + BLOCK:
            raise tarfile.ReadError("no end mark where the last file ends")


def _plain_file(file: BinaryIO, offset: int) -> FileInTar | None:
    """Return the file whose header lies here, None where it is not a plain one of a regular file with a short name."""
    file.seek(offset)
    header = file.read(BLOCK)
    found = _PLAIN_HEADER.match(header)
    if found is None or found["name"].endswith(b"/"):  # old tars mark folders so
        return None
    # Adler-32 has the sum of all bytes, plus 1, modulo 65,521; in the checksum, its own eight bytes count as spaces.
    checksum = int(found["checksum"], 8) - 8 * 0x20 + sum(header[148:156])
    if zlib.adler32(header) & 0xFFFF != (checksum + 1) % 65_521:
        return None
    name, size = found["name"].decode(tarfile.ENCODING, "surrogateescape"), int(found["size"], 8)
    return FileInTar(name, offset + BLOCK, size, None)


def _problem_in_tar(info: tarfile.TarInfo) -> str | None:
    if not info.isreg():
        return f"expected a file, got a {'link' if info.issym() or info.islnk() else 'pipe or device'}"
    if info.issparse():
        return "expected an ordinary file, got a sparse one"
    return None
