"""The audit of a data set: what it holds, what is wrong with its files, and whether they give the answer away."""

from __future__ import annotations

import shlex
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fakereal.audit import shortcuts
from fakereal.audit.shortcuts import ProbeResult
from fakereal.dataset import image_metadata
from fakereal.dataset import image_metadata as file_facts
from fakereal.dataset.image_metadata import FileFacts
from fakereal.dataset.near_duplicates import Cluster, duplicate_groups, find_duplicates
from fakereal.dataset.scan import Dataset, Record, labels_of, sample
from fakereal.decoding import decode
from fakereal.errors import DataError, ImageRefused
from fakereal.files import relative_name
from fakereal.labels import NAMES

MOST_OF_A_CLASS = 2500
"""Pictures of a class that the shortcut audit looks at: the AUC is then known to about 0.02."""

_MOST_IN_SHORT = 1000
_SIZES_NAMED = 3
_PREFIX = 16  # hexadecimal digits of a content hash that are enough to sort by


@dataclass(frozen=True)
class Audit:
    """All that is known of a data set without a network."""

    dataset: Dataset
    counts: dict[str, Any]  # pictures by class, source, split; formats and sizes by class
    files: dict[str, tuple[FileProblem, ...]]  # by kind, see `file_problems.KINDS`
    shortcut: ProbeResult  # from headers
    names: ProbeResult  # from file names
    pixels: ProbeResult  # from trivial measures
    clusters: tuple[Cluster, ...]  # the same picture several times

    @property
    def sampled(self) -> bool:
        """Whether there were more pictures than the shortcut audit looked at."""
        return self.shortcut.images < len(self.dataset.records)


def audit(dataset: Dataset) -> Audit:
    """Audits a data set; headers are read of every file, classifiers look at a sample of large sets.

    Raises:
        DataError: the pictures vanished since the scan.
    """
    clusters = find_duplicates(dataset.records)
    found = file_facts.read_all_file_facts([record.path for record in dataset.records])
    known = [number for number, fact in enumerate(found) if fact]
    records, facts = [dataset.records[number] for number in known], [found[number] for number in known]
    if not known:
        raise DataError(f"{dataset.root}: expected the pictures of a moment ago, found none: try again")
    labels, groups = labels_of(records), _groups_audit(records, clusters)
    order = sorted(range(len(records)), key=lambda number: records[number].content[:_PREFIX])
    sample = _first_of_each_class(order, labels, MOST_OF_A_CLASS)
    judged = _of(sample, facts, labels, groups)
    return Audit(
        dataset=dataset,
        counts=_counts(dataset, records, facts),
        files=find_problems(dataset, found),
        shortcut=shortcuts.audit_files(*judged),
        names=shortcuts.audit_names(*judged),
        pixels=_audit_pixels(records, facts, labels, groups, order),
        clusters=clusters,
    )


def audit_in_short(records: Sequence[Record], near: Sequence[Cluster]) -> ProbeResult:
    """Returns the shortcut audit alone, of fewer pictures: a second or two before a training.

    Args:
        records: both classes.
        near: their near-copies.
    """
    order = sorted(range(len(records)), key=lambda number: records[number].content[:_PREFIX])
    chosen = [records[n] for n in _first_of_each_class(order, labels_of(records), _MOST_IN_SHORT)]
    found = file_facts.read_all_file_facts([record.path for record in chosen])
    known = [number for number, fact in enumerate(found) if fact]
    return shortcuts.audit_files(*_of(known, found, labels_of(chosen), _groups_audit(chosen, near)))


def _of(chosen: Sequence[int], facts: Sequence[FileFacts], labels: np.ndarray, groups: Sequence[str]) -> tuple:
    return [facts[number] for number in chosen], labels[np.array(chosen, int)], [groups[number] for number in chosen]


def _groups_audit(records: Sequence[Record], clusters: Sequence[Cluster]) -> list[str]:
    """Returns a name for each picture that its copies share."""
    return [records[first].content for first in duplicate_groups(records, clusters)]


def _first_of_each_class(order: Sequence[int], labels: np.ndarray, most: int) -> list[int]:
    return sorted(n for label in (0, 1) for n in [n for n in order if labels[n] == label][:most])


def _audit_pixels(
    records: Sequence[Record],
    facts: Sequence[FileFacts],
    labels: np.ndarray,
    groups: Sequence[str],
    order: Sequence[int],
) -> ProbeResult:
    drawn = image_metadata.sample_for_pixels(facts, labels, order)
    measured = image_metadata.measure_all([records[number].path for number in drawn])
    pairs = [(number, statistics) for number, statistics in zip(drawn, measured, strict=True) if statistics]
    numbers = [number for number, _ in pairs]
    return shortcuts.audit_pixels([statistics for _, statistics in pairs], *_of(numbers, facts, labels, groups))


def _counts(dataset: Dataset, records: Sequence[Record], facts: Sequence[FileFacts]) -> dict[str, Any]:
    return {
        "pictures": len(dataset.records),
        "skipped": sum(item.failed for item in dataset.skipped),
        "other_files": sum(not item.failed for item in dataset.skipped),
        "by_class": _per_class(dataset.records),
        "by_split": _table(dataset.records, lambda record: record.split),
        "by_source": _table(dataset.records, lambda record: record.source),
        "formats": _facts_by_class(records, facts, lambda fact: fact.format),
        "sizes": _facts_by_class(records, facts, lambda fact: f"{fact.width_px}x{fact.height_px}", _SIZES_NAMED),
    }


def _per_class(records: Sequence[Record]) -> dict[str, int]:
    counts = Counter(record.label for record in records)
    return {name: counts[label] for label, name in enumerate(NAMES)}


def _table(records: Sequence[Record], key: Callable[[Record], str | None]) -> dict[str, dict[str, int]]:
    """Returns the classes' counts by split or source; nothing where the layout names none."""
    rows: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        rows[key(record) or ""].append(record)
    return {name: _per_class(rows[name]) for name in sorted(rows)} if list(rows) != [""] else {}


def _facts_by_class(
    records: Sequence[Record], facts: Sequence[FileFacts], key: Callable[[FileFacts], str], most: int | None = None
) -> dict[str, dict[str, int]]:
    """Returns how often each value occurs in each class, the most frequent first, and how many others there are."""
    tables = {}
    for label, name in enumerate(NAMES):
        counts = Counter(key(fact) for record, fact in zip(records, facts, strict=True) if record.label == label)
        named = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most])
        others = counts.total() - sum(named.values())
        tables[name] = named | ({f"{len(counts) - len(named)} others": others} if others else {})
    return tables


# ---- Files that a data set is better without, or that deserve a look: each named, with what is the matter.

TINY_PX = 32
"""A picture whose shorter side is below that shows too little."""

ODD_ASPECT = 3.0
"""A picture that is longer than so many times its width, or wider, is squeezed badly into a square."""

KINDS = {
    "unreadable": "unreadable",
    "truncated": "cut off",
    "unused": "pictures by name, but in no class folder",
    "wrong_extension": "an extension that is not the format's",
    "animated": "several frames",
    "tiny": f"a side below {TINY_PX} pixels",
    "odd_shaped": f"more than {ODD_ASPECT:g} times as long as wide, or as wide as long",
}
"""What is the matter with the files of each kind."""

_DECODE_PX = 32  # enough to learn why a file is refused
_EXTENSIONS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "TIFF": (".tif", ".tiff"),
    **{name: (f".{name.lower()}",) for name in ("PNG", "WEBP", "BMP", "GIF", "AVIF")},
}


@dataclass(frozen=True)
class FileProblem:
    """What is the matter with one file."""

    path: Path
    detail: str  # one line


def find_problems(dataset: Dataset, facts: Sequence[FileFacts | None]) -> dict[str, tuple[FileProblem, ...]]:
    """Returns the problems by kind, all of `KINDS`, each sorted by path; a file may have several.

    Args:
        dataset: what `scan` found.
        facts: those of each record, in the records' order; None where its header can't be read any more.
    """
    found: dict[str, list[FileProblem]] = {kind: [] for kind in KINDS}
    for skipped in dataset.skipped:
        if skipped.failed:
            found[_kind_of_refused(skipped.path)].append(FileProblem(skipped.path, skipped.reason))
    for record, fact in zip(dataset.records, facts, strict=True):
        for kind, detail in _kinds(fact).items():
            found[kind].append(FileProblem(record.path, detail))
    return {kind: tuple(sorted(problems, key=lambda problem: problem.path)) for kind, problems in found.items()}


def _kind_of_refused(path: Path) -> str:
    """Asks the decoder once more: a listing holds its sentence only, not its reason."""
    if path.is_dir():  # named like a picture, or closed to us
        return "unreadable"
    try:
        decode(path, _DECODE_PX)
    except ImageRefused as error:
        return "truncated" if error.reason == "truncated" else "unreadable"
    return "unused"


def _kinds(fact: FileFacts | None) -> dict[str, str]:
    if fact is None:
        return {"unreadable": "expected the file of a moment ago, found none that can be read"}
    size = f"{fact.width_px}x{fact.height_px}"
    found = {}
    if fact.extension not in _EXTENSIONS[fact.format]:
        found["wrong_extension"] = f"is {fact.format} inside"
    if fact.frames > 1:
        found["animated"] = f"{fact.frames} frames; only the first counts"
    if min(fact.width_px, fact.height_px) < TINY_PX:
        found["tiny"] = size
    if not 1 / ODD_ASPECT <= fact.aspect <= ODD_ASPECT:
        found["odd_shaped"] = size
    return found


# ---- What an audit found, in plain words: what it is, how many pictures it concerns, what to do, by which command.

RARE_CLASS = 0.2
"""A class with a smaller share of the pictures is worth a note."""


@dataclass(frozen=True)
class Finding:
    """One thing to know, or to do something about."""

    kind: str  # one word for programs
    grave: bool  # False: a note, which --strict doesn't mind
    what: str  # one sentence
    how_many: int  # pictures
    what_to_do: str
    command: str = ""  # as typed into a shell

    def as_json(self) -> dict[str, Any]:
        """Returns it for programs."""
        return {"kind": self.kind, "level": "finding" if self.grave else "note", **_without(self, "kind", "grave")}


def _without(finding: Finding, *keys: str) -> dict[str, Any]:
    return {key: value for key, value in vars(finding).items() if key not in keys}


def findings(audit: Audit, more: Iterable[Finding] = ()) -> tuple[Finding, ...]:
    """Returns all findings, and those that were found elsewhere, grave ones first."""
    root = audit.dataset.root
    found = [
        *of_shortcut(audit.shortcut, root),
        *_of_duplicates(audit),
        *_of_files(audit),
        *_of_names(audit.names),
        *more,
        *_of_balance(audit),
    ]
    return tuple(sorted(found, key=lambda finding: not finding.grave))


def of_shortcut(judged: ProbeResult, root: Path, neutralized: bool = False) -> list[Finding]:
    """Returns the shortcut finding, if there is one.

    Args:
        judged: the audit of the files.
        root: the data set's folder, for the command.
        neutralized: True where the pictures are going to be neutralized anyway.
    """
    if not (judged.tells or judged.giveaways):
        return []
    if neutralized:
        to_do, command = "nothing more: this training neutralizes the pictures, and so will prediction", ""
    else:
        to_do = (
            "give both classes one crop, size and encoding, or a detector learns the files and fails on any other:"
            " train with --neutralize, or write a neutral copy"
        )
        command = f"python train_model.py --data {shlex.quote(str(root))} --neutralize"
    return [Finding("shortcut", not neutralized, shortcuts.file_verdict(judged), judged.images, to_do, command)]


def of_label_errors(tree: dict[str, Any], commands: Sequence[str]) -> list[Finding]:
    """Returns the finding about suspected labels; `tree` as `label_errors.as_json` gives it."""
    count = len(tree["suspects"])
    if not count:
        return []
    low, high = tree["interval"]
    what = f"suspect labels: {count:,}; in all {tree['expected']:,} are expected to be wrong ({low:,} to {high:,})"
    if tree["reliable"]:
        to_do = "look at the worst in report.html; then let image_separate.py apply the predictions, alone or as a vote"
        return [Finding("label_errors", True, what, count, to_do, "\n".join(commands))]
    to_do = "let people decide (report.html): these pictures are too hard for the base to be relied on"
    return [Finding("label_errors", False, what, count, to_do)]


def _of_duplicates(audit: Audit) -> Iterator[Finding]:
    root = audit.dataset.root

    def of(kind: str, across: str) -> list[Cluster]:
        return [c for c in audit.clusters if c.kind == kind and getattr(c, f"across_{across}")]

    if clusters := of("identical", "classes"):
        what = f"identical pictures in both classes, {_groups(clusters, root)}: one label of each is wrong"
        to_do = "delete the wrong one (report.html shows them); until then training leaves all of them out"
        yield Finding("identical_across_classes", True, what, _image_count(clusters), to_do)
    if clusters := of("near", "classes"):
        what = f"near-copies in both classes, {_groups(clusters, root)}"
        to_do = "look at them: a wrong label, or an original and its manipulation, which may stay"
        yield Finding("near_across_classes", False, what, _image_count(clusters), to_do)
    if clusters := of("identical", "splits"):
        what = f"identical pictures in several splits, {_groups(clusters, root)}: a test that can be learnt by heart"
        to_do = "delete those in val and test; until then training leaves them out of there"
        yield Finding("identical_across_splits", True, what, _image_count(clusters), to_do)
    if clusters := of("near", "splits"):
        what = f"near-copies in several splits, {_groups(clusters, root)}: the test is easier than it should be"
        to_do = "delete those in val and test: training warns, but keeps a split that the folders give"
        yield Finding("near_across_splits", True, what, _image_count(clusters), to_do)


def _groups(clusters: Sequence[Cluster], root: Path) -> str:
    """Returns how many groups there are, and the first two pictures of the first one."""
    first = " and ".join(_names([record.path for record in clusters[0].records[:2]], root))
    return f"{len(clusters):,} group{'s' if len(clusters) > 1 else ''} (such as {first})"


def _names(paths: Iterable[Path], root: Path) -> list[str]:
    return [relative_name(path, root) for path in paths]


def _image_count(clusters: list[Cluster]) -> int:
    return sum(len(cluster.records) for cluster in clusters)


_TO_DO = {
    "unreadable": "replace or delete them; nothing uses them",
    "truncated": "copy or download them anew, or delete them; nothing uses them",
    "unused": "move them into a folder of fake or of real pictures, if they are meant to be used",
    "wrong_extension": "nothing: the content decides; rename them for other programs' sake",
    "animated": "nothing, if the first frame will do; else save the one that counts",
    "tiny": "find larger versions, or delete them if other pictures are large",
    "odd_shaped": "crop them: a network sees a square",
}


def _of_files(audit: Audit) -> Iterator[Finding]:
    for kind, problems in audit.files.items():
        if problems:
            grave = kind in ("unreadable", "truncated", "unused")
            named = sample(_names((problem.path for problem in problems), audit.dataset.root))
            what = f"{len(problems):,} file{'s' if len(problems) > 1 else ''}: {KINDS[kind]} ({named})"
            yield Finding(kind, grave, what, len(problems), _TO_DO[kind])


def _of_names(judged: ProbeResult) -> Iterator[Finding]:
    if judged.tells:
        values = "; ".join(judged.features[0].values[:1])
        what = (
            f"the make-up of file names tells fake from real with AUC {judged.auc:.2f}{f' ({values})' * bool(values)}"
        )
        to_do = "nothing for a network, which sees no names; hide them from people who judge the pictures"
        yield Finding("file_names", False, what, judged.images, to_do)


def _of_balance(audit: Audit) -> Iterator[Finding]:
    counts = audit.counts["by_class"]
    rare = min(NAMES, key=lambda name: counts[name])
    share = counts[rare] / sum(counts.values())
    if share < RARE_CLASS:
        what = f"only {share:.1%} of the pictures are {rare}"
        to_do = f"add {rare} pictures, or let each weigh more: training.class_weights: true in a recipe"
        yield Finding("rare_class", False, what, counts[rare], to_do)
    sources = audit.counts["by_source"]
    one_sided = {name: row for name, row in sources.items() if 0 in row.values()}
    if one_sided and len(sources) > 1:
        what = f"sources with one class only: {len(one_sided):,} of {len(sources):,} ({sample(list(one_sided))})"
        to_do = "add pictures of the other class to them: what is peculiar to such a source can pass for fake or real"
        yield Finding("one_sided_sources", False, what, sum(sum(row.values()) for row in one_sided.values()), to_do)
