"""Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391): the regions of an image that are evidence for fake or for real.

One forward pass gives the output and the last convolutional maps; the gradient goes back from the output to those maps
only. It needs the TensorFlow backend, as Keras has no gradient API of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import dropwhile
from typing import Any

import keras
import numpy as np

from fakereal.errors import ConfigError, ModelFileError
from fakereal.model.heatmap import Explanation
from fakereal.model.out_of_distribution import Prototypes, scores
from fakereal.runtime import one_line

_CONVOLUTIONS = (
    keras.layers.Conv2D,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv2D,
)
"""Layers that make maps: whatever comes before the first of them is the image itself."""


class GradCamExplainer:
    """Any network with convolutional maps and a last Dense layer of one unit, however its layers are nested.

    Args:
        model: as `networks.build` or `foreign_network.adapt` returns it.
        prototypes: of the model, for out-of-distribution scores.

    Raises:
        ConfigError: another backend than TensorFlow.
        ModelFileError: a network without convolutional maps, or with another output layer.
    """

    def __init__(self, model: keras.Model, prototypes: Prototypes | None = None) -> None:
        if keras.backend.backend() != "tensorflow":
            raise ConfigError(
                f"explanations: expected the TensorFlow backend, found {keras.backend.backend()}:"
                " run again with KERAS_BACKEND=tensorflow"
            )
        import tensorflow as tf

        self._model, self._output, self._prototypes = model, model.layers[-1], prototypes
        if not isinstance(self._output, keras.layers.Dense) or self._output.units != 1:
            raise ModelFileError(f"the network does not end in a Dense layer of one unit (but in {self._output.name})")
        self._maps = _last_maps_layer(model)
        # One graph for every batch size, traced now: it takes seconds, and must not happen while others predict
        images = tf.TensorSpec([None, *model.input_shape[1:]])
        try:
            self._run = tf.function(self._explain, [images], autograph=False).get_concrete_function()
        except (TypeError, ValueError, KeyError) as error:
            raise ModelFileError(
                f"the network has no gradient from its output to its last maps ({one_line(error)[:120]})"
            ) from error

    def p_real(self, images: np.ndarray) -> np.ndarray:
        """Return the outputs alone, like `Detector.p_real`."""
        return self.explain(images).p_real

    def explain(self, images: np.ndarray) -> Explanation:
        """Return the outputs for uint8 images (n, S, S, 3) and the evidence for each."""
        import tensorflow as tf

        p_real, evidence, features = self._run(tf.constant(images, tf.float32))
        found = scores(np.asarray(features), self._prototypes) if self._prototypes else None
        return Explanation(np.asarray(p_real, np.float64).reshape(-1), np.asarray(evidence, np.float32), found)

    def _explain(self, images):
        import tensorflow as tf

        maps, features = [], []
        with tf.GradientTape(watch_accessed_variables=False) as tape:

            def watch(inputs, output):
                tape.watch(output)
                maps.append(output)

            with (
                _observed(self._maps, watch),
                _observed(self._output, lambda inputs, output: features.append(inputs)),
            ):
                p_real = self._model(images, training=False)
            # Before the sigmoid, whose gradient vanishes for confident outputs. The logit is the score of real, and its
            # negative that of fake, so one gradient explains both. An image's logit depends on no other image.
            logit = keras.ops.matmul(features[-1], self._output.kernel) + self._output.bias
        gradient = tape.gradient(logit, maps[-1])
        if gradient is None:
            raise ValueError("the output does not depend on the last maps")
        weights = tf.reduce_mean(gradient, axis=(1, 2), keepdims=True)
        return p_real, tf.cast(tf.reduce_sum(weights * maps[-1], axis=-1), tf.float32), features[-1]


@contextmanager
def _observed(layer: keras.Layer, observe: Callable[[Any, Any], None]) -> Iterator[None]:
    """Show a function the inputs and the output of each call of a layer.

    Cutting a network at a layer would do the same, but Keras can't cut inside a nested model or a Sequential.
    """
    call = layer.call

    def observed_call(inputs, *args, **kwargs):
        output = call(inputs, *args, **kwargs)
        observe(inputs, output)
        return output

    layer.call = observed_call
    try:
        yield
    finally:
        del layer.call


def _last_maps_layer(model: keras.Model) -> keras.Layer:
    """Return the last layer, in nested models too, whose output is an image-like map of more than one pixel."""
    for layer in reversed(list(dropwhile(lambda layer: not isinstance(layer, _CONVOLUTIONS), _leaves(model)))):
        shape = getattr(layer.output, "shape", ())
        if len(shape) == 4 and shape[1:3] != (1, 1):
            return layer
    raise ModelFileError("the network has no convolutional layers, which heatmaps are made from")


def _leaves(model: keras.Model) -> Iterator[keras.Layer]:
    """Yield the layers of a model and of those nested in it, in the order of their calls, without the inputs."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _leaves(layer)
        elif not isinstance(layer, keras.layers.InputLayer):
            yield layer
