"""From records to batches: the same decoding as prediction, and for training random changes in between."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from fakereal.config import AugmentationConfig
from fakereal.dataset.scan import Record, labels_of, scanned_bytes
from fakereal.decoding import decode
from fakereal.engines.formats import core_count
from fakereal.errors import DataError, ImageRefused
from fakereal.model import augmentation
from fakereal.model.augmentation import resave_randomly
from fakereal.preprocessing import Preprocessing
from fakereal.training.cache import Rows

_MARK = "<<picture>>"

if keras.backend.backend() != "tensorflow":
    tf.config.set_visible_devices([], "GPU")  # or TensorFlow would take the memory that the other backend needs


@dataclass(frozen=True)
class EpochSampler:
    """Which pictures of a training set make up an epoch, and the randomness of their changes."""

    seed: int
    phase: int
    epoch: int
    images_per_epoch: int | None = None  # None: every picture once
    source_balance: float = 0.0  # 0: every picture alike; 1: every source alike, until its pictures run out

    def order(self, records: Sequence[Record]) -> np.ndarray:
        """Returns the indices of the epoch's pictures in their order, int64."""
        rng = np.random.default_rng((self.seed, self.phase, self.epoch))
        if self.images_per_epoch is None or self.images_per_epoch >= len(records):
            return rng.permutation(len(records))
        sources = np.array([record.source for record in records])
        _, inverse, counts = np.unique(sources, return_inverse=True, return_counts=True)
        weights = (1.0 / counts[inverse]) ** self.source_balance
        return rng.choice(len(records), self.images_per_epoch, replace=False, p=weights / weights.sum())

    def rng(self, record: Record) -> np.random.Generator:
        """Returns the randomness for one picture, by its content: whatever the threads and the other pictures do."""
        return np.random.default_rng((self.seed, self.phase, self.epoch, int(record.sha256[:16] or "0", 16)))


def plain_array(record: Record, preprocessing: Preprocessing, kept: Rows | None = None) -> np.ndarray:
    """Returns a picture as prediction sees it, uint8 (S, S, 3); decoded once where `kept` holds decoded pictures."""
    array = kept.get(record.sha256) if kept else None
    if array is None:
        array = preprocessing.read(scanned_bytes(record))
        if kept:
            kept.put(record.sha256, array)
    return array


def training_array(
    record: Record,
    preprocessing: Preprocessing,
    options: AugmentationConfig,
    rng: np.random.Generator,
    kept: Rows | None = None,
) -> np.ndarray:
    """Returns a training picture as uint8 (S, S, 3): decode -> as if sent around -> fit -> flip, turn, shift.

    Without the two random steps it is `plain_array`, bit for bit.
    """
    if options.resaving.share:  # happens at the picture's own resolution, which decoded pictures have lost
        image, _ = decode(scanned_bytes(record), preprocessing.decode_px)
        array = preprocessing.array(resave_randomly(image, rng, options.resaving))
    else:
        rng.random()  # what `resave_randomly` would draw, so that the changes below are the same with and without it
        array = plain_array(record, preprocessing, kept)
    return augmentation.transform_geometry(array, rng, options)


def training_batches(
    records: Sequence[Record],
    preprocessing: Preprocessing,
    options: AugmentationConfig,
    draw: EpochSampler,
    batch_size: int,
    kept: Rows | None = None,
) -> tf.data.Dataset:
    """Returns one epoch: batches of float32 pictures (n, S, S, 3) in 0..255 and labels (n, 1)."""
    chosen = [records[number] for number in draw.order(records)]
    return view_batches(chosen, preprocessing, options, draw, batch_size, kept)


def view_batches(
    records: Sequence[Record],
    preprocessing: Preprocessing,
    options: AugmentationConfig,
    draw: EpochSampler,
    batch_size: int,
    kept: Rows | None = None,
) -> tf.data.Dataset:
    """Returns these pictures in their order, changed as the draw has it: batches as `training_batches` gives them."""

    def load(record: Record) -> np.ndarray:
        return training_array(record, preprocessing, options, draw.rng(record), kept)

    return _batches(records, load, preprocessing, batch_size)


def plain_batches(
    records: Sequence[Record], preprocessing: Preprocessing, batch_size: int, kept: Rows | None = None
) -> tf.data.Dataset:
    """Returns the pictures as prediction sees them, in their order: batches as `training_batches` gives them."""
    return _batches(records, lambda record: plain_array(record, preprocessing, kept), preprocessing, batch_size)


def row_batches(
    records: Sequence[Record], load: Callable[[int], np.ndarray], shape: tuple[int, ...], batch_size: int
) -> tf.data.Dataset:
    """Returns batches of float32 rows (n, *shape), which `load` gives by number, and labels (n, 1), in their order."""

    def stack(numbers: np.ndarray) -> np.ndarray:
        return np.stack([load(number) for number in numbers])

    def rows_and_labels(numbers: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        rows = tf.numpy_function(stack, [numbers], tf.float32, stateful=False)
        return tf.ensure_shape(rows, (None, *shape)), labels

    dataset = _numbered(records).batch(batch_size)
    return resolve_augmentation(dataset.map(rows_and_labels, num_parallel_calls=2, deterministic=True).prefetch(2))


def weighted(batches: tf.data.Dataset, weights: np.ndarray, batch_size: int) -> tf.data.Dataset:
    """Returns the batches with a weight for each picture: (pictures, labels, float32 (n,))."""
    together = tf.data.Dataset.zip(batches, tf.data.Dataset.from_tensor_slices(weights).batch(batch_size))
    return resolve_augmentation(together.map(lambda batch, weight: (*batch, weight)).prefetch(2))


@contextmanager
def named_images(remedy: str = "put it back") -> Iterator[None]:
    """Turns TensorFlow's error about a picture that vanished or changed since the scan into one line with its name.

    Args:
        remedy: what to do then.

    Raises:
        DataError: which picture, and the remedy.
    """
    try:
        yield
    except tf.errors.OpError as error:
        found = re.search(f"{_MARK}(.*?){_MARK}", str(error), re.DOTALL)
        if not found:
            raise
        raise DataError(f"{found[1]}; it was sound when the run began: {remedy}") from error


def _numbered(records: Sequence[Record]) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((np.arange(len(records)), labels_of(records).astype(np.float32)[:, None]))


def _batches(
    records: Sequence[Record], load: Callable[[Record], np.ndarray], preprocessing: Preprocessing, batch_size: int
) -> tf.data.Dataset:
    size = preprocessing.image_size_px

    def named_load(number: np.int64) -> np.ndarray:
        try:
            return load(records[number])
        except ImageRefused as error:  # the marks let `pictures_named` find the sentence inside TensorFlow's own
            raise DataError(f"{_MARK}{records[number].path}: {error}{_MARK}") from error

    def image_and_label(number: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image = tf.numpy_function(named_load, [number], tf.uint8, stateful=False)
        return tf.ensure_shape(image, (size, size, 3)), label

    def as_float(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.cast(images, tf.float32), labels

    dataset = _numbered(records).map(image_and_label, num_parallel_calls=core_count(), deterministic=True)
    return resolve_augmentation(dataset.batch(batch_size).map(as_float).prefetch(2))


def resolve_augmentation(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Switches off the tuning of tf.data while it runs: nothing here is left to it, and it holds up each epoch's end.

    Its thread sleeps 10 ms, 20 ms, 40 ms and so on between its looks, and TensorFlow 2.21 waits for it to wake up when
    an iterator ends: an epoch of 5.3 s takes 10.24 s, one of 11 s 20.48 s (benchmarks/input_pipeline.py).
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)
