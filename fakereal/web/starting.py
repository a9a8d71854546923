"""`python -m fakereal web`: from a model file to a running server."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from fakereal.cli import say
from fakereal.errors import ConfigError
from fakereal.predict.prediction import choose_model
from fakereal.web.limits import Limits

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


def run(config: WebConfig) -> int:
    """Loads the model, then serves until SIGTERM or Ctrl-C.

    Raises:
        FakeRealError: something the user can put right.
    """
    _check_token(config)
    path = choose_model(config.model)
    from fakereal.web.server import listen, serve

    listening = listen(config.host, config.port)  # a port that is taken is told before the model is loaded
    say(f"model: {path}")
    from fakereal.model.engines import open_network
    from fakereal.web.app import create_app
    from fakereal.web.loading import from_opened

    opened = open_network(path, config.engine, config.foreign_model)
    say(opened.words)
    predictor = from_opened(opened, path, config.limits)
    predictor.worker.wait_until_warm()
    host, port = listening.getsockname()[:2]
    say(f"fakereal is at http://{f'[{host}]' if ':' in host else host}:{port}/ (Ctrl-C ends it)")
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
        say(
            f"warning: everybody who reaches {config.host}:{config.port} can send pictures: set --token, and put a"
            " server with TLS in front"
        )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
