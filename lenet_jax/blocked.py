"""The fast form of LeNet-5: `model.forward` for a batch, as matrix products over pixel blocks.

Convolutions are slow inside compiled loops on a CPU, and gathering each output's 5 x 5 inputs moves every pixel 25
times. Here neighbouring outputs are computed together, from the blocks of inputs that they share::

      input, 8 x 8 blocks of 4 x 4 pixels            C1, 7 x 7 tiles of 4 x 4 outputs x 6 maps
      +----+----+----+--                             +----+----+--
      |####|####|    |     [64, 96].T @ 64 pixels    |####|    |       one tile needs 8 x 8 pixels,
      |####|####|    |     ---------------------->   |####|    |       which are 2 x 2 whole blocks
      +----+----+----+--                             +----+----+--
      |####|####|    |     columns of the matrix: the six 5 x 5 kernels, shifted to the
      |####|####|    |     16 outputs of the tile, zero elsewhere
      +----+----+----+--
      |    |    |    |     S2 pools each tile to 2 x 2 outputs x 6 maps. So S2 is a 7 x 7 grid of
                           2 x 2 blocks, and the same step again gives C3: a tile of 2 x 2 outputs (one
                           pooling window of S4) needs 6 x 6 inputs, which are 3 x 3 whole blocks.

The products do 2.4 times the multiply-adds of the convolutions (with C3's table), and no gathering.

**Grids.** Inputs lie as [maps, rows in block, columns in block, block rows, block columns, images]: images last, so
that every shift along block rows or columns moves long contiguous pieces. Outputs of a tile are ordered (place in the
pooling window, map, window): pooling combines four contiguous quarters, its result is already the grid that the next
product wants, and S4 comes out as [map, row, column], which is how C5's kernel is stored. Nothing is transposed but the
images themselves.

The matrices are made of shifted kernels, so the kernels' gradients come by themselves. Two derivatives are written by
hand, because XLA would pad every shifted piece to the whole grid and add them all.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lenet_jax.layers import ACTIVATIONS, KERNEL, Convolution, Subsampling, Table, dense_kernel
from lenet_jax.model import C1_TABLE, CONNECTIVITIES, Architecture, Params

BLOCK = 4
"""Height and width of a block of pixels; S2's blocks are half as large, as it is."""

PLACES = 4
"""Places in a 2 x 2 pooling window."""


def to_grid(images: Float[Array, "batch 32 32"]) -> Float[Array, "1 4 4 8 8 batch"]:
    """Images cut into an 8 x 8 grid of blocks of 4 x 4 pixels."""
    batch, side = images.shape[0], images.shape[1] // BLOCK
    return images.reshape(batch, side, BLOCK, side, BLOCK).transpose(2, 4, 1, 3, 0)[None]


def tile_matrix(kernels: Float[Array, "outputs inputs 5 5"], windows: int) -> Float[Array, "features sums"]:
    """A convolution as a matrix, for a tile of windows x windows pooling windows of outputs.

    Rows are ordered (input map, row, column) of the tile's inputs, columns (place in the window, output map, window):
    XLA's products on a CPU are up to a quarter faster when the left factor is the one to transpose.
    """
    outputs, inputs = kernels.shape[:2]
    margin = 2 * windows - 1
    pairs = list(itertools.product(range(windows), repeat=2))
    outputs_last = kernels.transpose(1, 2, 3, 0)

    def shift(i: int, j: int) -> Array:
        return jnp.pad(outputs_last, ((0, 0), (i, margin - i), (j, margin - j), (0, 0)))

    places = [
        jnp.stack([shift(2 * row + i, 2 * column + j) for row, column in pairs], axis=-1)
        for i, j in itertools.product(range(2), repeat=2)
    ]
    return jnp.stack(places, axis=3).reshape(inputs * (KERNEL + margin) ** 2, PLACES * outputs * windows**2)


def shifted(grid: Float[Array, "..."], axis: int, blocks: int, at: int) -> Float[Array, "..."]:
    """The grid's `blocks` shifts along an axis, stacked as a new axis `at`, in front of it."""
    size = grid.shape[axis] - blocks + 1
    pieces = [jax.lax.slice_in_dim(grid, shift, shift + size, axis=axis) for shift in range(blocks)]
    return jnp.stack(pieces, axis=at)


def shifted_back(gradient: Float[Array, "..."], axis: int, blocks: int, at: int) -> Float[Array, "..."]:
    """The gradient of `shifted`: every place of the grid collects the pieces that it went into, and no zeros."""
    size = gradient.shape[axis + 1]
    pieces = [jax.lax.index_in_dim(gradient, shift, at, keepdims=False) for shift in range(blocks)]

    def collect(place: int) -> Array:
        met = [(shift, place - shift) for shift in range(blocks) if 0 <= place - shift < size]
        return functools.reduce(
            jnp.add, [jax.lax.index_in_dim(pieces[shift], from_, axis, keepdims=False) for shift, from_ in met]
        )

    return jnp.stack([collect(place) for place in range(size + blocks - 1)], axis=axis)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def neighbourhoods(
    grid: Float[Array, "maps block block side side batch"], blocks: int
) -> Float[Array, "features columns"]:
    """For every tile its blocks x blocks inputs below one another: [(map, row, column), (tile, image)]."""
    maps, block = grid.shape[:2]
    rows = shifted(grid, 3, blocks, at=1)
    both = shifted(rows, 5, blocks, at=3)
    return both.reshape(maps * (blocks * block) ** 2, -1)


def neighbourhoods_forward(
    grid: Float[Array, "maps block block side side batch"], blocks: int
) -> tuple[Float[Array, "features columns"], tuple[int, ...]]:
    """`neighbourhoods`, and what its gradient needs."""
    return neighbourhoods(grid, blocks), grid.shape


def neighbourhoods_backward(
    blocks: int, shape: tuple[int, ...], gradient: Float[Array, "features columns"]
) -> tuple[Float[Array, "maps block block side side batch"]]:
    """The gradient of `neighbourhoods`, one axis after the other."""
    maps, block, _, side, _, batch = shape
    tiles = side - blocks + 1
    both = gradient.reshape(maps, blocks, block, blocks, block, tiles, tiles, batch)
    rows = shifted_back(both, 5, blocks, at=3)
    return (shifted_back(rows, 3, blocks, at=1),)


neighbourhoods.defvjp(neighbourhoods_forward, neighbourhoods_backward)


@jax.custom_vjp
def sum_places(places: Float[Array, "4 maps windows columns"]) -> Float[Array, "maps windows columns"]:
    """The sum of the four places of every pooling window."""
    return places[0] + places[1] + places[2] + places[3]


def sum_places_forward(
    places: Float[Array, "4 maps windows columns"],
) -> tuple[Float[Array, "maps windows columns"], None]:
    """`sum_places`, whose gradient needs nothing else."""
    return sum_places(places), None


def sum_places_backward(
    _: None, gradient: Float[Array, "maps windows columns"]
) -> tuple[Float[Array, "4 maps windows columns"]]:
    """The gradient of `sum_places`: the same to each place."""
    return (jnp.broadcast_to(gradient, (PLACES, *gradient.shape)),)


sum_places.defvjp(sum_places_forward, sum_places_backward)


def convolve(
    grid: Float[Array, "inputs block block side side batch"],
    parameters: Convolution,
    table: Table,
    blocks: int,
    windows: int,
) -> Float[Array, "4 outputs {windows}**2 columns"]:
    """`layers.convolve` on a grid: [place, output map, window, (tile, image)].

    Args:
      grid: the inputs.
      parameters: of the layer.
      table: of the layer.
      blocks: a tile sees blocks x blocks of them.
      windows: its outputs are windows x windows pooling windows.
    """
    matrix = tile_matrix(dense_kernel(parameters.kernel, table, grid.shape[0]), windows)
    sums = matrix.T @ neighbourhoods(grid, blocks)
    return sums.reshape(PLACES, len(table), windows**2, -1) + parameters.bias[None, :, None, None]


def pool(
    places: Float[Array, "4 maps windows columns"], parameters: Subsampling | None, architecture: Architecture
) -> Float[Array, "maps windows columns"]:
    """`model.pool` on the outputs of tiles."""
    if architecture.subsampling == "max":
        return places.max(axis=0)
    total = sum_places(places)
    if parameters is None:
        return total / PLACES
    # Flat, because XLA sums the gradients of a product with an axis of length 1 ten times slower.
    flat = total.reshape(len(total), -1)
    linear = (parameters.coefficient / PLACES)[:, None] * flat + parameters.bias[:, None]
    return ACTIVATIONS[architecture.activation](linear).reshape(total.shape)


def forward_grid(
    params: Params, grid: Float[Array, "1 4 4 8 8 batch"], architecture: Architecture
) -> Float[Array, "batch classes"]:
    """`forward`, from images that `to_grid` has cut."""
    sigma = ACTIVATIONS[architecture.activation]
    batch = grid.shape[-1]
    c1 = sigma(convolve(grid, params.c1, C1_TABLE, blocks=2, windows=2))
    s2 = pool(c1, params.s2, architecture).reshape(len(C1_TABLE), 2, 2, 7, 7, batch)
    c3 = sigma(convolve(s2, params.c3, CONNECTIVITIES[architecture.connectivity], blocks=3, windows=1))
    s4 = pool(c3, params.s4, architecture).reshape(-1, batch)
    c5 = sigma(s4.T @ params.c5.kernel.reshape(len(s4), -1) + params.c5.bias[None])
    f6 = sigma(c5 @ params.f6.kernel + params.f6.bias[None])
    return f6 @ params.output.kernel + params.output.bias[None]


def forward(
    params: Params, images: Float[Array, "batch 32 32"], architecture: Architecture
) -> Float[Array, "batch classes"]:
    """`model.forward` for each image of a batch, equal to it up to rounding."""
    return forward_grid(params, to_grid(images), architecture)
