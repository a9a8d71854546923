"""Files that a data set is better without, or that deserve a look: each named, with what is the matter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fakereal.data.facts import Facts
from fakereal.data.scan import Dataset
from fakereal.errors import ImageRefused
from fakereal.preprocessing import decode

TINY_PX = 32
"""A picture whose shorter side is below that shows too little."""

ODD_ASPECT = 3.0
"""A picture that is longer than so many times its width, or wider, is squeezed badly into a square."""

KINDS = {
    "unreadable": "unreadable",
    "truncated": "cut off",
    "unused": "pictures by name, but in no class folder",
    "wrong_extension": "an extension that is not the format's",
    "animated": "several frames",
    "tiny": f"a side below {TINY_PX} pixels",
    "odd_shaped": f"more than {ODD_ASPECT:g} times as long as wide, or as wide as long",
}
"""What is the matter with the files of each kind."""

_DECODE_PX = 32  # enough to learn why a file is refused
_EXTENSIONS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "TIFF": (".tif", ".tiff"),
    **{name: (f".{name.lower()}",) for name in ("PNG", "WEBP", "BMP", "GIF", "AVIF")},
}


@dataclass(frozen=True)
class Problem:
    """What is the matter with one file."""

    path: Path
    detail: str  # one line


def find(dataset: Dataset, facts: Sequence[Facts | None]) -> dict[str, tuple[Problem, ...]]:
    """Returns the problems by kind, all of `KINDS`, each sorted by path; a file may have several.

    Args:
        dataset: what `scan` found.
        facts: those of each record, in the records' order; None where its header can't be read any more.
    """
    found: dict[str, list[Problem]] = {kind: [] for kind in KINDS}
    for skipped in dataset.skipped:
        if skipped.failed:
            found[_kind_of_refused(skipped.path)].append(Problem(skipped.path, skipped.reason))
    for record, fact in zip(dataset.records, facts, strict=True):
        for kind, detail in _kinds(fact).items():
            found[kind].append(Problem(record.path, detail))
    return {kind: tuple(sorted(problems, key=lambda problem: problem.path)) for kind, problems in found.items()}


def _kind_of_refused(path: Path) -> str:
    """Asks the decoder once more: a listing holds its sentence only, not its reason."""
    if path.is_dir():  # named like a picture, or closed to us
        return "unreadable"
    try:
        decode(path, _DECODE_PX)
    except ImageRefused as error:
        return "truncated" if error.reason == "truncated" else "unreadable"
    return "unused"


def _kinds(fact: Facts | None) -> dict[str, str]:
    if fact is None:
        return {"unreadable": "expected the file of a moment ago, found none that can be read"}
    size = f"{fact.width_px}x{fact.height_px}"
    found = {}
    if fact.extension not in _EXTENSIONS[fact.format]:
        found["wrong_extension"] = f"is {fact.format} inside"
    if fact.frames > 1:
        found["animated"] = f"{fact.frames} frames; only the first counts"
    if min(fact.width_px, fact.height_px) < TINY_PX:
        found["tiny"] = size
    if not 1 / ODD_ASPECT <= fact.aspect <= ODD_ASPECT:
        found["odd_shaped"] = size
    return found
