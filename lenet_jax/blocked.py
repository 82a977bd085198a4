"""The fast form of LeNet-5: `model.forward` for a batch, as matrix products over pixel blocks.

Convolutions are slow inside compiled loops on a CPU, and gathering each output's 5 x 5 inputs moves every pixel 25
times. Here neighbouring outputs are computed together, from the blocks of inputs that they share::

      input, 8 x 8 blocks of 4 x 4 pixels            C1, 7 x 7 tiles of 4 x 4 outputs x 6 maps
      +----+----+----+--                             +----+----+--
      |####|####|    |       [96, 64] @ 64 pixels    |####|    |       one tile needs 8 x 8 pixels,
      |####|####|    |     ---------------------->   |####|    |       which are 2 x 2 whole blocks
      +----+----+----+--                             +----+----+--
      |####|####|    |     rows of the matrix: the six 5 x 5 kernels, shifted to the
      |####|####|    |     16 places of the tile, zero elsewhere
      +----+----+----+--
      |    |    |    |     S2 pools each tile to 2 x 2 outputs x 6 maps. So S2 is a 7 x 7 grid of
                           2 x 2 blocks, and the same step again gives C3: a tile of 2 x 2 outputs (one
                           pooling window of S4) needs 6 x 6 inputs, which are 3 x 3 whole blocks.

The products do 2.1 times the multiply-adds of the convolutions, and no gathering.

**Grids.** An array here is [features, rows, columns, images]: images last, so that every shift along rows or columns
moves long contiguous pieces. Features of C1 are ordered (place in the pooling window, window, map), of C3 (place in the
pooling window, map). Pooling then combines four contiguous quarters, its result is already ordered as the next product
wants it, and S4 comes out as [map, row, column], which is how C5's kernel is stored.

The matrices are linear in the kernels, so the kernels' gradients come by themselves. Two derivatives are written by
hand, because XLA would pad every shifted piece to the whole grid and add them all.
"""

import functools

import jax
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

C1_WINDOWS = 4
"""Pooling windows in a tile of C1; a tile of C3 is one."""


@functools.cache
def shifts(block: int, blocks: int, windows: int) -> np.ndarray:
    """Which tap of the kernel connects an input of a tile with an output of it.

    Args:
      block: height and width of a block of inputs.
      blocks: a tile sees blocks x blocks of them.
      windows: a tile's outputs are windows x windows pooling windows.

    Returns:
      0 or 1, ``[4, windows^2, blocks^2, block^2, 25]``: place in the window, window, input block, pixel in it, tap.
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
    ordered = split.transpose(5, 7, 4, 6, 0, 2, 1, 3, 8)
    return ordered.reshape(PLACES, windows**2, blocks**2, block**2, TAPS)


def c1_matrix(kernel: Float[Array, "6 5 5"]) -> Float[Array, "96 64"]:
    """C1 as a matrix: rows (place, window, map), columns (block, pixel)."""
    taps = kernel.reshape(len(C1_TABLE), TAPS)
    return jnp.einsum("qwbpt,mt->qwmbp", shifts(BLOCK, 2, 2), taps).reshape(96, 64)


def c3_matrix(kernel: Float[Array, "connections 5 5"], architecture: Architecture) -> Float[Array, "64 216"]:
    """C3 as a matrix: rows (place, map), columns (block, window of S2 in it, map of S2); zero where not connected."""
    table, inputs = CONNECTIVITIES[architecture.connectivity], len(C1_TABLE)
    taps = dense_kernel(kernel, table, inputs).reshape(len(table), inputs, TAPS)
    return jnp.einsum("qbpt,mjt->qmbpj", shifts(2, 3, 1)[:, 0], taps).reshape(64, 216)


def to_grid(images: Float[Array, "batch 32 32"]) -> Float[Array, "16 8 8 batch"]:
    """Images cut into an 8 x 8 grid of blocks of 4 x 4 pixels."""
    batch, side = images.shape[0], images.shape[1] // BLOCK
    blocks = images.reshape(batch, side, BLOCK, side, BLOCK).transpose(2, 4, 1, 3, 0)
    return blocks.reshape(BLOCK**2, side, side, batch)


def shifted(grid: Float[Array, "..."], axis: int, blocks: int) -> Float[Array, "..."]:
    """The grid's `blocks` shifts along an axis, stacked in front."""
    size = grid.shape[axis] - blocks + 1
    return jnp.stack([jax.lax.slice_in_dim(grid, shift, shift + size, axis=axis) for shift in range(blocks)])


def shifted_back(gradient: Float[Array, "..."], axis: int, blocks: int) -> Float[Array, "..."]:
    """The gradient of `shifted`: every place of the grid collects the pieces that it went into, and no zeros."""
    size = gradient.shape[axis + 1]

    def collect(place: int) -> Array:
        pieces = [(shift, place - shift) for shift in range(blocks) if 0 <= place - shift < size]
        return functools.reduce(
            jnp.add, [jax.lax.index_in_dim(gradient[shift], at, axis, keepdims=False) for shift, at in pieces]
        )

    return jnp.stack([collect(place) for place in range(size + blocks - 1)], axis=axis)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def neighbourhoods(grid: Float[Array, "depth side side batch"], blocks: int) -> Float[Array, "features columns"]:
    """For every tile its blocks x blocks inputs below one another: [blocks^2 * depth, tiles * batch]."""
    features = blocks**2 * grid.shape[0]
    return shifted(shifted(grid, 2, blocks), 2, blocks).reshape(features, -1)


def neighbourhoods_forward(
    grid: Float[Array, "depth side side batch"], blocks: int
) -> tuple[Float[Array, "features columns"], tuple[int, ...]]:
    """`neighbourhoods`, and what its gradient needs."""
    return neighbourhoods(grid, blocks), grid.shape


def neighbourhoods_backward(
    blocks: int, shape: tuple[int, ...], gradient: Float[Array, "features columns"]
) -> tuple[Float[Array, "depth side side batch"]]:
    """The gradient of `neighbourhoods`, one axis after the other."""
    depth, side, _, batch = shape
    tiles = side - blocks + 1
    pieces = gradient.reshape(blocks, blocks, depth, tiles, tiles, batch)
    return (shifted_back(shifted_back(pieces, 2, blocks), 2, blocks),)


neighbourhoods.defvjp(neighbourhoods_forward, neighbourhoods_backward)


@jax.custom_vjp
def average_places(places: Float[Array, "4 features columns"]) -> Float[Array, "features columns"]:
    """The mean of the four places of every pooling window."""
    return (places[0] + places[1] + places[2] + places[3]) / PLACES


def average_places_forward(places: Float[Array, "4 features columns"]) -> tuple[Float[Array, "features columns"], None]:
    """`average_places`, whose gradient needs nothing else."""
    return average_places(places), None


def average_places_backward(
    _: None, gradient: Float[Array, "features columns"]
) -> tuple[Float[Array, "4 features columns"]]:
    """The gradient of `average_places`: a quarter to each place."""
    return (jnp.broadcast_to(gradient / PLACES, (PLACES, *gradient.shape)),)


average_places.defvjp(average_places_forward, average_places_backward)


def tiled(parameter: Float[Array, " maps"], times: int) -> Float[Array, "features 1"]:
    """One number a map, repeated for a tile's places and windows, as a column."""
    return jnp.tile(parameter, times)[:, None]


def pool(
    tiles: Float[Array, "features columns"], parameters: Subsampling | None, windows: int, architecture: Architecture
) -> Float[Array, "features//4 columns"]:
    """S2 or S4 on tiles whose features are (place, window, map): the result's are (window, map)."""
    places = tiles.reshape(PLACES, -1, tiles.shape[1])
    if architecture.subsampling == "max":
        return places.max(axis=0)
    average = average_places(places)
    if parameters is None:
        return average
    linear = tiled(parameters.coefficient, windows) * average + tiled(parameters.bias, windows)
    return ACTIVATIONS[architecture.activation](linear)


def forward_grid(
    params: Params, grid: Float[Array, "16 8 8 batch"], architecture: Architecture
) -> Float[Array, "batch classes"]:
    """`forward`, from images that `to_grid` has cut."""
    sigma = ACTIVATIONS[architecture.activation]
    batch = grid.shape[-1]
    c1 = sigma(c1_matrix(params.c1.kernel) @ neighbourhoods(grid, 2) + tiled(params.c1.bias, PLACES * C1_WINDOWS))
    s2 = pool(c1, params.s2, C1_WINDOWS, architecture).reshape(-1, 7, 7, batch)
    c3 = sigma(c3_matrix(params.c3.kernel, architecture) @ neighbourhoods(s2, 3) + tiled(params.c3.bias, PLACES))
    s4 = pool(c3, params.s4, 1, architecture).reshape(-1, batch)
    c5 = sigma(s4.T @ params.c5.kernel.reshape(len(s4), -1) + params.c5.bias[None])
    f6 = sigma(c5 @ params.f6.kernel + params.f6.bias[None])
    return f6 @ params.output.kernel + params.output.bias[None]


def forward(
    params: Params, images: Float[Array, "batch 32 32"], architecture: Architecture
) -> Float[Array, "batch classes"]:
    """`model.forward` for each image of a batch, equal to it up to rounding."""
    return forward_grid(params, to_grid(images), architecture)
