"""Differences and effects of arms: weighted sums of their means, with intervals, tests and verdicts."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy

from lenet_jax import multiplicity, stats
from lenet_jax.analysis import metrics
from lenet_jax.analysis.metrics import Scores
from lenet_jax.choices import CHOICES, register
from lenet_jax.crossed import Estimate, Layout
from lenet_jax.errors import InputError

POINTS, RATIO, LOGIT = CHOICES["scale"]

EQUIVALENCE = 0.9
"""Confidence of the interval that lies within the margin of equivalent arms: two one-sided tests at 5 %."""

MAX_FACTOR = 100
"""Times the present seeds or images up to which more of them are advised."""


class Scale(NamedTuple):
    """What is compared: a function of the arms' means, its derivative, and how its differences are shown."""

    of: Callable[[np.ndarray], np.ndarray]
    slope: Callable[[np.ndarray], np.ndarray]
    shown: Callable[[float], float]
    allowed: str
    valid: Callable[[np.ndarray], np.ndarray]


SCALES = {
    POINTS: Scale(np.asarray, np.ones_like, float, "any", np.isfinite),
    RATIO: Scale(np.log, np.reciprocal, math.exp, "means above 0", lambda means: means > 0),
    LOGIT: Scale(
        lambda m: scipy.special.logit(m),
        lambda m: 1 / (m * (1 - m)),
        math.exp,
        "errors between 0 and 1",
        lambda m: (m > 0) & (m < 1),
    ),
}
"""Differences of means, ratios of means, and ratios of odds, by name. Means on other scales are linearized: the delta
method."""

register("scale", SCALES)


class Wanted(NamedTuple):
    """A contrast to test.

    Attributes:
      kind: ``difference`` between two arms, ``main effect`` or ``interaction``.
      name: the two sides of the difference.
      subject: of a sentence about it.
      weights: arm -> its factor in the sum.
      seeds: those that all of these arms have.
    """

    kind: str
    name: str
    subject: str
    weights: Mapping[str, float]
    seeds: tuple[int, ...]


class Needed(NamedTuple):
    """Numbers with which 80 % of studies show a difference: of seeds alone, of images alone, and of both growing alike.

    None where no number up to `MAX_FACTOR` times the present one suffices.
    """

    seeds: int | None
    images: int | None
    both: tuple[int, int] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TestedContrast:
    """A contrast that was tested. Values are on the comparison's scale, before `Scale.shown`.

    Attributes:
      kind, name, subject: see `Wanted`.
      n: seeds.
      estimate: mean, standard errors and degrees of freedom, over what the comparison covers.
      seeds_interval: 95 % interval over seeds, on these images.
      std: standard deviation of the paired differences over seeds.
      p: of the t-test; over seeds, of the sign-flip test.
      p_corrected: corrected for all contrasts of the comparison, see `multiplicity`.
      least_p: the smallest value that p can have with this number of seeds.
      chances: probabilities that the truth is below -margin, between, and above margin, see `Estimate.chances`.
      equivalent: whether the 90 % interval lies within the margin.
      improvement: probability that a run of the first arm is better than one of the second, and its 95 % interval over
        seeds (`stats.probability_of_superiority`); None for effects.
      needed: see `Needed`; None where answers to single images are unknown, or with fewer than five seeds.
      detectable: size of a study in words -> the smallest difference that 80 % of such studies show, given the measured
        variances; empty where `needed` is None.
    """

    kind: str
    name: str
    subject: str
    n: int
    estimate: Estimate
    seeds_interval: tuple[float, float]
    std: float
    p: float
    p_corrected: float
    least_p: float
    chances: tuple[float, float, float]
    equivalent: bool
    improvement: tuple[float, float, float] | None
    needed: Needed | None
    detectable: Mapping[str, float]

    @property
    def mean(self) -> float:
        """The estimate."""
        return self.estimate.mean

    @property
    def effect_size(self) -> float | None:
        """Mean / standard deviation over seeds (Cohen's d_z); None if the differences don't vary."""
        return self.mean / self.std if self.std > stats.ROUNDING * abs(self.mean) else None

    @property
    def significant(self) -> bool:
        """Whether the corrected p-value is below 0.05."""
        return self.p_corrected < stats.ALPHA

    def verdict(self, lower_is_better: bool) -> str:
        """``equivalent``, ``better`` or ``worse`` (``present``, of an interaction), or ``undecided``."""
        if self.equivalent or not self.significant:
            return "equivalent" if self.equivalent else "undecided"
        if self.kind == "interaction":
            return "present"
        return "better" if (self.mean < 0) == lower_is_better else "worse"


def judge(
    wanted: Sequence[Wanted],
    values: Mapping[str, pd.Series],
    scores: Mapping[str, Scores],
    over: str = "both",
    scale: str = POINTS,
    margin: float = 0.0,
    difference: float | None = None,
) -> list[TestedContrast]:
    """Tests contrasts.

    Args:
      wanted: the contrasts.
      values: arm -> value of each seed (the index).
      scores: arm -> values of each seed on each image; needed unless `over` is ``seeds``.
      over: one of `crossed.OVER`.
      scale: a key of `SCALES`.
      margin: largest difference without practical importance, on the scale.
      difference: the true difference that `Needed` is computed for; by default each measured one.

    Raises:
      InputError: the scale does not allow a mean.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, one in enumerate(wanted):
        groups.setdefault(one.seeds, []).append(index)
    found: dict[int, TestedContrast] = {}
    for seeds, members in groups.items():
        arms = list(dict.fromkeys(arm for index in members for arm in wanted[index].weights))
        weights = np.array([[wanted[index].weights.get(arm, 0.0) for arm in arms] for index in members])
        rows = np.stack([values[arm].loc[list(seeds)].to_numpy(float) for arm in arms])
        means = rows.mean(axis=1)
        check_scale(scale, dict(zip(arms, means, strict=True)))
        slopes, scaled = weights * SCALES[scale].slope(means), SCALES[scale].of(means)
        center = weights @ scaled
        center[np.abs(center) <= stats.ROUNDING * np.abs(weights) @ np.abs(scaled)] = 0.0
        by_seed = slopes @ (rows - means[:, None]) + center[:, None]
        by_seed[np.abs(by_seed) <= stats.ROUNDING * np.abs(rows).max()] = 0.0
        over_seeds = estimates_of(by_seed)
        if over == "seeds":
            estimates, layout = over_seeds, None
            own, corrected = stats.sign_flip_test(by_seed), multiplicity.over_seeds(by_seed)
        else:
            check_images({arm: scores[arm] for arm in arms}, seeds)
            whole = Layout.of([scores[arm].values[np.searchsorted(scores[arm].seeds, seeds)] for arm in arms])
            layout = whole.contrast(slopes).shifted(center)
            exact = zip(layout.estimates(over), center, strict=True)  # means of tables are rounded
            estimates = [estimate._replace(mean=float(mean)) for estimate, mean in exact]
            own, corrected = np.array([one.p for one in estimates]), multiplicity.over_images(layout, over)
        level = stats.ALPHA / len(wanted)
        for row, index in enumerate(members):
            estimate, one = estimates[row], wanted[index]
            low, high = estimate.interval(EQUIVALENCE)
            size = estimate.mean if difference is None else difference
            found[index] = TestedContrast(
                kind=one.kind,
                name=one.name,
                subject=one.subject,
                n=len(seeds),
                estimate=estimate,
                seeds_interval=over_seeds[row].interval(),
                std=over_seeds[row].se_seeds * math.sqrt(len(seeds)),
                p=float(own[row]),
                p_corrected=min(float(corrected[row]) * len(groups), 1.0),
                least_p=stats.smallest_p(len(seeds)) if over == "seeds" else 0.0,
                chances=estimate.chances(margin),
                equivalent=-margin < low and high < margin,
                improvement=improvement(one, rows, arms),
                needed=needed(layout, row, size, level) if layout is not None else None,
                detectable=detectable(layout, row, level) if layout is not None else {},
            )
    return [found[index] for index in range(len(wanted))]


def check_scale(scale: str, means: Mapping[str, float]) -> None:
    """Raises InputError if an arm's mean has no value on a scale."""
    rule = SCALES[scale]
    if wrong := [arm for arm, mean in means.items() if not rule.valid(np.array(mean))]:
        value = f"{wrong[0]} has the mean {means[wrong[0]]:g}"
        raise InputError(f"scale: {scale!r} needs {rule.allowed}, but {value}; use --scale={POINTS}")


def check_images(scores: Mapping[str, Scores], seeds: Sequence[int]) -> None:
    """Raises InputError unless all arms answer the same images with these seeds."""
    first, *_ = scores.values()
    for arm, one in scores.items():
        if not np.array_equal(one.images, first.images) or not np.isin(seeds, one.seeds).all():
            raise InputError(f"run: the predictions of {arm!r} are of other test images or seeds than the metrics")


def read_difference(text: str, metric: str, scale: str, field: str) -> float:
    """The size of a difference that a user gives, such as ``0.1`` or ``0.1 points``, on the scale.

    Raises:
      InputError: it is negative or not a number, no ratio above 1 where the scale needs one, or has another unit.
    """
    unit = {POINTS: metrics.margin_unit(metric)}.get(scale, "")
    found = re.fullmatch(r"\s*([-+]?\d*\.?\d+(?:[eE][-+]?\d+)?)\s*(.*?)\s*", text)
    value, least = float(found[1]) if found else math.nan, 0.0 if scale == POINTS else 1.0
    if not found or not least < value < math.inf:
        ratio = "; 1.1 stands for up to 1.1 times as many" if least else ""
        raise InputError(f"{field}: {text!r}; allowed is a number above {least:g}{f' ({unit})' if unit else ''}{ratio}")
    if found[2].removeprefix("percentage ") not in ("", unit):
        allowed = f"{unit!r}, or no unit" if unit else "no unit"
        raise InputError(f"{field}: {text!r} has the unit {found[2]!r}; allowed for {metric} on this scale: {allowed}")
    if scale != POINTS:
        return math.log(value)
    return value / 100 if metrics.is_percent(metric) else value


def estimates_of(by_seed: np.ndarray) -> list[Estimate]:
    """Estimates of means over seeds alone, [contrasts, seeds]."""
    seeds = by_seed.shape[1]
    errors = by_seed.std(axis=1, ddof=1) / math.sqrt(seeds) if seeds > 1 else np.full(len(by_seed), math.nan)
    pairs = zip(by_seed.mean(axis=1), errors, strict=True)
    return [Estimate(float(mean), float(se), seeds - 1.0, float(se), math.nan) for mean, se in pairs]


def improvement(one: Wanted, rows: np.ndarray, arms: Sequence[str]) -> tuple[float, float, float] | None:
    """See `TestedContrast`; of a difference, whose first arm is the first of its weights."""
    if one.kind != "difference":
        return None
    first, second = (rows[arms.index(arm)] for arm in one.weights)
    if len(first) < 2:
        return None
    return stats.probability_of_superiority(first, second)


def needed(layout: Layout, index: int, difference: float, level: float) -> Needed | None:
    """See `Needed`: normal quantiles, and the measured variances of the contrast with this index."""
    seeds, images = layout.shape
    if seeds < stats.FEW_SEEDS or not difference:
        return None
    of_seeds, of_images, rest = layout.variances()[index]
    target = (difference / quantiles(level)) ** 2

    def alone(present: int, own: float, other: float) -> int | None:
        """The number that makes own / number + other the target."""
        wanted = own / (target - other) if target > other else math.inf
        return max(math.ceil(wanted), 2) if wanted <= MAX_FACTOR * present else None

    part, square = of_seeds / seeds + of_images / images, rest / (seeds * images)
    factor = (part + math.sqrt(part**2 + 4 * target * square)) / (2 * target)  # part / factor + square / factor^2
    both = (max(math.ceil(factor * seeds), 2), math.ceil(factor * images)) if factor <= MAX_FACTOR else None
    return Needed(
        alone(seeds, of_seeds + rest / images, of_images / images),
        alone(images, of_images + rest / seeds, of_seeds / seeds),
        both,
    )


def detectable(layout: Layout, index: int, level: float) -> dict[str, float]:
    """See `TestedContrast`: of studies with as many seeds and images, and four times as many of each and of both."""
    seeds, images = layout.shape
    if seeds < stats.FEW_SEEDS:
        return {}
    of_seeds, of_images, rest = layout.variances()[index]
    found = {}
    for more_seeds, more_images in ((1, 1), (4, 1), (1, 4), (4, 4)):
        size = seeds * more_seeds, images * more_images
        square = of_seeds / size[0] + of_images / size[1] + rest / (size[0] * size[1])
        found[f"{size[0]:,} seeds, {size[1]:,} images"] = quantiles(level) * math.sqrt(square)
    return found


def quantiles(level: float) -> float:
    """The difference that 80 % of studies show at this level, in standard errors, by normal quantiles."""
    return float(scipy.special.ndtri(stats.POWER) - scipy.special.ndtri(level / 2))
