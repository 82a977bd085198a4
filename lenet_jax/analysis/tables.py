"""A comparison as sentences and tables: for a terminal, as Markdown, and as data frames."""

import itertools
import re
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
from lenet_jax.output import escaped, printable
from lenet_jax.run.folder import ONLY_ARM, Run, format_value

Cells = tuple[list[str], list[list[str]], int]
"""A table as text: column names, rows of cells, and the number of columns at its end that hold numbers."""

MAX_DIFFERENCES, MAX_EFFECTS = 2, 3
"""Differences without the best arm, and main effects, that a summary has a sentence for."""


def summary(comparison: Comparison) -> str:
    """The main results, in sentences."""
    metric, title, total = comparison.metric, metrics.title(comparison.metric), len(comparison.arms)
    arms = [arm for arm in comparison.arms if arm.mean is not None]
    if not arms:
        return f"No arm has a finite mean {title}."
    rank, extreme = ("lowest", min) if metrics.lower_is_better(metric) else ("highest", max)
    best = extreme(arms, key=lambda arm: arm.mean or 0.0)
    value = f"{metrics.show(best.mean, metric)}{metrics.unit(metric)}"
    if best.ci95:
        value += f" ({interval(best.n, *(metrics.show(end, metric) for end in best.ci95))})"
    subject = f"{best.label} has the {rank} {title}:" if total > 1 else f"the mean {title} is"
    sentences = [f"On {data_title(comparison.runs[0])}, {subject} {value}."]
    if unknown := total - len(arms):
        sentences.append(f"{unknown} of {total} arms {'has' if unknown == 1 else 'have'} no finite mean.")
    differences = comparison.of_kind("difference")
    # The difference between the best arm and the baseline, if there is one; all differences if they are few.
    shown = [found for found in differences if found.name.startswith(f"{best.label} against ")][:1]
    if not shown and len(differences) <= MAX_DIFFERENCES:
        shown = differences
    if differences and not shown:
        count = sum(found.significant for found in differences)
        level = f"p < {stats.ALPHA:.2g} after Holm's correction"
        sentences.append(f"{count} of {len(differences)} differences are significant ({level}).")
    interactions = [found for found in comparison.of_kind("interaction") if found.significant]
    shown = [*shown, *comparison.of_kind("main effect")[:MAX_EFFECTS], *interactions[:1]]
    return " ".join([*sentences, *(sentence(found, comparison) for found in shown)])


def interval(seeds: int, low: str, high: str) -> str:
    """A 95 % interval as text."""
    return f"95 % interval over {seeds} seeds: {low} to {high}"


def data_title(run: Run) -> str:
    """Short name of a run's data set: the last part of the path of a folder."""
    kind, _, argument = str(run.summary["dataset"].get("name", "the data")).partition(":")
    return PurePath(argument).name or argument if kind == "idx" else argument or kind


def sentence(tested: TestedContrast, comparison: Comparison) -> str:
    """A tested contrast as a sentence."""
    contrast, metric = tested.contrast, comparison.metric
    mean, low, high = contrast.mean, contrast.low, contrast.high
    verb, sign = {-1: "lowers it by", 0: "changes it by", 1: "raises it by"}[int(np.sign(mean))], ""
    if tested.kind == "interaction":
        verb, sign = "is", "+"
    elif mean < 0:
        mean, low, high = -mean, -high, -low
    size, start, end = (metrics.show(value, metric, sign) for value in (mean, low, high))
    found = f"{tested.subject} {verb} {size}{metrics.difference_unit(metric)} ({interval(contrast.n, start, end)}"
    if stats.smallest_p(contrast.n) * len(comparison.judgements) >= stats.ALPHA:
        return f"{found}; {contrast.n} seeds are too few for a test)."
    verdict = "" if tested.significant else f", not significant with {contrast.n} seeds"
    return f"{found}; p {show_p(tested.p_holm, '= ')}){verdict}."


def show_p(p: float, equals: str = "") -> str:
    """A p-value as text; small ones as a bound."""
    return f"{equals}{p:.2g}" if p >= 0.001 else "< 0.001"


def arms_title(metric: str) -> str:
    """The caption of a table of arms."""
    label = metrics.label(metric).capitalize()
    if metric in metrics.OF_ARM:
        return label
    when = "" if metric.startswith(metrics.EPOCHS_TO) else " at the last epoch"
    return f"{label}{when}; 95 % CI over seeds (bootstrap)"


def differences_title(metric: str) -> str:
    """The caption of a table of differences."""
    return f"Paired differences in {metrics.label(metric, metrics.difference_unit)}; 95 % CI over seeds"


def cells(rows: Sequence[ArmStatistics], metric: str) -> Cells:
    """The arms. Errors are in percent. Axes that all arms have get a column each; otherwise an arm's name does."""
    axes = list(rows[0].axes) if len({tuple(row.axes) for row in rows}) == 1 else []
    several = any(row.run for row in rows)
    named = any(row.arm != ONLY_ARM for row in rows)  # the only arm of a run without a sweep needs no name
    tuned = list(dict.fromkeys(name for row in rows for name in row.chosen))
    header = ["run"] * several + (axes or ["arm"] * named)
    numbers = [*tuned, "n", "mean", "std", "median", "95 % CI", "diverged"]
    lines = []
    for row in rows:
        names = [row.run] * several + ([format_value(row.axes[axis]) for axis in axes] or [row.arm] * named)
        chosen = [format_value(row.chosen[name]) if name in row.chosen else "-" for name in tuned]
        ends = " - ".join(metrics.show(end, metric) for end in row.ci95) if row.ci95 else "-"
        shown = [metrics.show(value, metric) for value in (row.mean, row.std, row.median)]
        lines.append([*names, *chosen, str(row.n), *shown, ends, str(row.diverged)])
    return header + numbers, lines, len(numbers)


def judgement_cells(judgements: Sequence[TestedContrast], metric: str) -> Cells:
    """The differences, in percentage points where the metric is in percent."""
    numbers = ["n", "mean", "95 % CI", "p", "p (Holm)", "effect size", "P(better)", "seeds for 80 %"]
    lines = []
    for tested in judgements:
        contrast, better = tested.contrast, tested.probability_of_improvement
        mean, low, high = (metrics.show(value, metric, "+") for value in (contrast.mean, contrast.low, contrast.high))
        p_values = [show_p(contrast.p), show_p(tested.p_holm)]
        size = "-" if contrast.effect_size is None else f"{contrast.effect_size:+.2f}"
        probability = "-" if better is None else f"{better:.2f}"
        seeds = "-" if tested.seeds is None else f"{tested.seeds:,}"
        lines.append([tested.name, str(contrast.n), mean, f"{low} to {high}", *p_values, size, probability, seeds])
    return ["difference", *numbers], lines, len(numbers)


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Prints the comparison to a terminal."""
    metric = comparison.metric
    console.print(table(comparison.arms, metric, console), crop=False)
    if comparison.judgements:
        header, lines, _ = judgement_cells(comparison.judgements, metric)
        columns = [header.index(name) for name in ("difference", "mean", "95 % CI", "p (Holm)", "seeds for 80 %")]
        # 80 columns have no room for the others; the files hold all.
        header, *lines = ([line[column] for column in columns] for line in [header, *lines])
        console.print(text_table(differences_title(metric), (header, lines, len(columns) - 1), console), crop=False)
    for text in (summary(comparison), *(f"- {note}" for note in comparison.notes)):
        console.print(Text(printable(text)))


def table(rows: Sequence[ArmStatistics], metric: str, console: Console) -> Table:
    """The arms as a table for a terminal."""
    header, lines, numbers = cells(rows, metric)
    if not any(row.diverged for row in rows):  # 80 columns have no room for a column of zeros
        header, lines, numbers = header[:-1], [line[:-1] for line in lines], numbers - 1
    return text_table(arms_title(metric), (header, lines, numbers), console)


def text_table(title: str, cells: Cells, console: Console) -> Table:
    """A table for a terminal or a log, in the first of its `layouts` that is not too wide: no number is cropped."""
    for (header, lines, numbers), wrapped in itertools.product(layouts(*cells), (False, True)):
        made = Table(title=Text(title), box=box.SIMPLE_HEAD, padding=0)
        names, needed = len(header) - numbers, len(header) + 1
        for index, (head, *column) in enumerate(zip(header, *lines, strict=True)):
            heading, shown = (console.measure(Text("\n".join(text))) for text in ([head], column))
            if index < names:  # its words are broken only if it is the only one
                made.add_column(Text(head), overflow="fold")
                needed += min(max(heading.minimum, shown.minimum), console.width // 4 if names == 1 else console.width)
            else:
                fixed = max(heading.minimum if wrapped else heading.maximum, shown.maximum)
                made.add_column(Text(head), justify="right", width=fixed)
                needed += fixed
        if needed <= console.width:
            break
    made.width = needed if needed > console.width else None
    for line in lines:
        made.add_row(*map(Text, line))
    return made


def layouts(header: Sequence[str], lines: Sequence[Sequence[str]], numbers: int) -> list[Cells]:
    """A table as it is; with the columns of names in one; and with those of numbers in one, too."""
    names = len(header) - numbers
    heads = [printable(name if index < names else name.replace("_", " ")) for index, name in enumerate(header)]
    rows = [[printable(cell) for cell in line] for line in lines]
    rows = [[*(re.sub(", ?", "\n", cell) for cell in row[:names]), *row[names:]] for row in rows]
    found = [(heads, rows, numbers)]
    if names > 1:
        rows = [["\n".join(map("=".join, zip(heads, row[:names], strict=False))), *row[names:]] for row in rows]
        heads, names = ["arm", *heads[names:]], 1
        found.append((heads, rows, numbers))
    tall = [[*row[:names], "\n".join(heads[names:]), "\n".join(row[names:])] for row in rows]
    return [*found, ([*heads[:names], "", ""], tall, 2)]


def markdown(rows: Sequence[ArmStatistics], metric: str) -> str:
    """The arms as a Markdown table."""
    return markdown_table(*cells(rows, metric))


def markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]], numbers: int) -> str:
    """A Markdown table; the last `numbers` columns hold numbers."""
    rule = ["---"] * (len(header) - numbers) + ["--:"] * numbers
    whole = [list(map(escaped, header)), rule, *(list(map(escaped, line)) for line in lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in whole) + "\n"


def frame(rows: Sequence[ArmStatistics], metric: str) -> pd.DataFrame:
    """The arms as a data frame, one row an arm."""
    best, worst = (min, max) if metrics.lower_is_better(metric) else (max, min)
    found = pd.DataFrame(
        {"run": row.run, "arm": row.arm, "metric": metric, "n": row.n}
        | {"mean": row.mean, "std": row.std, "median": row.median}
        | {"best": best(row.values.dropna(), default=np.nan), "worst": worst(row.values.dropna(), default=np.nan)}
        | {"diverged": row.diverged, **row.chosen}
        for row in rows
    )
    low, high = zip(*(row.ci95 or (np.nan, np.nan) for row in rows), strict=True)
    return found.assign(ci95_low=low, ci95_high=high)


def judgement_frame(judgements: Sequence[TestedContrast], metric: str) -> pd.DataFrame:
    """The differences as a data frame."""
    return pd.DataFrame(
        {"kind": tested.kind, "name": tested.name, "metric": metric, **tested.contrast._asdict()}
        | {"p_holm": tested.p_holm, "improvement": tested.probability_of_improvement}
        | {"seeds_for_80_percent": tested.seeds}
        for tested in judgements
    )
