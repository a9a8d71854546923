"""Files that are closed while too many are open, and opened again when they are next read."""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

MOST = 16
"""So many stay open; a process may have some hundred, and a set of pictures may come as thousands of archives."""

_opened: deque[weakref.ref[Reopening]] = deque()  # the one opened longest ago first


class Reopening:
    """A file to be read, in any way that zipfile or tarfile want, by one thread at a time."""

    def __init__(self, opener: Callable[[], Any]) -> None:
        self._opener, self._file, self._place = opener, None, 0
        self._lock = threading.Lock()

    def read(self, size: int = -1) -> bytes:
        """Reads on from where the last call ended."""
        with self._at_its_place() as file:
            return file.read(size)

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        """Goes to a place, and returns it."""
        with self._at_its_place() as file:
            return file.seek(place, whence)

    def tell(self) -> int:
        """Returns the place."""
        return self._place

    def seekable(self) -> bool:
        """Returns True."""
        return True

    def close(self) -> None:
        """Closes the file; it can be read on all the same."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __del__(self) -> None:
        with suppress(OSError):
            self._close()

    @contextmanager
    def _at_its_place(self) -> Iterator[Any]:
        with self._lock:
            is_new = self._file is None
            try:
                if is_new:
                    self._file = self._opener()
                    self._file.seek(self._place)
                yield self._file
                self._place = self._file.tell()
            except BaseException:
                self._close()  # whatever state it is in now
                self._place = 0
                raise
        if is_new:
            _opened.append(weakref.ref(self))
            _close_the_oldest()


def _close_the_oldest() -> None:
    """Never called with a lock held: a file that is being read is waited for."""
    while len(_opened) > MOST:
        with suppress(IndexError):  # another thread was quicker
            if (oldest := _opened.popleft()()) is not None:
                oldest.close()
