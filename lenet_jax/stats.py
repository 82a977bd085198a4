"""Statistics over seeds: arrays in, numbers out.

An arm's interval is a bootstrap's; what two arms differ by is judged seed by seed (paired), with Student's interval and
a permutation test. `experiments/results/coverage` holds how often these intervals hold what they promise.
"""

import functools
import itertools
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.optimize
import scipy.stats

CONFIDENCE = 0.95

ALPHA = 1 - CONFIDENCE
"""A difference counts as shown when its p-value, corrected if others were tested, is below."""

ROUNDING = 1e-12
"""Differences below this share of the values that they are taken between are rounding."""

RESAMPLES = 9_999
"""Of the bootstrap and of the permutation test, which is exact where there are no more permutations than this."""

POWER = 0.8
"""With which `seeds_needed` would show a difference."""


def vary(values: np.ndarray) -> bool:
    """Whether values differ by more than rounding, as 0.3 and 0.1 + 0.2 do."""
    return bool(np.ptp(values) > ROUNDING * np.abs(values).max())


def block_size(count: int) -> int:
    """Resamples of so many values that are drawn together: all, but at most ten million values, 80 MB."""
    return max(1, min(RESAMPLES, 10_000_000 // count))


def bootstrap_interval(values: Sequence[float] | np.ndarray) -> tuple[float, float] | None:
    """95 % confidence interval of the mean over seeds: BCa bootstrap (Efron 1987), always with the same resamples.

    Its quantiles are expanded for few seeds, as Student's t is wider than the normal distribution (Hesterberg
    2015, "What teachers should know about the bootstrap"): of few seeds plain BCa covers the mean too seldom.

    None for fewer than two values, where nothing can be said; both ends are the mean where all values are equal.
    """
    array = np.asarray(values, float)
    count = len(array)
    if count < 2 or not np.isfinite(array).all():
        return None
    if not vary(array):
        return float(array[0]), float(array[0])
    normal = scipy.stats.norm
    tail = normal.cdf(math.sqrt(count / (count - 1)) * scipy.stats.t.ppf((1 - CONFIDENCE) / 2, count - 1))
    tail = max(float(tail), 0.5 / RESAMPLES)  # no resample lies further out
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of what the next lines mend
        bootstrap = scipy.stats.bootstrap(
            (array,), np.mean, confidence_level=1 - 2 * tail, n_resamples=RESAMPLES, batch=block_size(count), rng=0
        )
    low, high = (float(end) for end in bootstrap.confidence_interval)
    # BCa has no answer where the jackknife is degenerate; the percentile bootstrap always has one.
    if math.isnan(low) or math.isnan(high):
        low, high = (float(end) for end in np.quantile(bootstrap.bootstrap_distribution, [tail, 1 - tail]))
    return max(low, float(array.min())), min(high, float(array.max()))  # means of equal values are rounded


def summarize(values: Sequence[float] | np.ndarray) -> dict[str, Any]:
    """Mean, standard deviation (n - 1), median, 95 % interval of the mean, the values; None where one isn't known."""
    array = np.asarray(values, float)
    ends = bootstrap_interval(array)

    def known(value: float) -> float | None:
        return float(value) if math.isfinite(value) else None

    return {
        "mean": known(array.mean()),
        "std": float(array.std(ddof=1)) if len(array) > 1 and np.isfinite(array).all() else None,
        "median": known(float(np.median(array))),
        "ci95": list(ends) if ends else None,
        "per_seed": [known(value) for value in array],
    }


def t_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ends of Student's 95 % interval of the mean along the last axis; the mean itself for a single value."""
    count = values.shape[-1]
    mean = np.asarray(values.mean(axis=-1))
    if count < 2:
        return mean, mean
    reach = scipy.stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * values.std(axis=-1, ddof=1) / math.sqrt(count)
    return np.asarray(mean - reach), np.asarray(mean + reach)


class Contrast(NamedTuple):
    """What a difference between arms, taken for each seed, comes to.

    Attributes:
      n: seeds.
      mean, std: of the differences; std with n - 1.
      low, high: Student's 95 % interval of it.
      p: two-sided, of the sign-flip permutation test that the differences lie around 0; at least `smallest_p(n)`.
      effect_size: mean / standard deviation of the differences (Cohen's d_z); None where they don't vary.
    """

    n: int
    mean: float
    std: float
    low: float
    high: float
    p: float
    effect_size: float | None


def contrasts(differences: Sequence[np.ndarray]) -> list[Contrast]:
    """Tests each array of differences, [seeds] with at least two finite values, by itself; see `holm` for many."""
    found: dict[int, Contrast] = {}
    lengths = {len(values) for values in differences}
    for length in lengths:  # those of equal length in one call
        places = [place for place, values in enumerate(differences) if len(values) == length]
        values = np.array([differences[place] for place in places], float)
        low, high = t_interval(values)
        p = sign_flip_test(values)
        for row, place in enumerate(places):
            mean, std = float(values[row].mean()), float(values[row].std(ddof=1))
            size = mean / std if vary(values[row]) else None
            found[place] = Contrast(length, mean, std, float(low[row]), float(high[row]), float(p[row]), size)
    return [found[place] for place in range(len(differences))]


def sign_flip_test(values: np.ndarray) -> np.ndarray:
    """p-values of the two-sided permutation test that flips signs (Fisher 1935), along the last axis [..., seeds].

    As `scipy.stats.permutation_test` has them, which draws signs anew for each row; here all rows share theirs, which
    makes many rows one matrix product.
    """
    count = values.shape[-1]
    scale = np.abs(values).max(axis=-1, keepdims=True)
    scaled = np.divide(values, scale, out=np.zeros(values.shape), where=scale > 0)
    exact = 2**count <= RESAMPLES + 1
    # Rounded: sums that are equal in theory must be, or a permutation as extreme as the observed one isn't counted.
    observed = np.round(scaled.sum(axis=-1) * 2**30)[..., None]
    drawn = above = below = 0 if exact else 1  # of random signs the observed ones are one more
    for signs in [np.array(list(itertools.product((-1.0, 1.0), repeat=count)))] if exact else random_signs(count):
        sums = np.round(scaled @ signs.T * 2**30)
        above, below = above + (sums >= observed).sum(axis=-1), below + (sums <= observed).sum(axis=-1)
        drawn += len(signs)
    p: np.ndarray = np.minimum(2 * np.minimum(above, below) / drawn, 1.0)
    return p


def random_signs(count: int) -> Iterator[np.ndarray]:
    """`RESAMPLES` rows of `count` signs, the same ones always, as many at a time as memory is no matter of."""
    rng, most = np.random.default_rng(0), block_size(count)
    for start in range(0, RESAMPLES, most):
        yield rng.choice((-1.0, 1.0), (min(most, RESAMPLES - start), count))


def smallest_p(n: int) -> float:
    """The smallest p-value that n pairs can have: all differences of one sign."""
    return float(2 / min(2 ** int(n), RESAMPLES + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for the number of tests: any below 0.05 misleads in at most 5 % of studies (Holm 1979)."""
    p = np.asarray(p_values, float)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(stepped, 1.0)
    return [float(value) for value in corrected]


def probability_of_superiority(values: Sequence[float] | np.ndarray, others: Sequence[float] | np.ndarray) -> float:
    """The chance that a run of one arm has a smaller value than a run of the other, ties counting half.

    The Mann-Whitney statistic, as a share of all pairs; "probability of improvement" in Agarwal et al. 2021.
    """
    statistic = scipy.stats.mannwhitneyu(others, values, method="asymptotic").statistic
    return float(statistic) / (len(values) * len(others))


def power(n: int, effect_size: float, level: float = ALPHA) -> float:
    """The chance that the paired t-test of n seeds, two-sided at this level, shows a true effect of this size (d_z)."""
    edge = float(scipy.stats.t.isf(level / 2, n - 1))
    shift = abs(effect_size) * math.sqrt(n)
    above = scipy.stats.nct.sf(edge, n - 1, shift)
    below = scipy.stats.nct.cdf(-edge, n - 1, shift)
    # Far out in a tail SciPy's noncentral t is NaN, where nothing is left of it.
    return float(np.nan_to_num(above, nan=1.0) + np.nan_to_num(below, nan=0.0))


def min_pairs(level: float = ALPHA) -> int | None:
    """Pairs that the permutation test needs to show anything at this level; None if no number is enough."""
    return next((n for n in range(2, 64) if smallest_p(n) < level), None)


def seeds_needed(difference: float, std: float, level: float = ALPHA) -> int | None:
    """Seeds with which a true difference would be shown in 80 % of studies.

    By the t-test, but no fewer than the permutation test needs to show anything.

    Args:
      difference: finite true mean of the differences between two arms.
      std: standard deviation of the differences between seeds.
      level: that p must be below: 0.05 by the number of comparisons, where those are corrected for.

    Returns:
      at least `fewest(level)`; None where the difference is 0, or more than a million seeds would be needed.
    """
    least = min_pairs(level)
    if difference == 0 or least is None:
        return None
    if std == 0:
        return least
    size = abs(difference) / std
    low, high = least, least
    while power(high, size, level) < POWER:
        low, high = high, 2 * high
        if high > 2**20:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle, size, level) >= POWER else (middle, high)
    return high


def detectable(n: int, std: float, level: float = ALPHA) -> float:
    """The true difference that n seeds would show in 80 % of studies; arguments as of `seeds_needed`."""
    return std * detectable_size(n, level)


@functools.cache
def detectable_size(n: int, level: float) -> float:
    """The effect size (d_z) that n seeds would show in 80 % of studies."""
    return float(scipy.optimize.brentq(lambda size: power(n, size, level) - POWER, 1e-3, 1e4, rtol=1e-9))


Cell = tuple[Any, ...]
"""A combination of values, one of each axis."""


class Effect(NamedTuple):
    """A main effect or an interaction of a factorial study.

    Attributes:
      axes: the axes that change: one, or two for an interaction.
      changes: for each, (from, to).
      over: the axes that it is a mean over.
      differences: one a seed.
    """

    axes: tuple[str, ...]
    changes: tuple[tuple[Any, Any], ...]
    over: tuple[str, ...]
    differences: np.ndarray


def difference(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Values less others, 0 where they differ by rounding alone, NaN where one of the two isn't finite."""
    finite = np.isfinite(values) & np.isfinite(others)
    values, others = np.where(finite, values, np.nan), np.where(finite, others, np.nan)
    found = values - others
    return np.where(np.abs(found) <= ROUNDING * np.maximum(np.abs(values), np.abs(others)), 0.0, found)


def effects(axes: Mapping[str, Sequence[Any]], cells: Mapping[Cell, np.ndarray]) -> list[Effect]:
    """Main effects and two-way interactions of a full factorial study.

    A main effect is what changes with one axis' value, the mean over all combinations of the others; every value is
    taken against the first one. An interaction is by how much one axis' main effect changes with another's value.

    Args:
      axes: axis -> its values, two or more.
      cells: for each combination, values by seed [seeds]; the seeds are the same in all.
    """
    names = list(axes)
    table = np.empty((*(len(values) for values in axes.values()), len(next(iter(cells.values())))))
    for cell, values in cells.items():
        table[tuple(axes[name].index(value) for name, value in zip(names, cell, strict=True))] = values

    def effect(*changed: tuple[str, int]) -> Effect:
        part: np.ndarray = table
        for name, place in sorted(changed, key=lambda change: -names.index(change[0])):  # later axes keep their place
            part = part.take(place, names.index(name)) - part.take(0, names.index(name))
        over = tuple(name for name in names if name not in dict(changed))
        differences = part.reshape(-1, part.shape[-1]).mean(axis=0)
        return Effect(
            axes=tuple(name for name, _ in changed),
            changes=tuple((axes[name][0], axes[name][place]) for name, place in changed),
            over=over,
            differences=np.where(np.abs(differences) <= ROUNDING * np.abs(table).max(), 0.0, differences),
        )

    places = {name: range(1, len(values)) for name, values in axes.items()}
    main = [effect((name, place)) for name in names for place in places[name]]
    pairs = [(first, second) for number, first in enumerate(names) for second in names[number + 1 :]]
    two_way = [
        effect((first, one), (second, other))
        for first, second in pairs
        for one in places[first]
        for other in places[second]
    ]
    return main + two_way
