"""Predict on a Ray cluster: chunks of images go to workers that each hold the network.

The predictions come back in order, so the journal, `--resume` and the results are the same as on one machine, to the
byte where all machines are of one kind. Ray gives the chunks of a lost worker to another one.
"""

from __future__ import annotations

import logging
import os
import pickle
import platform
import socket
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from fakereal.engines.card import files_of
from fakereal.errors import ConfigError, DataError, FakeRealError
from fakereal.model.foreign import ForeignModel
from fakereal.predict import pipeline
from fakereal.predict import results as predict_results
from fakereal.predict.containers import ObjectStore
from fakereal.predict.inputs import Item, Listing
from fakereal.predict.journal import from_json, image_of, to_json
from fakereal.predict.pipeline import RawPrediction
from fakereal.predict.results import PredictionResult, details_of
from fakereal.predict.run import PredictConfig, Predictor, complete, prepare
from fakereal.runtime import log, one_line

CHUNK_BATCHES = 8
"""Batches that a worker takes at once: seconds of work, so that a lost one costs little and Ray has little to do."""

SHARD_ROWS = 100_000
"""Rows of each file of results but the last."""

_PROBE_S = 10.0

LOCAL = "local"
"""In place of a cluster's address: Ray is started on this machine, and ended afterwards."""


@dataclass(frozen=True)
class WorkerConfig:
    """What a worker needs to open the model."""

    files: Any  # Ray's reference to name -> content of the model's files: the nodes need no shared disk for them
    model_name: str
    engine: str  # name and version: the bytes of the results depend on both
    foreign: ForeignModel | None
    batch_size: int
    variants: tuple[str, ...]


class Worker:
    """Hold the network on one node and predict chunk after chunk; `cores` are its share of the node, None: all."""

    def __init__(self, config: WorkerConfig, cores: int | None = None) -> None:
        import ray

        from fakereal.engines.engine import open_network
        from fakereal.engines.formats import core_count

        threads = min(cores or core_count(), core_count())
        with tempfile.TemporaryDirectory(prefix="fakereal-") as folder:
            for name, content in ray.get(config.files).items():
                Path(folder, name).write_bytes(content)
            model = Path(folder, config.model_name)
            opened = open_network(model, config.engine.split()[0].lower(), config.foreign, threads)
        if opened.engine != config.engine:
            raise ConfigError(
                f"--ray: all nodes need {config.engine}, as here, but {platform.node()} has {opened.engine}:"
                " install the same versions there"
            )
        self._config, self._opened = config, opened

    def __call__(self, chunks: dict[str, Any]) -> dict[str, list[str]]:
        """Map chunks of pickled items to their predictions, each chunk to lines of `journal.to_json`."""
        return {"lines": [self._predict(pickle.loads(chunk)) for chunk in chunks["items"]]}

    def _predict(self, chunk: Sequence[Item]) -> str:
        config, preprocessing = self._config, self._opened.metadata.preprocessing
        predictions = pipeline.predict_batches(
            chunk, self._opened.network, preprocessing, config.batch_size, config.variants
        )
        return "\n".join(map(to_json, predictions))


@dataclass(frozen=True)
class RayPredictor(Predictor):
    """A predictor whose raw predictions come from the workers of the cluster that this process is connected to."""

    worker: WorkerConfig | None = None

    def predict(self, items: Iterable[Item], config: PredictConfig) -> Iterator[RawPrediction]:
        """See `Predictor`; all items are sent at once, the raw predictions come in their order."""
        import ray.data

        chunks = [pickle.dumps(chunk) for chunk in _chunks(items, CHUNK_BATCHES * config.batch_size)]
        if not chunks:
            return
        rows = ray.data.from_items([{"items": chunk} for chunk in chunks], override_num_blocks=len(chunks))
        resources = _resources(self.worker)
        arguments = self.worker, resources.get("num_cpus")
        lines = rows.map_batches(Worker, fn_constructor_args=arguments, batch_size=1, **resources)
        try:
            for chunk, row in zip(chunks, lines.iter_rows(), strict=True):
                yield from parse_chunk(pickle.loads(chunk), row["lines"])
        except ray.exceptions.RayError as error:
            raise _user_error(error) from error

    def decide(self, predictions: Iterable[RawPrediction], config: PredictConfig) -> Iterator[PredictionResult]:
        """See `Predictor`; also write the results in parts beside the predictions, see `write_shards`."""
        decided = Predictor.decide(self, predictions, config)
        return write_shards(decided, config.output_file, config.variants) if config.output_file else decided


def run(config: PredictConfig) -> int:
    """Like `predict.run.run`, on the cluster at `config.ray`, see `connect_ray`.

    The network that `prepare` opens only says which engine the workers must have: they open the model themselves.

    Raises:
        ConfigError: Ray is not installed, or an option is not available on a cluster.
        FakeRealError: as `connect_ray` and `predict.run.run`.
    """
    if config.explain is not None:
        raise ConfigError("--explain is not available with --ray: explain some of the images on this machine")
    listing, predictor = prepare(config)
    _check_containers(listing)
    with connect_ray(str(config.ray)):
        import ray

        files = ray.put({path.name: path.read_bytes() for path in files_of(predictor.model)})
        engine, foreign = str(predictor.identity["engine"]), config.foreign
        worker = WorkerConfig(files, predictor.model.name, engine, foreign, config.batch_size, config.variants)
        return complete(config, listing, RayPredictor(**vars(predictor), worker=worker))


def _check_containers(listing: Listing) -> None:
    if archive := next((item.root for item in listing.items if not isinstance(item.root, (Path, ObjectStore))), None):
        raise ConfigError(f"--ray reads folders and object stores, but {archive.path} is an archive: unpack it")


def parse_chunk(items: Sequence[Item], lines: str) -> list[RawPrediction]:
    """Return the raw predictions of a chunk's items from a worker's answer.

    Raises:
        DataError: the answer is about other images, or in another order.
    """
    entries = lines.splitlines()
    returned, expected = list(map(image_of, entries)), [item.name for item in items]
    if returned != expected:
        wanted, got = next(pair for pair in zip_longest(expected, returned) if pair[0] != pair[1])
        raise DataError(
            f"--ray: a worker returned another order of images (expected {wanted!r}, got {got!r}): continue with"
            " --resume"
        )
    return [from_json(entry, item) for entry, item in zip(entries, items, strict=True)]


@contextmanager
def connect_ray(address: str) -> Iterator[None]:
    """Connect to the cluster at HOST:PORT while the context lasts; `auto` finds one, LOCAL starts one.

    Raises:
        ConfigError: Ray is not installed.
        DataError: there is no cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage reports
    try:
        import ray.data
    except ImportError as error:
        raise ConfigError(
            f"--ray needs the package ray[data], which is not installed ({one_line(error)}):"
            " pip install -r requirements-scale.txt"
        ) from error
    own = {"include_dashboard": False} if address == LOCAL else {}
    try:
        _probe(address)
        ray.init(address, logging_level=logging.ERROR, log_to_driver=False, **own)
    except Exception as error:
        raise DataError(
            f"--ray: no Ray cluster at {address} ({one_line(error)[:300]}): `ray start --head` starts one,"
            f" --ray {LOCAL} does so for this run"
        ) from error
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False  # we have our own
        context.execution_options.preserve_order = True
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        yield
    finally:
        ray.shutdown()


def _probe(address: str) -> None:
    """Raise OSError where nobody listens at HOST:PORT: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE_S).close()


def _chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    items = iter(items)
    while chunk := list(islice(items, size)):
        yield chunk


def _resources(worker: WorkerConfig | None) -> dict[str, Any]:
    """Return the number of workers and what each takes: a GPU where Keras runs on them, else cores.

    All workers take the same, so it is as many cores as the smallest node has; a larger node gets several workers.
    """
    import ray.data

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    if gpus and worker and worker.engine.lower().startswith("keras"):
        share, count = {"num_gpus": 1}, gpus
    else:
        cores = max(1, int(min((node["CPU"] for node in nodes), default=1)))
        share, count = {"num_cpus": cores}, max(1, sum(int(node["CPU"] // cores) for node in nodes))
    log(f"ray: {count} worker{'s' * (count > 1)} on {len(nodes)} node{'s' * (len(nodes) > 1)}")
    return {**share, "compute": ray.data.ActorPoolStrategy(min_size=1, max_size=count, initial_size=count)}


def _user_error(error: BaseException) -> FakeRealError:
    """Return the cause of a Ray error, as an error that is one line for the user."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, FakeRealError):
            return cause
        cause = getattr(cause, "cause", None) or cause.__cause__
    return DataError(f"--ray: the workers failed: {one_line(error)[-500:]}")


def write_shards(
    results: Iterable[PredictionResult], output: Path, variants: Sequence[str] = ()
) -> Iterator[PredictionResult]:
    """Yield the results unchanged, and write the details of each as JSON Lines, `SHARD_ROWS` per file.

    The files are in the folder NAME_parts beside `output`; those of an earlier run that are not replaced are removed.
    """
    folder = output.with_name(f"{output.stem}_parts")
    old = set(folder.glob("part-*.jsonl"))
    results, number = iter(results), 0
    while chunk := list(islice(results, SHARD_ROWS)):
        path = folder / f"part-{number:06d}.jsonl"
        predict_results.write_details(path, [details_of(result, variants) for result in chunk])
        old.discard(path)
        number += 1
        yield from chunk
    for path in old:
        path.unlink()
