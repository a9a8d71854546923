"""What keeps a separation from being disturbed: one run at a time, and a Ctrl-C that waits for the current file."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from fakereal.cli import say
from fakereal.data.separation_stays import shown
from fakereal.errors import DataError

try:
    import fcntl
except ImportError:  # Windows; two runs at once are not told apart there
    fcntl = None


@contextlib.contextmanager
def stop_after_current_file() -> Iterator[Callable[[], bool]]:
    """Lets the first Ctrl-C end the work after the current file, and the second at once (which is safe too).

    Yields:
        A function that says whether Ctrl-C was pressed.
    """
    pressed: list[int] = []

    def on_interrupt(number: int, _frame: object) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)
        say("finishing the current file ...")

    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) != signal.SIG_IGN
    previous = signal.signal(signal.SIGINT, on_interrupt) if ours else None
    try:
        yield lambda: bool(pressed)
    finally:
        if ours:
            signal.signal(signal.SIGINT, previous)


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
