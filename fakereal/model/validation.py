"""What validation pictures have a say in while a network learns: which epochs are better, and the learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fakereal.config import TrainingConfig
from fakereal.data.scan import Record
from fakereal.model.deciding import fit_temperature
from fakereal.model.metrics import binary_log_loss
from fakereal.model.scoring import calibrate


def drawn(records: Sequence[Record], training: TrainingConfig, seed: int) -> tuple[Record, ...]:
    """Returns the validation pictures that judge the epochs: `validation_steps` batches of them, or all.

    They are drawn once, with both classes alike as far as there are pictures, so that epochs can be compared. The
    threshold and all figures still come from all validation pictures.
    """
    steps = training.validation_steps
    if steps is None or steps * training.batch_size >= len(records):
        return tuple(records)
    labels = np.array([record.label for record in records])
    place = np.empty(len(records), np.int64)  # of each picture within its own class, in random order
    rng = np.random.default_rng(seed)
    for label in set(labels.tolist()):
        mask = labels == label
        place[mask] = rng.permutation(int(mask.sum()))
    chosen = np.argsort(place, kind="stable")[: steps * training.batch_size]
    return tuple(records[number] for number in sorted(chosen))


def calibrated_loss(labels: np.ndarray, p_real: np.ndarray) -> float:
    """Returns the log loss, in nats, after too much confidence was taken out: what says which epoch is the best.

    A network that goes on learning grows too sure of itself, which raises the plain loss while it tells more of the
    pictures apart (Guo et al. 2017, arXiv 1706.04599, figure 3). The finished detector's temperature mends that, so it
    is not held against an epoch. Temperatures below 1 don't count: they would praise one that has hardly begun and
    whose outputs, all close to 0.5, lie in a lucky order.

    Args:
        labels: int (n,), 0 fake, 1 real.
        p_real: network outputs, float (n,).
    """
    return binary_log_loss(labels, calibrate(p_real, max(1.0, fit_temperature(labels, p_real))))


def losses_of(history: Sequence[dict[str, Any]]) -> list[float]:
    """Returns the loss of each epoch that epochs are compared by; older models kept the plain one only."""
    return [row.get("val_calibrated_loss", row["val_loss"]) for row in history]


def rate_after(losses: Sequence[float], peak: float, training: TrainingConfig) -> float:
    """Returns the learning rate of the next epoch.

    Args:
        losses: validation losses of the phase's epochs so far.
        peak: the phase's learning rate.
        training: its schedule; only with `plateau` validation has a say.
    """
    if training.schedule != "plateau":
        return peak
    best, waited, reductions = float("inf"), 0, 0
    for loss in losses:
        best, waited = (loss, 0) if loss < best else (best, waited + 1)
        if waited >= training.plateau_patience:
            waited, reductions = 0, reductions + 1
    return peak * training.plateau_factor**reductions
