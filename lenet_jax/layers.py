"""The layers of LeNet-5, each for one image, and its activation functions.

A layer here is the linear part alone: `model.py` applies the squashing function, as the equations do. Feature maps are
``[maps, rows, columns]``. Equations: LeCun et al. 1998, section II.B.
"""

from collections.abc import Callable, Mapping

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

KERNEL = 5
"""Height and width of every convolution kernel."""

Table = tuple[tuple[int, ...], ...]
"""A connection table: for each output map, the input maps that it sees, rising."""


@flax.struct.dataclass
class Convolution:
    """A kernel for each connection of a table, a bias for each output map."""

    kernel: Float[Array, "connections 5 5"]
    bias: Float[Array, " outputs"]


@flax.struct.dataclass
class Subsampling:
    """One coefficient and one bias a feature map."""

    coefficient: Float[Array, " maps"]
    bias: Float[Array, " maps"]


@flax.struct.dataclass
class Dense:
    """A weight for each pair of an input (any shape) and a unit, a bias for each unit."""

    kernel: Float[Array, "*inputs units"]
    bias: Float[Array, " units"]


def connections(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """The table as two index arrays ``[connections]``: output map and input map of each connection."""
    pairs = [(output, source) for output, sources in enumerate(table) for source in sources]
    return np.array([output for output, _ in pairs]), np.array([source for _, source in pairs])


def dense_kernel(
    kernel: Float[Array, "connections 5 5"], table: Table, inputs: int
) -> Float[Array, "outputs {inputs} 5 5"]:
    """Kernels laid out by output and input map, zero where the table has no connection."""
    shape = (len(table), inputs, KERNEL, KERNEL)
    return jnp.zeros(shape, kernel.dtype).at[connections(table)].set(kernel)


def convolve(
    maps: Float[Array, "inputs rows columns"], parameters: Convolution, table: Table
) -> Float[Array, "outputs rows-4 columns-4"]:
    """Valid 5 x 5 correlation over a connection table, with bias: the argument of sigma in C1 and C3.

    Written as one matrix product over shifted slices: XLA's convolution is many times slower inside a loop on a CPU.
    """
    inputs, rows, columns = maps.shape[0], maps.shape[1] - KERNEL + 1, maps.shape[2] - KERNEL + 1
    shifted = [maps[:, k : k + rows, m : m + columns] for k in range(KERNEL) for m in range(KERNEL)]
    patches = jnp.stack(shifted, axis=1).reshape(inputs * KERNEL**2, rows * columns)
    kernel = dense_kernel(parameters.kernel, table, inputs).reshape(len(table), inputs * KERNEL**2)
    return (kernel @ patches).reshape(len(table), rows, columns) + parameters.bias[:, None, None]


def windows(maps: Float[Array, "maps rows columns"]) -> Float[Array, "maps rows//2 2 columns//2 2"]:
    """The maps cut into windows of 2 x 2, which don't overlap."""
    count, rows, columns = maps.shape
    return maps.reshape(count, rows // 2, 2, columns // 2, 2)


def average_windows(maps: Float[Array, "maps rows columns"]) -> Float[Array, "maps rows//2 columns//2"]:
    """The specification's avgpool: the mean of each 2 x 2 window."""
    return windows(maps).mean(axis=(2, 4))


def maximum_windows(maps: Float[Array, "maps rows columns"]) -> Float[Array, "maps rows//2 columns//2"]:
    """The largest number of each 2 x 2 window."""
    return windows(maps).max(axis=(2, 4))


def subsample(
    maps: Float[Array, "maps rows columns"], parameters: Subsampling, window: str
) -> Float[Array, "maps rows//2 columns//2"]:
    """S2's and S4's argument: beta_i x the ``mean`` (the specification) or ``sum`` (1998) of each window, + b_i."""
    totals = average_windows(maps) * (4 if window == "sum" else 1)
    return parameters.coefficient[:, None, None] * totals + parameters.bias[:, None, None]


def dense(inputs: Float[Array, "*inputs"], parameters: Dense) -> Float[Array, " units"]:
    """Every unit's weighted sum of all inputs, whatever their shape, with bias."""
    return jnp.tensordot(inputs, parameters.kernel, axes=inputs.ndim) + parameters.bias


BITMAP_SHAPE = (12, 7)
"""Rows and columns of the pictures of digits that RBF units hold."""

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
"""The digits 0 to 9, twelve rows each, a row as a 7-bit number, leftmost pixel the highest bit (fig. 3)."""

BITMAPS: np.ndarray = np.where(
    (np.array(BITMAP_ROWS)[:, :, None] >> np.arange(BITMAP_SHAPE[1])[::-1]) & 1, np.float32(1), np.float32(-1)
).reshape(len(BITMAP_ROWS), -1)
"""Centres of the RBF units [10, 84]: black pixels +1, white ones -1. Nothing trains them."""


def rbf(inputs: Float[Array, "*batch 84"], centers: Float[np.ndarray, "classes 84"]) -> Float[Array, "*batch classes"]:
    """Euclidean radial basis functions, y_i = sum_j (x_j - w_ij)^2: penalties, of which the smallest wins."""
    aligned = jnp.asarray(centers, inputs.dtype).reshape((1,) * (inputs.ndim - 1) + centers.shape)
    return jnp.square(inputs[..., None, :] - aligned).sum(axis=-1)


def scaled_tanh(a: Array) -> Array:
    """f(a) = 1.7159 tanh(2a/3): f(1) = 1 and f(-1) = -1 (LeCun et al. 1998, appendix A)."""
    return 1.7159 * jnp.tanh(2 / 3 * a)


ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "scaled_tanh": scaled_tanh,
    "relu": jax.nn.relu,
}
"""Squashing functions by name. They work elementwise on any shape."""
