"""Measure every figure of models/MODEL_CARD.md.

    python -m benchmarks.pretrained --cifake CIFAKE --sets SET --start models/cifake.h5 --hackathon CLEAN --work DIR

CIFAKE is the official folder (train/, test/); test images that are pixel-identical to a training image are left out.
SET is what tools/assemble_pretraining_set.py made; its test/ part was not trained on. --start is the model of
configs/cifake.yaml, where the trainings without one source start; CLEAN is a labelled set of your own to transfer to.
What was trained in DIR is not trained again. Two hours on 2 cores in all; --parts selects.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from benchmarks import pretrained_runs
from benchmarks._shared import FULL_PX, Table, new_parser, with_interval
from fakereal import cli, runtime
from fakereal.dataset.scan import Record, scan
from fakereal.dataset.split import split_dataset
from fakereal.decoding import decode
from fakereal.engines.engine import FAST, OpenedNetwork, open_network
from fakereal.preprocessing import Preprocessing, resize

PRETRAINED = Path("models/pretrained.h5")
PARTS = ("figures", "engines", "sources", "transfer", "hackathon")
VARIANTS = ("png", "jpeg90", "jpeg75", "jpeg50", "scale0.75", "scale0.5", "blur1")
"""The re-saves of fakereal.model.augmentation; `png` changes nothing."""

_BATCH = 32


def main() -> int:
    """Print the tables; return the exit code."""
    parser = new_parser(__doc__)
    parser.add_argument("--cifake", type=Path, required=True, metavar="DIR")
    parser.add_argument("--sets", type=Path, required=True, metavar="DIR")
    parser.add_argument("--model", type=Path, default=PRETRAINED, metavar="FILE")
    parser.add_argument("--start", type=Path, metavar="FILE")
    parser.add_argument("--hackathon", type=Path, metavar="DIR")
    parser.add_argument("--work", type=Path, default=Path("pretrained_benchmark"), metavar="DIR")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--engine", choices=cli.ENGINES, default="auto", help="what runs the network")
    parser.add_argument("--limit", type=int, metavar="N", help="random images of CIFAKE, to save time")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    options = parser.parse_args()
    for part, needed in (("sources", options.start), ("transfer", options.start), ("hackathon", options.hackathon)):
        if part in options.parts and not needed:
            parser.error(f"part {part} needs --{'hackathon' if part == 'hackathon' else 'start'}")
    if "figures" in options.parts:
        figures(options)
    if "engines" in options.parts:
        engines(options)
    if "sources" in options.parts:
        pretrained_runs.leave_sources_out(options.sets, options.start, options.work)
    if "transfer" in options.parts:
        pretrained_runs.transfer_to_dualcue(options.sets, options.start, options.model, options.work)
    if "hackathon" in options.parts:
        pretrained_runs.transfer_to_hackathon(options.hackathon, options.model, options.work)
    return 0


def figures(options: argparse.Namespace) -> None:
    """Print the shipped model's figures: on each re-save of CIFAKE's test, and on the other sources as they are."""
    opened = open_network(options.model, options.engine)
    runtime.log(opened.description)
    cifake = official_test(options)
    table = Table("set", "saved as", "images", "accuracy (95 %)", "ROC AUC (95 %)", "flipped")
    report(table, "CIFAKE test", cifake, opened, options.variants)
    others = scan(options.sets / "test", Preprocessing(32)).records
    for source in sorted({record.source for record in others} - {"cifake"}):
        records = [record for record in others if record.source == source]
        report(table, source, records, opened, options.variants[:1])


def engines(options: argparse.Namespace) -> None:
    """Print how far each engine agrees with Keras on CIFAKE's official test."""
    from fakereal.model.calibration import labels
    from fakereal.model.metrics import measure

    cifake = official_test(options)
    truth = np.array([record.label for record in cifake])
    table = Table("engine", "images", "accuracy (95 %)", "labels as Keras", "p_real differs by at most")
    expected = None
    for name in ("keras", *FAST):
        opened = open_network(options.model, name)
        decision, p_real = opened.metadata.decision, outputs(cifake, opened, "png")
        expected = p_real if expected is None else expected
        row, agreed = measure(truth, p_real, decision), labels(p_real, decision) == labels(expected, decision)
        accuracy = with_interval(row["accuracy"], row["intervals"]["accuracy"], ".2%")
        same, difference = f"{np.mean(agreed):.3%} ({np.sum(~agreed)} differ)", np.abs(p_real - expected).max()
        table.row(opened.engine, f"{len(cifake):,}", accuracy, same, f"{difference:.1e}")


def official_test(options: argparse.Namespace) -> tuple[Record, ...]:
    """Return CIFAKE's test images that are no copies of training ones, or `--limit` of them."""
    cifake = split_dataset(scan(options.cifake, Preprocessing(32)), 0).test
    if not options.limit:
        return cifake
    chosen = np.random.default_rng(0).permutation(len(cifake))[: options.limit]
    return tuple(cifake[number] for number in chosen)


def report(table: Table, title: str, records: Sequence[Record], opened: OpenedNetwork, variants: Sequence[str]) -> None:
    """Print a row for each re-save: accuracy and ROC AUC with 95 % intervals, and the labels that flipped."""
    from fakereal.model.calibration import labels
    from fakereal.model.metrics import measure

    decision = opened.metadata.decision
    truth = np.array([record.label for record in records])
    untouched = outputs(records, opened, "png")
    plain = labels(untouched, decision)
    for variant in variants:
        p_real = untouched if variant == "png" else outputs(records, opened, variant)
        row, predicted = measure(truth, p_real, decision), labels(p_real, decision)
        accuracy = with_interval(row["accuracy"], row["intervals"]["accuracy"], ".2%")
        roc_auc = with_interval(row["roc_auc"], row["intervals"]["roc_auc"], ".4f")
        table.row(title, variant, f"{len(records):,}", accuracy, roc_auc, f"{np.mean(predicted != plain):.2%}")


def outputs(records: Sequence[Record], opened: OpenedNetwork, variant: str) -> np.ndarray:
    """Return p_real of every record after a re-save: float64 (n,)."""
    from fakereal.model.augmentation import RESAVES

    preprocessing = opened.metadata.preprocessing
    size = preprocessing.image_size_px

    def array(record: Record) -> np.ndarray:
        if variant == "png":  # as prediction reads it
            return preprocessing.read(record.path)
        return resize(RESAVES[variant].apply(decode(record.path, FULL_PX)[0]), size)

    found = []
    arrays = runtime.parallel_map(array, records, variant)
    while batch := list(islice(arrays, _BATCH)):
        padded = np.zeros((_BATCH, size, size, 3), np.uint8)
        padded[: len(batch)] = batch
        found.append(opened.network.p_real(padded)[: len(batch)])
    return np.concatenate(found)


if __name__ == "__main__":
    sys.exit(cli.run_cli(lambda argv: main()))
