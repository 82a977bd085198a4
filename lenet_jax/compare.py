"""Comparing arms: statistics over seeds, as a table and as figures."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lenet_jax import plots, results, stats
from lenet_jax.errors import InputError, check_choice
from lenet_jax.results import Run, format_value


@dataclasses.dataclass(frozen=True)
class ArmStatistics:
    """One arm's row of a comparison. Errors are fractions; losses are in the unit of the loss.

    Attributes:
      run: what tells its run from others; empty where only one is compared.
      arm: its name.
      axes: the values of the sweep's axes that make it.
      n: members.
      mean, std: over members; std with n - 1, None for one member.
      ci95: see `stats.interval`.
      best, worst: the smallest and the largest value.
      diverged: members whose loss was NaN or infinite at some epoch. They are part of all the statistics; a network
        whose outputs are not finite counts as all wrong.
      per_seed: the values, by rising seed.
    """

    run: str
    arm: str
    axes: dict[str, Any]
    n: int
    mean: float | None
    std: float | None
    ci95: tuple[float, float] | None
    best: float
    worst: float
    diverged: int
    per_seed: tuple[float, ...]


def metric_names(run: Run) -> list[str]:
    """The metrics that a run has at its end: ``test_error``, ``train_loss``, ..."""
    pairs = run.metrics[["split", "metric"]].drop_duplicates().itertuples(index=False)
    return [f"{split}_{metric}" for split, metric in pairs]


def metric_rows(run: Run, metric: str) -> pd.DataFrame:
    """The rows of `metrics.parquet` for a metric like ``test_error``.

    Raises:
      InputError: the run has no such metric.
    """
    check_choice("metric", metric, metric_names(run))
    split, _, name = metric.rpartition("_")
    return run.metrics[(run.metrics.split == split) & (run.metrics.metric == name)]


def statistics(runs: Sequence[Run], metric: str = "test_error") -> list[ArmStatistics]:
    """Every arm of every run at its last epoch.

    Args:
      runs: as `results.load` returns them.
      metric: split and metric, as in ``test_error`` or ``train_loss``.

    Raises:
      InputError: a run has no such metric.
    """
    rows = []
    for run, name in zip(runs, run_names(runs), strict=True):
        values = metric_rows(run, metric)
        for arm in run.summary["arms"]:
            of_arm = values[values.arm == arm["name"]]
            per_seed = of_arm[of_arm.epoch == of_arm.epoch.max()].sort_values("seed").value.to_numpy()
            summary = stats.summarize(per_seed)
            rows.append(
                ArmStatistics(
                    run=name,
                    arm=arm["name"],
                    axes=arm["axes"],
                    n=len(per_seed),
                    mean=summary["mean"],
                    std=summary["std"],
                    ci95=tuple(summary["ci95"]) if summary["ci95"] else None,
                    best=float(per_seed.min()),
                    worst=float(per_seed.max()),
                    diverged=arm["diverged"],
                    per_seed=tuple(per_seed.tolist()),
                )
            )
    return rows


def run_names(runs: Sequence[Run]) -> list[str]:
    """What tells several runs apart: their folder's name, or the whole path where names are alike."""
    if len(runs) == 1:
        return [""]
    names = [run.folder.name for run in runs]
    return [name if names.count(name) == 1 else str(run.folder) for name, run in zip(names, runs, strict=True)]


def label(run: str, arm: str) -> str:
    """An arm's name in a figure: the axes below one another, the run above them where there are several."""
    return "\n".join([run, *arm.split(",")]).strip()


def warnings(runs: Sequence[Run]) -> list[str]:
    """What makes runs hard to compare: different data, or other splits of them."""
    used = {tuple(sorted({**run.summary["dataset"], "name": ""}.items())) for run in runs}
    return ["the runs used different data sets or splits of them"] if len(used) > 1 else []


def cells(rows: Sequence[ArmStatistics], metric: str) -> tuple[list[str], list[list[str]]]:
    """The comparison as text: names of the columns, and a list of cells a row. Errors are in percent.

    Axes that all arms have get a column each; otherwise an arm's name does.
    """
    axes = list(rows[0].axes) if len({tuple(row.axes) for row in rows}) == 1 else []
    several = any(row.run for row in rows)
    percent = metric.endswith("_error")

    def text(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.2f}" if percent else f"{value:.4f}"

    header = [*(["run"] if several else []), *(axes or ["arm"])]
    header += ["n", "mean", "std", "95 % CI", "best", "worst", "diverged"]
    lines = []
    for row in rows:
        names = [format_value(row.axes[axis]) for axis in axes] or [row.arm]
        ends = f"{text(row.ci95[0])} - {text(row.ci95[1])}" if row.ci95 else "-"
        numbers = [str(row.n), text(row.mean), text(row.std), ends, text(row.best), text(row.worst), str(row.diverged)]
        lines.append([*([row.run] if several else []), *names, *numbers])
    return header, lines


MAX_REJECTED = 0.1
"""Share of the images that `reject_curve` ends at."""

NUMBERS = 7
"""Columns at the end of `cells` that hold numbers."""


def table(rows: Sequence[ArmStatistics], metric: str) -> Table:
    """The comparison for a terminal."""
    header, lines = cells(rows, metric)
    unit = " %" if metric.endswith("_error") else ""
    shown = Table(title=f"{metric.replace('_', ' ')}{unit}, at the last epoch", box=box.SIMPLE_HEAD, padding=0)
    for name in header[:-NUMBERS]:
        shown.add_column(name, overflow="fold")
    for name in header[-NUMBERS:]:
        shown.add_column(name, justify="right", no_wrap=True)
    for line in lines:
        shown.add_row(*[Text(cell.replace(",", "\n")) for cell in line])
    return shown


def markdown(rows: Sequence[ArmStatistics], metric: str) -> str:
    """The comparison as a Markdown table."""
    return markdown_table(*cells(rows, metric), NUMBERS)


def markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]], numbers: int) -> str:
    """A Markdown table whose last so many columns hold numbers."""
    rule = ["---"] * (len(header) - numbers) + ["--:"] * numbers
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, rule, *lines]) + "\n"


def curves(runs: Sequence[Run], metric: str) -> dict[str, pd.DataFrame]:
    """Learning curves: arm -> one row an epoch, one column a seed."""
    drawn = {}
    for run, name in zip(runs, run_names(runs), strict=True):
        rows = metric_rows(run, metric)
        for arm in run.summary["arms"]:
            of_arm = rows[rows.arm == arm["name"]]
            drawn[label(name, arm["name"])] = of_arm.pivot(index="epoch", columns="seed", values="value")
    return drawn


def reject_curve(predictions: pd.DataFrame) -> pd.DataFrame:
    """The error on what isn't rejected, if those whose best score leads least are (LeCun et al. 1998, section III.C).

    Args:
      predictions: of one arm, see `results.Run`.

    Returns:
      a row for each share rejected (the index, of all images), a column a seed.
    """
    shares = np.linspace(0, MAX_REJECTED, 101)
    columns = {}
    for seed, of_seed in predictions.groupby("seed"):
        surest_first = of_seed.sort_values(["margin", "image"], ascending=False, kind="stable")
        wrong = (surest_first.label != surest_first.predicted).to_numpy()
        kept = len(wrong) - np.floor(shares * len(wrong)).astype(int)
        columns[seed] = np.cumsum(wrong)[kept - 1] / kept
    return pd.DataFrame(columns, index=pd.Index(shares, name="rejected"))


def compare(folders: Sequence[Path], metric: str, out: Path, console: Console) -> list[Path]:
    """Prints the table of some runs, and writes it and the figures.

    Args:
      folders: run folders.
      metric: split and metric, as in ``test_error``.
      out: folder for `comparison.csv`, `comparison.md` and the PNG files; made if need be.
      console: where the table goes.

    Returns:
      the files written.

    Raises:
      InputError: a folder holds no finished run, the metric is unknown, or `out` can't be written.
    """
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError(f"run: a folder is named twice in {', '.join(map(str, folders))}")
    runs = [results.load(folder) for folder in folders]
    rows = statistics(runs, metric)
    try:
        out.mkdir(parents=True, exist_ok=True)
        csv = out / "comparison.csv"
        results.replace_file(csv, lambda partial: frame(rows, metric).to_csv(partial, index=False))
        drawn = curves(runs, metric)
        final = {label(row.run, row.arm): (row.per_seed, row.ci95) for row in rows}
        figures = {
            f"{metric}_learning_curves": plots.figure(lambda axes: plots.learning_curves(drawn, metric, axes), drawn),
            f"{metric}_final_values": plots.figure(lambda axes: plots.final_values(final, metric, axes), final),
        }
        rejects = {
            label(name, str(arm)): reject_curve(of_arm)
            for run, name in zip(runs, run_names(runs), strict=True)
            if run.predictions is not None
            for arm, of_arm in run.predictions.groupby("arm", sort=False)
        }
        if rejects:
            figures["reject_curves"] = plots.figure(lambda axes: plots.reject_curves(rejects, axes), rejects)
        text = out / "comparison.md"
        results.replace_file(text, lambda partial: partial.write_text(markdown(rows, metric)))
        files = [csv, text]
        for name, figure in figures.items():
            files.append(out / f"{name}.png")
            plots.save(figure, files[-1])
    except OSError as error:
        raise InputError(f"out: {str(out)!r} can't be written ({error.strerror or error})") from error
    console.print(table(rows, metric))
    for warning in warnings(runs):
        console.print(f"warning: {warning}")
    return files


def frame(rows: Sequence[ArmStatistics], metric: str) -> pd.DataFrame:
    """The statistics as a table of plain numbers, one row an arm."""
    ends = [row.ci95 or (np.nan, np.nan) for row in rows]
    table = pd.DataFrame([dataclasses.asdict(row) for row in rows])
    table.insert(2, "metric", metric)
    table["ci95_low"], table["ci95_high"] = zip(*ends, strict=True)
    return table.drop(columns=["axes", "ci95", "per_seed"])
