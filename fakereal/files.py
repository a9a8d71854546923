"""Files and paths: atomic writes, locks between runs, content hashes, names relative to a folder, the cache folder."""

from __future__ import annotations

import contextlib
import filecmp
import glob
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from fakereal.errors import DataError
from fakereal.runtime import log

_BACKUPS_NAMED = 3  # on the screen
_RUBBISH = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "Thumbs.db", "desktop.ini", ".DS_Store"}
_LONGEST_STEM = 100  # characters of a name that its temporary file repeats: file systems allow 255 bytes


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file atomically: readers find the old content or the new one, never a part, even after a kill.

    Raises:
        DataError: the folder or the file can't be written.
    """
    with open_atomic(path) as file:
        file.write(content)


@contextlib.contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """Yield a binary file that replaces `path` once the block ends without an error, for content that comes in pieces.

    Raises:
        DataError: the folder or the file can't be written.
    """
    with replacing(path) as temporary, open(temporary, "xb") as file:
        yield file


@contextlib.contextmanager
def replacing(path: Path, suffix: str = "") -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`, for libraries that write files by name; see `open_atomic`.

    Args:
        path: what the file is called in the end.
        suffix: what the temporary path ends with, where the library chooses the format by it.

    Raises:
        DataError: the folder or the file can't be written.
    """
    temporary = path.with_name(f".{path.name[:_LONGEST_STEM]}.{secrets.token_hex(4)}.part{suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:  # Ctrl-C too must leave no part behind
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise DataError(f"{path}: can't be written: {error.strerror or error}") from error
        raise


@contextlib.contextmanager
def keep_backups(*paths: Path | None, force: bool = False) -> Iterator[None]:
    """Keep each file that the block replaces by another content as `NAME.bak`, and log which.

    Where there is a backup already, the next one is `NAME.bak2`: none is replaced. Each is made before the block, so
    that a kill loses nothing. The block must replace the files (`write_atomic`), not write into them.

    Args:
        paths: of the files; those that don't exist yet, and None, are skipped.
        force: keep no backups.
    """
    existing = [path for path in paths if path is not None and path.is_file()]
    backups = {} if force else {path: _back_up(path) for path in existing}
    try:
        yield
    finally:
        kept = [backup for path, (backup, is_new) in backups.items() if not _is_unchanged(path, backup, is_new)]
        if kept:
            _log_backups(kept)


def _log_backups(backups: Sequence[Path]) -> None:
    names = ", ".join(display_path(path) for path in backups[:_BACKUPS_NAMED])
    more = f" and {len(backups) - _BACKUPS_NAMED} more" if len(backups) > _BACKUPS_NAMED else ""
    log(f"replaced other results, which are kept as {names}{more} (--force keeps none)")


def _back_up(path: Path) -> tuple[Path, bool]:
    """Return a second name of a file, or a copy where there are no such links, and whether it was made just now."""
    number, backup = 1, path.with_name(f"{path.name}.bak")
    while backup.exists():
        if filecmp.cmp(path, backup, shallow=False):
            return backup, False
        number += 1
        backup = path.with_name(f"{path.name}.bak{number}")
    try:
        backup.hardlink_to(path)
    except OSError:
        shutil.copy2(path, backup)
    return backup, True


def _is_unchanged(path: Path, backup: Path, is_new: bool) -> bool:
    """Return whether a file has its earlier content; a backup that was made just now is not needed then."""
    unchanged = path.is_file() and filecmp.cmp(path, backup, shallow=False)
    if unchanged and is_new:
        backup.unlink()
    return unchanged


def remove_partial_files(folder: Path, name: str | None = None) -> None:
    """Remove the temporary files that killed runs left in a folder and in those below it.

    Args:
        folder: held by this run alone, or parts that another run is writing would go too.
        name: of the file whose parts are meant, directly in `folder`; None: of every file.
    """
    own = glob.escape(name[:_LONGEST_STEM]) if name else "*"
    for part in folder.glob(f"{'' if name else '**/'}.{own}.????????.part*"):
        with contextlib.suppress(OSError):
            part.unlink()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file against other runs until the block, or the process, ends; the file itself stays.

    Raises:
        DataError: another run holds it, or it can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "ab")  # noqa: SIM115 - closed below
    except OSError as error:
        raise DataError(f"{path}: can't be written: {error.strerror or error}") from error
    with file:
        lock(path, file.fileno())
        yield


@contextlib.contextmanager
def locked_folders(*folders: Path) -> Iterator[None]:
    """Hold folders against other runs without writing to them: a folder of images may be read-only.

    Folders that are missing or can't be opened are skipped; on Windows, which can't open folders, that is all of them.

    Raises:
        DataError: another run holds one of them.
    """
    with contextlib.ExitStack() as stack:
        for folder in dict.fromkeys(folders):
            with contextlib.suppress(OSError):
                handle = os.open(folder, os.O_RDONLY)
                stack.callback(os.close, handle)
                lock(folder, handle)
        yield


def lock(path: Path, handle: int) -> None:
    """Lock an open file or folder until its handle is closed; without effect on file systems that have no locks.

    Args:
        path: what the error names.
        handle: the file descriptor.

    Raises:
        DataError: another run holds it.
    """
    from filelock import lock_descriptor  # here: it takes as long to import as all of this module

    try:
        is_free = lock_descriptor(handle, blocking=False)
    except OSError:
        return
    if not is_free:
        raise DataError(f"{display_path(path)}: in use by another run: wait until that run ends")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits; read in pieces, so any size is fine."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def walk(
    folder: Path,
    on_error: Callable[[str, OSError], None],
    *,
    recursive: bool = True,
    follow_links: bool = False,
    leave_out: Container[Path] = (),
    on_hidden: Callable[[str], None] | None = None,
    in_order: bool = True,
) -> Iterator[tuple[os.DirEntry[str], bool]]:
    """Yield every entry of a folder, and of the folders in it, with whether it is a folder that is looked into.

    Hidden folders, and what systems leave behind (`is_rubbish`), are passed over.

    Args:
        folder: where to start; the paths of the entries begin with it.
        on_error: called with the path of a folder that can't be read, and with why.
        recursive: whether to look into sub-folders.
        follow_links: whether to look into folders behind symbolic links, too; then into no folder twice, so that a
            ring of links ends. The rule for all of the package: a scan of labeled images follows links, since data
            sets are put together by them; what lists files for a user, or moves them, doesn't.
        leave_out: folders not to look into.
        on_hidden: called with the path of what is passed over.
        in_order: whether a folder's entries come by name, else as the disk has them: no list of a million is made.
    """
    seen = {_identity(folder)} if follow_links else set()
    waiting = [os.fspath(folder)]
    while waiting:
        current, inside = waiting.pop(), []
        try:
            with os.scandir(current) as entries:
                for entry in sorted(entries, key=lambda each: each.name) if in_order else entries:
                    if is_rubbish(entry.name) or (entry.name.startswith(".") and is_folder(entry)):
                        if on_hidden:
                            on_hidden(entry.path)
                        continue
                    entered = recursive and is_folder(entry) and (follow_links or not entry.is_symlink())
                    entered = entered and Path(entry.path) not in leave_out
                    if entered and follow_links:
                        identity = _identity(entry.path)
                        entered = identity not in seen
                        seen.add(identity)
                    if entered:
                        inside.append(entry.path)
                    yield entry, entered
        except OSError as error:
            on_error(current, error)
        waiting += reversed(inside)


def is_rubbish(name: str) -> bool:
    """Say whether the name of a file or folder is one that systems leave behind: `__MACOSX`, `._1.png`, `Thumbs.db`."""
    return name in _RUBBISH or name.startswith("._")


def is_hidden(name: str) -> bool:
    """Say whether the name of a file or folder is hidden: it begins with a dot, or is `is_rubbish`."""
    return (name.startswith(".") and name not in (".", "..")) or is_rubbish(name)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Say whether an entry is a folder or a link to one; False where a link leads to itself or into a closed folder."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _identity(folder: Path | str) -> tuple[int, int]:
    status = os.stat(folder)  # noqa: PTH116 - of text or a path
    return status.st_dev, status.st_ino


def relative_name(path: Path, folder: Path) -> str:
    """Return the path relative to `folder`, with "/"; the path as it is where it lies elsewhere."""
    try:
        return path.relative_to(folder).as_posix()
    except ValueError:
        return path.as_posix()


def display_path(path: Path | str) -> str:
    """Return a path on one line: newlines, control characters and bytes that are no UTF-8 become escapes."""
    text = os.fspath(path)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def shipped_file(name: str | Path) -> Path:
    """Return the path of a file that comes with this program, such as `models/pretrained.h5` or `configs/cnn.yaml`.

    A checkout has it at its top, an installed package in its own folder `shipped`; it may be missing in both.
    """
    package = Path(__file__).resolve().parent
    installed = package / "shipped" / name
    return installed if installed.exists() else package.parent / name


def config_folder() -> Path:
    """Return the folder for what a user puts there: `$XDG_CONFIG_HOME/fakereal`, by default `~/.config/fakereal`."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "fakereal"


def cache_folder() -> Path:
    """Return the folder for what can be rebuilt: `$XDG_CACHE_HOME/fakereal`, by default `~/.cache/fakereal`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fakereal"
