"""Trivial measures of a picture's pixels: how bright, how sharp, resampled, with traces of JPEG's 8x8 blocks.

Where they tell fake from real, that is a hint and no proof of a leak: it may be what the pictures show. They are
taken from the picture at its own resolution, since resizing destroys most of them.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
from PIL import Image

from fakereal.cli import progress_bar
from fakereal.data.facts import Facts
from fakereal.data.telling import Feature, Judged, judge
from fakereal.errors import ImageRefused
from fakereal.labels import FAKE, REAL
from fakereal.preprocessing import MAX_SIDE_PX, decode

MOST_OF_A_CLASS = 500
"""Pictures of a class that are measured; fewer where they are large, see `PIXEL_BUDGET`."""

PIXEL_BUDGET = 250_000_000
"""Pixels decoded for each class: some seconds."""

_LEAST_OF_A_CLASS = 30
_CROP_PX = 512  # the centre that is measured; a multiple of 8, cut along the grid of blocks
_BLOCK_PX = 8
_EPSILON = 1e-3  # grey levels


@dataclass(frozen=True)
class PixelStatistics:
    """Measures of one picture's centre."""

    brightness: float  # mean grey, 0..255
    contrast: float  # standard deviation of grey
    saturation: float  # mean of (largest - smallest channel) / largest, 0..1
    sharpness: float  # log10 of the mean absolute Laplacian of grey
    block_grid: float  # log2 of the mean step across the borders of 8x8 blocks, by that within them; 0: no trace
    resampling: float  # log10 of the strongest peak in the spectrum of second differences, by their median
    resampling_period_px: float  # of that peak, 2 or more: enlarging by 2 leaves a period of 2


NAMES = ("brightness", "contrast", "saturation", "sharpness", "8x8 blocks", "resampling")
"""Of the measures for people; the last two of `PixelStatistics` are one."""


def drawn(facts: Sequence[Facts], labels: np.ndarray, order: Sequence[int]) -> list[int]:
    """Returns the numbers of the pictures to measure, from both classes in turn.

    Args:
        facts: (n,), for the pictures' sizes.
        labels: int (n,).
        order: the pictures' numbers in the order in which they are drawn.
    """
    per_class = []
    for label in (FAKE, REAL):
        numbers = np.array([number for number in order if labels[number] == label][:MOST_OF_A_CLASS], dtype=int)
        pixels = np.cumsum([facts[number].width_px * facts[number].height_px for number in numbers])
        affordable = int(np.searchsorted(pixels, PIXEL_BUDGET))
        per_class.append(numbers[: max(affordable, _LEAST_OF_A_CLASS)].tolist())
    return [number for number in chain(*zip_longest(*per_class)) if number is not None]


def measure_all(paths: Sequence[Path]) -> list[PixelStatistics | None]:
    """Measures pictures in threads, in the order given; None where one can't be read any more."""
    with progress_bar("measuring pixels", len(paths)) as advance, ThreadPoolExecutor(os.cpu_count()) as pool:
        found = []
        for statistics in pool.map(_measure_file, paths):
            found.append(statistics)
            advance(1)
        return found


def _measure_file(path: Path) -> PixelStatistics | None:
    try:
        return measure(decode(path, MAX_SIDE_PX)[0])  # MAX_SIDE_PX: at full scale
    except ImageRefused:
        return None


def measure(image: Image.Image) -> PixelStatistics:
    """Measures the centre of an RGB picture; both sides should have 16 pixels at least."""
    left, top = (max(0, (side - _CROP_PX) // 2) // _BLOCK_PX * _BLOCK_PX for side in image.size)
    image = image.crop((left, top, min(left + _CROP_PX, image.width), min(top + _CROP_PX, image.height)))
    rgb, grey = np.asarray(image, np.float32), np.asarray(image.convert("L"), np.float32)
    largest = rgb.max(axis=2)
    laplacian = np.abs(_second_differences(grey)[1:-1]) + np.abs(_second_differences(grey.T)[1:-1].T)
    strength, period = _resampling(grey)
    return PixelStatistics(
        brightness=float(grey.mean()),
        contrast=float(grey.std()),
        saturation=float(np.mean((largest - rgb.min(axis=2)) / np.maximum(largest, 1.0))),
        sharpness=float(np.log10(np.mean(laplacian) + _EPSILON)) if laplacian.size else 0.0,
        block_grid=_block_grid(grey),
        resampling=strength,
        resampling_period_px=period,
    )


def _second_differences(grey: np.ndarray) -> np.ndarray:
    """Along rows: float (h, w - 2)."""
    return grey[:, 2:] - 2 * grey[:, 1:-1] + grey[:, :-2]


def _block_grid(grey: np.ndarray) -> float:
    across, within = [], []
    for plane in (grey, grey.T):
        steps = np.abs(np.diff(plane, axis=1)).mean(axis=0) if min(plane.shape) > 1 else np.zeros(0)
        border = np.arange(len(steps)) % _BLOCK_PX == _BLOCK_PX - 1
        across += steps[border].tolist()
        within += steps[~border].tolist()
    if not across or not within:
        return 0.0
    return float(np.log2((np.mean(across) + _EPSILON) / (np.mean(within) + _EPSILON)))


def _resampling(grey: np.ndarray) -> tuple[float, float]:
    """Returns how periodic second differences are, and the period in pixels.

    Interpolated pixels have smaller ones, at regular distances (Gallagher, "Detection of linear and cubic
    interpolation in JPEG compressed images", CRV 2005).
    """
    best = (0.0, 0.0)
    for plane in (grey, grey.T):
        profile = np.abs(_second_differences(plane)).mean(axis=0) if plane.shape[1] > 2 else np.zeros(0)
        if len(profile) < 16:
            continue
        spectrum = np.abs(np.fft.rfft((profile - profile.mean()) * np.hanning(len(profile))))
        frequencies = np.fft.rfftfreq(len(profile))
        # Slow changes are the picture's own; the harmonics of 1/8 are JPEG's blocks, which are measured already.
        of_blocks = np.abs(frequencies * _BLOCK_PX - np.rint(frequencies * _BLOCK_PX)) < 16 / len(profile)
        of_blocks &= frequencies < 0.45
        spectrum[(frequencies < 0.15) | of_blocks] = 0.0
        peak, median = int(np.argmax(spectrum)), float(np.median(spectrum[spectrum > 0])) if spectrum.any() else 0.0
        strength = float(np.log10((spectrum[peak] + _EPSILON) / (median + _EPSILON)))
        best = max(best, (strength, 1 / frequencies[peak] if peak else 0.0))
    return best


def audit_pixels(
    statistics: Sequence[PixelStatistics],
    facts: Sequence[Facts],
    labels: np.ndarray,
    groups: Sequence[Hashable],
    seed: int = 0,
) -> Judged:
    """Returns how well trivial measures tell real from fake; `labels` and on as in `telling.judge`.

    Bytes by pixel stand here: among files of one encoding they measure how much there is to see.
    """
    rows = np.array([astuple(each) for each in statistics], dtype=float)
    features = [Feature(name, {name: rows[:, column]}) for column, name in enumerate(NAMES[:-1])]
    features.append(Feature(NAMES[-1], {"strength": rows[:, -2], "period": rows[:, -1]}))
    features.append(Feature("bytes per pixel", {"bytes per pixel": np.array([f.bytes_per_pixel for f in facts])}))
    return judge(features, labels, groups, seed)


def verdict(judged: Judged) -> str:
    """Returns the hint in one sentence for people."""
    if judged.auc is None:
        return "too few pictures to say anything"
    if not judged.features:
        return "all pictures measure the same"
    low, high = judged.interval
    value = f"AUC {judged.auc:.2f} (95 % interval {low:.2f} to {high:.2f})"
    if not judged.tells:
        return f"no hint: brightness, sharpness and the like tell fake from real with {value}"
    strong = [feature.name for feature in judged.features if feature.auc >= 0.6][:2] or ["brightness, sharpness"]
    return f"a hint, no proof: {' and '.join(strong)} and the like tell fake from real with {value}"
