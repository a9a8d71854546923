"""What the learning part of a network is fed with: pictures, or the activations at the end of its frozen part."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, Protocol

import keras
import numpy as np

from fakereal import interrupts
from fakereal.cli import progress_bar, say
from fakereal.config import AugmentationConfig, Config
from fakereal.data.scan import Record
from fakereal.errors import DataError
from fakereal.model import boundary, frozen_part, input_pipeline
from fakereal.model.frozen_part import BATCH, FrozenPart
from fakereal.model.input_pipeline import Draw
from fakereal.model.row_cache import Cache, Rows
from fakereal.preprocessing import Preprocessing


class Feed(Protocol):
    """Batches for a model to learn from and to be measured on."""

    model: keras.Model  # what these batches go through; it shares the layers of the whole network
    views: int  # of each picture, that epochs take turns among; 0: a new one in every epoch

    def training(self, records: Sequence[Record], draw: Draw, batch_size: int) -> Any:
        """Returns one epoch, randomly changed."""

    def view(self, records: Sequence[Record], draw: Draw, batch_size: int) -> Any:
        """Returns these pictures in their order, changed as in that epoch."""

    def plain(self, records: Sequence[Record], batch_size: int) -> Any:
        """Returns the pictures as prediction sees them, in their order."""

    def news(self, epochs_done: int, epochs: int) -> str:
        """Returns a line for people after an epoch, or an empty one."""


class PictureFeed:
    """The whole network, from pixels."""

    views = 0

    def __init__(
        self, model: keras.Model, preprocessing: Preprocessing, options: AugmentationConfig, kept: Rows | None
    ) -> None:
        self.model, self._preprocessing, self.options, self._kept = model, preprocessing, options, kept

    def training(self, records: Sequence[Record], draw: Draw, batch_size: int) -> Any:
        """See `Feed`."""
        return input_pipeline.training_batches(records, self._preprocessing, self.options, draw, batch_size, self._kept)

    def view(self, records: Sequence[Record], draw: Draw, batch_size: int) -> Any:
        """See `Feed`."""
        return input_pipeline.view_batches(records, self._preprocessing, self.options, draw, batch_size, self._kept)

    def plain(self, records: Sequence[Record], batch_size: int) -> Any:
        """See `Feed`."""
        return input_pipeline.plain_batches(records, self._preprocessing, batch_size, self._kept)

    def news(self, epochs_done: int, epochs: int) -> str:
        """See `Feed`."""
        return ""


class ActivationFeed:
    """The learning part alone: the frozen part sees each picture in a few views, and each of them once.

    The first view is the picture itself, the others are randomly changed; epochs take turns among them.
    """

    def __init__(
        self,
        model: keras.Model,
        frozen: FrozenPart,
        rows: Rows,
        pictures: PictureFeed,
        seed: int,
        views: int,
    ) -> None:
        self.model, self._frozen, self._rows, self._pictures = model, frozen, rows, pictures
        self._seed, self.views = seed, views
        changes = json.dumps([asdict(pictures.options), seed], sort_keys=True)
        self._changes = hashlib.sha256(changes.encode()).hexdigest()[:16]
        self._seconds = 0.0

    def training(self, records: Sequence[Record], draw: Draw, batch_size: int) -> Any:
        """See `Feed`."""
        return self.view([records[number] for number in draw.order(records)], draw, batch_size)

    def view(self, records: Sequence[Record], draw: Draw, batch_size: int) -> Any:
        """See `Feed`."""
        return self._batches(records, draw.epoch % self.views, batch_size)

    def plain(self, records: Sequence[Record], batch_size: int) -> Any:
        """See `Feed`."""
        return self._batches(records, 0, batch_size)

    def news(self, epochs_done: int, epochs: int) -> str:
        """See `Feed`: once all views were computed, how long that took."""
        views = min(self.views, epochs)
        if epochs_done != views:
            return ""
        effort = "found in the cache"
        if self._seconds:
            effort = f"computed once by {self._frozen.engine}: {_duration(self._seconds)}"
        return f"features of {views} view{'s' * (views > 1)} a picture {effort}"

    def _batches(self, records: Sequence[Record], view: int, batch_size: int) -> Any:
        names = [self._name(record, view) for record in records]
        self._compute([(r, n) for r, n in zip(records, names, strict=True) if self._rows.get(n) is None], view)
        shape = self.model.input_shape[1:]
        return input_pipeline.row_batches(records, lambda number: self._rows.get(names[number]), shape, batch_size)

    def _name(self, record: Record, view: int) -> str:
        return f"{record.sha256} {self._changes} {view}" if view else record.sha256

    def _compute(self, missing: Sequence[tuple[Record, str]], view: int) -> None:
        if not missing:
            return
        started = time.monotonic()
        records = [record for record, _ in missing]
        draw = Draw(self._seed, 0, view)
        batches = self._pictures.view(records, draw, BATCH) if view else self._pictures.plain(records, BATCH)
        names = iter([name for _, name in missing])
        with progress_bar(f"features, view {view + 1}/{self.views}", len(missing)) as advance:
            for images, labels in batches:
                for row in self._frozen.activations(np.asarray(images)):
                    self._rows.put(next(names), row)
                advance(len(labels))
                interrupts.check()
        self._rows.flush()
        if any(self._rows.get(name) is None for _, name in missing):
            raise DataError(
                "cache: expected room for features, found none: raise data.cache_gb, free some of the disk, or name"
                " another one with --cache-dir DIR"
            )
        self._seconds += time.monotonic() - started


def choose(
    model: keras.Model,
    config: Config,
    preprocessing: Preprocessing,
    cache: Cache,
    count: int,
    base_learns: bool = False,
    twin: keras.Model | None = None,
) -> Feed:
    """Returns the feed that saves most.

    Args:
        model: as `networks.build` returns it, after `networks.set_trainable`.
        config: its seed, augmentation and views count here.
        preprocessing: of the size that the model takes.
        cache: where pictures and activations are kept.
        count: how many pictures there are, in all splits.
        base_learns: True where the model calls its base in training mode, whose randomness can't be kept.
        twin: the same network once more, on one device, where `model` is spread over several.
    """
    kept = cache.pictures(preprocessing)
    pictures = PictureFeed(model, preprocessing, config.augmentation, kept)
    parts = boundary.split(model) if config.training.views and not base_learns else None
    if parts is None:
        return pictures
    if twin is not None:  # activations are computed without the other processes, as each misses other ones
        parts = replace(parts, frozen=boundary.split(twin).frozen)
    views = 1 if _changes_nothing(config.augmentation) else config.training.views
    shape, fingerprint = parts.frozen.output_shape[1:], parts.fingerprint()
    size = count * views * math.prod(shape) * np.dtype("float32").itemsize
    frozen = frozen_part.fastest(parts.frozen, fingerprint, count * views, cache.folder)
    rows = cache.rows(f"activations {preprocessing.fingerprint} {fingerprint} {frozen.engine}", shape, "float32")
    if not cache.holds(rows, size):
        size_gb = size / 1e9
        say(f"features are computed anew every epoch: {size_gb:.1f} GB are more than data.cache_gb or the disk allows")
        return pictures
    return ActivationFeed(parts.learning, frozen, rows, pictures, config.seed, views)


def _changes_nothing(options: AugmentationConfig) -> bool:
    steps = asdict(options)
    return not steps.pop("resaving")["share"] and not any(steps.values())


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
