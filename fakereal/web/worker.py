"""The one thread that runs the network: it takes whatever pictures are waiting, as one batch, from a bounded queue."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from fakereal.model.runtimes import Network, filled
from fakereal.web.limits import MAX_BATCH, BusyError

_SIZES = (2, 3, 4, 6, 8, 12, 16, 24)
"""Batches are filled up to one of these, or to MAX_BATCH; not to 1: a row alone is computed by another routine."""

_LINGER_S = 0.05  # how long a batch waits for pictures that are still being decoded


@dataclass(frozen=True)
class Answer:
    """The network's output for one picture."""

    p_real: float
    evidence: (
        np.ndarray | None
    )  # float32 (h, w), see `heatmap.Explanation`; None where it can't be had or none wants it


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A picture in the queue."""

    image: np.ndarray  # uint8 (S, S, 3)
    explain: bool  # wants evidence
    answer: Future[Answer]


class Worker:
    """Answers pictures in batches, in the order of their coming.

    Args:
        network: gives the outputs; with a method `explain`, see `Explainer`, also what they rest on.
        image_size_px: width and height of the pictures.
        queue: how many pictures may be on their way at once, from their admission to their answer.
        observe: told the number of pictures of each batch.
    """

    def __init__(
        self, network: Network, image_size_px: int, queue: int, observe: Callable[[int], None] = lambda count: None
    ) -> None:
        self.explains = hasattr(network, "explain")
        self._network, self._image_size_px, self._queue, self._observe = network, image_size_px, queue, observe
        self._sizes: tuple[int, ...] = (MAX_BATCH,)
        self._changed = threading.Condition()
        self._waiting: deque[_Waiting] = deque()
        self._admitted = 0  # on their way, from admission to answer
        self._coming = 0  # of these, not yet decoded
        self._stopping = False
        self._failure: BaseException | None = None
        self._warm = threading.Event()
        self._thread = threading.Thread(target=self._run, name="network", daemon=True)

    def start(self) -> None:
        """Starts the thread, which first tries the network with each size of batch."""
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Says whether pictures are taken and answered without delay."""
        return self._warm.is_set() and self.alive and not self._stopping

    @property
    def alive(self) -> bool:
        """Says whether the thread is at work."""
        return self._thread.is_alive()

    @property
    def admitted(self) -> int:
        """How many pictures are on their way."""
        return self._admitted

    def wait_until_warm(self) -> None:
        """Waits for the first runs of the network; raises what they raise."""
        self._warm.wait()
        if self._failure:
            raise self._failure

    def admit(self, count: int) -> Admission:
        """Makes room for so many pictures.

        Raises:
            BusyError: there is none.
        """
        places = min(count, self._queue)  # what is larger than the queue may have it for itself
        with self._changed:
            if self._stopping or self._admitted + places > self._queue:
                raise BusyError(
                    f"expected room for {places} more pictures, found {self._admitted} of {self._queue} places taken:"
                    " try again in a moment"
                )
            self._admitted += places
            self._coming += count
        return Admission(self, count, places)

    def stop(self, timeout_s: float) -> None:
        """Admits no more, and waits until what was admitted is answered."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(timeout_s)

    def _take(self, waiting: _Waiting) -> None:
        with self._changed:
            self._coming -= 1
            self._waiting.append(waiting)
            self._changed.notify_all()

    def _leave(self, places: int, never_came: int) -> None:
        with self._changed:
            self._admitted -= places
            self._coming -= never_came
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            self._sizes = self._equal_sizes()
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits
            self._failure = error
            return
        finally:
            self._warm.set()
        while batch := self._next_batch():
            self._answer(batch)

    def _equal_sizes(self) -> tuple[int, ...]:
        """Returns the sizes of batch that give the very outputs of the largest, which prediction uses."""
        shape = (MAX_BATCH, self._image_size_px, self._image_size_px, 3)
        probe = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        expected = self._network.p_real(probe)
        return (*(size for size in _SIZES if self._agrees(probe[:size], expected[:size])), MAX_BATCH)

    def _agrees(self, images: np.ndarray, expected: np.ndarray) -> bool:
        return all(np.array_equal(self._outputs(images, explain)[0], expected) for explain in {False, self.explains})

    def _next_batch(self) -> list[_Waiting]:
        """Waits for pictures and takes them; none once the worker was stopped and nothing is on its way."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or (self._stopping and not self._admitted))
            patience = time.monotonic() + _LINGER_S
            while 0 < len(self._waiting) < MAX_BATCH and self._coming and time.monotonic() < patience:
                self._changed.wait(patience - time.monotonic())
            return [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_BATCH))]

    def _answer(self, batch: Sequence[_Waiting]) -> None:
        wanted = [waiting for waiting in batch if waiting.answer.set_running_or_notify_cancel()]
        if not wanted:
            return
        self._observe(len(wanted))
        size = min(size for size in self._sizes if size >= len(wanted))
        try:
            images = filled([waiting.image for waiting in wanted], size)
            p_real, evidence = self._outputs(images, any(waiting.explain for waiting in wanted))
        except Exception as error:  # noqa: BLE001 - the worker goes on; each request tells its own client
            for waiting in wanted:
                waiting.answer.set_exception(error)
            return
        for place, waiting in enumerate(wanted):
            shown = evidence[place] if waiting.explain and evidence is not None else None
            waiting.answer.set_result(Answer(float(p_real[place]), shown))

    def _outputs(self, images: np.ndarray, explain: bool) -> tuple[np.ndarray, np.ndarray | None]:
        if not (explain and self.explains):
            return np.asarray(self._network.p_real(images), np.float64), None
        found = self._network.explain(images)
        return found.p_real, found.evidence


class Admission:
    """Room for some pictures; a context manager that gives it back."""

    def __init__(self, worker: Worker, count: int, places: int) -> None:
        self._worker, self._left, self._places = worker, count, places

    def submit(self, image: np.ndarray, explain: bool = False) -> Future[Answer]:
        """Hands over one picture, uint8 (S, S, 3); cancelling its future spares the network what nobody waits for."""
        waiting = _Waiting(image, explain, Future())
        self._left -= 1
        self._worker._take(waiting)
        return waiting.answer

    def __enter__(self) -> Admission:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._worker._leave(self._places, self._left)
