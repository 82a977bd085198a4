"""Statistics over seeds and test images: all networks of an arm answer the same images, so both are sampled, crossed.

The value of seed s on image i is a two-way layout without replication, y_si = mean + a_s + b_i + e_si, with random
effects of seeds and images (Searle, Casella and McCulloch 1992, ch. 4). The mean of a table has the variance

    var(a) / seeds + var(b) / images + var(e) / (seeds images)

Its parts are estimated by analysis of variance, and its degrees of freedom by Satterthwaite's approximation (1946).
A difference, a main effect or an interaction of arms is a weighted sum of their tables, which is such a table again.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy

from lenet_jax.choices import CHOICES
from lenet_jax.stats import ALPHA, CONFIDENCE, ROUNDING

OVER = CHOICES["over"]
"""What an interval covers: new seeds and new test images; new seeds on these images; these networks on new images."""

BLOCK_VALUES = 2**22
"""Values of tables that are converted to floating point at a time: 32 MB."""


class Estimate(NamedTuple):
    """The estimate of a mean, with its uncertainty.

    Attributes:
      se, df: standard error and its degrees of freedom; (estimate - truth) / se has Student's distribution.
      se_seeds: standard error over new seeds on the same images; NaN with a single seed.
      se_images: standard error of the same networks over new images; NaN where answers to single images are unknown.
    """

    mean: float
    se: float
    df: float
    se_seeds: float
    se_images: float

    def interval(self, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """Student's interval of the mean."""
        reach = self.se * float(scipy.special.stdtrit(self.df, (1 + confidence) / 2))
        return self.mean - reach, self.mean + reach

    @property
    def p(self) -> float:
        """Two-sided p-value of the t-test for a mean of 0; 1 where nothing varies around 0, 0 elsewhere."""
        if not self.se > 0:
            return float(self.mean == 0)
        return float(2 * scipy.special.stdtr(self.df, -abs(self.mean) / self.se))

    def chances(self, margin: float) -> tuple[float, float, float]:
        """Probabilities that the truth is below -margin, between, and above margin, if all values were equally likely.

        The posterior of a flat prior: the regions of practical equivalence of Benavoli et al. (2017).
        """
        if not self.se > 0:
            below, above = float(self.mean < -margin), float(self.mean > margin)
        else:
            below = float(scipy.special.stdtr(self.df, (-margin - self.mean) / self.se))
            above = float(scipy.special.stdtr(self.df, (self.mean - margin) / self.se))
        return below, max(1 - below - above, 0.0), above  # rounding


@dataclasses.dataclass(frozen=True)
class Layout:
    """Tables [seeds, images] of several arms, reduced to what their means, variances and covariances follow from.

    Attributes:
      seeds: means over images, [arms, seeds].
      images: means over seeds, [arms, images].
      products: means over the table of the product of two arms, [arms, arms].
    """

    seeds: np.ndarray
    images: np.ndarray
    products: np.ndarray

    @classmethod
    def of(cls, tables: Sequence[np.ndarray]) -> "Layout":
        """The layout of tables [seeds, images] of truth values or numbers, with the same seeds and images."""
        count, size = len(tables), tables[0].size
        products, step = np.zeros((count, count)), max(1, BLOCK_VALUES // count)
        flat = [table.reshape(-1) for table in tables]
        for start in range(0, size, step):
            block = np.stack([table[start : start + step] for table in flat]).astype(float)
            products += block @ block.T
        seeds, images = (np.stack([table.mean(axis=axis, dtype=float) for table in tables]) for axis in (1, 0))
        return cls(seeds, images, products / size)

    def contrast(self, weights: np.ndarray) -> "Layout":
        """The layout of weighted sums of the arms: differences and effects; `weights` is [contrasts, arms].

        Sums that are zero in theory, such as those of arms with equal tables, are exactly zero: divided by a standard
        error that is a rounding error, too, they could be arbitrarily large.
        """
        size = np.abs(weights)

        def exact(sums: np.ndarray, of_sizes: np.ndarray) -> np.ndarray:
            return np.where(np.abs(sums) <= ROUNDING * of_sizes, 0.0, sums)

        return Layout(
            exact(weights @ self.seeds, size @ np.abs(self.seeds)),
            exact(weights @ self.images, size @ np.abs(self.images)),
            exact(weights @ self.products @ weights.T, size @ np.abs(self.products) @ size.T),
        )

    def shifted(self, means: np.ndarray) -> "Layout":
        """The layout with other means, [arms], and the same variances and covariances."""
        now = self.seeds.mean(axis=1)
        shift = means - now
        moved = np.outer(shift, now)
        products = self.products + moved + moved.T + np.outer(shift, shift)
        return Layout(self.seeds + shift[:, None], self.images + shift[:, None], products)

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of seeds and of images."""
        return self.seeds.shape[1], self.images.shape[1]

    def variances(self) -> np.ndarray:
        """Variances of seeds, images and residuals as in the module's formula, [arms, 3], none negative.

        With a single seed, that of seeds is NaN, and that of images includes the residuals.
        """
        seeds, images = self.shape
        of_seeds, of_images, residual = self.mean_squares()
        if seeds == 1:
            return np.stack([np.full(len(of_images), np.nan), of_images, 0 * of_images], axis=1)
        parts = of_seeds - residual / images, of_images - residual / seeds, residual
        return np.stack([np.maximum(part, 0.0) for part in parts], axis=1)

    def mean_squares(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Variances of means over images, of means over seeds, and of residuals, [arms] each; 0 of a single value."""
        seeds, images = self.shape
        means = self.seeds.mean(axis=1)
        of_seeds, of_images = (np.square(one - means[:, None]).sum(axis=1) for one in (self.seeds, self.images))
        total = seeds * images * (np.diagonal(self.products) - means**2)
        residual = np.maximum(total - images * of_seeds - seeds * of_images, 0.0)
        free = max(seeds - 1, 1), max(images - 1, 1)
        return of_seeds / free[0], of_images / free[1], residual / (free[0] * free[1])

    def estimates(self, over: str = "both") -> list[Estimate]:
        """The estimate of each arm's mean over what `OVER` says; over images where there is a single seed.

        Examples:
          >>> wrong = np.array([[1, 0, 0, 0, 1, 0], [1, 1, 0, 1, 1, 0], [1, 0, 0, 0, 0, 0]], bool)
          >>> estimate = Layout.of([wrong]).estimates()[0]
          >>> print(f"{estimate.mean:.3f}; {estimate.se_seeds:.3f}, {estimate.se_images:.3f}, {estimate.se:.3f}")
          0.389; 0.147, 0.159, 0.200
        """
        seeds, images = self.shape
        over = over if seeds > 1 else "images"
        counts = seeds, images, seeds * images
        of_seeds, of_images, rest = (one / count for one, count in zip(self.mean_squares(), counts, strict=True))
        squares = np.square(self.images - self.images.mean(axis=1, keepdims=True))
        # Half the variance of each part. Errors are rare: that of images is far more uncertain than of normal values.
        unsure = {"seeds": of_seeds**2 / max(seeds - 1, 1), "images": of_images**2 / max(images - 1, 1)}
        unsure["images"] = np.maximum(unsure["images"], squares.var(axis=1) / (2 * images**3))
        unsure["both"] = unsure["seeds"] + unsure["images"]
        both = np.maximum(of_seeds + np.maximum(of_images - rest, 0.0), rest)
        square = {"seeds": of_seeds, "images": of_images, "both": both}[over]
        df = np.full(len(square), max(seeds - 1.0, 1.0))
        df = np.divide(square**2, unsure[over], out=df, where=unsure[over] > ROUNDING * square**2)  # Satterthwaite 1946
        parts = (
            np.sqrt(one) if n > 1 else np.full(len(one), np.nan) for one, n in ((of_seeds, seeds), (of_images, images))
        )
        columns = self.seeds.mean(axis=1), np.sqrt(square), df, *parts
        return [Estimate(*map(float, row)) for row in zip(*columns, strict=True)]

    def one_run(self, images: int | None = None) -> list[Estimate]:
        """Where one new run of each arm would lie, tested on as many other images (by default, as many as these).

        The estimate's `interval` is the prediction interval of its mean (Hahn and Meeker 1991, "Statistical Intervals",
        ch. 4), with new seed, new images and the uncertainty of our own mean; takes two seeds or more. The variance is

            var(a) (1 + 1/seeds) + var(b) (1/images + 1/new) + var(e) (1 / (seeds images) + 1/new)

        On these images, it is `stats.prediction_interval` of the means of seeds.

        Examples:
          >>> wrong = np.array([[1, 0, 0, 0, 1, 0], [1, 0, 0, 1, 0, 0], [1, 0, 0, 0, 0, 0]], bool)
          >>> print("{:.2f} to {:.2f}".format(*Layout.of([wrong]).one_run()[0].interval()))
          -0.39 to 0.95
        """
        seeds, now = self.shape
        new, found = images or now, []
        # The variance in mean squares of seeds, images and residuals, for Satterthwaite's approximation.
        shares = np.array([(1 + 1 / seeds) / now, (1 / now + 1 / new) / seeds, 1 / (seeds * now) + 1 / new])
        shares[2] -= shares[0] + shares[1]
        freedom = np.array([seeds - 1, now - 1, (seeds - 1) * (now - 1)])
        for estimate, (of_seeds, of_images, rest) in zip(self.estimates(), self.variances(), strict=True):
            parts = shares * (now * of_seeds + rest, seeds * of_images + rest, rest)
            variance, squares = float(parts.sum()), float((parts**2 / freedom).sum())
            df = variance**2 / squares if squares else seeds - 1.0
            found.append(estimate._replace(se=math.sqrt(variance), df=df))
        return found


def error_interval(estimate: Estimate, images: int) -> tuple[float, float]:
    """95 % interval of an error rate, from 0 to 1: Student's on the logit scale, on which few errors are less skewed.

    Where all answers are right, or all wrong, the exact interval of a proportion of independent images (Clopper and
    Pearson 1934): seeds err on the same images, so that more seeds say nothing of an image that all get right.
    """
    mean, logit = estimate.mean, scipy.special.logit
    if mean in (0.0, 1.0):
        reach = 1 - (ALPHA / 2) ** (1 / images)
        return max(mean - reach, 0.0), min(mean + reach, 1.0)
    scaled = estimate._replace(mean=float(logit(mean)), se=estimate.se / (mean * (1 - mean)))
    low, high = (float(scipy.special.expit(end)) for end in scaled.interval())
    return low, high
