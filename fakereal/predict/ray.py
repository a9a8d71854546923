"""Prediction on a Ray cluster: the pictures go out in chunks to workers that each hold the network.

What comes back is what one machine would have found, in the same order, so that the journal, `--resume` and the
results are the same, to the byte on machines of one kind. Ray gives a chunk whose worker is lost to another worker.
"""

from __future__ import annotations

import json
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

from fakereal.errors import ConfigError, DataError, FakeRealError
from fakereal.predict import pipeline
from fakereal.predict import results as predict_results
from fakereal.predict.containers import ObjectStore
from fakereal.predict.inputs import Item, Listing
from fakereal.predict.journal import as_line, outcome_of
from fakereal.predict.pipeline import RawPrediction
from fakereal.predict.results import PredictionResult, details_of
from fakereal.predict.run import PredictConfig, Predictor, complete
from fakereal.runtime import log, one_line

CHUNK_BATCHES = 8
"""Batches that a worker takes at once: seconds of work, so that a lost one costs little and Ray is asked rarely."""

SHARD_ROWS = 100_000
"""Rows of each file of results but the last."""

_PROBE_S = 10.0

LOCAL = "local"
"""In place of a cluster's address: Ray is started on this machine, and ended afterwards."""


@dataclass(frozen=True)
class WorkerConfig:
    """What a worker is made from."""

    model: Any  # Ray's reference to the file's content, so that the nodes need no shared disk for it
    model_name: str
    engine: str  # name and version: the bytes of the results depend on both
    foreign_model: bool
    batch_size: int
    variants: tuple[str, ...]


class Worker:
    """Holds the network on one node, and predicts chunk after chunk; `cores` are its share of them, None: any."""

    def __init__(self, config: WorkerConfig, cores: int | None = None) -> None:
        import ray

        from fakereal.engines import formats
        from fakereal.engines.engine import open_network

        threads = min(cores or formats.core_count(), formats.core_count())

        with tempfile.TemporaryDirectory(prefix="fakereal-") as folder:
            model = Path(folder) / config.model_name
            model.write_bytes(ray.get(config.model))
            opened = open_network(model, config.engine.split()[0].lower(), config.foreign_model, threads)
        if opened.engine != config.engine:
            raise ConfigError(
                f"--ray: expected {config.engine} on every node, as here, found {opened.engine} on {platform.node()}:"
                " install the same versions there"
            )
        self._config, self._opened = config, opened

    def __call__(self, chunks: dict[str, Any]) -> dict[str, list[str]]:
        """Maps chunks of pickled items to their outcomes, as lines of the journal numbered 0, 1, 2, ... in each."""
        return {"lines": [self._lines(pickle.loads(chunk)) for chunk in chunks["items"]]}

    def _lines(self, chunk: Sequence[Item]) -> str:
        config, preprocessing = self._config, self._opened.metadata.preprocessing
        outcomes = pipeline.predict_batches(
            chunk, self._opened.network, preprocessing, config.batch_size, config.variants
        )
        return "".join(as_line(number, outcome) for number, outcome in enumerate(outcomes))


@dataclass(frozen=True)
class RayPredictor(Predictor):
    """A predictor whose outcomes come from the workers of the cluster that this process is connected to."""

    worker: WorkerConfig | None = None

    def outcomes(self, items: Iterable[Item], config: PredictConfig) -> Iterator[RawPrediction]:
        """See `Predictor`; the items are sent out at once, the outcomes come in their order."""
        import ray.data

        chunks = [pickle.dumps(chunk) for chunk in _chunks(items, CHUNK_BATCHES * config.batch_size)]
        if not chunks:
            return
        rows = ray.data.from_items([{"items": chunk} for chunk in chunks], override_num_blocks=len(chunks))
        resources = _resources(self.worker)
        made_from = self.worker, resources.get("num_cpus")
        lines = rows.map_batches(Worker, fn_constructor_args=made_from, batch_size=1, **resources)
        try:
            for chunk, row in zip(chunks, lines.iter_rows(), strict=True):
                yield from predict_on_ray(pickle.loads(chunk), row["lines"])
        except ray.exceptions.RayError as error:
            raise _in_words(error) from error

    def results(self, outcomes: Iterable[RawPrediction], config: PredictConfig) -> Iterator[PredictionResult]:
        """See `Predictor`; on their way they are written in parts too."""
        return sharded(Predictor.results(self, outcomes, config), config.output, config.variants)


def predict_on_ray(items: Sequence[Item], lines: str) -> list[RawPrediction]:
    """Returns the outcomes of a chunk's items from what a worker said of it.

    Raises:
        DataError: it is of other pictures, or of others' order.
    """
    entries = [json.loads(line) for line in lines.splitlines()]
    named, expected = [entry["image"] for entry in entries], [item.name for item in items]
    if named != expected:
        other = next(pair for pair in zip_longest(expected, named) if pair[0] != pair[1])
        raise DataError(
            "--ray: expected what the workers found in the order of the images, here {!r}, found {!r}: go on with"
            " --resume".format(*other)
        )
    return [outcome_of(entry, item) for entry, item in zip(entries, items, strict=True)]


def complete_on_ray(config: PredictConfig, listing: Listing, predictor: Predictor, model: Path, address: str) -> int:
    """Does what `prediction.complete` does, on a cluster.

    Args:
        config: what the user asked for.
        listing: what is to be predicted.
        predictor: its network is only used for its name: the workers open the model themselves.
        model: the model file.
        address: see `connected`.

    Raises:
        ConfigError: Ray is not installed, or something that it can't do was asked for.
        FakeRealError: as `connected` and `prediction.complete`.
    """
    if archive := next((item.root for item in listing.items if not isinstance(item.root, (Path, ObjectStore))), None):
        raise ConfigError(f"--ray: expected folders or object stores, found the archive {archive.path}: unpack it")
    if config.explain is not None:
        raise ConfigError("--ray: expected no --explain, found one: explain some of the images on this machine")
    engine, foreign = str(predictor.identity["engine"]), config.foreign_model
    with connect_ray(address):
        import ray

        content = ray.put(model.read_bytes())
        worker = WorkerConfig(content, model.name, engine, foreign, config.batch_size, config.variants)
        return complete(config, listing, RayPredictor(**vars(predictor), worker=worker))


@contextmanager
def connect_ray(address: str) -> Iterator[None]:
    """Connects to the cluster at HOST:PORT for as long as the context lasts; `auto` finds one, LOCAL starts one.

    Raises:
        ConfigError: Ray is not installed.
        DataError: no cluster is there.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    try:
        import ray.data
    except ImportError as error:
        raise ConfigError(
            f"--ray: expected the package ray[data], found none ({one_line(error)}):"
            " pip install -r requirements-scale.txt"
        ) from error
    own = {"include_dashboard": False} if address == LOCAL else {}
    try:
        _probe(address)
        ray.init(address, logging_level=logging.ERROR, log_to_driver=False, **own)
    except Exception as error:
        raise DataError(
            f"--ray: expected a Ray cluster at {address}, found {one_line(error)[:300]}: `ray start --head` starts one,"
            f" --ray {LOCAL} does so for this run"
        ) from error
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False  # there is one already
        context.execution_options.preserve_order = True
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        yield
    finally:
        ray.shutdown()


def _probe(address: str) -> None:
    """Raises OSError where nobody listens at HOST:PORT: Ray itself would look for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE_S).close()


def _chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    items = iter(items)
    while chunk := list(islice(items, size)):
        yield chunk


def _resources(worker: WorkerConfig | None) -> dict[str, Any]:
    """Returns how many workers there are to be, and what each takes: a GPU where Keras runs on them, else cores.

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


def _in_words(error: BaseException) -> FakeRealError:
    """Returns what lies behind an error of Ray's, in a line."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, FakeRealError):
            return cause
        cause = getattr(cause, "cause", None) or cause.__cause__
    return DataError(f"--ray: expected the workers to predict, found {one_line(error)[-500:]}")


def sharded(
    results: Iterable[PredictionResult], output: Path, variants: Sequence[str] = ()
) -> Iterator[PredictionResult]:
    """Yields the results as they are, and writes the details of each as JSON Lines, `SHARD_ROWS` a file.

    The files lie in NAME_parts beside `output`; those of an earlier run that aren't written again are removed.
    """
    folder = output.with_name(f"{output.stem}_parts")
    old = set(folder.glob("part-*.jsonl"))
    results, number = iter(results), 0
    while some := list(islice(results, SHARD_ROWS)):
        path = folder / f"part-{number:06d}.jsonl"
        predict_results.write_details(path, [details_of(result, variants) for result in some])
        old.discard(path)
        number += 1
        yield from some
    for path in old:
        path.unlink()
