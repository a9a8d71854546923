"""Votes: what the experiments say about each image, the label that follows, and how far the experiments agree.

An experiment is one prediction JSON for one folder. People's decisions come in a prediction JSON, too, and outrank
every vote.
"""

from __future__ import annotations

import math
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fakereal.errors import ConfigError
from fakereal.files import display_path
from fakereal.labels import FAKE, NAMES, REAL
from fakereal.predictions_json import Document, key_of_file
from fakereal.separation.pairing import Folder

Key = int | str
Index = Mapping[Key, Sequence[Path]]
VotePair = tuple[str, str, int, int]  # two experiments by name, and the label of each


@dataclass(frozen=True)
class Experiment:
    """One prediction JSON for one folder."""

    path: Path  # absolute
    file: str  # unique in its folder: `x.json`, or `run1/x.json` beside `run2/x.json`
    name: str  # the same with `*` for the folder's name, so that an experiment has one name in all folders
    weight: float = 1.0


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


def index_images(folder: Path, images: Iterable[Path]) -> Index:
    """Return the images by each key that an entry may name them by: the number, and the path relative to the folder.

    An image outside the folder is named by its absolute path.
    """
    index: dict[Key, list[Path]] = {}
    for image in images:
        relative = image.relative_to(folder) if image.is_relative_to(folder) else image
        for key in {_normalized(key_of_file(relative)), _normalized(relative.as_posix())}:
            index.setdefault(key, []).append(image)
    return index


def _normalized(key: Key) -> Key:
    """Compose accents: macOS stores é as two characters, and an entry written there must match its file anywhere."""
    return unicodedata.normalize("NFC", key) if isinstance(key, str) else key


def cast_votes(
    document: Document, index: Index, ballots: Mapping[Path, Ballot], name: str = "", weight: float = 1.0
) -> list[str]:
    """Add one experiment's votes to the ballots.

    Args:
        document: the experiment's predictions.
        index: the images by key, see `index_images`.
        ballots: one for each image.
        name: of the experiment, for people.
        weight: of each vote.

    Returns:
        A sentence for every entry that can't be used.
    """
    labels: dict[Path, set[int | None]] = {}
    problems = list(document.problems)
    errors: dict[Path, str] = {}
    for prediction in document.predictions:
        images = index.get(_normalized(prediction.key), ())
        if len(images) == 1:
            labels.setdefault(images[0], set()).add(prediction.label)
            errors[images[0]] = prediction.error or ""
        else:
            sentence = _no_single_image(prediction.key, images)
            problems.append(f"{display_path(document.path)}: {sentence}")
            for image in images:
                ballots[image].abstentions.append(("ambiguous", sentence))
    experiment = Experiment(document.path, document.path.name, name or display_path(document.path.name), weight)
    for image, given in labels.items():
        _cast(ballots[image], given, experiment, errors[image])
    return problems


def _cast(ballot: Ballot, labels: set[int | None], experiment: Experiment, error: str) -> None:
    """Add the vote, where the entries agree on one label; otherwise the reason why there is none."""
    label = next(iter(labels))
    if len(labels) > 1:
        ballot.abstentions.append(("conflict", f"{experiment.name} has several entries that differ"))
    elif label is None:
        ballot.abstentions.append(("null_prediction", f"{experiment.name}: {error}"))
    else:
        ballot.votes.append(Vote(experiment.path, label, experiment.weight, experiment.name))


def _no_single_image(key: Key, images: Sequence[Path]) -> str:
    entry = f"index {key}" if isinstance(key, int) else f"image {display_path(key)!r}"
    if not images:
        return f"{entry}: the folder has no such image"
    names = ", ".join(display_path(image.name) for image in images)
    return f"{entry}: {len(images)} images match ({names})"


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
) -> tuple[dict[Path, VoteResult], list[str]]:
    """Return the labels that people gave, which outrank every vote.

    Args:
        document: a prediction JSON whose entries name the images by their paths relative to `source`; an entry without
            a label is not decided yet.
        source: the folder of folders.
        images: all that can be decided.

    Returns:
        The results by image, and a sentence for every entry that can't be used. An image that a document calls both
        fake and real has no label, so it is skipped.
    """
    ballots = {image: Ballot() for image in images}
    problems = cast_votes(document, index_images(source, images), ballots)
    decided = {}
    for image, ballot in ballots.items():
        conflicts = [abstention for abstention in ballot.abstentions if abstention[0] == "conflict"]
        if conflicts:
            decided[image] = VoteResult(None, *conflicts[0])
        elif ballot.votes:
            decided[image] = VoteResult(ballot.votes[0].label)
    return decided, problems


def experiments_of(folders: Sequence[Folder], weights: Sequence[str]) -> dict[Path, tuple[Experiment, ...]]:
    """Return each folder's experiments, by the folder's path.

    Args:
        folders: with their prediction JSONs.
        weights: `NAME=N`: NAME is a JSON's file name, with or without `.json`, or a path, or the folder it is in; N
            above 0 is the weight of its votes. Where several match a JSON, the last one applies.

    Raises:
        ConfigError: another form, or a name that matches no JSON.
    """
    parsed = [_split_weight(weight) for weight in weights]
    depth = _name_depth(folders)
    used: set[str] = set()
    found = {}
    for folder in folders:
        experiments = []
        for path in folder.experiments:
            file, name = _names_of(path, folder, depth)
            matching = [(wanted, weight) for wanted, weight in parsed if _matches(wanted, path, (file, name))]
            used |= {wanted for wanted, _ in matching}
            experiments.append(Experiment(path, file, name, matching[-1][1] if matching else 1.0))
        found[folder.path] = tuple(experiments)
    _check_used(parsed, used, found)
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


def _matches(wanted: str, path: Path, names: tuple[str, str]) -> bool:
    if wanted in (*names, path.name, path.stem, path.parent.name):
        return True
    return Path(os.path.realpath(wanted)) in (path, path.parent)


def _check_used(
    parsed: Sequence[tuple[str, float]], used: set[str], found: Mapping[Path, Iterable[Experiment]]
) -> None:
    for wanted, _ in parsed:
        if wanted not in used:
            known = sorted({experiment.name for experiments in found.values() for experiment in experiments})
            raise ConfigError(f"--weight {wanted!r}: expected one of {', '.join(known)}, got a name that matches none")


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
