"""Split a data set into train, val and test by the content of the images, and keep the split in a manifest."""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fakereal.config import Config
from fakereal.dataset.layout import LabelRules
from fakereal.dataset.near_duplicates import Cluster, find_duplicates
from fakereal.dataset.scan import Dataset, Record, abbreviate, class_counts, scan, skipped_lines
from fakereal.errors import ConfigError, DataError
from fakereal.files import relative_name, write_atomic
from fakereal.labels import FAKE, NAMES, REAL, SPLITS, label_of_name
from fakereal.preprocessing import Preprocessing
from fakereal.runtime import log

COLUMNS = ("path", "sha256", "label", "source", "split", "reason")
"""Columns of the manifest, a CSV file."""

MIN_TESTED = 10
"""Test images of each class; fewer say next to nothing about a detector."""

ENOUGH = 50
"""Images of each class of which a fifth is a test that says something."""

UNEQUAL = 10
"""So many times as many images of one class as of the other are worth a warning."""

_LEFT_OUT = "left_out"
_SOURCES_LISTED = 15


@dataclass(frozen=True)
class LeftOut:
    """An image that is in no split."""

    record: Record
    reason: str  # one line why


@dataclass(frozen=True)
class Split:
    """The records to train on, to validate on and to test on."""

    train: tuple[Record, ...]
    val: tuple[Record, ...]
    test: tuple[Record, ...]
    left_out: tuple[LeftOut, ...]
    near: tuple[Cluster, ...] = ()  # near-copies among all of these, left out ones included


def split_dataset(dataset: Dataset, seed: int, shares: tuple[float, float, float] = (0.6, 0.2, 0.2)) -> Split:
    """Split a data set; splits given by its folders are kept, and missing ones are taken from the rest.

    An image's content and the seed alone decide its split. So identical images stay together, adding a file moves no
    other, and a training that is repeated with more images never trains on what it was tested on before. The price:
    the shares hold for each class and source in expectation, not exactly, since exact shares would have to move one
    image whenever another is added.

    Near-copies stay together too: they all go where the one with the smallest content hash goes, so that adding a
    file can only move its own near-copies. Those that the folders put into different splits stay where they are.

    Args:
        dataset: what `scan` found.
        seed: of the split.
        shares: of train, val and test; above 0, with a sum of 1.

    Raises:
        ConfigError: invalid shares.
        DataError: a split would have no images of a class.
    """
    if min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise ConfigError(f"shares: expected three numbers above 0 that add up to 1, got {shares}")
    given = {record.split for record in dataset.records}
    # Only splits that the folders don't give take a share of the other images.
    open_shares = {
        name: share for name, share in zip(SPLITS, shares, strict=True) if name == "train" or name not in given
    }
    near = _near_copies(dataset)
    key_of = _split_keys(dataset.records, near)
    placed = [
        (record, record.split if _is_held_out(record) else _choose_split(key_of[record.content], seed, open_shares))
        for record in dataset.records
    ]
    return _drop_leaks(placed, [], near, _advice(dataset, key_of))


def _advice(dataset: Dataset, key_of: dict[str, str]) -> str:
    """Return what to do where a split has no images of a class; `key_of` is equal for copies and near-copies."""
    fake, real = class_counts(dataset.records)
    for name in ("val", "test"):
        given = class_counts(record for record in dataset.records if record.split == name)
        if any(given) and not all(given):
            return (
                f"the given {name} folders hold no {NAMES[given.index(0)]} images, which no seed changes: add some"
                f" there, or pass the folders over with --split-folder NAME=skip"
            )
    for label, count in enumerate((fake, real)):
        different = {key_of[record.content] for record in dataset.records if record.label == label}
        if len(different) < len(SPLITS) < count:
            same = "the same, or near-copies" if len(different) == 1 else f"copies of {len(different)} images"
            return f"all {count:,} {NAMES[label]} images are {same}: add different ones, since copies share a split"
    if min(fake, real) < ENOUGH:
        few = (
            f"{fake:,} fake and {real:,} real images are too few to judge a detector: collect at least {ENOUGH} of each"
        )
        return f"{few}, or give a split of your own with --split FILE"
    return "add images, try another --seed, or give a split of your own with --split FILE"


def _near_copies(dataset: Dataset) -> tuple[Cluster, ...]:
    return tuple(cluster for cluster in find_duplicates(dataset.records) if cluster.kind == "near")


def _is_held_out(record: Record) -> bool:
    return record.split in ("val", "test")


def _split_keys(records: Iterable[Record], near: Iterable[Cluster]) -> dict[str, str]:
    """Return for each content the one that decides its split: its own, or the smallest among its near-copies."""
    found = {record.content: record.content for record in records}
    for cluster in near:
        contents = {record.content for record in cluster.records if not _is_held_out(record)}
        found.update(dict.fromkeys(contents, min(contents, default="")))
    return found


def _choose_split(content: str, seed: int, shares: dict[str, float]) -> str:
    """Return a split, each with its share as probability; the choice depends on the content and the seed only."""
    digest = hashlib.sha256(f"{seed}:{content}".encode()).digest()
    rest = int.from_bytes(digest[:8]) / 2**64 * sum(shares.values())
    for name, share in reversed(shares.items()):
        rest -= share
        if rest < 0:
            return name
    return "train"


def _drop_leaks(
    placed: list[tuple[Record, str]], left_out: list[LeftOut], near: tuple[Cluster, ...], advice: str
) -> Split:
    """Leave out images that would falsify the metrics, and check that both classes remain in every split."""
    labels, splits = defaultdict(set), defaultdict(set)
    for record, name in placed:
        labels[record.content].add(record.label)
        splits[record.content].add(name)
    kept: dict[str, list[Record]] = {name: [] for name in SPLITS}
    for record, name in placed:
        first = min(splits[record.content], key=SPLITS.index)
        if len(labels[record.content]) > 1:
            left_out.append(LeftOut(record, "the same image is labeled fake and real"))
        elif name != first:
            left_out.append(LeftOut(record, f"in {name}, but the same image is in {first}"))
        else:
            kept[name].append(record)
    left_out.sort(key=lambda item: item.record.path)
    split = Split(*(tuple(kept[name]) for name in SPLITS), tuple(left_out), near)
    _check_both_classes(split, advice)
    return split


def _check_both_classes(split: Split, advice: str) -> None:
    counts = {name: class_counts(getattr(split, name)) for name in SPLITS}
    if all(all(pair) for pair in counts.values()):
        return
    found = ", ".join(f"{name} {fake} fake and {real} real" for name, (fake, real) in counts.items())
    left = f" ({len(split.left_out)} left out)" if split.left_out else ""
    raise DataError(f"train, val and test need fake and real images each; found {found}{left}: {advice}")


def fingerprint(rows: Iterable[tuple[str, str, str]]) -> str:
    """Return 16 hexadecimal digits that identify images with their labels and splits, whatever their file names.

    Args:
        rows: SHA-256, name of the label and split of each image used.
    """
    lines = sorted(f"{sha256} {NAMES.index(label)} {split}" for sha256, label, split in rows)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def write_manifest(path: Path, split: Split, root: Path) -> None:
    """Write the split as CSV: path (relative to root), sha256, label, source, split, and why an image is left out.

    Raises:
        DataError: the file can't be written.
    """
    rows = [(record, name, "") for name in SPLITS for record in getattr(split, name)]
    rows += [(item.record, _LEFT_OUT, item.reason) for item in split.left_out]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for record, name, reason in sorted(rows, key=lambda row: relative_name(row[0].path, root)):
        where = relative_name(record.path, root)
        writer.writerow((where, record.sha256, NAMES[record.label], record.source, name, reason))
    write_atomic(path, text.getvalue().encode(errors="surrogateescape"))


def read_manifest(path: Path, dataset: Dataset) -> Split:
    """Return the split that a manifest describes, for the images of a data set.

    An image is found by its content (SHA-256 of the file), by its path where several rows share the content; so it
    may have been moved or renamed since. Images that the manifest doesn't list, or lists with another label or
    content, and rows whose image is missing are left out, each with the reason.

    Raises:
        DataError: the file is not a manifest, or a split would have no images of a class.
    """
    rows = manifest_rows(path)
    paths = {row["path"] for row in rows}
    by_sha256: dict[str, dict[str, dict[str, str]]] = defaultdict(dict)
    for row in rows:
        by_sha256[row["sha256"].lower()][row["path"]] = row
    placed: list[tuple[Record, str]] = []
    left_out: list[LeftOut] = []
    matched: set[str] = set()  # paths of the rows whose image, or a successor at that path, is there
    for record in dataset.records:
        where = relative_name(record.path, dataset.root)
        row = _row_for(where, by_sha256.get(record.sha256, {}), matched)
        matched.add(row["path"] if row else where)
        reason = _why_left_out(row, record, where in paths)
        if row is None or reason:
            left_out.append(LeftOut(record, reason))
        else:
            placed.append((record, row["split"]))
    left_out += [_missing(row, dataset.root) for row in rows if row["path"] not in matched]
    return _drop_leaks(placed, left_out, _near_copies(dataset), f"check that {path} belongs to {dataset.root}")


def _row_for(where: str, same: dict[str, dict[str, str]], matched: set[str]) -> dict[str, str] | None:
    """Return, of the rows with an image's content, the one with its path, else one not matched yet, else any."""
    if where in same:
        return same[where]
    return next((row for path, row in same.items() if path not in matched), next(iter(same.values()), None))


def _why_left_out(row: dict[str, str] | None, record: Record, path_is_known: bool) -> str:
    if row is None:
        return "its content changed since the split file was written" if path_is_known else "not in the split file"
    if row["split"] == _LEFT_OUT:
        return row["reason"] or "left out by the split file"
    if label_of_name(row["label"]) != record.label:
        return f"{row['label']} in the split file, but in a folder of {NAMES[record.label]} images"
    return ""


def _missing(row: dict[str, str], root: Path) -> LeftOut:
    label = label_of_name(row["label"])
    record = Record(root / row["path"], label, row["source"], row["sha256"], "", None)
    return LeftOut(record, "in the split file, but not among the readable images")


def manifest_rows(path: Path) -> list[dict[str, str]]:
    """Return a manifest's rows by `COLUMNS`; raise DataError where the file is not a manifest."""
    try:
        text = path.read_bytes().decode("utf-8-sig", errors="surrogateescape")
        reader = csv.DictReader(io.StringIO(text, newline=""), restval="", strict=True)
        rows = list(reader)
    except OSError as error:
        raise DataError(f"{path}: the split file can't be read: {error.strerror or error}") from error
    except csv.Error as error:
        raise DataError(f"{path}: expected a CSV with the columns {', '.join(COLUMNS)}, got: {error}") from error
    missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise DataError(f"{path}: expected the columns {', '.join(COLUMNS)}; missing: {', '.join(missing)}")
    for number, row in enumerate(rows, start=1):
        if Path(row["path"]).is_absolute():
            raise DataError(f"{path}: row {number}: expected a path relative to the data folder, got {row['path']!r}")
        if row["split"] not in (*SPLITS, _LEFT_OUT) or label_of_name(row["label"]) is None:
            raise DataError(
                f"{path}: row {number}: expected a label (fake, real) and a split (train, val, test, {_LEFT_OUT}),"
                f" got {row['label']!r} and {row['split']!r}"
            )
    return rows


def summary(split: Split) -> list[str]:
    """Return lines for people: images per split, class and source, and those left out, with the reasons."""
    total = sum(len(getattr(split, name)) for name in SPLITS)
    lines = [_counts_line(name, getattr(split, name), total) for name in SPLITS]
    lines += _source_lines(split)
    reasons = defaultdict(list)
    for item in split.left_out:
        reasons[item.reason].append(str(item.record.path))
    lines += [f"left out {len(paths)}: {reason} ({abbreviate(paths)})" for reason, paths in reasons.items()]
    return lines + _near_lines(split)


def _source_lines(split: Split) -> list[str]:
    """Return the images per source, split and class, the largest sources first; no line where there are no sources."""
    counts: dict[str, Counter[tuple[str, int]]] = defaultdict(Counter)
    for name in SPLITS:
        for record in getattr(split, name):
            counts[record.source][name, record.label] += 1
    if counts.keys() <= {""}:
        return []
    largest = sorted(counts, key=lambda source: (-counts[source].total(), source))
    lines = []
    for source in sorted(largest[:_SOURCES_LISTED]):
        of = counts[source]
        parts = (f"{name} {of[name, FAKE]:,} fake {of[name, REAL]:,} real" for name in SPLITS)
        lines.append(f"  {source or '(no source)'}: {', '.join(parts)}")
    rest = largest[_SOURCES_LISTED:]
    images = sum(counts[source].total() for source in rest)
    return [*lines, f"  {len(rest):,} more sources: {images:,} images"] if rest else lines


def warnings(split: Split, weighted: bool) -> list[str]:
    """Return a line where the classes are too unequal to train on as they are, and where the test is too small.

    Args:
        split: the images.
        weighted: whether the training weights the classes.
    """
    lines = []
    fake, real = class_counts(record for name in SPLITS for record in getattr(split, name))
    rare, ratio = NAMES[fake > real], max(fake, real) / min(fake, real)
    if ratio >= UNEQUAL and not weighted:
        lines.append(
            f"warning: {fake:,} fake and {real:,} real images (1:{ratio:.0f}): the detector will hardly find the {rare}"
            f" ones: add {rare} images, or --class-weights"
        )
    fake, real = class_counts(split.test)
    if min(fake, real) < MIN_TESTED:
        lines.append(
            f"warning: {fake:,} fake and {real:,} real test images are too few to judge a detector: even with"
            f" {MIN_TESTED} of {MIN_TESTED} right, the 95 % interval of a class is 72 to 100 %"
        )
    return lines


def _near_lines(split: Split) -> list[str]:
    """Return where near-copies are; a warning where a split tests on near-copies of what another trains on."""
    where = {record.path: name for name in SPLITS for record in getattr(split, name)}
    together: list[str] = []
    separated: dict[tuple[str, str], list[str]] = defaultdict(list)
    for cluster in split.near:
        placed = {str(record.path): where[record.path] for record in cluster.records if record.path in where}
        first = min(placed.values(), key=SPLITS.index, default="")
        if len(placed) > 1 and len(set(placed.values())) == 1:
            together += placed
        for path, name in placed.items():
            if name != first:
                separated[name, first].append(path)
    lines = [f"near-copies kept together: {len(together)} ({abbreviate(together)})"] if together else []
    for (name, first), paths in separated.items():
        found = f"warning: {len(paths)} of {name} are near-copies of images in {first}"
        lines.append(f"{found}, which makes its metrics too good ({abbreviate(paths)})")
    return lines


def _counts_line(name: str, records: tuple[Record, ...], total: int) -> str:
    fake, real = class_counts(records)
    count = len(records)
    return (
        f"{name:5} {count:7,} images ({count / total:6.1%}): "
        f"{fake:,} fake ({fake / count:.1%}), {real:,} real ({real / count:.1%})"
    )


def scan_and_split(config: Config) -> tuple[Dataset, Split]:
    """Scan and split the images that a configuration names, and log what was found.

    Which images are the same is decided at one size, whatever the network's, so that runs at other sizes on the same
    folder have the same split.

    Raises:
        FakeRealError: with one line that says what to do.
    """
    data = config.data
    rules = LabelRules.of(data.classes, data.split_folders, data.labels_file)
    dataset = _without_sources(scan(Path(data.path), Preprocessing(), rules), data.exclude_sources)
    if config.data.split_file:
        split = read_manifest(Path(config.data.split_file), dataset)
    else:
        split = split_dataset(dataset, config.seed, config.data.shares)
    for line in [*skipped_lines(dataset), *summary(split), *warnings(split, config.training.class_weights)]:
        log(line)
    return dataset, split


def _without_sources(dataset: Dataset, sources: Sequence[str]) -> Dataset:
    known = {record.source for record in dataset.records}
    for name in set(sources) - known:
        raise ConfigError(f"exclude_sources: expected some of {', '.join(sorted(known))}, found {name!r}")
    kept = tuple(record for record in dataset.records if record.source not in sources)
    if sources:
        log(f"left out {len(dataset.records) - len(kept)} images of {', '.join(sources)}")
    return replace(dataset, records=kept)
