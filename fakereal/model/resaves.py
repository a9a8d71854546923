"""The fixed re-saves: what `--stability`, the web page and the report of a training compare an image with.

`RESAVES` names them; `resaved_views` applies some of them to a file. Their numbers and titles are read from here.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image, ImageFilter

from fakereal.cli import STABILITY_RESAVES
from fakereal.decoding import decode
from fakereal.preprocessing import Preprocessing


@dataclass(frozen=True)
class Resave:
    """One fixed way to save an image again."""

    title: str  # for people
    apply: Callable[[Image.Image], Image.Image]  # RGB image of any size -> a new RGB image of the same size


def encode_again(image: Image.Image, file_format: str, **options: object) -> Image.Image:
    """Return what is left of an RGB image after saving it.

    Args:
        image: RGB, any size.
        file_format: Pillow's name.
        options: of Pillow's writer, such as `quality`.
    """
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    with Image.open(buffer, formats=(file_format,)) as saved:
        return saved.convert("RGB")


def _jpeg(image: Image.Image, quality: int) -> Image.Image:
    return encode_again(image, "JPEG", quality=quality)


def _scale_there_and_back(image: Image.Image, scale: float) -> Image.Image:
    size = tuple(max(1, round(side * scale)) for side in image.size)
    return image.resize(size, Image.Resampling.BICUBIC).resize(image.size, Image.Resampling.BICUBIC)


def _blur(image: Image.Image, sigma_px: float) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(sigma_px))


RESAVES = {
    "png": Resave("PNG", Image.Image.copy),
    "jpeg90": Resave("JPEG, quality 90", partial(_jpeg, quality=90)),
    "jpeg75": Resave("JPEG, quality 75", partial(_jpeg, quality=75)),
    "jpeg70": Resave("JPEG, quality 70", partial(_jpeg, quality=70)),
    "jpeg50": Resave("JPEG, quality 50", partial(_jpeg, quality=50)),
    "scale0.75": Resave("3/4 size and back", partial(_scale_there_and_back, scale=0.75)),
    "scale0.5": Resave("half size and back", partial(_scale_there_and_back, scale=0.5)),
    "blur1": Resave("blurred by 1 pixel", partial(_blur, sigma_px=1.0)),
}
"""The fixed re-saves by name: JPEG with Pillow's tables and 4:2:0, bicubic scaling, Gaussian blur at full resolution.

They need images of full resolution; `decode` reduces large JPEGs unless its target is large too."""

REPORT_RESAVES = ("png", *STABILITY_RESAVES)
"""The rows of the re-save table in a report; PNG is lossless, the reference for the others."""

_FULL_PX = 2048  # JPEGs are decoded at a reduced scale of at least twice that many pixels each way


def resaved_views(
    source: bytes, preprocessing: Preprocessing, names: Sequence[str] = STABILITY_RESAVES
) -> Iterator[list[np.ndarray]]:
    """Yield what the network sees of an image after each re-save: its views, uint8 (S, S, 3).

    Args:
        source: the file's content.
        preprocessing: the model's own.
        names: keys of `RESAVES`.

    Raises:
        ImageRefused: the file can't be decoded.
    """
    image, _ = decode(source, max(_FULL_PX, preprocessing.reduction.shortest_px // 2))
    for name in names:
        yield preprocessing.views(RESAVES[name].apply(image))
