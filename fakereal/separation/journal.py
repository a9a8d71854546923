"""The journal of a separation: written whole before the first file moves, and enough to finish it or to undo it.

One JSON object a line: a header, then one line a file. Lines added later say how far the whole job came; how far each
file came, the disk itself says (`separation_moves`), so a kill at any moment leaves nothing to be repaired.
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
from fakereal.separation.transfer import MODES, SkippedFile, SkippedFileError, Transfer, bring_back, carry, sync_folder

FORMAT = "fakereal-separation/1"
CLASS_FOLDERS = tuple(f"{name}_images" for name in NAMES)
"""`CLASS_FOLDERS[label]` is where the files of a label go."""

_NAME = re.compile(r"separation_(\d{3,})\.journal\.jsonl")


@dataclass(frozen=True)
class Entry:
    """One file that has a label and a new name."""

    source: Path  # absolute
    name: str  # in its class folder
    label: int  # 0 fake, 1 real
    sha256: str
    size: int  # bytes


@dataclass(frozen=True)
class Journal:
    """What one run set out to do."""

    path: Path  # in OUTPUT; the class folders stand beside it
    mode: str  # move, copy or link
    source: Path  # SOURCE, absolute
    entries: tuple[Entry, ...]
    identity: str  # random, so that temporary files are known as this journal's own
    new_folders: tuple[str, ...]  # class folders that were not there before
    status: str = "open"  # open, done, undoing, undone

    def transfer(self, number: int) -> Transfer:
        """Returns entry `number` with its full paths."""
        entry = self.entries[number]
        part = f".{self.identity}-{number}.part"
        return Transfer(entry.source, self.target(entry), entry.sha256, entry.size, part)

    def target(self, entry: Entry) -> Path:
        """Returns the full path that an entry's file goes to."""
        return self.path.parent / CLASS_FOLDERS[entry.label] / entry.name


@dataclass(frozen=True)
class TransferResult:
    """What applying or undoing a journal came to."""

    stayed: tuple[SkippedFile, ...]  # files that could not be carried, each with its reason
    handled: int  # files that are where they should be
    interrupted: bool = False  # stopped by Ctrl-C before the last file


NOTHING = TransferResult((), 0)
"""The outcome of a run that had nothing to do."""


def find(output: Path) -> list[Journal]:
    """Returns the journals in an output folder, oldest first; none where there is no such folder."""
    if not output.is_dir():
        return []
    return [read(path) for _, path in _numbered(output)]


def clear_torn(output: Path) -> None:
    """Removes what a kill left of a journal or a report that was not whole; only for the one run at work there."""
    for torn in output.glob(".separation_*.part"):
        with contextlib.suppress(OSError):
            torn.unlink()


def _numbered(output: Path) -> list[tuple[int, Path]]:
    return sorted((int(match[1]), path) for path in output.iterdir() if (match := _NAME.fullmatch(path.name)))


def create(output: Path, mode: str, source: Path, entries: Sequence[Entry]) -> Journal:
    """Writes a new journal and waits until it is on the disk; nothing has moved yet."""
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
    """Reads a journal back.

    Raises:
        DataError: the file can't be read or is no journal of this format.
    """
    path = Path(os.path.realpath(path))
    try:
        lines = path.read_text(encoding="ascii").splitlines()
        header = json.loads(lines[0])
        if header["format"] != FORMAT or header["mode"] not in MODES:
            raise ValueError("another format")
        if not re.fullmatch(r"[0-9a-f]{16}", header["identity"]):  # it becomes part of file names that get deleted
            raise ValueError("no identity")
        count = header["files"]
        entries = tuple(_parse(json.loads(line)) for line in lines[1 : count + 1])
        if len(entries) != count:
            raise ValueError(f"{len(entries)} of {count} files")
    except OSError as error:
        raise DataError(f"{display_path(path)}: expected a journal, found {error.strerror or error}") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(
            f"{display_path(path)}: expected a journal that image_separate.py wrote (format {FORMAT}), found: {error}"
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
        raise ValueError(f"a file to {line['to']!r} from {line['from']!r}")
    return Entry(Path(line["from"]), name, CLASS_FOLDERS.index(folder), line["sha256"], int(line["size"]))


def _status(lines: Sequence[str]) -> str:
    """Returns the last whole status line's word; a kill may have torn a line."""
    status = "open"
    for line in lines:
        with contextlib.suppress(ValueError, LookupError, TypeError):
            status = str(json.loads(line)["status"])
    return status


def _mark(journal: Journal, status: str) -> None:
    try:
        with open(journal.path, "ab") as file:
            # The newline in front parts it from a line that a kill may have torn.
            file.write(f"\n{json.dumps({'status': status})}\n".encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise DataError(
            f"{display_path(journal.path)}: expected to add {status!r} to the journal, found: {error.strerror or error}"
        ) from error


def apply(journal: Journal, advance: Callable[[int], None], stop: Callable[[], bool]) -> TransferResult:
    """Carries every file to its place; begins or goes on, from whatever point an earlier run was killed at.

    Args:
        journal: what to do; it stands on the disk.
        advance: called with 1 after each file.
        stop: asked before each file; True ends the work there, to be gone on with later.
    """
    output = journal.path.parent
    for name in CLASS_FOLDERS:
        make_folder(output / name)
    outcome = _for_each(journal, lambda transfer: carry(transfer, journal.mode), advance, stop)
    for name in CLASS_FOLDERS:
        sync_folder(output / name)
        _remove_if_empty(output / name, journal)
    if not outcome.interrupted:
        _mark(journal, "done")
    return outcome


def undo(journal: Journal, advance: Callable[[int], None], stop: Callable[[], bool]) -> TransferResult:
    """Puts every file back, from whatever point the separation, or an earlier undo, was killed at.

    The journal itself stays, so that a second undo finds nothing to do rather than nothing to read.

    Raises:
        DataError: the source is not there, as when its disk is missing, or the journal can't be written.
    """
    if not journal.source.is_dir():
        raise DataError(
            f"{display_path(journal.source)}: expected the folder that the files came from, found none:"
            " connect its disk, or make the folder anew"
        )
    if journal.status != "undone":
        _mark(journal, "undoing")
    outcome = _for_each(journal, bring_back, advance, stop)
    for name in CLASS_FOLDERS:
        _remove_if_empty(journal.path.parent / name, journal)
    if not outcome.interrupted:
        _mark(journal, "undone")
    return outcome


def make_folder(folder: Path) -> None:
    """Makes a folder, and those above it, unless it is there.

    Raises:
        DataError: it can't be made, or a file has its name.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{display_path(folder)}: expected a folder that can be written, found: {error.strerror or error}"
        ) from error


def _for_each(journal: Journal, step: Callable[[Transfer], None], advance, stop) -> TransferResult:
    stayed = []
    for number in range(len(journal.entries)):
        if stop():
            return TransferResult(tuple(stayed), number - len(stayed), interrupted=True)
        transfer = journal.transfer(number)
        try:
            step(transfer)
        except SkippedFileError as error:
            stayed.append(SkippedFile(transfer.source, error.reason, error.detail))
        except OSError as error:
            stayed.append(SkippedFile(transfer.source, "failed", _refusal(error)))
        advance(1)
    return TransferResult(tuple(stayed), len(journal.entries) - len(stayed))


def _refusal(error: OSError) -> str:
    hint = ": use --mode copy" if "cross-device" in str(error).lower() else ""
    return f"{error.strerror or error}{hint}"


def _remove_if_empty(folder: Path, journal: Journal) -> None:
    if folder.name in journal.new_folders:
        with contextlib.suppress(OSError):
            folder.rmdir()
