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
    p = np.clip(p_real, _EPSILON, 1 - _EPSILON)
    return float(-np.mean(np.where(labels == REAL, np.log(p), np.log1p(-p))))


def measure(labels: np.ndarray, p_real: np.ndarray, decision: Decision, seed: int = 0) -> dict[str, Any]:
    """Returns every figure that a report shows, with bootstrap 95 % intervals.

    Args:
        labels: int (n,), 0 fake, 1 real; both classes must be there.
        p_real: network outputs, float (n,).
        decision: threshold, temperature and band.
        seed: of the resampling.

    Returns:
        `images`, `loss`, `confusion` (rows: labels fake, real; columns: predictions fake, real), and for `accuracy`,
        `roc_auc`, `f1_macro`, and `precision`, `recall`, `f1` of `fake` and of `real`: the value, and under `intervals`
        the pair (low, high).
    """
    predicted = labels_from(p_real, decision)
    confusion = np.bincount(labels * 2 + predicted, minlength=4).reshape(2, 2)
    rng = np.random.default_rng(seed)
    # Bayesian bootstrap with Jeffreys' prior: ten right answers out of ten are no proof of an accuracy of exactly 1
    draws = rng.dirichlet(confusion.reshape(-1) + 0.5, RESAMPLES).reshape(-1, 2, 2)
    values, spread = _from_confusion(confusion[None]), _from_confusion(draws)
    p_fake = calibrated_p_fake(p_real, decision)
    intervals = {key: _interval(value, values[key][0]) for key, value in spread.items()}
    low, high = decision.band
    inside = (p_fake > low) & (p_fake < high)
    return {
        "images": len(labels),
        "loss": binary_log_loss(labels, p_real),
        "confusion": confusion.tolist(),
        **{key: _number(value[0]) for key, value in values.items()},
        "roc_auc": _number(roc_auc(labels, p_real)),
        "intervals": {**intervals, "roc_auc": _auc_interval(labels, p_real, rng)},
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
    figures["f1_macro"] = (figures["f1_fake"] + figures["f1_real"]) / 2
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


def _auc_interval(labels: np.ndarray, scores: np.ndarray, rng: np.random.Generator) -> list[float | None]:
    """Ranks once and lets each picture count as often as it is drawn: sorting 1,000 times would take seconds."""
    size, ranks = len(labels), _ranks(scores)
    value = _auc(labels, ranks, np.ones(size))
    if value in (0.0, 1.0):
        # No draw is out of order where no pair is. The rule of three speaks for the smaller class: n pictures were
        # right, so up to 3 / n of all may be wrong.
        unseen = min(1.0, 3 / np.bincount(labels, minlength=2).min())
        return [_number(max(0.0, value - unseen)), _number(min(1.0, value + unseen))]
    draws = (np.bincount(rng.integers(0, size, size), minlength=size) for _ in range(RESAMPLES))
    return _interval(np.array([_auc(labels, ranks, counts) for counts in draws]), value)


def _interval(draws: np.ndarray, value: float) -> list[float | None]:
    """Returns the middle 95 % of the draws, stretched to hold the value itself."""
    low, high = np.nanpercentile(draws, (2.5, 97.5))
    return [_number(min(low, value)), _number(max(high, value))]


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if np.isnan(value) else round(float(value), 6)
