"""From outcomes, which are the network's, to results, which are decided; and from these to files and a summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice, tee, zip_longest
from pathlib import Path

import numpy as np

from fakereal.cli import one_line
from fakereal.files import writing_whole
from fakereal.labels import NAMES
from fakereal.model import scoring
from fakereal.model.scoring import DECIMALS, Decision
from fakereal.predict import details
from fakereal.predict.pipeline import Outcome
from fakereal.predictions_json import Prediction, pieces, prediction_for

_AT_ONCE = 4096  # outcomes decided together
_SHOWN = 20  # of a long list of failures, on the screen; predictions.json holds all of them


@dataclass(frozen=True, slots=True)
class Result:
    """One place in the result, decided."""

    outcome: Outcome
    label: int | None = None  # 0 fake, 1 real, None where there is no output
    verdict: str | None = None  # fake, real or uncertain
    confidence: float | None = None  # calibrated probability of the label, rounded to DECIMALS
    flips: tuple[int, ...] = ()  # the numbers of the variants that get another label

    @property
    def prediction(self) -> Prediction:
        """The entry of predictions.json."""
        return prediction_for(self.outcome.item.key, self.label, self.outcome.error)


@dataclass
class Tally:
    """What the summary says, counted while the results pass by."""

    total: int = 0
    labels: Counter[int] = field(default_factory=Counter)
    uncertain: int = 0
    unstable: int = 0
    failed: int = 0
    failures: list[str] = field(default_factory=list)  # the first ones, in words

    def counted(self, results: Iterable[Result]) -> Iterator[Result]:
        """Yields the results as they are."""
        for result in results:
            self.total += 1
            self.uncertain += result.verdict == scoring.UNCERTAIN
            self.unstable += bool(result.flips)
            if result.label is None:
                self.failed += 1
                if len(self.failures) < _SHOWN:
                    self.failures.append(f"{one_line(result.outcome.item.name)}: {result.outcome.error}")
            else:
                self.labels[result.label] += 1
            yield result


def decide(outcomes: Sequence[Outcome], decision: Decision) -> list[Result]:
    """Returns the label, the verdict and the confidence of each outcome that has an output."""
    answered = [outcome for outcome in outcomes if outcome.p_real is not None]
    p_real = np.array([outcome.p_real for outcome in answered], np.float64)
    labels = scoring.labels(p_real, decision).tolist()
    answers = zip(
        labels,
        scoring.verdicts(p_real, decision),
        np.round(scoring.confidence(p_real, decision), DECIMALS).tolist(),
        _flips(answered, labels, decision),
        strict=True,
    )
    return [Result(outcome, *(next(answers) if outcome.p_real is not None else ())) for outcome in outcomes]


def decided(outcomes: Iterable[Outcome], decision: Decision) -> Iterator[Result]:
    """Like `decide`, for outcomes that are too many for a list."""
    outcomes = iter(outcomes)
    while some := list(islice(outcomes, _AT_ONCE)):
        yield from decide(some, decision)


def _flips(outcomes: Sequence[Outcome], labels: Sequence[int], decision: Decision) -> Iterator[tuple[int, ...]]:
    for outcome, label in zip(outcomes, labels, strict=True):
        again = scoring.labels(np.array(outcome.resaved, np.float64), decision) if outcome.resaved else ()
        yield tuple(number for number, other in enumerate(again) if other != label)


def details_of(result: Result, variants: Sequence[str] = ()) -> details.Row:
    """Returns the row of one result; p_fake and p_real are the network's own, before calibration.

    Args:
        result: it.
        variants: names of the re-saves that were asked for, which add two columns.
    """
    item, info, p_real = result.outcome.item, result.outcome.info, result.outcome.p_real
    flips = " ".join(variants[number] for number in result.flips)
    stability = {
        "stable": None if result.label is None else not result.flips,
        "flips": None if result.label is None else flips,
    }
    return {
        "index": item.key if isinstance(item.key, int) else None,
        "image": item.name,
        "prediction": None if result.label is None else NAMES[result.label],
        "verdict": result.verdict,
        "confidence": result.confidence,
        **(stability if variants else {}),
        "p_fake": None if p_real is None else round(1.0 - p_real, DECIMALS),
        "p_real": p_real,
        "width": info and info.width_px,
        "height": info and info.height_px,
        "format": info and info.format,
        "error": result.outcome.error,
    }


def save(
    results: Iterable[Result], output: Path, details_file: Path | None = None, variants: Sequence[str] = ()
) -> Tally:
    """Writes predictions.json and, where asked for, the details, in one go; each whole or not at all.

    Args:
        results: in the order of the document; taken one by one, so there may be any number of them.
        output: predictions.json.
        details_file: its suffix is one of `details.SUFFIXES`.
        variants: see `details_of`.

    Returns:
        What was counted.
    """
    tally = Tally()
    with ExitStack() as files:
        document = files.enter_context(writing_whole(output))
        if details_file is None:
            document.writelines(_encoded(tally.counted(results)))
            return tally
        table = files.enter_context(writing_whole(details_file))
        # Both writers take a result at a time, in turn, so there is never more than one to be kept.
        first, second = tee(tally.counted(results))
        rows = details.pieces(details_file, (details_of(result, variants) for result in second))
        for piece, row in zip_longest(_encoded(first), rows, fillvalue=b""):
            document.write(piece)
            table.write(row)
    return tally


def _encoded(results: Iterable[Result]) -> Iterator[bytes]:
    return (piece.encode() for piece in pieces(result.prediction for result in results))
