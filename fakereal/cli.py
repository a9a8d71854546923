"""What every door shares: exit codes, one-line errors, progress bars. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import argparse
import ctypes
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from fakereal.errors import ConfigError, FakeRealError

EXIT_OK, EXIT_PARTIAL, EXIT_ERROR, EXIT_INTERRUPTED = 0, 1, 2, 130

ENGINES = ("auto", "keras", "litert", "openvino")
"""What `--engine` takes, see `fakereal.model.engines`."""


_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # of mallopt, see malloc.h of glibc


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows each option's default where it says something, and keeps the examples as they were written."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        empty = action.default is None or action.default is False or action.default in ((), [])
        return action.help if empty else super()._get_help_string(action)


def run_door(main: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None = None) -> int:
    """Runs a door's `main` and turns what it raises into the exit codes of the contract.

    Returns:
        0 all done; 1 done, but some inputs were skipped or failed; 2 usage, config or data error; 130 interrupted.
    """
    # A file name that is no UTF-8 must not stop the listing that mentions it.
    sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = main(argv)
        sys.stdout.flush()
        return code
    except FakeRealError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return EXIT_ERROR
    except BrokenPipeError:
        # The reader of our results went away (`| head`): not an error of ours, but the work may be unfinished.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PARTIAL
    except OSError as error:
        print(f"error: expected a working disk and usable file names, found {one_line(error)}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def start_keras() -> None:
    """Imports Keras and its backend without their start-up notes, which would bury our one-line messages."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    for name in ("absl", "tensorflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    keep_freed_memory()
    try:
        with held_back(told_on_failure=True):
            import keras

            if keras.backend.backend() == "tensorflow":
                _settle_tensorflow()
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
def held_back(told_on_failure: bool = False) -> Iterator[None]:
    """Holds back what libraries write to stdout and stderr; where they fail, it may be told after all, on stderr.

    The notes of native code go straight to the file descriptors, so it is those that are turned away.
    """
    kept = {number: os.dup(number) for number in (1, 2)}
    failed = False
    with tempfile.TemporaryFile() as notes:
        _turn(dict.fromkeys(kept, notes.fileno()))
        try:
            yield
        except BaseException:
            failed = True
            raise
        finally:
            _turn(kept)
            for number in kept.values():
                os.close(number)
            if failed and told_on_failure:
                notes.seek(0)
                os.write(2, notes.read())


def _turn(descriptors: Mapping[int, int]) -> None:
    """Makes file descriptors mean others, after what was written so far."""
    sys.stdout.flush()
    sys.stderr.flush()
    for number, other in descriptors.items():
        os.dup2(other, number)


def _settle_tensorflow() -> None:
    import tensorflow as tf

    tf.config.list_physical_devices()  # looks for a GPU now, so that its notes are held back too
    tf.config.experimental.enable_op_determinism()  # one seed, one result, to the bit


def one_line(error: BaseException | str) -> str:
    """Returns an error's text on one line, also where a file name in it holds a newline."""
    return " ".join(str(error).split()) or type(error).__name__


def say(text: str = "") -> None:
    """Writes a line for people to stderr; stdout is for results."""
    print(text, file=sys.stderr, flush=True)


def parse_share(text: str) -> float:
    """An argparse type: a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, found {text!r}")
    return value


def parse_count(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    return parse_whole(text, 1)


def parse_whole(text: str, least: int = 0) -> int:
    """An argparse type: a whole number of at least 0."""
    if not (text.isascii() and text.isdigit()) or int(text) < least:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, found {text!r}")
    return int(text)


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
