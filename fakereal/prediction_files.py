"""Read prediction files as people have them: any of the forms of `prediction_rows`, the usual keys, names and labels.

A file that can be read in two ways is refused as a whole; the error names the option that settles it, see `Rules`.
"""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fakereal.errors import DataError
from fakereal.files import display_path
from fakereal.labels import FAKE, NAMES, REAL, label_of_name, read_folder_name
from fakereal.prediction_rows import (
    IMAGE_KEYS,
    LABEL_KEYS,
    VAGUE_KEYS,
    Refused,
    Row,
    Unusable,
    listed,
    parse,
    plain,
    short,
)
from fakereal.predictions_json import Prediction, prediction_for

SUFFIXES = (".json", ".jsonl", ".csv", ".tsv")
"""Suffixes of prediction files, in lower case."""

PROBABILITY_KEYS = {
    **dict.fromkeys(("pfake", "fake", "isfake"), FAKE),
    **dict.fromkeys(("preal", "real", "isreal"), REAL),
    **dict.fromkeys(("probability", "prob", "score", "confidence"), None),
}
"""Keys for a probability, in the form of LABEL_KEYS, and the label it belongs to; None where the key doesn't say."""

_SPELLED = {"pfake": "p_fake", "preal": "p_real"}
_UNDECIDED = ("uncertain", "unsure", "unknown", "undecided")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?")
_INDEX = re.compile(r"\s*([0-9]{1,18})(\.0*)?\s*")  # pandas makes 7.0 of 7; int() refuses numbers of 5,000 digits
_MAX_CLASSES = 5  # distinct numbers up to which they look like classes


@dataclass(frozen=True)
class Rules:
    """How to read what a file doesn't say itself."""

    labels: Mapping[str, int | None] = field(default_factory=dict)  # value in lower case -> label; None: no label
    threshold: tuple[int, float] | None = None  # numbers are probabilities of this label, which applies from here on
    columns: tuple[str, str] | None = None  # keys of the image and of the label
    index_shifts: tuple[str, ...] = ()  # NAME=N: add N to each index of the file NAME
    skip_conflicts: bool = False  # leave out an image that is called both fake and real, and use the rest of the file


@dataclass(frozen=True)
class Problem:
    """A sentence about predictions that can't be used."""

    text: str
    file: str = ""  # as shown; a summary counts the entries of one file and kind
    kind: str = ""  # what the entries have in common, such as "for no image in x/"; empty for a sentence on its own
    example: str = ""  # such as "entry 3"
    key: int | str | None = None  # the image that an entry names, where only its label can't be used


@dataclass(frozen=True)
class Document:
    """The entries of a file that can be used, and a problem for each that can't."""

    path: Path
    predictions: tuple[Prediction, ...]
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()  # the rules that decided labels


@dataclass(frozen=True)
class _Entry:
    """An entry that names its image."""

    entry: str  # "entry 3"
    key: int | str
    texts: tuple[str, ...]  # what its label keys say, without what says nothing
    error: str  # why there is no label


def read(path: Path, rules: Rules | None = None) -> Document:
    """Read a prediction file; every entry that can't be used becomes a problem of the document.

    Args:
        path: JSON, JSON Lines, or CSV with a header.
        rules: how to read what the file doesn't say itself.

    Raises:
        DataError: the file can't be read, or can be read in two ways.
    """
    try:
        predictions, unusable, notes = _read(path, rules or Rules())
    except OSError as error:
        raise DataError(f"{display_path(path)}: can't read the prediction file: {error.strerror or error}") from error
    except Refused as error:
        raise DataError(f"{display_path(path)}: {error}") from error
    except UnicodeError as error:
        raise DataError(f"{display_path(path)}: expected text in UTF-8, got other bytes: save it as UTF-8") from error
    return Document(path, predictions, tuple(_problem(each, display_path(path)) for each in unusable), notes)


def _read(path: Path, rules: Rules) -> tuple[tuple[Prediction, ...], list[Unusable], tuple[str, ...]]:
    content = path.read_bytes()
    # What Excel and PowerShell call Unicode is UTF-16 with a byte order mark.
    text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    rows = parse(text, path.suffix.lower() in (".json", ".jsonl"))
    image_keys, label_keys = _keys([row for row in rows if isinstance(row, Row)], rules)
    read_rows = [_entry(row, image_keys, label_keys) if isinstance(row, Row) else row for row in rows]
    entries = [each for each in read_rows if isinstance(each, _Entry)]
    _refuse_differing_images([row for row in rows if isinstance(row, Row)], image_keys, label_keys)
    _refuse_differing_labels(entries, image_keys, label_keys)
    meanings, notes = _meanings(dict.fromkeys(each.texts[0] for each in entries if each.texts), label_keys, rules)
    results = [_prediction(each, meanings) if isinstance(each, _Entry) else each for each in read_rows]
    predictions = tuple(each for each in results if isinstance(each, Prediction))
    return predictions, [each for each in results if isinstance(each, Unusable)], notes


def _problem(entry: Unusable, file: str) -> Problem:
    example = f"{entry.entry}: {entry.value}" if entry.value else entry.entry
    return Problem(f"{file}: {entry.entry}: {entry.detail}", file, entry.kind, example, entry.key)


# Which keys hold the image and the label


def _keys(rows: Sequence[Row], rules: Rules) -> tuple[list[str], list[str]]:
    """Return the keys that hold images, and those that hold labels or else one that holds probabilities."""
    known = dict.fromkeys(key for row in rows for key in row.values)
    given = [plain(name) for name in rules.columns or ()]
    if given and known.keys() >= set(given):
        return given[:1], given[1:]
    images = [key for key in IMAGE_KEYS if key in known]
    probabilities = [key for key in PROBABILITY_KEYS if key in known]
    if rules.threshold:
        probabilities.sort(key=lambda key: PROBABILITY_KEYS[key] != rules.threshold[0])
    labels = [key for key in LABEL_KEYS if key in known] or probabilities[:1]
    if known and not (images and labels):
        wanted = (
            "label (prediction, label, class, verdict ...)" if images else "image (index, image, file, path, id ...)"
        )
        raise Refused(
            f"expected a key or column for the {wanted}, got {listed(known)}: pass --columns with the names of the"
            f" image's and the label's, such as --columns {','.join([*known, 'label'][:2])}"
        )
    return images, labels


def _entry(row: Row, image_keys: Sequence[str], label_keys: Sequence[str]) -> _Entry | Unusable:
    found = _images(row, image_keys)
    names = [key for key in found.values() if isinstance(key, str) and "." in key]
    key = next(iter(names or found.values()), None)
    if key is None:
        shown = short({name: value for name, value in row.values.items() if value is not None})
        detail = f'expected either "index" (a whole number) or "image" (a path), got {shown}'
        return Unusable(row.entry, "without the name of an image", detail)
    if not any(name in row.values for name in label_keys):
        return Unusable(row.entry, "without a label", 'expected the prediction "fake" or "real", got none', key=key)
    nested = [value for name in label_keys if isinstance(value := row.values.get(name), list | dict)]
    if nested:
        return _no_label(row.entry, nested[0], key)
    texts = [text for name in label_keys if (text := _label_text(row.values.get(name))) is not None]
    decided = [text for text in texts if text not in _UNDECIDED]
    return _Entry(row.entry, key, tuple(decided or texts), str(row.values.get("error") or "no prediction"))


def _no_label(entry: str, value: object, key: int | str) -> Unusable:
    detail = f'expected the prediction "fake" or "real", got {short(value)}'
    kind = "with a label that is neither fake nor real, whose meaning --labels-as can give"
    return Unusable(entry, kind, detail, short(value), key)


def _images(row: Row, image_keys: Sequence[str]) -> dict[str, int | str]:
    """Return what each key says about which image the entry means; the best key comes first."""
    found: dict[str, int | str] = {}
    for name in image_keys:
        value = row.values.get(name)
        if match := _INDEX.fullmatch("" if isinstance(value, bool) else str(value)):
            found[name] = int(match[1])
        elif isinstance(value, str) and value.strip():
            found[name] = value
    return found


def _label_text(value: object) -> str | None:
    """Return a label in one spelling: lower case, 1 for 1.0; None where there is none."""
    if value is None or value != value:  # NaN
        return None
    text = value.strip().casefold() if isinstance(value, str) else short(value)
    return f"{float(text):.12g}" if _NUMBER.fullmatch(text) else text


def _refuse_differing_images(rows: Sequence[Row], image_keys: Sequence[str], label_keys: Sequence[str]) -> None:
    """Refuse entries such as `{"index": 0, "id": 7}`, where either may be the number of the image."""
    vague = [key for key in VAGUE_KEYS if key in image_keys]
    found = [_images(row, image_keys) for row in rows] if len(vague) > 1 else []
    differing = [
        each for each in found if set(each) <= set(vague) and len(set(each.values())) > 1 and not _has_name(each)
    ]
    if differing:
        raise Refused(_question_of_columns(vague, [(key, label_keys[0]) for key in vague], len(differing), len(rows)))


def _has_name(images: Mapping[str, int | str]) -> bool:
    return any(isinstance(image, str) for image in images.values())


def _refuse_differing_labels(entries: Sequence[_Entry], image_keys: Sequence[str], label_keys: Sequence[str]) -> None:
    differing = sum(len(set(entry.texts)) > 1 for entry in entries)
    if differing:
        columns = [(image_keys[0], key) for key in label_keys]
        raise Refused(_question_of_columns(label_keys, columns, differing, len(entries)))


def _question_of_columns(keys: Sequence[str], columns: Sequence[tuple[str, str]], differing: int, count: int) -> str:
    options = " or ".join(f"--columns {','.join(each)}" for each in columns)
    return f"the values of {' and '.join(keys)} differ in {differing:,} of {count:,} entries: pass {options}"


# What the labels mean


def _meanings(
    texts: Collection[str], label_keys: Sequence[str], rules: Rules
) -> tuple[dict[str, int | None], tuple[str, ...]]:
    """Return the label of each text that has one (None: undecided), and the rules that were used.

    Raises:
        Refused: the texts can be read in two ways.
    """
    meanings: dict[str, int | None] = {text: rules.labels[text] for text in texts if text in rules.labels}
    notes = ("labels by --labels-as",) if meanings else ()
    meanings.update({text: None for text in texts if text in _UNDECIDED and text not in meanings})
    rest = [text for text in texts if text not in meanings]
    numbers = {text: float(text) for text in rest if _NUMBER.fullmatch(text)}
    words = [text for text in rest if text not in numbers]
    if numbers and notes and not words:
        raise Refused(f"--labels-as doesn't say what {listed(numbers)} means: add it, with fake, real or skip")
    if numbers and words:
        raise Refused(
            f"some labels are words ({listed(words)}), others numbers ({listed(numbers)}): say what the"
            f" numbers mean with --labels-as, such as --labels-as {_example(numbers)}"
        )
    if not numbers:
        of_words = _of_words(words, bool(notes))
        other = [f"{word} is {NAMES[label]}" for word, label in of_words.items() if word not in NAMES]
        return {**meanings, **of_words}, (*notes, *([f"labels: {', '.join(other)}"] if other else []))
    if not rules.threshold:
        raise Refused(_question(numbers, label_keys[0]))
    by_threshold = _by_threshold(numbers, label_keys[0], rules.threshold)
    return {**meanings, **by_threshold}, (f"labels by {_threshold_option(*rules.threshold)}",)


def _example(texts: Iterable[str], first: int = FAKE) -> str:
    """Return a value for --labels-as."""
    return ",".join(f"{text}={NAMES[first if number % 2 == 0 else REAL - first]}" for number, text in enumerate(texts))


def _threshold_option(label: int, threshold: float) -> str:
    return f"--threshold p_{NAMES[label]}={threshold:g}"


def _question(numbers: Mapping[str, float], key: str) -> str:
    """Return what has to be said about labels that are numbers."""
    are_classes = len(numbers) <= _MAX_CLASSES and all(number.is_integer() for number in numbers.values())
    if key in PROBABILITY_KEYS or not are_classes:
        owner = PROBABILITY_KEYS.get(key)
        options = [
            f"{_threshold_option(label, 0.5)} (an image is {NAMES[label]} at 0.5 or more)"
            for label in ((FAKE, REAL) if owner is None else (owner,))
        ]
        name, low, high = _SPELLED.get(key, key), min(numbers.values()), max(numbers.values())
        return (
            f"{name} holds numbers from {low:g} to {high:g}, not labels: if they are probabilities,"
            f" pass {' or '.join(options)}"
        )
    texts = sorted(numbers)
    options = [f"--labels-as {_example(texts, first)}" for first in (FAKE, REAL)]
    shown = " and ".join(texts) if len(texts) == 2 else listed(texts)
    return f"the labels are {shown}, and the file doesn't say what they mean: pass {' or '.join(options)}"


def _by_threshold(numbers: Mapping[str, float], key: str, rule: tuple[int, float]) -> dict[str, int | None]:
    label, threshold = rule
    owner = PROBABILITY_KEYS.get(key)
    if owner not in (None, label):
        other = _threshold_option(owner, round(1 - threshold, 6))
        raise Refused(
            f"expected p_{NAMES[label]} for {_threshold_option(*rule)}, got {_SPELLED.get(key, key)}: pass {other}"
        )
    outside = [text for text, number in numbers.items() if not 0 <= number <= 1]
    if outside:
        raise Refused(f"expected probabilities from 0 to 1 for {_threshold_option(*rule)}, got {listed(outside)}")
    return {text: label if number >= threshold else REAL - label for text, number in numbers.items()}


def _of_words(words: Sequence[str], has_others: bool) -> dict[str, int | None]:
    """Return the labels of fake and real, or of one word for each from the names of class folders."""
    exact = {word: label for word in words if (label := label_of_name(word)) is not None}
    names = [read_folder_name(word) for word in words]
    labels = [name.label for name in names if not name.rest and (name.certain or len(words) > 1)]
    if None not in labels and len(words) == len(labels) == len(set(labels)):
        return dict(zip(words, labels, strict=True))
    if not exact and not has_others:
        raise Refused(
            f"expected the labels fake and real, got {listed(words)}: say what they mean with --labels-as, such as"
            f" --labels-as {shlex.quote(_example(words))}"
        )
    return exact


def _prediction(entry: _Entry, meanings: Mapping[str, int | None]) -> Prediction | Unusable:
    if not entry.texts:
        return prediction_for(entry.key, None, entry.error)
    text = entry.texts[0]
    if text not in meanings:
        return _no_label(entry.entry, text, entry.key)
    label = meanings[text]
    return prediction_for(entry.key, label, None if label is not None else text)


# Options


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how to read what a prediction file doesn't say itself."""
    add = parser.add_argument
    add(
        "--labels-as",
        type=_labels,
        metavar="VALUE=LABEL,...",
        help="what labels other than fake and real mean, such as 0=fake,1=real",
    )
    add(
        "--threshold",
        type=_threshold,
        metavar="NAME=N",
        help="for files with probabilities: p_fake=0.5 means fake at 0.5 or more; or p_real=N",
    )
    add(
        "--index-shift",
        action="append",
        default=[],
        metavar="NAME=N",
        help="add N to the indices of file NAME: 1 if index 0 means 1.png",
    )
    add("--skip-conflicts", action="store_true", help="leave out images that one file calls both fake and real")
    add(
        "--columns",
        type=_columns,
        metavar="IMAGE,LABEL",
        help="names of the keys or columns that hold the image and its label",
    )


def rules_of(args: argparse.Namespace) -> Rules:
    """Return the rules that the options give."""
    return Rules(args.labels_as or {}, args.threshold, args.columns, tuple(args.index_shift), args.skip_conflicts)


def _labels(text: str) -> dict[str, int | None]:
    pairs = [pair.rpartition("=") for pair in text.split(",")]
    if not all(_label_text(value) and name.strip().lower() in (*NAMES, "skip") for value, _, name in pairs):
        raise argparse.ArgumentTypeError(f"expected VALUE=fake, VALUE=real or VALUE=skip, with commas, got {text!r}")
    return {_label_text(value): label_of_name(name) for value, _, name in pairs}


def _threshold(text: str) -> tuple[int, float]:
    name, _, number = text.partition("=")
    labels = [label for label in (FAKE, REAL) if plain(name) == f"p{NAMES[label]}"]
    if not (labels and _NUMBER.fullmatch(number.strip()) and 0 < float(number) <= 1):
        raise argparse.ArgumentTypeError(f"expected p_fake=N or p_real=N with N above 0, up to 1, got {text!r}")
    return labels[0], float(number)


def _columns(text: str) -> tuple[str, str]:
    names = [name.strip() for name in text.split(",")]
    if len(names) != 2 or not all(map(plain, names)):
        raise argparse.ArgumentTypeError(f"expected IMAGE,LABEL, the names of two columns, got {text!r}")
    return names[0], names[1]
