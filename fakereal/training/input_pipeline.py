"""From records to batches: the decoding of prediction, and for training random augmentation on top.

decode -> (training: re-save) -> views, resize -> (training: flip, rotate, shift) -> batch
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import keras
import numpy as np
import tensorflow as tf

from fakereal.config import AugmentationConfig
from fakereal.dataset.scan import Record, labels_of, scanned_bytes
from fakereal.engines.formats import core_count
from fakereal.errors import DataError, ImageRefused
from fakereal.model import augmentation
from fakereal.model.augmentation import random_view, resave_randomly
from fakereal.preprocessing import Preprocessing
from fakereal.training.cache import Rows

_MARK = "<<image>>"

if keras.backend.backend() != "tensorflow":
    tf.config.set_visible_devices([], "GPU")  # or TensorFlow would take the memory that the other backend needs


@dataclass(frozen=True)
class EpochSampler:
    """Draws the images of one epoch, and seeds their augmentation."""

    seed: int
    phase: int
    epoch: int
    images_per_epoch: int | None = None  # None: every image once
    source_balance: float = 0.0  # 0: every image alike; 1: every source alike, until its images run out

    def order(self, records: Sequence[Record]) -> np.ndarray:
        """Return the indices of the epoch's images in their order, int64."""
        rng = np.random.default_rng((self.seed, self.phase, self.epoch))
        if self.images_per_epoch is None or self.images_per_epoch >= len(records):
            return rng.permutation(len(records))
        sources = np.array([record.source for record in records])
        _, inverse, counts = np.unique(sources, return_inverse=True, return_counts=True)
        weights = (1.0 / counts[inverse]) ** self.source_balance
        return rng.choice(len(records), self.images_per_epoch, replace=False, p=weights / weights.sum())

    def rng(self, record: Record) -> np.random.Generator:
        """Return the generator of one image, seeded by its content: threads and other images have no influence."""
        return np.random.default_rng((self.seed, self.phase, self.epoch, int(record.sha256[:16] or "0", 16)))


def plain_array(record: Record, preprocessing: Preprocessing, decoded: Rows | None = None) -> np.ndarray:
    """Return an image as prediction sees it.

    Args:
        record: the image.
        preprocessing: the network's.
        decoded: a cache of decoded images.

    Returns:
        uint8 (S, S, 3), 0..255.

    Raises:
        ImageRefused: the file can't be read, or is no longer the one that was scanned.
    """
    array = decoded.get(record.sha256) if decoded else None
    if array is None:
        array = preprocessing.read(scanned_bytes(record))
        if decoded:
            decoded.put(record.sha256, array)
    return array


def training_array(
    record: Record,
    preprocessing: Preprocessing,
    options: AugmentationConfig,
    rng: np.random.Generator,
    decoded: Rows | None = None,
) -> np.ndarray:
    """Return an augmented image: re-saved at its own resolution, resized, then flipped, rotated and shifted.

    With augmentation off it is `plain_array`, bit for bit; arguments, result and errors are those of `plain_array`.
    """
    if options.resaving.share or preprocessing.crops:  # both need the image's own resolution
        image, _ = preprocessing.decode(scanned_bytes(record))
        resave = partial(resave_randomly, rng=rng, options=options.resaving)
        array = random_view(image, preprocessing, rng, resave)
    else:
        rng.random()  # what `resave_randomly` would draw, so that the steps below are the same with and without it
        array = plain_array(record, preprocessing, decoded)
    return augmentation.transform_geometry(array, rng, options)


def augmented_batches(
    records: Sequence[Record],
    preprocessing: Preprocessing,
    options: AugmentationConfig,
    sampler: EpochSampler,
    batch_size: int,
    decoded: Rows | None = None,
) -> tf.data.Dataset:
    """Return these images in their order, augmented as in the sampler's epoch.

    Returns:
        Batches of float32 images (n, S, S, 3), 0..255, and float32 labels (n, 1).
    """

    def load(record: Record) -> np.ndarray:
        return training_array(record, preprocessing, options, sampler.rng(record), decoded)

    return _image_batches(records, load, preprocessing, batch_size)


def plain_batches(
    records: Sequence[Record], preprocessing: Preprocessing, batch_size: int, decoded: Rows | None = None
) -> tf.data.Dataset:
    """Return the images as prediction sees them, in their order; batches as `augmented_batches` returns them."""
    return _image_batches(
        records, lambda record: plain_array(record, preprocessing, decoded), preprocessing, batch_size
    )


def row_batches(
    records: Sequence[Record], load: Callable[[int], np.ndarray], shape: tuple[int, ...], batch_size: int
) -> tf.data.Dataset:
    """Return batches of float32 rows (n, *shape), which `load` gives by number, and labels (n, 1), in their order."""

    def stack(numbers: np.ndarray) -> np.ndarray:
        return np.stack([load(number) for number in numbers])

    def rows_and_labels(numbers: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        rows = tf.numpy_function(stack, [numbers], tf.float32, stateful=False)
        return tf.ensure_shape(rows, (None, *shape)), labels

    dataset = _numbered(records).batch(batch_size)
    return without_autotune(dataset.map(rows_and_labels, num_parallel_calls=2, deterministic=True).prefetch(2))


def weighted(batches: tf.data.Dataset, weights: np.ndarray, batch_size: int) -> tf.data.Dataset:
    """Return the batches with a weight for each image: (images, labels, float32 (n,))."""
    together = tf.data.Dataset.zip(batches, tf.data.Dataset.from_tensor_slices(weights).batch(batch_size))
    return without_autotune(together.map(lambda batch, weight: (*batch, weight)).prefetch(2))


@contextmanager
def named_images(remedy: str = "put it back") -> Iterator[None]:
    """Turn TensorFlow's error about an image that vanished or changed since the scan into one line that names it.

    Args:
        remedy: what to do then.

    Raises:
        DataError: which image, and the remedy.
    """
    try:
        yield
    except tf.errors.OpError as error:
        found = re.search(f"{_MARK}(.*?){_MARK}", str(error), re.DOTALL)
        if not found:
            raise
        raise DataError(f"{found[1]}; it was readable when the run began: {remedy}") from error


def _numbered(records: Sequence[Record]) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((np.arange(len(records)), labels_of(records).astype(np.float32)[:, None]))


def _image_batches(
    records: Sequence[Record], load: Callable[[Record], np.ndarray], preprocessing: Preprocessing, batch_size: int
) -> tf.data.Dataset:
    size = preprocessing.image_size_px

    def named_load(number: np.int64) -> np.ndarray:
        try:
            return load(records[number])
        except ImageRefused as error:  # the marks let `named_images` find the sentence inside TensorFlow's own
            raise DataError(f"{_MARK}{records[number].path}: {error}{_MARK}") from error

    def image_and_label(number: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image = tf.numpy_function(named_load, [number], tf.uint8, stateful=False)
        return tf.ensure_shape(image, (size, size, 3)), label

    def as_float(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.cast(images, tf.float32), labels

    dataset = _numbered(records).map(image_and_label, num_parallel_calls=core_count(), deterministic=True)
    return without_autotune(dataset.batch(batch_size).map(as_float).prefetch(2))


def without_autotune(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Switch off tf.data's autotuning: nothing here is left to it, and it delays the end of each epoch.

    Its thread sleeps 10 ms, 20 ms, 40 ms and so on between its looks, and TensorFlow 2.21 waits for it to wake up when
    an iterator ends: an epoch of 5.3 s takes 10.24 s, one of 11 s 20.48 s (benchmarks/input_pipeline.py).
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)
