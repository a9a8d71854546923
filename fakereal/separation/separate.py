"""Raw folders and their prediction JSONs become `real_images/` and `fake_images/`, and back again.

`preview` shows the very plan that `separate` carries out. Whatever is not in the plan is in its `stays` or `problems`.
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

from fakereal.decoding import decode
from fakereal.errors import ConfigError, DataError, ImageRefused
from fakereal.files import display_path, locked_folders, sha256_of
from fakereal.labels import NAMES
from fakereal.predictions_json import read
from fakereal.preprocessing import IMAGE_SIZE_PX
from fakereal.runtime import deferred_interrupts, interrupt_requested, log, parallel_map, progress_bar
from fakereal.separation import journal as journals
from fakereal.separation.journal import CLASS_FOLDERS, NOTHING, Entry, Journal, TransferResult
from fakereal.separation.pairing import Folder, contents_of, find_folders
from fakereal.separation.transfer import SkippedFile
from fakereal.separation.voting import (
    Ballot,
    Experiment,
    VoteResult,
    cast_votes,
    decide,
    experiments_of,
    index_images,
    pairs_of,
    people_decide,
)

_FILE_NOTE = "finishing the current file ..."


@dataclass(frozen=True)
class SeparationResult:
    """What a run came to."""

    plan: Plan
    journals: tuple[Journal, ...] = ()  # gone on with, or written, in this run
    outcome: TransferResult = NOTHING  # of the last of them
    carried: int = 0  # files that are in their places by this run's journals

    @property
    def stays(self) -> list[SkippedFile]:
        """Every file that is still where it was, by path."""
        return sorted((*self.plan.stays, *self.outcome.stayed), key=lambda stay: stay.path)


def preview(options: Options) -> Plan:
    """Returns the plan that `separate` would carry out now; writes nothing."""
    options = _resolve_paths(options)
    found = journals.find(options.output)
    _unfinished(found, options)
    return make_plan(options, found)


def separate(options: Options) -> SeparationResult:
    """Separates the pictures; goes on first with what an earlier, killed run of the same command began.

    Raises:
        ConfigError: options that can't be used together or name what isn't there.
        DataError: no folder with predictions, an output that can't be written, another run at work.
    """
    options = _resolve_paths(options)
    with _folder(options.output), locked_folders(options.source, options.output):
        journals.clear_torn(options.output)
        found = journals.find(options.output)
        resumed = _unfinished(found, options)
        carried = 0
        with deferred_interrupts(
            _FILE_NOTE
        ):  # over all journals: pressed during the last file of one, it ends the run too
            for journal in resumed:
                outcome = _work(journals.apply, journal, "going on")
                if outcome.interrupted or interrupt_requested():
                    outcome = dataclasses.replace(outcome, interrupted=True)
                    return SeparationResult(Plan(), (journal,), outcome, outcome.handled)
                carried += outcome.handled
        plan = make_plan(options, found)
        if not plan.entries:
            return SeparationResult(plan, tuple(resumed), carried=carried)
        journal = journals.create(options.output, options.mode, options.source, plan.entries)
        outcome = _work(journals.apply, journal, "separating")
        return SeparationResult(plan, (*resumed, journal), outcome, carried + outcome.handled)


def undo(path: Path) -> tuple[Journal, TransferResult]:
    """Puts back every file that a journal names.

    Raises:
        DataError: no such journal, or another run is at work.
    """
    journal = journals.read(path)
    with locked_folders(journal.source, journal.path.parent):
        journals.clear_torn(journal.path.parent)
        journal = journals.read(path)  # again: a run that has just ended may have added to it
        return journal, _work(journals.undo, journal, "putting back")


def _work(step: Callable[..., TransferResult], journal: Journal, description: str) -> TransferResult:
    with deferred_interrupts(_FILE_NOTE), progress_bar(description, len(journal.entries)) as advance:
        return step(journal, advance, interrupt_requested)


def _resolve_paths(options: Options) -> Options:
    """Returns the options with absolute paths, links resolved."""
    source, output = Path(os.path.realpath(options.source)), Path(os.path.realpath(options.output))
    if not source.is_dir():
        raise DataError(
            f"{display_path(options.source)}: expected a folder of folders of pictures, found no such folder"
        )
    if options.decisions and not options.decisions.is_file():
        raise ConfigError(
            f"--decisions {display_path(options.decisions)}: expected a prediction JSON, found no such file"
        )
    if output == source:
        raise ConfigError(
            f"--output {display_path(options.output)}: expected another folder than the source, found the same"
        )
    predictions = tuple(Path(os.path.realpath(path)) for path in options.predictions)
    return dataclasses.replace(options, source=source, output=output, predictions=predictions)


@contextlib.contextmanager
def _folder(path: Path) -> Iterator[None]:
    """Makes the output folder, and takes it away again where nothing came into it."""
    was_there = path.exists()
    journals.make_folder(path)
    try:
        yield
    finally:
        if not was_there and not any(path.iterdir()):
            path.rmdir()


def _unfinished(found: Sequence[Journal], options: Options) -> list[Journal]:
    """Returns the journals to go on with: those that the same command left half done."""
    for journal in found:
        way_back = f"python image_separate.py --undo {display_path(journal.path)}"
        if journal.status == "undoing":
            raise DataError(
                f"{display_path(options.output)}: expected no undo half done, found one: finish it with {way_back}"
            )
        if journal.status == "open" and (journal.mode, journal.source) != (options.mode, options.source):
            raise DataError(
                f"{display_path(options.output)}: expected no other separation half done, found one"
                f" (--mode {journal.mode} from {display_path(journal.source)}): run that one again, or take it back with {way_back}"
            )
        if journal.status == "open":
            log(f"an earlier run was interrupted and is gone on with first: {display_path(journal.path)}")
    return [journal for journal in found if journal.status == "open"]


# ---- The plan of a separation: every picture in the source once, with its label and new name, or with why it stays.

_MAX_NAME_BYTES = 255  # of one file name, on nearly every file system


@dataclass(frozen=True)
class Options:
    """What the user asked for."""

    source: Path  # the folder of folders
    output: Path  # gets fake_images/, real_images/ and the journal
    mode: str = "move"  # move, copy or link
    predictions: tuple[Path, ...] = ()  # JSONs, or folders of them, to look in instead of the source
    pairs: tuple[str, ...] = ()  # FOLDER=JSON
    skip: tuple[str, ...] = ()  # names of sub-folders that are meant to stay
    min_agreement: float = 0.5  # share of the votes that a label needs, besides more than half
    check_images: bool = True  # decode every picture, so that a damaged one stays
    weights: tuple[str, ...] = ()  # NAME=N
    decisions: Path | None = None  # prediction JSON of people, who outrank every vote


@dataclass
class Plan:
    """Every picture in the source, once."""

    folders: tuple[Folder, ...] = ()
    entries: list[Entry] = field(default_factory=list)  # to be carried to their new names
    already: list[Entry] = field(default_factory=list)  # brought there by an earlier run
    stays: list[SkippedFile] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # sentences on JSONs and entries that can't be used
    experiments: dict[Path, tuple[Experiment, ...]] = field(default_factory=dict)  # by the folder that they judge
    pairs: Counter[tuple[str, str, int, int]] = field(default_factory=Counter)  # as pairs_of counts them
    decided: int = 0  # labels that people gave


@dataclass(frozen=True)
class _Candidate:
    """A picture with a label."""

    path: Path
    label: int
    name: str  # the new one
    sha256: str = ""
    size: int = 0  # bytes


def make_plan(options: Options, earlier: Sequence[Journal]) -> Plan:
    """Plans a separation; reads, and writes nothing.

    Args:
        options: with absolute paths.
        earlier: the journals in the output, so that pictures already separated are not missed in their folders.

    Raises:
        ConfigError: an option names what isn't there.
        DataError: no sub-folder has predictions.
    """
    pairing = find_folders(options.source, options.output, options.predictions, options.pairs, options.skip)
    if not options.decisions and not any(folder.experiments for folder in pairing.folders):
        raise DataError(_nothing_paired(options, pairing.folders))
    plan = Plan(pairing.folders, stays=list(pairing.stays), problems=list(pairing.problems))
    plan.experiments = experiments_of(pairing.folders, options.weights)
    separated = _separated(earlier, {folder.path for folder in pairing.folders})
    pictures = {folder.path: _images(folder, separated.get(folder.path, {}), options, plan) for folder in plan.folders}
    decided = _decided(list(chain.from_iterable(pictures.values())), options, plan)
    candidates: list[_Candidate] = []
    for folder in pairing.folders:
        decisions = _decisions(folder, pictures[folder.path], decided, options, plan)
        candidates += _label_pictures(folder, decisions, separated.get(folder.path, {}), options, plan)
    _give_names(_sound(candidates, options, plan), options, plan)
    return plan


def _nothing_paired(options: Options, folders: Sequence[Folder]) -> str:
    names = ", ".join(display_path(folder.path.name) + "/" for folder in folders[:5]) or "no sub-folder at all"
    return (
        f"{display_path(options.source)}: expected sub-folders with prediction JSONs,"
        f" such as X/ with X.json, X_preds.json or X_predictions.json, found {names} and no JSON for any: name the JSONs with --predictions or --pair"
    )


def _separated(earlier: Sequence[Journal], folders: set[Path]) -> dict[Path, dict[Path, Entry]]:
    """Returns, by folder, the pictures that earlier runs moved away and that lie where those put them."""
    found: dict[Path, dict[Path, Entry]] = {}
    for journal in earlier:
        for entry in journal.entries if journal.status != "undone" else ():
            folder = next((parent for parent in entry.source.parents if parent in folders), None)
            if folder and not os.path.lexists(entry.source) and journal.target(entry).exists():
                found.setdefault(folder, {})[entry.source] = entry
    return found


def _images(folder: Folder, separated: dict[Path, Entry], options: Options, plan: Plan) -> list[Path]:
    """Returns the pictures that lie in a folder, and those that earlier runs moved away."""
    judged = {other.path for other in plan.folders if other.experiments}
    contents = contents_of(folder.path, {options.output, *judged} - {folder.path}, options.source)
    plan.stays += contents.stays
    return [*contents.pictures, *separated]


def _decided(pictures: Sequence[Path], options: Options, plan: Plan) -> dict[Path, VoteResult]:
    if options.decisions is None:
        return {}
    decided, problems = people_decide(read(options.decisions), options.source, list(dict.fromkeys(pictures)))
    plan.problems += problems
    plan.decided = sum(decision.label is not None for decision in decided.values())
    return decided


def _decisions(
    folder: Folder, pictures: Sequence[Path], decided: dict[Path, VoteResult], options: Options, plan: Plan
) -> Iterator[tuple[Path, VoteResult, Ballot]]:
    """Yields each picture of a folder with the decision and the votes that there were."""
    for path, ballot in _ballots(folder, pictures, plan).items():
        if path in decided:
            yield path, decided[path], ballot
        elif folder.experiments:
            yield path, decide(ballot, options.min_agreement, folder.experiments), ballot
        else:
            yield path, VoteResult(None, "no_predictions"), ballot


def _label_pictures(
    folder: Folder,
    decisions: Iterator[tuple[Path, VoteResult, Ballot]],
    separated: dict[Path, Entry],
    options: Options,
    plan: Plan,
) -> Iterator[_Candidate]:
    for path, decision, ballot in decisions:
        if path in separated:
            _look_back(separated[path], decision.label, plan)
        elif decision.label is None:
            votes = tuple((vote.name, vote.label) for vote in ballot.votes)
            plan.stays.append(SkippedFile(path, decision.reason, decision.detail, votes))
        elif options.mode == "move" and not _is_writable(path.parent):
            plan.stays.append(SkippedFile(path, "read_only", "nothing can be moved out of it: use --mode copy"))
        else:
            yield _Candidate(path, decision.label, "__".join((folder.name, *path.relative_to(folder.path).parts)))


def _is_writable(folder: Path) -> bool:
    return os.access(folder, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids)


def _ballots(folder: Folder, pictures: Sequence[Path], plan: Plan) -> dict[Path, Ballot]:
    ballots = {picture: Ballot() for picture in pictures}
    index = index_images(folder.path, pictures)
    experiments = plan.experiments[folder.path]
    for experiment in experiments:
        try:
            plan.problems += cast_votes(read(experiment.path), index, ballots, experiment.file, experiment.weight)
        except DataError as error:
            plan.problems.append(str(error))
    plan.pairs += pairs_of(ballots.values(), experiments)
    return ballots


def _look_back(entry: Entry, label: int | None, plan: Plan) -> None:
    """A picture that an earlier run separated is done; that the predictions have changed since must be said."""
    plan.already.append(entry)
    if label not in (None, entry.label):
        plan.problems.append(
            f"{display_path(entry.source)}: an earlier run put it into {CLASS_FOLDERS[entry.label]},"
            f" the predictions now say {NAMES[label]}: undo that run first"
        )


def _sound(candidates: Sequence[_Candidate], options: Options, plan: Plan) -> list[_Candidate]:
    """Returns the candidates that can be read, with what identifies their content."""
    inspect = _inspect_image if options.check_images else _identify
    sound = []
    for result in parallel_map(inspect, candidates, "reading images"):
        if isinstance(result, SkippedFile):
            plan.stays.append(result)
        else:
            sound.append(result)
    return sound


def _inspect_image(candidate: _Candidate) -> _Candidate | SkippedFile:
    try:
        decode(candidate.path, IMAGE_SIZE_PX)
    except ImageRefused as error:
        return SkippedFile(candidate.path, "unreadable", str(error))
    return _identify(candidate)


def _identify(candidate: _Candidate) -> _Candidate | SkippedFile:
    try:
        size = candidate.path.stat().st_size
        return _Candidate(candidate.path, candidate.label, candidate.name, sha256_of(candidate.path), size)
    except OSError as error:
        return SkippedFile(candidate.path, "unreadable", f"expected a readable file, found: {error.strerror or error}")


def _give_names(candidates: Sequence[_Candidate], options: Options, plan: Plan) -> None:
    """Makes entries of the candidates whose new names are free, in both classes and in any spelling of case."""
    holders = {}
    for folder in (options.output / name for name in CLASS_FOLDERS):
        holders.update({_folded(path.name): path for path in folder.iterdir()} if folder.is_dir() else {})
    for candidate in candidates:
        entry = Entry(candidate.path, candidate.name, candidate.label, candidate.sha256, candidate.size)
        holder = holders.setdefault(_folded(candidate.name), candidate.path)
        if len(os.fsencode(candidate.name)) > _MAX_NAME_BYTES:
            detail = f"{len(os.fsencode(candidate.name))} bytes, at most {_MAX_NAME_BYTES} are possible"
            plan.stays.append(SkippedFile(candidate.path, "name_too_long", detail))
        elif holder is candidate.path:
            plan.entries.append(entry)
        elif options.mode != "move" and _is_copy(holder, entry, options.output):
            plan.already.append(entry)
        else:
            plan.stays.append(
                SkippedFile(candidate.path, "name_taken", f"{candidate.name} is the name of {display_path(holder)}")
            )


def _folded(name: str) -> str:
    """Returns what a file system that ignores case and accents' spelling takes the name for."""
    return unicodedata.normalize("NFC", name).casefold()


def _is_copy(path: Path, entry: Entry, output: Path) -> bool:
    same_place = path == output / CLASS_FOLDERS[entry.label] / entry.name and not path.is_symlink()
    return same_place and path.stat().st_size == entry.size and sha256_of(path) == entry.sha256
