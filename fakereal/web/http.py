"""From a request to the pictures in it, all in memory: nothing that was sent touches the disk."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import IO, Any

from flask import Request, Response, current_app, request
from werkzeug.exceptions import (
    BadRequest,
    HTTPException,
    RequestEntityTooLarge,
    ServiceUnavailable,
    UnsupportedMediaType,
)

from fakereal.errors import FakeRealError

FIELD = "image"
"""Name of the form field that holds pictures."""

RAW_TYPES = ("application/octet-stream", "image/")
_LONGEST_NAME = 255
_SPARE_PARTS = 8  # a form's fields beside its files


@dataclass(frozen=True)
class Upload:
    """One file of a request."""

    name: str  # as the client calls it; a label only, nothing is ever opened by it
    content: bytes


class MemoryRequest(Request):
    """A request whose files stay in memory; the server has bounded their size."""

    def _get_file_stream(
        self,
        total_content_length: int | None,
        content_type: str | None,
        filename: str | None = None,
        content_length: int | None = None,
    ) -> IO[bytes]:
        return io.BytesIO()  # werkzeug's own spools what is larger than 500 kB to a temporary file


def uploads(most: int) -> list[Upload]:
    """Returns the pictures of the current request: files of a form, or the raw body.

    Raises:
        werkzeug.exceptions.HTTPException: the request holds none, too many, or something else.
    """
    kind = request.mimetype
    if kind == "multipart/form-data":
        request.max_form_parts = most + _SPARE_PARTS
        found = [Upload(_name(file.filename), file.read()) for file in request.files.getlist(FIELD)]
        found = [upload for upload in found if upload.name or upload.content]  # a form sent without choosing a file
    elif kind.startswith(RAW_TYPES):
        content = request.get_data(cache=False)
        found = [Upload(_name(request.args.get("name")), content)] if content else []
    else:
        raise UnsupportedMediaType(
            f"expected multipart/form-data with files in the field {FIELD!r}, or a raw picture as"
            f" application/octet-stream or image/*, found {kind or 'no content type'}"
        )
    if not found:
        raise BadRequest(f"expected at least one picture (form field {FIELD!r}, or the body itself), found none")
    if len(found) > most:
        raise BadRequest(f"expected at most {most} pictures in a request, found {len(found)}: send several requests")
    return [Upload(upload.name or "image", upload.content) for upload in found]


def _name(name: str | None) -> str:
    """Returns a client's file name as one printable line with "/" and no place on any disk."""
    clean = "".join(letter for letter in (name or "").replace("\\", "/") if letter.isprintable())
    parts = [part for part in clean.split("/") if part not in ("", ".", "..")]
    return "/".join(parts)[-_LONGEST_NAME:]


# ---- How much the web app takes at once; whatever is beyond is refused with a reason.

MAX_BATCH = 32
"""Pictures the network sees at most at once: predict_and_save_json.py's own batch size."""


@dataclass(frozen=True)
class Limits:
    """Bounds on what requests may cost."""

    request_bytes: int = 32 * 2**20  # of a whole request; a 48 megapixel JPEG has about 15 MB
    pixels: int = 50_000_000  # of one picture; more are refused by the header, before decoding
    files: int = 32  # pictures in one request
    queue: int = 64  # pictures accepted and not yet answered; re-saved variants count too
    timeout_s: float = 30.0  # from a request's arrival in the app to its answer
    body_timeout_s: float = 60.0  # for a request to arrive whole
    connections: int = 128  # open at once; more get a 503
    drain_s: float = 30.0  # after SIGTERM, for what was accepted to be answered


class BusyError(FakeRealError):
    """The queue is full, or the worker is stopping: come back later."""


class TooSlowError(FakeRealError):
    """A request was not answered in time."""


# ---- Errors as RFC 9457 problem details; the page shows the same sentences.


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
