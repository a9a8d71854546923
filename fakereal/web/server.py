"""waitress around the app: all in memory, nobody may dawdle, and SIGTERM leaves no accepted request unanswered."""

from __future__ import annotations

import ctypes
import gc
import ipaddress
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from types import FrameType
from typing import Any

from waitress import create_server, wasyncore
from waitress.channel import HTTPChannel
from waitress.task import ErrorTask, WSGITask

from fakereal.cli import EXIT_INTERRUPTED, EXIT_OK
from fakereal.errors import ConfigError
from fakereal.predict.run import choose_model
from fakereal.runtime import log
from fakereal.web import http
from fakereal.web.http import Limits

_IDLE_GRACE_S = 1.0  # how long open connections may still bring requests after SIGTERM
_LINGER_S = 5.0  # how long what a refused client still sends is read and thrown away
_TRIM_EVERY_S = 10.0
_HANDSHAKE_S = 0.1  # patience at the end for connections that are just being made
_SO_ATTACH_FILTER = 26  # Linux; the socket module doesn't name it
_IN_MEMORY = 2**31  # bytes before waitress would use a temporary file: more than any request or answer has


class _Problem(ErrorTask):
    """Answers what is no proper request, or too large a one, with problem details instead of plain text."""

    def execute(self) -> None:
        found = self.request.error
        detail = f"expected a proper HTTP request of at most {self.channel.limits.request_bytes // 2**20} MB, found: "
        body = json.dumps(http.body(found.code, found.reason, detail + found.body)).encode()
        self.status = f"{found.code} {found.reason}"
        self.response_headers += [("Content-Type", http.MEDIA_TYPE), ("X-Content-Type-Options", "nosniff")]
        self.content_length = len(body)
        self.set_close_on_finish()
        self.write(body)


class _Task(WSGITask):
    """Tells clients to send no more on this connection once the server is draining."""

    def build_response_header(self) -> bytes:
        if self.channel.draining.is_set():
            self.request.headers["CONNECTION"] = "close"
        return super().build_response_header()


class _Channel(HTTPChannel):
    """A connection whose requests must arrive whole in time; `serve` fills in the class attributes."""

    task_class, error_task_class = _Task, _Problem
    limits: Limits
    draining: Event
    _began_s = 0.0  # when the request that is arriving did
    _lingers_until_s: float | None = None

    def received(self, data: bytes) -> bool:
        now = time.monotonic()
        if self.request is None:
            self._began_s = now
        elif now - self._began_s > self.limits.body_timeout_s:  # a byte now and then keeps no place for ever
            self.will_close = True
            return False
        return super().received(data)

    # A client that is still sending when it is refused would see a reset instead of the reason: closing a socket with
    # unread data resets it. So the answer is ended, and what comes is thrown away for a while.

    def handle_write(self) -> None:
        refused = self.close_when_flushed and self._lingers_until_s is None
        if refused and self.total_outbufs_len:
            self._flush_exception(self._flush_some)
        if refused and not self.total_outbufs_len and not self.will_close:
            self.close_when_flushed = False
            self._lingers_until_s = time.monotonic() + _LINGER_S
            try:
                self.socket.shutdown(socket.SHUT_WR)
            except OSError:
                self.will_close = True
        super().handle_write()

    def handle_read(self) -> None:
        if self._lingers_until_s is None:
            super().handle_read()
            return
        try:
            gone = not self.recv(2**16)
        except OSError:
            gone = True
        self.will_close = gone or time.monotonic() > self._lingers_until_s

    def readable(self) -> bool:
        return super().readable() if self._lingers_until_s is None else not self.will_close

    @property
    def busy(self) -> bool:
        """Says whether a request is arriving, at work, or being answered."""
        return self.request is not None or bool(self.requests) or bool(self.total_outbufs_len)


def listen(host: str, port: int) -> socket.socket:
    """Returns a listening socket.

    Raises:
        ConfigError: the address is no address of this machine, or taken.
    """
    if not 0 <= port <= 65_535:  # the system would take another one, without a word
        raise ConfigError(f"--port: expected 0 to 65535, found {port}")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=1024)
    except OSError as error:
        raise ConfigError(
            f"--host, --port: expected a free address, found {host}:{port} ({error}): choose another --port"
        ) from error


def serve(app: Any, listening: socket.socket, limits: Limits, draining: Event) -> int:
    """Serves until SIGTERM or Ctrl-C, then answers what was accepted.

    Returns:
        EXIT_OK after SIGTERM, EXIT_INTERRUPTED after Ctrl-C.
    """
    channel = type("Channel", (_Channel,), {"limits": limits, "draining": draining})
    server = create_server(
        app,
        sockets=[listening],
        threads=limits.queue + 8,  # each waits for its answer; the spare ones tell the others that there is no room
        connection_limit=limits.connections,
        max_request_body_size=limits.request_bytes + 1,
        inbuf_overflow=_IN_MEMORY,
        outbuf_overflow=_IN_MEMORY,
        channel_timeout=int(limits.body_timeout_s),
        cleanup_interval=5,
        asyncore_use_poll=True,
        ident=None,
        clear_untrusted_proxy_headers=True,
    )
    server.channel_class = channel
    gc.freeze()  # what is there by now stays: collecting the rest takes no time then
    stops = _Stops()
    try:
        trimmed_s = time.monotonic()
        while not stops.wanted:
            _turn(server)
            if time.monotonic() - trimmed_s > _TRIM_EVERY_S:
                _give_memory_back()
                trimmed_s = time.monotonic()
        draining.set()
        _drain(server, limits, stops)
    finally:
        stops.restore()
        server.task_dispatcher.shutdown(timeout=1)
        wasyncore.close_all(server._map, ignore_all=True)
    return stops.code


def _give_memory_back() -> None:
    """Returns freed memory to the system: glibc keeps that of large uploads, for each of many threads."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:  # glibc only
        trim(0)


def _turn(server: Any, timeout_s: float = 0.5) -> None:
    wasyncore.loop(timeout=timeout_s, use_poll=True, map=server._map, count=1)


def _drain(server: Any, limits: Limits, stops: _Stops) -> None:
    """Takes what the system has accepted already, then no more; goes on until everything is answered."""
    _take_no_more(server.socket)
    while select.select([server.socket], [], [], _HANDSHAKE_S)[0]:
        server.handle_accept()
    wasyncore.dispatcher.close(server)
    log("shutting down: answering what was accepted")
    started = time.monotonic()
    while server.active_channels and time.monotonic() - started < limits.drain_s and stops.count < 2:
        if time.monotonic() - started > _IDLE_GRACE_S:
            for channel in list(server.active_channels.values()):
                channel.will_close |= not channel.busy
        _turn(server, 0.05)
    if left := sum(channel.busy for channel in server.active_channels.values()):
        log(f"{left} requests were not answered in {limits.drain_s:.0f} s")


def _take_no_more(listening: socket.socket) -> bool:
    """Lets no further connection begin, where the system has a way to; returns whether it has.

    Closing alone would reset what came in since the last look. On Linux a filter of four instructions drops packets
    with the flag SYN, so that clients try again a second later and are refused then.
    """
    if sys.platform != "linux":
        return False
    load_flags, has_syn, drop, keep = (0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 2**32 - 1)
    packed = [struct.pack("HBBI", *each) for each in (load_flags, has_syn, drop, keep)]
    program = ctypes.create_string_buffer(b"".join(packed))
    try:
        place = struct.pack("HL", len(packed), ctypes.addressof(program))
        listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, place)
    except OSError:  # a sandbox may forbid it
        return False
    return True


class _Stops:
    """Counts the signals that ask for an end."""

    def __init__(self) -> None:
        self.count, self.code = 0, EXIT_OK
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}

    @property
    def wanted(self) -> bool:
        """Says whether one came."""
        return self.count > 0

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        self.code = EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_OK

    def restore(self) -> None:
        """Puts back what stood before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)


# ---- `python -m fakereal web`: from a model file to a running server.

_SHORTEST_TOKEN = 16


@dataclass(frozen=True)
class WebConfig:
    """What the user asked for."""

    model: Path | None = None  # None: the first default one that is there
    foreign_model: bool = False  # the model may be a plain Keras file of another program
    host: str = "127.0.0.1"
    port: int = 8000  # 0: any free one
    token: str | None = None  # None: everybody who reaches the port is let in
    limits: Limits = field(default_factory=Limits)
    engine: str = "auto"  # one of cli.ENGINES: what gives the outputs; heatmaps are always Keras'


def run_server(config: WebConfig) -> int:
    """Loads the model, then serves until SIGTERM or Ctrl-C.

    Raises:
        FakeRealError: something the user can put right.
    """
    _check_token(config)
    path = choose_model(config.model)

    listening = listen(config.host, config.port)  # a port that is taken is told before the model is loaded
    log(f"model: {path}")
    from fakereal.engines.engine import open_network
    from fakereal.web.app import create_app
    from fakereal.web.service import from_opened

    opened = open_network(path, config.engine, config.foreign_model)
    log(opened.description)
    predictor = from_opened(opened, path, config.limits)
    predictor.worker.wait_until_warm()
    host, port = listening.getsockname()[:2]
    log(f"fakereal is at http://{f'[{host}]' if ':' in host else host}:{port}/ (Ctrl-C ends it)")
    try:
        return serve(create_app(predictor, config.token), listening, config.limits, predictor.draining)
    finally:
        predictor.stop()


def _check_token(config: WebConfig) -> None:
    if config.token is not None and (len(config.token) < _SHORTEST_TOKEN or not config.token.isascii()):
        raise ConfigError(
            f"--token: expected at least {_SHORTEST_TOKEN} ASCII characters, found {len(config.token)}:"
            " make one with `python -c 'import secrets; print(secrets.token_urlsafe())'`"
        )
    if config.token is None and not _is_loopback(config.host):
        log(
            f"warning: everybody who reaches {config.host}:{config.port} can send pictures: set --token, and put a"
            " server with TLS in front"
        )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
