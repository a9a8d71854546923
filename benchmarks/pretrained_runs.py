"""Trainings behind pretrained.py and recipes.py: without one source, and transfer to a small set.

Every training is `train_model.py` in a process of its own, as a user runs it; its report.json is what is printed. A
finished run is not repeated.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks._shared import ROOT, Table, link_into, run_python, training_report, with_interval
from fakereal import runtime
from fakereal.dataset.split import SPLITS
from fakereal.files import write_atomic
from fakereal.labels import NAMES

SIZE_PX = 112
"""Image size of the trainings without one source: a quarter of the shipped model's pixels, to save time."""

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
"""Images of CIFAKE per class in those trainings: --start has learnt it already."""
_BATCH = 32
_OWN_IMAGES = {"train": 160, "val": 40}
"""Images per class of dualcue that a user labelled: 200."""


@dataclass(frozen=True)
class Run:
    """A finished training."""

    model: Path
    report: dict[str, Any]  # report.json
    minutes: float


def leave_sources_out(sets: Path, start: Path, work: Path) -> None:
    """Print the ROC AUC on each source's test images, with the source in training and without it.

    The last column is of all images of the source that was left out: that network has seen none of them.
    """
    data = _small_cifake(sets, work / "sources")
    complete = train(work, "all_sources", data, start, _RECIPE).report["metrics"]["test_by_source"]
    table = Table("source", "test images", "in training", "left out", "all images", "left out, all of them")
    for source in sorted(set(complete) - {"cifake"}):
        run = _leave_out(data, start, work, source)
        test = _metrics(run.model, _only(data, work, source, ("test",)))
        everything = _metrics(run.model, _only(data, work, source, SPLITS))
        aucs = [_auc(figures) for figures in (complete[source], test, everything)]
        table.row(source, test["images"], aucs[0], aucs[1], everything["images"], aucs[2])


def transfer_to_dualcue(sets: Path, start: Path, model: Path, work: Path) -> None:
    """Print F1 and ROC AUC with 200 images per class on different bases; one base never saw their source."""
    data = work / "dualcue_200"
    for label in NAMES:
        files, cut = sorted((sets / "train" / "dualcue" / label).iterdir()), _OWN_IMAGES["train"]
        link_into(files[:cut], data / "train" / label)
        link_into(files[cut : cut + _OWN_IMAGES["val"]], data / "val" / label)
        for split in ("val", "test"):  # the shipped model was trained on neither
            link_into((sets / split / "dualcue" / label).iterdir(), data / "test" / label)
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
    """Print F1 and ROC AUC of the default training, on the shipped base and on random weights."""
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
    """Run train_model.py unless it was run; return the finished training.

    Raises:
        SystemExit: the training failed, or a finished one of this name has other options.
    """
    model, config, clock = work / f"{name}.h5", work / f"{name}.yaml", work / f"{name}.minutes"
    wanted = f"# {shlex.join(map(str, ['--data', data, '--weights', weights, *flags]))}\n{yaml.safe_dump(recipe or {})}"
    if clock.exists() and config.read_text(encoding="utf-8") != wanted:
        raise SystemExit(f"{config}: the finished run has another configuration, data or weights: remove {clock}, or"
                         " take another folder")  # fmt: skip
    if not clock.exists():
        write_atomic(config, wanted.encode())
        command = [ROOT / "train_model.py", "--config", config, "--data", data, "--weights", weights]
        done = run_python([*command, "--output", model, *flags], Path.cwd())
        write_atomic(work / f"{name}.log", (done.stdout + done.stderr).encode())
        write_atomic(clock, f"{done.seconds / 60:.1f}".encode())
    return Run(model, training_report(model), float(clock.read_text(encoding="utf-8")))


def _metrics(model: Path, data: Path) -> dict[str, Any]:
    """Return a model's metrics on a folder of labelled images."""
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
    table = Table(f"{title}: run", "images", "F1 (95 %)", "ROC AUC (95 %)", "minutes")
    for run in runs:
        row = run.report["metrics"]["test"]
        f1 = with_interval(row["f1_macro"], row["intervals"]["f1_macro"], ".3f")
        table.row(run.model.stem, row["images"], f1, _auc(row), f"{run.minutes:.1f}")


def _auc(row: dict[str, Any]) -> str:
    return with_interval(row["roc_auc"], row["intervals"]["roc_auc"], ".3f")


def _small_cifake(sets: Path, target: Path) -> Path:
    """Make a copy of the assembled set, by hard links, with few of CIFAKE's images."""
    for folder in sorted(sets.glob("*/*/*")):
        split, source, label = folder.relative_to(sets).parts
        files = sorted(folder.iterdir())
        kept = files[: _CIFAKE_KEPT[split]] if source == "cifake" else files
        link_into(kept, target / split / source / label)
    return target


def _only(data: Path, work: Path, source: str, splits: Sequence[str]) -> Path:
    target = work / "only" / "_".join((source, *splits))
    for split in splits:
        for label in NAMES:
            link_into((data / split / source / label).iterdir(), target / label)
    return target
