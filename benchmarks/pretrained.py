"""Measure the figures of models/MODEL_CARD.md: unseen sources, CIFAKE's official test, engines, transfer.

    python -m benchmarks.pretrained --set pretraining_set --cifake CIFAKE --hackathon CLEAN --work DIR

`--set` is what tools/assemble_pretraining_set.py made. The images of its val/ part, delivered as in `hard`, fitted the
decision rule; the figures are of its test/ part, whose sources took no part in training or in fitting the rule. The
part `left-out` fits a rule on one half of the val/ images and prints what it is worth on the other half. CIFAKE is the
official folder (train/, test/); test images that are pixel-identical to a training image are left out. CLEAN is a
labeled set of your own to transfer to. Each part runs where its folder is given; --parts selects.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import pretrained_runs
from benchmarks._shared import Table, new_parser, with_interval
from fakereal import cli, runtime
from fakereal.dataset.scan import Record, labels_of, scan
from fakereal.dataset.split import split_dataset
from fakereal.engines.engine import FAST, OpenedNetwork, open_network
from fakereal.labels import FAKE, REAL
from fakereal.model import unseen
from fakereal.model.calibration import DecisionRule, labels
from fakereal.model.metrics import measure, roc_auc
from fakereal.predict.pipeline import predict_batches
from fakereal.preprocessing import Preprocessing

PRETRAINED = Path("models/pretrained.h5")
PARTS = ("unseen", "left-out", "cifake", "engines", "hackathon")
DELIVERIES = {"clean": (1024, 85), "web": (768, 60), "hard": (512, 40)}
"""How a website delivers an image: longest side in pixels, JPEG quality."""

_BATCH = 32
_RESAMPLES = 1000


@dataclass(frozen=True)
class Delivered:
    """A record as a `pipeline.ImageSource`; None delivers the file as it is."""

    record: Record
    delivery: str | None = None
    problem: str | None = None
    sequential: bool = False

    @property
    def name(self) -> str:
        """The file's path."""
        return str(self.record.path)

    def open(self) -> Path | bytes:
        """Return the path, or the delivered JPEG."""
        if self.delivery is None:
            return self.record.path
        longest, quality = DELIVERIES[self.delivery]
        with Image.open(self.record.path) as image:
            image = image.convert("RGB")
        if max(image.size) > longest:
            scale = longest / max(image.size)
            image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)
        content = io.BytesIO()
        image.save(content, "JPEG", quality=quality)
        return content.getvalue()

    def stamp(self) -> None:
        """Return None: the file stays as it is meanwhile."""


def main() -> int:
    """Print the tables; return the exit code."""
    parser = new_parser(__doc__)
    parser.add_argument("--set", type=Path, metavar="DIR")
    parser.add_argument("--cifake", type=Path, metavar="DIR")
    parser.add_argument("--hackathon", type=Path, metavar="DIR")
    parser.add_argument("--model", type=Path, default=PRETRAINED, metavar="FILE")
    parser.add_argument("--work", type=Path, default=Path("pretrained_benchmark"), metavar="DIR")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--engine", choices=cli.ENGINES, default="auto", help="what runs the network")
    parser.add_argument("--limit", type=int, metavar="N", help="random images of CIFAKE, to save time")
    options = parser.parse_args()
    if options.set and "unseen" in options.parts:
        unseen_sources(options)
    if options.set and "left-out" in options.parts:
        left_out_sources(options)
    if options.cifake and "cifake" in options.parts:
        official_cifake(options)
    if options.cifake and "engines" in options.parts:
        engines(options)
    if options.hackathon and "hackathon" in options.parts:
        pretrained_runs.transfer_to_hackathon(options.hackathon, options.model, options.work)
    return 0


def unseen_sources(options: argparse.Namespace) -> None:
    """Print what the verdicts are worth on the sources for measuring, and the figures of each source."""
    opened = open_network(options.model, options.engine)
    _, truth, sources, found = _delivered_outputs(options.set / "test", opened)
    _print_deliveries(truth, sources, found, opened.metadata.decision)
    print()
    table = Table("source", "class", "images", *(f"{name}: ROC AUC, or reals called real" for name in DELIVERIES))
    for source in sorted(set(sources)):
        chosen = sources == source
        name = "real" if truth[chosen][0] == REAL else "fake"
        cells = [f"{_of_source(truth, p_real, chosen, opened):.2f}" for p_real in found.values()]
        table.row(source, name, int(chosen.sum()), *cells)


def left_out_sources(options: argparse.Namespace) -> None:
    """Fit a rule on one half of the left-out images, delivered as in `hard`; print its worth on the other half."""
    opened = open_network(options.model, options.engine)
    records, truth, sources, found = _delivered_outputs(options.set / "val", opened)
    fitting = np.array([unseen.is_for_fitting(record.sha256) for record in records])
    rule = unseen.fit_rule_for_unseen_sources(truth[fitting], found["hard"][fitting])
    other = {name: p_real[~fitting] for name, p_real in found.items()}
    _print_deliveries(truth[~fitting], sources[~fitting], other, rule)


def _delivered_outputs(
    folder: Path, opened: OpenedNetwork
) -> tuple[Sequence[Record], np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Return the images of a folder, their labels and sources, and p_real of each delivery."""
    records = scan(folder, Preprocessing(32)).records
    sources = np.array([record.source for record in records])
    return records, labels_of(records), sources, {name: outputs(records, opened, name) for name in DELIVERIES}


def _print_deliveries(truth: np.ndarray, sources: np.ndarray, found: dict[str, np.ndarray], rule: DecisionRule) -> None:
    table = Table("delivered", "images", "mean ROC AUC (95 %)", "balanced accuracy", "verdicts right (95 %)",
                  "uncertain", "reals called fake", "all fakes against all reals",
                  "fakes found at 5 % false alarms")  # fmt: skip
    for name, p_real in found.items():
        row = unseen.record(truth, p_real, list(sources), rule)
        right = with_interval(row["right"] / max(row["verdicts"], 1), row["right_interval"] or (0, 1), ".0%")
        mean = with_interval(row["mean_roc_auc"], _resampled(truth, p_real, sources), ".3f")
        found_fakes = np.mean(p_real[truth == FAKE] < np.quantile(p_real[truth == REAL], unseen.MAX_FALSE_ALARMS))
        table.row(name, f"{row['images']:,}", mean, f"{row['balanced_accuracy']:.3f}",
                  f"{row['right']} of {row['verdicts']}: {right}", f"{1 - row['verdicts'] / row['images']:.0%}",
                  f"{row['reals_called_fake']:.1%}", f"{roc_auc(truth, p_real):.3f}", f"{found_fakes:.0%}")  # fmt: skip


def _resampled(truth: np.ndarray, p_real: np.ndarray, sources: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of the mean ROC AUC, fake sources and all images resampled."""
    rng, means = np.random.default_rng(0), []
    reals = p_real[truth == REAL]
    fakes = [p_real[sources == name] for name in sorted(set(sources[truth == FAKE]))]
    for _ in range(_RESAMPLES):
        drawn = rng.choice(reals, len(reals))
        some = [fakes[number] for number in rng.integers(len(fakes), size=len(fakes))]
        pairs = [(rng.choice(each, len(each)), drawn) for each in some]
        means.append(np.mean([roc_auc(np.repeat((FAKE, REAL), [*map(len, pair)]), np.hstack(pair)) for pair in pairs]))
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def _of_source(truth: np.ndarray, p_real: np.ndarray, chosen: np.ndarray, opened: OpenedNetwork) -> float:
    if truth[chosen][0] == REAL:
        return float(np.mean(labels(p_real[chosen], opened.metadata.decision) == REAL))
    among = chosen | (truth != FAKE)
    return roc_auc(truth[among], p_real[among])


def official_cifake(options: argparse.Namespace) -> None:
    """Print the shipped model's figures on CIFAKE's official test."""
    opened = open_network(options.model, options.engine)
    records = official_test(options)
    row = measure(labels_of(records), outputs(records, opened), opened.metadata.decision)
    accuracy = with_interval(row["accuracy"], row["intervals"]["accuracy"], ".2%")
    table = Table("set", "images", "accuracy (95 %)", "ROC AUC (95 %)")
    table.row("CIFAKE test", f"{len(records):,}", accuracy,
              with_interval(row["roc_auc"], row["intervals"]["roc_auc"], ".4f"))  # fmt: skip


def engines(options: argparse.Namespace) -> None:
    """Print how far each engine agrees with Keras on CIFAKE's official test."""
    records = official_test(options)
    truth = labels_of(records)
    table = Table("engine", "images", "accuracy (95 %)", "labels as Keras", "p_real differs by at most")
    expected = None
    for name in ("keras", *FAST):
        opened = open_network(options.model, name)
        decision, p_real = opened.metadata.decision, outputs(records, opened)
        expected = p_real if expected is None else expected
        row, agreed = measure(truth, p_real, decision), labels(p_real, decision) == labels(expected, decision)
        accuracy = with_interval(row["accuracy"], row["intervals"]["accuracy"], ".2%")
        same, difference = f"{np.mean(agreed):.3%} ({np.sum(~agreed)} differ)", np.abs(p_real - expected).max()
        table.row(opened.engine, f"{len(records):,}", accuracy, same, f"{difference:.1e}")


def official_test(options: argparse.Namespace) -> tuple[Record, ...]:
    """Return CIFAKE's test images that are no copies of training ones, or `--limit` of them."""
    cifake = split_dataset(scan(options.cifake, Preprocessing(32)), 0).test
    if not options.limit:
        return cifake
    chosen = np.random.default_rng(0).permutation(len(cifake))[: options.limit]
    return tuple(cifake[number] for number in chosen)


def outputs(records: Sequence[Record], opened: OpenedNetwork, delivery: str | None = None) -> np.ndarray:
    """Return p_real of every record, as prediction computes it: float64 (n,)."""
    items = [Delivered(record, delivery) for record in records]
    with runtime.progress_bar(delivery or "predict", len(items)) as advance:
        found = []
        for prediction in predict_batches(items, opened.network, opened.metadata.preprocessing, _BATCH):
            found.append(prediction.p_real)
            advance(1)
    return np.array(found, np.float64)


if __name__ == "__main__":
    sys.exit(cli.run_cli(lambda argv: main()))
