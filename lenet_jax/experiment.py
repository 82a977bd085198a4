"""Experiments: arms become populations, populations become a run folder."""

import contextlib
import dataclasses
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from lenet_jax import data, model, optim, population, results, train
from lenet_jax.arms import Arm, describe, expand
from lenet_jax.data import Dataset
from lenet_jax.distortions import Augmentation
from lenet_jax.errors import InputError
from lenet_jax.losses import Loss
from lenet_jax.model import Architecture
from lenet_jax.progress import Progress
from lenet_jax.train import Images, Recipe
from lenet_jax.workers import Workers

WORTH_WORKERS = 500_000
"""Samples x members from which on worker processes gain more than the seconds that they take to start: on two cores,
runs of this size took as long either way."""


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
        recipe = recipe_of(arm, datasets[data_key(arm)])  # refuses an architecture that doesn't fit the data
        if recipe.optimizer == "sdlm":
            check_curvature(recipe)
    return datasets


def check_curvature(recipe: Recipe) -> None:
    """Refuses what doesn't fit the training set of an arm with SDLM."""
    updates, estimates, patterns = recipe.epoch_steps, recipe.curvature_estimates, recipe.curvature_patterns
    if updates % estimates:
        raise InputError(f"curvature_estimates: {estimates} doesn't divide the {updates} updates of a pass")
    if patterns > recipe.train_size:
        raise InputError(f"curvature_patterns: {patterns} is more than the {recipe.train_size} training images")


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
    defaults = describe(ConfigDict())
    if results.finished(workdir, resolved, defaults):
        print(f"{workdir} holds this run, already finished", file=sys.stderr)
        return results.load(workdir)
    datasets = load_data(arms)
    results.claim(workdir, resolved, defaults)
    population.configure()
    provenance = results.describe_environment(command) | {"cores": population.cores(), "started": now()}
    provenance["fingerprints"] = {dataset.name: dataset.fingerprint for dataset in datasets.values()}
    tables: list[pd.DataFrame] = []
    predictions: list[pd.DataFrame] = []
    rows: list[dict[str, Any]] = []
    first = arms[0]
    progress = Progress(len(arms), sum(arm.settings["epochs"] for arm in arms))
    with progress, engine_for(arms, datasets) as engine:
        images = images_of(datasets[data_key(first)], first)
        for place, arm in enumerate(arms):
            # Made anew only where they differ: workers are sent what they don't have.
            if place and image_key(arm) != image_key(arms[place - 1]):
                images = images_of(datasets[data_key(arm)], arm)
            trained, row = run_arm(arm, arms[place:], datasets[data_key(arm)], images, engine, progress)
            row["dataset"] = describe_data(datasets[data_key(arm)], arm)
            tables.append(labelled(trained.metrics, arm))
            if len(trained.predictions):
                predictions.append(labelled(trained.predictions, arm))
            rows.append(row)
            # After every arm, so that a run that is stopped leaves what it measured.
            results.write_table(workdir / results.METRICS, pd.concat(tables, ignore_index=True))
            if predictions:
                results.write_table(workdir / results.PREDICTIONS, pd.concat(predictions, ignore_index=True))
    results.write_json(workdir / results.PROVENANCE, provenance | {"finished": now()})
    summary = {"dataset": describe_data(datasets[data_key(first)], first), "arms": rows}
    results.write_json(workdir / results.SUMMARY, summary)
    return results.load(workdir)


def now() -> str:
    """Date and time, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def labelled(table: pd.DataFrame, arm: Arm) -> pd.DataFrame:
    """The table with the arm's name and axes before its columns."""
    return table.assign(arm=arm.name, **arm.axes)[["arm", *arm.axes, *table.columns]]


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

    def predict(self, members: Any, split: range, /) -> train.Predictions:
        """What its members make of images."""


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


class Trained(NamedTuple):
    """What members left behind.

    Attributes:
      metrics: a row for each epoch, split, metric and seed.
      predictions: a row for each seed and test image; no rows if the config doesn't ask for them.
      seconds: of training alone.
      memory: bytes that it took at its peak, as the compiler predicted.
    """

    metrics: pd.DataFrame
    predictions: pd.DataFrame
    seconds: float
    memory: int


def run_arm(
    arm: Arm, following: list[Arm], dataset: Dataset, images: Images, engine: Engine, progress: Progress
) -> tuple[Trained, dict[str, Any]]:
    """Trains and evaluates one arm.

    Args:
      arm: to be trained.
      following: it and the arms after it, for which programs can be compiled in advance.
      dataset: its data.
      images: `images_of` both.
      engine: see `engine_for`.
      progress: is told.

    Returns:
      what its members left, and its row of `summary.json`.
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
    splits = splits_of(dataset, arm)
    parts = [train_members(chunk, arm, splits, images, recipe, engine, progress) for chunk in chunks]
    metrics = pd.concat([part.metrics for part in parts], ignore_index=True)
    trained = Trained(
        metrics=metrics.sort_values(["epoch", "split", "metric", "seed"], kind="stable"),
        predictions=pd.concat([part.predictions for part in parts], ignore_index=True),
        seconds=sum(part.seconds for part in parts),
        memory=max(part.memory for part in parts),
    )
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
    for split in splits:
        of_split = final[(final.split == split) & (final.metric == "error")].sort_values("seed")
        row[f"{split}_error"] = results.summarize(of_split.value.to_numpy())
    row["seconds"] = time.perf_counter() - began
    samples = settings["epochs"] * recipe.epoch_steps * recipe.batch_size * len(seeds)
    row["samples_per_second"] = samples / trained.seconds
    row["predicted_memory"] = trained.memory
    progress.finish(row)
    return trained, row


def train_members(
    seeds: range,
    arm: Arm,
    splits: Mapping[str, range],
    images: Images,
    recipe: Recipe,
    engine: Engine,
    progress: Progress,
) -> Trained:
    """Trains and evaluates members of an arm that fit in memory together."""
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
    predictions = pd.DataFrame()
    if arm.settings["store_predictions"]:
        test = splits["test"]
        labels = np.asarray(images.labels)[test.start : test.stop]
        predictions = table_of(engine.predict(members, test), labels, seeds)
    return Trained(pd.concat(tables, ignore_index=True), predictions, training_seconds, members.memory)


def long_form(measured: Mapping[str, train.Metrics], epoch: int, seeds: range) -> Iterator[pd.DataFrame]:
    """A row for each split, metric and seed."""
    for split, metrics in measured.items():
        for metric, values in (("loss", metrics.loss), ("error", metrics.error)):
            columns = {"seed": list(seeds), "epoch": epoch, "split": split, "metric": metric}
            yield pd.DataFrame(columns | {"value": np.asarray(values, np.float64)})


def table_of(predictions: train.Predictions, labels: np.ndarray, seeds: range) -> pd.DataFrame:
    """A row for each seed and image."""
    count = len(labels)
    return pd.DataFrame(
        {
            "seed": np.repeat(np.array(seeds), count),
            "image": np.tile(np.arange(count, dtype=np.int32), len(seeds)),
            "label": np.tile(labels.astype(np.int8), len(seeds)),
            "predicted": predictions.predicted.ravel().astype(np.int8),
            "margin": predictions.margin.ravel(),
        }
    )
