"""From uploads to analyses: decode, ask the network, decide; what the page and the API both show."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from fakereal.dataset import image_metadata
from fakereal.decoding import decode
from fakereal.engines.engine import OpenedNetwork, open_explainer
from fakereal.engines.formats import Network, pad_batch
from fakereal.errors import ConfigError, ImageRefused, ModelFileError
from fakereal.model import calibration
from fakereal.model.augmentation import STABILITY_RESAVES, resaved_arrays
from fakereal.model.calibration import DecisionRule
from fakereal.model.heatmap import seen_part
from fakereal.model.metadata import Metadata
from fakereal.predict.inputs import Item
from fakereal.predict.pipeline import RawPrediction, with_output
from fakereal.predict.results import PredictionResult, decide
from fakereal.predictions_json import key_of_file
from fakereal.preprocessing import Preprocessing
from fakereal.provenance import read_origin
from fakereal.runtime import log, one_line
from fakereal.web.http import MAX_BATCH, BusyError, Limits, TooSlowError, Upload
from fakereal.web.metrics import Metrics

T = TypeVar("T")


@dataclass(frozen=True)
class Variant:
    """The picture once more, saved again."""

    name: str  # of `augmentation.RESAVES`
    p_fake: float  # calibrated
    label: int


@dataclass(frozen=True)
class Analysis:
    """All that is known about one uploaded picture."""

    result: PredictionResult  # `raw.origin` is what the file claims
    file_bytes: int
    shown: Image.Image | None = None  # the part that the network saw, small; None unless asked for
    evidence: np.ndarray | None = None  # see `heatmap.Explanation`; None unless asked for
    calibrated_p_fake: float | None = None
    variants: tuple[Variant, ...] = ()  # empty unless asked for

    @property
    def stable(self) -> bool | None:
        """Says whether every variant gets the same label; None where none was tried."""
        return all(variant.label == self.result.network_label for variant in self.variants) if self.variants else None


@dataclass(frozen=True)
class _Read:
    """What one decoding thread found."""

    outcome: RawPrediction
    file_bytes: int
    shown: Image.Image | None
    images: tuple[np.ndarray, ...]  # the picture's array first, then those of its variants; empty: refused


@dataclass(frozen=True)
class Analyst:
    """Turns uploads into analyses."""

    worker: Worker
    preprocessing: Preprocessing
    decision: DecisionRule
    limits: Limits
    pool: ThreadPoolExecutor  # decodes; its few threads bound the memory that pictures take while they are large

    def analyse(self, uploads: Sequence[Upload], explain: bool = False, stability: bool = False) -> list[Analysis]:
        """Returns an analysis of each upload, in their order; one that can't be read has the reason in its outcome.

        Args:
            uploads: the files.
            explain: also find out what speaks for the label.
            stability: also ask for the label of re-saved variants, which cost as much as the picture each.

        Raises:
            BusyError: no room in the queue.
            TooSlowError: not done in time.
        """
        deadline = time.monotonic() + self.limits.timeout_s
        each = 1 + len(STABILITY_RESAVES) * stability
        with self.worker.admit(each * len(uploads)) as admission:
            reads = [self.pool.submit(self._read, upload, explain, stability) for upload in uploads]
            asked: list[tuple[_Read, list[Future[Answer]]]] = []
            try:
                for read in _in_time(reads, deadline):
                    asked.append((read, [admission.submit(image, explain) for image in read.images]))
                return [self._analysis(read, list(_in_time(answers, deadline))) for read, answers in asked]
            except FutureTimeoutError as error:
                raise TooSlowError(
                    f"expected an answer within {self.limits.timeout_s:.0f} s, found the server too busy: try again"
                ) from error
            finally:
                for future in (*reads, *(answer for _, answers in asked for answer in answers)):
                    future.cancel()  # of what is done already, nothing is cancelled

    def _read(self, upload: Upload, explain: bool, stability: bool) -> _Read:
        item = Item(Path(), upload.name, key_of_file(Path(upload.name)))
        origin, file_bytes = read_origin(upload.content), len(upload.content)
        try:
            self._check_pixels(upload.content)
            image, info = decode(upload.content, self.preprocessing.decode_px)
            images = [self.preprocessing.array(image)]
            if stability:
                images += resaved_arrays(upload.content, self.preprocessing)
            shown = seen_part(image, self.preprocessing) if explain else None
            return _Read(RawPrediction(item, info, origin=origin), file_bytes, shown, tuple(images))
        except ImageRefused as error:
            return _Read(RawPrediction(item, error=one_line(error), origin=origin), file_bytes, None, ())

    def _check_pixels(self, content: bytes) -> None:
        pixels = image_metadata.header_pixel_count(content)
        if pixels > self.limits.pixels:
            most = self.limits.pixels / 1e6
            raise ImageRefused("too_large", f"expected at most {most:.0f} megapixels, found {pixels / 1e6:.0f}")

    def _analysis(self, read: _Read, answers: Sequence[Answer]) -> Analysis:
        if not answers:
            return Analysis(decide([read.outcome], self.decision)[0], read.file_bytes)
        outcome = with_output(read.outcome, answers[0].p_real)
        result = decide([outcome], self.decision)[0]
        if outcome.p_real is None:
            return Analysis(result, read.file_bytes)
        others = np.array([answer.p_real for answer in answers[1:]], np.float64)
        return Analysis(
            result,
            read.file_bytes,
            read.shown,
            answers[0].evidence,
            float(calibration.calibrated_p_fake(np.float64(outcome.p_real), self.decision)),
            tuple(
                Variant(name, float(p_fake), int(label))
                for name, p_fake, label in zip(
                    STABILITY_RESAVES,
                    calibration.calibrated_p_fake(others, self.decision),
                    calibration.labels(others, self.decision),
                    strict=False,
                )
            ),
        )


def _in_time(futures: Iterable[Future[T]], deadline: float) -> Iterator[T]:
    for future in futures:
        yield future.result(max(0.0, deadline - time.monotonic()))


# ---- What `create_app` is given: a loaded model, ready to analyse, and what may be told about it.

_DECODERS = 4  # at most; each may hold a picture of Limits.pixels while it decodes


@dataclass(frozen=True)
class Predictor:
    """A model at work."""

    worker: Worker
    analyst: Analyst
    metrics: Metrics
    limits: Limits
    model: dict[str, Any]  # what GET /api/model tells
    card: str | None = None  # the model card's text
    draining: Event = field(default_factory=Event)  # set when no more requests are to come

    def stop(self, timeout_s: float = 2.0) -> None:
        """Waits for what was accepted, then ends the threads."""
        self.worker.stop(timeout_s)
        self.analyst.pool.shutdown(wait=False, cancel_futures=True)


def start_predictor(
    network: Network,
    preprocessing: Preprocessing,
    decision: DecisionRule,
    model: dict[str, Any],
    limits: Limits | None = None,
    card: str | None = None,
) -> Predictor:
    """Returns a predictor around a network, with its threads at work; `model` and `card` are what it tells of it."""
    limits, metrics = limits or Limits(), Metrics()
    worker = Worker(network, preprocessing.image_size_px, limits.queue, metrics.batch.observe)
    metrics.watch_queue(lambda: worker.admitted)
    pool = ThreadPoolExecutor(min(_DECODERS, os.cpu_count() or 1), thread_name_prefix="decode")
    worker.start()
    analyst = Analyst(worker, preprocessing, decision, limits, pool)
    return Predictor(worker, analyst, metrics, limits, {**model, "explains": worker.explains}, card)


# ---- From a model file that was opened to a predictor, and what may be told about the model.

_CARD = "MODEL_CARD.md"  # beside the shipped detector, and about no other
_SHIPPED = "pretrained.h5"


def from_opened(opened: OpenedNetwork, path: Path, limits: Limits | None = None) -> Predictor:
    """Returns a started predictor for a model file that was opened."""
    metadata = opened.metadata
    facts = _facts(metadata, path)
    return start_predictor(_explaining(opened), metadata.preprocessing, metadata.decision, facts, limits, _card(path))


def _explaining(opened: OpenedNetwork) -> Network:
    try:
        return open_explainer(opened)
    except (ConfigError, ModelFileError) as error:  # another backend, or a foreign network: verdicts all the same
        log(f"no heatmaps: {error}")
        return opened.network


def _facts(metadata: Metadata, path: Path) -> dict[str, Any]:
    """Returns what may be told to anybody: no path, no name of a user's folder."""
    return {
        "name": path.stem,
        "network": metadata.config.network.name,
        "image_size_px": metadata.preprocessing.image_size_px,
        "preprocessing": metadata.preprocessing.fingerprint,
        "decision": {
            "threshold": metadata.decision.threshold,
            "temperature": metadata.decision.temperature,
            "band": list(metadata.decision.band),
        },
        "test": _test_figures(metadata.metrics.get("test") or {}),
        "versions": dict(metadata.versions),
    }


def _test_figures(test: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the figures of the training run's test pictures, None where the file has none."""
    names = ("images", "accuracy", "roc_auc", "f1_fake", "f1_real", "uncertain_share")
    return {name: test.get(name) for name in names} if test else None


def _card(path: Path) -> str | None:
    card = path.with_name(_CARD)
    return card.read_text(encoding="utf-8") if path.name == _SHIPPED and card.is_file() else None


# ---- The one thread that runs the network: it takes whatever pictures are waiting, as one batch, from a bounded queue.

_SIZES = (2, 3, 4, 6, 8, 12, 16, 24)
"""Batches are filled up to one of these, or to MAX_BATCH; not to 1: a row alone is computed by another routine."""

_LINGER_S = 0.05  # how long a batch waits for pictures that are still being decoded


@dataclass(frozen=True)
class Answer:
    """The network's output for one picture."""

    p_real: float
    evidence: (
        np.ndarray | None
    )  # float32 (h, w), see `heatmap.Explanation`; None where it can't be had or none wants it


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A picture in the queue."""

    image: np.ndarray  # uint8 (S, S, 3)
    explain: bool  # wants evidence
    answer: Future[Answer]


class Worker:
    """Answers pictures in batches, in the order of their coming.

    Args:
        network: gives the outputs; with a method `explain`, see `Explainer`, also what they rest on.
        image_size_px: width and height of the pictures.
        queue: how many pictures may be on their way at once, from their admission to their answer.
        observe: told the number of pictures of each batch.
    """

    def __init__(
        self, network: Network, image_size_px: int, queue: int, observe: Callable[[int], None] = lambda count: None
    ) -> None:
        self.explains = hasattr(network, "explain")
        self._network, self._image_size_px, self._queue, self._observe = network, image_size_px, queue, observe
        self._sizes: tuple[int, ...] = (MAX_BATCH,)
        self._changed = threading.Condition()
        self._waiting: deque[_Waiting] = deque()
        self._admitted = 0  # on their way, from admission to answer
        self._coming = 0  # of these, not yet decoded
        self._stopping = False
        self._failure: BaseException | None = None
        self._warm = threading.Event()
        self._thread = threading.Thread(target=self._run, name="network", daemon=True)

    def start(self) -> None:
        """Starts the thread, which first tries the network with each size of batch."""
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Says whether pictures are taken and answered without delay."""
        return self._warm.is_set() and self.alive and not self._stopping

    @property
    def alive(self) -> bool:
        """Says whether the thread is at work."""
        return self._thread.is_alive()

    @property
    def admitted(self) -> int:
        """How many pictures are on their way."""
        return self._admitted

    def wait_until_warm(self) -> None:
        """Waits for the first runs of the network; raises what they raise."""
        self._warm.wait()
        if self._failure:
            raise self._failure

    def admit(self, count: int) -> Admission:
        """Makes room for so many pictures.

        Raises:
            BusyError: there is none.
        """
        places = min(count, self._queue)  # what is larger than the queue may have it for itself
        with self._changed:
            if self._stopping or self._admitted + places > self._queue:
                raise BusyError(
                    f"expected room for {places} more pictures, found {self._admitted} of {self._queue} places taken:"
                    " try again in a moment"
                )
            self._admitted += places
            self._coming += count
        return Admission(self, count, places)

    def stop(self, timeout_s: float) -> None:
        """Admits no more, and waits until what was admitted is answered."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(timeout_s)

    def _take(self, waiting: _Waiting) -> None:
        with self._changed:
            self._coming -= 1
            self._waiting.append(waiting)
            self._changed.notify_all()

    def _leave(self, places: int, never_came: int) -> None:
        with self._changed:
            self._admitted -= places
            self._coming -= never_came
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            self._sizes = self._equal_sizes()
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits
            self._failure = error
            return
        finally:
            self._warm.set()
        while batch := self._next_batch():
            self._answer(batch)

    def _equal_sizes(self) -> tuple[int, ...]:
        """Returns the sizes of batch that give the very outputs of the largest, which prediction uses."""
        shape = (MAX_BATCH, self._image_size_px, self._image_size_px, 3)
        probe = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        expected = self._network.p_real(probe)
        return (*(size for size in _SIZES if self._agrees(probe[:size], expected[:size])), MAX_BATCH)

    def _agrees(self, images: np.ndarray, expected: np.ndarray) -> bool:
        return all(np.array_equal(self._outputs(images, explain)[0], expected) for explain in {False, self.explains})

    def _next_batch(self) -> list[_Waiting]:
        """Waits for pictures and takes them; none once the worker was stopped and nothing is on its way."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or (self._stopping and not self._admitted))
            patience = time.monotonic() + _LINGER_S
            while 0 < len(self._waiting) < MAX_BATCH and self._coming and time.monotonic() < patience:
                self._changed.wait(patience - time.monotonic())
            return [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_BATCH))]

    def _answer(self, batch: Sequence[_Waiting]) -> None:
        wanted = [waiting for waiting in batch if waiting.answer.set_running_or_notify_cancel()]
        if not wanted:
            return
        self._observe(len(wanted))
        size = min(size for size in self._sizes if size >= len(wanted))
        try:
            images = pad_batch([waiting.image for waiting in wanted], size)
            p_real, evidence = self._outputs(images, any(waiting.explain for waiting in wanted))
        except Exception as error:  # noqa: BLE001 - the worker goes on; each request tells its own client
            for waiting in wanted:
                waiting.answer.set_exception(error)
            return
        for place, waiting in enumerate(wanted):
            shown = evidence[place] if waiting.explain and evidence is not None else None
            waiting.answer.set_result(Answer(float(p_real[place]), shown))

    def _outputs(self, images: np.ndarray, explain: bool) -> tuple[np.ndarray, np.ndarray | None]:
        if not (explain and self.explains):
            return np.asarray(self._network.p_real(images), np.float64), None
        found = self._network.explain(images)
        return found.p_real, found.evidence


class Admission:
    """Room for some pictures; a context manager that gives it back."""

    def __init__(self, worker: Worker, count: int, places: int) -> None:
        self._worker, self._left, self._places = worker, count, places

    def submit(self, image: np.ndarray, explain: bool = False) -> Future[Answer]:
        """Hands over one picture, uint8 (S, S, 3); cancelling its future spares the network what nobody waits for."""
        waiting = _Waiting(image, explain, Future())
        self._left -= 1
        self._worker._take(waiting)
        return waiting.answer

    def __enter__(self) -> Admission:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._worker._leave(self._places, self._left)
