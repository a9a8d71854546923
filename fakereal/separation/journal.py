"""The journal of a separation: written whole before the first file moves, and enough to finish or undo the run.

A JSON Lines file: a header, then one line per file. Status lines added later tell how far the whole run came. How far
each file came is read from the disk (`transfer`), so a kill at any moment leaves nothing to be repaired.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fakereal.errors import DataError
from fakereal.files import display_path, write_atomic
from fakereal.labels import NAMES
from fakereal.separation.transfer import (
    MODES,
    SkippedFile,
    SkippedFileError,
    Transfer,
    return_file,
    sync_folder,
    transfer_file,
)

FORMAT = "fakereal-separation/1"
CLASS_FOLDERS = tuple(f"{name}_images" for name in NAMES)
"""`CLASS_FOLDERS[label]` is the folder in the output that files of a label go to."""

_NAME = re.compile(r"separation_(\d{3,})\.journal\.jsonl")


@dataclass(frozen=True)
class Entry:
    """One file with its label and its new name."""

    source: Path  # absolute
    name: str  # in its class folder
    label: int  # 0 fake, 1 real
    sha256: str
    size: int  # bytes


@dataclass(frozen=True)
class Journal:
    """The files that one run transfers."""

    path: Path  # in the output folder, beside the class folders
    mode: str  # move, copy or link
    source: Path  # the source folder, absolute
    entries: tuple[Entry, ...]
    identity: str  # random, part of the names of temporary files
    new_folders: tuple[str, ...]  # class folders that did not exist before
    status: str = "open"  # open, done, undoing, undone

    def transfer(self, number: int) -> Transfer:
        """Return entry `number` with its full paths."""
        entry = self.entries[number]
        part = f".{self.identity}-{number}.part"
        return Transfer(entry.source, self.target(entry), entry.sha256, entry.size, part)

    def target(self, entry: Entry) -> Path:
        """Return the full path that an entry's file is transferred to."""
        return self.path.parent / CLASS_FOLDERS[entry.label] / entry.name


@dataclass(frozen=True)
class TransferResult:
    """The result of applying or undoing a journal."""

    skipped: tuple[SkippedFile, ...] = ()  # files that could not be transferred
    completed: int = 0  # files that are where they should be
    interrupted: bool = False  # stopped by Ctrl-C before the last file


def find(output: Path) -> list[Journal]:
    """Return the journals in an output folder, oldest first; none where the folder doesn't exist."""
    if not output.is_dir():
        return []
    return [read(path) for _, path in _numbered(output)]


def remove_partial(output: Path) -> None:
    """Remove the journals and reports that a kill left incomplete; only for the one run that holds the folder."""
    for part in output.glob(".separation_*.part"):
        with contextlib.suppress(OSError):
            part.unlink()


def _numbered(output: Path) -> list[tuple[int, Path]]:
    return sorted((int(match[1]), path) for path in output.iterdir() if (match := _NAME.fullmatch(path.name)))


def create(output: Path, mode: str, source: Path, entries: Sequence[Entry]) -> Journal:
    """Write a new journal and wait until it is on the disk; no file has moved yet."""
    number = max((number for number, _ in _numbered(output)), default=0) + 1
    new_folders = tuple(name for name in CLASS_FOLDERS if not (output / name).exists())
    path = output / f"separation_{number:03}.journal.jsonl"
    journal = Journal(path, mode, source, tuple(entries), secrets.token_hex(8), new_folders)
    header = {
        "format": FORMAT,
        "mode": mode,
        "source": os.fspath(source),
        "identity": journal.identity,
        "new_folders": list(new_folders),
        "files": len(journal.entries),
    }
    lines = [json.dumps(line) for line in (header, *map(_as_dict, journal.entries))]
    write_atomic(path, ("\n".join(lines) + "\n").encode("ascii"))
    sync_folder(output)
    return journal


def read(path: Path) -> Journal:
    """Read a journal.

    Raises:
        DataError: the file can't be read, or is no journal of this format.
    """
    path = Path(os.path.realpath(path))
    try:
        lines = path.read_text(encoding="ascii").splitlines()
        header = json.loads(lines[0])
        if header["format"] != FORMAT or header["mode"] not in MODES:
            raise ValueError("another format")
        if not re.fullmatch(r"[0-9a-f]{16}", header["identity"]):  # part of the names of files that are deleted
            raise ValueError("no identity")
        count = header["files"]
        entries = tuple(_parse(json.loads(line)) for line in lines[1 : count + 1])
        if len(entries) != count:
            raise ValueError(f"{len(entries)} of {count} files")
    except OSError as error:
        raise DataError(f"{display_path(path)}: can't read the journal: {error.strerror or error}") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(
            f"{display_path(path)}: expected a journal that image_separate.py wrote ({FORMAT}), got: {error}"
        ) from error
    new_folders = tuple(name for name in header["new_folders"] if name in CLASS_FOLDERS)
    source, status = Path(header["source"]), _status(lines[count + 1 :])
    return Journal(path, header["mode"], source, entries, header["identity"], new_folders, status)


def _as_dict(entry: Entry) -> dict[str, object]:
    place = {"from": os.fspath(entry.source), "to": f"{CLASS_FOLDERS[entry.label]}/{entry.name}"}
    return {**place, "size": entry.size, "sha256": entry.sha256}


def _parse(line: dict) -> Entry:
    folder, _, name = line["to"].partition("/")
    if name in ("", ".", "..") or Path(name).name != name or not Path(line["from"]).is_absolute():
        raise ValueError(f"a file from {line['from']!r} to {line['to']!r}")
    return Entry(Path(line["from"]), name, CLASS_FOLDERS.index(folder), line["sha256"], int(line["size"]))


def _status(lines: Sequence[str]) -> str:
    """Return the status of the last complete status line; a kill may have cut one off."""
    status = "open"
    for line in lines:
        with contextlib.suppress(ValueError, LookupError, TypeError):
            status = str(json.loads(line)["status"])
    return status


def apply(journal: Journal, advance: Callable[[int], None], stop: Callable[[], bool]) -> TransferResult:
    """Transfer every file; starts, or continues from whatever point an earlier run was killed at.

    Args:
        journal: as it is on the disk.
        advance: called with 1 after each file.
        stop: called before each file; True ends the run there, to be continued later.
    """
    output = journal.path.parent
    for name in CLASS_FOLDERS:
        make_folder(output / name)
    result = _for_each(journal, lambda transfer: transfer_file(transfer, journal.mode), advance, stop)
    for name in CLASS_FOLDERS:
        sync_folder(output / name)
        _remove_if_empty(output / name, journal)
    if not result.interrupted:
        _append_status(journal, "done")
    return result


def undo(journal: Journal, advance: Callable[[int], None], stop: Callable[[], bool]) -> TransferResult:
    """Put every file back, from whatever point the separation, or an earlier undo, was killed at.

    The journal itself stays, so that a second undo finds nothing to do instead of nothing to read.

    Args:
        journal: as it is on the disk.
        advance: called with 1 after each file.
        stop: called before each file; True ends the undo there, to be continued later.

    Raises:
        DataError: the source folder is missing, as when its disk is not connected, or the journal can't be written.
    """
    if not journal.source.is_dir():
        raise DataError(
            f"{display_path(journal.source)}: the folder that the files came from is missing:"
            " connect its disk, or create the folder again"
        )
    if journal.status != "undone":
        _append_status(journal, "undoing")
    result = _for_each(journal, return_file, advance, stop)
    for name in CLASS_FOLDERS:
        _remove_if_empty(journal.path.parent / name, journal)
    if not result.interrupted:
        _append_status(journal, "undone")
    return result


def _for_each(journal: Journal, step: Callable[[Transfer], None], advance, stop) -> TransferResult:
    skipped = []
    for number in range(len(journal.entries)):
        if stop():
            return TransferResult(tuple(skipped), number - len(skipped), interrupted=True)
        transfer = journal.transfer(number)
        try:
            step(transfer)
        except SkippedFileError as error:
            skipped.append(SkippedFile(transfer.source, error.reason, error.detail))
        except OSError as error:
            skipped.append(SkippedFile(transfer.source, "failed", _describe(error)))
        advance(1)
    return TransferResult(tuple(skipped), len(journal.entries) - len(skipped))


def _describe(error: OSError) -> str:
    hint = ": use --mode copy" if "cross-device" in str(error).lower() else ""
    return f"{error.strerror or error}{hint}"


def _append_status(journal: Journal, status: str) -> None:
    try:
        with open(journal.path, "ab") as file:
            # The newline in front separates it from a line that a kill may have cut off.
            file.write(f"\n{json.dumps({'status': status})}\n".encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise DataError(
            f"{display_path(journal.path)}: can't write the status {status!r}: {error.strerror or error}"
        ) from error


def make_folder(folder: Path) -> None:
    """Create a folder and its parents, unless it exists.

    Raises:
        DataError: it can't be created, or a file has its name.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{display_path(folder)}: can't create the folder: {error.strerror or error}") from error


def _remove_if_empty(folder: Path, journal: Journal) -> None:
    if folder.name in journal.new_folders:
        with contextlib.suppress(OSError):
            folder.rmdir()
