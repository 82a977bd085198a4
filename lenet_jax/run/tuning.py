"""Nuisance tuning: the choice among an arm's candidates.

Every arm chooses by its mean validation error; the test set is not used. Functions take an arm's rows of
``tuning.parquet``.
"""

from collections.abc import Iterable
from typing import Any

import pandas as pd

from lenet_jax.run.candidates import Values


def errors_by_candidate(table: pd.DataFrame, names: list[str]) -> pd.Series:
    """Mean validation error over the tuning seeds at the last epoch; the index is the values, sorted."""
    return final_errors(table).groupby(names).value.mean()


def final_errors(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the validation error at the last epoch."""
    at_end = table.epoch == table.epoch.max()
    rows: pd.DataFrame = table[at_end & (table.split == "validation") & (table.metric == "error")]
    return rows


def choose(table: pd.DataFrame, names: list[str]) -> Values:
    """The candidate with the smallest mean validation error; the one with the smallest values, if several have it."""
    best: Any = errors_by_candidate(table, names).idxmin()
    return dict(zip(names, map(float, best if isinstance(best, tuple) else (best,)), strict=True))


def at_edge(chosen: Values, table: pd.DataFrame, grid: Iterable[str]) -> list[str]:
    """Hyperparameters whose chosen value is at an end of their grid, beyond which the optimum may lie; 0 is not one."""
    ends = {name: {table[name].min(), table[name].max()} for name in grid}
    return [name for name, both in ends.items() if len(both) > 1 and chosen[name] in both - {0}]


def curve(table: pd.DataFrame, name: str, names: list[str]) -> pd.DataFrame:
    """Validation error against the hyperparameter `name`, at the best values of the others among `names`.

    One row per value (the index), one column per seed.
    """
    best = errors_by_candidate(table, names).reset_index().sort_values("value", kind="stable").drop_duplicates(name)
    shown = final_errors(table).merge(best[names], on=names)
    return shown.pivot(index=name, columns="seed", values="value").sort_index()
