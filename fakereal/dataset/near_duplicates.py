"""Find images that a data set holds more than once: identical images, and near-copies of one another.

Near-copies are found by 16x16 thumbnails, whose cosine transforms are weighted by frequency: the power of natural
images falls with frequency, so the weights make outlines count rather than the distribution of light and dark, in
which many images agree. Mirroring and quarter turns only change signs in the transform and swap its rows and columns.
What they can't change is an `invariant` vector, and two such vectors are never less similar than the images in their
best orientation: so one matrix product finds every candidate, and only the candidates are compared in all eight
orientations.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.fft import dct
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from fakereal.dataset.scan import THUMBNAIL_PX, Record
from fakereal.runtime import progress_bar

MIN_SIMILARITY = 0.96
"""Correlation of two weighted transforms from which on the images count as near-copies; 1 is the same image."""

MIN_CLUSTER_SIMILARITY = 1 - 4 * (1 - MIN_SIMILARITY)
"""To the most central image of a cluster; two images that are just near enough to a third are twice as far apart."""

FINE_FROM_PX = 64
"""Images whose shorter side is at least this must also agree in fine detail; in smaller ones re-saving changes it."""

MIN_DETAIL = 2.0
"""Gray levels, the standard deviation of a thumbnail less the means of its rows and columns. Plain colors, gradients
and bare horizons have less: they all look alike and are no copies of each other."""

MIN_DETAIL_SHARE = 0.2
"""Of a thumbnail's whole standard deviation: below it, the horizon outweighs whatever is in front of it."""

_COARSE = 8  # lowest frequencies compared in each direction; re-saving hardly changes these
_ROUNDING = 1e-4  # of the matrix product: one candidate more costs nothing, one less would be a copy missed
_ROWS, _COLUMNS = 1024, 8192  # of the matrix product at a time: 32 MiB
_CHUNK = 16_384  # images, or pairs of them, transformed at a time
_MAX_EDGES = 2_000_000  # pairs kept at a time; then they are reduced to what they connect


@dataclass(frozen=True)
class Cluster:
    """At least two copies of one image."""

    records: tuple[Record, ...]  # sorted by path
    kind: Literal["identical", "near"]  # near: at least two contents; a near cluster holds the identical ones too

    @property
    def across_classes(self) -> bool:
        """Whether it holds fake and real images: of identical images, one of the labels is wrong."""
        return len({record.label for record in self.records}) > 1

    @property
    def across_splits(self) -> bool:
        """Whether it holds images of several given splits: an image trained on is also tested on."""
        return len({record.split for record in self.records} - {None}) > 1

    @property
    def scope(self) -> str:
        """What it extends across, such as `across classes and splits`, or `within a class`."""
        across = [name for name in ("classes", "splits") if getattr(self, f"across_{name}")]
        return f"across {' and '.join(across)}" if across else "within a class"


def find_duplicates(records: Sequence[Record]) -> tuple[Cluster, ...]:
    """Return the clusters, identical ones first, each kind sorted by its first path, whatever the records' order.

    Images are identical where their preprocessed arrays are equal, so also where one was saved again without loss.
    Near-copies are re-encoded, resized, mirrored or turned by quarters. Cropped copies are not looked for, and images
    without detail (a plain color, a gradient, a bare horizon) are never near-copies, as nothing tells them apart.
    """
    by_content: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_content[record.content].append(record)
    identical = [_cluster(same, "identical") for same in by_content.values() if len(same) > 1]
    near = [
        _cluster((record for content in contents for record in by_content[content]), "near")
        for contents in _near_contents(by_content)
    ]
    return tuple(cluster for kind in (identical, near) for cluster in sorted(kind, key=lambda c: c.records[0].path))


def _cluster(records: Iterable[Record], kind: Literal["identical", "near"]) -> Cluster:
    return Cluster(tuple(sorted(records, key=lambda record: record.path)), kind)


def _near_contents(by_content: dict[str, list[Record]]) -> list[list[str]]:
    """Return the groups of contents that are near-copies."""
    contents = sorted(content for content, same in by_content.items() if same[0].thumbnail)
    pixels = np.frombuffer(b"".join(by_content[content][0].thumbnail for content in contents), np.uint8)
    thumbnails = pixels.reshape(-1, THUMBNAIL_PX, THUMBNAIL_PX)
    shorter_px = np.array([min(record.shorter_px for record in by_content[content]) for content in contents], int)
    with progress_bar("comparing images", len(contents)) as advance:
        return [[contents[index] for index in group] for group in similar_groups(thumbnails, shorter_px, advance)]


def duplicate_groups(records: Sequence[Record], clusters: Sequence[Cluster]) -> np.ndarray:
    """Return for each record the index of the first record that is a copy of it: int (n,).

    Equal numbers mean identical images, or images that clusters connect.
    """
    first_of_content: dict[str, int] = {}
    links = [(index, first_of_content.setdefault(record.content, index)) for index, record in enumerate(records)]
    indices = {record.path: index for index, record in enumerate(records)}
    for cluster in clusters:
        members = [indices[record.path] for record in cluster.records if record.path in indices]
        links += [(index, members[0]) for index in members]
    component = _connected(np.arange(len(records)), [np.array(links, np.int64).reshape(-1, 2)])
    first, inverse = np.unique(component, return_index=True, return_inverse=True)[1:]
    return first[inverse]


def similar_groups(
    thumbnails: np.ndarray, shorter_px: np.ndarray, advance: Callable[[int], None] = lambda count: None
) -> list[np.ndarray]:
    """Return the groups of images that are near-copies.

    A group is what pairs of near-copies connect, as far as it also resembles the group's most central image: otherwise
    a chain of small steps would join images that have nothing in common.

    Args:
        thumbnails: uint8 (n, side, side), gray, of `scan.thumbnail_of`.
        shorter_px: int (n,), the images' shorter sides.
        advance: called with the number of images compared since the last call.

    Returns:
        For each group the sorted indices, at least two; no image is in two groups.
    """
    detailed = np.flatnonzero(_has_detail(thumbnails))
    advance(len(thumbnails) - len(detailed))
    thumbnails, shorter_px = thumbnails[detailed], shorter_px[detailed]
    coarse = _transforms(thumbnails, _COARSE)
    invariants = _invariants(coarse)
    component = np.arange(len(detailed))  # equal numbers: connected
    edges: list[np.ndarray] = []
    for pairs in _candidates(invariants, advance):
        pairs = pairs[component[pairs[:, 0]] != component[pairs[:, 1]]]
        edges.append(pairs[_are_near(pairs, coarse, thumbnails, shorter_px)])
        if sum(map(len, edges)) > _MAX_EDGES:
            component, edges = _connected(component, edges), []
    component = _connected(component, edges)
    groups = (detailed[group] for group in _compact_groups(component, coarse, invariants))
    return sorted(groups, key=lambda group: group[0])


def _has_detail(thumbnails: np.ndarray) -> np.ndarray:
    """Return which images have enough detail to be told apart from others: bool (n,)."""
    found = np.empty(len(thumbnails), bool)
    for start in range(0, len(thumbnails), _CHUNK):
        pixels = thumbnails[start : start + _CHUNK].astype(np.float32)
        pixels -= pixels.mean(axis=(1, 2), keepdims=True)
        detail = pixels - pixels.mean(axis=1, keepdims=True) - pixels.mean(axis=2, keepdims=True)
        least = np.maximum(MIN_DETAIL, MIN_DETAIL_SHARE * pixels.std(axis=(1, 2)))
        found[start : start + _CHUNK] = detail.std(axis=(1, 2)) >= least
    return found


def _transforms(thumbnails: np.ndarray, frequencies: int) -> np.ndarray:
    """Return the weighted cosine transforms as unit vectors: float32 (n, frequencies, frequencies)."""
    side = thumbnails.shape[-1]
    basis = dct(np.eye(side, dtype=np.float32), axis=0, norm="ortho")[:frequencies]
    weight = np.hypot(*np.indices((frequencies, frequencies), np.float32))  # 0 for the mean: brightness says nothing
    found = np.empty((len(thumbnails), frequencies, frequencies), np.float32)
    for start in range(0, len(thumbnails), _CHUNK):
        part = slice(start, start + _CHUNK)
        found[part] = basis @ thumbnails[part].astype(np.float32) @ basis.T * weight
    found /= np.linalg.norm(found, axis=(1, 2), keepdims=True).clip(1e-6)
    return found


def _invariants(transforms: np.ndarray) -> np.ndarray:
    """Return what mirroring and turning can't change: unit vectors, float32 (n, frequencies ** 2).

    The scalar product of two of them is at least the `similarity` of the images.
    """
    size = np.abs(transforms)  # a mirrored image's odd frequencies change their signs
    upper, lower = np.triu_indices(transforms.shape[-1], 1)
    one, other = size[:, upper, lower], size[:, lower, upper]  # change places in a transposed image
    return np.hstack([np.diagonal(size, axis1=1, axis2=2), (one + other) / 2**0.5, np.abs(one - other) / 2**0.5])


def _candidates(invariants: np.ndarray, advance: Callable[[int], None]) -> Iterator[np.ndarray]:
    """Yield all pairs that may be near-copies: int (m, 2), the smaller index first."""
    for top in range(0, len(invariants), _ROWS):
        rows = invariants[top : top + _ROWS]
        for left in range(top, len(invariants), _COLUMNS):
            products = rows @ invariants[left : left + _COLUMNS].T
            found = np.flatnonzero(products >= MIN_SIMILARITY - _ROUNDING)
            pairs = np.stack(np.divmod(found, products.shape[1]), axis=1) + np.array([top, left])
            yield pairs[pairs[:, 0] < pairs[:, 1]]
        advance(len(rows))


def _are_near(pairs: np.ndarray, coarse: np.ndarray, thumbnails: np.ndarray, shorter_px: np.ndarray) -> np.ndarray:
    """Return which pairs are near-copies: bool (m,)."""
    near = np.zeros(len(pairs), bool)
    for start in range(0, len(pairs), _CHUNK):
        one, other = pairs[start : start + _CHUNK].T
        alike = similarity(coarse[one], coarse[other]) >= MIN_SIMILARITY
        fine = np.flatnonzero(alike & (np.minimum(shorter_px[one], shorter_px[other]) >= FINE_FROM_PX))
        detail = (_transforms(thumbnails[side[fine]], thumbnails.shape[-1]) for side in (one, other))
        alike[fine] = similarity(*detail) >= MIN_SIMILARITY
        near[start : start + _CHUNK] = alike
    return near


def similarity(ones: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the correlation of transforms in the best of the eight orientations: float32 (n,), -1..1."""
    best = np.full(len(ones), -1.0, np.float32)
    for turned in (ones, ones.transpose(0, 2, 1)):
        products = turned * others
        both_even, odd_across, odd_down, both_odd = (
            products[:, down::2, across::2].sum(axis=(1, 2)) for down in (0, 1) for across in (0, 1)
        )
        for across, down in ((1, 1), (1, -1), (-1, 1), (-1, -1)):  # -1: mirrored in that direction
            best = np.maximum(best, both_even + across * odd_across + down * odd_down + across * down * both_odd)
    return best


def _connected(component: np.ndarray, edges: list[np.ndarray]) -> np.ndarray:
    """Return component numbers, int (n,), after adding edges to those that `component` connects already."""
    pairs = np.concatenate([*edges, np.stack([np.arange(len(component)), component], axis=1)])
    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(len(component), len(component)))
    return connected_components(graph, directed=False)[1]


def _compact_groups(component: np.ndarray, coarse: np.ndarray, invariants: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the components, divided so that each group resembles its most central image."""
    order = np.argsort(component, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(component[order])) + 1):
        while len(members) > 1:
            central = np.argmax(invariants[members] @ invariants[members].mean(axis=0))
            alike = similarity(coarse[members[central]][None], coarse[members]) >= MIN_CLUSTER_SIMILARITY
            if alike.sum() > 1:
                yield members[alike]
            members = members[~alike]
