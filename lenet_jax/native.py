"""The native form of C1 and C3: convolutions in C, see `library`.

XLA computes a convolution either slowly or, as in `blocked`, as a product with a matrix that is half zeros. The C code
multiplies what the connection table says and nothing else. Without a compiler, and on accelerators, `blocked` does the
same; both are equal up to rounding.

Images are last in every array, and neighbours in memory: one vector of the processor holds the same pixel of several
images. Maps have the axes [maps, rows, columns, images]. Outputs are ordered [position in the pooling window, map,
window, images], as in `blocked`: pooling combines four contiguous quarters.
"""

import ctypes
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lenet_jax import library
from lenet_jax.layers import KERNEL_SIZE, Convolution, Table, connections

LEAST_IMAGES = 16
"""Images that fill a vector of any processor: smaller batches take the blocked form."""

FUNCTIONS = ("forward", "of_maps", "of_kernels")
"""The functions of the C code: the outputs; the gradient of the maps; those of the kernels and the biases."""


def to_maps(images: Float[Array, "batch 32 32"]) -> Float[Array, "1 32 32 batch"]:
    """Images as the only map of their layer."""
    return images.transpose(1, 2, 0)[None]


@functools.cache
def key() -> str | None:
    """Digest of all that the compiled code depends on, once it is compiled and known to JAX; None if it can't be."""
    path = library.obtain()
    if path is None:
        return None
    try:
        loaded = ctypes.CDLL(str(path))
        for name in FUNCTIONS:
            function = jax.ffi.pycapsule(getattr(loaded, f"lenet_jax_{name}"))
            jax.ffi.register_ffi_target(f"lenet_jax_{name}_{path.stem}", function, platform="cpu")
    except (OSError, AttributeError, RuntimeError, ValueError):  # XLA's, too
        return None
    return path.stem


def available() -> bool:
    """Whether the C code is compiled, or could be compiled now."""
    return key() is not None


def preferred() -> bool:
    """Whether the default devices compute convolutions with the C code: CPUs do, if it is available."""
    return jax.default_backend() == "cpu" and available()


def call(name: str, results: Any, arguments: tuple[Array, ...], table: Table) -> Any:
    """Calls a function of the C code, with results of these shapes and types."""
    target, source = (indices.astype(np.int32) for indices in connections(table))
    function: Any = jax.ffi.ffi_call(f"lenet_jax_{name}_{key()}", results, vmap_method="sequential")
    return function(*arguments, source=source, target=target)


def convolve(
    maps: Float[Array, "inputs rows columns batch"], parameters: Convolution, table: Table
) -> Float[Array, "4 outputs windows batch"]:
    """`layers.convolve` of every image: [position in the pooling window, output map, window, image]."""
    arrays = maps, parameters.kernel, parameters.bias
    kind = jnp.result_type(*arrays)  # mixed types are promoted, as in `blocked`
    return _convolve(*(array.astype(kind) for array in arrays), table)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _convolve(maps: Array, kernels: Array, bias: Array, table: Table) -> Array:
    _, rows, columns, batch = maps.shape
    if batch < LEAST_IMAGES or {maps.dtype, kernels.dtype, bias.dtype} not in ({np.dtype("f4")}, {np.dtype("f8")}):
        raise ValueError(f"{batch} images of {maps.dtype}; the C code takes {LEAST_IMAGES} or more, float32 or float64")
    windows = (rows - KERNEL_SIZE + 1) * (columns - KERNEL_SIZE + 1) // 4
    outputs = jax.ShapeDtypeStruct((4, len(table), windows, batch), maps.dtype)
    found: Array = call("forward", outputs, (maps, kernels, bias), table)
    return found


def _backward(table: Table, saved: tuple[Array, Array, Array], gradient: Array) -> tuple[Array, Array, Array]:
    of_maps, of_kernels, of_bias = (jax.ShapeDtypeStruct(array.shape, array.dtype) for array in saved)
    maps, kernels, _ = saved
    return (
        call("of_maps", of_maps, (kernels, gradient), table),  # XLA leaves it out if nobody uses it
        *call("of_kernels", (of_kernels, of_bias), (maps, gradient), table),
    )


_convolve.defvjp(
    lambda maps, kernels, bias, table: (_convolve(maps, kernels, bias, table), (maps, kernels, bias)), _backward
)
