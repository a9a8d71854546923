"""Finds pictures that a data set holds several times: identical ones, and near-copies of one another."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fakereal.cli import progress_bar
from fakereal.data import likeness
from fakereal.data.scan import THUMBNAIL_PX, Record


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
        return [[contents[index] for index in group] for group in likeness.groups(thumbnails, shorter_px, advance)]
