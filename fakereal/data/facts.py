"""What a picture's file says about itself, apart from what the picture shows: read from its header alone."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, JpegImagePlugin

from fakereal.cli import progress_bar
from fakereal.preprocessing import FORMATS

_BATCH = 1024  # files handed to the threads at a time: Ctrl-C waits for no more than these
_BITS = {"1": 1, "I;16": 16, "I;16B": 16, "I;16L": 16, "I": 16, "F": 32}  # by Pillow's mode; 8 in all others
_SUBSAMPLING = {0: "4:4:4", 1: "4:2:2", 2: "4:2:0", -1: "other"}
_NO_TAGS = (
    *("exif", "icc_profile", "jfif_version", "jfif_unit", "jfif_density"),
    *("progressive", "progression", "interlace", "transparency", "background", "duration", "loop"),
)
"""What Pillow lists beside a picture that has a feature of its own, or says no more than its neighbour does."""

# The luminance table of the JPEG standard (ITU-T T.81, table K.1), in natural order; the common encoders scale it.
_STANDARD_TABLE = np.array(
    "16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62 18 22 37 56 68"
    " 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99".split(),
    dtype=float,
)


@dataclass(frozen=True)
class Facts:
    """What one file says; `None` or "" where its format has no such thing."""

    format: str  # Pillow's name: JPEG, PNG, ...
    extension: str  # lower case, with the dot
    width_px: int  # as stored
    height_px: int
    file_bytes: int
    jpeg_table: str  # names the quantization tables; equal tables, equal names
    jpeg_quality: float | None  # 1..100, of the standard table that comes nearest to its luminance table
    subsampling: str  # of a JPEG's colours: 4:4:4, 4:2:2, 4:2:0
    progressive: bool  # a progressive JPEG, an interlaced PNG
    exif: bool
    icc: bool  # has a colour profile
    tags: str  # names of whatever else stands beside the picture: dpi, comment, xmp, ...
    mode: str  # Pillow's name: RGB, L, P, ...
    bits: int  # a channel
    frames: int
    name_pattern: str  # the name without its extension: runs of digits as their count, runs of letters as a
    name_length: int  # characters, without the extension

    @property
    def bytes_per_pixel(self) -> float:
        """The file's size by the picture's."""
        return self.file_bytes / (self.width_px * self.height_px)

    @property
    def aspect(self) -> float:
        """Width by height."""
        return self.width_px / self.height_px


def read(path: Path) -> Facts | None:
    """Returns what a file says, or None where its header can't be read (any more)."""
    try:
        with open(path, "rb") as file, Image.open(file, formats=FORMATS) as image:
            return _facts(path, os.fstat(file.fileno()).st_size, image)
    except Exception:  # noqa: BLE001 - Pillow raises nearly anything on damaged headers
        return None


def read_all(paths: Sequence[Path]) -> list[Facts | None]:
    """Reads files' headers in threads, in the order given; they must be regular files, as a scan's records are."""
    found: list[Facts | None] = []
    with progress_bar("reading headers", len(paths)) as advance, ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(paths), _BATCH):
            found += pool.map(read, paths[start : start + _BATCH])
            advance(min(_BATCH, len(paths) - start))
    return found


def _facts(path: Path, file_bytes: int, image: Image.Image) -> Facts:
    jpeg = isinstance(image, JpegImagePlugin.JpegImageFile)  # and MPO, a JPEG with more pictures behind it
    table_name, quality = _tables(_as_tuples(getattr(image, "quantization", None) or {}))
    info = image.info
    return Facts(
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
        tags=" ".join(sorted(str(key)[:30] for key in info if key not in _NO_TAGS)),
        mode=image.mode,
        bits=_BITS.get(image.mode, 8),
        frames=1 if jpeg else getattr(image, "n_frames", 1),
        name_pattern=_pattern(path.stem),
        name_length=len(path.stem),
    )


def _as_tuples(tables: dict[int, Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(tables[key]) for key in sorted(tables))


@lru_cache(maxsize=4096)  # most sets have a handful of them
def _tables(tables: tuple[tuple[int, ...], ...]) -> tuple[str, float | None]:
    """Returns a name for quantization tables, and the quality whose scaled standard table comes nearest to the first.

    The first is the luminance table, by the habit of all encoders.
    """
    if not tables:
        return "", None
    distance = np.abs(_STANDARD_TABLES - np.array(tables[0], dtype=float)).sum(axis=1)
    return hashlib.sha256(repr(tables).encode()).hexdigest()[:6], float(1 + np.argmin(distance))


def _standard_tables() -> np.ndarray:
    """Returns the standard table at the qualities 1 to 100, as libjpeg scales it: float (100, 64)."""
    qualities = np.arange(1, 101)[:, None]
    percent = np.where(qualities < 50, 5000 // qualities, 200 - 2 * qualities)
    return np.clip((_STANDARD_TABLE * percent + 50) // 100, 1, 255)


_STANDARD_TABLES = _standard_tables()


def _pattern(stem: str) -> str:
    """Returns a name's make-up: `IMG_0012 (3)` is `a_4 (1)`."""
    digits = re.sub(r"\d+", lambda run: str(min(len(run[0]), 9)), stem)
    return re.sub(r"[^\W\d_]+", "a", digits)[:60]
