"""Training on several devices and machines: each batch is divided among them, the result is that of one device.

Keras' DataParallel on the JAX backend: every device holds the whole network and computes its part of a batch; the sums
run over all of them. So every process must take every step, and a batch is made of the same pictures, changed in the
same way, however many there are.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from fakereal import runtime
from fakereal.config import Config
from fakereal.dataset.scan import Record, labels_of
from fakereal.errors import ConfigError
from fakereal.runtime import capture_output
from fakereal.training import input_pipeline
from fakereal.training.features import BatchSource
from fakereal.training.input_pipeline import EpochSampler
from fakereal.training.loop import predict
from fakereal.training.peers import Peers


@dataclass(frozen=True)
class Share:
    """What one process reads of a list of pictures that is taken in batches."""

    rows: np.ndarray  # int64, numbers in the list; the process's part of the first batch, of the second, ...
    weights: np.ndarray  # float32, of the rows in the loss: their mean over a batch is the mean over its pictures
    batch_size: int  # so many of the rows are this process's part of a batch; fewer in the last one
    filled: np.ndarray  # bool, over all processes' rows in their order: True where a picture stands a second time


@dataclass(frozen=True)
class DistributedContext:
    """Over what a training is spread; every process has its own."""

    processes: int = 1
    index: int = 0  # of this process; the first one, 0, writes the files
    devices: int = 1  # of all processes together
    peers: Peers | None = None

    @property
    def leads(self) -> bool:
        """Says whether this process writes the files."""
        return self.index == 0

    @property
    def alone(self) -> bool:
        """Says whether there is but one device, so that nothing has to be divided."""
        return self.devices == 1

    def scope(self) -> AbstractContextManager[Any]:
        """Returns a context in which models are built on all devices; outside it, they live on one of this process."""
        return nullcontext() if self.alone else _distribution().scope()

    def share(self, count: int, batch_size: int) -> Share:
        """Returns what this process reads of `count` pictures in their order.

        A batch that can't be divided by the number of devices is filled up with its own first pictures, weight 0.
        """
        rows, weights, filled = [np.zeros(0, np.int64)], [np.zeros(0)], [np.zeros(0, bool)]
        for start in range(0, count, batch_size):
            pictures = min(batch_size, count - start)
            size = self._whole(pictures)
            places = np.arange(size)
            own = places[self.index * size // self.processes : (self.index + 1) * size // self.processes]
            rows.append(start + own % pictures)
            weights.append(np.where(own < pictures, size / pictures, 0.0))
            filled.append(places >= pictures)
        return Share(
            np.concatenate(rows),
            np.concatenate(weights).astype(np.float32),
            self._whole(batch_size) // self.processes,
            np.concatenate(filled),
        )

    def _whole(self, size: int) -> int:
        return -(-size // self.devices) * self.devices

    def examples(
        self,
        feed: BatchSource,
        records: Sequence[Record],
        draw: EpochSampler,
        batch_size: int,
        class_weights: dict[int, float] | None,
    ) -> dict[str, Any]:
        """Returns what `fit` takes for an epoch: this process's part of each batch."""
        if self.alone:
            return {"x": feed.training(records, draw, batch_size), "class_weight": class_weights}
        chosen = [records[number] for number in draw.order(records)]
        share = self.share(len(chosen), batch_size)
        own = [chosen[row] for row in share.rows]
        weights = share.weights
        if class_weights:
            weights = weights * np.array([class_weights[label] for label in labels_of(own)], np.float32)
        batches = feed.view(own, draw, share.batch_size)
        return {"x": input_pipeline.weighted(batches, weights, share.batch_size)}

    def predict(self, feed: BatchSource, records: Sequence[Record], batch_size: int) -> np.ndarray:
        """Returns p_real of every picture, float64 (n,), in every process; each reads its part."""
        if self.alone:
            return predict(feed.model, feed.plain(records, batch_size))
        share = self.share(len(records), batch_size)
        own = [records[row] for row in share.rows]
        forward = _forward(feed.model)
        outputs = [np.zeros(0)]
        for images, _ in feed.plain(own, share.batch_size):
            outputs.append(forward(np.asarray(images)))
            runtime.check_interrupt()
        return np.concatenate(outputs)[~share.filled]

    def agree(self, identity: str, on: str) -> None:
        """Waits for the other processes and makes sure that they have the same; `Peers.agree` has the errors."""
        if self.peers:
            self.peers.agree(hashlib.sha256(identity.encode()).hexdigest(), on)

    @contextmanager
    def file_of_first(self, path: Path) -> Iterator[Path]:
        """Yields a path at which this process finds what the first one has at `path`, for as long as the context."""
        if self.processes == 1:
            yield path
            return
        content = _from_first(path.read_bytes() if self.leads and path.exists() else b"")
        with tempfile.TemporaryDirectory(prefix="fakereal-") as folder:
            copy = Path(folder) / path.name
            if content:
                copy.write_bytes(content)
            yield copy

    def part(self) -> None:
        """Ends what the processes do together."""
        if self.peers:
            import jax

            self.peers.leave()
            jax.distributed.shutdown()


ALONE = DistributedContext()
"""One device of one process."""


@contextmanager
def join_hosts(config: Config) -> Iterator[DistributedContext]:
    """Joins the processes that a configuration names, or finds this machine's devices, before anything is computed.

    Where there are several processes, an error in the context ends this one and all others; none is raised.

    Raises:
        ConfigError: the backend can't do that.
        FakeRealError: the others can't be reached.
    """
    hosts = config.cluster.addresses
    if not hosts:
        yield DistributedContext(devices=_device_count())
        return
    if keras.backend.backend() != "jax":
        raise ConfigError(
            f"--hosts: expected KERAS_BACKEND=jax in the environment, found {keras.backend.backend()}:"
            " pip install -r requirements-scale.txt, and set it in all processes"
        )
    peers = Peers(hosts, config.cluster.index)
    peers.meet()
    try:
        yield _initialized(config, peers)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the others must not wait for this process
        peers.fail(error)


def _initialized(config: Config, peers: Peers) -> DistributedContext:
    import jax
    from jax.experimental.multihost_utils import sync_global_devices

    _leave_losses_to_peers()
    keras.utils.set_random_seed(config.seed)  # or Keras would draw one, by a computation of all processes
    hosts = config.cluster.addresses
    with capture_output(shown_on_failure=True):
        keras.distribution.initialize(",".join(hosts), len(hosts), config.cluster.index)
        sync_global_devices("fakereal")  # connects the devices now, of which native code tells on stdout
    if jax.local_device_count() * len(hosts) != jax.device_count():
        raise ConfigError(
            f"--hosts: expected as many devices in every process, found {jax.local_device_count()} here and"
            f" {jax.device_count()} in all {len(hosts)}: CUDA_VISIBLE_DEVICES can hide some"
        )
    return DistributedContext(len(hosts), config.cluster.index, jax.device_count(), peers)


def _leave_losses_to_peers() -> None:
    """Gives `Peers` the time to tell what happened before JAX aborts this process, which no option prevents.

    A handler in C runs in the very thread that aborts, whatever Python does meanwhile: sleep(SIGABRT) takes 6 seconds.
    """
    import jax

    jax.config.update("jax_enable_preemption_service", False)  # it would make SIGTERM a note to all instead of an end
    jax.config.update("jax_enable_recoverability", True)  # the loss of any process but the first is no reason to abort
    if os.name == "posix":
        library = ctypes.CDLL(None)
        library.signal.argtypes, library.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
        library.signal(signal.SIGABRT, ctypes.cast(library.sleep, ctypes.c_void_p))


def _device_count() -> int:
    if keras.backend.backend() != "jax":
        return 1
    import jax

    return jax.device_count()


@functools.cache
def _distribution() -> keras.distribution.DataParallel:
    import jax

    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))  # rows of a process together
    names = [f"{device.platform}:{device.id}" for device in devices]
    return keras.distribution.DataParallel(devices=names, auto_shard_dataset=False)


@functools.lru_cache(maxsize=1)
def _forward(model: keras.Model) -> Callable[[np.ndarray], np.ndarray]:
    """Returns what maps this process's part of a batch to the outputs of the whole batch, float64 (n,)."""
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    mesh = _distribution().device_mesh.backend_mesh
    divided, everywhere = NamedSharding(mesh, PartitionSpec("batch")), NamedSharding(mesh, PartitionSpec())

    @functools.partial(jax.jit, out_shardings=everywhere)
    def compute(trainable: Any, others: Any, images: Any) -> Any:
        return model.stateless_call(trainable, others, images, training=False)[0]

    def forward(images: np.ndarray) -> np.ndarray:
        learning, others = model.trainable_variables, model.non_trainable_variables
        values = [[each.value for each in kind] for kind in (learning, others)]
        whole = jax.make_array_from_process_local_data(divided, images)
        return np.asarray(compute(*values, whole), dtype=np.float64).reshape(-1)

    return forward


def _from_first(content: bytes) -> bytes:
    """Returns the first process's bytes in every process."""
    from jax.experimental.multihost_utils import broadcast_one_to_all

    size = int(broadcast_one_to_all(np.int32(len(content))))
    sent = np.frombuffer(content.ljust(size), np.uint8)[:size]
    return np.asarray(broadcast_one_to_all(sent), np.uint8).tobytes()
