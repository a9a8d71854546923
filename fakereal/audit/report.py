"""Report an audit: lines for the terminal, audit.json for programs, report.html with thumbnails for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fakereal import html
from fakereal.audit import shortcuts
from fakereal.audit.audit import FILE_PROBLEMS, Audit, Finding, probe_shortcuts, shortcut_findings
from fakereal.audit.shortcuts import FeatureResult, ProbeResult
from fakereal.dataset.near_duplicates import Cluster
from fakereal.dataset.scan import Dataset, Record
from fakereal.decoding import decode
from fakereal.errors import ImageRefused
from fakereal.files import relative_name, write_atomic
from fakereal.labels import NAMES

_ACROSS = ("classes", "splits")
_FEATURES_SHOWN, _SOURCES_SHOWN = 5, 15  # in the terminal
_EXAMPLES, _CLUSTERS, _PER_CLUSTER, _PROBLEMS = 8, 12, 4, 12  # thumbnails on the page, each 5 KB
_SUSPECTS, _SUSPECT_PX = 200, 480  # on the page to decide on, each up to 40 KB, since people enlarge them
_FILES_LISTED = 100  # of each kind on the page; audit.json has all
_THUMBNAIL_PX = 128
_SHOWN_PROBLEMS = ("animated", "tiny", "odd_shaped", "wrong_extension")  # kinds of files with a thumbnail


def lines(audit: Audit, findings: Sequence[Finding]) -> list[str]:
    """Return the audit for people at a terminal."""
    return [
        *_counts_lines(audit),
        "",
        shortcuts.file_verdict(audit.shortcut),
        *_feature_lines(audit.shortcut),
        f"pixel statistics: {shortcuts.pixel_verdict(audit.pixels)}",
        *_feature_lines(audit.pixels),
        *_sample_lines(audit),
        "",
        *_finding_lines(findings),
    ]


def _counts_lines(audit: Audit) -> list[str]:
    counts = audit.counts
    total = counts["pictures"]
    classes = ", ".join(f"{count:,} {name} ({count / total:.1%})" for name, count in counts["by_class"].items())
    found = [f"{audit.dataset.root}: {total:,} images, {classes}"]
    for key, noun in (("by_split", "split"), ("by_source", "source")):
        for name, row in list(counts[key].items())[:_SOURCES_SHOWN]:
            share = sum(row.values()) / total
            found.append(f"  {noun} {name or '(none)'}: {row['fake']:,} fake, {row['real']:,} real ({share:.1%})")
        if len(counts[key]) > _SOURCES_SHOWN:
            found.append(f"  and {len(counts[key]) - _SOURCES_SHOWN:,} more {noun}s (audit.json lists all)")
    for key in ("formats", "sizes"):
        parts = (f"{name} {_list_counts(counts[key][name])}" for name in NAMES)
        found.append(f"  {key}: {'; '.join(parts)}")
    problems = [f"{len(audit.files[kind]):,} {text}" for kind, text in FILE_PROBLEMS.items() if audit.files[kind]]
    found.append(f"  files: {'; '.join(problems) or 'no problems'}")
    return [*found, f"  duplicates: {_duplicates_text(audit.clusters)}"]


def _list_counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{value} {count:,}" for value, count in counts.items())


def _duplicates_text(clusters: Sequence[Cluster]) -> str:
    parts = []
    for kind in ("identical", "near"):
        found = [cluster for cluster in clusters if cluster.kind == kind]
        across = ", ".join(f"{_count_across(found, where):,} across {where}" for where in _ACROSS)
        images = sum(len(cluster.records) for cluster in found)
        groups = f"{len(found):,} {kind} group{'s' * (len(found) > 1)}"
        parts += [f"{groups} of {images:,} images ({across})"] if found else []
    return "; ".join(parts) or "none"


def _count_across(clusters: Sequence[Cluster], where: str) -> int:
    return sum(getattr(cluster, f"across_{where}") for cluster in clusters)


def _feature_lines(result: ProbeResult) -> list[str]:
    separating = [feature for feature in result.features if feature.separates]
    shown = [f"  AUC {feature.auc:.2f}  {_feature_text(feature)}" for feature in separating[:_FEATURES_SHOWN]]
    rest = [feature.name for feature in separating[_FEATURES_SHOWN:]]
    return [*shown, *([f"  and {', '.join(rest)}"] if rest else [])]


def _feature_text(feature: FeatureResult) -> str:
    value = feature.values[0] if feature.values else "by no single value"
    return value if value.startswith(feature.name) else f"{feature.name}: {value}"


def _sample_lines(audit: Audit) -> list[str]:
    """Return how many images of a large set were examined, as one line, or no line."""
    if not audit.sampled:
        return []
    return [
        f"(of {audit.counts['pictures']:,} images, {audit.shortcut.images:,} were sampled for the shortcut audit,"
        f" {audit.pixels.images:,} for the pixel statistics)"
    ]


def _finding_lines(findings: Sequence[Finding]) -> list[str]:
    found = [_finding_counts(findings)]
    for finding in findings:
        found += [f"{'!' if finding.serious else '-'} {finding.what}", f"    {finding.what_to_do}"]
        found += [f"    $ {line}" for line in finding.command.splitlines()]
    return found


def _finding_counts(findings: Sequence[Finding]) -> str:
    serious = sum(finding.serious for finding in findings)
    notes = len(findings) - serious
    return f"{serious} finding{'s' * (serious != 1)}, {notes} note{'s' * (notes != 1)}"


def before_training(
    records: Sequence[Record], near: Sequence[Cluster], dataset: Dataset, neutralized: bool
) -> tuple[dict[str, Any], list[str]]:
    """Look for a shortcut before a training; the other checks are left to the audit.

    Args:
        records: the images that take part in the training.
        near: their near-copies.
        dataset: where they are from.
        neutralized: whether the training neutralizes the images.

    Returns:
        The result for the model's report, and as lines for people.
    """
    result = probe_shortcuts(records, near)
    found = shortcut_findings(result, dataset, neutralized)
    verdict = shortcuts.file_verdict(result)
    tree = {"shortcut": _probe_json(result, verdict), "findings": [finding.as_json() for finding in found]}
    lines = [f"warning: {verdict}", *_feature_lines(result), f"  {found[0].what_to_do}"] if found else [verdict]
    return tree, [*lines, *(f"  $ {finding.command}" for finding in found if finding.command)]


def as_json(audit: Audit, findings: Sequence[Finding], label_errors: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the content of audit.json; paths are relative to the data set's folder."""
    return {
        "data": str(audit.dataset.root),
        "counts": audit.counts,
        "shortcut": _probe_json(audit.shortcut, shortcuts.file_verdict(audit.shortcut)),
        "pixels": _probe_json(audit.pixels, shortcuts.pixel_verdict(audit.pixels)),
        "file_names": _probe_json(audit.names),
        "duplicates": _duplicates_json(audit),
        "files": {
            kind: [{"image": _name(problem.path, audit), "detail": problem.detail} for problem in problems]
            for kind, problems in audit.files.items()
        },
        "label_errors": label_errors,
        "findings": [finding.as_json() for finding in findings],
    }


def _probe_json(result: ProbeResult, verdict: str | None = None) -> dict[str, Any]:
    def rounded(interval: tuple[float, float] | None) -> list[float] | None:
        return None if interval is None else [round(value, 4) for value in interval]

    return {
        "auc": None if result.auc is None else round(result.auc, 4),
        "interval": rounded(result.interval),
        "images": result.images,
        "tells": result.separates,
        **({"verdict": verdict} if verdict else {}),
        "features": [
            {"name": f.name, "auc": round(f.auc, 4), "interval": rounded(f.interval), "values": list(f.values)}
            for f in result.features
        ],
        "giveaways": list(result.partial),
    }


def _duplicates_json(audit: Audit) -> dict[str, Any]:
    clusters = audit.clusters
    return {
        "identical": sum(cluster.kind == "identical" for cluster in clusters),
        "near": sum(cluster.kind == "near" for cluster in clusters),
        **{f"across_{where}": _count_across(clusters, where) for where in _ACROSS},
        "clusters": [
            {
                "kind": cluster.kind,
                "crossing": cluster.scope,
                "images": [_name(record.path, audit) for record in cluster.records],
            }
            for cluster in clusters
        ],
    }


def _name(path: Path, audit: Audit) -> str:
    return relative_name(path, audit.dataset.root)


def files_in(folder: Path) -> list[Path]:
    """Return what `write_report` writes into a folder."""
    return [folder / "audit.json", folder / "report.html"]


def write_report(
    folder: Path,
    audit: Audit,
    findings: Sequence[Finding],
    label_errors: dict[str, Any] | None = None,
    decide: Sequence[str] = (),
) -> dict[str, Any]:
    """Write `audit.json` and `report.html`, one file that needs no other, into a folder; return the former's content.

    Args:
        folder: created where missing; an earlier report in it is replaced.
        audit: what was found.
        findings: all of them.
        label_errors: what `label_errors.as_json` returns, or None where labels were not checked.
        decide: the commands that apply the decisions that people save on the page.

    Raises:
        DataError: a file can't be written.
    """
    tree = as_json(audit, findings, label_errors)
    write_atomic(folder / "audit.json", json.dumps(tree, indent=4, allow_nan=False).encode())
    html.write_page(
        folder / "report.html",
        "audit.html",
        **tree,
        banner=_banner(audit, findings),
        kinds=FILE_PROBLEMS,
        files_listed=_FILES_LISTED,
        sample=_sample_lines(audit),
        separating={"shortcut": _separating(audit.shortcut), "pixels": _separating(audit.pixels)},
        examples={name: _thumbnails(_of_class(audit, label), audit) for label, name in enumerate(NAMES)},
        clusters=[_cluster(cluster, audit) for cluster in _worst(audit.clusters)],
        problem_images={
            kind: _thumbnails([p.path for p in audit.files[kind]][:_PROBLEMS], audit) for kind in _SHOWN_PROBLEMS
        },
        sheet=_sheet(audit, label_errors["suspects"]) if label_errors else None,
        decide=decide,
    )
    return tree


def _banner(audit: Audit, findings: Sequence[Finding]) -> dict[str, str]:
    """Return the worst finding's sentence, its color as a CSS class of the page, and what else there is."""
    if not findings:
        return {"level": "good", "what": shortcuts.file_verdict(audit.shortcut), "count": "no findings"}
    worst = findings[0]  # serious ones come first
    return {"level": "bad" if worst.serious else "doubtful", "what": worst.what, "count": _finding_counts(findings)}


def _sheet(audit: Audit, suspects: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the worst suspects as the sheet of `decide.html`."""
    shown = suspects[:_SUSPECTS]
    images = [
        {
            **row,
            "thumbnail": _thumbnail(audit.dataset.root / row["image"], _SUSPECT_PX),
            "lines": [("label:", row["given"]), ("suggested:", row["suggested"]), (f"score {row['score']:.3f}", None)],
        }
        for row in shown
    ]
    return html.decision_sheet(str(audit.dataset.root), images)


def _separating(result: ProbeResult) -> list[str]:
    return [feature.name for feature in result.features if feature.separates]


def _of_class(audit: Audit, label: int) -> list[Path]:
    """Return some images of a class, sampled by their content."""
    records = sorted((r for r in audit.dataset.records if r.label == label), key=lambda record: record.content)
    return [record.path for record in records[:_EXAMPLES]]


def _worst(clusters: Sequence[Cluster]) -> list[Cluster]:
    """Return the groups to show: those across classes first, then across splits."""
    return sorted(clusters, key=lambda c: (not c.across_classes, not c.across_splits))[:_CLUSTERS]


def _cluster(cluster: Cluster, audit: Audit) -> dict[str, Any]:
    shown = cluster.records
    if cluster.across_classes:  # at least one of each class
        shown = sorted(shown, key=lambda record: record.label)
        shown = [shown[0], shown[-1], *shown[1:-1]]
    shown = shown[:_PER_CLUSTER]
    images = _thumbnails([record.path for record in shown], audit)
    for image, record in zip(images, shown, strict=True):
        image |= {"label": NAMES[record.label], "split": record.split}
    return {"kind": cluster.kind, "scope": cluster.scope, "images": images, "more": len(cluster.records) - len(shown)}


def _thumbnails(paths: Sequence[Path], audit: Audit) -> list[dict[str, Any]]:
    return [{"image": _name(path, audit), "thumbnail": _thumbnail(path)} for path in paths]


def _thumbnail(path: Path, size_px: int = _THUMBNAIL_PX) -> str | None:
    """Return a data URI, or None where the image can't be read any more."""
    try:
        return html.thumbnail(decode(path, size_px)[0], size_px)
    except ImageRefused:
        return None
