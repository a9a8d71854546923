"""Divides a network where its frozen part ends, so that this part is computed once, not once an epoch. Keras 3 only."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import keras
import numpy as np

from fakereal.model import networks


@dataclass(frozen=True)
class Parts:
    """The two parts of a network; they share its layers and weights."""

    frozen: keras.Model  # from pixels to what crosses the boundary
    learning: keras.Model  # from there to p_real

    def fingerprint(self) -> str:
        """Names what the frozen part computes: its weights, and what it makes of one picture of noise here and now.

        The second tells apart what weights alone don't: the layers, the backend, the device, 16 and 32 bits.
        """
        noise = np.random.default_rng(0).integers(0, 256, (1, *self.frozen.input_shape[1:])).astype(np.float32)
        # Called as it is: to compile it for one picture would take longer.
        activations = keras.ops.convert_to_numpy(self.frozen(noise, training=False))
        facts = hashlib.sha256(activations.astype(np.float32).tobytes())
        for weights in self.frozen.get_weights():
            facts.update(np.ascontiguousarray(weights).tobytes())
        return facts.hexdigest()[:32]


def split(model: keras.Model) -> Parts | None:
    """Returns the frozen part and the rest, or None where nothing is frozen.

    Args:
        model: as `networks.build` returns it, with its base in inference mode; `set_trainable` says what learns.
    """
    base = model.get_layer(networks.BASE)
    number = _last_frozen(base.layers)
    if not any(layer.weights and not layer.trainable for layer in base.layers[: number + 1]):
        return None  # at most the scaling of pixels is below, which costs nothing to compute again
    if number == len(base.layers) - 1:
        lower, upper = base, None
    else:
        crossing = base.layers[number].output
        lower, upper = keras.Model(base.inputs, crossing), keras.Model(crossing, base.output)
    at = model.layers.index(base)
    pixels = keras.Input(model.input_shape[1:])
    frozen = keras.Model(pixels, lower(_chain(model.layers[1:at], pixels), training=False))
    crossed = keras.Input(frozen.output_shape[1:], dtype=frozen.output.dtype)
    features = crossed if upper is None else upper(crossed, training=False)
    return Parts(frozen, keras.Model(crossed, _chain(model.layers[at + 1 :], features)))


def _chain(layers: Sequence[keras.Layer], x: keras.KerasTensor) -> keras.KerasTensor:
    for layer in layers:
        x = layer(x)
    return x


def _last_frozen(layers: Sequence[keras.Layer]) -> int:
    """Returns the number of the last layer below all that learns whose output is all that the layers above need."""
    number_of = {id(layer.output): number for number, layer in enumerate(layers)}
    needs = [[number_of[id(x)] for x in keras.tree.flatten(layer.input)] if n else [] for n, layer in enumerate(layers)]
    learning = [number for number, layer in enumerate(layers) if layer.trainable_variables]
    first = learning[0] if learning else len(layers)
    lowest = len(layers)  # the lowest layer that those above the candidate need
    for number in range(len(layers) - 1, 0, -1):
        if number < first and lowest >= number:
            return number
        lowest = min([lowest, *needs[number]])
    return 0
