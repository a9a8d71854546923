"""What a training and an evaluation print: tables of metrics, figures by source, the decision rule, F1 last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fakereal import html
from fakereal.evaluation.selection import ONE_CLASS
from fakereal.labels import FAKE, NAMES, REAL, SPLITS
from fakereal.model import unseen
from fakereal.model.calibration import DecisionRule
from fakereal.model.model_file import Detector
from fakereal.model.resaves import RESAVES

METRIC_NAMES = {
    "accuracy": "accuracy",
    "f1_macro": "F1, mean of both classes",
    "precision_macro": "precision, mean of both classes",
    "recall_macro": "recall, mean of both classes",
    "f1_fake": "F1 of fake",
    "precision_fake": "precision of fake",
    "recall_fake": "recall of fake",
    "f1_real": "F1 of real",
    "precision_real": "precision of real",
    "recall_real": "recall of real",
    "roc_auc": "ROC AUC",
    "average_precision": "average precision of fake",
    "loss": "log loss (nats)",
}
"""The metrics of `model.metrics.measure` as the report calls them, in its order."""

TITLES = METRIC_NAMES | {"false_positive_rate": "false alarms (reals called fake)"}
"""The same, and what images of one class show."""

CHANCE_AUC = 0.5

MAX_SOURCES = 10
"""Sources of each class that are printed, those with the most mistakes first; the report has all of them."""


def headline(tree: dict[str, Any], worth: str | None = None) -> str:
    """Return the figures of a `metrics.json` as one sentence for people.

    Args:
        tree: as `metrics.json` has it.
        worth: the sentence that follows, on what the model's verdicts are worth on unseen sources.
    """
    confusion, what = tree["metrics"]["confusion"], tree["subject"]["pictures"]
    right, total = confusion[FAKE][FAKE] + confusion[REAL][REAL], tree["data"]["images"]
    noun = "test images" if "test" in what else "images"
    start, found = f"Right on {right:,} of {total:,} {noun}", tree["unseen_sources"] or {}
    # With groups of sources, the accuracy on the same test images; else that on the sources that were left out.
    accuracy = found["test"]["accuracy"] if "test" in found else found.get("balanced_accuracy")
    if accuracy is None:
        if worth:
            return f"{start}."
        return f"{start}; expect less on images from elsewhere: only images from other sources can show how much less."
    share = html.percent(accuracy, 0)
    if found.get("backbone_saw_them"):
        return f"{start}; expect less on images from elsewhere: at most {share} on new sources."
    if accuracy >= right / total:
        return f"{start}; on sources it never saw, {share}."
    return f"{start}; expect less on images from elsewhere: {share} on sources it never saw."


def doubt(metrics: dict[str, Any]) -> str:
    """Return a warning where a detector ranks images no better than chance, or worse; else an empty string."""
    auc = metrics.get("roc_auc")
    low, high = metrics["intervals"].get("roc_auc", (None, None))
    if auc is None or low is None or low > CHANCE_AUC:
        return ""
    if high < CHANCE_AUC:
        return f"Worse than chance: ROC AUC {auc:.2f}, where 0.50 is guessing. Check the labels."
    return (
        f"Hardly better than guessing: the interval of ROC AUC, {low:.2f} to {high:.2f}, includes 0.50. Don't rely on"
        " these answers: train on more images, or fine-tune more layers."
    )


def training_lines(detector: Detector, report: Path) -> list[str]:
    """Return what a training prints: metrics of the three splits, the test split's confusion matrix, the report, F1."""
    metrics, decision = detector.metadata.metrics, detector.metadata.decision
    test, unseen_sources = metrics["test"], metrics.get("unseen_sources", {})
    (fake_fake, fake_real), (real_fake, real_real) = test["confusion"]
    low, high = test["intervals"]["f1_macro"]
    return [
        f"{'':14}{'images':>7} {'accuracy':>9} {'ROC AUC':>8}" + _class_headings(),
        *(_split_line(name, metrics[name]) for name in SPLITS),
        *([_split_line("unseen sources", unseen_sources["test"])] if "test" in unseen_sources else []),
        *([sentence] if (sentence := unseen.sentence(metrics)) else []),
        *source_lines(metrics["test_by_source"], unseen_sources.get("test_by_source")),
        "",
        "test: called fake, called real",
        f"  fake {fake_fake:10,} {fake_real:12,}",
        f"  real {real_fake:10,} {real_real:12,}",
        decision_line(decision, test["uncertain_share"]),
        "",
        f"report: {report}",
        f"F1 on {test['images']:,} test images: fake {test['f1_fake']:.4f}, real {test['f1_real']:.4f},"
        f" mean {test['f1_macro']:.4f} (95 % interval {low:.4f} to {high:.4f})",
    ]


@dataclass(frozen=True)
class SourceRow:
    """How the images of one class from one source were labeled."""

    name: str
    images: int
    share: float  # called fake, 0..1: recall of a generator, false alarms of a source of real images
    interval: tuple[float, float]  # of 95 %
    unseen: float | None  # the share of a detector that never saw the source; None: unknown


def source_rows(
    by_source: Mapping[str, dict[str, Any]], label: int, unseen_by_source: Mapping[str, dict[str, Any]] | None = None
) -> list[SourceRow]:
    """Return the sources that have images of a class, those with the most mistakes first.

    Args:
        by_source: as `metrics.measure_by_source` returns it.
        label: 0 fake, 1 real.
        unseen_by_source: the same of detectors that never saw the source.
    """
    unseen_shares = {
        name: _called_fake(row, label)[0]
        for name, row in (unseen_by_source or {}).items()
        if sum(row["confusion"][label])
    }
    rows = [
        SourceRow(name, sum(row["confusion"][label]), *_called_fake(row, label), unseen_shares.get(name))
        for name, row in by_source.items()
        if sum(row["confusion"][label])
    ]
    wrong = (lambda row: 1.0 - row.share) if label == FAKE else (lambda row: row.share)
    return sorted(rows, key=lambda row: (-round(row.images * wrong(row)), -wrong(row), row.name))


def _called_fake(row: dict[str, Any], label: int) -> tuple[float, tuple[float, float]]:
    """Return the share of a class that was called fake, with its interval."""
    key = "recall_fake" if label == FAKE else "false_positive_rate"
    if key in row:
        return row[key], tuple(row["intervals"][key])
    low, high = row["intervals"]["recall_real"]
    return 1.0 - row["recall_real"], (1.0 - high, 1.0 - low)


def source_lines(
    by_source: Mapping[str, dict[str, Any]], unseen_by_source: Mapping[str, dict[str, Any]] | None = None
) -> list[str]:
    """Return the recall of each generator and the false alarms of each real source, the worst of each first.

    The arguments are those of `source_rows`.
    """
    lines = []
    for label, title in ((FAKE, "recall of fake, by source"), (REAL, "false alarms, by source")):
        rows = source_rows(by_source, label, unseen_by_source)
        lines += [f"{title:34} {'images':>7}{'':36}{'never seen' if unseen_by_source else ''}".rstrip()] if rows else []
        lines += [
            f"  {row.name or '(no source)':32} {row.images:7,} {html.percent(row.share):>8}"
            f"  {f'(95 % interval {html.percents(row.interval)})':31}"
            + ("" if row.unseen is None else f" {html.percent(row.unseen):>8}")
            for row in rows[:MAX_SOURCES]
        ]
        if len(rows) > MAX_SOURCES:
            lines.append(f"  and {len(rows) - MAX_SOURCES} more with fewer mistakes: see the report")
    return lines


def decision_line(decision: DecisionRule, uncertain_share: float) -> str:
    """Return the decision rule as plain sentences.

    Args:
        decision: of the model.
        uncertain_share: share of the test images inside the band, 0..1.
    """
    called = f"Called fake at a fake probability of {100 * decision.threshold:.3g} % or more."
    low, high = decision.band
    if low < high:
        uncertain = html.percent(uncertain_share)
        return f'{called} "Uncertain" between {100 * low:.3g} and {100 * high:.3g} %: {uncertain} of the test images.'
    if decision.shorter_side_px:
        return f'{called} "Uncertain" only for images unlike the training images.'
    return f'{called} This model never answers "uncertain".'


def _class_headings() -> str:
    return "".join(f" {name + ' ' + metric:>10}" for name in NAMES for metric in ("prec.", "recall", "F1"))


def _split_line(name: str, row: dict[str, Any]) -> str:
    values = [row[f"{metric}_{label}"] for label in NAMES for metric in ("precision", "recall", "f1")]
    columns = "".join(f" {value:10.4f}" for value in values)
    return f"{name:14}{row['images']:7,} {row['accuracy']:9.4f} {row['roc_auc']:8.4f}{columns}"


def evaluation_lines(tree: dict[str, Any], report: Path) -> list[str]:
    """Return what `fakereal evaluate` prints about a `metrics.json`: F1 last, of one class recall or false alarms."""
    metrics, band, data = tree["metrics"], tree["band"], tree["data"]
    decided = (
        f"{'decided, not “uncertain”':26} {html.percent(band['coverage'])}, {html.percent(band['accuracy_outside'])}"
        " of them correctly"
    )
    counts = f"{data['images']:,} images: {data['fake']:,} fake, {data['real']:,} real"
    if only := metrics.get("only"):
        key = "recall_fake" if only == NAMES[FAKE] else "false_positive_rate"
        title = f"only {only} images show {ONE_CLASS[only]}; AUC, precision and F1 need both classes"
        return [counts, title, decided, *source_lines(tree["by_source"]), *_resave_lines(tree["resaves"]),
                f"report: {report}", _metric_line(metrics, key)]  # fmt: skip
    error = {name: part["expected_calibration_error"] for name, part in tree["calibration"].items()}
    return [
        counts,
        *(_metric_line(metrics, key) for key in ("accuracy", "roc_auc", "average_precision", "f1_fake", "f1_real")),
        f"{'calibration error':26} {error['after']:.4f}  ({error['before']:.4f} before temperature scaling)",
        decided,
        *source_lines(tree["by_source"]),
        *_resave_lines(tree["resaves"]),
        f"report: {report}",
        _metric_line(metrics, "f1_macro"),
    ]


def _metric_line(metrics: dict[str, Any], key: str) -> str:
    low, high = metrics["intervals"][key]
    return f"{TITLES[key]:26} {metrics[key]:.4f}  (95 % interval {low:.4f} to {high:.4f})"


def _resave_lines(resaves: dict[str, Any] | None) -> list[str]:
    if not resaves:
        return []
    lines = [f"accuracy of {resaves['images']:,} images after a re-save"]
    for name, row in resaves["saved_again"].items():
        flipped = html.percent(row["flipped"] / resaves["images"])
        lines.append(f"  {RESAVES[name].title:24} {row['accuracy']:.4f}  ({flipped} of the labels changed)")
    return lines
