"""What was measured: any metric of a run, seed by seed, from the tables in its folder.

A metric is named ``test_error``, ``validation_nll``, ``train_loss``, ... (a split and what was measured on it at the
last epoch), ``test_error_class_3``, ``epochs_to_0.02`` (passes until the error is at most so much: the test error of a
run with `test_curve`, else the validation error), ``seconds`` or ``samples_per_second`` (of an arm as a whole: its wall
time with tuning, compilation and evaluation, and the samples of its last training by the seconds of that).
"""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from lenet_jax import stats
from lenet_jax.errors import InputError
from lenet_jax.run.folder import Run

OF_ARM = ("seconds", "samples_per_second")
"""Metrics that an arm has as a whole."""

CLASS_ERROR, EPOCHS_TO = "test_error_class_", "epochs_to_"

CURVES = ("test_error", "validation_error")
"""Metrics that ``epochs_to_ERROR`` is taken from, the first of them that has a curve."""

MAX_REJECTED = 0.1
"""Share of the images that `reject_curve` ends at."""


def names(run: Run) -> list[str]:
    """The metrics of a run; ``epochs_to_0.02`` stands for any error."""
    pairs = run.metrics[["split", "metric"]].drop_duplicates().sort_values(["split", "metric"])
    found = [f"{split}_{metric}" for split, metric in pairs.itertuples(index=False)]
    if run.predictions is not None:
        found += [f"{CLASS_ERROR}{label}" for label in sorted(run.predictions.label.unique())]
    if any(has_curve(run, error) for error in CURVES):
        found.append(f"{EPOCHS_TO}0.02")
    return [*found, *OF_ARM]


def title(metric: str) -> str:
    """The metric in words."""
    if metric.startswith(EPOCHS_TO):
        return f"epochs to an error of {100 * threshold(metric):g} %"
    return metric.replace("_", " ")


def is_percent(metric: str) -> bool:
    """Whether it is an error, a fraction that is shown in percent."""
    return "_error" in metric


def lower_is_better(metric: str) -> bool:
    """Whether an improvement makes it smaller."""
    return metric != "samples_per_second"


def unit(metric: str) -> str:
    """What its numbers are shown in, with a space before it."""
    return " %" if is_percent(metric) else " s" if metric == "seconds" else ""


def difference_unit(metric: str) -> str:
    """What differences of it are shown in, with a space before it."""
    return " percentage points" if is_percent(metric) else unit(metric)


def label(metric: str) -> str:
    """For an axis or a heading: the metric in words, and its unit."""
    return f"{title(metric)} ({unit(metric).strip()})" if unit(metric) else title(metric)


def is_final(metric: str) -> bool:
    """Whether it is measured at the last epoch."""
    return metric not in OF_ARM and not metric.startswith(EPOCHS_TO)


def split_of(metric: str) -> str:
    """The split whose images it is measured on."""
    split = metric.split("_", 1)[0]
    return {"validation": "validation", "train": "train", "running": "train"}.get(split, "test")


def show(value: float | None, metric: str, sign: str = "") -> str:
    """A value as text, errors in percent but without the sign of it; ``-`` where there is none."""
    if value is None or not np.isfinite(value):
        return "-"
    if is_percent(metric):
        return f"{100 * value:{sign}.2f}"
    digits = {"seconds": 1, "samples_per_second": 0}.get(metric, 1 if metric.startswith(EPOCHS_TO) else 4)
    return f"{value:{sign},.{digits}f}"


def threshold(metric: str) -> float:
    """The error of ``epochs_to_ERROR``.

    Raises:
      InputError: it is no fraction.
    """
    text = metric.removeprefix(EPOCHS_TO)
    if not re.fullmatch(r"0?\.\d+", text) or not float(text):
        raise InputError(f"metric: {metric!r}; needed is an error between 0 and 1, as in 'epochs_to_0.02'")
    return float(text)


def rows(run: Run, metric: str) -> pd.DataFrame:
    """The rows of ``metrics.parquet`` for a metric of every epoch, like ``validation_error``.

    Raises:
      InputError: the run has no such metric.
    """
    split, _, name = metric.rpartition("_")
    found = run.metrics[(run.metrics.split == split) & (run.metrics.metric == name)]
    if found.empty:
        raise InputError(f"metric: {metric!r} is not one of {', '.join(names(run))} (run {str(run.folder)!r})")
    return found


def at_end(run: Run) -> Run:
    """The run with the last epoch of its arms alone, in which metrics of the end are found sooner."""
    last = run.metrics.groupby("arm").epoch.transform("max")
    return dataclasses.replace(run, metrics=run.metrics[run.metrics.epoch == last])


def has_curve(run: Run, metric: str) -> bool:
    """Whether the metric was measured at every epoch."""
    split, _, name = metric.rpartition("_")
    return bool(((run.metrics.split == split) & (run.metrics.metric == name) & (run.metrics.epoch == 1)).any())


def curve_metric(runs: Sequence[Run], metric: str) -> str | None:
    """The metric whose learning curves are shown for another: itself, if all runs measured it at every epoch.

    Else the same on the validation split, for one of the test images; else while training, ``running``.
    """
    split, _, name = metric.rpartition("_")
    stand_ins = [
        f"{other}_{name}" for other in {"test": ("validation", "running"), "train": ("running",)}.get(split, ())
    ]
    return next((found for found in (metric, *stand_ins) if all(has_curve(run, found) for run in runs)), None)


def measured(run: Run, metric: str) -> str:
    """The metric of each epoch that one is read from: a curve of errors for ``epochs_to_ERROR``, else itself.

    Raises:
      InputError: the run has no such curve.
    """
    if not metric.startswith(EPOCHS_TO):
        return metric
    for error in CURVES:
        if has_curve(run, error):
            return error
    raise InputError(
        f"metric: {metric!r} needs a curve, but run {str(run.folder)!r} has neither a validation split "
        "(validation_size) nor test_curve=True"
    )


def by_arm(run: Run, metric: str) -> dict[str, pd.Series]:
    """Each arm's values, by rising seed (the index); a single one for a metric of the arm as a whole.

    Arms that don't have the metric are left out: linear outputs have no likelihood. Infinite where an error was never
    reached; not finite where a member diverged.

    Raises:
      InputError: the run has no such metric.
    """
    if metric in OF_ARM:
        return {arm.name: pd.Series([float(getattr(arm, metric))]) for arm in run.arms}
    if metric.startswith(EPOCHS_TO):
        curve = rows(run, measured(run, metric))
        curve = curve.assign(value=curve.epoch.where(curve.value <= threshold(metric), np.inf).astype(float))
        values = curve.groupby(["arm", "seed"]).value.min()
    elif metric.startswith(CLASS_ERROR):
        of_class = predictions(run, metric)
        of_class = of_class[of_class.label.astype(str) == metric.removeprefix(CLASS_ERROR)]
        if of_class.empty:
            raise InputError(f"metric: {metric!r} is not one of {', '.join(names(run))} (run {str(run.folder)!r})")
        values = (of_class.label != of_class.predicted).groupby([of_class.arm, of_class.seed]).mean()
    else:
        values = rows(at_end(run), metric).groupby(["arm", "seed"]).value.first(skipna=False)
        if is_percent(metric):
            values = pd.Series(stats.round_errors(values.to_numpy()), values.index)
    by_name = dict(iter(values.groupby(level="arm", sort=False)))
    return {arm.name: by_name[arm.name].droplevel("arm").sort_index() for arm in run.arms if arm.name in by_name}


def predictions(run: Run, metric: str) -> pd.DataFrame:
    """The run's predictions.

    Raises:
      InputError: it has none, which the metric needs.
    """
    if run.predictions is None:
        raise InputError(f"metric: {metric!r} needs predictions, but {str(run.folder)!r} has store_predictions=False")
    return run.predictions


def curves(run: Run, metric: str) -> dict[str, pd.DataFrame]:
    """Learning curves: arm -> one row an epoch, one column a seed."""
    every = rows(run, metric)
    tables = dict(iter(every.groupby("arm", sort=False)))
    return {str(arm): table.pivot(index="epoch", columns="seed", values="value") for arm, table in tables.items()}


def reject_curve(predictions: pd.DataFrame) -> pd.DataFrame:
    """The error on what isn't rejected, if those whose best score leads least are (LeCun et al. 1998, section III.C).

    Args:
      predictions: of one arm, see `folder.Run`.

    Returns:
      a row for each share rejected (the index, of all images), a column a seed.
    """
    shares = np.linspace(0, MAX_REJECTED, 101)
    columns = {}
    for seed, of_seed in predictions.groupby("seed"):
        surest_first = of_seed.sort_values(["margin", "image"], ascending=False, kind="stable")
        wrong = (surest_first.label != surest_first.predicted).to_numpy()
        kept = len(wrong) - np.floor(shares * len(wrong)).astype(int)
        columns[seed] = np.cumsum(wrong)[kept - 1] / kept
    return pd.DataFrame(columns, index=pd.Index(shares, name="rejected"))


def confusion(predictions: pd.DataFrame) -> pd.DataFrame:
    """How often each class (rows) is taken for each (columns): share of the class' images, mean over an arm's seeds.

    Column -1 holds outputs that weren't finite; it is left out where there are none.
    """
    counts = pd.crosstab(predictions.label, predictions.predicted, normalize="index")
    classes = counts.index.union(counts.columns)
    return counts.reindex(index=classes[classes >= 0], columns=classes, fill_value=0.0)


def share_wrong(runs: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Of each test image (rows), the share of an arm's networks that got it wrong (a column an arm).

    Args:
      runs: predictions of one arm each.
    """
    shares = [(table.label != table.predicted).groupby(table.image).mean() for table in runs]
    return pd.concat(shares, axis=1, keys=range(len(shares)))
