"""Training members that fit in memory together, saved as they go."""

import dataclasses
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
import pandas as pd

from lenet_jax import cluster, model, optim, population, tracking, train
from lenet_jax.arms import Arm
from lenet_jax.checkpoints import Chunk, Saved, Store, Trained
from lenet_jax.data import Dataset
from lenet_jax.errors import InputError, Interrupted, RunError, WorkerError, brief
from lenet_jax.inputs import data_key, image_key, images_of
from lenet_jax.progress import Progress
from lenet_jax.signals import Stop
from lenet_jax.train import Images, Recipe


@runtime_checkable
class Engine(Protocol):
    """What trains populations: the module `population` in this process, or `workers.Workers`. See `population`."""

    def create(self, seeds: Sequence[int], hyper: Mapping[str, Sequence[float]], images: Images, recipe: Recipe) -> Any:
        """A new population."""

    def train_part(self, members: Any, /) -> train.Metrics:
        """Trains it for a part of a pass."""

    def evaluate(self, members: Any, split: range, /) -> train.Evaluation:
        """Evaluates it on images."""

    def predict(self, members: Any, split: range, /) -> train.Predictions:
        """What its members make of images."""

    def snapshot(self, members: Any, /) -> population.Snapshot:
        """Its state."""

    def restore(self, members: Any, saved: population.Snapshot, /) -> None:
        """Takes up a state."""


@dataclasses.dataclass
class Laboratory:
    """What all arms of a run use.

    Attributes:
      datasets: by `data_key`.
      stores: what is kept of each arm, by name.
      engine: what trains.
      progress, tracked: are told.
      stop: notices signals.
      most: members that fit in memory together, as far as is known.
      last: the images that were used last, with their `image_key`.
    """

    datasets: Mapping[tuple[str, str], Dataset]
    stores: Mapping[str, Store]
    engine: Engine
    progress: Progress
    tracked: tracking.Tracker
    stop: Stop
    most: int = sys.maxsize
    last: tuple[tuple[Any, ...], Images] | None = None

    def __post_init__(self) -> None:
        # Where one process of several just ended, the others would have to.
        self.stop.unsaved = jax.process_count() > 1

    def stopped_at(self, kept: Path, where: str) -> None:
        """Ends the run if a signal came, to any of its processes; everything is saved.

        Raises:
          Interrupted: it came.
        """
        self.stop.unsaved = jax.process_count() > 1
        number = int(cluster.everywhere(np.int32(self.stop.signal)).max())
        if number:
            raise Interrupted(number, f"stopped {where}; saved in {str(kept)!r}")

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


def chunk_size(members: int, recipe: Recipe, most: int) -> int:
    """Members of the next chunk, so that they can be trained in as few equal chunks as memory needs.

    Args:
      members: that are left.
      recipe: theirs.
      most: that fit in memory, as far as is known.
    """
    most = min(most, max(population.memory_for_members() // population.member_memory(recipe), 1))
    return math.ceil(members / math.ceil(members / most))


def out_of_memory(error: Exception) -> bool:
    """Whether an engine failed because memory ran out."""
    text = str(error).lower()
    killed = isinstance(error, WorkerError) and error.killed
    refused = isinstance(error, jax.errors.JaxRuntimeError) and (
        "resource_exhausted" in text or "out of memory" in text
    )
    return killed or refused or isinstance(error, MemoryError)


def refuse_smallest(size: int, recipe: Recipe, error: Exception) -> None:
    """Ends a run that can't be helped with smaller chunks.

    Raises:
      RunError: a chunk has as few members as can be, or several processes would have to agree on a smaller one.
    """
    if size > 1 and jax.process_count() == 1:
        return
    fits = max(population.memory_for_members() // population.member_memory(recipe), 1)
    raise RunError(
        f"memory ran out with {size} networks of {population.member_memory(recipe) / 2**20:.1f} MiB each "
        f"({brief(error)}); what is free now would hold {fits} and the data: free some, or ask "
        "for fewer seeds"
    ) from error


def train_chunk(
    members: Members,
    arm: Arm,
    splits: Mapping[str, range],
    recipe: Recipe,
    chunk: Chunk,
    laboratory: Laboratory,
) -> Trained:
    """Trains and evaluates members that fit in memory together, from where they were saved."""
    began = time.perf_counter()
    engine, progress, stop = laboratory.engine, laboratory.progress, laboratory.stop
    images, epochs, count = laboratory.images(arm), arm.settings["epochs"], len(members.seeds)
    first = first_epochs(arm.settings)
    # A finished arm whose files were damaged is measured again; its curves are there.
    alone = count == arm.settings["seeds"] and members.tested and not laboratory.stores[arm.name].finished
    hyper = {name: members.tuned.get(name, [arm.settings[name]] * count) for name in optim.HYPERPARAMETERS}
    trained = engine.create(members.seeds, hyper, images, recipe)
    history: History = {}
    step, seconds, wall = 0, 0.0, 0.0
    saved = chunk.latest()
    if saved is not None:
        try:
            engine.restore(trained, saved.state)
        except ValueError as error:
            raise InputError(
                f"workdir: {str(chunk.folder)!r} was saved by another version of the program ({error}); go on with "
                "that one, or add --fresh to start anew"
            ) from error
        step, seconds, wall = saved.step, saved.seconds, saved.wall
        history = {name: list(arrays) for name, arrays in saved.history.items()}
    evaluated = evaluated_epochs(history, step, recipe, first, splits)
    if evaluated is None:
        raise InputError(
            f"workdir: {str(chunk.folder)!r} was saved by a version of the program that evaluated the test images "
            "after each epoch; go on with that one, or add --fresh to start anew"
        )
    progress.compiled(trained.memory)
    if alone:
        laboratory.tracked.start(arm.name, arm.settings)
        if evaluated:
            replay(long_form(history, range(evaluated), members, first), laboratory.tracked)
    progress.skip(step / recipe.epoch_steps)

    def now_saved() -> Saved:
        arrays = {name: np.stack(values) for name, values in history.items()}
        return Saved(step, engine.snapshot(trained), arrays, seconds, wall + time.perf_counter() - began)

    for epoch in range(evaluated, epochs + 1):
        while step < epoch * recipe.epoch_steps:
            stop.unsaved = True
            started = time.perf_counter()
            running = engine.train_part(trained)
            seconds += time.perf_counter() - started
            step += recipe.epoch_steps // recipe.parts
            progress.trained(1 / recipe.parts, step * recipe.batch_size * count / seconds)
            if step == epoch * recipe.epoch_steps:
                note(history, "running", running, recipe)
            if cluster.everywhere(np.int32(chunk.due() or stop.signal)).any():
                since = time.monotonic()
                chunk.save(now_saved(), since)
                laboratory.stopped_at(chunk.folder, f"in epoch {epoch} of {epochs} of {arm.name!r}")
        wanted = [name for name in splits if epoch >= first[name]]
        for name in wanted:
            note(history, name, engine.evaluate(trained, splits[name]), recipe)
        if alone:
            replay(long_form(history, [epoch], members, first), laboratory.tracked)
        if epoch:
            shown = ("running", *wanted[-1:])
            progress.measured({name: float(history[f"{name}/error"][-1].mean()) for name in shown})
    predictions = pd.DataFrame()
    if arm.settings["store_predictions"] and "test" in splits:
        test = splits["test"]
        labels = np.asarray(images.labels)[test.start : test.stop]
        predictions = table_of(engine.predict(trained, test), labels, members.seeds)
    done = Trained(
        metrics=long_form(history, range(epochs + 1), members, first),
        predictions=predictions,
        seconds=seconds,
        wall=wall + time.perf_counter() - began,
        samples=step * recipe.batch_size * count,
        memory=trained.memory,
    )
    chunk.finish(done, now_saved() if members.tested else None)
    laboratory.stopped_at(chunk.folder, f"after epoch {epochs} of {arm.name!r}")
    return done


History = dict[str, list[np.ndarray]]
"""``split/metric`` -> float64 values [members] of each epoch at which it was measured, up to now."""


def note(history: History, split: str, found: train.Metrics | train.Evaluation, recipe: Recipe) -> None:
    """Adds what was measured of a split."""
    for field in dataclasses.fields(found):
        if recipe.architecture.output in model.PROBABILISTIC or field.name in ("loss", "error"):
            values = np.asarray(getattr(found, field.name), np.float64)
            history.setdefault(f"{split}/{field.name}", []).append(values)


def first_epochs(settings: Mapping[str, Any]) -> dict[str, int]:
    """The epoch from which on each split is measured.

    The whole training set is evaluated once, at the end; `running` costs nothing in between. The test set too, unless
    `test_curve` is set, so that no choice can depend on it.
    """
    end = settings["epochs"]
    return {"running": 1, "train": end, "validation": 0, "test": 0 if settings["test_curve"] else end}


def evaluated_epochs(
    history: History, step: int, recipe: Recipe, first: Mapping[str, int], splits: Mapping[str, range]
) -> int | None:
    """Epochs at which members that have done so many updates were evaluated, the one before training counted too.

    None if the history does not match these splits and first epochs.
    """
    trained = -(-step // recipe.epoch_steps)
    # Members are saved before the evaluation of the epoch that they are in, and once more after the last one.
    for count in (trained, trained + 1) if step == recipe.epochs * recipe.epoch_steps else (trained,):
        if all(len(history.get(f"{split}/error", ())) == max(count - first[split], 0) for split in splits):
            return count
    return None


def long_form(history: History, wanted: Sequence[int], members: Members, first: Mapping[str, int]) -> pd.DataFrame:
    """A row for each split, metric and member at these epochs; none where nothing was measured.

    Args:
      history: of the members.
      wanted: epochs.
      members: measured.
      first: see `first_epochs`.
    """
    rows = []
    for name, measured in history.items():
        split, metric = name.split("/")
        for epoch, values in enumerate(measured, first[split]):
            if epoch in wanted:
                columns = {**members.tuned, "seed": members.seeds, "epoch": epoch, "split": split, "metric": metric}
                rows.append(pd.DataFrame(columns | {"value": values}))
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame({"epoch": []})


def replay(metrics: pd.DataFrame, tracked: tracking.Tracker) -> None:
    """Tells a tracker of epochs that are done."""
    for epoch, table in metrics.groupby("epoch"):
        tracked.epoch(int(str(epoch)), tracking.bands_of(table))


def table_of(predictions: train.Predictions, labels: np.ndarray, seeds: Sequence[int]) -> pd.DataFrame:
    """A row for each seed and image."""
    count = len(labels)
    return pd.DataFrame(
        {
            "seed": np.repeat(np.array(seeds), count),
            "image": np.tile(np.arange(count, dtype=np.int32), len(seeds)),
            "label": np.tile(labels.astype(np.int16), len(seeds)),
            "predicted": predictions.predicted.ravel().astype(np.int16),
            "margin": predictions.margin.ravel(),
        }
    )
