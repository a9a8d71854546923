"""What every command does besides its task: messages, progress, threads, Keras start-up, captured output, Ctrl-C.

Nothing heavy is imported at the top: `--help` loads this module too.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import logging
import os
import signal
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import BinaryIO, TypeVar

from fakereal.errors import ConfigError

Item, Result = TypeVar("Item"), TypeVar("Result")

_PENDING_MAX = 256  # calls submitted by `parallel_map` before the first result is taken: bounds its memory
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -3, -4, -8  # of mallopt, from glibc's malloc.h
_LARGE_BYTES = 2**22  # a decoded image of one megapixel in Pillow
_quiet = False  # of the process, as its stderr is
_STOP_NOTE = "stopping at the next step (press Ctrl-C again to stop at once)"


def set_quiet(quiet: bool) -> None:
    """Turn the messages of `log`, except warnings, and all progress bars of this process off or on again."""
    global _quiet
    _quiet = quiet


def log(text: str = "") -> None:
    """Write a line for people to stderr; stdout is for results. With `--quiet`, only lines that begin `warning:`."""
    if not _quiet or text.lstrip().startswith("warning:"):
        print(text, file=sys.stderr, flush=True)


def one_line(error: BaseException | str) -> str:
    """Return an error's text on one line, even if a file name in it contains a newline."""
    return " ".join(str(error).split()) or type(error).__name__


def package_version(package: str) -> str | None:
    """Return the installed version of a package, by the name that pip knows, or None."""
    from importlib import metadata  # it imports twenty modules, and `--help` needs none of them

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@contextmanager
def progress_bar(description: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show items per second and the remaining time on stderr; silent with `--quiet` and where it is no terminal.

    Yields:
        A function to call with the number of items finished since the last call.
    """
    # Not console.is_terminal, which FORCE_COLOR turns on, too: a notebook sets it, and would show control characters.
    if _quiet or not sys.stderr.isatty():
        yield lambda count: None  # the bar would compute its speed each time
        return
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
    with Progress(*columns, console=console, transient=True) as progress:
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
        pending = deque(pool.submit(function, item) for item in items[:_PENDING_MAX])
        try:
            for number in range(len(items)):
                result = pending.popleft().result()
                if number + _PENDING_MAX < len(items):
                    pending.append(pool.submit(function, items[number + _PENDING_MAX]))
                advance(1)
                yield result
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def start_keras(backend: str | None = None) -> None:
    """Import Keras and its backend without their start-up messages, which would bury our own lines.

    Args:
        backend: the only one that can be used; None: the one that the environment names.

    Raises:
        ConfigError: Keras or its backend is not installed, or the environment names another one.
    """
    chosen = os.environ.setdefault("KERAS_BACKEND", backend) if backend else None
    if chosen != backend:
        raise ConfigError(f"expected the Keras backend {backend}, got KERAS_BACKEND={chosen}: remove that variable")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    for name in ("absl", "tensorflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    keep_freed_memory()
    try:
        with capture_output(shown_on_failure=True), _without_garbage_collection():
            import keras

            if keras.backend.backend() == "tensorflow":
                _configure_tensorflow()
    except ModuleNotFoundError as error:
        file = "requirements-scale.txt" if error.name == os.environ.get("KERAS_BACKEND") else "requirements.txt"
        raise ConfigError(f"Keras or its backend is not installed ({error}): pip install -r {file}") from error


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Keep Python's garbage collector away from Keras and TensorFlow while they are imported, and from then on.

    It would look at a million objects that all stay: without it they are imported in 2.0 s in place of 2.7. Nor does it
    look at them when Python ends, which takes 0.1 s in place of 0.9. All that exists by then is kept to the end: files
    are closed by `with` blocks, not by the collector.
    """
    if "keras" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        atexit.register(gc.freeze)


def _configure_tensorflow() -> None:
    import tensorflow as tf

    tf.config.list_physical_devices()  # looks for a GPU now, while its messages are captured
    tf.config.experimental.enable_op_determinism()  # one seed, one result, to the bit


def keep_freed_memory() -> bool:
    """Make the C library keep freed memory for the next tensor instead of returning it to the system.

    A batch of images makes tensors of about 100 MB, which glibc returns after every operation; getting empty pages
    again took a quarter to a third of the processor time of a training. One arena only, since the others can't hold
    tensors of more than 64 MB. See mallopt(3). Settings of the user's own win.

    Returns:
        True where it did; False on other systems, or where the environment has settings for malloc.
    """
    return _set_malloc({_M_ARENA_MAX: 1, _M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1})


def return_freed_memory() -> bool:
    """Make the C library return large blocks to the system when they are freed, for a server of large uploads.

    By itself, glibc soon keeps blocks of up to 32 MB in its pools, one pool for every few threads, where small blocks
    between them hold them back: after 600 hostile uploads a server had 77 to 108 MB, in this way 77 MB each time.

    Returns:
        True where it did, as `keep_freed_memory`.
    """
    return _set_malloc({_M_ARENA_MAX: 1, _M_MMAP_THRESHOLD: _LARGE_BYTES})


def _set_malloc(settings: Mapping[int, int]) -> bool:
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return mallopt is not None and all(mallopt(name, value) for name, value in settings.items())


@contextmanager
def capture_output(shown_on_failure: bool = False) -> Iterator[None]:
    """Keep what libraries write to stdout and stderr off the screen.

    Native code writes to the file descriptors themselves, so those are redirected, not `sys.stdout`.

    Args:
        shown_on_failure: print it to stderr after all where the block raises.
    """
    originals = {number: os.dup(number) for number in (1, 2)}
    failed = False
    with _temporary_file() as captured:
        _redirect(dict.fromkeys(originals, captured.fileno()))
        try:
            yield
        except BaseException:
            failed = True
            raise
        finally:
            _redirect(originals)
            for number in originals.values():
                os.close(number)
            if failed and shown_on_failure:
                captured.seek(0)
                os.write(2, captured.read())


def _temporary_file() -> BinaryIO:
    """Return a file for captured output; where none can be written, as in a read-only container, it is discarded."""
    try:
        return tempfile.TemporaryFile()
    except OSError:
        return open(os.devnull, "w+b")


def _redirect(descriptors: Mapping[int, int]) -> None:
    """Point file descriptors to others, after flushing what was written so far."""
    sys.stdout.flush()
    sys.stderr.flush()
    for number, other in descriptors.items():
        os.dup2(other, number)


# Deferred Ctrl-C. Python raises KeyboardInterrupt between any two of its steps, inside libraries too. In TensorFlow it
# can get lost in a destructor (the training then runs to its last epoch), leave a function that fails at its next
# call, or crash the process. So within `deferred_interrupts` Ctrl-C is noted, and the work checks for it where it can
# stop. Signals belong to the process, and so does this state.
_deferrals: list[tuple[str, int]] = []  # note and stderr descriptor of each open block, innermost last
_pending_signals: list[int] = []  # at most one: arrived, not yet checked for


@contextmanager
def deferred_interrupts(note: str) -> Iterator[None]:
    """Defer Ctrl-C until the work checks for it; pressed again before that, it acts at once.

    A Ctrl-C that nobody checked for is dropped at the end. Does nothing outside the main thread, or where Ctrl-C is
    ignored.

    Args:
        note: printed when it is pressed.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None):
        yield
        return
    # A copy, as stderr may be redirected (`capture_output`) when the note is to be printed.
    _deferrals.append((note, _deferrals[0][1] if _deferrals else os.dup(2)))
    try:
        previous = signal.signal(signal.SIGINT, _on_interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)
    finally:
        _, stderr = _deferrals.pop()
        if not _deferrals:
            os.close(stderr)
            _pending_signals.clear()


@contextmanager
def interrupts_at_checks_only() -> Iterator[None]:
    """Raise KeyboardInterrupt for a first Ctrl-C only in `check_interrupt`, or at the end of the block."""
    with deferred_interrupts(_STOP_NOTE):
        yield
        check_interrupt()


def interrupt_requested() -> bool:
    """Return whether Ctrl-C was pressed and is deferred."""
    return bool(_pending_signals)


def check_interrupt() -> None:
    """Raise KeyboardInterrupt if Ctrl-C was pressed and is deferred; the next one is deferred again."""
    if _pending_signals:
        _pending_signals.clear()
        raise KeyboardInterrupt


def _on_interrupt(number: int, _frame: object) -> None:
    if _pending_signals:
        raise KeyboardInterrupt
    _pending_signals.append(number)
    note, stderr = _deferrals[-1]
    with suppress(OSError):  # Ctrl-C may have ended the reader of stderr too
        os.write(stderr, f"{note}\n".encode())  # not `print`, which may be what was interrupted


def end_with_stdin(grace_s: int = 10) -> None:
    """End this process when stdin closes, as it does when the process at its other end is gone, however that ended.

    Ctrl-C is left to that process. On the way out, also after SIGTERM, temporary files are removed, within `grace_s`
    seconds: TensorFlow can hold up the end of Python.
    """

    def limit() -> None:
        if hasattr(signal, "alarm"):  # Windows has none, but ends a process at once where SIGTERM is sent
            signal.alarm(grace_s)

    def leave(*_: object) -> None:
        limit()
        sys.exit(130)

    def wait_for_stdin() -> None:
        while os.read(0, 1):
            pass
        limit()  # where the main thread never comes to answer
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, leave)
    threading.Thread(target=wait_for_stdin, daemon=True).start()
