"""Comparing arms: statistics over seeds, differences between arms seed by seed, and what limits the claims."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from lenet_jax import stats
from lenet_jax.analysis import metrics
from lenet_jax.errors import InputError, check_choice
from lenet_jax.experiments import base
from lenet_jax.run.folder import ONLY_ARM, PACKAGES, Run, arm_named, format_value

ALL_PAIRS = "all"
"""The baseline that stands for every arm in turn."""

LOSS_FIELDS = ("loss", "mse_point", "target_code", "mse_reduction", "mse_factor", "map_constant", "output")
"""Settings that decide what a loss is."""

FEW_SEEDS = 5
"""With no more, an arm's interval covers too little: `experiments/results/coverage`."""


@dataclasses.dataclass(frozen=True)
class ArmStatistics:
    """One arm's row of a comparison. Errors are fractions; losses are in the unit of the loss.

    Attributes:
      run: what tells its run from others; empty where only one is compared.
      arm: its name.
      axes: the values of the sweep's axes that make it.
      chosen: tuned hyperparameters.
      settings: all its fields; with its name as "arm" where an older run doesn't tell them.
      at_edge: tuned hyperparameters whose choice is at the edge of what was tried.
      n: members.
      mean, std, median: over members; std with n - 1. None where one isn't known, as for values that aren't finite.
      ci95: see `stats.bootstrap_interval`.
      best, worst: the smallest and the largest value.
      diverged: members whose loss was NaN or infinite at some epoch. They are part of all the statistics; a network
        whose outputs are not finite counts as all wrong.
      values: by rising seed, the index.
      data: what tells whether another arm was measured on the same images and labels.
    """

    run: str
    arm: str
    axes: dict[str, Any]
    chosen: dict[str, float]
    settings: dict[str, Any]
    at_edge: tuple[str, ...]
    n: int
    mean: float | None
    std: float | None
    median: float | None
    ci95: tuple[float, float] | None
    best: float
    worst: float
    diverged: int
    values: pd.Series
    data: tuple[Any, ...]

    @property
    def label(self) -> str:
        """Its name among arms of several runs."""
        return label(self.run, self.arm)


@dataclasses.dataclass(frozen=True)
class TestedContrast:
    """A difference that was tested.

    Attributes:
      kind: ``difference`` between two arms, ``main effect`` or ``interaction``.
      name: what is taken against what.
      subject: what a sentence about it begins with.
      contrast: paired by seed.
      p_holm: the p-value, corrected for all that were tested together.
      improvement: the chance that a run of the first arm is better than one of the second
        (`stats.probability_of_superiority`); None for effects.
      seeds: that would show a difference of this size, or of the size asked for, in 80 % of studies with as many
        comparisons; None if none would.
    """

    kind: str
    name: str
    subject: str
    contrast: stats.Contrast
    p_holm: float
    improvement: float | None
    seeds: int | None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Attributes:
      runs: compared.
      metric: see `metrics`.
      arms: of all runs.
      judgements: differences, then main effects and interactions of a factorial sweep; all corrected together.
      notes: what a reader has to know of it.
    """

    runs: tuple[Run, ...]
    metric: str
    arms: tuple[ArmStatistics, ...]
    judgements: tuple[TestedContrast, ...]
    notes: tuple[str, ...]


def arm_statistics(runs: Sequence[Run], metric: str = "test_error") -> list[ArmStatistics]:
    """Every arm of every run that has the metric.

    Args:
      runs: as `folder.load` returns them.
      metric: see `metrics`.

    Raises:
      InputError: a run has no such metric, or the runs measured it on different splits.
    """
    defaults = dict(base.get_config())
    measured = {run.folder: metrics.measured(run, metric) for run in runs}
    if len(set(measured.values())) > 1:
        found = "; ".join(f"{name} of {str(folder)!r}" for folder, name in measured.items())
        raise InputError(f"metric: {metric!r} would be read from {found}; give all runs the same kind of curve")
    rows = []
    for run, name in zip(runs, run_names(runs), strict=True):
        values = metrics.by_arm(run, metric)
        for arm in run.summary["arms"]:
            if arm["name"] not in values:
                continue
            of_arm = values[arm["name"]]
            summary = stats.summarize(of_arm.to_numpy())
            data, split = arm.get("dataset", run.summary["dataset"]), metrics.split_of(measured[run.folder])
            settings = defaults | run.config | arm["axes"] | arm.get("chosen", {}) | arm.get("settings", {})
            # An axis that is no field is one of groups; without axes an arm is named, or the only one.
            groups = set(arm["axes"]) - set(defaults) or (not arm["axes"] and arm["name"] != ONLY_ARM)
            # Runs made before summaries held settings don't tell which fields a group sets.
            if groups and "settings" not in arm:
                settings["arm"] = arm["name"]
            labels = settings["label_noise"] if split == "train" else 0
            rows.append(
                ArmStatistics(
                    run=name,
                    arm=arm["name"],
                    axes=arm["axes"],
                    chosen=arm.get("chosen", {}),
                    settings=settings,
                    at_edge=tuple(arm.get("chosen_at_edge", [])),
                    n=len(of_arm),
                    mean=summary["mean"],
                    std=summary["std"],
                    median=summary["median"],
                    ci95=tuple(summary["ci95"]) if summary["ci95"] else None,
                    best=float(of_arm.min() if metrics.lower_is_better(metric) else of_arm.max()),
                    worst=float(of_arm.max() if metrics.lower_is_better(metric) else of_arm.min()),
                    diverged=arm["diverged"],
                    values=of_arm,
                    data=(data.get("fingerprint"), data.get(split), labels),
                )
            )
    return rows


def label(run: str, arm: str) -> str:
    """An arm's name among those of several runs."""
    return f"{run}: {arm}" if run else arm


def run_names(runs: Sequence[Run]) -> list[str]:
    """What tells several runs apart: their folder's name, or the whole path where names are alike."""
    if len(runs) == 1:
        return [""]
    names = [run.folder.name for run in runs]
    return [name if names.count(name) == 1 else str(run.folder) for name, run in zip(names, runs, strict=True)]


def compare_runs(
    runs: Sequence[Run], metric: str = "test_error", baseline: str = "", difference: float | None = None
) -> Comparison:
    """Compares the arms of runs.

    Args:
      runs: as `folder.load` returns them.
      metric: see `metrics`.
      baseline: the arm that all others are taken against, or ``all`` for every pair. By default, the first arm of a
        single run; with several runs, each arm's namesake in the first run.
      difference: for which the seeds needed are told, in the metric's unit; by default, the one that was measured.

    Raises:
      InputError: a run has no such metric, there is no such baseline, or nothing can be taken against it.
    """
    if difference is not None and not math.isfinite(difference):
        raise InputError(f"difference: {difference!r}; needed is a finite number")
    arms = arm_statistics(runs, metric)
    pairs, notes = pairs_of(runs, arms, baseline)
    tested: list[tuple[tuple[str, str, str], np.ndarray, float | None]] = []
    for arm, other in pairs:
        found = paired(arm, other, metric)
        if isinstance(found, str):
            notes.append(found)
            continue
        if len(found) < max(arm.n, other.n):
            notes.append(f"{arm.label} and {other.label} have {len(found)} seeds in common, on which they are compared")
        words = [f"{arm.label} {word} {other.label}" for word in ("against", "instead of")]
        improvement = stats.probability_of_superiority(
            *(one.values.loc[found.index].to_numpy() for one in (arm, other))
        )
        tested.append((("difference", words[0], words[1]), found.to_numpy(), improvement))
    if baseline and pairs and not tested:
        raise InputError(f"baseline: nothing can be taken against {baseline!r}; {notes[-1]}")
    if len(runs) == 1:
        tested += [(effect_words(effect), effect.differences, None) for effect in effects_of(arms)]
    contrasts = stats.contrasts([values for _, values, _ in tested])
    corrected = stats.holm([contrast.p for contrast in contrasts])
    level = stats.ALPHA / max(len(tested), 1)  # the strictest of Holm's steps
    judgements = [
        TestedContrast(
            *words,
            contrast,
            p_holm,
            improvement,
            stats.seeds_needed(contrast.mean if difference is None else difference, contrast.std, level)
            if contrast.n >= FEW_SEEDS  # of fewer the variance is hardly known
            else None,
        )
        for (words, _, improvement), contrast, p_holm in zip(tested, contrasts, corrected, strict=True)
    ]
    notes = [*comparability_notes(runs, arms), *notes, *claim_limits(runs, arms, judgements, metric)]
    return Comparison(tuple(runs), metric, tuple(arms), tuple(judgements), tuple(dict.fromkeys(notes)))


Pairs = list[tuple[ArmStatistics, ArmStatistics]]


def pairs_of(runs: Sequence[Run], arms: Sequence[ArmStatistics], baseline: str) -> tuple[Pairs, list[str]]:
    """Which arm is taken against which, and notes on those that have no partner."""
    if baseline == ALL_PAIRS:
        return [(second, first) for first, second in itertools.combinations(arms, 2)], []
    if baseline:
        baseline = arm_named(baseline, {name for arm in arms for name in (arm.arm, arm.label)})
        named = [arm for arm in arms if baseline in (arm.arm, arm.label)]
        if not named:
            check_choice("baseline", baseline, [*dict.fromkeys(arm.label for arm in arms), ALL_PAIRS])
        notes = [f"{baseline} is in several runs; the baseline is {named[0].label}"] if len(named) > 1 else []
        return [(arm, named[0]) for arm in arms if arm is not named[0]], notes
    if len(runs) == 1:
        return [(arm, arms[0]) for arm in arms[1:]], []
    return matched(runs, arms)


def matched(runs: Sequence[Run], arms: Sequence[ArmStatistics]) -> tuple[Pairs, list[str]]:
    """Arms of later runs, each with the arm of the first run that agrees with it in all that any of the runs varies.

    What a run varies are settings in which its arms differ, but for those that it tunes.
    """
    names = run_names(runs)
    varied: set[str] = set()
    for name in names:
        own = [arm for arm in arms if arm.run == name]
        fields = {field for arm in own for field in arm.settings} - set(own[0].chosen if own else ())
        varied |= {field for field in fields if len({repr(arm.settings.get(field)) for arm in own}) > 1}

    def key(arm: ArmStatistics) -> tuple[str, ...]:
        return tuple(repr(arm.settings.get(field)) for field in sorted(varied))

    partners: dict[tuple[str, ...], list[ArmStatistics]] = {}
    for arm in arms:
        if arm.run == names[0]:
            partners.setdefault(key(arm), []).append(arm)
    pairs, notes = [], []
    for arm in arms:
        if arm.run != names[0]:
            alike = partners.get(key(arm), [])
            if len(alike) == 1:
                pairs.append((arm, alike[0]))
            else:
                count = "no counterpart" if not alike else "several counterparts"
                notes.append(f"{arm.label} has {count} in {names[0]}; --baseline takes all against one arm")
    return pairs, notes


def paired(arm: ArmStatistics, other: ArmStatistics, metric: str) -> pd.Series | str:
    """The differences by seed, or why there are none."""
    both = f"{arm.label} and {other.label} are not paired"
    if metric in metrics.OF_ARM:
        return f"{both}: {metric} is one number for an arm"
    if arm.data != other.data:
        return f"{both}: they were measured on different images"
    if metric.endswith("_loss") and any(arm.settings.get(field) != other.settings.get(field) for field in LOSS_FIELDS):
        return f"{both}: their losses are different ones"
    seeds = arm.values.index.intersection(other.values.index)
    if len(seeds) < 2:
        return f"{both}: {'only one seed' if len(seeds) else 'no seed'} is common to them"
    found = pd.Series(stats.difference(*(one.values.loc[seeds].to_numpy() for one in (arm, other))), seeds)
    if not np.isfinite(found).all():
        return f"{both}: {int((~np.isfinite(found)).sum())} of {len(found)} differences are not finite"
    return found


def effects_of(arms: Sequence[ArmStatistics]) -> list[stats.Effect]:
    """Main effects and interactions, if the arms are a full product of two or more axes with the same seeds."""
    axes = swept_axes(arms)
    cells = {tuple(arm.axes.get(axis) for axis in axes): arm for arm in arms}
    whole = len(axes) > 1 and len(cells) == len(arms) == math.prod(map(len, axes.values()))
    first = arms[0]
    alike = all(arm.values.index.equals(first.values.index) and arm.data == first.data for arm in arms)
    finite = all(np.isfinite(arm.values).all() for arm in arms)
    if not (whole and alike and finite) or first.n < 2:
        return []
    return stats.effects(axes, {cell: arm.values.to_numpy() for cell, arm in cells.items()})


def swept_axes(arms: Sequence[ArmStatistics]) -> dict[str, list[Any]]:
    """The axes in which arms differ, with their values."""
    axes: dict[str, list[Any]] = {}
    for arm in arms:
        for axis, value in arm.axes.items():
            if value not in axes.setdefault(axis, []):
                axes[axis].append(value)
    return {axis: values for axis, values in axes.items() if len(values) > 1}


def effect_words(effect: stats.Effect) -> tuple[str, str, str]:
    """A main effect's or an interaction's kind, name and subject of a sentence."""
    changes = [(format_value(new), format_value(old)) for old, new in effect.changes]
    names = [f"{new} against {old}" for new, old in changes]
    over = " and ".join(effect.over)
    tail = f", over {over}" if over else ""
    if len(effect.axes) == 1:
        new, old = changes[0]
        return (
            "main effect",
            f"{effect.axes[0]}: {names[0]}{tail}",
            f"Averaged over {over}, {effect.axes[0]} {new} instead of {old}",
        )
    parts = [f"{axis} ({name})" for axis, name in zip(effect.axes, names, strict=True)]
    return "interaction", " x ".join(parts) + tail, f"The interaction {' x '.join(parts)}{tail}"


def comparability_notes(runs: Sequence[Run], arms: Sequence[ArmStatistics]) -> list[str]:
    """What makes runs hard to compare: other data or splits, epochs, settings, versions."""
    found = []

    def differ(values: Sequence[Any]) -> bool:
        return any(value != values[0] for value in values)

    data = [{arm.data for arm in arms if arm.run == name} for name in run_names(runs)]
    if differ([{**run.summary["dataset"], "name": ""} for run in runs]) or differ(data):
        found.append("warning: the runs used different data sets or splits of them")
    fields = [
        field
        for field in dict.fromkeys(field for run in runs for field in run.config)
        if field not in ("sweep", "dataset", "data_dir", "seeds", "first_seed", "store_predictions")
        and all(field in run.config for run in runs)
        and differ([run.config[field] for run in runs])
    ]
    if "epochs" in fields:
        found.append("warning: the runs trained for different numbers of epochs")
    if set(fields) - {"epochs"}:
        found.append(f"the runs' configs differ in {', '.join(fields)}")
    versions = [run.provenance.get("versions", {}) for run in runs]
    changed = [name for name in PACKAGES if differ([version.get(name) for version in versions])]
    if changed:
        found.append(f"warning: the runs were made with different versions of {', '.join(changed)}")
    return found


def claim_limits(
    runs: Sequence[Run], arms: Sequence[ArmStatistics], judgements: Sequence[TestedContrast], metric: str
) -> list[str]:
    """What limits the claims that can be made."""
    found = []
    shown = {(arm.run, arm.arm) for arm in arms}
    for run, name in zip(runs, run_names(runs), strict=True):
        absent = [arm["name"] for arm in run.summary["arms"] if (name, arm["name"]) not in shown]
        found += [f"{label(name, arm)} has no {metrics.title(metric)}" for arm in absent]
    few = [arm for arm in arms if arm.n <= FEW_SEEDS] if metric not in metrics.OF_ARM else []
    if few and max(arm.n for arm in few) < 2:
        found.append("a single seed an arm shows nothing of how much results vary")
    elif few:
        fewest = min(arm.n for arm in few)
        most = 100 * (1 - 2 ** (1 - fewest))
        found.append(
            f"{fewest} seeds are few: intervals end at the smallest and the largest value at the latest, and so cover "
            f"the mean in {most:.0f} % at most (of symmetric values)"
        )
    for seeds in sorted({judgement.contrast.n for judgement in judgements}):
        smallest = stats.smallest_p(seeds) * len(judgements)
        if smallest >= stats.ALPHA:
            comparisons = f"{len(judgements)} comparison{'s' * (len(judgements) > 1)}"
            found.append(
                f"{seeds} seeds are too few for a claim: with {comparisons} no corrected p-value of theirs can be "
                f"below {min(smallest, 1.0):.2g}"
            )
    if metric not in metrics.OF_ARM:
        found += [
            f"{arm.diverged} of {arm.n} networks of {arm.label} diverged: its mean, differences and effects are of "
            "networks that learned together with others that didn't"
            for arm in arms
            if 0 < arm.diverged < arm.n
        ]
        found += [f"all networks of {arm.label} diverged" for arm in arms if arm.diverged == arm.n]
    for arm in arms:
        for name in arm.at_edge:
            value = format_value(arm.chosen[name])
            found.append(f"{arm.label} chose {name} {value}, the edge of what was tried: beyond may be better")
    for run, name in zip(runs, run_names(runs), strict=True):
        rates = {arm.settings.get("learning_rate") for arm in arms if arm.run == name}
        if len(run.summary["arms"]) > 1 and not run.config.get("tune") and len(rates) == 1:
            found.append("no hyperparameter was tuned: one that suits an arm better may be part of its difference")
    if len(runs) == 1 and len(swept_axes(arms)) > 1 and judgements and not effects_of(arms):
        found.append("no main effects: the arms are no full product of their columns, all measured alike and finite")
    if metric.startswith(metrics.EPOCHS_TO):
        for arm in arms:
            missing = int(np.isinf(arm.values).sum())
            found += [f"{missing} of {arm.n} seeds of {arm.label} never had such an error"] if missing else []
    return found
