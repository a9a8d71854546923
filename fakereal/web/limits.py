"""How much the web app takes at once; whatever is beyond is refused with a reason."""

from __future__ import annotations

from dataclasses import dataclass

from fakereal.errors import FakeRealError

MAX_BATCH = 32
"""Pictures the network sees at most at once: predict_and_save_json.py's own batch size."""


@dataclass(frozen=True)
class Limits:
    """Bounds on what requests may cost."""

    request_bytes: int = 32 * 2**20  # of a whole request; a 48 megapixel JPEG has about 15 MB
    pixels: int = 50_000_000  # of one picture; more are refused by the header, before decoding
    files: int = 32  # pictures in one request
    queue: int = 64  # pictures accepted and not yet answered; re-saved variants count too
    timeout_s: float = 30.0  # from a request's arrival in the app to its answer
    body_timeout_s: float = 60.0  # for a request to arrive whole
    connections: int = 128  # open at once; more wait
    drain_s: float = 30.0  # after SIGTERM, for what was accepted to be answered


class BusyError(FakeRealError):
    """The queue is full, or the worker is stopping: come back later."""


class TooSlowError(FakeRealError):
    """A request was not answered in time."""
