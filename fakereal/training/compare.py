"""Trains several configurations on the same split, each in a process of its own; a failure stops none of the others."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from markupsafe import Markup
from scipy.stats import binomtest

from fakereal import config as configuration
from fakereal import html
from fakereal.cli import EXIT_INTERRUPTED, EXIT_OK, run_cli
from fakereal.config import Config
from fakereal.dataset.split import SPLITS, manifest_rows, scan_and_split, write_manifest
from fakereal.errors import ConfigError, FakeRealError
from fakereal.evaluation import plots
from fakereal.files import write_atomic
from fakereal.html import NOT_KNOWN, number, percent, percents
from fakereal.model.metadata import weights_sha256
from fakereal.model.metrics import epoch_losses
from fakereal.runtime import log, one_line, start_keras

_TIMED_BATCHES = 5
_BATCH_SIZE = 32
_GRACE_S = 10  # for a training to clear its temporary files away, before it is ended


@dataclass(frozen=True)
class Run:
    """One configuration and where its results go."""

    name: str
    config: Config
    folder: Path  # of the comparison

    @property
    def model(self) -> Path:
        """The model file; its records lie beside it in `<name>_run/`."""
        return self.folder / f"{self.name}.h5"

    @property
    def records(self) -> Path:
        """The run's own folder."""
        return self.folder / f"{self.name}_run"

    @property
    def asked(self) -> Path:
        """The configuration as it was asked for: another one is trained anew."""
        return self.records / "asked.yaml"

    @property
    def log(self) -> Path:
        """What the training said."""
        return self.folder / f"{self.name}.log"

    @property
    def cost(self) -> Path:
        """Written last: where it is, the training is done."""
        return self.records / "cost.json"


def plan(paths: Sequence[Path], folder: Path, overrides: dict[str, Any]) -> list[Run]:
    """Returns the runs, on one split that is made once and kept in the folder.

    Args:
        paths: YAML files; each one's stem is the run's name.
        folder: for everything that the comparison makes.
        overrides: dotted keys and values that count in all of them.

    Raises:
        FakeRealError: a configuration can't be used, or they don't share their pictures.
    """
    configs = {path.stem: configuration.load(path, overrides) for path in paths}
    if len(configs) < len(paths):
        raise ConfigError("compare: expected files of different names, found the same twice: rename one")
    first = next(iter(configs.values()))
    _check_same_data(configs)
    manifest = _split(first, folder / "split.csv")
    data = dataclasses.replace(first.data, split_file=str(manifest))
    return [Run(name, dataclasses.replace(config, data=data), folder) for name, config in configs.items()]


def _check_same_data(configs: dict[str, Config]) -> None:
    """Refuses configurations whose data differ, by the keys that do."""
    trees = {name: dataclasses.asdict(config.data) for name, config in configs.items()}
    first = next(iter(trees))
    for name, tree in trees.items():
        if keys := [f"data.{key}" for key in tree if tree[key] != trees[first][key]]:
            for_all = "--data DIR" if keys == ["data.path"] else f"--set {keys[-1]}=..."
            raise ConfigError(
                f"compare: expected the same data in all configurations, found other {', '.join(keys)} in {name} than"
                f" in {first}: leave one out, or say for all {for_all}"
            )


def _assignments(manifest: Path) -> dict[str, str]:
    """Returns the split of each picture that takes part, by its content."""
    return {row["sha256"].lower(): row["split"] for row in manifest_rows(manifest) if row["split"] in SPLITS}


def _split(config: Config, manifest: Path) -> Path:
    """Returns the split file that all runs use; one that is there is used again, so that a comparison can go on."""
    if manifest.exists():
        given = config.data.split_file
        if given and not _assignments(manifest).items() <= _assignments(Path(given)).items():
            raise ConfigError(f"{manifest}: expected the split of {given}, found another: name another --output")
        log(f"split: {manifest}, from before")
        return manifest
    dataset, split = scan_and_split(config)
    write_manifest(manifest, split, dataset.root)
    return manifest


def train_all(runs: Sequence[Run]) -> dict[str, str]:
    """Trains what isn't trained yet; returns, for each run that failed, the last line that it said."""
    failed = {}
    for position, run in enumerate(runs, start=1):
        title = f"{position}/{len(runs)} {run.name}"
        if _is_done(run):
            log(f"{title}: trained already")
            continue
        log(f"{title}: training (log: {run.log})")
        started = time.monotonic()
        code = _in_process(run)
        log(f"{title}: {'done' if code == EXIT_OK else 'failed'} after {(time.monotonic() - started) / 60:.1f} minutes")
        if not run.cost.exists():
            failed[run.name] = _last_words(run.log, code)
            log(f"  {failed[run.name]}")
    return failed


def _is_done(run: Run) -> bool:
    return run.cost.exists() and run.model.exists() and _is_asked(run)


def _is_asked(run: Run) -> bool:
    return run.asked.exists() and run.asked.read_text(encoding="utf-8") == _asked(run)


def _asked(run: Run) -> str:
    """Returns what a training depends on, apart from the pictures: another training may renew a file of weights."""
    return (
        f"{configuration.dumps(run.config)}# SHA-256 of the weights: {weights_sha256(run.config.weights) or 'none'}\n"
    )


def _in_process(run: Run) -> int:
    """Trains in a fresh process: memory, devices and seeds of one run are nothing to the next."""
    resume = _is_asked(run)
    run.cost.unlink(missing_ok=True)
    if not resume:
        (run.records / "checkpoint.npz").unlink(missing_ok=True)  # of another configuration
    write_atomic(run.asked, _asked(run).encode())
    process = multiprocessing.get_context("spawn").Process(target=_train, args=(run, resume))
    process.start()
    try:
        process.join()
    except BaseException:  # Ctrl-C: the checkpoint stays, so the same command goes on from there
        process.terminate()
        process.join()
        raise
    return process.exitcode


def _train(run: Run, resume: bool) -> None:
    """The process: says everything into its log, exits with the code that train_model.py would."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the comparison itself decides
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with open(run.log, "a" if resume else "w", encoding="utf-8", errors="backslashreplace") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        code = run_cli(lambda _: _trained(run, resume))
    sys.exit(code)


def _end_with_parent() -> None:
    """Ends this process when the comparison is gone, however it was killed: the next one must not find it at work."""
    multiprocessing.parent_process().join()
    _end_soon()  # where the main thread never comes to answer
    os.kill(os.getpid(), signal.SIGTERM)


def _leave(*_: Any) -> None:
    """Answers SIGTERM: temporary files are cleared away on the way out."""
    _end_soon()
    sys.exit(EXIT_INTERRUPTED)


def _end_soon() -> None:
    """Has the system end this process: TensorFlow can hold up the end of Python, when no thread of ours runs again."""
    if hasattr(signal, "alarm"):  # Windows has none, but ends a process at once where SIGTERM is sent
        signal.alarm(_GRACE_S)


def _trained(run: Run, resume: bool) -> int:
    start_keras()
    from fakereal.evaluation.report import training_lines
    from fakereal.training.checkpoint import CheckpointRefused
    from fakereal.training.run import train_and_report as train

    try:
        outcome = train(run.config, run.model, resume)
    except CheckpointRefused as error:  # other pictures than at the first attempt
        log(f"starting anew: {error}")
        outcome = train(run.config, run.model)
    print("\n".join(training_lines(outcome.detector)))
    history = outcome.detector.metadata.history
    cost = {
        "minutes": sum(row["seconds"] for row in history) / 60,
        "epochs": len(history),
        "skipped": outcome.skipped,
        "diverged": outcome.diverged,
        "images_per_s": _speed(outcome.detector),
    }
    write_atomic(run.cost, json.dumps(cost, indent=1).encode())
    return EXIT_OK


def _speed(detector: Any) -> float:
    """Returns how many decoded pictures a second the network judges, the median of a few batches."""
    size = detector.metadata.preprocessing.image_size_px
    images = np.zeros((_BATCH_SIZE, size, size, 3), np.uint8)
    seconds = []
    for _ in range(1 + _TIMED_BATCHES):  # the first one compiles
        started = time.perf_counter()
        detector.p_real(images)
        seconds.append(time.perf_counter() - started)
    return round(_BATCH_SIZE / float(np.median(seconds[1:])), 1)


def _last_words(log: Path, code: int) -> str:
    try:
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    except OSError:
        lines = []
    if code < 0:
        return f"killed by signal {-code} (memory?), the log is {log}"
    return one_line(lines[-1]) if lines else f"exit code {code}, and nothing in {log}"


def results(run: Run) -> dict[str, Any]:
    """Returns the run's metrics.json and its cost.

    Raises:
        FakeRealError: its files are damaged.
    """
    try:
        tree = json.loads((run.records / "metrics.json").read_text(encoding="utf-8"))
        return {**tree, "cost": json.loads(run.cost.read_text(encoding="utf-8"))}
    except (OSError, ValueError) as error:
        raise FakeRealError(
            f"{run.records}: expected the results of a training, found {one_line(error)}: remove {run.cost} and repeat"
        ) from error


# ---- Several runs on the same test pictures side by side: which is best, and whether that is more than chance.

COLUMNS = ("run", "network", "F1", "95 % interval", "accuracy", "ROC area", "p against the best", "epochs", "minutes",
           "parameters", "images/s")  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One run in the table."""

    name: str
    tree: dict[str, Any]  # metrics.json and `cost`
    p: float | None  # of McNemar's test against the best; None for the best itself, or where pictures differ

    @property
    def diverged(self) -> bool:
        """Whether the loss became no number, so that the best epoch before counts."""
        return self.tree["cost"].get("diverged", False)

    @property
    def pictures(self) -> str:
        """Names what it learnt from and was judged on, labels included."""
        return self.tree["training"]["data"].get("fingerprint", "")

    @property
    def cells(self) -> tuple[str, ...]:
        """The row for people, in the order of `COLUMNS`."""
        metrics, cost = self.tree["metrics"], self.tree["cost"]
        return (
            self.name,
            self.tree["model"]["network"],
            percent(metrics["f1_macro"]),
            percents(metrics["intervals"]["f1_macro"]),
            percent(metrics["accuracy"]),
            percent(metrics["roc_auc"]),
            NOT_KNOWN if self.p is None else _p_words(self.p),
            number(cost["epochs"]),
            f"{cost['minutes']:.1f}",
            number(self.tree["model"]["parameters"]),
            number(cost["images_per_s"], 0),
        )


def _p_words(p: float) -> str:
    """Returns a p value for people: how far below one in ten thousand it lies says nothing more."""
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def comparison_rows(runs: Sequence[Run]) -> list[Row]:
    """Returns the table of the runs that are trained, the best mean F1 first."""
    trees = {run.name: results(run) for run in runs}
    order = sorted(trees, key=lambda name: -trees[name]["metrics"]["f1_macro"])
    right = {run.name: _right(run.records / "predictions.csv") for run in runs}
    return [Row(name, trees[name], mcnemar(right[order[0]], right[name]) if name != order[0] else None)
            for name in order]  # fmt: skip


def _right(path: Path) -> dict[str, bool]:
    """Returns, for each judged picture, whether its label was right.

    Raises:
        FakeRealError: the file is damaged.
    """
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            return {row["path"]: row["label"] == row["prediction"] for row in csv.DictReader(file)}
    except (OSError, KeyError, csv.Error) as error:
        raise FakeRealError(
            f"{path}: expected the answers of a training, found a damaged file: remove cost.json beside it and repeat"
        ) from error


def mcnemar(one: dict[str, bool], other: dict[str, bool]) -> float | None:
    """Returns the p value of McNemar's exact test: could two detectors be equally often right about these pictures?

    Only pictures count that one is right about and the other is not (McNemar 1947). None where they judged others.
    """
    if one.keys() != other.keys():
        return None
    only_one = sum(one[key] and not other[key] for key in one)
    only_other = sum(other[key] and not one[key] for key in one)
    return float(binomtest(only_one, only_one + only_other).pvalue) if only_one + only_other else 1.0


def write_comparison(folder: Path, table: Sequence[Row], failed: dict[str, str], command: str) -> None:
    """Writes comparison.md, comparison.csv and comparison.html."""
    write_atomic(folder / "comparison.md", ("\n".join(comparison_markdown(table, failed)) + "\n").encode())
    write_atomic(folder / "comparison.csv", _csv(table, failed))
    html.write_page(
        folder / "comparison.html",
        "comparison.html",
        columns=COLUMNS,
        rows=table,
        same_pictures=not _on_other_pictures(table),
        warnings=comparison_warnings(table, failed),
        command=command,
        data=table[0].tree["data"] if table else None,
        where=table[0].tree["subject"]["data"] if table else "",
        plot=_plots(table),
    )


def comparison_markdown(table: Sequence[Row], failed: dict[str, str]) -> list[str]:
    """Returns the table in Markdown, aligned so that it can be read as it is."""
    lines = [COLUMNS, *(row.cells for row in table)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    text = [_markdown_line(line, widths) for line in lines]
    rule = "|" + "|".join("-" * (width + 1) + ("-" if column < 2 else ":") for column, width in enumerate(widths)) + "|"
    return [text[0], rule, *text[1:], *(f"\n{warning}" for warning in comparison_warnings(table, failed))]


def comparison_warnings(table: Sequence[Row], failed: dict[str, str]) -> list[str]:
    """Returns what went wrong, a line a run."""
    away = "its loss ran away, so the best epoch before counts: try a lower training.learning_rate"
    changed = "so the two can't be compared: remove cost.json from the folder of the older run, and repeat"
    return [
        *(f"{name} failed: {reason}" for name, reason in failed.items()),
        *(f"{row.name}: {away}" for row in table if row.diverged),
        *(f"{row.name}: the pictures or labels changed between its training and that of {table[0].name}, {changed}"
          for row in _on_other_pictures(table)),
    ]  # fmt: skip


def _on_other_pictures(table: Sequence[Row]) -> list[Row]:
    """Returns the runs that learnt from or were judged on other pictures, or other labels, than the best."""
    return [row for row in table if row.pictures != table[0].pictures]


def _markdown_line(cells: Sequence[str], widths: Sequence[int]) -> str:
    aligned = (cell.ljust(width) if column < 2 else cell.rjust(width)
               for column, (cell, width) in enumerate(zip(cells, widths, strict=True)))  # fmt: skip
    return "| " + " | ".join(aligned) + " |"


def _csv(table: Sequence[Row], failed: dict[str, str]) -> bytes:
    """Plain numbers, a row a run; a failed run has its reason and nothing else."""
    found = [_plain(row) for row in table] + [{"run": name, "error": reason} for name, reason in failed.items()]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in found for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return text.getvalue().encode()


def _plain(row: Row) -> dict[str, Any]:
    metrics = row.tree["metrics"]
    cells: dict[str, Any] = {"run": row.name, "network": row.tree["model"]["network"]}
    for key, (low, high) in metrics["intervals"].items():
        cells.update({key: metrics[key], f"{key}_low": low, f"{key}_high": high})
    calibration = row.tree["calibration"]["after"]["expected_calibration_error"]
    return {
        **cells,
        "calibration_error": calibration,
        "mcnemar_p": row.p,
        **row.tree["cost"],
        "parameters": row.tree["model"]["parameters"],
    }


def _plots(table: Sequence[Row]) -> dict[str, Markup]:
    if not table:
        return {}
    roc = {row.name: row.tree["curves"]["roc"] for row in table}
    recall = {row.name: row.tree["curves"]["precision_recall"] for row in table}
    losses = {row.name: list(enumerate(epoch_losses(row.tree["training"]["history"]), start=1)) for row in table}
    return {
        "roc": Markup(plots.svg(partial(plots.roc_curves, curves=roc), "ROC curves")),
        "precision_recall": Markup(plots.svg(partial(plots.precision_recall_curves, curves=recall), "precision")),
        "losses": Markup(plots.svg(partial(plots.loss_curves, curves=losses), "validation losses")),
        "f1": Markup(plots.svg(partial(plots.intervals, names=[row.name for row in table],
                                       tables=[row.tree["metrics"] for row in table], key="f1_macro"), "F1")),
    }  # fmt: skip


# ---- The five classic experiments: a plain network, and four changes of one thing each.

BASE_EXPERIMENT: dict[str, Any] = {
    "image_size": 64,
    "weights": "none",
    "network": {"name": "cnn", "filters": [16, 32, 64], "activation": "relu", "dense": [64], "dropout": 0.2},
    "augmentation": {"rotation_degrees": 15.0, "shift": 0.1, "horizontal_flip": True},
    "training": {
        "epochs": 20,
        "batch_size": 32,
        "optimizer": "adam",
        "learning_rate": 0.001,
        "fine_tune": "all",
        "validation_steps": 23,
    },
}
"""Adam, 20 epochs, ReLU, 23 validation steps."""

CHANGES: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "base": ("what the others are held against", {}),
    "epoch": ("half the epochs", {"training": {"epochs": 10}}),
    "sgd": ("stochastic gradient descent in place of Adam", {"training": {"optimizer": "sgd"}}),
    "sigmoid": ("sigmoid in place of ReLU", {"network": {"activation": "sigmoid"}}),
    "val": ("fewer validation steps", {"training": {"validation_steps": 10}}),
}
"""What each experiment is, in words, and in keys."""


def experiment(name: str) -> dict[str, Any]:
    """Returns the configuration of one of `CHANGES` as a tree for YAML."""
    tree = {key: dict(value) if isinstance(value, dict) else value for key, value in BASE_EXPERIMENT.items()}
    for section, keys in CHANGES[name][1].items():
        tree[section].update(keys)
    return tree


def write_experiments(folder: Path) -> list[Path]:
    """Writes the experiments as YAML files.

    Raises:
        ConfigError: one of them is there already with other content; nothing is written then.
    """
    texts = {folder / f"{name}.yaml": _text(name, folder) for name in CHANGES}
    for path in texts:
        if path.exists():
            raise ConfigError(f"{path}: expected no file there, found one: remove it, or name another folder")
    for path, text in texts.items():
        write_atomic(path, text.encode())
    return list(texts)


def _text(name: str, folder: Path) -> str:
    body = yaml.safe_dump(experiment(name), sort_keys=False, default_flow_style=None)
    return (
        f"# python train_model.py --config {folder.as_posix()}/{name}.yaml --data data/clean\n"
        "# Expect: not measured on your pictures yet; `python -m fakereal compare` shows all five side by side.\n"
        f"# {name}: {CHANGES[name][0]}.\n{body}"
    )
