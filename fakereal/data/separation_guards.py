"""What keeps a separation from being disturbed by another one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from fakereal.data.separation_stays import shown
from fakereal.errors import DataError

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
                    _lock(handle, folder)
        yield


def _lock(handle: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DataError(
            f"{shown(folder)}: expected no other run at work there, found one: wait until it ends"
        ) from error
    except OSError:
        return  # some network file systems have no locks
