"""Select the images of a labeled folder that a fair evaluation may use, and state what was left out and why."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fakereal.dataset.neutralize import NOTE
from fakereal.dataset.scan import Dataset, Record
from fakereal.dataset.split import MIN_TESTED, fingerprint
from fakereal.errors import DataError
from fakereal.labels import FAKE, NAMES, REAL, SPLITS
from fakereal.runtime import log

ONE_CLASS = {
    "fake": "how many fakes are recognized (recall)",
    "real": "how many real images are called fake (false alarms)",
}
"""What images of one class show."""


@dataclass(frozen=True)
class Selection:
    """The images to evaluate on."""

    records: tuple[Record, ...]
    description: str  # which of the folder's images these are
    notes: tuple[str, ...]  # warnings that readers of the figures need
    skipped: int  # files left out because they are unreadable or in both classes


def select(dataset: Dataset, split: str, model: Path, trained_on: str | None, seen: bool) -> Selection:
    """Return the images that the model may be evaluated on.

    Args:
        dataset: the scanned folder.
        split: `test` takes the test folders where there are any; `all` takes every image.
        model: the model file, with the record of its training run beside it or not.
        trained_on: the fingerprint of the training data, from the model's metadata.
        seen: include images that the model was trained or tuned on.

    Raises:
        DataError: no images are left.
    """
    records, description = _of_split(dataset.records, split)
    records, ambiguous = _without_ambiguous(records)
    records, notes = _without_seen(records, dataset, model, trained_on, seen)
    counts = [sum(record.label == label for record in records) for label in (FAKE, REAL)]
    if not any(counts):
        raise DataError(
            f"{dataset.root}: no images that the model was not trained on: add images, or include those of the training"
            " with --seen"
        )
    skipped = sum(item.failed for item in dataset.skipped) + ambiguous
    if skipped:
        notes.append(f"Left out: {skipped:,} files that are unreadable or labeled both fake and real.")
    if not all(counts):
        only = NAMES[counts.index(max(counts))]
        notes.append(f"Only {only} images: they show {ONE_CLASS[only]}. AUC, precision and F1 need both classes.")
    if min(count for count in counts if count) < MIN_TESTED:
        notes.append(f"Only {counts[FAKE]:,} fake and {counts[REAL]:,} real images: too few to judge the detector.")
    return Selection(tuple(records), description, tuple(notes), skipped)


def _of_split(records: Sequence[Record], split: str) -> tuple[list[Record], str]:
    test = [record for record in records if record.split == "test"]
    if split == "test" and test:
        return test, "the test folders"
    return list(records), "all images"


def _without_ambiguous(records: list[Record]) -> tuple[list[Record], int]:
    """Drop images whose pixels are labeled both fake and real; also return how many."""
    labels = defaultdict(set)
    for record in records:
        labels[record.content].add(record.label)
    for record in records:
        if len(labels[record.content]) > 1:
            log(f"left out, as the same image is labeled both fake and real: {record.path}")
    kept = [record for record in records if len(labels[record.content]) == 1]
    return kept, len(records) - len(kept)


def _without_seen(
    records: list[Record], dataset: Dataset, model: Path, trained_on: str | None, include: bool
) -> tuple[list[Record], list[str]]:
    """Drop what the model was trained or tuned on, by content: another file of the same pixels counts as seen too."""
    manifest = model.with_name(f"{model.stem}_run") / "split.csv"
    if not manifest.is_file():
        return records, [f"Unknown whether the model was trained on some of these images: the record of its training"
                         f" ({manifest.parent.name}/{manifest.name}) is not beside it."]  # fmt: skip
    rows = _manifest_rows(manifest)
    doubts = _doubts(rows, trained_on, manifest)
    hashes = {row.get("sha256") for row in rows if row["split"] != "test"}
    seen = {record.content for record in dataset.records if record.sha256 in hashes}
    unseen = [record for record in records if record.content not in seen]
    count = len(records) - len(unseen)
    if not count:
        doubts += _neutral_doubts(dataset.root)
    for doubt in doubts:
        log(f"warning: {doubt}")
    if not count:
        return records, doubts
    if include:
        return records, [f"Optimistic: the model was trained or tuned on {count:,} of these images.", *doubts]
    log(f"left out {count:,} images that the model was trained or tuned on (--seen includes them)")
    return unseen, [f"Left out: {count:,} images that the model was trained or tuned on.", *doubts]


def _manifest_rows(manifest: Path) -> list[dict[str, str]]:
    with open(manifest, encoding="utf-8", errors="surrogateescape", newline="") as file:
        return [row for row in csv.DictReader(file) if row.get("split") in SPLITS and row.get("label") in NAMES]


def _doubts(rows: Iterable[dict[str, str]], trained_on: str | None, manifest: Path) -> list[str]:
    if fingerprint((row.get("sha256"), row.get("label"), row["split"]) for row in rows) == trained_on:
        return []
    return [f"The model may have been trained on some of these images: {manifest.name} beside it is the record of"
            " another training, or was changed."]  # fmt: skip


def _neutral_doubts(root: Path) -> list[str]:
    if not (root / NOTE).is_file():
        return []
    return ["The model may have been trained on some of these images: a neutralized copy has files of its own, so they"
            " can't be recognized."]  # fmt: skip
