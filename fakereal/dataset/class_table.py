"""The class table: which folder counts as what, for people to check before anything is learned."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from fakereal.dataset.layout import Parts, Place, Unused
from fakereal.files import display_path
from fakereal.labels import NAMES

_ROWS = 18  # of the table
_NONE = "-"


def table_lines(root: str, found: Mapping[tuple[Parts, Place | Unused], int]) -> list[str]:
    """Return which folder counts as what, at most about `_ROWS` lines: folders are grouped where there are more.

    Args:
        root: the data set's folder, for the title.
        found: the number of images by folder and what they are.
    """
    for group in (_by_source, _by_class_folder, _by_name, _by_class):
        rows: Counter[tuple[str, str, str]] = Counter()
        sources: dict[tuple[str, str, str], set[str]] = defaultdict(set)
        for (folder, place), count in found.items():
            key = group(folder, place)
            rows[key] += count
            sources[key].add(place.source if isinstance(place, Place) else "")
        if len(rows) <= _ROWS:
            break
    table = [("folder", "class", "split", "source", "images")]
    table += [(*key, _sources_text(sources[key]), f"{rows[key]:,}") for key in sorted(rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [f"{root}: which folder counts as what", *(_row_text(row, widths) for row in table)]


def _row_text(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [cell.ljust(width) for cell, width in zip(row[:-1], widths[:-1], strict=True)]
    return "  ".join(["", *cells, row[-1].rjust(widths[-1])])


def _sources_text(sources: set[str]) -> str:
    return f"{len(sources):,} sources" if len(sources) > 1 else (display_path(min(sources)) or _NONE)


def _by_source(folder: Parts, place: Place | Unused) -> tuple[str, str, str]:
    if isinstance(place, Unused):
        return _folder_text(folder), place.state, _NONE
    inside = folder[len(place.folder) :]
    below = next((depth for depth, name in enumerate(inside, start=1) if name == place.source), 0)
    return _folder_text(folder[: len(place.folder) + below]), *_class_and_split(place)


def _by_class_folder(folder: Parts, place: Place | Unused) -> tuple[str, str, str]:
    if isinstance(place, Unused):
        return _by_class(folder, place)
    return _folder_text(place.folder), *_class_and_split(place)


def _by_name(folder: Parts, place: Place | Unused) -> tuple[str, str, str]:
    if isinstance(place, Unused):
        return _by_class(folder, place)
    return f".../{display_path(place.folder[-1])}/" if place.folder else "./", *_class_and_split(place)


def _by_class(folder: Parts, place: Place | Unused) -> tuple[str, str, str]:
    if isinstance(place, Unused):
        return "(others)", place.state, _NONE
    return "(all)", *_class_and_split(place)


def _folder_text(folder: Parts) -> str:
    return display_path("/".join(folder)) + "/" if folder else "./"


def _class_and_split(place: Place) -> tuple[str, str]:
    return NAMES[place.label], place.split or _NONE
