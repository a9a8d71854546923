"""Read what an image file gives without a network: the fields of its header, and statistics of its pixels.

The shortcut audit compares both between the classes. `read_file_facts` opens the header alone. `measure_pixels` works
at the image's own resolution, since resizing destroys most of what it measures. What metadata say of an image's origin
is read by `fakereal.provenance`.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, JpegImagePlugin

from fakereal.decoding import MAX_SIDE_PX, decode, open_image
from fakereal.errors import ImageRefused
from fakereal.runtime import parallel_map

_BITS = {"1": 1, "I;16": 16, "I;16B": 16, "I;16L": 16, "I": 16, "F": 32}  # by Pillow's mode; 8 in all others
_SUBSAMPLING = {0: "4:4:4", 1: "4:2:2", 2: "4:2:0", -1: "other"}
_IGNORED_TAGS = (
    *("exif", "icc_profile", "jfif_version", "jfif_unit", "jfif_density"),
    *("progressive", "progression", "interlace", "transparency", "background", "duration", "loop"),
    *(
        "primary",
        "bit_depth",
        "chroma",
        "metadata",
        "thumbnails",
        "depth_images",
        "nclx_profile",
        "original_orientation",
    ),
)
"""Keys of Pillow's `info` that have a field of their own in `FileFacts`, or always come with another key."""

# The luminance table of the JPEG standard (ITU-T T.81, table K.1), in natural order; the common encoders scale it.
_STANDARD_TABLE = np.array(
    "16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62 18 22 37 56 68"
    " 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99".split(),
    dtype=float,
)

_CROP_PX = 512  # side of the center that is measured; a multiple of 8, cut along the grid of blocks
_BLOCK_PX = 8  # of a JPEG
_EPSILON = 1e-3  # gray levels


@dataclass(frozen=True)
class FileFacts:
    """Header fields of one image file; `None` or "" where its format has no such field."""

    format: str  # Pillow's name: JPEG, PNG, ...
    extension: str  # lower case, with the dot
    width_px: int  # as stored
    height_px: int
    file_bytes: int
    jpeg_table: str  # name of the quantization tables; equal tables, equal names
    jpeg_quality: float | None  # 1..100, of the scaled standard table nearest to the luminance table
    subsampling: str  # of a JPEG's chroma: 4:4:4, 4:2:2, 4:2:0
    progressive: bool  # a progressive JPEG, an interlaced PNG
    exif: bool
    icc: bool  # has a color profile
    tags: str  # names of all other metadata: dpi, comment, xmp, ...
    mode: str  # Pillow's name: RGB, L, P, ...
    bits: int  # per channel
    frames: int
    name_pattern: str  # file name without extension: runs of digits as their count, runs of letters as a
    name_length: int  # characters, without the extension

    @property
    def bytes_per_pixel(self) -> float:
        """File size divided by the number of pixels."""
        return self.file_bytes / (self.width_px * self.height_px)

    @property
    def aspect(self) -> float:
        """Width divided by height."""
        return self.width_px / self.height_px


def read_file_facts(path: Path) -> FileFacts | None:
    """Return the header fields of a file, or None where the header can't be read (any more)."""
    try:
        with open(path, "rb") as file, open_image(file) as image:
            return _file_facts(path, os.fstat(file.fileno()).st_size, image)
    except Exception:  # noqa: BLE001 - Pillow raises nearly anything on damaged headers
        return None


def read_all_file_facts(paths: Sequence[Path]) -> list[FileFacts | None]:
    """Read the headers of regular files in threads, as `read_file_facts`; results in the order of `paths`."""
    return list(parallel_map(read_file_facts, paths, "reading headers"))


def _file_facts(path: Path, file_bytes: int, image: Image.Image) -> FileFacts:
    jpeg = isinstance(image, JpegImagePlugin.JpegImageFile)  # and MPO, a JPEG followed by more images
    table_name, quality = _describe_tables(_as_tuples(getattr(image, "quantization", None) or {}))
    info = image.info
    return FileFacts(
        format="JPEG" if image.format == "MPO" else str(image.format),
        extension=path.suffix.lower(),
        width_px=image.width,
        height_px=image.height,
        file_bytes=file_bytes,
        jpeg_table=table_name,
        jpeg_quality=quality,
        subsampling=_SUBSAMPLING[JpegImagePlugin.get_sampling(image)] if jpeg else "",
        progressive=bool(info.get("progressive") or info.get("interlace")),
        exif=bool(info.get("exif")),
        icc=bool(info.get("icc_profile")),
        tags=" ".join(sorted(str(key)[:30] for key in info if key not in _IGNORED_TAGS)),
        mode=image.mode,
        bits=_BITS.get(image.mode, 8),
        frames=1 if jpeg else getattr(image, "n_frames", 1),
        name_pattern=_name_pattern(path.stem),
        name_length=len(path.stem),
    )


def _as_tuples(tables: dict[int, Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(tables[key]) for key in sorted(tables))


@lru_cache(maxsize=4096)  # most data sets have a handful of them
def _describe_tables(tables: tuple[tuple[int, ...], ...]) -> tuple[str, float | None]:
    """Return a name for quantization tables, and the quality whose scaled standard table is nearest to the first.

    The first is the luminance table in all common encoders.
    """
    if not tables:
        return "", None
    distance = np.abs(_standard_tables() - np.array(tables[0], dtype=float)).sum(axis=1)
    return hashlib.sha256(repr(tables).encode()).hexdigest()[:6], float(1 + np.argmin(distance))


@lru_cache(maxsize=1)
def _standard_tables() -> np.ndarray:
    """Return the standard table at the qualities 1 to 100, as libjpeg scales it: float (100, 64)."""
    qualities = np.arange(1, 101)[:, None]
    percent = np.where(qualities < 50, 5000 // qualities, 200 - 2 * qualities)
    return np.clip((_STANDARD_TABLE * percent + 50) // 100, 1, 255)


def _name_pattern(stem: str) -> str:
    """Return how a file name is built: `IMG_0012 (3)` is `a_4 (1)`."""
    digits = re.sub(r"\d+", lambda run: str(min(len(run[0]), 9)), stem)
    return re.sub(r"[^\W\d_]+", "a", digits)[:60]


def header_pixel_count(content: bytes) -> int:
    """Return the number of pixels that a file's header states, 0 where it can't be read."""
    try:
        with open_image(io.BytesIO(content)) as image:
            return image.width * image.height
    except Exception:  # noqa: BLE001 - decoding will say what is wrong with it
        return 0


@dataclass(frozen=True)
class PixelStatistics:
    """Statistics of the center of one image."""

    brightness: float  # mean gray level, 0..255
    contrast: float  # standard deviation of the gray levels
    saturation: float  # mean of (largest - smallest channel) / largest, 0..1
    sharpness: float  # log10 of the mean absolute Laplacian of the gray levels
    block_grid: float  # log2 of (mean step across borders of 8x8 blocks / mean step within them); 0: no trace of JPEG
    resampling: float  # log10 of (strongest peak in the spectrum of second differences / its median)
    resampling_period_px: float  # of that peak, 2 or more: enlarging by 2 leaves a period of 2


def measure_all_pixels(paths: Sequence[Path]) -> list[PixelStatistics | None]:
    """Measure images in threads, in the order of `paths`; None where one can't be read any more."""
    return list(parallel_map(_measure_file, paths, "measuring pixels"))


def _measure_file(path: Path) -> PixelStatistics | None:
    try:
        return measure_pixels(decode(path, MAX_SIDE_PX)[0])  # MAX_SIDE_PX: at full scale
    except ImageRefused:
        return None


def measure_pixels(image: Image.Image) -> PixelStatistics:
    """Measure the center of an RGB image; both sides should have at least 16 pixels."""
    left, top = (max(0, (side - _CROP_PX) // 2) // _BLOCK_PX * _BLOCK_PX for side in image.size)
    image = image.crop((left, top, min(left + _CROP_PX, image.width), min(top + _CROP_PX, image.height)))
    rgb, gray = np.asarray(image, np.float32), np.asarray(image.convert("L"), np.float32)
    largest = rgb.max(axis=2)
    laplacian = np.abs(_second_differences(gray)[1:-1]) + np.abs(_second_differences(gray.T)[1:-1].T)
    strength, period = _resampling(gray)
    return PixelStatistics(
        brightness=float(gray.mean()),
        contrast=float(gray.std()),
        saturation=float(np.mean((largest - rgb.min(axis=2)) / np.maximum(largest, 1.0))),
        sharpness=float(np.log10(np.mean(laplacian) + _EPSILON)) if laplacian.size else 0.0,
        block_grid=_block_grid(gray),
        resampling=strength,
        resampling_period_px=period,
    )


def _second_differences(gray: np.ndarray) -> np.ndarray:
    """Return the second differences along rows: float (h, w - 2)."""
    return gray[:, 2:] - 2 * gray[:, 1:-1] + gray[:, :-2]


def _block_grid(gray: np.ndarray) -> float:
    across, within = [], []
    for plane in (gray, gray.T):
        steps = np.abs(np.diff(plane, axis=1)).mean(axis=0) if min(plane.shape) > 1 else np.zeros(0)
        border = np.arange(len(steps)) % _BLOCK_PX == _BLOCK_PX - 1
        across += steps[border].tolist()
        within += steps[~border].tolist()
    if not across or not within:
        return 0.0
    return float(np.log2((np.mean(across) + _EPSILON) / (np.mean(within) + _EPSILON)))


def _resampling(gray: np.ndarray) -> tuple[float, float]:
    """Return how periodic the second differences are, and the period in pixels.

    Interpolated pixels have smaller second differences, at regular distances (Gallagher, "Detection of linear and
    cubic interpolation in JPEG compressed images", CRV 2005).
    """
    best = (0.0, 0.0)
    for plane in (gray, gray.T):
        profile = np.abs(_second_differences(plane)).mean(axis=0) if plane.shape[1] > 2 else np.zeros(0)
        if len(profile) < 16:
            continue
        spectrum = np.abs(np.fft.rfft((profile - profile.mean()) * np.hanning(len(profile))))
        frequencies = np.fft.rfftfreq(len(profile))
        # Slow changes are the image's own; the harmonics of 1/8 are JPEG's blocks, which are measured already.
        of_blocks = np.abs(frequencies * _BLOCK_PX - np.rint(frequencies * _BLOCK_PX)) < 16 / len(profile)
        of_blocks &= frequencies < 0.45
        spectrum[(frequencies < 0.15) | of_blocks] = 0.0
        peak, median = int(np.argmax(spectrum)), float(np.median(spectrum[spectrum > 0])) if spectrum.any() else 0.0
        strength = float(np.log10((spectrum[peak] + _EPSILON) / (median + _EPSILON)))
        best = max(best, (strength, 1 / frequencies[peak] if peak else 0.0))
    return best
