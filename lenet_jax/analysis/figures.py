"""Figures of runs. Each function draws into axes and returns them."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, StrMethodFormatter

from lenet_jax import stats
from lenet_jax.analysis import metrics
from lenet_jax.run import files

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
"""Okabe and Ito's palette for the colour-blind; line styles distinguish arms that share a colour."""

STYLES = ("-", "--", ":", "-.")

MAX_DETAILED_ARMS = 12
"""Figures of more arms leave out single seeds, confusions and reject curves."""

MAX_LINEAR_RATIO = 12
"""Largest ratio of two values on a linear axis; above it, the axis is logarithmic."""

INK = "#262626"
"""Colour of text and axes."""

RC: dict[Any, Any] = {
    "font.size": 10,
    "axes.facecolor": "none",
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.parse_math": False,  # names of arms may hold $
    "svg.hashsalt": "lenet_jax",  # the same figure is the same file
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
}


def styled() -> AbstractContextManager[None]:
    """The style that all figures are drawn and saved in."""
    return matplotlib.rc_context(RC)


def figure(draw: Callable[[Axes], Axes], labels: Collection[str] = ()) -> Figure:
    """A figure of one function that draws into axes, high enough for a column of `labels`."""
    lines = sum(label.count("\n") + 1.5 for label in labels)
    with styled():
        made = Figure(figsize=(8.0, max(4.4, 1.0 + 0.19 * lines)), layout="constrained")
        draw(made.add_subplot())
        made.draw_without_rendering()
        made.set_layout_engine("none")  # laid out once for all formats
    return made


def save(made: Figure, path: Path) -> None:
    """Writes a PNG or an SVG, by the path's suffix; atomically."""
    kind = path.suffix[1:]
    metadata = {"Date": None} if kind == "svg" else None
    with styled():
        files.replace_file(path, lambda partial: made.savefig(partial, format=kind, dpi=130, metadata=metadata))


def style(arm: int) -> dict[str, Any]:
    """Colour and line style of the n-th arm."""
    return {"color": COLORS[arm % len(COLORS)], "linestyle": STYLES[arm // len(COLORS) % len(STYLES)]}


def value_axis(axis: Axis, metric: str) -> str:
    """Formats an axis for a metric, errors in percent, and returns its label."""
    if metrics.is_percent(metric):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))
    return metrics.label(metric)


def mean_and_interval(values: pd.DataFrame, label: str, index: int, axes: Axes) -> None:
    """The mean over seeds against the rows' index, and Student's 95 % interval, clipped to the range of the seeds.

    Args:
      values: as drawn, one column a seed; values that are not finite are left out.
      label: for the legend.
      index: of the colour and line style.
      axes: drawn into.
    """
    rows = [row[np.isfinite(row)] for row in values.to_numpy()]
    # Clipped: with an outlier, Student's interval of an error can go below 0.
    low, high = zip(*(np.clip(stats.t_interval(row), row.min(), row.max()) for row in rows), strict=True)
    axes.plot(values.index, [row.mean() for row in rows], label=label, linewidth=2, zorder=3, **style(index))
    axes.fill_between(values.index, low, high, color=style(index)["color"], alpha=0.2, linewidth=0, zorder=2)


def logarithmic(axes: Axes, axis: str = "y") -> None:
    """Makes an axis logarithmic, with ticks at 1, 2 and 5 times powers of ten, if it has values above 0."""
    values = [getattr(line, f"get_{axis}data")() for line in axes.get_lines()]
    if not any((np.asarray(drawn, float) > 0).any() for drawn in values):
        return
    axes.set(**{f"{axis}scale": "log"})
    drawn_axis = getattr(axes, f"{axis}axis")
    drawn_axis.set_major_formatter(StrMethodFormatter("{x:g}"))  # the default writes TeX
    drawn_axis.set_minor_formatter(NullFormatter())
    low, high = getattr(axes, f"get_{axis}lim")()
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**power for power in powers for step in (1, 2, 5)]
    axes.set(**{f"{axis}ticks": [tick for tick in ticks if low <= tick <= high], f"{axis}lim": (low, high)})


def learning_curves(curves: Mapping[str, pd.DataFrame], metric: str, axes: Axes) -> Axes:
    """Mean and 95 % interval over seeds against the epoch, one colour per arm; of few arms, every seed as a thin line.

    Args:
      curves: arm -> one row an epoch (the index), one column a seed.
      metric: for the labels, as in ``test_error``.
      axes: drawn into; the value axis is logarithmic.
    """
    every_seed = len(curves) <= MAX_DETAILED_ARMS
    for index, (arm, curve) in enumerate(curves.items()):
        # The line of a seed ends where it diverges; the mean continues over the others.
        finite = curve.where(np.isfinite(curve)).dropna(how="all")
        if finite.empty:
            continue
        if every_seed:
            # Rasterized, since vectors of many seeds would be megabytes, and below all else, as a single image.
            faint: dict[str, Any] = {"linewidth": 0.5, "alpha": 0.35, "rasterized": True, "zorder": 1}
            axes.plot(finite.index, finite.to_numpy(), color=style(index)["color"], **faint)
        mean_and_interval(finite, arm, index, axes)
    logarithmic(axes)
    axes.set_ylabel(value_axis(axes.yaxis, metric))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.grid(axis="y", alpha=0.25)
    title = f"{metrics.title(metric)}: {mean_title(curves)}" + ", every seed" * every_seed
    axes.set_title(title.capitalize(), fontsize=10)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), labelspacing=1.0)
    return axes


def mean_title(curves: Mapping[str, pd.DataFrame]) -> str:
    """What `mean_and_interval` shows, for a title; of curves with one column a seed."""
    seeds = max((curve.shape[1] for curve in curves.values()), default=0)
    return f"mean and 95 % interval over {seeds} seeds"


def final_values(
    arms: Mapping[str, tuple[Sequence[float], tuple[float, float] | None]], metric: str, axes: Axes
) -> Axes:
    """Every seed's value at the end, one row per arm, with the mean and its 95 % interval over seeds.

    Args:
      arms: arm -> values by seed, and the interval.
      metric: for the labels.
      axes: drawn into.
    """
    for row, (values, ends) in enumerate(arms.values()):
        color = style(row)["color"]
        # A seed has the same height in every row, so that pairs can be compared.
        heights = row + 0.28 * np.linspace(-1, 1, len(values)) if len(values) > 1 else np.array([row])
        axes.plot(values, heights, "o", color=color, markersize=5, alpha=0.5, markeredgewidth=0)
        if ends:
            axes.plot(ends, [row, row], color=color, linewidth=5, alpha=0.6, solid_capstyle="butt")
        mean = float(np.mean(values))
        axes.plot([mean, mean], [row - 0.33, row + 0.33], color=color, linewidth=2)
        text = metrics.show(mean, metric)
        axes.annotate(
            text, (mean, row - 0.33), (0, 2), textcoords="offset points", ha="center", va="bottom", color=color
        )
    axes.set_yticks(range(len(arms)), list(arms))
    axes.set_ylim(len(arms) - 0.4, -0.7)
    seen = [value for values, _ in arms.values() for value in values]
    if min(seen) > 0 and max(seen) > MAX_LINEAR_RATIO * min(seen):
        logarithmic(axes, "x")
    axes.set_xlabel(value_axis(axes.xaxis, metric))
    axes.grid(axis="x", alpha=0.25)
    title = f"{metrics.title(metric)} at the end: every seed, mean, 95 % interval over seeds"
    axes.set_title(title.capitalize(), fontsize=10)
    return axes


def reject_curves(curves: Mapping[str, pd.DataFrame], axes: Axes) -> Axes:
    """The error on the remaining images against the fraction rejected: mean and 95 % interval over seeds.

    Args:
      curves: arm -> result of `metrics.reject_curve`.
      axes: drawn into.
    """
    for index, (arm, curve) in enumerate(curves.items()):
        mean_and_interval(100 * curve.set_axis(100 * curve.index), arm, index, axes)
    axes.set_xlabel("rejected (% of the test images, smallest margin first)")
    axes.set_ylabel("error on the remaining images (%)")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.set_title(f"Reject curves: {mean_title(curves)}", fontsize=10)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), labelspacing=1.0)
    return axes


def forest(
    rows: Mapping[str, tuple[float, float, float, bool]], title: str, label: str, axes: Axes, percent: bool = False
) -> Axes:
    """Differences and their 95 % intervals, one row each, around the line of no difference.

    Args:
      rows: name -> mean, low, high, and whether it is significant; filled if so.
      title: of the figure.
      label: of the value axis.
      axes: drawn into.
      percent: whether values are fractions, shown in percent.
    """
    axes.axvline(0, color=INK, linewidth=0.8)
    for row, (mean, low, high, significant) in enumerate(rows.values()):
        color = COLORS[0] if significant else "#767676"
        axes.plot([low, high], [row, row], color=color, linewidth=2, solid_capstyle="butt")
        axes.plot(mean, row, "o", color=color, markerfacecolor=color if significant else "white", markersize=7)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    if percent:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))
    axes.set_xlabel(label)
    axes.grid(axis="x", alpha=0.25)
    axes.set_title(title, fontsize=10)
    return axes


def tuning_curves(curves: Mapping[str, tuple[pd.DataFrame, float]], name: str, axes: Axes) -> Axes:
    """Validation error against a tuned hyperparameter: mean and range over the tuning seeds, and the chosen value.

    Args:
      curves: arm -> one row per value of the hyperparameter (the index), one column per tuning seed; and the choice.
      name: of the hyperparameter.
      axes: drawn into.
    """
    for index, (arm, (curve, chosen)) in enumerate(curves.items()):
        color = style(index)["color"]
        axes.plot(curve.index, curve.mean(axis=1), label=arm, linewidth=1.5, marker=".", **style(index))
        axes.fill_between(curve.index, curve.min(axis=1), curve.max(axis=1), color=color, alpha=0.15, linewidth=0)
        if chosen in curve.index:
            axes.plot(chosen, curve.loc[chosen].mean(), "*", color=color, markersize=14, markeredgecolor="white")
    positive = all((curve.index > 0).all() for curve, _ in curves.values())
    axes.set_xscale("log" if positive else "linear")
    tried = sorted({value for curve, _ in curves.values() for value in curve.index})
    axes.set_xticks(tried, [f"{value:.3g}" for value in tried], rotation=0 if len(tried) < 10 else 60)
    axes.xaxis.set_minor_formatter(NullFormatter())
    logarithmic(axes)
    axes.set_xlabel(name.replace("_", " "))
    axes.set_ylabel(value_axis(axes.yaxis, "validation_error"))
    axes.grid(alpha=0.25)
    axes.set_title("Tuning: mean and range over seeds; star: chosen value", fontsize=10)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), labelspacing=1.0)
    return axes


def is_correct(matrix: pd.DataFrame) -> np.ndarray:
    """The cells of a confusion matrix that hold correct classifications."""
    found: np.ndarray = matrix.index.to_numpy()[:, None] == matrix.columns.to_numpy()[None, :]
    return found


def confusions(matrices: Mapping[str, pd.DataFrame]) -> Figure:
    """Confusion matrices, one per arm, mean over seeds, in percent of the class.

    Args:
      matrices: arm -> result of `metrics.confusion`.
    """
    columns = min(2, len(matrices))
    rows = -(-len(matrices) // columns)
    lines = max(arm.count("\n") + 1 for arm in matrices)
    # One colour scale for all, without the correct ones.
    largest = max(1e-9, *(100 * matrix.to_numpy()[~is_correct(matrix)].max() for matrix in matrices.values()))
    with styled():
        made = Figure(figsize=(5.0 * columns, (4.4 + 0.16 * lines) * rows), layout="constrained")
        grid = made.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid[len(matrices) :]:
            axes.set_axis_off()
        for axes, (arm, matrix) in zip(grid, matrices.items(), strict=False):
            percent = 100 * matrix.to_numpy()
            confused = np.where(is_correct(matrix), np.nan, percent)
            axes.imshow(confused, cmap=matplotlib.colormaps["Oranges"].with_extremes(bad="white"), vmin=0, vmax=largest)
            for row, column in np.ndindex(percent.shape):
                value = percent[row, column]
                dark = not np.isnan(confused[row, column]) and value > 0.6 * largest
                text = f"{value:.1f}" if value < 9.95 else f"{value:.0f}"
                axes.text(
                    column,
                    row,
                    text if value else "",
                    ha="center",
                    va="center",
                    fontsize=7,
                    color="white" if dark else "#222222",
                )
            axes.set_xticks(
                range(matrix.shape[1]), [{"-1": "none"}.get(str(label), str(label)) for label in matrix.columns]
            )
            axes.set_yticks(range(matrix.shape[0]), list(matrix.index))
            axes.set_xlabel("predicted")
            axes.set_ylabel("class")
            axes.set_title(arm, fontsize=9)
    return made


def digits(images: Sequence[np.ndarray], captions: Sequence[str], columns: int) -> Figure:
    """Images in rows, black on white, with captions below."""
    rows = -(-len(images) // columns)
    with styled():
        made = Figure(figsize=(0.8 * columns, 0.95 * rows), layout="constrained")
        grid = made.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid:
            axes.set_axis_off()
        for axes, image, caption in zip(grid, images, captions, strict=False):
            axes.imshow(image, cmap="gray_r", vmin=0, vmax=255)
            axes.set_title(caption, y=-0.3, fontsize=8, fontweight="normal", loc="center")
    return made
