"""From p_real, the network's output, to labels and verdicts; and how that decision rule is fitted on validation images.

The rule is a temperature (calibrated p = sigmoid(logit(p) / temperature)), a threshold on the calibrated p_fake and an
uncertainty band around it. Everything here works on plain arrays. Never fit on test images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fakereal.labels import FAKE, NAMES, REAL

UNCERTAIN = "uncertain"

DECIMALS = 6
"""Decimals kept of every probability: float32 has no more, and decisions then use exactly what is written."""

CERTAIN_ACCURACY = 0.95
"""Share of correct verdicts that the fitted band guarantees on the validation images outside it, where possible."""

_EPSILON = 1e-7  # keeps logits finite for outputs of exactly 0 or 1
_TEMPERATURES = (0.05, 20.0)
_BAND_WIDTHS = np.arange(0.01, 0.99, 0.01)  # as shares of the distance from the threshold to 0 and to 1
_MIN_OUTSIDE = 0.1  # of the images: a model that is uncertain about nearly everything is of no use
_SAME = 1e-6  # probabilities closer than this count as equal: prediction rounds to as many decimals


@dataclass(frozen=True)
class DecisionRule:
    """How probabilities become labels and verdicts; fitted on validation images, stored in the model file."""

    threshold: float = 0.5  # fake where the calibrated p_fake is at least this, 0..1
    temperature: float = 1.0  # above 0; 1 leaves probabilities as they are, more makes them less confident
    band: tuple[float, float] = (0.5, 0.5)  # "uncertain" where low < calibrated p_fake < high
    shorter_side_px: tuple[int, int] | None = None  # "uncertain" outside, see `out_of_distribution`; None: any size


def logits(p: np.ndarray) -> np.ndarray:
    """Return log(p / (1 - p)), finite also for 0 and 1."""
    clipped = np.clip(np.asarray(p, dtype=np.float64), _EPSILON, 1.0 - _EPSILON)
    return np.log(clipped) - np.log1p(-clipped)


def sigmoid(logit: np.ndarray) -> np.ndarray:
    """Return the inverse of `logits`."""
    return 1.0 / (1.0 + np.exp(-logit))


def combine_views(p_real: Sequence[float]) -> float:
    """Return p_real of an image from that of its views: the sigmoid of their mean logit, or the first invalid one."""
    invalid = next((p for p in p_real if not 0.0 <= p <= 1.0), None)  # NaN too
    if invalid is not None or len(p_real) == 1:
        return float(p_real[0] if invalid is None else invalid)
    return float(sigmoid(np.mean(logits(np.asarray(p_real)))))


def calibrate(p_real: np.ndarray, temperature: float) -> np.ndarray:
    """Return p_real after temperature scaling (Guo et al. 2017, arXiv 1706.04599).

    Args:
        p_real: network outputs, 0..1, any shape.
        temperature: above 0.
    """
    return sigmoid(logits(p_real) / temperature)


def calibrated_p_fake(p_real: np.ndarray, decision: DecisionRule) -> np.ndarray:
    """Return the calibrated probability of fake, 0..1."""
    return 1.0 - calibrate(p_real, decision.temperature)


def labels(p_real: np.ndarray, decision: DecisionRule) -> np.ndarray:
    """Return the predicted labels, 0 fake or 1 real."""
    return np.where(calibrated_p_fake(p_real, decision) >= decision.threshold, FAKE, REAL)


def verdicts(p_real: np.ndarray, decision: DecisionRule) -> list[str]:
    """Return `fake`, `real` or, inside the band, `uncertain` for each output (n,)."""
    p_fake = calibrated_p_fake(p_real, decision)
    low, high = decision.band
    inside = (p_fake > low) & (p_fake < high)
    return [
        UNCERTAIN if uncertain else NAMES[label]
        for uncertain, label in zip(inside, labels(p_real, decision), strict=True)
    ]


def confidence(p_real: np.ndarray, decision: DecisionRule) -> np.ndarray:
    """Return the calibrated probability of the predicted label, 0..1."""
    p_fake = calibrated_p_fake(p_real, decision)
    return np.where(labels(p_real, decision) == FAKE, p_fake, 1.0 - p_fake)


def fit_decision_rule(labels: np.ndarray, p_real: np.ndarray) -> DecisionRule:
    """Return the decision rule that fits validation images best.

    Args:
        labels: int (n,), 0 fake, 1 real; both classes must occur.
        p_real: network outputs, float (n,).
    """
    temperature = fit_temperature(labels, p_real)
    p_fake = calibrated_p_fake(p_real, DecisionRule(temperature=temperature))
    threshold = choose_threshold(labels, p_fake)
    return DecisionRule(threshold, temperature, choose_band(labels, p_fake, threshold))


def fit_temperature(labels: np.ndarray, p_real: np.ndarray) -> float:
    """Return the temperature of the lowest log loss, 0.05..20 (Guo et al. 2017, arXiv 1706.04599).

    The targets are smoothed after Platt (1999), or a few images that are all correct would justify near-certainty.
    """
    reals = labels == REAL
    target = np.where(reals, (reals.sum() + 1) / (reals.sum() + 2), 1 / ((~reals).sum() + 2))

    def loss(log_temperature: float) -> float:
        p = np.clip(calibrate(p_real, float(np.exp(log_temperature))), 1e-12, 1 - 1e-12)
        return float(-np.mean(target * np.log(p) + (1 - target) * np.log1p(-p)))

    from scipy.optimize import minimize_scalar  # 0.2 s that prediction, which only applies temperatures, does without

    result = minimize_scalar(loss, bounds=np.log(_TEMPERATURES), method="bounded")
    return round(float(np.exp(result.x)), 4)


def choose_threshold(labels: np.ndarray, p_fake: np.ndarray, default: float = 0.5) -> float:
    """Return the default, or the most accurate threshold where that is clearly better.

    The best threshold on a few hundred images is mostly chance, so it must beat the default by more than one standard
    error of the accuracy there. A threshold that gives all images one label is never chosen.

    Args:
        labels: int (n,).
        p_fake: calibrated, float (n,).
        default: a threshold, 0..1.
    """
    order = np.argsort(p_fake)
    ordered, reals = p_fake[order], labels[order] == REAL
    # With a threshold between k-1 and k, the k images below are called real and those above fake
    correct = np.cumsum(reals)[:-1] + np.cumsum(~reals[::-1])[::-1][1:]
    possible = np.flatnonzero(np.diff(ordered) > _SAME)
    if not len(possible):
        return default
    at_default = np.mean((p_fake >= default) == (labels != REAL))
    cuts = (ordered[possible] + ordered[possible + 1]) / 2
    best = np.flatnonzero(correct[possible] == correct[possible].max())
    chosen = best[np.argmin(np.abs(cuts[best] - default))]
    error = np.sqrt(at_default * (1 - at_default) / len(labels))
    return float(cuts[chosen]) if correct[possible][chosen] / len(labels) > at_default + error else default


def choose_band(labels: np.ndarray, p_fake: np.ndarray, threshold: float) -> tuple[float, float]:
    """Return the narrowest band around the threshold outside of which `CERTAIN_ACCURACY` of the verdicts are correct.

    Where no band reaches that, return the widest one with at least `_MIN_OUTSIDE` of the images outside it.
    """
    correct = (p_fake >= threshold) == (labels != REAL)
    if correct.mean() >= CERTAIN_ACCURACY:
        return threshold, threshold
    band = None
    for width in _BAND_WIDTHS:
        low, high = float(threshold * (1 - width)), float(threshold + (1 - threshold) * width)
        outside = (p_fake <= low) | (p_fake >= high)
        if outside.mean() < _MIN_OUTSIDE:
            return band or (low, high)
        band = (low, high)
        if correct[outside].mean() >= CERTAIN_ACCURACY:
            break
    return band
