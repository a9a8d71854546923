"""Compare the four networks and five classic experiments on a subset of CIFAKE: F1, minutes, parameters, images/s.

    python -m benchmarks.comparison --cifake DIR --output DIR

DIR holds train/REAL, train/FAKE, test/REAL and test/FAKE. Training takes 10,000 random images of train, validation
1,000 others, the test 2,000 of test; test images that also stand in train are left out by the split itself. Images
keep CIFAKE's 32 px and the networks get few epochs, so that a laptop finishes. Without ImageNet weights (--weights auto
offline) the EfficientNetB0 starts from models/pretrained.h5, which has learned CIFAKE at 64 px, and the larger two from
random weights. The same command again resumes.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from benchmarks._shared import ROOT, new_parser

NETWORKS = ("efficientnetb0", "efficientnetb4", "vgg16", "cnn")
EXPERIMENTS = ("base", "epoch", "sgd", "sigmoid", "val")
COUNTS = {"train": ("train", 10_000), "val": ("train", 1_000), "test": ("test", 2_000)}
"""By split: the folder that its images come from, and how many."""


def link_subset(cifake: Path, folder: Path, seed: int, share: float) -> None:
    """Link the sampled images into folder/train|val|test/fake|real."""
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
    """Write configs/ for this comparison: at one image size, all layers where no weights are available offline."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name in (*NETWORKS, *EXPERIMENTS):
        tree = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8"))
        tree["image_size"] = 64 if name == "efficientnetb0" else image_size
        if name in NETWORKS:
            tree["training"].update(epochs=epochs, batch_size=32)
        if name in ("efficientnetb4", "vgg16"):
            tree["weights"] = "none"
            tree["training"].update(fine_tune="all", learning_rate=1e-3 if name == "efficientnetb4" else 1e-4)
        if name == "vgg16":
            tree["training"]["epochs"] = -(-epochs // 2)  # one of its epochs takes as long as two of EfficientNetB4
        paths.append(folder / f"{name}.yaml")
        paths[-1].write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return paths


def main() -> int:
    """Make the subset and the configurations once, and compare; return the exit code."""
    parser = new_parser(__doc__)
    parser.add_argument("--cifake", type=Path, required=True, metavar="DIR")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--epochs", type=int, default=4, help="of the four networks (the experiments have their own)")
    parser.add_argument("--image-size", type=int, default=32, metavar="PX", help="of all but EfficientNetB0")
    parser.add_argument("--share", type=float, default=1.0, help="of the images, for a quick check")
    parser.add_argument("--imagenet", action="store_true", help="start all bases from ImageNet weights, as in configs/")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.output = options.output.resolve()
    images = options.output / "images"
    if not images.exists():
        begun = images.with_name("images.part")  # a kill must not leave half a set that looks complete
        shutil.rmtree(begun, ignore_errors=True)
        link_subset(options.cifake, begun, options.seed, options.share)
        begun.rename(images)
    recipes = [ROOT / "configs" / f"{name}.yaml" for name in (*NETWORKS, *EXPERIMENTS)]
    if not options.imagenet:
        recipes = write_recipes(options.output / "recipes", options.epochs, options.image_size)
    command = [sys.executable, "-m", "fakereal", "compare", *recipes, "--data", images,
               "--output", options.output / "runs", "--set", "report.resave_images=200"]  # fmt: skip
    return subprocess.run(list(map(str, command)), cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
