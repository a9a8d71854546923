"""Keras' own loops over batches, as everything here runs them: silent, and after Ctrl-C ended between two batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from fakereal import interrupts


class _StopWhenPressed(keras.callbacks.Callback):
    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if interrupts.pressed():  # on JAX, asking for the model moves all its variables
            self.model.stop_training = True

    def on_predict_batch_end(self, batch: int, logs: Any = None) -> None:
        if interrupts.pressed():
            self.model.stop_predicting = True


def fit(model: keras.Model, examples: dict[str, Any], callbacks: Sequence[keras.callbacks.Callback] = ()) -> Any:
    """Trains one epoch on `examples`, `fit`'s own arguments, in their order; returns Keras' history of it.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; the weights are those after some batch.
    """
    interrupts.check()
    fitted = model.fit(**examples, verbose=0, callbacks=[*callbacks, _StopWhenPressed()], shuffle=False)
    interrupts.check()
    return fitted.history


def predict(model: keras.Model, batches: Any) -> np.ndarray:
    """Returns p_real of every picture of a feed's or the pipeline's plain batches: float64 (n,).

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    interrupts.check()
    outputs = model.predict(batches, verbose=0, callbacks=[_StopWhenPressed()])
    interrupts.check()
    return np.asarray(outputs, dtype=np.float64).reshape(-1)
