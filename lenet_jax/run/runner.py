"""Runs experiments: carries out a plan and writes the run folder."""

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from lenet_jax import distributed, library, model, population, programs, stats
from lenet_jax.errors import InputError, check_choice
from lenet_jax.paths import expanded
from lenet_jax.run import checkpoints, cleanup, files, folder, limits, locks, processes, trackers, tuning
from lenet_jax.run import plan as planning
from lenet_jax.run.arms import Arm, describe, expand, select_arms
from lenet_jax.run.checkpoints import ArmStore, PopulationResult
from lenet_jax.run.folder import ArmSummary
from lenet_jax.run.loop import RunContext
from lenet_jax.run.parts import Definitions
from lenet_jax.run.phases import ArmResult, arm_result, read_result, train_phase
from lenet_jax.run.plan import ArmPlan, Phase, Plan
from lenet_jax.run.progress import Progress, say
from lenet_jax.run.signals import Stop
from lenet_jax.run.workers import Engine, Workers


def run(
    config: ConfigDict,
    workdir: Path,
    command: str,
    tracker: str = "none",
    *,
    experiment: Path | None = None,
    only_arm: str = "",
    fresh: bool = False,
    save_every: float = 10.0,
    devices: int = 0,
    stop: Stop | None = None,
) -> folder.Run | None:
    """Runs every arm of a config and writes the run folder; resumes what an earlier attempt left.

    Args:
      config: see `experiments/base.py`.
      workdir: the run folder. If it holds this config's finished run, that run is returned and nothing is done.
      command: what the user typed, for the provenance.
      tracker: a key of `trackers.TRACKERS`.
      experiment: the file that the config comes from. Worker processes execute it if it defines parts of its own;
        without a file, such parts are trained in this process.
      only_arm: name or number, from 1, of the only arm to run; empty for all.
      fresh: whether to move what the folder holds aside.
      save_every: seconds between checkpoints of members in training.
      devices: number of CPU cores to use; 0 for all.
      stop: notices signals.

    Returns:
      the run; None if other arms of it are not finished.

    Raises:
      InputError: the config, a data set, the folder or the tracker is invalid, which is reported before anything is
        compiled; or the folder was written by another version.
      RunError, Interrupted: the run can't continue, or a signal stopped it. What it saved is kept.
    """
    check_choice("tracker", tracker, trackers.TRACKERS)
    arms = expand(config)
    wanted = select_arms(arms, only_arm)
    resolved = describe(config)
    # Runs from before `test_curve` existed had that curve, which changes nothing else in them.
    defaults = describe(ConfigDict()) | {"test_curve": resolved["test_curve"]}
    limits.check_limits(devices or library.cores())
    population.configure(devices or None)
    workdir = expanded(workdir, "workdir")
    checkpoint_dir = workdir / folder.CHECKPOINTS
    own = Definitions.of(arms, experiment)
    if not fresh:
        own.check_unchanged(workdir)
    folders = {arm.name: checkpoint_dir / folder.folder_name(arm.name) for arm in arms}
    if not fresh and folder.is_finished(workdir, resolved, defaults):
        with folder.naming_a_way_out():
            finished = folder.load(workdir)
        check_still_same(finished, arms)
        say(f"{workdir} holds this run, already finished")
        checkpoints.prune_later(checkpoint_dir, list(map(ArmStore, folders.values())))
        return finished
    plan, arithmetic = planning.make(arms), programs.arithmetic()
    with contextlib.ExitStack() as owning:
        environment = folder.describe_environment(command) | {"cores": library.cores(), "started": now()}
        environment |= {"arithmetic": arithmetic}
        environment |= own.describe() | {"fingerprints": plan.fingerprints}
        agreed = {"config": resolved, "--only-arm": only_arm, "data set": plan.fingerprints, "parts": own.describe()}
        agreed |= {"version": environment["versions"], "JAX setting": environment["jax_settings"]}
        agreed |= {"arithmetic": arithmetic}
        distributed.check_same(agreed)
        lock = None
        tracked = trackers.TRACKERS[tracker if distributed.primary() else "none"](workdir)
        if distributed.primary():
            if fresh and (moved := locks.move_aside(workdir)):
                say(f"{workdir} was moved to {moved}")
            cleanup.check_owned(checkpoint_dir, [path.name for path in folders.values()])
            lock = owning.enter_context(locks.exclusive(checkpoint_dir, repr(str(workdir)), shared=bool(only_arm)))
            for arm in wanted if only_arm else []:
                owning.enter_context(locks.exclusive(folders[arm.name], f"arm {arm.name!r}"))
            with locks.wait_turn(checkpoint_dir):
                folder.create(workdir, resolved, defaults)
                own.store(workdir)
        distributed.wait_visible(workdir / folder.CONFIG)
        if distributed.wait_visible(workdir / folder.SUMMARY):  # another job may have run its last arm meanwhile
            return folder.load(workdir)
        if distributed.primary():
            checkpoints.record_attempt(checkpoint_dir, environment)
        for note in plan.notes:
            say(note)
        stores = {
            arm.arm.name: ArmStore(folders[arm.arm.name], save_every, arm.identity(own.digest, arithmetic), lock)
            for arm in plan.arms
        }
        selected = [arm for arm in plan.arms if arm.arm in wanted]
        remaining = [arm for arm in selected if not stores[arm.arm.name].finished]
        epochs = sum(phase.recipe.epochs for arm in remaining for phase in arm.phases)
        with (
            contextlib.closing(tracked),  # also after an error: it marks an unfinished arm as failed
            Progress(len(arms), epochs, hidden=not distributed.primary()) as progress,
            engine_for(plan, own, devices or library.cores(), at_once=bool(remaining)) as engine,
        ):
            context = RunContext(plan, stores, engine, progress, tracked, stop or Stop())
            for arm_plan in selected:
                run_arm(arm_plan, context)
            with locks.wait_turn(checkpoint_dir):
                if not distributed.wait_visible(workdir / folder.SUMMARY):
                    waiting = [arm.name for arm in arms if not stores[arm.name].finished]
                    if waiting:
                        done = len(arms) - len(waiting)
                        say(f"{done} of {len(arms)} arms are finished; {waiting[0]!r} is not")
                        return None
                    finish(workdir, context)
        distributed.wait_visible(workdir / folder.SUMMARY)
    return folder.load(workdir)


def check_still_same(finished: folder.Run, arms: Sequence[Arm]) -> None:
    """Compares the data of a finished run with those that its config names today.

    Only folders of IDX files that are still there: the package's own data sets are verified whenever they are loaded,
    and TFDS may have to prepare its data sets first.

    Raises:
      InputError: they differ.
    """
    named = {(arm.settings["dataset"], arm.settings["data_dir"]) for arm in arms}
    for name, data_dir in sorted(named):
        if name.startswith("idx:") and name in finished.provenance.get("fingerprints", {}):
            try:
                now = planning.load(name, data_dir).fingerprint
            except InputError:  # the folder is not there any more
                continue
            checkpoints.check_data(finished.provenance["fingerprints"], {name: now})


def now() -> str:
    """Date and time, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextlib.contextmanager
def engine_for(plan: Plan, own: Definitions, cores: int, at_once: bool) -> Iterator[Engine]:
    """The fastest engine for a plan on this machine; `at_once` starts worker processes before they are needed.

    It depends on the whole plan, finished arms too: engines differ by rounding, and a resumed run uses the same one.
    """
    members = max((phase.size for phase in plan.phases), default=0)
    samples = sum(phase.samples for phase in plan.phases)
    usable = jax.default_backend() == "cpu" and jax.process_count() == 1 and (own.file or not own.names)
    if usable and members and samples >= processes.WORTH_WORKERS:
        with Workers(min(cores, members), at_once, own.file) as workers:
            yield workers
    else:
        processes.end_early()
        yield population


def run_arm(plan: ArmPlan, context: RunContext) -> None:
    """Tunes, trains and evaluates one arm and stores its row of `summary.json`, unless it is finished."""
    arm, store, progress = plan.arm, context.stores[plan.arm.name], context.progress
    store.check_held()
    progress.start(arm.name, context.plan.arms.index(plan) + 1)
    if store.finished:
        progress.finish(ArmSummary.from_json(store.row()), "finished before: ")
        return
    result = arm_result(plan, lambda phase: train_phase(phase, context), progress)
    edges: list[str] = []
    if arm.tuning:
        edges = tuning.at_edge(result.chosen, result.tried, arm.tuning.grid)
        errors = tuning.errors_by_candidate(result.tried, arm.tuning.names)
        progress.chosen(result.chosen, len(errors), float(errors.min()), edges)
    row = row_of(plan, result, edges, context)
    metrics = result.tested.metrics
    means = trackers.bands_of(metrics[metrics.epoch == result.phase.recipe.epochs])
    finals = {name: band.mean for name, band in means.items()}
    context.tracked.finish(finals | {"seconds": row.seconds, "samples_per_second": row.samples_per_second})
    store.finish(row.to_json())
    progress.finish(row)


def row_of(plan: ArmPlan, result: ArmResult, edges: Sequence[str], context: RunContext) -> ArmSummary:
    """An arm's row of `summary.json`."""
    phase, tested = result.phase, result.tested
    metrics, images = tested.metrics, context.images(phase)
    at_end = metrics[(metrics.epoch == phase.recipe.epochs) & (metrics.metric == "error")]
    losses = metrics[(metrics.metric == "loss") & (metrics.split != planning.STATE)]
    diverged = losses.seed[~np.isfinite(losses.value)].nunique()
    errors = {split: at_end[at_end.split == split].sort_values("seed").value.to_numpy() for split in phase.splits}
    return ArmSummary(
        name=plan.arm.name,
        identity=context.stores[plan.arm.name].identity,
        axes=plan.arm.axes,
        seeds=len(phase.seeds),
        diverged=diverged,
        chosen=result.chosen,
        chosen_at_edge=tuple(edges),
        settings=dict(phase.settings),
        parameters=sum(count for _, _, count in model.parameter_table(phase.recipe.architecture)),
        classes=phase.recipe.architecture.classes,
        dataset=planning.describe_data(phase),
        scaling={"scale": float(images.scale), "shift": float(images.shift)},
        **{f"{split}_error": stats.summarize(stats.round_errors(values)) for split, values in errors.items()},
        seconds=tested.wall,
        samples_per_second=tested.samples / tested.seconds,
        predicted_memory=tested.memory,
    )


def finish(workdir: Path, context: RunContext) -> None:
    """Writes the run's tables, provenance and summary from the results of its arms, then prunes `checkpoints/`."""
    checkpoint_dir = workdir / folder.CHECKPOINTS
    tables: dict[str, list[pd.DataFrame]] = {folder.METRICS: [], folder.TUNING: []}
    rows, predicted = [], []
    for plan in context.plan.arms:
        store = context.stores[plan.arm.name]
        rows.append(store.row())

        def read(phase: Phase, store: ArmStore = store) -> PopulationResult:
            result = read_result(phase, store)
            # A damaged file is the only reason to train now.
            return train_phase(phase, context) if result is None else result

        result = arm_result(plan, read)
        for name, table in (
            (folder.METRICS, result.tested.metrics.assign(**result.chosen)),
            (folder.TUNING, result.tried),
        ):
            if len(table):
                tables[name].append(labelled(table, plan.arm))
        if len(result.tested.predictions):
            predicted.append(plan.arm)
    if not distributed.primary():
        return
    store.check_held()
    for name, frames in tables.items():
        if frames:
            files.write_table(workdir / name, pd.concat(frames, ignore_index=True))
    if predicted:
        # One arm at a time: those of 50 arms of 100 networks would take gigabytes.
        columns = pd.DataFrame([{"arm": arm.name, **arm.axes} for arm in predicted]).dtypes.to_dict()
        parts = [functools.partial(predictions_of, arm, context.stores[arm.name], columns) for arm in predicted]
        files.write_table(workdir / folder.PREDICTIONS, parts[0](), *parts[1:])
    first, *later = checkpoints.read_attempts(checkpoint_dir)
    provenance = first | {"fingerprints": context.plan.fingerprints, "notes": context.plan.notes, "finished": now()}
    files.write_json(workdir / folder.PROVENANCE, provenance | ({"later_attempts": later} if later else {}))
    dataset = planning.describe_data(context.plan.arms[0].test)
    files.write_json(workdir / folder.SUMMARY, {"dataset": dataset, "arms": rows})
    checkpoints.prune(checkpoint_dir, list(context.stores.values()))


def predictions_of(arm: Arm, store: ArmStore, columns: Mapping[Any, Any]) -> pd.DataFrame:
    """The predictions of a finished arm, whose name and axes have these types."""
    tables = [files.read_table(chunk.folder / folder.PREDICTIONS) for chunk in checkpoints.tested_chunks(store)]
    return labelled(pd.concat(tables, ignore_index=True), arm).astype(columns)


def labelled(table: pd.DataFrame, arm: Arm) -> pd.DataFrame:
    """The table with the arm's name and axes before its columns."""
    names = pd.DataFrame({"arm": arm.name, **arm.axes}, index=table.index)
    return pd.concat([names, table], axis=1)
