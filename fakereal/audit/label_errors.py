"""Find labels that are probably wrong, and write the given and the corrected labels as prediction JSON files.

Confident learning (Northcutt et al. 2021, arXiv 1911.00068; the cleanlab package): a logistic regression on a model's
features predicts each image out of fold, that is, trained neither on that image nor on a near-copy of it. Labels that
the predictions contradict with confidence are suspects. A second round no longer trains on the suspects of the first.

No file is changed. Images of a given test split are never checked: a test set that one classifier has corrected
flatters every classifier of its kind.
"""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import keras
import numpy as np
from cleanlab.count import num_label_issues
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from threadpoolctl import threadpool_limits

from fakereal import predictions_json
from fakereal.audit.shortcuts import auc_interval
from fakereal.cli import command_line
from fakereal.dataset.near_duplicates import Cluster, duplicate_groups
from fakereal.dataset.scan import Dataset, Record, labels_of, scanned_bytes
from fakereal.engines.formats import pad_batch
from fakereal.errors import DataError, ImageRefused
from fakereal.files import relative_name
from fakereal.labels import FAKE, NAMES, REAL
from fakereal.model import model_file, networks
from fakereal.model.metrics import binary_log_loss, roc_auc, swapped_labels
from fakereal.model.weights import PRETRAINED
from fakereal.preprocessing import Preprocessing
from fakereal.runtime import check_interrupt, interrupts_at_checks_only, parallel_map, progress_bar

MIN_IMAGES = 10
"""Images required of each class, near-copies counted once: fewer are too few to learn from."""

CLEAN_FOLDER = Path("data/clean")
"""Where cleaned images are put, and what training reads by default."""

RELIABLE_AUC = 0.95
"""Of `Estimate.clean_auc`: below it, most suspects are hard images rather than wrong labels."""

_BATCH = 32  # images at once in the network
_INVERSE_PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2)  # scikit-learn's C, from strong to weak regularization
_TRIAL_SHARE, _TRIAL_MIN, _TRIAL_MAX_SHARE = 0.05, 20, 0.2  # labels swapped: 5 %, or 20 where that is at most 20 %
_SUREST_SHARE = 0.2  # of the images, those with the most confident predictions
_MAX_WRONG_SHARE = 0.35  # a larger share of wrong labels could not be told from chance
_RESAMPLES = 200  # of the bootstrap

Folds = Sequence[tuple[np.ndarray, np.ndarray]]
"""For each fold the row numbers to train on and those to predict."""


@dataclass(frozen=True)
class Suspect:
    """An image whose label is probably wrong."""

    record: Record
    given: int  # 0 fake, 1 real
    suggested: int
    p_given: float  # out-of-fold probability of the given label, 0..1
    quality: float  # cleanlab's label quality, 0..1, lower is worse; comparable between the classes


@dataclass(frozen=True)
class Trial:
    """How many labels that were swapped on purpose are found among these very images.

    Swapping a wrong label makes it right, so the recall is underestimated where many labels are wrong.
    """

    swapped: int
    found: int  # of the swapped ones
    untouched: int
    suspected: int  # of the untouched ones, including those that are really wrong

    @property
    def recall(self) -> float:
        """Share of the swapped labels that was found, 0..1."""
        return self.found / self.swapped


@dataclass(frozen=True)
class Estimate:
    """How many labels are wrong, and how far the suspects can be relied on."""

    expected: int  # wrong labels in total
    interval: tuple[int, int]  # 95 % interval of `expected`; starts at 0 where the suspects are not reliable
    auc: float  # ROC AUC of the out-of-fold predictions against the given labels
    clean_auc: float  # the same against correct labels, estimated
    trial: Trial

    @property
    def reliable(self) -> bool:
        """False where the classifier is too weak for its disagreement to mean a wrong label."""
        return self.clean_auc >= RELIABLE_AUC


@dataclass(frozen=True)
class LabelErrors:
    """The suspects of a data set."""

    suspects: tuple[Suspect, ...]  # worst first
    checked: int  # images
    estimate: Estimate
    left_out: tuple[Record, ...]  # images of the given test split
    base_auc: float = 0.5  # ROC AUC of the base model's own verdicts against the given labels
    base_interval: tuple[float, float] = (0.0, 1.0)  # its 95 % interval


def find_label_errors(
    dataset: Dataset, clusters: Sequence[Cluster] = (), base: str = "pretrained", folds: int = 5, seed: int = 0
) -> LabelErrors:
    """Check every label outside the given test split.

    Args:
        dataset: the labeled images.
        clusters: near-copies, which are kept in one fold.
        base: the model whose features are used: `pretrained`, or the path of a model file made by train_model.py.
        folds: at most this many; fewer where a class is small.
        seed: of the folds, the trial and the interval.

    Raises:
        DataError: too few images outside the test split, or an image that changed since the scan.
        ModelFileError: `base` can't be used.
    """
    records = [record for record in dataset.records if record.split != "test"]
    labels, groups = labels_of(records), duplicate_groups(records, clusters)
    _check_counts(labels, groups)
    features, p_real = extract_features(records, base)
    scores = score_labels(features, labels, groups, folds, seed)
    suspects = [
        Suspect(
            record=records[number],
            given=int(labels[number]),
            suggested=int(1 - labels[number]),
            p_given=float(scores.p_given[number]),
            quality=float(scores.quality[number]),
        )
        for number in np.flatnonzero(scores.suspected)
    ]
    suspects.sort(key=lambda suspect: (suspect.quality, suspect.p_given))
    left_out = tuple(record for record in dataset.records if record.split == "test")
    base_auc = roc_auc(labels, p_real)
    interval = auc_interval(base_auc, *np.bincount(labels, minlength=2))
    return LabelErrors(tuple(suspects), len(records), scores.estimate, left_out, base_auc, interval)


def _check_counts(labels: np.ndarray, groups: np.ndarray) -> None:
    counts = [len(np.unique(groups[labels == label])) for label in (FAKE, REAL)]
    if min(counts) < MIN_IMAGES:
        found = " and ".join(f"{count} {NAMES[label]}" for label, count in enumerate(counts))
        raise DataError(
            f"label errors: expected at least {MIN_IMAGES} fake and {MIN_IMAGES} real images outside the test split"
            f" (copies counted once), got {found}: add images, or run the audit without --label-errors"
        )


def extract_features(records: Sequence[Record], base: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the output of a model's feature layer for each image, float32 (n, d), and its p_real, float64 (n,).

    Args:
        records: the images.
        base: as in `find_label_errors`.

    Raises:
        DataError: an image that changed since the scan.
        ModelFileError: no model file of ours at `base`.
    """
    detector = model_file.load(PRETRAINED if base == "pretrained" else Path(base))
    preprocessing = detector.metadata.preprocessing
    outputs_of = [detector.model.get_layer(networks.FEATURES).output, detector.model.output]
    model = keras.Model(detector.model.inputs, outputs_of)
    rows, p_real = [], []
    with interrupts_at_checks_only():
        images = parallel_map(lambda record: _read(record, preprocessing), records, "computing features")
        while batch := list(islice(images, _BATCH)):
            features, outputs = model.predict_on_batch(pad_batch(batch, _BATCH).astype(np.float32))
            rows.append(np.asarray(features, np.float32)[: len(batch)])
            p_real.append(np.asarray(outputs, np.float64)[: len(batch), 0])
            check_interrupt()
    return np.concatenate(rows), np.concatenate(p_real)


def _read(record: Record, preprocessing: Preprocessing) -> np.ndarray:
    try:
        return preprocessing.read(scanned_bytes(record))
    except ImageRefused as error:
        raise DataError(f"{record.path}: {error}; it was readable when the audit began: put it back") from error


def write_predictions(found: LabelErrors, dataset: Dataset, folder: Path) -> list[Path]:
    """Write one prediction JSON per class folder: every label as given, those of the suspects swapped.

    The files lie below `folder` as the class folders lie below the data set's root (`train/fake.json` for
    `train/fake/`), so that `image_separate.py ROOT/train --predictions FOLDER/train` finds them. They are complete:
    an unreadable image has an entry without a prediction. The given test split gets no file.

    Returns:
        The paths written, sorted.

    Raises:
        DataError: a file can't be written.
    """
    return _write_labels(dataset, {suspect.record.path: suspect.suggested for suspect in found.suspects}, folder)


def write_given_labels(dataset: Dataset, folder: Path) -> list[Path]:
    """Like `write_predictions`, with every label as given: what people don't decide then stays as it is."""
    return _write_labels(dataset, {}, folder)


def _write_labels(dataset: Dataset, changed: Mapping[Path, int], folder: Path) -> list[Path]:
    entries: dict[Path, list[tuple[Path, int | None, str | None]]] = defaultdict(list)
    for record in dataset.records:
        if record.split != "test":
            label = changed.get(record.path, record.label)
            entries[record.class_folder or record.path.parent].append((record.path, label, None))
    for skipped in dataset.skipped:
        class_folder = next((parent for parent in skipped.path.parents if parent in entries), None)
        if skipped.failed and class_folder:
            entries[class_folder].append((skipped.path, None, skipped.reason))
    written = []
    for class_folder, rows in sorted(entries.items()):
        place = class_folder.relative_to(dataset.root)
        written.append(folder / place.parent / f"{place.name or class_folder.resolve().name}.json")
        predictions_json.write(written[-1], _predictions(rows, class_folder))
    return written


def _predictions(
    rows: Sequence[tuple[Path, int | None, str | None]], folder: Path
) -> list[predictions_json.Prediction]:
    """Identify an image by its number where that is unique, else by its path: `1.png` and `1.jpg` share a number."""
    keys = [predictions_json.key_of_file(path.relative_to(folder)) for path, _, _ in rows]
    counts = Counter(keys)
    return [
        predictions_json.prediction_for(key if counts[key] == 1 else relative_name(path, folder), label, reason)
        for key, (path, label, reason) in zip(keys, rows, strict=True)
    ]


def separation_commands(
    written: Sequence[Path], dataset: Dataset, folder: Path, decisions: Path | None = None
) -> list[str]:
    """Return the commands that apply written labels, one per folder of class folders.

    Args:
        written: what `write_predictions` or `write_given_labels` returned.
        dataset: the labeled images.
        folder: where the labels were written to.
        decisions: the file of people's decisions, which outrank them.
    """
    whole = [path for path in written if not (dataset.root / path.relative_to(folder)).with_suffix("").is_dir()]
    places = sorted({path.parent.relative_to(folder) for path in written if path not in whole})
    output = _output_folder(dataset.root)
    decided = ("--decisions", decisions) if decisions else ()
    by_folder = [
        (dataset.root / place, "--predictions", folder / place, *decided, "--output", output / place)
        for place in places
    ]
    by_pair = [(dataset.root, "--pair", f".={path}", *decided, "--output", output) for path in whole]
    return [command_line("separate", *words, "--mode", "copy") for words in (*by_folder, *by_pair)]


def _output_folder(root: Path) -> Path:
    """Return the default folder of cleaned images, or one beside the data set where the two overlap."""
    default, own = CLEAN_FOLDER.resolve(), root.resolve()
    overlaps = default.is_relative_to(own) or own.is_relative_to(default)
    return root.with_name(f"{root.name}_checked") if overlaps and root.name else CLEAN_FOLDER


def summary(found: LabelErrors) -> list[str]:
    """Return lines for the terminal: the number of suspects, how reliable they are, and what was not checked."""
    estimate, trial = found.estimate, found.estimate.trial
    low, high = estimate.interval
    lines = [
        f"label errors: {len(found.suspects):,} suspects among {found.checked:,} labels;"
        f" estimated number of wrong labels: {estimate.expected:,} (95 % CI {low:,}-{high:,})",
        f"trial: {trial.recall:.0%} of {trial.swapped:,} labels swapped on purpose were found,"
        f" {trial.suspected / trial.untouched:.0%} of the others were suspected; out-of-fold ROC AUC"
        f" {estimate.auc:.3f} (about {estimate.clean_auc:.3f} with correct labels)",
    ]
    if swapped := swapped_labels(found.base_auc, found.base_interval):
        lines.append(f"warning: the labels seem to be swapped against the shipped model: {swapped}")
    if not estimate.reliable:
        lines.append(
            "the features don't separate these images well enough, so most suspects are probably just hard images:"
            " let people decide, and don't apply the predictions as they are"
        )
    if found.left_out:
        lines.append(f"the given test split ({len(found.left_out):,} images) was not checked")
    return lines


def as_json(found: LabelErrors, root: Path) -> dict[str, Any]:
    """Return the content of `label_errors` in audit.json: suspects worst first, paths relative to `root`."""
    estimate = found.estimate
    return {
        "judged": found.checked,
        "expected": estimate.expected,
        "interval": list(estimate.interval),
        "auc": round(estimate.auc, 6),
        "sound_auc": round(estimate.clean_auc, 6),
        "base_auc": round(found.base_auc, 6),
        "base_interval": [round(end, 6) for end in found.base_interval],
        "swapped": swapped_labels(found.base_auc, found.base_interval),
        "reliable": estimate.reliable,
        "trial": {key: getattr(estimate.trial, key) for key in ("swapped", "found", "untouched", "suspected")},
        "left_out": len(found.left_out),
        "suspects": [
            {
                "image": relative_name(suspect.record.path, root),
                "given": NAMES[suspect.given],
                "suggested": NAMES[suspect.suggested],
                "p_given": round(suspect.p_given, 6),
                "score": round(suspect.quality, 6),
            }
            for suspect in found.suspects
        ],
    }


@dataclass(frozen=True)
class LabelScores:
    """Scores of labels, as arrays in the order of the labels."""

    p_given: np.ndarray  # out-of-fold probability of the given label, float64 (n,), 0..1
    suspected: np.ndarray  # bool (n,)
    quality: np.ndarray  # cleanlab's label quality, float64 (n,), 0..1
    estimate: Estimate


def score_labels(features: np.ndarray, labels: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> LabelScores:
    """Score labels by features; arrays only.

    Args:
        features: float (n, d), one row per image.
        labels: int (n,), 0 fake, 1 real, as given.
        groups: int (n,), equal for images that must stay in one fold.
        folds: at most this many.
        seed: of the folds, the trial and the interval.
    """
    # Scaled once for all folds: no label takes part in it, so nothing leaks.
    scaled = (features - features.mean(axis=0)) / np.maximum(features.std(axis=0), 1e-6)
    smallest = min(len(np.unique(groups[labels == label])) for label in (FAKE, REAL))
    splitter = StratifiedGroupKFold(min(folds, smallest), shuffle=True, random_state=seed)
    parts = list(splitter.split(scaled, labels, groups))
    rng = np.random.default_rng(seed)
    fits = (len(_INVERSE_PENALTIES) + 3) * len(parts)
    # One thread: on a busy machine, BLAS threads spend 20 times as long waiting for each other as working.
    with progress_bar("checking labels", fits) as advance, threadpool_limits(1):
        tried = [(_out_of_fold(scaled, labels, parts, c, advance), c) for c in _INVERSE_PENALTIES]
        first_round, c = min(tried, key=lambda pair: binary_log_loss(labels, pair[0]))
        p_real = _second_round(scaled, labels, first_round, parts, c, advance)
        trial = _run_trial(scaled, labels, parts, c, advance, rng)
    return LabelScores(
        p_given=np.where(labels == REAL, p_real, 1.0 - p_real),
        suspected=find_suspects(labels, p_real),
        quality=_label_quality(labels, p_real),
        estimate=_estimate(labels, p_real, trial, rng),
    )


def _out_of_fold(
    features: np.ndarray,
    labels: np.ndarray,
    parts: Folds,
    c: float,
    advance: Callable[[int], None],
    trusted: np.ndarray | None = None,
) -> np.ndarray:
    """Return p_real of each image, predicted by a classifier trained on the other folds: float64 (n,).

    Where `trusted`, bool (n,), is given, it trains on those images only, unless they are all of one class.
    """
    p_real = np.empty(len(labels))
    for train, held_out in parts:
        kept = train if trusted is None else train[trusted[train]]
        rows = kept if len(np.unique(labels[kept])) == 2 else train
        classifier = LogisticRegression(C=c, max_iter=1000).fit(features[rows], labels[rows])
        p_real[held_out] = classifier.predict_proba(features[held_out])[:, REAL]
        advance(1)
    return p_real


def _second_round(features, labels, first_round: np.ndarray, parts: Folds, c: float, advance) -> np.ndarray:
    """Return p_real by classifiers that are not trained on the suspects of the first round, as in the paper."""
    return _out_of_fold(features, labels, parts, c, advance, ~find_suspects(labels, first_round))


def find_suspects(labels: np.ndarray, p_real: np.ndarray) -> np.ndarray:
    """Return which labels are probably wrong: bool (n,).

    Args:
        labels: int (n,), as given.
        p_real: out-of-fold probabilities, float (n,).
    """
    return np.asarray(find_label_issues(labels, _probabilities(p_real), filter_by="prune_by_noise_rate", n_jobs=1))


def _probabilities(p_real: np.ndarray) -> np.ndarray:
    return np.stack([1.0 - p_real, p_real], axis=1)


def _label_quality(labels: np.ndarray, p_real: np.ndarray) -> np.ndarray:
    probabilities = _probabilities(p_real)
    return get_label_quality_scores(labels, probabilities, method="self_confidence", adjust_pred_probs=True)


def _run_trial(features, labels: np.ndarray, parts: Folds, c: float, advance, rng: np.random.Generator) -> Trial:
    count = max(int(_TRIAL_SHARE * len(labels)), min(_TRIAL_MIN, int(_TRIAL_MAX_SHARE * len(labels))))
    swapped = np.zeros(len(labels), dtype=bool)
    swapped[rng.choice(len(labels), count, replace=False)] = True
    changed = np.where(swapped, 1 - labels, labels)
    first_round = _out_of_fold(features, changed, parts, c, advance)
    suspected = find_suspects(changed, _second_round(features, changed, first_round, parts, c, advance))
    return Trial(count, int(suspected[swapped].sum()), len(labels) - count, int(suspected[~swapped].sum()))


def _estimate(labels: np.ndarray, p_real: np.ndarray, trial: Trial, rng: np.random.Generator) -> Estimate:
    expected, low, high = count_wrong_labels(labels, p_real, rng)
    clean = clean_auc(labels, p_real)
    return Estimate(expected, (low if clean >= RELIABLE_AUC else 0, high), roc_auc(labels, p_real), clean, trial)


def count_wrong_labels(labels: np.ndarray, p_real: np.ndarray, rng: np.random.Generator) -> tuple[int, int, int]:
    """Return the estimated number of wrong labels, and the ends of a 95 % interval.

    The number is confident learning's, which counts hard images as wrong labels where the classifier is weak. A second
    estimate assumes that errors are as frequent among easy images as elsewhere, and counts them where the classifier
    is surest. The interval spans the bootstrap intervals of both.
    """
    by_class = [np.flatnonzero(labels == label) for label in (FAKE, REAL)]
    resampled = []
    for _ in range(_RESAMPLES):
        rows = np.concatenate([rng.choice(numbers, len(numbers)) for numbers in by_class])
        resampled.append((_confident_count(labels[rows], p_real[rows]), _surest_count(labels[rows], p_real[rows])))
    count, counts = _confident_count(labels, p_real), np.array(resampled)
    low = min(count, np.percentile(counts.min(axis=1), 2.5))
    high = max(count, np.percentile(counts.max(axis=1), 97.5))
    return count, round(low), round(high)


def _confident_count(labels: np.ndarray, p_real: np.ndarray) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a resample in which no image is confidently of one class
        return int(num_label_issues(labels, _probabilities(p_real), estimation_method="off_diagonal_calibrated"))


def _surest_count(labels: np.ndarray, p_real: np.ndarray) -> float:
    surest = np.argsort(-np.abs(p_real - 0.5), kind="stable")[: max(1, int(_SUREST_SHARE * len(labels)))]
    return float(np.mean((p_real[surest] > 0.5) != (labels[surest] == REAL)) * len(labels))


def clean_auc(labels: np.ndarray, p_real: np.ndarray) -> float:
    """Return the estimated ROC AUC of the predictions if every label were correct, 0..1.

    Labels that are wrong at random pull the AUC toward 0.5 by twice their share, which is taken from the images with
    the surest predictions. A weak classifier stays weak, however many labels are wrong.
    """
    share = min(_surest_count(labels, p_real) / len(labels), _MAX_WRONG_SHARE)
    return min(1.0, 0.5 + (roc_auc(labels, p_real) - 0.5) / (1 - 2 * share))
