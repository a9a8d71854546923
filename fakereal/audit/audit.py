"""Audit a labeled data set without a network: count it, check its files, find copies and shortcuts.

`audit_dataset` collects the facts, `find_problems` among them names the files that need a look, and `findings` says
what to do about all of it, most serious first.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from fakereal.audit import shortcuts
from fakereal.audit.shortcuts import ProbeResult
from fakereal.cli import command_line
from fakereal.dataset.image_metadata import FileFacts, measure_all_pixels, read_all_file_facts
from fakereal.dataset.near_duplicates import Cluster, duplicate_groups, find_duplicates
from fakereal.dataset.scan import Dataset, Record, abbreviate, class_counts, labels_of
from fakereal.dataset.split import ENOUGH
from fakereal.decoding import SUFFIXES_BY_FORMAT, decode
from fakereal.errors import DataError, ImageRefused
from fakereal.files import relative_name
from fakereal.labels import FAKE, NAMES, REAL

MAX_PER_CLASS = 2500
"""Images of each class that the shortcut audit examines: the AUC is then known to about 0.02."""

MAX_PER_CLASS_BEFORE_TRAINING = 1000
"""The same for the check before a training, which takes a second or two."""

MAX_MEASURED_PER_CLASS = 500
"""Images of each class whose pixels are measured; fewer where they are large."""

PIXEL_BUDGET = 250_000_000
"""Pixels decoded for each class, which takes some seconds."""

TINY_PX = 32
"""An image whose shorter side is below this shows too little."""

ODD_ASPECT = 3.0
"""An image that is more than this many times as long as wide, or as wide as long, is distorted badly in a square."""

RARE_CLASS = 0.2
"""A class with a smaller share of the images is worth a note."""

FILE_PROBLEMS = {
    "unreadable": "unreadable",
    "truncated": "truncated",
    "unused": "images outside every class folder",
    "wrong_extension": "file name extension of another format",
    "animated": "several frames",
    "tiny": f"a side below {TINY_PX} pixels",
    "odd_shaped": f"one side more than {ODD_ASPECT:g} times the other",
}
"""The kinds of file problems, and how they are called."""

_ADVICE = {
    "unreadable": "replace or delete them; they are never used",
    "truncated": "copy or download them again, or delete them; they are never used",
    "unused": "move them into a folder of fake or of real images if they are meant to be used",
    "wrong_extension": "nothing: the content decides; rename them for the sake of other programs",
    "animated": "nothing if the first frame will do; else save the frame that counts",
    "tiny": "find larger versions, or delete them if other images are large",
    "odd_shaped": "crop them: a network sees a square",
}
_DUPLICATES = (  # kind, across what, whether it is serious, what it is, what to do
    (
        *("identical", "classes", True),
        "identical images in both classes, {groups}: one label of each group is wrong",
        "delete the wrong one (report.html shows them); until then training leaves all of them out",
    ),
    (
        *("near", "classes", False),
        "near-copies in both classes, {groups}",
        "check them: a wrong label, or an original and its manipulation, which may stay",
    ),
    (
        *("identical", "splits", True),
        "identical images in several splits, {groups}: the test can be memorized",
        "delete those in val and test; until then training leaves them out there",
    ),
    (
        *("near", "splits", True),
        "near-copies in several splits, {groups}: the test is easier than it should be",
        "delete those in val and test: training warns, but keeps a split that the folders give",
    ),
)
_SERIOUS_PROBLEMS = ("unreadable", "truncated", "unused")
_MIN_MEASURED_PER_CLASS = 30  # however large they are
_SIZES_LISTED = 3  # of each class
_DECODE_PX = 32  # enough to learn why a file is refused


@dataclass(frozen=True)
class FileProblem:
    """What is wrong with one file."""

    path: Path
    detail: str  # one line


@dataclass(frozen=True)
class Audit:
    """All that is known of a data set without a network."""

    dataset: Dataset
    counts: dict[str, Any]  # images by class, source and split; formats and sizes by class
    files: dict[str, tuple[FileProblem, ...]]  # by kind, all of FILE_PROBLEMS
    shortcut: ProbeResult  # of header fields
    names: ProbeResult  # of file names
    pixels: ProbeResult  # of pixel statistics
    clusters: tuple[Cluster, ...]  # identical images and near-copies

    @property
    def sampled(self) -> bool:
        """Whether there are more images than the shortcut audit examined."""
        return self.shortcut.images < len(self.dataset.records)


@dataclass(frozen=True)
class Finding:
    """Something to know, or to act on."""

    kind: str  # one word for programs
    serious: bool  # False: a note, which --strict ignores
    what: str  # one sentence
    how_many: int  # images
    what_to_do: str
    command: str = ""  # for a shell

    def as_json(self) -> dict[str, Any]:
        """Return its entry in audit.json."""
        level = "finding" if self.serious else "note"
        rest = {key: value for key, value in vars(self).items() if key not in ("kind", "serious")}
        return {"kind": self.kind, "level": level, **rest}


def audit_dataset(dataset: Dataset) -> Audit:
    """Audit a data set; every header is read, and large sets are sampled for the classifiers.

    Raises:
        DataError: no image can be read any more.
    """
    clusters = find_duplicates(dataset.records)
    all_facts = read_all_file_facts([record.path for record in dataset.records])
    known = [(record, fact) for record, fact in zip(dataset.records, all_facts, strict=True) if fact]
    if not known:
        raise DataError(f"{dataset.root}: none of the images found a moment ago can be read any more: run it again")
    records, facts = [record for record, _ in known], [fact for _, fact in known]
    data = _ProbeData.of(records, facts, clusters)
    examined = data.rows(data.first_of_each_class(MAX_PER_CLASS))
    return Audit(
        dataset=dataset,
        counts=_counts(dataset, records, facts),
        files=find_problems(dataset, all_facts),
        shortcut=shortcuts.probe_files(*examined),
        names=shortcuts.probe_file_names(*examined),
        pixels=_probe_pixels(records, data),
        clusters=clusters,
    )


def probe_shortcuts(records: Sequence[Record], near: Sequence[Cluster]) -> ProbeResult:
    """Return the shortcut audit alone, on fewer images.

    Args:
        records: images of both classes.
        near: their near-copies.
    """
    labels, order = labels_of(records), _content_order(records)
    chosen = [records[row] for row in _first_of_each_class(order, labels, MAX_PER_CLASS_BEFORE_TRAINING)]
    all_facts = read_all_file_facts([record.path for record in chosen])
    known = [row for row, fact in enumerate(all_facts) if fact]
    return shortcuts.probe_files(*_ProbeData.of(chosen, all_facts, near).rows(known))


@dataclass(frozen=True)
class _ProbeData:
    """What the probes need of each image; equally long."""

    facts: Sequence[FileFacts]
    labels: np.ndarray  # int (n,)
    groups: Sequence[str]  # equal for copies of one image
    order: Sequence[int]  # row numbers by content: a sample that does not depend on names

    @classmethod
    def of(cls, records: Sequence[Record], facts: Sequence[FileFacts], clusters: Sequence[Cluster]) -> _ProbeData:
        groups = [records[first].content for first in duplicate_groups(records, clusters)]
        return cls(facts, labels_of(records), groups, _content_order(records))

    def first_of_each_class(self, count: int) -> list[int]:
        return _first_of_each_class(self.order, self.labels, count)

    def rows(self, numbers: Sequence[int]) -> tuple[list[FileFacts], np.ndarray, list[str]]:
        """Return facts, labels and groups of some images, as the probes take them."""
        labels = self.labels[np.array(numbers, int)]
        return [self.facts[n] for n in numbers], labels, [self.groups[n] for n in numbers]


def _content_order(records: Sequence[Record]) -> list[int]:
    return sorted(range(len(records)), key=lambda row: records[row].content[:16])  # 16 digits are unique enough


def _first_of_each_class(order: Sequence[int], labels: np.ndarray, count: int) -> list[int]:
    return sorted(row for label in (FAKE, REAL) for row in [row for row in order if labels[row] == label][:count])


def _probe_pixels(records: Sequence[Record], data: _ProbeData) -> ProbeResult:
    sampled = _sample_for_pixels(data)
    measured = measure_all_pixels([records[row].path for row in sampled])
    pairs = [(row, statistics) for row, statistics in zip(sampled, measured, strict=True) if statistics]
    return shortcuts.probe_pixels([statistics for _, statistics in pairs], *data.rows([row for row, _ in pairs]))


def _sample_for_pixels(data: _ProbeData) -> list[int]:
    """Return the rows of the images to measure, of both classes alternately."""
    per_class = []
    for label in (FAKE, REAL):
        rows = [row for row in data.order if data.labels[row] == label][:MAX_MEASURED_PER_CLASS]
        pixels = np.cumsum([data.facts[row].width_px * data.facts[row].height_px for row in rows])
        affordable = int(np.searchsorted(pixels, PIXEL_BUDGET))
        per_class.append(rows[: max(affordable, _MIN_MEASURED_PER_CLASS)])
    return [row for row in chain(*zip_longest(*per_class)) if row is not None]


def _counts(dataset: Dataset, records: Sequence[Record], facts: Sequence[FileFacts]) -> dict[str, Any]:
    return {
        "pictures": len(dataset.records),
        "skipped": sum(item.failed for item in dataset.skipped),
        "other_files": sum(not item.failed for item in dataset.skipped),
        "by_class": _by_class(dataset.records),
        "by_split": _by_class_and(dataset.records, lambda record: record.split),
        "by_source": _by_class_and(dataset.records, lambda record: record.source),
        "formats": _values_by_class(records, facts, lambda fact: fact.format),
        "sizes": _values_by_class(records, facts, lambda fact: f"{fact.width_px}x{fact.height_px}", _SIZES_LISTED),
    }


def _by_class(records: Sequence[Record]) -> dict[str, int]:
    return dict(zip(NAMES, class_counts(records), strict=True))


def _by_class_and(records: Sequence[Record], key: Callable[[Record], str | None]) -> dict[str, dict[str, int]]:
    """Return the class counts by split or source; {} where the layout names none."""
    rows: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        rows[key(record) or ""].append(record)
    return {name: _by_class(rows[name]) for name in sorted(rows)} if list(rows) != [""] else {}


def _values_by_class(
    records: Sequence[Record], facts: Sequence[FileFacts], key: Callable[[FileFacts], str], most: int | None = None
) -> dict[str, dict[str, int]]:
    """Return how often each value occurs in each class, the most frequent first, the rest as `N others`."""
    tables = {}
    for label, name in enumerate(NAMES):
        counts = Counter(key(fact) for record, fact in zip(records, facts, strict=True) if record.label == label)
        listed = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most])
        others = counts.total() - sum(listed.values())
        tables[name] = listed | ({f"{len(counts) - len(listed)} others": others} if others else {})
    return tables


def find_problems(dataset: Dataset, facts: Sequence[FileFacts | None]) -> dict[str, tuple[FileProblem, ...]]:
    """Return the file problems by kind, all of `FILE_PROBLEMS`, each sorted by path; a file may have several.

    Args:
        dataset: what `scan` found.
        facts: of each record, in order; None where the header can't be read any more.
    """
    found: dict[str, list[FileProblem]] = {kind: [] for kind in FILE_PROBLEMS}
    for skipped in dataset.skipped:
        if skipped.failed:
            found[_kind_of_skipped(skipped.path)].append(FileProblem(skipped.path, skipped.reason))
    for record, fact in zip(dataset.records, facts, strict=True):
        for kind, detail in _problems_of(fact).items():
            found[kind].append(FileProblem(record.path, detail))
    return {kind: tuple(sorted(problems, key=lambda problem: problem.path)) for kind, problems in found.items()}


def _kind_of_skipped(path: Path) -> str:
    """Decode the file again: the scan keeps the sentence that says why it was skipped, not the kind."""
    if path.is_dir():  # named like an image, or not accessible
        return "unreadable"
    try:
        decode(path, _DECODE_PX)
    except ImageRefused as error:
        return "truncated" if error.reason == "truncated" else "unreadable"
    return "unused"


def _problems_of(fact: FileFacts | None) -> dict[str, str]:
    if fact is None:
        return {"unreadable": "was readable a moment ago, and is not any more"}
    size = f"{fact.width_px}x{fact.height_px}"
    found = {}
    if fact.extension not in SUFFIXES_BY_FORMAT[fact.format]:
        found["wrong_extension"] = f"the content is {fact.format}"
    if fact.frames > 1:
        found["animated"] = f"{fact.frames} frames; only the first is used"
    if min(fact.width_px, fact.height_px) < TINY_PX:
        found["tiny"] = size
    if not 1 / ODD_ASPECT <= fact.aspect <= ODD_ASPECT:
        found["odd_shaped"] = size
    return found


def findings(audit: Audit, label_errors: Iterable[Finding] = ()) -> tuple[Finding, ...]:
    """Return all findings, serious ones first; `label_errors` are those of `label_error_findings`."""
    found = [
        *shortcut_findings(audit.shortcut, audit.dataset),
        *_duplicate_findings(audit),
        *_file_findings(audit),
        *_name_findings(audit.names),
        *label_errors,
        *_balance_findings(audit),
    ]
    return tuple(sorted(found, key=lambda finding: not finding.serious))


def shortcut_findings(result: ProbeResult, dataset: Dataset, neutralized: bool = False) -> list[Finding]:
    """Return the shortcut finding, if there is one.

    Args:
        result: of the header fields.
        dataset: its folder and its rules are for the command.
        neutralized: True where the images are going to be neutralized anyway.
    """
    if not (result.separates or result.partial):
        return []
    if neutralized:
        advice, command = "nothing more: this training neutralizes the images, and so will prediction", ""
    else:
        advice = (
            "give both classes one crop, size and encoding, or a detector learns the files and fails elsewhere:"
            " train with --neutralize, or write a neutral copy"
        )
        command = command_line("train", "--data", dataset.root, *dataset.rules.options(), "--neutralize")
    return [Finding("shortcut", not neutralized, shortcuts.file_verdict(result), result.images, advice, command)]


def label_error_findings(tree: dict[str, Any], commands: Sequence[str]) -> list[Finding]:
    """Return the finding about suspect labels, if there is one; `tree` is what `label_errors.as_json` returns."""
    count = len(tree["suspects"])
    if not count:
        return []
    low, high = tree["interval"]
    labels = f"{count:,} suspect label{'s' * (count > 1)}"
    what = f"{labels}; estimated number of wrong ones: {tree['expected']:,} (95 % CI {low:,}-{high:,})"
    if tree["reliable"]:
        advice = "decide on them in report.html; or apply all suggestions with image_separate.py, alone or as a vote"
        return [Finding("label_errors", True, what, count, advice, "\n".join(commands))]
    advice = "let people decide (report.html): the shipped model separates these images too poorly to be relied on"
    return [Finding("label_errors", False, what, count, advice)]


def _duplicate_findings(audit: Audit) -> Iterator[Finding]:
    for kind, across, serious, what, advice in _DUPLICATES:
        clusters = [c for c in audit.clusters if c.kind == kind and getattr(c, f"across_{across}")]
        if clusters:
            what = what.format(groups=_groups_text(clusters, audit.dataset.root))
            images = sum(len(cluster.records) for cluster in clusters)
            yield Finding(f"{kind}_across_{across}", serious, what, images, advice)


def _groups_text(clusters: Sequence[Cluster], root: Path) -> str:
    """Return the number of groups, and the first two images of the first one."""
    first = " and ".join(relative_name(record.path, root) for record in clusters[0].records[:2])
    return f"{len(clusters):,} group{'s' if len(clusters) > 1 else ''} (such as {first})"


def _file_findings(audit: Audit) -> Iterator[Finding]:
    for kind, problems in audit.files.items():
        if problems:
            examples = abbreviate([relative_name(problem.path, audit.dataset.root) for problem in problems])
            files = f"{len(problems):,} file{'s' if len(problems) > 1 else ''}"
            what = f"{files}: {FILE_PROBLEMS[kind]} ({examples})"
            yield Finding(kind, kind in _SERIOUS_PROBLEMS, what, len(problems), _ADVICE[kind])


def _name_findings(result: ProbeResult) -> Iterator[Finding]:
    if result.separates:
        example = f": {result.features[0].values[0]}" if result.features[0].values else ""
        what = f"the pattern of file names tells fake from real (AUC {result.auc:.2f}){example}"
        advice = "nothing for a network, which sees no names; hide them from people who label the images"
        yield Finding("file_names", False, what, result.images, advice)


def _balance_findings(audit: Audit) -> Iterator[Finding]:
    counts = audit.counts["by_class"]
    rare = min(NAMES, key=lambda name: counts[name])
    share = counts[rare] / sum(counts.values())
    if share < RARE_CLASS:
        what = f"only {share:.1%} of the images are {rare}"
        advice = f"add {rare} images, or train with --class-weights"
        yield Finding("rare_class", False, what, counts[rare], advice)
    if counts[rare] < shortcuts.MIN_IMAGES:
        what = f"{counts['fake']:,} fake and {counts['real']:,} real images are too few to judge anything by"
        advice = f"collect at least {ENOUGH} of each class: a fifth of them is the test"
        yield Finding("few_images", False, what, sum(counts.values()), advice)
    sources = audit.counts["by_source"]
    one_sided = {name: row for name, row in sources.items() if 0 in row.values()}
    if one_sided and len(sources) > 1:
        what = f"sources with one class only: {len(one_sided):,} of {len(sources):,} ({abbreviate(list(one_sided))})"
        advice = "collect both classes from one source: what is peculiar to a source can pass for fake or real"
        yield Finding("one_sided_sources", False, what, sum(sum(row.values()) for row in one_sided.values()), advice)
