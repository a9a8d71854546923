import argparse
import os
import platform
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT

import fakereal.__main__ as program
from fakereal import __version__, runtime
from fakereal.cli import (
    Parser,
    command_line,
    exit_code,
    parse_count,
    parse_origin,
    parse_path,
    parse_setting,
    parse_share,
    parse_whole,
    run_cli,
)
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
        (MemoryError(), 2, "error: not enough memory"),
        (ModuleNotFoundError(name="scipy.stats"), 2, "error: scipy is not installed, which this command needs: pip"),
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


def test_a_missing_module_of_our_own_is_a_bug(capsys):
    def fail(argv):
        raise ModuleNotFoundError(name="fakereal.no_such_module")

    assert run_cli(fail) == 70
    assert "This is a bug in fakereal" in capsys.readouterr().err


def test_a_bug_is_exit_code_70_with_its_traceback_and_how_to_report_it(capsys):
    def fail(argv):
        raise ZeroDivisionError

    assert run_cli(fail) == 70
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first == "Traceback (most recent call last):"
    assert last.startswith("This is a bug in fakereal. Please report it")
    assert f"fakereal {__version__}, Python {platform.python_version()}, " in last


def test_what_was_left_out_counts_only_under_strict():
    codes = {(left_out, strict): exit_code(left_out, strict) for left_out in (0, 7) for strict in (False, True)}
    assert codes == {(0, False): 0, (0, True): 0, (7, False): 0, (7, True): 1}


def test_a_reader_that_has_gone_interrupts_the_command_without_a_traceback():
    code = "import sys; from fakereal.cli import run_cli\nsys.exit(run_cli(lambda argv: print('line\\n' * 100_000)))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"line\n"
        process.stdout.close()
        told = process.stderr.read()
    assert (process.returncode, told) == (130, b"")


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


@pytest.mark.parametrize(
    ("called", "line"),
    [
        ("/venv/bin/fakereal", "fakereal separate --undo 'a b.jsonl'"),
        (r"fakereal.exe", "fakereal separate --undo 'a b.jsonl'"),
        ("fakereal predict", "fakereal separate --undo 'a b.jsonl'"),
        ("/code/fakereal/__main__.py", "python image_separate.py --undo 'a b.jsonl'"),
        ("image_separate.py", "python image_separate.py --undo 'a b.jsonl'"),
    ],
)
def test_commands_to_run_next_are_named_as_this_one_was_called(called, line, monkeypatch):
    monkeypatch.setattr("sys.argv", [called])
    assert command_line("separate", "--undo", Path("a b.jsonl")) == line


def test_the_wheel_has_every_package_and_what_the_program_ships():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    modules = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "fakereal").rglob("__init__.py")}
    shipped = {f"fakereal.shipped.{folder}" for folder in ("configs", "models")}
    assert set(settings["packages"]) == {name.replace("/", ".") for name in modules} | shipped
    assert {name for name in shipped if (ROOT / settings["package-dir"][name]).is_dir()} == shipped


def test_a_shipped_file_is_found_from_any_folder_but_a_file_there_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse_path("configs/cnn.yaml") == ROOT / "configs" / "cnn.yaml"
    assert parse_path("configs/none.yaml") == Path("configs/none.yaml")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/cnn.yaml").write_text("seed: 1")
    assert parse_path("configs/cnn.yaml") == Path("configs/cnn.yaml")


@pytest.mark.parametrize("name", program.SCRIPTS)
def test_a_command_that_is_a_script_takes_the_script_s_options(name, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["/usr/bin/fakereal"])
    with pytest.raises(SystemExit) as ended:
        program.main([name, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: fakereal {name} ")
    assert f"python {program.SCRIPTS[name]}.py" in text


def test_the_program_alone_prints_the_overview(capsys):
    assert program.main([]) == 0
    assert "separate  Clean a folder of images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["evalute"], "error: unknown command 'evalute'; did you mean evaluate?"),
        (["xyz"], "error: unknown command 'xyz' ("),
        ([str(ROOT)], f"predict {ROOT}?"),
        (["--versoin"], "error: unknown option --versoin; did you mean --version?"),
        (["train", "--ouput=x"], "error: unknown option --ouput=x; did you mean --output?"),
        (["predict", "--modle", "x"], "error: unknown option --modle; did you mean --model?"),
        (["separate", "a", "b"], "error: unexpected argument 'b': leave it out"),
        (["--quiet", "audit", "x"], "audit ... --quiet ("),
        (["separate", "--soruce", "x"], "error: unknown option --soruce; did you mean --source?"),
        (["audit"], "error: expected DATA, got none: give it as an argument or with --data"),
        (["audit", "x", "--data", "y"], "error: unexpected argument 'x': an option already gives this value"),
    ],
)
def test_a_mistyped_command_or_option_is_one_line_with_a_suggestion(arguments, line, capsys):
    with pytest.raises(SystemExit) as ended:
        program.main(arguments)
    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert line in told
    assert told.count("\n") == 1


@pytest.mark.parametrize("arguments", [["m", "d"], ["m", "--data", "d"], ["d", "--model", "m"], ["--model", "m", "d"]])
def test_model_and_data_are_given_by_position_or_by_option(arguments):
    parsed = program.command_parser("evaluate").parse_args(arguments)
    assert (parsed.model, parsed.data) == (Path("m"), Path("d"))


def test_one_argument_goes_to_the_one_that_has_no_default():
    parsed = program.command_parser("evaluate").parse_args(["d"])
    assert (parsed.model, parsed.data) == (None, Path("d"))


@pytest.mark.parametrize("name", [*program.SCRIPTS, *program.COMMANDS])
def test_every_command_has_the_common_options(name, capsys):
    with pytest.raises(SystemExit) as ended:
        program.main([name, "--help"])
    assert ended.value.code == 0
    words = capsys.readouterr().out.split()
    assert {"--strict", "--quiet", "--version"} <= set(words)


def test_quiet_turns_off_messages_but_no_warnings(capsys):
    parser = Parser()
    parser.add_common_options()
    parser.parse_args(["--quiet"])
    runtime.log("reading")
    runtime.log("warning: two classes are one")
    parser.parse_args([])
    runtime.log("done")
    assert capsys.readouterr().err.splitlines() == ["warning: two classes are one", "done"]


def test_the_help_lists_every_command_by_the_first_line_of_its_text():
    text = program.build_parser().format_help()
    for name, (_, run) in program.COMMANDS.items():
        assert name in text
        assert run.__doc__.splitlines()[0].split()[0] in text


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("https://example.org", "https://example.org"),
        ("http://localhost:3000/", "http://localhost:3000"),
        ("HTTPS://Example.org", "https://example.org"),
        ("http://[::1]:8080", "http://[::1]:8080"),
        ("chrome-extension://abcdef", "chrome-extension://abcdef"),
    ],
)
def test_an_origin_is_taken_as_browsers_send_it(text, origin):
    assert parse_origin(text) == origin


@pytest.mark.parametrize("text", ["*", "null", "example.org", "https://example.org/app", "https://*.example.org", ""])
def test_what_is_not_the_origin_of_one_site_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected the origin of one site, such as https://"):
        parse_origin(text)
