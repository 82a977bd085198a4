"""Nuisance tuning: candidate values of an arm's hyperparameters, and the choice among them.

Every arm starts from the same candidates (its grid may be widened later) and chooses by its mean validation error; the
test set is not used.
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
    """Mean validation error over the tuning seeds at the last epoch, sorted by the candidates' values.

    Args:
      table: rows of ``tuning.parquet`` of one arm.
      names: tuned hyperparameters, the index of the result.
    """
    means: pd.Series = final_errors(table).groupby(names).value.mean()
    return means


def final_errors(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the validation error at the last epoch."""
    final: pd.DataFrame = table[
        (table.epoch == table.epoch.max()) & (table.split == "validation") & (table.metric == "error")
    ]
    return final


def choose(table: pd.DataFrame, names: list[str]) -> Values:
    """The candidate with the smallest mean validation error; the one with the smallest values, if several have it."""
    best: Any = errors_by_candidate(table, names).idxmin()
    return dict(zip(names, map(float, best if isinstance(best, tuple) else (best,)), strict=True))


def at_edge(chosen: Values, table: pd.DataFrame, grid: Iterable[str]) -> list[str]:
    """Hyperparameters whose chosen value is at an end of their grid, beyond which the optimum may lie.

    0 is not an edge: there are no values below it.
    """
    edges = []
    for name in grid:
        tried, value = table[name].unique(), chosen[name]
        if len(tried) > 1 and value in (tried.min(), tried.max()) and value != 0:
            edges.append(name)
    return edges


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
    """Validation error against one hyperparameter, at the best values of the others.

    Args:
      table: rows of ``tuning.parquet`` of one arm.
      name: of the hyperparameter.
      names: of all tuned hyperparameters.

    Returns:
      One row per value (the index), one column per seed.
    """
    best = errors_by_candidate(table, names).reset_index().sort_values("value", kind="stable").drop_duplicates(name)
    shown = final_errors(table).merge(best[names], on=names)
    found: pd.DataFrame = shown.pivot(index=name, columns="seed", values="value").sort_index()
    return found
