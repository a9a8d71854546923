"""Flips, rotations, shifts and brightness for training pictures, on the array that the network is about to see."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from fakereal.config import AugmentationConfig


def transform(image: np.ndarray, rng: np.random.Generator, options: AugmentationConfig) -> np.ndarray:
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
