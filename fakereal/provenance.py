"""Read what an image file says of its origin: hints, never a proof, since anyone can write or remove them."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import ExifTags, Image

from fakereal.decoding import FORMATS

_LONGEST_TEXT = 120  # of a camera's or a program's name, on the page
_SEARCHED = 65_536  # characters of each text in which generators are looked for

_GENERATORS = {
    "Midjourney": r"midjourney",
    "DALL-E or ChatGPT": r"dall[·\-\s]?e\b|openai|chatgpt|gpt-4o",
    "Stable Diffusion": r"stable[\s_-]?diffusion|sampler:|negative prompt:|cfg scale:|a1111|invokeai",
    "ComfyUI": r"comfyui|\"class_type\"",
    "NovelAI": r"novelai",
    "Adobe Firefly": r"firefly",
    "Google AI": r"made with google ai|google generative|imagen\b",
    "Flux": r"black forest labs|\bflux[\s._-]?(?:1|dev|pro|schnell)",
    "Bing Image Creator": r"bing image creator|microsoft designer|image creator from",
    "Grok": r"\bxai\b|grok image|aurora by xai",
    "Leonardo": r"leonardo\.ai",
    "Ideogram": r"ideogram",
}
"""Image generators by what they leave in metadata."""

_EDITORS = r"photoshop|lightroom|gimp|affinity|pixelmator|snapseed|picsart|facetune|canva|faceapp|remini"
_AI_SOURCE, _PARTLY = b"rainedAlgorithmicMedia", b"compositeWith"  # IPTC digital source type
_XMP = re.compile(rb"<x:xmpmeta.{0,65536}?</x:xmpmeta>", re.DOTALL)
_C2PA = re.compile(rb"jumb.{0,64}c2pa", re.DOTALL)  # a JUMBF box that holds a C2PA manifest store


@dataclass(frozen=True)
class OriginFacts:
    """What stands in a file beside its pixels."""

    file_bytes: int
    camera: str | None = None  # EXIF make and model
    taken: str | None = None  # EXIF date and time, as it stands there
    software: str | None = None  # the program that wrote the file
    hints: tuple[str, ...] = ()  # sentences


def read_origin(content: bytes) -> OriginFacts:
    """Reads a file's metadata; whatever can't be read counts as not there."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            exif = image.getexif()
            texts = list(_texts(image, content))
    except Exception:  # noqa: BLE001 - nearly anything is raised on corrupt metadata
        return OriginFacts(len(content))
    make, model = _text(exif.get(ExifTags.Base.Make)), _text(exif.get(ExifTags.Base.Model))
    software = _text(exif.get(ExifTags.Base.Software)) or _text(image.info.get("Software"))
    return OriginFacts(
        len(content),
        camera=_text(model if model.startswith(make) else f"{make} {model}") or None,
        taken=_taken(exif) or None,
        software=software or None,
        hints=tuple(_hints(" ".join(texts), content, bool(make or model))),
    )


def _taken(exif: Image.Exif) -> str:
    try:
        return _text(exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.DateTimeOriginal))
    except Exception:  # noqa: BLE001 - as above
        return ""


def _texts(image: Image.Image, content: bytes) -> Iterator[str]:
    for value in (*image.getexif().values(), *image.info.values(), *getattr(image, "text", {}).values()):
        if isinstance(value, (str, bytes)):
            yield (value if isinstance(value, str) else value.decode("latin-1"))[:_SEARCHED]
    yield from (str(key) for key in image.info)
    if packet := _XMP.search(content):
        yield packet[0].decode("utf-8", "replace")


def _hints(text: str, content: bytes, camera: bool) -> Iterator[str]:
    for name, pattern in _GENERATORS.items():
        if re.search(pattern, text, re.IGNORECASE):
            yield f"Its metadata mentions {name}, which makes pictures."
    if (place := content.find(_AI_SOURCE)) >= 0:  # a plain search: uploads can be large
        part = "partly " if _PARTLY in content[max(0, place - 14) : place] else ""
        yield f"Its metadata declares it as {part}made by AI (IPTC digital source type)."
    if _C2PA.search(content):
        yield "It carries Content Credentials (C2PA); their signature is not checked here."
    if editor := re.search(_EDITORS, text, re.IGNORECASE):
        yield f"Its metadata mentions the editor {editor[0].title()}."
    if camera:
        yield "It names a camera, as photographs do."


def _text(value: object) -> str:
    """Returns a metadata value as one line of printable text."""
    text = value.decode("latin-1") if isinstance(value, bytes) else value if isinstance(value, str) else ""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())[:_LONGEST_TEXT]
