"""Experiments: arms become populations, populations become a run folder."""

import contextlib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import jax
import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from lenet_jax import distributed, model, population, stats
from lenet_jax.data.datasets import Dataset
from lenet_jax.errors import InputError, check_choice, listed
from lenet_jax.run import checkpoints, files, folder, locks, plan, trackers, tuning
from lenet_jax.run.arms import Arm, describe, expand, in_range
from lenet_jax.run.checkpoints import PopulationResult
from lenet_jax.run.loop import RunContext, replay, train_chunk
from lenet_jax.run.memory import chunk_size, smaller_limit
from lenet_jax.run.plan import Members, data_key, describe_data, load_data, recipe_of, splits_of, with_chosen
from lenet_jax.run.progress import Progress, say
from lenet_jax.run.signals import Stop
from lenet_jax.run.workers import Engine, Workers
from lenet_jax.train import Recipe

WORTH_WORKERS = 500_000
"""Samples x members from which on worker processes gain more than the seconds that they take to start: on two cores,
runs of this size took as long either way."""


def run(
    config: ConfigDict,
    workdir: Path,
    command: str,
    tracker: str = "none",
    *,
    only_arm: str = "",
    fresh: bool = False,
    save_every: float = 10.0,
    devices: int = 0,
    stop: Stop | None = None,
) -> folder.Run | None:
    """Runs every arm of a config and writes the run folder; goes on where an earlier attempt stopped.

    Args:
      config: see `experiments/base.py`.
      workdir: the run folder. If it holds this config's run, finished, that run is returned and nothing is done.
      command: what the user typed, for the provenance.
      tracker: a key of `trackers.TRACKERS`, which is streamed of every epoch.
      only_arm: name or number, from 1, of an arm that is run alone; empty for all.
      fresh: start anew; what the folder holds is moved aside.
      save_every: seconds after which members in training are saved, see `checkpoints`.
      devices: cores of a CPU that are used; 0 for all.
      stop: notices signals.

    Returns:
      the run, or None if other arms of it are not finished.

    Raises:
      InputError: the config, a data set, the folder or the tracker can't be used, which is noticed before anything is
        compiled or measured; or what the folder holds was saved by another version.
      RunError: the run can't go on. What it saved is kept.
      Interrupted: it was stopped. Everything was saved.
    """
    check_choice("tracker", tracker, trackers.TRACKERS)
    arms = expand(config)
    wanted = select_arms(arms, only_arm)
    resolved = describe(config)
    # A run that is older than test_curve had that curve, which changes nothing else of it.
    defaults = describe(ConfigDict()) | {"test_curve": resolved["test_curve"]}
    checkpoint_dir = workdir / folder.CHECKPOINTS
    if not fresh and folder.is_finished(workdir, resolved, defaults):
        say(f"{workdir} holds this run, already finished")
        checkpoints.prune_later(checkpoint_dir)
        return folder.load(workdir)
    datasets = load_data(arms)
    fingerprints = {dataset.name: dataset.fingerprint for dataset in datasets.values()}
    stores = {arm.name: checkpoints.ArmStore(checkpoint_dir / folder.folder_name(arm.name), save_every) for arm in arms}
    with contextlib.ExitStack() as owning:
        population.configure(devices or None)
        environment = folder.describe_environment(command) | {"cores": population.cores(), "started": now()}
        distributed.check_same(
            {"config": resolved, "--only-arm": only_arm, "data set": fingerprints, "version": environment["versions"]}
        )
        tracked = trackers.TRACKERS[tracker if distributed.primary() else "none"](workdir)
        if distributed.primary():
            if fresh and (moved := locks.move_aside(workdir)):
                say(f"{workdir} was moved to {moved}")
            owning.enter_context(locks.exclusive(checkpoint_dir, repr(str(workdir)), shared=bool(only_arm)))
            for arm in wanted if only_arm else []:
                owning.enter_context(locks.exclusive(stores[arm.name].folder, f"arm {arm.name!r}"))
            with locks.wait_turn(checkpoint_dir):
                folder.create(workdir, resolved, defaults)
        distributed.wait_visible(workdir / folder.CONFIG)
        if finished(workdir):
            return folder.load(workdir)
        if distributed.primary():
            checkpoints.record_attempt(checkpoint_dir, environment)
        left = [arm for arm in wanted if not stores[arm.name].finished]
        epochs = sum(arm.settings["epochs"] * len(plan.phases(arm)) for arm in left)
        with (
            contextlib.closing(tracked),  # also if something fails: an arm that isn't finished is marked so
            Progress(len(arms), epochs, hidden=not distributed.primary()) as progress,
            engine_for(arms, datasets, devices or population.cores(), at_once=bool(left)) as engine,
        ):
            context = RunContext(datasets, stores, engine, progress, tracked, stop or Stop())
            for arm in wanted:
                run_arm(arm, arms, context)
            with locks.wait_turn(checkpoint_dir):
                if not finished(workdir):
                    waiting = [arm.name for arm in arms if not stores[arm.name].finished]
                    if waiting:
                        done = len(arms) - len(waiting)
                        say(f"{done} of {len(arms)} arms are finished; {waiting[0]!r} is not")
                        return None
                    finish(workdir, arms, context, fingerprints)
        distributed.wait_visible(workdir / folder.SUMMARY)
    return folder.load(workdir)


def select_arms(arms: list[Arm], wanted: str) -> list[Arm]:
    """The arm of this name or number, or all if none is wanted.

    Raises:
      InputError: there is no such arm.
    """
    named = folder.arm_named(wanted, [arm.name for arm in arms])
    found = [arm for number, arm in enumerate(arms, 1) if named in ("", arm.name, str(number))]
    if not found:
        allowed = listed([arm.name for arm in arms], wanted)
        raise InputError(f"only-arm: {wanted!r} is no arm; allowed are 1 to {len(arms)}, and {allowed}")
    return found


def finished(workdir: Path) -> bool:
    """Whether the run is, by another job of one of its arms: what process 0 says."""
    return distributed.wait_visible(workdir / folder.SUMMARY)


def finish(workdir: Path, arms: list[Arm], context: RunContext, fingerprints: Mapping[str, str]) -> None:
    """Writes the run's tables, provenance and summary from what is kept of its arms, then tidies up."""
    checkpoint_dir = workdir / folder.CHECKPOINTS
    tables: dict[str, list[pd.DataFrame]] = {folder.METRICS: [], folder.PREDICTIONS: [], folder.TUNING: []}
    rows = []
    for arm in arms:
        row = context.stores[arm.name].row()
        trained, tried, _ = train_arm(arm, arms, context)
        rows.append(row)
        for name, table in (
            (folder.METRICS, trained.metrics.assign(**row["chosen"])),
            (folder.PREDICTIONS, trained.predictions),
            (folder.TUNING, tried),
        ):
            if len(table):
                tables[name].append(labelled(table, arm))
    if not distributed.primary():
        return
    for name, parts in tables.items():
        if parts:
            files.write_table(workdir / name, pd.concat(parts, ignore_index=True))
    first, *later = checkpoints.read_attempts(checkpoint_dir)
    provenance = (
        first | {"fingerprints": fingerprints, "finished": now()} | ({"later_attempts": later} if later else {})
    )
    files.write_json(workdir / folder.PROVENANCE, provenance)
    tested = with_chosen(arms[0], {})
    summary = {"dataset": describe_data(context.datasets[data_key(tested)], tested), "arms": rows}
    files.write_json(workdir / folder.SUMMARY, summary)
    checkpoints.prune(checkpoint_dir)


def now() -> str:
    """Date and time, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def labelled(table: pd.DataFrame, arm: Arm) -> pd.DataFrame:
    """The table with the arm's name and axes before its columns."""
    names = pd.DataFrame({"arm": arm.name, **arm.axes}, index=table.index)
    return pd.concat([names, table], axis=1)


@contextlib.contextmanager
def engine_for(
    arms: list[Arm], datasets: Mapping[tuple[str, str], Dataset], cores: int, at_once: bool
) -> Iterator[Engine]:
    """The engine that is fastest for these arms on this machine.

    They are all arms of the run, also those that are finished: engines differ by rounding, and a run that was stopped
    goes on with the same one.

    Args:
      arms: of the run.
      datasets: by `data_key`.
      cores: to be used.
      at_once: whether it is needed; if not, only if something turns out to be damaged.
    """
    members = max((len(members.seeds) for arm in arms for _, members in plan.phases(arm)), default=0)
    samples = sum(
        arm.settings["epochs"] * len(members.seeds) * len(splits_of(datasets[data_key(arm)], trained)["train"])
        for arm in arms
        for trained, members in plan.phases(arm)
    )
    if jax.default_backend() == "cpu" and jax.process_count() == 1 and members and samples >= WORTH_WORKERS:
        with Workers(min(cores, members), at_once) as workers:
            yield workers
    else:
        yield population


def run_arm(arm: Arm, arms: list[Arm], context: RunContext) -> None:
    """Tunes, trains and evaluates one arm, and keeps its row of `summary.json`, unless it is finished.

    Args:
      arm: to be trained.
      arms: of the run. For those that follow, programs can be compiled in advance.
      context: of the run.
    """
    store, progress = context.stores[arm.name], context.progress
    progress.start(arm.name, arms.index(arm) + 1)
    if store.finished:
        progress.finish(store.row(), "finished before: ")
        return
    trained, tried, chosen = train_arm(arm, arms, context)
    edges: list[str] = []
    if arm.tuning:
        edges = tuning.at_edge(chosen, tried, arm.tuning.grid)
        errors = tuning.errors_by_candidate(tried, arm.tuning.names)
        progress.chosen(chosen, len(errors), float(errors.min()), edges)
    tested = with_chosen(arm, chosen)
    settings, dataset = tested.settings, context.datasets[data_key(arm)]
    metrics = trained.metrics
    at_end = metrics[metrics.epoch == settings["epochs"]]
    losses_finite = (
        metrics[metrics.metric == "loss"].groupby("seed").value.agg(lambda values: np.isfinite(values).all())
    )
    recipe, images = recipe_of(tested, dataset), context.images(tested)
    row = {
        "name": arm.name,
        "axes": arm.axes,
        "seeds": settings["seeds"],
        "diverged": int((~losses_finite.astype(bool)).sum()),
        "chosen": chosen,
        "chosen_at_edge": edges,
        "settings": settings,
        "parameters": sum(count for _, _, count in model.parameter_table(recipe.architecture)),
        "classes": recipe.architecture.classes,
        "dataset": describe_data(dataset, tested),
        "scaling": {"scale": float(images.scale), "shift": float(images.shift)},
    }
    for split in splits_of(dataset, tested):
        of_split = at_end[(at_end.split == split) & (at_end.metric == "error")].sort_values("seed")
        row[f"{split}_error"] = stats.summarize(of_split.value.to_numpy())
    row["seconds"] = trained.wall
    row["samples_per_second"] = trained.samples / trained.seconds
    row["predicted_memory"] = trained.memory
    means = {name: band.mean for name, band in trackers.bands_of(at_end).items()}
    context.tracked.finish(means | {name: row[name] for name in ("seconds", "samples_per_second")})
    store.finish(row)
    progress.finish(row)


def train_arm(arm: Arm, arms: list[Arm], context: RunContext) -> tuple[PopulationResult, pd.DataFrame, tuning.Values]:
    """Tunes, trains and evaluates one arm; what was trained before is read. Arguments: see `run_arm`.

    Returns:
      what its members left, with the wall time of tuning too; what was measured for tuning (no rows without it); and
      the choice.
    """
    tried, wall = pd.DataFrame(), 0.0
    chosen: tuning.Values = {}
    if arm.tuning:
        tried, chosen, wall = tune(arm, arm.tuning, arms, context)
    tested = with_chosen(arm, chosen)
    splits = splits_of(context.datasets[data_key(arm)], tested)
    trained = train_members(tested, plan.seeds_of(tested), checkpoints.TESTED, splits, arms, context)
    return trained._replace(wall=trained.wall + wall), tried, chosen


def tune(
    arm: Arm, first: tuning.Tuning, arms: list[Arm], context: RunContext
) -> tuple[pd.DataFrame, tuning.Values, float]:
    """Tries an arm's hyperparameters; returns what was measured, the choice, and the wall time.

    The test images are not evaluated. Where the choice is at the edge of a grid, the grid is widened as often as the
    config allows.
    """
    splits = {"validation": splits_of(context.datasets[data_key(arm)], arm)["validation"]}
    tried = new = first
    parts: list[PopulationResult] = []
    left = arm.settings["tune_widenings"]
    while True:
        stage = f"{checkpoints.TRIED}-{len(parts)}"
        parts.append(train_members(arm, plan.candidates_of(arm, new), stage, splits, arms, context))
        table = pd.concat([part.metrics for part in parts], ignore_index=True)
        chosen = tuning.choose(table, first.names)
        further = {name: tuning.beyond(tried, name, chosen[name]) for name in tuning.at_edge(chosen, table, first.grid)}
        allowed = [name for name, value in further.items() if value is not None and in_range(name, value)]
        if not left or not allowed:
            return table, chosen, sum(part.wall for part in parts)
        left -= 1
        context.progress.more(arm.settings["epochs"])
        value = further[allowed[0]]
        assert value is not None
        tried, new = tuning.widened(tried, allowed[0], value)


def train_members(
    arm: Arm, members: Members, stage: str, splits: Mapping[str, range], arms: list[Arm], context: RunContext
) -> PopulationResult:
    """Trains and evaluates members of an arm, in chunks if they don't fit in memory together.

    Args:
      arm: its settings are those of all members, but for what is tuned.
      members: to be trained.
      stage: name of what is kept of them.
      splits: what is evaluated.
      arms: see `run_arm`.
      context: of the run.
    """
    store, total = context.stores[arm.name], len(members.seeds)
    recipe = plan.recipe_for(arm, members, context.datasets[data_key(arm)])
    parts: list[PopulationResult] = []
    start, streamed = 0, False
    while start < total:
        chunk = store.chunk(stage, start, chunk_size(total - start, recipe, context.member_limit))
        context.progress.stage("" if members.tested else "tuning, ", total, chunk.size)
        trained = chunk.load_result()
        if trained is None:
            compile_ahead(arm, recipe, chunk.size, arms, context)
            try:
                trained = train_chunk(members.part(start, chunk.size), arm, splits, recipe, chunk, context)
                streamed = chunk.size == total  # of its epochs, as they went by
            except Exception as error:
                context.member_limit = smaller_limit(chunk.size, recipe, error)
            if trained is None:  # here, where nothing refers to the arrays of the failed attempt any more
                chunk.split_in_half()
                if isinstance(context.engine, Workers):
                    context.engine.restart()
                continue
        elif not store.finished:  # those of finished arms were never counted
            context.progress.skip(arm.settings["epochs"])
        parts.append(trained)
        start += chunk.size
    metrics = pd.concat([part.metrics for part in parts], ignore_index=True)
    if members.tested and not streamed and not store.finished:
        context.tracked.start(arm.name, arm.settings)
        replay(metrics, context.tracked)
    return PopulationResult(
        metrics=metrics.sort_values(["epoch", "split", "metric", *members.tuned, "seed"], kind="stable"),
        predictions=pd.concat([part.predictions for part in parts], ignore_index=True),
        seconds=sum(part.seconds for part in parts),
        wall=sum(part.wall for part in parts),
        samples=sum(part.samples for part in parts),
        memory=max(part.memory for part in parts),
    )


def compile_ahead(arm: Arm, recipe: Recipe, size: int, arms: list[Arm], context: RunContext) -> None:
    """Lets workers compile, each another program: this recipe for so many members, then what comes on these data."""
    if not isinstance(context.engine, Workers):
        return
    coming = []
    for other in arms[[other.name for other in arms].index(arm.name) :]:
        if data_key(other) == data_key(arm) and not context.stores[other.name].finished:
            for stage, members in plan.phases(other):
                other_recipe = plan.recipe_for(stage, members, context.datasets[data_key(other)])
                coming.append((other_recipe, chunk_size(len(members.seeds), other_recipe, context.member_limit)))
    context.engine.prepare([(recipe, size), *coming], context.images(arm))
