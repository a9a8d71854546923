"""The documentation names only what exists: files, flags, make targets, headings, and tables that are up to date."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import train_model
from fakereal import config
from fakereal.__main__ import COMMANDS
from tools import update_docs

PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in update_docs.pages()}
SCRIPTS = ("image_separate.py", "train_model.py", "predict_and_save_json.py")
_CALL = re.compile(
    r"python (?:-m )?(?P<script>image_separate\.py|train_model\.py|predict_and_save_json\.py|fakereal \w+|"
    r"(?:benchmarks|tools)[./]\w+)(?P<words>[^`#|\n]*)"
)


def calls(text: str) -> list[tuple[str, set[str]]]:
    """The commands that a page shows, in blocks and in sentences, each with its long flags."""
    joined = re.sub(
        r"(?<=\S)\n(?=[^\n`#|$]*`)", " ", text.replace("\\\n", " ")
    )  # a command may be broken in a sentence
    found = [(match["script"], match["words"]) for source in (text, joined) for match in _CALL.finditer(source)]
    return [(script.replace("/", "."), set(re.findall(r"(?<!\S)--[a-z0-9-]+", words))) for script, words in found]


@pytest.fixture(scope="module")
def known_flags():
    """The flags of a command, from its `--help`."""
    known: dict[str, set[str]] = {}

    def flags(script: str) -> set[str]:
        if script not in known:
            name = script.removeprefix("fakereal ")
            if script.startswith(("benchmarks.", "tools.")):
                module = script.removesuffix(".py")
                command = [sys.executable, "-m", module, "--help"]
                done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ, check=False)
                assert done.returncode == 0, done.stderr
                text = done.stdout
            else:
                text = update_docs.help_text(name)
            known[script] = set(re.findall(r"(?<![\w-])--[a-z0-9-]+", text))
        return known[script]

    return flags


@pytest.mark.parametrize("page", PAGES)
def test_every_command_that_a_page_shows_exists_with_its_flags(page, known_flags):
    for script, used in calls(PAGES[page]):
        if not script.startswith(("benchmarks.", "tools.")):
            assert used - known_flags(script) == set(), script


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_every_benchmark_and_tool_that_a_page_shows_exists_with_its_flags(page, known_flags):
    for script, used in calls(PAGES[page]):
        if script.startswith(("benchmarks.", "tools.")):
            assert used - known_flags(script) == set(), script


def test_every_flag_of_every_command_is_in_the_documentation(known_flags):
    everything = "\n".join(PAGES.values())
    for command in (*SCRIPTS, *(f"fakereal {name}" for name in COMMANDS)):
        assert {flag for flag in known_flags(command) - {"--help"} if flag not in everything} == set(), command


@pytest.mark.parametrize("page", PAGES)
def test_generated_tables_are_up_to_date(page):
    assert update_docs.render(PAGES[page]) == PAGES[page], "make docs"


@pytest.mark.parametrize("page", PAGES)
def test_scripts_and_make_targets_that_a_page_names_exist(page):
    files = set(re.findall(r"python ([\w./]+\.py)", PAGES[page]))
    modules = {
        name.replace(".", "/") + ".py" for name in re.findall(r"python -m ((?:benchmarks|tools)\.\w+)", PAGES[page])
    }
    examples = {"example.py"}  # docs/export.md shows its content
    assert [name for name in files - examples | modules if not (ROOT / name).is_file()] == []
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"`make ([a-z-]+)|^make ([a-z-]+)", PAGES[page], flags=re.MULTILINE)
    assert [name for name in map("".join, targets) if not re.search(rf"^{name}:", makefile, flags=re.MULTILINE)] == []


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, "data/README.md", "models/README.md", "models/MODEL_CARD.md"])
def test_links_lead_to_files_and_headings(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    text = re.sub(r'<img src="([^"]+)"', r"![](\1)", text)
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", text):
        path = ((ROOT / page).parent / target).resolve() if target else ROOT / page
        assert path.is_file(), target
        assert not anchor or anchor in anchors(path.read_text(encoding="utf-8")), f"{target}#{anchor}"


def test_readme_is_short_and_links_every_page():
    assert len(PAGES["README.md"].splitlines()) <= 200
    missing = [page for page in PAGES if page.startswith("docs/") and f"({page})" not in PAGES["README.md"]]
    assert missing == []


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_recipe_loads_and_its_first_line_is_the_command_to_run(path):
    loaded = config.load(path)
    assert loaded != config.Config()
    first, second = path.read_text().splitlines()[:2]
    assert second.startswith("# Expect: ")
    assert first.startswith("# python train_model.py --config configs/" + path.name)
    arguments = train_model.parser().parse_args(shlex.split(first.removeprefix("# python train_model.py ")))
    assert Path(arguments.config).name == path.name
