"""What an audit found, in plain words: what it is, how many pictures it concerns, what to do, by which command."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fakereal.data import file_problems, shortcuts
from fakereal.data.audit import Audit
from fakereal.data.duplicates import Cluster
from fakereal.data.scan import sample
from fakereal.data.telling import Judged
from fakereal.labels import NAMES

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


def of_shortcut(judged: Judged, root: Path, neutralized: bool = False) -> list[Finding]:
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
    return [Finding("shortcut", not neutralized, shortcuts.verdict(judged), judged.images, to_do, command)]


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
        yield Finding("identical_across_classes", True, what, _pictures(clusters), to_do)
    if clusters := of("near", "classes"):
        what = f"near-copies in both classes, {_groups(clusters, root)}"
        to_do = "look at them: a wrong label, or an original and its manipulation, which may stay"
        yield Finding("near_across_classes", False, what, _pictures(clusters), to_do)
    if clusters := of("identical", "splits"):
        what = f"identical pictures in several splits, {_groups(clusters, root)}: a test that can be learnt by heart"
        to_do = "delete those in val and test; until then training leaves them out of there"
        yield Finding("identical_across_splits", True, what, _pictures(clusters), to_do)
    if clusters := of("near", "splits"):
        what = f"near-copies in several splits, {_groups(clusters, root)}: the test is easier than it should be"
        to_do = "delete those in val and test: training warns, but keeps a split that the folders give"
        yield Finding("near_across_splits", True, what, _pictures(clusters), to_do)


def _groups(clusters: Sequence[Cluster], root: Path) -> str:
    """Returns how many groups there are, and the first two pictures of the first one."""
    first = " and ".join(_names([record.path for record in clusters[0].records[:2]], root))
    return f"{len(clusters):,} group{'s' if len(clusters) > 1 else ''} (such as {first})"


def _names(paths: Iterable[Path], root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in paths]


def _pictures(clusters: list[Cluster]) -> int:
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
            what = f"{len(problems):,} file{'s' if len(problems) > 1 else ''}: {file_problems.KINDS[kind]} ({named})"
            yield Finding(kind, grave, what, len(problems), _TO_DO[kind])


def _of_names(judged: Judged) -> Iterator[Finding]:
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
