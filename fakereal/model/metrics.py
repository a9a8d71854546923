"""Metrics, curves and calibration error from labels and probabilities: arrays in, plain numbers and lists out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fakereal.labels import FAKE, NAMES, REAL
from fakereal.model.calibration import DecisionRule, calibrated_p_fake
from fakereal.model.calibration import labels as labels_from

RESAMPLES = 1000
"""Bootstrap resamples behind every 95 % interval."""

BINS = 10
"""Bins of equal width for the calibration error and the reliability diagram."""

MAX_POINTS = 400
"""Points kept of a curve: a screen shows no more."""

SWAPPED_AUC = 0.4
"""An AUC below this, with an interval below 0.5, is no weak detector but one for which the labels are swapped."""

_EPSILON = 1e-7


def binary_log_loss(labels: np.ndarray, p_real: np.ndarray) -> float:
    """Return the mean negative log-likelihood in nats; probabilities are kept 1e-7 away from 0 and 1."""
    return float(np.mean(_log_losses(labels, p_real)))


def _log_losses(labels: np.ndarray, p_real: np.ndarray) -> np.ndarray:
    p = np.clip(p_real, _EPSILON, 1 - _EPSILON)
    return -np.where(labels == REAL, np.log(p), np.log1p(-p))


def epoch_losses(history: Sequence[dict[str, Any]]) -> list[float]:
    """Return the validation loss of each epoch, after calibration where the model file has it (older ones do not)."""
    return [row.get("val_calibrated_loss", row["val_loss"]) for row in history]


def measure(labels: np.ndarray, p_real: np.ndarray, decision: DecisionRule, seed: int = 0) -> dict[str, Any]:
    """Return the metrics of a report, with bootstrap 95 % intervals.

    Args:
        labels: int (n,), 0 fake, 1 real; both classes must occur.
        p_real: network outputs, float (n,).
        decision: threshold, temperature and band.
        seed: of the resampling.

    Returns:
        `images`, `confusion` (rows: labels fake, real; columns: predictions fake, real), `uncertain_share`,
        `accuracy_outside_band`, and the values of `loss`, `accuracy`, `roc_auc`, `average_precision` (of fake), and
        `precision`, `recall`, `f1` of `fake`, `real` and `macro`, the mean of both; `intervals` has a pair (low, high)
        for each value.
    """
    predicted = labels_from(p_real, decision)
    confusion = np.bincount(labels * 2 + predicted, minlength=4).reshape(2, 2)
    rng = np.random.default_rng(seed)
    # Bayesian bootstrap with Jeffreys' prior: ten correct out of ten do not prove an accuracy of exactly 1
    resampled = rng.dirichlet(confusion.reshape(-1) + 0.5, RESAMPLES).reshape(-1, 2, 2)
    values, samples = _from_confusion(confusion[None]), _from_confusion(resampled)
    p_fake = calibrated_p_fake(p_real, decision)
    intervals = {key: _interval(value, values[key][0]) for key, value in samples.items()}
    ranking, ranking_intervals = _ranking(labels, p_real, rng)
    low, high = decision.band
    inside = (p_fake > low) & (p_fake < high)
    return {
        "images": len(labels),
        "confusion": confusion.tolist(),
        **{key: _number(value[0]) for key, value in values.items()},
        **ranking,
        "intervals": {**intervals, **ranking_intervals},
        "uncertain_share": float(np.mean(inside)),
        "accuracy_outside_band": _number(np.mean((predicted == labels)[~inside])) if not inside.all() else None,
    }


def measure_one_class(labels: np.ndarray, p_real: np.ndarray, decision: DecisionRule, seed: int = 0) -> dict[str, Any]:
    """Return what images of one class alone can show: recall for fakes, false alarms for reals; see `measure`.

    AUC, precision and F1 need both classes.

    Returns:
        `only` (the class), `images`, `confusion`, `uncertain_share`, `accuracy_outside_band`, and the values of
        `accuracy` and `recall_fake`, or `false_positive_rate` (reals called fake), with their `intervals`.
    """
    predicted = labels_from(p_real, decision)
    confusion = np.bincount(labels * 2 + predicted, minlength=4).reshape(2, 2)
    label, correct = int(labels[0]), predicted == labels
    counts = np.array([correct.sum(), np.sum(~correct)])
    share, resampled = float(np.mean(correct)), np.random.default_rng(seed).beta(*(counts + 0.5), RESAMPLES)
    interval = _interval(resampled, share)
    values = {"accuracy": share, "recall_fake": share}, {"accuracy": share, "false_positive_rate": 1.0 - share}
    mirrored = [_number(1.0 - end) for end in reversed(interval)]
    p_fake, (low, high) = calibrated_p_fake(p_real, decision), decision.band
    inside = (p_fake > low) & (p_fake < high)
    return {
        "only": NAMES[label],
        "images": len(labels),
        "confusion": confusion.tolist(),
        **{key: _number(value) for key, value in values[label].items()},
        "intervals": {key: mirrored if key == "false_positive_rate" else interval for key in values[label]},
        "uncertain_share": float(np.mean(inside)),
        "accuracy_outside_band": _number(np.mean(correct[~inside])) if not inside.all() else None,
    }


def measure_by_source(
    labels: np.ndarray, p_real: np.ndarray, sources: Sequence[str], decision: DecisionRule
) -> dict[str, dict[str, Any]]:
    """Return the metrics of each source, by name; empty where all images are of one source.

    Args:
        labels: int (n,), 0 fake, 1 real.
        p_real: network outputs, float (n,).
        sources: names (n,), empty where unknown.
        decision: threshold, temperature and band.

    Returns:
        What `measure` returns, or `measure_one_class` for a source with images of one class.
    """
    names, number = np.unique(np.array(sources, object).astype(str), return_inverse=True)
    if len(names) < 2:
        return {}
    masks = {str(name): number == place for place, name in enumerate(names)}
    return {name: measure_any(labels[mask], p_real[mask], decision) for name, mask in masks.items()}


def measure_any(labels: np.ndarray, p_real: np.ndarray, decision: DecisionRule) -> dict[str, Any]:
    """Return what `measure` returns, or `measure_one_class` where only one class occurs."""
    return (measure if len(set(labels.tolist())) == 2 else measure_one_class)(labels, p_real, decision)


def swapped_labels(auc: float | None, interval: Sequence[float | None]) -> str:
    """Return one clause that says so where an AUC is clearly below chance, with what to check; else an empty string.

    Args:
        auc: ROC AUC of real, 0..1.
        interval: its 95 % interval (low, high).
    """
    if auc is None or auc >= SWAPPED_AUC or interval[1] is None or interval[1] >= 0.5:
        return ""
    low, high = interval
    return (
        f"AUC {auc:.2f} (95 % interval {low:.2f} to {high:.2f}; chance is 0.50): look at a few images of each class:"
        " either fake and real are exchanged (in the folders, or in the predictions that sorted them), or the model"
        " takes one for the other on images of this kind"
    )


def _from_confusion(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Return accuracy, precision, recall and F1 of confusion matrices (k, 2, 2), each as an array (k,)."""
    values: dict[str, np.ndarray] = {"accuracy": np.trace(confusion, axis1=1, axis2=2) / confusion.sum(axis=(1, 2))}
    for label in (FAKE, REAL):
        hits = confusion[:, label, label]
        values[f"precision_{NAMES[label]}"] = _ratio(hits, confusion[:, :, label].sum(axis=1))
        values[f"recall_{NAMES[label]}"] = _ratio(hits, confusion[:, label].sum(axis=1))
        both = confusion[:, :, label].sum(axis=1) + confusion[:, label].sum(axis=1)
        values[f"f1_{NAMES[label]}"] = _ratio(2 * hits, both)
    for name in ("precision", "recall", "f1"):
        values[f"{name}_macro"] = sum(values[f"{name}_{label}"] for label in NAMES) / len(NAMES)
    return values


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Divide; 0 where the denominator is 0, as in scikit-learn."""
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)


def roc_auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Return the area under the ROC curve: the probability that a real image scores above a fake one, ties half.

    Args:
        labels: int (n,).
        scores: float (n,), higher means real.
    """
    return _auc(labels, _ranks(scores), np.ones(len(labels)))


def _ranks(scores: np.ndarray) -> np.ndarray:
    return np.unique(scores, return_inverse=True)[1]


def _auc(labels: np.ndarray, ranks: np.ndarray, weights: np.ndarray) -> float:
    reals = np.bincount(ranks, weights * (labels == REAL))
    fakes = np.bincount(ranks, weights * (labels == FAKE))
    below = np.cumsum(fakes) - fakes
    pairs = reals.sum() * fakes.sum()
    return float(np.sum(reals * (below + fakes / 2)) / pairs) if pairs else float("nan")


def _average_precision(labels: np.ndarray, ranks: np.ndarray, weights: np.ndarray) -> float:
    """Return the average precision of fake: precision averaged over recall, one step per rank, as in scikit-learn."""
    fakes = np.bincount(ranks, weights * (labels == FAKE))
    called = np.cumsum(np.bincount(ranks, weights))  # fake, with the threshold above each rank
    total = fakes.sum()
    precision = np.divide(np.cumsum(fakes), called, out=np.zeros(len(called)), where=called > 0)
    return float(np.sum(fakes * precision) / total) if total else float("nan")


def _ranking(labels: np.ndarray, p_real: np.ndarray, rng: np.random.Generator) -> tuple[dict, dict]:
    """Return the threshold-free metrics and their intervals.

    Outputs are ranked once and each image is weighted by how often it was drawn: sorting 1,000 times takes seconds.
    """
    size, ranks = len(labels), _ranks(p_real)
    losses = _log_losses(labels, p_real)

    def values_of(counts: np.ndarray) -> tuple[float, float, float]:
        auc, precision = _auc(labels, ranks, counts), _average_precision(labels, ranks, counts)
        return auc, precision, float(counts @ losses / size)

    values = dict(zip(("roc_auc", "average_precision", "loss"), values_of(np.ones(size)), strict=True))
    resamples = (np.bincount(rng.integers(0, size, size), minlength=size) for _ in range(RESAMPLES))
    samples = np.array([values_of(counts) for counts in resamples])
    intervals = {key: _interval(samples[:, number], value) for number, (key, value) in enumerate(values.items())}
    for key in ("roc_auc", "average_precision"):
        if values[key] in (0.0, 1.0):
            intervals[key] = _extreme_interval(labels, values[key])
    return {key: _number(value) for key, value in values.items()}, intervals


def _extreme_interval(labels: np.ndarray, value: float) -> list[float | None]:
    """Return the interval of a perfect (or fully inverted) ranking, in which no resample differs.

    By the rule of three for the smaller class: where n images were correct, up to 3 / n of all may be wrong.
    """
    unseen = min(1.0, 3 / np.bincount(labels, minlength=2).min())
    return [_number(max(0.0, value - unseen)), _number(min(1.0, value + unseen))]


def _interval(samples: np.ndarray, value: float) -> list[float | None]:
    """Return the central 95 % of the samples, widened to include the value itself."""
    low, high = np.nanpercentile(samples, (2.5, 97.5))
    return [_number(min(low, value)), _number(max(high, value))]


def _number(value: float) -> float | None:
    """Round; NaN becomes None, as JSON has no NaN."""
    return None if np.isnan(value) else round(float(value), 6)


@dataclass(frozen=True)
class Bin:
    """Images with a similar p_fake."""

    mean_p_fake: float
    share_fake: float  # of these images, 0..1
    images: int


def roc(labels: np.ndarray, p_fake: np.ndarray) -> list[list[float]]:
    """Return points (share of reals called fake, share of fakes called fake), from (0, 0) to (1, 1)."""
    fakes, reals = _called_fake(labels, p_fake)
    x, y = reals / max(reals[-1], 1), fakes / max(fakes[-1], 1)
    return _thinned(np.column_stack([np.r_[0.0, x], np.r_[0.0, y]]))


def precision_recall(labels: np.ndarray, p_fake: np.ndarray) -> list[list[float]]:
    """Return points (recall, precision) of fake, by increasing recall."""
    fakes, reals = _called_fake(labels, p_fake)
    return _thinned(np.column_stack([fakes / max(fakes[-1], 1), fakes / (fakes + reals)]))


def _called_fake(labels: np.ndarray, p_fake: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how many fakes and how many reals are called fake at each threshold, from high to low."""
    order = np.argsort(-p_fake, kind="stable")
    ordered = p_fake[order]
    last = np.r_[np.flatnonzero(np.diff(ordered)), len(ordered) - 1]  # equal outputs get the same label
    fakes = np.cumsum(labels[order] == FAKE)[last]
    return fakes, last + 1 - fakes


def _thinned(points: np.ndarray) -> list[list[float]]:
    """Keep the corners of a curve, and at most `MAX_POINTS` of them."""
    steps = np.diff(points, axis=0)
    turn = steps[1:, 0] * steps[:-1, 1] != steps[1:, 1] * steps[:-1, 0]
    points = points[np.r_[True, turn, True][: len(points)]]
    if len(points) > MAX_POINTS:
        points = points[np.unique(np.linspace(0, len(points) - 1, MAX_POINTS).round().astype(int))]
    return [[round(float(x), 5), round(float(y), 5)] for x, y in points]


def reliability(labels: np.ndarray, p_fake: np.ndarray) -> list[Bin]:
    """Return the non-empty bins of a reliability diagram, by increasing p_fake."""
    place = np.minimum((p_fake * BINS).astype(int), BINS - 1)
    chosen = [place == number for number in range(BINS)]
    return [
        Bin(float(p_fake[mask].mean()), float(np.mean(labels[mask] == FAKE)), int(mask.sum()))
        for mask in chosen
        if mask.any()
    ]


def calibration_error(bins: list[Bin]) -> float:
    """Return the expected calibration error, 0..1: the mean gap between p_fake and the share of fakes (Naeini 2015)."""
    total = sum(each.images for each in bins)
    return sum(each.images * abs(each.mean_p_fake - each.share_fake) for each in bins) / total
