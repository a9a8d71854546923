"""What all commands share: exit codes, argument types, and errors that become one line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from fakereal.errors import FakeRealError
from fakereal.runtime import one_line

EXIT_OK, EXIT_PARTIAL, EXIT_ERROR, EXIT_INTERRUPTED = 0, 1, 2, 130

ENGINES = ("auto", "keras", "litert", "openvino")
"""Values of `--engine`, see `fakereal.engines.engine`."""

STABILITY_RESAVES = ("jpeg90", "jpeg70", "jpeg50", "scale0.5", "blur1")
"""What `--stability N` takes the first N of, see `fakereal.model.resaves`."""

EXPORT_FORMATS = ("litert", "onnx", "openvino")
"""Values of `export --format`, see `fakereal.engines.formats`."""


def run_cli(main: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None = None) -> int:
    """Run a command's `main` and turn what it raises into an exit code and one line on stderr.

    Returns:
        0 all done; 1 done, but some inputs were skipped or failed; 2 usage, config or data error; 130 interrupted.
    """
    # A file name that is not valid UTF-8 must not stop the listing that mentions it.
    sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = main(argv)
        sys.stdout.flush()
        return code
    except FakeRealError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return EXIT_ERROR
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): not our error, but the work may be unfinished.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PARTIAL
    except OSError as error:
        print(f"error: {one_line(error)}: check that the disk has space and the path can be used", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Append each option's default where it has one, and keep the line breaks of the examples."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        empty = action.default is None or action.default is False or action.default in ((), [])
        return action.help if empty else super()._get_help_string(action)


def parse_share(text: str) -> float:
    """Argument type: a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text!r}")
    return value


def parse_count(text: str) -> int:
    """Argument type: an integer of at least 1."""
    return parse_whole(text, 1)


def parse_whole(text: str, minimum: int = 0) -> int:
    """Argument type: an integer of at least 0."""
    if not (text.isascii() and text.isdigit()) or int(text) < minimum:
        raise argparse.ArgumentTypeError(f"expected an integer of at least {minimum}, got {text!r}")
    return int(text)


def parse_setting(text: str) -> tuple[str, Any]:
    """Argument type: a dotted configuration key and its value, as `KEY=VALUE` with a YAML value."""
    import yaml

    key, equals, value = text.partition("=")
    if not (key and equals):
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, got {text!r}")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError:
        raise argparse.ArgumentTypeError(f"expected a YAML value, got {value!r}") from None
