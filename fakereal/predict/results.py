"""From outcomes, which are the network's, to results, which are decided; and from these to files and a summary."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice, tee, zip_longest
from pathlib import Path

import numpy as np

from fakereal.files import open_atomic
from fakereal.labels import NAMES
from fakereal.model import calibration
from fakereal.model.calibration import DECIMALS, DecisionRule
from fakereal.predict.pipeline import RawPrediction
from fakereal.predictions_json import Prediction, json_list, pieces, prediction_for
from fakereal.runtime import one_line

_AT_ONCE = 4096  # outcomes decided together
_SHOWN = 20  # of a long list of failures, on the screen; predictions.json holds all of them


@dataclass(frozen=True, slots=True)
class PredictionResult:
    """One place in the result, decided."""

    outcome: RawPrediction
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

    def counted(self, results: Iterable[PredictionResult]) -> Iterator[PredictionResult]:
        """Yields the results as they are."""
        for result in results:
            self.total += 1
            self.uncertain += result.verdict == calibration.UNCERTAIN
            self.unstable += bool(result.flips)
            if result.label is None:
                self.failed += 1
                if len(self.failures) < _SHOWN:
                    self.failures.append(f"{one_line(result.outcome.item.name)}: {result.outcome.error}")
            else:
                self.labels[result.label] += 1
            yield result


def decide(outcomes: Sequence[RawPrediction], decision: DecisionRule) -> list[PredictionResult]:
    """Returns the label, the verdict and the confidence of each outcome that has an output."""
    answered = [outcome for outcome in outcomes if outcome.p_real is not None]
    p_real = np.array([outcome.p_real for outcome in answered], np.float64)
    labels = calibration.labels(p_real, decision).tolist()
    answers = zip(
        labels,
        calibration.verdicts(p_real, decision),
        np.round(calibration.confidence(p_real, decision), DECIMALS).tolist(),
        _flips(answered, labels, decision),
        strict=True,
    )
    return [PredictionResult(outcome, *(next(answers) if outcome.p_real is not None else ())) for outcome in outcomes]


def decided(outcomes: Iterable[RawPrediction], decision: DecisionRule) -> Iterator[PredictionResult]:
    """Like `decide`, for outcomes that are too many for a list."""
    outcomes = iter(outcomes)
    while some := list(islice(outcomes, _AT_ONCE)):
        yield from decide(some, decision)


def _flips(
    outcomes: Sequence[RawPrediction], labels: Sequence[int], decision: DecisionRule
) -> Iterator[tuple[int, ...]]:
    for outcome, label in zip(outcomes, labels, strict=True):
        again = calibration.labels(np.array(outcome.resaved, np.float64), decision) if outcome.resaved else ()
        yield tuple(number for number, other in enumerate(again) if other != label)


def details_of(result: PredictionResult, variants: Sequence[str] = ()) -> DetailsRow:
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
    results: Iterable[PredictionResult], output: Path, details_file: Path | None = None, variants: Sequence[str] = ()
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
        document = files.enter_context(open_atomic(output))
        if details_file is None:
            document.writelines(_encoded(tally.counted(results)))
            return tally
        table = files.enter_context(open_atomic(details_file))
        # Both writers take a result at a time, in turn, so there is never more than one to be kept.
        first, second = tee(tally.counted(results))
        rows = details_pieces(details_file, (details_of(result, variants) for result in second))
        for piece, row in zip_longest(_encoded(first), rows, fillvalue=b""):
            document.write(piece)
            table.write(row)
    return tally


def _encoded(results: Iterable[PredictionResult]) -> Iterator[bytes]:
    return (piece.encode() for piece in pieces(result.prediction for result in results))


# ---- The `--details` file: one row for each place in the result, as JSON, JSON Lines or CSV.

DetailsRow = dict[str, object]
"""Column -> text, number or None; every row has the same columns, and no value is NaN."""


def write_details(path: Path, rows: Iterable[DetailsRow]) -> None:
    """Writes the rows in the format that the path's suffix, one of `SUFFIXES`, names; whole or not at all."""
    with open_atomic(path) as file:
        for piece in details_pieces(path, rows):
            file.write(piece)


def details_pieces(path: Path, rows: Iterable[DetailsRow]) -> Iterator[bytes]:
    """Yields the content of the file that the rows make, piece by piece."""
    for text in _WRITERS[path.suffix.lower()](rows):
        # A file name that is no UTF-8 reaches us with surrogates, which CSV has no escape for.
        yield text.encode("utf-8", errors="backslashreplace")


def _json_lines(rows: Iterable[DetailsRow]) -> Iterator[str]:
    return (json.dumps(row, allow_nan=False) + "\n" for row in rows)


def _csv(rows: Iterable[DetailsRow]) -> Iterator[str]:
    text = io.StringIO()
    writer = None
    for row in rows:
        if writer is None:
            writer = csv.DictWriter(text, fieldnames=list(row), lineterminator="\n")
            writer.writeheader()
        writer.writerow(row)  # None becomes an empty cell
        yield text.getvalue()
        text.seek(0)
        text.truncate()


_WRITERS: dict[str, Callable[[Iterable[DetailsRow]], Iterator[str]]] = {
    ".json": json_list,
    ".jsonl": _json_lines,
    ".csv": _csv,
}
DETAILS_SUFFIXES = tuple(_WRITERS)
