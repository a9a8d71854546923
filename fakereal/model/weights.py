"""Initial weights of a network's base: ImageNet, the shipped model, a file, or random."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import keras
import numpy as np

from fakereal.config import NetworkConfig
from fakereal.errors import ConfigError, ModelFileError
from fakereal.model import model_file, networks
from fakereal.model.metadata import PRETRAINED, read_metadata
from fakereal.runtime import capture_output, log, one_line


@dataclass(frozen=True)
class BaseWeights:
    """Where the initial weights of a base come from."""

    description: str  # for people, and for the model file
    pretrained: bool  # False where the base starts from random weights
    choice: str = ""  # what `auto` chose, as `Config.weights` names it
    sources: tuple[str, ...] = ()  # whose images the base, of a model file, was trained on
    image_size_px: int | None = None  # at which the base, of a model file, was trained


@dataclass(frozen=True)
class LoadedBase:
    """The weights of a base, and where they come from."""

    origin: BaseWeights
    weights: list[np.ndarray]


def check_choice(choice: str) -> None:
    """Raise ConfigError where initial weights are named that are neither a known word nor an existing file."""
    known = ("auto", "imagenet", "pretrained", "none")
    if choice not in known and not Path(choice).is_file():
        raise ConfigError(
            f"weights (--weights): expected {', '.join(known)} or a file, found {choice!r}, which does not exist"
        )


def load_base(model: keras.Model, network: NetworkConfig, choice: str) -> BaseWeights:
    """Load weights into the base of a model that `networks.build` returned.

    Args:
        model: the model, with random weights.
        network: the configuration it was built from.
        choice: `imagenet`, `pretrained`, `none`, or the path of a model file or of Keras weights of the base; `auto`
            only for a network without pre-trained bases, which starts from random weights.

    Raises:
        ConfigError: the weights are not available.
        ModelFileError: the file does not fit the network.
    """
    if choice in ("none", "auto"):
        return BaseWeights("random weights", pretrained=False)
    base = model.get_layer(networks.BASE)
    named: dict[str, Callable[[], BaseWeights]] = {
        "imagenet": lambda: _imagenet(base, network),
        "pretrained": lambda: _pretrained(model, network),
    }
    return named[choice]() if choice in named else _from_file(model, network, Path(choice))


def available_bases(model: keras.Model, network: NetworkConfig) -> list[LoadedBase]:
    """Return the bases that `auto` chooses from: ImageNet's, and that of the shipped model where it is of this network.

    Args:
        model: as `networks.build` returned it; its base then has the weights of one of them.
        network: the configuration it was built from, one with ImageNet weights.

    Raises:
        ConfigError: there is none.
    """
    base = model.get_layer(networks.BASE)
    found = []
    try:
        found.append(_loaded(base, _imagenet(base, network), "imagenet"))
    except ConfigError as error:
        if not _fits(PRETRAINED, network):
            raise ConfigError(
                f"weights: neither ImageNet weights (Keras cache or download) nor a {network.name} in {PRETRAINED} are"
                " available: connect to the internet, or train from random weights with --weights none"
            ) from error
        log("weights: ImageNet weights are not available offline, using the backbone of models/pretrained.h5")
    if _fits(PRETRAINED, network):
        found.append(_loaded(base, _pretrained(model, network), "pretrained"))
    return found


def _loaded(base: keras.Model, origin: BaseWeights, choice: str) -> LoadedBase:
    return LoadedBase(replace(origin, choice=choice), base.get_weights())


def _imagenet(base: keras.Model, network: NetworkConfig) -> BaseWeights:
    """Load Keras' ImageNet weights from its cache (~/.keras/models) or its download server."""
    if network.name not in networks.APPLICATIONS:
        raise ConfigError(f"weights: there are no ImageNet weights for {network.name}: use --weights none")
    try:
        with contextlib.redirect_stdout(sys.stderr):  # Keras prints its download there
            source = networks.APPLICATIONS[network.name](include_top=False, weights="imagenet", pooling="avg")
    except Exception as error:  # a failed download raises many kinds of errors
        raise ConfigError(
            "weights: ImageNet weights are not in the Keras cache and can't be downloaded"
            f" ({one_line(error)[:120]}): {_offline(network)}"
        ) from error
    _copy_by_name(source, base)
    return BaseWeights("ImageNet (Keras)", pretrained=True)


def _offline(network: NetworkConfig) -> str:
    if _fits(PRETRAINED, network):
        return "--weights pretrained works offline"
    return "--weights none trains from random weights offline"


def _pretrained(model: keras.Model, network: NetworkConfig) -> BaseWeights:
    if not PRETRAINED.is_file():
        raise ConfigError(
            "weights: models/pretrained.h5 is missing: use --weights imagenet (online), or train from random weights"
            " with --weights none"
        )
    origin = _from_file(model, network, PRETRAINED)
    return replace(origin, description="models/pretrained.h5")


def _fits(path: Path, network: NetworkConfig) -> bool:
    metadata = read_metadata(path) if path.is_file() else None
    if metadata is None or metadata.config.network.name != network.name:
        return False
    return networks.normalization_of(metadata.config.network) == networks.normalization_of(network)


def _from_file(model: keras.Model, network: NetworkConfig, path: Path) -> BaseWeights:
    check_choice(str(path))
    if not path.name.endswith(".weights.h5"):
        metadata = read_metadata(path)
        if metadata is not None and metadata.foreign:
            raise ModelFileError(f"{path}: holds a network of another program, which no training can start from")
        if metadata is not None:
            origin = _from_model(model, network, path, metadata.config.network)
            sources = tuple(name for name in metadata.data.get("sources", ()) if name)
            return replace(origin, sources=sources, image_size_px=metadata.config.image_size)
    return _from_keras_weights(model.get_layer(networks.BASE), network, path)


def _from_model(model: keras.Model, network: NetworkConfig, path: Path, found: NetworkConfig) -> BaseWeights:
    name = network.name
    if name != found.name:
        raise ModelFileError(f"{path}: expected weights of {name}, found {found.name}")
    ours, theirs = networks.normalization_of(network), networks.normalization_of(found)
    if ours != theirs:
        raise ModelFileError(f"{path}: expected a backbone for network.normalization {ours}, found one for {theirs}")
    if name == "cnn" and network.activation != found.activation:
        raise ModelFileError(
            f"{path}: expected a cnn with network.activation {network.activation}, found {found.activation}"
        )
    if network == found and not network.flattens:
        _load_all_but_the_head(model, path)
        return BaseWeights(path.name, pretrained=True)
    source = model_file.load(path).model.get_layer(networks.BASE)
    try:
        model.get_layer(networks.BASE).set_weights(source.get_weights())
    except ValueError as error:
        raise ModelFileError(f"{path}: a {name} of another shape ({one_line(error)[:120]})") from error
    return BaseWeights(path.name, pretrained=True)


def _load_all_but_the_head(model: keras.Model, path: Path) -> None:
    """Load the file of an equal network: half a second faster than building that network to copy its base."""
    head = [(layer, layer.get_weights()) for layer in model.layers if layer.name != networks.BASE]
    model_file.load_weights(model, path)
    for layer, weights in head:
        layer.set_weights(weights)


def _from_keras_weights(base: keras.Model, network: NetworkConfig, path: Path) -> BaseWeights:
    """Load a weights file of the base alone, such as Keras' `efficientnetb0_notop.h5`."""
    if network.name not in networks.APPLICATIONS:
        raise ModelFileError(
            f"{path}: expected a model file of train_model.py with a {network.name}, found other weights"
        )
    source = networks.APPLICATIONS[network.name](include_top=False, weights=None, pooling="avg")
    try:
        with capture_output(), warnings.catch_warnings():  # Keras warns once per layer that the file doesn't have
            warnings.simplefilter("ignore")
            source.load_weights(path)
    except (KeyError, ValueError, OSError) as error:
        reason = one_line(error).partition(" Example error")[0][:120]
        raise ModelFileError(f"{path}: not the weights of a backbone {network.name} ({reason})") from error
    _copy_by_name(source, base)
    return BaseWeights(path.name, pretrained=True)


def _copy_by_name(source: keras.Model, base: keras.Model) -> None:
    """Copy all layers by name, and adapt the first ones where the source normalizes pixels in another way."""
    ours = {layer.name: layer for layer in base.layers}
    mean = None
    for layer in source.layers:
        if isinstance(layer, keras.layers.Normalization):
            mean, std = _normalization_of(layer)
        elif layer.weights:
            ours[layer.name].set_weights(layer.get_weights())
    if mean is not None:
        _fold(ours["stem_conv"], ours["stem_bn"], mean, std)
    elif "block1_conv1" in ours:  # Keras' VGG was trained on BGR
        kernel, bias = ours["block1_conv1"].get_weights()
        ours["block1_conv1"].set_weights([kernel[:, :, ::-1], bias])


def _normalization_of(layer: keras.layers.Layer) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and deviation, of RGB in 0..1, that the source network was trained with."""
    mean, variance = (np.asarray(values, dtype=np.float64).reshape(-1) for values in layer.get_weights()[:2])
    if np.allclose(variance, networks.IMAGENET_STD, atol=1e-3):
        # Keras' ImageNet files hold the deviation in place of the variance, which a further layer corrects
        return mean, variance
    return mean, np.sqrt(variance)


def _fold(conv: keras.layers.Layer, norm: keras.layers.Layer, mean: np.ndarray, std: np.ndarray) -> None:
    """Convert the stem from the source's normalization to ours; exact except for the outermost row and column."""
    our_mean, our_std = np.array(networks.IMAGENET_MEAN), np.array(networks.IMAGENET_STD)
    (kernel,) = conv.get_weights()  # (3, 3, 3 colors, filters)
    offset = np.einsum("hwcf,c->f", kernel, (our_mean - mean) / std)
    conv.set_weights([kernel * (our_std / std)[:, None]])
    gamma, beta, moving_mean, moving_variance = norm.get_weights()
    norm.set_weights([gamma, beta, moving_mean - offset, moving_variance])
