"""Train on a Ray cluster: Ray Train places and starts the workers, and starts them again when one is lost.

The workers train together as one: `jax.distributed` connects them, and `training/distributed.py` divides each batch.
They write no results: the first one sends its state after each epoch to the process that started the run, which writes
the checkpoint, measures and saves the model. So `--resume` works with and without a cluster, and the machines share
nothing but the images.
"""

from __future__ import annotations

import contextlib
import io
import os
import platform
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from fakereal import runtime
from fakereal.config import Config
from fakereal.dataset.scan import Record
from fakereal.dataset.split import Split
from fakereal.errors import ConfigError, DataError, FakeRealError
from fakereal.labels import SPLITS
from fakereal.model.weights import BaseWeights
from fakereal.predict.ray import connect_ray
from fakereal.runtime import capture_output, check_interrupt, log, one_line
from fakereal.training import trainer
from fakereal.training.cache import open_cache
from fakereal.training.checkpoint import CheckpointWriter, TrainingState
from fakereal.training.distributed import several_devices
from fakereal.training.input_pipeline import named_images
from fakereal.training.trainer import DivergedError, Run

RESTARTS = 3
"""How often the workers are started again, from the last finished epoch, before the run ends with an error."""

_POLL_S = 0.5
_LONGEST_ERROR = 300  # characters


@dataclass(frozen=True)
class _Job:
    """What a worker needs. Its paths are absolute: a worker's current folder is another one."""

    config: Config
    origin: BaseWeights
    split: Split
    state: TrainingState
    relay: Any  # Ray's handle of the `Relay`


class Relay:
    """An actor that connects the workers with the process that started them, and outlives them."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._state: TrainingState | None = None  # after the last epoch
        self._has_new_state = False
        self._workers: list[Any] = []  # of all attempts
        self._ended_by: BaseException | None = None

    def join(self, worker: Any) -> tuple[TrainingState | None, bool]:
        """Register a worker; return the state after the last epoch, if any, and whether to return at once."""
        self._workers.append(worker)
        return self._state, self._ended_by is not None

    def log(self, line: str) -> None:
        """Take a line for the screen."""
        self._lines.append(line)

    def put(self, state: TrainingState) -> None:
        """Take the state after an epoch."""
        self._state, self._has_new_state = state, True

    def end(self, error: BaseException) -> list[Any]:
        """End the training: workers that join from now on return at once; return those that joined before."""
        self._ended_by = self._ended_by or error
        return self._workers

    def take(self) -> tuple[list[str], TrainingState | None]:
        """Return the lines since the last call, and the state if it is new."""
        lines, state = self._lines, self._state if self._has_new_state else None
        self._lines, self._has_new_state = [], False
        return lines, state

    def ended_by(self) -> BaseException | None:
        """Return the error that ended the training."""
        return self._ended_by


@contextmanager
def cluster(address: str, count: int | None) -> Iterator[Callable[[Run, Callable[..., None]], None]]:
    """Connect to a Ray cluster and yield what trains there, the `execute` of `trainer.train`.

    Args:
        address: see `connect_ray`.
        count: number of workers; None: one per GPU or, where there are none, one per machine.

    Raises:
        ConfigError: Ray is not installed, or the cluster is too small.
        DataError: there is no cluster.
    """
    if "://" in address:
        raise ConfigError(f"--ray: expected HOST:PORT, auto or local, got {address}: start the training on a machine of"
                          " the cluster, or submit it there with `ray job submit`")  # fmt: skip
    os.environ["RAY_TRAIN_ENABLE_PRINT_PATCH"] = "0"  # it would log what is printed, too
    with connect_ray(address):
        yield partial(_execute, _scaling(count))


def _scaling(count: int | None) -> Any:
    """Return Ray's description of the workers: a GPU each or, where there are none, an equal part of the machines.

    Raises:
        ConfigError: the cluster has fewer GPUs, or cores.
    """
    import ray
    from ray.train import ScalingConfig

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    cores, gpus = (sum(int(node.get(kind, 0)) for node in nodes) for kind in ("CPU", "GPU"))
    count, most = count or gpus or len(nodes), gpus or cores
    if count > most:
        raise ConfigError(f"--workers: expected at most {most}, as the cluster has {most} {'GPU' if gpus else 'core'}"
                          f"{'s' * (most > 1)}, got {count}")  # fmt: skip
    per_node = -(-count // len(nodes))
    share = {"GPU": 1} if gpus else {"CPU": max(1, min(int(node["CPU"]) for node in nodes) // per_node)}
    log(f"ray: {count} worker{'s' * (count > 1)} on {len(nodes)} machine{'s' * (len(nodes) > 1)}")
    return ScalingConfig(num_workers=count, use_gpu=bool(gpus), resources_per_worker=share, placement_strategy="SPREAD")


def _execute(scaling: Any, run: Run, keep: Callable[..., None]) -> None:
    """Do on the cluster what `trainer.run_phases` does in one process, with the same arguments and errors.

    Raises:
        DataError: workers were lost more than `RESTARTS` times.
    """
    import ray

    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), False)
    relay = ray.remote(Relay).options(num_cpus=0, scheduling_strategy=here).remote()
    job = _Job(_absolute(run.config), run.origin, _absolute_paths(run.split), run.state, relay)
    with tempfile.TemporaryDirectory(prefix="fakereal-") as folder:
        failures: list[BaseException] = []
        fitting = threading.Thread(target=_fit, args=(job, scaling, folder, failures), daemon=True)
        fitting.start()
        try:
            while fitting.is_alive():
                with contextlib.redirect_stdout(io.StringIO()):  # Ray prints there what its daemons report
                    fitting.join(_POLL_S)
                _receive(run, keep, relay)
                check_interrupt()
        except KeyboardInterrupt as error:
            for worker in ray.get(relay.end.remote(error)):
                ray.kill(worker)
            fitting.join()
            raise
        _receive(run, keep, relay)
    if ended_by := ray.get(relay.ended_by.remote()):
        raise ended_by
    if failures:
        raise _user_error(failures[0]) from failures[0]
    keep(always=True)


def _receive(run: Run, keep: Callable[..., None], relay: Any) -> None:
    """Print what the workers say, and keep their state."""
    import ray

    lines, state = ray.get(relay.take.remote())
    for line in lines:
        log(line)
    if state:
        vars(run.state).update(vars(state))
        keep()


def _fit(job: _Job, scaling: Any, folder: str, failures: list[BaseException]) -> None:
    """Train in Ray's workers; in a thread of its own, where Ray leaves Ctrl-C to us."""
    from ray.train import FailureConfig, RunConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    platforms = {} if scaling.use_gpu else {"JAX_PLATFORMS": "cpu"}
    environment = {"env_vars": {"KERAS_BACKEND": "jax", **platforms}}
    restarts = FailureConfig(max_failures=RESTARTS)
    running = RunConfig(storage_path=folder, failure_config=restarts, worker_runtime_env=environment)
    try:
        DataParallelTrainer(_work, train_loop_config={"job": job}, scaling_config=scaling, run_config=running).fit()
    except Exception as error:  # noqa: BLE001 - the main thread raises it
        failures.append(error)


def _user_error(error: BaseException) -> FakeRealError:
    """Return an error of Ray Train as one line; it repeats tracebacks, whose last line says what happened."""
    causes = getattr(error, "worker_failures", {}).values() or [error]
    last = [str(cause).strip().splitlines()[-1].rstrip(".") for cause in causes if str(cause).strip()]
    shown = one_line("; ".join(dict.fromkeys(last)))[:_LONGEST_ERROR]
    return DataError(f"--ray: workers failed {RESTARTS + 1} times, the last time with: {shown}: see Ray's logs on their"
                     " machines, then continue with --resume")  # fmt: skip


def _absolute(config: Config) -> Config:
    folder = config.data.cache_folder
    cache_dir = str(folder.absolute()) if folder and config.data.cache_dir != "auto" else config.data.cache_dir
    return replace(config, data=replace(config.data, cache_dir=cache_dir))


def _absolute_paths(split: Split) -> Split:
    """Return what workers need of a split."""

    def absolute(records: tuple[Record, ...]) -> tuple[Record, ...]:
        return tuple(replace(record, path=record.path.absolute(), class_folder=None) for record in records)

    return Split(**{name: absolute(getattr(split, name)) for name in SPLITS}, left_out=())


def _work(arguments: dict[str, Any]) -> None:
    """Train as one of Ray's workers, all of which execute this."""
    import ray
    from ray.train import get_context

    job, is_first = arguments["job"], get_context().get_world_rank() == 0
    last, has_ended = ray.get(job.relay.join.remote(ray.get_runtime_context().current_actor))
    if has_ended:
        return
    state = last or job.state
    try:
        _connect()
        runtime.set_quiet(not is_first)
        screen = contextlib.redirect_stderr(_Lines(job.relay)) if is_first else contextlib.nullcontext()
        with screen, named_images("put it back and add --resume"):
            if last:
                log(f"a worker was lost: all were started again, after epoch {last.epoch} of phase {last.phase + 1}")
            _train(job, state, is_first)
    except DivergedError as error:  # in all workers alike
        if is_first:
            ray.get([job.relay.put.remote(state), job.relay.end.remote(error)])
    except FakeRealError as error:
        ray.get(job.relay.end.remote(DataError(f"{platform.node()}: {error}")))
        raise  # the other workers wait for this one: Ray ends them, too


def _connect() -> None:
    """Make all workers' devices one set of devices."""
    import jax
    from jax.experimental.multihost_utils import sync_global_devices
    from ray.train import get_context
    from ray.train.collective import broadcast_from_rank_zero
    from ray.util import get_node_ip_address

    context = get_context()
    with socket.create_server(("", 0)) as free:
        own = f"{get_node_ip_address()}:{free.getsockname()[1]}"
    first = broadcast_from_rank_zero(own)
    with capture_output(shown_on_failure=True):
        jax.distributed.initialize(first, context.get_world_size(), context.get_world_rank())
        sync_global_devices("fakereal")  # connects the devices now, of which native code tells on stdout


def _train(job: _Job, state: TrainingState, is_first: bool) -> None:
    import jax
    import ray

    def send(state: TrainingState) -> None:
        ray.get(job.relay.put.remote(state))

    writer = CheckpointWriter(send if is_first else lambda state: None)
    with open_cache(job.config.data) as cache:
        run = Run(job.config, job.origin, job.split, cache, state, several_devices())
        trainer.run_phases(run, lambda always=False: writer.write(state, always))
    writer.write(state, always=True)
    jax.distributed.shutdown()


class _Lines(io.TextIOBase):
    """A text file that sends its lines to the relay."""

    def __init__(self, relay: Any) -> None:
        self._relay, self._rest = relay, ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._relay.log.remote(line)
        return len(text)
