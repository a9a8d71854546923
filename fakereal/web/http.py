"""What the web app takes and refuses: the files of a request, limits on them, and errors as problem details.

Nothing that a client sends touches the disk.
"""

from __future__ import annotations

import io
import json
from collections.abc import Collection
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
"""Name of the form field that holds images."""

RAW_TYPES = ("application/octet-stream", "image/")
MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 2

_CORS = {
    "Access-Control-Allow-Methods": "GET, POST",
    "Access-Control-Allow-Headers": "Authorization, Content-Type",
    "Access-Control-Expose-Headers": "Retry-After",
    "Access-Control-Max-Age": "600",
}
"""For pages of other sites. Never with Access-Control-Allow-Credentials: they send the token themselves, or nothing."""

_LONGEST_NAME = 255  # characters
_OTHER_FIELDS = 8  # form fields allowed beside the files
_SEE_DOCUMENT = "see /api/openapi.json for the addresses and methods of this server"


@dataclass(frozen=True)
class Limits:
    """Limits on what requests may cost."""

    request_bytes: int = 32 * 2**20  # of a whole request; a 48 megapixel JPEG has about 15 MB
    pixels: int = 50_000_000  # of one image; larger ones are refused by their header, before decoding
    files: int = 32  # images in one request
    queue: int = 64  # images accepted and not yet answered, re-saved variants included
    timeout_s: float = 30.0  # from a request's arrival in the app to its answer
    body_timeout_s: float = 60.0  # for a request to arrive whole
    connections: int = 128  # open at once; more get a 503
    drain_s: float = 30.0  # after SIGTERM, for accepted requests to be answered


class BusyError(FakeRealError):
    """The queue is full or the server is shutting down."""


class TooSlowError(FakeRealError):
    """A request was not answered within `Limits.timeout_s`."""


@dataclass(frozen=True)
class Upload:
    """One file of a request."""

    name: str  # as the client calls it; only a label, never used to open anything
    content: bytes


class MemoryRequest(Request):
    """A request whose files stay in memory; the server has limited their size."""

    def _get_file_stream(
        self,
        total_content_length: int | None,
        content_type: str | None,
        filename: str | None = None,
        content_length: int | None = None,
    ) -> IO[bytes]:
        return io.BytesIO()  # werkzeug writes files above 500 kB to a temporary file


def uploads(limit: int) -> list[Upload]:
    """Return the images of the current request: the files of a form, or the raw body.

    Args:
        limit: largest number of images.

    Raises:
        werkzeug.exceptions.HTTPException: no image, too many images, or another content type.
    """
    found = _form_files(limit) if request.mimetype == "multipart/form-data" else _raw_body()
    if not found:
        raise BadRequest(
            f"no image in the request: send at least one, as a file in the form field {FIELD!r} or as the body"
        )
    if len(found) > limit:
        raise BadRequest(f"expected at most {limit} images in a request, got {len(found)}: send several requests")
    return [Upload(upload.name or "image", upload.content) for upload in found]


def _form_files(limit: int) -> list[Upload]:
    request.max_form_parts = limit + _OTHER_FIELDS
    found = [Upload(_clean_name(file.filename), file.read()) for file in request.files.getlist(FIELD)]
    return [upload for upload in found if upload.name or upload.content]  # browsers send an empty file for none chosen


def _raw_body() -> list[Upload]:
    if not request.mimetype.startswith(RAW_TYPES):
        raise UnsupportedMediaType(
            f"expected multipart/form-data with files in the field {FIELD!r}, or a raw image as"
            f" application/octet-stream or image/*, got {request.mimetype or 'no content type'}"
        )
    content = request.get_data(cache=False)
    return [Upload(_clean_name(request.args.get("name")), content)] if content else []


def _clean_name(name: str | None) -> str:
    """Return a client's file name as one printable relative path with "/" and without "..", or ""."""
    clean = "".join(letter for letter in (name or "").replace("\\", "/") if letter.isprintable())
    parts = [part for part in clean.split("/") if part not in ("", ".", "..")]
    return "/".join(parts)[-_LONGEST_NAME:]


def cors_headers(origin: str | None, origins: Collection[str]) -> dict[str, str]:
    """Return the header fields that let a page of another site read an answer (CORS).

    Args:
        origin: the field Origin of the request.
        origins: the sites that are allowed; none: no fields.
    """
    if not origins:
        return {}
    allowed = {"Access-Control-Allow-Origin": origin, **_CORS} if origin in origins else {}
    return {"Vary": "Origin", **allowed}


def problem(status: int, title: str, detail: str, **extensions: Any) -> dict[str, Any]:
    """Return the members of problem details (RFC 9457)."""
    return {"type": "about:blank", "title": title, "status": status, "detail": detail, **extensions}


def problem_response(status: int, title: str, detail: str, **extensions: Any) -> Response:
    """Return problem details as a response."""
    answer = Response(json.dumps(problem(status, title, detail, **extensions)), status, mimetype=MEDIA_TYPE)
    if status == ServiceUnavailable.code:
        answer.headers["Retry-After"] = str(RETRY_AFTER_S)
    return answer


def describe_error(error: Exception) -> tuple[int, str, str]:
    """Return status, title and detail for an exception of a view; one that nobody foresaw is logged."""
    if isinstance(error, BusyError):
        return 503, "Busy", str(error)
    if isinstance(error, TooSlowError):
        return 503, "Too slow", str(error)
    if isinstance(error, RequestEntityTooLarge):
        return 413, error.name, too_large(current_app.extensions["fakereal"].limits)
    if isinstance(error, HTTPException) and error.code and error.code >= 400:
        detail = {404: f"no such address: {_SEE_DOCUMENT}", 405: f"the method is not allowed here: {_SEE_DOCUMENT}"}
        return error.code, error.name, detail.get(error.code) or error.description or error.name
    current_app.logger.error("%s %s failed", request.method, request.path, exc_info=error)
    return 500, "Internal Server Error", "an internal error occurred; see the log of the server"


def too_large(limits: Limits) -> str:
    """Return the detail of a 413 response."""
    return (
        f"expected at most {limits.request_bytes // 2**20} MB and {limits.files} images in a request, got more:"
        " send fewer or smaller images"
    )
