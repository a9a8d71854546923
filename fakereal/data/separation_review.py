"""What stayed because the experiments disagree, listed for people to decide: a JSON to fill in, and a page to look at.

The JSON is a prediction JSON, with the paths relative to the source and no label yet; filled in, by hand or by the
page, it is what `--decisions` reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from fakereal import html_page, predictions_json
from fakereal.data.separation_stays import REASONS, Stay, shown
from fakereal.errors import ImageRefused
from fakereal.files import write_whole
from fakereal.labels import NAMES
from fakereal.preprocessing import decode

FOLDER = "review"
"""In the output."""

MOST_SHOWN = 500
"""Pictures on the page; the JSON lists them all."""

_REASONS = ("disagreement", "conflict")
_THUMBNAIL_PX = 160


def write(stays: Iterable[Stay], source: Path, output: Path) -> Path | None:
    """Writes the listing into `review/`; what lies there already, perhaps filled in by somebody, is left alone.

    Args:
        stays: all that stayed; those that no experiment contradicts are passed over.
        source: absolute path of the folder of folders.
        output: absolute path.

    Returns:
        The page's path, its JSON lies beside it; None where there is nothing to decide.
    """
    disputed = [stay for stay in stays if is_open(stay)]
    if not disputed:
        return None
    names = [_within(stay.path, source) for stay in disputed]
    reasons = [f"{REASONS[stay.reason]}: {stay.detail}" for stay in disputed]
    open_questions = [
        predictions_json.Prediction(None, image=name, error=reason) for name, reason in zip(names, reasons, strict=True)
    ]
    content = predictions_json.dumps(open_questions).encode()
    json = _free(output / FOLDER, content)
    if not json.exists():
        write_whole(json, content)
    html_page.write(json.with_suffix(".html"), "review.html", **_page(disputed, names, reasons))
    return json.with_suffix(".html")


def is_open(stay: Stay) -> bool:
    """Says whether a picture stayed because experiments, or the entries of one, contradict each other."""
    return stay.reason in _REASONS


def _free(folder: Path, content: bytes) -> Path:
    """Returns the first name that is free, or that holds the very content already."""
    number = 1
    while (path := folder / f"review_{number:03}.json").exists() and path.read_bytes() != content:
        number += 1
    return path


def _within(path: Path, source: Path) -> str:
    return (path.relative_to(source) if path.is_relative_to(source) else path).as_posix()


def _page(disputed: Sequence[Stay], names: Sequence[str], reasons: Sequence[str]) -> dict[str, object]:
    rows = zip(disputed[:MOST_SHOWN], names, reasons, strict=False)
    pictures = [
        {"name": name, "reason": reason, "thumbnail": _thumbnail(stay.path), "votes": _votes(stay)}
        for stay, name, reason in rows
    ]
    return {"pictures": pictures, "names": list(names[:MOST_SHOWN]), "total": len(disputed), "classes": NAMES}


def _votes(stay: Stay) -> list[tuple[str, str]]:
    return [(experiment, NAMES[label]) for experiment, label in stay.votes]


def _thumbnail(path: Path) -> str:
    """Returns a data URI, empty for a picture that can't be read."""
    try:
        return html_page.thumbnail(decode(path, _THUMBNAIL_PX)[0], _THUMBNAIL_PX)
    except (ImageRefused, OSError):
        return ""


def to_decide(page: Path, count: int) -> str:
    """Returns the line that says how to go on."""
    return f"to decide on {count:,}: open {shown(page)} and save decisions.json; then run again with --decisions FILE"
