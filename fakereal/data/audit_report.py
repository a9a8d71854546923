"""An audit as lines for the terminal and as JSON for programs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fakereal.data import pixel_statistics, shortcuts
from fakereal.data.audit import Audit, audit_in_short
from fakereal.data.duplicates import Cluster, crossing
from fakereal.data.file_problems import KINDS
from fakereal.data.findings import Finding, of_shortcut
from fakereal.data.scan import Record
from fakereal.data.telling import Judged, Strength
from fakereal.labels import NAMES

_FEATURES_SHOWN = 5  # in the terminal


def lines(audit: Audit, findings: Sequence[Finding]) -> list[str]:
    """Returns the audit for people at a terminal."""
    return [
        *_counts_lines(audit),
        "",
        f"shortcut: {shortcuts.verdict(audit.shortcut)}",
        *_feature_lines(audit.shortcut),
        f"pixels: {pixel_statistics.verdict(audit.pixels)}",
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


def _feature_lines(judged: Judged) -> list[str]:
    telling = _telling(judged)
    shown = [f"  AUC {feature.auc:.2f}  {_told_by(feature)}" for feature in telling]
    rest = [feature.name for feature in telling[_FEATURES_SHOWN:]]
    return [*shown[:_FEATURES_SHOWN], *([f"  and {', '.join(rest)}"] if rest else [])]


def _told_by(feature: Strength) -> str:
    value = feature.values[0] if feature.values else "in no simple way"
    return value if value.startswith(feature.name) else f"{feature.name}: {value}"


def _telling(judged: Judged) -> list[Strength]:
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
        "shortcut": judged_json(audit.shortcut, shortcuts.verdict(audit.shortcut)),
        "pixels": judged_json(audit.pixels, pixel_statistics.verdict(audit.pixels)),
        "file_names": judged_json(audit.names),
        "duplicates": _duplicates_json(audit),
        "files": {
            kind: [{"image": name_of(problem.path, audit), "detail": problem.detail} for problem in problems]
            for kind, problems in audit.files.items()
        },
        "label_errors": label_errors,
        "findings": [finding.as_json() for finding in findings],
    }


def judged_json(judged: Judged, verdict: str | None = None) -> dict[str, Any]:
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
    return path.relative_to(audit.dataset.root).as_posix()


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
    verdict = shortcuts.verdict(judged)
    tree = {"shortcut": judged_json(judged, verdict), "findings": [finding.as_json() for finding in found]}
    lines = [f"warning: {verdict}", *_feature_lines(judged), f"  {found[0].what_to_do}"] if found else [verdict]
    return tree, [*lines, *(f"  $ {finding.command}" for finding in found if finding.command)]
