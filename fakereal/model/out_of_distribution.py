"""Out-of-distribution detection: is an image like those that a model learned from?

Two tests, fitted on training and validation images. The features before a network's output layer must point in nearly
the same direction as one of a few prototypes, the centers of clusters of training images; and the image's shorter side
must be of a similar length. Directions to prototypes told unlike images apart better than Mahalanobis distances and
nearest neighbors in our measurements, and need 40 kB, see docs/benchmarks.md.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

REASON = "unlike the images this model learned from"
"""Why the verdict on an out-of-distribution image is "uncertain"."""

MAX_FEATURES = 4_096
"""A network with more features before its output layer gets the size test only: its prototypes would take megabytes."""

MAX_IMAGES = 2_000
"""Training images that prototypes are fitted on, at most."""

_PROTOTYPES = 16
_FAMILIAR_SHARE = 0.98  # of the training and validation images that are within the limit
_SIZE_FACTOR = 4  # how many times smaller or larger than the training images' sides an image may be
_SIZE_QUANTILES = (0.01, 0.99)
_TINY = 1e-12


@dataclass(frozen=True)
class Prototypes:
    """Directions in feature space around which the training images lie, and how far from them they lie."""

    directions: str  # base64 of float16 (features, count), each column of length 1: text, as it is stored as JSON
    features: int
    max_distance: float  # cosine distance, 0..2, of the farthest familiar image to its nearest prototype

    def matrix(self) -> np.ndarray:
        """Return the directions, float32 (features, count)."""
        return np.frombuffer(base64.b64decode(self.directions), "<f2").reshape(self.features, -1).astype(np.float32)

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Prototypes:
        """Read what `dataclasses.asdict` wrote.

        Raises:
            ValueError, KeyError, TypeError: the values are damaged.
        """
        found = cls(str(tree["directions"]), int(tree["features"]), float(tree["max_distance"]))
        if not (0.0 < found.max_distance <= 2.0 and np.isfinite(found.matrix()).all()):
            raise ValueError("invalid prototypes")
        return found


def scores(features: np.ndarray, prototypes: Prototypes) -> np.ndarray:
    """Return out-of-distribution scores: the distance to the nearest prototype as a share of the largest familiar one.

    Args:
        features: float (n, f), the input of the network's output layer.
        prototypes: of the model.

    Returns:
        float64 (n,), 0 and more; above 1 the image is unlike the training images. `networks.with_score` computes the
        same within a network.
    """
    return _distances(features, prototypes.matrix()) / prototypes.max_distance


def is_unfamiliar(score: float | None, shorter_px: int | None, shorter_side_px: tuple[int, int] | None) -> bool:
    """Return whether an image is unlike the training images.

    Args:
        score: see `scores`; None: unknown.
        shorter_px: the image's shorter side; None: unknown.
        shorter_side_px: shortest and longest familiar one, see `fit_sizes`; None: any.
    """
    if score is not None and score > 1.0:
        return True
    return None not in (shorter_px, shorter_side_px) and not shorter_side_px[0] <= shorter_px <= shorter_side_px[1]


def fit_prototypes(training: np.ndarray, validation: np.ndarray, seed: int) -> Prototypes | None:
    """Return prototypes of training images, with a limit that nearly all training and validation images keep.

    Args:
        training: features, float (n, f).
        validation: features of other images, float (m, f).
        seed: of the clustering.

    Returns:
        None where the features are too many, or are the same for all images.
    """
    if training.shape[1] > MAX_FEATURES or not len(training):
        return None
    from sklearn.cluster import KMeans  # which prediction does without

    unit = _unit(training)
    count = len(np.unique(unit, axis=0))
    if count < 2:
        return None
    clusters = KMeans(min(_PROTOTYPES, count), n_init=1, random_state=seed).fit(unit)
    matrix = _unit(clusters.cluster_centers_).T.astype("<f2")
    distances = _distances(np.concatenate([training, validation]), matrix.astype(np.float32))
    max_distance = float(np.quantile(distances, _FAMILIAR_SHARE))
    if max_distance <= _TINY:
        return None
    return Prototypes(base64.b64encode(matrix.tobytes()).decode(), len(matrix), max_distance)


def fit_sizes(shorter_px: np.ndarray) -> tuple[int, int]:
    """Return the range of familiar shorter sides in pixels, from those of the training images, int (n,)."""
    low, high = np.quantile(shorter_px, _SIZE_QUANTILES)
    return max(1, int(low) // _SIZE_FACTOR), int(np.ceil(high)) * _SIZE_FACTOR


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), _TINY)


def _distances(features: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Return the cosine distance to the nearest direction, float64 (n,)."""
    return 1.0 - (_unit(features) @ directions).max(axis=1)
