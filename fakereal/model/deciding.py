"""Chooses temperature, threshold and uncertainty band on validation pictures; never on test ones."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar

from fakereal.labels import REAL
from fakereal.model.scoring import Decision, calibrate, calibrated_p_fake

CERTAIN_ACCURACY = 0.95
"""Outside the uncertainty band at least this share of the validation verdicts is right, where that can be reached."""

_TEMPERATURES = (0.05, 20.0)
_BAND_WIDTHS = np.arange(0.01, 0.99, 0.01)  # shares of the way from the threshold to 0 and to 1
_LEAST_OUTSIDE = 0.1  # a detector that is not sure even of a tenth is no better for calling everything uncertain
_SAME = 1e-6  # probabilities closer than this are the same: prediction rounds to as many digits


def decide(labels: np.ndarray, p_real: np.ndarray) -> Decision:
    """Returns the decision that validation labels and network outputs speak for.

    Args:
        labels: int (n,), 0 fake, 1 real; both classes must be there.
        p_real: network outputs, float (n,).
    """
    temperature = fit_temperature(labels, p_real)
    p_fake = calibrated_p_fake(p_real, Decision(temperature=temperature))
    threshold = choose_threshold(labels, p_fake)
    return Decision(threshold, temperature, choose_band(labels, p_fake, threshold))


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
