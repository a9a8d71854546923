"""Finds pictures whose labels are probably wrong, and writes them as predictions that separation takes.

Nothing is changed here: the suspects are for people to look at. The given test split is never judged: a test that a
classifier has corrected would flatter every classifier of its kind.
"""

from __future__ import annotations

import shlex
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from fakereal import predictions_json
from fakereal.cli import progress_bar
from fakereal.data.duplicates import Cluster
from fakereal.data.scan import Dataset, Record
from fakereal.errors import DataError
from fakereal.interrupts import check, only_at_checks
from fakereal.labels import FAKE, NAMES, REAL, label_of_folder
from fakereal.model import model_file, networks
from fakereal.model.input_pipeline import labels_of, pictures_named, plain_batches
from fakereal.model.label_quality import RELIABLE_AUC, Trial, judge
from fakereal.model.weights import PRETRAINED

LEAST_PICTURES = 10
"""Of each class, near-copies counted once: with fewer there is nothing to learn from."""

_BATCH = 32


@dataclass(frozen=True)
class Suspect:
    """One picture whose label is probably wrong."""

    record: Record
    given: int  # 0 fake, 1 real
    suggested: int
    p_given: float  # out-of-fold probability of the given label, 0..1
    score: float  # quality of the label after cleanlab, 0..1, lower is worse; comparable between the classes


@dataclass(frozen=True)
class LabelErrors:
    """The suspects of a data set."""

    suspects: tuple[Suspect, ...]  # worst first
    judged: int  # pictures
    expected: int  # wrong labels in all, as far as the suspects can be relied on
    interval: tuple[int, int]  # of `expected`, 95 %; from 0 where the suspects can't be relied on
    auc: float  # ROC AUC of the out-of-fold probabilities against the labels as given
    sound_auc: float  # the same against sound labels, as far as that can be estimated
    trial: Trial
    left_out: tuple[Record, ...]  # of the given test split, which is never judged

    @property
    def reliable(self) -> bool:
        """False where the classifier is too weak for its disagreements to mean wrong labels."""
        return self.sound_auc >= RELIABLE_AUC


def find(
    dataset: Dataset, clusters: Sequence[Cluster] = (), base: str = "pretrained", folds: int = 5, seed: int = 0
) -> LabelErrors:
    """Judges every label outside the given test split.

    Args:
        dataset: the pictures with their labels.
        clusters: near-copies, which stay together in one fold.
        base: whose features are learnt from: `pretrained`, or the path of a model file of ours.
        folds: at most so many; fewer where a class is small.
        seed: of the folds, the trial and the interval.

    Raises:
        DataError: too few pictures outside the test split, or one that vanished since the scan.
        ModelFileError: the base can't be used.
    """
    records = [record for record in dataset.records if record.split != "test"]
    labels, groups = labels_of(records), groups_of(records, clusters)
    _check(labels, groups)
    judgement = judge(features_of(records, base), labels, groups, folds, seed)
    suspects = [
        Suspect(
            records[number],
            int(labels[number]),
            int(1 - labels[number]),
            float(judgement.p_given[number]),
            float(judgement.scores[number]),
        )
        for number in np.flatnonzero(judgement.wrong)
    ]
    return LabelErrors(
        suspects=tuple(sorted(suspects, key=lambda suspect: (suspect.score, suspect.p_given))),
        judged=len(records),
        expected=judgement.expected,
        interval=judgement.interval,
        auc=judgement.auc,
        sound_auc=judgement.sound_auc,
        trial=judgement.trial,
        left_out=tuple(record for record in dataset.records if record.split == "test"),
    )


def groups_of(records: Sequence[Record], clusters: Sequence[Cluster]) -> np.ndarray:
    """Returns a number for each record, int (n,), that identical pictures and those of a cluster share."""
    first: dict[object, int] = {}
    numbers = {record.path: number for number, record in enumerate(records)}
    links = [(number, first.setdefault(record.content, number)) for number, record in enumerate(records)]
    for cluster in clusters:
        members = [numbers[record.path] for record in cluster.records if record.path in numbers]
        links += [(number, members[0]) for number in members]
    rows, columns = np.array(links, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(len(records), len(records)))
    return connected_components(graph, directed=False)[1]


def _check(labels: np.ndarray, groups: np.ndarray) -> None:
    counts = [len(np.unique(groups[labels == label])) for label in (FAKE, REAL)]
    if min(counts) < LEAST_PICTURES:
        found = " and ".join(f"{count} {NAMES[label]}" for label, count in enumerate(counts))
        raise DataError(
            f"label errors: expected at least {LEAST_PICTURES} fake and {LEAST_PICTURES} real pictures outside the test"
            f" split (copies counted once), found {found}: add pictures, or leave the label errors out"
        )


def features_of(records: Sequence[Record], base: str) -> np.ndarray:
    """Returns what a model's base makes of each picture: float32 (n, d).

    Raises:
        DataError: a picture that vanished since the scan.
        ModelFileError: no model file of ours at `base`.
    """
    detector = model_file.load(PRETRAINED if base == "pretrained" else Path(base))
    features = detector.model.get_layer(networks.FEATURES).output
    model = keras.Model(detector.model.inputs, features)
    rows = []
    with pictures_named(), only_at_checks(), progress_bar("looking at images", len(records)) as advance:
        for images, _ in plain_batches(records, detector.metadata.preprocessing, _BATCH):
            rows.append(np.asarray(model.predict_on_batch(images), dtype=np.float32))
            advance(len(rows[-1]))
            check()
    return np.concatenate(rows)


def write_predictions(found: LabelErrors, dataset: Dataset, folder: Path) -> list[Path]:
    """Writes a prediction JSON for every class folder: each label as given, the suspects' labels swapped.

    The JSONs lie under `folder` as the class folders lie under the data set's root (`train/fake.json` for
    `train/fake/`), so that `image_separate.py ROOT/train --predictions FOLDER/train` finds them. They are complete:
    an unreadable picture stands there without a prediction. The given test split gets none.

    Returns:
        The JSONs' paths, sorted.

    Raises:
        DataError: a file can't be written.
    """
    suggested = {suspect.record.path: suspect.suggested for suspect in found.suspects}
    rows: dict[Path, list[tuple[Path, int | None, str | None]]] = defaultdict(list)
    for record in dataset.records:
        if record.split != "test":
            label = suggested.get(record.path, record.label)
            rows[_class_folder(record.path, dataset.root, record.label)].append((record.path, label, None))
    for skipped in dataset.skipped:
        inside = [parent for parent in skipped.path.parents if parent in rows]
        if skipped.failed and inside:
            rows[inside[0]].append((skipped.path, None, skipped.reason))
    written = []
    for class_folder, entries in sorted(rows.items()):
        inside = class_folder.relative_to(dataset.root)
        written.append(folder / inside.with_name(f"{inside.name}.json"))
        predictions_json.write(written[-1], _predictions(entries, class_folder))
    return written


def _class_folder(path: Path, root: Path, label: int) -> Path:
    """Returns the outermost folder whose name gives the label; it holds the whole class, folders within included."""
    parts = path.relative_to(root).parts[:-1]
    depth = next(depth for depth, name in enumerate(parts, start=1) if label_of_folder(name) == label)
    return root.joinpath(*parts[:depth])


def _predictions(
    entries: Sequence[tuple[Path, int | None, str | None]], folder: Path
) -> list[predictions_json.Prediction]:
    """Names a picture by its number only where no other picture has that number: `1.png` and `1.jpg` go by path."""
    keys = [predictions_json.key_of_file(path.relative_to(folder)) for path, _, _ in entries]
    counts = Counter(keys)
    return [
        predictions_json.prediction_for(key if counts[key] == 1 else path.relative_to(folder).as_posix(), label, reason)
        for key, (path, label, reason) in zip(keys, entries, strict=True)
    ]


def commands(written: Sequence[Path], dataset: Dataset, folder: Path) -> list[str]:
    """Returns the commands that would separate the pictures by `write_predictions`' JSONs, one a folder of classes."""

    def quoted(path: Path) -> str:
        return shlex.quote(str(path))

    places = sorted({path.parent.relative_to(folder) for path in written})
    return [
        f"python image_separate.py {quoted(dataset.root / place)} --predictions {quoted(folder / place)}"
        f" --output {quoted(Path('data/clean') / place)} --mode copy"
        for place in places
    ]


def summary(found: LabelErrors) -> list[str]:
    """Returns lines for people: how many, how sure, and what was not judged."""
    low, high = found.interval
    trial = found.trial
    lines = [
        f"label errors: {len(found.suspects):,} of {found.judged:,} labels are suspect;"
        f" {found.expected:,} are expected to be wrong (95 % interval {low:,} to {high:,})",
        f"trial: of {trial.swapped:,} labels swapped on purpose {trial.recall:.0%} were found, while"
        f" {trial.suspected / trial.untouched:.0%} of the others were suspected; out-of-fold ROC AUC {found.auc:.3f}"
        f" (with sound labels about {found.sound_auc:.3f})",
    ]
    if not found.reliable:
        lines.append(
            "the base does not tell these pictures apart well enough, so most suspects are likely just hard ones:"
            " let people decide, and don't apply them as they are"
        )
    if found.left_out:
        lines.append(f"the given test split ({len(found.left_out):,} pictures) was not judged")
    return lines


def as_json(found: LabelErrors, root: Path) -> dict[str, Any]:
    """Returns all of it for a report, the suspects worst first, their paths relative to `root`."""
    return {
        "judged": found.judged,
        "expected": found.expected,
        "interval": list(found.interval),
        "auc": round(found.auc, 6),
        "sound_auc": round(found.sound_auc, 6),
        "reliable": found.reliable,
        "trial": {key: getattr(found.trial, key) for key in ("swapped", "found", "untouched", "suspected")},
        "left_out": len(found.left_out),
        "suspects": [
            {
                "image": suspect.record.path.relative_to(root).as_posix(),
                "given": NAMES[suspect.given],
                "suggested": NAMES[suspect.suggested],
                "p_given": round(suspect.p_given, 6),
                "score": round(suspect.score, 6),
            }
            for suspect in found.suspects
        ],
    }
