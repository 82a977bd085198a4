"""JAX's settings that change results: those that define an experiment are fixed, the others are recorded.

They come from environment variables (``JAX_ENABLE_X64``) and `jax.config`, which this package leaves as they are.
"""

import contextlib
import os
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, UInt32

from lenet_jax.errors import InputError, one_line

PRNG = "threefry2x32"
"""JAX's generator of random numbers."""

PRECISION = ("jax_default_matmul_precision", "jax_softmax_custom_jvp", "jax_use_direct_linearize")
COMPILER = ("jax_disable_most_optimizations", "jax_optimization_level", "jax_exec_time_optimization_effort")
VARIABLES = ("LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE", "XLA_FLAGS")
"""Settings and environment variables that change rounding and no random number."""


@contextlib.contextmanager
def fixed() -> Iterator[None]:
    """Context manager and decorator: traces programs with JAX's default types and random streams, in this thread."""
    with (
        jax.threefry_partitionable(True),
        jax.default_prng_impl(PRNG),
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.disable_jit(False),
    ):
        yield


def key_of(seed: UInt32[jax.Array, ""]) -> PRNGKeyArray:
    """`jax.random.key(seed)` with the fixed generator, and without the offset that JAX may be set to add to seeds."""
    key: PRNGKeyArray = jax.random.wrap_key_data(jnp.stack([jnp.uint32(0), seed]), impl=PRNG)
    return key


def current() -> dict[str, object]:
    """The recorded settings of this process, as far as this version of JAX has them."""
    values = jax.config.values
    return {name: getattr(jax.config, name, values[name]) for name in PRECISION + COMPILER if name in values}


def check_platform() -> None:
    """Raises InputError if JAX has no device on the platform that it is set to use."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        named = jax.config.values["jax_platforms"]
        reason = one_line(error) if str(error) else "it isn't installed for that platform"
        raise InputError(
            f"JAX_PLATFORMS: {named!r} gives this JAX no device ({reason}); install the extra cuda13, cuda12 or tpu, "
            "or unset the variable"
        ) from error


def described() -> dict[str, str]:
    """The recorded settings and variables as text, for the provenance."""
    return {name: str(value) for name, value in current().items()} | {
        name: os.environ.get(name, "") for name in VARIABLES
    }
