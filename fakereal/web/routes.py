"""The addresses of the web app: a JSON API for programs, a page for people, and what both show of an analysis.

The page is rendered here, result by result for its script, or all at once for a browser without scripts.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from flask import Blueprint, Response, current_app, jsonify, make_response, render_template, request
from markdown_it import MarkdownIt
from markupsafe import Markup
from PIL import Image
from werkzeug.exceptions import BadRequest

from fakereal.decoding import FORMATS, MEDIA_TYPES
from fakereal.labels import FAKE, NAMES
from fakereal.model.calibration import DECIMALS, UNCERTAIN
from fakereal.model.heatmap import heatmap, paint
from fakereal.model.out_of_distribution import REASON as UNFAMILIAR
from fakereal.model.resaves import STABILITY_RESAVES
from fakereal.predict.results import details_of
from fakereal.predictions_json import dumps
from fakereal.provenance import (
    CAMERA_EXIF,
    INVALID_SIGNATURE,
    SIGNED,
    SIGNED_REASON,
    SIGNED_UNKNOWN_SIGNER,
    UNCHECKED_SIGNATURE,
    UNSIGNED_TEXT,
)
from fakereal.web import http
from fakereal.web.http import uploads
from fakereal.web.metrics import CONTENT_TYPE
from fakereal.web.service import Analysis, Predictor

ADVISORY = (
    "A verdict is a hint, not proof. The detector makes mistakes, most of all on kinds of images that it was not"
    " trained on. Do not accuse a person, reject a submission or publish a claim because of it."
)
"""Shown on the page and in the API, as in the model card."""

ORIGIN_NOTES = {
    SIGNED: "The signature is valid, and its signer is on the trust list.",
    SIGNED_UNKNOWN_SIGNER: "The signature is valid, but anyone can sign: this signer is not on the trust list.",
    UNCHECKED_SIGNATURE: "A hint, not proof, as the signature was not checked.",
    INVALID_SIGNATURE: "The file was edited, or the credentials belong to another one: ignore them.",
    UNSIGNED_TEXT: "A hint, not proof: anyone can write or remove such text.",
    CAMERA_EXIF: "A weak hint: EXIF is easily copied to another image.",
}
"""What the claim of a file is worth, by its evidence."""

_STRENGTHS = ((0.97, "Very likely", "strong"), (0.85, "Likely", "strong"), (0.7, "Probably", "weak"))
"""Least calibrated probability of the label -> words and style of the badge; below the last one: "Leans"."""

_HEATMAP_PX = 112  # longer side; the browser scales it smoothly
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")  # HTML in a card is shown as text

api_routes = Blueprint("api", __name__)
page_routes = Blueprint("pages", __name__)


def predictor() -> Predictor:
    """Return the predictor that the app was created with."""
    return current_app.extensions["fakereal"]


@api_routes.post("/api/predict")
def predict() -> Response:
    """Return the verdict on each image, as JSON."""
    analyses = _analyses(_flag("explain"), _flag("stability"))
    rows = [as_json(analysis) for analysis in analyses]
    if all(row["error"] for row in rows):
        detail = rows[0]["error"] if len(rows) == 1 else f"none of the {len(rows)} files is a readable image"
        return http.problem_response(422, "No readable image", detail, predictions=rows)
    return jsonify(model=predictor().model["name"], advisory=ADVISORY, predictions=rows)


@api_routes.get("/api/model")
def model() -> Response:
    """Return the model's facts and the limits on requests."""
    limits = predictor().limits
    bounds = {"request_bytes": limits.request_bytes, "pixels": limits.pixels, "files": limits.files}
    return jsonify({**predictor().model, "limits": bounds, "advisory": ADVISORY})


@api_routes.get("/api/openapi.json")
def openapi() -> Response:
    """Return the OpenAPI document."""
    return jsonify(document())


@api_routes.get("/healthz")
def healthz() -> Response:
    """Return 200 while the process works, 503 when it should be restarted."""
    if predictor().worker.alive:
        return jsonify(status="ok")
    return http.problem_response(503, "Not working", "the thread that runs the network has ended: restart the server")


@api_routes.get("/readyz")
def readyz() -> Response:
    """Return 200 while requests are accepted, 503 during start-up and shutdown."""
    if predictor().worker.ready and not predictor().draining.is_set():
        return jsonify(status="ready")
    return http.problem_response(503, "Not ready", "the server is starting up or shutting down: try again later")


@api_routes.get("/metrics")
def metrics() -> Response:
    """Return the metrics for Prometheus."""
    return Response(predictor().metrics.exposition(), content_type=CONTENT_TYPE)


@cache
def document() -> dict[str, Any]:
    """Return the OpenAPI document; openapi.yaml is its source, with `{formats}` and `{versions}` to fill in."""
    text = Path(__file__).with_name("openapi.yaml").read_text(encoding="utf-8")
    formats = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
    return yaml.safe_load(text.replace("{formats}", formats).replace("{versions}", str(1 + len(STABILITY_RESAVES))))


@page_routes.get("/")
def home() -> str:
    """Return the page."""
    return page([])


@page_routes.post("/")
def home_with_results() -> str:
    """Return the page with the results of a form that was sent without scripts."""
    return page(_analyses(explain=True, stability="stability" in request.form))


@page_routes.post("/cards")
def cards() -> Response:
    """Return only the result cards, for the script of the page."""
    analyses = _analyses(explain=True, stability="stability" in request.form)
    return make_response(render_template("cards.html", analyses=analyses, limits=predictor().limits))


@page_routes.get("/model")
def model_page() -> str:
    """Return the page about the model."""
    card = predictor().card
    return render_template("model.html", model=predictor().model, card=card and Markup(_MARKDOWN.render(card)))


def page(analyses: list[Analysis], problem: str | None = None) -> str:
    """Return the page with results, or with the reason why there are none."""
    return render_template(
        "index.html",
        analyses=analyses,
        problem=problem,
        model=predictor().model,
        limits=predictor().limits,
        formats=FORMATS,
        media_types=MEDIA_TYPES,
        document=results_document(analyses) if analyses else None,
    )


def _analyses(explain: bool, stability: bool) -> list[Analysis]:
    """Return the analyses of the current request's images."""
    found = predictor()
    analyses = found.analyzer.analyze(uploads(found.limits.files), explain, stability)
    found.metrics.count_images(analysis.result.verdict for analysis in analyses)
    return analyses


def _flag(name: str) -> bool:
    value = request.args.get(name, "false")
    if value not in _BOOLEANS:
        raise BadRequest(f"{name}: expected true or false, got {value[:40]!r}")
    return _BOOLEANS[value]


def as_json(analysis: Analysis) -> dict[str, Any]:
    """Return one entry of the API's `predictions`: the row of `--details`, and what the page shows beside it."""
    origin, p_fake = analysis.result.raw.origin, analysis.calibrated_p_fake
    return {
        **details_of(analysis.result),
        "calibrated_p_fake": None if p_fake is None else round(p_fake, DECIMALS),
        "calibrated_p_real": None if p_fake is None else round(1.0 - p_fake, DECIMALS),
        "file": {
            "bytes": analysis.file_bytes,
            "camera": origin.camera,
            "taken": origin.taken,
            "software": origin.software,
            "hints": list(origin.notes),
        },
        "stability": _stability(analysis),
        "explanation": _explanation(analysis) if analysis.evidence is not None else None,
    }


def results_document(analyses: Sequence[Analysis]) -> str:
    """Return the text of predictions.json."""
    return dumps([analysis.result.prediction for analysis in analyses])


def _stability(analysis: Analysis) -> dict[str, Any] | None:
    if analysis.stable is None:
        return None
    variants = [
        {"variant": each.name, "prediction": NAMES[each.label], "calibrated_p_fake": round(each.p_fake, DECIMALS)}
        for each in analysis.variants
    ]
    return {"stable": analysis.stable, "variants": variants}


def _explanation(analysis: Analysis) -> dict[str, Any]:
    return {"method": "Grad-CAM", "label": NAMES[analysis.result.label], "overlay": heatmap_uri(analysis)}


def heatmap_uri(analysis: Analysis) -> str:
    """Return the heatmap of the evidence for the image's label as a data URI, to be stretched over the preview."""
    width, height = analysis.preview.size
    scale = _HEATMAP_PX / max(width, height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return _data_uri(paint(heatmap(analysis.evidence, analysis.result.label), size), "PNG")


def image_uri(image: Image.Image) -> str:
    """Return an image as a data URI."""
    return _data_uri(image, "JPEG", quality=85)


def _data_uri(image: Image.Image, kind: str, **options: object) -> str:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"


def heatmap_is_empty(analysis: Analysis) -> bool:
    """Return whether no region of the image supports its label."""
    return not np.any(heatmap(analysis.evidence, analysis.result.label))


def badge(analysis: Analysis) -> tuple[str, str]:
    """Return text and style classes of the badge, such as ("Very likely fake", "fake strong")."""
    if analysis.result.reason == SIGNED_REASON:
        return "Fake: signed as AI-generated", "fake strong"
    if analysis.result.verdict == UNCERTAIN:
        return "Uncertain", "uncertain strong"
    name, share = NAMES[analysis.result.label], _share(analysis)
    for least, words, style in _STRENGTHS:
        if share >= least:
            return f"{words} {name}", f"{name} {style}"
    return f"Leans {name}", f"{name} weak"


def verdict_sentence(analysis: Analysis) -> str:
    """Return what the badge rests on, as a sentence."""
    name, share, decision = NAMES[analysis.result.network_label], _share(analysis), predictor().model["decision"]
    if analysis.result.reason == SIGNED_REASON:
        return f"Valid content credentials say so; the detector alone gives {percent(share)} for {name}."
    if analysis.result.reason == UNFAMILIAR:
        return (
            "Unlike the images this model learned from, so that its output says little here; it leans toward"
            f" {name} ({percent(share)})."
        )
    if analysis.result.verdict == UNCERTAIN:
        return (
            f"Too close to call: it leans toward {name}, but this model is wrong too often where the probability of"
            f" fake is {range_text(decision['band'])}."
        )
    if share < 0.5:
        limit = percent(decision["threshold"])
        return f"Called {name} although less likely: this model calls an image fake at {limit} or more."
    return f"The model gives {percent(share)} for {name}."


def range_text(band: Sequence[float]) -> str:
    """Return a band of probabilities in words; one that reaches 0 or 1 has one limit only."""
    low, high = map(percent, band)
    if band[0] <= 0.0:
        return f"below {high}"
    return f"above {low}" if band[1] >= 1.0 else f"between {low} and {high}"


def _share(analysis: Analysis) -> float:
    """Return the calibrated probability of the network's label, 0..1."""
    p_fake = analysis.calibrated_p_fake
    return p_fake if analysis.result.network_label == FAKE else 1.0 - p_fake


def percent(share: float) -> str:
    """Return a probability as a percentage; none is ever 0 or 100 %."""
    if share < 0.01:
        return "<1 %"
    return ">99 %" if share > 0.99 else f"{100 * share:.0f} %"


def file_size(count: int) -> str:
    """Return a file's size with its unit."""
    if count >= 2**20:
        return f"{count / 2**20:.1f} MB"
    return f"{count / 2**10:.1f} kB" if count >= 2**10 else f"{count} bytes"
