"""A Python in which only what requirements-predict.txt brings can be imported, without installing anything."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path

from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REQUIREMENTS = ROOT / "requirements-predict.txt"


def listed(path: Path) -> dict[str, str]:
    """The packages of a requirements file and their bounds."""
    lines = [line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return {canonicalize_name(each.name): str(each.specifier) for each in map(Requirement, filter(None, lines))}


def installed_by(names: set[str]) -> set[str]:
    """These packages and all that they need."""
    found, waiting = set(), list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            needed = map(Requirement, metadata.requires(name) or ())
            waiting += [canonicalize_name(each.name) for each in needed if not each.marker or each.marker.evaluate()]
    return found


def absent_modules() -> set[str]:
    """The modules of all packages that are installed here and would not be there."""
    there = installed_by(set(listed(REQUIREMENTS)))
    packages = metadata.packages_distributions().items()
    return {module for module, names in packages if not there & {canonicalize_name(name) for name in names}}


def environment(folder: Path) -> dict[str, str]:
    """Environment variables that make all other imports fail; the user's cache is `folder`/cache, and empty."""
    (folder / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({absent_modules()!r}))\n")
    return {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}", "XDG_CACHE_HOME": str(folder / "cache")}
