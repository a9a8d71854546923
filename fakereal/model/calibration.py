"""From p_real, the network's output, to labels and verdicts: pure arrays, the threshold apart from the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar

from fakereal.labels import FAKE, NAMES, REAL

UNCERTAIN = "uncertain"

DECIMALS = 6
"""Digits kept of every probability: float32 has no more, and what is written is then what was decided on."""

_EPSILON = 1e-7  # keeps logits finite where a network is sure to the last bit


@dataclass(frozen=True)
class DecisionRule:
    """How probabilities become labels and verdicts; chosen on validation pictures, kept in the model file."""

    threshold: float = 0.5  # fake where the calibrated p_fake is at least this, 0..1
    temperature: float = 1.0  # calibrated p = sigmoid(logit(p) / temperature), above 0; 1 leaves p as it is
    band: tuple[float, float] = (0.5, 0.5)  # "uncertain" where low < calibrated p_fake < high


def logits(p: np.ndarray) -> np.ndarray:
    """Returns log(p / (1 - p)), finite also for 0 and 1."""
    clipped = np.clip(np.asarray(p, dtype=np.float64), _EPSILON, 1.0 - _EPSILON)
    return np.log(clipped) - np.log1p(-clipped)


def combine_views(p_real: Sequence[float]) -> float:
    """Return p_real of an image from that of its views: the sigmoid of their mean logit; an invalid one as it is."""
    invalid = next((p for p in p_real if not 0.0 <= p <= 1.0), None)  # NaN too
    if invalid is not None or len(p_real) == 1:
        return float(p_real[0] if invalid is None else invalid)
    return float(1.0 / (1.0 + np.exp(-np.mean(logits(np.asarray(p_real))))))


def calibrate(p_real: np.ndarray, temperature: float) -> np.ndarray:
    """Returns p_real after temperature scaling (Guo et al. 2017, arXiv 1706.04599).

    Args:
        p_real: network outputs, 0..1, any shape.
        temperature: above 0; larger than 1 makes the probabilities less sure.
    """
    return 1.0 / (1.0 + np.exp(-logits(p_real) / temperature))


def calibrated_p_fake(p_real: np.ndarray, decision: DecisionRule) -> np.ndarray:
    """Returns the calibrated probability of fake, 0..1."""
    return 1.0 - calibrate(p_real, decision.temperature)


def labels(p_real: np.ndarray, decision: DecisionRule) -> np.ndarray:
    """Returns the label of each, 0 fake or 1 real."""
    return np.where(calibrated_p_fake(p_real, decision) >= decision.threshold, FAKE, REAL)


def verdicts(p_real: np.ndarray, decision: DecisionRule) -> list[str]:
    """Returns `fake`, `real` or, inside the band, `uncertain` for each."""
    p_fake = calibrated_p_fake(p_real, decision)
    low, high = decision.band
    inside = (p_fake > low) & (p_fake < high)
    return [
        UNCERTAIN if unsure else NAMES[label] for unsure, label in zip(inside, labels(p_real, decision), strict=True)
    ]


def confidence(p_real: np.ndarray, decision: DecisionRule) -> np.ndarray:
    """Returns the calibrated probability of the label that `labels` gives, 0..1."""
    p_fake = calibrated_p_fake(p_real, decision)
    return np.where(labels(p_real, decision) == FAKE, p_fake, 1.0 - p_fake)


# ---- Chooses temperature, threshold and uncertainty band on validation pictures; never on test ones.

CERTAIN_ACCURACY = 0.95
"""Outside the uncertainty band at least this share of the validation verdicts is right, where that can be reached."""

_TEMPERATURES = (0.05, 20.0)
_BAND_WIDTHS = np.arange(0.01, 0.99, 0.01)  # shares of the way from the threshold to 0 and to 1
_LEAST_OUTSIDE = 0.1  # a detector that is not sure even of a tenth is no better for calling everything uncertain
_SAME = 1e-6  # probabilities closer than this are the same: prediction rounds to as many digits


def fit_decision_rule(labels: np.ndarray, p_real: np.ndarray) -> DecisionRule:
    """Returns the decision that validation labels and network outputs speak for.

    Args:
        labels: int (n,), 0 fake, 1 real; both classes must be there.
        p_real: network outputs, float (n,).
    """
    temperature = fit_temperature(labels, p_real)
    p_fake = calibrated_p_fake(p_real, DecisionRule(temperature=temperature))
    threshold = choose_threshold(labels, p_fake)
    return DecisionRule(threshold, temperature, choose_band(labels, p_fake, threshold))


def fit_temperature(labels: np.ndarray, p_real: np.ndarray) -> float:
    """Returns the temperature of the lowest log loss (Guo et al. 2017, arXiv 1706.04599), 0.05..20.

    The targets are smoothed after Platt (1999): a few pictures that are all right would otherwise be reason enough for
    near-certainty about everything.
    """
    reals = labels == REAL
    target = np.where(reals, (reals.sum() + 1) / (reals.sum() + 2), 1 / ((~reals).sum() + 2))

    def loss(log_temperature: float) -> float:
        p = np.clip(calibrate(p_real, float(np.exp(log_temperature))), 1e-12, 1 - 1e-12)
        return float(-np.mean(target * np.log(p) + (1 - target) * np.log1p(-p)))

    result = minimize_scalar(loss, bounds=np.log(_TEMPERATURES), method="bounded")
    return round(float(np.exp(result.x)), 4)


def choose_threshold(labels: np.ndarray, p_fake: np.ndarray) -> float:
    """Returns 0.5, unless another threshold is right about clearly more pictures.

    The best threshold on a few hundred pictures is mostly chance; it is taken only where it beats 0.5 by more than
    one standard error of the accuracy at 0.5. One that calls all pictures alike is never taken.

    Args:
        labels: int (n,).
        p_fake: calibrated, float (n,).
    """
    order = np.argsort(p_fake)
    ordered, reals = p_fake[order], labels[order] == REAL
    # With the threshold between k-1 and k, the k pictures below are called real and those above fake.
    right = np.cumsum(reals)[:-1] + np.cumsum(~reals[::-1])[::-1][1:]
    possible = np.flatnonzero(np.diff(ordered) > _SAME)
    if not len(possible):
        return 0.5
    at_half = np.mean((p_fake >= 0.5) == (labels != REAL))
    cuts = (ordered[possible] + ordered[possible + 1]) / 2
    best = np.flatnonzero(right[possible] == right[possible].max())
    chosen = best[np.argmin(np.abs(cuts[best] - 0.5))]
    error = np.sqrt(at_half * (1 - at_half) / len(labels))
    return float(cuts[chosen]) if right[possible][chosen] / len(labels) > at_half + error else 0.5


def choose_band(labels: np.ndarray, p_fake: np.ndarray, threshold: float) -> tuple[float, float]:
    """Returns the narrowest band around the threshold outside of which `CERTAIN_ACCURACY` of the verdicts is right.

    Where no band reaches that, the widest one that leaves `_LEAST_OUTSIDE` of the pictures outside, but never none.
    """
    right = (p_fake >= threshold) == (labels != REAL)
    if right.mean() >= CERTAIN_ACCURACY:
        return threshold, threshold
    band = None
    for width in _BAND_WIDTHS:
        low, high = float(threshold * (1 - width)), float(threshold + (1 - threshold) * width)
        outside = (p_fake <= low) | (p_fake >= high)
        if outside.mean() < _LEAST_OUTSIDE:
            return band or (low, high)
        band = (low, high)
        if right[outside].mean() >= CERTAIN_ACCURACY:
            break
    return band
