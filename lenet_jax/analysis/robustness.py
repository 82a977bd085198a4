"""Error against the severity of corruptions: a table, a figure for each corruption, and examples of the digits."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from lenet_jax.analysis import figures, metrics, report, tables
from lenet_jax.analysis.compare import Comparison
from lenet_jax.analysis.report import label_lines
from lenet_jax.data import corruptions, preprocess
from lenet_jax.data.datasets import Dataset
from lenet_jax.output import escaped, printable
from lenet_jax.run.folder import Run, describe_environment
from lenet_jax.run.names import format_value

Severities = Mapping[float, Comparison]
"""Severity, rising -> the same arms, compared by their test errors on images with that corruption."""

METRIC = "test_error"

EXAMPLE = 2
"""The class of the digit that shows what severities are; a 0, 1 or 8 would look the same upside down."""


def title(of_severities: Severities) -> str:
    """What the numbers are, and what their intervals cover."""
    covered = tables.COVERED[next(iter(of_severities.values())).over]
    return f"{metrics.label(METRIC).capitalize()}: mean and 95 % interval over {covered}"


def cells(of_severities: Severities) -> tables.Cells:
    """Errors in percent: one row for each arm, one column for each severity, with the 95 % interval."""
    lines = []
    for rows in zip(*(one.arms for one in of_severities.values()), strict=True):
        shown = [metrics.show(row.mean, METRIC) for row in rows]
        ends = [tables.ends(row.interval, METRIC) for row in rows]
        lines.append([rows[0].label, *(f"{mean} ({end})" for mean, end in zip(shown, ends, strict=True))])
    return ["arm", *map(format_value, of_severities)], lines, len(of_severities)


def curves(of_severities: Severities, name: str, axes: Axes) -> Axes:
    """Each arm's mean test error and its 95 % interval against the severity of a corruption."""
    for index, rows in enumerate(zip(*(one.arms for one in of_severities.values()), strict=True)):
        means = np.array([np.nan if row.mean is None else row.mean for row in rows])
        low, high = np.array([row.interval or (mean, mean) for row, mean in zip(rows, means, strict=True)]).T
        severities, drawn = list(of_severities), figures.style(index)
        label = figures.drawable(label_lines(rows[0].label))
        axes.plot(severities, means, marker="o", markersize=4, label=label, **drawn)
        axes.fill_between(severities, low, high, color=drawn["color"], alpha=0.2, linewidth=0)
    axes.set_ylim(bottom=0)
    xlabel = f"{name}: {corruptions.CORRUPTIONS[name].severity}"
    return figures.finish(axes, title(of_severities), xlabel, figures.value_axis(axes.yaxis, METRIC))


def write(found: Mapping[str, Severities], run: Run, dataset: Dataset, out: Path, command: str = "") -> list[Path]:
    """Writes ``robustness.md``, its tables and figures, and how they were made; returns the files.

    Raises:
      InputError: the folder `out` can't be written.
    """
    columns = 1 + max(map(len, found.values()))
    digit = preprocess.pad(dataset.test_images[[np.argmax(dataset.test_labels == EXAMPLE)]], "background")
    examples, captions = [], []
    for name, of_severities in found.items():
        blanks = [0 * digit] * (columns - 1 - len(of_severities))
        examples += [0 * digit, *(corruptions.corrupt(digit, name, severity) for severity in of_severities), *blanks]
        captions += [name, *map(format_value, of_severities), *[""] * len(blanks)]
    drawn = {}
    page = [f"# Robustness on {escaped(dataset.name)}", f"    {printable(command)}"]
    page += [f"{title(next(iter(found.values())))}. `robustness.csv` has intervals over seeds alone, too."]
    page += ["`differences.csv` has the differences between arms at every severity."]
    page += ["![One digit at every severity](examples.png)"]
    arms: list[pd.DataFrame] = []
    differences: list[pd.DataFrame] = []
    for name, of_severities in found.items():
        labels = [label_lines(row.label) for row in next(iter(of_severities.values())).arms]
        drawn[name] = figures.figure(functools.partial(curves, of_severities, name), labels)
        page += [f"## {name.capitalize()}", f"Severity: {corruptions.CORRUPTIONS[name].severity}."]
        page += [f"![Test error against {name}]({name}.svg)", tables.markdown_table(*cells(of_severities)).rstrip()]
        for severity, one in of_severities.items():
            for frames, frame in ((arms, tables.frame(one.arms, METRIC)), (differences, tables.judgement_frame(one))):
                frames.append(frame.assign(corruption=name, severity=severity))
    contents = {f"{name}.svg": figures.rendered(figure, "svg") for name, figure in drawn.items()}
    sheet = figures.digits([*np.concatenate(examples)], captions, columns)
    contents["examples.png"] = figures.rendered(sheet, "png")  # as SVG it would be five times as large
    for file, frames in {"robustness.csv": arms, "differences.csv": differences}.items():
        contents[file] = pd.concat(frames).to_csv(index=False).encode(errors="backslashreplace")
    about = describe_environment(command) | {"dataset": dataset.name, "fingerprint": dataset.fingerprint}
    about |= {"config": run.config, "provenance": run.provenance}
    contents["robustness.json"] = (json.dumps(about, indent=2) + "\n").encode()
    contents["robustness.md"] = ("\n\n".join(page) + "\n").encode(errors="backslashreplace")
    report.make_folder(out)
    return report.write_files(out, contents)
