"""Report of the reproduction: tables and figures of docs/reproduction.md, made from run folders.

Command: make reproduction, which runs the experiments first; or, from the stored results,
python experiments/reproduction/reproduction.py
With --dataset (the data that the runs were trained on), it also makes the parts that need the images: figure 8, and the
effective rates of the first epoch.
"""

import dataclasses
import functools
import re
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from lenet_jax import distortions, model, population, stats
from lenet_jax.analysis import dynamics, metrics, tables
from lenet_jax.analysis import figures as analysis_figures
from lenet_jax.data import datasets, preprocess
from lenet_jax.experiments.reproduction.paper import (
    COUNTS,
    DISTORTED,
    EFFECTIVE_RATES,
    LENET4_REJECTS,
    READING_ERROR,
    SIZES,
    TEST_CURVE,
    TRAIN_CURVE,
    arm_of,
    difference,
    errors,
    outside_of,
    passes,
    percent,
)
from lenet_jax.paths import expanded
from lenet_jax.run import files, folder
from lenet_jax.run.folder import Run
from lenet_jax.run.names import format_value

ROOT = Path(__file__).parents[2]
STORED, DOCS = ROOT / "experiments" / "results", ROOT / "docs"
RATES = "effective_rates.json"

UNCHANGED = "(unchanged)"

SHOWN = "mean and 95 % interval over 10 seeds; light: one run; black: the paper"
"""What figures 5 and 6 show, for their titles."""

BLOCK = "<!-- {name} -->\n.*?<!-- /{name} -->"
PAPER_STYLE: dict[str, Any] = {"color": "#000000", "linestyle": "none", "markerfacecolor": "none", "zorder": 5}


def fields_of(kind: type, config: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a config for the fields of a dataclass."""
    return {field.name: config[field.name] for field in dataclasses.fields(kind) if field.name in config}


def errors_table(runs: Path) -> str:
    """Table of the paper's errors and ours."""
    rows = [[compared.name, *compared.cells()] for compared in errors(runs)]
    header = [
        "in percent",
        "paper",
        "ours: mean of 10 seeds (95 % interval)",
        "one run of ours would lie in",
        "z of the paper's value",
    ]
    return tables.markdown_table(header, rows, 4)


def passes_table(runs: Path) -> str:
    """Table of errors after each epoch."""
    curves = passes(runs)
    names = ("paper", "ours", "one run of ours", "z")
    header = ["pass", *(f"{curve}: {names[0]}" if not at else names[at] for curve in curves for at in range(4))]
    rows = [
        [str(epoch), *(cell for compared in of_epoch for cell in compared.cells())]
        for epoch, of_epoch in enumerate(zip(*curves.values(), strict=True), 1)
    ]
    return tables.markdown_table(header, rows, len(header))


def agreement(runs: Path) -> str:
    """Which of the paper's values one run of ours would not show, in sentences."""
    values = [*errors(runs), *(one for curve in passes(runs).values() for one in curve if one.paper is not None)]
    outside = outside_of(values)
    listed = "; ".join(f"{one.name} (z = {one.z:+.1f})" for one in outside)
    corrected = outside_of(values, stats.ALPHA / len(values))
    read = [
        [one.name for one in outside_of([one._replace(paper=(one.paper or 0) + shift) for one in values])]
        for shift in (-READING_ERROR, READING_ERROR)
    ]
    same = all(set(names) == {one.name for one in outside} for names in read)
    text = (
        f"Of the {len(values)} values of the paper in these two tables, {len(outside)} lie outside the interval of one "
        f"run of ours: {listed}. About {stats.ALPHA * len(values):.0f} would if all agreed. After Bonferroni's "
        f"correction for {len(values)} values, there remains: {'; '.join(one.name for one in corrected) or 'none'}. "
        f"Values {READING_ERROR} higher or lower, as they might be read from the figures, give "
        f"{'the same' if same else 'another'} list."
    )
    return textwrap.fill(text, 120, break_on_hyphens=False) + "\n"


def counts_table(runs: Path) -> str:
    """Table of trainable parameters and connections, computed from the architecture."""
    config = folder.load(runs / "lenet5_1998").config
    architecture = model.Architecture(**fields_of(model.Architecture, config))
    connections = model.connection_table(architecture)
    rows = [[name, f"{count:,}", f"{connections[name]:,}"] for name, _, count in model.parameter_table(architecture)]
    totals = [sum(count for _, _, count in model.parameter_table(architecture)), sum(connections.values())]
    rows += [["total", *(f"{total:,}" for total in totals)], ["paper", *(f"{total:,}" for total in COUNTS)]]
    return tables.markdown_table(["layer", "trainable", "connections"], rows, 2)


def ingredients_table(runs: Path) -> str:
    """Table of the effect of each ingredient, compared with the same seeds and all ingredients."""
    run = folder.load(runs / "lenet5_1998_ingredients")
    base = arm_of(run, replaced="nothing")
    rows = []
    for arm in run.summary["arms"]:
        change = "-" if arm is base else percent(difference(arm, base))
        name = UNCHANGED if arm is base else arm["axes"]["replaced"].replace("_", " ")
        rows.append([name, percent(arm["test_error"]), change, percent(arm["train_error"]), str(arm["diverged"])])
    header = ["replaced", "test error (%)", "difference from (unchanged)", "training error (%)", "diverged"]
    return tables.markdown_table(header, rows, 4)


def choices_table(runs: Path) -> str:
    """Table of the effect of each change on the validation split, compared with the same seeds and no change."""
    run = folder.load(runs / "lenet5_1998_choices")
    base = arm_of(run, changed="nothing")
    rows = []
    for arm in run.summary["arms"]:
        change = "-" if arm is base else percent(difference(arm, base, "validation_error"))
        name = UNCHANGED if arm is base else arm["axes"]["changed"].replace("_", " ")
        rows.append([name, percent(arm["validation_error"]), change, percent(arm["train_error"])])
    header = ["changed", "validation error (%)", "difference from (unchanged)", "training error (%)"]
    return tables.markdown_table(header, rows, 3)


def validation_table(runs: Path, name: str) -> str:
    """Table of the validation errors of every arm of a run."""
    run = folder.load(runs / name)
    rows = []
    for arm in run.summary["arms"]:
        axes = [format_value(value).replace("_", " ") for value in arm["axes"].values()]
        rows.append([*axes, percent(arm["validation_error"]), percent(arm["train_error"]), str(arm["diverged"])])
    axes = [axis.replace("_", " ") for axis in run.summary["arms"][0]["axes"]]
    return tables.markdown_table([*axes, "validation error (%)", "training error (%)", "diverged"], rows, 3)


def rates_table(runs: Path) -> str:
    """Table of the effective learning rates of the first epoch."""
    measured = files.read_json(runs / "lenet5_1998" / RATES)
    rows = [["paper, all weights", *(f"{rate:.1e}" for rate in EFFECTIVE_RATES)]]
    for layer, (low, high) in measured["layers"].items():
        rows.append([layer, f"{low:.1e}", f"{high:.1e}"])
    return tables.markdown_table(["", "smallest", "largest"], rows, 2)


TABLES = {
    "errors": errors_table,
    "passes": passes_table,
    "agreement": agreement,
    "counts": counts_table,
    "rates": rates_table,
    "ingredients": ingredients_table,
    "choices": choices_table,
    "magnitudes": lambda runs: validation_table(runs, "lenet5_1998_magnitudes"),
    "rates_of_ingredients": lambda runs: validation_table(runs, "lenet5_1998_ingredient_rates"),
}


PAGE = DOCS / "reproduction.md"
PAGES = {PAGE: tuple(TABLES)}
"""Page -> tables that it contains."""


def fill(page: Path, runs: Path) -> str:
    """Text of a page, with its tables inserted between their marks."""
    text = page.read_text()
    for name in PAGES[page]:
        block = f"<!-- {name} -->\n{TABLES[name](runs)}<!-- /{name} -->"
        text, count = re.subn(BLOCK.format(name=name), lambda _, block=block: block, text, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"{page} has {count} blocks {name!r} instead of 1")
    return text


def curves(runs: Path, axes: Axes) -> Axes:
    """Figure 5: error against epochs; light, where one run of ours would lie."""
    run = folder.load(runs / "lenet5_1998")
    shown = {"test": ("test_error", TEST_CURVE, "s"), "training, while training": ("running_error", TRAIN_CURVE, "o")}
    for place, (label, (metric, paper, marker)) in enumerate(shown.items()):
        rows = metrics.rows(run, metric)
        table = rows[rows.epoch > 0].pivot(index="epoch", columns="seed", values="value") * 100
        analysis_figures.mean_and_interval(table, f"ours, {label}", place, axes)
        low, high = stats.prediction_interval(table.to_numpy())
        color = analysis_figures.style(place)["color"]
        axes.fill_between(table.index, low, high, color=color, alpha=0.12, linewidth=0, zorder=1)
        axes.plot(range(1, len(paper) + 1), paper, marker, label=f"paper, {label}", **PAPER_STYLE)
    axes.set(xlabel="passes over the training set", ylabel="error (%)", ylim=(0, 6), xticks=range(0, 21, 2))
    axes.set_title(f"Figure 5 again: {SHOWN}", fontsize=10)
    axes.grid(axis="y", alpha=0.25)
    axes.legend()
    return axes


def error_bars(summaries: Mapping[int, Mapping[str, Any]], label: str, color: str, axes: Axes) -> None:
    """Means and intervals of summaries by the number of digits; light, where one run of ours would lie."""
    means = np.array([100 * summary["mean"] for summary in summaries.values()])
    ends = np.array([100 * np.array(summary["ci95"]) for summary in summaries.values()])
    axes.errorbar(list(summaries), means, np.abs(ends.T - means), color=color, marker=".", capsize=4, label=label)
    values = np.array([summary["per_seed"] for summary in summaries.values()], float)
    low, high = (100 * end for end in stats.prediction_interval(values))
    axes.vlines(list(summaries), low, high, color=color, alpha=0.15, linewidth=9, zorder=1)


def sizes(runs: Path, axes: Axes) -> Axes:
    """Figure 6: error against the number of training digits."""
    run, distorted = folder.load(runs / "training_set_size"), arm_of(folder.load(runs / "lenet5_1998_distorted"))
    for place, split in enumerate(("test", "train")):
        name = {"test": "test", "train": "training"}[split]
        summaries = {size: arm_of(run, train_size=size)[f"{split}_error"] for size in SIZES}
        error_bars(summaries, f"ours, {name}", analysis_figures.style(place)["color"], axes)
        papers = [values[place] for values in SIZES.values()]
        axes.plot(list(SIZES), papers, "so"[place], label=f"paper, {name}", **PAPER_STYLE)
    error_bars({62000: distorted["test_error"]}, "ours, distorted, test", analysis_figures.style(2)["color"], axes)
    axes.plot([62000], [DISTORTED], "^", label="paper, distorted, test", **PAPER_STYLE)
    axes.set(xlabel="training digits", ylabel="error (%)", ylim=(0, 2.2), xlim=(12000, 65000), xticks=list(SIZES))
    axes.set_title(f"Figure 6 again: {SHOWN}", fontsize=10)
    axes.grid(axis="y", alpha=0.25)
    axes.legend()
    return axes


def rejects(runs: Path, axes: Axes) -> Axes:
    """Error on the remaining digits against the fraction rejected."""
    drawn = {}
    for name in ("lenet5_1998", "lenet5_1998_distorted"):
        (answers,) = folder.load(runs / name).answers.values()
        drawn[name] = metrics.reject_curve(answers)
    axes = analysis_figures.reject_curves(drawn, axes)
    axes.plot(*LENET4_REJECTS, "D", label="paper, LeNet-4", **PAPER_STYLE)
    axes.legend()
    return axes


def ingredients(runs: Path, axes: Axes) -> Axes:
    """Errors of every seed of every arm."""
    run = folder.load(runs / "lenet5_1998_ingredients")
    final = {}
    for arm in run.summary["arms"]:
        name, ends = arm["axes"]["replaced"].replace("_", " "), tuple(arm["test_error"]["ci95"])
        final[name.replace("nothing", UNCHANGED)] = (arm["test_error"]["per_seed"], ends, ends)
    title = "Test error at the end: every seed, mean, 95 % interval over seeds"
    analysis_figures.final_values(final, "test_error", title, axes)
    axes.set_xscale("log")
    axes.set_xticks([0.01, 0.015, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0])
    axes.minorticks_off()
    analysis_figures.value_axis(axes.xaxis, "test_error")
    return axes


def distorted_digits(runs: Path) -> Figure:
    """Figure 7: a digit, and distortions of it as used in training."""
    run = folder.load(runs / "lenet5_1998_distorted")
    fields = fields_of(distortions.Augmentation, run.config)
    augmentation = distortions.Augmentation(**fields | {"distorted_share": 1.0})
    dataset = datasets.load("mnist10k")
    place = int(np.flatnonzero(dataset.train_labels == 4)[0])
    digit = np.float32(preprocess.pad(dataset.train_images[[place]], "background")[0])

    @jax.jit  # one program, not one for each operation
    def distorted(digit: jax.Array) -> jax.Array:
        drawn = distortions.draw(jax.random.key(7), 19, augmentation)
        return jax.vmap(lambda affine: distortions.distort(digit, affine, 0.0))(drawn)

    pictures = [digit, *np.asarray(distorted(digit))]
    return analysis_figures.digits(pictures, ["the digit", *[""] * 19], columns=10)


def misclassified_digits(runs: Path, dataset: datasets.Dataset) -> Figure:
    """Figure 8: the test digits that most of the ten networks misclassify."""
    predictions = folder.load(runs / "lenet5_1998").predictions
    assert predictions is not None
    wrong = predictions[predictions.label != predictions.predicted]
    missed = wrong.groupby("image").agg(
        label=("label", "first"), answer=("predicted", lambda answers: answers.mode()[0]), count=("seed", "size")
    )
    shown = missed[2 * missed["count"] > predictions.seed.nunique()]
    captions = [f"{row.label}>{row.answer}" for row in shown.itertuples()]
    return analysis_figures.digits([dataset.test_images[image] for image in shown.index], captions, columns=12)


def effective_rates(run: Run, dataset_name: str) -> dict[str, Any]:
    """Smallest and largest eta / (mu + h_kk) in the first epoch, over all weights and seeds, by layer."""
    setting = dynamics.resolve({**run.config, "dataset": dataset_name, "sweep": ConfigDict()})
    of_seeds = [dynamics.numbers_by_layer(dynamics.effective_rates(setting, seed)) for seed in setting.seeds]
    together = {layer: np.concatenate([numbers[layer] for numbers in of_seeds]) for layer in of_seeds[0]}
    layers = {layer: [float(numbers.min()), float(numbers.max())] for layer, numbers in together.items()}
    ends = np.array(list(layers.values()))
    layers["all weights"] = [float(ends.min()), float(ends.max())]
    return {"fingerprint": datasets.load(dataset_name).fingerprint, "seeds": len(setting.seeds), "layers": layers}


def main(arguments: list[str]) -> None:
    """Writes the pages with their tables, and the figures."""
    del arguments
    runs, out, name = expanded(flags.FLAGS.runs, "runs"), expanded(flags.FLAGS.out, "out"), flags.FLAGS.dataset
    figures = out / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    population.configure()
    if name:
        run, dataset = folder.load(runs / "lenet5_1998"), datasets.load(name)
        if dataset.fingerprint != run.summary["dataset"]["fingerprint"]:
            sys.exit(f"dataset: {name!r} is not the data that {run.folder} was trained on; use the same data")
        files.write_json(runs / "lenet5_1998" / RATES, effective_rates(run, name))
        analysis_figures.save(misclassified_digits(runs, dataset), figures / "figure_8.png")
    for file, draw in {"figure_5": curves, "figure_6": sizes, "rejects": rejects, "ingredients": ingredients}.items():
        analysis_figures.save(analysis_figures.figure(functools.partial(draw, runs)), figures / f"{file}.png")
    analysis_figures.save(distorted_digits(runs), figures / "figure_7.png")
    target, text = out / PAGE.name, fill(PAGE, runs)
    files.replace_file(target, lambda partial: partial.write_text(text))
    print("written:", target, figures)


if __name__ == "__main__":
    flags.DEFINE_string("runs", str(STORED), "folder that contains the run folders")
    flags.DEFINE_string("out", str(DOCS), "folder for reproduction.md and figures/")
    flags.DEFINE_string("dataset", None, "MNIST, as in --config.dataset, for the parts that need the images")
    app.run(main)
