"""Training batches: decoded images, or cached features of the frozen backbone.

Where the lower part of a network is frozen, `split_network` divides it there, and the features that the frozen part
computes are cached: each image passes through it once for each augmented version, not once for each epoch.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import keras
import numpy as np

from fakereal.config import AugmentationConfig, Config
from fakereal.dataset.scan import Record
from fakereal.engines import engine, parity
from fakereal.engines.conversion import convert
from fakereal.engines.conversion_cache import Conversion
from fakereal.engines.export import ConvertedBackbone
from fakereal.engines.formats import RUNTIMES, ConvertedNetwork, Network, pad_batch
from fakereal.errors import DataError, EngineRefused
from fakereal.model import networks
from fakereal.model.metadata import EXPORTED_SUFFIX
from fakereal.model.out_of_distribution import Prototypes
from fakereal.preprocessing import Preprocessing
from fakereal.runtime import check_interrupt, log, progress_bar
from fakereal.training import input_pipeline, loop
from fakereal.training.cache import RowCache, Rows
from fakereal.training.input_pipeline import EpochSampler

FROZEN_BATCH = 32
"""The largest number of images that a frozen part is given at once."""

_BATCHES_AT_ONCE = 64

_EXPECTED = ".expected.npy"  # suffix of the features that Keras gives for `parity.parity_images`

_ENGINE = "litert"  # the fastest on a CPU; see benchmarks/prediction_engines.py


@dataclass
class FeatureCost:
    """What the features of a batch source have cost so far."""

    images: int = 0  # that passed through the frozen part
    seconds: float = 0.0


class BatchSource(ABC):
    """Batches that a model is trained and measured on."""

    model: keras.Model  # what these batches go through; it shares the layers of the whole network
    augmented_versions: int  # of each image, used in turn by the epochs; 0: a new one in every epoch
    cost: FeatureCost
    network: Network | None = None  # the whole network for decoded images, where it is faster than Keras'
    engine: str = ""  # name and version of what runs that network

    @abstractmethod
    def augmented(self, records: Sequence[Record], sampler: EpochSampler, batch_size: int) -> Any:
        """Return these images in their order, augmented as in the sampler's epoch."""

    @abstractmethod
    def plain(self, records: Sequence[Record], batch_size: int) -> Any:
        """Return the images as prediction sees them, in their order."""

    def progress_note(self, epochs_done: int, epochs: int) -> str:
        """Return a line for people after an epoch, or an empty one."""
        return ""

    def training(self, records: Sequence[Record], sampler: EpochSampler, batch_size: int) -> Any:
        """Return one epoch: the images that the sampler draws, in its order, augmented."""
        return self.augmented([records[number] for number in sampler.order(records)], sampler, batch_size)

    def fit(
        self,
        records: Sequence[Record],
        sampler: EpochSampler,
        batch_size: int,
        class_weights: dict[int, float] | None = None,
        callbacks: Sequence[keras.callbacks.Callback] = (),
    ) -> dict[str, list[float]]:
        """Train the model for one epoch; see `loop.fit`."""
        return loop.fit(self.model, self.training(records, sampler, batch_size), class_weights, callbacks)

    def predict(self, records: Sequence[Record], batch_size: int) -> np.ndarray:
        """Return p_real of every image, float64 (n,); see `loop.predict`."""
        return loop.predict(self.model, self.plain(records, batch_size))

    def outputs(
        self, records: Sequence[Record], batch_size: int, wanted: Collection[str] = ()
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return p_real of every image, and what the base gives for some of them, in one pass.

        Args:
            records: the images.
            batch_size: images at once.
            wanted: the hashes (SHA-256) of the images whose features are kept, as many as fit into memory.

        Returns:
            float64 (n,), and by hash float32 (features,), the output of the base.
        """
        p_real, features = [np.zeros(0)], {}
        at_once = _BATCHES_AT_ONCE * batch_size  # features of the other images don't pile up
        for start in range(0, len(records), at_once):
            part = records[start : start + at_once]
            rows, p = loop.outputs(self._with_features, self.plain(part, batch_size))
            p_real.append(p.reshape(-1))
            features |= {r.sha256: row.copy() for r, row in zip(part, rows, strict=True) if r.sha256 in wanted}
        return np.concatenate(p_real, dtype=np.float64), features

    @cached_property
    def _with_features(self) -> keras.Model:
        """The model, with the output of the base beside p_real."""
        inputs, lower, head = self.model.inputs[0], *_layers(self.model)
        pooled = _chain(lower, inputs)
        return keras.Model(inputs, [pooled, self.model.layers[-1](_chain(head, pooled))])


class ImageBatches(BatchSource):
    """Decoded images, for the whole network."""

    augmented_versions = 0

    def __init__(
        self, model: keras.Model, preprocessing: Preprocessing, options: AugmentationConfig, decoded: Rows | None
    ) -> None:
        self.model, self.options, self.cost = model, options, FeatureCost()
        self._preprocessing, self._decoded = preprocessing, decoded

    def augmented(self, records: Sequence[Record], sampler: EpochSampler, batch_size: int) -> Any:
        """See `BatchSource`."""
        return input_pipeline.augmented_batches(
            records, self._preprocessing, self.options, sampler, batch_size, self._decoded
        )

    def plain(self, records: Sequence[Record], batch_size: int) -> Any:
        """See `BatchSource`."""
        return input_pipeline.plain_batches(records, self._preprocessing, batch_size, self._decoded)


class CachedFeatureBatches(BatchSource):
    """Features of the frozen part, for the trained part alone.

    The first version of an image is the image itself, the others are randomly augmented; the epochs use them in turn.
    """

    def __init__(self, network: SplitNetwork, rows: Rows, images: ImageBatches, seed: int, versions: int) -> None:
        self.network, self.model, self._frozen = network, network.trained, network.frozen
        self._rows, self._images = rows, images
        self._seed, self.augmented_versions, self.cost = seed, versions, FeatureCost()
        self.engine = f"{self._frozen.engine}, {engine.keras_version()}"
        augmentation = json.dumps([asdict(images.options), seed], sort_keys=True)
        self._augmentation = hashlib.sha256(augmentation.encode()).hexdigest()[:16]

    def augmented(self, records: Sequence[Record], sampler: EpochSampler, batch_size: int) -> Any:
        """See `BatchSource`."""
        return self._batches(records, sampler.epoch % self.augmented_versions, batch_size)

    def plain(self, records: Sequence[Record], batch_size: int) -> Any:
        """See `BatchSource`."""
        return self._batches(records, 0, batch_size)

    def progress_note(self, epochs_done: int, epochs: int) -> str:
        """Once all versions were computed, return how long that took."""
        versions = min(self.augmented_versions, epochs)
        if epochs_done != versions:
            return ""
        effort = "found in the cache"
        if self.cost.seconds:
            effort = f"computed once by {self._frozen.engine}: {_duration(self.cost.seconds)}"
        return f"features of {versions} version{'s' * (versions > 1)} of each image {effort}"

    def _batches(self, records: Sequence[Record], version: int, batch_size: int) -> Any:
        names = [self._name(record, version) for record in records]
        self._compute([(r, n) for r, n in zip(records, names, strict=True) if self._rows.get(n) is None], version)
        shape = self.model.input_shape[1:]
        return input_pipeline.row_batches(records, lambda number: self._rows.get(names[number]), shape, batch_size)

    def _name(self, record: Record, version: int) -> str:
        return f"{record.sha256} {self._augmentation} {version}" if version else record.sha256

    def _compute(self, missing: Sequence[tuple[Record, str]], version: int) -> None:
        if not missing:
            return
        started = time.monotonic()
        batches = self._missing_images([record for record, _ in missing], version)
        title = f"features, version {version + 1}/{self.augmented_versions}"
        for (_, name), row in zip(missing, _features(self._frozen, batches, title, len(missing)), strict=True):
            self._rows.put(name, row)
        self._rows.flush()
        if any(self._rows.get(name) is None for _, name in missing):
            raise DataError("cache: no room for features: raise data.cache_gb, free disk space, or name another disk's"
                            " folder with --cache-dir DIR")  # fmt: skip
        self.cost.images += len(missing)
        self.cost.seconds += time.monotonic() - started

    def _missing_images(self, records: Sequence[Record], version: int) -> Any:
        if version:
            return self._images.augmented(records, self._sampler_of(version), FROZEN_BATCH)
        return self._images.plain(records, FROZEN_BATCH)

    def _sampler_of(self, version: int) -> EpochSampler:
        """Return what seeds the augmentation of a cached version: its number, whatever the phase and the epoch."""
        return EpochSampler(self._seed, phase=0, epoch=version)


def choose_batch_source(
    model: keras.Model,
    config: Config,
    preprocessing: Preprocessing,
    cache: RowCache,
    count: int,
    learn_batch_norm: bool = False,
    twin: keras.Model | None = None,
    all_of: Callable[[bool], bool] = bool,
) -> BatchSource:
    """Return cached features where a part of the network is frozen and the cache has room for them, else images.

    Args:
        model: as `networks.build` returns it, after `networks.set_trainable`.
        config: only its seed, augmentation and number of augmented versions are used.
        preprocessing: of the size that the model takes.
        cache: where decoded images and features are kept.
        count: number of images, in all splits.
        learn_batch_norm: True where the model calls its base in training mode: features then vary and can't be cached.
        twin: the same network on one device, which computes the features, where several processes hold `model` together
            and so could compute only all at once.
        all_of: returns whether a condition is true in all these processes, which must choose alike.
    """
    images = ImageBatches(model, preprocessing, config.augmentation, cache.images(preprocessing))
    parts = split_network(model) if config.training.augmented_versions and not learn_batch_norm else None
    if parts is None:
        return images
    versions = _versions(config)
    size = count * versions * math.prod(parts.frozen.output_shape[1:]) * np.dtype("float32").itemsize
    frozen, rows, by_pixels = _open_frozen_part(
        split_network(twin) if twin else parts, preprocessing, cache, count * versions
    )
    if not all_of(cache.holds(rows, size)):
        log(f"features need {size / 1e9:.1f} GB, more than data.cache_gb or the disk allows: they are computed again in"
            " every epoch")  # fmt: skip
        return images
    network = SplitNetwork(frozen, parts.trained, by_pixels)
    return CachedFeatureBatches(network, rows, images, config.seed, versions)


def penultimate(model: keras.Model, features: np.ndarray) -> np.ndarray:
    """Return the input of the output layer, float64 (n, units), for the output of the base, float32 (n, features)."""
    pooled = keras.Input(features.shape[1:])
    head = keras.Model(pooled, _chain(_layers(model)[1], pooled))
    # Given arrays, Keras' `predict` makes TensorFlow 2.21 print an error about an attribute of its own (threadpool).
    return np.asarray(head.predict_on_batch(features), dtype=np.float64).reshape(len(features), -1)


def _layers(model: keras.Model) -> tuple[Sequence[keras.Layer], Sequence[keras.Layer]]:
    """Return the layers from the input to the features of the base, and those between them and the output layer."""
    last = [layer.name for layer in model.layers].index(networks.FEATURES)
    return model.layers[1 : last + 1], model.layers[last + 1 : -1]


def plain_features(
    model: keras.Model,
    config: Config,
    preprocessing: Preprocessing,
    cache: RowCache,
    count: int,
    records: Sequence[Record],
) -> np.ndarray:
    """Return the features of some images as prediction sees them, float32 (n, features).

    They are kept in the cache, where a training of the head finds them. The arguments are those of
    `choose_batch_source`; the whole base must be frozen.
    """
    frozen, rows, _ = _open_frozen_part(split_network(model), preprocessing, cache, count * _versions(config))
    missing = [record for record in records if rows.get(record.sha256) is None]
    batches = input_pipeline.plain_batches(missing, preprocessing, FROZEN_BATCH, cache.images(preprocessing))
    computed = _features(frozen, batches, "features of the backbone", len(missing))
    new = {record.sha256: row for record, row in zip(missing, computed, strict=True)}
    for name, row in new.items():
        rows.put(name, row)
    rows.flush()
    found = [new.get(record.sha256, rows.get(record.sha256)) for record in records]
    return np.stack(found).reshape(len(records), -1)


def _features(frozen: FrozenPart, batches: Iterable[Any], title: str, count: int) -> Iterator[np.ndarray]:
    """Yield the features of each image of the batches."""
    with progress_bar(title, count) as advance:
        for images, labels in batches:
            yield from frozen.features(np.asarray(images))
            advance(len(labels))
            check_interrupt()


def _open_frozen_part(
    parts: NetworkParts, preprocessing: Preprocessing, cache: RowCache, images: int
) -> tuple[FrozenPart, Rows, Rows]:
    """Return the frozen part on its fastest engine, and the rows of the cache that hold its features.

    The first rows are named after files, the others, which a run can do without, after pixels.
    """
    fingerprint, shape = parts.fingerprint(), parts.frozen.output_shape[1:]
    frozen = fastest_frozen_part(parts.frozen, fingerprint, images, cache.folder)
    rows = cache.rows(f"features {preprocessing.fingerprint} {fingerprint} {frozen.engine}", shape, "float32")
    by_pixels = cache.rows(f"features_by_pixels {fingerprint} {frozen.engine}", shape, "float32", essential=False)
    return frozen, rows, by_pixels


def _versions(config: Config) -> int:
    """Return how many versions of each image are cached: without augmentation they would all be the same."""
    return 1 if _is_off(config.augmentation) else config.training.augmented_versions


def _is_off(options: AugmentationConfig) -> bool:
    steps = asdict(options)
    return not steps.pop("resaving")["share"] and not any(steps.values())


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


@dataclass(frozen=True)
class NetworkParts:
    """The two parts of a network; they share its layers and weights."""

    frozen: keras.Model  # from pixels to features
    trained: keras.Model  # from features to p_real

    def fingerprint(self) -> str:
        """Return a hash of what the frozen part computes: its weights, and its features of one image of noise.

        The features depend also on what the weights don't show: layers, backend, device, 16 or 32 bits.
        """
        noise = np.random.default_rng(0).integers(0, 256, (1, *self.frozen.input_shape[1:]))
        digest = hashlib.sha256(networks.outputs_once(self.frozen, noise).tobytes())
        for weights in self.frozen.get_weights():
            digest.update(np.ascontiguousarray(weights).tobytes())
        return digest.hexdigest()[:32]


def split_network(model: keras.Model) -> NetworkParts | None:
    """Return the frozen part and the rest, or None where nothing is frozen.

    Args:
        model: as `networks.build` returns it, with its base in inference mode, after `networks.set_trainable`.
    """
    base = model.get_layer(networks.BASE)
    number = _last_frozen(base.layers)
    if not any(layer.weights and not layer.trainable for layer in base.layers[: number + 1]):
        return None  # nothing to cache: at most the pixels are scaled there, which is cheap
    if number == len(base.layers) - 1:
        lower, upper = base, None
    else:
        cut = base.layers[number].output
        lower, upper = keras.Model(base.inputs, cut), keras.Model(cut, base.output)
    at = model.layers.index(base)
    pixels = keras.Input(model.input_shape[1:])
    frozen = keras.Model(pixels, lower(_chain(model.layers[1:at], pixels), training=False))
    features = keras.Input(frozen.output_shape[1:], dtype=frozen.output.dtype)
    pooled = features if upper is None else upper(features, training=False)
    return NetworkParts(frozen, keras.Model(features, _chain(model.layers[at + 1 :], pooled)))


def _chain(layers: Sequence[keras.Layer], x: keras.KerasTensor) -> keras.KerasTensor:
    for layer in layers:
        x = layer(x)
    return x


def _last_frozen(layers: Sequence[keras.Layer]) -> int:
    """Return the index of the layer to split after: the last below all trained ones that alone feeds those above it."""
    number_of = {id(layer.output): number for number, layer in enumerate(layers)}
    needs = [[number_of[id(x)] for x in keras.tree.flatten(layer.input)] if n else [] for n, layer in enumerate(layers)]
    trained = [number for number, layer in enumerate(layers) if layer.trainable_variables]
    first = trained[0] if trained else len(layers)
    lowest = len(layers)  # the lowest layer that those above the candidate need
    for number in range(len(layers) - 1, 0, -1):
        if number < first and lowest >= number:
            return number
        lowest = min([lowest, *needs[number]])
    return 0


class FrozenPart(Protocol):
    """Computes features."""

    engine: str  # equal ones compute equal features of one network on one machine
    conversion: Conversion | None  # what it runs, if that is not Keras

    def features(self, images: np.ndarray) -> np.ndarray:
        """Return float32 (n, ...) for at most `FROZEN_BATCH` images 0..255 of shape (n, S, S, 3)."""


class KerasFrozenPart:
    """The frozen part, computed by Keras."""

    engine, conversion = "Keras", None

    def __init__(self, frozen: keras.Model) -> None:
        self._frozen = frozen

    def features(self, images: np.ndarray) -> np.ndarray:
        """See `FrozenPart`."""
        features = self._frozen.predict_on_batch(pad_batch(images, FROZEN_BATCH))
        return np.asarray(features, dtype=np.float32)[: len(images)]


class ConvertedFrozenPart:
    """The frozen part, converted for a faster engine."""

    def __init__(self, network: ConvertedNetwork, engine: str, conversion: Conversion | None = None) -> None:
        self._network, self.engine, self.conversion = network, engine, conversion

    def features(self, images: np.ndarray) -> np.ndarray:
        """See `FrozenPart`."""
        return self._network.outputs(images)


class SplitNetwork:
    """The whole network for decoded images: its frozen part on an engine of its own, the rest on Keras.

    The features of images that it has seen, in this run or an earlier one, come from the cache.
    """

    def __init__(self, frozen: FrozenPart, trained: keras.Model, rows: Rows) -> None:
        self.frozen, self.trained, self._rows = frozen, trained, rows

    def p_real(self, images: np.ndarray) -> np.ndarray:
        """See `engines.formats.Network`."""
        chunks = [images[start : start + FROZEN_BATCH] for start in range(0, len(images), FROZEN_BATCH)]
        return np.concatenate([self._p_real(chunk) for chunk in chunks])

    def converted_backbone(self, prototypes: Prototypes | None) -> ConvertedBackbone | None:
        """Return the parts for the export of a detector with these prototypes; None where Keras runs the frozen one."""
        conversion = self.frozen.conversion
        if conversion is None or _EXPECTED not in conversion.files:  # the cache has it from an earlier version
            return None
        head = self.trained
        if prototypes:
            features = keras.Input(head.input_shape[1:])
            penultimate = _chain(head.layers[1:-1], features)
            head = networks.with_score(keras.Model(features, head.layers[-1](penultimate)), prototypes, penultimate)
        expected = np.load(io.BytesIO(conversion.files[_EXPECTED]), allow_pickle=False)
        return ConvertedBackbone(conversion.files[EXPORTED_SUFFIX], expected, head)

    def _p_real(self, images: np.ndarray) -> np.ndarray:
        outputs = self.trained.predict_on_batch(pad_batch(self._features(images), FROZEN_BATCH))
        return np.asarray(outputs, dtype=np.float64).reshape(-1)[: len(images)]

    def _features(self, images: np.ndarray) -> list[np.ndarray]:
        names = [hashlib.sha256(np.ascontiguousarray(image)).hexdigest() for image in images]
        found = {name: self._rows.get(name) for name in names}
        missing = {name: image for name, image in zip(names, images, strict=True) if found[name] is None}
        if missing:
            computed = self.frozen.features(np.stack(list(missing.values())).astype(np.float32))
            for name, row in zip(missing, computed, strict=True):
                self._rows.put(name, row)
                found[name] = row
        return [found[name] for name in names]


def fastest_frozen_part(frozen: keras.Model, fingerprint: str, images: int, cache: Path) -> FrozenPart:
    """Return the frozen part on the fastest engine whose features are those of Keras; log why another was refused.

    Args:
        frozen: from pixels to features.
        fingerprint: identifies what it computes, see `NetworkParts`.
        images: number of images to compute features for, each version counted; few are not worth a conversion.
        cache: the folder where conversions are kept.
    """
    own, runtime = KerasFrozenPart(frozen), RUNTIMES[_ENGINE]
    other_device = keras.backend.backend() != "tensorflow" or engine.has_gpu()
    few = images < engine.MIN_IMAGES_TO_CONVERT
    if few or other_device or frozen.output.dtype != "float32":
        return own
    try:
        network, conversion = engine.open_converted(_ENGINE, fingerprint, lambda: _convert(frozen), cache)
    except EngineRefused as error:
        log(f"features are computed by Keras, not {runtime.title}: {error}")
        return own
    return ConvertedFrozenPart(network, f"{runtime.title} {runtime.version}", conversion)


def _convert(frozen: keras.Model) -> Conversion:
    """Convert and compare with Keras; a refusal is cached too, so that the conversion is not tried again."""
    runtime, size = RUNTIMES[_ENGINE], frozen.input_shape[1]
    log(f"converting the frozen part of the network for {runtime.title}, once")
    files = convert(frozen, _ENGINE)
    images = parity.parity_images(size)
    found = ConvertedFrozenPart(engine.start_network(runtime, files, size), "").features(images)
    expected, stored = networks.outputs_once(frozen, images), io.BytesIO()
    np.save(stored, expected)
    return Conversion.of(files | {_EXPECTED: stored.getvalue()}, size, parity.compare_features(expected, found))
