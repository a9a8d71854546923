"""The optimizer and its learning rate by the step, as a configuration asks for them. Keras 3 only."""

from __future__ import annotations

from typing import Any

import keras

from fakereal.config import TrainingConfig

_NO_DECAY = ["bias", "gamma", "beta"]  # weight decay is for kernels; on norms and biases it only hurts


def build(training: TrainingConfig, learning_rate: float, steps: int) -> keras.optimizers.Optimizer:
    """Returns the optimizer of a phase.

    Args:
        training: its optimizer, schedule and moving average count here.
        learning_rate: the highest one, unless the schedule is `plateau`, which lowers it from outside.
        steps: how many batches the phase has, in all its epochs.
    """
    rate = _schedule(training, learning_rate, steps)
    average = training.average_weights
    options = {"use_ema": bool(average), "ema_momentum": average or 0.99}
    if training.optimizer == "sgd":
        return keras.optimizers.SGD(rate, momentum=0.9, **options)
    if training.optimizer == "adam":
        return keras.optimizers.Adam(rate, **options)
    optimizer = keras.optimizers.AdamW(rate, weight_decay=training.weight_decay, **options)
    optimizer.exclude_from_weight_decay(var_names=_NO_DECAY)
    return optimizer


def _schedule(training: TrainingConfig, peak: float, steps: int) -> Any:
    warmup = round(training.warmup * steps)
    if training.schedule == "cosine":
        return keras.optimizers.schedules.CosineDecay(
            0.0 if warmup else peak, max(1, steps - warmup), warmup_target=peak if warmup else None, warmup_steps=warmup
        )
    if warmup:
        return keras.optimizers.schedules.PolynomialDecay(peak / warmup, warmup, end_learning_rate=peak)
    return peak
