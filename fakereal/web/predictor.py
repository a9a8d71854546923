"""What `create_app` is given: a loaded model, ready to analyse, and what may be told about it."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Event
from typing import Any

from fakereal.model.runtimes import Network
from fakereal.model.scoring import Decision
from fakereal.preprocessing import Preprocessing
from fakereal.web.analysis import Analyst
from fakereal.web.limits import Limits
from fakereal.web.metrics import Metrics
from fakereal.web.worker import Worker

_DECODERS = 4  # at most; each may hold a picture of Limits.pixels while it decodes


@dataclass(frozen=True)
class Predictor:
    """A model at work."""

    worker: Worker
    analyst: Analyst
    metrics: Metrics
    limits: Limits
    model: dict[str, Any]  # what GET /api/model tells
    card: str | None = None  # the model card's text
    draining: Event = field(default_factory=Event)  # set when no more requests are to come

    def stop(self, timeout_s: float = 2.0) -> None:
        """Waits for what was accepted, then ends the threads."""
        self.worker.stop(timeout_s)
        self.analyst.pool.shutdown(wait=False, cancel_futures=True)


def start(
    network: Network,
    preprocessing: Preprocessing,
    decision: Decision,
    model: dict[str, Any],
    limits: Limits | None = None,
    card: str | None = None,
) -> Predictor:
    """Returns a predictor around a network, with its threads at work; `model` and `card` are what it tells of it."""
    limits, metrics = limits or Limits(), Metrics()
    worker = Worker(network, preprocessing.image_size_px, limits.queue, metrics.batch.observe)
    metrics.watch_queue(lambda: worker.admitted)
    pool = ThreadPoolExecutor(min(_DECODERS, os.cpu_count() or 1), thread_name_prefix="decode")
    worker.start()
    analyst = Analyst(worker, preprocessing, decision, limits, pool)
    return Predictor(worker, analyst, metrics, limits, {**model, "explains": worker.explains}, card)
