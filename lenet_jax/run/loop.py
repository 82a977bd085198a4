"""Training members that fit in memory together, saved as they go."""

import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd

from lenet_jax import distributed, model, optim, train
from lenet_jax import evaluate as evaluation
from lenet_jax.data.datasets import Dataset
from lenet_jax.errors import InputError, Interrupted
from lenet_jax.run import trackers
from lenet_jax.run.arms import Arm
from lenet_jax.run.checkpoints import ArmStore, Chunk, PopulationResult
from lenet_jax.run.plan import Members, data_key, image_key, images_of
from lenet_jax.run.progress import Progress
from lenet_jax.run.signals import Stop
from lenet_jax.run.states import Checkpoint
from lenet_jax.run.workers import Engine
from lenet_jax.train import Images, Recipe


@dataclasses.dataclass
class RunContext:
    """What all arms of a run use.

    Attributes:
      datasets: by `data_key`.
      stores: what is kept of each arm, by name.
      engine: what trains.
      progress, tracked: are told.
      stop: notices signals.
      member_limit: members that fit in memory together, as far as is known.
      image_cache: the images that were used last, with their `image_key`.
    """

    datasets: Mapping[tuple[str, str], Dataset]
    stores: Mapping[str, ArmStore]
    engine: Engine
    progress: Progress
    tracked: trackers.Tracker
    stop: Stop
    member_limit: int = sys.maxsize
    image_cache: tuple[tuple[Any, ...], Images] | None = None

    def __post_init__(self) -> None:
        # Where one process of several just ended, the others would have to.
        self.stop.unsaved = jax.process_count() > 1

    def stopped_at(self, kept: Path, where: str) -> None:
        """Ends the run if a signal came, to any of its processes; everything is saved.

        Raises:
          Interrupted: it came.
        """
        self.stop.unsaved = jax.process_count() > 1
        number = int(distributed.all_gather(np.int32(self.stop.signal)).max())
        if number:
            raise Interrupted(number, f"stopped {where}; saved in {str(kept)!r}")

    def images(self, arm: Arm) -> Images:
        """`images_of` an arm. Made anew only where they differ: workers are sent what they don't have."""
        if self.image_cache is None or self.image_cache[0] != image_key(arm):
            self.image_cache = image_key(arm), images_of(self.datasets[data_key(arm)], arm)
        return self.image_cache[1]


def train_chunk(
    members: Members,
    arm: Arm,
    splits: Mapping[str, range],
    recipe: Recipe,
    chunk: Chunk,
    context: RunContext,
) -> PopulationResult:
    """Trains and evaluates members that fit in memory together, from where they were saved."""
    began = time.perf_counter()
    engine, progress, stop = context.engine, context.progress, context.stop
    images, epochs, count = context.images(arm), arm.settings["epochs"], len(members.seeds)
    first = first_epochs(arm.settings)
    # A finished arm whose files were damaged is measured again; its curves are there.
    is_whole_arm = count == arm.settings["seeds"] and members.tested and not context.stores[arm.name].finished
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
    if is_whole_arm:
        context.tracked.start(arm.name, arm.settings)
        if evaluated:
            replay(history_frame(history, range(evaluated), members, first), context.tracked)
    progress.skip(step / recipe.epoch_steps)

    def now_saved() -> Checkpoint:
        arrays = {name: np.stack(values) for name, values in history.items()}
        return Checkpoint(step, engine.snapshot(trained), arrays, seconds, wall + time.perf_counter() - began)

    for epoch in range(evaluated, epochs + 1):
        while step < epoch * recipe.epoch_steps:
            stop.unsaved = True
            started = time.perf_counter()
            running = engine.train_segment(trained)
            seconds += time.perf_counter() - started
            step += recipe.epoch_steps // recipe.segments
            progress.trained(1 / recipe.segments, step * recipe.batch_size * count / seconds)
            if step == epoch * recipe.epoch_steps:
                record(history, "running", running, recipe)
            if distributed.all_gather(np.int32(chunk.due() or stop.signal)).any():
                since = time.monotonic()
                chunk.save(now_saved(), since)
                context.stopped_at(chunk.folder, f"in epoch {epoch} of {epochs} of {arm.name!r}")
        wanted = [name for name in splits if epoch >= first[name]]
        for name in wanted:
            record(history, name, engine.evaluate(trained, splits[name]), recipe)
        if is_whole_arm:
            replay(history_frame(history, [epoch], members, first), context.tracked)
        if epoch:
            shown = ("running", *wanted[-1:])
            progress.measured({name: float(history[f"{name}/error"][-1].mean()) for name in shown})
    predictions = pd.DataFrame()
    if arm.settings["store_predictions"] and "test" in splits:
        test = splits["test"]
        labels = np.asarray(images.labels)[test.start : test.stop]
        predictions = prediction_frame(engine.predict(trained, test), labels, members.seeds)
    done = PopulationResult(
        metrics=history_frame(history, range(epochs + 1), members, first),
        predictions=predictions,
        seconds=seconds,
        wall=wall + time.perf_counter() - began,
        samples=step * recipe.batch_size * count,
        memory=trained.memory,
    )
    chunk.finish(done, now_saved() if members.tested else None)
    context.stopped_at(chunk.folder, f"after epoch {epochs} of {arm.name!r}")
    return done


History = dict[str, list[np.ndarray]]
"""``split/metric`` -> float64 values [members] of each epoch at which it was measured, up to now."""


def record(history: History, split: str, found: train.Metrics | evaluation.Evaluation, recipe: Recipe) -> None:
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


def history_frame(history: History, wanted: Sequence[int], members: Members, first: Mapping[str, int]) -> pd.DataFrame:
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


def replay(metrics: pd.DataFrame, tracked: trackers.Tracker) -> None:
    """Tells a tracker of epochs that are done."""
    for epoch, table in metrics.groupby("epoch"):
        tracked.epoch(int(str(epoch)), trackers.bands_of(table))


def prediction_frame(predictions: evaluation.Predictions, labels: np.ndarray, seeds: Sequence[int]) -> pd.DataFrame:
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
