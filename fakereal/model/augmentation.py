"""Random changes of training images; the fixed re-saves of evaluation and prediction are in `resaves`.

`resave_randomly` imitates, at the image's own resolution, what the internet does to images: JPEG, blur, scaling, crops
and color in random order and number, for both classes alike, after Wang et al. 2020 (CNNDetection, arXiv 1912.11035)
and Park and Owens 2025 (Community Forensics, arXiv 2411.04125). `random_view` does so to one view of an image, and
`transform_geometry` then flips, turns and shifts the array that the network is about to see.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from fakereal.config import AugmentationConfig, ResavingConfig
from fakereal.model.resaves import encode_again
from fakereal.preprocessing import Preprocessing, resize

QUALITIES = (30, 100)
"""JPEG and WebP quality, both ends included: from a messenger's lowest to a camera's highest."""

_TYPICAL_PX = 224  # the ranges below suit an image of this size; smaller ones have no detail to spare
_MAX_SIGMA_PX = 3.0  # of the blur
_SMALLEST_SCALE = 0.5  # of rescaling; the largest is its inverse
_SMALLEST_CROP = 0.6  # of the side
_LONGEST_PX = 4096  # larger images are reduced first: twice that still fits WebP (16383) and a laptop's memory
_MARGIN = 1.8  # side of what is cut for a view, in sides of what the view shows: re-saving may scale and crop it
_COLOR = 0.2  # brightness, contrast and saturation change by up to this share
_FILTERS = (
    Image.Resampling.BOX,
    Image.Resampling.BILINEAR,
    Image.Resampling.HAMMING,
    Image.Resampling.BICUBIC,
    Image.Resampling.LANCZOS,
)


def resave_randomly(image: Image.Image, rng: np.random.Generator, options: ResavingConfig) -> Image.Image:
    """Return an image as it may come back from the internet; the same generator state gives the same result.

    Args:
        image: RGB, any size.
        rng: the source of randomness.
        options: probability of each step; with `share` 0 the image is returned as it is.
    """
    if rng.random() >= options.share:
        return image
    steps = [
        (options.jpeg, _compress),
        (options.blur, _blur_randomly),
        (options.rescale, _rescale),
        (options.crop, _crop),
        (options.colour, _change_color),
    ]
    chosen = [step for share, step in steps if rng.random() < share]
    if max(image.size) > _LONGEST_PX:
        image = ImageOps.contain(image, (_LONGEST_PX, _LONGEST_PX))
    for number in rng.permutation(len(chosen)):
        image = chosen[number](image, rng)
    return image


def random_view(
    image: Image.Image,
    preprocessing: Preprocessing,
    rng: np.random.Generator,
    resave: Callable[[Image.Image], Image.Image],
) -> np.ndarray:
    """Return one view of an image for training, re-saved.

    Where the image has crops, a third of the views shows the whole of it, a third a native crop, and a third a square
    of a size in between. They are cut before they are re-saved, as that takes most of the time.

    Args:
        image: as `Preprocessing.decode` returns it.
        preprocessing: the network's.
        rng: the source of randomness.
        resave: see `resave_randomly`.

    Returns:
        uint8 (S, S, 3).
    """
    if preprocessing.neutral:  # it takes the place of all other encodings, so it comes last
        image, resave = preprocessing.prepared(resave(image)), lambda prepared: prepared
    else:
        image = preprocessing.prepared(image)
    if not preprocessing.has_crops(image):
        return preprocessing.whole(resave(image))
    size, kind = preprocessing.image_size_px, int(rng.integers(3))
    if kind == 0:
        longest = round(_between(rng, min(2 * size, max(image.size)), max(image.size)))
        return preprocessing.whole(resave(ImageOps.contain(image, (longest, longest), Image.Resampling.BICUBIC)))
    shown = size if kind == 1 else _between(rng, size, min(image.size))
    part = _random_square(image, min(min(image.size), round(_MARGIN * shown)), rng)
    resaved = resave(part)
    side = size if kind == 1 else round(shown * min(resaved.size) / part.width)
    return resize(_random_square(resaved, min(side, min(resaved.size)), rng), size)


def _between(rng: np.random.Generator, lowest: float, highest: float) -> float:
    return float(np.exp(rng.uniform(np.log(lowest), np.log(highest))))


def _random_square(image: Image.Image, side: int, rng: np.random.Generator) -> Image.Image:
    left, top = int(rng.integers(image.width - side + 1)), int(rng.integers(image.height - side + 1))
    return image.crop((left, top, left + side, top + side))


def _relative_size(image: Image.Image) -> float:
    """Return the shorter side as a share of the typical one, at most 1."""
    return min(1.0, min(image.size) / _TYPICAL_PX)


def _compress(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    quality = int(rng.integers(QUALITIES[0], QUALITIES[1] + 1))
    if rng.random() < 0.1:
        return encode_again(image, "WEBP", quality=quality)
    subsampling = int(rng.integers(3))
    rng.random()  # once chose progressive files, on which Pillow fails for noise; caches rely on what is drawn next
    return encode_again(image, "JPEG", quality=quality, subsampling=subsampling)


def _blur_randomly(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    # In proportion to the size: a sigma of 3 pixels would leave nothing of a 32-pixel image
    return image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.0, _MAX_SIGMA_PX) * _relative_size(image))))


def _rescale(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    smallest = _SMALLEST_SCALE if _relative_size(image) == 1.0 else (1.0 + _SMALLEST_SCALE) / 2
    scale = float(np.exp(rng.uniform(np.log(smallest), -np.log(smallest))))
    there, back = (_FILTERS[number] for number in rng.integers(len(_FILTERS), size=2))
    size = tuple(max(1, round(side * scale)) for side in image.size)
    scaled = image.resize(size, there)
    # Half of them keep their new size, like most images that are scaled on the internet
    return scaled if rng.random() < 0.5 else scaled.resize(image.size, back)


def _crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    smallest = _SMALLEST_CROP if _relative_size(image) == 1.0 else (1.0 + _SMALLEST_CROP) / 2
    share = rng.uniform(smallest, 1.0)
    width, height = (max(1, round(side * share)) for side in image.size)
    left, top = int(rng.integers(image.width - width + 1)), int(rng.integers(image.height - height + 1))
    return image.crop((left, top, left + width, top + height))


def _change_color(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhancer(image).enhance(float(rng.uniform(1 - _COLOR, 1 + _COLOR)))
    return image


def transform_geometry(image: np.ndarray, rng: np.random.Generator, options: AugmentationConfig) -> np.ndarray:
    """Return a randomly flipped, shifted, turned and brightened copy; the same generator state gives the same copy.

    Args:
        image: uint8 (S, S, 3).
        rng: the source of randomness.
        options: which changes, and their ranges.

    Returns:
        uint8 (S, S, 3).
    """
    # All random numbers are drawn, whatever the options: switching one change off leaves the others the same
    flip_x, flip_y = rng.random(2) < 0.5
    angle, shift_x, shift_y, brightness = rng.uniform(-1.0, 1.0, 4)
    if options.horizontal_flip and flip_x:
        image = image[:, ::-1]
    if options.vertical_flip and flip_y:
        image = image[::-1]
    if options.shift:
        image = _shift(image, shift_x * options.shift, shift_y * options.shift)
    if options.rotation_degrees:
        image = _rotate(image, angle * options.rotation_degrees)
    if options.brightness:
        image = np.clip(image * (1.0 + brightness * options.brightness), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(image)


def _rotate(image: np.ndarray, degrees: float) -> np.ndarray:
    """Rotate about the center; corners are filled by reflection, as black ones would reveal the rotation."""
    size = image.shape[0]
    radians = math.radians(degrees)
    reach = abs(math.sin(radians)) + abs(math.cos(radians))  # of a corner, in half sides
    margin = min(size - 1, math.ceil(size / 2 * (reach - 1)) + 1)
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
    rotated = Image.fromarray(padded).rotate(degrees, Image.Resampling.BILINEAR)
    return np.asarray(rotated)[margin : margin + size, margin : margin + size]


def _shift(image: np.ndarray, x_share: float, y_share: float) -> np.ndarray:
    """Shift by whole pixels; the gap is filled by reflection."""
    size = image.shape[0]
    x, y = round(x_share * size), round(y_share * size)
    margin = max(abs(x), abs(y))
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
    return padded[margin - y : margin - y + size, margin - x : margin - x + size]
