"""Keras' own loops over batches, as everything here runs them: silent, and after Ctrl-C ended between two batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from fakereal import runtime
from fakereal.config import TrainingConfig
from fakereal.dataset.scan import Record
from fakereal.model.calibration import calibrate, fit_temperature
from fakereal.model.metrics import binary_log_loss


class _StopWhenPressed(keras.callbacks.Callback):
    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if runtime.interrupt_requested():  # on JAX, asking for the model moves all its variables
            self.model.stop_training = True

    def on_predict_batch_end(self, batch: int, logs: Any = None) -> None:
        if runtime.interrupt_requested():
            self.model.stop_predicting = True


def fit(model: keras.Model, examples: dict[str, Any], callbacks: Sequence[keras.callbacks.Callback] = ()) -> Any:
    """Trains one epoch on `examples`, `fit`'s own arguments, in their order; returns Keras' history of it.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; the weights are those after some batch.
    """
    runtime.check_interrupt()
    fitted = model.fit(**examples, verbose=0, callbacks=[*callbacks, _StopWhenPressed()], shuffle=False)
    runtime.check_interrupt()
    return fitted.history


def predict(model: keras.Model, batches: Any) -> np.ndarray:
    """Returns p_real of every picture of a feed's or the pipeline's plain batches: float64 (n,).

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    runtime.check_interrupt()
    outputs = model.predict(batches, verbose=0, callbacks=[_StopWhenPressed()])
    runtime.check_interrupt()
    return np.asarray(outputs, dtype=np.float64).reshape(-1)


# ---- The optimizer and its learning rate by the step, as a configuration asks for them. Keras 3 only.

_NO_DECAY = ["bias", "gamma", "beta"]  # weight decay is for kernels; on norms and biases it only hurts


def build_optimizer(training: TrainingConfig, learning_rate: float, steps: int) -> keras.optimizers.Optimizer:
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


# ---- What validation pictures have a say in while a network learns: which epochs are better, and the learning rate.


def sample_validation(records: Sequence[Record], training: TrainingConfig, seed: int) -> tuple[Record, ...]:
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
