"""Measure F1 against minutes for several ways to train (head only, last 20 layers, all layers) on several sets.

    python -m benchmarks.recipes --set dualcue=DIR --set shoes=DIR --weights models/cifake.h5 --work DIR

Every recipe trains on every set with each seed, in a process of its own and with an empty cache; each seed makes
another split, the same for all recipes, so their figures are compared seed by seed. Give weights of a base that has not
seen the sets (models/pretrained.h5 has seen those of its card). What was trained in DIR is not trained again.

Two versions of each image, computed once, against new ones in every epoch:

    python -m benchmarks.recipes --set NAME=DIR --recipes head "head, new versions" --image-size 64 --seeds 5
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks._shared import Table, new_parser
from benchmarks.pretrained_runs import Run, train
from fakereal import cli

RECIPES = {
    "head": {"training": {"fine_tune": "none"}},
    "head, new versions": {"training": {"fine_tune": "none", "augmented_versions": 0}},
    "head, 1 version": {"training": {"fine_tune": "none", "augmented_versions": 1}},
    "head, 5 versions": {"training": {"fine_tune": "none", "augmented_versions": 5}},
    "head, then last 20 layers": {"training": {"fine_tune": "last20"}},
    "head, then all layers": {"training": {"fine_tune": "all", "fine_tune_epochs": 5}},
    "by the clock": {},
}
"""Differences from the default configuration."""


def main() -> int:
    """Train what is missing and print the table; return the exit code."""
    parser = new_parser(__doc__)
    parser.add_argument("--set", action="append", required=True, metavar="NAME=DIR", help="a labeled folder")
    parser.add_argument("--weights", type=Path, default=Path("pretrained"), help="as train_model.py takes them")
    parser.add_argument("--work", type=Path, default=Path("recipes_benchmark"), metavar="DIR")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--shares", type=float, nargs=3, default=(0.6, 0.2, 0.2), metavar="X", help="train, val, test")
    parser.add_argument("--image-size", type=int, default=224, metavar="PX")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    titles = (
        "set",
        "recipe",
        "test images",
        "F1, mean of the seeds (each)",
        "against the first, paired (95 %)",
        "minutes",
    )
    table = Table(*titles)
    for each in options.set:
        name, _, folder = each.partition("=")
        first: list[float] = []
        for recipe in options.recipes:
            runs = [_run(options, name, Path(folder), recipe, seed) for seed in range(options.seeds)]
            scores = [run.report["metrics"]["test"]["f1_macro"] for run in runs]
            table.row(name, recipe, *_cells(runs, scores, first))
            first = first or scores
    return 0


def _run(options: argparse.Namespace, name: str, data: Path, recipe: str, seed: int) -> Run:
    title = "_".join((name, *recipe.replace(",", "").split(), str(seed)))
    cache = options.work / "cache"
    tree: dict[str, Any] = {"seed": seed, "image_size": options.image_size, "report": {"resave_images": 0}}
    tree |= {"data": {"cache_dir": str(cache), "shares": list(options.shares)}, **RECIPES[recipe]}
    shutil.rmtree(cache, ignore_errors=True)  # left by a killed run, it would make the next one look faster
    run = train(options.work, title, data, options.weights, tree)
    shutil.rmtree(cache, ignore_errors=True)
    return run


def _cells(runs: list[Run], scores: list[float], first: list[float]) -> list[str]:
    each = ", ".join(f"{score:.3f}" for score in scores)
    minutes = statistics.median(run.minutes for run in runs)
    images = statistics.median(run.report["metrics"]["test"]["images"] for run in runs)
    trained_on = statistics.median(sum(run.report["data"]["train"].values()) for run in runs)
    paired = _difference(scores, first, images / trained_on) if first and len(scores) > 1 else ""
    return [f"{images:.0f}", f"{statistics.mean(scores):.3f} ({each})", paired, f"{minutes:.1f}"]


def _difference(scores: list[float], first: list[float], test_share: float) -> str:
    """Return the mean difference of two recipes on the same splits, with Student's 95 % interval.

    The splits share images, so the scores are not independent: the variance is corrected as by Nadeau and Bengio,
    Inference for the Generalization Error, Machine Learning 52 (2003).
    """
    found = np.subtract(scores, first)
    reach = stats.t.ppf(0.975, len(found) - 1) * found.std(ddof=1) * (1 / len(found) + test_share) ** 0.5
    return f"{found.mean():+.3f} ({found.mean() - reach:+.3f} to {found.mean() + reach:+.3f})"


if __name__ == "__main__":
    sys.exit(cli.run_cli(lambda argv: main()))
