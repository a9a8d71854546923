"""The table of a comparison: which run is best on the same test images, and whether that is more than chance."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup
from scipy.stats import binomtest

from fakereal import html
from fakereal.config import Config, as_dict
from fakereal.errors import FakeRealError
from fakereal.evaluation import plots
from fakereal.files import write_atomic
from fakereal.html import NOT_KNOWN, number, percent, percents
from fakereal.model.metrics import epoch_losses
from fakereal.runtime import one_line
from fakereal.training.compare import Run

COLUMNS = ("run", "differs in", "network", "F1", "95 % interval", "accuracy", "ROC AUC", "p against the best", "epochs",
           "minutes", "parameters", "images/s")  # fmt: skip
_TEXT_COLUMNS = 3  # the first ones: aligned to the left in Markdown


_CHANCE_P = 0.05


@dataclass(frozen=True)
class Row:
    """One row of the table: one run."""

    name: str
    tree: dict[str, Any]  # metrics.json and `cost`
    p: float | None  # of McNemar's test against the best; None for the best itself, or where the images differ
    differs: str = ""  # keys and values of the configuration that differ from those of the first run

    @property
    def diverged(self) -> bool:
        """True where the loss was no longer finite; the results are those of the best epoch before."""
        return self.tree["cost"].get("diverged", False)

    @property
    def is_timed(self) -> bool:
        """True where the layers that were fine-tuned were chosen by the clock (`fine_tune: auto`)."""
        return bool(self.tree["cost"].get("fine_tuned_by_time"))

    @property
    def data_fingerprint(self) -> str:
        """Hash of the images, their labels and their splits."""
        return self.tree["training"]["data"].get("fingerprint", "")

    @property
    def cells(self) -> tuple[str, ...]:
        """The cells as text, in the order of `COLUMNS`."""
        metrics, cost = self.tree["metrics"], self.tree["cost"]
        return (
            self.name,
            self.differs or NOT_KNOWN,
            self.tree["model"]["network"],
            percent(metrics["f1_macro"]),
            percents(metrics["intervals"]["f1_macro"]),
            percent(metrics["accuracy"]),
            percent(metrics["roc_auc"]),
            NOT_KNOWN if self.p is None else _p_text(self.p),
            number(cost["epochs"]),
            f"{cost['minutes']:.1f}",
            number(self.tree["model"]["parameters"]),
            number(cost["images_per_s"], 0),
        )


def _p_text(p: float) -> str:
    """Return a p value as text, with the verdict in words; how far below 0.0001 it is makes no difference."""
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}{': no real difference' if p > _CHANCE_P else ''}"


def comparison_rows(runs: Sequence[Run]) -> list[Row]:
    """Return one row for each trained run, the best mean F1 first."""
    trees = {run.name: _results(run) for run in runs}
    order = sorted(trees, key=lambda name: -trees[name]["metrics"]["f1_macro"])
    correct = {run.name: _correct(run.records / "predictions.csv") for run in runs}
    differs = {run.name: _difference(runs[0].config, run.config) for run in runs}
    best = correct[order[0]]
    return [Row(name, trees[name], mcnemar(best, correct[name]) if name != order[0] else None, differs[name])
            for name in order]  # fmt: skip


def _difference(first: Config, other: Config) -> str:
    """Return the keys that another configuration sets differently, with its values; empty where there are none."""
    before, now = (dict(_flat(as_dict(config))) for config in (first, other))
    return ", ".join(f"{key}={value}" for key, value in now.items() if before.get(key) != value)


def _flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys of a configuration and their values."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _results(run: Run) -> dict[str, Any]:
    """Return the run's metrics.json and its cost.

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


def _correct(path: Path) -> dict[str, bool]:
    """Return for each test image whether it was predicted correctly.

    Raises:
        FakeRealError: the file is damaged.
    """
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            return {row["path"]: row["label"] == row["prediction"] for row in csv.DictReader(file)}
    except (OSError, KeyError, csv.Error) as error:
        raise FakeRealError(
            f"{path}: expected the predictions of a training, found a damaged file: remove cost.json beside"
            " it and repeat"
        ) from error


def mcnemar(one: dict[str, bool], other: dict[str, bool]) -> float | None:
    """Return the p value of McNemar's exact test (McNemar 1947) of the hypothesis that two detectors are equally good.

    Args:
        one: image -> whether the first detector predicted it correctly.
        other: the same of the second.

    Returns:
        0..1, from the images on which exactly one is correct; None where the images are not the same.
    """
    if one.keys() != other.keys():
        return None
    only_one = sum(one[key] and not other[key] for key in one)
    only_other = sum(other[key] and not one[key] for key in one)
    return float(binomtest(only_one, only_one + only_other).pvalue) if only_one + only_other else 1.0


def files_in(folder: Path) -> list[Path]:
    """Return what `write_comparison` writes into a folder."""
    return [folder / f"comparison.{suffix}" for suffix in ("md", "csv", "html")]


def write_comparison(folder: Path, table: Sequence[Row], failed: dict[str, str], command: str) -> None:
    """Write comparison.md, comparison.csv and comparison.html."""
    write_atomic(folder / "comparison.md", ("\n".join(comparison_markdown(table, failed)) + "\n").encode())
    write_atomic(folder / "comparison.csv", _csv(table, failed))
    html.write_page(
        folder / "comparison.html",
        "comparison.html",
        columns=COLUMNS,
        rows=table,
        same_data=not _on_other_data(table),
        warnings=comparison_warnings(table, failed),
        command=command,
        data=table[0].tree["data"] if table else None,
        where=table[0].tree["subject"]["data"] if table else "",
        plot=_plots(table),
    )


def comparison_markdown(table: Sequence[Row], failed: dict[str, str]) -> list[str]:
    """Return the table in Markdown, aligned so that it can be read as it is."""
    lines = [COLUMNS, *(row.cells for row in table)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    text = [_markdown_line(line, widths) for line in lines]
    ends = ["-" if column < _TEXT_COLUMNS else ":" for column in range(len(widths))]
    rule = "|" + "|".join("-" * (width + 1) + end for width, end in zip(widths, ends, strict=True)) + "|"
    return [text[0], rule, *text[1:], *(f"\n{warning}" for warning in comparison_warnings(table, failed))]


def comparison_warnings(table: Sequence[Row], failed: dict[str, str]) -> list[str]:
    """Return what went wrong, one line per run, and what makes differences doubtful."""
    timed = [f"{row.name} {row.tree['cost']['fine_tuned_by_time']}" for row in table if row.is_timed]
    by_time = (
        "another machine or load may choose otherwise, so differences may come from that: training.fine_tune"
        " all, last20 or none in each configuration compares them alone"
    )
    away = "its loss diverged, so the best epoch before counts: try a lower training.learning_rate"
    changed = "so the two can't be compared: remove cost.json from the folder of the older run, and repeat"
    return [
        *(f"{name} failed: {reason}" for name, reason in failed.items()),
        *(f"{row.name}: {away}" for row in table if row.diverged),
        *([f"fine-tuning chosen by time: {'; '.join(timed)}; {by_time}"] if timed else []),
        *(f"{row.name}: the images or labels changed between its training and that of {table[0].name}, {changed}"
          for row in _on_other_data(table)),
    ]  # fmt: skip


def _on_other_data(table: Sequence[Row]) -> list[Row]:
    """Return the runs that were trained or tested on other images, or other labels, than the best."""
    return [row for row in table if row.data_fingerprint != table[0].data_fingerprint]


def _markdown_line(cells: Sequence[str], widths: Sequence[int]) -> str:
    aligned = (cell.ljust(width) if column < _TEXT_COLUMNS else cell.rjust(width)
               for column, (cell, width) in enumerate(zip(cells, widths, strict=True)))  # fmt: skip
    return "| " + " | ".join(aligned) + " |"


def _csv(table: Sequence[Row], failed: dict[str, str]) -> bytes:
    """Return plain numbers, one row per run; a failed run has its reason and nothing else."""
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
