import re
import shlex
from pathlib import Path

import pytest

import image_separate
import predict_and_save_json
import train_model
from fakereal import config

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```\w*\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def help_of(script, capsys):
    with pytest.raises(SystemExit):
        script.main(["--help"])
    return capsys.readouterr().out


def test_every_script_and_tool_that_readme_calls_is_there():
    scripts = set(re.findall(r"python (?:-m )?([\w./]+\.py|tools\.\w+)", README))
    assert {"image_separate.py", "train_model.py", "predict_and_save_json.py"} <= scripts
    assert all((ROOT / script).is_file() for script in scripts)


@pytest.mark.parametrize("script", [image_separate, train_model, predict_and_save_json])
def test_every_flag_that_readme_gives_a_script_exists(script, capsys):
    known = set(re.findall(r"--[a-z-]+", help_of(script, capsys)))
    name = Path(script.__file__).name
    lines = [line for block in BLOCKS for line in block.splitlines() if name in line]
    assert lines
    used = {flag for line in lines for flag in re.findall(r"(?<!\S)--[a-z-]+", line)}
    section = README.split(f"`{name}`\n", 1)[1].split("\n## ", 1)[0]
    used |= set(re.findall(r"^\| `(--[a-z-]+)", section, flags=re.MULTILINE))
    assert used - known == set()


@pytest.mark.parametrize("script", [image_separate, train_model, predict_and_save_json])
def test_every_flag_of_a_script_is_in_readme(script, capsys):
    known = set(re.findall(r"(?<!\S)--[a-z-]+", help_of(script, capsys))) - {"--help"}
    missing = {flag for flag in known if flag not in README}
    assert missing == set()


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_recipe_loads_and_its_first_line_is_the_command_to_run(path, monkeypatch):
    loaded = config.load(path)
    assert loaded != config.Config()
    first, second = path.read_text().splitlines()[:2]
    assert second.startswith("# Expect: ")
    assert first.startswith("# python train_model.py --config configs/" + path.name)
    arguments = train_model.parser().parse_args(shlex.split(first.removeprefix("# python train_model.py ")))
    assert arguments.config.name == path.name


def test_the_targets_that_readme_names_are_in_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    assert all(
        re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in re.findall(r"make ([a-z-]+)", README)
    )


def test_links_within_readme_lead_to_headings():
    headings = re.findall(r"^#+ (.*)$", README, flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= anchors
