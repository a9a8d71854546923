"""What a run found: for programs as JSON and CSV, for people as a table."""

from __future__ import annotations

import csv
import io
from typing import Any

from fakereal.data.split import SPLITS
from fakereal.model.model_file import Detector


def as_json(detector: Detector) -> dict[str, Any]:
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


def history_csv(history: tuple[dict[str, Any], ...]) -> bytes:
    """Returns the history as CSV, a row an epoch."""
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
        f"threshold {decision.threshold:.3g} on p_fake, temperature {decision.temperature:.3g}, uncertain between"
        f" {decision.band[0]:.3g} and {decision.band[1]:.3g}: {test['uncertain_share']:.1%} of the test pictures",
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
