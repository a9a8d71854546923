"""The prediction JSON, which prediction writes and separation reads: `[{"index": 1, "prediction": "fake"}, ...]`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fakereal.errors import DataError
from fakereal.files import write_atomic
from fakereal.labels import NAMES, label_of_name


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


@dataclass(frozen=True)
class Document:
    """The entries of a file that can be used, and a sentence for each that can't."""

    path: Path
    predictions: tuple[Prediction, ...]
    problems: tuple[str, ...]


def key_of_file(relative_path: Path) -> int | str:
    """Return a file's stem as a number (7 for `7.png` and `007.png`), or else its relative path with "/"."""
    stem = relative_path.stem
    if len(relative_path.parts) == 1 and stem.isascii() and stem.isdigit():
        return int(stem)
    return relative_path.as_posix()


def prediction_for(key: int | str, label: int | None, error: str | None = None) -> Prediction:
    """Return the entry for a key that `key_of_file` returned."""
    if isinstance(key, int):
        return Prediction(label, index=key, error=error)
    return Prediction(label, image=key, error=error)


def read(path: Path) -> Document:
    """Read a prediction JSON; every entry that can't be used becomes a problem of the document.

    Raises:
        DataError: the file can't be read, or is no JSON list.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: can't read the prediction JSON: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected a JSON list of predictions, got invalid JSON ({error})") from error
    if not isinstance(content, list):
        raise DataError(
            f'{path}: expected a JSON list like [{{"index": 1, "prediction": "fake"}}], got {type(content).__name__}'
        )
    parsed = [_parse(entry, f"{path}: entry {number}") for number, entry in enumerate(content, start=1)]
    return Document(
        path,
        tuple(item for item in parsed if isinstance(item, Prediction)),
        tuple(item for item in parsed if isinstance(item, str)),
    )


def _parse(entry: object, where: str) -> Prediction | str:
    """Return the entry, or a sentence about why it can't be used."""
    if not isinstance(entry, dict):
        return f"{where}: expected an object with index and prediction, got {type(entry).__name__}"
    index, image = entry.get("index"), entry.get("image")
    if isinstance(index, str) and re.fullmatch(r"\s*[0-9]{1,18}\s*", index):  # int() refuses numbers of 5,000 digits
        index = int(index)
    has_index = isinstance(index, int) and not isinstance(index, bool) and index >= 0
    has_image = isinstance(image, str) and image != ""
    if has_index == has_image:
        return f'{where}: expected either "index" (a whole number) or "image" (a path), got {_short(entry)}'
    raw = entry.get("prediction")
    label = label_of_name(raw) if isinstance(raw, str) else None
    if label is None and not (raw is None and "prediction" in entry):
        return f'{where}: expected the prediction "fake" or "real", got {_short(raw)}'
    error = str(entry.get("error") or "no prediction") if label is None else None
    return prediction_for(index if has_index else image, label, error)


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


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
