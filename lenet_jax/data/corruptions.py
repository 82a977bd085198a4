"""Corrupted test images: translation, rotation, scale, squeezing, stroke width and noise, each with a severity.

LeCun et al. 1998 (section III.D) estimate that LeNet-5 reads digits of up to twice or half the size, shifted by up to
half their height, and rotated by up to 30 degrees, and show digits with noise, in which pixels are inverted at random.

Severity 0 is the image itself. What is random (a direction, which pixels are inverted) depends on the image's index in
its data set alone: neither on the severity nor on which other images are corrupted.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from lenet_jax.errors import InputError, check_choice, short_repr

RANDOM_SEED = 1998
"""Of all random choices, together with the index of an image."""

BLOCK = 5_000
"""Images corrupted at a time: as floating-point numbers they take eight times the memory."""

WHITE = 255

Sources = list[tuple[np.ndarray, np.ndarray]]
"""Affine maps, one of which each image gets at random: pixel p shows matrix @ (p - middle) + middle + shift."""


def generator(index: int) -> np.random.Generator:
    """The random numbers of the image with an index."""
    return np.random.default_rng((RANDOM_SEED, index))


def moved(pixels: float) -> Sources:
    """Down, up, to the right and to the left; a whole number of pixels changes no grey value."""
    return [(np.eye(2), pixels * np.array(direction)) for direction in ((-1, 0), (1, 0), (0, -1), (0, 1))]


def rotated(degrees: float) -> Sources:
    """Anticlockwise and clockwise."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return [(np.array([[cosine, s], [-s, cosine]]), np.zeros(2)) for s in (sine, -sine)]


def scaled(change: float) -> Sources:
    """Larger by the factor 1 + change, or smaller by the factor 1 - change if that is negative."""
    return [(np.eye(2) / (1 + change) if change > 0 else np.eye(2) * (1 - change), np.zeros(2))]


def squeezed(change: float) -> Sources:
    """Rows compressed by the factor 1 + change and columns stretched by it, or the other way round."""
    return [(np.diag([1 + change, 1 / (1 + change)][::step]), np.zeros(2)) for step in (1, -1)]


def affine(images: np.ndarray, severity: float, first: int, sources: Callable[[float], Sources]) -> np.ndarray:
    """Images by bilinear interpolation, on a background of 0."""
    maps, middle = sources(severity), (np.array(images.shape[1:]) - 1) / 2
    chosen = np.array([generator(index).integers(len(maps)) for index in range(first, first + len(images))])
    result = np.empty_like(images)
    for choice, (matrix, shift) in enumerate(maps):
        whole = np.eye(3)  # the images are a stack, along whose axis nothing moves
        whole[1:, 1:] = matrix
        offset = [0.0, *(middle - matrix @ middle + shift)]
        which = chosen == choice
        result[which] = np.rint(ndimage.affine_transform(images[which].astype(float), whole, offset, order=1))
    return result


def thicken(images: np.ndarray, pixels: float, first: int) -> np.ndarray:
    """Widens strokes, half of the pixels on each side; narrows them if pixels are negative.

    Grey-scale dilation or erosion by discs. Grey values are interpolated between whole radii, which is exact for edges
    along rows or columns whose grey values tell how much of a pixel is covered.
    """
    change, radius = ndimage.grey_dilation if pixels > 0 else ndimage.grey_erosion, abs(pixels) / 2

    def changed(whole: int) -> np.ndarray:
        offsets = np.arange(-whole, whole + 1)
        disc = offsets[:, None] ** 2 + offsets[None] ** 2 <= whole**2
        return np.asarray(change(images, footprint=disc[None], mode="constant", cval=0), float)

    share = radius - int(radius)
    result = (1 - share) * changed(int(radius)) + share * changed(int(np.ceil(radius)))
    return np.rint(result).astype(images.dtype)


def invert(images: np.ndarray, probability: float, first: int) -> np.ndarray:
    """Inverts each pixel with a probability; those of a smaller probability are among those of a larger one."""
    draws = [generator(index).random(images.shape[1:]) for index in range(first, first + len(images))]
    return np.where(np.array(draws) < probability, WHITE - images, images)


class Corruption(NamedTuple):
    """A function of images [N, rows, columns], severity and the first image's index; what severity is; its range."""

    apply: Callable[[np.ndarray, float, int], np.ndarray]
    severity: str
    low: float
    high: float


CORRUPTIONS: Mapping[str, Corruption] = {
    "translation": Corruption(functools.partial(affine, sources=moved), "pixels, in one of four directions", 0, 16),
    "rotation": Corruption(functools.partial(affine, sources=rotated), "degrees, in one of two directions", 0, 180),
    "scale": Corruption(functools.partial(affine, sources=scaled), "change of size (1: doubled, -1: halved)", -1, 1),
    "squeezing": Corruption(
        functools.partial(affine, sources=squeezed), "change of one axis, undone by the other", 0, 1
    ),
    "stroke": Corruption(thicken, "change of the width of strokes, in pixels", -6, 6),
    "noise": Corruption(invert, "probability that a pixel is inverted", 0, 0.5),
}
"""Name -> corruption."""


def check(name: str, severity: float) -> None:
    """Raises InputError if there is no such corruption, or its severity is out of range."""
    check_choice("corruption", name, CORRUPTIONS)
    kind = CORRUPTIONS[name]
    if not kind.low <= severity <= kind.high:
        allowed = f"allowed are {kind.low:g} to {kind.high:g} ({kind.severity})"
        raise InputError(f"corruption: severity {short_repr(severity)} of {name!r} is out of range; {allowed}")


def corrupt(images: np.ndarray, name: str, severity: float, first: int = 0) -> np.ndarray:
    """Corrupted images, uint8 [N, rows, columns] on a background of 0.

    `name` and `severity` are those of a corruption in `CORRUPTIONS`; `first` is the first image's index in its data
    set. Raises InputError, see `check`.

    Examples:
      >>> image = np.zeros((1, 5, 5), np.uint8)
      >>> image[0, 2, 2] = 255
      >>> corrupt(image, "stroke", 1)[0, 2].tolist()  # half a pixel on each side
      [0, 128, 255, 128, 0]
    """
    check(name, severity)
    if not severity:
        return images
    starts = range(0, len(images), BLOCK)
    apply = CORRUPTIONS[name].apply
    return np.concatenate([apply(images[start : start + BLOCK], severity, first + start) for start in starts])


def parse(text: str) -> dict[str, list[float]]:
    """Name -> rising severities; raises InputError for what is not such a text.

    Examples:
      >>> parse("rotation:30,0;noise:0.1")
      {'rotation': [0.0, 30.0], 'noise': [0.1]}
    """
    found: dict[str, list[float]] = {}
    for part in text.split(";"):
        name, _, listed = map(str.strip, part.partition(":"))
        check_choice("corruption", name, CORRUPTIONS)
        try:
            severities = sorted({float(severity) for severity in listed.split(",")})
        except ValueError as error:
            wanted = f"expected numbers, as in {name}:0,{CORRUPTIONS[name].high / 2:g}"
            raise InputError(f"corruption: severities {short_repr(listed)} of {name!r}; {wanted}") from error
        if name in found:
            raise InputError(f"corruption: {name!r} is there twice; list all its severities once")
        for severity in severities:
            check(name, severity)
        found[name] = severities
    return found
