"""What a run will need and what its design can show, before anything is trained or written.

Time is measured: each different program is compiled, and trains few members for one segment of an epoch, on the engine
that the run would use. Memory and disk follow from sizes.
"""

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import psutil
from ml_collections import ConfigDict
from rich import box
from rich.table import Table
from rich.text import Text

from lenet_jax import library, population, stats
from lenet_jax.run import checkpoints, memory, runner, states
from lenet_jax.run import plan as planning
from lenet_jax.run.arms import expand, select_arms
from lenet_jax.run.parts import Definitions
from lenet_jax.run.plan import ArmPlan, Phase
from lenet_jax.run.workers import Engine, Workers

MAX_PROBES = 8
"""Programs that are measured, the most expensive ones; the others are assumed to be as slow as the slowest of them."""

STATE_ON_DISK, ROW_ON_DISK, ROW_IN_MEMORY = 0.925, 8.4, 147.4
"""Bytes on disk per byte of a state; bytes per row of the predictions, on disk and in memory while an arm's are
written (`experiments/results/devices`)."""


class Forecast(NamedTuple):
    """What a run needs.

    Attributes:
      arms: by arm: networks, with those that tune it; seconds to compile; seconds to train and evaluate.
      memory, disk: bytes of all processes together, and of the finished run folder.
      notes: sentences about the measurement, the sizes and the design.
    """

    arms: dict[str, tuple[int, float, float]]
    memory: float
    disk: float
    notes: list[str]


def forecast(config: ConfigDict, experiment: Path | None = None, only_arm: str = "", devices: int = 0) -> Forecast:
    """Forecasts a run; arguments and errors are those of `runner.run`."""
    arms = expand(config)
    wanted = select_arms(arms, only_arm)
    plan = planning.make(arms)
    selected = [arm for arm in plan.arms if arm.arm in wanted]
    phases = sorted((phase for arm in selected for phase in arm.phases), key=lambda phase: -phase.samples)
    programs: dict[tuple[Any, ...], Phase] = {}
    for phase in phases:
        programs.setdefault(program_of(phase), phase)
    population.configure(devices or None)
    cores = devices or library.cores()
    width = min(cores, max(phase.size for phase in plan.phases))  # members that train at the same time
    if jax.default_backend() != "cpu":
        width = jax.device_count() * population.ACCELERATOR_SIDE_BY_SIDE
    with (
        without_cached_programs(),
        runner.engine_for(plan, Definitions.of(arms, experiment), cores, at_once=True) as engine,
    ):
        if isinstance(engine, Workers):
            engine.load(planning.images_of(phases[0].dataset, phases[0].images))  # which waits until they have started
        probes = {program: probe(programs[program], engine, width) for program in [*programs][:MAX_PROBES]}
        here = psutil.Process()
        resident = sum(process.memory_info().rss for process in (here, *here.children(recursive=True)))
    slowest = Probe(*map(max, zip(*probes.values(), strict=True)))
    recipes = {phase.recipe for phase in phases}
    parallel = min(width, len(recipes)) if isinstance(engine, Workers) else 1
    costs: dict[str, tuple[int, float, float]] = {}
    for arm in selected:
        found = [(phase, probes.get(program_of(phase), slowest)) for phase in arm.phases]
        compiling = sum(probe.compiling for phase, probe in found if phase.recipe in recipes) / parallel
        training = sum(seconds(phase, probe, width) for phase, probe in found)
        costs[arm.arm.name] = sum(phase.size for phase, _ in found), compiling, training
        recipes -= {phase.recipe for phase, _ in found}
    # Predictions are stored twice at the end; the other tables are small.
    rows_of_arms = [arm.test.size * len(arm.test.predicted or ()) for arm in selected]
    rows = sum(rows_of_arms)
    at_once = [memory.chunk_size(phase.size, phase.recipe, sys.maxsize) for phase in phases]
    largest = max(size * memory.state_size(phase.recipe) for size, phase in zip(at_once, phases, strict=True))
    networks = sum(arm.test.size * memory.state_size(arm.test.recipe) for arm in selected)
    needed = resident + largest * memory.state_copies() + max(rows_of_arms) * ROW_IN_MEMORY
    disk = networks * STATE_ON_DISK + rows * ROW_ON_DISK
    most = disk + max(largest * states.MAX_TO_KEEP * STATE_ON_DISK, rows * ROW_ON_DISK)
    widened = any(arm.tuning and arm.arm.settings["tune_widenings"] for arm in selected)
    notes = [
        f"Compiled and run for a part of an epoch: {len(probes)} of {len(programs)} programs. Not included: saving, up "
        f"to {checkpoints.MAX_SAVE_OVERHEAD:.0%}{', and candidates that tune_widenings adds' * widened}.",
        "Memory: {:,.0f} MiB. Disk: {:,.0f} MiB, and up to {:,.0f} MiB before the run is finished.".format(
            *(size / 2**20 for size in (needed, disk, most))
        ),
        design(plan.arms),
    ]
    return Forecast(costs, needed, disk, notes)


@contextlib.contextmanager
def without_cached_programs() -> Iterator[None]:
    """Programs are compiled meanwhile, here and in workers: cached ones would take no time."""
    name = "JAX_ENABLE_COMPILATION_CACHE"
    before, variable = getattr(jax.config, name.lower()), os.environ.get(name)
    try:
        jax.config.update(name.lower(), False)
        os.environ[name] = "0"
        yield
    finally:
        jax.config.update(name.lower(), before)
        os.environ.pop(name)
        os.environ |= {} if variable is None else {name: variable}


def program_of(phase: Phase) -> tuple[Any, ...]:
    """What decides how long a sample takes: the recipe without what only decides how many there are."""
    amounts = ("train_size", "epochs", "segments")
    return phase.dataset.name, *(value for name, value in vars(phase.recipe).items() if name not in amounts)


class Probe(NamedTuple):
    """Seconds to compile a phase's programs, per sample trained (with own metrics), and per image evaluated."""

    compiling: float
    sample: float
    image: float


def probe(phase: Phase, engine: Engine, width: int) -> Probe:
    """Measures the programs of a phase with up to `width` of its members."""
    recipe, members = phase.recipe, phase.members(0, min(width, phase.size))
    images, results = planning.images_of(phase.dataset, phase.images), []

    def timed(function: Callable[..., Any], *arguments: Any) -> float:
        began = time.perf_counter()
        results.append(function(*arguments))
        return time.perf_counter() - began

    compiling, own = timed(engine.create, members.seeds, phase.hyper(members), images, recipe), 0.0
    trained, split = results[0], max(phase.evaluated.values(), key=len)
    segment, image = timed(engine.train_segment, trained), timed(engine.evaluate, trained, split) / len(split)
    if recipe.metrics:
        compiling, own = compiling + timed(engine.measure_own, trained), timed(engine.measure_own, trained)
    if (test := phase.predicted) is not None:
        compiling += max(timed(engine.predict, trained, test) - len(test) * image, 0.0)
    epoch = segment * recipe.segments + own * recipe.metrics_per_epoch
    return Probe(compiling, epoch / (recipe.epoch_steps * recipe.batch_size), image)


def seconds(phase: Phase, found: Probe, width: int) -> float:
    """Seconds to train and evaluate the members of a phase, `width` at the same time."""
    epochs = phase.recipe.epochs
    evaluated = sum(len(split) * (epochs + 1 - phase.first_epochs[name]) for name, split in phase.evaluated.items())
    images = found.image * (evaluated + len(phase.predicted or ()))
    return math.ceil(phase.size / width) * (found.sample * epochs * phase.recipe.train_size + images)


def design(arms: Sequence[ArmPlan]) -> str:
    """What comparing the arms, as `lenet-jax compare` does by default, can show."""
    first, *others = (arm.test for arm in arms)
    alike = [one for one in others if one.dataset is first.dataset and one.evaluated["test"] == first.evaluated["test"]]
    pairs = [common for one in alike if (common := len({*one.seeds} & {*first.seeds})) > 1]
    if not pairs:
        needed = "that takes two arms with two common seeds, on the same test images"
        return f"Nothing can be compared over seeds: {needed}. `compare --over=images` takes one network of each arm."
    seeds = min(pairs)
    values = {axis: list(dict.fromkeys(arm.arm.axes[axis] for arm in arms)) for axis in arms[0].arm.axes}
    axes = {axis: found for axis, found in values.items() if len(found) > 1}
    cells = {tuple(arm.arm.axes[axis] for axis in axes): np.zeros(seeds) for arm in arms}
    whole = len(axes) > 1 and len(cells) == len(arms) == math.prod(map(len, axes.values()))
    same = len(pairs) == len(others) and all(one.seeds == first.seeds for one in alike)
    tests = len(pairs) + (len(stats.effects(axes, cells)) if whole and same else 0)
    smallest, size = stats.smallest_p(seeds), stats.detectable_size(seeds, stats.ALPHA / tests)
    text = f"{seeds} seeds, {tests} comparison{'s' * (tests > 1)}: over seeds alone, no p-value below {smallest:.2g}"
    if smallest >= stats.ALPHA:
        return f"{text}: none can be significant. Over test images, differences can."
    shown = f"{100 * stats.POWER:.0f} % of studies show a difference of {size:.2g} standard deviations over seeds"
    return f"{text}, and {shown}. The sampling of test images adds to it."


def table(found: Forecast) -> Table:
    """Networks and times, one row per arm."""
    made = Table("arm", "networks", "compiling", "training", box=box.SIMPLE_HEAD)
    whole = tuple(map(sum, zip(*found.arms.values(), strict=True)))
    for name, (networks, *times) in [*found.arms.items(), ("in all", whole)]:
        made.add_row(Text(name), f"{networks:,}", *(str(timedelta(seconds=math.ceil(value))) for value in times))
    return made
