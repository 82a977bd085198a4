"""The fast form of LeNet-5: `model.forward` for a batch, as matrix products over pixel blocks.

Convolutions are slow inside compiled loops on a CPU, and gathering each output's 5 x 5 inputs moves every pixel 25
times. Here neighbouring outputs are computed together, from the block of inputs that they share::

      input, 8 x 8 blocks of 4 x 4 pixels            C1, 7 x 7 tiles of 4 x 4 outputs x 6 maps
      +----+----+----+--                             +----+----+--
      |####|####|    |       64 pixels @ [64, 96]    |####|    |       one tile needs 8 x 8 pixels,
      |####|####|    |     ---------------------->   |####|    |       which are 2 x 2 whole blocks
      +----+----+----+--                             +----+----+--
      |####|####|    |     columns of the matrix: the six 5 x 5 kernels, shifted to
      |####|####|    |     the 16 places of the tile, zero elsewhere
      +----+----+----+--
      |    |    |    |     S2 pools each tile to 2 x 2 outputs x 6 maps. So S2 is a 7 x 7 grid of
                           2 x 2 blocks, and the same step again gives C3: a tile of 2 x 2 outputs (one
                           pooling window of S4) needs 6 x 6 inputs, which are 3 x 3 whole blocks.

The products do 2.1 times the multiply-adds of the convolutions, and no gathering. C1's columns are ordered (place in
the pooling window, window, map), C3's (place in the pooling window, map): pooling is then a mean over contiguous
groups, its result is already ordered as the next product wants it, and nothing is ever transposed.

The matrices are linear in the kernels, so gradients with respect to the kernels come by themselves.
"""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lenet_jax.layers import ACTIVATIONS, KERNEL, Subsampling, dense_kernel
from lenet_jax.model import C1_TABLE, CONNECTIVITIES, Architecture, Params

BLOCK = 4
"""Height and width of a block of pixels, and of a tile of C1."""

PLACES = 4
"""Places in a 2 x 2 pooling window."""

TAPS = KERNEL**2


@functools.cache
def shifts(block: int, blocks: int, windows: int) -> np.ndarray:
    """Which tap of the kernel connects an input of a tile with an output of it.

    Args:
      block: height and width of a block of inputs.
      blocks: a tile sees blocks x blocks of them.
      windows: a tile's outputs are windows x windows pooling windows.

    Returns:
      0 or 1, ``[blocks^2, block^2, 4, windows^2, 25]``: input block, pixel in it, place in the window, window, tap.
    """
    outputs = 2 * windows
    taps = np.zeros((block * blocks, block * blocks, outputs, outputs, KERNEL, KERNEL), np.float32)
    for i in range(outputs):
        for j in range(outputs):
            for k in range(KERNEL):
                for m in range(KERNEL):
                    taps[i + k, j + m, i, j, k, m] = 1
    # rows (block, pixel), columns (block, pixel), output rows (window, place), output columns (window, place), taps
    split = taps.reshape(blocks, block, blocks, block, windows, 2, windows, 2, TAPS)
    ordered = split.transpose(0, 2, 1, 3, 5, 7, 4, 6, 8)
    return ordered.reshape(blocks**2, block**2, PLACES, windows**2, TAPS)


def first_matrix(kernel: Float[Array, "6 5 5"]) -> Float[Array, "64 96"]:
    """C1 as a matrix: rows (block, pixel), columns (place, window, map)."""
    taps = kernel.reshape(len(C1_TABLE), TAPS)
    return jnp.einsum("bpqwt,mt->bpqwm", shifts(BLOCK, 2, 2), taps).reshape(64, 96)


def second_matrix(kernel: Float[Array, "connections 5 5"], architecture: Architecture) -> Float[Array, "216 64"]:
    """C3 as a matrix: rows (block, window of S2 in it, map of S2), columns (place, map); zero where not connected."""
    table, inputs = CONNECTIVITIES[architecture.connectivity], len(C1_TABLE)
    taps = dense_kernel(kernel, table, inputs).reshape(len(table), inputs, TAPS)
    matrix = jnp.einsum("bpqt,mjt->bpjqm", shifts(2, 3, 1)[:, :, :, 0], taps)
    return matrix.reshape(9 * 4 * inputs, PLACES * len(table))


def to_blocks(images: Float[Array, "batch 32 32"]) -> Float[Array, "batch 8 8 16"]:
    """Images cut into an 8 x 8 grid of blocks of 4 x 4 pixels."""
    batch, side = images.shape[0], images.shape[1] // BLOCK
    return images.reshape(batch, side, BLOCK, side, BLOCK).swapaxes(2, 3).reshape(batch, side, side, BLOCK**2)


def neighbourhoods(grid: Float[Array, "batch side side depth"], blocks: int) -> Float[Array, "rows columns"]:
    """For every tile, its blocks x blocks inputs side by side: [batch * tiles, blocks^2 * depth]."""
    side = grid.shape[1] - blocks + 1
    shifted = [grid[:, i : i + side, j : j + side] for i in range(blocks) for j in range(blocks)]
    return jnp.concatenate(shifted, axis=-1).reshape(-1, blocks**2 * grid.shape[-1])


def affine(
    inputs: Float[Array, "rows inputs"], matrix: Float[Array, "inputs units"], bias: Float[Array, " units"]
) -> Float[Array, "rows units"]:
    """The affine map: inputs @ matrix + bias."""
    return inputs @ matrix + bias[None]


def pool(
    tiles: Float[Array, "rows columns"], parameters: Subsampling | None, maps: int, architecture: Architecture
) -> Float[Array, "rows columns//4"]:
    """S2 or S4 on tiles whose columns are (place, window, map): the result's are (window, map)."""
    places = tiles.reshape(len(tiles), PLACES, -1)
    if architecture.subsampling == "max":
        return places.max(axis=1)
    average = places.mean(axis=1)
    if parameters is None:
        return average
    windows = average.shape[1] // maps
    coefficient, bias = jnp.tile(parameters.coefficient, windows), jnp.tile(parameters.bias, windows)
    return ACTIVATIONS[architecture.activation](average * coefficient[None] + bias[None])


def forward(
    params: Params, images: Float[Array, "batch 32 32"], architecture: Architecture
) -> Float[Array, "batch classes"]:
    """`model.forward` for each image of a batch, equal to it up to rounding."""
    sigma = ACTIVATIONS[architecture.activation]
    batch, maps1, maps3 = len(images), len(C1_TABLE), len(CONNECTIVITIES[architecture.connectivity])
    c1_bias, c3_bias = jnp.tile(params.c1.bias, BLOCK**2), jnp.tile(params.c3.bias, PLACES)
    c1 = sigma(affine(neighbourhoods(to_blocks(images), 2), first_matrix(params.c1.kernel), c1_bias))
    s2 = pool(c1, params.s2, maps1, architecture).reshape(batch, 7, 7, 4 * maps1)
    c3 = sigma(affine(neighbourhoods(s2, 3), second_matrix(params.c3.kernel, architecture), c3_bias))
    s4 = pool(c3, params.s4, maps3, architecture).reshape(batch, 25 * maps3)
    # C5's kernel is stored as [map, row, column, unit]; here S4 is (row, column, map).
    c5_matrix = jnp.moveaxis(params.c5.kernel, 0, 2).reshape(25 * maps3, -1)
    c5 = sigma(affine(s4, c5_matrix, params.c5.bias))
    f6 = sigma(affine(c5, params.f6.kernel, params.f6.bias))
    return affine(f6, params.output.kernel, params.output.bias)
