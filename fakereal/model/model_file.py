"""The model file: one regular Keras `.h5` (or `.keras`) with our metadata inside; reading it never runs its code."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from fakereal import config as configuration
from fakereal.cli import say
from fakereal.config import Config
from fakereal.errors import ConfigError, FakeRealError, ModelFileError
from fakereal.labels import NAMES
from fakereal.model import networks
from fakereal.model.scoring import Decision
from fakereal.preprocessing import Preprocessing

FORMAT = 1
_DATASET = "fakereal_metadata"  # in an .h5 file; no attribute, which may hold 64 KB only
_MEMBER = "fakereal_metadata.json"  # in a .keras file, which is a zip archive

_DAMAGE = (
    OSError,
    ValueError,
    KeyError,
    AttributeError,
    TypeError,
    RuntimeError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What h5py, zipfile and Keras raise on damaged or hostile files."""


@dataclass(frozen=True)
class Metadata:
    """What a model file says about itself."""

    config: Config  # the effective configuration of the training run
    preprocessing: Preprocessing  # how a file becomes the array that the network was trained on
    decision: Decision = field(default_factory=Decision)  # temperature, threshold and band, from validation
    base_weights: str = "unknown"  # where the base's weights came from, in words
    data: dict[str, Any] = field(default_factory=dict)  # counts, sources and the fingerprint of the pictures
    metrics: dict[str, Any] = field(default_factory=dict)  # by split
    history: tuple[dict[str, Any], ...] = ()  # a row an epoch
    versions: dict[str, str] = field(default_factory=dict)  # of the packages that trained it


@dataclass(frozen=True)
class Detector:
    """A network with all that is needed to use it."""

    model: keras.Model
    metadata: Metadata

    def p_real(self, images: np.ndarray) -> np.ndarray:
        """Returns the network's output for uint8 pictures of shape (n, S, S, 3): float64 (n,), 0..1."""
        outputs = self.model.predict_on_batch(images.astype(np.float32))
        return np.asarray(outputs, dtype=np.float64).reshape(-1)


def save(path: Path, detector: Detector) -> None:
    """Writes a model file whole; the suffix `.h5` or `.keras` decides the format.

    Raises:
        ModelFileError: another suffix, or the file can't be written.
    """
    check_suffix(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    text = json.dumps(_to_json(detector.metadata), allow_nan=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _nothing_frozen(detector.model):
            detector.model.save(temporary, include_optimizer=False)  # nobody who predicts needs the optimizer
        _write_metadata(temporary, text)
        temporary.replace(path)
    except BaseException as error:  # Ctrl-C too must leave no part behind
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise ModelFileError(f"{path}: expected to write the model, found {error.strerror or error}") from error
        raise


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


def check_suffix(path: Path) -> None:
    """Raises ModelFileError where a path ends in neither `.h5` nor `.keras`."""
    if path.suffix not in (".h5", ".keras"):
        raise ModelFileError(f"{path}: expected a file name ending in .h5 or .keras")


def load(path: Path, foreign: bool = False) -> Detector:
    """Reads a model file: rebuilds the network by name from our own list and loads only its weights.

    Args:
        path: the file.
        foreign: also take a plain Keras file of another script, with Keras' safe mode on; it must take pictures of
            shape (S, S, 3), 0..255, and give one probability of real.

    Raises:
        ModelFileError: missing, damaged, foreign (without `foreign`) or made with another preprocessing.
    """
    check_suffix(path)
    metadata = read_metadata(path)
    if metadata is None:
        if foreign:
            return _load_foreign(path)
        raise ModelFileError(
            f"{path}: expected a model made by train_model.py, found a Keras file without our metadata;"
            " --foreign-model takes it all the same"
        )
    name = metadata.config.network.name
    try:
        model = networks.build(metadata.config.network, metadata.preprocessing.image_size_px)
        _load_weights(model, path)
    except _DAMAGE as error:
        raise ModelFileError(f"{path}: expected the weights of {name}, found a damaged file ({error})") from error
    return Detector(model, metadata)


def read_metadata(path: Path) -> Metadata | None:
    """Returns what a model file says about itself, or None where it is a Keras file of another script.

    Raises:
        ModelFileError: missing, no Keras file, or metadata that this version doesn't understand.
    """
    if not path.is_file():
        raise ModelFileError(f"{path}: expected a model file, found nothing there; train_model.py makes one")
    try:
        text = _read_metadata_text(path)
    except _DAMAGE as error:
        raise ModelFileError(f"{path}: expected a Keras model file, found something else ({error})") from error
    return None if text is None else _from_json(text, path)


def _read_metadata_text(path: Path) -> str | None:
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            return archive.read(_MEMBER).decode() if _MEMBER in archive.namelist() else None
    with h5py.File(path, "r") as file:
        return file[_DATASET][()].decode() if _DATASET in file else None


def _write_metadata(path: Path, text: str) -> None:
    if path.suffix == ".keras":
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(_MEMBER, text)
        return
    with h5py.File(path, "a") as file:
        file[_DATASET] = text


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
    say("foreign model: its output is taken as the probability of REAL, from RGB pixels in 0..255")
    if len(shape) != 4 or shape[1] is None or shape[1] != shape[2] or shape[3] != 3 or output[1:] != (1,):
        raise ModelFileError(
            f"{path}: expected pictures (S, S, 3) in and one probability out, found {shape} in and {output} out"
        )
    metadata = Metadata(Config(image_size=shape[1]), Preprocessing(shape[1]), base_weights="a foreign model")
    return Detector(model, metadata)


def _to_json(metadata: Metadata) -> dict[str, Any]:
    plain = {
        each.name: getattr(metadata, each.name)
        for each in dataclasses.fields(Metadata)
        if each.name not in ("config", "preprocessing", "decision")
    }
    return {
        "format": FORMAT,
        "network": metadata.config.network.name,
        "image_size_px": metadata.preprocessing.image_size_px,
        "preprocessing": metadata.preprocessing.fingerprint,
        "class_order": list(NAMES),
        "output": "p_real",
        "decision": dataclasses.asdict(metadata.decision),
        "config": configuration.as_dict(metadata.config),
        **plain,
    }


def _from_json(text: str, path: Path) -> Metadata:
    try:
        tree = json.loads(text)
        if tree["format"] != FORMAT:
            raise ModelFileError(
                f"{path}: expected model file format {FORMAT}, found {tree['format']}; update fakereal"
            )
        decision = tree["decision"]
        return Metadata(
            config=configuration.from_dict(tree["config"], str(path)),
            preprocessing=Preprocessing.from_fingerprint(tree["preprocessing"]),
            decision=Decision(decision["threshold"], decision["temperature"], tuple(decision["band"])),
            history=tuple(tree["history"]),
            **{key: tree[key] for key in ("base_weights", "data", "metrics", "versions")},
        )
    except ConfigError as error:
        made = tree.get("versions", {}).get("fakereal", "an unknown version")
        raise ModelFileError(
            f"{path}: made by fakereal {made} with a setting unknown here ({error}): update"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFileError(f"{path}: expected our metadata, found damaged ones ({error})") from error
    except FakeRealError as error:
        raise ModelFileError(f"{path}: {error}") from error


def versions() -> dict[str, str]:
    """Returns the versions of what decides a result."""
    import PIL

    from fakereal import __version__

    return {
        "fakereal": __version__,
        "keras": keras.__version__,
        "backend": keras.backend.backend(),
        "numpy": np.__version__,
        "pillow": PIL.__version__,
    }
