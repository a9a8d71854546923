"""Recognize the type of a file by its first bytes (magic numbers), whatever its name says.

Images that are read, images of other formats, and what is often found in an image's place: an error page, a pointer of
Git LFS, a video.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass

HEAD_BYTES = 2048
"""Bytes from a file's start that are enough to recognize it."""

OTHER_IMAGE_SUFFIXES = (
    *(".jxl", ".jp2", ".j2k", ".jpf", ".jpx", ".jxr", ".psd", ".psb", ".xcf", ".svg", ".eps", ".ico", ".tga", ".exr"),
    *(".dds", ".qoi", ".ppm", ".pgm", ".pbm", ".pnm"),
    *(".dng", ".cr2", ".cr3", ".nef", ".nrw", ".arw", ".raf", ".orf", ".rw2", ".pef", ".srw"),
)
"""Names of images of formats that are not read, lower case: such files are listed with the reason."""

_CONVERT = "convert it to PNG or JPEG"
_EXPORT = "export it as JPEG or TIFF"
_FAILED = "the download probably failed"
_UNPACK = "unpack it"


@dataclass(frozen=True)
class FileType:
    """What a file is."""

    name: str  # such as "HTML page"
    is_image: bool = False
    is_read: bool = False  # an image of a format that is read
    advice: str = ""  # what to do, or what probably happened

    @property
    def reason(self) -> str:
        """Why such a file gets no prediction, as one short line."""
        what = "a format that is not read" if self.is_image else "not an image"
        return f"{self.name}, {what}{': ' * bool(self.advice)}{self.advice}"


def raw_photo(name: str = "RAW photo") -> FileType:
    """Return the type of a camera's RAW file; `name` may say which."""
    return FileType(name, is_image=True, advice=_EXPORT)


def _read(pattern: bytes) -> tuple[re.Pattern[bytes], FileType]:
    return re.compile(pattern, re.DOTALL), FileType("image", is_image=True, is_read=True)


def _image(pattern: bytes, name: str, advice: str = _CONVERT) -> tuple[re.Pattern[bytes], FileType]:
    return re.compile(pattern, re.DOTALL | re.IGNORECASE), FileType(name, is_image=True, advice=advice)


def _other(pattern: bytes, name: str, advice: str = "") -> tuple[re.Pattern[bytes], FileType]:
    return re.compile(pattern, re.DOTALL | re.IGNORECASE), FileType(name, advice=advice)


_COMMENTS = rb"(?:<!--.{0,500}?-->\s*)*"
_TEXT_START = rb"(?:\xef\xbb\xbf)?\s*" + _COMMENTS  # behind a byte order mark

_TYPES = (
    _image(rb"II\*\0....CR\x02", "CR2 RAW photo", _EXPORT),  # before TIFF, which it is too
    _read(rb"\xff\xd8\xff"),
    _read(rb"\x89PNG"),
    _read(rb"GIF8[79]a"),
    _read(rb"RIFF....WEBP"),
    _read(rb"II\*\0|MM\0\*"),
    _read(rb"BM.{4}\0{4}.{4}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0"),
    _read(rb"....ftyp(?:avi[fs]|hei[cmsx]|hev[cmsx]|m[is]f1)"),
    _image(rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL image"),
    _image(rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", "JPEG 2000 image"),
    _image(rb"II\xbc", "JPEG XR image"),
    _image(rb"8BPS", "Photoshop document"),
    _image(rb"gimp xcf", "GIMP document"),
    _image(rb"....ftypcrx ", "CR3 RAW photo", _EXPORT),
    _image(rb"FUJIFILMCCD-RAW", "RAF RAW photo", _EXPORT),
    _image(rb"IIR[OS]|MMOR", "ORF RAW photo", _EXPORT),
    _image(rb"IIU\0", "RW2 RAW photo", _EXPORT),
    _image(
        _TEXT_START + rb"(?:<\?xml[^>]*>\s*)?(?:<!--.{0,500}?-->\s*)*(?:<!DOCTYPE svg[^>]*>\s*)?<svg", "SVG drawing"
    ),
    _image(rb"%!PS-Adobe|\xc5\xd0\xd3\xc6", "EPS drawing"),
    _image(rb"\0\0\x01\0[\x01-\x40]\0", "Windows icon"),
    _image(rb"v/1\x01", "OpenEXR image"),
    _image(rb"DDS \x7c", "DDS image"),
    _image(rb"qoif", "QOI image"),
    _image(rb"P[1-6]\s+(?:#[^\n]*\n\s*)*\d+\s+\d+\s", "PNM image"),
    _other(_TEXT_START + rb"<(?:!doctype html|html|head|body|title|script)", "HTML page", _FAILED),
    _other(rb"version https://git-lfs", "Git LFS pointer", "fetch the file itself with `git lfs pull`"),
    _other(rb"\0\x05\x16\x07", "macOS metadata (AppleDouble)", "the image itself has the same name without ._"),
    _other(rb"%PDF-", "PDF document", "export its images"),
    _other(rb"....ftypqt  |....(?:moov|mdat|wide)", "QuickTime video", "save the frame that counts"),
    _other(rb"....ftyp", "MP4 video", "save the frame that counts"),
    _other(rb"\x1a\x45\xdf\xa3.{0,64}webm", "WebM video", "save the frame that counts"),
    _other(rb"\x1a\x45\xdf\xa3", "Matroska video", "save the frame that counts"),
    _other(rb"RIFF....AVI ", "AVI video", "save the frame that counts"),
    _other(rb"\0\0\x01[\xba\xb3]|FLV\x01", "video", "save the frame that counts"),
    _other(rb"PK\x03\x04", "zip archive", _UNPACK),
    _other(rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!|.{257}ustar", "archive", _UNPACK),
    _other(rb"/9j/|iVBORw0KGgo|data:image/", "base64 text", "decode it to the image's bytes"),
    _other(_TEXT_START + rb"<\?xml", "XML text", _FAILED),
    _other(_TEXT_START + rb"""[\[{]\s*["\[{\]}]""", "JSON text", _FAILED),
)
"""By the first pattern that matches at a file's start."""

_ZEROS = FileType("zero bytes", advice="the copy or download was probably interrupted")
_TEXT = FileType("text")


def recognize(head: bytes) -> FileType | None:
    """Return what a file is, None where nothing tells.

    Args:
        head: the first `HEAD_BYTES` bytes of the file, or all of it.
    """
    head = head[:HEAD_BYTES]
    for pattern, found in _TYPES:
        if pattern.match(head):
            return found
    if len(head) >= 16 and not head.strip(b"\0"):
        return _ZEROS
    return _TEXT if head and _is_text(head) else None


def begins_like_image(head: bytes) -> bool:
    """Say whether a file is an image, of whatever format, by its first `HEAD_BYTES` bytes."""
    found = recognize(head)
    return found is not None and found.is_image


def _is_text(head: bytes) -> bool:
    encoding = "utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(head)  # incremental: the last character may be cut
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character.isspace() for character in text)


def image_format(head: bytes) -> str | None:
    """Return Pillow's name of the format that an ISO media file (AVIF, HEIF) holds, None for any other file.

    Both may begin with the general brand `mif1`; the compatible brands behind it tell them apart.
    """
    if head[4:8] != b"ftyp":
        return None
    brands = head[8 : min(int.from_bytes(head[:4]), 128)]
    return "AVIF" if b"avif" in brands or b"avis" in brands else "HEIF"
