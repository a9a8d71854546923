"""Predict labelled images, as they are and after each re-save variant."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fakereal.dataset.scan import Record, labels_of, scanned_bytes
from fakereal.decoding import decode
from fakereal.engines.formats import Network, pad_batch
from fakereal.errors import DataError, ImageRefused
from fakereal.model.augmentation import RESAVES
from fakereal.model.calibration import DECIMALS
from fakereal.preprocessing import Preprocessing
from fakereal.runtime import check_interrupt, interrupts_at_checks_only, progress_bar
from fakereal.training.input_pipeline import named_images, plain_batches

RESAVED = ("png", "jpeg90", "jpeg70", "jpeg50", "scale0.5", "blur1")
"""The rows of the re-save table, names of `augmentation.RESAVES`."""

_FULL_PX = 2048  # the reduced scale of very large JPEGs still has twice that many pixels each way
_PICTURES_AT_ONCE = 16  # each in all its versions: bounds the memory


@dataclass(frozen=True)
class EvaluatedImages:
    """Labelled pictures, and the network's outputs."""

    root: Path  # the folder that paths are shown relative to
    records: tuple[Record, ...]
    p_real: np.ndarray  # float64 (n,), the network's own, rounded to `DECIMALS`
    engine: str  # what ran the network
    resaved_of: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # (m,): which pictures were re-saved
    resaved: dict[str, np.ndarray] = field(default_factory=dict)  # name -> p_real (m,)

    @property
    def labels(self) -> np.ndarray:
        """The labels, int64 (n,)."""
        return labels_of(self.records)


def predict_records(
    network: Network,
    preprocessing: Preprocessing,
    root: Path,
    records: Sequence[Record],
    engine: str,
    batch_size: int = 32,
    resave_images: int | None = None,
    seed: int = 0,
) -> EvaluatedImages:
    """Predicts pictures as they are, and re-saved in every way of `RESAVED`.

    Args:
        network: what judges.
        preprocessing: the network's own.
        root: the folder that the records come from.
        records: the pictures.
        engine: what runs the network, for the records.
        batch_size: pictures that the network sees at once.
        resave_images: at most so many are saved again, drawn at random; None: all; 0: none.
        seed: of that draw.

    Raises:
        DataError: a picture vanished or broke since the scan.
    """
    with named_images(), interrupts_at_checks_only(), progress_bar("judging", len(records)) as advance:
        outputs = []
        for images, labels in plain_batches(records, preprocessing, batch_size):
            p_real = network.p_real(pad_batch(np.asarray(images), batch_size))[: len(labels)]
            outputs.append(np.round(p_real, DECIMALS))  # as prediction does, before anything is decided
            advance(len(labels))
            check_interrupt()
    chosen = _drawn(len(records), resave_images, seed)
    resaved = _resaved(network, preprocessing, [records[number] for number in chosen]) if len(chosen) else {}
    return EvaluatedImages(root, tuple(records), np.concatenate(outputs), engine, chosen, resaved)


def count(images: int, resave_images: int | None) -> int:
    """Returns how many pictures the network sees in `judge`, their re-saved versions included."""
    again = images if resave_images is None else min(images, resave_images)
    return images + again * len(RESAVED)


def _drawn(count: int, limit: int | None, seed: int) -> np.ndarray:
    if limit is None or limit >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).permutation(count)[:limit])


def _resaved(network: Network, preprocessing: Preprocessing, records: Sequence[Record]) -> dict[str, np.ndarray]:
    outputs: list[np.ndarray] = []
    with interrupts_at_checks_only(), progress_bar("saving again", len(records)) as advance:
        for versions in _versions(records, preprocessing):
            shape = versions.shape[2:]
            outputs.append(network.p_real(versions.reshape(-1, *shape)).reshape(versions.shape[:2]))
            advance(len(versions))
            check_interrupt()
    rows = np.round(np.concatenate(outputs)[: len(records)], DECIMALS)
    return {name: rows[:, number] for number, name in enumerate(RESAVED)}


def _versions(records: Sequence[Record], preprocessing: Preprocessing) -> Iterator[np.ndarray]:
    """Yields uint8 (_PICTURES_AT_ONCE, versions, S, S, 3); the last one is filled up by repeating its last picture."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(records), _PICTURES_AT_ONCE):
            some = records[start : start + _PICTURES_AT_ONCE]
            read = list(pool.map(lambda record: _versions_of(record, preprocessing), some))
            # One shape for all: another one would make the network compile again
            yield np.stack(read + read[-1:] * (_PICTURES_AT_ONCE - len(read)))


def _versions_of(record: Record, preprocessing: Preprocessing) -> np.ndarray:
    try:
        image, _ = decode(scanned_bytes(record), max(_FULL_PX, preprocessing.decode_px))
    except ImageRefused as error:
        raise DataError(f"{record.path}: {error}; it was sound when the evaluation began: put it back") from error
    return np.stack([preprocessing.array(RESAVES[name](image)) for name in RESAVED])
