"""What a killed run goes on from: one file, written after every epoch."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from fakereal.errors import DataError
from fakereal.files import write_atomic
from fakereal.runtime import log

_ARRAYS = ("best", "current", "optimizer")


class CheckpointRefused(DataError):
    """The checkpoint is of no use to this run."""


@dataclass
class TrainingState:
    """Where a run stands after a finished epoch; the checkpoint holds it with the arrays below."""

    phase: int = 0  # number of the phase, from 0
    epoch: int = 0  # epochs done in that phase
    views: int = 0  # of each picture in that phase, see `feed.Feed`
    best_loss: float = float("inf")  # lowest calibrated validation loss so far, of this phase's image size
    origin: dict[str, Any] = field(default_factory=dict)  # of the weights that it began with, as `weights.BaseWeights`
    history: list[dict[str, Any]] = field(default_factory=list)  # a row an epoch
    best: list[np.ndarray] = field(default_factory=list)  # the network's weights of the best epoch
    current: list[np.ndarray] = field(default_factory=list)  # the model's variables, random states among them
    optimizer: list[np.ndarray] = field(default_factory=list)


def load_state(checkpoint: Path, identity: str) -> TrainingState | None:
    """Returns where a killed run stood, or None where it left no checkpoint.

    Args:
        checkpoint: the file.
        identity: names the configuration and the data.

    Raises:
        CheckpointRefused: the checkpoint belongs to another run, or is damaged.
    """
    if not checkpoint.exists():
        log(f"no checkpoint at {checkpoint}, so this run starts anew")
        return None
    state = _load(checkpoint, identity)
    log(f"resuming after epoch {state.epoch} of phase {state.phase + 1}")
    return state


def check_views(before: int, now: int) -> None:
    """Refuses to go on with other pictures than a phase began with, as the cache has no room for features, or has now.

    Raises:
        CheckpointRefused: with what to do.
    """
    if before and not now:
        raise CheckpointRefused(
            "--resume: expected room for features in the cache, as when this run began, found too little: raise"
            " data.cache_gb, free some of the disk, or leave out --resume to start anew"
        )
    if now and not before:
        raise CheckpointRefused(
            "--resume: expected a cache too small for features, as when this run began, found room for them: give the"
            " same data.cache_gb, or leave out --resume to start anew"
        )


def save_checkpoint(path: Path, identity: str, state: TrainingState) -> None:
    """Writes the checkpoint whole: a kill leaves the one before or this one."""
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
            f"{path}: expected a checkpoint, found a damaged file or one of another version: delete it to start anew"
        ) from error
    if stored != identity:
        raise CheckpointRefused(
            f"{path}: expected a checkpoint of this configuration and these pictures, found one of another run:"
            " leave out --resume to start anew, or give the same options again"
        )
    return state


# ---- The history of a run for TensorBoard: `tensorboard --logdir models` shows it while the training goes on.

_SHOWN = ("loss", "accuracy", "val_loss", "val_calibrated_loss", "val_accuracy", "seconds")


class TensorBoard:
    """Writes epochs as they come; a run that goes on writes its earlier ones again, so that there is one file."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._writer, self._written = folder, None, 0

    def __call__(self, history: Sequence[dict[str, Any]]) -> None:
        """Writes the rows that are new since the last call; the first one replaces what another run left there."""
        if self._writer is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            for old in self._folder.glob("events.out.tfevents.*"):
                old.unlink()
            self._writer = tf.summary.create_file_writer(str(self._folder))
        with self._writer.as_default():
            for step, row in enumerate(history[self._written :], start=self._written + 1):
                for name in _SHOWN:
                    tf.summary.scalar(name, row[name], step)
        self._writer.flush()
        self._written = len(history)
