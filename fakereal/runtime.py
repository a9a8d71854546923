"""Ctrl-C at a point where it does no harm.

Python raises KeyboardInterrupt between any two of its steps, those of the libraries too. In TensorFlow's it can get
lost in a destructor (a training then went on to its last epoch), leave a function behind that fails at its next call,
or crash the process. So while work holds it, Ctrl-C is noted, and the work looks for it where it can stop.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TypeVar

from fakereal.errors import ConfigError

Item, Result = TypeVar("Item"), TypeVar("Result")

_IN_FLIGHT = 256  # items given to the threads of `parallel_map` before the first result is taken: bounds the memory

_STEP_NOTE = "stopping at the next step (Ctrl-C once more: at once)"

# Signals are the whole process's, and so are these.
_holds: list[tuple[str, int]] = []  # what is said and where, of the works that hold it, the innermost last
_pressed: list[int] = []  # the signal that waits to be looked for, or none


@contextmanager
def deferred_interrupts(note: str) -> Iterator[None]:
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
def interrupts_at_checks_only() -> Iterator[None]:
    """Has a first Ctrl-C raise KeyboardInterrupt in `check`, or on the way out, and nowhere else."""
    with deferred_interrupts(_STEP_NOTE):
        yield
        check_interrupt()


def interrupt_requested() -> bool:
    """Says whether Ctrl-C was pressed while it is held, and waits."""
    return bool(_pressed)


def check_interrupt() -> None:
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


_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # of mallopt, see malloc.h of glibc


def start_keras() -> None:
    """Imports Keras and its backend without their start-up notes, which would bury our one-line messages."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    for name in ("absl", "tensorflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    keep_freed_memory()
    try:
        with capture_output(told_on_failure=True):
            import keras

            if keras.backend.backend() == "tensorflow":
                _configure_tensorflow()
    except ModuleNotFoundError as error:
        file = "requirements-scale.txt" if error.name == os.environ.get("KERAS_BACKEND") else "requirements.txt"
        raise ConfigError(f"expected Keras and its backend, found {error}: pip install -r {file}") from error


def keep_freed_memory() -> bool:
    """Lets the C library keep freed memory for the next tensor, in place of fetching it anew from the system.

    A batch of pictures makes tensors of some 100 MB, which glibc gives back after every operation; the system then has
    to hand out empty pages again, and that took a quarter to a third of the processor time of a training. A single
    arena, as the others can't hold tensors of more than 64 MB. mallopt(3); a user's own settings count more.

    Returns:
        True where it did; False on other systems, or where the environment has settings for malloc.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    settings = {_M_ARENA_MAX: 1, _M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1}
    return mallopt is not None and all(mallopt(name, value) for name, value in settings.items())


@contextmanager
def capture_output(told_on_failure: bool = False) -> Iterator[None]:
    """Holds back what libraries write to stdout and stderr; where they fail, it may be told after all, on stderr.

    The notes of native code go straight to the file descriptors, so it is those that are turned away.
    """
    kept = {number: os.dup(number) for number in (1, 2)}
    failed = False
    with tempfile.TemporaryFile() as notes:
        _redirect(dict.fromkeys(kept, notes.fileno()))
        try:
            yield
        except BaseException:
            failed = True
            raise
        finally:
            _redirect(kept)
            for number in kept.values():
                os.close(number)
            if failed and told_on_failure:
                notes.seek(0)
                os.write(2, notes.read())


def _redirect(descriptors: Mapping[int, int]) -> None:
    """Makes file descriptors mean others, after what was written so far."""
    sys.stdout.flush()
    sys.stderr.flush()
    for number, other in descriptors.items():
        os.dup2(other, number)


def _configure_tensorflow() -> None:
    import tensorflow as tf

    tf.config.list_physical_devices()  # looks for a GPU now, so that its notes are held back too
    tf.config.experimental.enable_op_determinism()  # one seed, one result, to the bit


def package_version(package: str) -> str | None:
    """Return the installed version of a package, by the name that pip knows, or None."""
    from importlib import metadata  # it imports twenty modules, and `--help` needs none of them

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def one_line(error: BaseException | str) -> str:
    """Returns an error's text on one line, also where a file name in it holds a newline."""
    return " ".join(str(error).split()) or type(error).__name__


def log(text: str = "") -> None:
    """Writes a line for people to stderr; stdout is for results."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def progress_bar(description: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Shows a bar with items a second and the time left on stderr; silent where stderr is no terminal.

    Yields:
        A function to call with the number of items done since the last call.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(description, total=total, rate="")

        def advance(count: int = 1) -> None:
            speed = progress.tasks[task].finished_speed or progress.tasks[task].speed
            progress.update(task, advance=count, rate=f"{speed:.0f}/s" if speed else "")

        yield advance


def parallel_map(function: Callable[[Item], Result], items: Sequence[Item], description: str) -> Iterator[Result]:
    """Yield `function(item)` for each item, in order, from one thread per CPU core; for work that releases the GIL.

    Where the caller stops early, as by Ctrl-C, only the calls that have begun are waited for.

    Args:
        function: called from the threads; what it raises is raised here, at the item's turn.
        items: any number of them, since results are not computed far ahead of the caller.
        description: of the progress bar.
    """
    from concurrent.futures import ThreadPoolExecutor

    with progress_bar(description, len(items)) as advance, ThreadPoolExecutor(os.cpu_count()) as pool:
        pending = deque(pool.submit(function, item) for item in items[:_IN_FLIGHT])
        try:
            for number in range(len(items)):
                result = pending.popleft().result()
                if number + _IN_FLIGHT < len(items):
                    pending.append(pool.submit(function, items[number + _IN_FLIGHT]))
                advance(1)
                yield result
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
