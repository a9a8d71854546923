"""Measure requests/s and latency of the web app under load, against a plain Flask app.

    python -m benchmarks.web_load [--model FILE] [--images DIR] [--seconds 20]

Both serve the same model on localhost, one after the other: `fakereal web` as it is, and `plain_app` below:
one `model.predict` per request, on Flask's development server. 1, 8 and 64 clients send JPEGs as fast as they are
answered. At the end `fakereal web` gets SIGTERM under load. About 5 minutes on 2 idle cores, which the clients share.
"""

from __future__ import annotations

import argparse
import http.client
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks._shared import Table, new_parser

CLIENTS = (1, 8, 64)
_WARM_UP_S = 3.0
_START_S = 600.0  # limit for the start of a server
_BUSY_WAIT_S = 0.2  # of a client after an answer 503


def main() -> int:
    """Print the table; return 1 where an accepted request was lost."""
    parser = new_parser(__doc__)
    parser.add_argument("--model", type=Path, default=Path("models/pretrained.h5"), metavar="FILE")
    parser.add_argument("--images", type=Path, metavar="DIR", help="JPEGs to send (default: 64 of 512x512, generated)")
    parser.add_argument("--seconds", type=float, default=20.0, metavar="S", help="per measurement")
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS, metavar="N")
    parser.add_argument("--plain-server", type=int, metavar="PORT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plain_server:
        plain_app(options.model).run("127.0.0.1", options.plain_server)
        return 0
    images = _jpegs(options.images)
    table = Table("server", "clients", "requests/s", "CPU ms per request", "median", "p99", "answers 503", "lost")
    lost = 0
    for name, command, port in _servers(options.model):
        with _running(command, port) as process:
            for clients in options.clients:
                found = _measure(process.pid, port, images, clients, options.seconds)
                table.row(name, clients, *found.cells(options.seconds))
                lost += len(found.lost) if name == "fakereal web" else 0
    return int(bool(lost + _end_under_load(options.model, images)))


def plain_app(model_file: Path):
    """Return a minimal app: load the model, decode, resize, `model.predict`, answer."""
    import flask
    import tensorflow as tf

    model = tf.keras.models.load_model(model_file)
    app = flask.Flask(__name__)

    @app.get("/readyz")
    def ready() -> str:
        return "ready"

    @app.post("/api/predict")
    def predict() -> flask.Response:
        image = tf.io.decode_image(flask.request.get_data(), channels=3, expand_animations=False)
        image = tf.image.resize(image, model.input_shape[1:3])
        p_real = float(model.predict(image[None], verbose=0)[0, 0])
        return flask.jsonify(prediction="real" if p_real >= 0.5 else "fake", p_fake=1 - p_real)

    return app


@dataclass
class Found:
    """Answers that the clients got."""

    seconds: list[float] = field(default_factory=list)  # of each answered request
    cpu_s: float = 0.0  # of the server meanwhile
    busy: int = 0  # answers 503
    lost: list[str] = field(default_factory=list)  # requests without an answer, or with another status
    stop: threading.Event = field(default_factory=threading.Event)

    def cells(self, lasted_s: float) -> list[str]:
        """Return the figures as cells of the table."""
        ends = [str(self.busy), str(len(self.lost))]
        if not self.seconds:
            return ["0", "", "", "", *ends]
        median, p99 = np.percentile(self.seconds, (50, 99))
        rate = len(self.seconds) / lasted_s
        cpu_ms = 1000 * self.cpu_s / len(self.seconds)
        return [f"{rate:.1f}", f"{cpu_ms:.0f}", f"{1000 * median:.0f} ms", f"{1000 * p99:.0f} ms", *ends]


def _measure(process: int, port: int, images: list[bytes], clients: int, seconds: float) -> Found:
    _load(port, images, clients, _WARM_UP_S)
    before = _cpu_s(process)
    found = _load(port, images, clients, seconds)
    found.cpu_s = _cpu_s(process) - before
    return found


def _cpu_s(process: int) -> float:
    """Return the CPU time of a process so far (Linux); on a busy machine it says more than the clock."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _load(port: int, images: list[bytes], clients: int, seconds: float) -> Found:
    found = Found()
    threads = _start(port, images, clients, found)
    time.sleep(seconds)
    found.stop.set()
    for thread in threads:
        thread.join()
    return found


def _start(port: int, images: list[bytes], clients: int, found: Found) -> list[threading.Thread]:
    threads = [threading.Thread(target=_ask, args=(port, images, place, found)) for place in range(clients)]
    for thread in threads:
        thread.start()
    return threads


def _ask(port: int, images: list[bytes], place: int, found: Found) -> None:
    """Send image after image on one connection, until stopped or the server no longer listens."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    while not found.stop.is_set():
        place += 1
        started = time.perf_counter()
        try:
            if connection.sock is None:
                connection.connect()
        except OSError:
            return  # not accepted
        try:
            connection.request("POST", "/api/predict", images[place % len(images)], {"Content-Type": "image/jpeg"})
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException) as error:
            found.lost.append(repr(error))
            connection.close()
            continue
        if answer.status == 200:
            found.seconds.append(time.perf_counter() - started)
        elif answer.status == 503:
            found.busy += 1
            time.sleep(_BUSY_WAIT_S)
        else:
            found.lost.append(f"status {answer.status}")


def _end_under_load(model: Path, images: list[bytes]) -> int:
    """Send SIGTERM while 32 clients wait; return the number of lost requests."""
    name, command, port = list(_servers(model))[-1]
    found = Found()
    with _running(command, port) as process:
        threads = _start(port, images, 32, found)
        time.sleep(5)
        before, started = len(found.seconds), time.perf_counter()
        process.send_signal(signal.SIGTERM)
        code = process.wait(120)
        took = time.perf_counter() - started
        found.stop.set()
        for thread in threads:
            thread.join()
    print(
        f"\nSIGTERM with 32 clients: {name} ended after {took:.1f} s with exit code {code};"
        f" {before} requests answered before, {len(found.seconds) - before} after, {len(found.lost)} lost"
        f" {sorted(set(found.lost)) or ''}"
    )
    return len(found.lost)


def _servers(model: Path) -> Iterator[tuple[str, list[str], int]]:
    port = 18000 + os.getpid() % 1000
    plain = ["-m", "benchmarks.web_load", "--model", str(model), "--plain-server", str(port)]
    yield "plain Flask app", [sys.executable, *plain], port
    ours = ["-m", "fakereal", "web", "--model", str(model), "--port", str(port + 1000)]
    yield "fakereal web", [sys.executable, *ours], port + 1000


@contextmanager
def _running(command: list[str], port: int) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_until_ready(process, port)
        yield process
    finally:
        process.kill()
        process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], port: int) -> None:
    until = time.monotonic() + _START_S
    while time.monotonic() < until and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        try:
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.2)
    raise SystemExit(f"no server on port {port} after {_START_S:.0f} s: {' '.join(process.args)}")


def _jpegs(folder: Path | None) -> list[bytes]:
    if folder is not None:
        return [path.read_bytes() for path in sorted(folder.glob("*.jpg"))[:256]]
    rng = np.random.default_rng(0)
    images = []
    for _ in range(64):
        small = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
        content = io.BytesIO()
        small.resize((512, 512), Image.Resampling.BICUBIC).save(content, "JPEG", quality=85)
        images.append(content.getvalue())
    return images


if __name__ == "__main__":
    sys.exit(main())
