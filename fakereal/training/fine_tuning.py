"""`--fine-tune auto`: which layers to train after the head, by measured seconds per step and a time limit.

All layers where that fits, else the last 20, else none. The decision is part of the checkpoint and of config.yaml, so
that a run is resumed, or repeated, without a clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras

from fakereal.config import FineTune, PhaseConfig, TrainingConfig
from fakereal.dataset.split import Split
from fakereal.runtime import log
from fakereal.training.features import BatchSource
from fakereal.training.input_pipeline import EpochSampler

SCOPES = ("all", "last20")
"""What may be fine-tuned, in the order in which it is preferred."""

MIN_EPOCHS = 3
"""Fewer are not worth a phase."""

TITLES = {"all": "all layers", "last20": "the last 20 layers", "head": "the head"}

_TIMED_STEPS = 4
_FORWARD_SHARE = 1 / 3  # of a step's time and compilation; there is a pass to validate and one to measure


@dataclass(frozen=True)
class PhaseCost:
    """What a phase of fine-tuning would take."""

    once_s: float  # compilation, features of frozen layers, and after the last epoch one pass over all images
    epoch_s: float  # an epoch with its validation

    def seconds(self, epochs: int) -> float:
        """Return the time of a phase of that many epochs."""
        return self.once_s + epochs * self.epoch_s


@dataclass(frozen=True)
class FineTuning:
    """A decision: the layers, the number of epochs, and what else was considered."""

    fine_tune: FineTune
    epochs: int  # 0 for `none`
    minutes: dict[str, float]  # of each scope that was measured: with these epochs, or with all where it does not fit

    @property
    def text(self) -> str:
        """The decision for people."""
        return f"{TITLES[self.fine_tune]}, {self.epochs} epochs" if self.epochs else "the head alone"


def choose(cost_of: Callable[[str], PhaseCost], epochs: int, left_s: float) -> FineTuning:
    """Return the first of `SCOPES` that fits into the time left, with as many epochs as fit; log the plan.

    Args:
        cost_of: measures a scope; called only for those that matter.
        epochs: the most epochs.
        left_s: seconds left of the time limit, may be negative.
    """
    minutes: dict[str, float] = {}
    for scope in SCOPES:
        cost = cost_of(scope)
        fitting = min(epochs, int((left_s - cost.once_s) // cost.epoch_s))
        fits = fitting >= min(MIN_EPOCHS, epochs)
        minutes[scope] = round(cost.seconds(fitting if fits else epochs) / 60, 1)
        if fits:
            decided = FineTuning(scope, fitting, minutes)
            log(f"fine-tuning: {decided.text}, {about(minutes[scope])} with measuring{_too_long(minutes)}")
            return decided
    log(f"fine-tuning: none{_too_long(minutes, left_out=SCOPES)}")
    return FineTuning("none", 0, minutes)


def _too_long(minutes: dict[str, float], left_out: Sequence[str] = SCOPES[:1]) -> str:
    """Return why scopes were left out, as the rest of a line; empty where none was."""
    too_long = [scope for scope in left_out if scope in minutes and len(minutes) > 1]
    if not too_long:
        return ""
    each = ", ".join(f"{TITLES[scope]} would take {about(minutes[scope])}" for scope in too_long)
    return f" ({each}: more than --time-limit leaves)"


def about(minutes: float) -> str:
    """Return minutes as text, in the precision of an estimate."""
    if minutes < 1.5:
        return "about 1 minute"
    return f"about {minutes:.0f} minutes" if minutes < 90 else f"about {minutes / 60:.0f} hours"


def measure(source: BatchSource, split: Split, phase: PhaseConfig, seed: int) -> PhaseCost:
    """Train a few steps and return what a phase would take; the model's weights change.

    Args:
        source: of a model that was compiled for the phase.
        split: the images.
        phase: with as many epochs as it has at most, which may need all versions of each image.
        seed: of the augmentation.
    """
    batch_size, sampler = phase.batch_size, EpochSampler(seed, 0, 0)
    sample = split.train[: _TIMED_STEPS * batch_size]
    started = time.monotonic()
    source.fit(sample, sampler, batch_size)  # compiles the step, and computes features where there are any
    ends = [time.monotonic()]
    note = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: ends.append(time.monotonic()))
    source.fit(sample, sampler, batch_size, callbacks=[note])
    step_s = (ends[-1] - ends[0]) / (len(ends) - 1)
    compile_s = max(0.0, (ends[0] - started) - (ends[-1] - ends[0]) - source.cost.seconds)
    forward_s = _FORWARD_SHARE * step_s / min(batch_size, len(sample))
    images, steps = len(split.train) + len(split.val) + len(split.test), -(-len(split.train) // batch_size)
    versions = min(source.augmented_versions, phase.epochs)
    features = images + (versions - 1) * len(split.train) if versions else 0
    feature_s = source.cost.seconds / max(1, source.cost.images)
    once_s = compile_s * (1 + 2 * _FORWARD_SHARE) + features * feature_s + images * forward_s
    return PhaseCost(once_s, steps * step_s + len(split.val) * forward_s)


def resolved(training: TrainingConfig, decided: FineTuning) -> TrainingConfig:
    """Return the configuration that repeats the decision without a clock."""
    epochs = decided.epochs or training.fine_tune_epochs
    limit = TrainingConfig.time_limit_minutes  # it has done its work
    return replace(training, fine_tune=decided.fine_tune, fine_tune_epochs=epochs, time_limit_minutes=limit)


def decision(tree: dict[str, Any]) -> FineTuning | None:
    """Return the decision that a checkpoint holds, None where there is none yet."""
    return FineTuning(**tree) if tree else None
