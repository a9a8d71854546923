"""Turn raw predictions into results, and write predictions.json and the details file (JSON, JSON Lines or CSV)."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice, tee, zip_longest
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fakereal.files import open_atomic
from fakereal.labels import FAKE, NAMES
from fakereal.model import calibration
from fakereal.model.calibration import DECIMALS, DecisionRule
from fakereal.model.foreign import OutputSpread
from fakereal.model.out_of_distribution import REASON as UNFAMILIAR
from fakereal.model.out_of_distribution import is_unfamiliar
from fakereal.predict.pipeline import RawPrediction
from fakereal.predictions_json import Prediction, json_list, pieces, prediction_for
from fakereal.provenance import AI_EDITED, AI_GENERATED, SIGNED_REASON
from fakereal.runtime import one_line

_CHUNK = 1024  # raw predictions that are decided together, about 1 kB each
MAX_SHOWN = 20
"""Images that the screen names one by one."""

TOO_CLOSE = "too close to call"
"""Why a verdict is uncertain where p_fake lies inside the model's uncertainty band."""

DetailsRow = dict[str, object]
"""Column -> text, number, None or, for `origin`, an object; all rows have the same columns, and no value is NaN."""


@dataclass(frozen=True, slots=True)
class PredictionResult:
    """The result for one image."""

    raw: RawPrediction
    label: int | None = None  # 0 fake, 1 real, None where the network gave no output
    verdict: str | None = None  # fake, real or uncertain
    confidence: float | None = None  # calibrated probability of the label, rounded to DECIMALS
    flips: tuple[int, ...] = ()  # the numbers of the variants with another label
    reason: str | None = None  # why the verdict is not the network's
    overruled: int | None = None  # the network's label, where signed content credentials give another

    @property
    def prediction(self) -> Prediction:
        """The entry of predictions.json."""
        return prediction_for(self.raw.item.key, self.label, self.raw.error)

    @property
    def network_label(self) -> int | None:
        """What the network says, whatever the file claims."""
        return self.label if self.overruled is None else self.overruled


@dataclass
class ResultCounts:
    """The figures of the summary, counted while the results are written."""

    total: int = 0
    labels: Counter[int] = field(default_factory=Counter)
    uncertain: int = 0
    unfamiliar: int = 0  # of these, unlike the training images
    unstable: int = 0
    signed: int = 0  # fake by their signed content credentials
    claim_ai: int = 0  # others whose files claim that AI made or edited them
    failed: int = 0
    failures: list[str] = field(default_factory=list)  # the first ones, name and reason
    first: list[PredictionResult] = field(default_factory=list)  # at most MAX_SHOWN
    spread: OutputSpread = field(default_factory=OutputSpread)

    def count(self, results: Iterable[PredictionResult]) -> Iterator[PredictionResult]:
        """Count the results and yield them unchanged."""
        for result in results:
            self.total += 1
            if len(self.first) < MAX_SHOWN:
                self.first.append(result)
            self.uncertain += result.verdict == calibration.UNCERTAIN
            self.unfamiliar += result.reason == UNFAMILIAR
            self.unstable += bool(result.flips)
            self.signed += result.reason == SIGNED_REASON
            self.claim_ai += result.reason != SIGNED_REASON and result.raw.origin.claim in (AI_GENERATED, AI_EDITED)
            if result.label is None:
                self.failed += 1
                if len(self.failures) < MAX_SHOWN:
                    self.failures.append(f"{one_line(result.raw.item.name)}: {result.raw.error}")
            else:
                self.labels[result.label] += 1
                self.spread.add(result.raw.p_real)
            yield result


def decide(predictions: Sequence[RawPrediction], decision: DecisionRule) -> list[PredictionResult]:
    """Return label, verdict and confidence of each raw prediction that has an output."""
    valid = [prediction for prediction in predictions if prediction.p_real is not None]
    p_real = np.array([prediction.p_real for prediction in valid], np.float64)
    labels = calibration.labels(p_real, decision).tolist()
    decided = zip(
        labels,
        calibration.verdicts(p_real, decision),
        np.round(calibration.confidence(p_real, decision), DECIMALS).tolist(),
        _flips(valid, labels, decision),
        strict=True,
    )
    results = (PredictionResult(each, *(next(decided) if each.p_real is not None else ())) for each in predictions)
    return [_with_signed_claim(_with_doubt(result, decision)) for result in results]


def _with_doubt(result: PredictionResult, decision: DecisionRule) -> PredictionResult:
    """Return the result with the reason for an uncertain verdict: an unfamiliar image's is uncertain at any p_fake."""
    raw = result.raw
    if result.label is None:
        return result
    if is_unfamiliar(raw.score, raw.info and raw.info.shorter_px, decision.shorter_side_px):
        return replace(result, verdict=calibration.UNCERTAIN, reason=UNFAMILIAR)
    return replace(result, reason=TOO_CLOSE) if result.verdict == calibration.UNCERTAIN else result


def _with_signed_claim(result: PredictionResult) -> PredictionResult:
    """Return the result; fake where trusted content credentials say that AI generated the image, whatever p_fake is."""
    if result.label is None or not result.raw.origin.proves_fake:
        return result
    result = replace(result, verdict=NAMES[FAKE], reason=SIGNED_REASON)
    if result.label == FAKE:
        return result
    return replace(result, label=FAKE, overruled=result.label, confidence=round(1.0 - result.confidence, DECIMALS))


def decide_all(predictions: Iterable[RawPrediction], decision: DecisionRule) -> Iterator[PredictionResult]:
    """Like `decide`, for raw predictions that are too many for a list."""
    predictions = iter(predictions)
    while chunk := list(islice(predictions, _CHUNK)):
        yield from decide(chunk, decision)


def _flips(
    predictions: Sequence[RawPrediction], labels: Sequence[int], decision: DecisionRule
) -> Iterator[tuple[int, ...]]:
    for prediction, label in zip(predictions, labels, strict=True):
        p_real = np.array(prediction.variants_p_real, np.float64)
        yield tuple(number for number, other in enumerate(calibration.labels(p_real, decision)) if other != label)


def details_of(result: PredictionResult, variants: Sequence[str] = ()) -> DetailsRow:
    """Return the details row of one result; p_fake and p_real are the network's own, before calibration.

    Args:
        result: the result.
        variants: names of the re-saved variants that were predicted too, which add two columns.
    """
    item, info, p_real = result.raw.item, result.raw.info, result.raw.p_real
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
        "reason": result.reason,
        **(stability if variants else {}),
        "p_fake": None if p_real is None else round(1.0 - p_real, DECIMALS),
        "p_real": p_real,
        "width": info and info.width_px,
        "height": info and info.height_px,
        "format": info and info.format,
        "origin": result.raw.origin.as_json() if result.raw.origin.evidence else None,
        "error": result.raw.error,
    }


def save(
    results: Iterable[PredictionResult],
    output: Path | None,
    details_file: Path | None = None,
    variants: Sequence[str] = (),
) -> ResultCounts:
    """Write predictions.json and, where asked for, the details, in one pass; each whole or not at all.

    Args:
        results: in the order of the document; taken one by one, so there may be any number of them.
        output: predictions.json; `-` for standard output, None to write only the details.
        details_file: its suffix is one of `DETAILS_SUFFIXES`.
        variants: see `details_of`.
    """
    counts = ResultCounts()
    with ExitStack() as files:
        document = files.enter_context(_open_document(output))
        if details_file is None:
            document.writelines(_document(counts.count(results)))
            return counts
        table = files.enter_context(open_atomic(details_file))
        # Both writers take one result at a time, in turn, so `tee` never keeps more than one.
        first, second = tee(counts.count(results))
        rows = encode_details(details_file, (details_of(result, variants) for result in second))
        for piece, row in zip_longest(_document(first), rows, fillvalue=b""):
            document.write(piece)
            table.write(row)
    return counts


def _open_document(output: Path | None) -> AbstractContextManager[BinaryIO]:
    if output is None:
        return open(os.devnull, "wb")
    return nullcontext(sys.stdout.buffer) if str(output) == "-" else open_atomic(output)


def _document(results: Iterable[PredictionResult]) -> Iterator[bytes]:
    return (piece.encode() for piece in pieces(result.prediction for result in results))


def write_details(path: Path, rows: Iterable[DetailsRow]) -> None:
    """Write the rows in the format of the path's suffix, one of `DETAILS_SUFFIXES`; whole or not at all."""
    with open_atomic(path) as file:
        file.writelines(encode_details(path, rows))


def encode_details(path: Path, rows: Iterable[DetailsRow]) -> Iterator[bytes]:
    """Yield the content of the details file piece by piece."""
    for text in _WRITERS[path.suffix.lower()](rows):
        # Python gives file names that are no UTF-8 surrogates, which CSV has no escape for.
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
        writer.writerow({name: _cell(value) for name, value in row.items()})  # None becomes an empty cell
        yield text.getvalue()
        text.seek(0)
        text.truncate()


def _cell(value: object) -> object:
    return value["summary"] if isinstance(value, dict) else value  # of an origin, its sentence


_WRITERS: dict[str, Callable[[Iterable[DetailsRow]], Iterator[str]]] = {
    ".json": json_list,
    ".jsonl": _json_lines,
    ".csv": _csv,
}
DETAILS_SUFFIXES = tuple(_WRITERS)
