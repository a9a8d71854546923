"""Trains a fake-image detector on a folder of labelled pictures."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fakereal import cli

_EXAMPLES = """examples:
  python train_model.py --data data/clean
  python train_model.py --data data/clean --fine-tune last20 --output models/finer.h5
  python train_model.py --config configs/pretrained.yaml --data DIR --resume

The folder holds fake/ and real/ (or fake_images/, ai/, genuine/ ...), by themselves, inside train/ val/ test/, or
inside one folder a source. Beside the model, NAME_run/ gets the split, the configuration, the history and the
figures."""


def parser() -> argparse.ArgumentParser:
    """Returns the options; what is not given comes from --config, or else is the default."""
    p = argparse.ArgumentParser(description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--data", metavar="DIR", help="the labelled pictures (default: data/clean)")
    p.add_argument("--output", metavar="FILE", type=Path, default=Path("models/my_trained_model.h5"),
                   help="the model file, .h5 or .keras (default: models/my_trained_model.h5)")  # fmt: skip
    p.add_argument("--config", metavar="FILE", type=Path, help="a YAML recipe, such as those in configs/")
    p.add_argument("--split", metavar="FILE", help="the split.csv of an earlier run (default: 60/20/20 by content)")
    p.add_argument("--network", metavar="NAME", help="efficientnetb0 (default) | cnn")
    p.add_argument("--weights", metavar="CHOICE",
                   help="auto (default) | imagenet | pretrained | none | a file;\n"
                        "auto: ImageNet from the Keras cache or by download, offline models/pretrained.h5")  # fmt: skip
    p.add_argument("--fine-tune", choices=("none", "last20", "all"),
                   help="which layers of the base learn too, after the head (default: none)")  # fmt: skip
    p.add_argument("--epochs", type=cli.parse_count, metavar="N", help="passes over the pictures (default: 25)")
    p.add_argument("--batch-size", type=cli.parse_count, metavar="N", help="pictures a step (default: 32)")
    p.add_argument("--learning-rate", type=float, metavar="RATE", help="of the first phase (default: 0.001)")
    p.add_argument("--image-size", type=cli.parse_count, metavar="PX", help="width and height (default: 224)")
    p.add_argument("--seed", type=int, metavar="N", help="same seed, same machine: same result (default: 0)")
    p.add_argument("--resume", action="store_true", help="go on from the last epoch of a killed run")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the options, trains, prints the figures; returns the exit code."""
    options = parser().parse_args(argv)
    from fakereal import config

    effective = config.load(options.config, {
        "data.path": options.data,
        "data.split_file": options.split,
        "network.name": options.network,
        "weights": options.weights,
        "training.fine_tune": options.fine_tune,
        "training.epochs": options.epochs,
        "training.batch_size": options.batch_size,
        "training.learning_rate": options.learning_rate,
        "image_size": options.image_size,
        "seed": options.seed,
    })  # fmt: skip
    cli.start_keras()
    from fakereal.model import report, run

    outcome = run.run(effective, options.output, options.resume)
    print("\n".join(report.table(outcome.detector)))
    cli.say(f"\nmodel: {outcome.output}\nrecords: {outcome.folder}")
    if outcome.interrupted:
        return cli.EXIT_INTERRUPTED
    return cli.EXIT_PARTIAL if outcome.skipped or outcome.diverged else cli.EXIT_OK


if __name__ == "__main__":
    sys.exit(cli.run_door(main))
