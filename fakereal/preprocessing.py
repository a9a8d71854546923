"""The ONE way an image file becomes the array that a network sees, in training, prediction and everything later.

file or bytes -> `decode` (guards, upright, RGB) -> perhaps `Neutral` (one crop, size and JPEG encoding for all)
-> `fit` (224x224 uint8) -> `normalize` (each network's own)
"""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from fakereal.decoding import ImageInfo, decode
from fakereal.errors import ConfigError, ModelFileError

IMAGE_SIZE_PX = 224
"""Width and height that EfficientNetB0 was designed for."""
_VERSION = 1  # raise it whenever a change here moves a single pixel
_FINGERPRINT = re.compile(
    r"fakereal-preprocessing/(\d+) size=(\d+) resize=bicubic fit=stretch alpha=white exif=upright"
    r"(?: neutral=(\d+)px,jpeg(\d+))?"
)

Image.MAX_IMAGE_PIXELS = None  # our own limit, MAX_PIXELS, is checked before decoding and has one wording
# Pillow warns of odd metadata; the pixels are what counts. Once for all, since filters are no thread's own.
warnings.filterwarnings("ignore", category=UserWarning, module="PIL")


@dataclass(frozen=True)
class Neutral:
    """One crop, size and JPEG encoding for every picture, so that neither tells fake from real."""

    side_px: int  # of the square that remains
    quality: int  # of its JPEG encoding, on libjpeg's scale

    def __post_init__(self) -> None:
        if not (8 <= self.side_px <= 4096 and 1 <= self.quality <= 100):
            raise ConfigError(f"expected a side of 8 to 4096 pixels and a quality of 1 to 100, found {self}")

    def encode(self, image: Image.Image) -> bytes:
        """Returns the centre square of an RGB picture as a JPEG of side_px x side_px, 4:2:0, that holds pixels only."""
        square = ImageOps.fit(image, (self.side_px, self.side_px), Image.Resampling.BICUBIC)
        square.info.clear()  # Pillow would write a comment from there
        content = io.BytesIO()
        square.save(content, "JPEG", quality=self.quality, subsampling="4:2:0")
        return content.getvalue()


@dataclass(frozen=True)
class Preprocessing:
    """The options that decide the array; equal options give equal arrays, bit for bit."""

    image_size_px: int = IMAGE_SIZE_PX
    neutral: Neutral | None = None  # None: the whole picture, encoded as it came

    def __post_init__(self) -> None:
        if not 32 <= self.image_size_px <= 1024:
            raise ConfigError(f"image size: expected 32 to 1024 pixels, found {self.image_size_px}")

    @property
    def fingerprint(self) -> str:
        """Names the version and every option; a model file carries it."""
        neutral = f" neutral={self.neutral.side_px}px,jpeg{self.neutral.quality}" if self.neutral else ""
        return (
            f"fakereal-preprocessing/{_VERSION} size={self.image_size_px}"
            f" resize=bicubic fit=stretch alpha=white exif=upright{neutral}"
        )

    @classmethod
    def from_fingerprint(cls, fingerprint: str) -> Preprocessing:
        """Returns the preprocessing that a model was trained with.

        Raises:
            ModelFileError: this version can't reproduce it.
        """
        match = _FINGERPRINT.fullmatch(fingerprint)
        if not match or int(match[1]) != _VERSION:
            raise ModelFileError(
                f"expected a model made with {cls().fingerprint.split()[0]!r}, found {fingerprint!r}:"
                " train it anew, or predict with the version that trained it"
            )
        neutral = Neutral(int(match[3]), int(match[4])) if match[3] else None
        return cls(int(match[2]), neutral)

    @property
    def decode_px(self) -> int:
        """The size that `decode` has to serve."""
        return self.neutral.side_px if self.neutral else self.image_size_px

    def read(self, source: Path | bytes) -> np.ndarray:
        """Returns the picture as uint8 of shape (image_size_px, image_size_px, 3), RGB, 0..255.

        Raises:
            ImageRefused: with the reason.
        """
        return self.read_with_info(source)[0]

    def read_with_info(self, source: Path | bytes) -> tuple[np.ndarray, ImageInfo]:
        """Like `read`, and what the file itself says about its size and format."""
        image, info = decode(source, self.decode_px)
        return self.array(image), info

    def array(self, image: Image.Image) -> np.ndarray:
        """Turns what `decode` returned for `decode_px` into the array; `read` is both."""
        if self.neutral:
            image, _ = decode(self.neutral.encode(image), self.image_size_px)
        return resize(image, self.image_size_px)


def resize(image: Image.Image, size_px: int) -> np.ndarray:
    """Resizes an RGB picture to a square with an antialiased bicubic filter, aspect ratio not kept.

    Returns:
        uint8 of shape (size_px, size_px, 3).
    """
    if image.size != (size_px, size_px):
        image = image.resize((size_px, size_px), Image.Resampling.BICUBIC)
    return np.array(image)
