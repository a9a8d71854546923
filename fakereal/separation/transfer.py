"""One file carried to its new name and back, so that a kill between any two system calls loses and doubles nothing.

No step is noted down while it happens: which of the two names holds the journalled bytes says how far a file came.
Nothing is overwritten, since a name is only ever taken by `link`, which fails where there is something already.
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

_NOT_POSSIBLE_HERE = {errno.EPERM, errno.EMLINK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
"""What simple file systems (FAT, some network shares) answer to what they can't do, such as hard links."""


@dataclass(frozen=True)
class Transfer:
    """One file of a journal."""

    source: Path
    target: Path
    sha256: str  # of the content when the journal was written
    size: int  # bytes
    part: str  # name of the temporary file, found nowhere else, so that a rerun may delete what a kill left


def carry(transfer: Transfer, mode: str) -> None:
    """Brings one file to its target, from whatever point an earlier run was killed at.

    Raises:
        StaysError: the file has to stay where it is.
        OSError: the system refused; both names are as they were.
    """
    source, target = transfer.source, transfer.target
    _forget_part(target.parent / transfer.part)
    here, there = _holds(source, transfer), _holds(target, transfer)
    if there is False:
        raise SkippedFileError("name_taken", f"another file has come to {display_path(target)}")
    if there:
        if mode == "move" and here:
            _drop_or_go_back(source, keeper=target)
        return
    if here is None:
        raise SkippedFileError("gone", "no file there any more")
    if here is False:
        raise SkippedFileError("changed", "its content is no longer what the journal says")
    if mode == "link":
        os.link(source, target)
    elif mode == "copy":
        _copy(transfer, source, target)
    else:
        _move(transfer, source, target)


def bring_back(transfer: Transfer) -> None:
    """Undoes `carry`, in whatever mode and from whatever point it or an earlier undo was killed at.

    Raises:
        StaysError: the file can't be put back; nothing was touched.
        OSError: the system refused; both names are as they were.
    """
    source, target = transfer.source, transfer.target
    for folder in (source.parent, target.parent):
        _forget_part(folder / transfer.part)
    here, there = _holds(source, transfer), _holds(target, transfer)
    if here:
        if there:
            _drop(target, keeper=source)
    elif there and here is False:
        raise SkippedFileError("name_taken", f"another file has come to {display_path(source)}")
    elif there:
        source.parent.mkdir(parents=True, exist_ok=True)
        _move(transfer, target, source)
    elif here is None:
        raise SkippedFileError(*_missing(target, there))


def _missing(target: Path, there: bool | None) -> tuple[str, str]:
    if there is False:
        return "changed", f"{display_path(target)} is no longer what the journal says: move it back by hand"
    return "gone", f"neither there nor at {display_path(target)}"


def _holds(path: Path, transfer: Transfer) -> bool | None:
    """Returns True where the journalled bytes lie, False where something else does, None where nothing does."""
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
        if error.errno in _NOT_POSSIBLE_HERE:
            return _rename(source, target)
        if error.errno != errno.EXDEV:
            raise
        _copy(transfer, source, target)
    _drop_or_go_back(source, keeper=target)


def _rename(source: Path, target: Path) -> None:
    """Renames where there are no hard links: `rename` alone would overwrite."""
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(target))
    source.rename(target)


def _copy(transfer: Transfer, source: Path, target: Path) -> None:
    """Gives the target its name only when its bytes are on the disk and proved to be the journalled ones."""
    part = target.parent / transfer.part
    try:
        with open(source, "rb") as reader, open(part, "xb") as writer:
            shutil.copyfileobj(reader, writer, 2**20)
            writer.flush()
            os.fsync(writer.fileno())
        if sha256_of(part) != transfer.sha256:
            raise SkippedFileError("failed", "its copy differs from the original")
        shutil.copystat(source, part)
        _name(part, target)
    finally:
        _forget_part(part)


def _name(part: Path, target: Path) -> None:
    try:
        os.link(part, target)
    except OSError as error:
        if error.errno not in _NOT_POSSIBLE_HERE:
            raise
        _rename(part, target)


def _drop(path: Path, keeper: Path) -> None:
    """Removes one of two names that hold the same bytes."""
    if not path.samefile(keeper):
        sync_folder(keeper.parent)  # after a power cut the copy must have its name, or the original must be there
    path.unlink()


def _drop_or_go_back(path: Path, keeper: Path) -> None:
    """Like `_drop`, for a keeper of our own making: where the removal is refused, the keeper goes, as before."""
    try:
        _drop(path, keeper)
    except OSError:
        keeper.unlink()
        raise


def _forget_part(part: Path) -> None:
    if os.path.lexists(part):  # on a read-only disk even a removal of nothing is refused
        part.unlink()


def sync_folder(folder: Path) -> None:
    """Waits until a folder's names are on the disk; a no-op where the system has no such call (Windows)."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NOT_POSSIBLE_HERE:  # some network file systems can't do this either
            raise
    finally:
        os.close(handle)


# ---- Why a file stays where it is, in one word for programs and one sentence for people.

REASONS = {
    "no_predictions": "no prediction JSON for the folder",
    "loose": "not in a sub-folder",
    "no_prediction": "no entry in any JSON",
    "null_prediction": "the JSON says that it could not be read",
    "conflict": "one JSON says both fake and real",
    "disagreement": "the experiments disagree",
    "ambiguous": "several files have the same number",
    "unreadable": "no sound image",
    "symbolic_link": "a symbolic link",
    "not_a_file": "no regular file",
    "read_only": "its folder is read-only",
    "name_taken": "its new name is taken",
    "name_too_long": "its new name would be too long",
    "changed": "changed since the journal was written",
    "gone": "gone since the journal was written",
    "failed": "the system refused",
}
"""Every reason that a file can stay for, and what the summary calls it."""


@dataclass(frozen=True)
class SkippedFile:
    """One file that stays where it is."""

    path: Path
    reason: str  # one of REASONS
    detail: str  # the particulars, for people
    votes: tuple[tuple[str, int], ...] = ()  # (experiment, label) of each experiment that has one


class SkippedFileError(Exception):
    """Raised while one file is handled; the job lists it and goes on."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
