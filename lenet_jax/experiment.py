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

from lenet_jax import model, optim, population, results, stats, tracking, train, tuning
from lenet_jax.arms import Arm, describe, expand, in_range
from lenet_jax.data import Dataset
from lenet_jax.errors import check_choice
from lenet_jax.inputs import data_key, describe_data, final, image_key, images_of, load_data, recipe_of, splits_of
from lenet_jax.progress import Progress
from lenet_jax.train import Images, Recipe
from lenet_jax.workers import Workers

WORTH_WORKERS = 500_000
"""Samples x members from which on worker processes gain more than the seconds that they take to start: on two cores,
runs of this size took as long either way."""


def run(config: ConfigDict, workdir: Path, command: str, tracker: str = "none") -> results.Run:
    """Runs every arm of a config and writes the run folder.

    Args:
      config: see `experiments/base.py`.
      workdir: the run folder. If it holds this config's run, finished, that run is returned and nothing is done.
      command: what the user typed, for the provenance.
      tracker: a key of `tracking.TRACKERS`, which is told of every epoch.

    Raises:
      InputError: the config, a data set, the folder or the tracker can't be used. Then nothing was compiled and nothing
        written.
    """
    check_choice("tracker", tracker, tracking.TRACKERS)
    arms = expand(config)
    resolved = describe(config)
    defaults = describe(ConfigDict())
    if results.finished(workdir, resolved, defaults):
        print(f"{workdir} holds this run, already finished", file=sys.stderr)
        return results.load(workdir)
    datasets = load_data(arms)
    tracked = tracking.TRACKERS[tracker](workdir)
    results.claim(workdir, resolved, defaults)
    population.configure()
    provenance = results.describe_environment(command) | {"cores": population.cores(), "started": now()}
    provenance["fingerprints"] = {dataset.name: dataset.fingerprint for dataset in datasets.values()}
    tables: dict[str, list[pd.DataFrame]] = {results.METRICS: [], results.PREDICTIONS: [], results.TUNING: []}
    rows: list[dict[str, Any]] = []
    epochs = sum(arm.settings["epochs"] * (2 if arm.tuning else 1) for arm in arms)
    with (
        contextlib.closing(tracked),  # also if something fails: an arm that isn't finished is marked so
        Progress(len(arms), epochs) as progress,
        engine_for(arms, datasets) as engine,
    ):
        laboratory = Laboratory(datasets, engine, progress, tracked)
        for place, arm in enumerate(arms):
            trained, tried, row = run_arm(arm, arms[place:], laboratory)
            rows.append(row)
            # After every arm, so that a run that is stopped leaves what it measured.
            for name, table in (
                (results.METRICS, trained.metrics.assign(**row["chosen"])),
                (results.PREDICTIONS, trained.predictions),
                (results.TUNING, tried),
            ):
                if len(table):
                    tables[name].append(labelled(table, arm))
                    results.write_table(workdir / name, pd.concat(tables[name], ignore_index=True))
    results.write_json(workdir / results.PROVENANCE, provenance | {"finished": now()})
    first = final(arms[0], {})
    summary = {"dataset": describe_data(datasets[data_key(first)], first), "arms": rows}
    results.write_json(workdir / results.SUMMARY, summary)
    return results.load(workdir)


def now() -> str:
    """Date and time, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def labelled(table: pd.DataFrame, arm: Arm) -> pd.DataFrame:
    """The table with the arm's name and axes before its columns."""
    names = pd.DataFrame({"arm": arm.name, **arm.axes}, index=table.index)
    return pd.concat([names, table], axis=1)


@runtime_checkable
class Engine(Protocol):
    """What trains populations: the module `population` in this process, or `workers.Workers`."""

    def create(self, seeds: Sequence[int], hyper: Mapping[str, Sequence[float]], images: Images, recipe: Recipe) -> Any:
        """A new population."""

    def train_epoch(self, members: Any, /) -> train.Metrics:
        """Trains it for a pass."""

    def evaluate(self, members: Any, split: range, /) -> train.Evaluation:
        """Evaluates it on images."""

    def predict(self, members: Any, split: range, /) -> train.Predictions:
        """What its members make of images."""


@contextlib.contextmanager
def engine_for(arms: list[Arm], datasets: Mapping[tuple[str, str], Dataset]) -> Iterator[Engine]:
    """The engine that is fastest for these arms on this machine."""
    members = max(len(members.seeds) for arm in arms for _, members in stages(arm))
    samples = sum(
        arm.settings["epochs"] * len(members.seeds) * len(splits_of(datasets[data_key(arm)], trained)["train"])
        for arm in arms
        for trained, members in stages(arm)
    )
    if jax.default_backend() == "cpu" and samples >= WORTH_WORKERS:
        with Workers(min(population.cores(), members)) as workers:
            yield workers
    else:
        yield population


@dataclasses.dataclass
class Laboratory:
    """What all arms of a run use.

    Attributes:
      datasets: by `data_key`.
      engine: what trains.
      progress, tracked: are told.
      last: the images that were used last, with their `image_key`.
    """

    datasets: Mapping[tuple[str, str], Dataset]
    engine: Engine
    progress: Progress
    tracked: tracking.Tracker
    last: tuple[tuple[Any, ...], Images] | None = None

    def images(self, arm: Arm) -> Images:
        """`images_of` an arm. Made anew only where they differ: workers are sent what they don't have."""
        if self.last is None or self.last[0] != image_key(arm):
            self.last = image_key(arm), images_of(self.datasets[data_key(arm)], arm)
        return self.last[1]


class Members(NamedTuple):
    """Members of a population.

    Attributes:
      seeds: one a member.
      tuned: values of hyperparameters that are being tuned, one a member each; empty for members that are tested.
    """

    seeds: list[int]
    tuned: dict[str, list[float]]

    @property
    def tested(self) -> bool:
        """Whether these are an arm's own members, which are tested and tracked."""
        return not self.tuned

    def part(self, start: int, size: int) -> "Members":
        """So many of them."""
        return Members(
            self.seeds[start : start + size],
            {name: values[start : start + size] for name, values in self.tuned.items()},
        )


def seeds_of(arm: Arm) -> Members:
    """The members that are tested."""
    return Members([arm.settings["first_seed"] + place for place in range(arm.settings["seeds"])], {})


def candidates_of(arm: Arm, tried: tuning.Tuning) -> Members:
    """Members that try hyperparameters: every candidate with every tuning seed."""
    seeds = [arm.settings["tune_first_seed"] + place for place in range(arm.settings["tune_seeds"])]
    candidates = tried.candidates()
    values = {name: [candidate[name] for candidate in candidates for _ in seeds] for name in tried.names}
    return Members(seeds * len(candidates), values)


def stages(arm: Arm) -> list[tuple[Arm, Members]]:
    """What is trained for an arm: candidates if it is tuned, then the members that are tested."""
    tried = [(arm, candidates_of(arm, arm.tuning))] if arm.tuning else []
    return [*tried, (final(arm, {}), seeds_of(arm))]


def chunks_of(members: Members, recipe: Recipe) -> list[Members]:
    """The members in as few equal chunks as memory needs, to be trained one after the other."""
    total = len(members.seeds)
    count = min(total, math.ceil(total * population.member_memory(recipe) / population.memory_for_members()))
    size = math.ceil(total / count)
    return [members.part(start, size) for start in range(0, total, size)]


class Trained(NamedTuple):
    """What members left behind.

    Attributes:
      metrics: a row for each epoch, split, metric and seed.
      predictions: a row for each seed and test image; no rows if the config doesn't ask for them.
      seconds: of training alone.
      samples: trained on, of all members.
      memory: bytes that it took at its peak, as the compiler predicted.
    """

    metrics: pd.DataFrame
    predictions: pd.DataFrame
    seconds: float
    samples: int
    memory: int


def run_arm(arm: Arm, following: list[Arm], laboratory: Laboratory) -> tuple[Trained, pd.DataFrame, dict[str, Any]]:
    """Tunes, trains and evaluates one arm.

    Args:
      arm: to be trained.
      following: it and the arms after it, for which programs can be compiled in advance.
      laboratory: of the run.

    Returns:
      what its members left, what was measured for tuning (no rows without it), and its row of `summary.json`.
    """
    began = time.perf_counter()
    progress = laboratory.progress
    progress.start(arm.name)
    tried = pd.DataFrame()
    chosen: tuning.Values = {}
    edges: list[str] = []
    if arm.tuning:
        tried, chosen = tune(arm, arm.tuning, following, laboratory)
        edges = tuning.at_edge(chosen, tried, arm.tuning.grid)
        errors = tuning.errors_by_candidate(tried, arm.tuning.names)
        progress.chosen(chosen, len(errors), float(errors.min()), edges)
    tested = final(arm, chosen)
    settings, dataset = tested.settings, laboratory.datasets[data_key(arm)]
    splits = splits_of(dataset, tested)
    laboratory.tracked.start(arm.name, settings)
    trained = train_members(tested, seeds_of(tested), splits, following, laboratory)
    metrics = trained.metrics
    at_end = metrics[metrics.epoch == settings["epochs"]]
    losses_finite = (
        metrics[metrics.metric == "loss"].groupby("seed").value.agg(lambda values: np.isfinite(values).all())
    )
    recipe = recipe_of(tested, dataset)
    row = {
        "name": arm.name,
        "axes": arm.axes,
        "seeds": settings["seeds"],
        "diverged": int((~losses_finite.astype(bool)).sum()),
        "chosen": chosen,
        "chosen_at_edge": edges,
        "settings": settings,
        "parameters": sum(count for _, _, count in model.parameter_table(recipe.architecture)),
        "dataset": describe_data(dataset, tested),
    }
    for split in splits:
        of_split = at_end[(at_end.split == split) & (at_end.metric == "error")].sort_values("seed")
        row[f"{split}_error"] = stats.summarize(of_split.value.to_numpy())
    row["seconds"] = time.perf_counter() - began
    row["samples_per_second"] = trained.samples / trained.seconds
    row["predicted_memory"] = trained.memory
    means = {name: band.mean for name, band in tracking.bands_of(at_end).items()}
    laboratory.tracked.finish(means | {name: row[name] for name in ("seconds", "samples_per_second")})
    progress.finish(row)
    return trained, tried, row


def tune(
    arm: Arm, first: tuning.Tuning, following: list[Arm], laboratory: Laboratory
) -> tuple[pd.DataFrame, tuning.Values]:
    """Tries an arm's hyperparameters; returns what was measured, and the choice.

    The test images are not evaluated. Where the choice is at the edge of a grid, the grid is widened as often as the
    config allows.
    """
    splits = {"validation": splits_of(laboratory.datasets[data_key(arm)], arm)["validation"]}
    tried = new = first
    tables: list[pd.DataFrame] = []
    left = arm.settings["tune_widenings"]
    while True:
        candidates = candidates_of(arm, new)
        tables.append(train_members(arm, candidates, splits, following, laboratory).metrics)
        table = pd.concat(tables, ignore_index=True)
        chosen = tuning.choose(table, first.names)
        further = {name: tuning.beyond(tried, name, chosen[name]) for name in tuning.at_edge(chosen, table, first.grid)}
        allowed = [name for name, value in further.items() if value is not None and in_range(name, value)]
        if not left or not allowed:
            return table, chosen
        left -= 1
        laboratory.progress.more(arm.settings["epochs"])
        value = further[allowed[0]]
        assert value is not None
        tried, new = tuning.widened(tried, allowed[0], value)


def train_members(
    arm: Arm, members: Members, splits: Mapping[str, range], following: list[Arm], laboratory: Laboratory
) -> Trained:
    """Trains and evaluates members of an arm, in chunks if they don't fit in memory together.

    Args:
      arm: its settings are those of all members, but for what is tuned.
      members: to be trained.
      splits: what is evaluated.
      following: see `run_arm`.
      laboratory: of the run.
    """
    dataset, engine = laboratory.datasets[data_key(arm)], laboratory.engine
    recipe = recipe_of(arm, dataset)
    chunks = chunks_of(members, recipe)
    images = laboratory.images(arm)
    laboratory.progress.stage("" if members.tested else "tuning, ", len(members.seeds), len(chunks))
    if isinstance(engine, Workers):
        coming = [stage for other in following if data_key(other) == data_key(arm) for stage in stages(other)]
        recipes = [recipe_of(other, dataset) for other, _ in coming]
        sizes = [len(chunks_of(some, other)[0].seeds) for other, (_, some) in zip(recipes, coming, strict=True)]
        engine.prepare([(recipe, len(chunks[0].seeds)), *zip(recipes, sizes, strict=True)], images)
    parts = [train_chunk(chunk, arm, splits, images, recipe, laboratory) for chunk in chunks]
    metrics = pd.concat([part.metrics for part in parts], ignore_index=True)
    if members.tested and len(chunks) > 1:
        for epoch, table in metrics.groupby("epoch"):
            laboratory.tracked.epoch(int(str(epoch)), tracking.bands_of(table))
    return Trained(
        metrics=metrics.sort_values(["epoch", "split", "metric", *members.tuned, "seed"], kind="stable"),
        predictions=pd.concat([part.predictions for part in parts], ignore_index=True),
        seconds=sum(part.seconds for part in parts),
        samples=sum(part.samples for part in parts),
        memory=max(part.memory for part in parts),
    )


def train_chunk(
    members: Members,
    arm: Arm,
    splits: Mapping[str, range],
    images: Images,
    recipe: Recipe,
    laboratory: Laboratory,
) -> Trained:
    """Trains and evaluates members that fit in memory together."""
    engine, epochs, count = laboratory.engine, arm.settings["epochs"], len(members.seeds)
    hyper = {name: members.tuned.get(name, [arm.settings[name]] * count) for name in optim.HYPERPARAMETERS}
    trained = engine.create(members.seeds, hyper, images, recipe)
    laboratory.progress.compiled(trained.memory)
    tables: list[pd.DataFrame] = []
    seconds, epoch_samples = 0.0, recipe.epoch_steps * recipe.batch_size * count
    for epoch in range(epochs + 1):
        measured: dict[str, train.Metrics | train.Evaluation] = {}
        if epoch:
            started = time.perf_counter()
            measured["running"] = engine.train_epoch(trained)
            seconds += time.perf_counter() - started
        # The training set as a whole is evaluated once, at the end: in between, `running` tells for nothing.
        wanted = [name for name in splits if name != "train" or epoch == epochs]
        measured |= {name: engine.evaluate(trained, splits[name]) for name in wanted}
        tables.append(long_form(measured, epoch, members, recipe))
        if members.tested and count == arm.settings["seeds"]:
            laboratory.tracked.epoch(epoch, tracking.bands_of(tables[-1]))
        if epoch:
            errors = {name: float(measured[name].error.mean()) for name in ("running", wanted[-1])}
            laboratory.progress.epoch(epoch * epoch_samples / seconds, errors)
    predictions = pd.DataFrame()
    if arm.settings["store_predictions"] and "test" in splits:
        test = splits["test"]
        labels = np.asarray(images.labels)[test.start : test.stop]
        predictions = table_of(engine.predict(trained, test), labels, members.seeds)
    return Trained(pd.concat(tables, ignore_index=True), predictions, seconds, epochs * epoch_samples, trained.memory)


def long_form(
    measured: Mapping[str, train.Metrics | train.Evaluation], epoch: int, members: Members, recipe: Recipe
) -> pd.DataFrame:
    """A row for each split, metric and member."""
    rows = []
    for split, found in measured.items():
        names = [field.name for field in dataclasses.fields(found)]
        if recipe.architecture.output not in model.PROBABILISTIC:
            names = [name for name in names if name in ("loss", "error")]
        for name in names:
            columns = {**members.tuned, "seed": members.seeds, "epoch": epoch, "split": split, "metric": name}
            rows.append(pd.DataFrame(columns | {"value": np.asarray(getattr(found, name), np.float64)}))
    return pd.concat(rows, ignore_index=True)


def table_of(predictions: train.Predictions, labels: np.ndarray, seeds: Sequence[int]) -> pd.DataFrame:
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
