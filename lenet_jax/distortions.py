"""Random planar affine distortions of images (LeCun et al. 1998, section III.C), for each presentation anew.

The paper names translations both ways, scaling, squeezing (compression one way with elongation the other) and
horizontal shear, and no magnitudes: here they are fields.
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lenet_jax.errors import check_choice

AUGMENTATIONS = ("none", "affine")


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How training images are changed. Hashable: a static argument of compiled functions.

    Attributes:
      augmentation: ``none`` or ``affine``.
      distorted_share: of the presentations; the others show the image as it is. In the paper's set it is 0.9.
      max_translation: pixels, each way, at most.
      max_scaling: 0.1: between 1/1.1 and 1.1 times the size.
      max_squeezing: 0.1: one axis up to 1.1 times as long, the other as many times shorter.
      max_shear: columns that a row is shifted by, for each row from the middle.

    Raises:
      InputError: the augmentation is unknown.
    """

    augmentation: str = "none"
    distorted_share: float = 0.9
    max_translation: float = 2.0
    max_scaling: float = 0.1
    max_squeezing: float = 0.1
    max_shear: float = 0.2

    def __post_init__(self) -> None:
        check_choice("augmentation", self.augmentation, AUGMENTATIONS)


@flax.struct.dataclass
class Affine:
    """Where the pixels of distorted images come from: source = matrix @ (place - middle) + middle + shift.

    Attributes:
      matrix: rows and columns.
      shift: in pixels.
    """

    matrix: Float[Array, "*batch 2 2"]
    shift: Float[Array, "*batch 2"]


def draw(key: PRNGKeyArray, count: int, augmentation: Augmentation) -> Affine:
    """Random distortions, uniform in each magnitude (scaling and squeezing in their logarithm)."""
    share_key, key = jax.random.split(key)
    distorted = jax.random.uniform(share_key, (count,)) < augmentation.distorted_share
    numbers = jax.random.uniform(key, (5, count), minval=-1.0, maxval=1.0) * distorted[None]
    scaling = jnp.log1p(augmentation.max_scaling) * numbers[0]
    squeezing = jnp.log1p(augmentation.max_squeezing) * numbers[1]
    shear = augmentation.max_shear * numbers[2]
    down, across = jnp.exp(scaling + squeezing), jnp.exp(scaling - squeezing)
    matrix = jnp.stack([jnp.stack([down, jnp.zeros(count)], -1), jnp.stack([shear, across], -1)], -2)
    return Affine(matrix, augmentation.max_translation * numbers[3:].T)


def distort(image: Float[Array, "rows columns"], affine: Affine, background: float | Array) -> Array:
    """The image with every pixel taken from where `affine` says, bilinearly; outside is `background`."""
    middles = [(size - 1) / 2 for size in image.shape]
    rows, columns = (jnp.arange(size) - middle for size, middle in zip(image.shape, middles, strict=True))
    sources = [
        of_row * rows[:, None] + of_column * columns[None] + (middle + shift)
        for (of_row, of_column), middle, shift in zip(affine.matrix, middles, affine.shift, strict=True)
    ]
    above: Array = jax.scipy.ndimage.map_coordinates(image - background, sources, order=1, mode="constant", cval=0.0)
    return above + background
