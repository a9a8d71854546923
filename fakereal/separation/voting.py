"""Votes: what the experiments say about each image, the label that follows, and how far the experiments agree.

An experiment is one prediction JSON for one folder. People's decisions come in a prediction JSON, too, and outrank
every vote.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from fakereal.errors import ConfigError, DataError
from fakereal.files import display_path, relative_name
from fakereal.labels import FAKE, NAMES, REAL
from fakereal.prediction_files import Document, Problem
from fakereal.prediction_rows import listed
from fakereal.runtime import log
from fakereal.separation.matching import ImageIndex, Matching, match_exactly
from fakereal.separation.pairing import Folder

T = TypeVar("T")
VotePair = tuple[str, str, int, int]  # two experiments by name, and the label of each


@dataclass(frozen=True)
class Experiment:
    """One prediction JSON for one folder."""

    path: Path  # absolute
    file: str  # unique in its folder: `x.json`, or `run1/x.json` beside `run2/x.json`
    name: str  # the same with `*` for the folder's name, so that an experiment has one name in all folders
    weight: float = 1.0
    index_shift: int | None = None  # see matching.match


@dataclass(frozen=True)
class Vote:
    """The label that one experiment gives one image."""

    experiment: Path  # its JSON
    label: int  # 0 fake, 1 real
    weight: float = 1.0
    name: str = ""  # of the experiment, for people; by default the JSON's


@dataclass
class Ballot:
    """All that the experiments say about one image."""

    votes: list[Vote] = field(default_factory=list)
    abstentions: list[tuple[str, str]] = field(default_factory=list)  # (reason, detail) of experiments without a vote


@dataclass(frozen=True)
class VoteResult:
    """A label, or why there is none."""

    label: int | None  # 0 fake, 1 real
    reason: str = ""  # one of transfer.REASONS where there is no label
    detail: str = ""


@dataclass(frozen=True)
class Agreement:
    """How two experiments label the images that both of them label."""

    first: str  # name of an experiment
    second: str
    counts: tuple[tuple[int, int], tuple[int, int]]  # [label of the first][label of the second]

    @property
    def images(self) -> int:
        """Images that both label; at least 1."""
        return sum(map(sum, self.counts))

    @property
    def agreed(self) -> int:
        """Images that both give the same label."""
        return sum(self.counts[label][label] for label in (FAKE, REAL))

    @property
    def kappa(self) -> float | None:
        """Cohen's kappa (1960): the agreement beyond chance, at most 1; None where both use the same single label."""
        firsts = [sum(row) for row in self.counts]
        seconds = [sum(column) for column in zip(*self.counts, strict=True)]
        by_chance = sum(first * second for first, second in zip(firsts, seconds, strict=True)) / self.images
        if by_chance == self.images:
            return None
        return (self.agreed - by_chance) / (self.images - by_chance)


def cast_votes(
    matching: Matching, experiment: Experiment, ballots: Mapping[Path, Ballot], skip_conflicts: bool = True
) -> None:
    """Add one experiment's votes to the ballots.

    Args:
        matching: the experiment's predictions with their images.
        experiment: whose votes they are.
        ballots: one for each image.
        skip_conflicts: whether an image that is called both fake and real gets no vote; otherwise it is an error.

    Raises:
        DataError: an image is called both fake and real; no vote was added.
    """
    labels: dict[Path, set[int | None]] = {}
    for each in matching.matches:
        labels.setdefault(each.image, set()).add(each.prediction.label)
    conflicts = [display_path(image.name) for image, given in labels.items() if given >= {FAKE, REAL}]
    if conflicts and not skip_conflicts:
        images = "an image is" if len(conflicts) == 1 else f"{len(conflicts):,} images are"
        raise DataError(
            f"{display_path(experiment.path)}: {images} called both fake and real ({listed(conflicts)}): correct the"
            " file, or pass --skip-conflicts to leave them out"
        )
    for image, sentence in matching.ambiguous.items():
        ballots[image].abstentions.append(("ambiguous", sentence))
    errors = {each.image: each.prediction.error or "" for each in matching.matches}
    for image, given in labels.items():
        _cast(ballots[image], given, experiment, errors[image])


def _cast(ballot: Ballot, labels: set[int | None], experiment: Experiment, error: str) -> None:
    """Add the vote, where the entries agree on one label; otherwise the reason why there is none."""
    label = next(iter(labels))
    if len(labels) > 1:
        ballot.abstentions.append(("conflict", f"{experiment.file} has several entries that differ"))
    elif label is None:
        ballot.abstentions.append(("null_prediction", f"{experiment.file}: {error}"))
    else:
        ballot.votes.append(Vote(experiment.path, label, experiment.weight, experiment.file))


def majority_vote(ballot: Ballot, min_agreement: float, experiments: Sequence[Path]) -> VoteResult:
    """Return the label that has more than half of the votes by weight, and at least the share `min_agreement`."""
    if not ballot.votes:
        names = ", ".join(display_path(path.name) for path in experiments)
        return VoteResult(None, *(ballot.abstentions or [("no_prediction", f"not named in {names}")])[0])
    total = sum(each.weight for each in ballot.votes)
    for label in range(len(NAMES)):
        share = sum(each.weight for each in ballot.votes if each.label == label) / total
        if share > 0.5 and share >= min_agreement:
            return VoteResult(label)
    return VoteResult(None, "disagreement", _votes_text(ballot.votes))


def _votes_text(votes: Sequence[Vote]) -> str:
    weights = (f" (weight {vote.weight:g})" if vote.weight != 1 else "" for vote in votes)
    return ", ".join(f"{_name(vote)}: {NAMES[vote.label]}{weight}" for vote, weight in zip(votes, weights, strict=True))


def _name(vote: Vote) -> str:
    return vote.name or display_path(vote.experiment.name)


def human_decisions(
    document: Document, source: Path, images: Sequence[Path]
) -> tuple[dict[Path, VoteResult], list[Problem]]:
    """Return the labels that people gave, which outrank every vote.

    Args:
        document: a prediction JSON whose entries name the images by their paths relative to `source`, or to a folder
            that it is in: the audit's page lists the images of all splits. An entry without a label is not decided yet.
        source: the folder of folders.
        images: all that can be decided.

    Returns:
        The results by image, and a problem for every entry that can't be used. An image that a document calls both
        fake and real has no label, so it is skipped.
    """
    ballots = {image: Ballot() for image in images}
    name = display_path(document.path.name)
    document = _relative_to(source, document, set(images))
    matching = match_exactly(document, ImageIndex(source, tuple(images)))
    cast_votes(matching, Experiment(document.path, name, name), ballots)
    decided = {}
    for image, ballot in ballots.items():
        conflicts = [abstention for abstention in ballot.abstentions if abstention[0] == "conflict"]
        if conflicts:
            decided[image] = VoteResult(None, *conflicts[0])
        elif ballot.votes:
            decided[image] = VoteResult(ballot.votes[0].label)
    return decided, [*document.problems, *matching.problems]


def _relative_to(source: Path, document: Document, images: Container[Path]) -> Document:
    """Return the decisions with paths relative to `source`, without those about files in other folders.

    A path is never guessed at: it has to lead from `source`, or from a folder above it, to an existing file.
    """
    kept, elsewhere = [], 0
    for decision in document.predictions:
        path = _existing(decision.image or "", source)
        if path in images:
            kept.append(replace(decision, image=relative_name(path, source)))
        elif path is None or path.is_relative_to(source):
            kept.append(decision)  # already separated, or to be reported
        else:
            elsewhere += 1
    if elsewhere:
        log(f"decisions about images outside {display_path(source)}, not used: {elsewhere:,}")
    return replace(document, predictions=tuple(kept))


def _existing(name: str, source: Path) -> Path | None:
    paths = (folder / name for folder in (source, *source.parents) if name)
    return next((path for path in paths if path.is_file()), None)


def experiments_of(
    folders: Sequence[Folder], weights: Sequence[str], shifts: Sequence[str] = ()
) -> dict[Path, tuple[Experiment, ...]]:
    """Return each folder's experiments, by the folder's path.

    Args:
        folders: with their prediction JSONs.
        weights: `NAME=N`: NAME is a JSON's file name, with or without its suffix, or a path, or the folder it is in; N
            above 0 is the weight of its votes. Where several match a JSON, the last one applies.
        shifts: `NAME=N`, an integer to add to its indices; see `matching.match`.

    Raises:
        ConfigError: another form, or a name that matches no JSON.
    """
    by_weight, by_shift = list(map(_split_weight, weights)), list(map(_split_shift, shifts))
    depth = _name_depth(folders)
    found = {}
    for folder in folders:
        plain = [Experiment(path, *_names_of(path, folder, depth)) for path in folder.experiments]
        found[folder.path] = tuple(
            replace(each, weight=_last(by_weight, each) or 1.0, index_shift=_last(by_shift, each)) for each in plain
        )
    experiments = [each for several in found.values() for each in several]
    _check_used("--weight", by_weight, experiments)
    _check_used("--index-shift", by_shift, experiments)
    return found


def _split_weight(text: str) -> tuple[str, float]:
    name, _, number = text.rpartition("=")
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not name or not 0 < weight < math.inf:
        raise ConfigError(f"--weight {text!r}: expected NAME=N with the name of a JSON and a number above 0")
    return name, weight


def _split_shift(text: str) -> tuple[str, int]:
    name, _, number = text.rpartition("=")
    if not name or not re.fullmatch(r"[+-]?[0-9]{1,18}", number):
        raise ConfigError(f"--index-shift {text!r}: expected NAME=N with the name of a JSON and an integer, such as 1")
    return name, int(number)


def _name_depth(folders: Sequence[Folder]) -> int:
    """Return how many parent folders a JSON's name needs, so that no two experiments of a folder share a name."""
    deepest = max((len(path.parts) for folder in folders for path in folder.experiments), default=0)
    for depth in range(deepest):
        if all(
            len({_names_of(path, folder, depth) for path in folder.experiments}) == len(folder.experiments)
            for folder in folders
        ):
            return depth
    return deepest


def _names_of(path: Path, folder: Folder, depth: int) -> tuple[str, str]:
    """Return an experiment's `file` and `name`."""
    above = path.parts[-1 - depth : -1]
    own = folder.path.name.removesuffix("_images") or folder.path.name
    rest = path.name.removeprefix(own)
    starred = f"*{rest}" if rest != path.name and rest[:1] in (".", "_") else path.name
    return display_path("/".join((*above, path.name))), display_path("/".join((*above, starred)))


def _last(pairs: Sequence[tuple[str, T]], experiment: Experiment) -> T | None:
    """Return the last value that is given for an experiment."""
    return next((value for wanted, value in reversed(pairs) if _is_called(wanted, experiment)), None)


def _is_called(wanted: str, experiment: Experiment) -> bool:
    path = experiment.path
    if wanted in (experiment.file, experiment.name, path.name, path.stem, path.parent.name):
        return True
    return Path(os.path.realpath(wanted)) in (path, path.parent)


def _check_used(option: str, pairs: Sequence[tuple[str, object]], experiments: Sequence[Experiment]) -> None:
    for wanted, _ in pairs:
        if not any(_is_called(wanted, experiment) for experiment in experiments):
            known = ", ".join(sorted({experiment.name for experiment in experiments}))
            raise ConfigError(f"{option} {wanted!r}: expected one of {known}, got a name that matches none")


def count_vote_pairs(ballots: Iterable[Ballot], experiments: Sequence[Experiment]) -> Counter[VotePair]:
    """Count, for every two experiments, the images by the pair of labels that they give."""
    names = {experiment.path: experiment.name for experiment in experiments}
    pairs: Counter[VotePair] = Counter()
    for ballot in ballots:
        given = sorted((names[vote.experiment], vote.label) for vote in ballot.votes)
        for number, (first, label) in enumerate(given):
            pairs.update((first, second, label, other) for second, other in given[number + 1 :])
    return pairs


def agreements(pairs: Mapping[VotePair, int]) -> list[Agreement]:
    """Return the agreement of every two experiments that label some of the same images, by name."""
    couples = sorted({(first, second) for first, second, _, _ in pairs})
    return [
        Agreement(
            *couple,
            tuple(tuple(pairs.get((*couple, row, column), 0) for column in (FAKE, REAL)) for row in (FAKE, REAL)),
        )
        for couple in couples
    ]


def agreement_lines(found: Sequence[Agreement]) -> Iterator[str]:
    """Yield a table for people; nothing where no two experiments label the same image."""
    if not found:
        return
    rows = [f"{each.first}, {each.second}" for each in found]
    width = max(map(len, rows))
    splits = [f"{NAMES[row]}/{NAMES[column]}" for row, column in ((FAKE, REAL), (REAL, FAKE))]
    yield f"{'':{width}}" + "".join(f"{title:>11}" for title in ("images", "agree", "share", "kappa", *splits))
    for row, each in zip(rows, found, strict=True):
        share, kappa = f"{each.agreed / each.images:.1%}", "-" if each.kappa is None else f"{each.kappa:.3f}"
        numbers = (f"{each.images:,}", f"{each.agreed:,}", share, kappa, f"{each.counts[FAKE][REAL]:,}")
        yield f"{row:{width}}" + "".join(f"{cell:>11}" for cell in (*numbers, f"{each.counts[REAL][FAKE]:,}"))


def agreement_as_json(each: Agreement) -> dict[str, Any]:
    """Return an agreement in the form of `separation_report.json`."""
    counts = {
        f"{NAMES[row]} {NAMES[column]}": each.counts[row][column] for row in (FAKE, REAL) for column in (FAKE, REAL)
    }
    return {
        "experiments": [each.first, each.second],
        "pictures": each.images,  # a published key
        "agree": each.agreed,
        "kappa": None if each.kappa is None else round(each.kappa, 6),
        "counts": counts,
    }
