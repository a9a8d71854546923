"""Curves behind a report's figures: pure arrays in, plain lists out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fakereal.labels import FAKE

BINS = 10
"""Of equal width, for the calibration error and its diagram."""

MAX_POINTS = 400
"""Of a curve that is kept: more can't be told apart on a screen."""


@dataclass(frozen=True)
class Bin:
    """Pictures with a similar p_fake."""

    mean_p_fake: float
    share_fake: float  # of those pictures, how many are fake
    images: int


def roc(labels: np.ndarray, p_fake: np.ndarray) -> list[list[float]]:
    """Returns points (share of reals called fake, share of fakes called fake), from (0, 0) to (1, 1)."""
    fakes, reals = _called(labels, p_fake)
    x, y = reals / max(reals[-1], 1), fakes / max(fakes[-1], 1)
    return _thinned(np.column_stack([np.r_[0.0, x], np.r_[0.0, y]]))


def precision_recall(labels: np.ndarray, p_fake: np.ndarray) -> list[list[float]]:
    """Returns points (recall, precision) of fake, by growing recall."""
    fakes, reals = _called(labels, p_fake)
    return _thinned(np.column_stack([fakes / max(fakes[-1], 1), fakes / (fakes + reals)]))


def _called(labels: np.ndarray, p_fake: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns how many fakes and how many reals are called fake, for each threshold from high to low."""
    order = np.argsort(-p_fake, kind="stable")
    ordered = p_fake[order]
    last = np.r_[np.flatnonzero(np.diff(ordered)), len(ordered) - 1]  # equal outputs fall on one side together
    fakes = np.cumsum(labels[order] == FAKE)[last]
    return fakes, last + 1 - fakes


def _thinned(points: np.ndarray) -> list[list[float]]:
    """Keeps corners and, of the rest, so many that no eye misses one."""
    steps = np.diff(points, axis=0)
    turn = steps[1:, 0] * steps[:-1, 1] != steps[1:, 1] * steps[:-1, 0]
    points = points[np.r_[True, turn, True][: len(points)]]
    if len(points) > MAX_POINTS:
        points = points[np.unique(np.linspace(0, len(points) - 1, MAX_POINTS).round().astype(int))]
    return [[round(float(x), 5), round(float(y), 5)] for x, y in points]


def reliability(labels: np.ndarray, p_fake: np.ndarray) -> list[Bin]:
    """Returns the bins that hold pictures, by growing p_fake."""
    place = np.minimum((p_fake * BINS).astype(int), BINS - 1)
    chosen = [place == number for number in range(BINS)]
    return [
        Bin(float(p_fake[mask].mean()), float(np.mean(labels[mask] == FAKE)), int(mask.sum()))
        for mask in chosen
        if mask.any()
    ]


def calibration_error(bins: list[Bin]) -> float:
    """Returns the expected calibration error, 0..1 (Naeini et al. 2015): how far p_fake is from the share of fakes."""
    total = sum(each.images for each in bins)
    return sum(each.images * abs(each.mean_p_fake - each.share_fake) for each in bins) / total
