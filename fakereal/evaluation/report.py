"""What a run found: for programs as JSON and CSV, for people as a table."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
from collections.abc import Sequence
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
from fakereal.dataset.split import SPLITS
from fakereal.decoding import decode
from fakereal.errors import ConfigError, ImageRefused, ModelFileError
from fakereal.evaluation import plots
from fakereal.evaluation.labelled import RESAVED, EvaluatedImages
from fakereal.files import relative_name
from fakereal.labels import FAKE, NAMES, REAL
from fakereal.model import metrics
from fakereal.model.calibration import DECIMALS, DecisionRule, calibrate, calibrated_p_fake, confidence, verdicts
from fakereal.model.calibration import labels as labels_from
from fakereal.model.heatmap import heatmap, overlay, seen_part
from fakereal.model.metrics import measure
from fakereal.model.model_file import Detector
from fakereal.preprocessing import Preprocessing
from fakereal.runtime import log


def metrics_json(detector: Detector) -> dict[str, Any]:
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


# ---- Everything that a report shows, as one tree of plain values, without times: `metrics.json`.

MISTAKES = 24
"""Of the wrong labels, so many are shown, the most confident ones first."""


@dataclass(frozen=True)
class Subject:
    """What was judged, in words for people."""

    model: str  # the file
    model_sha256: str  # of its content
    data: str  # the folder
    pictures: str  # which of its pictures
    command: str  # that gives this report again
    notes: tuple[str, ...] = ()  # what a reader has to know: what was left out, what is not known


def report_figures(judged: EvaluatedImages, detector: Detector, subject: Subject) -> dict[str, Any]:
    """Returns the whole tree; probabilities and shares are 0..1, intervals are pairs (low, high) of 95 %."""
    metadata, labels, p_real = detector.metadata, judged.labels, judged.p_real
    decision = metadata.decision
    p_fake = calibrated_p_fake(p_real, decision)
    return {
        "subject": dataclasses.asdict(subject),
        "model": {**_model(detector), "engine": judged.engine},
        "data": _data(judged),
        "decision": dataclasses.asdict(decision),
        "metrics": measure(labels, p_real, decision),
        "metrics_at_0.5": measure(labels, p_real, DecisionRule(temperature=decision.temperature)),
        "calibration": _calibration(labels, p_real, decision),
        "band": _band(labels, p_real, decision),
        "by_source": metrics_by_source(judged, decision),
        "resaves": _resaves(judged, decision),
        "curves": {
            "roc": metrics.roc(labels, p_fake),
            "precision_recall": metrics.precision_recall(labels, p_fake),
        },
        "mistakes": _mistakes(judged, decision),
        "audit": metadata.data.get("audit"),  # of the pictures of its training
        "training": {
            "data": _without_audit(metadata.data),
            "history": list(metadata.history),
            "versions": metadata.versions,
        },
    }


def _without_audit(data: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if key != "audit"}


def figure_rows(judged: EvaluatedImages, decision: DecisionRule) -> list[dict[str, Any]]:
    """Returns a row a picture, for `predictions.csv`; columns that prediction's details have too mean the same."""
    p_real = judged.p_real
    answers = labels_from(p_real, decision), verdicts(p_real, decision), confidence(p_real, decision), p_real
    columns = zip(judged.records, *answers, strict=True)
    return [
        {
            "path": relative_name(record.path, judged.root),
            "sha256": record.sha256,
            "source": record.source,
            "label": NAMES[record.label],
            "prediction": NAMES[predicted],
            "verdict": verdict,
            "confidence": round(float(sure), DECIMALS),
            "p_fake": round(1.0 - float(p), DECIMALS),
            "p_real": float(p),
        }
        for record, predicted, verdict, sure, p in columns
    ]


def _model(detector: Detector) -> dict[str, Any]:
    metadata = detector.metadata
    return {
        "network": metadata.config.network.name,
        "weights": metadata.base_weights,
        "parameters": int(detector.model.count_params()),
        "image_size_px": metadata.preprocessing.image_size_px,
        "preprocessing": metadata.preprocessing.fingerprint,
    }


def _data(judged: EvaluatedImages) -> dict[str, Any]:
    lines = sorted(f"{record.sha256} {record.label}" for record in judged.records)
    return {
        "images": len(judged.records),
        "fake": int(np.sum(judged.labels == FAKE)),
        "real": int(np.sum(judged.labels == REAL)),
        "fingerprint": hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16],
    }


def _calibration(labels: np.ndarray, p_real: np.ndarray, decision: DecisionRule) -> dict[str, Any]:
    tree = {}
    for name, temperature in (("before", 1.0), ("after", decision.temperature)):
        bins = metrics.reliability(labels, 1.0 - calibrate(p_real, temperature))
        tree[name] = {
            "temperature": temperature,
            "expected_calibration_error": round(metrics.calibration_error(bins), 6),
            "bins": [dataclasses.asdict(each) for each in bins],
        }
    return tree


def _band(labels: np.ndarray, p_real: np.ndarray, decision: DecisionRule) -> dict[str, Any]:
    sure = np.array([verdict in NAMES for verdict in verdicts(p_real, decision)])
    right = labels_from(p_real, decision) == labels
    return {
        "low": decision.band[0],
        "high": decision.band[1],
        "coverage": round(float(np.mean(sure)), 6),
        "accuracy_outside": _mean(right[sure]),
        "accuracy_inside": _mean(right[~sure]),
    }


def _mean(values: np.ndarray) -> float | None:
    return round(float(np.mean(values)), 6) if len(values) else None


def metrics_by_source(judged: EvaluatedImages, decision: DecisionRule) -> dict[str, Any]:
    """Returns the figures of each source; of one that has a single class only, its share of right labels."""
    sources = np.array([record.source for record in judged.records])
    table: dict[str, Any] = {}
    for source in sorted(set(sources)) if len(set(sources)) > 1 else ():
        chosen = sources == source
        labels, p_real = judged.labels[chosen], judged.p_real[chosen]
        if len(set(labels)) == 2:
            table[str(source)] = measure(labels, p_real, decision)
        else:
            right = float(np.mean(labels_from(p_real, decision) == labels))
            table[str(source)] = {"images": len(labels), "only": NAMES[labels[0]], "accuracy": round(right, 6)}
    return table


def _resaves(judged: EvaluatedImages, decision: DecisionRule) -> dict[str, Any] | None:
    if not judged.resaved:
        return None
    labels, p_real = judged.labels[judged.resaved_of], judged.p_real[judged.resaved_of]
    if len(set(labels)) < 2:
        return None
    table = {name: _resave(labels, p_real, outputs, decision) for name, outputs in judged.resaved.items()}
    return {"images": len(labels), "as_is": measure(labels, p_real, decision), "saved_again": table}


def _resave(labels: np.ndarray, before: np.ndarray, p_real: np.ndarray, decision: DecisionRule) -> dict[str, Any]:
    """Returns the figures after saving again, and how many labels it flipped; `before` is p_real as it was."""
    as_is, now = labels_from(before, decision), labels_from(p_real, decision)
    flips = {
        "flipped": now != as_is,
        "flipped_to_fake": (now == FAKE) & (as_is == REAL),
        "flipped_to_real": (now == REAL) & (as_is == FAKE),
        "flipped_to_wrong": (now != as_is) & (now != labels),
        "verdict_changed": np.array(verdicts(before, decision)) != np.array(verdicts(p_real, decision)),
    }
    return {**measure(labels, p_real, decision), **{name: int(mask.sum()) for name, mask in flips.items()}}


def _mistakes(judged: EvaluatedImages, decision: DecisionRule) -> list[dict[str, Any]]:
    table = figure_rows(judged, decision)
    wrong = [number for number, row in enumerate(table) if row["label"] != row["prediction"]]
    wrong.sort(key=lambda number: -table[number]["confidence"])
    return [table[number] for number in wrong[:MISTAKES]]


# ---- The report as `report.html`: one file that stands alone.

RESAVE_NAMES = {
    "png": "PNG",
    "jpeg90": "JPEG, quality 90",
    "jpeg70": "JPEG, quality 70",
    "jpeg50": "JPEG, quality 50",
    "scale0.5": "half the size and back",
    "blur1": "blurred, sigma 1 px",
}
"""Words for the names of `judging.RESAVED`."""

FIGURES = {
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
    "roc_auc": "area under the ROC curve",
    "average_precision": "average precision of fake",
    "loss": "loss (nats)",
}
"""Words for the figures of `metrics.measure`, in the order of the page."""

_THUMBNAIL_PX = 224


@dataclass(frozen=True)
class Mistake:
    """A wrongly judged picture, as data URIs; None for what can't be shown."""

    picture: str | None = None
    explained: str | None = None  # with what speaks for the label it was given


def write_html(path: Path, tree: dict[str, Any], judged: EvaluatedImages, detector: Detector) -> None:
    """Writes the page.

    Args:
        path: the HTML file.
        tree: as `figures.figures` gives it.
        judged: the pictures that were judged.
        detector: the network; whatever engine ran it, the evidence is computed by Keras.
    """
    html.write_page(
        path,
        "report.html",
        **tree,
        at_half=tree["metrics_at_0.5"],
        names=FIGURES,
        resave_names=RESAVE_NAMES,
        plot=_plots(tree, judged, detector),
        mistake_pictures=_pictures(judged.root, tree["mistakes"], detector),
        config=yaml.safe_dump(as_dict(detector.metadata.config), sort_keys=False),
        minutes=sum(row.get("seconds", 0.0) for row in tree["training"]["history"]) / 60,
    )


def _plots(tree: dict[str, Any], judged: EvaluatedImages, detector: Detector) -> dict[str, Markup]:
    """Returns the figures by name; those that this run has nothing for are left out."""
    metrics, curves = tree["metrics"], tree["curves"]
    here = (1 - metrics["recall_real"], metrics["recall_fake"])
    p_fake = calibrated_p_fake(judged.p_real, detector.metadata.decision)
    share_fake = tree["data"]["fake"] / tree["data"]["images"]
    draw = {
        "roc": partial(plots.roc, points=curves["roc"], auc=metrics["roc_auc"], here=here),
        "precision_recall": partial(
            plots.precision_recall,
            points=curves["precision_recall"],
            area=metrics["average_precision"],
            share_fake=share_fake,
        ),
        "reliability": partial(plots.reliability, calibration=tree["calibration"]),
        "histogram": partial(plots.histogram, labels=judged.labels, p_fake=p_fake, decision=tree["decision"]),
    }
    if tree["resaves"]:
        again = tree["resaves"]["saved_again"]
        draw["resaves"] = partial(
            plots.intervals,
            names=["as they are", *(RESAVE_NAMES[name] for name in RESAVED)],
            tables=[tree["resaves"]["as_is"], *(again[name] for name in RESAVED)],
        )
    if tree["training"]["history"]:
        draw["history"] = partial(plots.history, rows=tree["training"]["history"])
    return {name: Markup(plots.svg(function, name.replace("_", " "))) for name, function in draw.items()}


def _pictures(root: Path, rows: Sequence[dict[str, Any]], detector: Detector) -> list[Mistake]:
    """Returns what the page shows of each mistake, in one pass of the network."""
    preprocessing = detector.metadata.preprocessing
    images = [_read(root / row["path"], preprocessing) for row in rows]
    known = [number for number, image in enumerate(images) if image is not None]
    evidence = _evidence(detector.model, [preprocessing.array(images[number]) for number in known])
    found = [Mistake()] * len(rows)
    for number, heat in zip(known, evidence, strict=True):
        shown = seen_part(images[number], preprocessing)
        label = NAMES.index(rows[number]["prediction"])
        explained = None if heat is None else html.thumbnail(overlay(shown, heatmap(heat, label)), _THUMBNAIL_PX)
        found[number] = Mistake(html.thumbnail(shown, _THUMBNAIL_PX), explained)
    return found


def _read(path: Path, preprocessing: Preprocessing) -> Image.Image | None:
    """Returns the picture, or None where it has gone since it was judged."""
    try:
        return decode(path, preprocessing.decode_px)[0]
    except ImageRefused:
        return None


def _evidence(model: keras.Model, images: Sequence[np.ndarray]) -> Sequence[np.ndarray | None]:
    """Returns what the outputs for uint8 pictures (S, S, 3) rest on, see `heatmap.Explanation`; None: not to be had."""
    if not images:
        return []
    from fakereal.model.gradcam import Explainer

    try:
        return list(Explainer(model).explain(np.stack(images)).evidence)
    except (ConfigError, ModelFileError) as error:  # another backend than TensorFlow, or a network without maps
        log(f"report.html shows no heatmaps: {error}")
        return [None] * len(images)
