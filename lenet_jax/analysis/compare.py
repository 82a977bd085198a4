"""Comparing arms: statistics over seeds, differences paired by seed, and what limits the claims."""

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
from lenet_jax.losses import Loss
from lenet_jax.run.folder import ONLY_ARM, PACKAGES, Run, arm_named, format_value

ALL_PAIRS = "all"
"""The baseline that compares every pair of arms."""

LOSS_FIELDS = ("loss", "output", *(field.name for field in dataclasses.fields(Loss) if field.name != "name"))
"""Config fields that define a loss; arms that differ in one are not compared by loss."""

FEW_SEEDS = 5
"""Up to this number, intervals of an arm's mean are too narrow (`experiments/results/coverage`)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArmStatistics(stats.Statistics):
    """One arm of a comparison, with its statistics. Errors are fractions; losses have the unit of the loss.

    Attributes:
      run: name of its run; "" if only one run is compared.
      axes, chosen: sweep axis -> value; tuned hyperparameter -> chosen value.
      settings: all config fields, and "arm", its name, if an older run doesn't say which fields that sets.
      at_edge: tuned hyperparameters whose chosen value is at the edge of the grid.
      diverged: networks with a loss that was not finite at some epoch. All statistics include them.
      values: by rising seed, the index.
      data: fingerprint, size of the split and label noise: equal for arms measured on the same images and labels.
    """

    run: str
    arm: str
    axes: dict[str, Any]
    chosen: dict[str, float]
    settings: dict[str, Any]
    at_edge: tuple[str, ...]
    diverged: int
    values: pd.Series
    data: tuple[Any, ...]

    @property
    def n(self) -> int:
        """Number of values: one a seed, or one for the arm as a whole."""
        return len(self.values)

    @property
    def label(self) -> str:
        """See the function `label`."""
        return label(self.run, self.arm)


Pair = tuple[ArmStatistics, ArmStatistics]


@dataclasses.dataclass(frozen=True)
class TestedContrast:
    """A difference that was tested.

    Attributes:
      kind: ``difference`` between two arms, ``main effect`` or ``interaction``.
      name: the two sides of the difference.
      subject: of a sentence about it.
      contrast: statistics of the differences, paired by seed.
      probability_of_improvement: see `stats.probability_of_superiority`; None for effects.
      p_holm: the p-value, corrected for all contrasts of the comparison.
      seeds: with which 80 % of studies show this difference, or the one asked for; None if unknown.
    """

    kind: str
    name: str
    subject: str
    contrast: stats.Contrast
    probability_of_improvement: float | None
    p_holm: float
    seeds: int | None

    @property
    def significant(self) -> bool:
        """Whether the corrected p-value is below 0.05."""
        return self.p_holm < stats.ALPHA


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Arms, the differences, main effects and interactions that were tested (`judgements`), and notes on its limits."""

    runs: tuple[Run, ...]
    metric: str
    arms: tuple[ArmStatistics, ...]
    judgements: tuple[TestedContrast, ...]
    notes: tuple[str, ...]

    def of_kind(self, *kinds: str) -> list[TestedContrast]:
        """The tested contrasts of some kinds."""
        return [tested for tested in self.judgements if tested.kind in kinds]


def arm_statistics(runs: Sequence[Run], metric: str = "test_error") -> list[ArmStatistics]:
    """Statistics of every arm that has the metric (see `metrics`)."""
    defaults = dict(base.get_config())
    measured = {run.folder: metrics.measured(run, metric) for run in runs}
    if len(set(measured.values())) > 1:
        sources = "; ".join(f"{name} of {str(folder)!r}" for folder, name in measured.items())
        raise InputError(f"metric: {metric!r} would be read from {sources}; give all runs the same kind of curve")
    rows, metric = [], metrics.restricted(runs, metric)
    for run, name in zip(runs, run_names(runs), strict=True):
        values = metrics.by_arm(run, metric)
        split = metrics.split_of(measured[run.folder])
        for arm in run.arms:
            if arm.name not in values:
                continue
            settings = defaults | run.config | arm.axes | arm.chosen | (arm.settings or {})
            # Arms are named by an axis that is not a field, or without axes unless there is only one.
            if arm.settings is None and (set(arm.axes) - set(defaults) or (not arm.axes and arm.name != ONLY_ARM)):
                settings["arm"] = arm.name
            label_noise = settings["label_noise"] if split == "train" else 0
            rows.append(
                ArmStatistics(
                    **vars(stats.summarize(values[arm.name].to_numpy())),
                    run=name,
                    arm=arm.name,
                    axes=arm.axes,
                    chosen=arm.chosen,
                    settings=settings,
                    at_edge=arm.chosen_at_edge,
                    diverged=arm.diverged,
                    values=values[arm.name],
                    data=(arm.dataset.get("fingerprint"), arm.dataset.get(split), label_noise),
                )
            )
    return rows


def label(run: str, arm: str) -> str:
    """An arm's name among the arms of all runs."""
    return f"{run}: {arm}" if run else arm


def run_names(runs: Sequence[Run]) -> list[str]:
    """Names of runs: of their folders, or whole paths where those are equal; "" for a single run."""
    if len(runs) == 1:
        return [""]
    names = [run.folder.name for run in runs]
    return [name if names.count(name) == 1 else str(run.folder) for name, run in zip(names, runs, strict=True)]


def compare_runs(
    runs: Sequence[Run], metric: str = "test_error", baseline: str = "", difference: float | None = None
) -> Comparison:
    """Compares the arms of runs.

    Args:
      runs: from `folder.load`.
      metric: see `metrics`.
      baseline: the arm that all others are compared with, or ``all`` for every pair. The default is the first arm of a
        single run; of several runs, the matching arm of the first one.
      difference: true difference to compute `seeds` for, in the metric's unit; by default each measured difference.

    Raises:
      InputError: a run has no such metric or is there twice, or no arm can be compared with the baseline.

    Examples:
      >>> from lenet_jax.run import folder
      >>> found = compare_runs([folder.load("experiments/results/connectivity")]).judgements[0]
      >>> found.name, round(found.contrast.low, 4), round(found.contrast.high, 4)  # 95 % interval over seeds
      ('connectivity=full against connectivity=table', -0.0031, 0.0003)
    """
    for first, second in itertools.combinations(runs, 2):
        copied = first.provenance == second.provenance and first.summary == second.summary
        if (copied and "started" in first.provenance) or first.folder.resolve() == second.folder.resolve():
            raise InputError(f"run: {str(first.folder)!r} and {str(second.folder)!r} are the same run")
    if difference is not None and not math.isfinite(difference):
        raise InputError(f"difference: {difference!r}; allowed is a finite number")
    arms, metric = arm_statistics(runs, metric), metrics.restricted(runs, metric)
    pairs, notes = pairs_of(runs, arms, baseline)
    differences: list[tuple[tuple[str, str, str], np.ndarray, float | None]] = []
    for arm, other in pairs:
        found = paired(arm, other, metric)
        if isinstance(found, str):
            notes.append(found)
            continue
        if len(found) < max(arm.n, other.n):
            notes.append(f"{arm.label} and {other.label} are compared on their {len(found)} common seeds")
        name, subject = (f"{arm.label} {word} {other.label}" for word in ("against", "instead of"))
        ours, theirs = (one.values.loc[found.index].to_numpy() for one in (arm, other))
        probability = stats.probability_of_superiority(ours, theirs)
        differences.append((("difference", name, subject), found.to_numpy(), probability))
    if baseline and pairs and not differences:
        raise InputError(f"baseline: no arm can be compared with {baseline!r}; {notes[-1]}")
    if len(runs) == 1:
        differences += [(effect_words(effect), effect.differences, None) for effect in effects_of(arms)]
    contrasts = stats.contrasts([values for _, values, _ in differences])
    corrected = stats.holm([contrast.p for contrast in contrasts])
    level = stats.ALPHA / max(len(contrasts), 1)  # the strictest of Holm's steps
    tested: list[TestedContrast] = []
    for (words, _, better), contrast, p_holm in zip(differences, contrasts, corrected, strict=True):
        size = contrast.mean if difference is None else difference
        # With few seeds the variance is hardly known.
        seeds = stats.seeds_needed(size, contrast.std, level) if contrast.n >= FEW_SEEDS else None
        tested.append(TestedContrast(*words, contrast, better, p_holm, seeds))
    notes = [*comparability_notes(runs, arms), *notes, *claim_limits(runs, metric, arms, tested)]
    return Comparison(tuple(runs), metric, tuple(arms), tuple(tested), tuple(dict.fromkeys(notes)))


def pairs_of(runs: Sequence[Run], arms: Sequence[ArmStatistics], baseline: str) -> tuple[list[Pair], list[str]]:
    """Pairs of arms to compare, and notes on arms without a partner."""
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


def matched(runs: Sequence[Run], arms: Sequence[ArmStatistics]) -> tuple[list[Pair], list[str]]:
    """Arms of later runs, each with the arm of the first run that agrees in all settings that any run varies."""
    first, *later = run_names(runs)
    varied: set[str] = set()
    for name in (first, *later):
        own = [arm for arm in arms if arm.run == name]
        # Not varied, but tuned: settings that were chosen.
        fields = {field for arm in own for field in arm.settings} - set(own[0].chosen if own else ())
        varied |= {field for field in fields if len({repr(arm.settings.get(field)) for arm in own}) > 1}
    keys = {arm.label: [repr(arm.settings.get(field)) for field in sorted(varied)] for arm in arms}
    pairs, notes = [], []
    for arm in (arm for arm in arms if arm.run != first):
        partners = [other for other in arms if other.run == first and keys[other.label] == keys[arm.label]]
        if len(partners) == 1:
            pairs.append((arm, partners[0]))
        else:
            count = "several counterparts" if partners else "no counterpart"
            notes.append(f"{arm.label} has {count} in {first}; --baseline compares all arms with one")
    return pairs, notes


def paired(arm: ArmStatistics, other: ArmStatistics, metric: str) -> pd.Series | str:
    """The differences by seed, or the reason why there are none."""
    both = f"{arm.label} and {other.label} are not paired"
    if metric in metrics.OF_ARM:
        return f"{both}: {metric} is a single number per arm"
    if arm.data != other.data:
        return f"{both}: they were measured on different images"
    if metric.endswith("_loss") and any(arm.settings.get(field) != other.settings.get(field) for field in LOSS_FIELDS):
        return f"{both}: they have different losses"
    seeds = arm.values.index.intersection(other.values.index)
    if len(seeds) < 2:
        return f"{both}: they have {'only one common seed' if len(seeds) else 'no common seed'}"
    found = pd.Series(stats.difference(*(one.values.loc[seeds].to_numpy() for one in (arm, other))), seeds)
    if not np.isfinite(found).all():
        return f"{both}: {int((~np.isfinite(found)).sum())} of {len(found)} differences are not finite"
    return found


def effects_of(arms: Sequence[ArmStatistics]) -> list[stats.Effect]:
    """Main effects and interactions, if the arms are a full product of two or more axes with the same seeds."""
    axes, first = swept_axes(arms), arms[0]
    cells = {tuple(arm.axes.get(axis) for axis in axes): arm for arm in arms}
    whole = len(axes) > 1 and len(cells) == len(arms) == math.prod(map(len, axes.values()))
    alike = all(arm.values.index.equals(first.values.index) and arm.data == first.data for arm in arms)
    if not (whole and alike and all(np.isfinite(arm.values).all() for arm in arms)) or first.n < 2:
        return []
    return stats.effects(axes, {cell: arm.values.to_numpy() for cell, arm in cells.items()})


def swept_axes(arms: Sequence[ArmStatistics]) -> dict[str, list[Any]]:
    """The axes in which arms differ, with their values in order of appearance."""
    names = dict.fromkeys(axis for arm in arms for axis in arm.axes)
    axes = {name: list(dict.fromkeys(arm.axes[name] for arm in arms if name in arm.axes)) for name in names}
    return {name: values for name, values in axes.items() if len(values) > 1}


def effect_words(effect: stats.Effect) -> tuple[str, str, str]:
    """Kind, name and subject of a main effect or an interaction, see `TestedContrast`."""
    changes = [(format_value(new), format_value(old)) for old, new in effect.changes]
    names = [f"{new} against {old}" for new, old in changes]
    over = " and ".join(effect.over)
    tail = f", over {over}" if over else ""
    if len(effect.axes) == 1:
        (axis,), ((new, old),) = effect.axes, changes
        return "main effect", f"{axis}: {names[0]}{tail}", f"Averaged over {over}, {axis} {new} instead of {old}"
    product = " x ".join(f"{axis} ({name})" for axis, name in zip(effect.axes, names, strict=True)) + tail
    return "interaction", product, f"The interaction {product}"


def comparability_notes(runs: Sequence[Run], arms: Sequence[ArmStatistics]) -> list[str]:
    """What limits a comparison: doubtful data, and differences in data or splits, epochs, settings, versions."""

    def differ(values: Sequence[Any]) -> bool:
        return any(value != values[0] for value in values)

    datasets = [{**run.summary["dataset"], "name": ""} for run in runs]
    measured_on = [{arm.data for arm in arms if arm.run == name} for name in run_names(runs)]
    ignored = ("sweep", "dataset", "data_dir", "seeds", "first_seed", "store_predictions")
    shared = [field for field in runs[0].config if all(field in run.config for run in runs) and field not in ignored]
    fields = [field for field in shared if differ([run.config[field] for run in runs])]
    versions = [run.provenance.get("versions", {}) for run in runs]
    changed = [name for name in PACKAGES if differ([version.get(name) for version in versions])]
    settings = [run.provenance["jax_settings"] for run in runs if "jax_settings" in run.provenance]
    set_otherwise = sorted({name for one in settings for name in one if one[name] != settings[0].get(name, one[name])})
    notes = {
        "warning: the runs used different data sets or splits of them": differ(datasets) or differ(measured_on),
        "warning: the runs trained for different numbers of epochs": "epochs" in fields,
        f"the runs' configs differ in {', '.join(fields)}": set(fields) - {"epochs"},
        f"warning: the runs were made with different versions of {', '.join(changed)}": changed,
        f"warning: the runs were made with different values of {', '.join(set_otherwise)}": set_otherwise,
    }
    of_data = [f"warning: {note}" for run in runs for note in run.provenance.get("notes", ())]
    return [*dict.fromkeys(of_data), *(note for note, applies in notes.items() if applies)]


def claim_limits(
    runs: Sequence[Run], metric: str, arms: Sequence[ArmStatistics], tested: Sequence[TestedContrast]
) -> list[str]:
    """Limits of the claims that can be made."""
    found, shown, of_networks = [], {arm.label for arm in arms}, metric not in metrics.OF_ARM
    late: dict[str, int] = {}
    for run, name in zip(runs, run_names(runs), strict=True):
        labels = [label(name, arm.name) for arm in run.arms]
        found += [f"{absent} has no {metrics.title(metric)}" for absent in labels if absent not in shown]
        late |= {label(name, arm): count for arm, count in metrics.unreached(run, metric).items() if count}
    counts = [arm.n for arm in arms if arm.n <= FEW_SEEDS and of_networks]
    if counts and max(counts) < 2:
        found.append("with one seed per arm, the variation between seeds is unknown")
    elif counts:
        coverage = 100 * (1 - 2 ** (1 - min(counts)))
        found.append(
            f"{min(counts)} seeds are few: the interval of a mean lies within the range of the values, and covers the "
            f"true mean in at most {coverage:.0f} % of studies (of symmetric values)"
        )
    for seeds in sorted({one.contrast.n for one in tested}):
        if (smallest := stats.smallest_p(seeds) * len(tested)) >= stats.ALPHA:
            found.append(
                f"{seeds} seeds are too few for a claim: with {len(tested)} comparison{'s' * (len(tested) > 1)}, the "
                f"smallest possible corrected p-value is {min(smallest, 1.0):.2g}"
            )
    for arm in arms:
        if of_networks and arm.diverged == arm.n:
            found.append(f"all networks of {arm.label} diverged")
        elif of_networks and arm.diverged:
            found.append(
                f"{arm.diverged} of {arm.n} networks of {arm.label} diverged: its mean, differences and effects mix "
                "networks that trained with networks that did not"
            )
        for name in arm.at_edge:
            value = format_value(arm.chosen[name])
            found.append(f"{arm.label} chose {name} {value}, at the edge of the grid; the optimum may lie beyond it")
        if arm.label in late:
            epochs = f"{metrics.epochs_to(metric)[1]} epochs"
            never = f"{late[arm.label]} of {arm.n} seeds of {arm.label} did not reach this error within {epochs}"
            found.append(f"{never}; they count as {epochs}")
    for run, name in zip(runs, run_names(runs), strict=True):
        rates = {arm.settings.get("learning_rate") for arm in arms if arm.run == name}
        if len(run.arms) > 1 and not run.config.get("tune") and len(rates) == 1:
            found.append("no hyperparameter was tuned; the shared values may suit some arms better than others")
    if len(runs) == 1 and len(swept_axes(arms)) > 1 and tested and not effects_of(arms):
        found.append("no main effects: they need all combinations of the axes, with the same seeds, images and labels")
    return found
