"""What a separation came to, for people (lines) and for programs (`separation_report.json`)."""

from __future__ import annotations

import json
import os
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fakereal import html, predictions_json
from fakereal.decoding import decode
from fakereal.errors import ImageRefused
from fakereal.files import display_path, relative_name, write_atomic
from fakereal.labels import NAMES
from fakereal.separation.journal import CLASS_FOLDERS, Entry, Journal, TransferResult
from fakereal.separation.pairing import Folder, names_for
from fakereal.separation.separate import Options, Plan, SeparationResult
from fakereal.separation.transfer import REASONS, SkippedFile
from fakereal.separation.voting import agreement_as_json, agreement_lines, agreements

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
        yield f"{display_path(_within_report(entry.source, source))} -> {CLASS_FOLDERS[entry.label]}/{display_path(entry.name)}"
    yield from _stay_lines(plan.stays, plan.problems, source)
    yield from _table(plan.folders, [*plan.entries, *plan.already], plan.stays)
    yield from _experiment_lines(plan)
    yield f"a dry run: nothing was written; {len(plan.entries):,} files would go, {len(plan.stays):,} would stay"


def result_lines(result: SeparationResult, options: Options, written: Written) -> Iterator[str]:
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
        yield to_decide(written.review, sum(map(is_open, result.stays)))
    if written.report:
        yield f"report: {display_path(written.report)}"
    for journal in reversed(result.journals):
        yield f"to put everything back: python image_separate.py --undo {shlex.quote(display_path(journal.path))}"


def undo_lines(journal: Journal, outcome: TransferResult) -> Iterator[str]:
    """Yields a line for each file that can't be put back, then the count."""
    yield from _stay_lines(outcome.stayed, (), journal.source)
    back = f"{outcome.handled:,} of {len(journal.entries):,} files are where they were"
    yield f"interrupted: {back}; to go on: run the same command again" if outcome.interrupted else back


def in_place(result: SeparationResult) -> list[Entry]:
    """Returns what lies in the class folders now, from this run and earlier ones."""
    stayed = {stay.path for stay in result.outcome.stayed}
    return [*result.plan.already, *(entry for entry in result.plan.entries if entry.source not in stayed)]


def write_report(result: SeparationResult, options: Options) -> Written:
    """Writes what stayed, and why, into the output, and `review/` where the experiments disagree.

    Nothing is written where the run was interrupted, or where there is no output and nothing to decide.
    """
    source, output = Path(os.path.realpath(options.source)), Path(os.path.realpath(options.output))
    if result.outcome.interrupted:
        return Written()
    review = write_review(result.stays, source, output)
    if not output.is_dir():
        return Written()
    report = {
        "counts": _class_counts(result),
        "decided_by_people": result.plan.decided,
        "weights": dict(_weights(result.plan)),
        "agreement": [agreement_as_json(each) for each in agreements(result.plan.pairs)],
        "review": review and relative_name(review, output),
        "stayed": [_stay_as_json(stay, source) for stay in result.stays],
        "problems": result.plan.problems,
    }
    write_atomic(output / REPORT_NAME, (json.dumps(report, indent=4) + "\n").encode("ascii"))
    return Written(output / REPORT_NAME, review)


def _class_counts(result: SeparationResult) -> dict[str, int]:
    counts = Counter(NAMES[entry.label] for entry in in_place(result))
    return {name: counts[name] for name in NAMES}


def _stay_as_json(stay: SkippedFile, source: Path) -> dict[str, object]:
    votes = {"votes": {name: NAMES[label] for name, label in stay.votes}} if stay.votes else {}
    return {"path": os.fspath(_within_report(stay.path, source)), "reason": stay.reason, "detail": stay.detail, **votes}


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


def _counts(result: SeparationResult, options: Options) -> Iterator[str]:
    before = len(in_place(result)) - result.carried
    yield (
        f"{result.carried:,} files {_DONE[options.mode]} to {display_path(options.output)}"
        + (f", {before:,} were there already" if before > 0 else "")
        + f"; {len(result.stays):,} stayed"
    )
    reasons = Counter(stay.reason for stay in result.stays).most_common()
    yield from (f"  {count:,}: {REASONS[reason]}" for reason, count in reasons)
    if result.plan.problems:
        yield f"  {len(result.plan.problems):,} JSONs or entries could not be used"


def _stay_lines(stays: Iterable[SkippedFile], problems: Sequence[str], source: Path) -> Iterator[str]:
    """A folder without predictions is one line, however many pictures it holds."""
    whole_folders: Counter[Path] = Counter()
    for problem in problems:
        yield f"unusable  {display_path(problem)}"
    for stay in stays:
        if stay.reason == "no_predictions":
            whole_folders[stay.path.parent] += 1
        else:
            detail = f" ({display_path(stay.detail)})" if stay.detail else ""
            yield f"stays     {display_path(_within_report(stay.path, source))}: {REASONS[stay.reason]}{detail}"
    for folder, count in sorted(whole_folders.items()):
        pictures = f"{count:,} picture{'s' * (count > 1)}"
        names = ", ".join(names_for(display_path(folder.name)))
        yield f"stays     {display_path(_within_report(folder, source))}/ ({pictures}): no prediction JSON (looked for {names})"


def _within_report(path: Path, source: Path) -> Path:
    return path.relative_to(source) if path.is_relative_to(source) else path


def _table(folders: Sequence[Folder], entries: Sequence[Entry], stays: Sequence[SkippedFile]) -> Iterator[str]:
    paths = {folder.path: display_path(folder.name) for folder in folders}
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


# ---- What stayed because the experiments disagree, listed for people to decide: a JSON to fill in, and a page to look at.
#
# The JSON is a prediction JSON, with the paths relative to the source and no label yet; filled in, by hand or by the
# page, it is what `--decisions` reads.

REVIEW_FOLDER = "review"
"""In the output."""

MOST_SHOWN = 500
"""Pictures on the page; the JSON lists them all."""

_REASONS = ("disagreement", "conflict")
_THUMBNAIL_PX = 160


def write_review(stays: Iterable[SkippedFile], source: Path, output: Path) -> Path | None:
    """Writes the listing into `review/`; what lies there already, perhaps filled in by somebody, is left alone.

    Args:
        stays: all that stayed; those that no experiment contradicts are passed over.
        source: absolute path of the folder of folders.
        output: absolute path.

    Returns:
        The page's path, its JSON lies beside it; None where there is nothing to decide.
    """
    disputed = [stay for stay in stays if is_open(stay)]
    if not disputed:
        return None
    names = [_within(stay.path, source) for stay in disputed]
    reasons = [f"{REASONS[stay.reason]}: {stay.detail}" for stay in disputed]
    open_questions = [
        predictions_json.Prediction(None, image=name, error=reason) for name, reason in zip(names, reasons, strict=True)
    ]
    content = predictions_json.dumps(open_questions).encode()
    json = _free(output / REVIEW_FOLDER, content)
    if not json.exists():
        write_atomic(json, content)
    html.write_page(json.with_suffix(".html"), "review.html", **_page(disputed, names, reasons))
    return json.with_suffix(".html")


def is_open(stay: SkippedFile) -> bool:
    """Says whether a picture stayed because experiments, or the entries of one, contradict each other."""
    return stay.reason in _REASONS


def _free(folder: Path, content: bytes) -> Path:
    """Returns the first name that is free, or that holds the very content already."""
    number = 1
    while (path := folder / f"review_{number:03}.json").exists() and path.read_bytes() != content:
        number += 1
    return path


def _within(path: Path, source: Path) -> str:
    return (path.relative_to(source) if path.is_relative_to(source) else path).as_posix()


def _page(disputed: Sequence[SkippedFile], names: Sequence[str], reasons: Sequence[str]) -> dict[str, object]:
    rows = zip(disputed[:MOST_SHOWN], names, reasons, strict=False)
    pictures = [
        {"name": name, "reason": reason, "thumbnail": _thumbnail(stay.path), "votes": _votes(stay)}
        for stay, name, reason in rows
    ]
    return {"pictures": pictures, "names": list(names[:MOST_SHOWN]), "total": len(disputed), "classes": NAMES}


def _votes(stay: SkippedFile) -> list[tuple[str, str]]:
    return [(experiment, NAMES[label]) for experiment, label in stay.votes]


def _thumbnail(path: Path) -> str:
    """Returns a data URI, empty for a picture that can't be read."""
    try:
        return html.thumbnail(decode(path, _THUMBNAIL_PX)[0], _THUMBNAIL_PX)
    except (ImageRefused, OSError):
        return ""


def to_decide(page: Path, count: int) -> str:
    """Returns the line that says how to go on."""
    return f"to decide on {count:,}: open {display_path(page)} and save decisions.json; then run again with --decisions FILE"
