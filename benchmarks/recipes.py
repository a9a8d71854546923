"""Which recipe of train_model.py is worth its minutes: F1 against time on several sets.

    python -m benchmarks.recipes --set dualcue=DIR --set shoes=DIR --weights models/cifake.h5 --work DIR

Every recipe trains on every set with each seed, in a process of its own and with an empty cache; each seed divides the
pictures anew, the same way for all recipes. Give weights of a base that has not seen the sets (models/pretrained.h5 has
seen those of its card). What was trained in DIR is not trained again.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
from pathlib import Path

from benchmarks.pretrained_runs import Run, train
from fakereal import cli

RECIPES = {
    "head": {},
    "head, 1 view": {"training": {"views": 1}},
    "head, 5 views": {"training": {"views": 5}},
    "head, then last 20 layers": {"training": {"fine_tune": "last20"}},
    "head, then all layers": {"training": {"fine_tune": "all", "fine_tune_epochs": 5}},
}
"""What differs from the defaults."""


def main() -> int:
    """Trains what is missing and prints the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", action="append", required=True, metavar="NAME=DIR", help="a labelled folder")
    parser.add_argument("--weights", type=Path, default=Path("pretrained"), help="as train_model.py takes them")
    parser.add_argument("--work", type=Path, default=Path("recipes_benchmark"), metavar="DIR")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    print(
        "| set | recipe | test images | F1, mean of the seeds (each) | minutes, median |\n|---|---|---|---|---|",
        flush=True,
    )
    for each in options.set:
        name, _, folder = each.partition("=")
        for recipe in options.recipes:
            runs = [_run(options, name, Path(folder), recipe, seed) for seed in range(options.seeds)]
            print(_row(name, recipe, runs), flush=True)
    return 0


def _run(options: argparse.Namespace, name: str, data: Path, recipe: str, seed: int) -> Run:
    title = "_".join((name, *recipe.replace(",", "").split(), str(seed)))
    cache = options.work / "cache"
    tree = {"seed": seed, "data": {"cache_dir": str(cache)}, "report": {"resave_images": 0}, **RECIPES[recipe]}
    run = train(options.work, title, data, options.weights, tree)
    shutil.rmtree(cache, ignore_errors=True)
    return run


def _row(name: str, recipe: str, runs: list[Run]) -> str:
    tests = [run.report["metrics"]["test"] for run in runs]
    scores = [test["f1_macro"] for test in tests]
    each = ", ".join(f"{score:.3f}" for score in scores)
    minutes = statistics.median(run.minutes for run in runs)
    images = statistics.median(test["images"] for test in tests)
    return f"| {name} | {recipe} | {images:.0f} | {statistics.mean(scores):.3f} ({each}) | {minutes:.1f} |"


if __name__ == "__main__":
    sys.exit(cli.run_door(lambda argv: main()))
