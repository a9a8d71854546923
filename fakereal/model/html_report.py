"""The report as `report.html`: one file that stands alone."""

from __future__ import annotations

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

from fakereal import html_page
from fakereal.cli import say
from fakereal.config import as_dict
from fakereal.errors import ConfigError, ImageRefused, ModelFileError
from fakereal.labels import NAMES
from fakereal.model import plots
from fakereal.model.heatmap import heatmap, overlay, seen_part
from fakereal.model.judging import RESAVED, Judged
from fakereal.model.model_file import Detector
from fakereal.model.scoring import calibrated_p_fake
from fakereal.preprocessing import Preprocessing, decode

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


def write(path: Path, tree: dict[str, Any], judged: Judged, detector: Detector) -> None:
    """Writes the page.

    Args:
        path: the HTML file.
        tree: as `figures.figures` gives it.
        judged: the pictures that were judged.
        detector: the network; whatever engine ran it, the evidence is computed by Keras.
    """
    html_page.write(
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


def _plots(tree: dict[str, Any], judged: Judged, detector: Detector) -> dict[str, Markup]:
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
        explained = None if heat is None else html_page.thumbnail(overlay(shown, heatmap(heat, label)), _THUMBNAIL_PX)
        found[number] = Mistake(html_page.thumbnail(shown, _THUMBNAIL_PX), explained)
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
    from fakereal.model.explain import Explainer

    try:
        return list(Explainer(model).explain(np.stack(images)).evidence)
    except (ConfigError, ModelFileError) as error:  # another backend than TensorFlow, or a network without maps
        say(f"report.html shows no heatmaps: {error}")
        return [None] * len(images)
