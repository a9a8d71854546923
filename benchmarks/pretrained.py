"""Every figure of models/MODEL_CARD.md on CIFAKE and on the assembled test pictures of the other sets.

    python -m benchmarks.pretrained --cifake CIFAKE --sets SET [--model models/pretrained.h5] [--limit N]

CIFAKE is the official folder (train/, test/); test pictures that are pixel-identical to a training picture are left
out. SET is what tools/assemble_pretraining_set.py made; its test/ part was not trained on.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from fakereal import cli
from fakereal.data.scan import Record, scan
from fakereal.data.split import split_dataset
from fakereal.preprocessing import Preprocessing, decode, fit

VARIANTS = ("png", "jpeg90", "jpeg75", "jpeg50", "scale0.75", "scale0.5", "blur1")
"""The re-saves of fakereal.model.augmentation; `png` changes nothing."""

_BATCH = 32
_FULL_PX = 65_500  # decode at full scale: a re-save is of the picture, not of a reduced one


def main() -> int:
    """Prints the tables; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifake", type=Path, required=True, metavar="DIR")
    parser.add_argument("--sets", type=Path, required=True, metavar="DIR")
    parser.add_argument("--model", type=Path, default=Path("models/pretrained.h5"), metavar="FILE")
    parser.add_argument("--limit", type=int, metavar="N", help="CIFAKE pictures, drawn at random, to save time")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    options = parser.parse_args()
    cli.start_keras()
    from fakereal.model.model_file import load

    detector = load(options.model)
    cifake = split_dataset(scan(options.cifake, Preprocessing(32)), 0).test
    if options.limit:
        chosen = np.random.default_rng(0).permutation(len(cifake))[: options.limit]
        cifake = tuple(cifake[number] for number in chosen)
    report("CIFAKE test", cifake, detector, options.variants)
    others = scan(options.sets / "test", Preprocessing(32)).records
    for source in sorted({record.source for record in others} - {"cifake"}):
        report(source, [record for record in others if record.source == source], detector, options.variants[:1])
    return 0


def report(title: str, records: Sequence[Record], detector, variants: Sequence[str]) -> None:
    """Prints a row for each re-save: accuracy and ROC AUC with 95 % intervals, and the labels that flipped."""
    from fakereal.model.metrics import measure
    from fakereal.model.scoring import labels

    decision = detector.metadata.decision
    truth = np.array([record.label for record in records])
    plain = labels(outputs(records, detector, "png"), decision)
    for variant in variants:
        p_real = outputs(records, detector, variant)
        row, called = measure(truth, p_real, decision), labels(p_real, decision)
        low, high = row["intervals"]["accuracy"]
        auc_low, auc_high = row["intervals"]["roc_auc"]
        print(
            f"| {title} | {variant} | {len(records):,} | {row['accuracy']:.2%} ({low:.2%} to {high:.2%})"
            f" | {row['roc_auc']:.4f} ({auc_low:.4f} to {auc_high:.4f}) | {np.mean(called != plain):.2%} |",
            flush=True,
        )


def outputs(records: Sequence[Record], detector, variant: str) -> np.ndarray:
    """Returns p_real of every record after a re-save: float64 (n,)."""
    from fakereal.model.augmentation import RESAVES

    size = detector.metadata.preprocessing.image_size_px

    def array(record: Record) -> np.ndarray:
        if variant == "png":  # the way that prediction takes
            return detector.metadata.preprocessing.read(record.path)
        return fit(RESAVES[variant](decode(record.path, _FULL_PX)[0]), size)

    found = []
    with ThreadPoolExecutor(os.cpu_count()) as pool, cli.progress_bar(variant, len(records)) as advance:
        for start in range(0, len(records), _BATCH):
            batch = np.stack(list(pool.map(array, records[start : start + _BATCH])))
            padded = np.zeros((_BATCH, size, size, 3), np.uint8)
            padded[: len(batch)] = batch
            found.append(detector.p_real(padded)[: len(batch)])
            advance(len(batch))
    return np.concatenate(found)


if __name__ == "__main__":
    sys.exit(cli.run_door(lambda argv: main()))
