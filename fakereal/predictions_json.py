"""The prediction JSON, as prediction writes it: `[{"index": 1, "prediction": "fake"}, ...]`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fakereal.files import write_atomic
from fakereal.labels import NAMES

_MAX_DIGITS = 255  # of a file's number: more than file systems allow; archives and uploads have no such limit


@dataclass(frozen=True)
class Prediction:
    """One entry: the label of one file, or the error that explains why there is none."""

    label: int | None  # 0 fake, 1 real, None where the file could not be read
    index: int | None = None  # the file's stem as a number; either this or image is set
    image: str | None = None  # the path relative to the folder, with "/", for a file whose stem is no number
    error: str | None = None  # why there is no label

    @property
    def key(self) -> int | str:
        """The number or the relative path."""
        return self.index if self.index is not None else str(self.image)


def number_in(name: str) -> str | None:
    """Return the digits before a file name's last dot; None where there is anything else."""
    before, dot, after = name.rpartition(".")
    stem = before if dot else after
    return stem if stem.isascii() and stem.isdigit() and len(stem) <= _MAX_DIGITS else None


def key_of_file(relative_path: Path) -> int | str:
    """Return a file's number (7 for `7.png` and `007.png`), or else its relative path with "/"."""
    name = relative_path.as_posix()
    return int(digits) if (digits := number_in(name)) else name


def prediction_for(key: int | str, label: int | None, error: str | None = None) -> Prediction:
    """Return the entry for a key that `key_of_file` returned."""
    if isinstance(key, int):
        return Prediction(label, index=key, error=error)
    return Prediction(label, image=key, error=error)


def sort_key(prediction: Prediction) -> tuple[bool, int, str]:
    """Return the sort key of an entry: numbers first, in numeric order (2 before 10), then paths."""
    return prediction.index is None, prediction.index or 0, prediction.image or ""


def dumps(predictions: list[Prediction]) -> str:
    """Return the document's text: sorted, 4-space indent, the same bytes for the same predictions."""
    return "".join(pieces(sorted(predictions, key=sort_key)))


def pieces(predictions: Iterable[Prediction]) -> Iterator[str]:
    """Yield the document's text in pieces, for predictions that are sorted already and too many for a list."""
    return json_list(map(_as_dict, predictions))


def json_list(entries: Iterable[dict[str, object]]) -> Iterator[str]:
    """Yield the text of `json.dumps(list(entries), indent=4)` and a newline in pieces."""
    before = "["
    for entry in entries:
        yield before + json.dumps([entry], indent=4, allow_nan=False)[1:-2]
        before = ","
    yield "[]\n" if before == "[" else "\n]\n"


def _as_dict(prediction: Prediction) -> dict[str, object]:
    name = {"index": prediction.index} if prediction.index is not None else {"image": prediction.image}
    if prediction.label is None:
        return {**name, "prediction": None, "error": prediction.error or "no prediction"}
    return {**name, "prediction": NAMES[prediction.label]}


def write(path: Path, predictions: list[Prediction]) -> None:
    """Write the document atomically: a failure leaves the file at `path` as it was."""
    write_atomic(path, dumps(predictions).encode())
