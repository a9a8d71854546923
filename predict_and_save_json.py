"""Predict for every image of a folder, an archive or a list whether it is fake or real, and save the answers as JSON.

Examples:
  python predict_and_save_json.py                              data/test -> predictions.json
  python predict_and_save_json.py --input photos --details photos.csv --explain why
  python predict_and_save_json.py --input photos --recursive --model models/pretrained.h5 --output photos.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fakereal.cli import ENGINES, HelpFormatter, parse_count, parse_share, run_cli


def parser() -> argparse.ArgumentParser:
    """Returns the options; PredictConfig has the same names and defaults."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=HelpFormatter, argument_default=argparse.SUPPRESS
    )
    add = options.add_argument
    add(
        "--input",
        nargs="+",
        action="extend",
        metavar="WHAT",
        help="folders, images, zip or tar archives, patterns such as 'photos/**/*.jpg'; several, repeatable"
        " (default: data/test)",
    )
    add("--list", type=Path, dest="list_file", metavar="FILE", help="paths, by lines or NULs; -: standard input")
    add("--recursive", action="store_true", help="look into sub-folders too")
    add(
        "--model",
        type=Path,
        metavar="FILE",
        help="the detector (default: models/my_trained_model.h5, else models/pretrained.h5)",
    )
    add("--output", type=Path, default=Path("predictions.json"), metavar="FILE.json", help="where the answers go")
    add(
        "--details",
        type=Path,
        metavar="FILE",
        help="probabilities, verdict, size and format of each image: .json, .jsonl or .csv",
    )
    add("--resume", action="store_true", help="go on with a run of this --output that was stopped")
    add("--batch-size", type=parse_count, default=32, metavar="N", help="images the network sees at once")
    add(
        "--threshold",
        type=parse_share,
        metavar="P",
        help="call an image fake from this calibrated probability on, 0 to 1 (default: the model's own)",
    )
    add(
        "--stability",
        type=parse_count,
        nargs="?",
        const=5,
        metavar="N",
        help="ask again for the image re-saved in N ways, at most (and by default) 5: does its label flip?",
    )
    add("--explain", type=Path, metavar="DIR", help="a picture of what speaks for each label (Grad-CAM)")
    add("--ray", nargs="?", const="auto", metavar="ADDRESS", help="predict on a Ray cluster: HOST:PORT, auto or local")
    add("--engine", choices=ENGINES, default="auto", help="runs the network; auto: the fastest that agrees with Keras")
    add("--foreign-model", action="store_true", help="the model is a plain Keras file of another program")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the options and predicts."""
    arguments = parser().parse_args(argv)
    from fakereal.predict.run import PredictConfig, run

    return run(PredictConfig(**vars(arguments)))


if __name__ == "__main__":
    sys.exit(run_cli(main))
