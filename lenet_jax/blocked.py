"""The fast form of LeNet-5: `model.forward` for a batch, as matrix products over pixel blocks.

Convolutions are slow inside compiled loops on a CPU, and gathering each output's 5 x 5 inputs moves every pixel 25
times. Here neighbouring outputs are computed together, from the blocks of inputs that they share:

      input, 8 x 16 blocks of 4 x 2 pixels           C1, 7 x 14 tiles of 4 x 2 outputs x 6 maps
      +--+--+--+--+--                                +--+--+--+--
      |##|##|##|  |       [48, 48].T @ 48 pixels     |##|  |  |       one tile needs 8 x 6 pixels,
      |##|##|##|  |     ---------------------->      |##|  |  |       which are 2 x 3 whole blocks
      +--+--+--+--+--                                +--+--+--+--
      |##|##|##|  |     columns of the matrix: the six 5 x 5 kernels, shifted to the
      |##|##|##|  |     8 outputs of the tile, zero elsewhere
      +--+--+--+--+--
      |  |  |  |  |     S2 pools each tile to 2 x 1 outputs x 6 maps. Two tiles side by side are 2 x 2 of them: S2 is
                        a 7 x 7 grid of such blocks, and the same step again gives C3: a tile of 2 x 2 outputs (one
                        pooling window of S4) needs 6 x 6 inputs, which are 3 x 3 whole blocks.

The products do 2.1 times the multiply-adds of the convolutions (with C3's table). Larger tiles gather less and
multiply more; these are the fastest that were tried.

**Grids.** Inputs lie as [maps, rows in block, block rows, block columns, columns in block, images]: images last, so
that every shift along block rows or columns moves contiguous pieces. Outputs of a tile are ordered (place in the
pooling window, map, window): pooling combines four contiguous quarters, its result is already the grid that the next
product wants, and S4 comes out as [map, row, column], which is how C5's kernel is stored. Nothing is transposed but the
images themselves.

The matrices are made of shifted kernels, so the kernels' gradients come by themselves. Two derivatives are written by
hand, because XLA would pad every shifted piece to the whole grid and add them all.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lenet_jax.layers import ACTIVATIONS, BITMAPS, KERNEL, Convolution, Dense, Subsampling, Table, dense_kernel, rbf
from lenet_jax.model import C1_TABLE, CONNECTIVITIES, Architecture, Params

PLACES = 4
"""Places in a 2 x 2 pooling window."""


def to_grid(images: Float[Array, "batch 32 32"]) -> Float[Array, "1 4 8 16 2 batch"]:
    """Images cut into 8 x 16 blocks of 4 x 2 pixels."""
    return images.reshape(-1, 8, 4, 16, 2).transpose(2, 1, 3, 4, 0)[None]


def tile_matrix(kernels: Float[Array, "outputs inputs 5 5"], windows: tuple[int, int]) -> Float[Array, "features sums"]:
    """A convolution as a matrix, for a tile of so many rows and columns of pooling windows.

    Rows are ordered (input map, row, column) of the tile's inputs, columns (place in the window, output map, window):
    XLA's products on a CPU are faster when the left factor is the one to transpose.
    """
    inputs = kernels.shape[1]
    rows, columns = windows
    down, right = 2 * rows - 1, 2 * columns - 1  # how far kernels are shifted at most
    pairs = list(itertools.product(range(rows), range(columns)))
    outputs_last = kernels.transpose(1, 2, 3, 0)

    def shift(i: int, j: int) -> Array:
        return jnp.pad(outputs_last, ((0, 0), (i, down - i), (j, right - j), (0, 0)))

    places = [
        jnp.stack([shift(2 * row + i, 2 * column + j) for row, column in pairs], axis=-1)
        for i, j in itertools.product(range(2), repeat=2)
    ]
    return jnp.stack(places, axis=3).reshape(inputs * (KERNEL + down) * (KERNEL + right), -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def neighbourhoods(
    grid: Float[Array, "maps height down across width batch"], tall: int, wide: int
) -> Float[Array, "features columns"]:
    """For every tile its tall x wide blocks below one another: [(map, row, column), (tile, image)]."""
    maps, height, down, across, width, _ = grid.shape
    rows = jnp.stack([grid[:, :, shift : shift + down - tall + 1] for shift in range(tall)], axis=1)
    # Columns of a block come to stand before the tiles on the way: afterwards it would be a copy of its own.
    pieces = [jnp.moveaxis(rows[:, :, :, :, shift : shift + across - wide + 1], 5, 3) for shift in range(wide)]
    return jnp.stack(pieces, axis=3).reshape(maps * tall * height * wide * width, -1)


def neighbourhoods_forward(
    grid: Float[Array, "maps height down across width batch"], tall: int, wide: int
) -> tuple[Float[Array, "features columns"], tuple[int, ...]]:
    """`neighbourhoods`, and what its gradient needs."""
    return neighbourhoods(grid, tall, wide), grid.shape


def neighbourhoods_backward(
    tall: int, wide: int, shape: tuple[int, ...], gradient: Float[Array, "features columns"]
) -> tuple[Float[Array, "maps height down across width batch"]]:
    """The gradient of `neighbourhoods`, one axis after the other."""
    maps, height, down, across, width, batch = shape
    pieces = gradient.reshape(maps, tall, height, wide, width, down - tall + 1, across - wide + 1, batch)
    rows = collected(jnp.moveaxis(pieces, 4, 6), 4, wide, at=3)
    return (collected(rows, 2, tall, at=1),)


def collected(pieces: Float[Array, "..."], axis: int, shifts: int, at: int) -> Float[Array, "..."]:
    """The sum of shifted pieces: every place along `axis` collects the pieces that it went into, and no zeros.

    Args:
      pieces: the shifts are its axis `at`, which stands before `axis` and falls away.
      axis: of the result.
      shifts: their number.
      at: see `pieces`.
    """
    size = pieces.shape[axis + 1]

    def collect(place: int) -> Array:
        met = [(shift, place - shift) for shift in range(shifts) if 0 <= place - shift < size]
        of_shifts = [jax.lax.index_in_dim(pieces, shift, at, keepdims=False) for shift, _ in met]
        found = [
            jax.lax.index_in_dim(piece, start, axis, keepdims=False)
            for piece, (_, start) in zip(of_shifts, met, strict=True)
        ]
        return functools.reduce(jnp.add, found)

    return jnp.stack([collect(place) for place in range(size + shifts - 1)], axis=axis)


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
    grid: Float[Array, "inputs height down across width batch"],
    parameters: Convolution,
    table: Table,
    blocks: tuple[int, int],
    windows: tuple[int, int],
) -> Float[Array, "4 outputs windows columns"]:
    """`layers.convolve` on a grid: [place, output map, window, (tile, image)].

    Args:
      grid: the inputs.
      parameters: of the layer.
      table: of the layer.
      blocks: that a tile sees, rows and columns.
      windows: pooling windows that its outputs are, rows and columns.
    """
    matrix = tile_matrix(dense_kernel(parameters.kernel, table, grid.shape[0]), windows)
    sums = matrix.T @ neighbourhoods(grid, *blocks)
    return sums.reshape(PLACES, len(table), windows[0] * windows[1], -1) + parameters.bias[None, :, None, None]


def pool(
    places: Float[Array, "4 maps windows columns"],
    parameters: Subsampling | None,
    architecture: Architecture,
    power: int = 1,
) -> Float[Array, "maps windows columns"]:
    """`model.pool` on the outputs of tiles, before the squashing function. See `Stage` for `power`."""
    if architecture.subsampling == "max":
        return places.max(axis=0)
    total = sum_places(places)
    if parameters is None:
        return total * float(PLACES) ** -power
    share = 1.0 if architecture.subsampling_window == "sum" else 1 / PLACES**power
    # Flat, because XLA sums the gradients of a product with an axis of length 1 slowly.
    flat = total.reshape(len(total), -1)
    linear = (parameters.coefficient * share)[:, None] * flat + parameters.bias[:, None]
    return linear.reshape(total.shape)


class Layer(NamedTuple):
    """A layer: a linear function of its inputs and of its parameters, then perhaps the squashing function.

    Max pooling counts as linear: it selects.

    Attributes:
      name: of its field in `Params`.
      linear: (inputs, parameters, power) -> sums. With power 2, constants that inputs are multiplied with are squared:
        1/4 in a mean of four. `curvature` needs that.
      squashed: whether the squashing function follows.
    """

    name: str
    linear: Callable[[Array, Any, int], Array]
    squashed: bool


def layers_of(architecture: Architecture) -> list[Layer]:
    """The layers that have sums, in order; the first takes a grid, see `to_grid`. RBF units come after them."""
    table = CONNECTIVITIES[architecture.connectivity]
    trainable = architecture.subsampling == "trainable"

    def s2(places: Array, parameters: Subsampling | None, power: int) -> Array:
        return pool(places, parameters, architecture, power).reshape(len(C1_TABLE), 2, 7, 7, 2, -1)

    def s4(places: Array, parameters: Subsampling | None, power: int) -> Array:
        return pool(places, parameters, architecture, power).reshape(len(table) * 25, -1)

    def c5(features: Array, parameters: Dense, power: int) -> Array:
        return features.T @ parameters.kernel.reshape(len(features), -1) + parameters.bias[None]

    def weighted(states: Array, parameters: Dense, power: int) -> Array:
        return states @ parameters.kernel + parameters.bias[None]

    hidden = [
        Layer("c1", lambda grid, parameters, _: convolve(grid, parameters, C1_TABLE, (2, 3), (2, 1)), True),
        Layer("s2", s2, trainable),
        Layer("c3", lambda grid, parameters, _: convolve(grid, parameters, table, (3, 3), (1, 1)), True),
        Layer("s4", s4, trainable),
        Layer("c5", c5, True),
        Layer("f6", weighted, True),
    ]
    output = Layer("output", weighted, architecture.output == "squashed")
    return hidden if architecture.output == "rbf" else [*hidden, output]


class Passed(NamedTuple):
    """A layer that a batch has passed, with its inputs and its preactivations."""

    layer: Layer
    inputs: Array
    preactivations: Array


def passes(
    params: Params, grid: Float[Array, "1 4 8 16 2 batch"], architecture: Architecture
) -> tuple[list[Passed], Float[Array, "batch units"]]:
    """All layers with their inputs and preactivations, and the activations of the last one."""
    passed, activations = [], grid
    for layer in layers_of(architecture):
        preactivations = layer.linear(activations, getattr(params, layer.name), 1)
        passed.append(Passed(layer, activations, preactivations))
        activations = ACTIVATIONS[architecture.activation](preactivations) if layer.squashed else preactivations
    return passed, activations


def forward_grid(
    params: Params, grid: Float[Array, "1 4 8 16 2 batch"], architecture: Architecture
) -> Float[Array, "batch classes"]:
    """`forward`, from images that `to_grid` has cut."""
    _, states = passes(params, grid, architecture)
    return rbf(states, BITMAPS) if architecture.output == "rbf" else states


def forward(
    params: Params, images: Float[Array, "batch 32 32"], architecture: Architecture
) -> Float[Array, "batch classes"]:
    """`model.forward` for each image of a batch, equal to it up to rounding."""
    return forward_grid(params, to_grid(images), architecture)
