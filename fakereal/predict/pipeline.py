"""Files -> arrays -> batches -> the network's outputs: reading and decoding go on while the network computes.

One thread reads ahead, several decode, and whoever asks for the outcomes runs the network: it finds the next batch
ready unless decoding is what takes longer.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from fakereal.cli import one_line
from fakereal.errors import ImageRefused, ModelFileError
from fakereal.model import runtimes
from fakereal.model.runtimes import Network
from fakereal.model.scoring import DECIMALS
from fakereal.predict.inputs import Item, Stamp
from fakereal.predict.stability import resaved
from fakereal.preprocessing import ImageInfo, Preprocessing, bytes_of

_MAX_WORKERS = 16
_MAX_GROUP = 8  # batches: a folder of a million unreadable files must neither fill the memory nor keep the bar still
_MAX_WAITING_BYTES = 128 * 2**20  # of files that one thread reads for the others, from compressed archives

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one item: `p_real` or, with the reason in `error`, nothing."""

    item: Item
    info: ImageInfo | None = None  # None where the file could not be read
    p_real: float | None = None  # the network's own output, rounded to DECIMALS
    error: str | None = None
    resaved: tuple[float, ...] = ()  # the same for each variant that was asked for, see `stability`
    stamp: Stamp | None = None  # of the file just before it was read


@dataclass(frozen=True, slots=True)
class Decoded:
    """An item that was read, or could not be."""

    outcome: Outcome  # still without the network's output
    images: tuple[np.ndarray, ...] = ()  # uint8 (size, size, 3), the picture and its variants; empty: unreadable


def outcomes(
    items: Iterable[Item],
    network: Network,
    preprocessing: Preprocessing,
    batch_size: int,
    variants: Sequence[str] = (),
) -> Iterator[Outcome]:
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
            yield from answered(batch, [p for images in rows for p in network.p_real(images)])


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
    return min(runtimes.cores(), _MAX_WORKERS)


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
        return Decoded(Outcome(item, error=item.problem))
    try:
        if isinstance(content, ImageRefused):
            raise content
        stamp = item.stamp()  # first: a file that changes while it is read then counts as changed
        source = item.open() if content is None else content
        if variants and not isinstance(source, bytes):
            source = bytes_of(source)
        image, info = preprocessing.read_with_info(source)
        others = resaved(source, preprocessing, variants) if variants else ()
        return Decoded(Outcome(item, info, stamp=stamp), (image, *others))
    except ImageRefused as error:
        reason = one_line(error)
    except Exception as error:  # noqa: BLE001 - whatever one file does to a decoder, the others are still to be done
        reason = f"expected a sound image, found one that can't be decoded ({type(error).__name__})"
    return Decoded(Outcome(item, error=reason))


def _rows(batch: Sequence[Decoded], batch_size: int) -> list[np.ndarray]:
    images = [image for decoded in batch for image in decoded.images]
    return [
        runtimes.filled(images[start : start + batch_size], batch_size) for start in range(0, len(images), batch_size)
    ]


def answered(batch: Sequence[Decoded], p_real: Iterable[float]) -> Iterator[Outcome]:
    """Yields the outcome of each decoded item; `p_real` are the outputs for all pictures, in their order."""
    outputs = iter(p_real)
    for decoded in batch:
        own = [next(outputs) for _ in decoded.images]
        yield with_output(decoded.outcome, *own) if own else decoded.outcome


def with_output(outcome: Outcome, p_real: float, *resaved_p_real: float) -> Outcome:
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
