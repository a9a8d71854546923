"""Chooses temperature, threshold and uncertainty band on validation pictures; never on test ones."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar

from fakereal.labels import REAL
from fakereal.model.metrics import binary_log_loss
from fakereal.model.scoring import Decision, calibrate, calibrated_p_fake

CERTAIN_ACCURACY = 0.95
"""Outside the uncertainty band at least this share of the validation verdicts is right, where that can be reached."""

_TEMPERATURES = (0.05, 20.0)
_BAND_STEPS = np.arange(0.5, 0.995, 0.005)  # confidences below which a verdict may be called uncertain


def decide(labels: np.ndarray, p_real: np.ndarray) -> Decision:
    """Returns the decision that validation labels and network outputs speak for.

    Args:
        labels: int (n,), 0 fake, 1 real.
        p_real: network outputs, float (n,).
    """
    temperature = fit_temperature(labels, p_real)
    p_fake = calibrated_p_fake(p_real, Decision(temperature=temperature))
    threshold = round(choose_threshold(labels, p_fake), 4)
    return Decision(threshold, temperature, choose_band(labels, p_fake, threshold))


def fit_temperature(labels: np.ndarray, p_real: np.ndarray) -> float:
    """Returns the temperature of the lowest log loss (Guo et al. 2017, arXiv 1706.04599), 0.05..20."""
    bounds = np.log(_TEMPERATURES)
    result = minimize_scalar(
        lambda log_t: binary_log_loss(labels, calibrate(p_real, float(np.exp(log_t)))), bounds=bounds, method="bounded"
    )
    return round(float(np.exp(result.x)), 4)


def choose_threshold(labels: np.ndarray, p_fake: np.ndarray) -> float:
    """Returns 0.5, unless another threshold is right about clearly more pictures.

    The best threshold on a few hundred pictures is mostly chance; it is taken only where it beats 0.5 by more than
    one standard error of the accuracy at 0.5.

    Args:
        labels: int (n,).
        p_fake: calibrated, float (n,).
    """
    order = np.argsort(p_fake)
    ordered, reals = p_fake[order], labels[order] == REAL
    # With the threshold between k-1 and k, the k pictures below are called real and those above fake.
    right = np.concatenate([[0], np.cumsum(reals)]) + np.concatenate([np.cumsum(~reals[::-1])[::-1], [0]])
    cuts = np.concatenate([[0.0], (ordered[1:] + ordered[:-1]) / 2, [1.0]])
    at_half = np.mean((p_fake >= 0.5) == (labels != REAL))
    best = np.flatnonzero(right == right.max())
    chosen = cuts[best[np.argmin(np.abs(cuts[best] - 0.5))]]
    error = np.sqrt(at_half * (1 - at_half) / len(labels))
    return float(chosen) if right.max() / len(labels) > at_half + error else 0.5


def choose_band(labels: np.ndarray, p_fake: np.ndarray, threshold: float) -> tuple[float, float]:
    """Returns the narrowest band around the threshold outside of which `CERTAIN_ACCURACY` of the verdicts is right.

    A band that holds every picture but a tenth is the widest: a detector that is not sure even of those is no better
    for calling everything uncertain.
    """
    right = (p_fake >= threshold) == (labels != REAL)
    band = (threshold, threshold)
    for confidence in _BAND_STEPS:
        low, high = min(threshold, 1 - confidence), max(threshold, confidence)
        outside = (p_fake <= low) | (p_fake >= high)
        if outside.mean() < 0.1:
            break
        band = (round(float(low), 4), round(float(high), 4))
        if right[outside].mean() >= CERTAIN_ACCURACY:
            break
    return band
