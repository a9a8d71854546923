"""For programs: predictions, the model, health, figures, and the document that describes them all."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml
from flask import Blueprint, Response, current_app, jsonify, request
from werkzeug.exceptions import BadRequest

from fakereal.web import problems
from fakereal.web.metrics import CONTENT_TYPE
from fakereal.web.predictor import Predictor
from fakereal.web.presenting import ADVISORY, as_json
from fakereal.web.uploads import uploads

routes = Blueprint("api", __name__)
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def predictor() -> Predictor:
    """Returns the predictor that the app was created with."""
    return current_app.extensions["fakereal"]


@routes.post("/api/predict")
def predict() -> Response:
    """Says of each picture whether it is fake or real."""
    explain, stability = _flag("explain"), _flag("stability")
    found = predictor()
    analyses = found.analyst.analyse(uploads(found.limits.files), explain, stability)
    found.metrics.count(analyses)
    rows = [as_json(analysis) for analysis in analyses]
    if all(row["error"] for row in rows):
        detail = rows[0]["error"] if len(rows) == 1 else f"expected pictures, found {len(rows)} that can't be read"
        return problems.response(422, "No picture could be read", detail, predictions=rows)
    return jsonify(model=found.model["name"], advisory=ADVISORY, predictions=rows)


@routes.get("/api/model")
def model() -> Response:
    """Says which model is at work, and what it takes."""
    limits = predictor().limits
    bounds = {"request_bytes": limits.request_bytes, "pixels": limits.pixels, "files": limits.files}
    return jsonify({**predictor().model, "limits": bounds, "advisory": ADVISORY})


@routes.get("/api/openapi.json")
def openapi() -> Response:
    """Returns the OpenAPI document."""
    return jsonify(document())


@routes.get("/healthz")
def healthz() -> Response:
    """Says whether the process should live."""
    if predictor().worker.alive:
        return jsonify(status="ok")
    return problems.response(503, "Dead", "expected the network's thread at work, found it ended: start anew")


@routes.get("/readyz")
def readyz() -> Response:
    """Says whether requests should be sent here now."""
    if predictor().worker.ready and not predictor().draining.is_set():
        return jsonify(status="ready")
    return problems.response(503, "Not ready", "expected to be asked later: starting, or shutting down")


@routes.get("/metrics")
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
