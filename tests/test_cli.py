import argparse
import tomllib

import pytest
from conftest import ROOT

import fakereal.__main__ as program
from fakereal.cli import parse_count, parse_setting, parse_share, parse_whole, run_cli
from fakereal.errors import ConfigError


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("no\nsuch\nthing"), 2, "error: no such thing"),
        (
            OSError(28, "No space left on device", "out.json"),
            2,
            "error: [Errno 28] No space left on device: 'out.json'",
        ),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_an_error_that_users_can_solve_is_one_line_and_an_exit_code(error, code, line, capsys):
    def fail(argv):
        raise error

    assert run_cli(fail) == code
    told = capsys.readouterr().err
    assert told.startswith(line)
    assert told.count("\n") == 1


def test_a_bug_keeps_its_traceback():
    def fail(argv):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_cli(fail)


def test_the_exit_code_of_a_command_is_handed_on():
    assert run_cli(lambda argv: len(argv), ["a", "b"]) == 2


@pytest.mark.parametrize(
    ("parse", "good", "bad"),
    [
        (parse_share, {"0": 0.0, "0.5": 0.5, "1": 1.0}, ["-0.1", "1.01", "nan", "half"]),
        (parse_count, {"1": 1, "32": 32}, ["0", "-1", "1.5", "", "\u0663"]),
        (parse_whole, {"0": 0, "7": 7}, ["-1", "x"]),
        (parse_setting, {"a.b=[1, 2]": ("a.b", [1, 2]), "a=null": ("a", None)}, ["a", "=1", "a=["]),
    ],
)
def test_argument_types_take_what_they_name_and_refuse_the_rest(parse, good, bad):
    assert {text: parse(text) for text in good} == good
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError, match="expected"):
            parse(text)


def test_the_console_command_is_the_module_s_own():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert scripts == {"fakereal": "fakereal.__main__:console"}
    assert callable(program.console)


@pytest.mark.parametrize("name", program.SCRIPTS)
def test_a_command_that_is_a_script_takes_the_script_s_options(name, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["/usr/bin/fakereal"])
    with pytest.raises(SystemExit) as ended:
        program.main([name, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: fakereal {name} ")
    assert f"python {program.SCRIPTS[name]}.py" in text


def test_the_help_lists_every_command_by_the_first_line_of_its_text():
    text = program.build_parser().format_help()
    for name, (_, run) in program.COMMANDS.items():
        assert name in text
        assert run.__doc__.splitlines()[0].split()[0] in text
