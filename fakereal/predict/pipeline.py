"""Files -> arrays -> batches -> the network's outputs: reading and decoding go on while the network computes.

One thread reads ahead, several decode, and whoever asks for the outcomes runs the network: it finds the next batch
ready unless decoding is what takes longer.
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
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fakereal.decoding import ImageInfo, decode, read_bytes
from fakereal.engines import formats
from fakereal.engines.formats import Network
from fakereal.errors import ImageRefused, ModelFileError
from fakereal.files import write_atomic
from fakereal.labels import NAMES
from fakereal.model import calibration
from fakereal.model.augmentation import stability_variants
from fakereal.model.calibration import DECIMALS, DecisionRule
from fakereal.model.heatmap import Explains, heatmap, overlay, seen_part
from fakereal.predict.inputs import Item, Stamp
from fakereal.preprocessing import Preprocessing
from fakereal.runtime import one_line

_MAX_WORKERS = 16
_MAX_GROUP = 8  # batches: a folder of a million unreadable files must neither fill the memory nor keep the bar still
_MAX_WAITING_BYTES = 128 * 2**20  # of files that one thread reads for the others, from compressed archives

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RawPrediction:
    """What became of one item: `p_real` or, with the reason in `error`, nothing."""

    item: Item
    info: ImageInfo | None = None  # None where the file could not be read
    p_real: float | None = None  # the network's own output, rounded to DECIMALS
    error: str | None = None
    resaved: tuple[float, ...] = ()  # the same for each re-saved variant that was asked for, see `model.augmentation`
    stamp: Stamp | None = None  # of the file just before it was read


@dataclass(frozen=True, slots=True)
class Decoded:
    """An item that was read, or could not be."""

    outcome: RawPrediction  # still without the network's output
    images: tuple[np.ndarray, ...] = ()  # uint8 (size, size, 3), the picture and its variants; empty: unreadable


def predict_batches(
    items: Iterable[Item],
    network: Network,
    preprocessing: Preprocessing,
    batch_size: int,
    variants: Sequence[str] = (),
) -> Iterator[RawPrediction]:
    """Predicts every item, in their order; close the generator to stop early.

    The network always sees `batch_size` pictures (the last batch is filled up with black ones): it is compiled for one
    shape, and computes every row by itself with the same operations in the same order, so that a picture's output does
    not depend on how many others there are, nor on which.

    Args:
        items: taken one by one, in another thread.
        network: gives p_real.
        preprocessing: the model's.
        batch_size: pictures the network sees at once.
        variants: names of `stability.VARIANTS`, each of which costs as much as the picture itself.
    """
    with closing(batches(items, preprocessing, batch_size, variants)) as ready:
        for batch, rows in ready:
            yield from with_answers(batch, [p for images in rows for p in network.p_real(images)])


def batches(
    items: Iterable[Item], preprocessing: Preprocessing, batch_size: int, variants: Sequence[str] = ()
) -> Generator[tuple[list[Decoded], list[np.ndarray]]]:
    """Decodes the items in order, in threads, and yields them batch by batch; close the generator to end the threads.

    Yields:
        Decoded items, readable and others, and what the network is to see for the readable ones: arrays of uint8
        (batch_size, S, S, 3), the last filled up with black pictures; one array unless there are many variants.
    """
    decoded = _decoded(items, preprocessing, batch_size, variants)
    each = max(1, batch_size // (1 + len(variants)))
    yield from _in_background((batch, _rows(batch, batch_size)) for batch in _grouped(decoded, each))


def workers() -> int:
    """Returns how many threads decode pictures: one for each processor core that this process may use."""
    return min(formats.core_count(), _MAX_WORKERS)


def _grouped(decoded: Iterable[Decoded], size: int) -> Iterator[list[Decoded]]:
    """Yields lists with `size` readable items each, and the others in between; fewer where these are many."""
    batch: list[Decoded] = []
    readable = 0
    for each in decoded:
        batch.append(each)
        readable += bool(each.images)
        if readable == size or len(batch) >= _MAX_GROUP * size:
            yield batch
            batch, readable = [], 0
    if batch:
        yield batch


def _in_background(values: Iterator[T]) -> Generator[T]:
    """Runs a generator in a thread of its own, which makes the next value while the last one is used."""
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(1)
    stop = threading.Event()

    def run() -> None:
        error = None
        try:
            for value in values:
                ready.put((value, None))
                if stop.is_set():
                    break
        except BaseException as raised:  # noqa: BLE001 - raised again where the value is waited for
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


def _decoded(
    items: Iterable[Item], preprocessing: Preprocessing, batch_size: int, variants: Sequence[str]
) -> Iterator[Decoded]:
    """Decodes in threads (Pillow releases the interpreter's lock), in order, a bounded number of files ahead."""
    items = iter(items)
    most = batch_size // (1 + len(variants)) + workers()
    pool = ThreadPoolExecutor(workers(), thread_name_prefix="decode")
    try:
        ahead: deque[tuple[Future[Decoded], int]] = deque()
        waiting = 0  # bytes
        while True:
            while len(ahead) < most and waiting < _MAX_WAITING_BYTES and (item := next(items, None)) is not None:
                content = _content(item)
                size = len(content) if isinstance(content, bytes) else 0
                ahead.append((pool.submit(_decode, item, content, preprocessing, variants), size))
                waiting += size
            if not ahead:
                return
            future, size = ahead.popleft()
            waiting -= size
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _content(item: Item) -> bytes | ImageRefused | None:
    """Returns what must be read here and now; None: what the decoding thread reads for itself."""
    if item.problem or not item.in_order:
        return None
    try:
        return item.open()
    except ImageRefused as error:
        return error


def _decode(
    item: Item, content: bytes | ImageRefused | None, preprocessing: Preprocessing, variants: Sequence[str]
) -> Decoded:
    if item.problem:
        return Decoded(RawPrediction(item, error=item.problem))
    try:
        if isinstance(content, ImageRefused):
            raise content
        stamp = item.stamp()  # first: a file that changes while it is read then counts as changed
        source = item.open() if content is None else content
        if variants and not isinstance(source, bytes):
            source = read_bytes(source)
        image, info = preprocessing.read_with_info(source)
        others = stability_variants(source, preprocessing, variants) if variants else ()
        return Decoded(RawPrediction(item, info, stamp=stamp), (image, *others))
    except ImageRefused as error:
        reason = one_line(error)
    except Exception as error:  # noqa: BLE001 - whatever one file does to a decoder, the others are still to be done
        reason = f"expected a sound image, found one that can't be decoded ({type(error).__name__})"
    return Decoded(RawPrediction(item, error=reason))


def _rows(batch: Sequence[Decoded], batch_size: int) -> list[np.ndarray]:
    images = [image for decoded in batch for image in decoded.images]
    return [
        formats.pad_batch(images[start : start + batch_size], batch_size) for start in range(0, len(images), batch_size)
    ]


def with_answers(batch: Sequence[Decoded], p_real: Iterable[float]) -> Iterator[RawPrediction]:
    """Yields the outcome of each decoded item; `p_real` are the outputs for all pictures, in their order."""
    outputs = iter(p_real)
    for decoded in batch:
        own = [next(outputs) for _ in decoded.images]
        yield with_output(decoded.outcome, *own) if own else decoded.outcome


def with_output(outcome: RawPrediction, p_real: float, *resaved_p_real: float) -> RawPrediction:
    """Returns the outcome with the network's outputs, or with an error where one is no number.

    Raises:
        ModelFileError: an output is no probability.
    """
    outputs = (p_real, *resaved_p_real)
    if not np.isfinite(outputs).all():
        return replace(outcome, error="expected a probability from the network, found no number (NaN or infinite)")
    if not all(0.0 <= p <= 1.0 for p in outputs):
        raise ModelFileError(
            f"expected a network whose output is p_real, from 0 to 1, found {p_real:.4g} for {outcome.item.name}:"
            " give it a sigmoid output, or train one with train_model.py"
        )
    first, *others = (round(float(p), DECIMALS) for p in outputs)
    return replace(outcome, p_real=first, resaved=tuple(others))


# ---- `--explain DIR`: for every predicted picture an overlay that shows which regions speak for its label (Grad-CAM).

_CAPTION_PX = 26
_LONGEST_NAME_BYTES = 200  # of a file system's usual 255


@dataclass(frozen=True)
class Overlays:
    """Where overlays go, and what they need beside the pictures."""

    folder: Path
    explainer: Explains
    preprocessing: Preprocessing
    decision: DecisionRule
    names: Mapping[str, str]  # of each picture's overlay, see `overlay_names`

    def outcomes(self, items: Iterable[Item], batch_size: int, variants: Sequence[str] = ()) -> Iterator[RawPrediction]:
        """Like `pipeline.outcomes`, with the same outputs from the same pass, and writes each batch's overlays."""
        with (
            ThreadPoolExecutor(workers(), thread_name_prefix="overlay") as pool,
            closing(batches(items, self.preprocessing, batch_size, variants)) as ready,
        ):
            for batch, rows in ready:
                found = [self.explainer.explain(images) for images in rows]
                outcomes = list(with_answers(batch, [p for each in found for p in each.p_real]))
                readable = [outcome for outcome, each in zip(outcomes, batch, strict=True) if each.images]
                evidence = [each for explanation in found for each in explanation.evidence][:: 1 + len(variants)]
                # A disk that is full must stop the run: `list` lets the error through.
                list(pool.map(self._write, readable, evidence))
                yield from outcomes

    def _write(self, outcome: RawPrediction, evidence: np.ndarray) -> None:
        if outcome.p_real is None:
            return
        try:
            image, _ = decode(outcome.item.open(), self.preprocessing.decode_px)
        except ImageRefused:  # gone or changed since it was predicted
            return
        content = io.BytesIO()
        self._picture(image, outcome.p_real, evidence).save(content, "JPEG", quality=90)
        write_atomic(self.folder / self.names[outcome.item.name], content.getvalue())

    def _picture(self, image: Image.Image, p_real: float, evidence: np.ndarray) -> Image.Image:
        """Returns the picture, the same with its heatmap beside it, and above them what is shown."""
        label = int(calibration.labels(np.float64(p_real), self.decision))
        sure = float(calibration.confidence(np.float64(p_real), self.decision))
        shown = seen_part(image, self.preprocessing)
        sheet = Image.new("RGB", (max(2 * shown.width, 330), shown.height + _CAPTION_PX), "white")
        sheet.paste(shown, (0, _CAPTION_PX))
        sheet.paste(overlay(shown, heatmap(evidence, label)), (shown.width, _CAPTION_PX))
        caption = f"{NAMES[label]} ({100 * sure:.0f} %); coloured: what speaks for {NAMES[label]}"
        ImageDraw.Draw(sheet).text((6, 5), caption, "black", ImageFont.load_default(14))
        return sheet


def overlay_names(names: Iterable[str]) -> dict[str, str]:
    """Returns a file name for each picture's relative path, all different, also where upper and lower case are one."""
    plain = {name: name.replace("/", "__") + "_gradcam.jpg" for name in names}
    count = Counter(name.casefold() for name in plain.values())
    return {
        name: wanted
        if count[wanted.casefold()] == 1 and len(wanted.encode(errors="surrogateescape")) <= _LONGEST_NAME_BYTES
        else _with_hash(name, wanted)
        for name, wanted in plain.items()
    }


def _with_hash(name: str, wanted: str) -> str:
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:16]
    return f"{wanted[:40]}__{digest}_gradcam.jpg"
