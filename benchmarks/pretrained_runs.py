"""The figures of the model card that need trainings: a source left out, and transfer to few pictures of one's own.

Every training is `train_model.py` in a process of its own, as a user runs it; its report.json is what is printed. A
run that is there already counts as done.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fakereal import runtime
from fakereal.dataset.split import SPLITS
from fakereal.files import write_atomic
from fakereal.labels import NAMES

SIZE_PX = 112
"""Of the trainings that leave sources out: a quarter of the pixels of the shipped model, so that eight fit an hour."""

_RECIPE: dict[str, Any] = {
    "image_size": SIZE_PX,
    "augmentation": {"rotation_degrees": 0.0, "shift": 0.05, "resaving": {"share": 0.3}},
    "training": {
        "optimizer": "adamw",
        "weight_decay": 0.02,
        "schedule": "cosine",
        "warmup": 0.05,
        "phases": [{"train": "all", "epochs": 2, "batch_size": 32, "learning_rate": 4e-4, "batch_norm": "learned"}],
    },
}
_CIFAKE_KEPT = {"train": 500, "val": 100, "test": 100}
"""Of CIFAKE, pictures a class in those trainings: --start knows it already."""
_BATCH = 32
_OWN_PICTURES = {"train": 160, "val": 40}
"""Pictures a class of dualcue that a user labelled: 200."""


@dataclass(frozen=True)
class Run:
    """What a training left behind."""

    model: Path
    report: dict[str, Any]  # report.json
    minutes: float


def leave_sources_out(sets: Path, start: Path, work: Path) -> None:
    """Prints ROC AUC on each source's test pictures: trained on with the others, and left out of training.

    The last column is of all pictures of the source that was left out: none of them taught that network anything.
    """
    data = _small_cifake(sets, work / "sources")
    complete = train(work, "all_sources", data, start, _RECIPE).report["metrics"]["test_by_source"]
    titles = ("source", "test images", "in training", "left out", "all images", "left out, all of them")
    print("|", " | ".join(titles), "|\n" + "|---" * len(titles) + "|", flush=True)
    for source in sorted(set(complete) - {"cifake"}):
        run = _leave_out(data, start, work, source)
        test = _evaluated(run.model, _only(data, work, source, ("test",)))
        everything = _evaluated(run.model, _only(data, work, source, SPLITS))
        aucs = [_auc(figures) for figures in (complete[source], test, everything)]
        print(
            f"| {source} | {test['images']} | {aucs[0]} | {aucs[1]} | {everything['images']} | {aucs[2]} |", flush=True
        )


def transfer_to_dualcue(sets: Path, start: Path, model: Path, work: Path) -> None:
    """Prints what 200 own pictures a class give on different bases; one base never saw their source."""
    data = work / "dualcue_200"
    for label in NAMES:
        files, cut = sorted((sets / "train" / "dualcue" / label).iterdir()), _OWN_PICTURES["train"]
        _link(files[:cut], data / "train" / label)
        _link(files[cut : cut + _OWN_PICTURES["val"]], data / "val" / label)
        for split in ("val", "test"):  # neither taught the shipped model
            _link((sets / split / "dualcue" / label).iterdir(), data / "test" / label)
    unseen = _leave_out(_small_cifake(sets, work / "sources"), start, work, "dualcue").model
    _transfer_table(
        "dualcue, 200 a class",
        [
            train(work, "dualcue_from_shipped", data, model),
            train(work, "dualcue_from_unseen", data, unseen),
            train(work, "dualcue_from_shipped_all", data, model, flags=["--fine-tune", "all"]),
            train(work, "dualcue_from_none", data, Path("none")),
        ],
    )


def transfer_to_hackathon(data: Path, model: Path, work: Path) -> None:
    """Prints what the default recipe gives on the shipped base and on none."""
    everything = ["--fine-tune", "all", "--image-size", "64"]
    _transfer_table(
        "hackathon",
        [
            train(work, "hackathon_from_shipped", data, model),
            train(work, "hackathon_from_none", data, Path("none")),
            train(work, "hackathon_from_none_all", data, Path("none"), flags=everything),
        ],
    )


def _leave_out(data: Path, start: Path, work: Path, source: str) -> Run:
    return train(work, f"without_{source}", data, start, {**_RECIPE, "data": {"exclude_sources": [source]}})


def train(
    work: Path,
    name: str,
    data: Path,
    weights: Path,
    recipe: dict[str, Any] | None = None,
    flags: Sequence[str] = (),
) -> Run:
    """Runs train_model.py unless it was run; returns what it left behind.

    Raises:
        SystemExit: the training failed, or there is one of this name that was asked for otherwise.
    """
    model, config, clock = work / f"{name}.h5", work / f"{name}.yaml", work / f"{name}.minutes"
    wanted = f"# {shlex.join(map(str, ['--data', data, '--weights', weights, *flags]))}\n{yaml.safe_dump(recipe or {})}"
    if clock.exists() and config.read_text(encoding="utf-8") != wanted:
        raise SystemExit(f"{config}: expected what is asked for now, found another recipe, data or weights: remove"
                         f" {clock}, or work in another folder")  # fmt: skip
    if not clock.exists():
        write_atomic(config, wanted.encode())
        command = [sys.executable, "train_model.py", "--config", config, "--data", data, "--weights", weights]
        began = time.monotonic()
        with open(work / f"{name}.log", "wb") as log:
            status = subprocess.run([*command, "--output", model, *flags], stdout=log, stderr=log).returncode
        if status not in (0, 1):
            raise SystemExit(f"{name}: train_model.py ended with {status}: see {work / name}.log")
        write_atomic(clock, f"{(time.monotonic() - began) / 60:.1f}".encode())
    records = json.loads((work / f"{name}_run" / "report.json").read_text(encoding="utf-8"))
    return Run(model, records, float(clock.read_text(encoding="utf-8")))


def _evaluated(model: Path, data: Path) -> dict[str, Any]:
    """Returns a model's figures on a folder of test pictures."""
    runtime.start_keras()
    from fakereal.dataset.scan import labels_of, scan
    from fakereal.model.metrics import measure
    from fakereal.model.model_file import load
    from fakereal.training.input_pipeline import plain_batches
    from fakereal.training.loop import predict

    detector = load(model)
    records = scan(data, detector.metadata.preprocessing).records
    p_real = predict(detector.model, plain_batches(records, detector.metadata.preprocessing, _BATCH))
    return measure(labels_of(records), p_real, detector.metadata.decision)


def _transfer_table(title: str, runs: list[Run]) -> None:
    print(f"| {title}: run | images | F1 (95 %) | ROC AUC (95 %) | minutes |\n|---|---|---|---|---|")
    for run in runs:
        row = run.report["metrics"]["test"]
        low, high = row["intervals"]["f1_macro"]
        print(
            f"| {run.model.stem} | {row['images']} | {row['f1_macro']:.3f} ({low:.3f} to {high:.3f})"
            f" | {_auc(row)} | {run.minutes:.1f} |",
            flush=True,
        )


def _auc(row: dict[str, Any]) -> str:
    low, high = row["intervals"]["roc_auc"]
    return f"{row['roc_auc']:.3f} ({low:.3f} to {high:.3f})"


def _small_cifake(sets: Path, target: Path) -> Path:
    """Makes a second view of the assembled set, by hard links, with few of CIFAKE's pictures."""
    for folder in sorted(sets.glob("*/*/*")):
        split, source, label = folder.relative_to(sets).parts
        files = sorted(folder.iterdir())
        kept = files[: _CIFAKE_KEPT[split]] if source == "cifake" else files
        _link(kept, target / split / source / label)
    return target


def _only(data: Path, work: Path, source: str, splits: Sequence[str]) -> Path:
    target = work / "only" / "_".join((source, *splits))
    for split in splits:
        for label in NAMES:
            _link((data / split / source / label).iterdir(), target / label)
    return target


def _link(files: Iterable[Path], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        if not (folder / file.name).exists():
            os.link(file, folder / file.name)
