"""What a separation came to, for people (lines) and for programs (`separation_report.json`)."""

from __future__ import annotations

import json
import os
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fakereal.data import separation_review
from fakereal.data.journal import CLASS_FOLDERS, Entry, Journal, Outcome
from fakereal.data.separation import Result
from fakereal.data.separation_experiments import agreement_as_json, agreement_lines, agreements
from fakereal.data.separation_pairing import Folder, names_for
from fakereal.data.separation_plan import Options, Plan
from fakereal.data.separation_stays import REASONS, Stay, shown
from fakereal.files import write_whole
from fakereal.labels import NAMES

REPORT_NAME = "separation_report.json"
"""In the output: what the last run left where it was."""


@dataclass(frozen=True)
class Written:
    """The files that tell of a run."""

    report: Path | None = None  # what stayed, for programs
    review: Path | None = None  # the page on which people decide


_DONE = {"move": "moved", "copy": "copied", "link": "linked"}


def plan_lines(plan: Plan, source: Path) -> Iterator[str]:
    """Yields a line for every file that would be carried, then for all that stays, then the counts."""
    source = Path(os.path.realpath(source))
    for entry in plan.entries:
        yield f"{shown(_within(entry.source, source))} -> {CLASS_FOLDERS[entry.label]}/{shown(entry.name)}"
    yield from _stay_lines(plan.stays, plan.problems, source)
    yield from _table(plan.folders, [*plan.entries, *plan.already], plan.stays)
    yield from _experiment_lines(plan)
    yield f"a dry run: nothing was written; {len(plan.entries):,} files would go, {len(plan.stays):,} would stay"


def result_lines(result: Result, options: Options, written: Written) -> Iterator[str]:
    """Yields a line for all that stays, the counts, and how to put everything back."""
    source = Path(os.path.realpath(options.source))
    yield from _stay_lines(result.stays, result.plan.problems, source)
    if result.outcome.interrupted:
        yield f"interrupted: {result.outcome.handled:,} of {len(result.journals[-1].entries):,} files are in place"
        yield "to go on: run the same command again"
    else:
        yield from _table(result.plan.folders, in_place(result), result.stays)
        yield from _experiment_lines(result.plan)
        yield from _counts(result, options)
    if written.review:
        yield separation_review.to_decide(written.review, sum(map(separation_review.is_open, result.stays)))
    if written.report:
        yield f"report: {shown(written.report)}"
    for journal in reversed(result.journals):
        yield f"to put everything back: python image_separate.py --undo {shlex.quote(shown(journal.path))}"


def undo_lines(journal: Journal, outcome: Outcome) -> Iterator[str]:
    """Yields a line for each file that can't be put back, then the count."""
    yield from _stay_lines(outcome.stayed, (), journal.source)
    back = f"{outcome.handled:,} of {len(journal.entries):,} files are where they were"
    yield f"interrupted: {back}; to go on: run the same command again" if outcome.interrupted else back


def in_place(result: Result) -> list[Entry]:
    """Returns what lies in the class folders now, from this run and earlier ones."""
    stayed = {stay.path for stay in result.outcome.stayed}
    return [*result.plan.already, *(entry for entry in result.plan.entries if entry.source not in stayed)]


def write_report(result: Result, options: Options) -> Written:
    """Writes what stayed, and why, into the output, and `review/` where the experiments disagree.

    Nothing is written where the run was interrupted, or where there is no output and nothing to decide.
    """
    source, output = Path(os.path.realpath(options.source)), Path(os.path.realpath(options.output))
    if result.outcome.interrupted:
        return Written()
    review = separation_review.write(result.stays, source, output)
    if not output.is_dir():
        return Written()
    report = {
        "counts": _class_counts(result),
        "decided_by_people": result.plan.decided,
        "weights": dict(_weights(result.plan)),
        "agreement": [agreement_as_json(each) for each in agreements(result.plan.pairs)],
        "review": review and review.relative_to(output).as_posix(),
        "stayed": [_stay_as_json(stay, source) for stay in result.stays],
        "problems": result.plan.problems,
    }
    write_whole(output / REPORT_NAME, (json.dumps(report, indent=4) + "\n").encode("ascii"))
    return Written(output / REPORT_NAME, review)


def _class_counts(result: Result) -> dict[str, int]:
    counts = Counter(NAMES[entry.label] for entry in in_place(result))
    return {name: counts[name] for name in NAMES}


def _stay_as_json(stay: Stay, source: Path) -> dict[str, object]:
    votes = {"votes": {name: NAMES[label] for name, label in stay.votes}} if stay.votes else {}
    return {"path": os.fspath(_within(stay.path, source)), "reason": stay.reason, "detail": stay.detail, **votes}


def _weights(plan: Plan) -> list[tuple[str, float]]:
    """Returns the experiments whose votes count otherwise than once."""
    experiments = (experiment for folder in plan.experiments.values() for experiment in folder)
    return sorted({(experiment.name, experiment.weight) for experiment in experiments if experiment.weight != 1})


def _experiment_lines(plan: Plan) -> Iterator[str]:
    yield from agreement_lines(agreements(plan.pairs))
    for name, weight in _weights(plan):
        yield f"{name}: its votes count {weight:g}"
    if plan.decided:
        yield f"decided by people: {plan.decided:,}"


def _counts(result: Result, options: Options) -> Iterator[str]:
    before = len(in_place(result)) - result.carried
    yield (
        f"{result.carried:,} files {_DONE[options.mode]} to {shown(options.output)}"
        + (f", {before:,} were there already" if before > 0 else "")
        + f"; {len(result.stays):,} stayed"
    )
    reasons = Counter(stay.reason for stay in result.stays).most_common()
    yield from (f"  {count:,}: {REASONS[reason]}" for reason, count in reasons)
    if result.plan.problems:
        yield f"  {len(result.plan.problems):,} JSONs or entries could not be used"


def _stay_lines(stays: Iterable[Stay], problems: Sequence[str], source: Path) -> Iterator[str]:
    """A folder without predictions is one line, however many pictures it holds."""
    whole_folders: Counter[Path] = Counter()
    for problem in problems:
        yield f"unusable  {shown(problem)}"
    for stay in stays:
        if stay.reason == "no_predictions":
            whole_folders[stay.path.parent] += 1
        else:
            detail = f" ({shown(stay.detail)})" if stay.detail else ""
            yield f"stays     {shown(_within(stay.path, source))}: {REASONS[stay.reason]}{detail}"
    for folder, count in sorted(whole_folders.items()):
        pictures = f"{count:,} picture{'s' * (count > 1)}"
        names = ", ".join(names_for(shown(folder.name)))
        yield f"stays     {shown(_within(folder, source))}/ ({pictures}): no prediction JSON (looked for {names})"


def _within(path: Path, source: Path) -> Path:
    return path.relative_to(source) if path.is_relative_to(source) else path


def _table(folders: Sequence[Folder], entries: Sequence[Entry], stays: Sequence[Stay]) -> Iterator[str]:
    paths = {folder.path: shown(folder.name) for folder in folders}
    cells = Counter((_row(entry.source, paths), NAMES[entry.label]) for entry in entries)
    cells += Counter((_row(stay.path, paths), "stayed") for stay in stays)
    columns = (*NAMES, "stayed")
    rows = sorted({row for row, _ in cells})
    width = max(map(len, [*rows, "share"]), default=0)
    yield f"{'':{width}}" + "".join(f"{column:>10}" for column in columns)
    for row in rows:
        yield f"{row:{width}}" + "".join(f"{cells[row, column]:>10,}" for column in columns)
    totals = [sum(cells[row, column] for row in rows) for column in columns]
    yield f"{'all':{width}}" + "".join(f"{total:>10,}" for total in totals)
    yield f"{'share':{width}}" + "".join(f"{total / max(len(entries), 1):>10.1%}" for total in totals[: len(NAMES)])


def _row(path: Path, folders: dict[Path, str]) -> str:
    return next((folders[parent] for parent in (path, *path.parents) if parent in folders), "(elsewhere)")
