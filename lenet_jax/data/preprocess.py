"""From stored images to what networks see: padding, label noise, normalization."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from lenet_jax.data import datasets
from lenet_jax.errors import InputError, check_choice

PADDINGS: Mapping[str, dict[str, str]] = {"background": {"mode": "constant"}, "edge": {"mode": "edge"}}
"""How 28 x 28 images, centred, are made 32 x 32: with the background (0), or by repeating the outermost pixels."""


def pad(images: np.ndarray, padding: str) -> np.ndarray:
    """uint8 images [N, 28 or 32, ...] -> [N, 32, 32], centred; `padding` is a key of `PADDINGS`."""
    check_choice("padding", padding, PADDINGS)
    margin = (datasets.IMAGE_SIZE - images.shape[1]) // 2
    arguments: Any = PADDINGS[padding]
    return np.pad(images, ((0, 0), (margin, margin), (margin, margin)), **arguments)


def with_noise(labels: np.ndarray, share: float, classes: int) -> np.ndarray:
    """Labels [N] of which about a share is wrong: each another class, all equally likely.

    Always the same ones, also where more labels follow; those that are wrong at a smaller share are wrong in the same
    way at a larger one.
    """
    place = np.random.default_rng(0).random(len(labels))
    shift = np.random.default_rng(1).integers(1, max(classes, 2), len(labels))
    return np.where(place < share, (labels + shift) % classes, labels).astype(labels.dtype)


class Scaling(NamedTuple):
    """Normalized pixel = pixel * scale + shift, pixel from 0 to 255."""

    scale: float
    shift: float


def standardize(images: np.ndarray) -> Scaling:
    """Mean 0 and standard deviation 1 over all pixels of the training images, before padding."""
    counts = np.bincount(images.ravel(), minlength=256)
    values = np.arange(256)
    mean = counts @ values / images.size
    deviation = np.sqrt(counts @ (values - mean) ** 2 / images.size)
    if deviation == 0:
        raise InputError("normalization: 'standard' needs training images that are not all of one grey")
    return Scaling(float(1 / deviation), float(-mean / deviation))


NORMALIZATIONS: Mapping[str, Callable[[np.ndarray], Scaling]] = {
    "hundredth": lambda _: Scaling(0.01, 0.0),
    "unit": lambda images: Scaling(1 / 255, 0.0),
    "lecun1998": lambda images: Scaling(1.275 / 255, -0.1),
    "standard": standardize,
}
"""Training images [N, 28, 28] -> scaling.

To 0 to 1; to -0.1 (background) to 1.175 (LeCun et al. 1998); to mean 0 and deviation 1.
"""
