"""The audit of a data set: what it holds, what is wrong with its files, and whether they give the answer away."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fakereal.data import facts as file_facts
from fakereal.data import file_problems, pixel_statistics, shortcuts
from fakereal.data.duplicates import Cluster, find_duplicates
from fakereal.data.facts import Facts
from fakereal.data.file_problems import Problem
from fakereal.data.scan import Dataset, Record
from fakereal.data.telling import Judged
from fakereal.errors import DataError
from fakereal.labels import NAMES

MOST_OF_A_CLASS = 2500
"""Pictures of a class that the shortcut audit looks at: the AUC is then known to about 0.02."""

_MOST_IN_SHORT = 1000
_SIZES_NAMED = 3
_PREFIX = 16  # hexadecimal digits of a content hash that are enough to sort by


@dataclass(frozen=True)
class Audit:
    """All that is known of a data set without a network."""

    dataset: Dataset
    counts: dict[str, Any]  # pictures by class, source, split; formats and sizes by class
    files: dict[str, tuple[Problem, ...]]  # by kind, see `file_problems.KINDS`
    shortcut: Judged  # from headers
    names: Judged  # from file names
    pixels: Judged  # from trivial measures
    clusters: tuple[Cluster, ...]  # the same picture several times

    @property
    def sampled(self) -> bool:
        """Whether there were more pictures than the shortcut audit looked at."""
        return self.shortcut.images < len(self.dataset.records)


def audit(dataset: Dataset) -> Audit:
    """Audits a data set; headers are read of every file, classifiers look at a sample of large sets.

    Raises:
        DataError: the pictures vanished since the scan.
    """
    clusters = find_duplicates(dataset.records)
    found = file_facts.read_all([record.path for record in dataset.records])
    known = [number for number, fact in enumerate(found) if fact]
    records, facts = [dataset.records[number] for number in known], [found[number] for number in known]
    if not known:
        raise DataError(f"{dataset.root}: expected the pictures of a moment ago, found none: try again")
    labels, groups = _labels(records), _groups(records, clusters)
    order = sorted(range(len(records)), key=lambda number: records[number].content[:_PREFIX])
    sample = _first_of_each_class(order, labels, MOST_OF_A_CLASS)
    judged = _of(sample, facts, labels, groups)
    return Audit(
        dataset=dataset,
        counts=_counts(dataset, records, facts),
        files=file_problems.find(dataset, found),
        shortcut=shortcuts.audit_files(*judged),
        names=shortcuts.audit_names(*judged),
        pixels=_audit_pixels(records, facts, labels, groups, order),
        clusters=clusters,
    )


def audit_in_short(records: Sequence[Record], near: Sequence[Cluster]) -> Judged:
    """Returns the shortcut audit alone, of fewer pictures: a second or two before a training.

    Args:
        records: both classes.
        near: their near-copies.
    """
    order = sorted(range(len(records)), key=lambda number: records[number].content[:_PREFIX])
    chosen = [records[n] for n in _first_of_each_class(order, _labels(records), _MOST_IN_SHORT)]
    found = file_facts.read_all([record.path for record in chosen])
    known = [number for number, fact in enumerate(found) if fact]
    return shortcuts.audit_files(*_of(known, found, _labels(chosen), _groups(chosen, near)))


def _of(chosen: Sequence[int], facts: Sequence[Facts], labels: np.ndarray, groups: Sequence[str]) -> tuple:
    return [facts[number] for number in chosen], labels[np.array(chosen, int)], [groups[number] for number in chosen]


def _labels(records: Sequence[Record]) -> np.ndarray:
    return np.array([record.label for record in records], dtype=np.int64)


def _groups(records: Sequence[Record], clusters: Sequence[Cluster]) -> list[str]:
    """Returns a name for each picture that its copies share."""
    near = [cluster for cluster in clusters if cluster.kind == "near"]  # identical ones are in them or share a content
    first = {record.path: cluster.records[0].content for cluster in near for record in cluster.records}
    return [first.get(record.path, record.content) for record in records]


def _first_of_each_class(order: Sequence[int], labels: np.ndarray, most: int) -> list[int]:
    return sorted(n for label in (0, 1) for n in [n for n in order if labels[n] == label][:most])


def _audit_pixels(
    records: Sequence[Record], facts: Sequence[Facts], labels: np.ndarray, groups: Sequence[str], order: Sequence[int]
) -> Judged:
    drawn = pixel_statistics.drawn(facts, labels, order)
    measured = pixel_statistics.measure_all([records[number].path for number in drawn])
    pairs = [(number, statistics) for number, statistics in zip(drawn, measured, strict=True) if statistics]
    numbers = [number for number, _ in pairs]
    return pixel_statistics.audit_pixels([statistics for _, statistics in pairs], *_of(numbers, facts, labels, groups))


def _counts(dataset: Dataset, records: Sequence[Record], facts: Sequence[Facts]) -> dict[str, Any]:
    return {
        "pictures": len(dataset.records),
        "skipped": sum(item.failed for item in dataset.skipped),
        "other_files": sum(not item.failed for item in dataset.skipped),
        "by_class": _per_class(dataset.records),
        "by_split": _table(dataset.records, lambda record: record.split),
        "by_source": _table(dataset.records, lambda record: record.source),
        "formats": _facts_by_class(records, facts, lambda fact: fact.format),
        "sizes": _facts_by_class(records, facts, lambda fact: f"{fact.width_px}x{fact.height_px}", _SIZES_NAMED),
    }


def _per_class(records: Sequence[Record]) -> dict[str, int]:
    counts = Counter(record.label for record in records)
    return {name: counts[label] for label, name in enumerate(NAMES)}


def _table(records: Sequence[Record], key: Callable[[Record], str | None]) -> dict[str, dict[str, int]]:
    """Returns the classes' counts by split or source; nothing where the layout names none."""
    rows: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        rows[key(record) or ""].append(record)
    return {name: _per_class(rows[name]) for name in sorted(rows)} if list(rows) != [""] else {}


def _facts_by_class(
    records: Sequence[Record], facts: Sequence[Facts], key: Callable[[Facts], str], most: int | None = None
) -> dict[str, dict[str, int]]:
    """Returns how often each value occurs in each class, the most frequent first, and how many others there are."""
    tables = {}
    for label, name in enumerate(NAMES):
        counts = Counter(key(fact) for record, fact in zip(records, facts, strict=True) if record.label == label)
        named = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most])
        others = counts.total() - sum(named.values())
        tables[name] = named | ({f"{len(counts) - len(named)} others": others} if others else {})
    return tables
