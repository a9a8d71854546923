"""Decode image files to upright RGB images, with limits on memory and time; the project's only decoder.

What is damaged, too large, of another format or no image at all raises `ImageRefused` with the reason.
"""

from __future__ import annotations

import io
import os
import re
import stat
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pi_heif
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from fakereal import file_types
from fakereal.errors import ImageRefused
from fakereal.file_types import FileType

MAX_PIXELS = 100_000_000
"""Images with more pixels are refused before decoding: 100 MP are 300 MB as RGB."""

MAX_SIDE_PX = 65_535
"""JPEG's own limit; a longer side comes from a damaged header, and resizing it would take a minute."""

MAX_FILE_BYTES = 256 * 2**20
"""Larger files are refused before reading; an uncompressed TIFF with 85 MP of 8-bit RGB still fits."""

MAX_JPEG_SCANS = 100
"""A progressive JPEG has about 10 scans; thousands of them in a small file are an attack on the decoder's time."""

SUFFIXES_BY_FORMAT = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif", ".hif"),
}
"""The formats that are read, by Pillow's name, with the suffixes of their files in lower case."""

FORMATS = tuple(SUFFIXES_BY_FORMAT)
"""Pillow's decoders that may run; others (EPS, PDF, FLI, ...) are slow, rare or start other programs."""

SUFFIXES = tuple(suffix for suffixes in SUFFIXES_BY_FORMAT.values() for suffix in suffixes)
"""File names that count as images; the content decides what a file really is."""

_NAMES = (*SUFFIXES, *file_types.OTHER_IMAGE_SUFFIXES)

MEDIA_TYPES = (*(f"image/{name.lower()}" for name in FORMATS), "image/heic")
"""The formats as a browser names them."""

_SCALES = (8, 4, 2)  # JPEGs can be decoded at 1/2, 1/4 and 1/8 of their size, in a fraction of the time

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by EXIF orientation
_START_OF_SCAN, _END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"
_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")  # of a JPEG segment; restarts (d0-d7) stand within a scan's data
_DNG_VERSION, _NEW_SUBFILE_TYPE, _MAKE = 0xC612, 0xFE, 0x10F  # TIFF tags
_RAW_NAMES = {
    "NIKON": "NEF",
    "SONY": "ARW",
    "PENTAX": "PEF",
    "SAMSUNG": "SRW",
}  # by make
_ITEM_ENTRY = re.compile(rb"(\0\0..)infe([\0-\x04])...", re.DOTALL)  # of HEIF: length, name and version of the box
_CUT_OFF = re.compile("truncated|premature|end of file|not enough data", re.IGNORECASE)
"""How the decoders say that a file ends too early."""

Image.MAX_IMAGE_PIXELS = None  # our own limit, MAX_PIXELS, is checked before decoding and has one wording
# Pillow warns of odd metadata; the pixels are what counts. Set once, since warning filters belong to no thread.
warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
# HEIC decodes in the threads of its callers. What comes beside the image (a thumbnail, its depth) is not read.
pi_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)


@dataclass(frozen=True)
class ImageInfo:
    """Size and format that the file's header states."""

    width_px: int  # as stored, before the EXIF rotation
    height_px: int
    format: str  # Pillow's name: JPEG, PNG, ...

    @property
    def shorter_px(self) -> int:
        """The shorter side."""
        return min(self.width_px, self.height_px)


@dataclass(frozen=True)
class Reduction:
    """The size to which large JPEGs may be reduced while they are decoded."""

    shortest_px: int = 0  # the scale is the smallest whose shorter side still has this many pixels, and
    longest_px: int = 0  # whose longer side has this many
    exact: bool = True  # what the scale makes a fraction of a pixel too large, as 1/4 of 897, is resampled
    resized_px: int | None = None  # a reduced image is resampled so that its longer side has this many pixels

    def scale(self, width_px: int, height_px: int) -> int:
        """Return by how much a JPEG of this size is reduced: 1, 2, 4 or 8 times."""
        shorter, longer = sorted((width_px, height_px))
        fitting = (each for each in _SCALES if shorter >= each * self.shortest_px and longer >= each * self.longest_px)
        return next(fitting, 1)

    def size(self, width_px: float, height_px: float) -> tuple[int, int]:
        """Return the size that a reduced image gets, from its own, which may be fractional."""
        factor = self.resized_px / max(width_px, height_px) if self.resized_px else 1.0
        return max(1, round(width_px * factor)), max(1, round(height_px * factor))


def decode(source: Path | bytes, target: int | Reduction) -> tuple[Image.Image, ImageInfo]:
    """Decode a file, or the bytes of one, to an upright RGB image.

    Args:
        source: the path or the content.
        target: side in pixels of what the image will be resized to; large JPEGs are decoded at a reduced scale that
            still has at least twice that many pixels each way, which takes a seventh of the time for 12 MP. Or the
            reduction itself.

    Returns:
        The image in mode RGB (first frame, EXIF orientation applied, transparency over white, 16 bit scaled to 8).

    Raises:
        ImageRefused: with the reason.
    """
    data = source if isinstance(source, bytes) else read_bytes(source)
    if not data:
        raise ImageRefused("empty", "the file is empty")
    try:
        return _decode(data, target if isinstance(target, Reduction) else Reduction(2 * target, exact=False))
    except ImageRefused:
        raise
    except MemoryError as error:
        raise ImageRefused("too_large", "expected an image that fits in memory, got one that does not") from error
    except Exception as error:
        raise _refusal(error, data) from error


def read_bytes(path: Path) -> bytes:
    """Return the content of an image file.

    Raises:
        ImageRefused: there is no regular, readable file of at most `MAX_FILE_BYTES`.
    """
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ImageRefused("unreadable", "not a regular file, but a pipe, a device or the like")
            if status.st_size > MAX_FILE_BYTES:
                raise ImageRefused(
                    "too_large", f"expected at most {MAX_FILE_BYTES // 2**20} MB, found {status.st_size / 2**20:.0f} MB"
                )
            return file.read()
    except FileNotFoundError as error:
        raise ImageRefused("missing", "the file does not exist") from error
    except OSError as error:
        raise ImageRefused("unreadable", f"the file can't be read: {error.strerror or error}") from error


def _open_without_waiting(path: str, flags: int) -> int:
    # Opening a pipe would block until something writes to it.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def open_image(file: BinaryIO) -> ImageFile.ImageFile:
    """Read the header of an image; its pixels are read when they are asked for.

    Raises:
        UnidentifiedImageError: none of `FORMATS`; damaged headers raise nearly anything.
    """
    found = file_types.image_format(file.read(file_types.HEAD_BYTES))
    file.seek(0)
    if found == "HEIF":
        _check_item_names(file.read())
        file.seek(0)
    return Image.open(file, formats=FORMATS if found is None else (found,))


def _check_item_names(data: bytes) -> None:
    """Refuse a HEIC file whose items have types or names that are no text: pi_heif ends the whole process there.

    Raises:
        ValueError: there is such an item.
    """
    for place in _ITEM_ENTRY.finditer(data):
        length, version = int.from_bytes(place[1]), place[2][0]
        start = place.end() + (6 if version >= 3 else 4)  # behind the number and the protection
        data[start : place.start() + length].decode("utf-8")


def _decode(data: bytes, reduction: Reduction) -> tuple[Image.Image, ImageInfo]:
    with open_image(io.BytesIO(data)) as image:
        info = ImageInfo(*image.size, "JPEG" if image.format == "MPO" else str(image.format))
        _check_cost(image, info, data)
        scale = reduction.scale(*image.size) if info.format == "JPEG" else 1
        if scale > 1:
            image.draft(None, (info.width_px // scale, info.height_px // scale))
        image.load()
        reduced = _resampled(image, info, scale, reduction) if scale > 1 and reduction.exact else image
        return _to_rgb(_upright(reduced)), info


def _resampled(image: Image.Image, info: ImageInfo, scale: int, reduction: Reduction) -> Image.Image:
    """Return an image that was decoded at a scale, resampled where that has not given the size that it should have."""
    true_size = info.width_px / scale, info.height_px / scale  # the decoder rounds both up, which stretches the image
    size = reduction.size(*true_size)
    if image.size == size == true_size:
        return image
    return image.resize(size, Image.Resampling.BICUBIC, box=(0.0, 0.0, *true_size))


def _check_cost(image: ImageFile.ImageFile, info: ImageInfo, data: bytes) -> None:
    """Refuse what would take much memory or time, from the header alone."""
    pixels = info.width_px * info.height_px
    if pixels > MAX_PIXELS:
        raise ImageRefused(
            "too_large",
            f"expected at most {MAX_PIXELS / 1e6:.0f} megapixels, found {pixels / 1e6:.0f}"
            f" ({info.width_px}x{info.height_px})",
        )
    if max(info.width_px, info.height_px) > MAX_SIDE_PX:
        raise ImageRefused(
            "too_large", f"expected at most {MAX_SIDE_PX:,} pixels a side, found {info.width_px}x{info.height_px}"
        )
    if info.format == "JPEG" and _has_many_scans(data):
        raise ImageRefused("too_large", f"expected at most {MAX_JPEG_SCANS} JPEG scans, found more")
    if info.format == "TIFF" and (raw := _raw_photo(image, data)):
        raise ImageRefused("unsupported", raw.reason)
    if image.mode == "F" or (image.mode == "I" and info.format == "TIFF"):
        raise ImageRefused("unsupported", f"expected 8 or 16 bits a channel, found 32 (mode {image.mode})")


def _raw_photo(image: ImageFile.ImageFile, data: bytes) -> FileType | None:
    """Return the type of a RAW photo, which begins like a TIFF file but whose first image is only a small preview."""
    found = file_types.recognize(data)
    if found and not found.is_read:
        return found
    if _DNG_VERSION in image.tag_v2:
        return file_types.raw_photo("DNG RAW photo")
    if image.tag_v2.get(_NEW_SUBFILE_TYPE, 0) & 1:  # a reduced version of another image in the file
        make = str(image.tag_v2.get(_MAKE, "")).upper().split()[:1]
        return file_types.raw_photo(f"{_RAW_NAMES.get(''.join(make), 'TIFF')} RAW photo")
    return None


def _has_many_scans(data: bytes) -> bool:
    if data.count(_START_OF_SCAN) <= MAX_JPEG_SCANS:
        return False  # nearly every image; also counts what only looks like a scan, such as a video after the end
    scans, position = 0, 2
    while (marker := _MARKER.search(data, position)) and marker[0] != _END_OF_IMAGE:
        scans += marker[0] == _START_OF_SCAN
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])  # over the segment's length
    return scans > MAX_JPEG_SCANS


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; Pillow's own function also refuses valid images with a corrupt EXIF block."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
        method = _UPRIGHT.get(orientation)
    except Exception:  # noqa: BLE001 - nearly anything is raised on corrupt EXIF; the pixels are what counts
        return image
    return image.transpose(method) if method is not None else image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):  # 16 bits of gray; Pillow's own conversion would clip instead of scale
        gray = np.asarray(image).astype(np.float32) / 257.0
        return Image.fromarray(np.clip(np.rint(gray), 0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _refusal(error: Exception, data: bytes) -> ImageRefused:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        return _unidentified(file_types.recognize(data))
    if "Security limit" in text:  # libheif's own guards, against headers that lie about the size
        return ImageRefused("too_large", f"the image would take too much memory ({text})")
    if _CUT_OFF.search(text) or isinstance(error, EOFError):
        return ImageRefused("truncated", f"the image is truncated ({text})")
    return ImageRefused("unreadable", f"the image is damaged ({type(error).__name__}: {text})")


def _unidentified(found: FileType | None) -> ImageRefused:
    if found is None:
        return ImageRefused("not_an_image", f"not an image of these formats: {', '.join(FORMATS)}")
    if found.is_read:
        return ImageRefused("unreadable", "the image's header is damaged or incomplete")
    return ImageRefused("unsupported" if found.is_image else "not_an_image", found.reason)


def is_image_name(name: str, hidden: bool = False) -> bool:
    """Say whether a file counts as an image by its name, the last part of its path; quick, for a million of them.

    Names of other image formats count, too, so that such a file is listed with the reason why it is not read.

    Args:
        name: such as `7.PNG`.
        hidden: whether a name that starts with a dot may count, too.
    """
    return name.lower().endswith(_NAMES) and (hidden or not name.startswith("."))


def file_type(path: Path | str) -> FileType | None:
    """Return what a file is by its first bytes, whatever its name; None where nothing tells, or it can't be read."""
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            return file_types.recognize(file.read(file_types.HEAD_BYTES))
    except OSError:
        return None


def has_image_content(path: Path | str) -> bool:
    """Say whether a file is an image by its first bytes, whatever its name; False where it can't be read."""
    found = file_type(path)
    return found is not None and found.is_image
