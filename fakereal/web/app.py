"""The app factory: everything that answers requests, around a predictor that is handed in."""

from __future__ import annotations

import json
import time

from flask import Flask, Response, g, make_response, request

from fakereal.web import api, pages, presenting, problems, security
from fakereal.web.predictor import Predictor
from fakereal.web.uploads import MemoryRequest


def create_app(predictor: Predictor, token: str | None = None) -> Flask:
    """Returns the app.

    Args:
        predictor: a started predictor; the app stops nothing.
        token: what strangers lack; None lets everybody in.
    """
    app = Flask(__name__)
    app.request_class = MemoryRequest
    app.config.update(MAX_CONTENT_LENGTH=predictor.limits.request_bytes, SEND_FILE_MAX_AGE_DEFAULT=300)
    app.json.sort_keys = False
    app.extensions["fakereal"] = predictor
    app.jinja_env.filters.update(tojson_line=_json_line)
    app.jinja_env.globals.update(show=presenting)
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    app.register_blueprint(api.routes)
    app.register_blueprint(pages.routes)
    app.register_error_handler(Exception, _answer_error)
    _measure(app, predictor)
    security.protect(app, token)
    return app


def _answer_error(error: Exception) -> Response:
    """Answers with a page where a person sent a form, else with problem details."""
    status, title, detail = problems.from_exception(error)
    if request.path == "/" and request.method == "POST":
        answer = make_response(pages.page([], detail), status)
    else:
        answer = problems.response(status, title, detail)
    for name, value in getattr(error, "get_headers", list)():  # Allow, of a wrong method
        if name not in ("Content-Type", "Content-Length"):
            answer.headers.setdefault(name, value)
    if status == 503:
        answer.headers.setdefault("Retry-After", str(problems.RETRY_AFTER_S))
    return answer


def _measure(app: Flask, predictor: Predictor) -> None:
    @app.before_request
    def start() -> None:
        g.start_s = time.perf_counter()

    @app.after_request
    def count(answer: Response) -> Response:
        route = request.url_rule.rule if request.url_rule else "other"
        predictor.metrics.requests.labels(route, str(answer.status_code)).inc()
        predictor.metrics.seconds.labels(route).observe(time.perf_counter() - g.start_s)
        return answer


def _json_line(text: str) -> str:
    """Returns the first entry of a predictions.json on one line."""
    return json.dumps(json.loads(text)[0])
