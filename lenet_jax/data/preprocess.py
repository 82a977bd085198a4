"""From stored images to the network's input: padding, label noise, normalization."""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import numpy as np

from lenet_jax import IMAGE_SIZE
from lenet_jax.choices import register
from lenet_jax.errors import InputError, check_choice

PADDINGS: Mapping[str, Literal["constant", "edge"]] = {"background": "constant", "edge": "edge"}
"""Name -> mode of `np.pad` that extends images to 32 x 32: with the background (0), or with the outermost pixels."""


def pad(images: np.ndarray, padding: str) -> np.ndarray:
    """uint8 images [N, 28 or 32, ...] -> [N, 32, 32], centred; `padding` is a key of `PADDINGS`.

    Examples:
      >>> images = np.full((1, 28, 28), 9, np.uint8)
      >>> pad(images, "background").shape
      (1, 32, 32)
      >>> pad(images, "background")[0, 0, 0], pad(images, "edge")[0, 0, 0]
      (np.uint8(0), np.uint8(9))
    """
    check_choice("padding", padding, PADDINGS)
    margin = (IMAGE_SIZE - images.shape[1]) // 2
    return np.pad(images, ((0, 0), (margin, margin), (margin, margin)), PADDINGS[padding])


def with_noise(labels: np.ndarray, fraction: float, classes: int) -> np.ndarray:
    """Labels [N] of which about a fraction is replaced by other classes, all equally likely.

    The noise depends on the index alone: it stays the same if more labels follow, and labels that are wrong at a
    smaller fraction are wrong in the same way at a larger one.
    """
    threshold = np.random.default_rng(0).random(len(labels))
    shift = np.random.default_rng(1).integers(1, max(classes, 2), len(labels))
    return np.where(threshold < fraction, (labels + shift) % classes, labels).astype(labels.dtype)


class Scaling(NamedTuple):
    """Normalized pixel = pixel * scale + shift, for pixels from 0 to 255."""

    scale: float
    shift: float


def standardize(images: np.ndarray) -> Scaling:
    """Scaling to mean 0 and standard deviation 1 over all pixels of the training images, before padding."""
    counts, values = np.bincount(images.ravel(), minlength=256), np.arange(256)
    mean = counts @ values / images.size
    deviation = np.sqrt(counts @ (values - mean) ** 2 / images.size)
    if deviation == 0:
        raise InputError("normalization: 'standard' needs training images with more than one grey value")
    return Scaling(float(1 / deviation), float(-mean / deviation))


NORMALIZATIONS: Mapping[str, Callable[[np.ndarray], Scaling]] = {
    "hundredth": lambda _: Scaling(0.01, 0.0),  # 0 to 2.55
    "unit": lambda images: Scaling(1 / 255, 0.0),  # 0 to 1
    "lecun1998": lambda images: Scaling(1.275 / 255, -0.1),  # -0.1 (background) to 1.175 (LeCun et al. 1998)
    "standard": standardize,
}
"""Training images [N, 28, 28] -> scaling."""

register("padding", PADDINGS)
register("normalization", NORMALIZATIONS)
