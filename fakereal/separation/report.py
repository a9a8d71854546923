"""Report a separation: lines for the terminal, `separation_report.json`, and the review page.

The review page and the JSON beside it list the images that the experiments disagree about. The JSON is a prediction
JSON without labels, its paths relative to the source; with labels filled in, by hand or by the page, it is what
`--decisions` reads.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fakereal import html, predictions_json
from fakereal.cli import command_line
from fakereal.decoding import decode
from fakereal.errors import ImageRefused
from fakereal.files import display_path, keep_backups, relative_name, write_atomic
from fakereal.labels import NAMES
from fakereal.prediction_files import Problem
from fakereal.separation.journal import CLASS_FOLDERS, Entry, Journal, TransferResult
from fakereal.separation.pairing import Folder, prediction_file_names
from fakereal.separation.separate import Options, Plan, SeparationResult
from fakereal.separation.transfer import REASONS, SkippedFile
from fakereal.separation.voting import agreement_as_json, agreement_lines, agreements

REPORT_NAME = "separation_report.json"
"""In the output: the counts of the last run, and what it skipped."""

REVIEW_FOLDER = "review"
"""In the output: the review pages and their JSONs."""

MAX_REVIEW_IMAGES = 500
"""Images on a review page; its JSON lists them all."""

_REVIEW_REASONS = ("disagreement", "conflict")
_THUMBNAIL_PX = 320  # on the review page, where people enlarge them
_FEW = 3  # problems of a file and skipped images of a folder that get a line each, and examples of more
_DONE = {"move": "moved", "copy": "copied", "link": "linked"}
_UNDONE = {"move": "files are back in their places", "copy": "copies are undone", "link": "links are undone"}


@dataclass(frozen=True)
class ReportFiles:
    """The files that describe a run."""

    report: Path | None = None  # for programs
    review: Path | None = None  # the page on which people decide


def plan_lines(plan: Plan, source: Path) -> Iterator[str]:
    """Yield a line for every file that would be transferred, then what is left out, then the counts."""
    source = Path(os.path.realpath(source))
    for entry in plan.entries:
        yield f"{_shown(entry.source, source)} -> {CLASS_FOLDERS[entry.label]}/{display_path(entry.name)}"
    yield from _left_out_lines(plan.skipped, plan, source)
    yield from _table(plan.folders, [*plan.entries, *plan.already], plan.skipped)
    yield from _experiment_lines(plan)
    yield f"dry run, nothing was written: {len(plan.entries):,} files to separate, {len(plan.skipped):,} to skip"


def result_lines(result: SeparationResult, options: Options, files: ReportFiles) -> Iterator[str]:
    """Yield what is left out, the counts, and how to undo the run."""
    source = Path(os.path.realpath(options.source))
    yield from _left_out_lines(result.skipped, result.plan, source)
    if result.last.interrupted:
        yield f"interrupted: {result.last.completed:,} of {len(result.journals[-1].entries):,} files are in place"
        yield "to resume: run the same command again"
    else:
        yield from _table(result.plan.folders, in_place(result), result.skipped)
        yield from _experiment_lines(result.plan)
        yield from _counts(result, options)
    if files.review:
        count = sum(map(needs_review, result.skipped))
        yield f"to decide on {count:,}: open {display_path(files.review)}, save decisions.json there,"
        yield "  then run the same command again with --decisions decisions.json"
    if files.report:
        yield f"report: {display_path(files.report)}"
    for journal in reversed(result.journals):
        yield f"to undo: {command_line('separate', '--undo', display_path(journal.path))}"


def undo_lines(journal: Journal, result: TransferResult) -> Iterator[str]:
    """Yield a line for each file that can't be put back, then the count."""
    yield from _skipped_lines(result.skipped, journal.source)
    count = f"{result.completed:,} of {len(journal.entries):,} {_UNDONE[journal.mode]}"
    yield f"interrupted: {count}; to resume: run the same command again" if result.interrupted else count


def in_place(result: SeparationResult) -> list[Entry]:
    """Return what lies in the class folders now, from this run and earlier ones."""
    skipped = {file.path for file in result.last.skipped}
    return [*result.plan.already, *(entry for entry in result.plan.entries if entry.source not in skipped)]


def _counts(result: SeparationResult, options: Options) -> Iterator[str]:
    before = len(in_place(result)) - result.completed
    yield (
        f"{result.completed:,} files {_DONE[options.mode]} to {display_path(options.output)}"
        + (f", {before:,} were there already" if before > 0 else "")
        + f"; {len(result.skipped):,} skipped"
    )
    reasons = Counter(file.reason for file in result.skipped).most_common()
    yield from (f"  {count:,}: {REASONS[reason]}" for reason, count in reasons)
    if result.plan.problems:
        yield f"{len(result.plan.problems):,} prediction files and entries could not be used"


def _left_out_lines(skipped: Iterable[SkippedFile], plan: Plan, source: Path) -> Iterator[str]:
    yield from (f"read      {display_path(note)}" for note in plan.notes)
    yield from (f"unusable  {line}" for line in _problem_lines(plan.problems))
    yield from _skipped_lines(skipped, source)


def _problem_lines(problems: Iterable[Problem]) -> Iterator[str]:
    """Yield each problem where a file has a few, else one line for the file."""
    by_file: dict[str, list[Problem]] = {}
    for problem in problems:
        by_file.setdefault(problem.file if problem.kind else problem.text, []).append(problem)
    for file, found in by_file.items():
        if len(found) <= _FEW:
            yield from (display_path(problem.text) for problem in found)
            continue
        kinds: dict[str, list[str]] = {}
        for problem in found:
            kinds.setdefault(problem.kind, []).append(problem.example)
        yield f"{file}: " + "; ".join(f"{_entries(len(each))} {kind} ({_few(each)})" for kind, each in kinds.items())


def _skipped_lines(skipped: Iterable[SkippedFile], source: Path) -> Iterator[str]:
    """Yield each file where a folder has a few of one reason, else one line for them."""
    groups: dict[tuple[Path, str], list[SkippedFile]] = {}
    for file in skipped:
        groups.setdefault((file.path.parent, file.reason), []).append(file)
    for (folder, reason), files in groups.items():
        images = f"{_shown(folder, source)}/ ({len(files):,} image{'s' * (len(files) > 1)})"
        if reason == "no_predictions":
            names = ", ".join(prediction_file_names(display_path(folder.name)))
            yield f"skipped   {images}: no prediction file (looked for {names})"
        elif len(files) <= _FEW:
            details = ((file, f" ({display_path(file.detail)})" if file.detail else "") for file in files)
            yield from (f"skipped   {_shown(file.path, source)}: {REASONS[reason]}{detail}" for file, detail in details)
        else:
            yield f"skipped   {images}: {REASONS[reason]} ({_few([display_path(file.path.name) for file in files])})"


def _entries(count: int) -> str:
    return "1 entry" if count == 1 else f"{count:,} entries"


def _few(examples: Sequence[str]) -> str:
    return ", ".join([*examples[:_FEW], *(["..."] if len(examples) > _FEW else [])])


def _shown(path: Path, source: Path) -> str:
    return display_path(relative_name(path, source))


def _table(folders: Sequence[Folder], entries: Sequence[Entry], skipped: Sequence[SkippedFile]) -> Iterator[str]:
    names = {folder.path: display_path(folder.name) for folder in folders}
    cells = Counter((_row(entry.source, names), NAMES[entry.label]) for entry in entries)
    cells += Counter((_row(file.path, names), "skipped") for file in skipped)
    columns = (*NAMES, "skipped")
    rows = sorted({row for row, _ in cells})
    width = max(map(len, [*rows, "share"]), default=0)
    yield f"{'':{width}}" + "".join(f"{column:>10}" for column in columns)
    for row in rows:
        yield f"{row:{width}}" + "".join(f"{cells[row, column]:>10,}" for column in columns)
    totals = [sum(cells[row, column] for row in rows) for column in columns]
    yield f"{'all':{width}}" + "".join(f"{total:>10,}" for total in totals)
    yield f"{'share':{width}}" + "".join(f"{total / max(len(entries), 1):>10.1%}" for total in totals[: len(NAMES)])


def _row(path: Path, names: dict[Path, str]) -> str:
    return next((names[parent] for parent in (path, *path.parents) if parent in names), "(elsewhere)")


def _experiment_lines(plan: Plan) -> Iterator[str]:
    yield from agreement_lines(agreements(plan.vote_pairs))
    for name, weight in _weights(plan):
        yield f"{name}: weight {weight:g}"
    if plan.decided:
        yield f"decided by people: {plan.decided:,}"


def _weights(plan: Plan) -> list[tuple[str, float]]:
    """Return the experiments whose weight is not 1."""
    experiments = (experiment for folder in plan.experiments.values() for experiment in folder)
    return sorted({(experiment.name, experiment.weight) for experiment in experiments if experiment.weight != 1})


def write_report(result: SeparationResult, options: Options) -> ReportFiles:
    """Write the report into the output, and a review page where the experiments disagree.

    Nothing is written where the run was interrupted, or where there is no output and nothing to review.
    """
    source, output = Path(os.path.realpath(options.source)), Path(os.path.realpath(options.output))
    if result.last.interrupted:
        return ReportFiles()
    review = write_review(result.skipped, source, output)
    if not output.is_dir():
        return ReportFiles()
    report = {
        "source": os.path.relpath(source, output),
        "counts": _class_counts(result),
        "decided_by_people": result.plan.decided,
        "weights": dict(_weights(result.plan)),
        "agreement": [agreement_as_json(each) for each in agreements(result.plan.vote_pairs)],
        "review": review and relative_name(review, output),
        "stayed": [_as_json(file, source) for file in result.skipped],  # a published key
        "read": result.plan.notes,
        "problems": [problem.text for problem in result.plan.problems],
    }
    path = output / REPORT_NAME
    with keep_backups(path, force=options.force or _source_of(path) == report["source"]):
        write_atomic(path, (json.dumps(report, indent=4) + "\n").encode("ascii"))
    return ReportFiles(path, review)


def _source_of(report: Path) -> str | None:
    """Return the source of an earlier report, None where there is none."""
    try:
        return json.loads(report.read_bytes())["source"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _class_counts(result: SeparationResult) -> dict[str, int]:
    counts = Counter(NAMES[entry.label] for entry in in_place(result))
    return {name: counts[name] for name in NAMES}


def _as_json(file: SkippedFile, source: Path) -> dict[str, object]:
    votes = {"votes": dict(_votes(file))} if file.votes else {}
    return {"path": relative_name(file.path, source), "reason": file.reason, "detail": file.detail, **votes}


def _votes(file: SkippedFile) -> list[tuple[str, str]]:
    return [(experiment, NAMES[label]) for experiment, label in file.votes]


def write_review(skipped: Iterable[SkippedFile], source: Path, output: Path) -> Path | None:
    """Write the images to review into `review/`; files there, perhaps with labels filled in, are left alone.

    Args:
        skipped: all skipped files; those that no experiment contradicts are left out.
        source: absolute path of the folder of folders.
        output: absolute path.

    Returns:
        The page's path, its JSON is beside it; None where there is nothing to review.
    """
    disputed = [file for file in skipped if needs_review(file)]
    if not disputed:
        return None
    names = [relative_name(file.path, source) for file in disputed]
    reasons = [f"{REASONS[file.reason]}: {file.detail}" for file in disputed]
    undecided = [
        predictions_json.Prediction(None, image=name, error=reason) for name, reason in zip(names, reasons, strict=True)
    ]
    content = predictions_json.dumps(undecided).encode()
    listing = _free_name(output / REVIEW_FOLDER, content)
    if not listing.exists():
        write_atomic(listing, content)
    page = listing.with_suffix(".html")
    html.write_page(page, "review.html", **_page(source, disputed, names, reasons))
    return page


def needs_review(file: SkippedFile) -> bool:
    """Say whether an image was skipped because experiments, or the entries of one, contradict each other."""
    return file.reason in _REVIEW_REASONS


def _free_name(folder: Path, content: bytes) -> Path:
    """Return the first name that is free, or whose file has this very content."""
    number = 1
    while (path := folder / f"review_{number:03}.json").exists() and path.read_bytes() != content:
        number += 1
    return path


def _page(
    source: Path, disputed: Sequence[SkippedFile], names: Sequence[str], reasons: Sequence[str]
) -> dict[str, object]:
    rows = zip(disputed[:MAX_REVIEW_IMAGES], names, reasons, strict=False)
    images = [
        {
            "image": name,
            "thumbnail": _thumbnail(file.path),
            "lines": [(f"{experiment}:", label) for experiment, label in _votes(file)] or [(reason, None)],
        }
        for file, name, reason in rows
    ]
    return {"total": len(disputed), "sheet": html.decision_sheet(str(source), images)}


def _thumbnail(path: Path) -> str:
    """Return a data URI, empty for an image that can't be read."""
    try:
        return html.thumbnail(decode(path, _THUMBNAIL_PX)[0], _THUMBNAIL_PX)
    except (ImageRefused, OSError):
        return ""
