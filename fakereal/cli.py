"""What all commands share: exit codes, common options, argument types, and errors that become one line."""

from __future__ import annotations

import argparse
import difflib
import os
import platform
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from fakereal import __version__
from fakereal.errors import FakeRealError
from fakereal.files import shipped_file
from fakereal.runtime import one_line, set_quiet

EXIT_OK, EXIT_LEFT_OUT, EXIT_ERROR, EXIT_BUG, EXIT_INTERRUPTED = 0, 1, 2, 70, 130

SCRIPTS = {"separate": "image_separate", "train": "train_model", "predict": "predict_and_save_json"}
"""Commands that are the same as a script, which parses its own options."""

ENGINES = ("auto", "keras", "litert", "openvino")
"""Values of `--engine`, see `fakereal.engines.engine`."""

STABILITY_RESAVES = ("jpeg90", "jpeg70", "jpeg50", "scale0.5", "blur1")
"""What `--stability N` takes the first N of, see `fakereal.model.resaves`."""

EXPORT_FORMATS = ("litert", "onnx", "openvino", "keras")
"""Values of `export --format`, see `fakereal.engines.export`."""


def exit_code(left_out: object, strict: bool) -> int:
    """Return the exit code of a command that wrote its output.

    Args:
        left_out: true where anything was left out or, for audit, found.
        strict: whether `--strict` was given: only then does it count.
    """
    return EXIT_LEFT_OUT if strict and left_out else EXIT_OK


def command_line(command: str, *words: object) -> str:
    """Return a line for the shell that runs a command in the way in which this program was called.

    Args:
        command: one of `SCRIPTS`.
        words: its arguments, which are quoted where they need it.
    """
    called = Path(sys.argv[0]).name.partition(" ")[0]  # a script's is replaced by the program and its command
    program = f"fakereal {command}" if Path(called).stem == "fakereal" else f"python {SCRIPTS[command]}.py"
    return " ".join([program, *(shlex.quote(str(word)) for word in words)])


def run_cli(main: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None = None) -> int:
    """Run a command's `main` and turn what it raises into an exit code and, unless it is a bug, one line on stderr.

    Returns:
        0 the output is written; 1 the same, but under `--strict` something was left out or found; 2 usage, config or
        data error; 70 a bug; 130 interrupted.
    """
    # A file name that is not valid UTF-8 must not stop the listing that mentions it.
    sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = main(argv)
        sys.stdout.flush()
        return code
    except FakeRealError as error:
        return _fail(one_line(error))
    except BrokenPipeError:
        # The reader of our output has gone (`| head`), and the work may be unfinished.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_INTERRUPTED
    except OSError as error:
        return _fail(f"{one_line(error)}: check that the disk has space and the path can be used")
    except ModuleNotFoundError as error:
        return _report_missing(error)
    except MemoryError:
        return _fail("not enough memory: close other programs, or try a smaller --batch-size")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception:  # noqa: BLE001 - a bug, whatever it is
        return _report_bug()


def _fail(line: str) -> int:
    print(f"error: {line}", file=sys.stderr)
    return EXIT_ERROR


def _report_missing(error: ModuleNotFoundError) -> int:
    """Report a package that is not installed, as where only requirements-predict.txt is; one of our own is a bug."""
    name = (error.name or "fakereal").partition(".")[0]
    if name in ("fakereal", "image_separate", "train_model", "predict_and_save_json"):
        return _report_bug()
    return _fail(f"{name} is not installed, which this command needs: pip install -r requirements.txt")


def _report_bug() -> int:
    traceback.print_exc()
    versions = f"fakereal {__version__}, Python {platform.python_version()}, {platform.platform()}"
    print(
        "This is a bug in fakereal. Please report it to its issue tracker, with the command that you ran, the lines"
        f" above, and these versions: {versions}",
        file=sys.stderr,
    )
    return EXIT_BUG


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Append each option's default where it has one, and keep the line breaks of the examples."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        empty = action.default is None or action.default is False or action.default in ((), [])
        return action.help if empty else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """The parser of every command: errors are one line, and a misspelled option gets a suggestion."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"formatter_class": HelpFormatter, **settings})
        self._either: dict[str, tuple[str, bool]] = {}  # see add_either

    def add_either(self, name: str, *, help: str, dest: str = "", required: bool = False, **settings: Any) -> None:
        """Add an argument that is given by its position or by an option: DATA, or `--data DATA`.

        Args:
            name: of the option, without the dashes; by default also the metavar, in upper case. Another metavar is a
                second name of the option.
            help: its description.
            dest: its attribute in the result of `parse_args`; by default its name.
            required: whether to end with an error where it is missing.
            settings: others of `add_argument`.
        """
        settings = {"default": None, "metavar": name.upper(), **settings}
        self._either[name] = (dest or name, required)
        self.add_argument(f"_{name}", nargs="?", help=help, **settings)
        options = dict.fromkeys((f"--{name}", f"--{settings['metavar'].lower()}"))
        self.add_argument(*options, dest=dest or name, help=f"the same as {settings['metavar']}", **settings)

    def add_common_options(self, replaces: bool = True) -> None:
        """Add the options of all commands, as the last ones; `replaces`: whether it may replace earlier results."""
        if replaces:
            self.add_argument("--force", action="store_true", default=False,
                help="replace earlier results without keeping them as NAME.bak")  # fmt: skip
        self.add_argument("--strict", action="store_true", default=False,
            help="exit with code 1 if anything was left out or found")  # fmt: skip
        self.add_argument("--quiet", action="store_true", default=False,
            help="no progress and no messages, only results, warnings and errors")  # fmt: skip
        self.add_argument("--version", action="version", version=f"fakereal {__version__}")

    def add_label_options(self, section: str = "") -> None:
        """Add the options that say what the folders of labeled images mean, see `fakereal.dataset.layout`.

        Args:
            section: prefix of the `dest` of each, such as `data.`.
        """
        self.add_argument("--class", dest=f"{section}classes", action="append", metavar="NAME=fake|real|skip",
            help="class of the images in folder NAME, which may be a path or a pattern; repeatable")  # fmt: skip
        self.add_argument("--split-folder", dest=f"{section}split_folders", action="append",
            metavar="NAME=train|val|test|skip", help="split of the images in folder NAME; repeatable")  # fmt: skip
        self.add_argument("--labels", dest=f"{section}labels_file", metavar="FILE",
            help="CSV or text file with the path and label of each image, in place of class folders")  # fmt: skip

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:
        """Return the arguments; exit with code 2 and one line where they can't be used."""
        arguments, unknown = self.parse_known_intermixed_args(args, namespace)
        if unknown:
            self.error(self._unknown(unknown[0]))
        self._assign_positions(arguments)
        set_quiet(vars(arguments).pop("quiet", False))
        return arguments

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with code 2."""
        self.exit(EXIT_ERROR, f"error: {one_line(message)} (all options: {self.prog} --help)\n")

    def _unknown(self, argument: str) -> str:
        if not argument.startswith("-"):
            return f"unexpected argument {argument!r}: leave it out"
        near = suggestion(argument.partition("=")[0], self._option_string_actions)
        return f"unknown option {argument}{near}"

    def _assign_positions(self, arguments: argparse.Namespace) -> None:
        """Give the values that have no option to the arguments that have no value, in order."""
        values = vars(arguments)
        given = [value for name in self._either if (value := values.pop(f"_{name}")) is not None]
        missing = {dest: required for dest, required in self._either.values() if values[dest] is None}
        if len(given) < len(missing):  # the one that has no default comes first
            missing = dict(sorted(missing.items(), key=lambda each: not each[1]))
        for dest in list(missing)[: len(given)]:
            values[dest] = given.pop(0)
        for name, (dest, required) in self._either.items():
            if required and values[dest] is None:
                self.error(f"expected {name.upper()}, got none: give it as an argument or with --{name}")
        if given:
            self.error(f"unexpected argument {str(given[0])!r}: an option already gives this value")


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean X?" with the known word that is most similar, "" where none is."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


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


def parse_path(text: str) -> Path:
    """Argument type: a path; where nothing is there, but this program ships a file of that name, the shipped one."""
    path, shipped = Path(text), shipped_file(text)
    return shipped if shipped.is_file() and not path.exists() else path


def parse_origin(text: str) -> str:
    """Argument type: the origin of a website, as browsers send it: scheme, host and, where it is unusual, port."""
    origin = text.lower().removesuffix("/")
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*://([a-z0-9_.-]+|\[[0-9a-f:]+\])(:[0-9]+)?", origin):
        example = "expected the origin of one site, such as https://example.org or http://localhost:3000"
        raise argparse.ArgumentTypeError(f"{example}, got {text!r}")
    return origin


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
