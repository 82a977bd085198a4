"""Figures of networks and their training, for notebooks. Each function draws into axes and returns them."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from jaxtyping import Array, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from lenet_jax.analysis.dynamics import LAYERS, Reading
from lenet_jax.analysis.figures import COLORS, drawable, styled
from lenet_jax.evaluate import Evaluation
from lenet_jax.layers import BITMAP_SHAPE, BITMAPS
from lenet_jax.layers import Table as Connections


def mosaic(tiles: Float[np.ndarray, "tiles rows columns"], across: int) -> Float[np.ndarray, "height width"]:
    """Tiles side by side, `across` in a row, with gaps of one pixel; gaps and missing tiles are NaN."""
    padded = np.pad(tiles, ((0, -len(tiles) % across), (0, 1), (0, 1)), constant_values=np.nan)
    count, rows, columns = padded.shape
    grid = padded.reshape(count // across, across, rows, columns).swapaxes(1, 2)
    return grid.reshape(-1, across * columns)[:-1, :-1]


def picture(pixels: Float[Array | np.ndarray, "rows columns"], axes: Axes, title: str = "") -> Axes:
    """One image; its largest value is black."""
    axes.imshow(np.asarray(pixels), cmap="gray_r", interpolation="nearest")
    axes.set_title(title, fontsize=10)
    axes.set_axis_off()
    return axes


def maps(activations: Array | np.ndarray, axes: Axes, title: str = "", across: int = 0) -> Axes:
    """Activations of a layer: feature maps [maps, rows, columns] side by side, or units [units] as a strip.

    White is the layer's smallest value, black its largest. `across` is the number in a row; 0 for all.
    """
    values = np.asarray(activations, float)
    across = across or len(values)
    if values.ndim == 3:
        return picture(mosaic(values, across), axes, title)
    padded = np.pad(values, (0, -len(values) % across), constant_values=np.nan)
    return picture(padded.reshape(-1, across), axes, title)


def states(activations: Mapping[str, Array], image: Array | np.ndarray, best: int | None = None) -> Figure:
    """Activations from `model.activations` for one image [32, 32]: the image, the maps, the units, the output.

    For `best`, see `scores`.
    """
    with styled():
        figure = Figure(figsize=(8.0, 7.6), layout="constrained")
        grid = figure.add_gridspec(6, 5, height_ratios=(1.7, 0.85, 1.1, 0.6, 0.35, 1.3))
        picture(image, figure.add_subplot(grid[0, 0]), "input, 32 x 32")
        maps(activations["c1"], figure.add_subplot(grid[0, 1:]), "C1: 6 maps of 28 x 28")
        maps(activations["s2"], figure.add_subplot(grid[1, :]), "S2: 6 maps of 14 x 14")
        maps(activations["c3"], figure.add_subplot(grid[2, :]), "C3: 16 maps of 10 x 10", across=16)
        maps(activations["s4"], figure.add_subplot(grid[3, :]), "S4: 16 maps of 5 x 5", across=16)
        maps(activations["c5"], figure.add_subplot(grid[4, :3]), "C5: 120 units", across=40)
        maps(activations["f6"], figure.add_subplot(grid[4, 3:]), "F6: 84 units", across=28)
        scores(activations["output"], figure.add_subplot(grid[5, :]), "output", best)
    return figure


def scores(values: Array | np.ndarray | Sequence[float], axes: Axes, title: str = "", best: int | None = None) -> Axes:
    """A bar for each class, `best` in another colour; None for the largest, which is wrong for penalties."""
    heights = np.asarray(values, float)
    best = int(heights.argmax()) if best is None else best
    colors = [COLORS[1] if index == best else COLORS[0] for index in range(len(heights))]
    axes.bar(range(len(heights)), heights, color=colors)
    axes.axhline(0, color="0.3", linewidth=0.8)
    axes.set_xticks(range(len(heights)))
    axes.set_title(title, fontsize=10)
    return axes


def kernels(kernel: Array | np.ndarray, axes: Axes, title: str = "", across: int = 10) -> Axes:
    """Convolution kernels [connections, 5, 5] on one scale: blue is negative, red positive, white 0."""
    bound = float(np.abs(kernel).max()) or 1.0
    sheet = mosaic(np.asarray(kernel, float), min(across, len(kernel)))
    drawn = axes.imshow(sheet, cmap="RdBu_r", vmin=-bound, vmax=bound, interpolation="nearest")
    axes.figure.colorbar(drawn, ax=axes, shrink=0.7, label="weight")
    axes.set_facecolor("0.85")
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=10)
    return axes


def connections(table: Connections, axes: Axes) -> Axes:
    """C3's connection table as in LeCun et al. 1998, table I: one row per S2 map, one column per C3 map."""
    inputs = 1 + max(map(max, table))
    connected = np.zeros((inputs, len(table)))
    for output, sources in enumerate(table):
        connected[list(sources), output] = 1
    axes.imshow(connected, cmap="gray_r", vmin=0, vmax=1.3)
    axes.set(xlabel="map of C3", ylabel="map of S2", xticks=range(len(table)), yticks=range(inputs))
    axes.set_xticks(np.arange(len(table) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(inputs + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="0.7", linewidth=0.6)
    axes.tick_params(which="both", length=0)
    axes.set_title(f"{int(connected.sum())} connections", fontsize=10)
    return axes


def code(f6: Array | np.ndarray, axes: Axes, title: str = "") -> Axes:
    """F6's 84 activations as the 7 x 12 image that RBF outputs compare with a digit's bitmap: black is +1, white -1."""
    pixels = np.asarray(f6, float).reshape(BITMAP_SHAPE)
    axes.imshow(pixels, cmap="gray_r", vmin=-1, vmax=1, interpolation="nearest")
    axes.set(xticks=[], yticks=[])  # framed, since bitmaps are white at their edges
    axes.spines[:].set_visible(True)
    axes.set_title(title, fontsize=10)
    return axes


def powers(axes: Axes, axis: str) -> Axes:
    """Makes the ``x`` or ``y`` axis logarithmic, with labels such as 1e-3 (`figures.RC` disables TeX)."""
    axes.set(**{f"{axis}scale": "log"})
    of_axis = getattr(axes, f"{axis}axis")
    of_axis.set_major_locator(LogLocator(numticks=7))
    of_axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")))
    of_axis.set_minor_locator(NullLocator())
    return axes


def layer_curves(table: pd.DataFrame, column: str, axes: Axes) -> Axes:
    """A column of `layer_table` against the epoch: mean over seeds, one line per layer, C1 dark, the output light."""
    wide = table.pivot_table(index="epoch", columns="layer", values=column, sort=False)
    shades = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.92, len(LAYERS)))
    for name in wide.columns:
        index = LAYERS.index(name)
        style: dict[str, Any] = {"color": shades[index], "marker": "osD^vP*"[index], "markersize": 4}
        every = max(len(wide) // 5, 1)
        label = name.upper() if len(name) == 2 else name
        axes.plot(wide.index, wide[name], label=label, linewidth=1.3, markevery=every, **style)
    axes.grid(axis="y", alpha=0.25)
    return axes


def layer_figure(tables: Mapping[str, pd.DataFrame], columns: Mapping[str, str], logarithmic: bool = False) -> Figure:
    """Columns of `layer_table` over training: one column per arm, one row per quantity, one line per layer.

    `tables` maps arms to tables, `columns` the tables' columns to labels of axes.
    """
    with styled(tables):
        made = Figure(figsize=(8.4, 0.4 + 2.4 * len(columns)), layout="constrained")
        grid = made.subplots(len(columns), len(tables), squeeze=False, sharex=True, sharey="row")
        for row, (column, label) in zip(grid, columns.items(), strict=True):
            for axes, table in zip(row, tables.values(), strict=True):
                layer_curves(table, column, axes)
                if logarithmic:
                    powers(axes, "y")
            row[0].set_ylabel(label)
            row[0].margins(y=0.08)
        for top, bottom, arm in zip(grid[0], grid[-1], tables, strict=True):
            top.set_title(drawable(arm).replace(", ", ",\n"), fontsize=10)
            bottom.set_xlabel("epoch")
        grid[0, -1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return made


def path_curves(shares: np.ndarray, paths: Mapping[str, Evaluation], metric: str, axes: Axes) -> Axes:
    """A field of `Evaluation` along paths between networks, errors in percent; dashed: a line between the ends.

    `paths` maps labels to the evaluations at these shares of the second network.
    """
    factor, label = (100, "error (%)") if metric == "error" else (1, metric)
    for index, (name, found) in enumerate(paths.items()):
        values = factor * np.asarray(getattr(found, metric))
        color = COLORS[index % len(COLORS)]
        axes.plot(shares, values, color=color, marker="os^D"[index % 4], markersize=3.5, label=drawable(name))
        axes.plot(shares[[0, -1]], values[[0, -1]], color=color, linewidth=0.8, linestyle="--")
    axes.set(xlabel="share of the second network", ylabel=label)
    axes.grid(axis="y", alpha=0.25)
    return axes


def rate_histogram(rates: Float[np.ndarray, " numbers"], edges: Sequence[float] | np.ndarray, axes: Axes) -> Axes:
    """Histogram of a layer's effective learning rates, in percent of its parameters, on a logarithmic axis."""
    weights = np.full(len(rates), 100 / len(rates))
    axes.hist(np.clip(rates, edges[0], edges[-1]), list(edges), weights=weights, color=COLORS[0])
    return powers(axes, "x")


def codes(reading: Reading, axes: Sequence[Axes] | np.ndarray) -> Sequence[Axes] | np.ndarray:
    """Draws F6's code, the nearest bitmap and the runner-up's, with their penalties, into three axes."""
    code(reading.code, axes[0], "F6")
    for digit, one in zip(map(int, reading.order[:2]), axes[1:], strict=True):
        code(BITMAPS[digit], one, f"bitmap {digit}\npenalty {reading.penalties[digit]:.1f}")
    return axes
