"""Write the generated tables of the documentation: options from each command's `--help`, keys from fakereal/config.py.

    python -m tools.update_docs           write them
    python -m tools.update_docs --check   exit code 1 where a page is out of date

A page says where a table stands: `<!-- options: COMMAND -->`, where COMMAND is a script or a command of `fakereal`, or
`<!-- config keys -->`. Everything between that line and `<!-- end -->` is replaced.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
_MARKER = re.compile(
    r"^<!-- (options: (?:python )?(?:-m )?(?:fakereal )?(?P<command>[\w.]+)|config keys) -->\n"
    r"(?:\n\|(?:.*\n)*?\n<!-- end -->\n)?",
    re.MULTILINE,
)
_WIDE = "2000"  # columns: no help text is broken into lines


def pages() -> list[Path]:
    """Return the pages of the documentation."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def render(text: str) -> str:
    """Return a page with its generated tables up to date."""
    return _MARKER.sub(_block, text)


def _block(marker: re.Match[str]) -> str:
    table = options_table(marker["command"]) if marker["command"] else config_table()
    return f"{marker[0].partition(chr(10))[0]}\n\n{table}\n<!-- end -->\n"


def options_table(command: str) -> str:
    """Return the options of a script (`train_model.py`) or a command of `fakereal` (`audit`) as a Markdown table."""
    rows = ["| option | default | meaning |", "|---|---|---|"]
    for option, meaning in _options(help_text(command)):
        meaning, default = _split_default(meaning)
        cells = (f"`{option}`", f"`{default}`" if default else "", meaning)
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(rows) + "\n"


def help_text(command: str) -> str:
    """Return what a command prints for `--help`."""
    words = [command] if command.endswith(".py") else ["-m", "fakereal", command]
    environment = os.environ | {"COLUMNS": _WIDE}
    done = subprocess.run(
        [sys.executable, *words, "--help"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


def _options(text: str) -> list[tuple[str, str]]:
    """Return option and meaning of each entry under `positional arguments:` and `options:`."""
    entries: list[list[str]] = []
    listing = False
    for line in text.splitlines():
        if not line.startswith(" "):
            listing = line in ("positional arguments:", "options:")
        elif listing and re.match(r"  \S", line):
            option, _, meaning = line.strip().partition("  ")
            entries.append([option, meaning.strip()])
        elif listing:
            entries[-1][1] = f"{entries[-1][1]} {line.strip()}".strip()
    return [(option, meaning) for option, meaning in entries if option != "-h, --help"]


def _split_default(meaning: str) -> tuple[str, str]:
    found = re.search(r" ?\(default: ([^()]+)\)|^default: (.+)$", meaning)
    return (meaning.replace(found[0], "").strip(), found[1] or found[2]) if found else (meaning, "")


def config_table() -> str:
    """Return every configuration key with its default and meaning, from the comments in fakereal/config.py."""
    source = (ROOT / "fakereal" / "config.py").read_text(encoding="utf-8")
    classes = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
    rows = ["| key | default | meaning |", "|---|---|---|"]
    rows += _key_rows(classes["Config"], "", classes, source.splitlines())
    return "\n".join(rows) + "\n"


def _key_rows(node: ast.ClassDef, prefix: str, classes: dict[str, ast.ClassDef], lines: list[str]) -> list[str]:
    rows = []
    for field in node.body:
        if not isinstance(field, ast.AnnAssign):
            continue
        key, kind = prefix + field.target.id, ast.unparse(field.annotation)
        if kind in classes:
            rows += _key_rows(classes[kind], f"{key}.", classes, lines)
            continue
        comment = lines[field.end_lineno - 1].partition("  # ")[2]
        choices = " \\| ".join(re.findall(r"'(\w+)'", kind)) if "Literal" in kind else ""
        meaning = "; ".join(part for part in (choices, comment.replace("|", "\\|")) if part)
        rows.append(f"| `{key}` | `{_as_yaml(field.value)}` | {meaning} |")
        item = re.fullmatch(r"tuple\[(\w+), \.\.\.\]", kind)
        if item and item[1] in classes:
            rows += _key_rows(classes[item[1]], f"{key}[].", classes, lines)
    return rows


def _as_yaml(default: ast.expr) -> str:
    value = ast.literal_eval(default)
    text = yaml.safe_dump(list(value) if isinstance(value, tuple) else value, default_flow_style=True)
    return text.removesuffix("...\n").strip()


def main() -> int:
    """Write the pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where a page is out of date")
    options = parser.parse_args()
    outdated = [(path, new) for path in pages() if (new := render(path.read_text("utf-8"))) != path.read_text("utf-8")]
    for path, new in outdated:
        print(f"{path.relative_to(ROOT)}: {'out of date: make docs' if options.check else 'updated'}")
        if not options.check:
            path.write_text(new, encoding="utf-8")
    return int(options.check and bool(outdated))


if __name__ == "__main__":
    sys.exit(main())
