"""Trains a network in phases, with checkpoints. Keras 3 only; the pictures come from the input pipeline."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from fakereal import runtime
from fakereal.config import Config, PhaseConfig, TrainingConfig
from fakereal.dataset.neutralize import preprocessing_of
from fakereal.dataset.scan import labels_of
from fakereal.dataset.split import Split
from fakereal.errors import FakeRealError
from fakereal.labels import FAKE, REAL
from fakereal.model import networks
from fakereal.model.metrics import binary_log_loss, epoch_losses
from fakereal.model.weights import BaseWeights
from fakereal.preprocessing import Preprocessing
from fakereal.runtime import log, one_line, progress_bar
from fakereal.training import features as feeds
from fakereal.training import loop
from fakereal.training.cache import RowCache
from fakereal.training.checkpoint import TrainingState, check_views, save_checkpoint
from fakereal.training.distributed import ALONE, DistributedContext
from fakereal.training.features import BatchSource
from fakereal.training.input_pipeline import EpochSampler
from fakereal.training.loop import fit


@dataclass(frozen=True)
class Trained:
    """What training gives."""

    model: keras.Model  # for prediction, at the size of the configuration, with the best weights
    history: tuple[dict[str, Any], ...]
    interrupted: bool  # True where Ctrl-C ended it early
    diverged: bool  # True where a loss that is no number did
    feed: BatchSource  # the quickest way to its outputs: predict(feed.model, feed.plain(records, batch_size))


@dataclass(frozen=True)
class _Job:
    """What all phases share."""

    config: Config
    split: Split
    cache: RowCache
    spread: DistributedContext
    state: TrainingState  # the one thing that changes


class DivergedError(FakeRealError):
    """The loss is no number any more."""


def phases(training: TrainingConfig, origin: BaseWeights) -> tuple[PhaseConfig, ...]:
    """Returns the list of phases: the configuration's own, or the one that `epochs` and `fine_tune` stand for.

    A pre-trained base is first kept frozen while the head learns, then fine-tuned at a lower rate. In a base of random
    weights there is nothing to keep, so head and base learn together from the start.
    """
    if training.phases:
        chosen = training.phases
    elif origin.pretrained or training.fine_tune == "none":
        chosen = (PhaseConfig("head", training.epochs, training.learning_rate),)
        if training.fine_tune != "none":
            rate = training.fine_tune_learning_rate
            chosen += (PhaseConfig(training.fine_tune, training.fine_tune_epochs, rate),)
    else:
        chosen = (PhaseConfig(training.fine_tune, training.epochs, training.learning_rate),)
    auto = "frozen" if origin.pretrained else "learned"
    return tuple(
        replace(
            phase,
            batch_size=phase.batch_size or training.batch_size,
            batch_norm=auto if phase.batch_norm == "auto" else phase.batch_norm,
        )
        for phase in chosen
    )


def train(
    model: keras.Model,
    config: Config,
    origin: BaseWeights,
    split: Split,
    cache: RowCache,
    checkpoint: Path,
    identity: str,
    state: TrainingState | None = None,
    watch: Callable[[list[dict[str, Any]]], None] = lambda history: None,
    spread: DistributedContext = ALONE,
) -> Trained:
    """Trains a network, phase by phase; after Ctrl-C the best weights so far are what counts.

    Args:
        model: as `networks.build` made it, with the base's weights.
        config: the whole configuration.
        origin: where those weights come from.
        split: what learns and what chooses the best epoch.
        cache: where decoded pictures and the frozen part's activations are kept.
        checkpoint: the file that a killed run goes on from; written after every epoch.
        identity: names the configuration and the data; the checkpoint carries it.
        state: where a killed run stood, as `checkpoint.resumed` gives it; None starts anew.
        watch: is given the history after every epoch.
        spread: over which devices and processes; all of them call this with the same arguments.

    Raises:
        DivergedError: the loss is no number, in the first epoch already.
        KeyboardInterrupt: before the first epoch was done, pressed twice, or there are other processes.
    """
    state = state or TrainingState(best=model.get_weights(), origin=asdict(origin))
    split = replace(split, val=loop.sample_validation(split.val, config.training, config.seed))
    job, plan = _Job(config, split, cache, spread, state), phases(config.training, origin)
    early: type[BaseException] | None = None  # no error itself, which would keep all that it passed through alive
    if state.history and spread.leads:
        watch(state.history)

    def keep() -> None:
        if spread.leads:
            save_checkpoint(checkpoint, identity, state)
            watch(state.history)

    try:
        for number in range(state.phase, len(plan)):
            _run_phase(job, plan, number, keep)
        runtime.check_interrupt()  # pressed after the last epoch, it must not end the measuring
    except (KeyboardInterrupt, DivergedError) as error:
        at_once = isinstance(error, KeyboardInterrupt) and (spread.processes > 1 or runtime.interrupt_requested())
        if at_once or not state.history:  # pressed still: this was the second one
            raise
        log(one_line(error) if isinstance(error, DivergedError) else "interrupted")
        log("the best model so far is kept, measured and saved")
        early = type(error)
    model.set_weights(state.best)
    feed = _final_feed(model, config, plan[-1], split, cache)
    interrupted, diverged = (early is kind for kind in (KeyboardInterrupt, DivergedError))
    return Trained(model, tuple(state.history), interrupted, diverged, feed)


def _run_phase(job: _Job, plan: Sequence[PhaseConfig], number: int, keep: Callable[[], None]) -> None:
    config, state, phase = job.config, job.state, plan[number]
    preprocessing = preprocessing_of(config, phase.image_size or config.image_size)
    model, feed = _phase_model(job, phase, preprocessing)
    if state.phase != number:
        # Losses at another size can't be compared; at the same one the phase before must be beaten.
        if preprocessing.image_size_px != (plan[number - 1].image_size or config.image_size):
            state.best_loss = float("inf")
        state.phase, state.epoch, state.current, state.optimizer = number, 0, [], []
    elif state.current:
        if not _is_over(state, number, phase, config.training.patience):
            check_views(state.views, feed.views)
        _assign(_variables(model), state.current)
        with job.spread.scope():
            feed.model.optimizer.build(feed.model.trainable_variables)
        _assign(feed.model.optimizer.variables, state.optimizer)
    state.views = feed.views
    while not _is_over(state, number, phase, config.training.patience):
        _run_epoch(job, model, feed, phase, number)
        keep()
        if news := feed.news(state.epoch, phase.epochs):
            log(news)


def _phase_model(job: _Job, phase: PhaseConfig, preprocessing: Preprocessing) -> tuple[keras.Model, BatchSource]:
    """Builds the network as this phase trains it, from the best weights so far, and compiles what its feed trains."""
    config, split, training = job.config, job.split, job.config.training
    learn_batch_norm = phase.batch_norm == "learned" and phase.train != "head"
    with job.spread.scope():
        model = _phase_network(job, phase, preprocessing.image_size_px, learn_batch_norm)
    twin = None if job.spread.alone else _phase_network(job, phase, preprocessing.image_size_px, learn_batch_norm)
    count = len(split.train) + len(split.val) + len(split.test)
    feed = feeds.choose_batch_source(model, config, preprocessing, job.cache, count, learn_batch_norm, twin)
    count = phase.images_per_epoch or len(split.train)
    steps = -(-min(count, len(split.train)) // phase.batch_size) * phase.epochs
    with job.spread.scope():
        feed.model.compile(
            optimizer=loop.build_optimizer(training, phase.learning_rate, steps),
            loss=keras.losses.BinaryCrossentropy(label_smoothing=training.label_smoothing),
            metrics=["accuracy"],
        )
    return model, feed


def _phase_network(job: _Job, phase: PhaseConfig, size_px: int, learn_batch_norm: bool) -> keras.Model:
    config = job.config
    keras.utils.set_random_seed(config.seed)
    keras.config.set_dtype_policy("mixed_bfloat16" if config.training.mixed_precision else "float32")
    model = networks.build(config.network, size_px, learn_batch_norm)
    keras.config.set_dtype_policy("float32")
    model.set_weights(job.state.best)
    networks.set_trainable(model, phase.train, learn_batch_norm)
    if not learn_batch_norm:
        _stop_random_depth(model)
    return model


def _stop_random_depth(model: keras.Model) -> None:
    """Keeps a base in inference mode: Keras 3 hands training=True down to it, although `networks.build` said False."""
    for layer in model.get_layer(networks.BASE).layers:
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0


def _final_feed(model: keras.Model, config: Config, last: PhaseConfig, split: Split, cache: RowCache) -> BatchSource:
    """Feeds the finished model with what the last phase may have computed already."""
    networks.set_trainable(model, last.train, learn_batch_norm=False)
    count = len(split.train) + len(split.val) + len(split.test)
    return feeds.choose_batch_source(model, config, preprocessing_of(config, config.image_size), cache, count)


def _run_epoch(job: _Job, model: keras.Model, feed: BatchSource, phase: PhaseConfig, number: int) -> None:
    """Trains one epoch, measures it on validation, and brings the state up to date."""
    started = time.monotonic()
    config, split, state, spread, training = job.config, job.split, job.state, job.spread, job.config.training
    draw = EpochSampler(config.seed, number, state.epoch, phase.images_per_epoch, training.source_balance)
    if training.schedule == "plateau":
        rate = loop.rate_after(_losses(state, number), phase.learning_rate, training)
        feed.model.optimizer.learning_rate = rate
    weights = _class_weights(split) if training.class_weights else None
    examples = spread.examples(feed, split.train, draw, phase.batch_size, weights)
    title = f"{phase.train} {model.input_shape[1]} px, epoch {state.epoch + 1}/{phase.epochs}"
    with progress_bar(title, len(examples["x"])) as advance, spread.scope():
        raw: list[np.ndarray] = []  # Keras ends `fit` with the moving average, where there is one, in their place
        callback = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: advance(1),
            on_epoch_end=lambda epoch, logs: raw.extend(np.asarray(each) for each in model.trainable_variables),
        )
        logs = fit(feed.model, examples, [callback])
    p_real = spread.predict(feed, split.val, phase.batch_size)
    row = _row(number, phase, state.epoch + 1, logs, labels_of(split.val), p_real, time.monotonic() - started)
    if not np.isfinite(row["loss"] + row["val_loss"]):
        raise DivergedError(f"{title}: expected a loss, found none, as the weights ran away: lower --learning-rate")
    if row["val_calibrated_loss"] < state.best_loss:
        state.best_loss, state.best = row["val_calibrated_loss"], model.get_weights()
    _assign(model.trainable_variables, raw)
    state.epoch += 1
    state.history.append(row)
    state.current = [np.asarray(variable) for variable in _variables(model)]
    state.optimizer = [np.asarray(variable) for variable in feed.model.optimizer.variables]
    log(
        f"{title}: loss {row['loss']:.4f} accuracy {row['accuracy']:.4f}"
        f" | validation loss {row['val_loss']:.4f} accuracy {row['val_accuracy']:.4f} ({row['seconds']:.0f} s)"
    )


def _row(
    number: int,
    phase: PhaseConfig,
    epoch: int,
    logs: dict[str, list[float]],
    labels: np.ndarray,
    p_real: np.ndarray,
    seconds: float,
) -> dict[str, Any]:
    return {
        "phase": number + 1,
        "train": phase.train,
        "epoch": epoch,
        "loss": float(logs["loss"][-1]),
        "accuracy": float(logs["accuracy"][-1]),
        "val_loss": binary_log_loss(labels, p_real),
        "val_calibrated_loss": loop.calibrated_loss(labels, p_real),
        "val_accuracy": float(np.mean((p_real >= 0.5) == (labels == REAL))),
        "seconds": round(seconds, 1),
    }


def _class_weights(split: Split) -> dict[int, float]:
    counts = np.bincount(labels_of(split.train), minlength=2)
    return {label: float(counts.sum() / (2 * counts[label])) for label in (FAKE, REAL)}


def _is_over(state: TrainingState, number: int, phase: PhaseConfig, patience: int) -> bool:
    losses = _losses(state, number)
    stalled = bool(patience) and len(losses) - int(np.argmin(losses or [0])) > patience
    return stalled or state.epoch >= phase.epochs


def _losses(state: TrainingState, number: int) -> list[float]:
    """Returns the calibrated validation losses of a phase's epochs so far."""
    return epoch_losses([row for row in state.history if row["phase"] == number + 1])


def _variables(model: keras.Model) -> list[Any]:
    """The weights and the random states of dropout, but not the metrics'."""
    return [*model.trainable_variables, *model.non_trainable_variables]


def _assign(variables: Sequence[Any], values: Sequence[np.ndarray]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
