"""Files -> arrays -> batches -> the network's outputs: decoding runs in threads while the network computes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Protocol

import numpy as np

from fakereal.cli import one_line
from fakereal.errors import ImageRefused, ModelFileError
from fakereal.predict.inputs import Item
from fakereal.preprocessing import ImageInfo, Preprocessing

DECIMALS = 6
"""Digits kept of every probability: float32 has no more, and what is written is then what was decided on."""

_READ_AHEAD_BATCHES = 2  # decoded and waiting while the network computes; bounds the memory for any number of images
_MAX_WORKERS = 16


class Network(Protocol):
    """What gives the outputs: a loaded model, or another engine that keeps its verdicts."""

    def p_real(self, images: np.ndarray) -> np.ndarray:
        """Maps uint8 of shape (n, size, size, 3) to the n outputs from 0 to 1."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one item: `p_real` or, with the reason in `error`, nothing."""

    item: Item
    info: ImageInfo | None = None  # None where the file could not be read
    p_real: float | None = None  # the network's own output, rounded to DECIMALS
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Decoded:
    """An item that was read, or could not be."""

    outcome: Outcome  # still without the network's output
    image: np.ndarray | None  # uint8 (size, size, 3), None where the file could not be read


def outcomes(
    items: Iterable[Item], network: Network, preprocessing: Preprocessing, batch_size: int
) -> Iterator[Outcome]:
    """Predicts every item, in their order; close the generator to stop early.

    The network always sees `batch_size` pictures (the last batch is filled up with black ones): it is compiled for one
    shape, and computes every row by itself with the same operations in the same order, so that a picture's output does
    not depend on how many others there are, nor on which.
    """
    for batch in batches(items, preprocessing, batch_size):
        images = [decoded.image for decoded in batch if decoded.image is not None]
        p_real = network.p_real(filled(images, batch_size)) if images else ()
        yield from answered(batch, p_real)


def batches(items: Iterable[Item], preprocessing: Preprocessing, batch_size: int) -> Iterator[list[Decoded]]:
    """Decodes the items and yields them in order, `batch_size` readable ones at a time, with the others in between."""
    batch: list[Decoded] = []
    images = 0  # how many of the batch are readable
    for decoded in _decoded(items, preprocessing, batch_size):
        batch.append(decoded)
        images += decoded.image is not None
        if images == batch_size:
            yield batch
            batch, images = [], 0
    if batch:
        yield batch


def workers() -> int:
    """Returns how many threads decode pictures."""
    return min(os.cpu_count() or 1, _MAX_WORKERS)


def _decoded(items: Iterable[Item], preprocessing: Preprocessing, batch_size: int) -> Iterator[Decoded]:
    """Decodes in threads (Pillow releases the interpreter's lock), in order, a bounded number of files ahead."""
    items = iter(items)
    pool = ThreadPoolExecutor(workers(), thread_name_prefix="decode")
    try:
        ahead: deque[Future[Decoded]] = deque()
        while True:
            missing = _READ_AHEAD_BATCHES * batch_size + workers() - len(ahead)
            ahead.extend(pool.submit(_decode, item, preprocessing) for item in islice(items, missing))
            if not ahead:
                return
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _decode(item: Item, preprocessing: Preprocessing) -> Decoded:
    if item.problem:
        return Decoded(Outcome(item, error=item.problem), None)
    try:
        image, info = preprocessing.read_with_info(item.path)
        return Decoded(Outcome(item, info), image)
    except ImageRefused as error:
        reason = one_line(error)
    except Exception as error:  # noqa: BLE001 - whatever one file does to a decoder, the others are still to be done
        reason = f"expected a sound image, found one that can't be decoded ({type(error).__name__})"
    return Decoded(Outcome(item, error=reason), None)


def filled(images: Sequence[np.ndarray], batch_size: int) -> np.ndarray:
    """Returns pictures, at least one, filled up with black ones to a whole batch: uint8 (batch_size, S, S, 3)."""
    batch = np.zeros((batch_size, *images[0].shape), np.uint8)
    batch[: len(images)] = images
    return batch


def answered(batch: Sequence[Decoded], p_real: Iterable[float]) -> Iterator[Outcome]:
    """Yields the outcome of each decoded item; `p_real` are the outputs for the readable ones, in their order."""
    outputs = iter(p_real)
    for decoded in batch:
        yield decoded.outcome if decoded.image is None else with_output(decoded.outcome, next(outputs))


def with_output(outcome: Outcome, p_real: float) -> Outcome:
    """Returns the outcome with the network's output, or with an error where that is no number.

    Raises:
        ModelFileError: the output is no probability.
    """
    if not np.isfinite(p_real):
        return replace(outcome, error="expected a probability from the network, found no number (NaN or infinite)")
    if not 0.0 <= p_real <= 1.0:
        raise ModelFileError(
            f"expected a network whose output is p_real, from 0 to 1, found {p_real:.4g} for {outcome.item.name}:"
            " give it a sigmoid output, or train one with train_model.py"
        )
    return replace(outcome, p_real=round(float(p_real), DECIMALS))
