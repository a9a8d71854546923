"""An audit as a page that stands alone, with thumbnails; and as JSON beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fakereal import html_page
from fakereal.data import shortcuts
from fakereal.data.audit import Audit
from fakereal.data.audit_report import as_json, name_of, sample_lines
from fakereal.data.duplicates import Cluster, crossing
from fakereal.data.file_problems import KINDS
from fakereal.data.findings import Finding
from fakereal.errors import ImageRefused
from fakereal.files import write_whole
from fakereal.labels import NAMES
from fakereal.preprocessing import decode

_EXAMPLES, _CLUSTERS, _OF_A_CLUSTER, _SUSPECTS, _PROBLEMS = 8, 12, 4, 48, 12  # thumbnails on the page, each 5 KB
_FILES_LISTED = 100  # of each kind on the page; audit.json has all
_THUMBNAIL_PX = 128
_LOOKED_AT = ("animated", "tiny", "odd_shaped", "wrong_extension")  # kinds of files that can be shown


def write(
    folder: Path, audit: Audit, findings: Sequence[Finding], label_errors: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Writes `audit.json` and `report.html` into a folder, and returns the former.

    Args:
        folder: made where it is missing; an earlier audit in it is replaced.
        audit: what was found.
        findings: all of them.
        label_errors: as `label_errors.as_json` gives it, or None where labels were not judged.
    """
    tree = as_json(audit, findings, label_errors)
    write_whole(folder / "audit.json", json.dumps(tree, indent=4, allow_nan=False).encode())
    html_page.write(
        folder / "report.html",
        "audit.html",
        **tree,
        levels=_levels(audit),
        kinds=KINDS,
        files_listed=_FILES_LISTED,
        sample=sample_lines(audit),
        examples={name: _pictures(_of_class(audit, label), audit) for label, name in enumerate(NAMES)},
        clusters=[_cluster(cluster, audit) for cluster in _worst(audit.clusters)],
        problem_pictures={
            kind: _pictures([p.path for p in audit.files[kind]][:_PROBLEMS], audit) for kind in _LOOKED_AT
        },
        suspects=[_suspect(row, audit) for row in (label_errors or {"suspects": []})["suspects"][:_SUSPECTS]],
    )
    return tree


def _levels(audit: Audit) -> dict[str, str]:
    """Returns how bad each verdict is: the names of the page's colours."""
    if audit.shortcut.tells:
        shortcut = "bad" if audit.shortcut.auc >= shortcuts.GIVES_AWAY else "doubtful"
    else:
        shortcut = "doubtful" if audit.shortcut.giveaways or shortcuts.is_undecided(audit.shortcut) else "good"
    return {"shortcut": shortcut, "pixels": "doubtful" if audit.pixels.tells else "good"}


def _of_class(audit: Audit, label: int) -> list[Path]:
    """Returns some pictures of a class, drawn by their content."""
    records = sorted((r for r in audit.dataset.records if r.label == label), key=lambda record: record.content)
    return [record.path for record in records[:_EXAMPLES]]


def _worst(clusters: Sequence[Cluster]) -> list[Cluster]:
    """Returns the groups to show: those across classes first, then across splits."""
    return sorted(clusters, key=lambda c: (not c.across_classes, not c.across_splits))[:_CLUSTERS]


def _cluster(cluster: Cluster, audit: Audit) -> dict[str, Any]:
    shown = cluster.records
    if cluster.across_classes:  # one of each class at least
        shown = sorted(shown, key=lambda record: record.label)
        shown = [shown[0], shown[-1], *shown[1:-1]]
    shown = shown[:_OF_A_CLUSTER]
    pictures = _pictures([record.path for record in shown], audit)
    for picture, record in zip(pictures, shown, strict=True):
        picture |= {"label": NAMES[record.label], "split": record.split}
    return {
        "kind": cluster.kind,
        "crossing": crossing(cluster),
        "pictures": pictures,
        "more": len(cluster.records) - len(shown),
    }


def _pictures(paths: Sequence[Path], audit: Audit) -> list[dict[str, Any]]:
    return [{"image": name_of(path, audit), "thumbnail": _thumbnail(path)} for path in paths]


def _suspect(row: dict[str, Any], audit: Audit) -> dict[str, Any]:
    return {**row, "thumbnail": _thumbnail(audit.dataset.root / row["image"])}


def _thumbnail(path: Path) -> str | None:
    """Returns a data URI, or None where the picture has gone since."""
    try:
        return html_page.thumbnail(decode(path, _THUMBNAIL_PX)[0], _THUMBNAIL_PX)
    except ImageRefused:
        return None
