"""The training loop: one population, epoch by epoch, with checkpoints."""

import dataclasses
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd

from lenet_jax import distributed, model, train
from lenet_jax import evaluate as evaluation
from lenet_jax.errors import InputError, Interrupted
from lenet_jax.run import answers, schema, trackers
from lenet_jax.run.checkpoints import ArmStore, Chunk, PopulationResult
from lenet_jax.run.plan import STATE, ImageSpec, Members, Phase, Plan, images_of
from lenet_jax.run.progress import Progress
from lenet_jax.run.signals import Stop
from lenet_jax.run.states import Checkpoint
from lenet_jax.run.workers import Engine
from lenet_jax.train import Images, Recipe


@dataclasses.dataclass
class RunContext:
    """What all populations of a run share.

    Attributes:
      stores: checkpoints and results by arm.
      member_limit: members that fit in memory together, as far as is known.
      image_cache: the images that were used last, with what they were made from.
    """

    plan: Plan
    stores: Mapping[str, ArmStore]
    engine: Engine
    progress: Progress
    tracked: trackers.Tracker
    stop: Stop
    member_limit: int = sys.maxsize
    image_cache: tuple[ImageSpec, Images] | None = None

    def __post_init__(self) -> None:
        # If one process of several ended at once, the others would fail.
        self.stop.unsaved = jax.process_count() > 1

    def stop_if_asked(self, folder: Path, where: str) -> None:
        """Ends the run if any of its processes received a signal. Call it when everything is saved in the folder.

        Raises:
          Interrupted: a signal came.
        """
        self.stop.unsaved = jax.process_count() > 1
        number = int(distributed.all_gather(np.int32(self.stop.signal)).max())
        if number:
            raise Interrupted(number, f"stopped {where}; saved in {str(folder)!r}")

    def images(self, phase: Phase) -> Images:
        """Images of a phase. The same object as before if they are the same: workers keep those that they have."""
        if self.image_cache is None or self.image_cache[0] != phase.images:
            self.image_cache = phase.images, images_of(phase.dataset, phase.images)
        return self.image_cache[1]


def train_chunk(phase: Phase, members: Members, chunk: Chunk, context: RunContext) -> PopulationResult:
    """Trains and evaluates members that fit in memory together, from their last checkpoint on."""
    began = time.perf_counter()
    engine, progress, stop, recipe = context.engine, context.progress, context.stop, phase.recipe
    count, epochs, steps = len(members.seeds), recipe.epochs, recipe.epoch_steps
    # The curves of a finished arm are tracked already, even if damaged files make it train again.
    is_whole_arm = phase.is_test and count == phase.size and not context.stores[phase.arm].finished
    images = context.images(phase)
    trained = engine.create(members.seeds, phase.hyper(members), images, recipe)
    saved = restored(chunk, engine, trained)
    step, seconds, wall = (saved.step, saved.seconds, saved.wall) if saved else (0, 0.0, 0.0)
    history: History = {name: list(arrays) for name, arrays in saved.history.items()} if saved else {}
    evaluated = evaluated_epochs(history, step, phase)
    progress.compiled(trained.memory)
    if is_whole_arm:
        context.tracked.start(phase.arm, phase.settings)
        if evaluated:
            replay(history_frame(history, range(evaluated), members, phase), context.tracked)
    progress.skip(step / steps)

    def measure() -> None:
        for name, values in engine.measure_own(trained).items():
            history.setdefault(f"{STATE}/{name}", []).append(np.asarray(values, np.float64))

    if recipe.metrics and not step:
        measure()

    def checkpoint() -> Checkpoint:
        arrays = {name: np.stack(values) for name, values in history.items()}
        return Checkpoint(step, engine.snapshot(trained), arrays, seconds, wall + time.perf_counter() - began)

    predicted: evaluation.Predictions | None = None
    for epoch in range(evaluated, epochs + 1):
        while step < epoch * steps:
            stop.unsaved = True
            started = time.perf_counter()
            running = engine.train_segment(trained)
            seconds += time.perf_counter() - started
            step += steps // recipe.segments
            progress.trained(1 / recipe.segments, step * recipe.batch_size * count / seconds)
            if step == epoch * steps:
                record(history, "running", running, recipe)
            if recipe.metrics and step % (steps // recipe.metrics_per_epoch) == 0:
                measure()
            # All processes of a run must save together, and stop together.
            if distributed.all_gather(np.int32(chunk.due() or stop.signal)).any():
                since = time.monotonic()
                chunk.save(checkpoint(), since)
                context.stop_if_asked(chunk.folder, f"in epoch {epoch} of {epochs} of {phase.arm!r}")
        wanted = [name for name in phase.evaluated if epoch >= phase.first_epochs[name]]
        for name in wanted:
            if name == "test" and phase.predicted is not None and epoch == epochs:  # also for its means
                predicted = engine.predict(trained, phase.predicted)
                found = evaluation.evaluate([(predicted, labels_of(images, phase.predicted))])
            else:
                found = engine.evaluate(trained, phase.evaluated[name])
            record(history, name, found, recipe)
        if is_whole_arm:
            context.tracked.epoch(epoch, bands_at(history, epoch, phase))
        if epoch:
            shown = ("running", *wanted[-1:])
            progress.measured({name: float(history[f"{name}/error"][-1].mean()) for name in shown})
    predictions = pd.DataFrame()
    if (test := phase.predicted) is not None:
        if predicted is None:  # a run that was interrupted after its last evaluation
            predicted = engine.predict(trained, test)
        predictions = prediction_frame(predicted, labels_of(images, test), members.seeds)
    done = PopulationResult(
        metrics=history_frame(history, range(epochs + 1), members, phase),
        predictions=predictions,
        seconds=seconds,
        wall=wall + time.perf_counter() - began,
        samples=step * recipe.batch_size * count,
        memory=trained.memory,
    )
    chunk.finish(done, checkpoint() if phase.is_test else None)
    context.stop_if_asked(chunk.folder, f"after epoch {epochs} of {phase.arm!r}")
    return done


def restored(chunk: Chunk, engine: Engine, trained: Any) -> Checkpoint | None:
    """The last checkpoint of a chunk, restored into its members; None if there is none.

    Raises:
      InputError: it doesn't fit these members.
    """
    saved = chunk.latest()
    if saved is not None:
        try:
            engine.restore(trained, saved.state)
        except ValueError as error:
            raise InputError(
                f"workdir: {str(chunk.folder)!r} was saved by another version of the program ({error}); resume with "
                "that version, or pass --fresh to start again"
            ) from error
    return saved


History = dict[str, list[np.ndarray]]
"""``split/metric`` -> float64 values [members] of each epoch at which it was measured, up to now."""


def record(history: History, split: str, found: train.Metrics | evaluation.Evaluation, recipe: Recipe) -> None:
    """Appends measurements of a split."""
    for field in dataclasses.fields(found):
        if recipe.architecture.output in model.PROBABILISTIC or field.name in ("loss", "error"):
            values = np.asarray(getattr(found, field.name), np.float64)
            history.setdefault(f"{split}/{field.name}", []).append(values)


def evaluated_epochs(history: History, step: int, phase: Phase) -> int:
    """Number of epochs at which members were evaluated before a step, counting the evaluation before training."""
    recipe, first = phase.recipe, phase.first_epochs
    # Members are saved before the evaluation of the epoch that they are in, and once more after the last one.
    ended = step == recipe.epochs * recipe.epoch_steps
    at_end = [len(history.get(f"{split}/error", ())) > recipe.epochs - first[split] for split in phase.evaluated]
    return -(-step // recipe.epoch_steps) + (ended and all(at_end))


def history_frame(history: History, wanted: Sequence[int], members: Members, phase: Phase) -> pd.DataFrame:
    """Measurements at the wanted epochs, one row per split, metric and member.

    The user's metrics may be measured more often: those within an epoch belong to it, and have fractions of epochs.
    """
    rows = []
    for name, measured in history.items():
        split, metric = name.split("/")
        per_epoch = phase.recipe.metrics_per_epoch if split == STATE else 1
        for index, values in enumerate(measured):
            epoch = phase.first_epochs[split] + (index / per_epoch if per_epoch > 1 else index)
            if math.ceil(epoch) in wanted:
                columns = {**members.tuned, "seed": members.seeds, "epoch": epoch, "split": split, "metric": metric}
                rows.append(pd.DataFrame(columns | {"value": values}))
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame({"epoch": []})


def bands_at(history: History, epoch: int, phase: Phase) -> dict[str, trackers.Band]:
    """What a tracker is told of the epoch that was measured last: the bands of finite values."""
    bands = {}
    for name, measured in history.items():
        split, metric = name.split("/")
        finite = measured[-1][np.isfinite(measured[-1])]
        if len(finite) and epoch >= phase.first_epochs[split]:
            bands[f"{split}_{metric}"] = trackers.band_of(finite)
    return bands


def labels_of(images: Images, indices: range) -> np.ndarray:
    """The labels of a range of the images."""
    return np.asarray(images.labels)[indices.start : indices.stop]


def replay(metrics: pd.DataFrame, tracked: trackers.Tracker) -> None:
    """Reports finished epochs to a tracker, whose steps are whole epochs."""
    for epoch, table in metrics[metrics.epoch % 1 == 0].groupby("epoch"):
        tracked.epoch(int(float(str(epoch))), trackers.bands_of(table))


def prediction_frame(predictions: evaluation.Predictions, labels: np.ndarray, seeds: Sequence[int]) -> pd.DataFrame:
    """Predictions [seeds, images], one row per seed and image."""
    return pd.DataFrame(answers.rows_of(answers.of_networks(predictions, labels, seeds), schema.SCORE_COLUMNS))
