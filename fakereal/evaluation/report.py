"""Reports of an evaluation: `report.html`, `metrics.json`, `predictions.csv`, and the lines that commands print."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import yaml
from markupsafe import Markup
from PIL import Image

from fakereal import html
from fakereal.config import as_dict
from fakereal.dataset.split import Split
from fakereal.decoding import decode
from fakereal.errors import ConfigError, ImageRefused, ModelFileError
from fakereal.evaluation import plots
from fakereal.evaluation.evaluate import (
    EvaluateConfig,
    EvaluationResult,
    KnownOutputs,
    evaluate,
    evaluate_test_split,
    prediction_rows,
)
from fakereal.evaluation.selection import ONE_CLASS
from fakereal.files import keep_backups, write_atomic
from fakereal.labels import FAKE, NAMES, SPLITS
from fakereal.model.calibration import calibrated_p_fake
from fakereal.model.heatmap import heatmap, overlay, seen_part
from fakereal.model.model_file import Detector
from fakereal.model.resaves import REPORT_RESAVES, RESAVES
from fakereal.preprocessing import Preprocessing
from fakereal.runtime import log

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

REPORT_FILES = ("metrics.json", "predictions.csv", "report.html")
"""What `write_report` writes."""

_TITLES = METRIC_NAMES | {"false_positive_rate": "false alarms (reals called fake)"}
_THUMBNAIL_PX = 224


def evaluate_and_report(config: EvaluateConfig) -> EvaluationResult:
    """Evaluate a model file on a labeled folder and write the report.

    Raises:
        FakeRealError: in one line, with what to do; nothing is written then.
    """
    result = evaluate(config)
    with keep_backups(*(result.folder / name for name in REPORT_FILES), force=config.force):
        write_report(result)
    return result


def report_training(
    detector: Detector, output: Path, folder: Path, root: Path, split: Split, cache: Path | None, known: KnownOutputs
) -> EvaluationResult:
    """Write the reports of a training run into its folder, those on its test split included.

    They are `history.csv`, `learning_curve.png`, `report.json` (the metrics of all splits) and what `write_report`
    writes. The arguments are those of `evaluate_test_split`.
    """
    history = detector.metadata.history
    write_atomic(folder / "history.csv", _csv(history, ["epoch"]))
    write_atomic(folder / "learning_curve.png", plots.png(lambda axes: plots.history(axes, history)))
    write_atomic(folder / "report.json", json.dumps(_run_summary(detector), indent=4, allow_nan=False).encode())
    result = evaluate_test_split(detector, output, folder, root, split, cache, known)
    write_report(result)
    return result


def write_report(result: EvaluationResult) -> None:
    """Write `metrics.json`, `predictions.csv` and `report.html` into the result's folder."""
    folder, decision = result.folder, result.detector.metadata.decision
    content = json.dumps(result.tree, indent=1, allow_nan=False) + "\n"
    write_atomic(folder / "metrics.json", content.encode())
    write_atomic(folder / "predictions.csv", _csv(prediction_rows(result.images, decision)))
    write_html(folder / "report.html", result)


def _csv(rows: Sequence[dict[str, Any]], columns: Sequence[str] = ()) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode(errors="surrogateescape")


def _run_summary(detector: Detector) -> dict[str, Any]:
    metadata = detector.metadata
    return {
        "network": metadata.config.network.name,
        "weights": metadata.base_weights,
        "decision": vars(metadata.decision),
        "metrics": metadata.metrics,
        "data": metadata.data,
        "versions": metadata.versions,
    }


def training_lines(detector: Detector) -> list[str]:
    """Return what a training prints: metrics of the three splits, the confusion matrix of the test split, F1 last."""
    metrics, decision = detector.metadata.metrics, detector.metadata.decision
    test = metrics["test"]
    (fake_fake, fake_real), (real_fake, real_real) = test["confusion"]
    low, high = test["intervals"]["f1_macro"]
    return [
        f"{'':14}{'images':>7} {'accuracy':>9} {'ROC AUC':>8}" + _class_headings(),
        *(_split_line(name, metrics[name]) for name in SPLITS),
        *(_split_line(f"  {source}", row) for source, row in metrics["test_by_source"].items()),
        "",
        "test: called fake, called real",
        f"  fake {fake_fake:10,} {fake_real:12,}",
        f"  real {real_fake:10,} {real_real:12,}",
        decision_line(decision.threshold, decision.band, test["uncertain_share"]),
        "",
        f"F1 on {test['images']:,} test images: fake {test['f1_fake']:.4f}, real {test['f1_real']:.4f},"
        f" mean {test['f1_macro']:.4f} (95 % interval {low:.4f} to {high:.4f})",
    ]


def decision_line(threshold: float, band: Sequence[float], uncertain_share: float) -> str:
    """Return the decision rule as plain sentences.

    Args:
        threshold: calibrated p_fake, 0..1, from which on an image is called fake.
        band: calibrated p_fake between which the verdict is "uncertain".
        uncertain_share: share of the test images inside the band, 0..1.
    """
    called = f"Called fake from a fake probability of {100 * threshold:.3g} % on."
    low, high = band
    if low >= high:
        return f'{called} This model never answers "uncertain".'
    uncertain = html.percent(uncertain_share)
    return f'{called} "Uncertain" between {100 * low:.3g} and {100 * high:.3g} %: {uncertain} of the test images.'


def _class_headings() -> str:
    return "".join(f" {name + ' ' + metric:>10}" for name in NAMES for metric in ("prec.", "recall", "F1"))


def _split_line(name: str, row: dict[str, Any]) -> str:
    values = [row[f"{metric}_{label}"] for label in NAMES for metric in ("precision", "recall", "f1")]
    columns = "".join(f" {value:10.4f}" for value in values)
    return f"{name:14}{row['images']:7,} {row['accuracy']:9.4f} {row['roc_auc']:8.4f}{columns}"


def evaluation_lines(tree: dict[str, Any]) -> list[str]:
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
        return [counts, title, decided, *_resave_lines(tree["resaves"]), _metric_line(metrics, key)]
    error = {name: part["expected_calibration_error"] for name, part in tree["calibration"].items()}
    return [
        counts,
        *(_metric_line(metrics, key) for key in ("accuracy", "roc_auc", "average_precision", "f1_fake", "f1_real")),
        f"{'calibration error':26} {error['after']:.4f}  ({error['before']:.4f} before temperature scaling)",
        decided,
        *_resave_lines(tree["resaves"]),
        _metric_line(metrics, "f1_macro"),
    ]


def _metric_line(metrics: dict[str, Any], key: str) -> str:
    low, high = metrics["intervals"][key]
    return f"{_TITLES[key]:26} {metrics[key]:.4f}  (95 % interval {low:.4f} to {high:.4f})"


def _resave_lines(resaves: dict[str, Any] | None) -> list[str]:
    if not resaves:
        return []
    lines = [f"accuracy of {resaves['images']:,} images after a re-save"]
    for name, row in resaves["saved_again"].items():
        flipped = html.percent(row["flipped"] / resaves["images"])
        lines.append(f"  {RESAVES[name].title:24} {row['accuracy']:.4f}  ({flipped} of the labels changed)")
    return lines


@dataclass(frozen=True)
class _MistakeImages:
    """A wrongly labeled image as data URIs; None where it can't be shown."""

    image: str | None = None
    heatmap: str | None = None  # the image overlaid with the evidence for the predicted label


def write_html(path: Path, result: EvaluationResult) -> None:
    """Write the page; heatmaps are computed by Keras, whichever engine gave the outputs."""
    tree, detector = result.tree, result.detector
    html.write_page(
        path,
        "report.html",
        **tree,
        at_half=tree["metrics_at_0.5"],
        names=_TITLES,
        resaves_by_name=RESAVES,
        plot=_plots(result),
        mistake_images=_mistake_images(result.images.root, tree["mistakes"], detector),
        config=yaml.safe_dump(as_dict(detector.metadata.config), sort_keys=False),
        minutes=sum(row.get("seconds", 0.0) for row in tree["training"]["history"]) / 60,
    )


def _plots(result: EvaluationResult) -> dict[str, Markup]:
    """Return the plots by name, without those that this evaluation has no data for."""
    tree = result.tree
    resaves, labels = tree["resaves"], result.images.labels
    p_fake = calibrated_p_fake(result.images.p_real, result.detector.metadata.decision)
    draw = {
        **(_curves(tree) if tree["curves"] else {}),
        "histogram": partial(plots.histogram, labels=labels, p_fake=p_fake, decision=tree["decision"]),
    }
    if resaves:
        draw["resaves"] = partial(
            plots.intervals,
            names=["as is", *(RESAVES[name].title for name in REPORT_RESAVES)],
            tables=[resaves["as_is"], *(resaves["saved_again"][name] for name in REPORT_RESAVES)],
        )
    if tree["training"]["history"]:
        draw["history"] = partial(plots.history, rows=tree["training"]["history"])
    return {name: Markup(plots.svg(function, name.replace("_", " "))) for name, function in draw.items()}


def _curves(tree: dict[str, Any]) -> dict[str, Callable[..., None]]:
    """Return what draws the plots that need images of both classes."""
    metrics, curves = tree["metrics"], tree["curves"]
    threshold_point = (1 - metrics["recall_real"], metrics["recall_fake"])
    share_fake = tree["data"]["fake"] / tree["data"]["images"]
    return {
        "roc": partial(plots.roc, points=curves["roc"], auc=metrics["roc_auc"], threshold_point=threshold_point),
        "precision_recall": partial(
            plots.precision_recall,
            points=curves["precision_recall"],
            area=metrics["average_precision"],
            share_fake=share_fake,
        ),
        "reliability": partial(plots.reliability, calibration=tree["calibration"]),
    }


def _mistake_images(root: Path, rows: Sequence[dict[str, Any]], detector: Detector) -> list[_MistakeImages]:
    """Return the images of the mistakes with their heatmaps, in one pass of the network."""
    preprocessing = detector.metadata.preprocessing
    images = [_read(root / row["path"], preprocessing) for row in rows]
    readable = [number for number, image in enumerate(images) if image is not None]
    evidence = _evidence(detector.model, [preprocessing.array(images[number]) for number in readable])
    found = [_MistakeImages()] * len(rows)
    for number, heat in zip(readable, evidence, strict=True):
        shown = seen_part(images[number], preprocessing)
        label = NAMES.index(rows[number]["prediction"])
        painted = None if heat is None else html.thumbnail(overlay(shown, heatmap(heat, label)), _THUMBNAIL_PX)
        found[number] = _MistakeImages(html.thumbnail(shown, _THUMBNAIL_PX), painted)
    return found


def _read(path: Path, preprocessing: Preprocessing) -> Image.Image | None:
    """Return the decoded image, or None where it vanished after the evaluation."""
    try:
        return decode(path, preprocessing.decode_px)[0]
    except ImageRefused:
        return None


def _evidence(model: keras.Model | None, images: Sequence[np.ndarray]) -> Sequence[np.ndarray | None]:
    """Return the evidence (see `heatmap.Explanation`) for uint8 images (S, S, 3); None where it is not available."""
    if not images:
        return []
    if model is None:
        log("report.html has no heatmaps, which need the Keras file that the network was exported from")
        return [None] * len(images)
    from fakereal.model.gradcam import GradCamExplainer

    try:
        return list(GradCamExplainer(model).explain(np.stack(images)).evidence)
    except (ConfigError, ModelFileError) as error:  # another backend than TensorFlow, or no convolutional maps
        log(f"report.html has no heatmaps: {error}")
        return [None] * len(images)
