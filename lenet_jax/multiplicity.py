"""p-values of many contrasts at once: step-down max-T (Westfall and Young 1993, algorithm 4.1).

All contrasts of a comparison are resampled with the same signs of seeds, and of test images, so that the correlation
of contrasts, such as those with the same baseline, counts: Holm's method (1979) has to assume the worst.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from lenet_jax import stats
from lenet_jax.crossed import Layout

ROUNDING = 1e-9
"""Relative differences of statistics below this are rounding errors."""


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

    Random signs multiply the deviations of seeds from a contrast's mean, and normal numbers those of images: a wild
    bootstrap. Each resample has its own standard error, so that few seeds have Student's long tails.
    """
    seeds, images = layout.shape
    over = over if seeds > 1 else "images"
    estimates = layout.estimates(over)
    mean, se = (np.array([getattr(estimate, name) for estimate in estimates]) for name in ("mean", "se"))
    observed = np.abs(np.divide(mean, se, out=np.where(mean != 0, np.inf, 0.0), where=se > 0))
    of_seeds, of_images = (layout.seeds - mean[:, None]) * (over == "both"), layout.images - mean[:, None]
    mean_squares = layout.mean_squares()
    spread, rest = mean_squares[1] / images, mean_squares[2] / (seeds * images) * (over == "both")
    if over == "both":
        # Means over seeds hold the residuals, too, which count once, among the seeds.
        spread = np.maximum(spread - rest, 0.0)
        of_images *= np.sqrt(np.divide(images * spread, mean_squares[1], out=0 * rest, where=mean_squares[1] > 0))[
            :, None
        ]
    values, vectors = np.linalg.eigh(of_images @ of_images.T / images**2)
    factor = vectors * np.sqrt(np.maximum(values, 0.0))  # of the covariance of the images' part
    squares = np.square(of_seeds).sum(axis=1)
    rng = np.random.default_rng(0)

    def drawn() -> Iterator[np.ndarray]:
        for flips in stats.random_signs(seeds):
            moved = flips @ of_seeds.T  # [resamples, contrasts]
            means = moved / seeds + rng.standard_normal((len(flips), len(mean))) @ factor.T
            parts = (squares - moved**2 / seeds) / max(seeds * (seeds - 1), 1) + spread
            square = np.maximum(parts, rest)
            yield np.abs(np.divide(means, np.sqrt(square), out=0 * means, where=square > 0))

    found: np.ndarray = np.maximum(step_down(observed, drawn(), 1), [estimate.p for estimate in estimates])
    return found


def step_down(observed: np.ndarray, drawn: Iterable[np.ndarray], extreme: int) -> np.ndarray:
    """Corrected p-values [contrasts] of observed statistics, given blocks of resampled ones, [resamples, contrasts].

    Each statistic is compared with the largest one of all contrasts that are not more extreme. `extreme` resamples
    as extreme as the observed ones are added: 1 where resamples are random.
    """
    order = np.argsort(-observed, kind="stable")
    # Statistics that are equal in theory count as equal.
    least, total, reached = observed[order] * (1 - ROUNDING), extreme, np.full(len(observed), extreme)
    for block in drawn:
        largest = np.maximum.accumulate(block[:, order[::-1]], axis=1)[:, ::-1]
        reached, total = reached + (largest >= least).sum(axis=0), total + len(block)
    corrected = np.maximum.accumulate(reached / total)
    return np.asarray(corrected[np.argsort(order)])
