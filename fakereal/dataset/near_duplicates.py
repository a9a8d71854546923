"""Finds pictures that a data set holds several times: identical ones, and near-copies of one another."""

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


@dataclass(frozen=True)
class Cluster:
    """The same picture, at least twice."""

    records: tuple[Record, ...]  # sorted by path
    kind: Literal["identical", "near"]  # near: of at least two contents; identical ones among them are in it too

    @property
    def across_classes(self) -> bool:
        """Says whether fake and real ones are among them: of identical pictures, one of the labels is wrong."""
        return len({record.label for record in self.records}) > 1

    @property
    def across_splits(self) -> bool:
        """Says whether they stand in several of the splits that the folders give: what is learnt is also judged."""
        return len({record.split for record in self.records} - {None}) > 1


def find_duplicates(records: Sequence[Record]) -> tuple[Cluster, ...]:
    """Returns the clusters, identical ones first, each kind sorted by its first path, whatever the records' order.

    Identical are pictures whose preprocessed arrays are equal, so also a file saved again without loss. Near are those
    re-encoded, resized, mirrored or turned by quarters. Cropped ones are not looked for, and pictures without detail
    (a plain colour, a gradient, a bare horizon) are never near, since nothing tells one from another.
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


def crossing(cluster: Cluster) -> str:
    """Returns what a cluster lies across, in words."""
    across = [name for name in ("classes", "splits") if getattr(cluster, f"across_{name}")]
    return f"across {' and '.join(across)}" if across else "within a class"


def _cluster(records: Iterable[Record], kind: Literal["identical", "near"]) -> Cluster:
    return Cluster(tuple(sorted(records, key=lambda record: record.path)), kind)


def _near_contents(by_content: dict[str, list[Record]]) -> list[list[str]]:
    """Returns the groups of contents that are near-copies."""
    contents = sorted(content for content, same in by_content.items() if same[0].thumbnail)
    pixels = np.frombuffer(b"".join(by_content[content][0].thumbnail for content in contents), np.uint8)
    thumbnails = pixels.reshape(-1, THUMBNAIL_PX, THUMBNAIL_PX)
    shorter_px = np.array([min(record.shorter_px for record in by_content[content]) for content in contents], int)
    with progress_bar("comparing images", len(contents)) as advance:
        return [[contents[index] for index in group] for group in similar_groups(thumbnails, shorter_px, advance)]


# ---- Which pictures show the same, told from small thumbnails: copies re-encoded, resized, mirrored or turned by quarters.
#
# A thumbnail's cosine transform is weighted by frequency, since the power of natural pictures falls with it: so it is
# outlines that are compared, not how light and dark are spread, in which many pictures agree. Mirroring and turning only
# change signs of that transform and swap rows and columns. What they can't change makes up an `invariant` vector, and
# two such vectors are never less alike than the pictures in their best orientation; so one matrix product finds every
# candidate, none is missed, and the eight orientations are tried on the few candidates only.

SIMILARITY = 0.96
"""Correlation of two weighted transforms from which on the pictures count as near-copies; 1 is the same picture."""

LOOSE_SIMILARITY = 1 - 4 * (1 - SIMILARITY)
"""Of two pictures that are both just near enough to a third (the distance doubles): the width of a cluster."""

FINE_FROM_PX = 64
"""Of pictures whose shorter side has this size, fine detail must agree too; in smaller ones re-saving changes it."""

MIN_DETAIL = 2.0
"""Grey levels, the standard deviation of a thumbnail less the means of its rows and columns: plain colours, gradients
and bare horizons have none, look alike all of them, and are no copies of each other."""

MIN_DETAIL_SHARE = 0.2
"""Of a thumbnail's whole standard deviation: where it is less, the horizon drowns what stands before it."""

_COARSE = 8  # lowest frequencies compared in each direction; re-saving hardly changes these
_ROUNDING = 1e-4  # of the matrix product: a candidate more costs nothing, one less would be a copy missed
_ROWS, _COLUMNS = 1024, 8192  # of the matrix product at a time: 32 MiB
_CHUNK = 16_384  # pictures, or pairs of them, transformed at a time
_MAX_EDGES = 2_000_000  # pairs kept at a time; then they are boiled down to what they connect


def similar_groups(
    thumbnails: np.ndarray, shorter_px: np.ndarray, advance: Callable[[int], None] = lambda count: None
) -> list[np.ndarray]:
    """Returns the groups of pictures that are near-copies.

    A group is what pairs of near-copies connect, as far as it also resembles the group's most central picture: else a
    chain of small steps would join pictures that have nothing in common.

    Args:
        thumbnails: uint8 (n, side, side), grey, of `scan.thumbnail_of`.
        shorter_px: (n,) the pictures' shorter sides.
        advance: called with the number of pictures compared since the last call.

    Returns:
        For each group the sorted indices, at least two; no picture is in two groups.
    """
    clear = np.flatnonzero(_recognisable(thumbnails))
    advance(len(thumbnails) - len(clear))
    thumbnails, shorter_px = thumbnails[clear], shorter_px[clear]
    coarse = _transforms(thumbnails, _COARSE)
    invariants = _invariants(coarse)
    joined = np.arange(len(clear))  # equal numbers: connected
    edges: list[np.ndarray] = []
    for pairs in _candidates(invariants, advance):
        pairs = pairs[joined[pairs[:, 0]] != joined[pairs[:, 1]]]
        edges.append(pairs[_near(pairs, coarse, thumbnails, shorter_px)])
        if sum(map(len, edges)) > _MAX_EDGES:
            joined, edges = _connected(joined, edges), []
    joined = _connected(joined, edges)
    return sorted((clear[group] for group in _compact(joined, coarse, invariants)), key=lambda group: group[0])


def _recognisable(thumbnails: np.ndarray) -> np.ndarray:
    """Says which pictures have detail by which to tell them from others: bool (n,)."""
    found = np.empty(len(thumbnails), bool)
    for start in range(0, len(thumbnails), _CHUNK):
        pixels = thumbnails[start : start + _CHUNK].astype(np.float32)
        pixels -= pixels.mean(axis=(1, 2), keepdims=True)
        detail = pixels - pixels.mean(axis=1, keepdims=True) - pixels.mean(axis=2, keepdims=True)
        least = np.maximum(MIN_DETAIL, MIN_DETAIL_SHARE * pixels.std(axis=(1, 2)))
        found[start : start + _CHUNK] = detail.std(axis=(1, 2)) >= least
    return found


def _transforms(thumbnails: np.ndarray, frequencies: int) -> np.ndarray:
    """Returns unit vectors, float32 (n, frequencies, frequencies)."""
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
    """Returns what mirroring and turning can't change: unit vectors, float32 (n, frequencies ** 2).

    The scalar product of two of them is at least `similarity` of the pictures.
    """
    size = np.abs(transforms)  # a mirrored picture's odd frequencies change their signs
    upper, lower = np.triu_indices(transforms.shape[-1], 1)
    one, other = size[:, upper, lower], size[:, lower, upper]  # change places in a transposed picture
    return np.hstack([np.diagonal(size, axis1=1, axis2=2), (one + other) / 2**0.5, np.abs(one - other) / 2**0.5])


def _candidates(invariants: np.ndarray, advance: Callable[[int], None]) -> Iterator[np.ndarray]:
    """Yields all the pairs that may be near-copies: (m, 2), the smaller index first."""
    for top in range(0, len(invariants), _ROWS):
        rows = invariants[top : top + _ROWS]
        for left in range(top, len(invariants), _COLUMNS):
            products = rows @ invariants[left : left + _COLUMNS].T
            found = np.flatnonzero(products >= SIMILARITY - _ROUNDING)
            pairs = np.stack(np.divmod(found, products.shape[1]), axis=1) + np.array([top, left])
            yield pairs[pairs[:, 0] < pairs[:, 1]]
        advance(len(rows))


def _near(pairs: np.ndarray, coarse: np.ndarray, thumbnails: np.ndarray, shorter_px: np.ndarray) -> np.ndarray:
    """Says which pairs are near-copies: bool (m,)."""
    near = np.zeros(len(pairs), bool)
    for start in range(0, len(pairs), _CHUNK):
        one, other = pairs[start : start + _CHUNK].T
        alike = similarity(coarse[one], coarse[other]) >= SIMILARITY
        fine = np.flatnonzero(alike & (np.minimum(shorter_px[one], shorter_px[other]) >= FINE_FROM_PX))
        detail = (_transforms(thumbnails[side[fine]], thumbnails.shape[-1]) for side in (one, other))
        alike[fine] = similarity(*detail) >= SIMILARITY
        near[start : start + _CHUNK] = alike
    return near


def similarity(ones: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns the correlation of transforms in the best of the eight orientations: (n,), -1..1."""
    best = np.full(len(ones), -1.0, np.float32)
    for turned in (ones, ones.transpose(0, 2, 1)):
        products = turned * others
        both_even, odd_across, odd_down, both_odd = (
            products[:, down::2, across::2].sum(axis=(1, 2)) for down in (0, 1) for across in (0, 1)
        )
        for across, down in ((1, 1), (1, -1), (-1, 1), (-1, -1)):  # -1: mirrored in that direction
            best = np.maximum(best, both_even + across * odd_across + down * odd_down + across * down * both_odd)
    return best


def _connected(joined: np.ndarray, edges: list[np.ndarray]) -> np.ndarray:
    """Returns for each picture a number that it shares with those it is connected to, old and new edges together."""
    pairs = np.concatenate([*edges, np.stack([np.arange(len(joined)), joined], axis=1)])
    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(len(joined), len(joined)))
    return connected_components(graph, directed=False)[1]


def _compact(joined: np.ndarray, coarse: np.ndarray, invariants: np.ndarray) -> Iterator[np.ndarray]:
    """Divides what is connected into groups that each resemble one picture of theirs."""
    order = np.argsort(joined, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(joined[order])) + 1):
        while len(members) > 1:
            central = np.argmax(invariants[members] @ invariants[members].mean(axis=0))
            alike = similarity(coarse[members[central]][None], coarse[members]) >= LOOSE_SIMILARITY
            if alike.sum() > 1:
                yield members[alike]
            members = members[~alike]
