"""The options of train_model.py that are keys of the configuration; loaded for `--help` too, so without Keras."""

from __future__ import annotations

import argparse

from fakereal import cli

NETWORKS = ("efficientnetb0", "efficientnetb4", "vgg16", "cnn")
"""Values of `--network`; `config.NORMALIZATIONS` has the same names."""


def parse_network(text: str) -> str:
    """Argument type: the name of a network."""
    if text not in NETWORKS:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(NETWORKS)}, got {text!r}")
    return text


def add_config_options(p: argparse.ArgumentParser) -> None:
    """Add the options; the `dest` of each is its dotted key, and one that is not given is None."""
    count, switch = cli.parse_count, {"action": "store_const", "const": True}
    p.add_argument("--neutralize", dest="neutralize.enabled", **switch,
                   help="crop, resize and encode all images alike, in training and prediction")  # fmt: skip
    p.add_argument("--no-audit", dest="data.audit", action="store_const", const=False,
                   help="skip the check for shortcuts in format, size and metadata")  # fmt: skip
    p.add_argument("--network", dest="network.name", type=parse_network, metavar="NAME",
                   help="efficientnetb0 (default), efficientnetb4, vgg16 or cnn")  # fmt: skip
    p.add_argument("--weights", metavar="CHOICE", help="the backbone starts from: auto (default: the better of those\n"
                   "at hand) | imagenet | pretrained (models/pretrained.h5) | none | a file")  # fmt: skip
    p.add_argument("--fine-tune", dest="training.fine_tune", choices=("auto", "none", "last20", "all"),
                   help="layers to train after the head (default: auto: as many as --time-limit allows)")  # fmt: skip
    p.add_argument("--time-limit", dest="training.time_limit_minutes", type=float, metavar="MINUTES",
                   help="time that --fine-tune auto plans for, all epochs included (default: 15)")  # fmt: skip
    p.add_argument("--fine-tune-epochs", dest="training.fine_tune_epochs", type=count, metavar="N",
                   help="epochs of fine-tuning; with --fine-tune auto, at most (default: 10)")  # fmt: skip
    p.add_argument("--epochs", dest="training.epochs", type=count, metavar="N", help="epochs of the head (default: 25)")
    p.add_argument("--batch-size", dest="training.batch_size", type=count, metavar="N",
                   help="images per step (default: 32)")  # fmt: skip
    p.add_argument("--learning-rate", dest="training.learning_rate", type=float, metavar="X",
                   help="for the head (default: 0.001)")  # fmt: skip
    p.add_argument("--image-size", type=count, metavar="PX",
                   help="width and height of the network's input (default: 224)")  # fmt: skip
    p.add_argument("--seed", type=int, metavar="N",
                   help="same seed on the same machine: same result (default: 0)")  # fmt: skip
    p.add_argument("--patience", dest="training.patience", type=cli.parse_whole, metavar="N",
                   help="early stopping: epochs without a lower validation loss (default: 0: off)")  # fmt: skip
    p.add_argument("--class-weights", dest="training.class_weights", **switch,
                   help="weight each class by the inverse of its number of images")  # fmt: skip
    p.add_argument("--mixed-precision", dest="training.mixed_precision", **switch,
                   help="compute in bfloat16, which is faster on recent GPUs")  # fmt: skip
    p.add_argument("--unseen-sources", dest="training.unseen_sources", type=cli.parse_whole, metavar="K",
                   help="leave out K groups of sources in turn, to estimate the accuracy on new sources\n"
                   "(default: 5 where each class has 3 sources; 0: off)")  # fmt: skip
    p.add_argument("--cache-dir", dest="data.cache_dir", metavar="DIR",
                   help="cache of decoded images and features (default: your cache folder; none: off)")  # fmt: skip
    p.add_argument("--summary", dest="report.summary", **switch,
                   help="print the layers of the network before the training, as Keras lists them")  # fmt: skip
    p.add_argument("--tensorboard", dest="training.tensorboard", **switch,
                   help="also write the history for TensorBoard, into NAME_run/tensorboard")  # fmt: skip
