"""Files -> arrays -> batches -> the network's outputs: decoding runs in threads while the network computes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
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
class _Decoded:
    outcome: Outcome
    image: np.ndarray | None  # uint8 (size, size, 3), None where the file could not be read


def outcomes(
    items: Iterable[Item], network: Network, preprocessing: Preprocessing, batch_size: int
) -> Iterator[Outcome]:
    """Predicts every item, in their order; close the generator to stop early.

    The network always sees `batch_size` pictures (the last batch is filled up with black ones): it is compiled for one
    shape, and computes every row by itself with the same operations in the same order, so that a picture's output does
    not depend on how many others there are, nor on which.
    """
    batch: list[_Decoded] = []  # in order, broken files included
    images = 0  # how many of the batch are none of those
    for decoded in _decoded(items, preprocessing, batch_size):
        batch.append(decoded)
        images += decoded.image is not None
        if images == batch_size:
            yield from _finished(batch, network, batch_size)
            batch, images = [], 0
    yield from _finished(batch, network, batch_size)


def _decoded(items: Iterable[Item], preprocessing: Preprocessing, batch_size: int) -> Iterator[_Decoded]:
    """Decodes in threads (Pillow releases the interpreter's lock), in order, a bounded number of files ahead."""
    workers = min(os.cpu_count() or 1, _MAX_WORKERS)
    items = iter(items)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        ahead: deque[Future[_Decoded]] = deque()
        while True:
            missing = _READ_AHEAD_BATCHES * batch_size + workers - len(ahead)
            ahead.extend(pool.submit(_decode, item, preprocessing) for item in islice(items, missing))
            if not ahead:
                return
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _decode(item: Item, preprocessing: Preprocessing) -> _Decoded:
    if item.problem:
        return _Decoded(Outcome(item, error=item.problem), None)
    try:
        image, info = preprocessing.read_with_info(item.path)
        return _Decoded(Outcome(item, info), image)
    except ImageRefused as error:
        reason = one_line(error)
    except Exception as error:  # noqa: BLE001 - whatever one file does to a decoder, the others are still to be done
        reason = f"expected a sound image, found one that can't be decoded ({type(error).__name__})"
    return _Decoded(Outcome(item, error=reason), None)


def _finished(batch: list[_Decoded], network: Network, batch_size: int) -> Iterator[Outcome]:
    images = [decoded.image for decoded in batch if decoded.image is not None]
    answers = iter(_predict(images, network, batch_size) if images else ())
    for decoded in batch:
        yield decoded.outcome if decoded.image is None else _with_output(decoded.outcome, next(answers))


def _predict(images: list[np.ndarray], network: Network, batch_size: int) -> np.ndarray:
    padded = np.zeros((batch_size, *images[0].shape), np.uint8)
    padded[: len(images)] = images
    return np.asarray(network.p_real(padded), np.float64)[: len(images)]


def _with_output(outcome: Outcome, p_real: float) -> Outcome:
    if not np.isfinite(p_real):
        return replace(outcome, error="expected a probability from the network, found no number (NaN or infinite)")
    if not 0.0 <= p_real <= 1.0:
        raise ModelFileError(
            f"expected a network whose output is p_real, from 0 to 1, found {p_real:.4g} for {outcome.item.name}:"
            " give it a sigmoid output, or train one with train_model.py"
        )
    return replace(outcome, p_real=round(float(p_real), DECIMALS))
