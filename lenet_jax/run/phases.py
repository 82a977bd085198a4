"""The phases of an arm: tuning, then the test; trained in chunks that fit in memory, or read from what was trained."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pandas as pd

from lenet_jax.run import plan as planning
from lenet_jax.run import tuning
from lenet_jax.run.arms import in_range
from lenet_jax.run.candidates import Tuning, Values, beyond, widened
from lenet_jax.run.checkpoints import ArmStore, PopulationResult
from lenet_jax.run.loop import RunContext, replay, train_chunk
from lenet_jax.run.memory import chunk_size, smaller_limit
from lenet_jax.run.plan import TRIED, ArmPlan, Phase
from lenet_jax.run.progress import Progress
from lenet_jax.run.workers import Workers


class ArmResult(NamedTuple):
    """Measurements of an arm: its test with the chosen hyperparameters (and the wall time of tuning), its tuning."""

    phase: Phase
    tested: PopulationResult
    tried: pd.DataFrame
    chosen: Values


Obtain = Callable[[Phase], PopulationResult]
"""How a phase's result is obtained: by training, or by reading."""


def arm_result(plan: ArmPlan, obtain: Obtain, progress: Progress | None = None) -> ArmResult:
    """The result of an arm, phase by phase: tuning, if any, then the test. `progress` counts added populations."""
    tried, wall = pd.DataFrame(), 0.0
    chosen: Values = {}
    if plan.tuning and plan.arm.tuning:
        tried, chosen, wall = tune(plan, plan.tuning, plan.arm.tuning, obtain, progress)
    phase = planning.refine(plan, chosen)
    tested = obtain(phase)
    return ArmResult(phase, tested._replace(wall=tested.wall + wall), tried, chosen)


def tune(
    plan: ArmPlan, phase: Phase, first: Tuning, obtain: Obtain, progress: Progress | None
) -> tuple[pd.DataFrame, Values, float]:
    """Chooses an arm's hyperparameters; returns the measurements, the choice, and the wall time.

    Where the choice is at the edge of a grid, the grid is widened as often as the config allows.
    """
    tried = first
    results: list[PopulationResult] = []
    remaining = plan.arm.settings["tune_widenings"]
    while True:
        results.append(obtain(phase))
        table = pd.concat([result.metrics for result in results], ignore_index=True)
        chosen = tuning.choose(table, first.names)
        further = {name: beyond(tried, name, chosen[name]) for name in tuning.at_edge(chosen, table, first.grid)}
        allowed = [(name, value) for name, value in further.items() if value is not None and in_range(name, value)]
        if not remaining or not allowed:
            return table, chosen, sum(result.wall for result in results)
        remaining -= 1
        tried, new = widened(tried, *allowed[0])
        losses = phase.recipe.losses
        phase = planning.phase_of(plan.arm, phase.dataset, f"{TRIED}-{len(results)}", new)
        phase = dataclasses.replace(phase, recipe=dataclasses.replace(phase.recipe, losses=losses))
        if progress:
            progress.more(phase.recipe.epochs)


def train_phase(phase: Phase, context: RunContext) -> PopulationResult:
    """Trains and evaluates the members of a phase, in chunks if they don't fit in memory together.

    Chunks that were finished before are read.
    """
    store = context.stores[phase.arm]
    results: list[PopulationResult] = []
    start, streamed = 0, False
    while start < phase.size:
        size = chunk_size(phase.size - start, phase.recipe, context.member_limit)
        chunk = store.chunk(phase.name, start, size)
        context.progress.phase("" if phase.is_test else "tuning, ", phase.size, chunk.size)
        result = chunk.load_result()
        if result is None:
            compile_ahead(phase, context)
            try:
                result = train_chunk(phase, phase.members(start, chunk.size), chunk, context)
                streamed = chunk.size == phase.size  # the tracker followed it epoch by epoch
            except Exception as error:
                context.member_limit = smaller_limit(chunk.size, phase.recipe, error)
            if result is None:  # after the except block, where nothing refers to the failed chunk's arrays any more
                chunk.split_in_half()
                if isinstance(context.engine, Workers):
                    context.engine.restart()
                continue
        elif not store.finished:  # epochs of finished arms were never counted
            context.progress.skip(phase.recipe.epochs)
        results.append(result)
        start += chunk.size
    merged = merge(results, phase)
    if phase.is_test and not streamed and not store.finished:
        context.tracked.start(phase.arm, phase.settings)
        replay(merged.metrics, context.tracked)
    return merged


def read_result(phase: Phase, store: ArmStore) -> PopulationResult | None:
    """The result of a phase that was trained; None if any of its files is missing or damaged. Trains nothing."""
    results: list[PopulationResult] = []
    start = 0
    while start < phase.size:
        chunk = store.chunk(phase.name, start, phase.size - start)
        result = chunk.load_result()
        if result is None:
            return None
        results.append(result)
        start = chunk.stop
    return merge(results, phase)


def merge(results: Sequence[PopulationResult], phase: Phase) -> PopulationResult:
    """The result of a phase, from those of its chunks."""
    metrics = pd.concat([result.metrics for result in results], ignore_index=True)
    order = ["epoch", "split", "metric", *phase.candidates[0], "seed"]
    return PopulationResult(
        metrics=metrics.sort_values(order, kind="stable"),
        predictions=pd.concat([result.predictions for result in results], ignore_index=True),
        seconds=sum(result.seconds for result in results),
        wall=sum(result.wall for result in results),
        samples=sum(result.samples for result in results),
        memory=max(result.memory for result in results),
    )


def compile_ahead(phase: Phase, context: RunContext) -> None:
    """Lets idle workers compile the programs of later phases on the same data while one compiles this phase's."""
    if not isinstance(context.engine, Workers):
        return
    names = [arm.arm.name for arm in context.plan.arms]
    later = [arm for arm in context.plan.arms[names.index(phase.arm) :] if not context.stores[arm.arm.name].finished]
    phases = [other for arm in later for other in arm.phases if other.dataset is phase.dataset]
    context.engine.prepare([phase.recipe, *(other.recipe for other in phases)], context.images(phase))
