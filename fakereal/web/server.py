"""The HTTP server of `python -m fakereal web`: from a model file to a running cheroot server and its shutdown.

Every request is received whole, in memory and within a time limit, before the app sees it. SIGTERM and Ctrl-C let the
server finish every request that it has accepted.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import io
import ipaddress
import json
import logging
import os
import re
import signal
import socket
import struct
import sys
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from types import FrameType
from typing import Any

from cheroot import wsgi
from cheroot.errors import MaxSizeExceeded
from cheroot.makefile import MakeFile
from cheroot.server import HTTPConnection, HTTPRequest, SizeCheckWrapper

from fakereal.cli import EXIT_INTERRUPTED, EXIT_OK
from fakereal.errors import ConfigError
from fakereal.model.foreign import ForeignModel
from fakereal.runtime import log, return_freed_memory
from fakereal.web import http
from fakereal.web.http import Limits

_SHORTEST_TOKEN = 16  # characters
_BACKLOG = 1024  # connections that the system holds until they are accepted
_HEADER_BYTES = 2**16  # request line and header fields of one request
_PIECE_BYTES = 2**16  # read from a socket at once
_IDLE_GRACE_S = 1.0  # after SIGTERM, open connections may still bring a request for this long
_LINGER_S = 5.0  # for this long, what a refused client still sends is read and discarded
_TRIM_EVERY_S = 10.0
_POLL_S = 0.1
_SO_ATTACH_FILTER = 26  # Linux; not named by the socket module


@dataclass(frozen=True)
class WebConfig:
    """Options of `python -m fakereal web`."""

    model: Path | None = None  # None: the first default model that exists
    foreign: ForeignModel | None = None  # accept a Keras file of another program, used as this says
    host: str = "127.0.0.1"
    port: int = 8000  # 0: any free port
    token: str | None = None  # bearer token required on every request; None disables authentication
    limits: Limits = field(default_factory=Limits)
    engine: str = "auto"  # one of cli.ENGINES, for the verdicts; heatmaps always come from Keras
    cors: tuple[str, ...] = ()  # origins of other sites whose pages may use the JSON API


def run_server(config: WebConfig) -> int:
    """Load the model and serve until SIGTERM or Ctrl-C.

    Returns:
        EXIT_OK after SIGTERM, EXIT_INTERRUPTED after Ctrl-C.

    Raises:
        FakeRealError: an option, the model file or the address can't be used.
    """
    _check_token(config)
    from fakereal.engines.engine import open_network
    from fakereal.predict.run import choose_model, log_model
    from fakereal.web.app import create_app
    from fakereal.web.service import from_opened

    path = choose_model(config.model)
    listening = listen(config.host, config.port)  # before the model is loaded, so that a taken port is reported at once
    log_model(path, config.model)
    opened = open_network(path, config.engine, config.foreign)
    log(opened.description)
    predictor = from_opened(opened, path, config.limits)
    predictor.worker.wait_until_warm()
    host, port = listening.getsockname()[:2]
    log(f"fakereal is at http://{f'[{host}]' if ':' in host else host}:{port}/ (press Ctrl-C to stop)")
    try:
        app = create_app(predictor, config.token, config.cors)
        return serve(app, listening, config.limits, predictor.draining, config.cors)
    finally:
        predictor.stop()


def _check_token(config: WebConfig) -> None:
    if config.token is not None and (len(config.token) < _SHORTEST_TOKEN or not config.token.isascii()):
        raise ConfigError(
            f"--token: expected at least {_SHORTEST_TOKEN} ASCII characters, got {len(config.token)}:"
            " create one with `python -c 'import secrets; print(secrets.token_urlsafe())'`"
        )
    if config.token is None and not _is_loopback(config.host):
        log(
            f"warning: everybody who can reach {config.host}:{config.port} can send images: set --token, and put a"
            " reverse proxy with TLS in front"
        )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises:
        ConfigError: the address is in use or does not belong to this machine.
    """
    if not 0 <= port <= 65_535:  # the system would silently take another one
        raise ConfigError(f"--port: expected 0 to 65535, got {port}")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"--host, --port: expected a free address, got {host}:{port} ({error}): choose another --port"
        ) from error


def serve(app: Any, listening: socket.socket, limits: Limits, draining: Event, origins: Collection[str] = ()) -> int:
    """Serve a WSGI app until SIGTERM or Ctrl-C, then answer every accepted request; a second signal ends at once.

    Args:
        app: the WSGI app.
        listening: a listening socket, closed at the end.
        limits: sizes and times of requests.
        draining: set when the server begins to shut down.
        origins: sites whose pages may read what the server itself refuses; the app does the same for its answers.

    Returns:
        EXIT_OK after SIGTERM, EXIT_INTERRUPTED after Ctrl-C.
    """
    return_freed_memory()
    server = _Server(app, listening, limits, draining, origins)
    signals = _Signals()
    try:
        # Its threads are daemons too: after a second signal, none of cheroot's keeps the process alive.
        Thread(target=server.start, name="server", daemon=True).start()
        gc.freeze()  # what exists by now stays: later collections skip it
        trimmed_s = time.monotonic()
        while not signals.count:
            time.sleep(_POLL_S)
            if time.monotonic() - trimmed_s > _TRIM_EVERY_S:
                _trim_memory()
                trimmed_s = time.monotonic()
        draining.set()
        _drain(server, limits, signals)
    finally:
        signals.restore()
        server.close(timeout_s=1.0)
    return signals.code


def _trim_memory() -> None:
    """Return what is free in glibc's pool to the system: by itself, it returns the end of the pool only."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:  # glibc only
        trim(0)


def _drain(server: _Server, limits: Limits, signals: _Signals) -> None:
    """Accept what waits in the system's backlog and no more; wait until every request is answered."""
    _stop_new_connections(server.listening)
    log("shutting down: answering the accepted requests")
    started = time.monotonic()
    while signals.count < 2 and (elapsed_s := time.monotonic() - started) < limits.drain_s:
        if elapsed_s > _POLL_S and not (server.busy if elapsed_s > _IDLE_GRACE_S else server.connections):
            return
        time.sleep(0.02)
    if server.busy:
        log(f"{server.busy} requests were not answered within {limits.drain_s:.0f} s")


def _stop_new_connections(listening: socket.socket) -> bool:
    """Let no new connection begin, and return whether this system supports that.

    Needed beside cheroot's stop(), which closes the listening socket: that resets the connections in its backlog. On
    Linux, a filter of four instructions drops packets with the flag SYN: clients retry a second later and are refused.
    """
    if sys.platform != "linux":
        return False
    load_flags, has_syn, drop, keep = (0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 2**32 - 1)
    packed = [struct.pack("HBBI", *each) for each in (load_flags, has_syn, drop, keep)]
    program = ctypes.create_string_buffer(b"".join(packed))
    try:
        listening.setsockopt(
            socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HL", len(packed), ctypes.addressof(program))
        )
    except OSError:  # a sandbox may forbid it
        return False
    return True


class _Signals:
    """Counts the signals that ask the server to end."""

    def __init__(self) -> None:
        self.count, self.code = 0, EXIT_OK
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        self.code = EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_OK

    def restore(self) -> None:
        """Restore the previous handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)


class _TimedSocket(socket.socket):
    """A connected socket whose reads or writes, all together, end at a deadline that no byte extends."""

    deadline_s = 0.0

    def recv_into(self, *arguments: Any) -> int:
        self._keep_deadline()
        return super().recv_into(*arguments)

    def send(self, *arguments: Any) -> int:
        self._keep_deadline()
        return super().send(*arguments)

    def _keep_deadline(self) -> None:
        self.settimeout(max(0.001, self.deadline_s - time.monotonic()))


class _HeaderReader:
    """Reads header fields strictly, as lenient parsing lets two servers disagree about where a request ends."""

    _FIELD = re.compile(rb"([\w!#$%&'*+.^`|~-]+):[ \t]*([^\r\n\0]*?)[ \t]*\r\n", re.ASCII)

    def __call__(self, rfile: Any, found: dict[bytes, bytes]) -> dict[bytes, bytes]:
        while (line := rfile.readline()) != b"\r\n":
            if not (match := self._FIELD.fullmatch(line)):
                raise ValueError("a malformed header field")
            name, value = match[1].title(), match[2]
            if b"_" not in name:  # WSGI would take it for the field with a hyphen
                found[name] = found[name] + b", " + value if name in found else value
        return found


class _Request(HTTPRequest):
    """A request that is received whole before the app is called; errors are problem details (RFC 9457)."""

    header_reader = _HeaderReader()
    _CHUNK = re.compile(rb"([0-9a-fA-F]{1,16})[ \t]*(?:;[^\r\n]*)?\r\n")

    def read_request_line(self) -> bool:
        """Read the request line; return whether it is valid."""
        try:
            return super().read_request_line()
        except ValueError:  # urllib's, of "//[" and the like
            self.simple_response("400 Bad Request", "an invalid address")
            return False

    def read_request_headers(self) -> bool:
        """Read the header fields; return whether they are valid."""
        if not super().read_request_headers():
            return False
        length = self.inheaders.get(b"Content-Length")
        if length is not None and (self.chunked_read or not length.isdigit()):
            self.simple_response("400 Bad Request", "an invalid Content-Length")
            return False
        return True

    def respond(self) -> None:
        """Receive the body, then let the app answer."""
        try:
            body = b"".join(self._chunks() if self.chunked_read else self._pieces())
        except MaxSizeExceeded:
            self.simple_response("413 Request Entity Too Large")
            return
        except ValueError as error:
            self.simple_response("400 Bad Request", str(error))
            return
        self.rfile, self.chunked_read = io.BytesIO(body), False
        self.inheaders.pop(b"Transfer-Encoding", None)
        self.inheaders[b"Content-Length"] = str(len(body)).encode()
        self.conn.begin()
        self.server.gateway(self).respond()
        self.ensure_headers_sent()
        if self.chunked_write:
            self.conn.wfile.write(b"0\r\n\r\n")

    def _pieces(self) -> Iterator[bytes]:
        left = int(self.inheaders.get(b"Content-Length", 0))
        while left:
            piece = self.conn.rfile.read(min(left, _PIECE_BYTES))
            if not piece:
                raise ValueError("a body shorter than its Content-Length")
            left -= len(piece)
            yield piece

    def _chunks(self) -> Iterator[bytes]:
        """Yield the content of a chunked body, in time linear in its length (cheroot's own reader is quadratic)."""
        rfile = SizeCheckWrapper(self.conn.rfile, self.server.max_request_body_size)
        while match := self._CHUNK.fullmatch(rfile.readline()):
            left = int(match[1], 16)
            if not left:
                while rfile.readline().strip():  # trailer fields
                    pass
                return
            while left:
                piece = rfile.read(min(left, _PIECE_BYTES))
                if not piece:
                    break
                left -= len(piece)
                yield piece
            if left or rfile.read(2) != b"\r\n":
                break
        raise ValueError("a malformed chunked body")

    def simple_response(self, status: str, msg: str = "") -> None:
        """Answer with problem details and end the connection."""
        code, _, title = str(status).partition(" ")
        server: _Server = self.server
        limits = server.limits
        if code == "413" and not self.ready and self.rfile.bytes_read > _HEADER_BYTES:
            code, title = "431", "Request Header Fields Too Large"
        details = {
            "408": f"expected a whole request within {limits.body_timeout_s:.0f} s",
            "413": http.too_large(limits),
            "431": f"expected at most {_HEADER_BYTES // 2**10} kB of header fields",
            "500": "an internal error occurred; see the log of the server",
            "503": "too many open connections: try again in a moment",
        }
        detail = details.get(code) or f"expected a valid HTTP/1.1 request, got {msg or title}"
        body = json.dumps(http.problem(int(code), title, detail)).encode()
        head = (
            f"{server.protocol} {code} {title}\r\n"
            f"Content-Type: {http.MEDIA_TYPE}\r\nContent-Length: {len(body)}\r\n"
            "X-Content-Type-Options: nosniff\r\nConnection: close\r\n"
        )
        if code == "503":
            head += f"Retry-After: {http.RETRY_AFTER_S}\r\n"
        origin = self.inheaders.get(b"Origin", b"").decode("latin-1")
        head += "".join(f"{name}: {value}\r\n" for name, value in http.cors_headers(origin, server.origins).items())
        self.close_connection = self.conn.refused = self.sent_headers = True
        self.conn.begin()
        with contextlib.suppress(OSError):  # the client is gone
            self.conn.wfile.write(f"{head}\r\n".encode() + body)


class _Connection(HTTPConnection):
    """A connection whose requests must arrive whole in time, and whose answers must be taken in time."""

    RequestHandlerClass = _Request

    def __init__(self, server: _Server, sock: socket.socket, makefile: Any = MakeFile) -> None:
        super().__init__(server, _TimedSocket(fileno=sock.detach()), makefile)
        self.busy = self.refused = False
        server.connections.add(self)

    def begin(self) -> None:
        """Start the time within which a request must arrive, or an answer be taken."""
        self.socket.deadline_s = time.monotonic() + self.server.timeout

    def communicate(self) -> bool:
        """Answer one request; return whether the connection stays open."""
        self.begin()
        stays_open = super().communicate()
        self.busy = False
        return stays_open

    def close(self) -> None:
        """Close the connection; a refused client that is still sending gets time to read why."""
        try:
            with contextlib.suppress(OSError):
                if self.refused:  # closing a socket with unread data resets it, and the client would see only that
                    self.socket.shutdown(socket.SHUT_WR)
                    until = time.monotonic() + _LINGER_S
                    self.socket.settimeout(_LINGER_S)
                    while self.socket.recv(_PIECE_BYTES) and time.monotonic() < until:
                        pass
            with contextlib.suppress(OSError):
                super().close()
        finally:
            self.server.connections.discard(self)


class _Server(wsgi.Server):
    """cheroot on a socket that is handed in, with a thread for each open connection that has sent something."""

    ConnectionClass = _Connection

    def __init__(
        self, app: Any, listening: socket.socket, limits: Limits, draining: Event, origins: Collection[str]
    ) -> None:
        super().__init__(
            listening.getsockname()[:2],
            app,
            numthreads=limits.connections,
            server_name="fakereal",
            request_queue_size=_BACKLOG,
            timeout=limits.body_timeout_s,
        )
        self.limits, self.origins, self.connections = limits, origins, set[_Connection]()
        self.max_request_header_size = _HEADER_BYTES
        self.max_request_body_size = limits.request_bytes
        self.keep_alive_conn_limit = limits.connections // 2  # the other half is for those that send something
        self.listening, self._draining = listening, draining

    def bind(self, family: int, type: int, proto: int = 0) -> socket.socket:
        """Return the socket that was handed in."""
        self.socket = self.listening
        return self.socket

    def process_conn(self, conn: _Connection) -> None:
        """Give a connection to a thread once it has sent something; cheroot would let a silent one hold a thread."""
        if conn.last_used is not None:
            conn.busy = True
            super().process_conn(conn)
        elif len(self.connections) <= self.limits.connections:
            self._connections.put(conn)
        else:
            _Request(self, conn).simple_response("503 Service Unavailable")
            conn.refused = False  # this thread has no time to linger
            conn.close()

    @property
    def can_add_keepalive_connection(self) -> bool:
        """Whether the next answer may leave its connection open."""
        return not self._draining.is_set() and super().can_add_keepalive_connection

    @property
    def busy(self) -> int:
        """Number of requests that are arriving, in work or being answered."""
        return sum(connection.busy for connection in list(self.connections))

    def error_log(self, msg: str = "", level: int = logging.INFO, traceback: bool = False) -> None:
        """Log faults; what a client does wrong is none."""
        if level >= logging.ERROR:
            super().error_log(msg, level, traceback)

    def close(self, timeout_s: float) -> None:
        """Stop all threads, waiting at most this long for those that are busy."""
        self.socket = None  # cheroot would connect to it, and wait for what the filter drops
        stopping = Thread(target=self.stop, daemon=True)
        stopping.start()
        stopping.join(timeout_s)
        self.listening.close()
