"""Heatmaps: what speaks for a class, as numbers from 0 to 1, and how that is shown on a picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image, ImageOps

from fakereal.labels import REAL
from fakereal.preprocessing import Preprocessing

_COLOURS = np.array([(110, 0, 150), (220, 20, 90), (255, 120, 0), (255, 240, 70)], np.float32)
"""From little heat to much, RGB: ever brighter, so that their order can be told without telling red from green."""

LONGEST_PX = 448
"""Longer side of a picture that is shown with its heatmap: twice what most networks see."""

_FULL_ALPHA = 0.8  # of the hottest spot: what lies below must stay visible


@dataclass(frozen=True)
class Explanation:
    """The outputs of a batch and what they rest on."""

    p_real: np.ndarray  # float64 (n,), the network's own output, 0..1
    evidence: np.ndarray  # float32 (n, h, w), the size of the last maps; above 0 speaks for real, below 0 for fake


class Explains(Protocol):
    """A network that says what its outputs rest on."""

    def explain(self, images: np.ndarray) -> Explanation:
        """Maps uint8 of shape (n, S, S, 3) to outputs and evidence."""


def heatmap(evidence: np.ndarray, label: int) -> np.ndarray:
    """Returns what speaks for one class.

    Args:
        evidence: float (..., h, w), as in `Explanation`.
        label: 0 for what speaks for fake, 1 for real.

    Returns:
        float32 of the same shape, 0..1: the hottest spot of each picture is 1; all 0 where nothing speaks for it.
    """
    heat = np.maximum(evidence if label == REAL else -evidence, 0.0)
    return (heat / np.maximum(heat.max(axis=(-2, -1), keepdims=True), np.finfo(np.float32).tiny)).astype(np.float32)


def paint(heat: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Returns a heatmap (h, w), 0..1, as an RGBA picture of this (width, height), clear where there is no heat."""
    smooth = np.asarray(Image.fromarray(heat, "F").resize(size, Image.Resampling.BICUBIC)).clip(0.0, 1.0)
    places = np.linspace(0.0, 1.0, len(_COLOURS))
    colours = [np.interp(smooth, places, _COLOURS[:, channel]) for channel in range(3)]
    alpha = 255.0 * _FULL_ALPHA * smooth**0.7
    return Image.fromarray(np.stack([*colours, alpha], axis=-1).round().astype(np.uint8), "RGBA")


def overlay(picture: Image.Image, heat: np.ndarray) -> Image.Image:
    """Returns an RGB picture with a heatmap (h, w), 0..1, over all of it."""
    return Image.alpha_composite(picture.convert("RGBA"), paint(heat, picture.size)).convert("RGB")


def seen_part(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Returns the part of a decoded picture that the network gets to see, at most `LONGEST_PX` wide and high."""
    if preprocessing.neutral:  # looks at the centre square
        image = ImageOps.fit(image, (min(image.size),) * 2, Image.Resampling.BICUBIC)
    shown = image.copy()
    shown.thumbnail((LONGEST_PX, LONGEST_PX))
    return shown
