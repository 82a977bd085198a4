"""A comparison as files: tables, figures, and one HTML page with both that needs no network."""

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
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from lenet_jax import __version__
from lenet_jax.analysis import arms, figures, metrics, tables
from lenet_jax.analysis.compare import Comparison
from lenet_jax.analysis.contrasts import POINTS, SCALES, TestedContrast
from lenet_jax.data import datasets
from lenet_jax.data.datasets import Dataset
from lenet_jax.errors import InputError
from lenet_jax.output import escaped
from lenet_jax.run import files, tuning
from lenet_jax.run.answers import Answers
from lenet_jax.run.folder import MAX_FOLDER_BYTES, Run, folder_name

MAX_FOREST_ROWS = 60
"""Rows of a forest plot; the tables hold all."""

MAX_LABEL_CHARACTERS = 46
"""Length of a line beside a figure: that of the longest names of shipped experiments."""

MAX_DIGITS = 24
"""Misclassified digits that a section shows."""

MEAN_CAPTION = "mean and Student's 95 % interval over seeds, clipped to the range of the seeds"
"""Caption of `figures.mean_and_interval`."""


class ReportFigure(NamedTuple):
    """A figure of the report, with the heading of its section and a caption that also describes it to the blind."""

    figure: Figure
    heading: str
    caption: str


class Digit(NamedTuple):
    """A test image of the report."""

    image: int  # its index in the test set
    source: str  # a data URI
    label: int
    predicted: int  # the most frequent wrong prediction
    misclassified: Mapping[Any, float]  # arm -> fraction of its networks


def write(comparison: Comparison, out: Path, command: str = "", dataset: Dataset | None = None) -> list[Path]:
    """Writes `comparison.csv`, `differences.csv`, `comparison.md`, `report.html` and figures; returns the files.

    The folder `out` is created if needed; `command` is the user's, for the page. `dataset` is what the arms were tested
    on, if the user names it: of those that runs name, only the package's own are opened.

    Raises:
      InputError: `out` can't be written.
    """
    make_folder(out)
    drawn = {folder_name(name): figure for name, figure in figures_of(comparison).items()}
    images = {f"{name}.{kind}": figures.rendered(drawn[name].figure, kind) for name in drawn for kind in ("png", "svg")}
    texts = {"comparison.csv": tables.frame(comparison.arms, comparison.metric).to_csv(index=False)}
    if comparison.judgements:
        texts["differences.csv"] = tables.judgement_frame(comparison).to_csv(index=False)
    texts |= {
        "comparison.md": markdown_page(comparison),
        "report.html": html(comparison, drawn, images, command, dataset),
    }
    contents = {name: text.encode(errors="backslashreplace") for name, text in texts.items()} | images
    return write_files(out, contents)


def make_folder(out: Path) -> None:
    """Creates a folder if needed; raises InputError if it can't be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"out: {str(out)!r} can't be written ({error.strerror or error})") from error


def write_files(out: Path, contents: Mapping[str, bytes]) -> list[Path]:
    """Writes files, all at once: a kill before leaves those of before; returns their paths."""
    for name, content in contents.items():
        for left in files.partials_of(out / name):
            left.unlink(missing_ok=True)
        files.replace_file(out / name, functools.partial(Path.write_bytes, data=content))
    return [out / name for name in contents]


def default_folder(runs: Sequence[Run], metric: str, on: str = "") -> Path:
    """The folder that a comparison is written into by default: of a single run, or beside the first of several.

    `on` is the evaluation that the runs are compared on.

    Raises:
      InputError: it is a link, which may lead anywhere; `--out` names such a folder.
    """
    folder, name = runs[0].folder, "-".join(["compare", *(run.folder.absolute().name for run in runs)])
    short = name if len(name.encode(errors="replace")) <= MAX_FOLDER_BYTES else folder_name(name)
    found = [folder / "plots" if len(runs) == 1 else folder.parent / short]
    found += [found[0] / folder_name(metric)] if metric != "test_error" else []
    found += [found[-1] / folder_name(f"on-{on}")] if on else []
    if links := [path for path in found if path.is_symlink()]:
        raise InputError(f"out: {str(links[0])!r} is a link; name the folder that it leads to as --out")
    return found[-1]


def label_lines(label: str) -> str:
    """An arm's name for a figure: run and axes on lines of their own."""
    return wrapped(re.sub(r"(?<=[,:]) ?(?=\S)", "\n", figures.drawable(label)))


def wrapped(text: str) -> str:
    """Text with lines short enough to stand beside a figure."""
    limit = MAX_LABEL_CHARACTERS
    spaced = [line if len(line) <= limit else re.sub(r",(?=\S)", ", ", line) for line in text.splitlines()]
    return "\n".join(part for line in spaced for part in textwrap.wrap(line, limit, break_on_hyphens=False))


def markdown_page(comparison: Comparison) -> str:
    """The comparison as Markdown."""
    metric = comparison.metric
    blocks = [tables.summary(comparison), tables.arms_title(comparison.arms, metric) + ":"]
    blocks = [escaped(block) for block in blocks] + [tables.markdown(comparison.arms, metric)]
    if comparison.judgements:
        blocks += [escaped(tables.differences_title(comparison)) + ":"]
        blocks += [tables.markdown_table(*tables.judgement_cells(comparison))]
    if comparison.notes:
        blocks.append("\n".join(f"- {escaped(note)}" for note in comparison.notes))
    return "\n\n".join(block.rstrip("\n") for block in blocks) + "\n"


def figures_of(comparison: Comparison) -> dict[str, ReportFigure]:
    """The figures of a comparison, by file name; those without data are left out."""
    metric, title = comparison.metric, metrics.title(comparison.metric)
    found: dict[str, ReportFigure] = {}
    covered = tables.COVERED[comparison.over]
    thick = "" if comparison.over == "seeds" else "; thick: over seeds alone"
    final = {label_lines(arm.label): (arm.values.to_list(), arm.interval, arm.ci95) for arm in comparison.arms}
    if all(np.isfinite(values).all() for values, _, _ in final.values()):
        bars = f"Every seed, and mean with 95 % interval\nover {covered}{thick}"
        found[f"{metric}_final_values"] = ReportFigure(
            figures.figure(lambda axes: figures.final_values(final, metric, bars, axes), final),
            "Every seed",
            f"Each dot is the {title} of one seed. Bars: 95 % interval of the mean over {covered}{thick}.",
        )
    for heading, kinds in {"Differences": ["difference"], "Effects": ["main effect", "interaction"]}.items():
        if 0 < len(shown := comparison.of_kind(*kinds)) <= MAX_FOREST_ROWS:
            found[f"{metric}_{heading.lower()}"] = forest_of(comparison, shown, heading)
    if curve_metric := metrics.curve_metric(comparison.runs, metric):
        curves = by_label(comparison, [metrics.curves(run, curve_metric) for run in comparison.runs])
        drawn = {label_lines(name): curve for name, curve in curves.items()}
        when = "during" if curve_metric.startswith("running") else "after"
        every_seed = ", and every seed as a thin line" * (len(drawn) <= figures.MAX_DETAILED_ARMS)
        found[f"{curve_metric}_learning_curves"] = ReportFigure(
            figures.figure(lambda axes: figures.learning_curves(drawn, curve_metric, axes), drawn),
            "Learning curves",
            f"The {metrics.title(curve_metric)} {when} each epoch: {MEAN_CAPTION}{every_seed}.",
        )
    found |= tuning_figures(comparison)
    answers = answers_of(comparison)
    if 0 < len(answers) <= figures.MAX_DETAILED_ARMS:
        matrices = {label_lines(name): metrics.confusion(one) for name, one in answers.items()}
        found["confusion"] = ReportFigure(
            figures.confusions(matrices),
            "Confusions",
            "Percentage of each class (row) that is predicted as each class (column), mean over seeds.",
        )
        rejects = {label_lines(name): metrics.reject_curve(one) for name, one in answers.items()}
        found["reject_curves"] = ReportFigure(
            figures.figure(lambda axes: figures.reject_curves(rejects, axes), rejects),
            "Reject curves",
            f"Error on the remaining images when those with the smallest margins are rejected: {MEAN_CAPTION}.",
        )
    return found


def forest_of(comparison: Comparison, shown: Sequence[TestedContrast], heading: str) -> ReportFigure:
    """Differences or effects as a forest plot."""
    metric, scale, over = comparison.metric, SCALES[comparison.scale], comparison.over
    rows = {}
    for tested in shown:
        name = wrapped(re.sub(r" (?=against .*=)| (?=x )|(?<=,) (?=over)", "\n", figures.drawable(tested.name)))
        ends = (*tested.estimate.interval(), *tested.seeds_interval)
        values = list(map(scale.shown, (tested.mean, *ends)))
        rows[name] = figures.ForestRow(values[0], (values[1], values[2]), (values[3], values[4]), tested.significant)
    points = comparison.scale == POINTS
    label = tables.differences_title(comparison).partition(";")[0]
    thick = "" if over == "seeds" else "; thick: over seeds alone"
    title = f"Mean with 95 % interval over {tables.COVERED[over]}\n{thick[2:]}{'; ' * bool(thick)}filled: p < 0.05"
    margin = None if comparison.margin is None else (scale.shown(-comparison.margin), scale.shown(comparison.margin))
    center = scale.shown(0.0)
    sides = f"Left of {center:g}, the arm named first has smaller values. " if heading == "Differences" else ""
    shade = "Shaded: differences within the margin. " if margin else ""
    percent = points and metrics.is_percent(metric)
    return ReportFigure(
        figures.figure(lambda axes: figures.forest(rows, title, label, center, margin, axes, percent), rows),
        heading,
        f"{label}: mean and 95 % interval over {tables.COVERED[over]}{thick}. {sides}{shade}Filled dots: significant "
        "(corrected p < 0.05).",
    )


def by_label(comparison: Comparison, of_runs: Sequence[Mapping[Any, Any]]) -> dict[str, Any]:
    """For each run a mapping arm -> value, as one mapping under the labels of the comparison's arms."""
    names = zip(arms.run_names(comparison.runs), of_runs, strict=True)
    return {arms.label(name, arm): value for name, of_run in names for arm, value in of_run.items()}


def answers_of(comparison: Comparison) -> dict[str, Answers]:
    """Answers by arm, of the runs that stored them."""
    return by_label(comparison, [run.answers for run in comparison.runs])


def tuning_figures(comparison: Comparison) -> dict[str, ReportFigure]:
    """Validation error against each tuned hyperparameter, at the best values of the others."""
    curves: dict[str, dict[str, tuple[pd.DataFrame, float]]] = {}
    for run, prefix in zip(comparison.runs, arms.run_names(comparison.runs), strict=True):
        if run.tuning is None:
            continue
        tried = dict(iter(run.tuning.groupby("arm", sort=False)))
        for arm in run.arms:
            label = label_lines(arms.label(prefix, arm.name))
            for name, value in arm.chosen.items():
                curve = tuning.curve(tried[arm.name], name, list(arm.chosen))
                curves.setdefault(name, {})[label] = curve, value
    return {
        f"tuning_{name}": ReportFigure(
            figures.figure(functools.partial(figures.tuning_curves, arms, name), arms),
            f"Tuning: {name.replace('_', ' ')}",
            f"Validation error against {name.replace('_', ' ')}: mean and range over tuning seeds. Star: chosen value.",
        )
        for name, arms in curves.items()
    }


def html(
    comparison: Comparison,
    drawn: Mapping[str, ReportFigure],
    images: Mapping[str, bytes],
    command: str,
    dataset: Dataset | None,
) -> str:
    """The comparison as one page without scripts or network access, for light and dark screens and screen readers."""
    metric = comparison.metric
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    agreed, disputed, missing = digits_of(comparison, dataset)
    answers = answers_of(comparison)
    return environment.get_template("report.html.jinja").render(
        title=", ".join(run.folder.resolve().name for run in comparison.runs),
        version=__version__,
        metric=metrics.title(metric),
        arms_title=tables.arms_title(comparison.arms, metric),
        differences_title=tables.differences_title(comparison),
        over=comparison.over,
        margin=comparison.margin,
        points=metrics.difference_unit(metric),
        summary=tables.summary(comparison),
        command=command,
        notes=comparison.notes,
        arms=tables.cells(comparison.arms, metric),
        judgements=tables.judgement_cells(comparison) if comparison.judgements else None,
        power=power_cells(comparison),
        figures=[
            {"id": name, "svg": Markup(inline_svg(images[f"{name}.svg"].decode(), f"f{number}")), **figure._asdict()}
            for number, (name, figure) in enumerate(drawn.items())
        ],
        overview=overview_cells(comparison),
        classes=class_cells(comparison),
        agreed=agreed,
        disputed=disputed,
        missing=missing,
        without=sum(arm.label not in answers for arm in comparison.arms),
        runs=comparison.runs,
        as_json=functools.partial(json.dumps, indent=2),
    )


def inline_svg(svg: str, prefix: str) -> str:
    """A figure's SVG as an element in the colour of the page's text, with ids that are unique on the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    svg = svg.replace("fill: #ffffff", "fill: none", 1)  # the paper
    svg = svg.replace(figures.INK, "currentColor").replace("#000000", "currentColor")
    width = float(svg.split('width="', 1)[1].split("pt", 1)[0])
    # The figure element around it has the name.
    return svg.replace("<svg ", f'<svg aria-hidden="true" style="max-width: {width * 4 / 3:.0f}px" ', 1)


def overview_cells(comparison: Comparison) -> tables.Cells:
    """The mean of every metric of the first run: one row per metric, one column per arm."""
    runs, arms = comparison.runs, [arm.label for arm in comparison.arms]
    rows = []
    for name in metrics.names(runs[0]):
        if name.startswith(metrics.CLASS_ERROR):
            continue
        try:
            name = metrics.restricted(runs, name)
            values = by_label(comparison, [metrics.by_arm(run, name) for run in runs])
        except InputError:
            continue  # missing in another run
        means = [metrics.show(float(values[arm].mean()), name) if arm in values else "-" for arm in arms]
        rows.append([metrics.label(name), *means])
    return ["metric", *arms], rows, len(arms)


def class_cells(comparison: Comparison) -> tables.Cells | None:
    """Test error by class, mean over seeds: one row per arm."""
    rows: list[list[str]] = []
    labels: list[Any] = []
    for name, one in answers_of(comparison).items():
        errors = pd.Series(one.wrong.mean(axis=0)).groupby(one.labels).mean()
        labels = labels or list(errors.index)
        rows.append([name, *(metrics.show(float(errors.get(label, np.nan)), "test_error") for label in labels)])
    return (["arm", *(f"class {label}" for label in labels)], rows, len(labels)) if rows else None


def power_cells(comparison: Comparison) -> tables.Cells | None:
    """The smallest differences that larger studies would show, given the measured variances."""
    found = [one for one in comparison.of_kind("difference") if one.detectable]
    if comparison.scale != POINTS or not found:
        return None
    sizes = list(found[0].detectable)
    alike = [one for one in found if list(one.detectable) == sizes]  # others have other seeds in common
    rows = [[one.name, *(metrics.show(value, comparison.metric) for value in one.detectable.values())] for one in alike]
    return ["difference", *sizes], rows, len(sizes)


def digits_of(comparison: Comparison, dataset: Dataset | None = None) -> tuple[list[Digit], list[Digit], str]:
    """The test images that all arms misclassify most, those that they disagree on most, and why there are none."""
    answers = answers_of(comparison)
    tested_on = {(arm.data[0], arm.settings.get("dataset")) for arm in comparison.arms}
    if not answers:
        return [], [], "The runs stored no predictions (store_predictions=False)."
    if len({fingerprint for fingerprint, _ in tested_on}) > 1:
        return [], [], "The arms were tested on different images."
    fingerprint, name = min(tested_on, key=repr)
    images = dataset or datasets.at_hand(str(name))
    fractions = metrics.misclassified_fraction(answers)
    if images is None or images.fingerprint != fingerprint or fractions.index.max() >= len(images.test_images):
        return [], [], f"The images of {name} are not available here; compare --dataset=NAME opens those of a data set."
    least, most = fractions.min(axis=1), fractions.max(axis=1)
    agreed = least[least >= 0.5].nlargest(MAX_DIGITS).index
    disputed = (most - least)[most > least].nlargest(MAX_DIGITS).index

    def most_frequent(index: int) -> int:
        """The most frequent wrong prediction."""
        found = [one.predicted[:, one.images == index][one.wrong[:, one.images == index]] for one in answers.values()]
        classes, counts = np.unique(np.concatenate(found), return_counts=True)
        return int(classes[counts.argmax()])

    def digit(index: int) -> Digit:
        source, label = data_uri(images.test_images[index]), int(images.test_labels[index])
        return Digit(index, source, label, most_frequent(index), fractions.loc[index].to_dict())

    return [digit(index) for index in agreed], [digit(index) for index in disputed], ""


def data_uri(image: np.ndarray) -> str:
    """A grey image [rows, columns] as a PNG in a data URI, black on white."""
    stream = io.BytesIO()
    Image.fromarray(255 - image).save(stream, "png")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
