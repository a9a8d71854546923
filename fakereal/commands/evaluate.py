"""Judge a detector on a folder of labelled pictures: a report that stands alone, and its figures for programs.

Examples:
  python -m fakereal evaluate models/my_trained_model.h5 --data data/clean
  python -m fakereal evaluate models/pretrained.h5 --data holiday --output holiday_report

The folder holds fake/ and real/, by themselves, inside train/ val/ test/ (then test/ counts), or inside one folder a
source. Pictures that the model learnt from, or was chosen on, are left out where the record of its training lies
beside it (NAME_run/split.csv). Written are report.html, metrics.json and predictions.csv.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from fakereal.cli import ENGINES, EXIT_OK, EXIT_PARTIAL, parse_count, parse_whole
from fakereal.runtime import log, start_keras


def add_arguments(options: argparse.ArgumentParser) -> None:
    """Adds the options."""
    options.add_argument("model", type=Path, metavar="MODEL", help="the model file")
    options.add_argument("--data", type=Path, required=True, metavar="DIR", help="the labelled pictures")
    options.add_argument("--output", type=Path, metavar="DIR", help="for the report (default: MODEL_on_DATA)")
    options.add_argument("--split", choices=("test", "all"), default="test",
                         help="of folders that name splits: the test pictures, or all")  # fmt: skip
    options.add_argument("--seen", action="store_true", help="also judge what the model learnt from")
    options.add_argument("--resave-images", type=parse_whole, metavar="N",
                         help="save at most N pictures again, drawn at random; 0: none (default: all)")  # fmt: skip
    options.add_argument("--batch-size", type=parse_count, default=32, metavar="N", help="pictures at once")
    options.add_argument("--engine", choices=ENGINES, default="auto",
                         help="runs the network; auto: the fastest that agrees with Keras")  # fmt: skip
    options.add_argument("--foreign-model", action="store_true", help="a plain Keras file of another program")


def run(arguments: argparse.Namespace) -> int:
    """Judges, writes the report, prints the main figures."""
    start_keras()
    from fakereal.evaluation import evaluate

    options = {key: value for key, value in vars(arguments).items() if key != "run"}
    command = shlex.join(["python", "-m", "fakereal", *sys.argv[1:]])
    outcome = evaluate.evaluate(evaluate.EvaluateConfig(**options, command=command))
    print("\n".join(evaluate.lines(outcome.tree)))
    log(f"\nreport: {outcome.folder / 'report.html'}")
    return EXIT_PARTIAL if outcome.skipped else EXIT_OK
