"""Metrics for Prometheus; each app has a registry of its own, so that two apps in one process do not mix."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_BATCH_SIZES = (1, 2, 4, 8, 16, 32)


class Metrics:
    """Counts requests, images and batches, and measures times."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "fakereal_requests", "Requests, by route and status", ("route", "status"), registry=registry
        )
        self.seconds = Histogram(
            "fakereal_request_seconds",
            "Time from a request's arrival to its answer, by route",
            ("route",),
            registry=registry,
            buckets=_SECONDS,
        )
        self.batch = Histogram(
            "fakereal_batch_images", "Images in each batch of the network", registry=registry, buckets=_BATCH_SIZES
        )
        self._images = Counter(
            "fakereal_images", "Images, by verdict (refused: could not be read)", ("verdict",), registry=registry
        )
        self._queue = Gauge("fakereal_queue_images", "Images accepted and not yet answered", registry=registry)

    def watch_queue(self, length: Callable[[], float]) -> None:
        """Measure the queue with this function whenever the metrics are read."""
        self._queue.set_function(length)

    def count_images(self, verdicts: Iterable[str | None]) -> None:
        """Count images by verdict: `fake`, `real`, `uncertain`, or None for an image that could not be read."""
        for verdict in verdicts:
            self._images.labels(verdict or "refused").inc()

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)
