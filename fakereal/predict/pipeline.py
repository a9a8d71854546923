"""Predict a stream of images: read and decode files, form batches, run the network, write overlays where asked for.

One thread reads ahead, several decode, and the caller's thread runs the network: the next batch is ready unless
decoding is the slower part. Any `ImageSource` can be predicted, so evaluation on labeled images takes the same path.
"""

from __future__ import annotations

import hashlib
import io
import queue
import threading
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import accumulate, repeat
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fakereal.decoding import ImageInfo, read_bytes
from fakereal.engines.formats import Network, core_count, pad_batch, run_network
from fakereal.errors import ImageRefused, ModelFileError
from fakereal.files import write_atomic
from fakereal.labels import NAMES
from fakereal.model import calibration
from fakereal.model.calibration import DECIMALS, DecisionRule, combine_views
from fakereal.model.heatmap import Explainer, heatmap, overlay, seen_part
from fakereal.model.resaves import resaved_views
from fakereal.predict.inputs import Stamp
from fakereal.preprocessing import Preprocessing
from fakereal.provenance import NO_ORIGIN, Origin, read_origin
from fakereal.runtime import one_line

_MAX_WORKERS = 16
_MAX_BATCHES_PER_GROUP = 8  # a million unreadable files must neither fill the memory nor stop the progress bar
_MAX_WAITING_BYTES = 128 * 2**20  # of files that one thread reads for the others, from compressed archives
_CAPTION_PX = 26
_ROUNDING = 1e-6  # by which the sum of some outputs of a softmax may exceed 1
_MAX_NAME_BYTES = 200  # of the 255 that file systems usually allow

T = TypeVar("T")

Output = tuple[float, float | None]
"""A network's output for one array: p_real, and the out-of-distribution score where the model gives one."""


class ImageSource(Protocol):
    """An image to predict: a file, a member of an archive, or a labeled record of an evaluation."""

    @property
    def name(self) -> str:
        """Name in results and error messages."""

    @property
    def problem(self) -> str | None:
        """Why it can't be opened; None: it can be tried."""

    @property
    def sequential(self) -> bool:
        """True: must be opened in the given order by one thread, as members of a compressed tar."""

    def open(self) -> Path | bytes:
        """Return the path or the content; may raise ImageRefused."""

    def stamp(self) -> Stamp | None:
        """Return the file's stamp, None where there is none."""


@dataclass(frozen=True, slots=True)
class RawPrediction:
    """The network's output for one image, before any threshold; or the reason why there is none."""

    item: ImageSource
    info: ImageInfo | None = None  # None where the file could not be read
    p_real: float | None = None  # the network's own output, rounded to DECIMALS
    error: str | None = None
    variants_p_real: tuple[float, ...] = ()  # the same for each re-saved variant, see `model.resaves`
    stamp: Stamp | None = None  # of the file just before it was read
    origin: Origin = NO_ORIGIN  # what the file itself claims
    score: float | None = None  # out-of-distribution score of the whole view, rounded to DECIMALS; None: unknown


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """An image that was decoded, or could not be."""

    prediction: RawPrediction  # still without the network's output
    versions: tuple[tuple[np.ndarray, ...], ...] = ()  # the image, then its variants; empty: unreadable

    @property
    def arrays(self) -> list[np.ndarray]:
        """The views of all versions, uint8 (S, S, 3); an image's own whole view comes first."""
        return [view for views in self.versions for view in views]

    def combined(self, p_real: Iterable[float]) -> list[float]:
        """Return p_real of each version from the outputs for all arrays, in their order."""
        outputs = iter(p_real)
        return [combine_views([next(outputs) for _ in views]) for views in self.versions]


@dataclass(frozen=True, slots=True)
class Batch:
    """Decoded images and, for the readable ones, what the network computes."""

    decoded: list[DecodedImage]
    arrays: list[np.ndarray]  # uint8 (batch_size, S, S, 3), the last padded with black; mostly one

    def predictions(self, outputs: Iterable[Output]) -> Iterator[RawPrediction]:
        """Yield a prediction for each decoded image, from the outputs for all arrays in their order."""
        outputs = iter(outputs)
        for image in self.decoded:
            own = [next(outputs) for _ in image.arrays]
            yield with_output(image, own) if own else image.prediction


def predict_batches(
    items: Iterable[ImageSource],
    network: Network,
    preprocessing: Preprocessing,
    batch_size: int,
    variants: Sequence[str] = (),
) -> Iterator[RawPrediction]:
    """Predict every item, in order; close the generator to stop early.

    The network always gets `batch_size` images (the last batch is padded with black ones): it is compiled for one
    shape, and computes every row with the same operations in the same order, so that an image's output depends
    neither on the number of other images nor on their content.

    Args:
        items: taken one by one, in another thread.
        network: gives p_real.
        preprocessing: the model's.
        batch_size: images per batch.
        variants: names of `resaves.RESAVES`, each of which costs as much as the image itself.

    Where the preprocessing cuts crops, an image's p_real comes from the mean logit of its views.
    """
    with closing(decode_batches(items, preprocessing, batch_size, variants)) as batches:
        for batch in batches:
            yield from batch.predictions(
                [output for images in batch.arrays for output in output_pairs(*run_network(network, images))]
            )


def decode_batches(
    items: Iterable[ImageSource], preprocessing: Preprocessing, batch_size: int, variants: Sequence[str] = ()
) -> Generator[Batch]:
    """Decode the items in order, in threads, and yield them in batches; close the generator to end the threads."""
    decoded = _decode_ahead(items, preprocessing, batch_size, variants)
    yield from _in_background(Batch(group, _stack(group, batch_size)) for group in _group(decoded, batch_size))


def worker_count() -> int:
    """Return the number of decoding threads: one per processor core that this process may use, at most 16."""
    return min(core_count(), _MAX_WORKERS)


def output_pairs(p_real: np.ndarray, scores: np.ndarray | None) -> Iterator[Output]:
    """Yield a network's outputs image by image, see `formats.run_network`."""
    yield from zip(p_real.tolist(), repeat(None) if scores is None else scores.tolist(), strict=False)


def with_output(image: DecodedImage, views: Sequence[Output]) -> RawPrediction:
    """Return the image's prediction with the network's outputs, or with an error where one is not finite.

    Args:
        image: decoded.
        views: outputs for its arrays, in their order; the out-of-distribution score is that of its whole view.

    Raises:
        ModelFileError: an output is no probability.
    """
    prediction, score = image.prediction, views[0][1]
    outputs = image.combined(p_real for p_real, _ in views)
    if not np.isfinite(outputs).all() or not np.isfinite(0.0 if score is None else score):
        return replace(prediction, error="the network's output is not a number (NaN or infinite)")
    if not all(-_ROUNDING <= p <= 1.0 + _ROUNDING for p in outputs):
        raise ModelFileError(
            f"expected a network whose output is p_real, from 0 to 1, got {outputs[0]:.4g} for {prediction.item.name}:"
            " give it a sigmoid output, or train one with train_model.py"
        )
    first, *others = (round(min(max(float(p), 0.0), 1.0), DECIMALS) for p in outputs)
    score = None if score is None else round(score, DECIMALS)
    return replace(prediction, p_real=first, variants_p_real=tuple(others), score=score)


def _decode_ahead(
    items: Iterable[ImageSource], preprocessing: Preprocessing, batch_size: int, variants: Sequence[str]
) -> Iterator[DecodedImage]:
    """Decode in threads (Pillow releases the GIL), in order, a bounded number of files ahead."""
    items = iter(items)
    max_pending = batch_size // ((1 + len(variants)) * (1 + preprocessing.crops)) + worker_count()
    pool = ThreadPoolExecutor(worker_count(), thread_name_prefix="decode")
    try:
        pending: deque[tuple[Future[DecodedImage], int]] = deque()
        waiting_bytes = 0
        while True:
            while (
                len(pending) < max_pending
                and waiting_bytes < _MAX_WAITING_BYTES
                and (item := next(items, None)) is not None
            ):
                content = _read_if_sequential(item)
                size = len(content) if isinstance(content, bytes) else 0
                pending.append((pool.submit(_decode, item, content, preprocessing, variants), size))
                waiting_bytes += size
            if not pending:
                return
            future, size = pending.popleft()
            waiting_bytes -= size
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _read_if_sequential(item: ImageSource) -> bytes | ImageRefused | None:
    """Return the content of an item that must be read in order, here; None: the decoding thread reads it."""
    if item.problem or not item.sequential:
        return None
    try:
        return item.open()
    except ImageRefused as error:
        return error


def _decode(
    item: ImageSource, content: bytes | ImageRefused | None, preprocessing: Preprocessing, variants: Sequence[str]
) -> DecodedImage:
    if item.problem:
        return DecodedImage(RawPrediction(item, error=item.problem))
    try:
        if isinstance(content, ImageRefused):
            raise content
        stamp = item.stamp()  # first: a file that changes while it is read then counts as changed
        source = item.open() if content is None else content
        if not isinstance(source, bytes):
            source = read_bytes(source)
        image, info = preprocessing.decode(source)
        others = resaved_views(source, preprocessing, variants) if variants else ()
        versions = tuple(map(tuple, (preprocessing.views(image), *others)))
        return DecodedImage(RawPrediction(item, info, stamp=stamp, origin=read_origin(source)), versions)
    except ImageRefused as error:
        reason = one_line(error)
    except Exception as error:  # noqa: BLE001 - whatever one file does to a decoder must not stop the others
        reason = f"the image can't be decoded ({type(error).__name__})"
    return DecodedImage(RawPrediction(item, error=reason))


def _group(decoded: Iterable[DecodedImage], batch_size: int) -> Iterator[list[DecodedImage]]:
    """Yield lists of images whose arrays fill a batch, unreadable images in between; one alone may need more."""
    group: list[DecodedImage] = []
    count = 0
    for image in decoded:
        if group and (count + len(image.arrays) > batch_size or len(group) >= _MAX_BATCHES_PER_GROUP * batch_size):
            yield group
            group, count = [], 0
        group.append(image)
        count += len(image.arrays)
    if group:
        yield group


def _stack(group: Sequence[DecodedImage], batch_size: int) -> list[np.ndarray]:
    arrays = [array for image in group for array in image.arrays]
    return [pad_batch(arrays[start : start + batch_size], batch_size) for start in range(0, len(arrays), batch_size)]


def _in_background(values: Iterator[T]) -> Generator[T]:
    """Run a generator in its own thread, which computes the next value while the last one is used."""
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(1)
    stop = threading.Event()

    def run() -> None:
        error = None
        try:
            for value in values:
                ready.put((value, None))
                if stop.is_set():
                    break
        except BaseException as raised:  # noqa: BLE001 - raised again in the consumer's thread
            error = raised
        finally:
            values.close()
            ready.put((None, error or StopIteration()))

    thread = threading.Thread(target=run, name="decode-ahead", daemon=True)
    thread.start()
    try:
        while True:
            value, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield value
    finally:
        stop.set()
        while thread.is_alive():
            try:
                ready.get(timeout=0.02)  # makes room for what the thread still wants to hand over
            except queue.Empty:
                continue


@dataclass(frozen=True)
class Overlays:
    """Write, for every predicted image, an overlay that shows which regions speak for its label (Grad-CAM)."""

    folder: Path
    explainer: Explainer
    preprocessing: Preprocessing
    decision: DecisionRule
    names: Mapping[str, str]  # image name -> file name, see `overlay_names`

    def predict_batches(
        self, items: Iterable[ImageSource], batch_size: int, variants: Sequence[str] = ()
    ) -> Iterator[RawPrediction]:
        """Like the function of this name, with the same outputs from the same pass; also write the overlays."""
        with (
            ThreadPoolExecutor(worker_count(), thread_name_prefix="overlay") as pool,
            closing(decode_batches(items, self.preprocessing, batch_size, variants)) as batches,
        ):
            for batch in batches:
                explanations = [self.explainer.explain(images) for images in batch.arrays]
                outputs = [output for each in explanations for output in output_pairs(each.p_real, each.scores)]
                predictions = list(batch.predictions(outputs))
                readable = [
                    prediction for prediction, image in zip(predictions, batch.decoded, strict=True) if image.arrays
                ]
                evidence = [each for explanation in explanations for each in explanation.evidence]
                counts = [len(image.arrays) for image in batch.decoded if image.arrays]
                whole_views = [evidence[end - count] for end, count in zip(accumulate(counts), counts, strict=True)]
                # `list` raises the threads' errors: a full disk must stop the run.
                list(pool.map(self._write, readable, whole_views))
                yield from predictions

    def _write(self, prediction: RawPrediction, evidence: np.ndarray) -> None:
        if prediction.p_real is None:
            return
        try:
            image, _ = self.preprocessing.decode(prediction.item.open())
        except ImageRefused:  # removed or changed since it was predicted
            return
        content = io.BytesIO()
        self._render(image, prediction.p_real, evidence).save(content, "JPEG", quality=90)
        write_atomic(self.folder / self.names[prediction.item.name], content.getvalue())

    def _render(self, image: Image.Image, p_real: float, evidence: np.ndarray) -> Image.Image:
        """Return the image, the same with its heatmap beside it, and a caption above."""
        label = int(calibration.labels(np.float64(p_real), self.decision))
        confidence = float(calibration.confidence(np.float64(p_real), self.decision))
        shown = seen_part(image, self.preprocessing)
        sheet = Image.new("RGB", (max(2 * shown.width, 330), shown.height + _CAPTION_PX), "white")
        sheet.paste(shown, (0, _CAPTION_PX))
        sheet.paste(overlay(shown, heatmap(evidence, label)), (shown.width, _CAPTION_PX))
        caption = f"{NAMES[label]} ({100 * confidence:.0f} %); colored: what speaks for {NAMES[label]}"
        ImageDraw.Draw(sheet).text((6, 5), caption, "black", ImageFont.load_default(14))
        return sheet


def overlay_names(names: Iterable[str]) -> dict[str, str]:
    """Return a file name for each image's relative path, all different even where case is ignored."""
    plain = {name: name.replace("/", "__") + "_gradcam.jpg" for name in names}
    count = Counter(name.casefold() for name in plain.values())
    return {
        name: wanted
        if count[wanted.casefold()] == 1 and len(wanted.encode(errors="surrogateescape")) <= _MAX_NAME_BYTES
        else _hashed_name(name, wanted)
        for name, wanted in plain.items()
    }


def _hashed_name(name: str, wanted: str) -> str:
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:16]
    return f"{wanted[:40]}__{digest}_gradcam.jpg"
