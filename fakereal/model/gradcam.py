"""Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391): the regions of an image that are evidence for fake or for real.

One forward pass gives the output and the last convolutional maps; the gradient goes back from the output to those maps
only. It needs the TensorFlow backend, as Keras has no gradient API of its own.
"""

from __future__ import annotations

import keras
import numpy as np

from fakereal.errors import ConfigError, ModelFileError
from fakereal.model.heatmap import Explanation
from fakereal.model.networks import BASE


class GradCamExplainer:
    """A network split at its last convolutional maps: one pass through the front, the gradient through the tail only.

    Args:
        model: as `networks.build` returns it, or any functional model that ends in a Dense layer of one unit.

    Raises:
        ConfigError: another backend than TensorFlow.
        ModelFileError: a network without convolutional maps, or with another output layer.
    """

    def __init__(self, model: keras.Model) -> None:
        if keras.backend.backend() != "tensorflow":
            raise ConfigError(
                f"explanations: expected the TensorFlow backend, found {keras.backend.backend()}:"
                " run again with KERAS_BACKEND=tensorflow"
            )
        import tensorflow as tf

        self._output = model.layers[-1]
        if not isinstance(self._output, keras.layers.Dense) or self._output.units != 1:
            raise ModelFileError(
                f"explanations: expected a network that ends in a Dense layer of one unit, found {self._output.name}"
            )
        self._front, self._tail = _split(model)
        # One graph for every batch size: tracing takes seconds
        self._run = tf.function(self._explain, input_signature=[tf.TensorSpec([None, *model.input_shape[1:]])])

    def p_real(self, images: np.ndarray) -> np.ndarray:
        """Return the outputs alone, like `Detector.p_real`."""
        return self.explain(images).p_real

    def explain(self, images: np.ndarray) -> Explanation:
        """Return the outputs for uint8 images (n, S, S, 3) and the evidence for each."""
        p_real, evidence = self._run(images.astype(np.float32))
        return Explanation(np.asarray(p_real, np.float64).reshape(-1), np.asarray(evidence, np.float32))

    def _explain(self, images):
        import tensorflow as tf

        maps = self._front(images, training=False)
        with tf.GradientTape() as tape:
            tape.watch(maps)
            features = self._tail(maps, training=False)
            # Before the sigmoid, whose gradient vanishes for confident outputs. The logit is the score of real, and its
            # negative that of fake, so one gradient explains both. An image's logit depends on no other image.
            logit = keras.ops.matmul(features, self._output.kernel) + self._output.bias
        weights = tf.reduce_mean(tape.gradient(logit, maps), axis=(1, 2), keepdims=True)
        return self._output(features), tf.reduce_sum(weights * maps, axis=-1)


def _split(model: keras.Model) -> tuple[keras.Model, keras.Model]:
    """Return the network up to its last convolutional maps, and from there to the input of its last layer."""
    names = [layer.name for layer in model.layers]
    if BASE not in names:  # a network of another program, without a nested base
        maps = _last_maps(model)
        return keras.Model(model.inputs, maps), keras.Model(maps, model.layers[-1].input)
    place = names.index(BASE)
    base = model.layers[place]
    maps = _last_maps(base)
    pixels, tail_input = keras.Input(model.input_shape[1:]), keras.Input(maps.shape[1:])
    front = _layer_chain([*model.layers[1:place], keras.Model(base.inputs, maps)], pixels)
    tail = _layer_chain([keras.Model(maps, base.output), *model.layers[place + 1 : -1]], tail_input)
    return keras.Model(pixels, front), keras.Model(tail_input, tail)


def _last_maps(model: keras.Model) -> keras.KerasTensor:
    for layer in reversed(model.layers):
        if not isinstance(layer, keras.layers.InputLayer) and len(getattr(layer.output, "shape", ())) == 4:
            return layer.output
    raise ModelFileError(f"explanations: expected a network with convolutional maps, found none in {model.name}")


def _layer_chain(layers: list[keras.Layer], x: keras.KerasTensor) -> keras.KerasTensor:
    for layer in layers:
        x = layer(x, training=False) if isinstance(layer, keras.Model) else layer(x)
    return x
