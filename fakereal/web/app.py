"""The app factory: routes, error handling, metrics, security headers and the token, around a given predictor."""

from __future__ import annotations

import hmac
import json
import time
from collections.abc import Callable, Collection

from flask import Flask, Response, g, make_response, request

from fakereal.model.resaves import RESAVES
from fakereal.web import http, routes
from fakereal.web.http import MemoryRequest
from fakereal.web.service import Predictor

OPEN_PATHS = ("/healthz", "/readyz", "/static/")
"""Paths that need no token: load balancers ask for the first two, and the rest is public."""

API_PATH = "/api/"
"""What pages of other sites may use, where they are allowed to."""

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self';"
        " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


def create_app(predictor: Predictor, token: str | None = None, origins: Collection[str] = ()) -> Flask:
    """Return the app.

    Args:
        predictor: a started predictor; stopping it is up to the caller.
        token: bearer token required on every request; None disables authentication.
        origins: sites whose pages may use the JSON API, such as "https://example.org".
    """
    app = Flask(__name__)
    app.request_class = MemoryRequest
    app.config.update(MAX_CONTENT_LENGTH=predictor.limits.request_bytes, SEND_FILE_MAX_AGE_DEFAULT=300)
    app.json.sort_keys = False
    app.extensions["fakereal"] = predictor
    app.jinja_env.filters.update(tojson_line=_json_line)
    app.jinja_env.globals.update(show=routes, resaves=RESAVES)
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    app.register_blueprint(routes.api_routes)
    app.register_blueprint(routes.page_routes)
    app.register_error_handler(Exception, _answer_error)
    _measure_requests(app, predictor)
    _add_headers(app)
    if origins:
        _allow_origins(app, origins)  # before the check of the token, which browsers don't send with a preflight
    if token is not None:
        app.before_request(_token_check(token))
    return app


def _json_line(text: str) -> str:
    """Return the first entry of a predictions.json on one line."""
    return json.dumps(json.loads(text)[0])


def _answer_error(error: Exception) -> Response:
    """Answer with the page where a person sent its form, otherwise with problem details."""
    status, title, detail = http.describe_error(error)
    if request.path == "/" and request.method == "POST":
        answer = make_response(routes.page([], detail), status)
    else:
        answer = http.problem_response(status, title, detail)
    for name, value in getattr(error, "get_headers", list)():  # such as Allow, for a wrong method
        if name not in ("Content-Type", "Content-Length"):
            answer.headers.setdefault(name, value)
    if status == 503:
        answer.headers.setdefault("Retry-After", str(http.RETRY_AFTER_S))
    return answer


def _measure_requests(app: Flask, predictor: Predictor) -> None:
    @app.before_request
    def start() -> None:
        g.start_s = time.perf_counter()

    @app.after_request
    def count(answer: Response) -> Response:
        route = request.url_rule.rule if request.url_rule else "other"
        predictor.metrics.requests.labels(route, str(answer.status_code)).inc()
        predictor.metrics.seconds.labels(route).observe(time.perf_counter() - g.start_s)
        return answer


def _add_headers(app: Flask) -> None:
    @app.after_request
    def add(answer: Response) -> Response:
        for name, value in _HEADERS.items():
            answer.headers.setdefault(name, value)
        if not request.path.startswith("/static/"):
            answer.headers.setdefault("Cache-Control", "no-store")  # answers hold people's images
        return answer


def _allow_origins(app: Flask, origins: Collection[str]) -> None:
    """Let the pages of other sites use the API: answer preflights, and mark answers as readable for them (CORS)."""

    @app.before_request
    def answer_preflight() -> Response | None:
        asked = request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers
        return Response(status=204) if asked and request.path.startswith(API_PATH) else None

    @app.after_request
    def add(answer: Response) -> Response:
        if request.path.startswith(API_PATH):
            answer.headers.extend(http.cors_headers(request.headers.get("Origin"), origins))
        return answer


def _token_check(token: str) -> Callable[[], Response | None]:
    def check() -> Response | None:
        if request.path.startswith(OPEN_PATHS) or hmac.compare_digest(_given_token().encode(), token.encode()):
            return None
        detail = "a valid token is required: send it as Bearer token, or as password of HTTP Basic with any user name"
        answer = http.problem_response(401, "Unauthorized", detail)
        # Browsers ask for Basic by themselves: no log-in page, no cookie, and it works without scripts.
        answer.headers["WWW-Authenticate"] = 'Basic realm="fakereal: any name, the token as password", charset="UTF-8"'
        return answer

    return check


def _given_token() -> str:
    """Return the token of the request, or ""."""
    authorization = request.authorization
    if authorization is None:
        return ""
    return (authorization.password if authorization.type == "basic" else authorization.token) or ""
