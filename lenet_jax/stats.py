"""Statistics over seeds: arrays in, numbers out.

The interval of an arm's mean is a bootstrap interval. The difference between two arms is paired by seed, with Student's
interval and a permutation test. All intervals cover the variation between seeds; `experiments/results/coverage` holds
their measured coverage.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
import scipy  # imports its modules on first use: `scipy.stats`, which `power` alone needs, is the slowest of all

CONFIDENCE = 0.95

ALPHA = 1 - CONFIDENCE
"""A difference is significant when its p-value, corrected for multiple tests, is below this."""

ROUNDING = 1e-12
"""Relative differences below this are rounding errors."""

TIE = 2.0**-30
"""Resampled statistics, which are of order 1, count as equal if they differ by less: if rounding broke ties, resamples
as extreme as what was observed would not be counted."""

ERROR_DECIMALS = 7
"""Precision of an error rate measured in single precision."""

RESAMPLES = 9_999
"""Number of bootstrap resamples and of random permutations; the permutation test is exact with fewer permutations."""

MAX_BLOCK_VALUES = 10_000_000
"""Values that are resampled at a time: 80 MB."""

FEW_SEEDS = 5
"""Up to this number, intervals of an arm's mean over seeds are too narrow (`experiments/results/coverage`)."""

POWER = 0.8
"""Probability of showing a true difference that `detectable_size` asks for."""


def vary(values: np.ndarray) -> bool:
    """Whether values differ by more than rounding errors, such as that between 0.3 and 0.1 + 0.2."""
    return bool(np.ptp(values) > ROUNDING * np.abs(values).max())


def round_errors(values: np.ndarray) -> np.ndarray:
    """Error rates without the rounding of single precision, so that ties, which tests and intervals need, are ties."""
    return np.round(values, ERROR_DECIMALS)


def percent(error: float | None, sign: str = "") -> str:
    """An error rate in percent: means that differ by single precision are shown alike, ties with an even last digit."""
    return "-" if error is None else f"{Decimal(f'{100 * error:.{ERROR_DECIMALS - 2}f}'):{sign}.2f}"


def block_size(count: int) -> int:
    """Number of resamples, of `count` values each, that are drawn together."""
    return max(1, min(RESAMPLES, MAX_BLOCK_VALUES // count))


def bootstrap_interval(values: Sequence[float] | np.ndarray) -> tuple[float, float] | None:
    """95 % confidence interval of the mean over seeds: BCa bootstrap (Efron 1987) with fixed resamples.

    Quantiles are expanded for few seeds, for which plain BCa is too narrow, by the ratio of Student's t to the normal
    distribution (Hesterberg 2015, "What teachers should know about the bootstrap").

    Returns None for fewer than two values or values that aren't finite; the mean twice if all values are equal.

    >>> low, high = bootstrap_interval([0.010, 0.012, 0.011, 0.015, 0.013])
    >>> print(f"{low:.4f} to {high:.4f}")
    0.0104 to 0.0150
    """
    array = np.asarray(values, float)
    count = len(array)
    if count < 2 or not np.isfinite(array).all():
        return None
    if not vary(array):
        return float(array[0]), float(array[0])
    t = scipy.special.stdtrit(count - 1, (1 - CONFIDENCE) / 2)
    tail = max(float(scipy.special.ndtr(math.sqrt(count / (count - 1)) * t)), 0.5 / RESAMPLES)  # none lies further out
    means = resampled_means(array)
    levels = bca_levels(array, means, tail)
    # BCa is undefined in degenerate cases; the percentile bootstrap never is.
    low, high = np.quantile(means, levels if np.isfinite(levels).all() else [tail, 1 - tail])
    return float(max(low, array.min())), float(min(high, array.max()))  # means of equal values are rounded


def resampled_means(values: np.ndarray) -> np.ndarray:
    """Means of `RESAMPLES` bootstrap samples of values, with a fixed seed."""
    rng, size, count = np.random.default_rng(0), block_size(len(values)), len(values)
    shapes = [(min(size, RESAMPLES - start), count) for start in range(0, RESAMPLES, size)]
    return np.concatenate([values[rng.integers(0, count, shape)].mean(axis=1) for shape in shapes])


def bca_levels(values: np.ndarray, means: np.ndarray, tail: float) -> np.ndarray:
    """Quantiles of the resampled means that BCa takes for `tail` and 1 - `tail` (Efron 1987); NaN if it is undefined.

    As in `scipy.stats.bootstrap`, but for its slow import. The acceleration is the jackknife's, in closed form.
    """
    mean = values.mean()
    below = (np.count_nonzero(means < mean) + np.count_nonzero(means <= mean)) / (2 * len(means))
    with np.errstate(all="ignore"):
        acceleration = ((values - mean) ** 3).sum() / (6 * ((values - mean) ** 2).sum() ** 1.5)
        bias, z = scipy.special.ndtri(below), scipy.special.ndtri(tail) * np.array([1, -1])
        return np.asarray(scipy.special.ndtr(bias + (bias + z) / (1 - acceleration * (bias + z))))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Statistics:
    """Statistics of one metric over the seeds of an arm; None where a value isn't finite.

    `std` has the divisor n - 1 and is None for a single seed. `ci95` is the `bootstrap_interval`.
    """

    mean: float | None
    std: float | None
    median: float | None
    ci95: tuple[float, float] | None
    per_seed: tuple[float | None, ...]


def summarize(values: Sequence[float] | np.ndarray) -> Statistics:
    """Statistics of values, one per seed.

    >>> statistics = summarize([0.010, 0.012, 0.011])
    >>> statistics.median, statistics.per_seed
    (0.011, (0.01, 0.012, 0.011))
    """
    array = np.asarray(values, float)

    def known(value: float) -> float | None:
        return float(value) if math.isfinite(value) else None

    return Statistics(
        mean=known(array.mean()),
        std=float(array.std(ddof=1)) if len(array) > 1 and np.isfinite(array).all() else None,
        median=known(float(np.median(array))),
        ci95=bootstrap_interval(array),
        per_seed=tuple(known(value) for value in array),
    )


def t_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ends of Student's 95 % interval of the mean along the last axis; the mean twice for a single value.

    >>> low, high = t_interval(np.array([-0.004, -0.002, -0.003]))
    >>> print(f"{low:.4f} to {high:.4f}")
    -0.0055 to -0.0005
    """
    count = values.shape[-1]
    mean = np.asarray(values.mean(axis=-1))
    if count < 2:
        return mean, mean
    reach = scipy.special.stdtrit(count - 1, (1 + CONFIDENCE) / 2) * values.std(axis=-1, ddof=1) / math.sqrt(count)
    return np.asarray(mean - reach), np.asarray(mean + reach)


def prediction_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the 95 % prediction interval of one new value, along the last axis; infinite for a single value.

    mean +- t_{0.975, n-1} std sqrt(1 + 1/n) of n values of a normal distribution, in their unit (Hahn and Meeker 1991,
    "Statistical Intervals", ch. 4). Of errors of seeds on the same images, it is where an error of one more seed on
    these images would lie; `crossed.Layout.one_run` has that on other images.

    >>> low, high = prediction_interval(np.array([0.010, 0.012, 0.011, 0.015, 0.013]))
    >>> print(f"{low:.4f} to {high:.4f}")
    0.0063 to 0.0181
    """
    mean, count = values.mean(axis=-1), values.shape[-1]
    reach = (t_interval(values)[1] - mean) * math.sqrt(count + 1) if count > 1 else np.asarray(math.inf)
    return np.asarray(mean - reach), np.asarray(mean + reach)


def prediction_z(value: float, values: np.ndarray) -> float:
    """Distance of a value from the mean of n others, [seeds], in standard errors of prediction: std sqrt(1 + 1/n).

    If all are of the same normal distribution, it has Student's distribution with n - 1 degrees of freedom: beyond its
    0.975 quantile, the value is outside the `prediction_interval`.

    >>> print(f"{prediction_z(0.020, np.array([0.010, 0.012, 0.011, 0.015, 0.013])):.2f}")
    3.70
    """
    distance = value - float(values.mean())
    if abs(distance) <= ROUNDING * max(abs(value), float(np.abs(values).max())):
        return 0.0
    error = float(values.std(ddof=1)) * math.sqrt(1 + 1 / len(values)) if vary(values) else 0.0
    return distance / error if error else math.copysign(math.inf, distance)


def sign_flip_test(values: np.ndarray) -> np.ndarray:
    """p-values of the two-sided permutation test that flips signs (Fisher 1935), along the last axis [..., seeds].

    Equals `scipy.stats.permutation_test`, except that all rows share the same random signs: one matrix product tests
    many rows. Exact for up to 13 seeds.

    >>> sign_flip_test(np.array([[-0.004, -0.002, -0.003], [-0.004, 0.002, 0.002]])).tolist()
    [0.25, 1.0]
    """
    count = values.shape[-1]
    scale = np.abs(values).max(axis=-1, keepdims=True)
    scaled = np.divide(values, scale, out=np.zeros(values.shape), where=scale > 0)
    observed = np.round(scaled.sum(axis=-1) / TIE)[..., None]
    drawn = above = below = int(not is_exact(count))  # the observed signs count as one random permutation
    for flips in signs(count):
        sums = np.round(scaled @ flips.T / TIE)
        above, below = above + (sums >= observed).sum(axis=-1), below + (sums <= observed).sum(axis=-1)
        drawn += len(flips)
    p: np.ndarray = np.minimum(2 * np.minimum(above, below) / drawn, 1.0)
    return p


def is_exact(count: int) -> bool:
    """Whether all signs of this number of seeds are enumerated."""
    return bool(2**count <= RESAMPLES + 1)


def signs(count: int) -> Iterator[np.ndarray]:
    """Blocks of rows of `count` signs: all that there are, or `random_signs`."""
    if is_exact(count):
        yield np.array(list(itertools.product((-1.0, 1.0), repeat=count)))
        return
    yield from random_signs(count)


def random_signs(count: int) -> Iterator[np.ndarray]:
    """`RESAMPLES` rows of `count` random signs with a fixed seed, in blocks small enough for memory."""
    rng, size = np.random.default_rng(0), block_size(count)
    for start in range(0, RESAMPLES, size):
        yield rng.choice((-1.0, 1.0), (min(size, RESAMPLES - start), count))


def smallest_p(n: int) -> float:
    """The smallest p-value that the permutation test of n pairs can give: all differences have the same sign."""
    return float(2 / min(2 ** int(n), RESAMPLES + 1))


def probability_of_superiority(
    values: Sequence[float] | np.ndarray, others: Sequence[float] | np.ndarray
) -> tuple[float, float, float]:
    """Probability that a run of one arm has a smaller value than a run of the other, with its 95 % interval over seeds.

    The Mann-Whitney statistic divided by the number of pairs, ties counting half: "probability of improvement" in
    Agarwal et al. 2021. The interval is Newcombe's (2006, part 2, method 5), for independent runs: pairs with the same
    seed are mostly closer, for which it is too wide. It is defined at 0 and 1, too.

    Examples:
      >>> [round(value, 2) for value in probability_of_superiority([0.010, 0.012, 0.011], [0.014, 0.013, 0.011])]
      [0.83, 0.36, 0.98]
    """
    first, second = len(values), len(others)
    smaller = [np.searchsorted(np.sort(values), others, side).sum() for side in ("left", "right")]  # without, with ties
    found = float(sum(smaller)) / (2 * first * second)
    z, mean_size = float(scipy.special.ndtri(ALPHA / 2)), (first + second) / 2 - 1
    # Newcombe's equation times (2 - theta) (1 + theta): above 0 where the data would be outside of the 95 % of the
    # probability theta. Of its four roots one is at most 0, and one at least 1.
    theta = np.polynomial.Polynomial([0, 1])
    common = (2 - theta) * (1 + theta)
    spread = common + mean_size * ((1 - theta) * (1 + theta) + theta * (2 - theta))
    beyond = (found - theta) ** 2 * common - z**2 / (first * second) * theta * (1 - theta) * spread
    low, high = np.clip(np.sort(beyond.roots().real)[1:3], 0.0, 1.0)
    return found, float(low) if found > 0 else 0.0, float(high) if found < 1 else 1.0


def power(n: int, effect_size: float, level: float = ALPHA) -> float:
    """Probability that the two-sided paired t-test of n seeds shows a true effect of this size (d_z)."""
    critical = float(scipy.stats.t.isf(level / 2, n - 1))
    shift = abs(effect_size) * math.sqrt(n)
    above = scipy.stats.nct.sf(critical, n - 1, shift)
    below = scipy.stats.nct.cdf(-critical, n - 1, shift)
    # SciPy's noncentral t is NaN far out in a tail, where the density is 0.
    return float(np.nan_to_num(above, nan=1.0) + np.nan_to_num(below, nan=0.0))


@functools.cache
def detectable_size(n: int, level: float) -> float:
    """The effect size (d_z) that 80 % of studies with n seeds show."""
    return float(scipy.optimize.brentq(lambda size: power(n, size, level) - POWER, 1e-3, 1e4, rtol=1e-9))


class Effect(NamedTuple):
    """A main effect or an interaction of a factorial study.

    Attributes:
      axes: one axis, or two for an interaction.
      changes: (from, to) of each axis.
      over: the axes that the effect is averaged over.
      differences: one per seed.
    """

    axes: tuple[str, ...]
    changes: tuple[tuple[Any, Any], ...]
    over: tuple[str, ...]
    differences: np.ndarray


def effects(axes: Mapping[str, Sequence[Any]], cells: Mapping[tuple[Any, ...], np.ndarray]) -> list[Effect]:
    """Main effects and two-way interactions of a full factorial study.

    A main effect is the change when one axis goes from its first value to another one, averaged over all combinations
    of the other axes. An interaction is the change of one axis' main effect with the value of another axis. `cells`
    holds the values by seed [seeds] of each combination of the axes' values, with the same seeds in all cells.
    """
    names = list(axes)
    table = np.empty((*(len(values) for values in axes.values()), len(next(iter(cells.values())))))
    for cell, values in cells.items():
        table[tuple(axes[name].index(value) for name, value in zip(names, cell, strict=True))] = values

    def effect(*changed: tuple[str, int]) -> Effect:
        part: np.ndarray = table
        # The last axis first, so that the earlier ones keep their numbers.
        for name, index in sorted(changed, key=lambda change: -names.index(change[0])):
            part = part.take(index, names.index(name)) - part.take(0, names.index(name))
        differences = part.reshape(-1, part.shape[-1]).mean(axis=0)
        return Effect(
            axes=tuple(name for name, _ in changed),
            changes=tuple((axes[name][0], axes[name][index]) for name, index in changed),
            over=tuple(name for name in names if name not in dict(changed)),
            differences=np.where(np.abs(differences) <= ROUNDING * np.abs(table).max(), 0.0, differences),
        )

    changes = {name: [(name, index) for index in range(1, len(values))] for name, values in axes.items()}
    main = [effect(change) for name in names for change in changes[name]]
    pairs = itertools.combinations(names, 2)
    two_way = [effect(one, other) for first, second in pairs for one in changes[first] for other in changes[second]]
    return main + two_way
