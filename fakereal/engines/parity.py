"""Compare a converted network with the Keras network it was made from; each comparison is a gate with fixed limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from fakereal.model import calibration
from fakereal.model.calibration import DecisionRule
from fakereal.preprocessing import resize

MAX_DIFFERENCE = 1e-3
"""Largest difference of p_real on any image, for a float32 network."""

MAX_SCORE_DIFFERENCE = 0.02
"""Largest difference of the out-of-distribution score, whose limit is 1, on any image, for a float32 network."""

MAX_FEATURE_DIFFERENCE = 5e-3
"""Largest difference of any feature inside a float32 network, as a share of that feature's range over the images.

EfficientNetB0's differ by up to 0.0007 on the synthetic images, and by 0.00001 on ordinary ones."""

_MIN_RELATIVE_RANGE = 1e-4
"""Features with a smaller range than this share of the widest one's are constant; they are taken to have this range."""

MIN_AGREEMENT = 0.995
"""Share of the images that must keep their label, for an int8 network."""

MAX_ACCURACY_LOSS = 0.002
"""Largest loss of accuracy of an int8 network."""

MIN_TEST_IMAGES = 200
"""Images needed to test an int8 network: with fewer, one image is more than half a percent."""

_CROP_PX = (100, 200, 400)  # sides of the crops from the photographs


@dataclass(frozen=True)
class ParityResult:
    """Outcome of a comparison."""

    passed: bool
    description: str  # one line for people
    figures: dict[str, Any]  # for programs


def parity_images(size_px: int) -> np.ndarray:
    """Return the images that float32 networks are compared on: uint8 (16, size_px, size_px, 3).

    They are the same on every machine: six synthetic ones, and ten crops of the two photographs in scikit-learn.
    """
    from sklearn.datasets import load_sample_images  # takes a second, and is needed once per model

    photographs = load_sample_images().images
    images = list(synthetic_images(size_px))
    for number in range(10):
        photograph, side = photographs[number % 2], _CROP_PX[number % 3]
        top, left = (number * 37 % (length - side) for length in photograph.shape[:2])
        images.append(resize(Image.fromarray(photograph[top : top + side, left : left + side]), size_px))
    return np.stack(images)


def synthetic_images(size_px: int) -> np.ndarray:
    """Return synthetic images, the same on every machine, uint8 (6, size_px, size_px, 3).

    They are black, white, two gradients, a chessboard and a noise-like one.
    """
    y, x, c = np.mgrid[:size_px, :size_px, :3]
    images = (
        x * 0,
        x * 0 + 255,
        x * 255 // size_px,
        (x + y) * (c + 1) * 255 // (6 * size_px),
        (x // 8 + y // 8) % 2 * 255,
        (x * x * 7 + y * y * 13 + x * y * 5 + c * 91) % 256,
    )
    return np.stack([image.astype(np.uint8) for image in images])


def compare_outputs(expected: np.ndarray, actual: np.ndarray) -> ParityResult:
    """Compare the outputs of a float32 network with those of Keras for the same images.

    An untrained or overconfident network gives nearly the same output for all images; so a difference must also be
    small compared to their range, or any broken network would pass.

    Args:
        expected: of Keras, (n, 1) p_real, or (n, 2) with out-of-distribution scores beside it.
        actual: of the other network.
    """
    if actual.shape != expected.shape:
        return ParityResult(False, f"expected outputs of shape {expected.shape}, got {actual.shape}", {})
    scores = float(np.abs(expected[:, 1:] - actual[:, 1:]).max(initial=0.0))
    if not scores < MAX_SCORE_DIFFERENCE:  # also for NaN
        return ParityResult(
            False,
            f"the out-of-distribution score differs from Keras by {scores:.2g} on {len(expected)} images; the limit is"
            f" {MAX_SCORE_DIFFERENCE:g}",
            _figures(len(expected), scores, MAX_SCORE_DIFFERENCE),
        )
    expected, actual = expected[:, 0], actual[:, 0]
    limit = min(MAX_DIFFERENCE, max(float(np.ptp(expected)) / 10, 1e-5))
    difference = float(np.abs(expected - actual).max())
    passed = bool(difference < limit)  # False for NaN
    description = f"p_real differs from Keras by at most {difference:.1g} on {len(expected)} images"
    if not passed:
        description = (
            f"p_real differs from Keras by {difference:.2g} on {len(expected)} images; the limit is {limit:.1g}"
        )
    return ParityResult(passed, description, _figures(len(expected), difference, limit))


def compare_features(expected: np.ndarray, actual: np.ndarray) -> ParityResult:
    """Compare the features, (n, ..., channels), of a converted backbone with those of Keras for the same images."""
    if actual.shape != expected.shape:
        return ParityResult(False, f"expected features of shape {expected.shape}, got {actual.shape}", {})
    axes = tuple(range(expected.ndim - 1))
    ranges = np.ptp(expected, axis=axes)
    ranges = np.maximum(ranges, max(_MIN_RELATIVE_RANGE * float(ranges.max()), np.finfo(np.float32).tiny))
    difference = float((np.abs(expected - actual).max(axis=axes) / ranges).max())
    passed = bool(difference < MAX_FEATURE_DIFFERENCE)  # False for NaN
    description = f"features differ from Keras by at most {difference:.1g} of their range on {len(expected)} images"
    if not passed:
        description = (
            f"features differ from Keras by {difference:.2g} of their range on {len(expected)} images;"
            f" the limit is {MAX_FEATURE_DIFFERENCE:g}"
        )
    return ParityResult(passed, description, _figures(len(expected), difference, MAX_FEATURE_DIFFERENCE))


def _figures(images: int, difference: float, limit: float) -> dict[str, Any]:
    # "pictures" is a published key of the card that `export` writes.
    return {
        "pictures": images,
        "max_difference": difference if np.isfinite(difference) else None,
        "limit": limit,
    }


def compare_labels(
    expected: np.ndarray, actual: np.ndarray, labels: np.ndarray, decision: DecisionRule
) -> ParityResult:
    """Compare an int8 network with Keras on labeled images.

    Args:
        expected: p_real of Keras, (n,).
        actual: p_real of the int8 network, (n,).
        labels: the true labels, int (n,), 0 fake, 1 real.
        decision: the model's threshold and temperature.
    """
    before, after = (calibration.labels(p_real, decision) for p_real in (expected, actual))
    agreement = float((before == after).mean())
    accuracy_keras, accuracy = (float((each == labels).mean()) for each in (before, after))
    passed = bool(np.isfinite(actual).all()) and agreement >= MIN_AGREEMENT
    passed = passed and accuracy_keras - accuracy <= MAX_ACCURACY_LOSS + 1e-12
    description = (
        f"{100 * agreement:.2f} % of {len(labels):,} labels are the same as with Keras,"
        f" accuracy {100 * accuracy:.2f} % (Keras {100 * accuracy_keras:.2f} %)"
    )
    if not passed:
        description += (
            f"; the limits are {100 * MIN_AGREEMENT:.1f} % and an accuracy at most"
            f" {100 * MAX_ACCURACY_LOSS:.1f} points lower"
        )
    figures = {
        "pictures": len(labels),
        "label_agreement": agreement,
        "accuracy": accuracy,
        "accuracy_keras": accuracy_keras,
    }
    return ParityResult(passed, description, figures)
