"""From uploads to analyses: decode, ask the network, decide; what the page and the API both show."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from fakereal.cli import one_line
from fakereal.errors import ImageRefused
from fakereal.model import scoring
from fakereal.model.heatmap import seen_part
from fakereal.model.scoring import Decision
from fakereal.predict.inputs import Item
from fakereal.predict.pipeline import Outcome, with_output
from fakereal.predict.results import Result, decide
from fakereal.predict.stability import VARIANTS, resaved
from fakereal.predictions_json import key_of_file
from fakereal.preprocessing import Preprocessing, decode
from fakereal.web import file_facts
from fakereal.web.file_facts import FileFacts
from fakereal.web.limits import Limits, TooSlowError
from fakereal.web.uploads import Upload
from fakereal.web.worker import Answer, Worker

T = TypeVar("T")


@dataclass(frozen=True)
class Variant:
    """The picture once more, saved again."""

    name: str  # of `augmentation.RESAVES`
    p_fake: float  # calibrated
    label: int


@dataclass(frozen=True)
class Analysis:
    """All that is known about one uploaded picture."""

    result: Result
    facts: FileFacts
    shown: Image.Image | None = None  # the part that the network saw, small; None unless asked for
    evidence: np.ndarray | None = None  # see `heatmap.Explanation`; None unless asked for
    calibrated_p_fake: float | None = None
    variants: tuple[Variant, ...] = ()  # empty unless asked for

    @property
    def stable(self) -> bool | None:
        """Says whether every variant gets the same label; None where none was tried."""
        return all(variant.label == self.result.label for variant in self.variants) if self.variants else None


@dataclass(frozen=True)
class _Read:
    """What one decoding thread found."""

    outcome: Outcome
    facts: FileFacts
    shown: Image.Image | None
    images: tuple[np.ndarray, ...]  # the picture's array first, then those of its variants; empty: refused


@dataclass(frozen=True)
class Analyst:
    """Turns uploads into analyses."""

    worker: Worker
    preprocessing: Preprocessing
    decision: Decision
    limits: Limits
    pool: ThreadPoolExecutor  # decodes; its few threads bound the memory that pictures take while they are large

    def analyse(self, uploads: Sequence[Upload], explain: bool = False, stability: bool = False) -> list[Analysis]:
        """Returns an analysis of each upload, in their order; one that can't be read has the reason in its outcome.

        Args:
            uploads: the files.
            explain: also find out what speaks for the label.
            stability: also ask for the label of re-saved variants, which cost as much as the picture each.

        Raises:
            BusyError: no room in the queue.
            TooSlowError: not done in time.
        """
        deadline = time.monotonic() + self.limits.timeout_s
        each = 1 + len(VARIANTS) * stability
        with self.worker.admit(each * len(uploads)) as admission:
            reads = [self.pool.submit(self._read, upload, explain, stability) for upload in uploads]
            asked: list[tuple[_Read, list[Future[Answer]]]] = []
            try:
                for read in _in_time(reads, deadline):
                    asked.append((read, [admission.submit(image, explain) for image in read.images]))
                return [self._analysis(read, list(_in_time(answers, deadline))) for read, answers in asked]
            except FutureTimeoutError as error:
                raise TooSlowError(
                    f"expected an answer within {self.limits.timeout_s:.0f} s, found the server too busy: try again"
                ) from error
            finally:
                for future in (*reads, *(answer for _, answers in asked for answer in answers)):
                    future.cancel()  # of what is done already, nothing is cancelled

    def _read(self, upload: Upload, explain: bool, stability: bool) -> _Read:
        item = Item(Path(), upload.name, key_of_file(Path(upload.name)))
        facts = file_facts.read(upload.content)
        try:
            self._check_pixels(upload.content)
            image, info = decode(upload.content, self.preprocessing.decode_px)
            images = [self.preprocessing.array(image)]
            if stability:
                images += resaved(upload.content, self.preprocessing)
            shown = seen_part(image, self.preprocessing) if explain else None
            return _Read(Outcome(item, info), facts, shown, tuple(images))
        except ImageRefused as error:
            return _Read(Outcome(item, error=one_line(error)), facts, None, ())

    def _check_pixels(self, content: bytes) -> None:
        pixels = file_facts.pixels_of(content)
        if pixels > self.limits.pixels:
            most = self.limits.pixels / 1e6
            raise ImageRefused("too_large", f"expected at most {most:.0f} megapixels, found {pixels / 1e6:.0f}")

    def _analysis(self, read: _Read, answers: Sequence[Answer]) -> Analysis:
        if not answers:
            return Analysis(decide([read.outcome], self.decision)[0], read.facts)
        outcome = with_output(read.outcome, answers[0].p_real)
        result = decide([outcome], self.decision)[0]
        if outcome.p_real is None:
            return Analysis(result, read.facts)
        others = np.array([answer.p_real for answer in answers[1:]], np.float64)
        return Analysis(
            result,
            read.facts,
            read.shown,
            answers[0].evidence,
            float(scoring.calibrated_p_fake(np.float64(outcome.p_real), self.decision)),
            tuple(
                Variant(name, float(p_fake), int(label))
                for name, p_fake, label in zip(
                    VARIANTS,
                    scoring.calibrated_p_fake(others, self.decision),
                    scoring.labels(others, self.decision),
                    strict=False,
                )
            ),
        )


def _in_time(futures: Iterable[Future[T]], deadline: float) -> Iterator[T]:
    for future in futures:
        yield future.result(max(0.0, deadline - time.monotonic()))
