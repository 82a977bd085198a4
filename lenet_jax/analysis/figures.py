"""Figures of runs. Functions draw into the axes that they are given, and return them."""

import functools
import io
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib
import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
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

FONT = "DejaVu Sans"  # Matplotlib's own; others are used for characters that it lacks

INK = "#262626"
"""Colour of text and axes."""

RC: dict[Any, Any] = {
    "font.size": 10,
    "axes.facecolor": "none",
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    "text.parse_math": False,  # names of arms may hold $
    "svg.hashsalt": "lenet_jax",  # the same figure is the same file
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "legend.frameon": False,
}


def styled(texts: Iterable[str] = ()) -> AbstractContextManager[None]:
    """The style that all figures are drawn and saved in, whatever the user's matplotlibrc; with glyphs for `texts`."""
    fonts = dict.fromkeys([FONT, *filter(None, map(font_of, "".join(texts)))])
    weight = "bold" if len(fonts) == 1 else "normal"  # which the other fonts may lack
    return matplotlib.style.context(["default", RC | {"font.family": list(fonts), "axes.titleweight": weight}])


@functools.cache
def font_of(character: str) -> str | None:
    """An installed upright font with a glyph for a character, `FONT` if that has one; None if there is none."""
    for entry in sorted(font_manager.fontManager.ttflist, key=lambda entry: (entry.name != FONT, entry.name)):
        # Matplotlib's font of last resort has a box for every character.
        if entry.style == "normal" and not entry.name.startswith("Last Resort"):
            with suppress(OSError, RuntimeError):  # a file that FreeType can't read
                if font_manager.get_font(entry.fname).get_char_index(ord(character)):
                    return str(entry.name)
    return None


def drawable(text: str) -> str:
    """A name as figures show it: characters without a glyph are escaped; legends leave out what begins with "_"."""
    lines = [[c if c.isprintable() and font_of(c) else ascii(c)[1:-1] for c in line] for line in text.split("\n")]
    return " " * text.startswith("_") + "\n".join(map("".join, lines))


def figure(draw: Callable[[Axes], Axes], labels: Collection[str] = ()) -> Figure:
    """A figure of one function that draws into axes, high enough for a column of `labels`."""
    lines = sum(label.count("\n") + 1.5 for label in labels)
    with styled(labels):
        made = Figure(figsize=(8.0, max(4.4, 1.0 + 0.19 * lines)))
        draw(made.add_subplot())
        return laid_out(made)


def laid_out(made: Figure) -> Figure:
    """The figure with its axes arranged, once for all formats: a figure with a layout engine does it at each save."""
    ConstrainedLayoutEngine().execute(made)
    return made


def save(made: Figure, path: Path) -> None:
    """Writes a PNG or an SVG, by the path's suffix; atomically."""
    files.replace_file(path, functools.partial(Path.write_bytes, data=rendered(made, path.suffix[1:])))


def rendered(made: Figure, kind: str) -> bytes:
    """The content of a ``png`` or ``svg`` file; rendered before a file is opened, which a kill then rarely finds."""
    stream = io.BytesIO()
    with styled():
        made.savefig(stream, format=kind, dpi=130, metadata={"Date": None} if kind == "svg" else None)
    return stream.getvalue()


def style(arm: int) -> dict[str, Any]:
    """Colour and line style of the n-th arm."""
    return {"color": COLORS[arm % len(COLORS)], "linestyle": STYLES[arm // len(COLORS) % len(STYLES)]}


def value_axis(axis: Axis, metric: str) -> str:
    """Formats an axis for a metric, errors in percent, and returns its label."""
    if metrics.is_percent(metric):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))
    return metrics.label(metric)


def mean_and_interval(values: pd.DataFrame, label: str, index: int, axes: Axes) -> None:
    """The mean over seeds (columns) against the rows' index, and Student's 95 % interval, clipped to the seeds' range.

    Values that are not finite are left out. The index determines colour and line style.
    """
    rows = [row[np.isfinite(row)] for row in values.to_numpy()]
    # Clipped: with an outlier, Student's interval of an error can go below 0.
    low, high = zip(*(np.clip(stats.t_interval(row), row.min(), row.max()) for row in rows), strict=True)
    axes.plot(values.index, [row.mean() for row in rows], label=drawable(label), linewidth=2, zorder=3, **style(index))
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


def finish(axes: Axes, title: str, xlabel: str, ylabel: str = "", grid: Literal["both", "x", "y"] = "both") -> Axes:
    """Title, axis labels, grid lines, and a legend if any arm has a label for it."""
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.grid(axis=grid, alpha=0.25)
    axes.set_title(title, fontsize=10)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), labelspacing=1.0)
    return axes


def learning_curves(curves: Mapping[str, pd.DataFrame], metric: str, axes: Axes) -> Axes:
    """Mean and 95 % interval over seeds against the epoch, one colour per arm; of few arms, every seed as a thin line.

    A curve has one row an epoch (the index), and one column a seed; the value axis is logarithmic.
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
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    title = f"{metrics.title(metric)}: {mean_title(curves)}" + ", every seed" * every_seed
    return finish(axes, title.capitalize(), "epoch", value_axis(axes.yaxis, metric), grid="y")


def mean_title(curves: Mapping[str, pd.DataFrame]) -> str:
    """What `mean_and_interval` shows, for a title; of curves with one column a seed."""
    seeds = max((curve.shape[1] for curve in curves.values()), default=0)
    return f"mean and 95 % interval over {seeds} seeds"


Interval = tuple[float, float] | None


def final_values(
    arms: Mapping[str, tuple[Sequence[float], Interval, Interval]], metric: str, title: str, axes: Axes
) -> Axes:
    """Every seed's value at the end, one row per arm, with the mean and its intervals.

    An arm is its values by seed, the interval that is claimed, drawn thin, and that over seeds alone, drawn thick.
    """
    for row, (values, ends, of_seeds) in enumerate(arms.values()):
        color = style(row)["color"]
        # A seed has the same height in every row, so that pairs can be compared.
        heights = row + 0.28 * np.linspace(-1, 1, len(values)) if len(values) > 1 else np.array([row])
        axes.plot(values, heights, "o", color=color, markersize=5, alpha=0.5, markeredgewidth=0)
        two_intervals(ends, of_seeds, row, color, axes)
        mean = float(np.mean(values))
        axes.plot([mean, mean], [row - 0.33, row + 0.33], color=color, linewidth=2)
        above: dict[str, Any] = {"xytext": (0, 2), "textcoords": "offset points", "ha": "center", "va": "bottom"}
        axes.annotate(metrics.show(mean, metric), (mean, row - 0.33), color=color, **above)
    axes.set_yticks(range(len(arms)), list(map(drawable, arms)))
    axes.set_ylim(len(arms) - 0.4, -0.7)
    seen = [value for values, *_ in arms.values() for value in values]
    if min(seen) > 0 and max(seen) > MAX_LINEAR_RATIO * min(seen):
        logarithmic(axes, "x")
    return finish(axes, title, value_axis(axes.xaxis, metric), grid="x")


def reject_curves(curves: Mapping[str, pd.DataFrame], axes: Axes) -> Axes:
    """Error on the remaining images against the fraction rejected: mean and 95 % interval over seeds.

    A curve is a result of `metrics.reject_curve`.
    """
    for index, (arm, curve) in enumerate(curves.items()):
        mean_and_interval(100 * curve.set_axis(100 * curve.index), arm, index, axes)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    xlabel = "rejected (% of the test images, smallest margin first)"
    return finish(axes, f"Reject curves: {mean_title(curves)}", xlabel, "error on the remaining images (%)")


def two_intervals(ends: Interval, of_seeds: Interval, row: float, color: str, axes: Axes) -> None:
    """An interval as a line with caps, and within it the one over seeds alone as a bar; a bar if they are the same."""
    if ends and ends != of_seeds:
        axes.plot(ends, [row, row], "|-", color=color, linewidth=1.5, markersize=8, markeredgewidth=1.5)
    if of_seeds:
        axes.plot(of_seeds, [row, row], color=color, linewidth=5, alpha=0.6, solid_capstyle="butt")


class ForestRow(NamedTuple):
    """A row of a forest plot: mean, its interval, that over seeds alone, and whether it is significant."""

    mean: float
    ends: tuple[float, float]
    of_seeds: tuple[float, float]
    significant: bool


def forest(
    rows: Mapping[str, ForestRow],
    title: str,
    label: str,
    center: float,
    margin: tuple[float, float] | None,
    axes: Axes,
    percent: bool = False,
) -> Axes:
    """Contrasts and their 95 % intervals, one row each, around the line of no difference.

    Args:
      rows: by name; dots of significant ones are filled.
      title: of the figure.
      label: of the value axis.
      center: the value of no difference: 0, or 1 of ratios.
      margin: values between which arms are equivalent, which are shaded; None without.
      axes: drawn into.
      percent: shows fractions in percent.
    """
    axes.axvline(center, color=INK, linewidth=0.8)
    if margin:
        axes.axvspan(*margin, color="#999999", alpha=0.2, linewidth=0)
    for row, (mean, ends, of_seeds, significant) in enumerate(rows.values()):
        color = COLORS[0] if significant else "#767676"
        two_intervals(ends, of_seeds, row, color, axes)
        axes.plot(mean, row, "o", color=color, markerfacecolor=color if significant else "white", markersize=7)
    axes.set_yticks(range(len(rows)), list(map(drawable, rows)))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    if percent:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))
    return finish(axes, title, label, grid="x")


def tuning_curves(curves: Mapping[str, tuple[pd.DataFrame, float]], name: str, axes: Axes) -> Axes:
    """Validation error against a tuned hyperparameter: mean and range over the tuning seeds, and the chosen value.

    A curve has one row per value of the hyperparameter (the index), and one column per tuning seed.
    """
    for index, (arm, (curve, chosen)) in enumerate(curves.items()):
        color = style(index)["color"]
        axes.plot(curve.index, curve.mean(axis=1), label=drawable(arm), linewidth=1.5, marker=".", **style(index))
        axes.fill_between(curve.index, curve.min(axis=1), curve.max(axis=1), color=color, alpha=0.15, linewidth=0)
        if chosen in curve.index:
            axes.plot(chosen, curve.loc[chosen].mean(), "*", color=color, markersize=14, markeredgecolor="white")
    tried = sorted({value for curve, _ in curves.values() for value in curve.index})
    axes.set_xscale("log" if tried[0] > 0 else "linear")
    axes.set_xticks(tried, [f"{value:.3g}" for value in tried], rotation=0 if len(tried) < 10 else 60)
    axes.xaxis.set_minor_formatter(NullFormatter())
    logarithmic(axes)
    title = "Tuning: mean and range over seeds; star: chosen value"
    return finish(axes, title, drawable(name.replace("_", " ")), value_axis(axes.yaxis, "validation_error"))


def confusions(matrices: Mapping[str, pd.DataFrame]) -> Figure:
    """Confusion matrices in percent of the class, one per arm: arm -> result of `metrics.confusion`."""
    percents = {arm: 100 * matrix for arm, matrix in matrices.items()}
    errors = {arm: percent.mask(np.equal.outer(percent.index, percent.columns)) for arm, percent in percents.items()}
    largest = max(1e-9, *(np.nanmax(values) for values in errors.values()))  # one colour scale for all arms
    colors = matplotlib.colormaps["Oranges"].with_extremes(bad="white")
    columns = min(2, len(matrices))
    rows = -(-len(matrices) // columns)
    lines = max(arm.count("\n") + 1 for arm in matrices)
    with styled(matrices):
        made = Figure(figsize=(5.0 * columns, (4.4 + 0.16 * lines) * rows))
        grid = made.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid[len(matrices) :]:
            axes.set_axis_off()
        for axes, (arm, percent) in zip(grid, percents.items(), strict=False):
            axes.imshow(errors[arm], cmap=colors, vmin=0, vmax=largest)
            for (row, column), value in np.ndenumerate(percent):
                text = f"{value:.{1 if value < 9.95 else 0}f}" if value else ""
                color = "white" if errors[arm].iloc[row, column] > 0.6 * largest else "#222222"
                place: dict[str, Any] = {"ha": "center", "va": "center", "in_layout": False}  # within the axes
                axes.text(column, row, text, fontsize=7, color=color, **place)
            axes.set_xticks(range(percent.shape[1]), ["none" if label == -1 else str(label) for label in percent])
            axes.set_yticks(range(percent.shape[0]), list(percent.index))
            axes.set(xlabel="predicted", ylabel="class")
            axes.set_title(drawable(arm), fontsize=9)
        return laid_out(made)


def digits(images: Sequence[np.ndarray], captions: Sequence[str], columns: int) -> Figure:
    """Images in rows, black on white, with captions below."""
    rows = -(-len(images) // columns)
    with styled():
        made = Figure(figsize=(0.8 * columns, 0.95 * rows))
        grid = made.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid:
            axes.set_axis_off()
        for axes, image, caption in zip(grid, images, captions, strict=False):
            axes.imshow(image, cmap="gray_r", vmin=0, vmax=255)
            axes.set_title(drawable(caption), y=-0.3, fontsize=8, fontweight="normal", loc="center")
        return laid_out(made)
