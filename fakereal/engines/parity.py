"""Does a converted network keep the answers of the Keras network it was made from? The gates that decide it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from fakereal.model import calibration
from fakereal.model.calibration import DecisionRule
from fakereal.preprocessing import resize

MAX_DIFFERENCE = 1e-3
"""Of p_real on any picture, for a network in float32."""

MAX_FEATURE_DIFFERENCE = 5e-3
"""Of any feature inside a network in float32, as a share of the range that this feature has over the pictures.

EfficientNetB0's differ by up to 0.0007 on the drawn pictures, and by 0.00001 on ordinary ones."""

_DEAD = 1e-4
"""A feature whose range is less than this share of the widest one's is taken to have that range: it says nothing."""

MIN_AGREEMENT = 0.995
"""Share of the pictures that keep their label, for a network in int8."""

MAX_ACCURACY_LOSS = 0.002
"""Share of the pictures by which an int8 network may be right less often."""

MIN_JUDGING = 200
"""Pictures that judge an int8 network, at least: with fewer, one picture is more than half a percent."""

_CROP_PX = (100, 200, 400)  # sides of what is cut out of the photographs


@dataclass(frozen=True)
class Finding:
    """What a gate found."""

    passed: bool
    words: str  # for people, on one line
    figures: dict[str, Any]  # for programs


def calibration_pictures(size_px: int) -> np.ndarray:
    """Returns the pictures on which float32 networks are held against Keras: uint8 (16, size_px, size_px, 3).

    They are the same everywhere and at any time: six drawn ones, and ten cut out of the two photographs that
    scikit-learn ships.
    """
    from sklearn.datasets import load_sample_images  # takes a second, and is needed once a model

    photographs = load_sample_images().images
    pictures = _drawn(size_px)
    for number in range(10):
        photograph, side = photographs[number % 2], _CROP_PX[number % 3]
        top, left = (number * 37 % (length - side) for length in photograph.shape[:2])
        pictures.append(resize(Image.fromarray(photograph[top : top + side, left : left + side]), size_px))
    return np.stack(pictures)


def _drawn(size_px: int) -> list[np.ndarray]:
    """Returns pictures of plain arithmetic: black, white, two gradients, a chessboard, and something like noise."""
    y, x, c = np.mgrid[:size_px, :size_px, :3]
    drawn = (
        x * 0,
        x * 0 + 255,
        x * 255 // size_px,
        (x + y) * (c + 1) * 255 // (6 * size_px),
        (x // 8 + y // 8) % 2 * 255,
        (x * x * 7 + y * y * 13 + x * y * 5 + c * 91) % 256,
    )
    return [each.astype(np.uint8) for each in drawn]


def same_outputs(expected: np.ndarray, found: np.ndarray) -> Finding:
    """Holds the outputs of a float32 network, p_real (n,), against those of Keras for the same pictures.

    A network that is sure of everything, or knows nothing yet, gives nearly one output for all pictures; so a
    difference must also be small against their range, or any broken network would pass.
    """
    limit = min(MAX_DIFFERENCE, max(float(np.ptp(expected)) / 10, 1e-5))
    difference = float(np.abs(expected - found).max())
    passed = bool(difference < limit)  # False where the difference is no number
    words = f"p_real differs from Keras' by at most {difference:.1g} on {len(expected)} pictures"
    if not passed:
        words = (
            f"expected a difference from Keras below {limit:.1g} on {len(expected)} pictures, found {difference:.2g}"
        )
    figures = {"pictures": len(expected), "max_difference": difference if np.isfinite(difference) else None}
    return Finding(passed, words, {**figures, "limit": limit})


def same_features(expected: np.ndarray, found: np.ndarray) -> Finding:
    """Holds the output of a converted part of a network, (n, ..., features), against Keras' for the same pictures."""
    if found.shape != expected.shape:
        return Finding(False, f"expected features of shape {expected.shape}, found {found.shape}", {})
    places = tuple(range(expected.ndim - 1))
    ranges = np.ptp(expected, axis=places)
    ranges = np.maximum(ranges, max(_DEAD * float(ranges.max()), np.finfo(np.float32).tiny))
    difference = float((np.abs(expected - found).max(axis=places) / ranges).max())
    passed = bool(difference < MAX_FEATURE_DIFFERENCE)  # False where the difference is no number
    words = f"features differ from Keras' by at most {difference:.1g} of their range on {len(expected)} pictures"
    if not passed:
        words = (
            f"expected a difference from Keras below {MAX_FEATURE_DIFFERENCE:g} of each feature's range on"
            f" {len(expected)} pictures, found {difference:.2g}"
        )
    figures = {"pictures": len(expected), "max_difference": difference if np.isfinite(difference) else None}
    return Finding(passed, words, {**figures, "limit": MAX_FEATURE_DIFFERENCE})


def same_labels(expected: np.ndarray, found: np.ndarray, labels: np.ndarray, decision: DecisionRule) -> Finding:
    """Holds an int8 network against Keras on labelled pictures.

    Args:
        expected: Keras' p_real, (n,).
        found: p_real of the other.
        labels: the truth.
        decision: the model's threshold and temperature.
    """
    before, after = (calibration.labels(p_real, decision) for p_real in (expected, found))
    agreement = float((before == after).mean())
    accuracy, new_accuracy = (float((each == labels).mean()) for each in (before, after))
    passed = bool(np.isfinite(found).all()) and agreement >= MIN_AGREEMENT
    passed = passed and accuracy - new_accuracy <= MAX_ACCURACY_LOSS + 1e-12
    share = f"{100 * agreement:.2f} % of {len(labels):,} labels as with Keras"
    words = f"{share}, accuracy {100 * new_accuracy:.2f} % (Keras {100 * accuracy:.2f} %)"
    if not passed:
        words = (
            f"expected at least {100 * MIN_AGREEMENT:.1f} % and an accuracy at most {100 * MAX_ACCURACY_LOSS:.1f}"
            f" points lower, found {words}"
        )
    figures = {
        "pictures": len(labels),
        "label_agreement": agreement,
        "accuracy": new_accuracy,
        "accuracy_keras": accuracy,
    }
    return Finding(passed, words, figures)
