"""The command `fakereal` (also `python -m fakereal`): the three scripts, and all other commands.

The docstring of each `run_*` function is the help text of its command, and what it needs is imported inside it.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from importlib import import_module
from inspect import cleandoc
from pathlib import Path
from typing import TYPE_CHECKING

from fakereal import __version__, cli
from fakereal.cli import EXIT_OK, SCRIPTS, Parser, exit_code
from fakereal.errors import ConfigError, DataError
from fakereal.model import foreign
from fakereal.runtime import log, start_keras

if TYPE_CHECKING:
    from fakereal.dataset.layout import LabelRules
    from fakereal.dataset.near_duplicates import Cluster
    from fakereal.dataset.scan import Dataset

_MODEL_HELP = "model file (default: models/my_trained_model.h5, else the shipped detector)"
_ENGINE_HELP = "inference engine; auto: the fastest that matches Keras"


def console() -> int:
    """Run the command named by `sys.argv` and return its exit code; the entry point of the console command."""
    return cli.run_cli(main)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the options, run the command, return its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0].startswith("-"):
        parser = build_parser()
        command = next((word for word in argv if word in SCRIPTS or word in COMMANDS), None)
        if command and argv[0] not in ("-h", "--help", "--version"):
            parser.error(f"expected the command before its options: {_program()} {command} ... {argv[0]}")
        parser.parse_args(argv)
        parser.print_help()
        return EXIT_OK
    name, *rest = argv
    if name in SCRIPTS:
        return _run_script(name, rest)
    if name not in COMMANDS:
        build_parser().error(_unknown_command(name))
    return COMMANDS[name][1](command_parser(name).parse_args(rest))


def _run_script(name: str, argv: Sequence[str]) -> int:
    more = {"output": None} if name == "predict" else {}  # only the script writes a file that nobody named
    before, sys.argv[0] = sys.argv[0], f"{_program()} {name}"  # the name in the script's help
    try:
        return import_module(SCRIPTS[name]).main(argv, **more)
    finally:
        sys.argv[0] = before


def _program() -> str:
    return "python -m fakereal" if Path(sys.argv[0]).stem == "__main__" else "fakereal"


def _unknown_command(name: str) -> str:
    if Path(name).exists():
        near = f"; did you mean {_program()} predict {shlex.quote(name)}?"
    else:
        near = cli.suggestion(name, [*SCRIPTS, *COMMANDS])
    return f"unknown command {name!r}{near}"


def build_parser() -> Parser:
    """Return the parser whose help is the overview of all commands; see `command_parser` for their options."""
    texts = {name: import_module(script).__doc__ for name, script in SCRIPTS.items()}
    texts |= {name: run.__doc__ for name, (_, run) in COMMANDS.items()}
    rows = [f"  {name:<10}{text.splitlines()[0]}" for name, text in texts.items()]
    parser = Parser(
        prog=_program(),
        usage=f"{_program()} COMMAND [options]",
        description="Tell fake images from real ones.",
        epilog="\n".join(["commands:", *rows, "", f"{_program()} COMMAND --help lists the options of a command."]),
    )
    parser.add_argument("--version", action="version", version=f"fakereal {__version__}")
    return parser


def command_parser(name: str) -> Parser:
    """Return the parser of one of `COMMANDS`."""
    add_options, run = COMMANDS[name]
    parser = Parser(prog=f"{_program()} {name}", description=cleandoc(run.__doc__))
    add_options(parser)
    parser.add_common_options(replaces=name not in ("web", "demo"))
    return parser


def _audit_options(command: Parser) -> None:
    add = command.add_argument
    command.add_either("data", type=Path, required=True, help="folder with the labeled images")
    command.add_label_options()
    add("--report", type=Path, metavar="DIR", help="write report.html and audit.json into this folder")
    add("--label-errors", action="store_true", help="also look for wrong labels; takes minutes, needs --report")
    add("--neutralize", type=Path, metavar="OUT", help="write a copy of the images with one crop, size and encoding")


def run_audit(arguments: argparse.Namespace) -> int:
    """Check a labeled data set: shortcuts, duplicates, damaged files and, on request, wrong labels.

    Examples:
      python -m fakereal audit data/clean --report audit               audit/report.html and audit/audit.json
      python -m fakereal audit data/clean --report audit --label-errors
      python -m fakereal audit data/clean --neutralize data/neutral    a copy with one size and encoding for all
      python -m fakereal audit data/clean --strict                     exit code 1 when something was found
    """
    from fakereal.audit import audit, report
    from fakereal.dataset.scan import scan
    from fakereal.files import keep_backups
    from fakereal.preprocessing import Preprocessing

    if arguments.label_errors and not arguments.report:
        raise ConfigError("--label-errors: expected --report DIR too, for the suspects: add it")
    dataset = scan(arguments.data, Preprocessing(), _label_rules(arguments))
    audited = audit.audit_dataset(dataset)
    suspects, apply, decide = None, [], []
    if arguments.label_errors:
        suspects, apply, decide = _find_label_errors(dataset, audited.clusters, arguments.report, arguments.force)
    found = audit.findings(audited, audit.label_error_findings(suspects, apply) if suspects else ())
    print("\n".join(report.lines(audited, found)))
    if arguments.report:
        with keep_backups(*report.files_in(arguments.report), force=arguments.force):
            report.write_report(arguments.report, audited, found, suspects, decide)
        log(f"\nreport: {arguments.report / 'report.html'}")
    incomplete = _write_neutral_copy(dataset, arguments.neutralize) if arguments.neutralize else False
    serious = any(finding.serious for finding in found)
    return exit_code(serious or incomplete or audited.counts["skipped"], arguments.strict)


def _label_rules(arguments: argparse.Namespace) -> LabelRules:
    from fakereal.dataset.layout import LabelRules

    return LabelRules.of(arguments.classes, arguments.split_folders, arguments.labels_file)


def _find_label_errors(
    dataset: Dataset, clusters: Sequence[Cluster], folder: Path, force: bool
) -> tuple[dict, list[str], list[str]]:
    """Return the suspects as JSON, and the commands that apply all suggestions, or what people decide."""
    start_keras()
    from fakereal.audit import label_errors
    from fakereal.files import keep_backups

    found = label_errors.find_label_errors(dataset, clusters)
    suggested, given = folder / "label_errors", folder / "given_labels"
    with keep_backups(*suggested.rglob("*.json"), *given.rglob("*.json"), force=force):
        written = label_errors.write_predictions(found, dataset, suggested)
        labels = label_errors.write_given_labels(dataset, given)
    apply = label_errors.separation_commands(written, dataset, suggested)
    decide = label_errors.separation_commands(labels, dataset, given, Path("decisions.json"))
    log("\n".join(label_errors.summary(found)))
    return label_errors.as_json(found, dataset.root), apply, decide


def _write_neutral_copy(dataset: Dataset, folder: Path) -> bool:
    """Write the neutral copy; return whether images are missing from it."""
    from fakereal.dataset import neutralize

    copied = neutralize.write_copy(dataset, folder, neutralize.settings_for(dataset))
    print("\n" + "\n".join(neutralize.summary(dataset, copied)))
    return copied.incomplete


def _evaluate_options(command: Parser) -> None:
    add = command.add_argument
    command.add_either("model", type=cli.parse_path, help=_MODEL_HELP)
    command.add_either("data", type=Path, required=True, help="folder with the labeled images")
    command.add_label_options()
    add("--output", type=Path, metavar="DIR", help="folder for the report (default: MODEL_on_DATA beside the model)")
    split_help = "which images of a folder with train/ and test/ to use: the test images, or all"
    add("--split", choices=("test", "all"), default="test", help=split_help)
    add("--seen", action="store_true", help="include images that the model was trained or tuned on")
    resave_help = "how many random images to predict after re-saving too; 0: none (default: all)"
    add("--resave-images", type=cli.parse_whole, metavar="N", help=resave_help)
    add("--batch-size", type=cli.parse_count, default=32, metavar="N", help="images per batch")
    add("--engine", choices=cli.ENGINES, default="auto", help=_ENGINE_HELP)
    foreign.add_options(command)


def run_evaluate(arguments: argparse.Namespace) -> int:
    """Measure a detector on labeled images, and write a report.

    Examples:
      python -m fakereal evaluate models/my_trained_model.h5 --data data/clean
      python -m fakereal evaluate models/pretrained.h5 --data holiday --output holiday_report

    The folder holds fake/ and real/, by themselves, inside train/ val/ test/ (then test/ counts), or inside one folder
    per source. Images that the model was trained or tuned on are left out where the record of its training
    (NAME_run/split.csv) lies beside it. The output is report.html, metrics.json and predictions.csv.
    """
    start_keras()
    from fakereal.evaluation.evaluate import EvaluateConfig
    from fakereal.evaluation.report import evaluate_and_report
    from fakereal.evaluation.summary import evaluation_lines
    from fakereal.predict.run import choose_model, log_model

    others = ("strict", "classes", "split_folders", "labels_file")
    options = {key: value for key, value in vars(arguments).items() if key not in others}
    options["model"] = choose_model(arguments.model)
    log_model(options["model"], arguments.model)
    config = EvaluateConfig(**options, rules=_label_rules(arguments), command=_command_line())
    result = evaluate_and_report(config)
    print("\n".join(evaluation_lines(result.tree, result.folder / "report.html")))
    return exit_code(result.skipped, arguments.strict)


def _compare_options(command: Parser) -> None:
    add = command.add_argument
    add(
        "configs", type=cli.parse_path, nargs="*", metavar="CONFIG", help="configurations of train_model.py, YAML files"
    )
    add("--data", dest="path", metavar="DIR", help="folder with the labeled images, for all configurations")
    command.add_label_options()
    add("--split", dest="split_file", metavar="FILE", help="split.csv of an earlier run (default: one is made)")
    add("--output", type=Path, default=Path("models/comparison"), metavar="DIR", help="folder for all results")
    settings_help = "set a key in all configurations, such as training.epochs=5; repeatable"
    add("--set", type=cli.parse_setting, action="append", default=[], metavar="KEY=VALUE", dest="settings",
        help=settings_help)  # fmt: skip
    add("--write-configs", type=Path, metavar="DIR", help="copy five example configurations into this folder")


def run_compare(arguments: argparse.Namespace) -> int:
    """Train several configurations on one split, and compare their results in one table.

    Examples:
      python -m fakereal compare configs/cnn.yaml configs/efficientnetb0.yaml --data data/clean
      python -m fakereal compare --write-configs experiments
      python -m fakereal compare experiments/*.yaml --data data/clean --set training.epochs=5

    Each configuration trains in a process of its own; one that fails stops none of the others. The same command again
    trains only what isn't trained yet, and resumes what was interrupted. The output is comparison.md, comparison.csv,
    comparison.html, and for each configuration the model, its log and its report.
    """
    from fakereal.training import compare

    if not (arguments.configs or arguments.write_configs):
        raise ConfigError(
            "compare: expected configurations, got none: name YAML files, or get some by --write-configs DIR"
        )
    if arguments.write_configs:
        print("\n".join(map(str, compare.write_experiments(arguments.write_configs))))
    return _compare(arguments) if arguments.configs else EXIT_OK


def _compare(arguments: argparse.Namespace) -> int:
    """Train what is missing, write the comparison and print its table."""
    from fakereal.files import keep_backups, locked
    from fakereal.training import compare, comparison

    keys = ("path", "split_file", "classes", "split_folders", "labels_file")
    flags = {f"data.{key}": value for key in keys if (value := getattr(arguments, key)) is not None}
    overrides = flags | dict(arguments.settings)
    with locked(arguments.output / ".lock"):
        runs = compare.plan(arguments.configs, arguments.output, overrides)
        failed = compare.train_all(runs, arguments.force)
    table = comparison.comparison_rows([run for run in runs if run.name not in failed])
    with keep_backups(*comparison.files_in(arguments.output), force=arguments.force):
        comparison.write_comparison(arguments.output, table, failed, _command_line())
    print("\n".join(comparison.comparison_markdown(table, failed)))
    log(f"\ncomparison: {arguments.output / 'comparison.html'}")
    if len(failed) == len(runs):
        raise DataError("not one of the configurations could be trained: the table says why")
    left_out = failed or any(row.diverged or row.tree["cost"].get("skipped") for row in table)
    return exit_code(left_out, arguments.strict)


def _export_options(command: Parser) -> None:
    add = command.add_argument
    command.add_either("model", type=cli.parse_path, help=_MODEL_HELP)
    format_help = "format of the output: .tflite, .onnx, .xml with .bin, or a Keras model file (.keras, .h5)"
    add("--format", choices=cli.EXPORT_FORMATS, required=True, help=format_help)
    add("--output", type=Path, metavar="FILE", help="output file (default: beside the model, under its name)")
    add("--int8", action="store_true", help="quantize to 8-bit integers, a third of the size; needs --data")
    data_help = "labeled images for --int8: half of them calibrate the ranges, half test the result"
    add("--data", type=Path, metavar="DIR", help=data_help)
    foreign.add_options(command)


def run_export(arguments: argparse.Namespace) -> int:
    """Convert a detector to LiteRT, ONNX or OpenVINO, to run it without TensorFlow; or write a Keras model file.

    Examples:
      python -m fakereal export models/pretrained.h5 --format litert
      python -m fakereal export models/my_trained_model.h5 --format onnx --output detector.onnx
      python -m fakereal export models/my_trained_model.h5 --format openvino --int8 --data data/clean
      python -m fakereal export theirs.h5 --format keras --foreign-output p_fake --foreign-scale 0-1

    The result is compared with the model first, and written only if it gives the same outputs. Beside it, FILE.json
    describes the input, the output and how a label is made of it. onnx and openvino need requirements-export.txt. With
    --format keras, the result is a model file that needs no --foreign options any more.
    """
    from fakereal.engines.export import ExportConfig, run
    from fakereal.predict.run import choose_model, log_model

    model = choose_model(arguments.model)
    log_model(model, arguments.model)
    return run(ExportConfig(**vars(arguments) | {"model": model}))


def _web_options(command: Parser) -> None:
    add = command.add_argument
    command.add_either("model", type=cli.parse_path, help=_MODEL_HELP)
    foreign.add_options(command)
    add("--engine", choices=cli.ENGINES, default="auto", help=_ENGINE_HELP)
    add(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on; 0.0.0.0: all, for other machines too",
    )
    add("--port", type=int, default=8000, metavar="N", help="port to listen on; 0: any free one")
    token_help = "bearer token required from every client (default: the variable FAKEREAL_TOKEN, which ps doesn't show)"
    add("--token", metavar="TEXT", help=token_help)
    cors_help = "let pages of this site, such as https://example.org, use the JSON API; repeatable"
    add("--cors", type=cli.parse_origin, action="append", default=[], metavar="ORIGIN", help=cors_help)
    add("--max-upload-mb", type=cli.parse_count, default=32, metavar="N", help="largest request accepted")
    add("--max-megapixels", type=cli.parse_count, default=50, metavar="N", help="largest image accepted")
    add(
        "--queue",
        type=cli.parse_count,
        default=64,
        metavar="N",
        help="images waiting or in work; beyond that, the answer is 503",
    )


def run_web(arguments: argparse.Namespace) -> int:
    """Check images in the browser, or by a JSON API, on your own machine.

    Examples:
      python -m fakereal web                                       http://127.0.0.1:8000
      python -m fakereal web --model models/pretrained.h5 --port 8080
      FAKEREAL_TOKEN=... python -m fakereal web --host 0.0.0.0     for other machines too; clients need the token
    """
    from fakereal.web.http import Limits
    from fakereal.web.server import WebConfig, run_server

    limits = Limits(
        request_bytes=arguments.max_upload_mb * 2**20,
        pixels=arguments.max_megapixels * 10**6,
        queue=arguments.queue,
    )
    token = arguments.token or os.environ.get("FAKEREAL_TOKEN") or None
    names = ("model", "foreign", "host", "port", "engine")
    options = {name: getattr(arguments, name) for name in names}
    return run_server(WebConfig(**options, token=token, limits=limits, cors=tuple(arguments.cors)))


def _demo_options(command: Parser) -> None:
    add = command.add_argument
    add("folder", type=Path, metavar="DIR", help="new or empty folder for the set")
    add("--seed", type=int, default=0, metavar="N", help="another seed gives other images")
    add("--run", dest="tour", action="store_true", help="also clean, train and predict")


def run_demo(arguments: argparse.Namespace) -> int:
    """Make a small labeled set to try everything on; with --run, try it at once.

    Examples:
      python -m fakereal demo demo          make the set in the new folder demo/
      python -m fakereal demo demo --run    ... and clean it, train on it and predict
    """
    from fakereal.dataset import demo

    if arguments.tour:
        return demo.run_tour(arguments.folder, arguments.seed)
    made = demo.make(arguments.folder, arguments.seed)
    print(f"{made.raw}: {made.labeled} labeled images, {made.swapped} of them in the wrong folder")
    print(f"{made.test}: {made.unlabeled} unlabeled images; their labels: {made.truth}")
    print(f"{made.split}: which of the labeled images are for training, validation and test (train_model.py --split)")
    return EXIT_OK


def _command_line() -> str:
    """Return the command as the user can repeat it."""
    return shlex.join([*_program().split(), *sys.argv[1:]])


COMMANDS = {
    "audit": (_audit_options, run_audit),
    "evaluate": (_evaluate_options, run_evaluate),
    "compare": (_compare_options, run_compare),
    "export": (_export_options, run_export),
    "web": (_web_options, run_web),
    "demo": (_demo_options, run_demo),
}
"""By name: the function that adds a command's options to its parser, and the one that runs it."""

if __name__ == "__main__":
    sys.exit(console())
