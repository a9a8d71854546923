"""Figures for Prometheus; each app has a registry of its own, so that two apps in one process do not mix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4


class Metrics:
    """Counts what the app does."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self.requests = Counter(
            "fakereal_requests", "Requests, by address and status", ("route", "status"), registry=self._registry
        )
        self.seconds = Histogram(
            "fakereal_request_seconds",
            "From a request's arrival to its answer",
            ("route",),
            registry=self._registry,
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
        )
        self.batch = Histogram(
            "fakereal_batch_pictures",
            "Pictures in each batch that the network saw",
            registry=self._registry,
            buckets=(1, 2, 4, 8, 16, 32),
        )
        self._pictures = Counter(
            "fakereal_pictures",
            "Pictures, by verdict (refused: could not be read)",
            ("verdict",),
            registry=self._registry,
        )
        self._queue = Gauge(
            "fakereal_queue_pictures", "Pictures accepted and not yet answered", registry=self._registry
        )

    def watch_queue(self, length: Callable[[], float]) -> None:
        """Tells where the queue's length is to be had."""
        self._queue.set_function(length)

    def count(self, analyses: Sequence[Any]) -> None:
        """Counts verdicts."""
        for analysis in analyses:
            self._pictures.labels(analysis.result.verdict or "refused").inc()

    def exposition(self) -> bytes:
        """Returns the figures in Prometheus' text format."""
        return generate_latest(self._registry)
