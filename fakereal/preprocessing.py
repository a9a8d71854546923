"""The preprocessing that training and prediction share: from a decoded image to the arrays that a network sees.

`Preprocessing.decode` -> `Neutral.encode` (optional) -> the whole image resized to 224x224 and, where the model has
them, native-resolution crops -> the network's first layer normalizes (`model.networks`). Model files carry the
`fingerprint`.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from fakereal.decoding import ImageInfo, Reduction, decode
from fakereal.errors import ConfigError, ModelFileError

IMAGE_SIZE_PX = 224  # width and height that EfficientNetB0 was designed for
LONGEST_PX = 1024
"""Crops are cut from images of at most this length: longer ones are reduced first, as most websites do."""

# Where crops lie between the left (0) and right (1), top (0) and bottom (1) edge; a model has the first N.
CROP_CENTERS = ((0.5, 0.5), (0.2, 0.2), (0.8, 0.8), (0.8, 0.2), (0.2, 0.8))
MAX_CROPS = len(CROP_CENTERS)

_VERSION = 2  # raise it whenever a change here moves a single pixel, and keep what models of earlier ones need
_VERSIONS = (1, 2)
_REDUCED_PX = 922  # crops: large JPEGs are decoded at the smallest scale with that long a side, then resampled
_FINGERPRINT = re.compile(
    r"fakereal-preprocessing/(\d+) size=(\d+) resize=bicubic fit=(stretch|square) alpha=white exif=upright"
    r"(?: neutral=(\d+)px,jpeg(\d+))?(?: crops=(\d+))?"
)


@dataclass(frozen=True)
class Neutral:
    """One crop, size and JPEG encoding for every image, so that none of them tells fake from real."""

    side_px: int  # of the square that remains
    quality: int  # of its JPEG encoding, on libjpeg's scale

    def __post_init__(self) -> None:
        if not (8 <= self.side_px <= 4096 and 1 <= self.quality <= 100):
            raise ConfigError(f"expected a side of 8 to 4096 pixels and a quality of 1 to 100, found {self}")

    def encode(self, image: Image.Image) -> bytes:
        """Return the center square of an RGB image as a JPEG of side_px x side_px, 4:2:0, without metadata."""
        square = ImageOps.fit(image, (self.side_px, self.side_px), Image.Resampling.BICUBIC)
        square.info.clear()  # Pillow would write a comment from there
        content = io.BytesIO()
        square.save(content, "JPEG", quality=self.quality, subsampling="4:2:0")
        return content.getvalue()


@dataclass(frozen=True)
class Preprocessing:
    """The options that decide the arrays; equal options give equal arrays, bit for bit."""

    image_size_px: int = IMAGE_SIZE_PX
    neutral: Neutral | None = None  # None: keep the image's own size and encoding
    square: bool = False  # resize the center square, which keeps the aspect ratio; False: stretch the whole image
    crops: int = 0  # native-resolution crops beside the whole image
    version: int = _VERSION  # of `_VERSIONS`, which differ in `reduction`

    def __post_init__(self) -> None:
        if not 32 <= self.image_size_px <= 1024:
            raise ConfigError(f"image size: expected 32 to 1024 pixels, found {self.image_size_px}")
        if not 0 <= self.crops <= MAX_CROPS:
            raise ConfigError(f"crops: expected 0 to {MAX_CROPS}, found {self.crops}")

    @property
    def fingerprint(self) -> str:
        """The version and every option in one line."""
        neutral = f" neutral={self.neutral.side_px}px,jpeg{self.neutral.quality}" if self.neutral else ""
        crops = f" crops={self.crops}" if self.crops else ""
        return (
            f"fakereal-preprocessing/{self.version} size={self.image_size_px} resize=bicubic"
            f" fit={'square' if self.square else 'stretch'} alpha=white exif=upright{neutral}{crops}"
        )

    @classmethod
    def from_fingerprint(cls, fingerprint: str) -> Preprocessing:
        """Return the preprocessing that a model was trained with; ModelFileError where this version has another."""
        match = _FINGERPRINT.fullmatch(fingerprint)
        if not match or int(match[1]) not in _VERSIONS:
            raise ModelFileError(
                f"expected a model made with {cls().fingerprint.split()[0]!r}, found {fingerprint!r}:"
                " train it again, or predict with the version that trained it"
            )
        neutral = Neutral(int(match[4]), int(match[5])) if match[4] else None
        return cls(int(match[2]), neutral, match[3] == "square", int(match[6] or 0), int(match[1]))

    @property
    def reduction(self) -> Reduction:
        """How far large JPEGs may be reduced while they are decoded, so that no view lacks detail."""
        exact = self.version > 1
        if self.neutral:
            return Reduction(2 * self.neutral.side_px, exact=exact)
        if not self.crops:
            return Reduction(2 * self.image_size_px, exact=exact)
        if exact:
            return Reduction(longest_px=_REDUCED_PX, resized_px=LONGEST_PX)
        return Reduction(max(2 * self.image_size_px, LONGEST_PX), exact=False)

    def decode(self, source: Path | bytes) -> tuple[Image.Image, ImageInfo]:
        """Return the image that `array` and `views` take, and what the file's header states; may raise ImageRefused."""
        return decode(source, self.reduction)

    def read(self, source: Path | bytes) -> np.ndarray:
        """Return the whole image, uint8 (image_size_px, image_size_px, 3), RGB, 0..255; may raise ImageRefused."""
        return self.read_with_info(source)[0]

    def read_with_info(self, source: Path | bytes) -> tuple[np.ndarray, ImageInfo]:
        """Like `read`, and the size and format that the file's header states."""
        image, info = self.decode(source)
        return self.array(image), info

    def array(self, image: Image.Image) -> np.ndarray:
        """Return the whole image, decoded by `decode`, as the array that `read` gives."""
        return self.whole(self.prepared(image))

    def views(self, image: Image.Image) -> list[np.ndarray]:
        """Return the whole image, then its crops (none where a side is below image_size_px)."""
        image = self.prepared(image)
        crops = CROP_CENTERS[: self.crops] if self.has_crops(image) else ()
        return [self.whole(image), *(self._crop(image, x, y) for x, y in crops)]

    def prepared(self, image: Image.Image) -> Image.Image:
        """Return a decoded image as views are cut from it: neutral, and with crops at most LONGEST_PX long."""
        if self.neutral:
            image, _ = decode(self.neutral.encode(image), self.image_size_px)
        if self.crops and max(image.size) > LONGEST_PX:
            image = ImageOps.contain(image, (LONGEST_PX, LONGEST_PX), Image.Resampling.BICUBIC)
        return image

    def whole(self, image: Image.Image) -> np.ndarray:
        """Return the view of the whole of a prepared image."""
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        return resize(image.crop((left, top, left + side, top + side)) if self.square else image, self.image_size_px)

    def has_crops(self, image: Image.Image) -> bool:
        """Return whether a prepared image is large enough to be seen in crops too."""
        return self.crops > 0 and min(image.size) >= self.image_size_px < max(image.size)

    def _crop(self, image: Image.Image, x: float, y: float) -> np.ndarray:
        side = self.image_size_px
        left, top = round(x * (image.width - side)), round(y * (image.height - side))
        return np.array(image.crop((left, top, left + side, top + side)))


def resize(image: Image.Image, size_px: int) -> np.ndarray:
    """Resize an RGB image to a square with an antialiased bicubic filter; return uint8 (size_px, size_px, 3)."""
    if image.size != (size_px, size_px):
        image = image.resize((size_px, size_px), Image.Resampling.BICUBIC)
    return np.array(image)
