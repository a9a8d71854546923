"""The state of a run after each epoch: a checkpoint that --resume continues from, and a history for TensorBoard."""

from __future__ import annotations

import io
import json
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fakereal.errors import DataError
from fakereal.files import write_atomic
from fakereal.runtime import log

START_OVER = "leave out --resume to start over"
"""The advice for a refused checkpoint; a comparison follows it by itself."""

_ARRAYS = ("best", "current", "optimizer")
_SCALARS = ("loss", "accuracy", "val_loss", "val_calibrated_loss", "val_accuracy", "seconds")  # for TensorBoard


class CheckpointRefused(DataError):
    """The checkpoint is of no use to this run."""


@dataclass
class TrainingState:
    """The state of a run after a finished epoch."""

    phase: int = 0  # number of the phase, from 0
    epoch: int = 0  # finished epochs of that phase
    augmented_versions: int = 0  # of each image in that phase, see `features.BatchSource`
    best_loss: float = float("inf")  # lowest calibrated validation loss so far, of this phase's image size
    origin: dict[str, Any] = field(default_factory=dict)  # of the initial weights, as `weights.BaseWeights`
    fine_tuning: dict[str, Any] = field(default_factory=dict)  # what `auto` decided, as `fine_tuning.FineTuning`
    history: list[dict[str, Any]] = field(default_factory=list)  # one row per epoch
    best: list[np.ndarray] = field(default_factory=list)  # the network's weights of the best epoch
    current: list[np.ndarray] = field(default_factory=list)  # variables of the part that is trained, random states too
    optimizer: list[np.ndarray] = field(default_factory=list)


def load_state(checkpoint: Path, identity: str) -> TrainingState | None:
    """Return the state of a killed run, or None where it left no checkpoint.

    Args:
        checkpoint: the file.
        identity: names the configuration and the data.

    Raises:
        CheckpointRefused: the checkpoint belongs to another run, or is damaged.
    """
    if not checkpoint.exists():
        log(f"no checkpoint at {checkpoint}: starting from the first epoch")
        return None
    state = _load(checkpoint, identity)
    best = min((row.get("val_calibrated_loss", row["val_loss"]) for row in state.history), default=float("nan"))
    log(
        f"resuming after epoch {state.epoch} of phase {state.phase + 1}: {len(state.history)} epochs are done, lowest"
        f" validation loss {best:.4f}, weights: {state.origin.get('description', 'unknown')} ({checkpoint})"
    )
    return state


def check_versions(before: int, now: int) -> None:
    """Refuse to resume a phase with cached features that began without them, or the other way round.

    Raises:
        CheckpointRefused: with what to do.
    """
    if before and not now:
        raise CheckpointRefused(
            "--resume: this run began with cached features, for which the cache has no more room: raise data.cache_gb,"
            f" free disk space, or {START_OVER}"
        )
    if now and not before:
        raise CheckpointRefused(
            "--resume: this run began with a cache too small for features, which has room for them now: give the same"
            f" data.cache_gb, or {START_OVER}"
        )


class CheckpointWriter:
    """Saves a run's states: after each epoch, or less often where saving takes longer than the epochs do."""

    def __init__(self, save: Callable[[TrainingState], None]) -> None:
        self._save, self._next = save, 0.0

    def write(self, state: TrainingState, always: bool = False) -> None:
        """Save the state, unless that would take more than a tenth of the time and `always` is False."""
        started = time.monotonic()
        if always or started >= self._next:
            self._save(state)
            ended = time.monotonic()
            self._next = ended + 9 * (ended - started)


def save_checkpoint(path: Path, identity: str, state: TrainingState) -> None:
    """Write the checkpoint; a kill leaves the one before or this one."""
    text = json.dumps(
        {"identity": identity, **{key: value for key, value in vars(state).items() if key not in _ARRAYS}}
    )
    arrays = {f"{name}_{n:04d}": value for name in _ARRAYS for n, value in enumerate(getattr(state, name))}
    buffer = io.BytesIO()
    np.savez(buffer, state=np.array(text), **arrays)
    write_atomic(path, buffer.getvalue())


def _load(path: Path, identity: str) -> TrainingState:
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            tree = json.loads(str(file["state"]))
            arrays = {name: [file[key] for key in sorted(file.files) if key.startswith(f"{name}_")] for name in _ARRAYS}
            stored = tree.pop("identity")
            state = TrainingState(**tree, **arrays)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointRefused(
            f"{path}: expected a checkpoint, found a damaged file or one of another version: {START_OVER}"
        ) from error
    if stored != identity:
        raise CheckpointRefused(
            f"{path}: expected a checkpoint of this configuration and these images, found one of another run:"
            f" give the same options again, or {START_OVER}"
        )
    return state


class TensorBoard:
    """Writes the history of a run for TensorBoard: `tensorboard --logdir models` shows it during the training."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._writer, self._written = folder, None, 0

    def __call__(self, history: Sequence[dict[str, Any]]) -> None:
        """Write the rows that are new since the last call.

        The first call replaces what another run left there: a resumed run writes its earlier epochs again, so that
        there is one file.
        """
        import tensorflow as tf  # a run without TensorBoard doesn't need it here

        if self._writer is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            for old in self._folder.glob("events.out.tfevents.*"):
                old.unlink()
            self._writer = tf.summary.create_file_writer(str(self._folder))
        with self._writer.as_default():
            for step, row in enumerate(history[self._written :], start=self._written + 1):
                for name in _SCALARS:
                    tf.summary.scalar(name, row[name], step)
        self._writer.flush()
        self._written = len(history)
