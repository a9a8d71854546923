"""Training on several devices, of one process or of several: each batch is divided among them.

Keras' DataParallel on the JAX backend: every device holds the whole network and computes its part of a batch; gradients
are summed over all of them. A batch holds the same images, augmented in the same way, however many devices there are:
the result is that of a single device. Every process must take every step, and decide alike when a phase ends.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from fakereal.dataset.scan import Record, labels_of
from fakereal.runtime import check_interrupt, log
from fakereal.training import input_pipeline
from fakereal.training.features import BatchSource
from fakereal.training.input_pipeline import EpochSampler
from fakereal.training.loop import fit


@dataclass(frozen=True)
class DistributedContext:
    """The devices that a training is divided among, two or more."""

    devices: int  # of all processes together; each has the same number
    processes: int = 1
    index: int = 0  # of this process

    def scope(self) -> AbstractContextManager[Any]:
        """Return a context in which models are built, and trained, on all devices; outside of it, on one of them."""
        return _distribution().scope()

    @contextmanager
    def left(self) -> Iterator[None]:
        """Leave the scope for a while: what is built then lies on one device of this process."""
        current = keras.distribution.distribution()
        keras.distribution.set_distribution(None)
        try:
            yield
        finally:
            keras.distribution.set_distribution(current)

    def divide(self, source: BatchSource) -> BatchSource:
        """Return the same batches, filled up so that they can be divided among the devices; this process's part."""
        return _DividedBatches(source, self)

    def from_first(self, value: Any) -> Any:
        """Return the first process's value in all of them; it must be the same after a round trip through JSON."""
        if self.processes == 1:
            return value
        from jax.experimental.multihost_utils import broadcast_one_to_all

        content = json.dumps(value).encode()
        size = int(broadcast_one_to_all(np.int32(len(content))))
        padded = np.frombuffer(content.ljust(size)[:size], np.uint8)
        return json.loads(np.asarray(broadcast_one_to_all(padded), np.uint8).tobytes())

    def all_of(self, condition: bool) -> bool:
        """Return whether the condition is true in all processes."""
        if self.processes == 1:
            return condition
        from jax.experimental.multihost_utils import process_allgather

        return bool(np.all(process_allgather(np.int32(condition))))


def several_devices() -> DistributedContext | None:
    """Return a context for all devices, or None where there is one, or the backend isn't JAX.

    They are those of this machine, unless `jax.distributed` has connected this process to others.
    """
    if keras.backend.backend() != "jax":
        return None
    import jax

    count = jax.device_count()
    if count == 1:
        return None
    log(f"every batch is divided among {count} devices")
    return DistributedContext(count, jax.process_count(), jax.process_index())


@functools.cache
def _distribution() -> keras.distribution.DataParallel:
    import jax

    devices = sorted(jax.devices(), key=lambda each: (each.process_index, each.id))  # a process's rows are adjacent
    names = [f"{device.platform}:{device.id}" for device in devices]
    return keras.distribution.DataParallel(devices=names, auto_shard_dataset=False)


@dataclass(frozen=True)
class FilledRows:
    """What one process reads of batches that were filled up to a multiple of the number of devices."""

    rows: np.ndarray  # int64 (n,), numbers in the list of images: the process's part of each batch, one after the other
    weights: np.ndarray  # float32 (n,), in the loss: their weighted mean over a batch is the mean over its images
    batch_size: int  # rows of the process's part of every batch but the last
    repeated: np.ndarray  # bool, of all processes' rows: True where an image is repeated to fill the batch


def fill_up(count: int, batch_size: int, devices: int, processes: int = 1, index: int = 0) -> FilledRows:
    """Return a process's part of `count` images in batches that can be divided among the devices.

    Each batch is filled up with its own first images, weight 0.
    """
    rows, weights, repeated = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)], [np.zeros(0, bool)]
    for start in range(0, count, batch_size):
        images = min(batch_size, count - start)
        size = _multiple(images, devices)
        places = np.arange(size)
        own = places[index * size // processes : (index + 1) * size // processes]
        rows.append(start + own % images)
        weights.append(np.where(own < images, size / images, 0.0).astype(np.float32))
        repeated.append(places >= images)
    own_size = _multiple(batch_size, devices) // processes
    return FilledRows(np.concatenate(rows), np.concatenate(weights), own_size, np.concatenate(repeated))


def _multiple(size: int, devices: int) -> int:
    return -(-size // devices) * devices


class _DividedBatches(BatchSource):
    """This process's part of another source's batches, filled up for several devices."""

    def __init__(self, source: BatchSource, context: DistributedContext) -> None:
        self.model, self.augmented_versions, self.cost = source.model, source.augmented_versions, source.cost
        self._source, self._context = source, context

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
        filled = self._filled(len(chosen), batch_size)
        images = [chosen[row] for row in filled.rows]
        weights = filled.weights
        if class_weights:  # Keras refuses them beside weights of single images
            weights = weights * np.array([class_weights[label] for label in labels_of(images)], np.float32)
        batches = self.augmented(images, sampler, filled.batch_size)
        return fit(self.model, input_pipeline.weighted(batches, weights, filled.batch_size), callbacks=callbacks)

    def predict(self, records: Sequence[Record], batch_size: int) -> np.ndarray:
        filled = self._filled(len(records), batch_size)
        outputs = [np.zeros(0)]
        for images, _ in self.plain([records[row] for row in filled.rows], filled.batch_size):
            check_interrupt()
            outputs.append(self._outputs(np.asarray(images)))
        return np.concatenate(outputs)[~filled.repeated]

    def _filled(self, count: int, batch_size: int) -> FilledRows:
        context = self._context
        return fill_up(count, batch_size, context.devices, context.processes, context.index)

    def _outputs(self, images: np.ndarray) -> np.ndarray:
        """Map this process's part of a batch to the outputs of the whole batch, float64 (n,), in every process."""
        import jax
        from jax.sharding import NamedSharding, PartitionSpec

        divided = NamedSharding(_distribution().device_mesh.backend_mesh, PartitionSpec("batch"))
        kinds = self.model.trainable_variables, self.model.non_trainable_variables
        values = ([variable.value for variable in kind] for kind in kinds)
        outputs = self._forward(*values, jax.make_array_from_process_local_data(divided, images))
        return np.asarray(outputs, dtype=np.float64).reshape(-1)

    @functools.cached_property
    def _forward(self) -> Callable[..., Any]:
        """Keras' own `predict` can't return outputs that lie on other processes' devices."""
        import jax
        from jax.sharding import NamedSharding, PartitionSpec

        everywhere = NamedSharding(_distribution().device_mesh.backend_mesh, PartitionSpec())

        @functools.partial(jax.jit, out_shardings=everywhere)
        def forward(trainable: Any, others: Any, images: Any) -> Any:
            return self.model.stateless_call(trainable, others, images, training=False)[0]

        return forward
