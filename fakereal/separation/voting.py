"""What several experiments say about the pictures of one folder, what they decide together, and what people decide."""

from __future__ import annotations

import math
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fakereal.errors import ConfigError
from fakereal.files import display_path
from fakereal.labels import FAKE, NAMES, REAL
from fakereal.predictions_json import Document, key_of_file
from fakereal.separation.pairing import Folder

Key = int | str
Index = Mapping[Key, Sequence[Path]]


@dataclass(frozen=True)
class Vote:
    """What one experiment says about one picture."""

    experiment: Path  # its JSON
    label: int  # 0 fake, 1 real
    weight: float = 1.0  # how much it counts beside the others
    name: str = ""  # what people are told that the experiment is called


@dataclass
class Ballot:
    """What is known of one picture before the decision."""

    votes: list[Vote] = field(default_factory=list)
    abstentions: list[tuple[str, str]] = field(default_factory=list)  # (reason, detail) of experiments without a vote


@dataclass(frozen=True)
class VoteResult:
    """A label, or why there is none."""

    label: int | None  # 0 fake, 1 real
    reason: str = ""  # one of separation_stays.REASONS where there is no label
    detail: str = ""


def index_images(folder: Path, pictures: Iterable[Path]) -> Index:
    """Returns the pictures by every key an entry may name them by: the number, and the path relative to the folder.

    A picture that lies elsewhere is known by its absolute path.
    """
    index: dict[Key, list[Path]] = {}
    for picture in pictures:
        relative = picture.relative_to(folder) if picture.is_relative_to(folder) else picture
        for key in {_normal(key_of_file(relative)), _normal(relative.as_posix())}:
            index.setdefault(key, []).append(picture)
    return index


def _normal(key: Key) -> Key:
    """Accents may be letters of their own, as macOS writes them; an entry made there must find its file here."""
    return unicodedata.normalize("NFC", key) if isinstance(key, str) else key


def cast_votes(
    document: Document, index: Index, ballots: Mapping[Path, Ballot], name: str = "", weight: float = 1.0
) -> list[str]:
    """Adds one experiment's votes to the ballots.

    Returns:
        A sentence for every entry that can't be used.
    """
    said: dict[Path, set[int | None]] = {}
    problems = list(document.problems)
    errors: dict[Path, str] = {}
    for prediction in document.predictions:
        pictures = index.get(_normal(prediction.key), ())
        if len(pictures) == 1:
            said.setdefault(pictures[0], set()).add(prediction.label)
            errors[pictures[0]] = prediction.error or ""
        else:
            sentence = f"{_key_text(prediction.key)}: {_found_text(pictures)}"
            problems.append(f"{display_path(document.path)}: {sentence}")
            for picture in pictures:
                ballots[picture].abstentions.append(("ambiguous", sentence))
    for picture, labels in said.items():
        _cast(ballots[picture], labels, Vote(document.path, FAKE, weight, name), errors[picture])
    return problems


def _cast(ballot: Ballot, labels: set[int | None], vote: Vote, error: str) -> None:
    """Adds the vote with the one label that there is, or why there is none."""
    label = next(iter(labels))
    if len(labels) > 1:
        ballot.abstentions.append(("conflict", f"{_name(vote)} has several entries that differ"))
    elif label is None:
        ballot.abstentions.append(("null_prediction", f"{_name(vote)}: {error}"))
    else:
        ballot.votes.append(replace(vote, label=label))


def _name(vote: Vote) -> str:
    return vote.name or display_path(vote.experiment.name)


def _key_text(key: Key) -> str:
    return f"index {key}" if isinstance(key, int) else f"image {display_path(key)!r}"


def _found_text(pictures: Sequence[Path]) -> str:
    if not pictures:
        return "expected a picture that is called so in the folder, found none"
    return (
        f"expected one picture, found {len(pictures)}: {', '.join(display_path(picture.name) for picture in pictures)}"
    )


def decide(ballot: Ballot, min_agreement: float, experiments: Sequence[Path]) -> VoteResult:
    """Returns the label that more than half of the votes, by weight, and at least `min_agreement` of them are for."""
    if not ballot.votes:
        names = ", ".join(display_path(path.name) for path in experiments)
        return VoteResult(None, *(ballot.abstentions or [("no_prediction", f"not named in {names}")])[0])
    total = sum(vote.weight for vote in ballot.votes)
    for label in range(len(NAMES)):
        share = sum(vote.weight for vote in ballot.votes if vote.label == label) / total
        if share > 0.5 and share >= min_agreement:
            return VoteResult(label)
    return VoteResult(None, "disagreement", votes_text(ballot.votes))


def votes_text(votes: Sequence[Vote]) -> str:
    """Returns who voted for what, on one line, with the weights that are not 1."""
    weights = (f" (counts {vote.weight:g})" if vote.weight != 1 else "" for vote in votes)
    return ", ".join(f"{_name(vote)}: {NAMES[vote.label]}{weight}" for vote, weight in zip(votes, weights, strict=True))


def people_decide(
    document: Document, source: Path, pictures: Sequence[Path]
) -> tuple[dict[Path, VoteResult], list[str]]:
    """Returns what people decided, which outranks every vote.

    Args:
        document: a prediction JSON whose entries name the pictures by their paths relative to `source`; those without
            a label are not decided yet.
        source: the folder of folders.
        pictures: all that can be decided about.

    Returns:
        The decisions by picture, and a sentence for every entry that can't be used. Where a document says both fake
        and real, the decision is to leave the picture where it is.
    """
    ballots = {picture: Ballot() for picture in pictures}
    problems = cast_votes(document, index_images(source, pictures), ballots)
    decided = {}
    for picture, ballot in ballots.items():
        conflicts = [abstention for abstention in ballot.abstentions if abstention[0] == "conflict"]
        if conflicts:
            decided[picture] = VoteResult(None, *conflicts[0])
        elif ballot.votes:
            decided[picture] = VoteResult(ballot.votes[0].label)
    return decided, problems


# ---- What the experiments that vote are called, how much each counts, and how far any two of them agree.


@dataclass(frozen=True)
class Experiment:
    """One JSON that judges one folder."""

    path: Path  # absolute
    file: str  # short, and apart from the folder's other experiments: `x.json`, or `run1/x.json` beside `run2/x.json`
    name: str  # the same with `*` for the folder's name, so that an experiment has one name for all folders
    weight: float = 1.0


@dataclass(frozen=True)
class Agreement:
    """How two experiments judge the pictures that both of them judge."""

    first: str  # name of an experiment
    second: str
    counts: tuple[tuple[int, int], tuple[int, int]]  # [label of the first][label of the second]

    @property
    def pictures(self) -> int:
        """How many both judge; at least 1."""
        return sum(map(sum, self.counts))

    @property
    def agree(self) -> int:
        """How many of them get the same label."""
        return sum(self.counts[label][label] for label in (FAKE, REAL))

    @property
    def kappa(self) -> float | None:
        """Cohen's kappa (1960): the agreement beyond chance, 1 at most; None where both know one label only."""
        firsts = [sum(row) for row in self.counts]
        seconds = [sum(column) for column in zip(*self.counts, strict=True)]
        by_chance = sum(first * second for first, second in zip(firsts, seconds, strict=True)) / self.pictures
        if by_chance == self.pictures:
            return None
        return (self.agree - by_chance) / (self.pictures - by_chance)


def experiments_of(folders: Sequence[Folder], weights: Sequence[str]) -> dict[Path, tuple[Experiment, ...]]:
    """Returns each folder's experiments, by the folder's path.

    Args:
        folders: with the JSONs that judge them.
        weights: `NAME=N`; NAME is a JSON's file name, with or without `.json`, or a path, or the folder that it lies
            in, and N above 0 how much its votes count. Of several that fit a JSON, the last counts.

    Raises:
        ConfigError: no such form, or a name that fits no JSON.
    """
    parsed = [_split_weight(weight) for weight in weights]
    depth = _depth(folders)
    used: set[str] = set()
    found = {}
    for folder in folders:
        experiments = []
        for path in folder.experiments:
            file, name = _called(path, folder, depth)
            fitting = [(wanted, weight) for wanted, weight in parsed if _fits(wanted, path, (file, name))]
            used |= {wanted for wanted, _ in fitting}
            experiments.append(Experiment(path, file, name, fitting[-1][1] if fitting else 1.0))
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


def _fits(wanted: str, path: Path, called: tuple[str, str]) -> bool:
    if wanted in (*called, path.name, path.stem, path.parent.name):
        return True
    return Path(os.path.realpath(wanted)) in (path, path.parent)


def _check_used(
    parsed: Sequence[tuple[str, float]], used: set[str], found: Mapping[Path, Iterable[Experiment]]
) -> None:
    for wanted, _ in parsed:
        if wanted not in used:
            known = sorted({experiment.name for experiments in found.values() for experiment in experiments})
            raise ConfigError(f"--weight {wanted!r}: expected one of {', '.join(known)}, found no JSON called so")


def _depth(folders: Sequence[Folder]) -> int:
    """Returns how many folders above a JSON its name needs, so that no two experiments of a folder share one."""
    deepest = max((len(path.parts) for folder in folders for path in folder.experiments), default=0)
    for depth in range(deepest):
        if all(
            len({_called(path, folder, depth) for path in folder.experiments}) == len(folder.experiments)
            for folder in folders
        ):
            return depth
    return deepest


def _called(path: Path, folder: Folder, depth: int) -> tuple[str, str]:
    """Returns an experiment's `file` and `name`."""
    above = path.parts[-1 - depth : -1]
    own = folder.path.name.removesuffix("_images") or folder.path.name
    rest = path.name.removeprefix(own)
    starred = f"*{rest}" if rest != path.name and rest[:1] in (".", "_") else path.name
    return display_path("/".join((*above, path.name))), display_path("/".join((*above, starred)))


def pairs_of(ballots: Iterable[Ballot], experiments: Sequence[Experiment]) -> Counter[tuple[str, str, int, int]]:
    """Counts, for every two experiments, what they say of the same picture: (first, second, label, label)."""
    names = {experiment.path: experiment.name for experiment in experiments}
    pairs: Counter[tuple[str, str, int, int]] = Counter()
    for ballot in ballots:
        said = sorted((names[vote.experiment], vote.label) for vote in ballot.votes)
        for number, (first, label) in enumerate(said):
            pairs.update((first, second, label, other) for second, other in said[number + 1 :])
    return pairs


def agreements(pairs: Mapping[tuple[str, str, int, int], int]) -> list[Agreement]:
    """Returns the agreement of every two experiments that judge some picture both, by name."""
    couples = sorted({(first, second) for first, second, _, _ in pairs})
    return [
        Agreement(
            *couple,
            tuple(tuple(pairs.get((*couple, row, column), 0) for column in (FAKE, REAL)) for row in (FAKE, REAL)),
        )
        for couple in couples
    ]


def agreement_lines(found: Sequence[Agreement]) -> Iterator[str]:
    """Yields a table for people; nothing where no two experiments judge the same picture."""
    if not found:
        return
    rows = [f"{each.first}, {each.second}" for each in found]
    width = max(map(len, rows))
    splits = [f"{NAMES[row]}/{NAMES[column]}" for row, column in ((FAKE, REAL), (REAL, FAKE))]
    yield f"{'':{width}}" + "".join(f"{title:>11}" for title in ("pictures", "agree", "share", "kappa", *splits))
    for row, each in zip(rows, found, strict=True):
        share, kappa = f"{each.agree / each.pictures:.1%}", "-" if each.kappa is None else f"{each.kappa:.3f}"
        numbers = (f"{each.pictures:,}", f"{each.agree:,}", share, kappa, f"{each.counts[FAKE][REAL]:,}")
        yield f"{row:{width}}" + "".join(f"{cell:>11}" for cell in (*numbers, f"{each.counts[REAL][FAKE]:,}"))


def agreement_as_json(each: Agreement) -> dict[str, Any]:
    """Returns an agreement for `separation_report.json`."""
    counts = {
        f"{NAMES[row]} {NAMES[column]}": each.counts[row][column] for row in (FAKE, REAL) for column in (FAKE, REAL)
    }
    return {
        "experiments": [each.first, each.second],
        "pictures": each.pictures,
        "agree": each.agree,
        "kappa": None if each.kappa is None else round(each.kappa, 6),
        "counts": counts,
    }
