"""Random affine and elastic distortions of images, drawn for each presentation.

LeCun et al. 1998 (section III.C) use translations in both directions, scaling, squeezing (compression in one direction,
elongation in the other) and horizontal shear, but give no magnitudes: here they are fields. Elastic distortions also
displace every pixel by a smooth random field (Simard, Steinkraus and Platt 2003).
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, UInt32

from lenet_jax.choices import CHOICES
from lenet_jax.errors import check_choice
from lenet_jax.jax_settings import key_of
from lenet_jax.layers import product

AUGMENTATIONS = CHOICES["augmentation"]

SMOOTHNESS = 4.0
"""Standard deviation, in pixels, of the Gaussian that smooths elastic fields; Simard et al.'s sigma."""


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """The distortions of training images. Hashable: a static argument of compiled functions.

    Attributes:
      augmentation: ``none``, ``affine``, or ``elastic`` (affine and elastic).
      distorted_share: fraction of presentations that are distorted; the others show the original image. 0.9 in the
        paper's training set.
      max_translation: largest translation in each direction, in pixels.
      max_scaling: largest change of size; 0.1: between 1/1.1 and 1.1 times the original size.
      max_squeezing: 0.1: one axis is stretched by a factor of up to 1.1, the other shrinks by the same factor.
      max_shear: largest shift of a row, in columns, per row of distance from the middle.
      elastic_displacement: root mean square displacement in each direction over pixels and presentations, in pixels;
        1.4 corresponds to Simard et al.'s smoothed uniform noise times 34.
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
    """Smooth random fields: root mean square displacement in pixels, and the seed of the key of `elastic_fields`."""

    displacement: Float[Array, "*batch"]
    seed: UInt32[Array, "*batch"]


@flax.struct.dataclass
class Distortion:
    """The source of each pixel (row, column): matrix @ (pixel - middle) + middle + shift + elastic field, in pixels."""

    matrix: Float[Array, "*batch 2 2"]
    shift: Float[Array, "*batch 2"]
    elastic: Elastic | None = None


def draw(key: PRNGKeyArray, count: int, augmentation: Augmentation) -> Distortion:
    """Random distortions, uniform in each magnitude (in its logarithm for scaling and squeezing)."""
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
    """Two smooth random fields, for rows and columns, with mean 0 and standard deviation 1 at every pixel.

    They are sums of Gaussians of standard deviation `SMOOTHNESS` around the points of a grid, 1.5 standard deviations
    apart, with random factors: in distribution, white noise smoothed by such a Gaussian.
    """
    down, across = bumps(rows), bumps(columns)
    noise = jax.random.normal(key, (2, down.shape[1], across.shape[1]), down.dtype)
    return [product(product(down, factors), across.T) for factors in noise]


def bumps(size: int) -> Float[Array, "size points"]:
    """The values at each pixel of Gaussians around equidistant points, scaled to a sum of squares of 1 per pixel."""
    spacing = 1.5 * SMOOTHNESS
    points = np.arange(-2 * SMOOTHNESS, size - 1 + 2 * SMOOTHNESS + spacing, spacing)
    heights = np.exp(-((np.arange(size)[:, None] - points[None]) ** 2) / (2 * SMOOTHNESS**2))
    return jnp.asarray(heights / np.sqrt((heights**2).sum(axis=1, keepdims=True)), jnp.result_type(float))


def distort(image: Float[Array, "rows columns"], distortion: Distortion, background: float | Array) -> Array:
    """The distorted image, by bilinear interpolation; pixels outside of the image are `background`."""
    middles = [(size - 1) / 2 for size in image.shape]
    rows, columns = (jnp.arange(size) - middle for size, middle in zip(image.shape, middles, strict=True))
    sources = [
        of_row * rows[:, None] + of_column * columns[None] + (middle + shift)
        for (of_row, of_column), middle, shift in zip(distortion.matrix, middles, distortion.shift, strict=True)
    ]
    if distortion.elastic is not None:
        fields = elastic_fields(key_of(distortion.elastic.seed), *image.shape)
        moves = [distortion.elastic.displacement * field for field in fields]
        sources = [source + move for source, move in zip(sources, moves, strict=True)]
    above: Array = jax.scipy.ndimage.map_coordinates(image - background, sources, order=1, mode="constant", cval=0.0)
    return above + background
