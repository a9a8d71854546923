"""From uploaded files to analyses: decode, run the network in batches from a bounded queue, apply the decision rule.

A `Predictor` is what the app is given. Its `Analyzer` decodes the files of a request on a few threads and hands the
images to its `Worker`, the one thread that runs the network on whatever images are waiting.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from fakereal.dataset import image_metadata
from fakereal.engines.engine import OpenedNetwork, open_explainer
from fakereal.engines.formats import Network, pad_batch, run_network
from fakereal.errors import ConfigError, ImageRefused, ModelFileError
from fakereal.model import calibration, unseen
from fakereal.model.calibration import DecisionRule
from fakereal.model.heatmap import seen_part
from fakereal.model.metadata import Metadata
from fakereal.model.resaves import STABILITY_RESAVES, resaved_views
from fakereal.predict.inputs import Item
from fakereal.predict.pipeline import DecodedImage, RawPrediction, with_output
from fakereal.predict.results import PredictionResult, decide
from fakereal.predictions_json import key_of_file
from fakereal.preprocessing import Preprocessing
from fakereal.provenance import read_origin
from fakereal.runtime import log, one_line
from fakereal.web.http import BusyError, Limits, TooSlowError, Upload
from fakereal.web.metrics import Metrics

T = TypeVar("T")

MAX_BATCH = 32
"""Largest batch of the network; the batch size of predict_and_save_json.py, for the same outputs to the last digit."""

_BATCH_SIZES = (2, 3, 4, 6, 8, 12, 16, 24)
"""Batches are padded to one of these or MAX_BATCH. Not to 1: another routine computes a single row."""

_BATCH_WAIT_S = 0.05  # for this long, a batch waits for images that are still being decoded
_DECODERS = 4  # at most; each may hold an image of Limits.pixels
_CARD = "MODEL_CARD.md"  # beside the shipped detector, and about no other
_SHIPPED = "pretrained"


@dataclass(frozen=True)
class Predictor:
    """A loaded model with its threads, ready to analyze."""

    worker: Worker
    analyzer: Analyzer
    metrics: Metrics
    limits: Limits
    model: dict[str, Any]  # the answer of GET /api/model
    card: str | None = None  # the model card, Markdown
    draining: threading.Event = field(default_factory=threading.Event)  # set when the server begins to shut down

    def stop(self, timeout_s: float = 2.0) -> None:
        """Wait for accepted images, then end the threads."""
        self.worker.stop(timeout_s)
        self.analyzer.pool.shutdown(wait=False, cancel_futures=True)


def start_predictor(
    network: Network,
    preprocessing: Preprocessing,
    decision: DecisionRule,
    model: dict[str, Any],
    limits: Limits | None = None,
    card: str | None = None,
) -> Predictor:
    """Return a predictor with its threads at work.

    Args:
        network: gives the outputs; see `Worker`.
        preprocessing: of the network.
        decision: from outputs to verdicts.
        model: what everybody may know about the model, for GET /api/model.
        limits: on requests.
        card: the model card, Markdown.
    """
    limits, metrics = limits or Limits(), Metrics()
    queue = limits.queue * (1 + preprocessing.crops)  # each view counts as an image
    worker = Worker(network, preprocessing.image_size_px, queue, metrics.batch.observe)
    metrics.watch_queue(lambda: worker.admitted)
    pool = ThreadPoolExecutor(min(_DECODERS, os.cpu_count() or 1), thread_name_prefix="decode")
    worker.start()
    analyzer = Analyzer(worker, preprocessing, decision, limits, pool)
    return Predictor(worker, analyzer, metrics, limits, {**model, "explains": worker.explains}, card)


def from_opened(opened: OpenedNetwork, path: Path, limits: Limits | None = None) -> Predictor:
    """Return a started predictor for an opened model file.

    Args:
        opened: the network with its metadata.
        path: the model file, for the model's name.
        limits: on requests.
    """
    metadata = opened.metadata
    model = _public_facts(metadata, path)
    return start_predictor(
        _explaining(opened), metadata.preprocessing, metadata.decision, model, limits, _model_card(path)
    )


def _explaining(opened: OpenedNetwork) -> Network:
    try:
        return open_explainer(opened)
    except (ConfigError, ModelFileError) as error:  # another backend, or a foreign network: verdicts work all the same
        log(f"no heatmaps: {error}")
        return opened.network


def _public_facts(metadata: Metadata, path: Path) -> dict[str, Any]:
    """Return what everybody may know: no path, no name of a user's folder."""
    return {
        "name": path.stem,
        "network": metadata.network,
        "image_size_px": metadata.preprocessing.image_size_px,
        "preprocessing": metadata.preprocessing.fingerprint,
        "decision": {
            "threshold": metadata.decision.threshold,
            "temperature": metadata.decision.temperature,
            "band": list(metadata.decision.band),
            "shorter_side_px": metadata.decision.shorter_side_px and list(metadata.decision.shorter_side_px),
        },
        "test": _test_metrics(metadata.metrics.get("test") or {}),
        "unseen_sources": _unseen_metrics(metadata.metrics.get("unseen_sources") or {}),
        "worth": unseen.sentence(metadata.metrics),
        "versions": dict(metadata.versions),
    }


def _test_metrics(test: dict[str, Any]) -> dict[str, Any] | None:
    """Return the metrics on the training run's test images, None where the file has none."""
    names = ("images", "accuracy", "roc_auc", "f1_fake", "f1_real", "uncertain_share")
    return {name: test.get(name) for name in names} if test else None


def _unseen_metrics(record: dict[str, Any]) -> dict[str, Any] | None:
    """Return what the verdicts were worth on unseen sources, with their number in place of their names."""
    counts = {name: len(record[name]) for name in ("fake_sources", "real_sources") if name in record}
    return {key: value for key, value in record.items() if key != "test_by_source"} | counts or None


def _model_card(path: Path) -> str | None:
    card = path.with_name(_CARD)
    return card.read_text(encoding="utf-8") if path.stem == _SHIPPED and card.is_file() else None


@dataclass(frozen=True)
class Variant:
    """The output for a re-saved copy of an image."""

    name: str  # one of resaves.STABILITY_RESAVES
    p_fake: float  # calibrated
    label: int


@dataclass(frozen=True)
class Analysis:
    """All results for one uploaded image."""

    result: PredictionResult  # result.raw.origin is what the file itself claims
    file_bytes: int
    preview: Image.Image | None = None  # the part that the network saw, small; None unless asked for
    evidence: np.ndarray | None = None  # see heatmap.Explanation; None unless asked for
    calibrated_p_fake: float | None = None  # None where the image could not be read
    variants: tuple[Variant, ...] = ()  # empty unless asked for

    @property
    def stable(self) -> bool | None:
        """Whether every variant gets the same label; None where none was computed."""
        return all(variant.label == self.result.network_label for variant in self.variants) if self.variants else None


@dataclass(frozen=True)
class _Decoded:
    """What a decoding thread made of one upload."""

    image: DecodedImage  # with its re-saved variants, if asked for
    file_bytes: int
    preview: Image.Image | None


@dataclass(frozen=True)
class Analyzer:
    """Turns the uploads of a request into analyses."""

    worker: Worker
    preprocessing: Preprocessing
    decision: DecisionRule
    limits: Limits
    pool: ThreadPoolExecutor  # decodes; its few threads limit the memory that full-size images take

    def analyze(self, uploads: Sequence[Upload], explain: bool = False, stability: bool = False) -> list[Analysis]:
        """Return one analysis per upload, in order; that of an unreadable one holds the reason.

        Args:
            uploads: the files.
            explain: also compute the evidence for the label.
            stability: also compute the labels of re-saved variants; each costs as much as the image.

        Raises:
            BusyError: the queue has no room.
            TooSlowError: not done within Limits.timeout_s.
        """
        deadline = time.monotonic() + self.limits.timeout_s
        images_each = (1 + self.preprocessing.crops) * (1 + len(STABILITY_RESAVES) * stability)
        with self.worker.admit(images_each * len(uploads)) as admission:
            decodings = [self.pool.submit(self._decode, upload, explain, stability) for upload in uploads]
            submitted: list[tuple[_Decoded, list[Future[Output]]]] = []
            try:
                for decoded in _results(decodings, deadline):
                    arrays = decoded.image.arrays
                    submitted.append(
                        (decoded, [admission.submit(array, explain and not n) for n, array in enumerate(arrays)])
                    )
                    admission.skip(images_each - len(arrays))
                return [self._analysis(decoded, list(_results(each, deadline))) for decoded, each in submitted]
            except FutureTimeoutError as error:
                raise TooSlowError(
                    f"not answered within {self.limits.timeout_s:.0f} s, as the server is too busy: try again"
                ) from error
            finally:
                for future in (*decodings, *(output for _, each in submitted for output in each)):
                    future.cancel()  # no effect on those that are done

    def _decode(self, upload: Upload, explain: bool, stability: bool) -> _Decoded:
        item = Item(Path(), upload.name, key_of_file(Path(upload.name)))
        origin, file_bytes = read_origin(upload.content), len(upload.content)
        try:
            self._check_pixels(upload.content)
            image, info = self.preprocessing.decode(upload.content)
            variants = resaved_views(upload.content, self.preprocessing) if stability else ()
            versions = tuple(map(tuple, (self.preprocessing.views(image), *variants)))
            preview = seen_part(image, self.preprocessing) if explain else None
            return _Decoded(DecodedImage(RawPrediction(item, info, origin=origin), versions), file_bytes, preview)
        except ImageRefused as error:
            return _Decoded(DecodedImage(RawPrediction(item, error=one_line(error), origin=origin)), file_bytes, None)

    def _check_pixels(self, content: bytes) -> None:
        pixels = image_metadata.header_pixel_count(content)
        if pixels > self.limits.pixels:
            limit = self.limits.pixels / 1e6
            raise ImageRefused("too_large", f"expected at most {limit:.0f} megapixels, got {pixels / 1e6:.0f}")

    def _analysis(self, decoded: _Decoded, outputs: Sequence[Output]) -> Analysis:
        views = [(output.p_real, output.score) for output in outputs]
        raw = with_output(decoded.image, views) if outputs else decoded.image.prediction
        variants = np.array(raw.variants_p_real, np.float64)  # shown with their shares, not as details of the result
        raw = replace(raw, variants_p_real=())
        result = decide([raw], self.decision)[0]
        if raw.p_real is None:
            return Analysis(result, decoded.file_bytes)
        return Analysis(
            result,
            decoded.file_bytes,
            decoded.preview,
            outputs[0].evidence,
            float(calibration.calibrated_p_fake(np.float64(raw.p_real), self.decision)),
            self._variants(variants),
        )

    def _variants(self, p_real: np.ndarray) -> tuple[Variant, ...]:
        shares = calibration.calibrated_p_fake(p_real, self.decision)
        labels = calibration.labels(p_real, self.decision)
        return tuple(
            Variant(name, float(p_fake), int(label))
            for name, p_fake, label in zip(STABILITY_RESAVES, shares, labels, strict=False)
        )


def _results(futures: Iterable[Future[T]], deadline: float) -> Iterator[T]:
    for future in futures:
        yield future.result(max(0.0, deadline - time.monotonic()))


@dataclass(frozen=True)
class Output:
    """The network's output for one image."""

    p_real: float
    score: float | None  # out-of-distribution score; None: unknown
    evidence: np.ndarray | None  # float32 (h, w), see heatmap.Explanation; None where unavailable or not asked for


@dataclass(frozen=True, slots=True)
class _QueuedImage:
    array: np.ndarray  # uint8 (S, S, 3)
    explain: bool
    output: Future[Output]


class Worker:
    """Runs the network on queued images, in batches and in the order of arrival.

    Args:
        network: gives the outputs; with a method `explain` (see heatmap.Explainer) also the evidence.
        image_size_px: width and height of the images.
        queue: largest number of admitted images, from admission to answer.
        observe: called with the number of images of each batch.
    """

    def __init__(
        self, network: Network, image_size_px: int, queue: int, observe: Callable[[int], None] = lambda count: None
    ) -> None:
        self.explains = hasattr(network, "explain")
        self._network, self._image_size_px, self._queue, self._observe = network, image_size_px, queue, observe
        self._batch_sizes: tuple[int, ...] = (MAX_BATCH,)
        self._changed = threading.Condition()
        self._waiting: deque[_QueuedImage] = deque()
        self._admitted = 0  # images from admission to answer
        self._decoding = 0  # of these, not yet submitted
        self._stopping = False
        self._failure: BaseException | None = None
        self._warm = threading.Event()
        self._thread = threading.Thread(target=self._run, name="network", daemon=True)

    def start(self) -> None:
        """Start the thread, which first tries the network with each batch size."""
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether images are admitted and answered without delay."""
        return self._warm.is_set() and self.alive and not self._stopping

    @property
    def alive(self) -> bool:
        """Whether the thread is running."""
        return self._thread.is_alive()

    @property
    def admitted(self) -> int:
        """Number of images that are admitted and not yet answered."""
        return self._admitted

    def wait_until_warm(self) -> None:
        """Wait for the first runs of the network; raise what they raise."""
        self._warm.wait()
        if self._failure:
            raise self._failure

    def admit(self, count: int) -> Admission:
        """Reserve room for this many images.

        Raises:
            BusyError: the queue has no room, or the worker is stopping.
        """
        places = min(count, self._queue)  # a request larger than the queue may have all of it
        with self._changed:
            if self._stopping or self._admitted + places > self._queue:
                raise BusyError(
                    f"no room for {places} more images, as {self._admitted} of {self._queue} places are taken:"
                    " try again in a moment"
                )
            self._admitted += places
            self._decoding += count
        return Admission(self, count, places)

    def stop(self, timeout_s: float) -> None:
        """Admit no more images, and wait until the admitted ones are answered."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(timeout_s)

    def _enqueue(self, image: _QueuedImage) -> None:
        with self._changed:
            self._decoding -= 1
            self._waiting.append(image)
            self._changed.notify_all()

    def _release(self, places: int, never_submitted: int) -> None:
        with self._changed:
            self._admitted -= places
            self._decoding -= never_submitted
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            self._batch_sizes = self._exact_batch_sizes()
        except BaseException as error:  # noqa: BLE001 - wait_until_warm raises it
            self._failure = error
            return
        finally:
            self._warm.set()
        while batch := self._next_batch():
            self._run_batch(batch)

    def _exact_batch_sizes(self) -> tuple[int, ...]:
        """Return the batch sizes whose outputs equal those of the largest, which predict_and_save_json.py uses."""
        shape = (MAX_BATCH, self._image_size_px, self._image_size_px, 3)
        probe = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        expected = self._network.p_real(probe)
        return (*(size for size in _BATCH_SIZES if self._agrees(probe[:size], expected[:size])), MAX_BATCH)

    def _agrees(self, images: np.ndarray, expected: np.ndarray) -> bool:
        return all(np.array_equal(self._outputs(images, explain)[0], expected) for explain in {False, self.explains})

    def _next_batch(self) -> list[_QueuedImage]:
        """Wait for images and return them; none once the worker was stopped and everything is answered."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or (self._stopping and not self._admitted))
            until = time.monotonic() + _BATCH_WAIT_S
            while 0 < len(self._waiting) < MAX_BATCH and self._decoding and time.monotonic() < until:
                self._changed.wait(until - time.monotonic())
            return [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_BATCH))]

    def _run_batch(self, batch: Sequence[_QueuedImage]) -> None:
        wanted = [image for image in batch if image.output.set_running_or_notify_cancel()]
        if not wanted:
            return
        self._observe(len(wanted))
        size = min(size for size in self._batch_sizes if size >= len(wanted))
        try:
            arrays = pad_batch([image.array for image in wanted], size)
            p_real, scores, evidence = self._outputs(arrays, any(image.explain for image in wanted))
        except Exception as error:  # noqa: BLE001 - each request reports it to its own client
            for image in wanted:
                image.output.set_exception(error)
            return
        for number, image in enumerate(wanted):
            own_evidence = evidence[number] if image.explain and evidence is not None else None
            score = None if scores is None else float(scores[number])
            image.output.set_result(Output(float(p_real[number]), score, own_evidence))

    def _outputs(self, images: np.ndarray, explain: bool) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """Return p_real, scores and evidence of a batch."""
        if not (explain and self.explains):
            return *run_network(self._network, images), None
        found = self._network.explain(images)
        return found.p_real, found.scores, found.evidence


class Admission:
    """Room for some images in the queue; a context manager that returns it."""

    def __init__(self, worker: Worker, count: int, places: int) -> None:
        self._worker, self._left, self._places = worker, count, places

    def submit(self, array: np.ndarray, explain: bool = False) -> Future[Output]:
        """Hand over one image, uint8 (S, S, 3); canceling the future spares the network an unwanted image."""
        image = _QueuedImage(array, explain, Future())
        self._left -= 1
        self._worker._enqueue(image)
        return image.output

    def skip(self, count: int) -> None:
        """Tell the worker that this many admitted images will not be submitted, so that no batch waits for them."""
        self._left -= count
        self._worker._release(0, count)

    def __enter__(self) -> Admission:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._worker._release(self._places, self._left)
