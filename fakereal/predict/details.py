"""The `--details` file: one row for each place in the result, as JSON, JSON Lines or CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from fakereal.files import write_whole

Row = dict[str, object]
"""Column -> text, number or None; every row has the same columns, and no value is NaN."""


def write(path: Path, rows: Sequence[Row]) -> None:
    """Writes the rows in the format that the path's suffix, one of `SUFFIXES`, names; whole or not at all."""
    text = _WRITERS[path.suffix.lower()](rows)
    # A file name that is no UTF-8 reaches us with surrogates, which CSV has no escape for.
    write_whole(path, text.encode("utf-8", errors="backslashreplace"))


def _json(rows: Sequence[Row]) -> str:
    return json.dumps(list(rows), indent=4, allow_nan=False) + "\n"


def _json_lines(rows: Sequence[Row]) -> str:
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)


def _csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)  # None becomes an empty cell
    return text.getvalue()


_WRITERS: dict[str, Callable[[Sequence[Row]], str]] = {".json": _json, ".jsonl": _json_lines, ".csv": _csv}
SUFFIXES = tuple(_WRITERS)
