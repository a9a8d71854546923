"""From p_real, the network's output, to labels and verdicts: pure arrays, the threshold apart from the model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fakereal.labels import FAKE, NAMES, REAL

UNCERTAIN = "uncertain"

DECIMALS = 6
"""Digits kept of every probability: float32 has no more, and what is written is then what was decided on."""

_EPSILON = 1e-7  # keeps logits finite where a network is sure to the last bit


@dataclass(frozen=True)
class Decision:
    """How probabilities become labels and verdicts; chosen on validation pictures, kept in the model file."""

    threshold: float = 0.5  # fake where the calibrated p_fake is at least this, 0..1
    temperature: float = 1.0  # calibrated p = sigmoid(logit(p) / temperature), above 0; 1 leaves p as it is
    band: tuple[float, float] = (0.5, 0.5)  # "uncertain" where low < calibrated p_fake < high


def logits(p: np.ndarray) -> np.ndarray:
    """Returns log(p / (1 - p)), finite also for 0 and 1."""
    clipped = np.clip(np.asarray(p, dtype=np.float64), _EPSILON, 1.0 - _EPSILON)
    return np.log(clipped) - np.log1p(-clipped)


def calibrate(p_real: np.ndarray, temperature: float) -> np.ndarray:
    """Returns p_real after temperature scaling (Guo et al. 2017, arXiv 1706.04599).

    Args:
        p_real: network outputs, 0..1, any shape.
        temperature: above 0; larger than 1 makes the probabilities less sure.
    """
    return 1.0 / (1.0 + np.exp(-logits(p_real) / temperature))


def calibrated_p_fake(p_real: np.ndarray, decision: Decision) -> np.ndarray:
    """Returns the calibrated probability of fake, 0..1."""
    return 1.0 - calibrate(p_real, decision.temperature)


def labels(p_real: np.ndarray, decision: Decision) -> np.ndarray:
    """Returns the label of each, 0 fake or 1 real."""
    return np.where(calibrated_p_fake(p_real, decision) >= decision.threshold, FAKE, REAL)


def verdicts(p_real: np.ndarray, decision: Decision) -> list[str]:
    """Returns `fake`, `real` or, inside the band, `uncertain` for each."""
    p_fake = calibrated_p_fake(p_real, decision)
    low, high = decision.band
    inside = (p_fake > low) & (p_fake < high)
    return [
        UNCERTAIN if unsure else NAMES[label] for unsure, label in zip(inside, labels(p_real, decision), strict=True)
    ]


def confidence(p_real: np.ndarray, decision: Decision) -> np.ndarray:
    """Returns the calibrated probability of the label that `labels` gives, 0..1."""
    p_fake = calibrated_p_fake(p_real, decision)
    return np.where(labels(p_real, decision) == FAKE, p_fake, 1.0 - p_fake)
