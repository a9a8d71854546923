"""Figures of merit from labels and probabilities: pure arrays in, plain numbers out."""

from __future__ import annotations

from typing import Any

import numpy as np

from fakereal.labels import FAKE, NAMES, REAL
from fakereal.model.scoring import Decision, calibrated_p_fake
from fakereal.model.scoring import labels as labels_from

RESAMPLES = 1000
"""Bootstrap resamples behind every 95 % interval."""

_EPSILON = 1e-7


def binary_log_loss(labels: np.ndarray, p_real: np.ndarray) -> float:
    """Returns the mean negative log-likelihood in nats; probabilities are kept 1e-7 away from 0 and 1."""
    return float(np.mean(_log_losses(labels, p_real)))


def _log_losses(labels: np.ndarray, p_real: np.ndarray) -> np.ndarray:
    p = np.clip(p_real, _EPSILON, 1 - _EPSILON)
    return -np.where(labels == REAL, np.log(p), np.log1p(-p))


def measure(labels: np.ndarray, p_real: np.ndarray, decision: Decision, seed: int = 0) -> dict[str, Any]:
    """Returns every figure that a report shows, with bootstrap 95 % intervals.

    Args:
        labels: int (n,), 0 fake, 1 real; both classes must be there.
        p_real: network outputs, float (n,).
        decision: threshold, temperature and band.
        seed: of the resampling.

    Returns:
        `images`, `confusion` (rows: labels fake, real; columns: predictions fake, real), and for `loss`, `accuracy`,
        `roc_auc`, `average_precision` (of fake), and `precision`, `recall`, `f1` of `fake`, of `real` and as `macro`,
        the mean of both: the value, and under `intervals` the pair (low, high).
    """
    predicted = labels_from(p_real, decision)
    confusion = np.bincount(labels * 2 + predicted, minlength=4).reshape(2, 2)
    rng = np.random.default_rng(seed)
    # Bayesian bootstrap with Jeffreys' prior: ten right answers out of ten are no proof of an accuracy of exactly 1
    draws = rng.dirichlet(confusion.reshape(-1) + 0.5, RESAMPLES).reshape(-1, 2, 2)
    values, spread = _from_confusion(confusion[None]), _from_confusion(draws)
    p_fake = calibrated_p_fake(p_real, decision)
    intervals = {key: _interval(value, values[key][0]) for key, value in spread.items()}
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


def _from_confusion(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the counting figures of confusion matrices (k, 2, 2), each as an array (k,)."""
    figures: dict[str, np.ndarray] = {"accuracy": np.trace(confusion, axis1=1, axis2=2) / confusion.sum(axis=(1, 2))}
    for label in (FAKE, REAL):
        hits = confusion[:, label, label]
        figures[f"precision_{NAMES[label]}"] = _ratio(hits, confusion[:, :, label].sum(axis=1))
        figures[f"recall_{NAMES[label]}"] = _ratio(hits, confusion[:, label].sum(axis=1))
        both = confusion[:, :, label].sum(axis=1) + confusion[:, label].sum(axis=1)
        figures[f"f1_{NAMES[label]}"] = _ratio(2 * hits, both)
    for name in ("precision", "recall", "f1"):
        figures[f"{name}_macro"] = sum(figures[f"{name}_{label}"] for label in NAMES) / len(NAMES)
    return figures


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """0 where there is nothing to divide by, as in scikit-learn."""
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)


def roc_auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Returns the area under the ROC curve: the chance that a real picture scores above a fake one, ties half.

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


def average_precision(labels: np.ndarray, scores: np.ndarray) -> float:
    """Returns the mean of the precision over the recall of fake, a step at each threshold, as scikit-learn does.

    Args:
        labels: int (n,).
        scores: float (n,), higher means real.
    """
    return _average_precision(labels, _ranks(scores), np.ones(len(labels)))


def _average_precision(labels: np.ndarray, ranks: np.ndarray, weights: np.ndarray) -> float:
    fakes = np.bincount(ranks, weights * (labels == FAKE))
    called = np.cumsum(np.bincount(ranks, weights))  # fake, with the threshold above each rank
    total = fakes.sum()
    precision = np.divide(np.cumsum(fakes), called, out=np.zeros(len(called)), where=called > 0)
    return float(np.sum(fakes * precision) / total) if total else float("nan")


def _ranking(labels: np.ndarray, p_real: np.ndarray, rng: np.random.Generator) -> tuple[dict, dict]:
    """Returns what depends on the outputs themselves, not on a threshold: values and intervals.

    Ranks once and lets each picture count as often as it is drawn: sorting 1,000 times would take seconds.
    """
    size, ranks = len(labels), _ranks(p_real)
    losses = _log_losses(labels, p_real)

    def figures(counts: np.ndarray) -> tuple[float, float, float]:
        auc, precision = _auc(labels, ranks, counts), _average_precision(labels, ranks, counts)
        return auc, precision, float(counts @ losses / size)

    values = dict(zip(("roc_auc", "average_precision", "loss"), figures(np.ones(size)), strict=True))
    drawn = (np.bincount(rng.integers(0, size, size), minlength=size) for _ in range(RESAMPLES))
    draws = np.array([figures(counts) for counts in drawn])
    intervals = {key: _interval(draws[:, number], value) for number, (key, value) in enumerate(values.items())}
    for key in ("roc_auc", "average_precision"):
        if values[key] in (0.0, 1.0):
            intervals[key] = _extreme_interval(labels, values[key])
    return {key: _number(value) for key, value in values.items()}, intervals


def _extreme_interval(labels: np.ndarray, value: float) -> list[float | None]:
    """Returns an interval where no draw is out of order because no pair is.

    The rule of three speaks for the smaller class: n pictures were right, so up to 3 / n of all may be wrong.
    """
    unseen = min(1.0, 3 / np.bincount(labels, minlength=2).min())
    return [_number(max(0.0, value - unseen)), _number(min(1.0, value + unseen))]


def _interval(draws: np.ndarray, value: float) -> list[float | None]:
    """Returns the middle 95 % of the draws, stretched to hold the value itself."""
    low, high = np.nanpercentile(draws, (2.5, 97.5))
    return [_number(min(low, value)), _number(max(high, value))]


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if np.isnan(value) else round(float(value), 6)
