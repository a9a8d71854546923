"""The training loop on Keras: fit, predict, optimizer, learning rate schedule, and the validation loss of an epoch.

Keras' loops over batches run silently, and after Ctrl-C end between two batches.
"""

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

_NO_DECAY = ["bias", "gamma", "beta"]  # weight decay is for kernels; on norms and biases it only hurts


class _StopOnInterrupt(keras.callbacks.Callback):
    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if runtime.interrupt_requested():  # on JAX, asking for the model moves all its variables
            self.model.stop_training = True

    def on_predict_batch_end(self, batch: int, logs: Any = None) -> None:
        if runtime.interrupt_requested():
            self.model.stop_predicting = True


def fit(
    model: keras.Model,
    batches: Any,
    class_weights: dict[int, float] | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> dict[str, list[float]]:
    """Train for one epoch on the batches in their order; return Keras' history of it.

    Args:
        model: compiled.
        batches: an iterable of (inputs, labels) or (inputs, labels, weights).
        class_weights: label -> weight in the loss; None: all alike.
        callbacks: Keras' own.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; the weights are those after some batch.
    """
    runtime.check_interrupt()
    fitted = model.fit(
        batches, class_weight=class_weights, verbose=0, callbacks=[*callbacks, _StopOnInterrupt()], shuffle=False
    )
    runtime.check_interrupt()
    return fitted.history


def predict(model: keras.Model, batches: Any) -> np.ndarray:
    """Return p_real of every image of the batches in their order: float64 (n,), 0..1.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    return np.asarray(outputs(model, batches), dtype=np.float64).reshape(-1)


def outputs(model: keras.Model, batches: Any) -> Any:
    """Return what a model gives for the batches in their order: an array, or for several outputs a list of arrays.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    runtime.check_interrupt()
    found = model.predict(batches, verbose=0, callbacks=[_StopOnInterrupt()])
    runtime.check_interrupt()
    return found


def build_optimizer(training: TrainingConfig, learning_rate: float, steps: int) -> keras.optimizers.Optimizer:
    """Return the optimizer of a phase.

    Args:
        training: only its optimizer, schedule and moving average are used.
        learning_rate: the highest one, unless the schedule is `plateau`, see `plateau_rate`.
        steps: number of batches in all epochs of the phase.
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


def plateau_rate(losses: Sequence[float], peak: float, training: TrainingConfig) -> float:
    """Return the learning rate of the next epoch, which validation lowers under the schedule `plateau` only.

    Args:
        losses: validation losses of the phase's epochs so far.
        peak: the phase's learning rate.
        training: only its schedule, patience and factor are used.
    """
    if training.schedule != "plateau":
        return peak
    best, waited, reductions = float("inf"), 0, 0
    for loss in losses:
        best, waited = (loss, 0) if loss < best else (best, waited + 1)
        if waited >= training.plateau_patience:
            waited, reductions = 0, reductions + 1
    return peak * training.plateau_factor**reductions


def sample_validation(records: Sequence[Record], training: TrainingConfig, seed: int) -> tuple[Record, ...]:
    """Return the images that epochs are validated on: `validation_steps` batches of them, or all.

    They are drawn once, with both classes alike as far as there are images, so that epochs can be compared. The
    threshold and all figures still come from all validation images.
    """
    steps = training.validation_steps
    return tuple(records) if steps is None else balanced_sample(records, steps * training.batch_size, seed)


def balanced_sample(records: Sequence[Record], count: int, seed: int) -> tuple[Record, ...]:
    """Return `count` random images in their order, both classes alike as far as there are images; or all."""
    if count >= len(records):
        return tuple(records)
    labels = np.array([record.label for record in records])
    place = np.empty(len(records), np.int64)  # of each image within its own class, in random order
    rng = np.random.default_rng(seed)
    for label in set(labels.tolist()):
        mask = labels == label
        place[mask] = rng.permutation(int(mask.sum()))
    chosen = np.argsort(place, kind="stable")[:count]
    return tuple(records[number] for number in sorted(chosen))


def calibrated_loss(labels: np.ndarray, p_real: np.ndarray) -> float:
    """Return the log loss, in nats, after temperature scaling: the loss that the best epoch is chosen by.

    A network that is trained for long becomes overconfident, which raises the plain loss while the network separates
    the classes better (Guo et al. 2017, arXiv 1706.04599, figure 3). The finished detector's temperature corrects
    that, so it is not held against an epoch. Temperatures below 1 don't count: they would favor a network that has
    hardly begun, whose outputs, all close to 0.5, lie in a lucky order.

    Args:
        labels: int (n,), 0 fake, 1 real.
        p_real: network outputs, float (n,).
    """
    return binary_log_loss(labels, calibrate(p_real, max(1.0, fit_temperature(labels, p_real))))
