"""What the tests of the web app share: a network that needs no training, apps and real servers around it."""

from __future__ import annotations

import io
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fakereal.model.calibration import DecisionRule
from fakereal.model.heatmap import Explanation
from fakereal.preprocessing import Preprocessing
from fakereal.web import service as predictors
from fakereal.web.app import create_app
from fakereal.web.http import Limits
from fakereal.web.server import listen, serve
from fakereal.web.service import Predictor

ROOT = Path(__file__).parents[2]
SIZE_PX = 32
MODEL = {
    "name": "brightness",
    "network": "none",
    "image_size_px": SIZE_PX,
    "preprocessing": Preprocessing(SIZE_PX).fingerprint,
    "decision": {"threshold": 0.5, "temperature": 1.0, "band": [0.4, 0.6], "shorter_side_px": None},
    "test": None,
    "unseen_sources": None,
    "worth": "On 3 sources it never saw, 9 of 10 verdicts were right.",
    "versions": {},
}


class Brightness:
    """A network that calls bright images real, and says that bright regions speak for it; waits on demand."""

    def __init__(self, wait: Callable[[], None] = lambda: None) -> None:
        self.wait = wait
        self.sizes: list[int] = []

    def p_real(self, images: np.ndarray) -> np.ndarray:
        return self.explain(images).p_real

    def explain(self, images: np.ndarray) -> Explanation:
        self.wait()
        self.sizes.append(len(images))
        shares = images.mean(axis=3) / 255
        return Explanation(shares.mean(axis=(1, 2), dtype=np.float64), (shares - 0.5)[:, ::8, ::8].astype(np.float32))


@contextmanager
def predictor(
    network: object | None = None, limits: Limits | None = None, preprocessing: Preprocessing | None = None
) -> Iterator[Predictor]:
    decision = DecisionRule(band=(0.4, 0.6))
    found = predictors.start_predictor(
        network or Brightness(), preprocessing or Preprocessing(SIZE_PX), decision, MODEL, limits, "# A *card*\n<b>"
    )
    try:
        yield found
    finally:
        found.stop()


@contextmanager
def client(network: object | None = None, limits: Limits | None = None, token: str | None = None):
    with predictor(network, limits) as found:
        found.worker.wait_until_warm()
        yield create_app(found, token).test_client()


def png(gray: int = 200, size: tuple[int, int] = (40, 20), kind: str = "PNG", **save: object) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", size, (gray,) * 3).save(content, kind, **save)
    return content.getvalue()


@dataclass
class Server:
    """A process that serves."""

    process: subprocess.Popen[str]
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def rss_bytes(self) -> int:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


@contextmanager
def server(
    *command: object, before: Callable[[], None] | None = None, folder: Path = ROOT, **environment: str
) -> Iterator[Server]:
    """Runs a Python command that serves, until the end of the block."""
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=before,
    )
    try:
        yield Server(process, _port(process))
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def light_server(
    delay_s: float = 0.0,
    before: Callable[[], None] | None = None,
    token: str = "",
    origins: Sequence[str] = (),
    **limits: object,
):
    """Serves a network that needs no TensorFlow and thinks for so long about each batch: it starts in a second."""
    return server(Path(__file__), json.dumps(limits), delay_s, token, *origins, before=before)


def _port(process: subprocess.Popen[str], patience_s: float = 300) -> int:
    told, until = "", time.monotonic() + patience_s
    while time.monotonic() < until and process.poll() is None:
        if not select.select([process.stderr], [], [], 1)[0]:
            continue
        told += process.stderr.readline()
        if found := re.search(r"is at http://[\w.\[\]:]+:(\d+)/", told):
            return int(found[1])
    raise AssertionError(f"the server did not start: {told}")


def main(limits: str, delay_s: str, token: str, *origins: str) -> int:
    """What `light_server` runs."""
    bounds = Limits(**json.loads(limits))
    network = Brightness()
    with predictor(network, bounds) as found:
        found.worker.wait_until_warm()
        network.wait = lambda: time.sleep(float(delay_s))
        listening = listen("127.0.0.1", 0)
        print(f"is at http://127.0.0.1:{listening.getsockname()[1]}/", file=sys.stderr, flush=True)
        app = create_app(found, token or None, origins)
        return serve(app, listening, bounds, found.draining, origins)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
