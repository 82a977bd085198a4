"""p-values of many contrasts at once: step-down max-T (Westfall and Young 1993, algorithm 4.1).

All contrasts of a comparison are resampled together, so that the correlation of contrasts, such as those with the same
baseline, counts: Holm's method (1979) has to assume the worst.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from lenet_jax import stats
from lenet_jax.crossed import Layout


def over_seeds(differences: np.ndarray) -> np.ndarray:
    """Corrected p-values of finite differences [contrasts, seeds] over seeds.

    Signs of whole seeds are flipped, in all ways up to 13 seeds (exact), otherwise at random: with one contrast, the
    p-value is that of `stats.sign_flip_test`. None is smaller than `stats.smallest_p` of the number of seeds.

    Examples:
      >>> over_seeds(np.array([[-0.004, -0.002, -0.003, -0.004], [-0.004, 0.002, 0.002, 0.001]])).round(3).tolist()
      [0.125, 1.0]
    """
    norms = np.sqrt(np.square(differences).sum(axis=1, keepdims=True))
    # |sum| / sqrt(sum of squares) orders the signs as |t| does, since signs leave squares as they are.
    scaled = np.divide(differences, norms, out=np.zeros(differences.shape), where=norms > 0)
    count = differences.shape[1]
    drawn = (np.abs(signs @ scaled.T) for signs in stats.signs(count))
    return step_down(np.abs(scaled.sum(axis=1)), drawn, int(not stats.is_exact(count)))


def over_images(layout: Layout, over: str) -> np.ndarray:
    """Corrected p-values of contrasts (see `Layout.contrast`) over ``both`` seeds and images, or over ``images``.

    Means over images and means over seeds are drawn as normal, with their covariances between contrasts, and divided
    by roots of chi-squared numbers, since variances are estimates: the distribution of Behrens and Fisher (Fisher 1935,
    "The fiducial argument in statistical inference"). It is Student's where one part is 0, and conservative otherwise.
    """
    seeds, images = layout.shape
    over = over if seeds > 1 else "images"
    estimates = layout.estimates(over)
    mean, se = (np.array([getattr(estimate, name) for estimate in estimates]) for name in ("mean", "se"))
    observed = np.abs(np.divide(mean, se, out=np.where(mean != 0, np.inf, 0.0), where=se > 0))
    of_seeds, of_images = layout.seeds - mean[:, None], layout.images - mean[:, None]
    if over == "both":
        # Means over seeds hold the residuals, too, which count once, among the seeds.
        (_, wanted, _), spread = layout.variances().T, layout.mean_squares()[1]
        of_images *= np.sqrt(np.divide(wanted, spread, out=0 * spread, where=spread > 0))[:, None]
    free = max(seeds - 1, 1), np.array([estimate.df for estimate in layout.estimates("images")])
    parts = [
        (factor_of(of_images @ of_images.T / images**2), free[1]),
        (factor_of(of_seeds @ of_seeds.T / (seeds * free[0])) * (over == "both"), np.array([free[0]])),
    ]
    rng, size = np.random.default_rng(0), stats.block_size(len(mean))

    def drawn() -> Iterator[np.ndarray]:
        for start in range(0, stats.RESAMPLES, size):
            count, moved = min(size, stats.RESAMPLES - start), np.zeros(())
            for factor, df in parts:
                students = np.sqrt(df / rng.chisquare(df, (count, np.size(df))))
                moved = moved + rng.standard_normal((count, len(mean))) @ factor.T * students
            yield np.abs(np.divide(moved, se, out=0 * moved, where=se > 0))

    found: np.ndarray = np.maximum(step_down(observed, drawn(), 1), [estimate.p for estimate in estimates])
    return found


def factor_of(covariance: np.ndarray) -> np.ndarray:
    """A matrix that makes independent normal numbers vary with this covariance, whose rank may be smaller."""
    values, vectors = np.linalg.eigh(covariance)
    factor: np.ndarray = vectors * np.sqrt(np.maximum(values, 0.0))
    return factor


def step_down(observed: np.ndarray, drawn: Iterable[np.ndarray], extreme: int) -> np.ndarray:
    """Corrected p-values [contrasts] of observed statistics, given blocks of resampled ones, [resamples, contrasts].

    Each statistic is compared with the largest one of all contrasts that are not more extreme. `extreme` resamples
    as extreme as the observed ones are added: 1 where resamples are random.
    """
    order = np.argsort(-observed, kind="stable")
    least = observed[order] * (1 - stats.TIE) - stats.TIE
    total, reached = extreme, np.full(len(observed), extreme)
    for block in drawn:
        largest = np.maximum.accumulate(block[:, order[::-1]], axis=1)[:, ::-1]
        reached, total = reached + (largest >= least).sum(axis=0), total + len(block)
    corrected = np.maximum.accumulate(reached / total)
    return np.asarray(corrected[np.argsort(order)])
