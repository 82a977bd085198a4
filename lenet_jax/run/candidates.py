"""Nuisance tuning: candidate values of an arm's hyperparameters. Every arm starts from the same ones."""

import dataclasses
import itertools
import zlib
from collections.abc import Mapping

import numpy as np

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
