"""`python -m fakereal COMMAND ...`: the door to all that the three scripts don't do."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from fakereal import __version__
from fakereal.cli import HelpFormatter, run_cli

COMMANDS = {
    "audit": "say what a data set holds, and whether it gives the answer away",
    "evaluate": "judge a detector on labelled pictures",
    "compare": "train several recipes on the same split and set them side by side",
    "web": "look at images in the browser, with a JSON API for programs",
    "export": "write a detector in a format that runs elsewhere: LiteRT, ONNX, OpenVINO",
    "demo": "make a small labelled set to try everything on",
}
"""What each module of fakereal.commands does; only the one that is asked for is imported."""


def parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """Returns the commands, and the options of the one that `argv` names."""
    options = argparse.ArgumentParser(prog="python -m fakereal", description=__doc__)
    options.add_argument("--version", action="version", version=f"fakereal {__version__}")
    commands = options.add_subparsers(metavar="COMMAND", required=True)
    for name, purpose in COMMANDS.items():
        chosen = import_module(f"fakereal.commands.{name}") if name in argv[:1] else None
        description = chosen.__doc__ if chosen else None
        command = commands.add_parser(name, help=purpose, description=description, formatter_class=HelpFormatter)
        if chosen:
            chosen.add_arguments(command)
            command.set_defaults(run=chosen.run)
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the options and runs the command."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = parser(argv).parse_args(argv)
    return arguments.run(arguments)


if __name__ == "__main__":
    sys.exit(run_cli(main))
