"""Save and load model files: a regular Keras `.h5` or `.keras` with metadata inside; loading never runs its code."""

from __future__ import annotations

import contextlib
import functools
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
from fakereal.model import foreign_network, networks
from fakereal.model.foreign import ForeignModel
from fakereal.model.metadata import (
    DAMAGE,
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
    """A Keras network with its metadata."""

    model: keras.Model | None  # None: an exported network, which only an engine runs
    metadata: Metadata

    @functools.cached_property
    def scoring_model(self) -> keras.Model:
        """The network with the out-of-distribution score as a second output; the network itself without prototypes."""
        prototypes = self.metadata.prototypes
        return networks.with_score(self.model, prototypes) if prototypes else self.model

    def p_real(self, images: np.ndarray) -> np.ndarray:
        """Return the network's output for images 0..255 of shape (n, S, S, 3): float64 (n,), 0..1."""
        return self.outputs(images)[:, 0]

    def outputs(self, images: np.ndarray) -> np.ndarray:
        """Return float64 (n, 1) or (n, 2): p_real and, with prototypes, the out-of-distribution score."""
        outputs = self.scoring_model.predict_on_batch(images.astype(np.float32))
        return np.asarray(outputs, dtype=np.float64).reshape(len(images), -1)


def save(path: Path, detector: Detector) -> None:
    """Write a model file atomically; the suffix `.h5` or `.keras` decides the format.

    Raises:
        ModelFileError: another suffix, or the file can't be written.
    """
    check_suffix(path)
    text = to_text(detector.metadata)
    try:
        with replacing(path, path.suffix) as temporary:
            with _all_trainable(detector.model):
                detector.model.save(temporary, include_optimizer=False)  # which only training would need
            write_metadata(temporary, text)
    except DataError as error:
        raise ModelFileError(str(error)) from error


@contextlib.contextmanager
def _all_trainable(model: keras.Model) -> Iterator[None]:
    """Make all layers trainable while saving: Keras orders the weights of an .h5 file by that, and `load` freezes none.

    Layers are set one by one, as Keras ignores `model.trainable = True` where the model's own flag is True already,
    whatever the flags of its layers.
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
    """Yield a model's layers and those of nested models, each model before its layers."""
    for layer in model.layers:
        yield layer
        if isinstance(layer, keras.Model):
            yield from _layers(layer)


def load(path: Path, foreign: ForeignModel | None = None) -> Detector:
    """Read a model file; see `load_network`.

    Args:
        path: the file.
        foreign: also accept a Keras file of another program, used as this says.

    Raises:
        ModelFileError: missing, damaged, foreign (without `foreign`) or made with another preprocessing.
    """
    metadata = read_own(path, foreign is not None)
    if metadata is None:
        log(foreign.note)
    return load_network(path, metadata, foreign)


def load_network(path: Path, metadata: Metadata | None, foreign: ForeignModel | None = None) -> Detector:
    """Rebuild the network that the file's metadata name from our own list, and load only its weights.

    Args:
        path: the file.
        metadata: what `read_own` returned for it. None: a Keras file of another program, see `foreign_network.load`.
        foreign: how to use a file of another program.

    Raises:
        ModelFileError: damaged, or a foreign network that can't be used.
    """
    if metadata is None:
        model = foreign_network.adapt(foreign_network.load(path), foreign or ForeignModel(), path)
        return Detector(model, of_foreign(model.input_shape[1], foreign or ForeignModel()))
    if metadata.foreign:
        return Detector(foreign_network.load(path), metadata)
    with _damage_refused(path, metadata.config.network.name):
        model = networks.build(metadata.config.network, metadata.preprocessing.image_size_px)
    load_weights(model, path)
    return Detector(model, metadata)


def load_weights(model: keras.Model, path: Path) -> None:
    """Load the weights of a model file into a network that was built from the same configuration.

    All its layers must be trainable, as `networks.build` leaves them: see `_all_trainable`.

    Raises:
        ModelFileError: another suffix, damaged, or of another network.
    """
    check_suffix(path)
    with _damage_refused(path, model.name):
        if path.suffix == ".h5":
            model.load_weights(path)
            return
        with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path) as archive:
            model.load_weights(archive.extract("model.weights.h5", folder))


@contextlib.contextmanager
def _damage_refused(path: Path, name: str) -> Iterator[None]:
    try:
        yield
    except DAMAGE as error:
        raise ModelFileError(f"{path}: the weights of {name} are damaged ({error})") from error


def versions() -> dict[str, str]:
    """Return the versions of everything that training results depend on."""
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
