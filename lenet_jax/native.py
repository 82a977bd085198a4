"""The native form of C1 and C3: convolutions in C, compiled where they are first used if there is a C compiler.

XLA computes a convolution either slowly or, as in `blocked`, as a product with a matrix that is half zeros. The C code
multiplies what the connection table says and nothing else. Without a compiler, and on accelerators, `blocked` does the
same; both are equal up to rounding.

Images are last in every array, and neighbours in memory: one vector of the processor holds the same pixel of several
images. Maps have the axes [maps, rows, columns, images]. Outputs are ordered [position in the pooling window, map,
window, images], as in `blocked`: pooling combines four contiguous quarters.
"""

import ctypes
import fcntl
import functools
import hashlib
import platform
import shutil
import subprocess
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from lenet_jax.errors import InputError
from lenet_jax.layers import KERNEL_SIZE, Convolution, Table, connections
from lenet_jax.paths import cache_folder, check_private, made_private

SOURCE = Path(__file__).with_name("convolution.c")

LEAST_IMAGES = 16
"""Images that fill a vector of any processor: smaller batches take the blocked form."""

FUNCTIONS = ("forward", "of_maps", "of_kernels")
"""The functions of the C code: the outputs; the gradient of the maps; those of the kernels and the biases."""

OPTIONS = (
    "-O3",
    "-std=gnu11",
    "-fPIC",
    "-shared",
    "-mcpu=native" if platform.machine() != "x86_64" else "-march=native",
)


def to_maps(images: Float[Array, "batch 32 32"]) -> Float[Array, "1 32 32 batch"]:
    """Images as the only map of their layer."""
    return images.transpose(1, 2, 0)[None]


@functools.cache
def key() -> str | None:
    """Digest of all that the compiled code depends on, once it is compiled and known to JAX; None if it can't be."""
    try:
        folder = made_private(cache_folder("native"))
        parts = [SOURCE.read_bytes(), metadata.version("jaxlib").encode(), *map(str.encode, OPTIONS), processor()]
        digest = hashlib.sha256(b"|".join(parts)).hexdigest()[:16]
        library = folder / f"{digest}.so"
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # of processes that start together one compiles, the others wait
            if not library.exists():
                compile_to(library)
        check_private(library)
        loaded = ctypes.CDLL(str(library))
        for name in FUNCTIONS:
            function = jax.ffi.pycapsule(getattr(loaded, f"lenet_jax_{name}"))
            jax.ffi.register_ffi_target(f"lenet_jax_{name}_{digest}", function, platform="cpu")
    except (InputError, OSError, AttributeError, RuntimeError, ValueError, subprocess.SubprocessError):  # XLA's, too
        return None
    return digest


def available() -> bool:
    """Whether the C code is compiled, or could be compiled now."""
    return key() is not None


def processor() -> bytes:
    """What the processor can do, as far as the system says: a home folder may be shared by different machines."""
    described = Path("/proc/cpuinfo")
    lines = described.read_bytes().splitlines() if described.exists() else []
    flags = [line for line in lines if line.startswith((b"flags", b"Features", b"model name"))]
    return b"|".join([platform.machine().encode(), *sorted(set(flags))])


def compile_to(path: Path) -> None:
    """Compiles the C code to a shared library. Raises OSError or SubprocessError if that isn't possible."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        raise FileNotFoundError("no C compiler")
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        command = [compiler, *OPTIONS, f"-I{jax.ffi.include_dir()}", "-o", str(made), str(SOURCE)]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        made.chmod(0o700)  # whatever the umask: see `check_private`
        made.replace(path)


def call(name: str, results: Any, arguments: tuple[Array, ...], table: Table) -> Any:
    """Calls a function of the C code, with results of these shapes and types."""
    target, source = (indices.astype(np.int32) for indices in connections(table))
    function: Any = jax.ffi.ffi_call(f"lenet_jax_{name}_{key()}", results, vmap_method="sequential")
    return function(*arguments, source=source, target=target)


def convolve(
    maps: Float[Array, "inputs rows columns batch"], parameters: Convolution, table: Table
) -> Float[Array, "4 outputs windows batch"]:
    """`layers.convolve` of every image: [position in the pooling window, output map, window, image]."""
    return _convolve(maps, parameters.kernel, parameters.bias, table)


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
