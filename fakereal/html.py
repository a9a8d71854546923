"""Self-contained HTML reports, for light and dark mode, from desktop to phone width."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from fakereal.files import write_atomic

NOT_KNOWN = "-"
"""Shown in place of a number that is not available."""

_THUMBNAIL_PX = 160


def write_page(path: Path, template: str, **context: Any) -> None:
    """Render a template of `fakereal/templates` and write the page atomically.

    Args:
        path: the HTML file.
        template: its file name; it extends `page.html`, which has the style.
        context: variables of the template; text is escaped.
    """
    text = _environment().get_template(template).render(**context)
    write_atomic(path, text.encode("utf-8", errors="backslashreplace"))


def thumbnail(image: Image.Image, size_px: int = _THUMBNAIL_PX) -> str:
    """Return an image as a data URI: a JPEG scaled down to fit, or a PNG of the same pixels if it fits already.

    Args:
        image: any mode.
        size_px: longest side of the thumbnail.
    """
    small = max(image.size) <= size_px
    if not small:
        image = image.copy()
        image.thumbnail((size_px, size_px))
    kind, options = ("PNG", {}) if small else ("JPEG", {"quality": 85})
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def decision_sheet(place: str, images: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the sheet of `decide.html`, on which people decide on images.

    Args:
        place: the folder of the images; with their names it is what the browser keeps the decisions under.
        images: each with `image`, the name that is saved; `thumbnail`; `lines`, see the template; and `given`, its
            present label, where it has one.
    """
    names = [{"image": each["image"], "given": each.get("given")} for each in images]
    digest = hashlib.sha256(json.dumps([place, names]).encode()).hexdigest()
    return {
        "key": f"fakereal decisions {digest[:16]}",
        "images": images,
        "names": names,
        "can_keep": all(each["given"] for each in names),
    }


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share, 0..1, as a percentage."""
    return NOT_KNOWN if share is None else f"{100 * share:.{digits}f} %"


def percents(pair: list[float | None] | None) -> str:
    """Return an interval of shares, each 0..1, as percentages."""
    known = pair is not None and None not in pair
    return f"{100 * pair[0]:.1f} to {100 * pair[1]:.1f}" if known else NOT_KNOWN


def number(value: float | None, digits: int = 4) -> str:
    """Return a number with thousands separators, and with this many decimals if it is a float."""
    if value is None:
        return NOT_KNOWN
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fakereal"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, percents=percents, number=number)
    return environment
