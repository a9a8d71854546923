"""Transfer one file to its new name and back, safely under a kill between any two system calls.

No progress is written down: which of the two names holds the journaled content tells how far a file came. Nothing is
overwritten, since a name is only ever taken by `link`, which fails where the name exists.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from fakereal.files import display_path, sha256_of

MODES = ("move", "copy", "link")

REASONS = {
    "no_predictions": "no prediction file for its folder",
    "loose": "not in a sub-folder",
    "no_prediction": "no entry in any prediction file",
    "refused": "its prediction file can't be used",
    "null_prediction": "the prediction file gives it no label",
    "conflict": "one prediction file says both fake and real",
    "disagreement": "the experiments disagree",
    "ambiguous": "several files have the same number",
    "unreadable": "not a readable image",
    "symbolic_link": "a symbolic link",
    "not_a_file": "not a regular file",
    "read_only": "its folder is read-only",
    "name_taken": "its new name is taken",
    "name_too_long": "its new name would be too long",
    "changed": "changed since the journal was written",
    "gone": "missing since the journal was written",
    "failed": "the operating system refused",
}
"""Why a file is skipped: one word for programs, and the phrase for people."""

_UNSUPPORTED = {errno.EPERM, errno.EMLINK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
"""How simple file systems (FAT, some network shares) refuse what they don't have, such as hard links."""


@dataclass(frozen=True)
class SkippedFile:
    """A file that stays where it is."""

    path: Path
    reason: str  # one of REASONS
    detail: str  # the particulars, for people
    votes: tuple[tuple[str, int], ...] = ()  # (experiment, label) of each experiment that has one


class SkippedFileError(Exception):
    """Raised for one file that can't be transferred; the run lists it and continues.

    Attributes:
        reason: one of REASONS.
        detail: the particulars, for people.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Transfer:
    """One file of a journal with its full paths."""

    source: Path
    target: Path
    sha256: str  # of the content when the journal was written
    size: int  # bytes
    part: str  # name of the temporary file; no other file has it, so a later run may delete what a kill left


def transfer_file(transfer: Transfer, mode: str) -> None:
    """Bring one file to its target, from whatever point an earlier run was killed at.

    Args:
        transfer: the file.
        mode: one of MODES.

    Raises:
        SkippedFileError: the file has to stay where it is.
        OSError: the operating system refused; both names are as they were.
    """
    source, target = transfer.source, transfer.target
    _remove_part(target.parent / transfer.part)
    at_source, at_target = _holds(source, transfer), _holds(target, transfer)
    if at_target is False:
        raise SkippedFileError("name_taken", f"another file is at {display_path(target)}")
    if at_target:
        if mode == "move" and at_source:
            _remove_original(source, copy=target)
        return
    if at_source is None:
        raise SkippedFileError("gone", "the file no longer exists")
    if at_source is False:
        raise SkippedFileError("changed", "its content differs from the journal")
    if mode == "link":
        os.link(source, target)
    elif mode == "copy":
        _copy(transfer, source, target)
    else:
        _move(transfer, source, target)


def return_file(transfer: Transfer) -> None:
    """Undo `transfer_file` in any mode, from whatever point it or an earlier undo was killed at.

    Raises:
        SkippedFileError: the file can't be put back; nothing was changed.
        OSError: the operating system refused; both names are as they were.
    """
    source, target = transfer.source, transfer.target
    for folder in (source.parent, target.parent):
        _remove_part(folder / transfer.part)
    at_source, at_target = _holds(source, transfer), _holds(target, transfer)
    if at_source:
        if at_target:
            _remove_duplicate(target, keep=source)
    elif at_target and at_source is False:
        raise SkippedFileError("name_taken", f"another file is at {display_path(source)}")
    elif at_target:
        source.parent.mkdir(parents=True, exist_ok=True)
        _move(transfer, target, source)
    elif at_source is None:
        raise _missing(target, at_target)


def _missing(target: Path, at_target: bool | None) -> SkippedFileError:
    where = display_path(target)
    if at_target is False:
        return SkippedFileError("changed", f"{where} differs from the journal: move it back by hand")
    return SkippedFileError("gone", f"not at {where} either")


def _holds(path: Path, transfer: Transfer) -> bool | None:
    """Return True where the journaled content is, False where something else is, None where nothing is."""
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not stat.S_ISREG(status.st_mode) or status.st_size != transfer.size:
        return False
    return sha256_of(path) == transfer.sha256


def _move(transfer: Transfer, source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return _rename(source, target)
        if error.errno != errno.EXDEV:
            raise
        _copy(transfer, source, target)
    _remove_original(source, copy=target)


def _rename(source: Path, target: Path) -> None:
    """Rename where there are no hard links; `rename` alone would overwrite the target."""
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(target))
    source.rename(target)


def _copy(transfer: Transfer, source: Path, target: Path) -> None:
    """Give the target its name only when its bytes are on the disk and verified to be the journaled ones."""
    part = target.parent / transfer.part
    try:
        with open(source, "rb") as reader, open(part, "xb") as writer:
            shutil.copyfileobj(reader, writer, 2**20)
            writer.flush()
            os.fsync(writer.fileno())
        if sha256_of(part) != transfer.sha256:
            raise SkippedFileError("failed", "its copy differs from the original")
        shutil.copystat(source, part)
        _link_or_rename(part, target)
    finally:
        _remove_part(part)


def _link_or_rename(part: Path, target: Path) -> None:
    try:
        os.link(part, target)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        _rename(part, target)


def _remove_original(original: Path, copy: Path) -> None:
    """Remove a file that now has another name; where that is refused, remove the other name, so nothing changed."""
    try:
        _remove_duplicate(original, keep=copy)
    except OSError:
        copy.unlink()
        raise


def _remove_duplicate(path: Path, keep: Path) -> None:
    """Remove one of two names that hold the same content."""
    if not path.samefile(keep):
        sync_folder(keep.parent)  # after a power cut, either the copy has its name or the original still exists
    path.unlink()


def _remove_part(part: Path) -> None:
    if os.path.lexists(part):  # a read-only disk refuses to remove even what isn't there
        part.unlink()


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk; without effect on Windows, which has no such call."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    finally:
        os.close(handle)
