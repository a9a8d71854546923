"""Networks by name: pixels 0..255 in, p_real out. Keras 3 only, so that every backend trains the same model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import keras
import numpy as np
from keras import layers

from fakereal.config import NORMALIZATIONS, NetworkConfig
from fakereal.errors import ConfigError
from fakereal.model.out_of_distribution import Prototypes

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Of RGB pixels in 0..1: the normalization that bases trained on ImageNet expect."""

BASE, OUTPUT, FEATURES = "base", "p_real", "features"
"""Names of layers that other modules look up: the nested base, the output, the pooled features."""

VGG_MEAN = (123.68, 116.779, 103.939)
"""Of RGB pixels in 0..255: VGG was trained on mean-free, unscaled pixels."""


@dataclass(frozen=True)
class Backbone:
    """What the networks differ in: the base, the normalization in front of it, the head on top."""

    imagenet_scale: Sequence[float]  # of each channel; pixels * scale + offset are ImageNet's normalization
    imagenet_offset: Sequence[float]
    application: Callable[..., keras.Model] | None = None  # of Keras, with ImageNet weights; None: `_cnn`
    dense: tuple[int, ...] = ()  # units of the dense layers


_SCALE = [1.0 / deviation for deviation in IMAGENET_STD]
_ONCE_BATCH = 4  # images
_OFFSET = [-255.0 * mean / std for mean, std in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)]

NETWORKS = {
    # Keras' EfficientNet divides by 255 itself
    "efficientnetb0": Backbone(_SCALE, _OFFSET, keras.applications.EfficientNetB0),
    "efficientnetb4": Backbone(_SCALE, _OFFSET, keras.applications.EfficientNetB4),
    # In place of its original top, two layers of 4,096
    "vgg16": Backbone([1.0] * 3, [-mean for mean in VGG_MEAN], keras.applications.VGG16, dense=(256, 128)),
    "cnn": Backbone([each / 255.0 for each in _SCALE], [each / 255.0 for each in _OFFSET]),
}
"""The networks by name; `config.NORMALIZATIONS` has the same names."""

APPLICATIONS = {name: each.application for name, each in NETWORKS.items() if each.application}
"""The bases with ImageNet weights."""

_POOLING = {
    "avg": lambda maps: layers.GlobalAveragePooling2D(name="avg_pool")(maps),
    "max": lambda maps: layers.GlobalMaxPooling2D(name="max_pool")(maps),
    "flatten": lambda maps: layers.Flatten(name="flatten")(maps),
}


def build(config: NetworkConfig, image_size_px: int, learn_batch_norm: bool = False) -> keras.Model:
    """Build a network with random weights.

    Args:
        config: which network and which head.
        image_size_px: width and height of the images.
        learn_batch_norm: True runs the base in training mode while training, with its BatchNorm statistics and its
            stochastic depth: right for a base with random weights. False keeps the base in inference mode, which a
            pretrained one needs.

    Returns:
        A model from (n, image_size_px, image_size_px, 3), 0..255, to (n, 1), p_real in 0..1.

    Raises:
        ConfigError: the name stands in no table.
    """
    if config.name not in NETWORKS:
        raise ConfigError(f"network.name: expected one of {', '.join(NETWORKS)}, found {config.name!r}")
    pixels = keras.Input((image_size_px, image_size_px, 3), name="pixels")
    x = _normalized(config, pixels)
    base = _base(config, image_size_px)
    x = base(x) if learn_batch_norm else base(x, training=False)
    x = layers.Activation("linear", name=FEATURES)(x)
    dense = NETWORKS[config.name].dense if config.dense is None else config.dense
    for number, units in enumerate(dense, start=1):
        x = layers.Dropout(config.dropout, name=f"dropout_{number}")(x)
        x = layers.Dense(units, activation=config.activation, name=f"dense_{number}")(x)
    x = layers.Dropout(config.dropout, name="dropout")(x)
    p_real = layers.Dense(1, activation="sigmoid", dtype="float32", name=OUTPUT)(x)
    return keras.Model(pixels, p_real, name=config.name)


def with_score(model: keras.Model, prototypes: Prototypes, features: keras.KerasTensor | None = None) -> keras.Model:
    """Return a model that shares a network's layers and also gives the out-of-distribution score.

    Args:
        model: as `build` returns it, or an upper part of such a network.
        prototypes: fitted on the input of its output layer.
        features: that input, where the layer is part of several models.

    Returns:
        A model from the same inputs to (n, 2): p_real, and the score of `out_of_distribution.scores`.
    """
    features = model.get_layer(OUTPUT).input if features is None else features
    matrix = prototypes.matrix()
    nearest = layers.Dense(matrix.shape[1], use_bias=False, trainable=False, dtype="float32", name="prototypes")
    features = keras.ops.cast(features, "float32")
    products = keras.ops.max(nearest(features), axis=-1, keepdims=True)
    nearest.set_weights([matrix])
    # Not UnitNormalization, which LiteRT computes as NaN for features that are all 0
    lengths = keras.ops.sqrt(keras.ops.sum(keras.ops.square(features), axis=-1, keepdims=True)) + keras.config.epsilon()
    distance = 1.0 - products / lengths
    score = distance / prototypes.max_distance
    return keras.Model(model.input, layers.Concatenate(dtype="float32")([model.output, score]))


def outputs_once(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """Return what any model gives for a few images, float32, layer by layer: compiling it would take longer.

    Args:
        model: with one input and one output.
        images: 0..255, (n, S, S, 3), or what else its input takes.
    """
    # A few at once: until the last layer, Keras keeps what all layers gave, about 70 MB for an image of 224 pixels.
    parts = [images[start : start + _ONCE_BATCH] for start in range(0, len(images), _ONCE_BATCH)]
    outputs = [keras.ops.convert_to_numpy(model(part.astype(np.float32), training=False)) for part in parts]
    return np.concatenate(outputs).astype(np.float32)


def _normalized(config: NetworkConfig, pixels: keras.KerasTensor) -> keras.KerasTensor:
    """Normalize pixels; the only place that does, and part of the model, so that every engine is fed plain pixels.

    Keras' EfficientNet divides by 255 itself, but normalizes by ImageNet's mean and deviation only with
    `weights="imagenet"`. Here both are constants in front of a base built with `weights=None`: one graph wherever the
    weights come from, and nothing that a weights file could leave out.
    """
    if normalization_of(config) == "unit":
        return layers.Rescaling(1.0 / 255.0, name="normalization")(pixels)
    backbone = NETWORKS[config.name]
    return layers.Rescaling(backbone.imagenet_scale, backbone.imagenet_offset, name="normalization")(pixels)


def normalization_of(config: NetworkConfig) -> str:
    """Return the normalization in use, `unit` or `imagenet`, with `auto` resolved."""
    return NORMALIZATIONS[config.name][0] if config.normalization == "auto" else config.normalization


def _base(config: NetworkConfig, image_size_px: int) -> keras.Model:
    shape = (image_size_px, image_size_px, 3)
    pooling = ("flatten" if config.flattens else "avg") if config.pooling == "auto" else config.pooling
    application = NETWORKS[config.name].application
    maps = application(include_top=False, weights=None, input_shape=shape) if application else _cnn(config, shape)
    return keras.Model(maps.input, _POOLING[pooling](maps.output), name=BASE)


def _cnn(config: NetworkConfig, shape: tuple[int, int, int]) -> keras.Model:
    image = keras.Input(shape)
    x = image
    for number, filters in enumerate(config.filters, start=1):
        x = layers.Conv2D(filters, 3, padding="same", activation=config.activation, name=f"conv_{number}")(x)
        x = layers.MaxPooling2D(name=f"pool_{number}")(x)
    return keras.Model(image, x)


def set_trainable(model: keras.Model, scope: str, learn_batch_norm: bool) -> None:
    """Choose the trainable layers; compile the model afterwards.

    Args:
        model: as `build` returns it.
        scope: `head`, `last20` (the head and the base's last 20 layers) or `all`.
        learn_batch_norm: False freezes every BatchNorm layer of the base.
    """
    base = model.get_layer(BASE)
    base.trainable = True
    count = {"head": 0, "last20": 20, "all": len(base.layers)}[scope]
    first = max(0, len(base.layers) - count)
    for number, layer in enumerate(base.layers):
        frozen_norm = isinstance(layer, layers.BatchNormalization) and not learn_batch_norm
        layer.trainable = number >= first and not frozen_norm
