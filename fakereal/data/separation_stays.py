"""Why a file stays where it is, in one word for programs and one sentence for people."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

REASONS = {
    "no_predictions": "no prediction JSON for the folder",
    "loose": "not in a sub-folder",
    "no_prediction": "no entry in any JSON",
    "null_prediction": "the JSON says that it could not be read",
    "conflict": "one JSON says both fake and real",
    "disagreement": "the experiments disagree",
    "ambiguous": "several files have the same number",
    "unreadable": "no sound image",
    "symbolic_link": "a symbolic link",
    "not_a_file": "no regular file",
    "read_only": "its folder is read-only",
    "name_taken": "its new name is taken",
    "name_too_long": "its new name would be too long",
    "changed": "changed since the journal was written",
    "gone": "gone since the journal was written",
    "failed": "the system refused",
}
"""Every reason that a file can stay for, and what the summary calls it."""


@dataclass(frozen=True)
class Stay:
    """One file that stays where it is."""

    path: Path
    reason: str  # one of REASONS
    detail: str  # the particulars, for people
    votes: tuple[tuple[str, int], ...] = ()  # (experiment, label) of each experiment that has one


class StaysError(Exception):
    """Raised while one file is handled; the job lists it and goes on."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def shown(path: Path | str) -> str:
    """Returns a path on one line: newlines, control characters and bytes that are no UTF-8 are written as escapes."""
    text = os.fspath(path)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
