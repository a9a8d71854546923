"""One training run from a folder to a model file: scan, split, train, decide, measure, save."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from fakereal import config as configuration
from fakereal.cli import say
from fakereal.config import Config
from fakereal.data.scan import Dataset, scan, skipped_lines
from fakereal.data.split import SPLITS, Split, read_manifest, split_dataset, summary, write_manifest
from fakereal.files import write_whole
from fakereal.labels import FAKE, REAL
from fakereal.model import model_file, networks, training
from fakereal.model.deciding import decide
from fakereal.model.input_pipeline import labels_of, plain_batches
from fakereal.model.metrics import measure
from fakereal.model.model_file import Detector, Metadata
from fakereal.model.scoring import Decision
from fakereal.model.weights import Origin, load_base
from fakereal.preprocessing import Preprocessing, is_picture_name


@dataclass(frozen=True)
class Outcome:
    """What a run leaves behind."""

    detector: Detector
    output: Path  # the model file
    folder: Path  # config.yaml, split.csv, history.csv, report.json, checkpoint.npz
    skipped: int  # pictures that took no part; other files are only listed
    interrupted: bool  # True where Ctrl-C ended the training early


def run(config: Config, output: Path, resume: bool = False) -> Outcome:
    """Trains a detector and writes it.

    Args:
        config: the whole configuration.
        output: the model file, `.h5` or `.keras`; `<name>_run/` beside it gets the run's records.
        resume: go on from the checkpoint of a killed run.

    Raises:
        FakeRealError: with one line that says what to do.
        KeyboardInterrupt: before the first epoch was done; nothing is written then.
    """
    model_file.check_suffix(output)
    folder = output.with_name(f"{output.stem}_run")
    dataset, split = prepare(config)
    for line in [*skipped_lines(dataset), *summary(split)]:
        say(line)
    checkpoint, identity = folder / "checkpoint.npz", _identity(config, split)
    state = training.resumed(checkpoint, identity) if resume else None
    write_manifest(folder / "split.csv", split, dataset.root)
    write_whole(folder / "config.yaml", configuration.dumps(config).encode())

    keras.utils.set_random_seed(config.seed)
    model = networks.build(config.network, config.image_size)
    origin = load_base(model, config.network, config.weights)
    say(f"{config.network.name}, weights: {origin.words}, {model.count_params():,} parameters")
    _warn_of_frozen_noise(config, origin)
    trained = training.train(model, config, origin, split, checkpoint, identity, state)
    if trained.interrupted:
        say("interrupted: the best model so far is kept, measured and saved")

    detector = _measured(trained, config, origin, split)
    model_file.save(output, detector)
    write_whole(folder / "history.csv", _history_csv(trained.history))
    write_whole(folder / "report.json", json.dumps(report(detector), indent=4, allow_nan=False).encode())
    skipped = sum(is_picture_name(item.path) for item in dataset.skipped) + len(split.left_out)
    return Outcome(detector, output, folder, skipped, trained.interrupted)


def prepare(config: Config) -> tuple[Dataset, Split]:
    """Reads and divides the pictures that a configuration names."""
    dataset = scan(Path(config.data.path), Preprocessing(config.image_size))
    if config.data.exclude_sources:
        kept = tuple(record for record in dataset.records if record.source not in config.data.exclude_sources)
        say(f"left out {len(dataset.records) - len(kept)} pictures of {', '.join(config.data.exclude_sources)}")
        dataset = replace(dataset, records=kept)
    if config.data.split_file:
        return dataset, read_manifest(Path(config.data.split_file), dataset)
    return dataset, split_dataset(dataset, config.seed, config.data.shares)


def report(detector: Detector) -> dict[str, Any]:
    """Returns what a run found, for programs: figures of each split, the decision, the data, the versions."""
    metadata = detector.metadata
    return {
        "network": metadata.config.network.name,
        "weights": metadata.base_weights,
        "decision": vars(metadata.decision),
        "metrics": metadata.metrics,
        "data": metadata.data,
        "versions": metadata.versions,
    }


def _warn_of_frozen_noise(config: Config, origin: Origin) -> None:
    scopes = {phase.train for phase in training.phases(config.training, origin)}
    if not origin.pretrained and scopes == {"head"}:
        say(
            "warning: the base has random weights and stays frozen, so hardly anything can be learnt:"
            " --fine-tune all, or --weights imagenet or pretrained"
        )


def _measured(trained: training.Trained, config: Config, origin: Origin, split: Split) -> Detector:
    """Chooses the decision on validation, and measures all three splits with it."""
    preprocessing = Preprocessing(config.image_size)
    outputs = {
        name: training.predict(
            trained.model, plain_batches(getattr(split, name), preprocessing, config.training.batch_size)
        )
        for name in SPLITS
    }
    labels = {name: labels_of(getattr(split, name)) for name in SPLITS}
    decision = decide(labels["val"], outputs["val"])
    metrics: dict[str, Any] = {name: measure(labels[name], outputs[name], decision) for name in SPLITS}
    plain = Decision(temperature=decision.temperature)
    metrics["test_at_0.5"] = measure(labels["test"], outputs["test"], plain)
    metrics["test_by_source"] = _by_source(split, outputs["test"], decision)
    metadata = Metadata(
        config=config,
        preprocessing=preprocessing,
        decision=decision,
        base_weights=origin.words,
        data=_data_facts(split),
        metrics=metrics,
        history=trained.history,
        versions=model_file.versions(),
    )
    return Detector(trained.model, metadata)


def _by_source(split: Split, p_real: np.ndarray, decision: Decision) -> dict[str, Any]:
    sources = np.array([record.source for record in split.test])
    labels = labels_of(split.test)
    rows = {}
    for source in sorted(set(sources)) if len(set(sources)) > 1 else ():
        chosen = sources == source
        if set(labels[chosen]) == {FAKE, REAL}:
            rows[str(source)] = measure(labels[chosen], p_real[chosen], decision)
    return rows


def _data_facts(split: Split) -> dict[str, Any]:
    facts: dict[str, Any] = {"fingerprint": _fingerprint(split), "left_out": len(split.left_out)}
    for name in SPLITS:
        counts = np.bincount(labels_of(getattr(split, name)), minlength=2)
        facts[name] = {"fake": int(counts[FAKE]), "real": int(counts[REAL])}
    facts["sources"] = sorted({record.source for record in split.train})
    return facts


def _fingerprint(split: Split) -> str:
    """Names the pictures, their labels and their splits, whatever their file names."""
    rows = sorted(f"{r.sha256} {r.label} {name}" for name in SPLITS for r in getattr(split, name))
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()[:16]


def _identity(config: Config, split: Split) -> str:
    """Names a run for its checkpoint: a longer or otherwise changed run can't go on from another's."""
    return hashlib.sha256((configuration.dumps(config) + _fingerprint(split)).encode()).hexdigest()[:16]


def _history_csv(history: tuple[dict[str, Any], ...]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(history[0]) if history else ["epoch"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue().encode()


def table(detector: Detector) -> list[str]:
    """Returns the figures of the three splits for people, the confusion matrix of the test split, and F1 last."""
    metrics = detector.metadata.metrics
    lines = [f"{'':14}{'images':>7} {'accuracy':>9} {'ROC AUC':>8}" + _class_headings()]
    lines += [_split_line(name, metrics[name]) for name in SPLITS]
    test = metrics["test"]
    (fake_fake, fake_real), (real_fake, real_real) = test["confusion"]
    decision = detector.metadata.decision
    low, high = test["intervals"]["f1_macro"]
    return [
        *lines,
        *(_split_line(f"  {source}", row) for source, row in metrics["test_by_source"].items()),
        "",
        "test: called fake, called real",
        f"  fake {fake_fake:10,} {fake_real:12,}",
        f"  real {real_fake:10,} {real_real:12,}",
        f"threshold {decision.threshold:g} on p_fake, temperature {decision.temperature:g}, uncertain between"
        f" {decision.band[0]:g} and {decision.band[1]:g}: {test['uncertain_share']:.1%} of the test pictures",
        "",
        f"F1 on {test['images']:,} test images: fake {test['f1_fake']:.4f}, real {test['f1_real']:.4f},"
        f" mean {test['f1_macro']:.4f} (95 % interval {low:.4f} to {high:.4f})",
    ]


def _class_headings() -> str:
    return "".join(f" {name + ' ' + figure:>10}" for name in ("fake", "real") for figure in ("prec.", "recall", "F1"))


def _split_line(name: str, row: dict[str, Any]) -> str:
    figures = [row[f"{figure}_{name}"] for name in ("fake", "real") for figure in ("precision", "recall", "f1")]
    return f"{name:14}{row['images']:7,} {row['accuracy']:9.4f} {row['roc_auc']:8.4f}" + "".join(
        f" {value:10.4f}" for value in figures
    )
