"""Ctrl-C at a point where it does no harm.

Python raises KeyboardInterrupt between any two of its steps, those of the libraries too. In TensorFlow's it can get
lost in a destructor (a training then went on to its last epoch), leave a function behind that fails at its next call,
or crash the process. So while work holds it, Ctrl-C is noted, and the work looks for it where it can stop.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_STEP_NOTE = "stopping at the next step (Ctrl-C once more: at once)"

# Signals are the whole process's, and so are these.
_holds: list[tuple[str, int]] = []  # what is said and where, of the works that hold it, the innermost last
_pressed: list[int] = []  # the signal that waits to be looked for, or none


@contextmanager
def held(note: str) -> Iterator[None]:
    """Lets Ctrl-C wait until the work looks for it; pressed once more before that, it acts at once, wherever that is.

    Where nobody looked, it is dropped in the end. Nothing changes outside the main thread, or where Ctrl-C is ignored.

    Args:
        note: is said when it is pressed.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None):
        yield
        return
    # A copy, as stderr may be turned away (`cli.held_back`) when the note is to be seen.
    _holds.append((note, _holds[0][1] if _holds else os.dup(2)))
    try:
        previous = signal.signal(signal.SIGINT, _on_interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)
    finally:
        _, stderr = _holds.pop()
        if not _holds:
            os.close(stderr)
            _pressed.clear()


@contextmanager
def only_at_checks() -> Iterator[None]:
    """Has a first Ctrl-C raise KeyboardInterrupt in `check`, or on the way out, and nowhere else."""
    with held(_STEP_NOTE):
        yield
        check()


def pressed() -> bool:
    """Says whether Ctrl-C was pressed while it is held, and waits."""
    return bool(_pressed)


def check() -> None:
    """Raises KeyboardInterrupt where Ctrl-C was pressed while it is held; a later one waits for the next look."""
    if _pressed:
        _pressed.clear()
        raise KeyboardInterrupt


def _on_interrupt(number: int, _frame: object) -> None:
    if _pressed:
        raise KeyboardInterrupt
    _pressed.append(number)
    note, stderr = _holds[-1]
    with suppress(OSError):  # Ctrl-C may have ended the reader of stderr too
        os.write(stderr, f"{note}\n".encode())  # no `print`, as that may be what was interrupted
