"""Predict for every image of a folder whether it is fake or real, and save the answers as JSON.

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

from fakereal.cli import HelpFormatter, parse_count, parse_share, run_door


def parser() -> argparse.ArgumentParser:
    """Returns the options; PredictConfig has the same names and defaults."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = options.add_argument
    add("--input", type=Path, default=Path("data/test"), metavar="FOLDER", help="the images, or one image")
    add(
        "--model",
        type=Path,
        default=argparse.SUPPRESS,
        metavar="FILE",
        help="the detector (default: models/my_trained_model.h5, else models/pretrained.h5)",
    )
    add("--output", type=Path, default=Path("predictions.json"), metavar="FILE.json", help="where the answers go")
    add(
        "--details",
        type=Path,
        default=argparse.SUPPRESS,
        metavar="FILE",
        help="probabilities, verdict, size and format of each image: .json, .jsonl or .csv",
    )
    add("--batch-size", type=parse_count, default=32, metavar="N", help="images the network sees at once")
    add(
        "--threshold",
        type=parse_share,
        default=argparse.SUPPRESS,
        metavar="P",
        help="call an image fake from this calibrated probability on, 0 to 1 (default: the model's own)",
    )
    add(
        "--explain",
        type=Path,
        default=argparse.SUPPRESS,
        metavar="DIR",
        help="a picture for each image that shows which regions speak for its label (Grad-CAM)",
    )
    add("--recursive", action="store_true", default=argparse.SUPPRESS, help="look into sub-folders too")
    add(
        "--foreign-model",
        action="store_true",
        default=argparse.SUPPRESS,
        help="the model is a plain Keras file that another program saved",
    )
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the options and predicts."""
    arguments = parser().parse_args(argv)
    from fakereal.predict.prediction import PredictConfig, run

    return run(PredictConfig(**vars(arguments)))


if __name__ == "__main__":
    sys.exit(run_door(main))
