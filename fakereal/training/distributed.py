"""Training on several devices of one machine: each batch is divided among them, with the result of a single device.

Keras' DataParallel on the JAX backend: every device holds the whole network and computes its part of a batch; gradients
are summed over all of them. A batch holds the same images, augmented in the same way, however many devices there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from fakereal.dataset.scan import Record, labels_of
from fakereal.runtime import log
from fakereal.training import input_pipeline
from fakereal.training.features import BatchSource
from fakereal.training.input_pipeline import EpochSampler
from fakereal.training.loop import fit, predict


@dataclass(frozen=True)
class DistributedContext:
    """The devices that a training is divided among, two or more."""

    devices: int

    def scope(self) -> AbstractContextManager[Any]:
        """Return a context in which models are built, and trained, on all devices; outside of it, on one of them."""
        return keras.distribution.DataParallel(auto_shard_dataset=False).scope()

    def divide(self, source: BatchSource) -> BatchSource:
        """Return the same batches, filled up so that they can be divided among the devices."""
        return _FilledBatches(source, self.devices)


def several_devices() -> DistributedContext | None:
    """Return a context for the devices of this machine, or None where there is one, or the backend isn't JAX."""
    if keras.backend.backend() != "jax":
        return None
    import jax

    count = jax.device_count()
    if count == 1:
        return None
    log(f"every batch is divided among {count} devices")
    return DistributedContext(count)


@dataclass(frozen=True)
class FilledRows:
    """The rows of batches that were filled up to a multiple of the number of devices."""

    rows: np.ndarray  # int64 (n,), numbers in the list of images
    weights: np.ndarray  # float32 (n,), in the loss: their weighted mean over a batch is the mean over its images
    repeated: np.ndarray  # bool (n,), True where an image is repeated to fill the batch
    batch_size: int  # rows of every batch but the last


def fill_up(count: int, batch_size: int, devices: int) -> FilledRows:
    """Return `count` images in batches that can be divided: each is filled up with its own first images, weight 0."""
    rows, weights, repeated = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)], [np.zeros(0, bool)]
    for start in range(0, count, batch_size):
        images = min(batch_size, count - start)
        places = np.arange(_multiple(images, devices))
        rows.append(start + places % images)
        repeated.append(places >= images)
        weights.append(np.where(repeated[-1], 0.0, len(places) / images).astype(np.float32))
    return FilledRows(
        np.concatenate(rows), np.concatenate(weights), np.concatenate(repeated), _multiple(batch_size, devices)
    )


def _multiple(size: int, devices: int) -> int:
    return -(-size // devices) * devices


class _FilledBatches(BatchSource):
    """Batches of another source, filled up for several devices."""

    def __init__(self, source: BatchSource, devices: int) -> None:
        self.model, self.augmented_versions, self.cost = source.model, source.augmented_versions, source.cost
        self._source, self._devices = source, devices

    def augmented(self, records: Sequence[Record], sampler: EpochSampler, batch_size: int) -> Any:
        return self._source.augmented(records, sampler, batch_size)

    def plain(self, records: Sequence[Record], batch_size: int) -> Any:
        return self._source.plain(records, batch_size)

    def progress_note(self, epochs_done: int, epochs: int) -> str:
        return self._source.progress_note(epochs_done, epochs)

    def fit(
        self,
        records: Sequence[Record],
        sampler: EpochSampler,
        batch_size: int,
        class_weights: dict[int, float] | None = None,
        callbacks: Sequence[keras.callbacks.Callback] = (),
    ) -> dict[str, list[float]]:
        chosen = [records[number] for number in sampler.order(records)]
        filled = fill_up(len(chosen), batch_size, self._devices)
        images = [chosen[row] for row in filled.rows]
        weights = filled.weights
        if class_weights:  # Keras refuses them beside weights of single images
            weights = weights * np.array([class_weights[label] for label in labels_of(images)], np.float32)
        batches = self.augmented(images, sampler, filled.batch_size)
        return fit(self.model, input_pipeline.weighted(batches, weights, filled.batch_size), callbacks=callbacks)

    def predict(self, records: Sequence[Record], batch_size: int) -> np.ndarray:
        filled = fill_up(len(records), batch_size, self._devices)
        images = [records[row] for row in filled.rows]
        return predict(self.model, self.plain(images, filled.batch_size))[~filled.repeated]
