"""How well a detector does on sources left out of its training: the decision rule for them, and the record of it.

Images that resemble the training images flatter a detector. Where whole sources (generators, cameras, websites) were
left out of training, temperature, threshold and band are fitted on those, and the model file keeps what its verdicts
were worth there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fakereal.labels import FAKE, REAL
from fakereal.model.calibration import (
    UNCERTAIN,
    DecisionRule,
    calibrate,
    calibrated_p_fake,
    choose_threshold,
    fit_temperature,
    verdicts,
)
from fakereal.model.metrics import roc_auc

MAX_FALSE_ALARMS = 0.05
"""Share of the real images that a verdict may call fake."""

MIN_RIGHT = 0.90
"""Share of the verdicts of each kind that must be right, if both classes were equally common."""

_MIN_VERDICTS = 20  # of each kind: fewer prove nothing
_Z = 1.96  # of a 95 % interval


def is_for_fitting(sha256: str) -> bool:
    """Return whether a left-out image, by the hash of its file, fits the rule; the other half gives the record."""
    return int(sha256[:8], 16) % 2 == 0


def fit_rule_for_unseen_sources(labels: np.ndarray, p_real: np.ndarray, boundary: float = 0.5) -> DecisionRule:
    """Return temperature, threshold and band from the outputs for images of left-out sources.

    Args:
        labels: int (n,), 0 fake, 1 real, both present.
        p_real: network outputs, float (n,).
        boundary: the output where the label changes, unless these images clearly want another.
    """
    temperature = fit_temperature(labels, p_real)
    p_fake = calibrated_p_fake(p_real, DecisionRule(temperature=temperature))
    threshold = choose_threshold(labels, p_fake, default=1.0 - float(calibrate(boundary, temperature)))
    fakes, reals = np.sort(p_fake[labels == FAKE]), np.sort(p_fake[labels == REAL])
    high = _lowest_limit(fakes, reals, threshold)
    low = 1.0 - _lowest_limit(1.0 - reals[::-1], 1.0 - fakes[::-1], 1.0 - threshold, max_wrong=1.0)
    return DecisionRule(threshold, temperature, (low, high))


def _lowest_limit(wanted: np.ndarray, others: np.ndarray, start: float, max_wrong: float = MAX_FALSE_ALARMS) -> float:
    """Return the lowest limit from `start` on above which the verdict `wanted` keeps both rules; 1.0 if there is none.

    Args:
        wanted: ascending scores of the class that the verdict names.
        others: ascending scores of the other class.
        start: where the label changes.
        max_wrong: share of the other class that the verdict may hit.
    """
    for limit in np.unique(np.append(wanted[wanted >= start], start)):
        hits = len(wanted) - np.searchsorted(wanted, limit)
        hit_share, wrong_share = hits / len(wanted), 1.0 - np.searchsorted(others, limit) / len(others)
        if hits < _MIN_VERDICTS:
            break
        if wrong_share <= max_wrong and hit_share >= MIN_RIGHT * (hit_share + wrong_share):
            return float(limit)
    return 1.0


def record(labels: np.ndarray, p_real: np.ndarray, sources: Sequence[str], decision: DecisionRule) -> dict[str, Any]:
    """Return what the verdicts were worth, as plain values for `Metadata.metrics["unseen_sources"]`.

    Use other images of the left-out sources than those that the rule was fitted on. Verdicts are those of p_fake alone:
    a prediction also leaves images uncertain that are unlike the training images, see `out_of_distribution`.
    """
    names = np.array(sources)
    given = np.array(verdicts(p_real, decision))
    p_fake, stated = calibrated_p_fake(p_real, decision), given != UNCERTAIN
    right = int(np.sum(given == np.where(labels == FAKE, "fake", "real")))
    reals, called_fake = labels == REAL, p_fake >= decision.threshold
    return {
        "images": len(labels),
        "fake_sources": sorted(set(names[~reals].tolist())),
        "real_sources": sorted(set(names[reals].tolist())),
        "verdicts": int(stated.sum()),
        "right": right,
        "right_interval": wilson_interval(right, int(stated.sum())),
        "reals_called_fake": float(np.mean(given[reals] == "fake")),
        "balanced_accuracy": float((np.mean(called_fake[~reals]) + np.mean(~called_fake[reals])) / 2),
        "mean_roc_auc": float(
            np.mean([roc_auc(labels[chosen], p_real[chosen]) for chosen in _each_fake_source(names, reals)])
        ),
    }


def _each_fake_source(names: np.ndarray, reals: np.ndarray) -> list[np.ndarray]:
    return [(names == name) & ~reals | reals for name in sorted(set(names[~reals].tolist()))]


def wilson_interval(successes: int, trials: int) -> list[float] | None:
    """Return the 95 % interval of a share (Wilson 1927); None without trials."""
    if not trials:
        return None
    share, z2 = successes / trials, _Z**2 / trials
    center, half = share + z2 / 2, _Z * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials))
    return [max(0.0, (center - half) / (1 + z2)), min(1.0, (center + half) / (1 + z2))]


def sentence(metrics: Mapping[str, Any]) -> str | None:
    """Return what a model's verdicts are worth on unseen sources, in one sentence; None where it was not measured."""
    found = metrics.get("unseen_sources")
    if not found:
        return None
    count = len(found["fake_sources"]) + len(found["real_sources"])
    where = (
        f"With each of {count} sources left out in turn" if "groups" in found else f"On {count} sources it never saw"
    )
    expect = (
        " The backbone was trained on images of these sources or some of them, so expect less."
        if found.get("backbone_saw_them")
        else ""
    )
    if not found["verdicts"]:
        return f"{where}, no verdict was right often enough: all images were left uncertain.{expect}"
    low, high = (round(100 * limit) for limit in found["right_interval"])
    uncertain = 1 - found["verdicts"] / found["images"]
    return (
        f"{where}, {found['right']:,} of {found['verdicts']:,} verdicts were right"
        f" ({100 * found['right'] / found['verdicts']:.0f} %, 95 % interval {low} to {high} %);"
        f" {100 * uncertain:.0f} % of the images were left uncertain.{expect}"
    )
