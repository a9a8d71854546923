"""An audit as lines for the terminal and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fakereal import html
from fakereal.audit import shortcuts
from fakereal.audit.audit import KINDS, Audit, Finding, audit_in_short, of_shortcut
from fakereal.audit.shortcuts import ProbeResult, Strength
from fakereal.dataset.near_duplicates import Cluster, crossing
from fakereal.dataset.scan import Record
from fakereal.decoding import decode
from fakereal.errors import ImageRefused
from fakereal.files import relative_name, write_atomic
from fakereal.labels import NAMES

_FEATURES_SHOWN = 5  # in the terminal


def lines(audit: Audit, findings: Sequence[Finding]) -> list[str]:
    """Returns the audit for people at a terminal."""
    return [
        *_counts_lines(audit),
        "",
        f"shortcut: {shortcuts.file_verdict(audit.shortcut)}",
        *_feature_lines(audit.shortcut),
        f"pixels: {shortcuts.pixel_verdict(audit.pixels)}",
        *_feature_lines(audit.pixels),
        *sample_lines(audit),
        "",
        *finding_lines(findings),
    ]


def finding_lines(findings: Sequence[Finding]) -> list[str]:
    """Returns the findings, each with what to do about it."""
    grave = sum(finding.grave for finding in findings)
    found = [f"{grave} finding{'s' * (grave != 1)}, {len(findings) - grave} note{'s' * (len(findings) - grave != 1)}"]
    for finding in findings:
        found += [f"{'!' if finding.grave else '-'} {finding.what}", f"    {finding.what_to_do}"]
        found += [f"    $ {line}" for line in finding.command.splitlines()]
    return found


def _counts_lines(audit: Audit) -> list[str]:
    counts = audit.counts
    total = counts["pictures"]
    classes = ", ".join(f"{count:,} {name} ({count / total:.1%})" for name, count in counts["by_class"].items())
    found = [f"{audit.dataset.root}: {total:,} pictures, {classes}"]
    for key, word in (("by_split", "split"), ("by_source", "source")):
        for name, row in list(counts[key].items()):
            share = sum(row.values()) / total
            found.append(f"  {word} {name or '(none)'}: {row['fake']:,} fake, {row['real']:,} real ({share:.1%})")
    for key in ("formats", "sizes"):
        parts = (f"{name} {_first(counts[key][name])}" for name in NAMES)
        found.append(f"  {key}: {'; '.join(parts)}")
    problems = [f"{len(audit.files[kind]):,} {words}" for kind, words in KINDS.items() if audit.files[kind]]
    found.append(f"  files: {'; '.join(problems) or 'nothing wrong with any'}")
    return [*found, f"  duplicates: {_duplicates_line(audit.clusters)}"]


def _first(counts: dict[str, int]) -> str:
    return ", ".join(f"{value} {count:,}" for value, count in counts.items())


def _duplicates_line(clusters: Sequence[Cluster]) -> str:
    parts = []
    for kind in ("identical", "near"):
        found = [cluster for cluster in clusters if cluster.kind == kind]
        places = [f"{sum(getattr(c, f'across_{where}') for c in found):,} across {where}" for where in _ACROSS]
        pictures = sum(len(cluster.records) for cluster in found)
        parts.append(f"{len(found):,} {kind} groups of {pictures:,} pictures ({', '.join(places)})" if found else "")
    return "; ".join(filter(None, parts)) or "none"


_ACROSS = ("classes", "splits")


def _feature_lines(judged: ProbeResult) -> list[str]:
    telling = _telling(judged)
    shown = [f"  AUC {feature.auc:.2f}  {_told_by(feature)}" for feature in telling]
    rest = [feature.name for feature in telling[_FEATURES_SHOWN:]]
    return [*shown[:_FEATURES_SHOWN], *([f"  and {', '.join(rest)}"] if rest else [])]


def _told_by(feature: Strength) -> str:
    value = feature.values[0] if feature.values else "in no simple way"
    return value if value.startswith(feature.name) else f"{feature.name}: {value}"


def _telling(judged: ProbeResult) -> list[Strength]:
    return [feature for feature in judged.features if feature.auc >= 0.6 and feature.interval[0] > 0.5]


def sample_lines(audit: Audit) -> list[str]:
    """Returns what was drawn of a large set, as a line, or no line."""
    if not audit.sampled:
        return []
    return [
        f"(of {audit.counts['pictures']:,} pictures, {audit.shortcut.images:,} were drawn for the shortcut audit,"
        f" {audit.pixels.images:,} for the pixels)"
    ]


def as_json(audit: Audit, findings: Sequence[Finding], label_errors: dict[str, Any] | None = None) -> dict[str, Any]:
    """Returns the audit for programs; paths are relative to the data set's folder."""
    return {
        "data": str(audit.dataset.root),
        "counts": audit.counts,
        "shortcut": label_errors_json(audit.shortcut, shortcuts.file_verdict(audit.shortcut)),
        "pixels": label_errors_json(audit.pixels, shortcuts.pixel_verdict(audit.pixels)),
        "file_names": label_errors_json(audit.names),
        "duplicates": _duplicates_json(audit),
        "files": {
            kind: [{"image": name_of(problem.path, audit), "detail": problem.detail} for problem in problems]
            for kind, problems in audit.files.items()
        },
        "label_errors": label_errors,
        "findings": [finding.as_json() for finding in findings],
    }


def label_errors_json(judged: ProbeResult, verdict: str | None = None) -> dict[str, Any]:
    """Returns how well something tells, for programs."""

    def rounded(interval: Iterable[float] | None) -> list[float] | None:
        return None if interval is None else [round(value, 4) for value in interval]

    return {
        "auc": None if judged.auc is None else round(judged.auc, 4),
        "interval": rounded(judged.interval),
        "images": judged.images,
        "tells": judged.tells,
        **({"verdict": verdict} if verdict else {}),
        "features": [
            {"name": f.name, "auc": round(f.auc, 4), "interval": rounded(f.interval), "values": list(f.values)}
            for f in judged.features
        ],
        "giveaways": list(judged.giveaways),
    }


def _duplicates_json(audit: Audit) -> dict[str, Any]:
    clusters = audit.clusters
    return {
        "identical": sum(cluster.kind == "identical" for cluster in clusters),
        "near": sum(cluster.kind == "near" for cluster in clusters),
        **{f"across_{where}": sum(getattr(cluster, f"across_{where}") for cluster in clusters) for where in _ACROSS},
        "clusters": [
            {
                "kind": cluster.kind,
                "crossing": crossing(cluster),
                "images": [name_of(record.path, audit) for record in cluster.records],
            }
            for cluster in clusters
        ],
    }


def name_of(path: Path, audit: Audit) -> str:
    """Returns a path relative to the data set's folder."""
    return relative_name(path, audit.dataset.root)


def before_training(
    records: Sequence[Record], near: Sequence[Cluster], root: Path, neutralized: bool
) -> tuple[dict[str, Any], list[str]]:
    """Runs the audit in short: the shortcuts alone.

    Args:
        records: those that take part in the training.
        near: their near-copies.
        root: the data set's folder.
        neutralized: whether the training neutralizes them.

    Returns:
        What was found for programs, and as lines for people.
    """
    judged = audit_in_short(records, near)
    found = of_shortcut(judged, root, neutralized)
    verdict = shortcuts.file_verdict(judged)
    tree = {"shortcut": label_errors_json(judged, verdict), "findings": [finding.as_json() for finding in found]}
    lines = [f"warning: {verdict}", *_feature_lines(judged), f"  {found[0].what_to_do}"] if found else [verdict]
    return tree, [*lines, *(f"  $ {finding.command}" for finding in found if finding.command)]


# ---- An audit as a page that stands alone, with thumbnails; and as JSON beside it.

_EXAMPLES, _CLUSTERS, _OF_A_CLUSTER, _SUSPECTS, _PROBLEMS = 8, 12, 4, 48, 12  # thumbnails on the page, each 5 KB
_FILES_LISTED = 100  # of each kind on the page; audit.json has all
_THUMBNAIL_PX = 128
_LOOKED_AT = ("animated", "tiny", "odd_shaped", "wrong_extension")  # kinds of files that can be shown


def write_page(
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
    write_atomic(folder / "audit.json", json.dumps(tree, indent=4, allow_nan=False).encode())
    html.write_page(
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
        return html.thumbnail(decode(path, _THUMBNAIL_PX)[0], _THUMBNAIL_PX)
    except ImageRefused:
        return None
