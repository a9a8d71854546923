"""Finds pictures whose labels are probably wrong, and writes them as predictions that separation takes.

Nothing is changed here: the suspects are for people to look at. The given test split is never judged: a test that a
classifier has corrected would flatter every classifier of its kind.
"""

from __future__ import annotations

import shlex
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from cleanlab.count import num_label_issues
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from threadpoolctl import threadpool_limits

from fakereal import predictions_json
from fakereal.dataset.near_duplicates import Cluster
from fakereal.dataset.scan import Dataset, Record, labels_of
from fakereal.errors import DataError
from fakereal.labels import FAKE, NAMES, REAL, label_of_folder
from fakereal.model import model_file, networks
from fakereal.model.metrics import binary_log_loss, roc_auc
from fakereal.model.weights import PRETRAINED
from fakereal.runtime import check_interrupt, interrupts_at_checks_only, progress_bar
from fakereal.training.input_pipeline import named_images, plain_batches

MIN_IMAGES = 10
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
    judgement = score_labels(features_of(records, base), labels, groups, folds, seed)
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
    if min(counts) < MIN_IMAGES:
        found = " and ".join(f"{count} {NAMES[label]}" for label, count in enumerate(counts))
        raise DataError(
            f"label errors: expected at least {MIN_IMAGES} fake and {MIN_IMAGES} real pictures outside the test"
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
    with named_images(), interrupts_at_checks_only(), progress_bar("looking at images", len(records)) as advance:
        for images, _ in plain_batches(records, detector.metadata.preprocessing, _BATCH):
            rows.append(np.asarray(model.predict_on_batch(images), dtype=np.float32))
            advance(len(rows[-1]))
            check_interrupt()
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


# ---- Which labels are probably wrong, by features: out-of-fold probabilities through confident learning, arrays only.
#
# A picture is judged by a classifier that learnt from neither it nor a near-copy of it. Which of the disagreements are
# errors, and how many errors there are in all, is estimated as in Northcutt et al. 2021 (arXiv 1911.00068), by cleanlab;
# then once more with classifiers that don't learn from the first suspects.

RELIABLE_AUC = 0.95
"""Of `Judgement.sound_auc`: below it, most disagreements are hard pictures rather than wrong labels."""

_STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2)  # of the logistic regression, scikit-learn's C; from strict to free
_TRIAL_SHARE, _TRIAL_LEAST, _TRIAL_MOST = 0.05, 20, 0.2  # labels swapped for trial: 5 %, but 20 where that is <= 20 %
_SURE_SHARE = 0.2  # of the pictures, those that the classifier is surest of
_MOST_WRONG = 0.35  # a larger share of wrong labels could not be told from chance
_RESAMPLES = 200

Parts = Sequence[tuple[np.ndarray, np.ndarray]]
"""For each fold the rows that are learnt from and those that are judged."""


@dataclass(frozen=True)
class Trial:
    """Labels swapped on purpose, which shows how many errors are found in these very pictures.

    Swapping a label that was wrong makes it right, so the more labels were wrong, the more the recall falls short.
    """

    swapped: int
    found: int  # of the swapped ones
    untouched: int
    suspected: int  # of the untouched ones; labels that were wrong before are rightly among them

    @property
    def recall(self) -> float:
        """The share of the swapped labels that was found, 0..1."""
        return self.found / self.swapped


@dataclass(frozen=True)
class LabelScores:
    """What the probabilities say, as arrays in the order of the labels."""

    p_given: np.ndarray  # out-of-fold probability of the given label, float64 (n,), 0..1
    wrong: np.ndarray  # bool (n,), the suspects
    scores: np.ndarray  # quality of each label, float64 (n,), 0..1
    auc: float  # ROC AUC of the out-of-fold probabilities against the labels as given
    sound_auc: float  # the same against sound labels, as far as that can be estimated
    expected: int  # wrong labels in all
    interval: tuple[int, int]  # of `expected`, 95 %; from 0 where the suspects can't be relied on
    trial: Trial


def score_labels(features: np.ndarray, labels: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> LabelScores:
    """Judges labels by features.

    Args:
        features: float (n, d), one row a picture.
        labels: int (n,), 0 fake, 1 real, as given.
        groups: int (n,), pictures that stay in one fold share a number.
        folds: at most so many.
        seed: of the folds, the trial and the interval.
    """
    # Scaled at once for all folds: no label takes part in it, so nothing leaks.
    scaled = (features - features.mean(axis=0)) / np.maximum(features.std(axis=0), 1e-6)
    smallest = min(len(np.unique(groups[labels == label])) for label in (FAKE, REAL))
    cut = StratifiedGroupKFold(min(folds, smallest), shuffle=True, random_state=seed)
    parts = list(cut.split(scaled, labels, groups))
    steps = (len(_STRENGTHS) + 3) * len(parts)
    rng = np.random.default_rng(seed)
    # One thread: on a busy machine, the waiting of BLAS's threads for each other takes 20 times as long as the work.
    with progress_bar("judging labels", steps) as advance, threadpool_limits(1):
        tried = [(_out_of_fold(scaled, labels, parts, strength, advance), strength) for strength in _STRENGTHS]
        first, strength = min(tried, key=lambda pair: binary_log_loss(labels, pair[0]))
        p_real = _again(scaled, labels, first, parts, strength, advance)
        trial = _trial(scaled, labels, parts, strength, advance, rng)
    p_given = np.where(labels == REAL, p_real, 1.0 - p_real)
    wrong, scores, sound = suspected(labels, p_real), _scores(labels, p_real), sound_auc(labels, p_real)
    expected, low, high = expected_wrong(labels, p_real, rng)
    interval = (low if sound >= RELIABLE_AUC else 0, high)
    return LabelScores(p_given, wrong, scores, roc_auc(labels, p_real), sound, expected, interval, trial)


def _out_of_fold(
    features: np.ndarray,
    labels: np.ndarray,
    parts: Parts,
    strength: float,
    advance: Callable[[int], None],
    trusted: np.ndarray | None = None,
) -> np.ndarray:
    """Returns p_real of each picture by a classifier that learnt from the other folds: float64 (n,).

    Where `trusted`, bool (n,), is given, it learns from those alone, unless they are all of one class.
    """
    p_real = np.empty(len(labels))
    for learnt, judged in parts:
        sound = learnt if trusted is None else learnt[trusted[learnt]]
        rows = sound if len(np.unique(labels[sound])) == 2 else learnt
        classifier = LogisticRegression(C=strength, max_iter=1000).fit(features[rows], labels[rows])
        p_real[judged] = classifier.predict_proba(features[judged])[:, REAL]
        advance(1)
    return p_real


def _again(features, labels, first: np.ndarray, parts: Parts, strength: float, advance) -> np.ndarray:
    """Returns p_real by classifiers that no longer learn from the suspects of the first round, as in the paper."""
    return _out_of_fold(features, labels, parts, strength, advance, ~suspected(labels, first))


def suspected(labels: np.ndarray, p_real: np.ndarray) -> np.ndarray:
    """Returns which labels are probably wrong: bool (n,).

    Args:
        labels: int (n,), as given.
        p_real: out-of-fold probabilities, float (n,).
    """
    return np.asarray(find_label_issues(labels, _both(p_real), filter_by="prune_by_noise_rate", n_jobs=1))


def _both(p_real: np.ndarray) -> np.ndarray:
    return np.stack([1.0 - p_real, p_real], axis=1)


def _scores(labels: np.ndarray, p_real: np.ndarray) -> np.ndarray:
    return get_label_quality_scores(labels, _both(p_real), method="self_confidence", adjust_pred_probs=True)


def _trial(features, labels: np.ndarray, parts: Parts, strength: float, advance, rng: np.random.Generator) -> Trial:
    count = max(int(_TRIAL_SHARE * len(labels)), min(_TRIAL_LEAST, int(_TRIAL_MOST * len(labels))))
    swapped = np.zeros(len(labels), dtype=bool)
    swapped[rng.choice(len(labels), count, replace=False)] = True
    changed = np.where(swapped, 1 - labels, labels)
    first = _out_of_fold(features, changed, parts, strength, advance)
    found = suspected(changed, _again(features, changed, first, parts, strength, advance))
    return Trial(count, int(found[swapped].sum()), len(labels) - count, int(found[~swapped].sum()))


def expected_wrong(labels: np.ndarray, p_real: np.ndarray, rng: np.random.Generator) -> tuple[int, int, int]:
    """Returns how many labels are expected to be wrong, and the ends of a 95 % interval.

    The number is confident learning's. It takes the classifier's weakness on hard pictures for wrong labels; another
    estimate takes errors to be as frequent among easy pictures as elsewhere, and counts them where the classifier is
    surest. The interval spans both, each with its bootstrap.
    """
    by_class = [np.flatnonzero(labels == label) for label in (FAKE, REAL)]
    draws = []
    for _ in range(_RESAMPLES):
        drawn = np.concatenate([rng.choice(numbers, len(numbers)) for numbers in by_class])
        draws.append((_confident_count(labels[drawn], p_real[drawn]), _sure_count(labels[drawn], p_real[drawn])))
    count, spread = _confident_count(labels, p_real), np.array(draws)
    low = min(count, np.percentile(spread.min(axis=1), 2.5))
    high = max(count, np.percentile(spread.max(axis=1), 97.5))
    return count, round(low), round(high)


def _confident_count(labels: np.ndarray, p_real: np.ndarray) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a resample in which no picture is confidently of one class
        return int(num_label_issues(labels, _both(p_real), estimation_method="off_diagonal_calibrated"))


def _sure_count(labels: np.ndarray, p_real: np.ndarray) -> float:
    surest = np.argsort(-np.abs(p_real - 0.5), kind="stable")[: max(1, int(_SURE_SHARE * len(labels)))]
    return float(np.mean((p_real[surest] > 0.5) != (labels[surest] == REAL)) * len(labels))


def sound_auc(labels: np.ndarray, p_real: np.ndarray) -> float:
    """Returns about which ROC AUC the probabilities would have if no label were wrong.

    Labels that are wrong at random pull the AUC towards 0.5 by twice their share; the share is that among the pictures
    which the classifier is surest of. A weak classifier stays weak, however many labels are wrong.
    """
    share = min(_sure_count(labels, p_real) / len(labels), _MOST_WRONG)
    return min(1.0, 0.5 + (roc_auc(labels, p_real) - 0.5) / (1 - 2 * share))
