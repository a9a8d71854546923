"""What the internet does to pictures, imitated at their own resolution so that a detector survives it.

JPEG, blur, scaling, crops and colour in random order and number, for both classes alike: after Wang et al. 2020
(CNNDetection, arXiv 1912.11035) and Park and Owens 2025 (Community Forensics, arXiv 2411.04125).

`resave` draws at random, for training; `RESAVES` are fixed and named, for evaluation.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from fakereal.config import AugmentationConfig, ResavingConfig
from fakereal.decoding import decode
from fakereal.preprocessing import Preprocessing

QUALITIES = (30, 100)
"""JPEG and WebP quality, both ends included: from a messenger's worst to a camera's best."""

_TYPICAL_PX = 224  # the ranges below are meant for a picture of this size; tiny ones hold no detail to spare
_MAX_SIGMA_PX = 3.0  # of the blur
_SMALLEST_SCALE = 0.5  # of rescaling, there and back again; the largest is its inverse
_SMALLEST_CROP = 0.6  # of the side
_LONGEST_PX = 4096  # larger ones are reduced first: twice that still fits WebP (16383) and the memory of a laptop
_COLOUR = 0.2  # brightness, contrast and saturation up to this share more or less
_FILTERS = (
    Image.Resampling.BOX,
    Image.Resampling.BILINEAR,
    Image.Resampling.HAMMING,
    Image.Resampling.BICUBIC,
    Image.Resampling.LANCZOS,
)


def resave(image: Image.Image, rng: np.random.Generator, options: ResavingConfig) -> Image.Image:
    """Returns a picture as it might come back from the internet; the same generator state gives the same one.

    Args:
        image: RGB, any size.
        rng: where the randomness comes from.
        options: how often what happens; with `share` 0 the picture comes back as it is.
    """
    if rng.random() >= options.share:
        return image
    steps = [
        (options.jpeg, _compressed),
        (options.blur, _blurred),
        (options.rescale, _rescaled),
        (options.crop, _cropped),
        (options.colour, _coloured),
    ]
    chosen = [step for share, step in steps if rng.random() < share]
    if max(image.size) > _LONGEST_PX:
        image = ImageOps.contain(image, (_LONGEST_PX, _LONGEST_PX))
    for number in rng.permutation(len(chosen)):
        image = chosen[number](image, rng)
    return image


def _smallness(image: Image.Image) -> float:
    """Returns the shorter side as a share of the typical one, at most 1."""
    return min(1.0, min(image.size) / _TYPICAL_PX)


def _compressed(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    quality = int(rng.integers(QUALITIES[0], QUALITIES[1] + 1))
    if rng.random() < 0.1:
        return _through(image, "WEBP", quality=quality)
    subsampling, progressive = int(rng.integers(3)), bool(rng.random() < 0.3)
    return _through(image, "JPEG", quality=quality, subsampling=subsampling, progressive=progressive)


def _through(image: Image.Image, file_format: str, **options: object) -> Image.Image:
    """Returns what a save in this format and a load leave of a picture."""
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    with Image.open(buffer, formats=(file_format,)) as saved:
        return saved.convert("RGB")


def _blurred(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Blurs as much as the network can bear to see: a sigma of 3 pixels would leave nothing of a 32-pixel picture."""
    return image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.0, _MAX_SIGMA_PX) * _smallness(image))))


def _rescaled(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    reach = _SMALLEST_SCALE if _smallness(image) == 1.0 else (1.0 + _SMALLEST_SCALE) / 2
    scale = float(np.exp(rng.uniform(np.log(reach), -np.log(reach))))
    there, back = (_FILTERS[number] for number in rng.integers(len(_FILTERS), size=2))
    size = tuple(max(1, round(side * scale)) for side in image.size)
    scaled = image.resize(size, there)
    # Half of what goes around stays at its new size: nobody scales it back.
    return scaled if rng.random() < 0.5 else scaled.resize(image.size, back)


def _cropped(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    smallest = _SMALLEST_CROP if _smallness(image) == 1.0 else (1.0 + _SMALLEST_CROP) / 2
    share = rng.uniform(smallest, 1.0)
    width, height = (max(1, round(side * share)) for side in image.size)
    left, top = int(rng.integers(image.width - width + 1)), int(rng.integers(image.height - height + 1))
    return image.crop((left, top, left + width, top + height))


def _coloured(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = change(image).enhance(float(rng.uniform(1 - _COLOUR, 1 + _COLOUR)))
    return image


def _jpeg(image: Image.Image, quality: int) -> Image.Image:
    return _through(image, "JPEG", quality=quality)


def _down_and_up(image: Image.Image, scale: float) -> Image.Image:
    size = tuple(max(1, round(side * scale)) for side in image.size)
    return image.resize(size, Image.Resampling.BICUBIC).resize(image.size, Image.Resampling.BICUBIC)


def _blur(image: Image.Image, sigma_px: float) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(sigma_px))


RESAVES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "png": Image.Image.copy,  # loses nothing: the reference that every other one is held against
    "jpeg90": partial(_jpeg, quality=90),
    "jpeg75": partial(_jpeg, quality=75),
    "jpeg70": partial(_jpeg, quality=70),
    "jpeg50": partial(_jpeg, quality=50),
    "scale0.75": partial(_down_and_up, scale=0.75),
    "scale0.5": partial(_down_and_up, scale=0.5),
    "blur1": partial(_blur, sigma_px=1.0),
}
"""Ways to save a picture again, by name: RGB of any size in, a new RGB picture of the same size out.

JPEG with Pillow's tables and 4:2:0; scaling bicubic, down and up again; blur with a sigma of 1 pixel of the picture's
own. Give them pictures of full resolution: `preprocessing.decode` reduces large JPEGs unless its target is large too.
"""


# ---- Flips, rotations, shifts and brightness for training pictures, on the array that the network is about to see.


def transform_geometry(image: np.ndarray, rng: np.random.Generator, options: AugmentationConfig) -> np.ndarray:
    """Returns a randomly changed copy; the same generator state gives the same copy.

    Args:
        image: uint8 (S, S, 3).
        rng: where the randomness comes from.
        options: how much of what.

    Returns:
        uint8 (S, S, 3).
    """
    # Every number is drawn whatever the options, so that switching one step off leaves the others as they were.
    flip_x, flip_y = rng.random(2) < 0.5
    angle, shift_x, shift_y, brightness = rng.uniform(-1.0, 1.0, 4)
    if options.horizontal_flip and flip_x:
        image = image[:, ::-1]
    if options.vertical_flip and flip_y:
        image = image[::-1]
    if options.shift:
        image = _shifted(image, shift_x * options.shift, shift_y * options.shift)
    if options.rotation_degrees:
        image = _rotated(image, angle * options.rotation_degrees)
    if options.brightness:
        image = np.clip(image * (1.0 + brightness * options.brightness), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(image)


def _rotated(image: np.ndarray, degrees: float) -> np.ndarray:
    """Rotates about the centre; the corners are filled by reflection, as black ones would tell of the rotation."""
    size = image.shape[0]
    radians = math.radians(degrees)
    reach = abs(math.sin(radians)) + abs(math.cos(radians))  # of a corner, in half sides
    margin = min(size - 1, math.ceil(size / 2 * (reach - 1)) + 1)
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
    rotated = Image.fromarray(padded).rotate(degrees, Image.Resampling.BILINEAR)
    return np.asarray(rotated)[margin : margin + size, margin : margin + size]


def _shifted(image: np.ndarray, x_share: float, y_share: float) -> np.ndarray:
    """Moves the picture by whole pixels; what comes in is a reflection."""
    size = image.shape[0]
    x, y = round(x_share * size), round(y_share * size)
    margin = max(abs(x), abs(y))
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
    return padded[margin - y : margin - y + size, margin - x : margin - x + size]


# ---- Does a verdict hold when the picture is saved again, scaled or blurred, as the internet does to pictures?

STABILITY_VARIANTS = ("jpeg90", "jpeg70", "jpeg50", "scale0.5", "blur1")
"""The ways of `augmentation.RESAVES` that a verdict is held against."""

_FULL_PX = 2048  # large JPEGs are decoded at a reduced scale of at least twice that many pixels each way


def stability_variants(
    source: bytes, preprocessing: Preprocessing, variants: Sequence[str] = STABILITY_VARIANTS
) -> Iterator[np.ndarray]:
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
