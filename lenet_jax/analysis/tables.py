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
from lenet_jax.analysis.arms import ArmStatistics
from lenet_jax.analysis.compare import Comparison
from lenet_jax.analysis.contrasts import LOGIT, POINTS, SCALES, TestedContrast
from lenet_jax.output import escaped, printable
from lenet_jax.run.folder import Run
from lenet_jax.run.names import ONLY_ARM, format_value

Cells = tuple[list[str], list[list[str]], int]
"""A table as text: column names, rows of cells, and the number of columns at its end that hold numbers."""

COVERED = {
    "both": "seeds and test images",
    "seeds": "seeds, on these images",
    "images": "test images, of these networks",
}
"""What intervals cover (`crossed.OVER`), in words."""

ENDS = ("low", "high")

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
    if best.interval:
        ends, inner = (
            [metrics.show(end, metric) for end in pair] if pair else [] for pair in (best.interval, best.ci95)
        )
        value += f" ({interval(comparison.over, best.n, best.images, ends, inner)})"
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
        level = f"p < {stats.ALPHA:.2g} after correction for {len(comparison.judgements)} tests"
        sentences.append(f"{count} of {len(differences)} differences are significant ({level}).")
    interactions = [found for found in comparison.of_kind("interaction") if found.significant or found.equivalent]
    shown = [*shown, *comparison.of_kind("main effect")[:MAX_EFFECTS], *interactions[:1]]
    return " ".join([*sentences, *(sentence(found, comparison) for found in shown)])


def interval(over: str, seeds: int, images: int, ends: Sequence[str], inner: Sequence[str] = ()) -> str:
    """A 95 % interval as text, with that over seeds alone if it is given."""
    covered = {"both": f"{seeds} seeds and {images:,} test images", "images": f"{images:,} test images"}
    text = f"95 % interval over {covered.get(over, f'{seeds} seeds, on these images')}: {' to '.join(ends)}"
    return f"{text}; over seeds alone: {' to '.join(inner)}" if over == "both" and inner else text


def data_title(run: Run) -> str:
    """Short name of a run's data set: the last part of the path of a folder."""
    kind, _, argument = str(run.summary["dataset"].get("name", "the data")).partition(":")
    return PurePath(argument).name or argument if kind == "idx" else argument or kind


def sentence(tested: TestedContrast, comparison: Comparison) -> str:
    """A tested contrast as a sentence."""
    mean, ends = tested.mean, tested.estimate.interval()
    images = max(arm.images for arm in comparison.arms)
    verb = {-1: "lowers it by", 0: "changes it by", 1: "raises it by"}[int(np.sign(mean))]
    if comparison.scale != POINTS:
        verb = "multiplies it by" if comparison.scale != LOGIT else "multiplies its odds by"
    elif tested.kind != "interaction" and mean < 0:
        mean, ends = -mean, (-ends[1], -ends[0])
    verb, sign = ("is", "+") if tested.kind == "interaction" else (verb, "")
    size, *shown = (show(value, comparison, sign) for value in (mean, *ends))
    unit = metrics.difference_unit(comparison.metric) if comparison.scale == POINTS else ""
    found = f"{tested.subject} {verb} {size}{unit} ("
    found += interval(comparison.over, tested.n, images, shown)
    if tested.least_p >= stats.ALPHA:
        return f"{found}; {tested.n} seeds are too few for a test)."
    verdict = {"equivalent": ", equivalent within the margin", "undecided": ", not significant"}
    word = tested.verdict(metrics.lower_is_better(comparison.metric))
    return f"{found}; p {show_p(tested.p_corrected, tested.least_p, '= ')}){verdict.get(word, '')}."


def show(value: float, comparison: Comparison, sign: str = "+") -> str:
    """A contrast as text, on the comparison's scale: a difference, or a ratio."""
    if comparison.scale == POINTS or not np.isfinite(value):
        return metrics.show(value, comparison.metric, sign)
    return f"{SCALES[comparison.scale].shown(value):.2f}"


def show_p(p: float, least: float = 0.0, equals: str = "") -> str:
    """A p-value as text; small ones, and the least value that it can have, as a bound."""
    if p < 0.001:
        return "< 0.001"
    return f"<= {p:.2g}" if p <= least * (1 + stats.ROUNDING) else f"{equals}{p:.2g}"


def arms_title(rows: Sequence[ArmStatistics], metric: str) -> str:
    """The caption of a table of arms."""
    label = metrics.label(metric).capitalize()
    if metric in metrics.OF_ARM:
        return label
    when = "" if metric.startswith(metrics.EPOCHS_TO) else " at the last epoch"
    return f"{label}{when}; {covers(rows[0].over)}"


def covers(over: str) -> str:
    """What the intervals of a table cover."""
    alone = "; 'these images': over seeds, on these images" if over != "seeds" else ""
    return f"95 % CI over {COVERED[over]}{alone}"


def differences_title(comparison: Comparison) -> str:
    """The caption of a table of contrasts."""
    metric, over = comparison.metric, comparison.over
    kind = {POINTS: "Paired differences in", LOGIT: "Ratios of the odds of"}.get(comparison.scale, "Ratios of")
    label = metrics.label(metric, metrics.difference_unit) if comparison.scale == POINTS else metrics.title(metric)
    text = f"{kind} {label}; {covers(over)}"
    if comparison.scale != POINTS:
        text += "; SE of the logarithm"
    if comparison.margin is not None:
        unit = metrics.difference_unit(metric) if comparison.scale == POINTS else ""
        text += f"; margin {show(comparison.margin, comparison, '')}{unit}"
    return text


def cells(rows: Sequence[ArmStatistics], metric: str) -> Cells:
    """The arms. Errors are in percent. Axes that all arms have get a column each; otherwise an arm's name does.

    Numbers of networks that failed or diverged have columns where they are not all 0.
    """
    axes = list(rows[0].axes) if len({tuple(row.axes) for row in rows}) == 1 else []
    several = any(row.run for row in rows)
    named = any(row.arm != ONLY_ARM for row in rows)  # the only arm of a run without a sweep needs no name
    tuned = list(dict.fromkeys(name for row in rows for name in row.chosen))
    header = ["run"] * several + (axes or ["arm"] * named)
    known = rows[0].over != "seeds"
    parts = ["these images", "SE seeds", "SE images"] if known else []
    counted = [name for name in ("failed", "diverged") if any(getattr(row, name) for row in rows)]
    numbers = [*tuned, "mean", "95 % CI", *parts, "std", "median", "n", *counted]
    lines = []
    for row in rows:
        names = [row.run] * several + ([format_value(row.axes[axis]) for axis in axes] or [row.arm] * named)
        chosen = [format_value(row.chosen[name]) if name in row.chosen else "-" for name in tuned]
        mean, *spread = (metrics.show(value, metric) for value in (row.mean, row.std, row.median))
        errors = [getattr(row.estimate, name, None) for name in ("se_seeds", "se_images")]
        parts = [ends(row.ci95, metric), *(metrics.show(error, metric) for error in errors)] if known else []
        counts = [str(row.n), *(str(getattr(row, name)) for name in counted)]
        lines.append([*names, *chosen, mean, ends(row.interval, metric), *parts, *spread, *counts])
    return header + numbers, lines, len(numbers)


def ends(interval: tuple[float, float] | None, metric: str) -> str:
    """An interval of an arm's mean as text."""
    return " - ".join(metrics.show(end, metric) for end in interval) if interval else "-"


def judgement_cells(comparison: Comparison) -> Cells:
    """The contrasts, in percentage points where the metric is in percent, or as ratios."""
    known, margin = comparison.over != "seeds", comparison.margin is not None
    lower = metrics.lower_is_better(comparison.metric)
    regions = ["P(better)", "P(equivalent)", "P(worse)"] if margin else []
    parts = ["these images", "SE seeds", "SE images"] if known else []
    mean = "mean" if comparison.scale == POINTS else "ratio"
    numbers = ["verdict", mean, "95 % CI", *parts, "p", "p (max-T)", *regions, "effect size", "P(run better)", "n"]
    lines = []
    for tested in comparison.judgements:
        low, high, *inner = (show(end, comparison) for end in (*tested.estimate.interval(), *tested.seeds_interval))
        line = [tested.name, tested.verdict(lower), show(tested.mean, comparison), f"{low} to {high}"]
        if known:
            errors = (tested.estimate.se_seeds, tested.estimate.se_images)
            line += [" to ".join(inner), *(show_error(error, comparison) for error in errors)]
        line += [show_p(p, tested.least_p) for p in (tested.p, tested.p_corrected)]
        if margin:
            chances = [f"{chance:.2f}" for chance in tested.chances[:: 1 if lower else -1]]
            line += ["-", chances[1], "-"] if tested.kind == "interaction" else chances
        line.append("-" if tested.effect_size is None else f"{tested.effect_size:+.2f}")
        better = tested.improvement
        line += ["-" if better is None else "{:.2f} ({:.2f} to {:.2f})".format(*better), str(tested.n)]
        lines.append(line)
    return ["difference", *numbers], lines, len(numbers)


def show_error(error: float, comparison: Comparison) -> str:
    """A standard error as text: of a difference, or of the logarithm of a ratio."""
    points = comparison.scale == POINTS or not np.isfinite(error)
    return metrics.show(error, comparison.metric) if points else f"{error:.2f}"


def stacked(cells: Cells, *groups: tuple[str, ...]) -> Cells:
    """A table with each group of columns as one column with a line for each; columns of no group are left out."""
    header, *lines = cells[0], *cells[1]
    indices = [[header.index(name) for name in group if name in header] for group in groups]
    header, *lines = (
        ["\n".join(line[index] for index in group) for group in indices if group] for line in [header, *lines]
    )
    names = sum(1 for group in groups if group[0] in cells[0][: len(cells[0]) - cells[2]])
    return header, lines, len(header) - names


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Prints the comparison to a terminal."""
    console.print(table(comparison.arms, comparison.metric, console), crop=False)
    if comparison.judgements:
        shown = stacked(  # 80 columns have no room for the others; the files hold all
            judgement_cells(comparison),
            ("difference",),
            ("verdict",),
            ("mean",) if comparison.scale == POINTS else ("ratio",),
            ("95 % CI", "these images"),
            ("SE seeds", "SE images"),
            ("p (max-T)",),
            *([("P(better)", "P(equivalent)", "P(worse)")] if comparison.margin is not None else []),
        )
        console.print(text_table(differences_title(comparison), shown, console), crop=False)
    for text in (summary(comparison), *(f"- {note}" for note in comparison.notes)):
        console.print(Text(printable(text)))


def table(rows: Sequence[ArmStatistics], metric: str, console: Console) -> Table:
    """The arms as a table for a terminal: standard errors replace deviations, and medians are for failed networks."""
    header, lines, numbers = cells(rows, metric)
    known = rows[0].over != "seeds"
    left_out = {"std": known, "median": known and "failed" not in header}
    kept = [index for index, name in enumerate(header) if not left_out.get(name)]
    header, *lines = ([line[index] for index in kept] for line in [header, *lines])
    return text_table(arms_title(rows, metric), (header, lines, numbers - sum(left_out.values())), console)


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

    def clean(cell: str) -> str:
        return "\n".join(map(printable, cell.split("\n")))

    heads = [clean(name if index < names else name.replace("_", " ")) for index, name in enumerate(header)]
    rows = [[*map(printable, line[:names]), *map(clean, line[names:])] for line in lines]
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
    """The arms as a data frame, one row an arm; `ci95_low` and `ci95_high` cover what `over` says."""
    best, worst = (min, max) if metrics.lower_is_better(metric) else (max, min)
    nothing = np.nan, np.nan
    found = []
    for row in rows:
        pairs = {"ci95": row.interval or nothing, "seeds": row.ci95 or nothing}
        found.append(
            {"run": row.run, "arm": row.arm, "metric": metric, "n": row.n, "images": row.images, "over": row.over}
            | {"mean": row.mean, "std": row.std, "median": row.median}
            | {"best": best(row.values.dropna(), default=np.nan), "worst": worst(row.values.dropna(), default=np.nan)}
            | {"failed": row.failed, "diverged": row.diverged, **row.chosen}
            | {f"{name}_{end}": value for name, pair in pairs.items() for end, value in zip(ENDS, pair, strict=True)}
            | {name: getattr(row.estimate, name, np.nan) for name in ("se_seeds", "se_images")}
        )
    return pd.DataFrame(found)


def judgement_frame(comparison: Comparison) -> pd.DataFrame:
    """The contrasts as a data frame; ratios as such, with the standard errors of their logarithms."""
    shown, lower = SCALES[comparison.scale].shown, metrics.lower_is_better(comparison.metric)
    found = []
    for tested in comparison.judgements:
        estimate, needed = tested.estimate, tested.needed
        pairs = {"ci95": estimate.interval(), "seeds": tested.seeds_interval}
        better = tested.improvement or (np.nan,) * 3
        chances = tested.chances[:: 1 if lower else -1]
        found.append(
            {"kind": tested.kind, "name": tested.name, "metric": comparison.metric, "n": tested.n}
            | {"over": comparison.over, "scale": comparison.scale, "mean": shown(tested.mean), "std": tested.std}
            | {
                f"{name}_{end}": shown(value)
                for name, pair in pairs.items()
                for end, value in zip(ENDS, pair, strict=True)
            }
            | {"se_seeds": estimate.se_seeds, "se_images": estimate.se_images, "se": estimate.se, "df": estimate.df}
            | {"p": tested.p, "p_corrected": tested.p_corrected, "verdict": tested.verdict(lower)}
            | {"margin": comparison.margin}
            | dict(zip(("p_better", "p_equivalent", "p_worse"), chances, strict=True))
            | {"effect_size": tested.effect_size}
            | dict(zip(("improvement", "improvement_low", "improvement_high"), better, strict=True))
            | {"seeds_needed": needed and needed.seeds, "images_needed": needed and needed.images}
            | dict(zip(("both_seeds", "both_images"), (needed and needed.both) or (None, None), strict=True))
        )
    return pd.DataFrame(found)
