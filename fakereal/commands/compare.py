"""Train several recipes on the same split and set their results side by side.

Examples:
  python -m fakereal compare configs/cnn.yaml configs/efficientnetb0.yaml --data data/clean
  python -m fakereal compare --write-configs experiments
  python -m fakereal compare experiments/*.yaml --data data/clean --set training.epochs=5

Each recipe trains in a process of its own; one that fails stops none of the others. The same command again trains only
what isn't trained yet, and goes on where it was cut off. Written are comparison.md, comparison.csv, comparison.html,
and of each recipe the model, its log and its report.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from fakereal.cli import EXIT_OK, EXIT_PARTIAL
from fakereal.runtime import log


def add_arguments(options: argparse.ArgumentParser) -> None:
    """Adds the options."""
    options.add_argument("configs", type=Path, nargs="*", metavar="CONFIG", help="recipes, YAML files")
    options.add_argument("--data", dest="path", metavar="DIR", help="the labelled pictures, for all of them")
    options.add_argument("--split", metavar="FILE", help="the split.csv of an earlier run (default: one is made)")
    options.add_argument("--output", type=Path, default=Path("models/comparison"), metavar="DIR", help="for everything")
    options.add_argument("--set", type=setting, action="append", default=[], metavar="KEY=VALUE", dest="settings",
                         help="a key for all of them, such as training.epochs=5; repeatable")  # fmt: skip
    options.add_argument("--write-configs", type=Path, metavar="DIR", help="write five classic experiments there")


def setting(text: str) -> tuple[str, Any]:
    """An argparse type: a dotted key and its value, read as YAML."""
    import yaml

    key, equals, value = text.partition("=")
    if not (key and equals):
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, found {text!r}")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError:
        raise argparse.ArgumentTypeError(f"expected a YAML value, found {value!r}") from None


def run(arguments: argparse.Namespace) -> int:
    """Writes the experiments, or trains, compares and prints the table."""
    if arguments.write_configs:
        from fakereal.training import compare

        print("\n".join(map(str, compare.write_experiments(arguments.write_configs))))
    if not arguments.configs:
        if not arguments.write_configs:
            raise _nothing()
        return EXIT_OK
    from fakereal.files import locked
    from fakereal.training import compare

    flags = {"data.path": arguments.path, "data.split_file": arguments.split}
    overrides = {key: value for key, value in flags.items() if value is not None} | dict(arguments.settings)
    with locked(arguments.output / ".lock"):
        runs = compare.plan(arguments.configs, arguments.output, overrides)
        failed = compare.train_all(runs)
    table = compare.comparison_rows([run for run in runs if run.name not in failed])
    compare.write_comparison(arguments.output, table, failed, shlex.join(["python", "-m", "fakereal", *sys.argv[1:]]))
    print("\n".join(compare.comparison_markdown(table, failed)))
    log(f"\ncomparison: {arguments.output / 'comparison.html'}")
    partial = failed or any(row.diverged or row.tree["cost"].get("skipped") for row in table)
    return EXIT_PARTIAL if partial else EXIT_OK


def _nothing() -> Exception:
    from fakereal.errors import ConfigError

    return ConfigError("compare: expected recipes, found none: name YAML files, or --write-configs DIR to get some")
