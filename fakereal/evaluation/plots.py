"""Plots of a report: SVG whose colors come from the page, for light and dark screens, and PNG on white."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fakereal.labels import FAKE, NAMES, REAL
from fakereal.model.metrics import epoch_losses

_COLORS = {
    "#111111": "currentColor",
    "#222222": "var(--line)",
    "#333333": "var(--soft)",
    "#444444": "var(--fake)",
    "#555555": "var(--real)",
    "#666666": "var(--accent)",
}
"""Placeholder colors for matplotlib, and the style sheet variables that replace them in the SVG."""
_INK, _LINE, _SOFT, FAKE_COLOR, REAL_COLOR, _ACCENT = _COLORS

_PALETTE = ("#d9603b", "#3b82c4", "#7c5fd3", "#2f9e6e", "#c49a1a", "#c2509b", "#3fa7b5", "#8c6d46", "#7f8590")
"""Colors of several runs in one plot: distinguishable on light and on dark pages."""

_STYLE = {
    "svg.fonttype": "none",  # text stays text: the file is small and can be searched
    "svg.hashsalt": "fakereal",  # the same plot gives the same bytes
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _SOFT,
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "axes.grid": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "axes.titlesize": 10,
}
_SIZE_IN = (5.0, 3.6)
_LINEAR_UP_TO = 10  # images in a bar of the histogram; a logarithmic scale shows fewer badly


def svg(draw: Callable[[Axes], None], title: str) -> str:
    """Return a plot as an `<svg>` element for a page that extends `page.html`.

    Args:
        draw: puts the plot on the axes.
        title: its accessible name.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(_SIZE_IN, layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return _embeddable(buffer.getvalue(), title)


def _embeddable(text: str, title: str) -> str:
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', rf'\1 role="img" aria-label="{title}"', text, count=1)
    text = text.replace("'DejaVu Sans', ", "")
    for placeholder, color in _COLORS.items():
        text = text.replace(placeholder, color)
    return text


def png(draw: Callable[[Axes], None]) -> bytes:
    """Return the plot that `draw` puts on the axes as a PNG on white, in the colors of the light page."""
    light = dict(zip(_COLORS, ("#1c2128", "#dfe3e8", "#5c6673", "#c2410c", "#1d6fb8", "#6d4bc3"), strict=True))
    with mpl.rc_context({key: light.get(value, value) for key, value in _STYLE.items()}):
        figure = Figure((7.0, 4.2), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        for line in figure.findobj(mpl.lines.Line2D):
            line.set_color(light.get(line.get_color(), line.get_color()))
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()


def roc(axes: Axes, points: Sequence[Sequence[float]], auc: float | None, threshold_point: tuple[float, float]) -> None:
    """Draw the ROC curve of fake and the point of the threshold in use.

    Args:
        axes: to draw on.
        points: as `metrics.roc` returns them.
        auc: the area under the curve, 0..1.
        threshold_point: (false positive rate, true positive rate) at the threshold.
    """
    x, y = np.array(points).T
    axes.plot([0, 1], [0, 1], color=_SOFT, linewidth=1, linestyle=":", label="chance")
    axes.plot(x, y, color=_ACCENT, label="" if auc is None else f"AUC {auc:.4f}")
    axes.plot(*threshold_point, "o", color=FAKE_COLOR, label="threshold in use")
    _unit(axes, "false positive rate (reals called fake)", "recall of fake")
    axes.legend(loc="lower right")


def precision_recall(axes: Axes, points: Sequence[Sequence[float]], area: float | None, share_fake: float) -> None:
    """Draw precision over recall of fake; the dotted line is the precision of calling every image fake."""
    x, y = np.array(points).T
    axes.axhline(share_fake, color=_SOFT, linewidth=1, linestyle=":", label="all called fake")
    axes.step(
        np.r_[0.0, x],
        np.r_[y[0], y],
        where="pre",
        color=_ACCENT,
        label="" if area is None else f"average precision {area:.4f}",
    )
    _unit(axes, "recall of fake", "precision of fake")
    axes.legend(loc="lower left")


def reliability(axes: Axes, calibration: dict[str, Any]) -> None:
    """Draw the share of fakes in each bin of p_fake, before and after temperature scaling: a reliability diagram."""
    axes.plot([0, 1], [0, 1], color=_SOFT, linewidth=1, linestyle=":", label="perfect")
    for name, color, marker in (("before", REAL_COLOR, "s"), ("after", FAKE_COLOR, "o")):
        part = calibration[name]
        x, y, sizes = (
            np.array([each[key] for each in part["bins"]]) for key in ("mean_p_fake", "share_fake", "images")
        )
        error = part["expected_calibration_error"]
        axes.plot(x, y, color=color, linewidth=1.2, alpha=0.7)
        label = f"{name}: error {error:.3f}"
        axes.scatter(x, y, s=16 + 90 * sizes / sizes.max(), color=color, marker=marker, alpha=0.75, label=label)
    _unit(axes, "p_fake", "share of fakes")
    axes.legend(loc="upper left", markerscale=0.6)


def histogram(axes: Axes, labels: np.ndarray, p_fake: np.ndarray, decision: dict[str, Any]) -> None:
    """Draw the distribution of calibrated p_fake for fakes and reals, with threshold and uncertainty band."""
    edges = np.linspace(0, 1, 26)
    tallest = max(np.histogram(p_fake[labels == label], edges)[0].max() for label in (FAKE, REAL))
    for label, color in ((FAKE, FAKE_COLOR), (REAL, REAL_COLOR)):
        axes.hist(p_fake[labels == label], edges, color=color, alpha=0.65, label=NAMES[label])
    low, high = decision["band"]
    if high > low:
        axes.axvspan(low, high, color=_SOFT, alpha=0.18, linewidth=0, label="uncertain")
    axes.axvline(decision["threshold"], color=_INK, linewidth=1.2, linestyle="--", label="threshold")
    axes.set(xlim=(0, 1), xlabel="calibrated p_fake", ylabel="images")
    if tallest > _LINEAR_UP_TO:
        axes.set_yscale("symlog", linthresh=_LINEAR_UP_TO)
        axes.yaxis.set_major_formatter(mpl.ticker.StrMethodFormatter("{x:,.0f}"))
        axes.set_ylim(0, 4 * tallest)  # room for the legend
    else:
        axes.yaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
        axes.set_ylim(0, 1.3 * tallest)
    axes.legend(loc="upper center", ncols=2)


def intervals(axes: Axes, names: Sequence[str], tables: Sequence[dict[str, Any]], key: str = "accuracy") -> None:
    """Draw one metric of several tables with its intervals, one row each; a line marks the first one's value."""
    values = np.array([row[key] for row in tables])
    low, high = np.array([row["intervals"][key] for row in tables]).T
    places = np.arange(len(names))[::-1]
    axes.axvline(values[0], color=_SOFT, linewidth=1, linestyle=":")
    axes.errorbar(values, places, xerr=(values - low, high - values), fmt="o", color=_ACCENT, capsize=3, linewidth=1.4)
    axes.set_yticks(places, names)
    axes.set(xlabel="95 % interval", xlim=(max(0.0, min(0.5, low.min() - 0.03)), 1.0))
    axes.grid(axis="y", visible=False)


def history(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    """Draw training and validation loss over the epochs; dotted lines separate the phases."""
    epochs = np.arange(1, len(rows) + 1)
    axes.plot(epochs, [row["loss"] for row in rows], color=REAL_COLOR, label="training loss")
    axes.plot(epochs, [row["val_loss"] for row in rows], color=_SOFT, linewidth=1, label="validation loss")
    calibrated = epoch_losses(rows)
    axes.plot(epochs, calibrated, color=FAKE_COLOR, label="validation loss, calibrated")
    _phase_lines(axes, rows)
    best = int(np.argmin(calibrated))
    axes.plot(best + 1, calibrated[best], "o", color=FAKE_COLOR, label=f"lowest: epoch {best + 1}")
    axes.set(xlabel="epoch", ylabel="loss")
    axes.set_ylim(0, 1.15 * axes.get_ylim()[1])
    axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    axes.legend(loc="best")


def accuracy(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    """Draw training and validation accuracy over the epochs; dotted lines separate the phases."""
    epochs = np.arange(1, len(rows) + 1)
    axes.plot(epochs, [row["accuracy"] for row in rows], color=REAL_COLOR, label="training")
    axes.plot(epochs, [row["val_accuracy"] for row in rows], color=FAKE_COLOR, label="validation")
    axes.axhline(0.5, color=_SOFT, linewidth=1, linestyle="--", label="guessing")
    _phase_lines(axes, rows)
    low, high = axes.get_ylim()
    axes.set(xlabel="epoch", ylabel="accuracy", ylim=(low - 0.4 * (high - low), high))  # room for the legend
    axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    axes.legend(loc="best")


def _phase_lines(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    for number in range(1, len(rows)):
        if rows[number]["phase"] != rows[number - 1]["phase"]:
            axes.axvline(number + 0.5, color=_SOFT, linewidth=1, linestyle=":")


def roc_curves(axes: Axes, curves: dict[str, Sequence[Sequence[float]]]) -> None:
    """Draw the ROC curves of several runs."""
    _overlaid(axes, curves)
    _unit(axes, "false positive rate (reals called fake)", "recall of fake")
    axes.legend(loc="lower right")


def precision_recall_curves(axes: Axes, curves: dict[str, Sequence[Sequence[float]]]) -> None:
    """Draw precision over recall of fake for several runs."""
    _overlaid(axes, curves)
    _unit(axes, "recall of fake", "precision of fake")
    axes.legend(loc="best")


def loss_curves(axes: Axes, curves: dict[str, Sequence[Sequence[float]]]) -> None:
    """Draw the calibrated validation losses of several runs."""
    _overlaid(axes, curves)
    axes.set(xlabel="epoch", ylabel="validation loss, calibrated")
    axes.set_ylim(0, min(1.5, 1.15 * axes.get_ylim()[1]))  # a diverged run must not flatten the others
    axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    axes.legend(loc="best", ncols=2)


def _overlaid(axes: Axes, curves: dict[str, Sequence[Sequence[float]]]) -> None:
    for number, (name, points) in enumerate(curves.items()):
        x, y = np.array(points).T
        style = "-" if number < len(_PALETTE) else "--"
        marker = "o" if len(points) == 1 else ""  # a line of one point is invisible
        axes.plot(x, y, style, marker=marker, color=_PALETTE[number % len(_PALETTE)], linewidth=1.4, label=name)


def _unit(axes: Axes, x: str, y: str) -> None:
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=x, ylabel=y)
    axes.set_box_aspect(0.75)
