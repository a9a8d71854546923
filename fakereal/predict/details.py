"""The `--details` file: one row for each place in the result, as JSON, JSON Lines or CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from fakereal.files import writing_whole
from fakereal.predictions_json import json_list

Row = dict[str, object]
"""Column -> text, number or None; every row has the same columns, and no value is NaN."""


def write(path: Path, rows: Iterable[Row]) -> None:
    """Writes the rows in the format that the path's suffix, one of `SUFFIXES`, names; whole or not at all."""
    with writing_whole(path) as file:
        for piece in pieces(path, rows):
            file.write(piece)


def pieces(path: Path, rows: Iterable[Row]) -> Iterator[bytes]:
    """Yields the content of the file that the rows make, piece by piece."""
    for text in _WRITERS[path.suffix.lower()](rows):
        # A file name that is no UTF-8 reaches us with surrogates, which CSV has no escape for.
        yield text.encode("utf-8", errors="backslashreplace")


def _json_lines(rows: Iterable[Row]) -> Iterator[str]:
    return (json.dumps(row, allow_nan=False) + "\n" for row in rows)


def _csv(rows: Iterable[Row]) -> Iterator[str]:
    text = io.StringIO()
    writer = None
    for row in rows:
        if writer is None:
            writer = csv.DictWriter(text, fieldnames=list(row), lineterminator="\n")
            writer.writeheader()
        writer.writerow(row)  # None becomes an empty cell
        yield text.getvalue()
        text.seek(0)
        text.truncate()


_WRITERS: dict[str, Callable[[Iterable[Row]], Iterator[str]]] = {
    ".json": json_list,
    ".jsonl": _json_lines,
    ".csv": _csv,
}
SUFFIXES = tuple(_WRITERS)
