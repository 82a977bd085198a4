"""Statistics of the arms of runs: means and intervals over seeds and test images."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from lenet_jax import crossed, stats
from lenet_jax.analysis import metrics
from lenet_jax.analysis.metrics import Scores
from lenet_jax.crossed import Estimate, Layout
from lenet_jax.errors import InputError
from lenet_jax.experiments import base
from lenet_jax.run.folder import Run
from lenet_jax.run.names import ONLY_ARM

FAILED = 0.5
"""Error above which a network has failed, as a fraction of the error of a guess."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArmStatistics(stats.Statistics):
    """One arm of a comparison, with its statistics. Errors are fractions; losses have the unit of the loss.

    `ci95` is the interval over seeds, on these images.

    Attributes:
      over: what `interval` covers, one of `crossed.OVER`; equal for all arms of a comparison.
      estimate: mean and standard errors; None if not all values are finite, or if there is one for the arm as a whole.
      interval: 95 % interval of the mean.
      images: number of test images; 0 where answers to single images are unknown.
      run: name of its run; "" if only one run is compared.
      axes, chosen: sweep axis -> value; tuned hyperparameter -> chosen value.
      settings: all config fields, and "arm", its name, if an older run doesn't say which fields that sets.
      at_edge: tuned hyperparameters whose chosen value is at the edge of the grid.
      diverged: networks with a loss that was not finite at some epoch. All statistics include them.
      failed: networks with a test error above `FAILED` times that of a guess. All statistics include them.
      values: by rising seed, the index.
      data: fingerprint, size of the split and label noise: equal for arms measured on the same images and labels.
    """

    over: str
    estimate: Estimate | None
    interval: tuple[float, float] | None
    images: int
    run: str
    arm: str
    axes: dict[str, Any]
    chosen: dict[str, float]
    settings: dict[str, Any]
    at_edge: tuple[str, ...]
    diverged: int
    failed: int
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


def arm_statistics(runs: Sequence[Run], metric: str = "test_error", over: str = "both") -> list[ArmStatistics]:
    """Statistics of every arm that has the metric (see `metrics`).

    `over` is one of `crossed.OVER`. Intervals are over seeds alone unless all arms have answers to single images, and
    over images alone if all arms have a single seed.
    """
    defaults = dict(base.get_config())
    measured = {run.folder: metrics.measured(run, metric) for run in runs}
    if len(set(measured.values())) > 1:
        sources = "; ".join(f"{name} of {str(folder)!r}" for folder, name in measured.items())
        raise InputError(f"metric: {metric!r} would be read from {sources}; give all runs the same kind of curve")
    metric = metrics.restricted(runs, metric)
    values = [metrics.by_arm(run, metric) for run in runs]
    scores = scores_of(runs, metric) if over != "seeds" else {}
    names = run_names(runs)
    seeds = {label(name, arm): len(of_run[arm]) for name, of_run in zip(names, values, strict=True) for arm in of_run}
    if not all(arm in scores and len(scores[arm].images) > 1 for arm in seeds):
        scores = {}
    if over == "both" and all(count == 1 for count in seeds.values()):
        over = "images"
    rows = []
    for run, name, of_run in zip(runs, names, values, strict=True):
        split, failed = metrics.split_of(measured[run.folder]), failed_networks(run)
        for arm in run.arms:
            if arm.name not in of_run:
                continue
            settings = defaults | run.config | arm.axes | arm.chosen | (arm.settings or {})
            # Arms are named by an axis that is not a field, or without axes unless there is only one.
            if arm.settings is None and (set(arm.axes) - set(defaults) or (not arm.axes and arm.name != ONLY_ARM)):
                settings["arm"] = arm.name
            label_noise = settings["label_noise"] if split == "train" else 0
            of_arm = stats.summarize(of_run[arm.name].to_numpy())
            rows.append(
                ArmStatistics(
                    **vars(of_arm),
                    **estimated(of_arm, metric, over, scores.get(label(name, arm.name))),
                    run=name,
                    arm=arm.name,
                    axes=arm.axes,
                    chosen=arm.chosen,
                    settings=settings,
                    at_edge=arm.chosen_at_edge,
                    diverged=arm.diverged,
                    failed=failed.get(arm.name, 0),
                    values=of_run[arm.name],
                    data=(arm.dataset.get("fingerprint"), arm.dataset.get(split), label_noise),
                )
            )
    return rows


def scores_of(runs: Sequence[Run], metric: str) -> dict[str, Scores]:
    """The metric of each network on each test image, by the arm's label; of the arms that have it."""
    names = zip(run_names(runs), runs, strict=True)
    return {label(name, arm): found for name, run in names for arm, found in metrics.per_image(run, metric).items()}


def estimated(statistics: stats.Statistics, metric: str, over: str, scores: Scores | None) -> dict[str, Any]:
    """The fields `over`, `estimate`, `interval` and `images` of an arm."""
    seeds = len(statistics.per_seed)
    if scores is None:
        estimate = None
        if statistics.std is not None and statistics.mean is not None:
            se = statistics.std / math.sqrt(seeds)
            estimate = Estimate(statistics.mean, se, seeds - 1.0, se, math.nan)
        return {"over": "seeds", "estimate": estimate, "interval": statistics.ci95, "images": 0}
    (found,), images = Layout.of([scores.values]).estimates(over), len(scores.images)
    if not math.isfinite(found.mean) or (over == "both" and seeds == 1):
        return {"over": over, "estimate": None, "interval": None, "images": images}
    interval = crossed.error_interval(found, images) if metrics.is_percent(metric) else found.interval()
    return {"over": over, "estimate": found, "interval": interval, "images": images}


def failed_networks(run: Run) -> dict[str, int]:
    """The number of each arm's networks that failed, see `FAILED`."""
    errors = metrics.by_arm(run, "test_error")
    guess = {arm.name: 1 - 1 / (arm.classes or 10) for arm in run.arms}
    return {arm: int((values > FAILED * guess[arm]).sum()) for arm, values in errors.items()}


def label(run: str, arm: str) -> str:
    """An arm's name among the arms of all runs."""
    return f"{run}: {arm}" if run else arm


def run_names(runs: Sequence[Run]) -> list[str]:
    """Names of runs: of their folders, or whole paths where those are equal; "" for a single run."""
    if len(runs) == 1:
        return [""]
    names = [run.folder.name for run in runs]
    return [name if names.count(name) == 1 else str(run.folder) for name, run in zip(names, runs, strict=True)]


def swept_axes(arms: Sequence[ArmStatistics]) -> dict[str, list[Any]]:
    """The axes in which arms differ, with their values in order of appearance."""
    names = dict.fromkeys(axis for arm in arms for axis in arm.axes)
    axes = {name: list(dict.fromkeys(arm.axes[name] for arm in arms if name in arm.axes)) for name in names}
    return {name: values for name, values in axes.items() if len(values) > 1}
