"""Headers on every answer, and the token that strangers lack."""

from __future__ import annotations

import hmac
from collections.abc import Callable

from flask import Flask, Response, request

from fakereal.web import problems

OPEN_PATHS = ("/healthz", "/readyz", "/static/")
"""Asked by load balancers, or no secret."""

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


def protect(app: Flask, token: str | None) -> None:
    """Adds the headers, and asks for the token where there is one."""

    @app.after_request
    def add_headers(answer: Response) -> Response:
        for name, value in _HEADERS.items():
            answer.headers.setdefault(name, value)
        if not request.path.startswith("/static/"):
            answer.headers.setdefault("Cache-Control", "no-store")  # answers hold people's pictures
        return answer

    if token is not None:
        app.before_request(_guard(token))


def _guard(token: str) -> Callable[[], Response | None]:
    def refuse_strangers() -> Response | None:
        if request.path.startswith(OPEN_PATHS) or hmac.compare_digest(_given().encode(), token.encode()):
            return None
        answer = problems.response(
            401, "Unauthorized", "expected the token as Bearer, or as Basic password, found none"
        )
        # Browsers ask for Basic by themselves: no log-in page, no cookie, and it works without scripts.
        answer.headers["WWW-Authenticate"] = 'Basic realm="fakereal: any name, the token as password", charset="UTF-8"'
        return answer

    return refuse_strangers


def _given() -> str:
    """Returns the token that the request brings, "" where it brings none."""
    authorization = request.authorization
    if authorization is None:
        return ""
    return (authorization.password if authorization.type == "basic" else authorization.token) or ""
