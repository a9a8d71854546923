"""From a request to the pictures in it, all in memory: nothing that was sent touches the disk."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import IO

from flask import Request, request
from werkzeug.exceptions import BadRequest, UnsupportedMediaType

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
