"""Nuisance tuning: candidate values of an arm's hyperparameters, and the choice among them.

Every arm starts from the same candidates and chooses by its mean validation error; the test set is not used. Functions
take an arm's rows of ``tuning.parquet``.
"""

import dataclasses
import itertools
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

Values = dict[str, float]
"""A value for each tuned hyperparameter."""


@dataclasses.dataclass(frozen=True)
class Tuning:
    """The candidates of an arm.

    Attributes:
      grid: hyperparameter -> rising values; all combinations are tried.
      drawn: randomly drawn values of other hyperparameters, each tried with every combination of the grid; a single
        empty one if none are drawn.
    """

    grid: Mapping[str, tuple[float, ...]]
    drawn: tuple[Values, ...] = ({},)

    @property
    def names(self) -> list[str]:
        """The tuned hyperparameters."""
        return [*self.grid, *self.drawn[0]]

    def candidates(self) -> list[Values]:
        """All combinations."""
        products = itertools.product(*self.grid.values())
        return [dict(zip(self.grid, values, strict=True)) | point for values in products for point in self.drawn]


def log_uniform(name: str, low: float, high: float, count: int) -> list[float]:
    """`count` random values between `low` and `high`, uniform in their logarithm; the same ones for each name.

    Stratified: one value in each of `count` equal intervals of the logarithm, in random order.
    """
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    fractions = (rng.permutation(count) + rng.random(count)) / count
    drawn = np.exp(np.log(low) + fractions * np.log(high / low))
    return [min(max(float(f"{value:.3g}"), low), high) for value in drawn]


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


def beyond(tuning: Tuning, name: str, value: float) -> float | None:
    """The next value beyond the edge of a grid, in the ratio of the last two; None if `value` is not at an edge."""
    values = tuning.grid.get(name, ())
    if len(values) < 2 or value not in (values[0], values[-1]):
        return None
    neighbour = values[1] if value == values[0] else values[-2]
    further = float(f"{value * value / neighbour:.6g}") if neighbour > 0 else value
    return further if further not in values else None


def widened(tuning: Tuning, name: str, value: float) -> tuple[Tuning, Tuning]:
    """The tuning with one more value of a grid, and its new candidates alone."""
    more = dataclasses.replace(tuning, grid={**tuning.grid, name: tuple(sorted({*tuning.grid[name], value}))})
    return more, dataclasses.replace(tuning, grid={**tuning.grid, name: (value,)})


def curve(table: pd.DataFrame, name: str, names: list[str]) -> pd.DataFrame:
    """Validation error against the hyperparameter `name`, at the best values of the others among `names`.

    One row per value (the index), one column per seed.
    """
    best = errors_by_candidate(table, names).reset_index().sort_values("value", kind="stable").drop_duplicates(name)
    shown = final_errors(table).merge(best[names], on=names)
    return shown.pivot(index=name, columns="seed", values="value").sort_index()
