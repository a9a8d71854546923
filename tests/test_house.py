"""The shape of the house: who may import whom, how long things are, what doors load, what is declared."""

from __future__ import annotations

import ast
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from fakereal.__main__ import COMMANDS

PACKAGE = sorted((ROOT / "fakereal").rglob("*.py"))
SCRIPTS = [ROOT / name for name in ("image_separate.py", "train_model.py", "predict_and_save_json.py")]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
TEST_NAMES = {path.stem for path in TESTS if path.name.startswith("test_")}
OTHERS = [path for name in ("benchmarks", "tools") for path in sorted((ROOT / name).rglob("*.py"))]

FLOORS = (
    {"dataset", "separation", "model"},
    {"engines"},
    {"predict"},
    {"evaluation", "audit", "web"},
    {"training"},
)
"""A package may import the root modules, itself and the packages of lower floors."""

HEAVY = {"tensorflow", "keras", "jax", "numpy", "PIL", "sklearn", "matplotlib", "scipy", "h5py", "flask"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports_of(tree: ast.AST) -> set[str]:
    """The modules that a file imports, anywhere in it, in full: `fakereal.data.scan`."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room_of(module: str) -> str:
    """The package of a module below `fakereal`, such as `dataset`; empty for a root module."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and any(parts[1] in floor for floor in FLOORS) else ""


def floor_of(room: str) -> int:
    return next((number for number, floor in enumerate(FLOORS) if room in floor), -1)


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", [path for path in PACKAGE if path.name != "__main__.py"], ids=name_of)
def test_imports_go_one_way_only(path):
    own = room_of(module_of(path))
    ours = {module for module in imports_of(tree_of(path)) if module.split(".")[0] == "fakereal"}
    assert {module for module in ours if room_of(module) != own and floor_of(room_of(module)) >= floor_of(own)} == set()


def test_no_modules_import_each_other_in_a_circle():
    modules = {module_of(path): imports_of(tree_of(path)) for path in PACKAGE}
    graph = {name: (found & modules.keys()) - {name} for name, found in modules.items()}
    while leaves := [name for name, found in graph.items() if not found & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert sorted(graph) == []


@pytest.mark.parametrize("path", [*PACKAGE, *OTHERS], ids=name_of)
def test_nothing_imports_a_script(path):
    assert not imports_of(tree_of(path)) & {script.stem for script in SCRIPTS}


@pytest.mark.parametrize("name", ["model/networks.py", "training/trainer.py"])
def test_networks_and_training_run_on_every_keras_backend(name):
    imported = {module.split(".")[0] for module in imports_of(tree_of(ROOT / "fakereal" / name))}
    assert "keras" in imported
    assert not imported & {"tensorflow", "jax", "torch"}


def test_nothing_else_stands_at_the_top_level():
    assert sorted(ROOT.glob("*.py")) == sorted(SCRIPTS)


def test_no_module_is_a_drawer_for_everything():
    assert not {"utils.py", "util.py", "common.py", "helpers.py", "misc.py"} & {path.name for path in PACKAGE}


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_scripts_are_at_most_80_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 80


def body_length(function: ast.FunctionDef) -> int:
    """Lines of a function without its signature and docstring."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return function.end_lineno - body[0].lineno + 1 if body else 0


def test_functions_are_short():
    functions = [
        (body_length(node), f"{name_of(path)}:{node.lineno} {node.name}")
        for path in [*PACKAGE, *SCRIPTS]
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef)
    ]
    lengths = [length for length, _ in functions]
    assert statistics.median(lengths) <= 10
    assert statistics.quantiles(lengths, n=10)[-1] <= 30, sorted(functions)[-10:]


def public_nodes(tree: ast.Module) -> list[ast.AST]:
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]


@pytest.mark.parametrize("path", [*PACKAGE, *SCRIPTS], ids=name_of)
def test_modules_and_public_names_say_what_they_are(path):
    tree = tree_of(path)
    assert ast.get_docstring(tree)
    assert [node.name for node in public_nodes(tree) if not ast.get_docstring(node)] == []


def help_commands() -> list[list[str]]:
    commands = [[sys.executable, str(path), "--help"] for path in SCRIPTS]
    module = [sys.executable, "-m", "fakereal"]
    return [*commands, [*module, "--help"], *([*module, name, "--help"] for name in COMMANDS)]


@pytest.mark.parametrize(
    "command", help_commands(), ids=lambda command: " ".join(Path(word).name for word in command[1:])
)
def test_help_takes_less_than_half_a_second_of_processor_time(command):
    times = []
    while len(times) < 8 and min(times, default=1.0) >= 0.5:
        before = os.times()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        after = os.times()  # of children that ended; the clock would count what else the machine does
        times.append(after.children_user + after.children_system - before.children_user - before.children_system)
        assert (done.returncode, done.stdout.split()[0]) == (0, "usage:")
    assert min(times) < 0.5


@pytest.mark.parametrize(
    "command", help_commands(), ids=lambda command: " ".join(Path(word).name for word in command[1:])
)
def test_doors_load_nothing_heavy_before_the_arguments_are_parsed(command):
    # -X importtime lists every module that is imported, on stderr.
    spied = [command[0], "-X", "importtime", *command[1:]]
    done = subprocess.run(spied, cwd=ROOT, capture_output=True, text=True, check=False)
    loaded = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "argparse" in loaded
    assert loaded & HEAVY == set()


def requirements(*names: str) -> dict[str, str]:
    """The packages that requirements files list, in lower case, and the versions that they allow."""
    lines = [line.partition("#")[0].strip() for name in names for line in (ROOT / name).read_text().splitlines()]
    found = [
        re.fullmatch(r"([\w.\-]+)(?:\[[\w,\-]+\])?(.*)", line) for line in lines if line and not line.startswith("-r ")
    ]
    return {match[1].lower(): match[2].strip() for match in found}


@pytest.mark.parametrize("name", sorted(path.name for path in ROOT.glob("requirements*.txt")))
def test_every_requirement_has_a_lower_and_an_upper_bound(name):
    found = requirements(name)
    assert found
    assert {
        package: versions for package, versions in found.items() if ">=" not in versions or "<" not in versions
    } == {}


def test_every_import_stands_in_the_requirements():
    packages = {
        "ai_edge_litert": "ai-edge-litert",
        "c2pa": "c2pa-python",
        "pi_heif": "pi-heif",
        "pil": "pillow",
        "sklearn": "scikit-learn",
        "yaml": "pyyaml",
        "markdown_it": "markdown-it-py",
    }
    ours = {"fakereal", *(script.stem for script in SCRIPTS)}
    imported = {module.split(".")[0].lower() for path in [*PACKAGE, *SCRIPTS] for module in imports_of(tree_of(path))}
    foreign = imported - {name.lower() for name in sys.stdlib_module_names} - ours
    optional = (f"requirements-{kind}.txt" for kind in ("export", "provenance", "scale"))
    assert {packages.get(name, name) for name in foreign} <= set(requirements("requirements.txt", *optional))


def test_every_requirement_is_used():
    words = " ".join(path.read_text(encoding="utf-8") for path in [*PACKAGE, *SCRIPTS])
    modules = {
        "ai-edge-litert": "ai_edge_litert",
        "pi-heif": "pi_heif",
        "pillow": "PIL",
        "scikit-learn": "sklearn",
        "pyyaml": "yaml",
        "markdown-it-py": "markdown_it",
    }
    unused = {
        name for name in requirements("requirements.txt") if not re.search(rf"\b{modules.get(name, name)}\b", words)
    }
    assert unused == set()


@pytest.mark.parametrize("path", TESTS, ids=name_of)
def test_no_test_file_imports_another(path):
    assert {module for module in imports_of(tree_of(path)) if module.split(".")[-1] in TEST_NAMES} == set()


def test_no_two_test_files_have_one_name():
    assert len(TEST_NAMES) == sum(path.name.startswith("test_") for path in TESTS)


@pytest.mark.parametrize("path", TESTS, ids=name_of)
def test_tests_that_need_the_image_sets_say_so(path):
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            marks = {mark.split("(")[0] for mark in map(ast.unparse, node.decorator_list)}
            if "data_dir" in {argument.arg for argument in node.args.args}:
                assert {"pytest.mark.data", "pytest.mark.slow"} <= marks, node.name


def tracked_text() -> list[Path]:
    suffixes = {".py", ".md", ".txt", ".toml", ".yaml", ".html", ".css", ".js", ".ipynb"}
    folders = ("fakereal", "tests", "benchmarks", "tools", "configs", "docs", "notebooks", "data", "models", ".ci")
    top = [path for path in ROOT.iterdir() if path.is_file()]
    pages = [ROOT / name / "README.md" for name in ("data", "models")]
    inside = [path for name in folders if name not in ("data", "models") for path in (ROOT / name).rglob("*")]
    return [path for path in [*top, *pages, *inside] if path.suffix in suffixes or path.name in ("Makefile", "run")]


def without_images(text: str) -> str:
    """Leave out images in base64, as a notebook's outputs have them: any three letters may stand there."""
    return re.sub(r'"image/\w+": "[\w+/=\\]*"', "", text)


def test_no_text_has_a_loose_end_or_names_the_authors_machine():
    # Written in two halves, so that this file doesn't find itself.
    words = ["TO" + "DO", "FIX" + "ME", "XX" + "X", "/ro" + "ot/", "/wo" + "rk/", "/ho" + "me/"]
    found = [
        f"{name_of(path)}: {word}"
        for path in tracked_text()
        if path.is_file()
        for word in words
        if word in without_images(path.read_text(encoding="utf-8"))
    ]
    assert found == []
