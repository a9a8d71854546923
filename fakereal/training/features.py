"""What the learning part of a network is fed with: pictures, or the activations at the end of its frozen part."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import keras
import numpy as np

from fakereal import runtime
from fakereal.config import AugmentationConfig, Config
from fakereal.dataset.scan import Record
from fakereal.engines import engine as engines_engine
from fakereal.engines import parity
from fakereal.engines.conversion import convert
from fakereal.engines.engine import CacheEntry, cache_entry
from fakereal.engines.formats import RUNTIMES, ConvertedNetwork, pad_batch
from fakereal.errors import DataError, EngineRefused
from fakereal.model import networks
from fakereal.preprocessing import Preprocessing
from fakereal.runtime import log, progress_bar
from fakereal.training import input_pipeline
from fakereal.training.cache import RowCache, Rows
from fakereal.training.input_pipeline import EpochSampler


class BatchSource(Protocol):
    """Batches for a model to learn from and to be measured on."""

    model: keras.Model  # what these batches go through; it shares the layers of the whole network
    views: int  # of each picture, that epochs take turns among; 0: a new one in every epoch

    def training(self, records: Sequence[Record], draw: EpochSampler, batch_size: int) -> Any:
        """Returns one epoch, randomly changed."""

    def view(self, records: Sequence[Record], draw: EpochSampler, batch_size: int) -> Any:
        """Returns these pictures in their order, changed as in that epoch."""

    def plain(self, records: Sequence[Record], batch_size: int) -> Any:
        """Returns the pictures as prediction sees them, in their order."""

    def news(self, epochs_done: int, epochs: int) -> str:
        """Returns a line for people after an epoch, or an empty one."""


class ImageBatches:
    """The whole network, from pixels."""

    views = 0

    def __init__(
        self, model: keras.Model, preprocessing: Preprocessing, options: AugmentationConfig, kept: Rows | None
    ) -> None:
        self.model, self._preprocessing, self.options, self._kept = model, preprocessing, options, kept

    def training(self, records: Sequence[Record], draw: EpochSampler, batch_size: int) -> Any:
        """See `Feed`."""
        return input_pipeline.training_batches(records, self._preprocessing, self.options, draw, batch_size, self._kept)

    def view(self, records: Sequence[Record], draw: EpochSampler, batch_size: int) -> Any:
        """See `Feed`."""
        return input_pipeline.view_batches(records, self._preprocessing, self.options, draw, batch_size, self._kept)

    def plain(self, records: Sequence[Record], batch_size: int) -> Any:
        """See `Feed`."""
        return input_pipeline.plain_batches(records, self._preprocessing, batch_size, self._kept)

    def news(self, epochs_done: int, epochs: int) -> str:
        """See `Feed`."""
        return ""


class CachedFeatureBatches:
    """The learning part alone: the frozen part sees each picture in a few views, and each of them once.

    The first view is the picture itself, the others are randomly changed; epochs take turns among them.
    """

    def __init__(
        self,
        model: keras.Model,
        frozen: FrozenPart,
        rows: Rows,
        pictures: ImageBatches,
        seed: int,
        views: int,
    ) -> None:
        self.model, self._frozen, self._rows, self._pictures = model, frozen, rows, pictures
        self._seed, self.views = seed, views
        changes = json.dumps([asdict(pictures.options), seed], sort_keys=True)
        self._changes = hashlib.sha256(changes.encode()).hexdigest()[:16]
        self._seconds = 0.0

    def training(self, records: Sequence[Record], draw: EpochSampler, batch_size: int) -> Any:
        """See `Feed`."""
        return self.view([records[number] for number in draw.order(records)], draw, batch_size)

    def view(self, records: Sequence[Record], draw: EpochSampler, batch_size: int) -> Any:
        """See `Feed`."""
        return self._batches(records, draw.epoch % self.views, batch_size)

    def plain(self, records: Sequence[Record], batch_size: int) -> Any:
        """See `Feed`."""
        return self._batches(records, 0, batch_size)

    def news(self, epochs_done: int, epochs: int) -> str:
        """See `Feed`: once all views were computed, how long that took."""
        views = min(self.views, epochs)
        if epochs_done != views:
            return ""
        effort = "found in the cache"
        if self._seconds:
            effort = f"computed once by {self._frozen.engine}: {_duration(self._seconds)}"
        return f"features of {views} view{'s' * (views > 1)} a picture {effort}"

    def _batches(self, records: Sequence[Record], view: int, batch_size: int) -> Any:
        names = [self._name(record, view) for record in records]
        self._compute([(r, n) for r, n in zip(records, names, strict=True) if self._rows.get(n) is None], view)
        shape = self.model.input_shape[1:]
        return input_pipeline.row_batches(records, lambda number: self._rows.get(names[number]), shape, batch_size)

    def _name(self, record: Record, view: int) -> str:
        return f"{record.sha256} {self._changes} {view}" if view else record.sha256

    def _compute(self, missing: Sequence[tuple[Record, str]], view: int) -> None:
        if not missing:
            return
        started = time.monotonic()
        records = [record for record, _ in missing]
        draw = EpochSampler(self._seed, 0, view)
        batches = (
            self._pictures.view(records, draw, FROZEN_BATCH) if view else self._pictures.plain(records, FROZEN_BATCH)
        )
        names = iter([name for _, name in missing])
        with progress_bar(f"features, view {view + 1}/{self.views}", len(missing)) as advance:
            for images, labels in batches:
                for row in self._frozen.activations(np.asarray(images)):
                    self._rows.put(next(names), row)
                advance(len(labels))
                runtime.check_interrupt()
        self._rows.flush()
        if any(self._rows.get(name) is None for _, name in missing):
            raise DataError(
                "cache: expected room for features, found none: raise data.cache_gb, free some of the disk, or name"
                " another one with --cache-dir DIR"
            )
        self._seconds += time.monotonic() - started


def choose_batch_source(
    model: keras.Model,
    config: Config,
    preprocessing: Preprocessing,
    cache: RowCache,
    count: int,
    base_learns: bool = False,
    twin: keras.Model | None = None,
) -> BatchSource:
    """Returns the feed that saves most.

    Args:
        model: as `networks.build` returns it, after `networks.set_trainable`.
        config: its seed, augmentation and views count here.
        preprocessing: of the size that the model takes.
        cache: where pictures and activations are kept.
        count: how many pictures there are, in all splits.
        base_learns: True where the model calls its base in training mode, whose randomness can't be kept.
        twin: the same network once more, on one device, where `model` is spread over several.
    """
    kept = cache.pictures(preprocessing)
    pictures = ImageBatches(model, preprocessing, config.augmentation, kept)
    parts = split_network(model) if config.training.views and not base_learns else None
    if parts is None:
        return pictures
    if twin is not None:  # activations are computed without the other processes, as each misses other ones
        parts = replace(parts, frozen=split_network(twin).frozen)
    views = 1 if _changes_nothing(config.augmentation) else config.training.views
    shape, fingerprint = parts.frozen.output_shape[1:], parts.fingerprint()
    size = count * views * math.prod(shape) * np.dtype("float32").itemsize
    frozen = fastest_frozen_part(parts.frozen, fingerprint, count * views, cache.folder)
    rows = cache.rows(f"activations {preprocessing.fingerprint} {fingerprint} {frozen.engine}", shape, "float32")
    if not cache.holds(rows, size):
        size_gb = size / 1e9
        log(f"features are computed anew every epoch: {size_gb:.1f} GB are more than data.cache_gb or the disk allows")
        return pictures
    return CachedFeatureBatches(parts.learning, frozen, rows, pictures, config.seed, views)


def _changes_nothing(options: AugmentationConfig) -> bool:
    steps = asdict(options)
    return not steps.pop("resaving")["share"] and not any(steps.values())


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


# ---- Divides a network where its frozen part ends, so that this part is computed once, not once an epoch. Keras 3 only.


@dataclass(frozen=True)
class NetworkParts:
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


def split_network(model: keras.Model) -> NetworkParts | None:
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
    return NetworkParts(frozen, keras.Model(crossed, _chain(model.layers[at + 1 :], features)))


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


# ---- The frozen part of a network at work: on Keras, or on a faster engine that was seen to give the same activations.

FROZEN_BATCH = 32
"""Pictures that a frozen part is given at once, at most."""

_ENGINE = "litert"  # the fastest on a CPU; see benchmarks/prediction_engines.py


class FrozenPart(Protocol):
    """Maps pictures to what crosses the boundary."""

    engine: str  # equal ones give equal activations of one network on one machine

    def activations(self, images: np.ndarray) -> np.ndarray:
        """Returns float32 (n, ...) for at most `BATCH` pictures 0..255 of shape (n, S, S, 3)."""


class KerasFrozenPart:
    """The frozen part itself."""

    engine = "Keras"

    def __init__(self, frozen: keras.Model) -> None:
        self._frozen = frozen

    def activations(self, images: np.ndarray) -> np.ndarray:
        """See `FrozenPart`."""
        activations = self._frozen.predict_on_batch(pad_batch(images, FROZEN_BATCH))
        return np.asarray(activations, dtype=np.float32)[: len(images)]


class ConvertedFrozenPart:
    """What the frozen part was converted to."""

    def __init__(self, network: ConvertedNetwork, engine: str) -> None:
        self._network, self.engine = network, engine

    def activations(self, images: np.ndarray) -> np.ndarray:
        """See `FrozenPart`."""
        return np.stack(list(self._network.outputs(images)))


def fastest_frozen_part(frozen: keras.Model, fingerprint: str, pictures: int, cache: Path) -> FrozenPart:
    """Returns the frozen part on the fastest engine at hand; says why where that can't be had.

    Args:
        frozen: from pixels to what crosses the boundary.
        fingerprint: names what it computes.
        pictures: how many there may be to compute.
        cache: the folder where conversions are kept.
    """
    own, runtime = KerasFrozenPart(frozen), RUNTIMES[_ENGINE]
    version = runtime.version
    other_device = keras.backend.backend() != "tensorflow" or engines_engine.has_gpu()
    if (
        pictures < engines_engine.MIN_IMAGES_TO_CONVERT
        or version is None
        or other_device
        or frozen.output.dtype != "float32"
    ):
        return own
    try:
        network, _ = engines_engine.open_converted(_ENGINE, fingerprint, lambda: _converted(frozen), cache)
    except EngineRefused as error:
        log(f"features are computed by Keras, not {runtime.title}: {error}")
        return own
    return ConvertedFrozenPart(network, f"{runtime.title} {version}")


def _converted(frozen: keras.Model) -> CacheEntry:
    """Converts and judges; a refusal by the gate is kept too, so that it is found out only once."""
    runtime, size = RUNTIMES[_ENGINE], frozen.input_shape[1]
    log(f"converting the frozen part of the network for {runtime.title}, once")
    files = convert(frozen, _ENGINE)
    pictures = parity.parity_images(size)
    found = ConvertedFrozenPart(engines_engine.start_network(runtime, files, size), "").activations(pictures)
    result = parity.compare_features(KerasFrozenPart(frozen).activations(pictures), found)
    return cache_entry(files, size, result)
