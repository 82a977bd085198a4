"""Metrics of a run, by seed, from the tables in its folder.

Names of metrics: ``test_error``, ``validation_nll``, ``train_loss``, ... (a split and a measurement at the last epoch);
``test_error_class_3``; ``epochs_to_0.02`` (epochs until the error is at most 0.02: the test error of a run with
`test_curve`, else the validation error), compared as ``epochs_to_0.02_within_20`` (see `restricted`); ``seconds`` and
``samples_per_second`` (one value for an arm: wall time with tuning, compilation and evaluation, and the speed of its
last training).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from lenet_jax import stats
from lenet_jax.errors import InputError
from lenet_jax.run.answers import Answers
from lenet_jax.run.folder import Run

OF_ARM = ("seconds", "samples_per_second")
"""Metrics with one value for an arm, not one for each seed."""

CLASS_ERROR, EPOCHS_TO, WITHIN = "test_error_class_", "epochs_to_", "_within_"

CURVES = ("test_error", "validation_error")
"""Metrics that ``epochs_to_ERROR`` is read from: the first one with a curve."""


class Scores(NamedTuple):
    """A metric of each network (`seeds`) on each test image (indices in the test set); both rise."""

    seeds: Int[np.ndarray, " seeds"]
    images: Int[np.ndarray, " images"]
    values: Bool[np.ndarray, "seeds images"] | Float[np.ndarray, "seeds images"]


def names(run: Run) -> list[str]:
    """Names of the metrics of a run; ``epochs_to_0.02`` stands for any error."""
    pairs = run.metrics[["split", "metric"]].drop_duplicates().sort_values(["split", "metric"])
    found = [f"{split}_{metric}" for split, metric in pairs.itertuples(index=False)]
    labels = [one.labels for one in run.answers.values()]
    found += [f"{CLASS_ERROR}{label}" for label in np.unique(np.concatenate(labels))] if labels else []
    if any(has_curve(run, error) for error in CURVES):
        found.append(f"{EPOCHS_TO}0.02")
    return [*found, *OF_ARM]


def title(metric: str) -> str:
    """The metric in words."""
    if metric.startswith(EPOCHS_TO):
        error, last = epochs_to(metric)
        return f"epochs to an error of {100 * error:g} %" + (f" (restricted to {last} epochs)" if last else "")
    return metric.replace("_", " ")


def is_percent(metric: str) -> bool:
    """Whether the metric is an error, which is shown in percent."""
    return "_error" in metric and not metric.startswith("state_")


def lower_is_better(metric: str) -> bool:
    """Whether smaller values are better."""
    return metric != "samples_per_second"


def unit(metric: str) -> str:
    """The unit that values are shown in, after a space."""
    return " %" if is_percent(metric) else " s" if metric == "seconds" else ""


def difference_unit(metric: str) -> str:
    """The unit that differences are shown in, after a space."""
    return " percentage points" if is_percent(metric) else unit(metric)


def margin_unit(metric: str) -> str:
    """The word that a user may write after a margin of differences."""
    if metric.startswith(EPOCHS_TO):
        return "epochs"
    return "points" if is_percent(metric) else unit(metric).strip()


def label(metric: str, unit_of: Callable[[str], str] = unit) -> str:
    """The metric in words with its unit, or that of differences (`difference_unit`), for an axis or a heading."""
    return f"{title(metric)} ({unit_of(metric).strip()})" if unit_of(metric) else title(metric)


def split_of(metric: str) -> str:
    """The split that the metric is measured on."""
    split = metric.split("_", 1)[0]
    return {"validation": "validation", "train": "train", "running": "train", "state": "train"}.get(split, "test")


def show(value: float | None, metric: str, sign: str = "") -> str:
    """A value as text, without unit; ``-`` if it is None or not finite."""
    if value is None or not np.isfinite(value):
        return "-"
    if is_percent(metric):
        return stats.percent(value, sign)
    digits = {"seconds": 1, "samples_per_second": 0}.get(metric, 1 if metric.startswith(EPOCHS_TO) else 4)
    return f"{value:{sign},.{digits}f}"


def epochs_to(metric: str) -> tuple[float, int | None]:
    """The error of ``epochs_to_ERROR``, and the epochs that it is `restricted` to; None if it is not."""
    found = re.fullmatch(rf"(0?\.\d+)(?:{WITHIN}([1-9]\d*))?", metric.removeprefix(EPOCHS_TO))
    if not found or not float(found[1]):
        raise InputError(f"metric: {metric!r}; allowed is an error between 0 and 1, as in 'epochs_to_0.02'")
    return float(found[1]), int(found[2]) if found[2] else None


def restricted(runs: Sequence[Run], metric: str) -> str:
    """``epochs_to_ERROR_within_EPOCHS``: restricted to the epochs for which all arms of the runs trained.

    Networks that did not reach the error within T epochs count as T, so that all have a value. All were observed for T
    epochs, so the mean of min(epochs, T) is the restricted mean, the area under the Kaplan-Meier estimate up to T
    (Royston and Parmar 2013, "Restricted mean survival time"). Other metrics are returned as they are.
    """
    if not metric.startswith(EPOCHS_TO) or epochs_to(metric)[1]:
        return metric
    last = min(rows(run, measured(run, metric)).groupby("arm").epoch.max().min() for run in runs)
    return f"{metric}{WITHIN}{last}"


def unreached(run: Run, metric: str) -> dict[str, int]:
    """Number of each arm's networks that did not reach the error of a `restricted` metric; of others, nothing."""
    plain, _, last = metric.partition(WITHIN)
    if not last:
        return {}
    return {arm: int((values > int(last)).sum()) for arm, values in by_arm(run, plain).items()}


def rows(run: Run, metric: str) -> pd.DataFrame:
    """The rows of ``metrics.parquet`` of a metric such as ``validation_error``, at all epochs."""
    split, _, name = metric.partition("_")
    found = run.metrics[(run.metrics.split == split) & (run.metrics.metric == name)]
    if found.empty:
        raise InputError(f"metric: {metric!r} is not one of {', '.join(names(run))} (run {str(run.folder)!r})")
    return found


def has_curve(run: Run, metric: str) -> bool:
    """Whether the metric was measured at every epoch."""
    split, _, name = metric.partition("_")
    return bool(((run.metrics.split == split) & (run.metrics.metric == name) & (run.metrics.epoch == 1)).any())


def curve_metric(runs: Sequence[Run], metric: str) -> str | None:
    """The metric whose learning curves stand for another: itself, if all runs measured it at every epoch.

    Otherwise, for the test split, the same on the validation split; otherwise the same during training (``running``).
    """
    split, _, name = metric.partition("_")
    stand_ins = {"test": ("validation", "running"), "train": ("running",)}.get(split, ())
    candidates = [f"{one}_{name}" for one in (split, *stand_ins)]
    return next((found for found in candidates if all(has_curve(run, found) for run in runs)), None)


def measured(run: Run, metric: str) -> str:
    """The metric of single epochs that a metric is read from: a curve of errors for ``epochs_to_ERROR``, or itself."""
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
    """Each arm's values by rising seed (the index), or the single value of a metric in `OF_ARM`.

    Arms without the metric are left out: linear outputs have no likelihood. Epochs to an error are infinite if it was
    never reached, unless they are `restricted`. Losses of networks that diverged are not finite.

    Raises:
      InputError: the run has no such metric.
    """
    if metric in OF_ARM:
        return {arm.name: pd.Series([float(getattr(arm, metric))]) for arm in run.arms}
    if metric.startswith(EPOCHS_TO):
        curve, (error, last) = rows(run, measured(run, metric)), epochs_to(metric)
        if last and last > (trained := curve.groupby("arm").epoch.max().min()):
            raise InputError(f"metric: {metric!r} needs {last} epochs, but an arm of {str(run.folder)!r} has {trained}")
        curve = curve.assign(value=curve.epoch.where(curve.value <= error, np.inf).astype(float))
        values = curve.groupby(["arm", "seed"]).value.min().clip(upper=last)
    elif metric.startswith(CLASS_ERROR):
        if not run.answers:
            folder = str(run.folder)
            raise InputError(f"metric: {metric!r} needs predictions, but {folder!r} has store_predictions=False")
        of_images = per_image(run, metric)
        if not of_images:
            raise InputError(f"metric: {metric!r} is not one of {', '.join(names(run))} (run {str(run.folder)!r})")
        return {arm: pd.Series(one.values.mean(axis=1), one.seeds) for arm, one in of_images.items()}
    else:
        values = rows(run.at_end, metric).groupby(["arm", "seed"]).value.first(skipna=False)
        if is_percent(metric):
            values = pd.Series(stats.round_errors(values.to_numpy()), values.index)
    by_name = dict(iter(values.groupby(level="arm", sort=False)))
    return {arm.name: by_name[arm.name].droplevel("arm").sort_index() for arm in run.arms if arm.name in by_name}


def curves(run: Run, metric: str) -> dict[str, pd.DataFrame]:
    """Learning curves: arm -> one row per epoch, one column per seed."""
    tables = rows(run, metric).groupby("arm", sort=False)
    return {str(arm): table.pivot(index="epoch", columns="seed", values="value") for arm, table in tables}


def per_image(run: Run, metric: str) -> dict[str, Scores]:
    """Each arm's scores, whose means over images are those of `by_arm`; arms without scores are left out.

    Stored are those of ``test_error``, ``test_error_class_K``, and, unless the run is older, ``test_nll`` and
    ``test_brier``, which are rounded (`answers.rounded`).
    """
    found = {}
    for arm, one in run.answers.items():
        if metric in ("test_error", "test_nll", "test_brier"):
            values = {"test_error": one.wrong, "test_nll": one.nll, "test_brier": one.brier}[metric]
            if values is not None:
                found[arm] = Scores(one.seeds, one.images, values)
        elif metric.startswith(CLASS_ERROR):
            shown = one.labels.astype(str) == metric.removeprefix(CLASS_ERROR)
            if shown.any():
                found[arm] = Scores(one.seeds, one.images[shown], one.wrong[:, shown])
    return found


def reject_curve(answers: Answers) -> pd.DataFrame:
    """Error on the remaining images when those with the smallest margins are rejected (LeCun et al. 1998, sec. III.C).

    One row per rejected fraction of all images, from 0 to 0.1 (the index); one column per seed.
    """
    fractions = np.linspace(0, 0.1, 101)
    unsure = np.where(np.isnan(answers.margin), -np.inf, answers.margin)
    largest_first = np.argsort(unsure, axis=1, kind="stable")[:, ::-1]
    errors = np.cumsum(np.take_along_axis(answers.wrong, largest_first, axis=1), axis=1)
    count = len(answers.images)
    remaining = count - np.floor(fractions * count).astype(int)
    curve = errors[:, remaining - 1] / remaining
    return pd.DataFrame(curve.T, index=pd.Index(fractions, name="rejected"), columns=answers.seeds)


def confusion(answers: Answers) -> pd.DataFrame:
    """Fraction of each class (rows) that is predicted as each class (columns), mean over an arm's seeds.

    Column -1 holds outputs that were not finite; it is left out if there are none.
    """
    classes = np.arange(-1, 1 + max(answers.labels.max(), answers.predicted.max()))
    pairs = (1 + answers.labels.astype(np.int32)) * len(classes) + (1 + answers.predicted)
    counts = np.bincount(pairs.ravel(), minlength=len(classes) ** 2).reshape(2 * [len(classes)])
    seen = counts.any(axis=0) | counts.any(axis=1)
    shares, rows = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1), seen & (classes >= 0)
    return pd.DataFrame(shares[np.ix_(rows, seen)], classes[rows], classes[seen])


def misclassified_fraction(answers: Mapping[str, Answers]) -> pd.DataFrame:
    """Fraction of networks that misclassify each test image: one row per image, one column per arm."""
    return pd.DataFrame({arm: pd.Series(one.wrong.mean(axis=0), one.images) for arm, one in answers.items()})
