"""Experiments: a config becomes arms, arms become populations, populations become a run folder.

The only place that reads fields from a ConfigDict.
"""

import contextlib
import dataclasses
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from lenet_jax import curvature, data, distortions, layers, losses, model, optim, population, results, train
from lenet_jax.data import Dataset
from lenet_jax.distortions import Augmentation
from lenet_jax.errors import InputError, check_choice
from lenet_jax.experiments import base
from lenet_jax.losses import Loss
from lenet_jax.model import Architecture
from lenet_jax.progress import Progress
from lenet_jax.train import Images, Recipe
from lenet_jax.workers import Workers

Check = Callable[[str, Any], None]

WORTH_WORKERS = 500_000
"""Samples x members from which on worker processes gain more than the seconds that they take to start: on two cores,
runs of this size took as long either way."""


def choice(allowed: Collection[str]) -> Check:
    """A check that a value is one of `allowed`."""
    return lambda field, value: check_choice(field, value, allowed)


def number(low: float, high: float = math.inf, *, open_low: bool = False, open_high: bool = False) -> Check:
    """A check that a value is finite and in a range; an open end isn't part of it."""
    wanted = f"{'more than' if open_low else 'at least'} {low:g}"
    if high < math.inf:
        wanted += f" and {'less than' if open_high else 'at most'} {high:g}"

    def check(field: str, value: Any) -> None:
        low_enough = value < high if open_high else value <= high
        high_enough = value > low if open_low else value >= low
        if not (math.isfinite(value) and low_enough and high_enough):
            raise InputError(f"{field}: {value!r} is out of range; allowed is {wanted}")

    return check


def anything(field: str, value: Any) -> None:
    """No check here: the value is checked where it is used, before anything is compiled."""


FIELDS: Mapping[str, Check] = {
    "dataset": anything,
    "data_dir": anything,
    "padding": choice(data.PADDINGS),
    "normalization": choice(data.NORMALIZATIONS),
    "validation_size": number(0),
    "train_size": number(0),
    "activation": choice(layers.ACTIVATIONS),
    "connectivity": choice(model.CONNECTIVITIES),
    "subsampling": choice(model.SUBSAMPLINGS),
    "subsampling_window": choice(model.WINDOWS),
    "output": choice(model.OUTPUTS),
    "initializer": choice(model.INITIALIZERS),
    "loss": choice(losses.LOSSES),
    "mse_point": choice(losses.MSE_POINTS),
    "target_code": choice(losses.TARGET_CODES),
    "mse_reduction": choice(losses.MSE_REDUCTIONS),
    "mse_factor": number(0, open_low=True),
    "map_constant": number(0, open_low=True),
    "optimizer": choice(optim.OPTIMIZERS),
    "learning_rate": number(0, open_low=True),
    "momentum": number(0, 1, open_high=True),
    "weight_decay": number(0),
    "mu": number(0, open_low=True),
    "curvature_patterns": number(1),
    "curvature_start": choice(curvature.STARTS),
    "schedule": choice(optim.SCHEDULES),
    "batch_size": number(1),
    "order": choice(train.ORDERS),
    "augmentation": choice(distortions.AUGMENTATIONS),
    "distorted_share": number(0, 1),
    "max_translation": number(0),
    "max_scaling": number(0),
    "max_squeezing": number(0),
    "max_shear": number(0),
    "epochs": number(1),
    "seeds": number(1),
    "first_seed": number(0, 2**32, open_high=True),
}
"""Every field of a config but `sweep`, with the check of its value; types are those of the defaults."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """One combination of the sweep's values.

    Attributes:
      name: ``loss=mse,activation=tanh``; ``all`` without a sweep.
      axes: the values that make this arm.
      settings: every field.
    """

    name: str
    axes: dict[str, Any]
    settings: dict[str, Any]


def expand(config: ConfigDict) -> list[Arm]:
    """The arms of a config: the product of its sweep's axes.

    Raises:
      InputError: a field or a value is not allowed; the message names it.
    """
    defaults = base.get_config()
    unknown = sorted(set(config) - set(defaults))
    if unknown:
        raise InputError(f"{unknown[0]}: is no field; allowed are {', '.join(defaults)}")
    fields = {field: check_value(field, config.get(field, defaults[field])) for field in FIELDS}
    sweep = config.get("sweep", {})
    if not isinstance(sweep, Mapping | ConfigDict):
        raise InputError(f"sweep: {sweep!r} is no mapping; write config.sweep.FIELD = (first, second)")
    axes = {axis: check_axis(axis, values) for axis, values in sweep.items()}
    arms = []
    for combination in itertools.product(*axes.values()):
        chosen = dict(zip(axes, combination, strict=True))
        name = ",".join(f"{axis}={results.format_value(value)}" for axis, value in chosen.items()) or "all"
        arms.append(Arm(name, chosen, fields | chosen))
    for arm in arms:
        check_together(arm)
    return arms


def check_value(field: str, value: Any) -> Any:
    """The value with the type of the field's default, if it is allowed."""
    default = base.get_config()[field]
    wanted = type(default)
    if wanted is float and type(value) is int:
        value = float(value)
    if type(value) is not wanted:
        raise InputError(f"{field}: {value!r} is of type {type(value).__name__}; allowed is {wanted.__name__}")
    FIELDS[field](field, value)
    return value


def check_axis(axis: str, values: Any) -> list[Any]:
    """A sweep axis's values, if they are allowed."""
    if axis not in FIELDS:
        raise InputError(f"sweep.{axis}: is no field; allowed are {', '.join(FIELDS)}")
    if not isinstance(values, tuple | list) or not values:
        raise InputError(f"sweep.{axis}: {values!r} is no list of values; write sweep.{axis}=(first, second)")
    checked = [check_value(axis, value) for value in values]
    if len(set(checked)) < len(checked):
        raise InputError(f"sweep.{axis}: {tuple(values)!r} names a value twice; every arm must differ")
    return checked


def check_together(arm: Arm) -> None:
    """Refuses fields that don't go together."""
    settings = arm.settings
    if settings["output"] == "linear" and settings["loss"] == "cross_entropy":
        raise InputError(f"loss: 'cross_entropy' needs output 'softmax', but output is 'linear' (arm {arm.name})")
    if settings["output"] == "linear" and settings["loss"] == "mse" and settings["mse_point"] == "softmax":
        raise InputError(f"mse_point: 'softmax' needs output 'softmax', but output is 'linear' (arm {arm.name})")
    if settings["first_seed"] + settings["seeds"] > 2**32:
        raise InputError(f"seeds: {settings['seeds']} from first_seed {settings['first_seed']} on pass 2**32 - 1")


def describe(config: ConfigDict) -> dict[str, Any]:
    """The resolved config as JSON has it, every field included."""
    content: dict[str, Any] = json.loads(base.get_config().to_json()) | json.loads(config.to_json())
    return content


def data_key(arm: Arm) -> tuple[str, str]:
    """What names the arm's data set."""
    return arm.settings["dataset"], arm.settings["data_dir"]


def load_data(arms: list[Arm]) -> dict[tuple[str, str], Dataset]:
    """Every data set of the arms, each loaded once, and checked against the arms' fields.

    Raises:
      InputError: one can't be had, or it is too small for a field.
    """
    datasets = {key: data.load(*key) for key in dict.fromkeys(map(data_key, arms))}
    for arm in arms:
        total, settings = len(datasets[data_key(arm)].train_labels), arm.settings
        left = total - settings["validation_size"]
        if left < 1:
            raise InputError(f"validation_size: {settings['validation_size']} leaves none of {total} to train on")
        if settings["train_size"] > left:
            raise InputError(f"train_size: {settings['train_size']} is more than the {left} images that are left")
        used = settings["train_size"] or left
        if settings["batch_size"] > used:
            raise InputError(f"batch_size: {settings['batch_size']} is more than the {used} training images")
        recipe_of(arm, datasets[data_key(arm)])  # refuses an architecture that doesn't fit the data
    return datasets


def splits_of(dataset: Dataset, arm: Arm) -> dict[str, range]:
    """Places of each split in the images of `images_of`."""
    total = len(dataset.train_labels)
    left = total - arm.settings["validation_size"]
    splits = {"train": range(arm.settings["train_size"] or left), "validation": range(left, total)}
    splits["test"] = range(total, total + len(dataset.test_labels))
    return {name: places for name, places in splits.items() if len(places)}


def images_of(dataset: Dataset, arm: Arm) -> Images:
    """All images, padded, as NumPy arrays; the normalization is measured on the training split alone."""
    images = np.concatenate([dataset.train_images, dataset.test_images])
    labels = np.concatenate([dataset.train_labels, dataset.test_labels])
    training = dataset.train_images[: splits_of(dataset, arm)["train"].stop]
    scaling = data.NORMALIZATIONS[arm.settings["normalization"]](training)
    pixels = data.pad(images, arm.settings["padding"])
    arrays: list[Any] = [pixels, labels.astype(np.int32), np.float32(scaling.scale), np.float32(scaling.shift)]
    return Images(*arrays)


def image_key(arm: Arm) -> tuple[Any, ...]:
    """What `images_of` depends on."""
    return *data_key(arm), *(
        arm.settings[name] for name in ("padding", "normalization", "validation_size", "train_size")
    )


def recipe_of(arm: Arm, dataset: Dataset) -> Recipe:
    """What is compiled for an arm."""
    settings = arm.settings

    def named(kind: type, *but: str) -> dict[str, Any]:
        names = {field.name for field in dataclasses.fields(kind)} - set(but)
        return {name: settings[name] for name in names if name in settings}

    return Recipe(
        architecture=Architecture(classes=dataset.classes, **named(Architecture)),
        loss=Loss(name=settings["loss"], **named(Loss)),
        augmentation=Augmentation(**named(Augmentation)),
        train_size=len(splits_of(dataset, arm)["train"]),
        **named(Recipe, "loss", "augmentation", "train_size"),
    )


def run(config: ConfigDict, workdir: Path, command: str) -> results.Run:
    """Runs every arm of a config and writes the run folder.

    Args:
      config: see `experiments/base.py`.
      workdir: the run folder. If it holds this config's run, finished, that run is returned and nothing is done.
      command: what the user typed, for the provenance.

    Raises:
      InputError: the config, a data set or the folder can't be used. Then nothing was compiled and nothing written.
    """
    arms = expand(config)
    resolved = describe(config)
    if results.finished(workdir, resolved):
        print(f"{workdir} holds this run, already finished", file=sys.stderr)
        return results.load(workdir)
    datasets = load_data(arms)
    results.claim(workdir, resolved)
    population.configure()
    provenance = results.describe_environment(command) | {"cores": population.cores(), "started": now()}
    provenance["fingerprints"] = {dataset.name: dataset.fingerprint for dataset in datasets.values()}
    tables: list[pd.DataFrame] = []
    rows: list[dict[str, Any]] = []
    first = arms[0]
    progress = Progress(len(arms), sum(arm.settings["epochs"] for arm in arms))
    with progress, engine_for(arms, datasets) as engine:
        images = images_of(datasets[data_key(first)], first)
        for place, arm in enumerate(arms):
            # Made anew only where they differ: workers are sent what they don't have.
            if place and image_key(arm) != image_key(arms[place - 1]):
                images = images_of(datasets[data_key(arm)], arm)
            metrics, row = run_arm(arm, arms[place:], datasets[data_key(arm)], images, engine, progress)
            row["dataset"] = describe_data(datasets[data_key(arm)], arm)
            tables.append(metrics)
            rows.append(row)
            # After every arm, so that a run that is stopped leaves what it measured.
            results.write_metrics(workdir / results.METRICS, pd.concat(tables, ignore_index=True))
    results.write_json(workdir / results.PROVENANCE, provenance | {"finished": now()})
    summary = {"dataset": describe_data(datasets[data_key(first)], first), "arms": rows}
    results.write_json(workdir / results.SUMMARY, summary)
    return results.load(workdir)


def now() -> str:
    """Date and time, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def describe_data(dataset: Dataset, arm: Arm) -> dict[str, Any]:
    """A data set as the summary has it."""
    sizes = {name: len(places) for name, places in splits_of(dataset, arm).items()}
    return {"name": dataset.name, "fingerprint": dataset.fingerprint, "validation": 0} | sizes


@runtime_checkable
class Engine(Protocol):
    """What trains populations: the module `population` in this process, or `workers.Workers`."""

    def create(self, seeds: Sequence[int], hyper: Mapping[str, Sequence[float]], images: Images, recipe: Recipe) -> Any:
        """A new population."""

    def train_epoch(self, members: Any, /) -> train.Metrics:
        """Trains it for a pass."""

    def evaluate(self, members: Any, split: range, /) -> train.Metrics:
        """Evaluates it on images."""


@contextlib.contextmanager
def engine_for(arms: list[Arm], datasets: Mapping[tuple[str, str], Dataset]) -> Iterator[Engine]:
    """The engine that is fastest for these arms on this machine."""
    seeds = max(arm.settings["seeds"] for arm in arms)
    samples = sum(
        arm.settings["epochs"] * arm.settings["seeds"] * len(splits_of(datasets[data_key(arm)], arm)["train"])
        for arm in arms
    )
    if jax.default_backend() == "cpu" and samples >= WORTH_WORKERS:
        with Workers(min(population.cores(), seeds)) as workers:
            yield workers
    else:
        yield population


def chunks_of(seeds: range, recipe: Recipe) -> list[range]:
    """The seeds in as few equal chunks as memory needs, to be trained one after the other."""
    count = min(len(seeds), math.ceil(len(seeds) * population.member_memory(recipe) / population.memory_for_members()))
    size = math.ceil(len(seeds) / count)
    return [seeds[start : start + size] for start in range(0, len(seeds), size)]


def run_arm(
    arm: Arm, following: list[Arm], dataset: Dataset, images: Images, engine: Engine, progress: Progress
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Trains and evaluates one arm.

    Args:
      arm: to be trained.
      following: it and the arms after it, for which programs can be compiled in advance.
      dataset: its data.
      images: `images_of` both.
      engine: see `engine_for`.
      progress: is told.

    Returns:
      its rows of `metrics.parquet`, and its row of `summary.json`.
    """
    began = time.perf_counter()
    settings = arm.settings
    seeds = range(settings["first_seed"], settings["first_seed"] + settings["seeds"])
    recipe = recipe_of(arm, dataset)
    chunks = chunks_of(seeds, recipe)
    progress.start(arm.name, len(seeds), len(chunks))
    if isinstance(engine, Workers):
        alike = [other for other in following if data_key(other) == data_key(arm)]
        engine.prepare([recipe_of(other, dataset) for other in alike], len(chunks[0]), images)
    parts, training_seconds, memory = [], 0.0, 0
    for chunk in chunks:
        part, seconds, needed = train_members(chunk, arm, splits_of(dataset, arm), images, recipe, engine, progress)
        parts.append(part)
        training_seconds += seconds
        memory = max(memory, needed)
    metrics = pd.concat(parts, ignore_index=True).sort_values(["epoch", "split", "metric", "seed"], kind="stable")
    metrics = metrics.assign(arm=arm.name, **arm.axes)[["arm", *arm.axes, *metrics.columns]]
    final = metrics[metrics.epoch == settings["epochs"]]
    losses_finite = (
        metrics[metrics.metric == "loss"].groupby("seed").value.agg(lambda values: np.isfinite(values).all())
    )
    row = {
        "name": arm.name,
        "axes": arm.axes,
        "seeds": len(seeds),
        "diverged": int((~losses_finite.astype(bool)).sum()),
        "chosen": {},
        "parameters": sum(count for _, _, count in model.parameter_table(recipe.architecture)),
    }
    for split in splits_of(dataset, arm):
        of_split = final[(final.split == split) & (final.metric == "error")].sort_values("seed")
        row[f"{split}_error"] = results.summarize(of_split.value.to_numpy())
    row["seconds"] = time.perf_counter() - began
    trained = settings["epochs"] * recipe.epoch_steps * recipe.batch_size * len(seeds)
    row["samples_per_second"] = trained / training_seconds
    row["predicted_memory"] = memory
    progress.finish(row)
    return metrics, row


def train_members(
    seeds: range,
    arm: Arm,
    splits: Mapping[str, range],
    images: Images,
    recipe: Recipe,
    engine: Engine,
    progress: Progress,
) -> tuple[pd.DataFrame, float, int]:
    """Trains and evaluates members of an arm that fit in memory together.

    Returns:
      their metrics, a row for each epoch, split, metric and seed; seconds of training alone; predicted memory in bytes.
    """
    epochs = arm.settings["epochs"]
    hyper = {name: [arm.settings[name]] * len(seeds) for name in optim.HYPERPARAMETERS}
    members = engine.create(seeds, hyper, images, recipe)
    progress.compiled(members.memory)
    tables: list[pd.DataFrame] = []
    training_seconds, epoch_samples = 0.0, recipe.epoch_steps * recipe.batch_size * len(seeds)
    for epoch in range(epochs + 1):
        measured = {}
        if epoch:
            started = time.perf_counter()
            measured["running"] = engine.train_epoch(members)
            training_seconds += time.perf_counter() - started
        # The training set as a whole is evaluated once, at the end: in between, `running` tells for nothing.
        wanted = [name for name in splits if name != "train" or epoch == epochs]
        measured |= {name: engine.evaluate(members, splits[name]) for name in wanted}
        tables.extend(long_form(measured, epoch, seeds))
        if epoch:
            errors = {name: float(measured[name].error.mean()) for name in ("running", "test")}
            progress.epoch(epoch * epoch_samples / training_seconds, errors["running"], errors["test"])
    return pd.concat(tables, ignore_index=True), training_seconds, members.memory


def long_form(measured: Mapping[str, train.Metrics], epoch: int, seeds: range) -> Iterator[pd.DataFrame]:
    """A row for each split, metric and seed."""
    for split, metrics in measured.items():
        for metric, values in (("loss", metrics.loss), ("error", metrics.error)):
            columns = {"seed": list(seeds), "epoch": epoch, "split": split, "metric": metric}
            yield pd.DataFrame(columns | {"value": np.asarray(values, np.float64)})
