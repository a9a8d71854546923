"""Train a network in phases, each from the best weights of the one before, with a checkpoint after every epoch.

Keras 3 only, so that every backend trains the very same model; the batches come from the input pipeline.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import keras
import numpy as np

from fakereal import runtime
from fakereal.config import Config, PhaseConfig, TrainingConfig, TrainScope
from fakereal.dataset.neutralize import preprocessing_of
from fakereal.dataset.scan import labels_of
from fakereal.dataset.split import Split
from fakereal.errors import FakeRealError
from fakereal.labels import FAKE, REAL
from fakereal.model import networks
from fakereal.model.metrics import binary_log_loss, epoch_losses
from fakereal.model.weights import BaseWeights
from fakereal.runtime import log, one_line, progress_bar
from fakereal.training import fine_tuning, loop
from fakereal.training.cache import RowCache
from fakereal.training.checkpoint import (
    START_OVER,
    CheckpointRefused,
    CheckpointWriter,
    TrainingState,
    check_versions,
    save_checkpoint,
)
from fakereal.training.distributed import DistributedContext, several_devices
from fakereal.training.features import BatchSource, FeatureCost, choose_batch_source
from fakereal.training.fine_tuning import FineTuning, PhaseCost
from fakereal.training.input_pipeline import EpochSampler

History = Sequence[dict[str, Any]]
"""One row per epoch: phase, train, epoch, loss, accuracy, val_loss, val_calibrated_loss, val_accuracy, seconds."""

Execute = Callable[["Run", Callable[..., None]], None]
"""Something that does in other processes what `run_phases` does in this one."""

_STEPS_AT_ONCE = 16
"""Batches of cached features that Keras trains a head on in one call; with one each, calls take half of the time."""

_FINE_TUNE_WARMUP = 0.1
"""Share of the steps over which the rate rises where all layers of a pre-trained backbone are fine-tuned."""


@dataclass(frozen=True)
class TrainedNetwork:
    """A trained network and how it came about."""

    model: keras.Model  # for prediction, at the size of the configuration, with the best weights
    origin: BaseWeights  # of the base's initial weights
    history: tuple[dict[str, Any], ...]
    interrupted: bool  # True where Ctrl-C ended it early
    diverged: bool  # True where a loss that is not finite ended it
    source: BatchSource  # the fastest way to its outputs
    training: TrainingConfig  # as given, with what `fine_tune: auto` decided: it repeats the run without a clock
    fine_tuning: FineTuning | None  # that decision; None: there was nothing to decide, or it was not reached
    features_s: float  # seconds of the epochs that were spent on features


class DivergedError(FakeRealError):
    """The loss is not finite any more."""


def phases(training: TrainingConfig, origin: BaseWeights) -> tuple[PhaseConfig, ...]:
    """Return the list of phases: the configuration's own, or the one that `epochs` and `fine_tune` stand for.

    A pre-trained base is first kept frozen while the head is trained, then fine-tuned at a lower rate; with `auto` the
    second phase is still to be decided. In a base of random weights there is nothing to keep, so head and base are
    trained together from the start.
    """
    scope = training.fine_tune
    if training.phases:
        chosen = training.phases
    elif origin.pretrained or scope == "none":
        chosen = (PhaseConfig("head", training.epochs, training.learning_rate),)
        if scope not in ("auto", "none"):
            chosen += (_fine_tuning(training, scope),)
    else:
        chosen = (PhaseConfig("all" if scope == "auto" else scope, training.epochs, training.learning_rate),)
    auto = "frozen" if origin.pretrained else "learned"
    return tuple(
        replace(
            phase,
            batch_size=phase.batch_size or training.batch_size,
            batch_norm=auto if phase.batch_norm == "auto" else phase.batch_norm,
            schedule=phase.schedule or training.schedule,
            warmup=training.warmup if phase.warmup is None else phase.warmup,
        )
        for phase in chosen
    )


def _fine_tuning(training: TrainingConfig, scope: TrainScope) -> PhaseConfig:
    """Return the second phase; all layers bear a higher rate than the last ones alone where it falls to 0.

    It rises first: a full first step has left a network whose outputs were the same for most images (benchmarks.md).
    """
    rate = training.fine_tune_learning_rate or (3e-4 if scope == "all" else 1e-4)
    if scope == "all" and training.schedule != "plateau":
        warmup = training.warmup or _FINE_TUNE_WARMUP
        return PhaseConfig(scope, training.fine_tune_epochs, rate, schedule="cosine", warmup=warmup)
    return PhaseConfig(scope, training.fine_tune_epochs, rate)


def is_frozen(training: TrainingConfig, origin: BaseWeights) -> bool:
    """Return whether the base stays as it is in all phases."""
    return {phase.train for phase in phases(training, origin)} == {"head"}


def train(
    model: keras.Model,
    config: Config,
    origin: BaseWeights,
    split: Split,
    cache: RowCache,
    checkpoint: Path,
    identity: str,
    state: TrainingState | None = None,
    on_epoch_end: Callable[[History], None] = lambda history: None,
    execute: Execute | None = None,
) -> TrainedNetwork:
    """Train a network, phase by phase; after Ctrl-C the best weights so far are the result.

    Args:
        model: as `networks.build` made it, with the base's weights.
        config: the whole configuration.
        origin: where those weights come from.
        split: what the network is trained on, and what the best epoch is chosen by.
        cache: where decoded images and features of the frozen part are kept.
        checkpoint: the file that a killed run is resumed from; written after every epoch.
        identity: names the configuration and the data; the checkpoint carries it.
        state: of a killed run, from `checkpoint.load_state`; None starts from the first epoch.
        on_epoch_end: is called with the history after every epoch.
        execute: where the phases are run; None: in this process, by `run_phases`.

    Raises:
        DivergedError: the loss is not finite in the first epoch already.
        KeyboardInterrupt: before the first epoch was done, or pressed twice.
    """
    state = state or TrainingState(best=model.get_weights(), origin=asdict(origin))
    split = replace(split, val=loop.sample_validation(split.val, config.training, config.seed))
    here = {} if execute else {"devices": several_devices(), "model": model}
    run = Run(config, origin, split, cache, state, **here)
    if state.history:
        on_epoch_end(state.history)

    writer = CheckpointWriter(partial(save_checkpoint, checkpoint, identity))

    def keep(always: bool = False) -> None:
        writer.write(state, always)
        on_epoch_end(state.history)

    ended_by: type[BaseException] | None = None  # not the error, which would keep all that it passed through alive
    try:
        (execute or run_phases)(run, keep)
        runtime.check_interrupt()  # pressed after the last epoch, it must not end the measuring
    except (KeyboardInterrupt, DivergedError) as error:
        pressed_twice = isinstance(error, KeyboardInterrupt) and runtime.interrupt_requested()
        if pressed_twice or not state.history:
            raise
        log(one_line(error) if isinstance(error, DivergedError) else "interrupted")
        log("the best model so far is kept, measured and saved")
        ended_by = type(error)
    model.set_weights(state.best)
    networks.set_trainable(model, run.plan[-1].train, learn_batch_norm=False)
    # A source on one device, whose features the last phase may have computed already.
    source = run.head_source if len(run.plan) == 1 else None
    if not (source and source.augmented_versions):
        source = _batch_source(model, replace(run, devices=None), config.image_size)
    interrupted, diverged = (ended_by is kind for kind in (KeyboardInterrupt, DivergedError))
    decided = fine_tuning.decision(state.fine_tuning)
    return TrainedNetwork(
        model, origin, tuple(state.history), interrupted, diverged, source, run.training, decided, run.features.seconds
    )


@dataclass(frozen=True)
class Run:
    """What all phases share."""

    config: Config
    origin: BaseWeights
    split: Split
    cache: RowCache
    state: TrainingState
    devices: DistributedContext | None = None  # None: there is only one
    model: keras.Model | None = None  # for prediction; None where other processes train
    features: FeatureCost = field(default_factory=FeatureCost)  # of all phases

    @cached_property
    def head_source(self) -> BatchSource | None:
        """Batches for the head of `model` itself, in the first phase; None for another size, precision or device.

        They are images where the features are not cached: the phase then needs a network of its own, since a base that
        takes part in the training needs some changes (`_stop_random_depth`).
        """
        phase, size_px = self.plan[0], self.config.image_size
        as_it_is = phase.train == "head" and phase.image_size in (None, size_px)
        if not as_it_is or self.model is None or self.devices or self.config.training.mixed_precision:
            return None
        networks.set_trainable(self.model, phase.train, learn_batch_norm=False)
        return _batch_source(self.model, self, size_px)

    @property
    def training(self) -> TrainingConfig:
        """The configuration's, with what `fine_tune: auto` has decided."""
        decided = fine_tuning.decision(self.state.fine_tuning)
        return fine_tuning.resolved(self.config.training, decided) if decided else self.config.training

    @property
    def plan(self) -> tuple[PhaseConfig, ...]:
        """All phases that are decided."""
        return phases(self.training, self.origin)

    def agreed(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return the same values in all processes: clocks differ, and rounding on processors of several kinds."""
        return self.devices.from_first(values) if self.devices else values

    @property
    def is_undecided(self) -> bool:
        """True where `fine_tune: auto` has a choice and has not made it."""
        training = self.training
        return training.fine_tune == "auto" and self.origin.pretrained and not training.phases


def run_phases(run: Run, on_epoch_end: Callable[..., None]) -> None:
    """Train phase by phase from `run.state`, and bring it up to date.

    Args:
        run: what to train.
        on_epoch_end: is called after every epoch; with `always=True` where the checkpoint must be written.

    Raises:
        DivergedError: the loss is not finite; the state is that of the epoch before.
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    number = run.state.phase
    while number < len(run.plan):
        _run_phase(run, number, on_epoch_end)
        number += 1
        if number == len(run.plan) and run.is_undecided:
            run.state.fine_tuning = asdict(_decide_fine_tuning(run))
            on_epoch_end(always=True)  # from now on the checkpoint holds the decision


def _decide_fine_tuning(run: Run) -> FineTuning:
    """Decide by the clock which layers are fine-tuned, after the head."""
    training = run.training
    spent_s = sum(row["seconds"] for row in run.state.history)
    log("measuring how long fine-tuning takes")
    return fine_tuning.choose(
        lambda scope: _phase_cost(run, replace(training, fine_tune=scope)),
        training.fine_tune_epochs,
        60 * training.time_limit_minutes - spent_s,
    )


def _phase_cost(run: Run, training: TrainingConfig) -> PhaseCost:
    """Time some steps of the second phase, with a network that is thrown away."""
    phase = phases(training, run.origin)[-1]
    with run.devices.scope() if run.devices else nullcontext():
        _, source = _prepare(run, phase, run.config.image_size)
        cost = fine_tuning.measure(source, run.split, phase, run.config.seed)
    _add_features(run, source)
    return PhaseCost(**run.agreed(asdict(cost)))


def _add_features(run: Run, source: BatchSource) -> None:
    run.features.images += source.cost.images
    run.features.seconds += source.cost.seconds


def _prepare(
    run: Run, phase: PhaseConfig, size_px: int, images: BatchSource | None = None
) -> tuple[keras.Model, BatchSource]:
    """Return the network as a phase trains it, and its batches (`images`, where given), whose model is compiled."""
    model, twin = _phase_network(run, phase, size_px), None
    if run.devices and run.devices.processes > 1:
        with run.devices.left():
            twin = _phase_network(run, phase, size_px)
    source = images or _batch_source(model, run, size_px, _learns_batch_norm(phase), twin)
    if images:
        images.model = model
    _compile(source.model, run, phase)
    return model, source


def _run_phase(run: Run, number: int, on_epoch_end: Callable[[], None]) -> None:
    plan, patience = run.plan, run.config.training.patience
    phase = plan[number]
    size_px = phase.image_size or run.config.image_size
    before_px = (plan[number - 1].image_size if number else None) or run.config.image_size
    with run.devices.scope() if run.devices else nullcontext():
        first = run.head_source if number == 0 else None
        if first and first.augmented_versions:
            model, source = run.model, first
            model.set_weights(run.state.best)
            _compile(source.model, run, phase, _STEPS_AT_ONCE)
        else:
            model, source = _prepare(run, phase, size_px, images=first)
        if run.state.phase != number:
            _begin_phase(run.state, number, same_size=size_px == before_px)
        elif run.state.current and not _is_over(run.state, number, phase, patience):
            _restore(run.state, source)
        run.state.augmented_versions = source.augmented_versions
        while not _is_over(run.state, number, phase, patience):
            _run_epoch(run, model, source, phase, number)
            on_epoch_end()
            if note := source.progress_note(run.state.epoch, phase.epochs):
                log(note)
    _add_features(run, source)


def _phase_network(run: Run, phase: PhaseConfig, size_px: int) -> keras.Model:
    """Build the network as this phase trains it, from the best weights so far."""
    config, learn_batch_norm = run.config, _learns_batch_norm(phase)
    keras.utils.set_random_seed(config.seed)
    keras.config.set_dtype_policy("mixed_bfloat16" if config.training.mixed_precision else "float32")
    model = networks.build(config.network, size_px, learn_batch_norm)
    keras.config.set_dtype_policy("float32")
    model.set_weights(run.state.best)
    networks.set_trainable(model, phase.train, learn_batch_norm)
    if not learn_batch_norm:
        _stop_random_depth(model)
    return model


def _learns_batch_norm(phase: PhaseConfig) -> bool:
    return phase.batch_norm == "learned" and phase.train != "head"


def _stop_random_depth(model: keras.Model) -> None:
    """Keep a base in inference mode: Keras 3 hands training=True down to it, although `networks.build` said False."""
    for layer in model.get_layer(networks.BASE).layers:
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0


def _batch_source(
    model: keras.Model, run: Run, size_px: int, learn_batch_norm: bool = False, twin: keras.Model | None = None
) -> BatchSource:
    split = run.split
    count = len(split.train) + len(split.val) + len(split.test)
    preprocessing = preprocessing_of(run.config, size_px)
    all_of = run.devices.all_of if run.devices else bool
    source = choose_batch_source(model, run.config, preprocessing, run.cache, count, learn_batch_norm, twin, all_of)
    return run.devices.divide(source) if run.devices else source


def _compile(model: keras.Model, run: Run, phase: PhaseConfig, steps_at_once: int = 1) -> None:
    training = replace(run.config.training, schedule=phase.schedule, warmup=phase.warmup)
    model.compile(
        optimizer=loop.build_optimizer(training, phase.learning_rate, _steps(run, phase) * phase.epochs),
        loss=keras.losses.BinaryCrossentropy(label_smoothing=training.label_smoothing),
        metrics=["accuracy"],
        steps_per_execution=steps_at_once,
    )


def _steps(run: Run, phase: PhaseConfig) -> int:
    """Return the number of batches of an epoch."""
    images = len(run.split.train)
    return -(-min(phase.images_per_epoch or images, images) // phase.batch_size)


def _begin_phase(state: TrainingState, number: int, same_size: bool) -> None:
    """Losses at another image size can't be compared; at the same one, the phase before has to be beaten."""
    if not same_size:
        state.best_loss = float("inf")
    state.phase, state.epoch, state.current, state.optimizer = number, 0, [], []


def _restore(state: TrainingState, source: BatchSource) -> None:
    check_versions(state.augmented_versions, source.augmented_versions)
    optimizer = source.model.optimizer
    optimizer.build(source.model.trainable_variables)
    variables = _variables(source.model)
    if len(variables) != len(state.current):
        raise CheckpointRefused(f"--resume: expected a checkpoint of this version, found another one's: {START_OVER}")
    _assign(variables, state.current)
    _assign(optimizer.variables, state.optimizer)


def _run_epoch(run: Run, model: keras.Model, source: BatchSource, phase: PhaseConfig, number: int) -> None:
    """Train one epoch, validate it, and bring the state up to date."""
    started, state = time.monotonic(), run.state
    title = f"{phase.train} {model.input_shape[1]} px, epoch {state.epoch + 1}/{phase.epochs}"
    logs, last_weights = _fit_epoch(run, model, source, phase, number, title)
    p_real = source.predict(run.split.val, phase.batch_size)
    row = {"phase": number + 1, "train": phase.train, "epoch": state.epoch + 1}
    row |= _losses(logs, labels_of(run.split.val), p_real) | {"seconds": round(time.monotonic() - started, 1)}
    row = run.agreed(row)
    if not np.isfinite(row["loss"] + row["val_loss"]):
        raise DivergedError(f"{title}: the loss is not finite, as the weights diverged: lower --learning-rate")
    if row["val_calibrated_loss"] < state.best_loss:
        state.best_loss, state.best = row["val_calibrated_loss"], _weights(model, source, state.best)
    _assign(model.trainable_variables, last_weights)
    state.epoch += 1
    state.history.append(row)
    state.current = [np.asarray(variable) for variable in _variables(source.model)]
    state.optimizer = [np.asarray(variable) for variable in source.model.optimizer.variables]
    log(
        f"{title}: loss {row['loss']:.4f} accuracy {row['accuracy']:.4f}"
        f" | validation loss {row['val_loss']:.4f} accuracy {row['val_accuracy']:.4f} ({row['seconds']:.0f} s)"
    )


def _fit_epoch(
    run: Run, model: keras.Model, source: BatchSource, phase: PhaseConfig, number: int, title: str
) -> tuple[dict[str, list[float]], list[np.ndarray]]:
    """Return Keras' history, and the weights of the last step.

    Where the configuration averages weights, Keras ends `fit` with the average in the model: that is what is validated
    and kept, while the next epoch continues from the last step.
    """
    config, state = run.config, run.state
    training = replace(config.training, schedule=phase.schedule)
    sampler = EpochSampler(config.seed, number, state.epoch, phase.images_per_epoch, training.source_balance)
    if training.schedule == "plateau":
        losses = epoch_losses(_of_phase(state, number))
        source.model.optimizer.learning_rate = loop.plateau_rate(losses, phase.learning_rate, training)
    class_weights = _class_weights(run.split) if training.class_weights else None
    last_weights: list[np.ndarray] = []
    steps, at_once = _steps(run, phase), source.model.steps_per_execution
    with progress_bar(title, steps) as advance:
        callback = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: advance(at_once if batch < steps else steps % at_once),
            on_epoch_end=lambda epoch, logs: last_weights.extend(map(np.asarray, model.trainable_variables)),
        )
        logs = source.fit(run.split.train, sampler, phase.batch_size, class_weights, [callback])
    return logs, last_weights


def _losses(logs: dict[str, list[float]], labels: np.ndarray, p_real: np.ndarray) -> dict[str, float]:
    return {
        "loss": float(logs["loss"][-1]),
        "accuracy": float(logs["accuracy"][-1]),
        "val_loss": binary_log_loss(labels, p_real),
        "val_calibrated_loss": loop.calibrated_loss(labels, p_real),
        "val_accuracy": float(np.mean((p_real >= 0.5) == (labels == REAL))),
    }


def _class_weights(split: Split) -> dict[int, float]:
    counts = np.bincount(labels_of(split.train), minlength=2)
    return {label: float(counts.sum() / (2 * counts[label])) for label in (FAKE, REAL)}


def _is_over(state: TrainingState, number: int, phase: PhaseConfig, patience: int) -> bool:
    losses = epoch_losses(_of_phase(state, number))
    stalled = bool(patience) and len(losses) - int(np.argmin(losses or [0])) > patience
    return stalled or state.epoch >= phase.epochs


def _of_phase(state: TrainingState, number: int) -> History:
    return [row for row in state.history if row["phase"] == number + 1]


def _variables(model: keras.Model) -> list[Any]:
    """Return the weights and the random states of dropout, but not the metrics' variables."""
    return [*model.trainable_variables, *model.non_trainable_variables]


def _weights(model: keras.Model, source: BatchSource, before: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return a network's weights; those below what `source` trains are still the ones before."""
    trained = {id(variable) for variable in source.model.weights}
    pairs = zip(model.weights, before, strict=True)
    return [np.asarray(variable) if id(variable) in trained else value for variable, value in pairs]


def _assign(variables: Sequence[Any], values: Sequence[np.ndarray]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
