"""A comparison in words and tables: for a terminal, as Markdown, and as plain numbers."""

from collections.abc import Sequence
from pathlib import PurePath

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lenet_jax import stats
from lenet_jax.analysis import metrics
from lenet_jax.analysis.compare import ArmStatistics, Comparison, TestedContrast
from lenet_jax.run.folder import ONLY_ARM, Run, format_value


def summary(comparison: Comparison) -> str:
    """What was found, in sentences."""
    metric, arms = comparison.metric, [arm for arm in comparison.arms if arm.mean is not None]
    if not arms:
        return f"No arm has a finite mean {metrics.title(metric)}."
    unit = metrics.unit(metric)
    lower = metrics.lower_is_better(metric)
    best = (min if lower else max)(arms, key=lambda arm: arm.mean or 0.0)
    data = data_title(comparison.runs[0])

    def show(value: float | None, sign: str = "") -> str:
        return metrics.show(value, metric, sign)

    ends = f" (95 % interval {show(best.ci95[0])} to {show(best.ci95[1])}, {best.n} seeds)" if best.ci95 else ""
    place = f"On {data}, {best.label} has the {'lowest' if lower else 'highest'}"
    several = len(comparison.arms) > 1
    name = metrics.title(metric) if several else f"mean {metrics.title(metric)}"
    sentences = [f"{place} {name}: {show(best.mean)}{unit}{ends}."]
    if not several:
        sentences = [f"On {data}, the {name} is {show(best.mean)}{unit}{ends}."]
    left_out = len(comparison.arms) - len(arms)
    if left_out:
        sentences.append(
            f"{left_out} of {len(comparison.arms)} arms {'has' if left_out == 1 else 'have'} no finite mean."
        )
    differences = [judgement for judgement in comparison.judgements if judgement.kind == "difference"]
    told = [judgement for judgement in differences if judgement.name.startswith(f"{best.label} against ")][:1]
    if not told and len(differences) <= 2:
        told = differences
    if not told and differences:
        shown = sum(judgement.p_holm < stats.ALPHA for judgement in differences)
        sentences.append(
            f"{shown} of {len(differences)} differences are shown (p < {stats.ALPHA:.2g} after Holm's correction)."
        )
    told += [judgement for judgement in comparison.judgements if judgement.kind == "main effect"][:3]
    told += [
        judgement
        for judgement in comparison.judgements
        if judgement.kind == "interaction" and judgement.p_holm < stats.ALPHA
    ][:1]
    return " ".join([*sentences, *(sentence(judgement, comparison) for judgement in told)])


def data_title(run: Run) -> str:
    """What its data are called: of a folder, the last part of its path."""
    kind, _, argument = str(run.summary["dataset"].get("name", "the data")).partition(":")
    return PurePath(argument).name or argument if kind == "idx" else argument or kind


def sentence(judgement: TestedContrast, comparison: Comparison) -> str:
    """A judgement in words."""
    contrast, metric = judgement.contrast, comparison.metric
    mean, low, high = contrast.mean, contrast.low, contrast.high
    if judgement.kind == "interaction":
        verb, sign = "is", "+"
    elif mean == 0:
        verb, sign = "changes it by", ""
    elif mean < 0:
        verb, sign = "lowers it by", ""
        mean, low, high = -mean, -high, -low
    else:
        verb, sign = "raises it by", ""
    unit = metrics.difference_unit(metric)
    size, start, end = (metrics.show(value, metric, sign) for value in (mean, low, high))
    found = f"{judgement.subject} {verb} {size}{unit} (95 % interval {start} to {end}"
    if stats.smallest_p(contrast.n) * len(comparison.judgements) >= stats.ALPHA:
        return f"{found}; {contrast.n} seeds are too few to test it)."
    verdict = "" if judgement.p_holm < stats.ALPHA else f", which {contrast.n} seeds don't show"
    return f"{found}; p {show_p(judgement.p_holm, '= ')}){verdict}."


def show_p(p: float, equals: str = "") -> str:
    """A p-value as text, small ones as a bound."""
    return f"{equals}{p:.2g}" if p >= 0.001 else "< 0.001"


Cells = tuple[list[str], list[list[str]], int]
"""A table as text: names of the columns, a list of cells a row, and how many columns at its end hold numbers."""


def cells(rows: Sequence[ArmStatistics], metric: str) -> Cells:
    """The arms. Errors are in percent. Axes that all arms have get a column each; otherwise an arm's name does.

    Of a run that compares nothing, the only arm needs no name.
    """
    axes = list(rows[0].axes) if len({tuple(row.axes) for row in rows}) == 1 else []
    several = any(row.run for row in rows)
    named = any(row.arm != ONLY_ARM for row in rows)
    tuned = list(dict.fromkeys(name for row in rows for name in row.chosen))
    header = [*(["run"] if several else []), *(axes or ["arm"] * named)]
    numbers = [*tuned, "n", "mean", "std", "median", "95 % CI", "diverged"]
    lines = []
    for row in rows:
        names = [format_value(row.axes[axis]) for axis in axes] or [row.arm] * named
        chosen = [format_value(row.chosen[name]) if name in row.chosen else "-" for name in tuned]
        ends = " - ".join(metrics.show(end, metric) for end in row.ci95) if row.ci95 else "-"
        shown = [metrics.show(value, metric) for value in (row.mean, row.std, row.median)]
        lines.append([*([row.run] if several else []), *names, *chosen, str(row.n), *shown, ends, str(row.diverged)])
    return [*header, *numbers], lines, len(numbers)


def judgement_cells(judgements: Sequence[TestedContrast], metric: str) -> Cells:
    """The differences, in percentage points where the metric is in percent."""
    numbers = ["n", "mean", "95 % CI", "p", "p (Holm)", "effect size", "P(better)", "seeds for 80 %"]
    lines = []
    for judgement in judgements:
        contrast = judgement.contrast
        ends = " to ".join(metrics.show(end, metric, "+") for end in (contrast.low, contrast.high))
        size = "-" if contrast.effect_size is None else f"{contrast.effect_size:+.2f}"
        better = "-" if judgement.improvement is None else f"{judgement.improvement:.2f}"
        seeds = "-" if judgement.seeds is None else f"{judgement.seeds:,}"
        mean = metrics.show(contrast.mean, metric, "+")
        p_values = [show_p(contrast.p), show_p(judgement.p_holm)]
        lines.append([judgement.name, str(contrast.n), mean, ends, *p_values, size, better, seeds])
    return ["difference", *numbers], lines, len(numbers)


def print_comparison(comparison: Comparison, console: Console) -> None:
    """The comparison for a terminal."""
    metric = comparison.metric
    console.print(table(comparison.arms, metric))
    if comparison.judgements:
        header, lines, _ = judgement_cells(comparison.judgements, metric)
        chosen = [0, 2, 3, 5, 8]  # what 80 columns have room for; the files have all
        kept = [[line[place] for place in chosen] for line in [header, *lines]]
        unit = metrics.difference_unit(metric)
        title = f"differences in {metrics.title(metric)}{',' if unit else ''}{unit}, paired by seed"
        console.print(text_table(title, kept[0], kept[1:], len(chosen) - 1))
    console.print(summary(comparison), highlight=False, markup=False)
    for note in comparison.notes:
        console.print(f"- {note}", highlight=False, markup=False)


def table(rows: Sequence[ArmStatistics], metric: str) -> Table:
    """The arms for a terminal."""
    unit = metrics.unit(metric)
    header, lines, numbers = cells(rows, metric)
    if not any(row.diverged for row in rows):  # 80 columns have no room for a column of zeros
        header, lines, numbers = header[:-1], [line[:-1] for line in lines], numbers - 1
    when = ", at the last epoch" if metrics.is_final(metric) else ""
    return text_table(f"{metrics.title(metric)}{unit}{when}", header, lines, numbers)


def text_table(title: str, header: Sequence[str], lines: Sequence[Sequence[str]], numbers: int) -> Table:
    """A table for a terminal whose last so many columns hold numbers."""
    shown = Table(title=Text(title), box=box.SIMPLE_HEAD, padding=0)
    names = len(header) - numbers
    for place, name in enumerate(header):
        if place < names:
            shown.add_column(Text(name), overflow="fold")
        else:
            width = max([len(line[place]) for line in lines], default=0)
            shown.add_column(Text(name.replace("_", " ")), justify="right", min_width=width)
    for line in lines:
        broken = [cell.replace(", ", "\n").replace(",", "\n") for cell in line[:names]]
        shown.add_row(*[Text(cell) for cell in [*broken, *line[names:]]])
    return shown


def markdown(rows: Sequence[ArmStatistics], metric: str) -> str:
    """The arms as a Markdown table."""
    return markdown_table(*cells(rows, metric))


def markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]], numbers: int) -> str:
    """A Markdown table whose last so many columns hold numbers."""
    rule = ["---"] * (len(header) - numbers) + ["--:"] * numbers

    whole = [list(map(escaped, header)), rule, *(list(map(escaped, line)) for line in lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in whole) + "\n"


def escaped(text: str) -> str:
    """Text that Markdown takes for text."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def frame(rows: Sequence[ArmStatistics], metric: str) -> pd.DataFrame:
    """The arms as plain numbers, one row an arm."""
    ends = [row.ci95 or (np.nan, np.nan) for row in rows]
    names = ("run", "arm", "n", "mean", "std", "median", "best", "worst", "diverged")
    found = pd.DataFrame([{name: getattr(row, name) for name in names} | row.chosen for row in rows])
    found.insert(2, "metric", metric)
    found["ci95_low"], found["ci95_high"] = zip(*ends, strict=True)
    return found


def judgement_frame(judgements: Sequence[TestedContrast], metric: str) -> pd.DataFrame:
    """The differences as plain numbers."""
    found = [
        {"kind": judgement.kind, "name": judgement.name, "metric": metric}
        | judgement.contrast._asdict()
        | {"p_holm": judgement.p_holm, "improvement": judgement.improvement, "seeds_for_80_percent": judgement.seeds}
        for judgement in judgements
    ]
    return pd.DataFrame(found)
