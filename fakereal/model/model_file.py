"""The model file: one regular Keras `.h5` (or `.keras`) with our metadata inside; reading it never runs its code."""

from __future__ import annotations

import contextlib
import importlib
import platform
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from fakereal.errors import DataError, ModelFileError
from fakereal.files import replacing
from fakereal.model import networks
from fakereal.model.metadata import (
    DAMAGE,
    FOREIGN_NOTE,
    Metadata,
    check_suffix,
    of_foreign,
    read_own,
    to_text,
    write_metadata,
)
from fakereal.runtime import log, package_version


@dataclass(frozen=True)
class Detector:
    """A network with all that is needed to use it."""

    model: keras.Model
    metadata: Metadata

    def p_real(self, images: np.ndarray) -> np.ndarray:
        """Returns the network's output for pictures 0..255 of shape (n, S, S, 3): float64 (n,), 0..1."""
        outputs = self.model.predict_on_batch(images.astype(np.float32))
        return np.asarray(outputs, dtype=np.float64).reshape(-1)


def save(path: Path, detector: Detector) -> None:
    """Writes a model file whole; the suffix `.h5` or `.keras` decides the format.

    Raises:
        ModelFileError: another suffix, or the file can't be written.
    """
    check_suffix(path)
    text = to_text(detector.metadata)
    try:
        with replacing(path, path.suffix) as temporary:
            with _nothing_frozen(detector.model):
                detector.model.save(temporary, include_optimizer=False)  # nobody who predicts needs the optimizer
            write_metadata(temporary, text)
    except DataError as error:
        raise ModelFileError(str(error)) from error


@contextlib.contextmanager
def _nothing_frozen(model: keras.Model) -> Iterator[None]:
    """Saves with every layer trainable: Keras orders an .h5 file's weights by what learns, and load() freezes nothing.

    Each layer is set for itself: Keras drops `model.trainable = True` where the model's own flag is True already,
    whatever its layers' flags are.
    """
    before = [(layer, layer.trainable) for layer in _layers(model)]
    try:
        for layer, _ in before:
            layer.trainable = True
        yield
    finally:
        for layer, trainable in before:
            layer.trainable = trainable


def _layers(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """Yields a model's layers and those of the models in it, a model before its own."""
    for layer in model.layers:
        yield layer
        if isinstance(layer, keras.Model):
            yield from _layers(layer)


def load(path: Path, foreign: bool = False) -> Detector:
    """Read a model file; see `load_network`.

    Args:
        path: the file.
        foreign: also accept a plain Keras file of another program.

    Raises:
        ModelFileError: missing, damaged, foreign (without `foreign`) or made with another preprocessing.
    """
    metadata = read_own(path, foreign)
    if metadata is None:
        log(FOREIGN_NOTE)
    return load_network(path, metadata)


def load_network(path: Path, metadata: Metadata | None) -> Detector:
    """Rebuild the network that the file's metadata name from our own list, and load only its weights.

    Args:
        path: the file.
        metadata: what `read_own` returned for it. None: a plain Keras file of another program, loaded in Keras' safe
            mode; it must map images of shape (S, S, 3), 0..255, to one probability of real.

    Raises:
        ModelFileError: damaged, or a foreign network of another shape.
    """
    if metadata is None:
        return _load_foreign(path)
    name = metadata.config.network.name
    try:
        model = networks.build(metadata.config.network, metadata.preprocessing.image_size_px)
        _load_weights(model, path)
    except DAMAGE as error:
        raise ModelFileError(f"{path}: expected the weights of {name}, found a damaged file ({error})") from error
    return Detector(model, metadata)


def _load_weights(model: keras.Model, path: Path) -> None:
    if path.suffix == ".h5":
        model.load_weights(path)
        return
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path) as archive:
        model.load_weights(archive.extract("model.weights.h5", folder))


def _load_foreign(path: Path) -> Detector:
    try:
        model = keras.models.load_model(path, compile=False, safe_mode=True)
        shape, output = tuple(model.input_shape), tuple(model.output_shape)
    except Exception as error:
        raise ModelFileError(f"{path}: expected a Keras model, found one that does not load ({error})") from error
    if len(shape) != 4 or shape[1] is None or shape[1] != shape[2] or shape[3] != 3 or output[1:] != (1,):
        raise ModelFileError(
            f"{path}: expected pictures (S, S, 3) in and one probability out, found {shape} in and {output} out"
        )
    return Detector(model, of_foreign(shape[1]))


def versions() -> dict[str, str]:
    """Returns the versions of what decides a result."""
    import PIL

    from fakereal import __version__

    backend, litert = keras.backend.backend(), package_version("ai-edge-litert")
    return {
        "fakereal": __version__,
        "python": platform.python_version(),
        "keras": keras.__version__,
        "backend": backend,
        backend: importlib.import_module(backend).__version__,
        **({"litert": litert} if litert else {}),  # may have computed the features of a frozen base
        "numpy": np.__version__,
        "pillow": PIL.__version__,
    }
