"""Load a Keras network of another program without running its code, and adapt it to our pixels and p_real."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

from fakereal.errors import ModelFileError
from fakereal.labels import FAKE, REAL
from fakereal.model.foreign import SCALES, ForeignModel, check_architecture
from fakereal.model.networks import OUTPUT
from fakereal.runtime import capture_output, one_line

_LUMA = (0.299, 0.587, 0.114)  # of R, G and B in gray, as Pillow and TensorFlow convert


class _DepthwiseConv2D(layers.DepthwiseConv2D):
    """What Keras 2 called by this name: its files say `groups: 1`, which Keras 3 doesn't know."""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> layers.DepthwiseConv2D:
        return layers.DepthwiseConv2D.from_config({key: config[key] for key in config if key != "groups"})


def load(path: Path) -> keras.Model:
    """Return the network in a Keras file, of Keras 2 or 3; only Keras' own layers are allowed.

    Raises:
        ModelFileError: damaged, or not a network of Keras' own layers; one line, the reason first.
    """
    custom = {"DepthwiseConv2D": _DepthwiseConv2D} if path.suffix == ".h5" else None
    try:
        check_architecture(path)
        with capture_output(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return keras.models.load_model(path, custom_objects=custom, compile=False, safe_mode=True)
    except ModelFileError:
        raise
    except Exception as error:  # Keras raises whatever it likes
        raise ModelFileError(f"{path}: Keras {keras.__version__} can't load this model ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    """Return the innermost reason of an error of Keras, whose text holds the configuration of whole models."""
    text = str(error).rpartition("Exception encountered: ")[2]
    if unknown := re.search(r"Unknown layer: '([^']+)'", text):
        return (
            f"{unknown[1]} is none of Keras' own layers: if it is an operation such as x / 255, which .h5 files can't"
            " hold, save the model as .keras; if it is a custom layer, build the model without it"
        )
    return one_line(text.strip().partition("\n")[0])[:200] or type(error).__name__


def adapt(model: keras.Model, foreign: ForeignModel, path: Path) -> keras.Model:
    """Return a network from RGB images (n, S, S, 3), 0..255, to p_real (n, 1), around a foreign one.

    A final sigmoid or softmax of the foreign network becomes a sigmoid of the new last layer, with the same result:
    the explanation of an output needs the logit.

    Args:
        model: the foreign network; its last activation may be changed.
        foreign: what its pixels and outputs mean.
        path: its file, for messages.

    Raises:
        ModelFileError: its inputs or outputs don't fit; the message names the option that may help.
    """
    size_px, channels = _input_size(model, foreign, path)
    _check_outputs(model, foreign, path)
    pixels = keras.Input((size_px, size_px, 3), name="pixels")
    x = pixels
    if channels == 1:
        x = _fixed(layers.Dense(1, use_bias=False, name="gray"), x, np.reshape(_LUMA, (3, 1)))
    if foreign.scale != "0-255":
        x = layers.Rescaling(*SCALES[foreign.scale], name="foreign_scale")(x)
    logits = _strip_activation(model, foreign)
    x = layers.Reshape((len(foreign.classes),), name="foreign_output")(model(x, training=False))
    return keras.Model(pixels, _p_real(x, foreign, logits), name="foreign")


def _fixed(layer: layers.Layer, x: keras.KerasTensor, *weights: np.ndarray) -> keras.KerasTensor:
    """Call a new layer and give it its weights."""
    output = layer(x)
    layer.set_weights([np.asarray(each, np.float32) for each in weights])
    return output


def _input_size(model: keras.Model, foreign: ForeignModel, path: Path) -> tuple[int, int]:
    """Return width and channels of the images that a network takes."""
    if len(model.inputs) != 1 or len(model.inputs[0].shape) != 4 or model.inputs[0].shape[3] not in (1, 3):
        found = ", ".join(str(tuple(each.shape)) for each in model.inputs)
        raise ModelFileError(f"{path}: expected a network that takes images of shape (S, S, 3), found inputs {found}")
    _, height, width, channels = model.inputs[0].shape
    given = foreign.size_px
    size_px = height or width or given
    if size_px is None:
        raise ModelFileError(f"{path}: takes images of any size: add --foreign-size PX, the size it was trained on")
    if {height, width, given} - {None, size_px}:
        wanted = f" and --foreign-size {given}" if given else ""
        raise ModelFileError(f"{path}: expected square images of one size, found {width}x{height} pixels{wanted}")
    if keras.backend.is_int_dtype(model.inputs[0].dtype) and foreign.scale != "0-255":
        raise ModelFileError(f"{path}: takes whole numbers ({model.inputs[0].dtype}): use --foreign-scale 0-255")
    return size_px, channels


def _check_outputs(model: keras.Model, foreign: ForeignModel, path: Path) -> None:
    """Check that the outputs can be what the user says: as many values, and no logit where a probability is named."""
    if len(model.outputs) != 1 or None in model.outputs[0].shape[1:]:
        found = ", ".join(str(tuple(each.shape)) for each in model.outputs)
        raise ModelFileError(f"{path}: expected a network with one output, found {found}")
    count = int(np.prod(model.outputs[0].shape[1:]))
    if count != len(foreign.classes):
        advice = (
            "add --foreign-output softmax:fake,real or softmax:real,fake, in the order of its classes"
            if count == 2
            else "add --foreign-output p_real or p_fake"
            if count == 1
            else f"say which class each is, as --foreign-output softmax:fake,fake,real does for 3; {count} classes"
            " other than fake and real can't be used"
        )
        raise ModelFileError(f"{path}: its output has {count} value{'s'[: count > 1]} per image: {advice}")
    activation = _activation(model)
    if activation is keras.activations.linear and count == 1 and not foreign.is_logit:
        raise ModelFileError(
            f"{path}: its last layer has no sigmoid, so its output is a logit, not a probability: add"
            " --foreign-output logit_real or logit_fake"
        )
    if activation is keras.activations.sigmoid and foreign.is_logit:
        raise ModelFileError(
            f"{path}: its last layer has a sigmoid, so its output is a probability: add --foreign-output p_real or"
            " p_fake"
        )


def _last_layer(model: keras.Model) -> layers.Layer | None:
    """Return the layer that gives a network's output, inside nested models too; None for another operation."""
    last = model.layers[-1] if isinstance(model, keras.Sequential) else model.operations[-1]
    return _last_layer(last) if isinstance(last, keras.Model) else last


def _activation(model: keras.Model) -> Any:
    return getattr(_last_layer(model), "activation", None)


def _strip_activation(model: keras.Model, foreign: ForeignModel) -> bool:
    """Replace a final sigmoid or softmax by nothing; return whether the network now gives logits."""
    last, activation = _last_layer(model), _activation(model)
    wanted = keras.activations.sigmoid if len(foreign.classes) == 1 else keras.activations.softmax
    if activation is wanted:
        last.activation = keras.activations.linear
    return activation in (wanted, keras.activations.linear)


def _p_real(x: keras.KerasTensor, foreign: ForeignModel, logits: bool) -> keras.KerasTensor:
    """Return p_real of the outputs (n, classes), logits or probabilities, by a last dense layer."""
    signs = [1.0 if label == REAL else -1.0 for label in foreign.classes]
    if logits and len(signs) <= 2:  # softmax of two logits is the sigmoid of their difference
        head = layers.Dense(1, activation="sigmoid", name=OUTPUT)
        return _fixed(head, x, np.reshape(signs, (-1, 1)), np.zeros(1))
    if logits:
        x = layers.Softmax(name="foreign_softmax")(x)
    if foreign.classes == (FAKE,):
        return _fixed(layers.Dense(1, name=OUTPUT), x, [[-1.0]], [1.0])
    return _fixed(layers.Dense(1, name=OUTPUT), x, [[float(label == REAL)] for label in foreign.classes], [0.0])
