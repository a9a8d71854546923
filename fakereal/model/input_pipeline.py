"""From records to batches: the same decoding as prediction, and for training random changes in between."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from fakereal.config import AugmentationConfig
from fakereal.data.scan import Record
from fakereal.errors import DataError, ImageRefused
from fakereal.model import geometry
from fakereal.model.augmentation import resave
from fakereal.preprocessing import Preprocessing, decode, fit

_MARK = "<<picture>>"


@dataclass(frozen=True)
class Draw:
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

    def rng(self, index: int) -> np.random.Generator:
        """Returns the randomness for one picture: the same in every run, whatever the order of the threads."""
        return np.random.default_rng((self.seed, self.phase, self.epoch, index))


def training_array(
    record: Record, preprocessing: Preprocessing, options: AugmentationConfig, rng: np.random.Generator
) -> np.ndarray:
    """Returns a training picture as uint8 (S, S, 3): decode -> as if sent around -> fit -> flip, turn, shift.

    Without the two random steps it is `Preprocessing.read`, bit for bit.
    """
    image, _ = decode(record.path, preprocessing.image_size_px)
    image = resave(image, rng, options.resaving)
    return geometry.transform(fit(image, preprocessing.image_size_px), rng, options)


def training_batches(
    records: Sequence[Record],
    preprocessing: Preprocessing,
    options: AugmentationConfig,
    draw: Draw,
    batch_size: int,
) -> tf.data.Dataset:
    """Returns one epoch: batches of float32 pictures (n, S, S, 3) in 0..255 and labels (n, 1)."""

    def load(index: np.int64) -> np.ndarray:
        return training_array(records[index], preprocessing, options, draw.rng(int(index)))

    return _batches(records, draw.order(records), load, preprocessing, batch_size)


def plain_batches(records: Sequence[Record], preprocessing: Preprocessing, batch_size: int) -> tf.data.Dataset:
    """Returns the pictures as prediction sees them, in their order: batches as `training_batches` gives them."""

    def load(index: np.int64) -> np.ndarray:
        return preprocessing.read(records[index].path)

    return _batches(records, np.arange(len(records)), load, preprocessing, batch_size)


def labels_of(records: Sequence[Record]) -> np.ndarray:
    """Returns the labels, int64 (n,)."""
    return np.array([record.label for record in records], dtype=np.int64)


@contextmanager
def pictures_named() -> Iterator[None]:
    """Turns TensorFlow's error about a picture that vanished or broke since the scan into one line with its name.

    Raises:
        DataError: which picture, and how to go on.
    """
    try:
        yield
    except tf.errors.OpError as error:
        found = re.search(f"{_MARK}(.*?){_MARK}", str(error), re.DOTALL)
        if not found:
            raise
        raise DataError(f"{found[1]}; it was sound when the run began: put it back and add --resume") from error


def _batches(
    records: Sequence[Record], order: np.ndarray, load, preprocessing: Preprocessing, batch_size: int
) -> tf.data.Dataset:
    labels = labels_of(records)[order].astype(np.float32)[:, None]
    size = preprocessing.image_size_px

    def named_load(index: np.int64) -> np.ndarray:
        try:
            return load(index)
        except ImageRefused as error:  # the marks let `pictures_named` find the sentence inside TensorFlow's own
            raise DataError(f"{_MARK}{records[index].path}: {error}{_MARK}") from error

    def image_and_label(index: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image = tf.numpy_function(named_load, [index], tf.uint8, stateful=False)
        return tf.ensure_shape(image, (size, size, 3)), label

    def as_float(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.cast(images, tf.float32), labels

    dataset = tf.data.Dataset.from_tensor_slices((order, labels))
    dataset = dataset.map(image_and_label, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return dataset.batch(batch_size).map(as_float).prefetch(2)
