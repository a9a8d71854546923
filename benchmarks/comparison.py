#!/usr/bin/env python3
"""The four networks and the five experiments on a subset of CIFAKE, in one comparison.

    python benchmarks/comparison.py --cifake DIR --output DIR

DIR holds train/REAL, train/FAKE, test/REAL and test/FAKE. 10,000 pictures of train learn and 1,000 others choose; 2,000
of test judge, drawn with a seed. Pictures of test that training holds too are left out by the split itself. Pictures
have the 32 px here that CIFAKE has, and the networks few epochs, so that a laptop gets through. Without ImageNet's
weights (--weights auto offline) the EfficientNetB0 starts from models/pretrained.h5, which knows CIFAKE and knows it at
64 px, and the larger two from nothing: the table says so.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

HOME = Path(__file__).resolve().parents[1]
NETWORKS = ("efficientnetb0", "efficientnetb4", "vgg16", "cnn")
EXPERIMENTS = ("base", "epoch", "sgd", "sigmoid", "val")
COUNTS = {"train": ("train", 10_000), "val": ("train", 1_000), "test": ("test", 2_000)}
"""Of each split: the folder that its pictures come from, and how many."""


def link_subset(cifake: Path, folder: Path, seed: int, share: float) -> None:
    """Puts links to the chosen pictures into folder/train|val|test/fake|real."""
    for label in ("FAKE", "REAL"):
        left: dict[str, list[Path]] = {}
        for origin in ("train", "test"):
            left[origin] = sorted((cifake / origin / label).iterdir())
            random.Random(f"{seed} {origin} {label}").shuffle(left[origin])
        for split, (origin, count) in COUNTS.items():
            place = folder / split / label.lower()
            place.mkdir(parents=True)
            for _ in range(round(count * share / 2)):
                path = left[origin].pop()
                (place / path.name.replace(" ", "_")).symlink_to(path.resolve())


def write_recipes(folder: Path, epochs: int, image_size: int) -> list[Path]:
    """Writes the recipes of configs/ for this comparison: at one size, all layers where no base can be had offline."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name in (*NETWORKS, *EXPERIMENTS):
        tree = yaml.safe_load((HOME / "configs" / f"{name}.yaml").read_text(encoding="utf-8"))
        tree["image_size"] = 64 if name == "efficientnetb0" else image_size
        if name in NETWORKS:
            tree["training"].update(epochs=epochs, batch_size=32)
        if name in ("efficientnetb4", "vgg16"):
            tree["weights"] = "none"
            tree["training"].update(fine_tune="all", learning_rate=1e-3 if name == "efficientnetb4" else 1e-4)
        if name == "vgg16":
            tree["training"]["epochs"] = -(-epochs // 2)  # one takes it as long as the EfficientNetB4 takes two
        paths.append(folder / f"{name}.yaml")
        paths[-1].write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return paths


def main() -> int:
    """Makes the subset and the recipes once, and compares; the same command again goes on."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cifake", type=Path, required=True, metavar="DIR")
    options.add_argument("--output", type=Path, required=True, metavar="DIR")
    options.add_argument("--epochs", type=int, default=4, help="of the four networks (the experiments have their own)")
    options.add_argument("--image-size", type=int, default=32, metavar="PX", help="of all but EfficientNetB0")
    options.add_argument("--share", type=float, default=1.0, help="of the pictures, for a quick look")
    options.add_argument(
        "--imagenet", action="store_true", help="start all bases from ImageNet's weights, as in configs/"
    )
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    given.output = given.output.resolve()
    pictures = given.output / "pictures"
    if not pictures.exists():
        begun = pictures.with_name("pictures.part")  # a kill half-way must not leave half a set that looks whole
        shutil.rmtree(begun, ignore_errors=True)
        link_subset(given.cifake, begun, given.seed, given.share)
        begun.rename(pictures)
    recipes = [HOME / "configs" / f"{name}.yaml" for name in (*NETWORKS, *EXPERIMENTS)]
    if not given.imagenet:
        recipes = write_recipes(given.output / "recipes", given.epochs, given.image_size)
    command = [sys.executable, "-m", "fakereal", "compare", *recipes, "--data", pictures,
               "--output", given.output / "runs", "--set", "report.resave_images=200"]  # fmt: skip
    return subprocess.run(list(map(str, command)), cwd=HOME, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
