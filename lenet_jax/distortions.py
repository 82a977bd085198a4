"""Random distortions of images, for each presentation anew: planar affine ones, and elastic ones.

LeCun et al. 1998 (section III.C) name translations both ways, scaling, squeezing (compression one way with elongation
the other) and horizontal shear, and no magnitudes: here they are fields. Elastic distortions move every pixel by a
smooth random field as well (Simard, Steinkraus and Platt 2003).
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, UInt32

from lenet_jax.errors import check_choice

AUGMENTATIONS = ("none", "affine", "elastic")

SMOOTHNESS = 4.0
"""Pixels: deviation of the Gaussian that smooths elastic fields; Simard et al.'s sigma."""


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How training images are changed. Hashable: a static argument of compiled functions.

    Attributes:
      augmentation: ``none``, ``affine``, or ``elastic``, which is affine and elastic.
      distorted_share: of the presentations; the others show the image as it is. In the paper's set it is 0.9.
      max_translation: pixels, each way, at most.
      max_scaling: 0.1: between 1/1.1 and 1.1 times the size.
      max_squeezing: 0.1: one axis up to 1.1 times as long, the other as many times shorter.
      max_shear: columns that a row is shifted by, for each row from the middle.
      elastic_displacement: pixels, each way, root mean square over pixels and presentations. Simard et al.'s 34 times
        uniform noise, smoothed, is 1.4.

    Raises:
      InputError: the augmentation is unknown.
    """

    augmentation: str = "none"
    distorted_share: float = 0.9
    max_translation: float = 2.0
    max_scaling: float = 0.1
    max_squeezing: float = 0.1
    max_shear: float = 0.2
    elastic_displacement: float = 1.4

    def __post_init__(self) -> None:
        check_choice("augmentation", self.augmentation, AUGMENTATIONS)


@flax.struct.dataclass
class Elastic:
    """Smooth random fields.

    Attributes:
      displacement: in pixels, see `Augmentation`.
      seed: that `elastic_fields` are drawn from.
    """

    displacement: Float[Array, "*batch"]
    seed: UInt32[Array, "*batch"]


@flax.struct.dataclass
class Distortion:
    """Where the pixels of distorted images come from: source = matrix @ (place - middle) + middle + shift + field.

    Attributes:
      matrix: rows and columns.
      shift: in pixels.
      elastic: the field; None without one.
    """

    matrix: Float[Array, "*batch 2 2"]
    shift: Float[Array, "*batch 2"]
    elastic: Elastic | None = None


def draw(key: PRNGKeyArray, count: int, augmentation: Augmentation) -> Distortion:
    """Random distortions, uniform in each magnitude (scaling and squeezing in their logarithm)."""
    share_key, key, field_key = jax.random.split(key, 3)
    distorted = jax.random.uniform(share_key, (count,)) < augmentation.distorted_share
    numbers = jax.random.uniform(key, (5, count), minval=-1.0, maxval=1.0) * distorted[None]
    scaling = jnp.log1p(augmentation.max_scaling) * numbers[0]
    squeezing = jnp.log1p(augmentation.max_squeezing) * numbers[1]
    shear = augmentation.max_shear * numbers[2]
    down, across = jnp.exp(scaling + squeezing), jnp.exp(scaling - squeezing)
    matrix = jnp.stack([jnp.stack([down, jnp.zeros(count)], -1), jnp.stack([shear, across], -1)], -2)
    shift = augmentation.max_translation * numbers[3:].T
    if augmentation.augmentation != "elastic":
        return Distortion(matrix, shift)
    displacement = augmentation.elastic_displacement * distorted.astype(shift.dtype)
    return Distortion(matrix, shift, Elastic(displacement, jax.random.bits(field_key, (count,))))


def elastic_fields(key: PRNGKeyArray, rows: int, columns: int) -> list[Float[Array, "{rows} {columns}"]]:
    """Two smooth random fields, for rows and columns, of mean 0 and deviation 1 at every pixel.

    In distribution they are white noise, smoothed by a Gaussian of deviation `SMOOTHNESS`: sums of such Gaussians at
    the points of a grid, 1.5 deviations apart.
    """
    down, across = bumps(rows), bumps(columns)
    noise = jax.random.normal(key, (2, down.shape[1], across.shape[1]), down.dtype)
    return [down @ one @ across.T for one in noise]


def bumps(size: int) -> Float[Array, "size points"]:
    """Gaussians around points on a line: what each pixel has of each, with sum of squares 1."""
    spacing = 1.5 * SMOOTHNESS
    points = np.arange(-2 * SMOOTHNESS, size - 1 + 2 * SMOOTHNESS + spacing, spacing)
    heights = np.exp(-((np.arange(size)[:, None] - points[None]) ** 2) / (2 * SMOOTHNESS**2))
    return jnp.asarray(heights / np.sqrt((heights**2).sum(axis=1, keepdims=True)), jnp.result_type(float))


def distort(image: Float[Array, "rows columns"], distortion: Distortion, background: float | Array) -> Array:
    """The image with every pixel taken from where `distortion` says, bilinearly; outside is `background`."""
    middles = [(size - 1) / 2 for size in image.shape]
    rows, columns = (jnp.arange(size) - middle for size, middle in zip(image.shape, middles, strict=True))
    sources = [
        of_row * rows[:, None] + of_column * columns[None] + (middle + shift)
        for (of_row, of_column), middle, shift in zip(distortion.matrix, middles, distortion.shift, strict=True)
    ]
    if distortion.elastic is not None:
        fields = elastic_fields(jax.random.key(distortion.elastic.seed), *image.shape)
        moves = [distortion.elastic.displacement * field for field in fields]
        sources = [source + move for source, move in zip(sources, moves, strict=True)]
    above: Array = jax.scipy.ndimage.map_coordinates(image - background, sources, order=1, mode="constant", cval=0.0)
    return above + background
