"""What several experiments say about the pictures of one folder, what they decide together, and what people decide."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fakereal.data.separation_stays import shown
from fakereal.labels import FAKE, NAMES
from fakereal.predictions_json import Document, key_of_file

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
class Decision:
    """A label, or why there is none."""

    label: int | None  # 0 fake, 1 real
    reason: str = ""  # one of separation_stays.REASONS where there is no label
    detail: str = ""


def index_pictures(folder: Path, pictures: Iterable[Path]) -> Index:
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
            problems.append(f"{shown(document.path)}: {sentence}")
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
    return vote.name or shown(vote.experiment.name)


def _key_text(key: Key) -> str:
    return f"index {key}" if isinstance(key, int) else f"image {shown(key)!r}"


def _found_text(pictures: Sequence[Path]) -> str:
    if not pictures:
        return "expected a picture that is called so in the folder, found none"
    return f"expected one picture, found {len(pictures)}: {', '.join(shown(picture.name) for picture in pictures)}"


def decide(ballot: Ballot, min_agreement: float, experiments: Sequence[Path]) -> Decision:
    """Returns the label that more than half of the votes, by weight, and at least `min_agreement` of them are for."""
    if not ballot.votes:
        names = ", ".join(shown(path.name) for path in experiments)
        return Decision(None, *(ballot.abstentions or [("no_prediction", f"not named in {names}")])[0])
    total = sum(vote.weight for vote in ballot.votes)
    for label in range(len(NAMES)):
        share = sum(vote.weight for vote in ballot.votes if vote.label == label) / total
        if share > 0.5 and share >= min_agreement:
            return Decision(label)
    return Decision(None, "disagreement", votes_text(ballot.votes))


def votes_text(votes: Sequence[Vote]) -> str:
    """Returns who voted for what, on one line, with the weights that are not 1."""
    weights = (f" (counts {vote.weight:g})" if vote.weight != 1 else "" for vote in votes)
    return ", ".join(f"{_name(vote)}: {NAMES[vote.label]}{weight}" for vote, weight in zip(votes, weights, strict=True))


def people_decide(document: Document, source: Path, pictures: Sequence[Path]) -> tuple[dict[Path, Decision], list[str]]:
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
    problems = cast_votes(document, index_pictures(source, pictures), ballots)
    decided = {}
    for picture, ballot in ballots.items():
        conflicts = [abstention for abstention in ballot.abstentions if abstention[0] == "conflict"]
        if conflicts:
            decided[picture] = Decision(None, *conflicts[0])
        elif ballot.votes:
            decided[picture] = Decision(ballot.votes[0].label)
    return decided, problems
