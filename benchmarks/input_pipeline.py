"""Measure how long an epoch takes from files and from the cache, against one that needs no input.

    python -m benchmarks.input_pipeline --data DIR [--images 320] [--repeats 3]       about 6 minutes on 2 free cores

An EfficientNetB0 at 224 px trains for one epoch, its head alone and all its layers, in turn:

    memory   the same batch over and over: what the network takes by itself
    tuned    the same, with tf.data's autotuning, which is its default and which we switch off
    cache    images decoded before, augmented in each epoch
    files    images of DIR, decoded and augmented
    1024     the same from JPEGs of 1024x1024, made from the images of DIR

"Cores idle" is the share of the cores' time that this process did not use. Medians of the repeats.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks._shared import Table, median_and_all, new_parser
from fakereal import runtime
from fakereal.engines.formats import core_count

BATCH = 32
SCOPES = ("head", "all")


@dataclass(frozen=True)
class Epoch:
    """One measured epoch."""

    seconds: float
    idle: float  # share of the cores' time, 0..1


def main() -> int:
    """Measure and print the table; return the exit code."""
    parser = new_parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="a labeled folder")
    parser.add_argument("--images", type=int, default=320, help="a multiple of 32")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    runtime.start_keras()
    with tempfile.TemporaryDirectory() as folder:
        ways = prepare(options, Path(folder))
        table = Table("trains", "images from", "seconds, median (all)", "against memory", "cores idle")
        for scope in SCOPES:
            measure(scope, ways, options, table)
    return 0


def prepare(options: argparse.Namespace, work: Path) -> dict[str, Callable[[int], Any]]:
    """Return, for each way, the function that gives the batches of an epoch by its number."""
    import numpy as np
    import tensorflow as tf

    from fakereal.config import AugmentationConfig
    from fakereal.dataset.scan import scan
    from fakereal.preprocessing import Preprocessing
    from fakereal.training.cache import RowCache
    from fakereal.training.input_pipeline import EpochSampler, augmented_batches, without_autotune

    preprocessing, changes = Preprocessing(224), AugmentationConfig()
    found = scan(options.data, preprocessing).records
    chosen = np.random.default_rng(0).permutation(len(found))[: options.images // BATCH * BATCH]
    records = [found[number] for number in sorted(chosen)]
    large = []
    for number, record in enumerate(records):
        path = work / f"{number}.jpg"
        with Image.open(record.path) as image:
            image.convert("RGB").resize((1024, 1024), Image.Resampling.BICUBIC).save(path, quality=90)
        large.append(replace(record, path=path))
    kept = RowCache(work / "cache", 10**10).images(preprocessing)

    def batches(chosen, epoch: int, cache=None):
        return augmented_batches(chosen, preprocessing, changes, EpochSampler(0, 0, epoch), BATCH, cache)

    for _ in batches(records, 0, kept):  # fills the cache
        pass
    kept.flush()  # or it would be read from memory
    held = next(iter(batches(records, 0, kept)))
    tuned = tf.data.Dataset.from_tensors(held).repeat(len(records) // BATCH)
    return {
        "memory": lambda epoch: without_autotune(tuned),
        "tuned": lambda epoch: tuned,
        "cache": lambda epoch: batches(records, epoch, kept),
        "files": lambda epoch: batches(records, epoch),
        "1024": lambda epoch: batches(large, epoch),
    }


def measure(scope: str, ways: dict[str, Callable[[int], Any]], options: argparse.Namespace, table: Table) -> None:
    """Train epochs of all ways in turn, and print a row for each."""
    import keras

    from fakereal.config import NetworkConfig
    from fakereal.model import networks

    model = networks.build(NetworkConfig(), 224)
    networks.set_trainable(model, scope, learn_batch_norm=False)
    model.compile("adam", "binary_crossentropy")
    model.fit(ways["memory"](0).take(1), verbose=0)  # builds the graph
    epochs: dict[str, list[Epoch]] = {way: [] for way in ways}
    for repeat in range(options.repeats):
        for way, batches in ways.items():
            epochs[way].append(one_epoch(model, batches(repeat + 1)))
    base = statistics.median(epoch.seconds for epoch in epochs["memory"])
    for way, each in epochs.items():
        seconds = [epoch.seconds for epoch in each]
        idle = statistics.median(epoch.idle for epoch in each)
        ratio = statistics.median(seconds) / base
        table.row(scope, way, median_and_all(seconds, ".1f"), f"{ratio:.2f}", f"{idle:.0%}")
    keras.backend.clear_session()


def one_epoch(model: Any, batches: Any) -> Epoch:
    """Train once over the batches."""
    before, started = os.times(), time.monotonic()
    model.fit(batches, verbose=0)
    seconds, after = time.monotonic() - started, os.times()
    used = after.user + after.system - before.user - before.system
    return Epoch(seconds, max(0.0, 1 - used / (seconds * core_count())))


if __name__ == "__main__":
    sys.exit(main())
