"""Trainings behind pretrained.py and recipes.py: transfer to a small set.

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

from benchmarks._shared import ROOT, Table, run_python, training_report, with_interval
from fakereal.files import write_atomic


@dataclass(frozen=True)
class Run:
    """A finished training."""

    model: Path
    report: dict[str, Any]  # report.json
    minutes: float


def transfer_to_hackathon(data: Path, model: Path, work: Path) -> None:
    """Print F1 and ROC AUC of a head on the shipped base and on random weights, and of all layers from those."""
    everything = ["--fine-tune", "all", "--image-size", "64"]
    _transfer_table(
        "hackathon",
        [
            train(work, "hackathon_from_shipped", data, model, flags=["--fine-tune", "none"]),
            train(work, "hackathon_from_none", data, Path("none"), flags=["--fine-tune", "none"]),
            train(work, "hackathon_from_none_all", data, Path("none"), flags=everything),
        ],
    )


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


def _transfer_table(title: str, runs: list[Run]) -> None:
    table = Table(f"{title}: run", "images", "F1 (95 %)", "ROC AUC (95 %)", "minutes")
    for run in runs:
        row = run.report["metrics"]["test"]
        f1 = with_interval(row["f1_macro"], row["intervals"]["f1_macro"], ".3f")
        table.row(run.model.stem, row["images"], f1, _auc(row), f"{run.minutes:.1f}")


def _auc(row: dict[str, Any]) -> str:
    return with_interval(row["roc_auc"], row["intervals"]["roc_auc"], ".3f")
