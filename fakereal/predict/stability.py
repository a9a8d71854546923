"""Does a verdict hold when the picture is saved again, scaled or blurred, as the internet does to pictures?"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from fakereal.model.augmentation import RESAVES
from fakereal.preprocessing import Preprocessing, decode

VARIANTS = ("jpeg90", "jpeg70", "jpeg50", "scale0.5", "blur1")
"""The ways of `augmentation.RESAVES` that a verdict is held against."""

_FULL_PX = 2048  # large JPEGs are decoded at a reduced scale of at least twice that many pixels each way


def resaved(source: bytes, preprocessing: Preprocessing, variants: Sequence[str] = VARIANTS) -> Iterator[np.ndarray]:
    """Yields the array of each variant, as if the re-saved file had been read.

    Args:
        source: the file's content.
        preprocessing: the model's.
        variants: names of `augmentation.RESAVES`.

    Raises:
        ImageRefused: the file can't be read.
    """
    image, _ = decode(source, max(_FULL_PX, preprocessing.decode_px))
    for name in variants:
        yield preprocessing.read(_saved(RESAVES[name](image)))


def _saved(image: Image.Image) -> bytes:
    """Returns a picture as a file that loses nothing and costs little."""
    content = io.BytesIO()
    image.save(content, "BMP")
    return content.getvalue()
