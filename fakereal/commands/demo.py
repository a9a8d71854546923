"""Make a small labelled set out of two photographs, to try everything on; with --run, try it at once.

Examples:
  python -m fakereal demo demo          make the set in the new folder demo/
  python -m fakereal demo demo --run    ... and clean it, train on it and predict
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fakereal.cli import EXIT_OK


def add_arguments(options: argparse.ArgumentParser) -> None:
    """Adds the options."""
    options.add_argument("folder", type=Path, metavar="DIR", help="a new or empty folder for the set")
    options.add_argument("--seed", type=int, default=0, metavar="N", help="another seed gives other pictures")
    options.add_argument("--run", dest="tour", action="store_true", help="clean, train and predict too")


def run(arguments: argparse.Namespace) -> int:
    """Makes the set; with --run goes through the three scripts."""
    from fakereal.dataset import demo

    if arguments.tour:
        return demo.run_tour(arguments.folder, arguments.seed)
    made = demo.make(arguments.folder, arguments.seed)
    print(f"{made.raw}: {made.labelled} labelled images, {made.swapped} of them in the wrong folder")
    print(f"{made.test}: {made.unlabelled} unlabelled images; what they are: {made.truth}")
    print(f"{made.split}: which of the labelled images train, choose and judge (train_model.py --split)")
    return EXIT_OK
