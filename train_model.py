"""Train a fake-image detector on a folder of labeled images."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from fakereal import cli, runtime
from fakereal.errors import ConfigError
from fakereal.training.options import add_config_options

_EXAMPLES = """examples:
  python train_model.py data/clean
  python train_model.py data/clean --time-limit 60 --output models/fine_tuned.h5
  python train_model.py --config configs/efficientnetb0.yaml --data data/clean --resume

The folder holds fake/ and real/ (or fake_images/, ai/, genuine/ ...), by themselves, inside train/ val/ test/, or
inside one folder per source. The report and other records of the run are written into NAME_run/ beside the model."""

_NOT_CONFIGURATION = ("config", "output", "resume", "ray", "workers", "end_with_stdin", "strict", "force")
"""Options that are not keys of the configuration; the `dest` of every other one is its dotted key."""


def parser() -> cli.Parser:
    """Return the options; one that is not given comes from --config, or else is the default."""
    p = cli.Parser(description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawTextHelpFormatter)
    p.add_either("data", dest="data.path", help="folder with the labeled images (default: data/clean)")
    p.add_argument("--output", metavar="FILE", type=Path, default=Path("models/my_trained_model.h5"),
                   help="the model file, .h5 or .keras (default: models/my_trained_model.h5)")  # fmt: skip
    p.add_argument("--config", metavar="FILE", type=cli.parse_path, help="a YAML file, such as those in configs/")
    p.add_label_options("data.")
    p.add_argument(
        "--split", dest="data.split_file", metavar="FILE", help="split.csv of an earlier run (default: by content)"
    )
    add_config_options(p)
    p.add_argument("--end-with-stdin", action="store_true", help=argparse.SUPPRESS)  # how a comparison calls it
    p.add_argument("--resume", action="store_true", help="continue a killed run from its checkpoint")
    p.add_argument("--ray", nargs="?", const="auto", metavar="ADDRESS",
                   help="train on a Ray cluster: HOST:PORT, auto or local")  # fmt: skip
    p.add_argument("--workers", type=cli.parse_count, metavar="N",
                   help="number of workers with --ray (default: one per GPU, or per machine if none)")  # fmt: skip
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
    if options.workers and not options.ray:
        raise ConfigError("--workers needs --ray: add --ray, or --ray local for workers on this machine")
    runtime.start_keras("jax" if options.ray else None)
    from fakereal.evaluation.summary import training_lines
    from fakereal.training import ray, run

    with ray.cluster(options.ray, options.workers) if options.ray else nullcontext() as execute:
        outcome = run.train_and_report(effective, options.output, options.resume, options.force, execute)
    runtime.log(f"\nmodel: {outcome.output}\nrecords: {outcome.folder}\n{outcome.advice}".rstrip() + "\n")
    print("\n".join(training_lines(outcome.detector, outcome.folder / "report.html")))
    return cli.EXIT_INTERRUPTED if outcome.interrupted else cli.exit_code(outcome.left_out, options.strict)


if __name__ == "__main__":
    sys.exit(cli.run_cli(main))
