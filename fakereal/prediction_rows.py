"""Parse the text of a prediction file into rows, in the forms that people have: JSON, JSON Lines and CSV.

A row is one entry with its values by key; what they mean is decided in `prediction_files`.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from fakereal.labels import label_of_name

IMAGE_KEYS = (
    "image path filepath imagepath filename imagefile imagename file img imageid imgid index idx id name".split()
)
"""Keys for the image, in lower case without punctuation; where an entry has several, the first in this order counts."""

VAGUE_KEYS = ("index", "idx", "id", "name")
"""Those whose numbers may as well count the rows, or something else than images."""

LABEL_KEYS = "prediction predictions pred predicted label predictedlabel class predictedclass verdict result".split()
"""Keys for the label, in lower case without punctuation."""

_WRAPPERS = {"predictions", "results", "data", "images", "items", "entries", "submission", "annotations", "outputs"}
_SHOWN = 5  # values in a message
_SHOWN_CHARACTERS = 80  # of one value


class Refused(Exception):
    """Raised for a file that can't be used, or that can be read in two ways; the message lacks the file's name."""


@dataclass(frozen=True)
class Row:
    """One entry, its values not yet interpreted."""

    entry: str  # "entry 3"
    values: dict[str, object]  # by plain key


@dataclass(frozen=True)
class Unusable:
    """One entry that can't be used."""

    entry: str  # "entry 3"
    kind: str  # what it has in common with others, such as "without keys"
    detail: str
    value: str = ""  # the particular of the kind, for an example
    key: int | str | None = None  # the image that it names, where only its label can't be used


class _Object(dict):
    """A JSON object that still knows its repeated keys."""

    def __init__(self, pairs: list[tuple[str, object]]) -> None:
        super().__init__(pairs)
        self.pairs = pairs


def parse(text: str, is_json: bool) -> list[Row | Unusable]:
    """Return the entries of a text.

    Args:
        text: the content of the file.
        is_json: whether nothing else is expected; otherwise a text that doesn't start like JSON is a table.

    Raises:
        Refused: the text has another form.
    """
    if not text.strip():
        raise Refused("it is empty")
    try:
        if is_json or text.lstrip()[:1] in ("[", "{"):
            return list(_json_rows(_load(text)))
        return list(_table_rows(text))
    except (ValueError, RecursionError) as error:
        raise Refused(f"invalid JSON ({error}): correct it, or export it again") from error
    except csv.Error as error:
        raise Refused(f"invalid CSV ({error}): correct it, or export it again") from error


def plain(key: str) -> str:
    """Return a key or column name in lower case without spaces and punctuation: `File_Name` becomes `filename`."""
    return re.sub(r"[\W_]", "", key.casefold())


def short(value: object) -> str:
    """Return a value as JSON, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."


def listed(values: Iterable[str]) -> str:
    """Return the first values with commas, and dots where there are more."""
    first = list(islice(values, _SHOWN + 1))
    return ", ".join([*first[:_SHOWN], *(["..."] if len(first) > _SHOWN else [])])


def _load(text: str) -> object:
    """Return the content of JSON, or a list of what the lines of JSON Lines hold."""
    try:
        return json.loads(text, object_pairs_hook=_Object)
    except ValueError as error:
        lines = [line for line in text.splitlines() if line.strip()]
        try:
            return [json.loads(line, object_pairs_hook=_Object) for line in lines]
        except ValueError:
            raise error from None


def _json_rows(content: object) -> Iterable[Row | Unusable]:
    if isinstance(content, _Object):
        return _object_rows(content)
    if not isinstance(content, list):
        raise Refused(f'expected a list like [{{"index": 1, "prediction": "fake"}}], got {short(content)}')
    if content and not any(isinstance(entry, list | dict) for entry in content):
        raise Refused(
            'expected entries that name their images, like [{"index": 1, "prediction": "fake"}],'
            f" got single values ({listed(map(short, content))})"
        )
    return (_list_row(f"entry {number}", entry) for number, entry in enumerate(content, start=1))


def _list_row(entry: str, content: object) -> Row | Unusable:
    if isinstance(content, list) and len(content) == 2:
        return Row(entry, {"image": content[0], "prediction": content[1]})
    if not isinstance(content, _Object):
        detail = f"expected an object with index and prediction, got {type(content).__name__}"
        return Unusable(entry, "without keys", detail)
    if len(content) == 1 and not {*IMAGE_KEYS, *LABEL_KEYS} & set(map(plain, content)):
        return _mapping_row(entry, *content.pairs[0])
    return _object_row(entry, content)


def _object_row(entry: str, content: _Object) -> Row | Unusable:
    values = {plain(key): value for key, value in content.pairs}
    repeated = [key for key, value in content.pairs if values[plain(key)] != value]
    if repeated:
        return Unusable(entry, "with a key twice", f"expected one value for {repeated[0]!r}, got two")
    return Row(entry, values)


def _mapping_row(entry: str, name: str, value: object) -> Row | Unusable:
    row = _object_row(entry, value if isinstance(value, _Object) else _Object([("label", value)]))
    return Row(entry, {**row.values, "image": name}) if isinstance(row, Row) else row


def _object_rows(content: _Object) -> Iterable[Row | Unusable]:
    """Return the entries of an object: a wrapper, columns, a single entry, lists by label, or image -> label."""
    wrappers = [key for key, value in content.items() if plain(key) in _WRAPPERS and isinstance(value, list | dict)]
    if len(wrappers) > 1:
        raise Refused(f"several keys may hold the predictions ({listed(wrappers)}): keep only the right one")
    if wrappers:
        return _json_rows(content[wrappers[0]])
    if any(plain(key) in IMAGE_KEYS for key in content):
        columns = [list(value.values()) if isinstance(value, dict) else value for value in content.values()]
        is_table = all(isinstance(column, list) for column in columns)
        return _column_rows(list(content), columns) if is_table else [_object_row("entry 1", content)]
    pairs = content.pairs
    if not pairs:
        raise Refused("it holds no predictions")
    if all(label_of_name(key) is not None and isinstance(value, list) for key, value in pairs):
        pairs = [(name, key) for key, names in pairs for name in names]
        return (Row(f"entry {n}", {"image": name, "prediction": key}) for n, (name, key) in enumerate(pairs, start=1))
    return (_mapping_row(f"entry {number}", *pair) for number, pair in enumerate(pairs, start=1))


def _column_rows(names: Sequence[str], columns: Sequence[list]) -> Iterator[Row]:
    """Yield the rows of columns, as pandas writes them with `DataFrame.to_json()`."""
    lengths = [f"{len(column)} in {name!r}" for name, column in zip(names, columns, strict=True)]
    if len(set(map(len, columns))) > 1:
        raise Refused(f"expected as many values for each key, got {listed(lengths)}")
    for number, cells in enumerate(zip(*columns, strict=True), start=1):
        yield Row(f"entry {number}", dict(zip(map(plain, names), cells, strict=True)))


def _table_rows(text: str) -> Iterator[Row | Unusable]:
    """Yield the rows below the header; cells are separated by what it has most of: tabs, semicolons or commas."""
    header = next((line for line in text.splitlines() if line.strip()), "")
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=max("\t;,", key=header.count), strict=True)
    table = [[cell.strip() for cell in cells] for cells in lines if any(map(str.strip, cells))]
    keys = list(map(plain, table[0]))
    if any(label_of_name(cell) is not None for cell in table[0]) and not set(keys).intersection(IMAGE_KEYS):
        raise Refused(f"expected a header line such as image,label, got {header.strip()!r}: add one")
    for number, cells in enumerate(table[1:], start=1):
        if len(cells) > len(keys):
            detail = f"expected {len(keys)} cells as in the header, got {len(cells)}"
            yield Unusable(f"entry {number}", "with too many cells", detail)
        else:
            yield Row(f"entry {number}", {key: cell or None for key, cell in zip(keys, cells, strict=False)})
