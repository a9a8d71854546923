"""Separate raw folders of images into `real_images/` and `fake_images/` by their prediction JSONs, and undo it.

`preview` returns the very plan that `separate` carries out: each image in the source once, with its label and new
name, or with the reason why it is skipped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from fakereal.cli import command_line
from fakereal.decoding import decode
from fakereal.errors import ConfigError, DataError, ImageRefused
from fakereal.files import display_path, locked_folders, relative_name, sha256_of, walk
from fakereal.labels import NAMES
from fakereal.prediction_files import Problem, Rules, read
from fakereal.prediction_rows import listed
from fakereal.preprocessing import IMAGE_SIZE_PX
from fakereal.runtime import deferred_interrupts, interrupt_requested, log, parallel_map, progress_bar
from fakereal.separation import journal as journals
from fakereal.separation.journal import CLASS_FOLDERS, Entry, Journal, TransferResult
from fakereal.separation.matching import ImageIndex, Matching, match
from fakereal.separation.pairing import Folder, Pairing, list_images, pair_folders
from fakereal.separation.transfer import SkippedFile
from fakereal.separation.voting import (
    Ballot,
    Experiment,
    VotePair,
    VoteResult,
    cast_votes,
    count_vote_pairs,
    experiments_of,
    human_decisions,
    majority_vote,
)

_INTERRUPT_NOTE = "finishing the current file ..."
_MAX_NAME_BYTES = 255  # of one file name, on nearly every file system


@dataclass(frozen=True)
class Options:
    """The options of a separation."""

    source: Path  # the folder of folders
    output: Path  # for fake_images/, real_images/ and the journal
    mode: str = "move"  # move, copy or link
    predictions: tuple[Path, ...] = ()  # JSONs, or folders of them, to look in instead of the source
    pairs: tuple[str, ...] = ()  # FOLDER=JSON
    skip: tuple[str, ...] = ()  # names of sub-folders to leave alone
    min_agreement: float = 0.5  # share of the votes that a label needs, besides more than half
    check_images: bool = True  # decode every image, and skip the damaged ones
    weights: tuple[str, ...] = ()  # NAME=N
    decisions: Path | None = None  # prediction JSON of people, who outrank every vote
    force: bool = False  # replace the report on another source without a backup
    rules: Rules = field(default_factory=Rules)  # how to read what a prediction file doesn't say itself


@dataclass
class Plan:
    """Every image in the source once: in `entries`, `already` or `skipped`."""

    folders: tuple[Folder, ...] = ()
    entries: list[Entry] = field(default_factory=list)  # to be transferred
    already: list[Entry] = field(default_factory=list)  # transferred by an earlier run
    skipped: list[SkippedFile] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)  # files and entries that can't be used
    notes: list[str] = field(default_factory=list)  # files that were not read just as they are, and how
    experiments: dict[Path, tuple[Experiment, ...]] = field(default_factory=dict)  # by the path of their folder
    vote_pairs: Counter[VotePair] = field(default_factory=Counter)  # see count_vote_pairs
    refused: list[str] = field(default_factory=list)  # a sentence for each prediction file that can't be used at all
    decided: int = 0  # labels that people gave


@dataclass(frozen=True)
class SeparationResult:
    """The result of a run."""

    plan: Plan
    journals: tuple[Journal, ...] = ()  # resumed or written by this run
    last: TransferResult = field(default_factory=TransferResult)  # of the last of them
    completed: int = 0  # files that this run's journals brought to their places

    @property
    def skipped(self) -> list[SkippedFile]:
        """Every file that is still where it was, by path."""
        return sorted((*self.plan.skipped, *self.last.skipped), key=lambda file: file.path)


def preview(options: Options) -> Plan:
    """Return the plan that `separate` would carry out now; write nothing."""
    options = _resolve_paths(options)
    found = journals.find(options.output)
    _unfinished(found, options)
    return make_plan(options, found)


def separate(options: Options) -> SeparationResult:
    """Separate the images; first finish what an earlier run of the same command left unfinished.

    Raises:
        ConfigError: options that exclude each other, or name what doesn't exist.
        DataError: no folder has predictions, the output can't be written, or another run is using it.
    """
    options = _resolve_paths(options)
    with _output_folder(options.output), locked_folders(options.source, options.output):
        journals.remove_partial(options.output)
        found = journals.find(options.output)
        resumed = _unfinished(found, options)
        finished = _resume(resumed)
        if finished.last.interrupted:
            return finished
        plan = make_plan(options, found)
        if not plan.entries:
            return dataclasses.replace(finished, plan=plan)
        journal = journals.create(options.output, options.mode, options.source, plan.entries)
        result = _run(journals.apply, journal, "separating")
        return SeparationResult(plan, (*resumed, journal), result, finished.completed + result.completed)


def undo(path: Path) -> tuple[Journal, TransferResult]:
    """Put back every file that a journal names.

    Raises:
        DataError: there is no such journal, or another run is using its folders.
    """
    journal = journals.read(path)
    with locked_folders(journal.source, journal.path.parent):
        journals.remove_partial(journal.path.parent)
        journal = journals.read(path)  # again: a run that has just ended may have added to it
        return journal, _run(journals.undo, journal, "putting back")


def _resume(unfinished: Sequence[Journal]) -> SeparationResult:
    """Apply journals to the end; Ctrl-C during the last file of one ends the run, too."""
    completed = 0
    with deferred_interrupts(_INTERRUPT_NOTE):
        for journal in unfinished:
            result = _run(journals.apply, journal, "resuming")
            if result.interrupted or interrupt_requested():
                result = dataclasses.replace(result, interrupted=True)
                return SeparationResult(Plan(), (journal,), result, result.completed)
            completed += result.completed
    return SeparationResult(Plan(), tuple(unfinished), completed=completed)


def _run(step: Callable[..., TransferResult], journal: Journal, description: str) -> TransferResult:
    with deferred_interrupts(_INTERRUPT_NOTE), progress_bar(description, len(journal.entries)) as advance:
        return step(journal, advance, interrupt_requested)


def _resolve_paths(options: Options) -> Options:
    """Return the options with absolute paths, links resolved."""
    source, output = Path(os.path.realpath(options.source)), Path(os.path.realpath(options.output))
    if not source.is_dir():
        raise DataError(f"{display_path(options.source)}: no such folder: name a folder of folders of images")
    if options.decisions and not options.decisions.is_file():
        raise ConfigError(f"--decisions {display_path(options.decisions)}: no such file: name a prediction JSON")
    if output == source:
        raise ConfigError(f"--output {display_path(options.output)}: this is the source: choose another folder")
    predictions = tuple(Path(os.path.realpath(path)) for path in options.predictions)
    return dataclasses.replace(options, source=source, output=output, predictions=predictions)


@contextlib.contextmanager
def _output_folder(path: Path) -> Iterator[None]:
    """Create the output folder, and remove it again where nothing was written to it."""
    existed = path.exists()
    journals.make_folder(path)
    try:
        yield
    finally:
        if not existed and not any(path.iterdir()):
            path.rmdir()


def _unfinished(found: Sequence[Journal], options: Options) -> list[Journal]:
    """Return the journals to resume: those that the same command left unfinished."""
    for journal in found:
        undo_command = command_line("separate", "--undo", display_path(journal.path))
        if journal.status == "undoing":
            raise DataError(f"{display_path(options.output)}: an unfinished undo exists: finish it with {undo_command}")
        if journal.status == "open" and (journal.mode, journal.source) != (options.mode, options.source):
            raise DataError(
                f"{display_path(options.output)}: another unfinished separation exists (--mode {journal.mode} from"
                f" {display_path(journal.source)}): run that command again, or undo it with {undo_command}"
            )
        if journal.status == "open":
            log(f"resuming the interrupted run first: {display_path(journal.path)}")
    return [journal for journal in found if journal.status == "open"]


def make_plan(options: Options, earlier: Sequence[Journal]) -> Plan:
    """Plan a separation; write nothing.

    Args:
        options: with absolute paths.
        earlier: the journals in the output, so that images already separated still count for their folders.

    Raises:
        ConfigError: an option names what doesn't exist.
        DataError: no sub-folder has predictions.
    """
    pairing = pair_folders(options.source, options.output, options.predictions, options.pairs, options.skip)
    if not options.decisions and not any(folder.experiments for folder in pairing.folders):
        raise DataError(pairing.problems[0] if pairing.problems else _nothing_paired(options, pairing))
    plan = Plan(pairing.folders, skipped=list(pairing.skipped), problems=list(map(Problem, pairing.problems)))
    plan.notes += pairing.notes
    plan.experiments = experiments_of(pairing.folders, options.weights, options.rules.index_shifts)
    separated = _separated(earlier, {folder.path for folder in pairing.folders})
    images = {folder.path: _images_of(folder, separated.get(folder.path, {}), options, plan) for folder in plan.folders}
    decided = _decided(list(chain.from_iterable(images.values())), options, plan)
    candidates: list[_Candidate] = []
    for folder in pairing.folders:
        results = _label(folder, images[folder.path], decided, options, plan)
        candidates += _candidates(folder, results, separated.get(folder.path, {}), options, plan)
    _check_any_used(plan, options)
    _log_hidden(options)
    _assign_names(_check_images(candidates, options, plan), options, plan)
    return plan


def _nothing_paired(options: Options, pairing: Pairing) -> str:
    names = ", ".join(display_path(folder.path.name) + "/" for folder in pairing.folders[:5]) or "no sub-folder"
    others = listed(display_path(file.name) for file in pairing.unused)
    return (
        f"{display_path(options.source)}: expected sub-folders with prediction files, such as X/ with X.json,"
        f" X_preds.json or X_predictions.json, got {names} and no file for any: name the files with --predictions or"
        " --pair FOLDER=FILE" + (f" (found without a folder: {others})" if others else "")
    )


def _separated(earlier: Sequence[Journal], folders: set[Path]) -> dict[Path, dict[Path, Entry]]:
    """Return, by folder, the images that earlier runs moved away and that still lie where those put them."""
    found: dict[Path, dict[Path, Entry]] = {}
    for journal in earlier:
        for entry in journal.entries if journal.status != "undone" else ():
            folder = next((parent for parent in entry.source.parents if parent in folders), None)
            if folder and not os.path.lexists(entry.source) and journal.target(entry).exists():
                found.setdefault(folder, {})[entry.source] = entry
    return found


def _log_hidden(options: Options) -> None:
    """Count what is hidden in the source, which no list of images or folders contains."""
    hidden: list[str] = []
    for _ in walk(options.source, lambda path, error: None, leave_out={options.output}, on_hidden=hidden.append):
        pass
    if hidden:
        example = display_path(relative_name(Path(hidden[0]), options.source))
        log(f"hidden files and folders passed over ({len(hidden):,}), such as {example}")


def _images_of(folder: Folder, separated: dict[Path, Entry], options: Options, plan: Plan) -> list[Path]:
    """Return the images in a folder, and those that earlier runs moved out of it."""
    with_predictions = {other.path for other in plan.folders if other.experiments}
    contents = list_images(folder.path, {options.output, *with_predictions} - {folder.path}, options.source)
    plan.skipped += contents.skipped
    return [*contents.images, *separated]


def _decided(images: Sequence[Path], options: Options, plan: Plan) -> dict[Path, VoteResult]:
    if options.decisions is None:
        return {}
    decided, problems = human_decisions(read(options.decisions), options.source, list(dict.fromkeys(images)))
    plan.problems += problems
    plan.decided = sum(result.label is not None for result in decided.values())
    return decided


def _label(
    folder: Folder, images: Sequence[Path], decided: dict[Path, VoteResult], options: Options, plan: Plan
) -> Iterator[tuple[Path, VoteResult, Ballot]]:
    """Yield each image of a folder with its result and the votes."""
    for path, ballot in _collect_votes(folder, images, options, plan).items():
        if path in decided:
            yield path, decided[path], ballot
        elif folder.experiments:
            yield path, majority_vote(ballot, options.min_agreement, folder.experiments), ballot
        else:
            yield path, VoteResult(None, "no_predictions"), ballot


def _collect_votes(folder: Folder, images: Sequence[Path], options: Options, plan: Plan) -> dict[Path, Ballot]:
    ballots = {image: Ballot() for image in images}
    index = ImageIndex(folder.path, tuple(images))
    experiments = plan.experiments[folder.path]
    for experiment in experiments:
        try:
            _count_in(experiment, index, ballots, options, plan)
        except DataError as error:
            plan.problems.append(Problem(str(error)))
            plan.refused.append(str(error))
            for ballot in ballots.values():
                ballot.abstentions.append(("refused", experiment.file))
    plan.vote_pairs += count_vote_pairs(ballots.values(), experiments)
    return ballots


def _count_in(
    experiment: Experiment, index: ImageIndex, ballots: dict[Path, Ballot], options: Options, plan: Plan
) -> None:
    """Add an experiment's votes to the ballots; none where its file is refused."""
    document = read(experiment.path, options.rules)
    matching = match(document, index, experiment.file, experiment.index_shift)
    cast_votes(matching, experiment, ballots, options.rules.skip_conflicts)
    plan.problems += [*document.problems, *matching.problems]
    notes = [*document.notes, *_matching_notes(matching, experiment)]
    if notes:
        plan.notes.append(f"{display_path(experiment.path)}: {'; '.join(notes)}")


def _matching_notes(matching: Matching, experiment: Experiment) -> Iterator[str]:
    if experiment.index_shift:
        yield f"indices by --index-shift {experiment.index_shift}"
    loose = [each for each in matching.matches if not each.is_exact]
    if loose:
        first = f"{display_path(str(loose[0].prediction.image))!r} is {display_path(loose[0].image.name)}"
        yield f"{len(loose):,} names matched without case, extension and leading folder ({first})"


def _check_any_used(plan: Plan, options: Options) -> None:
    """Refuse a run in which every prediction file was refused."""
    if plan.refused and len(plan.refused) == sum(map(len, plan.experiments.values())) and not options.decisions:
        more = len(plan.refused) - 1
        others = f" ({more:,} other prediction {'files are' if more > 1 else 'file is'} refused, too)" if more else ""
        raise DataError(plan.refused[0] + others)


@dataclass(frozen=True)
class _Candidate:
    """An image with a label."""

    path: Path
    label: int
    name: str  # the new one
    sha256: str = ""
    size: int = 0  # bytes


def _candidates(
    folder: Folder,
    results: Iterator[tuple[Path, VoteResult, Ballot]],
    separated: dict[Path, Entry],
    options: Options,
    plan: Plan,
) -> Iterator[_Candidate]:
    for path, result, ballot in results:
        if path in separated:
            _compare_with_earlier(separated[path], result.label, plan)
        elif result.label is None:
            votes = tuple((vote.name, vote.label) for vote in ballot.votes)
            plan.skipped.append(SkippedFile(path, result.reason, result.detail, votes))
        elif options.mode == "move" and not _is_writable(path.parent):
            plan.skipped.append(SkippedFile(path, "read_only", "files can't be moved out of it: use --mode copy"))
        else:
            yield _Candidate(path, result.label, "__".join((folder.name, *path.relative_to(folder.path).parts)))


def _compare_with_earlier(entry: Entry, label: int | None, plan: Plan) -> None:
    """Note that an earlier run separated an image, and report a label that has changed since."""
    plan.already.append(entry)
    if label not in (None, entry.label):
        problem = (
            f"{display_path(entry.source)}: an earlier run put it into {CLASS_FOLDERS[entry.label]},"
            f" the predictions now say {NAMES[label]}: undo that run first"
        )
        kind = "for images that an earlier run put into the other class: undo that run first"
        folder = display_path(entry.source.parent)
        plan.problems.append(Problem(problem, folder, kind, display_path(entry.source.name)))


def _is_writable(folder: Path) -> bool:
    return os.access(folder, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids)


def _check_images(candidates: Sequence[_Candidate], options: Options, plan: Plan) -> list[_Candidate]:
    """Return the candidates that can be read, with the hash and the size of their content."""
    check = _check_image if options.check_images else _identify
    readable = []
    for result in parallel_map(check, candidates, "reading images"):
        if isinstance(result, SkippedFile):
            plan.skipped.append(result)
        else:
            readable.append(result)
    return readable


def _check_image(candidate: _Candidate) -> _Candidate | SkippedFile:
    try:
        decode(candidate.path, IMAGE_SIZE_PX)
    except ImageRefused as error:
        return SkippedFile(candidate.path, "unreadable", str(error))
    return _identify(candidate)


def _identify(candidate: _Candidate) -> _Candidate | SkippedFile:
    try:
        size = candidate.path.stat().st_size
        return dataclasses.replace(candidate, sha256=sha256_of(candidate.path), size=size)
    except OSError as error:
        return SkippedFile(candidate.path, "unreadable", error.strerror or str(error))


def _assign_names(candidates: Sequence[_Candidate], options: Options, plan: Plan) -> None:
    """Make entries of the candidates whose new names are free in both classes, whatever the case of the letters."""
    holders = {}
    for folder in (options.output / name for name in CLASS_FOLDERS):
        holders.update({_folded(path.name): path for path in folder.iterdir()} if folder.is_dir() else {})
    for candidate in candidates:
        entry = Entry(candidate.path, candidate.name, candidate.label, candidate.sha256, candidate.size)
        holder = holders.setdefault(_folded(candidate.name), candidate.path)
        if len(os.fsencode(candidate.name)) > _MAX_NAME_BYTES:
            detail = f"{len(os.fsencode(candidate.name))} bytes, at most {_MAX_NAME_BYTES} are possible"
            plan.skipped.append(SkippedFile(candidate.path, "name_too_long", detail))
        elif holder is candidate.path:
            plan.entries.append(entry)
        elif options.mode != "move" and _is_copy(holder, entry, options.output):
            plan.already.append(entry)
        else:
            detail = f"{candidate.name} is the name of {display_path(holder)}"
            plan.skipped.append(SkippedFile(candidate.path, "name_taken", detail))


def _folded(name: str) -> str:
    """Return the name as file systems compare it that ignore case and how accents are encoded."""
    return unicodedata.normalize("NFC", name).casefold()


def _is_copy(path: Path, entry: Entry, output: Path) -> bool:
    same_place = path == output / CLASS_FOLDERS[entry.label] / entry.name and not path.is_symlink()
    return same_place and path.stat().st_size == entry.size and sha256_of(path) == entry.sha256
