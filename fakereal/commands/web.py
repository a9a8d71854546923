"""Look at images in the browser: is it fake or real, and what speaks for it. With a JSON API for programs.

Examples:
  python -m fakereal web                                       http://127.0.0.1:8000
  python -m fakereal web --model models/pretrained.h5 --port 8080
  FAKEREAL_TOKEN=... python -m fakereal web --host 0.0.0.0     for others too, who need the token
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from fakereal.cli import ENGINES, parse_count


def add_arguments(options: argparse.ArgumentParser) -> None:
    """Adds the options."""
    add = options.add_argument
    add(
        "--model",
        type=Path,
        metavar="FILE",
        help="the detector (default: models/my_trained_model.h5, else models/pretrained.h5)",
    )
    add("--foreign-model", action="store_true", help="the model is a plain Keras file that another program saved")
    add(
        "--engine",
        choices=ENGINES,
        default="auto",
        help="what gives the verdicts; auto: the fastest that agrees with Keras",
    )
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen; 0.0.0.0: for other machines too")
    add("--port", type=int, default=8000, metavar="N", help="0: any free one")
    add(
        "--token",
        metavar="TEXT",
        help="ask everybody for it (default: the variable FAKEREAL_TOKEN, which other users can't see in `ps`)",
    )
    add("--max-upload-mb", type=parse_count, default=32, metavar="N", help="largest request")
    add("--max-megapixels", type=parse_count, default=50, metavar="N", help="largest picture")
    add("--queue", type=parse_count, default=64, metavar="N", help="images accepted at once; more get a 503")


def run_server(arguments: argparse.Namespace) -> int:
    """Serves until Ctrl-C or SIGTERM."""
    from fakereal.web.http import Limits
    from fakereal.web.server import WebConfig, run_server

    limits = Limits(
        request_bytes=arguments.max_upload_mb * 2**20,
        pixels=arguments.max_megapixels * 10**6,
        queue=arguments.queue,
    )
    token = arguments.token or os.environ.get("FAKEREAL_TOKEN") or None
    where = arguments.host, arguments.port
    return run_server(WebConfig(arguments.model, arguments.foreign_model, *where, token, limits, arguments.engine))
