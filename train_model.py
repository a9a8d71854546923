"""Train a fake-image detector on a folder of labeled images."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fakereal import cli, runtime

_EXAMPLES = """examples:
  python train_model.py data/clean
  python train_model.py data/clean --time-limit 60 --output models/fine_tuned.h5
  python train_model.py --config configs/efficientnetb0.yaml --data data/clean --resume

The folder holds fake/ and real/ (or fake_images/, ai/, genuine/ ...), by themselves, inside train/ val/ test/, or
inside one folder per source; unclear names are asked about. Beside the model, NAME_run/ gets report, split, history."""

_NOT_CONFIGURATION = ("config", "output", "resume", "end_with_stdin", "strict", "force")
"""Options that are not keys of the configuration; the `dest` of every other one is its dotted key."""


def parser() -> cli.Parser:
    """Return the options; one that is not given comes from --config, or else is the default."""
    count, switch = cli.parse_count, {"action": "store_const", "const": True}
    p = cli.Parser(description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawTextHelpFormatter)
    p.add_either("data", dest="data.path", help="folder of the labeled images (default: data/clean)")
    p.add_argument("--output", metavar="FILE", type=Path, default=Path("models/my_trained_model.h5"),
                   help="the model file, .h5 or .keras (default: models/my_trained_model.h5)")  # fmt: skip
    p.add_argument("--config", metavar="FILE", type=cli.parse_path, help="a YAML file, such as those in configs/")
    p.add_label_options("data.")
    p.add_argument("--split", dest="data.split_file", metavar="FILE", help="a run's split.csv (default: by content)")
    p.add_argument("--neutralize", dest="neutralize.enabled", **switch,
                   help="crop, resize and encode all images alike, in training and prediction")  # fmt: skip
    p.add_argument("--no-audit", dest="data.audit", action="store_const", const=False,
                   help="skip the check whether file features alone tell fake from real")  # fmt: skip
    p.add_argument("--network", dest="network.name", metavar="NAME",
                   help="efficientnetb0 (default), efficientnetb4, vgg16, cnn")  # fmt: skip
    p.add_argument("--weights", metavar="CHOICE", help="the base starts from: auto (default: the better one of those\n"
                   "at hand) | imagenet | pretrained (models/pretrained.h5) | none | a file")  # fmt: skip
    p.add_argument("--fine-tune", dest="training.fine_tune", choices=("auto", "none", "last20", "all"),
                   help="layers to train after the head (default: auto: as many as --time-limit allows)")  # fmt: skip
    p.add_argument("--time-limit", dest="training.time_limit_minutes", type=float, metavar="MINUTES",
                   help="for the choice that --fine-tune auto makes (default: 15)")  # fmt: skip
    p.add_argument("--epochs", dest="training.epochs", type=count, metavar="N", help="of the head (default: 25)")
    p.add_argument("--batch-size", dest="training.batch_size", type=count, metavar="N", help="default: 32")
    p.add_argument("--learning-rate", dest="training.learning_rate", type=float, metavar="X", help="default: 0.001")
    p.add_argument("--image-size", type=count, metavar="PX", help="width and height (default: 224)")
    p.add_argument("--seed", type=int, metavar="N", help="same seed, same machine: same result (default: 0)")
    p.add_argument("--cache-dir", dest="data.cache_dir", metavar="DIR",
                   help="keeps decoded images and features (default: your cache folder; none: off)")  # fmt: skip
    p.add_argument(
        "--tensorboard", dest="training.tensorboard", **switch, help="write TensorBoard logs into NAME_run/tensorboard"
    )
    p.add_argument("--end-with-stdin", action="store_true", help=argparse.SUPPRESS)  # how a comparison calls it
    p.add_argument("--resume", action="store_true", help="continue a killed run after its last finished epoch")
    p.add_common_options()
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the options, train, print the metrics; return the exit code."""
    options = parser().parse_args(argv)
    from fakereal import config

    flags = {key: value for key, value in vars(options).items() if value is not None and key not in _NOT_CONFIGURATION}
    effective = config.load(options.config, flags)
    if options.end_with_stdin:
        runtime.end_with_stdin()
    runtime.start_keras()
    from fakereal.evaluation.report import training_lines
    from fakereal.training import run

    outcome = run.train_and_report(effective, options.output, options.resume, options.force)
    print("\n".join(training_lines(outcome.detector)))
    runtime.log(f"\nmodel: {outcome.output}\nrecords: {outcome.folder}\n{outcome.advice}".rstrip())
    return cli.EXIT_INTERRUPTED if outcome.interrupted else cli.exit_code(outcome.left_out, options.strict)


if __name__ == "__main__":
    sys.exit(cli.run_cli(main))
