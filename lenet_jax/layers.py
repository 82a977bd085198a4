"""The layers of LeNet-5 for a single image, and its activation functions.

A layer here is only the linear part: `model.py` applies the squashing function, as the equations do. Feature maps are
``[maps, rows, columns]``. Equations: LeCun et al. 1998, section II.B.
"""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lenet_jax.registry import Registry

KERNEL_SIZE = 5
"""Height and width of every convolution kernel, in pixels."""

PRECISION = "highest"
"""Precision of matrix products: float32. JAX's default rounds factors to TF32 on GPUs and to bfloat16 on TPUs."""

Table = tuple[tuple[int, ...], ...]
"""A connection table: for each output map, its input maps in ascending order."""


@flax.struct.dataclass
class Convolution:
    """One kernel per connection of a table, one bias per output map."""

    kernel: Float[Array, "connections 5 5"]
    bias: Float[Array, " outputs"]


@flax.struct.dataclass
class Subsampling:
    """One coefficient and one bias per feature map."""

    coefficient: Float[Array, " maps"]
    bias: Float[Array, " maps"]


@flax.struct.dataclass
class Dense:
    """One weight per pair of an input (of any shape) and a unit, one bias per unit."""

    kernel: Float[Array, "*inputs units"]
    bias: Float[Array, " units"]


def connections(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """The output map and the input map of each connection, as two index arrays ``[connections]``."""
    pairs = np.array([(output, source) for output, sources in enumerate(table) for source in sources])
    return pairs[:, 0], pairs[:, 1]


def dense_kernel(
    kernel: Float[Array, "connections 5 5"], table: Table, inputs: int
) -> Float[Array, "outputs {inputs} 5 5"]:
    """The kernels by output and input map; zero where the table has no connection."""
    shape = (len(table), inputs, KERNEL_SIZE, KERNEL_SIZE)
    return jnp.zeros(shape, kernel.dtype).at[connections(table)].set(kernel)


def product(left: Float[Array, "rows terms"], right: Float[Array, "terms columns"]) -> Float[Array, "rows columns"]:
    """The matrix product, in `PRECISION`."""
    return jnp.matmul(left, right, precision=PRECISION)


def convolve(
    maps: Float[Array, "inputs rows columns"], parameters: Convolution, table: Table
) -> Float[Array, "outputs rows-4 columns-4"]:
    """Valid 5 x 5 correlation over a connection table, with bias: the argument of sigma in C1 and C3.

    >>> parameters = Convolution(kernel=jnp.ones((1, 5, 5)), bias=jnp.array([0.5]))
    >>> convolve(jnp.ones((1, 6, 6)), parameters, table=((0,),)).tolist()
    [[[25.5, 25.5], [25.5, 25.5]]]
    """
    inputs, rows, columns = maps.shape[0], maps.shape[1] - KERNEL_SIZE + 1, maps.shape[2] - KERNEL_SIZE + 1
    # One matrix product over shifted slices: XLA's convolution is many times slower inside a loop on a CPU.
    shifted = [maps[:, k : k + rows, m : m + columns] for k in range(KERNEL_SIZE) for m in range(KERNEL_SIZE)]
    patches = jnp.stack(shifted, axis=1).reshape(inputs * KERNEL_SIZE**2, rows * columns)
    kernel = dense_kernel(parameters.kernel, table, inputs).reshape(len(table), inputs * KERNEL_SIZE**2)
    return product(kernel, patches).reshape(len(table), rows, columns) + parameters.bias[:, None, None]


def windows(maps: Float[Array, "maps rows columns"]) -> Float[Array, "maps rows//2 2 columns//2 2"]:
    """The maps cut into non-overlapping windows of 2 x 2."""
    count, rows, columns = maps.shape
    return maps.reshape(count, rows // 2, 2, columns // 2, 2)


def average_windows(maps: Float[Array, "maps rows columns"]) -> Float[Array, "maps rows//2 columns//2"]:
    """The specification's avgpool: the mean of each 2 x 2 window."""
    return windows(maps).mean(axis=(2, 4))


def maximum_windows(maps: Float[Array, "maps rows columns"]) -> Float[Array, "maps rows//2 columns//2"]:
    """The maximum of each 2 x 2 window."""
    return windows(maps).max(axis=(2, 4))


def subsample(
    maps: Float[Array, "maps rows columns"], parameters: Subsampling, window: str
) -> Float[Array, "maps rows//2 columns//2"]:
    """The argument of sigma in S2 and S4: beta_i x (``mean`` or ``sum`` of each 2 x 2 window) + b_i.

    The specification takes the mean, LeCun et al. (1998) the sum.

    >>> parameters = Subsampling(coefficient=jnp.array([2.0]), bias=jnp.array([0.5]))
    >>> subsample(jnp.arange(16.0).reshape(1, 4, 4), parameters, window="mean").tolist()
    [[[5.5, 9.5], [21.5, 25.5]]]
    """
    totals = average_windows(maps) * (4 if window == "sum" else 1)
    return parameters.coefficient[:, None, None] * totals + parameters.bias[:, None, None]


def dense(inputs: Float[Array, "*inputs"], parameters: Dense) -> Float[Array, " units"]:
    """Each unit's weighted sum of all inputs, of any shape, plus its bias."""
    return jnp.tensordot(inputs, parameters.kernel, axes=inputs.ndim, precision=PRECISION) + parameters.bias


BITMAP_SHAPE = (12, 7)
"""Rows and columns of the bitmaps of digits that are the centers of the RBF units."""

BITMAP_ROWS: tuple[tuple[int, ...], ...] = (
    (62, 0, 28, 54, 99, 99, 99, 99, 54, 28, 0, 0),
    (12, 28, 60, 12, 12, 12, 12, 12, 12, 63, 0, 0),
    (62, 0, 62, 99, 67, 6, 28, 48, 96, 127, 0, 0),
    (127, 3, 6, 12, 30, 3, 3, 3, 99, 62, 0, 0),
    (62, 0, 0, 51, 51, 115, 99, 99, 103, 63, 3, 3),
    (62, 0, 127, 96, 96, 60, 30, 3, 99, 62, 0, 0),
    (30, 48, 96, 96, 126, 115, 99, 99, 115, 62, 0, 0),
    (127, 3, 3, 6, 12, 12, 24, 24, 24, 24, 0, 0),
    (62, 99, 99, 99, 62, 99, 99, 99, 99, 62, 0, 0),
    (62, 103, 99, 99, 103, 63, 3, 3, 6, 60, 0, 0),
)
"""The digits 0 to 9, twelve rows each; a row is a 7-bit number, its highest bit the leftmost pixel (fig. 3)."""

BITMAPS: np.ndarray = np.where(
    (np.array(BITMAP_ROWS)[:, :, None] >> np.arange(BITMAP_SHAPE[1])[::-1]) & 1, np.float32(1), np.float32(-1)
).reshape(len(BITMAP_ROWS), -1)
"""Fixed centers of the RBF units [10, 84]: +1 for a black pixel, -1 for a white one."""


def rbf(inputs: Float[Array, "*batch 84"], centers: Float[np.ndarray, "classes 84"]) -> Float[Array, "*batch classes"]:
    """Euclidean radial basis functions, y_i = sum_j (x_j - w_ij)^2: penalties; the smallest marks the class."""
    aligned = jnp.asarray(centers, inputs.dtype).reshape((1,) * (inputs.ndim - 1) + centers.shape)
    return jnp.square(inputs[..., None, :] - aligned).sum(axis=-1)


def scaled_tanh(a: Array) -> Array:
    """f(a) = 1.7159 tanh(2a/3): f(1) = 1 and f(-1) = -1 (LeCun et al. 1998, appendix A)."""
    return 1.7159 * jnp.tanh(2 / 3 * a)


Activation = Callable[[Array], Array]
"""An array of any shape -> the squashed array, elementwise. JAX differentiates it."""

ACTIVATIONS: Registry[Activation] = Registry(
    "activation",
    sigmoid=jax.nn.sigmoid,
    tanh=jnp.tanh,
    scaled_tanh=scaled_tanh,
    relu=jax.nn.relu,
)
"""Squashing functions by name. An experiment file can add one: ``ACTIVATIONS["gelu"] = jax.nn.gelu``."""
