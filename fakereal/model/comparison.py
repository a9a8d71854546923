"""Several runs on the same test pictures side by side: which is best, and whether that is more than chance."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup
from scipy.stats import binomtest

from fakereal import html_page
from fakereal.errors import FakeRealError
from fakereal.files import write_whole
from fakereal.html_page import NOT_KNOWN, number, percent, percents
from fakereal.model import plots
from fakereal.model.compare import Run, results
from fakereal.model.validation import losses_of

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


def rows(runs: Sequence[Run]) -> list[Row]:
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


def write(folder: Path, table: Sequence[Row], failed: dict[str, str], command: str) -> None:
    """Writes comparison.md, comparison.csv and comparison.html."""
    write_whole(folder / "comparison.md", ("\n".join(markdown(table, failed)) + "\n").encode())
    write_whole(folder / "comparison.csv", _csv(table, failed))
    html_page.write(
        folder / "comparison.html",
        "comparison.html",
        columns=COLUMNS,
        rows=table,
        same_pictures=not _on_other_pictures(table),
        warnings=warnings(table, failed),
        command=command,
        data=table[0].tree["data"] if table else None,
        where=table[0].tree["subject"]["data"] if table else "",
        plot=_plots(table),
    )


def markdown(table: Sequence[Row], failed: dict[str, str]) -> list[str]:
    """Returns the table in Markdown, aligned so that it can be read as it is."""
    lines = [COLUMNS, *(row.cells for row in table)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    text = [_markdown_line(line, widths) for line in lines]
    rule = "|" + "|".join("-" * (width + 1) + ("-" if column < 2 else ":") for column, width in enumerate(widths)) + "|"
    return [text[0], rule, *text[1:], *(f"\n{warning}" for warning in warnings(table, failed))]


def warnings(table: Sequence[Row], failed: dict[str, str]) -> list[str]:
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
    losses = {row.name: list(enumerate(losses_of(row.tree["training"]["history"]), start=1)) for row in table}
    return {
        "roc": Markup(plots.svg(partial(plots.roc_curves, curves=roc), "ROC curves")),
        "precision_recall": Markup(plots.svg(partial(plots.precision_recall_curves, curves=recall), "precision")),
        "losses": Markup(plots.svg(partial(plots.loss_curves, curves=losses), "validation losses")),
        "f1": Markup(plots.svg(partial(plots.intervals, names=[row.name for row in table],
                                       tables=[row.tree["metrics"] for row in table], key="f1_macro"), "F1")),
    }  # fmt: skip
