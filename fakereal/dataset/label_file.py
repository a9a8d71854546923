"""Labels from a file (`--labels`): CSV or text with a path and a label for each image, as public sets have them."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fakereal.dataset.layout import LabelRules, Parts, Place, Unused, read_layout, read_splits
from fakereal.decoding import SUFFIXES
from fakereal.errors import DataError
from fakereal.files import relative_name
from fakereal.labels import EVALUATION, FAKE, NAMES, REAL, read_folder_name
from fakereal.runtime import log

_PATH = "path filepath imagepath imgpath file filename image imagefile imagename img imgname name id imageid".split()
"""Names of columns, without case, spaces and underscores; the first of them that is there counts."""

_LABEL = "label labels class classname target category labelstr labelname groundtruth type".split()
_SPLIT = "split subset partition set".split()
_SOURCE = "source generator model method dataset".split()
_ONE_IS = {
    **dict.fromkeys("fake isfake ai isai aigenerated isaigenerated generated isgenerated deepfake".split(), FAKE),
    **dict.fromkeys("real isreal authentic isauthentic".split(), REAL),
}
"""Columns of yes and no: a yes says what the name says."""

_YES_NO = {**dict.fromkeys(("1", "1.0", "true", "yes"), True), **dict.fromkeys(("0", "0.0", "false", "no"), False)}


@dataclass(frozen=True)
class _Row:
    number: int  # of its line, from 1
    path: str
    label: str  # as written; "" where there is none
    split: str = ""
    source: str = ""


def read_labels(file: Path, root: Path, images: Sequence[Path], rules: LabelRules) -> dict[Path, Place | Unused]:
    """Return what a file of labels says of each image; the folders give the splits where the file has none.

    A row names an image by its path from the data folder or from the file, also with more or fewer leading folders, in
    another case or without the extension, as long as one image alone fits.

    Args:
        file: CSV, TSV or text with two columns.
        root: the data set's folder.
        images: the images in it.
        rules: classes of the file's values (`0=fake`), and splits.

    Raises:
        DataError: the file can't be read, its columns or values are unclear, or rows contradict each other.
    """
    rows = _read_rows(file)
    classes = _classes(file, rows, rules)
    found, missing = _match(file, root, images, rows, classes)
    if not found:
        raise DataError(f"{file}: no path in it names an image in {root} (the first: {missing[0]})")
    if missing:
        log(f"{file}: {len(missing):,} of {len(rows):,} rows name no image in {root} (the first: {missing[0]})")
    _warn_of_contradictions(file, root, found, classes)
    folders = Counter(image.relative_to(root).parts[:-1] for image in images)
    in_file = any(row.split for row in rows)
    splits = dict.fromkeys(folders) if in_file else read_splits(folders, rules, str(root))
    return {image: _place(file, root, image, found.get(image), classes, splits, rules) for image in images}


def _warn_of_contradictions(
    file: Path, root: Path, found: Mapping[Path, _Row], classes: Mapping[str, Place | Unused]
) -> None:
    """Log how many images lie in a folder that names the other class: the file decides, but people should know."""
    other = [image for image, row in found.items() if _is_contradicted(image.relative_to(root), _meaning(row, classes))]
    if other:
        first = relative_name(other[0], root)
        log(f"warning: {len(other):,} labels contradict the image's folder (such as {first}): {file.name} decides")


def _is_contradicted(path: Path, label: int | None) -> bool:
    named = {name.label for name in map(read_folder_name, path.parts[:-1]) if name.certain}
    return label is not None and named == {REAL - label}


def _place(
    file: Path,
    root: Path,
    image: Path,
    row: _Row | None,
    classes: Mapping[str, Place | Unused],
    splits: Mapping[Parts, str | Unused | None],
    rules: LabelRules,
) -> Place | Unused:
    """Return what a row and the folders say of an image."""
    folder = image.relative_to(root).parts[:-1]
    if row is None or not row.label:
        return Unused(f"no label in {file.name}")
    said, split = classes[row.label], _split_of(file, row, rules) if row.split else splits[folder]
    if isinstance(said, Unused) or isinstance(split, Unused):
        return said if isinstance(said, Unused) else split
    return Place(said.label, row.source, split, folder)


def _split_of(file: Path, row: _Row, rules: LabelRules) -> str | Unused:
    given = rules.split_of(row.split)
    named = read_folder_name(row.split).split
    split = "test" if named == EVALUATION else named
    if given == "skip":
        return Unused("left out by --split-folder", failed=False)
    if not (given or split):
        raise DataError(
            f"{file}: line {row.number}: expected the split train, val or test, got {row.split!r}:"
            f" add --split-folder {row.split}=train|val|test|skip"
        )
    return given or split


def _read_rows(file: Path) -> list[_Row]:
    """Return the rows of a file, its columns found by their names or, without a header, by their order."""
    text = _read_text(file)
    try:
        lines = [(number, [cell.strip() for cell in cells]) for number, cells in enumerate(_cells(text), start=1)]
    except csv.Error as error:
        raise DataError(f"{file}: expected CSV, got a file that can't be read as such: {error}") from error
    lines = [(number, cells) for number, cells in lines if any(cells)]
    if not lines:
        raise DataError(f"{file}: expected a path and a label for each image, got an empty file")
    names = [re.sub(r"[\W_]", "", name.lower()) for name in lines[0][1]]
    path = next((names.index(name) for name in _PATH if name in names), None)
    labels = [at for at, name in enumerate(names) if (name in _LABEL or name in _ONE_IS) and at != path]
    if path is not None and labels:
        split, source = (next((names.index(name) for name in known if name in names), None)
                         for known in (_SPLIT, _SOURCE))  # fmt: skip
        wide = [(number, [*cells, *[""] * (len(names) - len(cells))]) for number, cells in lines[1:]]
        decided = _label_column(file, names, labels, wide)
        return [
            _Row(number, cells[path], label, *("" if at is None else cells[at] for at in (split, source)))
            for (number, cells), label in zip(wide, decided, strict=True)
        ]
    in_pairs = all(len(cells) == 2 for _, cells in lines) and not (names[0] in _PATH or names[1] in _LABEL)
    if in_pairs and not _names_columns([cells for _, cells in lines]):
        return [_Row(number, path, label) for number, (path, label) in lines]
    raise DataError(
        f"{file}: expected columns with a path (path, image, filename, id ...) and a label (label, class ...), got"
        f" {', '.join(lines[0][1][:8])}: name them in the first line"
    )


def _names_columns(pairs: Sequence[Sequence[str]]) -> bool:
    """Say whether the first pair of a path and a label is a header in words of its own, such as `pic,answer`."""
    (path, label), others = pairs[0], {label for _, label in pairs[1:]}
    is_word = label[:1].isalpha() and label not in others and read_folder_name(label).label is None
    return is_word and not path.lower().endswith(SUFFIXES)


def _read_text(file: Path) -> str:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: the labels can't be read: {error.strerror or error}") from error
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # "Unicode text" of a spreadsheet
    text = data.decode("utf-16" if utf16 else "utf-8-sig", errors="replace" if utf16 else "surrogateescape")
    if "\0" in text:
        raise DataError(f"{file}: expected CSV or text, got a binary file: save it as CSV")
    return text


def _cells(text: str) -> Iterator[list[str]]:
    """Yield the cells of each line; a file without commas, tabs and semicolons is split at its last white space."""
    first = text.partition("\n")[0]
    delimiter = max(",\t;", key=first.count)
    if delimiter in first:
        yield from csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    else:
        for line in text.splitlines():
            yield line.rsplit(None, 1)


def _label_column(file: Path, names: Sequence[str], at: Sequence[int], lines: Sequence) -> list[str]:
    """Return the labels of the column that says fake and real, or else of the first; several such must agree."""
    columns = {names[column]: _flags(names[column], [cells[column] for _, cells in lines]) for column in at}
    columns = {name: labels for name, labels in columns.items() if labels is not None}
    if not columns:
        raise DataError(f"{file}: expected 0 or 1 in each row of the column {names[at[0]]}, got something else")
    clear = {name: labels for name, labels in columns.items() if all(_is_clear(label) for label in set(labels))}
    chosen = next(iter(clear.values()), next(iter(columns.values())))
    for labels in clear.values():
        for (number, _), one, other in zip(lines, chosen, labels, strict=True):
            if read_folder_name(one).label != read_folder_name(other).label:
                raise DataError(f"{file}: line {number}: the columns {', '.join(clear)} contradict each other")
    return chosen


def _is_clear(label: str) -> bool:
    return not label or read_folder_name(label).certain


def _flags(column: str, cells: list[str]) -> list[str] | None:
    """Return the classes that yes and no mean in a column such as `is_fake`, None where it has other cells, too."""
    if column not in _ONE_IS:
        return cells
    said = {True: NAMES[_ONE_IS[column]], False: NAMES[REAL - _ONE_IS[column]]}
    answers = [_YES_NO.get(cell.lower(), cell) for cell in cells]
    return None if any(isinstance(answer, str) and answer for answer in answers) else [said.get(a, "") for a in answers]


def _classes(file: Path, rows: Sequence[_Row], rules: LabelRules) -> dict[str, Place | Unused]:
    """Return what each value of the label column means; values are read as the names of folders are."""
    counts = Counter((row.label,) for row in rows if row.label)
    found = read_layout(counts, LabelRules(rules.classes, labels_file=file), str(file))
    for (value,), said in found.items():
        if isinstance(said, Unused) and said.failed:
            raise DataError(f"{file}: the label {value!r} names no class: add --class {value}=fake|real|skip")
    return {value: said for (value,), said in found.items()}


def _match(
    file: Path, root: Path, images: Sequence[Path], rows: Sequence[_Row], classes: Mapping[str, Place | Unused]
) -> tuple[dict[Path, _Row], list[str]]:
    """Return the row of each image, and the paths of rows that name no image."""
    index = _Index(root, images)
    found: dict[Path, _Row] = {}
    missing = []
    for row in rows:
        image = index.find(file, row)
        if image is None:
            missing.append(row.path)
            continue
        before = found.setdefault(image, row)
        if _meaning(before, classes) != _meaning(row, classes):
            raise DataError(f"{file}: lines {before.number} and {row.number} label {row.path} differently: keep one")
    return found, missing


def _meaning(row: _Row, classes: Mapping[str, Place | Unused]) -> int | None:
    said = classes.get(row.label)
    return said.label if isinstance(said, Place) else None


class _Index:
    """The images of a data set by what a row may call them."""

    def __init__(self, root: Path, images: Sequence[Path]) -> None:
        self.root = root
        self.by_name: dict[str, list[Path]] = defaultdict(list)
        for image in images:
            self.by_name[image.name.lower()].append(image)
            self.by_name[image.stem.lower()].append(image)

    def find(self, file: Path, row: _Row) -> Path | None:
        """Return the one image that a row names, or None.

        Raises:
            DataError: several images fit.
        """
        named = PurePosixPath(row.path.replace("\\", "/"))
        key = named.name.lower() if named.name.lower().endswith(SUFFIXES) else named.stem.lower()
        fitting = [image for image in self.by_name.get(named.name.lower(), []) or self.by_name.get(key, [])
                   if self._fits(image, named)]  # fmt: skip
        exact = [image for image in fitting if relative_name(image, self.root) == named.as_posix()]
        if len(exact or fitting) > 1:
            several = ", ".join(relative_name(image, self.root) for image in fitting[:3])
            raise DataError(
                f"{file}: line {row.number}: {row.path} may be {several}: write its path from {self.root}, or pass"
                " the folder that is meant with --data"
            )
        return next(iter(exact or fitting), None)

    def _fits(self, image: Path, named: PurePosixPath) -> bool:
        """Whether the folders that both paths have, from the last one up, have the same names."""
        own = [part.lower() for part in image.relative_to(self.root).parts[-2::-1]]
        others = [part.lower() for part in named.parts[-2::-1] if part not in (".", "/")]
        return all(one == other for one, other in zip(own, others, strict=False))
