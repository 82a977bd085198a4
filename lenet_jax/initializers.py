"""Initializers: the ranges that initial weights and biases are drawn from."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from lenet_jax.registry import Registry

Numbers = float | np.ndarray
"""One number for all units of a layer, or an array with one number per unit (per output map of C1 and C3)."""


class Start(NamedTuple):
    """The initial distribution of a layer: weights uniform in [-weight, weight], biases in [-bias, bias].

    `center` x the sum of the unit's weights is subtracted from each bias; see `glorot_centered`.
    """

    weight: Numbers
    bias: Numbers
    center: Numbers = 0.0


def lecun1998(fan_in: Numbers, fan_out: float, activation: str) -> Start:
    """U(+-2.4 / F) for weights and biases, F a unit's number of inputs (LeCun et al. 1998, appendix A)."""
    return Start(2.4 / fan_in, 2.4 / fan_in)


def lecun1998_sqrt(fan_in: Numbers, fan_out: float, activation: str) -> Start:
    """U(+-2.4 / sqrt(F)): as `lecun1998`, but preactivations keep their scale from layer to layer."""
    return Start(2.4 / np.sqrt(fan_in), 2.4 / np.sqrt(fan_in))


def glorot(fan_in: Numbers, fan_out: float, activation: str) -> Start:
    """U(+-sqrt(6 / (F_in + F_out))), biases 0 (Glorot & Bengio 2010, eq. 16)."""
    return Start(np.sqrt(6 / (fan_in + fan_out)), 0 * fan_in)


def bengio2012(fan_in: Numbers, fan_out: float, activation: str) -> Start:
    """As `glorot`, but 4 times as wide for sigmoid, whose slope at 0 is 1/4 (Bengio 2012, arXiv:1206.5533)."""
    start = glorot(fan_in, fan_out, activation)
    return start._replace(weight=4 * start.weight) if activation == "sigmoid" else start


def glorot_centered(fan_in: Numbers, fan_out: float, activation: str) -> Start:
    """As `bengio2012`, with centred inputs for sigmoid: biases -1/2 x the sum of the weights (Montavon & Mueller 2012).

    Since sigmoid(a) = 1/2 + 1/2 tanh(a/2), each hidden activation of a sigmoid network then equals 1/2 + 1/2 times that
    of the tanh network from the same key with C1's kernels doubled. For other activations it equals `glorot`.
    """
    start = bengio2012(fan_in, fan_out, activation)
    return start._replace(center=0.5) if activation == "sigmoid" else start


Initializer = Callable[[Numbers, float, str], Start]
"""(inputs of each unit, units that see an input, name of the activation) -> initial distribution."""

INITIALIZERS: Registry[Initializer] = Registry(
    "initializer",
    lecun1998=lecun1998,
    lecun1998_sqrt=lecun1998_sqrt,
    glorot=glorot,
    bengio2012=bengio2012,
    glorot_centered=glorot_centered,
)
"""Initializers by name. An experiment file can add one:
``INITIALIZERS["he"] = lambda fan_in, fan_out, activation: Start(np.sqrt(6 / fan_in), 0.0)``."""


def uniform(keys: Key[Array, "*streams"], count: int) -> Float[Array, "*streams {count}"]:
    """`count` uniform numbers in [-1, 1] from each key.

    One stream after the other: a single small program draws all of them, which takes less time to compile.
    """
    flat = jax.lax.map(lambda key: jax.random.uniform(key, (count,), minval=-1.0, maxval=1.0), keys.ravel())
    numbers: Array = flat.reshape(*keys.shape, count)
    return numbers


def scaled(numbers: Float[Array, " numbers"], shape: tuple[int, ...], bound: Float[Array, "..."]) -> Array:
    """The first numbers in this shape, times `bound`, which broadcasts to the shape."""
    return numbers[: math.prod(shape)].reshape(shape) * jnp.broadcast_to(bound, shape)
