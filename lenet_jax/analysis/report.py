"""A comparison as files: tables, figures, and one HTML page that holds it all and needs no network."""

import base64
import functools
import io
import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import matplotlib.image
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from lenet_jax import __version__, stats
from lenet_jax.analysis import compare, figures, metrics, tables
from lenet_jax.analysis.compare import Comparison, TestedContrast
from lenet_jax.data import datasets
from lenet_jax.errors import InputError
from lenet_jax.run import files, tuning
from lenet_jax.run.folder import Run

MOST_ROWS = 60
"""Of a forest plot; the tables have all."""

WIDEST = 46
"""Characters of a line beside a figure: what the longest names of shipped experiments need."""

INTERVAL = "with Student's 95 % interval, no further than the seeds reach"
"""Of a mean in a caption: as `figures.mean_and_interval` draws it."""

DIGITS = 24
"""Images of a kind that are shown."""


class Picture(NamedTuple):
    """A figure of the report.

    Attributes:
      figure: drawn.
      heading: of its section.
      text: what it shows, for those who see it and those who don't.
    """

    figure: Figure
    heading: str
    text: str


class Digit(NamedTuple):
    """A test image of the report.

    Attributes:
      image: its place in the test set.
      source: as a data URI.
      label: its class.
      taken_for: the class that it is taken for most often, if not its own.
      shares: of each arm's networks, how many get it wrong.
    """

    image: int
    source: str
    label: int
    taken_for: int
    shares: dict[str, float]


def write(comparison: Comparison, out: Path, command: str = "") -> list[Path]:
    """Writes `comparison.csv`, `differences.csv`, `comparison.md`, the figures (PNG, SVG) and `report.html`.

    Args:
      comparison: as `compare.compare_runs` returns it.
      out: folder; made if need be.
      command: what the user typed, for the page.

    Returns:
      the files written.

    Raises:
      InputError: `out` can't be written.
    """
    pictures = pictures_of(comparison)
    frames = {"comparison.csv": tables.frame(comparison.arms, comparison.metric)}
    if comparison.judgements:
        frames["differences.csv"] = tables.judgement_frame(comparison.judgements, comparison.metric)
    try:
        out.mkdir(parents=True, exist_ok=True)
        drawn = [out / f"{name}.{kind}" for name in pictures for kind in ("png", "svg")]
        for file in drawn:
            figures.save(pictures[file.stem].figure, file)
        svgs = {name: (out / f"{name}.svg").read_text(encoding="utf-8") for name in pictures}
        texts = {name: table.to_csv(index=False) for name, table in frames.items()}
        texts |= {"comparison.md": markdown(comparison), "report.html": html(comparison, pictures, svgs, command)}
        for name, text in texts.items():
            files.replace_file(out / name, functools.partial(Path.write_text, data=text, encoding="utf-8"))
    except OSError as error:
        raise InputError(f"out: {str(out)!r} can't be written ({error.strerror or error})") from error
    return [*(out / name for name in texts), *drawn]


def lines(label: str) -> str:
    """An arm's name in a figure: run and axes below one another."""
    return folded(re.sub(r"(?<=[,:]) ?(?=\S)", "\n", label))


def folded(text: str) -> str:
    """Text whose lines leave room for a figure beside them."""
    spaced = [line if len(line) <= WIDEST else re.sub(r",(?=\S)", ", ", line) for line in text.splitlines()]
    folds = [textwrap.wrap(line, WIDEST, break_on_hyphens=False) for line in spaced]
    return "\n".join(part for fold in folds for part in fold)


def markdown(comparison: Comparison) -> str:
    """The comparison as Markdown."""
    parts = [tables.escaped(tables.summary(comparison)), tables.markdown(comparison.arms, comparison.metric)]
    if comparison.judgements:
        parts.append(tables.markdown_table(*tables.judgement_cells(comparison.judgements, comparison.metric)))
    if comparison.notes:
        parts.append("\n".join(f"- {tables.escaped(note)}" for note in comparison.notes))
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def pictures_of(comparison: Comparison) -> dict[str, Picture]:
    """The figures that the comparison has something for, by file name."""
    metric, named = comparison.metric, metrics.title(comparison.metric)
    pictures: dict[str, Picture] = {}
    final = {lines(arm.label): (arm.values.to_list(), arm.ci95) for arm in comparison.arms}
    if all(np.isfinite(values).all() for values, _ in final.values()):
        pictures[f"{metric}_final_values"] = Picture(
            figures.figure(lambda axes: figures.final_values(final, metric, axes), final),
            "Every seed",
            f"Each dot is the {named} of one seed, a row an arm; the bar is the 95 % interval of the mean.",
        )
    differences = [judgement for judgement in comparison.judgements if judgement.kind == "difference"]
    effects = [judgement for judgement in comparison.judgements if judgement.kind != "difference"]
    sides = "left of 0 the arm named first is lower; "
    for heading, judgements, reading in (("Differences", differences, sides), ("Effects", effects, "")):
        if 0 < len(judgements) <= MOST_ROWS:
            pictures[f"{metric}_{heading.lower()}"] = forest_of(judgements, metric, heading, reading)
    if followed := metrics.curve_metric(comparison.runs, metric):
        drawn = {lines(name): curve for name, curve in by_label(comparison, lambda run: metrics.curves(run, followed))}
        when = "during" if followed.startswith("running") else "after"
        pictures[f"{followed}_learning_curves"] = Picture(
            figures.figure(lambda axes: figures.learning_curves(drawn, followed, axes), drawn),
            "Learning curves",
            f"The {metrics.title(followed)} {when} each epoch: mean over seeds {INTERVAL} (the table: bootstrap)"
            + (", and every seed as a thin line." if len(drawn) <= figures.MANY else "."),
        )
    pictures |= tuning_pictures(comparison)
    predictions = dict(predictions_of(comparison))
    if 0 < len(predictions) <= figures.MANY:
        matrices = {lines(name): metrics.confusion(table) for name, table in predictions.items()}
        pictures["confusion"] = Picture(
            figures.confusions(matrices),
            "Confusions",
            "Of each class (row), the percentage that is taken for each class (column), mean over seeds.",
        )
        rejects = {lines(name): metrics.reject_curve(table) for name, table in predictions.items()}
        pictures["reject_curves"] = Picture(
            figures.figure(lambda axes: figures.reject_curves(rejects, axes), rejects),
            "Reject curves",
            f"The error on the images that are left, if those whose best score leads least are rejected; {INTERVAL}.",
        )
    return pictures


def forest_of(judgements: Sequence[TestedContrast], metric: str, heading: str, reading: str) -> Picture:
    """Differences or effects as a forest plot; `reading` says in the caption what its sides mean."""
    rows = {
        folded(re.sub(r" (?=against .*=)| (?=x )|(?<=,) (?=over)", "\n", judgement.name)): (
            judgement.contrast.mean,
            judgement.contrast.low,
            judgement.contrast.high,
            judgement.p_holm < stats.ALPHA,
        )
        for judgement in judgements
    }
    percent = metrics.is_percent(metric)
    named = metrics.title(metric)
    unit = metrics.difference_unit(metric).strip()
    label = f"difference in {named}" + (f" ({unit})" if unit else "")
    title = "Mean, 95 % interval; filled: corrected p < 0.05"
    return Picture(
        figures.figure(lambda axes: figures.forest(rows, title, label, axes, percent), rows),
        heading,
        f"{heading} in {named}, seed by seed: mean and Student's 95 % interval; "
        f"{reading}filled where it is shown (corrected p < 0.05).",
    )


def by_label(comparison: Comparison, of_run: Any) -> list[tuple[str, Any]]:
    """What `of_run` makes of each run, arm -> value, under the labels of the comparison's arms."""
    found = []
    for run, name in zip(comparison.runs, compare.run_names(comparison.runs), strict=True):
        for arm, value in of_run(run).items():
            found.append((compare.label(name, arm), value))
    return found


def predictions_of(comparison: Comparison) -> list[tuple[str, pd.DataFrame]]:
    """Predictions by arm, of those runs that have them."""

    def of_run(run: Run) -> dict[str, pd.DataFrame]:
        if run.predictions is None:
            return {}
        return {str(arm): table for arm, table in run.predictions.groupby("arm", sort=False)}

    return by_label(comparison, of_run)


def tuning_pictures(comparison: Comparison) -> dict[str, Picture]:
    """Validation error against each tuned hyperparameter, at the best of the others."""
    curves: dict[str, dict[str, tuple[pd.DataFrame, float]]] = {}
    for run, prefix in zip(comparison.runs, compare.run_names(comparison.runs), strict=True):
        if run.tuning is None:
            continue
        tried = dict(iter(run.tuning.groupby("arm", sort=False)))
        for arm in run.summary["arms"]:
            label = lines(compare.label(prefix, arm["name"]))
            for name, value in arm["chosen"].items():
                curve = tuning.curve(tried[arm["name"]], name, list(arm["chosen"]))
                curves.setdefault(name, {})[label] = curve, value
    return {
        f"tuning_{name}": Picture(
            figures.figure(functools.partial(figures.tuning_curves, arms, name), arms),
            f"Tuning: {name.replace('_', ' ')}",
            f"Mean validation error over the tuning seeds against {name.replace('_', ' ')}; the star is the choice.",
        )
        for name, arms in curves.items()
    }


def html(comparison: Comparison, pictures: Mapping[str, Picture], svgs: Mapping[str, str], command: str = "") -> str:
    """The comparison as one page: no script, no network; for screens light and dark, and for screen readers.

    Args:
      comparison: see `compare.compare_runs`.
      pictures: by name.
      svgs: the pictures' SVG.
      command: see `write`.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    agreed, disputed, missing = digits_of(comparison)
    without = len(comparison.arms) - len(predictions_of(comparison))
    return environment.get_template("report.html.jinja").render(
        title=", ".join(run.folder.resolve().name for run in comparison.runs),
        version=__version__,
        metric=metrics.title(comparison.metric),
        unit=metrics.unit(comparison.metric).replace(" %", " percent"),
        points=metrics.difference_unit(comparison.metric),
        summary=tables.summary(comparison),
        command=command,
        notes=comparison.notes,
        arms=tables.cells(comparison.arms, comparison.metric),
        judgements=tables.judgement_cells(comparison.judgements, comparison.metric) if comparison.judgements else None,
        power=power_cells(comparison),
        pictures=[
            {"id": name, "svg": Markup(inline_svg(svgs[name], f"f{number}")), **picture._asdict()}
            for number, (name, picture) in enumerate(pictures.items())
        ],
        overview=overview_cells(comparison),
        classes=class_cells(comparison),
        agreed=agreed,
        disputed=disputed,
        missing=missing,
        without=without,
        runs=[
            {
                "folder": str(run.folder),
                "command": run.provenance.get("command", ""),
                "config": json.dumps(run.config, indent=2),
                "provenance": json.dumps(run.provenance, indent=2),
            }
            for run in comparison.runs
        ],
    )


def inline_svg(svg: str, prefix: str) -> str:
    """A figure's SVG as an element whose ink takes the page's colour and whose names are its own on the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    svg = svg.replace("fill: #ffffff", "fill: none", 1)  # the paper
    svg = svg.replace(figures.INK, "currentColor").replace("#000000", "currentColor")
    width = float(svg.split('width="', 1)[1].split("pt", 1)[0])
    # Named by the figure around it; as wide as its drawing at most.
    return svg.replace("<svg ", f'<svg aria-hidden="true" style="max-width: {width * 4 / 3:.0f}px" ', 1)


def overview_cells(comparison: Comparison) -> tables.Cells:
    """The mean of every metric of the first run, a row each, a column an arm."""

    def of_run(run: Run, name: str) -> dict[str, pd.Series]:
        return metrics.by_arm(run if name.startswith(metrics.EPOCHS_TO) else ends[run.folder], name)

    shared = [name for name in metrics.names(comparison.runs[0]) if not name.startswith(metrics.CLASS_ERROR)]
    ends = {run.folder: metrics.at_end(run) for run in comparison.runs}
    columns: dict[str, dict[str, pd.Series]] = {}
    for name in shared:
        try:
            columns[name] = dict(by_label(comparison, lambda run, name=name: of_run(run, name)))
        except InputError:
            continue  # another run doesn't have it
    rows = [
        [
            metrics.label(name),
            *("-" if values is None else metrics.show(float(values.mean()), name) for values in found),
        ]
        for name, found in (
            (name, [of_arm.get(arm.label) for arm in comparison.arms]) for name, of_arm in columns.items()
        )
    ]
    return ["metric", *(arm.label for arm in comparison.arms)], rows, len(comparison.arms)


def class_cells(comparison: Comparison) -> tables.Cells | None:
    """Test error by class, mean over seeds, a row an arm."""
    rows: list[list[str]] = []
    labels: list[Any] = []
    for name, table in predictions_of(comparison):
        errors = (table.label != table.predicted).groupby(table.label).mean()
        labels = labels or list(errors.index)
        rows.append([name, *(f"{100 * errors.get(label, np.nan):.2f}" for label in labels)])
    return (["arm", *(f"class {label}" for label in labels)], rows, len(labels)) if rows else None


def power_cells(comparison: Comparison) -> tables.Cells | None:
    """What so many seeds would show, from the variance that was measured."""
    counts = (10, 20, 50, 100)
    level = stats.ALPHA / max(len(comparison.judgements), 1)
    rows = [
        [
            judgement.name,
            *(
                metrics.show(stats.detectable(count, judgement.contrast.std, level), comparison.metric)
                for count in counts
            ),
        ]
        for judgement in comparison.judgements
        if judgement.kind == "difference" and judgement.contrast.effect_size is not None
    ]
    return (["difference", *(f"{count} seeds" for count in counts)], rows, len(counts)) if rows else None


def digits_of(comparison: Comparison) -> tuple[list[Digit], list[Digit], str]:
    """The test images that all arms get wrong most, those that they disagree on most, and why there are none."""
    predictions = predictions_of(comparison)
    tested_on = {(arm.data[0], arm.settings.get("dataset")) for arm in comparison.arms}
    if not predictions:
        return [], [], "The runs stored no predictions (store_predictions=False)."
    if len({fingerprint for fingerprint, _ in tested_on}) > 1:
        return [], [], "The arms were tested on different images."
    fingerprint, name = min(tested_on, key=repr)
    dataset = datasets.at_hand(str(name), str(comparison.arms[0].settings.get("data_dir", "")))
    if dataset is None or dataset.fingerprint != fingerprint:
        return [], [], f"The images of {name} are not at hand here."
    names = [name for name, _ in predictions]
    shares = metrics.share_wrong([table for _, table in predictions]).set_axis(names, axis=1)
    least, most = shares.min(axis=1), shares.max(axis=1)
    agreed = ranked(least[least >= 0.5])
    disputed = ranked((most - least)[most > least])
    together = pd.concat([table for _, table in predictions], ignore_index=True)
    wrong = together[together.image.isin([*agreed, *disputed]) & (together.label != together.predicted)]
    taken = wrong.groupby("image").predicted.agg(lambda found: found.mode().iloc[0])

    def digit(place: int) -> Digit:
        shown = dict(zip(names, shares.loc[place].to_numpy(float).tolist(), strict=True))
        image = dataset.test_images[place]
        return Digit(place, data_uri(image), int(dataset.test_labels[place]), int(taken[place]), shown)

    return [digit(place) for place in agreed], [digit(place) for place in disputed], ""


def ranked(values: pd.Series) -> list[int]:
    """The images with the largest values."""
    return [int(place) for place in values.sort_values(ascending=False, kind="stable").index[:DIGITS]]


def data_uri(image: np.ndarray) -> str:
    """A grey image [rows, columns] as a PNG in a data URI, dark on light as it would be written."""
    stream = io.BytesIO()
    matplotlib.image.imsave(stream, 255 - image, cmap="gray", vmin=0, vmax=255, format="png")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
