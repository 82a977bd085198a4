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

The products take 2.1 times the multiply-adds of the convolutions (with C3's table). Larger tiles gather less and
multiply more; these are the fastest of those we tried.

**Grids.** Inputs have the axes [maps, rows in block, block rows, block columns, columns in block, images]: images last,
so that every shift along block rows or columns moves contiguous memory. Outputs of a tile are ordered (position in the
pooling window, map, window): pooling combines four contiguous quarters, its result is already the grid that the next
product needs, and S4's layout is [map, row, column], which is how C5's kernel is stored. Only the images themselves
are transposed.

The matrices consist of shifted kernels, so JAX derives the kernels' gradients. Two derivatives are written by hand,
because XLA would pad every shifted array to the whole grid and add them all.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lenet_jax import native
from lenet_jax.layers import ACTIVATIONS, BITMAPS, Convolution, Dense, Subsampling, Table, dense_kernel, product, rbf
from lenet_jax.model import C1_TABLE, CONNECTIVITIES, Architecture, Params

Grid = Float[Array, "1 4 8 16 2 batch"] | Float[Array, "1 32 32 batch"]
"""Images as C1 takes them: in blocks or, for `native`, as a map."""

WINDOW_AREA = 4
"""Outputs of a convolution per 2 x 2 pooling window."""


def to_grid(images: Float[Array, "batch 32 32"], allow_native: bool = False) -> Grid:
    """Images cut into 8 x 16 blocks of 4 x 2 pixels; or as `native` takes them, if it is allowed and they suffice."""
    if allow_native and len(images) >= native.LEAST_IMAGES:
        return native.to_maps(images)
    return images.reshape(-1, 8, 4, 16, 2).transpose(2, 1, 3, 4, 0)[None]


def tile_matrix(
    kernels: Float[Array, "outputs inputs 5 5"], windows: tuple[int, int]
) -> Float[Array, "features preactivations"]:
    """A convolution as a matrix, for a tile of ``windows`` (rows, columns) pooling windows.

    Its rows are ordered (input map, row, column), its columns (position in the window, output map, window): XLA's
    products on a CPU are faster when the left factor is the transposed one.
    """
    _, inputs, size, _ = kernels.shape
    rows, columns = windows
    down, right = 2 * rows - 1, 2 * columns - 1  # the largest shift of a kernel within the tile
    pairs = list(itertools.product(range(rows), range(columns)))
    outputs_last = kernels.transpose(1, 2, 3, 0)

    def shift(i: int, j: int) -> Array:
        return jnp.pad(outputs_last, ((0, 0), (i, down - i), (j, right - j), (0, 0)))

    by_position = [
        jnp.stack([shift(2 * row + i, 2 * column + j) for row, column in pairs], axis=-1)
        for i, j in itertools.product(range(2), repeat=2)
    ]
    return jnp.stack(by_position, axis=3).reshape(inputs * (size + down) * (size + right), -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def neighbourhoods(
    grid: Float[Array, "maps height down across width batch"], tall: int, wide: int
) -> Float[Array, "features columns"]:
    """The inputs of each tile, which are tall x wide blocks, as columns: [(map, row, column), (tile, image)]."""
    maps, height, down, across, width, _ = grid.shape
    rows = jnp.stack([grid[:, :, shift : shift + down - tall + 1] for shift in range(tall)], axis=1)
    # Moving the columns of a block before the tiles here avoids a separate copy afterwards.
    shifted = [jnp.moveaxis(rows[:, :, :, :, shift : shift + across - wide + 1], 5, 3) for shift in range(wide)]
    return jnp.stack(shifted, axis=3).reshape(maps * tall * height * wide * width, -1)


def neighbourhoods_backward(
    tall: int, wide: int, shape: tuple[int, ...], gradient: Float[Array, "features columns"]
) -> tuple[Float[Array, "maps height down across width batch"]]:
    """The gradient of `neighbourhoods`, one axis after the other."""
    maps, height, down, across, width, batch = shape
    shifted = gradient.reshape(maps, tall, height, wide, width, down - tall + 1, across - wide + 1, batch)
    rows = sum_shifted(jnp.moveaxis(shifted, 4, 6), 4, wide, shift_axis=3)
    return (sum_shifted(rows, 2, tall, shift_axis=1),)


def sum_shifted(shifted: Float[Array, "..."], axis: int, shifts: int, shift_axis: int) -> Float[Array, "..."]:
    """The sum of arrays that are shifted by 0, 1, ... along `axis` of the result, without padding.

    The arrays are stacked along `shift_axis`, which is before `axis`; each index adds only the arrays that contain it.
    """
    size = shifted.shape[axis + 1]

    def sum_at(index: int) -> Array:
        starts = {shift: index - shift for shift in range(shifts) if 0 <= index - shift < size}
        arrays = [jax.lax.index_in_dim(shifted, shift, shift_axis, keepdims=False) for shift in starts]
        pairs = zip(arrays, starts.values(), strict=True)
        return functools.reduce(jnp.add, [jax.lax.index_in_dim(a, start, axis, keepdims=False) for a, start in pairs])

    return jnp.stack([sum_at(index) for index in range(size + shifts - 1)], axis=axis)


neighbourhoods.defvjp(lambda grid, tall, wide: (neighbourhoods(grid, tall, wide), grid.shape), neighbourhoods_backward)


@jax.custom_vjp
def sum_windows(maps: Float[Array, "4 maps windows columns"]) -> Float[Array, "maps windows columns"]:
    """The sum over each pooling window."""
    return maps[0] + maps[1] + maps[2] + maps[3]


sum_windows.defvjp(  # the gradient is the same for all outputs of a window
    lambda maps: (sum_windows(maps), None),
    lambda _, gradient: (jnp.broadcast_to(gradient, (WINDOW_AREA, *gradient.shape)),),
)


def convolve(
    grid: Float[Array, "inputs height down across width batch"],
    parameters: Convolution,
    table: Table,
    blocks: tuple[int, int],
    windows: tuple[int, int],
) -> Float[Array, "4 outputs windows columns"]:
    """`layers.convolve` on a grid: [position in the window, output map, window, (tile, image)].

    From `blocks` (rows, columns) of the grid, a tile computes `windows` (rows, columns), which are pooling windows.
    """
    matrix = tile_matrix(dense_kernel(parameters.kernel, table, grid.shape[0]), windows)
    maps = product(matrix.T, neighbourhoods(grid, *blocks))
    maps = maps.reshape(WINDOW_AREA, len(table), windows[0] * windows[1], -1)
    return maps + parameters.bias[None, :, None, None]


def pool(
    maps: Float[Array, "4 maps windows columns"],
    parameters: Subsampling | None,
    architecture: Architecture,
    power: int = 1,
) -> Float[Array, "maps windows columns"]:
    """`model.pool` on the outputs of tiles, before the squashing function. See `Layer` for `power`."""
    if architecture.subsampling == "max":
        return maps.max(axis=0)
    total = sum_windows(maps)
    if parameters is None:
        return total * float(WINDOW_AREA) ** -power
    factor = 1.0 if architecture.subsampling_window == "sum" else 1 / WINDOW_AREA**power
    # Flat, because XLA is slow to sum the gradients of a product that broadcasts an axis of length 1.
    flat = total.reshape(len(total), -1)
    linear = (parameters.coefficient * factor)[:, None] * flat + parameters.bias[:, None]
    return linear.reshape(total.shape)


class Layer(NamedTuple):
    """A layer, by its field in `Params`: a function, and whether the squashing function follows.

    The function (inputs, parameters, power) -> preactivations is linear in inputs and in parameters; max pooling counts
    as linear, as it selects inputs. With power 2, as `curvature` needs it, constant factors of the inputs are squared:
    1/16 instead of 1/4 in a mean of four.
    """

    name: str
    linear: Callable[[Array, Any, int], Array]
    squashed: bool


def layers_of(architecture: Architecture, native_form: bool = False) -> list[Layer]:
    """The layers with preactivations, in order; the first takes a grid, see `to_grid`. RBF units follow them."""
    table = CONNECTIVITIES[architecture.connectivity]
    trainable = architecture.subsampling == "trainable"
    of_tiles = (
        convolve if not native_form else lambda maps, parameters, table, *_: native.convolve(maps, parameters, table)
    )
    grid_of_s2 = (14, 14) if native_form else (2, 7, 7, 2)

    def c1(grid: Array, parameters: Convolution, power: int) -> Array:
        return of_tiles(grid, parameters, C1_TABLE, (2, 3), (2, 1))

    def s2(maps: Array, parameters: Subsampling | None, power: int) -> Array:
        return pool(maps, parameters, architecture, power).reshape(len(C1_TABLE), *grid_of_s2, -1)

    def c3(grid: Array, parameters: Convolution, power: int) -> Array:
        return of_tiles(grid, parameters, table, (3, 3), (1, 1))

    def s4(maps: Array, parameters: Subsampling | None, power: int) -> Array:
        return pool(maps, parameters, architecture, power).reshape(len(table) * 25, -1)

    def c5(features: Array, parameters: Dense, power: int) -> Array:
        return product(features.T, parameters.kernel.reshape(len(features), -1)) + parameters.bias[None]

    def dense(inputs: Array, parameters: Dense, power: int) -> Array:
        return product(inputs, parameters.kernel) + parameters.bias[None]

    hidden = [
        Layer("c1", c1, True),
        Layer("s2", s2, trainable),
        Layer("c3", c3, True),
        Layer("s4", s4, trainable),
        Layer("c5", c5, True),
        Layer("f6", dense, True),
    ]
    output = Layer("output", dense, architecture.output == "squashed")
    return hidden if architecture.output == "rbf" else [*hidden, output]


def passes(
    params: Params, grid: Grid, architecture: Architecture
) -> tuple[list[tuple[Layer, Array, Array]], Float[Array, "batch units"]]:
    """Each layer with its inputs and its preactivations, and the activations of the last layer."""
    passed, activations = [], grid
    for layer in layers_of(architecture, grid.ndim == 4):
        preactivations = layer.linear(activations, getattr(params, layer.name), 1)
        passed.append((layer, activations, preactivations))
        activations = ACTIVATIONS[architecture.activation](preactivations) if layer.squashed else preactivations
    return passed, activations


def forward_grid(params: Params, grid: Grid, architecture: Architecture) -> Float[Array, "batch classes"]:
    """`forward` for images in a layout of `to_grid`."""
    _, activations = passes(params, grid, architecture)
    return rbf(activations, BITMAPS) if architecture.output == "rbf" else activations


def forward(
    params: Params, images: Float[Array, "batch 32 32"], architecture: Architecture, allow_native: bool = False
) -> Float[Array, "batch classes"]:
    """`model.forward` for each image of a batch, equal up to rounding."""
    return forward_grid(params, to_grid(images, allow_native), architecture)
