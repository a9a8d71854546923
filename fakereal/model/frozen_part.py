"""The frozen part of a network at work: on Keras, or on a faster engine that was seen to give the same activations."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import keras
import numpy as np

from fakereal.cli import say
from fakereal.errors import EngineRefused
from fakereal.model import engines, parity
from fakereal.model.conversion import convert
from fakereal.model.engine_cache import Entry
from fakereal.model.runtimes import RUNTIMES, RowByRow, filled

BATCH = 32
"""Pictures that a frozen part is given at once, at most."""

_ENGINE = "litert"  # the fastest on a CPU; see benchmarks/prediction_engines.py


class FrozenPart(Protocol):
    """Maps pictures to what crosses the boundary."""

    engine: str  # equal ones give equal activations of one network on one machine

    def activations(self, images: np.ndarray) -> np.ndarray:
        """Returns float32 (n, ...) for at most `BATCH` pictures 0..255 of shape (n, S, S, 3)."""


class OnKeras:
    """The frozen part itself."""

    engine = "Keras"

    def __init__(self, frozen: keras.Model) -> None:
        self._frozen = frozen

    def activations(self, images: np.ndarray) -> np.ndarray:
        """See `FrozenPart`."""
        activations = self._frozen.predict_on_batch(filled(images, BATCH))
        return np.asarray(activations, dtype=np.float32)[: len(images)]


class Converted:
    """What the frozen part was converted to."""

    def __init__(self, network: RowByRow, engine: str) -> None:
        self._network, self.engine = network, engine

    def activations(self, images: np.ndarray) -> np.ndarray:
        """See `FrozenPart`."""
        return np.stack(list(self._network.rows(images)))


def fastest(frozen: keras.Model, fingerprint: str, pictures: int, cache: Path) -> FrozenPart:
    """Returns the frozen part on the fastest engine at hand; says why where that can't be had.

    Args:
        frozen: from pixels to what crosses the boundary.
        fingerprint: names what it computes.
        pictures: how many there may be to compute.
        cache: the folder where conversions are kept.
    """
    own, runtime = OnKeras(frozen), RUNTIMES[_ENGINE]
    version = runtime.version
    other_device = keras.backend.backend() != "tensorflow" or engines.has_gpu()
    if pictures < engines.WORTH_CONVERTING or version is None or other_device or frozen.output.dtype != "float32":
        return own
    try:
        network, _ = engines.converted(_ENGINE, fingerprint, lambda: _converted(frozen), cache)
    except EngineRefused as error:
        say(f"features are computed by Keras, not {runtime.title}: {error}")
        return own
    return Converted(network, f"{runtime.title} {version}")


def _converted(frozen: keras.Model) -> Entry:
    """Converts and judges; a refusal by the gate is kept too, so that it is found out only once."""
    runtime, size = RUNTIMES[_ENGINE], frozen.input_shape[1]
    say(f"converting the frozen part of the network for {runtime.title}, once")
    files = convert(frozen, _ENGINE)
    pictures = parity.calibration_pictures(size)
    found = Converted(engines.start(runtime, files, size), "").activations(pictures)
    finding = parity.same_features(OnKeras(frozen).activations(pictures), found)
    return Entry(files if finding.passed else {}, size, finding.words, finding.figures)
