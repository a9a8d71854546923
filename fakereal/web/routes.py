"""For programs: predictions, the model, health, figures, and the document that describes them all."""

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

from fakereal.decoding import FORMATS
from fakereal.labels import FAKE, NAMES
from fakereal.model.calibration import DECIMALS, UNCERTAIN
from fakereal.model.heatmap import heatmap, paint
from fakereal.predict.results import details_of
from fakereal.predictions_json import dumps
from fakereal.provenance import (
    CAMERA_EXIF,
    INVALID_SIGNATURE,
    SIGNED,
    SIGNED_UNKNOWN_SIGNER,
    UNCHECKED_SIGNATURE,
    UNSIGNED_TEXT,
)
from fakereal.web import http
from fakereal.web.http import uploads
from fakereal.web.metrics import CONTENT_TYPE
from fakereal.web.service import Analysis, Predictor

api_routes = Blueprint("api", __name__)
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def predictor() -> Predictor:
    """Returns the predictor that the app was created with."""
    return current_app.extensions["fakereal"]


@api_routes.post("/api/predict")
def predict() -> Response:
    """Says of each picture whether it is fake or real."""
    explain, stability = _flag("explain"), _flag("stability")
    found = predictor()
    analyses = found.analyst.analyse(uploads(found.limits.files), explain, stability)
    found.metrics.count(analyses)
    rows = [as_json(analysis) for analysis in analyses]
    if all(row["error"] for row in rows):
        detail = rows[0]["error"] if len(rows) == 1 else f"expected pictures, found {len(rows)} that can't be read"
        return http.response(422, "No picture could be read", detail, predictions=rows)
    return jsonify(model=found.model["name"], advisory=ADVISORY, predictions=rows)


@api_routes.get("/api/model")
def model() -> Response:
    """Says which model is at work, and what it takes."""
    limits = predictor().limits
    bounds = {"request_bytes": limits.request_bytes, "pixels": limits.pixels, "files": limits.files}
    return jsonify({**predictor().model, "limits": bounds, "advisory": ADVISORY})


@api_routes.get("/api/openapi.json")
def openapi() -> Response:
    """Returns the OpenAPI document."""
    return jsonify(document())


@api_routes.get("/healthz")
def healthz() -> Response:
    """Says whether the process should live."""
    if predictor().worker.alive:
        return jsonify(status="ok")
    return http.response(503, "Dead", "expected the network's thread at work, found it ended: start anew")


@api_routes.get("/readyz")
def readyz() -> Response:
    """Says whether requests should be sent here now."""
    if predictor().worker.ready and not predictor().draining.is_set():
        return jsonify(status="ready")
    return http.response(503, "Not ready", "expected to be asked later: starting, or shutting down")


@api_routes.get("/metrics")
def metrics() -> Response:
    """Returns figures for Prometheus."""
    return Response(predictor().metrics.exposition(), content_type=CONTENT_TYPE)


@cache
def document() -> dict[str, Any]:
    """Returns the OpenAPI document; openapi.yaml is its source."""
    return yaml.safe_load(Path(__file__).with_name("openapi.yaml").read_text(encoding="utf-8"))


def _flag(name: str) -> bool:
    value = request.args.get(name, "false")
    if value not in _BOOLEANS:
        raise BadRequest(f"{name}: expected true or false, found {value[:40]!r}")
    return _BOOLEANS[value]


# ---- For people: one page, whose cards the server renders, with scripts (one by one) and without (all at once).

page_routes = Blueprint("pages", __name__)
_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")  # any HTML in a card is shown as text


@page_routes.get("/")
def home() -> str:
    """Shows the page."""
    return page([])


@page_routes.post("/")
def home_with_results() -> str:
    """Shows the page with the pictures of a form sent without scripts."""
    return page(_analyses())


@page_routes.post("/cards")
def cards() -> Response:
    """Returns the cards alone, for the page's script."""
    return make_response(render_template("cards.html", analyses=_analyses(), limits=predictor().limits))


@page_routes.get("/model")
def model_page() -> str:
    """Shows what is known about the model."""
    card = predictor().card
    return render_template("model.html", model=predictor().model, card=card and Markup(_MARKDOWN.render(card)))


def page(analyses: list[Analysis], problem: str | None = None) -> str:
    """Returns the page with results, or with the sentence that says why there are none."""
    return render_template(
        "index.html",
        analyses=analyses,
        problem=problem,
        model=predictor().model,
        limits=predictor().limits,
        formats=FORMATS,
        document=results_document(analyses) if analyses else None,
    )


def _analyses() -> list[Analysis]:
    found = predictor()
    analyses = found.analyst.analyse(uploads(found.limits.files), explain=True, stability="stability" in request.form)
    found.metrics.count(analyses)
    return analyses


# ---- What is shown of an analysis: a JSON object for programs, words and pictures for people.

ADVISORY = (
    "A verdict is a hint, never a proof. The detector errs, most of all on kinds of pictures that it has not learnt"
    " from. Do not accuse a person, reject a submission or publish a claim because of it."
)
"""Stands on the page and in the API, as in the model card."""

_HEATMAP_PX = 112  # longer side; the browser scales it smoothly


def as_json(analysis: Analysis) -> dict[str, Any]:
    """Returns what the API says of one picture: the row of `--details`, and what the page shows beside it."""
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
    """Returns the text of predictions.json."""
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
    return {
        "method": "Grad-CAM",
        "label": NAMES[analysis.result.label],
        "overlay": heat_uri(analysis),
    }


def heat_uri(analysis: Analysis) -> str:
    """Returns the heatmap of what speaks for the picture's label as a data URI, to be laid over the whole picture."""
    width, height = analysis.shown.size
    scale = _HEATMAP_PX / max(width, height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return _data_uri(paint(heatmap(analysis.evidence, analysis.result.label), size), "PNG")


def picture_uri(image: Image.Image) -> str:
    """Returns a picture as a data URI."""
    return _data_uri(image, "JPEG", quality=85)


def _data_uri(image: Image.Image, kind: str, **options: object) -> str:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"


def heat_is_empty(analysis: Analysis) -> bool:
    """Says whether nothing in the picture speaks for its label."""
    return not np.any(heatmap(analysis.evidence, analysis.result.label))


def percent(share: float) -> str:
    """Returns a probability as people read it; none is ever certain."""
    if share < 0.01:
        return "<1 %"
    return ">99 %" if share > 0.99 else f"{100 * share:.0f} %"


ORIGIN_NOTES = {
    SIGNED: "The signature is valid, and its signer is on the trust list.",
    SIGNED_UNKNOWN_SIGNER: "The signature is valid, but anyone can sign: this signer is not on the trust list.",
    UNCHECKED_SIGNATURE: "Until its signature is checked, this is a hint, not a proof.",
    INVALID_SIGNATURE: "Judge the image as if the file said nothing.",
    UNSIGNED_TEXT: "Anyone can write or remove such text: a hint, not a proof.",
    CAMERA_EXIF: "A weak hint: EXIF is easily copied to another image.",
}
"""What a claim is worth, by its evidence."""


def in_words(analysis: Analysis) -> str:
    """Returns the verdict as a sentence."""
    p_fake = analysis.calibrated_p_fake
    verdict, label = analysis.result.verdict, analysis.result.network_label
    if analysis.result.overruled is not None:
        return "By its content credentials; the detector alone would call it real."
    if verdict == UNCERTAIN:
        return f"Too close to call; it leans towards {NAMES[label]}."
    share = p_fake if label == FAKE else 1.0 - p_fake
    return f"{_sureness(share)} {NAMES[label]}."


def _sureness(share: float) -> str:
    for least, words in ((0.97, "Very likely"), (0.85, "Likely"), (0.7, "Probably")):
        if share >= least:
            return words
    return "Slightly more likely" if share >= 0.5 else "By this model's threshold"


def file_size(count: int) -> str:
    """Returns a file's size as people read it."""
    return (
        f"{count / 2**20:.1f} MB"
        if count >= 2**20
        else f"{count / 2**10:.1f} kB"
        if count >= 2**10
        else f"{count} bytes"
    )
