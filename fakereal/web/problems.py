"""Errors as RFC 9457 problem details; the page shows the same sentences."""

from __future__ import annotations

import json
from typing import Any

from flask import Response, current_app, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge, ServiceUnavailable

from fakereal.web.limits import BusyError, TooSlowError

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 2

_SENTENCES = {
    404: "expected one of this app's addresses, found another: see /api/openapi.json",
    405: "expected another method for this address: see /api/openapi.json",
    413: "expected a smaller request: send fewer or smaller pictures",
}


def body(status: int, title: str, detail: str, **more: Any) -> dict[str, Any]:
    """Returns a problem's members; `more` are extensions."""
    return {"type": "about:blank", "title": title, "status": status, "detail": detail, **more}


def response(status: int, title: str, detail: str, **more: Any) -> Response:
    """Returns a problem as an answer."""
    text = json.dumps(body(status, title, detail, **more))
    answer = Response(text, status, mimetype=MEDIA_TYPE)
    if status == ServiceUnavailable.code:
        answer.headers["Retry-After"] = str(RETRY_AFTER_S)
    return answer


def from_exception(error: Exception) -> tuple[int, str, str]:
    """Returns the status, the title and the sentence for what a view raised."""
    if isinstance(error, BusyError):
        return 503, "Busy", str(error)
    if isinstance(error, TooSlowError):
        return 503, "Too slow", str(error)
    if isinstance(error, RequestEntityTooLarge):
        return 413, error.name, _too_large()
    if isinstance(error, HTTPException) and error.code and error.code >= 400:
        known = _SENTENCES.get(error.code) if error.code in (404, 405) else None
        return error.code, error.name, known or error.description or error.name
    current_app.logger.error("%s %s failed", request.method, request.path, exc_info=error)
    return 500, "Internal Server Error", "expected an answer, found a fault of this program: see its log"


def _too_large() -> str:
    limits = current_app.extensions["fakereal"].limits
    return f"expected at most {limits.request_bytes // 2**20} MB and {limits.files} pictures in a request, found more"
