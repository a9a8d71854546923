"""The history of a run for TensorBoard: `tensorboard --logdir models` shows it while the training goes on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

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
