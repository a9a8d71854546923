"""Heatmaps of the evidence for a class, 0..1, and their overlays on images; NumPy and Pillow only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image, ImageOps

from fakereal.labels import REAL
from fakereal.preprocessing import Preprocessing

_COLORS = np.array([(110, 0, 150), (220, 20, 90), (255, 120, 0), (255, 240, 70)], np.float32)
"""RGB, from low to high heat: increasing brightness keeps the order visible to color-blind people."""

LONGEST_PX = 448
"""Longer side of an image shown with its heatmap: twice what most networks see."""

_FULL_ALPHA = 0.8  # of the hottest spot: the image below must stay visible


@dataclass(frozen=True)
class Explanation:
    """The outputs of a batch and the evidence for them."""

    p_real: np.ndarray  # float64 (n,), the network's own output, 0..1
    evidence: np.ndarray  # float32 (n, h, w), the last maps' size; positive is evidence for real, negative for fake
    scores: np.ndarray | None = None  # float64 (n,), see `out_of_distribution.scores`; None: unknown


class Explainer(Protocol):
    """A network that explains its outputs."""

    def explain(self, images: np.ndarray) -> Explanation:
        """Map uint8 images (n, S, S, 3) to outputs and evidence."""


def heatmap(evidence: np.ndarray, label: int) -> np.ndarray:
    """Return the evidence for one class, scaled to 0..1.

    Args:
        evidence: float (..., h, w), as in `Explanation`.
        label: 0 for fake, 1 for real.

    Returns:
        float32 of the same shape; the maximum of each image is 1, or all is 0 where there is no evidence for the class.
    """
    heat = np.maximum(evidence if label == REAL else -evidence, 0.0)
    return (heat / np.maximum(heat.max(axis=(-2, -1), keepdims=True), np.finfo(np.float32).tiny)).astype(np.float32)


def paint(heat: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Return a heatmap (h, w), 0..1, as an RGBA image of this (width, height), transparent where there is no heat."""
    smooth = np.asarray(Image.fromarray(heat, "F").resize(size, Image.Resampling.BICUBIC)).clip(0.0, 1.0)
    places = np.linspace(0.0, 1.0, len(_COLORS))
    colors = [np.interp(smooth, places, _COLORS[:, channel]) for channel in range(3)]
    alpha = 255.0 * _FULL_ALPHA * smooth**0.7
    return Image.fromarray(np.stack([*colors, alpha], axis=-1).round().astype(np.uint8), "RGBA")


def overlay(image: Image.Image, heat: np.ndarray) -> Image.Image:
    """Return an RGB copy of the image, covered by a heatmap (h, w), 0..1."""
    return Image.alpha_composite(image.convert("RGBA"), paint(heat, image.size)).convert("RGB")


def seen_part(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Return the part of a decoded image that the network sees, reduced to at most `LONGEST_PX` each way."""
    if preprocessing.neutral or preprocessing.square:
        image = ImageOps.fit(image, (min(image.size),) * 2, Image.Resampling.BICUBIC)
    shown = image.copy()
    shown.thumbnail((LONGEST_PX, LONGEST_PX))
    return shown
