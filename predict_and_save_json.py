"""Predict for every image of a folder, an archive or a list whether it is fake or real, and save the results as JSON.

Examples:
  python predict_and_save_json.py                              data/test -> predictions.json
  python predict_and_save_json.py photos --details photos.csv --explain why
  python predict_and_save_json.py photos --recursive --model models/pretrained.h5 --output photos.json
  fakereal predict cat.jpg dog.png                             no file, one line per image
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fakereal.cli import ENGINES, STABILITY_RESAVES, Parser, parse_count, parse_path, parse_share, run_cli
from fakereal.model import foreign

OUTPUT = Path("predictions.json")
"""The default of --output; the command `fakereal predict` has none."""


def parser(output: Path | None) -> Parser:
    """Return the options; PredictConfig has the same names and defaults. `output` is the default of --output."""
    options = Parser(description=__doc__, argument_default=argparse.SUPPRESS)
    add = options.add_argument
    add("paths", nargs="*", default=[], metavar="PATH",
        help="folders, images, zip or tar archives, patterns like 'photos/**/*.jpg' (default: data/test)")  # fmt: skip
    add("--input", "--data", nargs="+", action="extend", dest="input", metavar="PATH", help="the same as PATH")
    add("--list", type=Path, dest="list_file", metavar="FILE", help="file of paths, one per line; -: standard input")
    add("--recursive", action="store_true", help="include sub-folders")
    default_model = "models/my_trained_model.h5, else the shipped detector"
    add("--model", type=parse_path, metavar="MODEL", help=f"model file (default: {default_model})")
    add("--output", type=Path, default=output, metavar="FILE.json", help="file for the predictions; -: standard output")
    add("--details", type=Path, metavar="FILE",
        help="file for probability, verdict, size and format of each image: .json, .jsonl or .csv")  # fmt: skip
    add("--resume", action="store_true", help="continue an unfinished run with the same --output")
    add("--batch-size", type=parse_count, default=32, metavar="N", help="images per batch")
    add("--threshold", type=parse_share, metavar="P",
        help="call an image fake at this fake probability or more, 0 to 1 (default: the model's own)")  # fmt: skip
    most = len(STABILITY_RESAVES)
    stability_help = f"also predict N re-saved variants of each image (1 to {most}, default {most})"
    add("--stability", type=parse_count, nargs="?", const=most, metavar="N",
        help=f"{stability_help} and report labels that change")  # fmt: skip
    add("--explain", type=Path, metavar="DIR", help="folder for heatmaps (Grad-CAM) of the evidence for each label")
    add("--ray", nargs="?", const="auto", metavar="ADDRESS", help="predict on a Ray cluster: HOST:PORT, auto or local")
    add("--engine", choices=ENGINES, default="auto", help="inference engine; auto: the fastest that matches Keras")
    foreign.add_options(options)
    options.add_common_options()
    return options


def main(argv: Sequence[str] | None = None, output: Path | None = OUTPUT) -> int:
    """Parse the options and predict, on this machine or on a Ray cluster.

    Args:
        argv: the arguments; by default those of the process.
        output: the default of --output; None for no file, and one line per image where there are few.
    """
    arguments = vars(parser(output).parse_args(argv))
    from fakereal.predict.run import PredictConfig, run

    paths = [*arguments.pop("paths"), *arguments.pop("input", ())]
    config = PredictConfig(paths, **arguments, listed=output is None)
    if config.ray is not None:
        from fakereal.predict.ray import run
    return run(config)


if __name__ == "__main__":
    sys.exit(run_cli(main))
