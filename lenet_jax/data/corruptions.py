"""Corrupted test images: translation, rotation, scale, squeezing, stroke width and noise, each with a severity.

LeCun et al. 1998 (section III.D) state that recognition is accurate for "scale variations up to about a factor of two,
vertical shift variations of plus or minus about half the height of the character, and rotations up to plus or minus 30
degrees", and show digits with noise: each pixel "randomly inverted with probability 0.1".

Severity 0 is the image itself. What is random (a direction, which pixels are inverted) depends on the image's index in
its data set alone: neither on the severity nor on which other images are corrupted.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from lenet_jax.errors import InputError, check_choice, short_repr

RANDOM_SEED = 1998
"""Of all random choices, together with the index of an image."""

BLOCK = 5_000
"""Images corrupted at a time, because grey values take eight times the memory while they are interpolated."""

WHITE = 255


def generator(index: int) -> np.random.Generator:
    """The random numbers of the image with an index."""
    return np.random.default_rng((RANDOM_SEED, index))


def affine(images: np.ndarray, sources: list[tuple[np.ndarray, np.ndarray]], first: int) -> np.ndarray:
    """Images [N, rows, columns] by bilinear interpolation, on a background of 0.

    Each image gets one of several sources (matrix [2, 2], shift [2]) at random: pixel p shows the image at
    matrix @ (p - middle) + middle + shift.
    """
    chosen = np.array([generator(index).integers(len(sources)) for index in range(first, first + len(images))])
    result, middle = np.empty_like(images), (np.array(images.shape[1:]) - 1) / 2
    for choice, (matrix, shift) in enumerate(sources):
        whole = np.eye(3)  # the images are a stack, along whose axis nothing moves
        whole[1:, 1:] = matrix
        offset = [0.0, *(middle - matrix @ middle + shift)]
        which = chosen == choice
        result[which] = np.rint(ndimage.affine_transform(images[which].astype(float), whole, offset, order=1))
    return result


def translate(images: np.ndarray, pixels: float, first: int) -> np.ndarray:
    """Moves images up, down, left or right; a whole number of pixels changes no grey value."""
    moves = pixels * np.array([(1, 0), (-1, 0), (0, 1), (0, -1)])
    return affine(images, [(np.eye(2), move) for move in moves], first)


def rotate(images: np.ndarray, degrees: float, first: int) -> np.ndarray:
    """Rotates images about their middle, clockwise or anticlockwise."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return affine(images, [(np.array([[cosine, s], [-s, cosine]]), np.zeros(2)) for s in (sine, -sine)], first)


def scale(images: np.ndarray, change: float, first: int) -> np.ndarray:
    """Enlarges images by the factor 1 + change, or shrinks them by 1 - change if that is negative."""
    source = 1 / (1 + change) if change > 0 else 1 - change
    return affine(images, [(source * np.eye(2), np.zeros(2))], first)


def squeeze(images: np.ndarray, change: float, first: int) -> np.ndarray:
    """Stretches rows or columns by the factor 1 + change and compresses the others by it, which keeps the area."""
    factors = np.array([1 + change, 1 / (1 + change)])
    return affine(images, [(np.diag(order), np.zeros(2)) for order in (factors, factors[::-1])], first)


def thicken(images: np.ndarray, pixels: float, first: int) -> np.ndarray:
    """Widens strokes by a number of pixels, half of it on each side; narrows them if it is negative.

    Grey-scale dilation or erosion by discs. Grey values are interpolated between whole radii, which is exact for edges
    along rows or columns whose grey values tell how much of a pixel is covered.
    """
    change = ndimage.grey_dilation if pixels > 0 else ndimage.grey_erosion
    share, below = np.modf(abs(pixels) / 2)

    def changed(radius: int) -> np.ndarray:
        offsets = np.arange(-radius, radius + 1)
        disc = offsets[:, None] ** 2 + offsets[None] ** 2 <= radius**2
        # The background continues beyond the border.
        return np.asarray(change(images, footprint=disc[None], mode="constant", cval=0), float)

    inner, outer = changed(int(below)), changed(int(np.ceil(abs(pixels) / 2)))
    return np.rint((1 - share) * inner + share * outer).astype(images.dtype)


def invert(images: np.ndarray, probability: float, first: int) -> np.ndarray:
    """Inverts each pixel with a probability; those of a smaller probability are among those of a larger one."""
    result = images.copy()
    for index, image in enumerate(result, first):
        inverted = generator(index).random(image.shape) < probability
        image[inverted] = WHITE - image[inverted]
    return result


class Corruption(NamedTuple):
    """A kind of corruption: its function, what severity means, and the smallest and largest severity."""

    apply: Callable[[np.ndarray, float, int], np.ndarray]
    severity: str
    low: float
    high: float


CORRUPTIONS: Mapping[str, Corruption] = {
    "translation": Corruption(translate, "pixels, in one of four directions", 0, 16),
    "rotation": Corruption(rotate, "degrees, in one of two directions", 0, 180),
    "scale": Corruption(scale, "change of size: 1 doubles it, -1 halves it", -1, 1),
    "squeezing": Corruption(squeeze, "one axis stretched by 1 + severity, the other compressed by it", 0, 1),
    "stroke": Corruption(thicken, "change of the width of strokes, in pixels", -6, 6),
    "noise": Corruption(invert, "probability that a pixel is inverted", 0, 0.5),
}
"""Name -> corruption."""


def corrupt(images: np.ndarray, name: str, severity: float, first: int = 0) -> np.ndarray:
    """Corrupted images.

    Args:
      images: uint8 [N, rows, columns], on a background of 0.
      name: a key of `CORRUPTIONS`.
      severity: as the corruption defines it; 0 returns the images as they are.
      first: index of the first image in its data set.

    Raises:
      InputError: there is no such corruption, or it has no such severity.

    Examples:
      >>> image = np.zeros((1, 5, 5), np.uint8)
      >>> image[0, 2, 2] = 255
      >>> corrupt(image, "stroke", 1)[0, 2].tolist()  # half a pixel on each side
      [0, 128, 255, 128, 0]
    """
    check_choice("corruption", name, CORRUPTIONS)
    kind = CORRUPTIONS[name]
    if not kind.low <= severity <= kind.high:
        allowed = f"allowed are {kind.low:g} to {kind.high:g} ({kind.severity})"
        raise InputError(f"corruption: severity {short_repr(severity)} of {name!r} is out of range; {allowed}")
    if not severity or not len(images):
        return images
    starts = range(0, len(images), BLOCK)
    return np.concatenate([kind.apply(images[start : start + BLOCK], severity, first + start) for start in starts])


def parse(text: str) -> dict[str, list[float]]:
    """Name -> rising severities, from text such as ``rotation:0,10,20;noise:0,0.1``.

    Raises:
      InputError: a name is unknown or there twice, or one of its severities is not a number or out of range.

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
            wanted = f"expected numbers, as in {name}:{CORRUPTIONS[name].high / 4:g},{CORRUPTIONS[name].high / 2:g}"
            raise InputError(f"corruption: severities {short_repr(listed)} of {name!r}; {wanted}") from error
        if name in found:
            raise InputError(f"corruption: {name!r} is there twice; list all its severities once")
        for severity in severities:
            corrupt(np.zeros((0, 1, 1), np.uint8), name, severity)
        found[name] = severities
    return found
