"""What every door shares: exit codes, one-line errors, progress bars. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from fakereal.errors import FakeRealError
from fakereal.runtime import one_line

EXIT_OK, EXIT_PARTIAL, EXIT_ERROR, EXIT_INTERRUPTED = 0, 1, 2, 130

ENGINES = ("auto", "keras", "litert", "openvino")
"""What `--engine` takes, see `fakereal.model.engines`."""


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows each option's default where it says something, and keeps the examples as they were written."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        empty = action.default is None or action.default is False or action.default in ((), [])
        return action.help if empty else super()._get_help_string(action)


def run_cli(main: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None = None) -> int:
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
