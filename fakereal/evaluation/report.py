"""Reports of an evaluation: `report.html`, `metrics.json` and `predictions.csv`."""

from __future__ import annotations

import csv
import io
import json
import shlex
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
from fakereal.errors import ConfigError, ImageRefused, ModelFileError
from fakereal.evaluation import plots, summary
from fakereal.evaluation.evaluate import (
    EvaluateConfig,
    EvaluationResult,
    KnownOutputs,
    evaluate,
    evaluate_test_split,
    prediction_rows,
)
from fakereal.files import keep_backups, write_atomic
from fakereal.labels import FAKE, NAMES, REAL
from fakereal.model import unseen
from fakereal.model.calibration import calibrated_p_fake
from fakereal.model.heatmap import heatmap, overlay, seen_part
from fakereal.model.model_file import Detector
from fakereal.model.resaves import REPORT_RESAVES, RESAVES
from fakereal.preprocessing import Preprocessing
from fakereal.runtime import check_interrupt, interrupts_at_checks_only, log

REPORT_FILES = ("metrics.json", "predictions.csv", "report.html")
"""What `write_report` writes."""

TRAINING_REPORT_FILES = (*REPORT_FILES, "history.csv", "learning_curve.png", "report.json")
"""What `report_training` writes."""

_THUMBNAIL_PX = 224
_SAMPLES_PER_CLASS = 6
_EXPLAINED_BATCH = 8
_USE = "python|predict_and_save_json.py|--model|{output}|--input|photos"


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
    detector: Detector,
    output: Path,
    folder: Path,
    root: Path,
    split: Split,
    cache: Path | None,
    known: KnownOutputs,
    next_step: str = "",
) -> EvaluationResult:
    """Write the reports of a training run into its folder, those on its test split included.

    They are `history.csv`, `learning_curve.png`, `report.json` (the metrics of all splits) and what `write_report`
    writes. The arguments are those of `evaluate_test_split`, and the command that may make a better detector.
    """
    history = detector.metadata.history
    write_atomic(folder / "history.csv", _csv(history, ["epoch"]))
    write_atomic(folder / "learning_curve.png", plots.png(lambda axes: plots.history(axes, history)))
    write_atomic(folder / "report.json", json.dumps(_run_summary(detector), indent=4, allow_nan=False).encode())
    result = evaluate_test_split(detector, output, folder, root, split, cache, known)
    result.tree["next_step"] = next_step or shlex.join(_USE.format(output=output).split("|"))
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


@dataclass(frozen=True)
class _MistakeImages:
    """A wrongly labeled image as data URIs; None where it can't be shown."""

    image: str | None = None
    heatmap: str | None = None  # the image overlaid with the evidence for the predicted label


def write_html(path: Path, result: EvaluationResult) -> None:
    """Write the page; heatmaps are computed by Keras, whichever engine gave the outputs."""
    tree, detector = result.tree, result.detector
    worth = unseen.sentence(detector.metadata.metrics)
    html.write_page(
        path,
        "report.html",
        **tree,
        at_half=tree["metrics_at_0.5"],
        names=summary.TITLES,
        headline=summary.headline(tree, worth),
        worth=worth,
        doubt=summary.doubt(tree["metrics"]),
        samples=_samples(result),
        sources={name: _source_rows(tree, label) for label, name in enumerate(NAMES)},
        resaves_by_name=RESAVES,
        plot=_plots(result),
        mistake_images=_mistake_images(result.images.root, tree["mistakes"], detector),
        config=yaml.safe_dump(as_dict(detector.metadata.config), sort_keys=False),
        minutes=sum(row.get("seconds", 0.0) for row in tree["training"]["history"]) / 60,
    )


def _samples(result: EvaluationResult) -> list[dict[str, Any]]:
    """Return random images of both classes with their verdicts, each as a row of predictions.csv with its thumbnail."""
    images, metadata = result.images, result.detector.metadata
    rows, rng = prediction_rows(images, metadata.decision), np.random.default_rng(metadata.config.seed)
    chosen = [number for label in (FAKE, REAL)
              for number in rng.permutation(np.flatnonzero(images.labels == label))[:_SAMPLES_PER_CLASS]]  # fmt: skip
    found = []
    for number in chosen:
        image = _read(images.records[number].path, metadata.preprocessing)
        if image is not None:
            shown = html.thumbnail(seen_part(image, metadata.preprocessing), _THUMBNAIL_PX)
            found.append({**rows[number], "thumbnail": shown})
    return found


def _source_rows(tree: dict[str, Any], label: int) -> list[summary.SourceRow]:
    unseen_sources = tree["unseen_sources"] or {}
    return summary.source_rows(tree["by_source"], label, unseen_sources.get("test_by_source"))


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
    if all("val_accuracy" in row for row in tree["training"]["history"]) and tree["training"]["history"]:
        draw["accuracy"] = partial(plots.accuracy, rows=tree["training"]["history"])
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
        return preprocessing.decode(path)[0]
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
        with interrupts_at_checks_only():
            explainer, found = GradCamExplainer(model), []
            for start in range(0, len(images), _EXPLAINED_BATCH):
                check_interrupt()
                found += list(explainer.explain(np.stack(images[start : start + _EXPLAINED_BATCH])).evidence)
        return found
    except (ConfigError, ModelFileError) as error:  # another backend than TensorFlow, or no convolutional maps
        log(f"report.html has no heatmaps: {error}")
        return [None] * len(images)
