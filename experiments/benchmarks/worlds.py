"""Simulated studies of networks that answer the same test images, made from the predictions of stored runs.

A world has four arms (2 x 2) and a population of test images. Each image has a probability of error in each arm: the
best linear prediction (Robinson 1991) from the share of stored networks that misread it, which shrinks towards the
arms' means and towards the other arms' shares as the components of variance of the stored table say. A study draws its
images with replacement. A seed moves the logits of all probabilities, by an amount that all arms share and by one of
each arm, whose sizes follow from the components of the stored seeds. Answers are then drawn independently of each
other. The truth, over infinitely many seeds and images, is a sum over the stored images and Gauss-Hermite nodes.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.special

from lenet_jax.run import folder

RESULTS = Path(__file__).parents[1] / "results"

LEAST = 1e-4
"""Least probability of an error, and of a right answer: linear predictions can leave the range from 0 to 1."""

NODES = 60
"""Gauss-Hermite nodes of each seed effect."""

EFFECTS = np.array(
    [[-1, 1, 0, 0], [-1, 0, 1, 0], [-1, 0, 0, 1], [-0.5, -0.5, 0.5, 0.5], [-0.5, 0.5, -0.5, 0.5], [1, -1, -1, 1]]
)
"""Weights of the arms in three differences from the first arm, two main effects and the interaction."""


def lognormal(z: np.ndarray) -> np.ndarray:
    """Standardized lognormal seed effects (sigma 1), from normal ones: their skewness is 6.2."""
    return (np.exp(z) - np.exp(0.5)) / np.sqrt(np.exp(2) - np.exp(1))


@dataclasses.dataclass(frozen=True)
class World:
    """A population of images and seeds.

    Attributes:
      logits: logits of the probabilities of error, [arms, kinds of images].
      kinds: the kind of each stored image, [images].
      shared, own: sizes of the effects of a seed, in logits, that all arms share, and of each arm.
      skewed: whether the effects of seeds are lognormal instead of normal.
    """

    logits: np.ndarray
    kinds: np.ndarray
    shared: float
    own: float
    skewed: bool = False

    def effects(self, z: np.ndarray) -> np.ndarray:
        """Effects of seeds of size 1 from standard normal numbers."""
        return lognormal(z) if self.skewed else z

    def draw(self, rng: np.random.Generator, seeds: int, images: int) -> np.ndarray:
        """Whether answers are wrong, bool [arms, seeds, images]."""
        shared, own = rng.standard_normal((1, seeds, 1)), rng.standard_normal((len(self.logits), seeds, 1))
        moved = self.shared * self.effects(shared) + self.own * self.effects(own)
        kinds, places = np.unique(self.kinds[rng.integers(len(self.kinds), size=images)], return_inverse=True)
        rates = scipy.special.expit((self.logits[:, None, kinds] + moved).astype(np.float32))
        return rng.random((*moved.shape[:2], images), dtype=np.float32) < rates.take(places, axis=2)

    def truth(self) -> np.ndarray:
        """Mean errors of the arms over all seeds and images."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
        weights = weights / weights.sum()
        moved = (self.shared * self.effects(nodes)[:, None] + self.own * self.effects(nodes)).ravel()
        shares, weights = np.bincount(self.kinds) / len(self.kinds), np.outer(weights, weights).ravel()

        def mean(logits: np.ndarray) -> float:
            values, places = np.unique(logits, return_inverse=True)
            return float(np.bincount(places, shares) @ scipy.special.expit(values[:, None] + moved) @ weights)

        return np.array([mean(logits) for logits in self.logits])

    def equal_on_average(self) -> "World":
        """Arms with the same true error: each image gives its probabilities to the arms in a random order."""
        orders = np.array(list(itertools.permutations(range(len(self.logits)))))
        kinds = np.concatenate([self.kinds + number * self.logits.shape[1] for number in range(len(orders))])
        return dataclasses.replace(
            self, logits=np.concatenate([self.logits[order] for order in orders], 1), kinds=kinds
        )

    def equal_on_images(self) -> "World":
        """Arms with the same true error on every image: all have the probabilities of the first."""
        return dataclasses.replace(self, logits=np.broadcast_to(self.logits[:1], self.logits.shape))

    def worse(self, shift: float) -> "World":
        """The world in which the logits of the second and the fourth arm are larger by `shift`."""
        return dataclasses.replace(self, logits=self.logits + shift * np.array([[0], [1], [0], [1]]))


def components(tables: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Covariances between arms of the components of seeds, images and residuals, [arms, arms] each, by ANOVA."""
    _, seeds, images = tables.shape
    centred = tables - tables.mean(axis=(1, 2), keepdims=True)
    of_seeds, of_images = centred.mean(axis=2), centred.mean(axis=1)
    rest = np.einsum("ksi,lsi->kl", centred, centred) - images * of_seeds @ of_seeds.T - seeds * of_images @ of_images.T
    rest /= (seeds - 1) * (images - 1)
    return (
        of_seeds @ of_seeds.T / (seeds - 1) - rest / images,
        of_images @ of_images.T / (images - 1) - rest / seeds,
        rest,
    )


@functools.cache
def of_run(name: str, arms: Sequence[str]) -> World:
    """The world of four arms of a stored run."""
    answers = folder.load(RESULTS / name).answers
    tables = np.stack([answers[arm].wrong for arm in arms]).astype(float)
    of_seeds, of_images, rest = components(tables)
    shares = tables.mean(axis=1)  # [arms, images]
    means = shares.mean(axis=1, keepdims=True)
    predicted = means + of_images @ np.linalg.solve(of_images + rest / tables.shape[1], shares - means)
    logits, kinds = np.unique(scipy.special.logit(predicted.clip(LEAST, 1 - LEAST)), axis=1, return_inverse=True)
    # The residual component is the mean of p (1 - p), the slope of the mean error with the logit.
    sizes = of_seeds / np.outer(np.diagonal(rest), np.diagonal(rest))
    total, count = float(np.trace(sizes)) / len(arms), len(arms)
    shared = max(float(sizes.sum()) - total * count, 0.0) / (count * (count - 1))
    return World(logits, kinds, np.sqrt(shared), np.sqrt(total - shared))
