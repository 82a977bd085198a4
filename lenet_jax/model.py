"""LeNet-5: its architecture, its parameters, and the forward pass of one image.

`activations` is the specification: seven lines from C1 to the output.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lenet_jax import IMAGE_SIZE as IMAGE_SIZE
from lenet_jax import layers
from lenet_jax.choices import CHOICES, register
from lenet_jax.errors import InputError, check_choice
from lenet_jax.initializers import INITIALIZERS, Numbers, scaled, uniform
from lenet_jax.layers import ACTIVATIONS, BITMAPS, Convolution, Dense, Subsampling, Table, convolve, dense, subsample
from lenet_jax.registry import CACHES

C1_TABLE: Table = ((0,),) * 6
"""C1's six maps all see the only input plane."""

C3_TABLE: Table = (
    *((0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5)),
    *((0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5)),
    *((0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5)),
    (0, 1, 2, 3, 4, 5),
)
"""C3's 60 connections (LeCun et al. 1998, table I)."""

CONNECTIVITIES: dict[str, Table] = {"table": C3_TABLE, "full": (tuple(range(6)),) * 16}
"""C3's connection table by name: for each output map, the maps of S2 that it sees."""

register("connectivity", CONNECTIVITIES)

SUBSAMPLINGS, WINDOWS, OUTPUTS = (CHOICES[field] for field in ("subsampling", "subsampling_window", "output"))


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Everything about the network except the trainable numbers. Hashable: a static argument of compiled functions.

    Attributes:
      activation: the squashing function, a key of `layers.ACTIVATIONS`.
      connectivity: C3's connections, a key of `CONNECTIVITIES`.
      subsampling: S2 and S4: ``trainable`` (the specification: coefficient, bias, squashing); or plain pooling,
        ``average`` or ``max``.
      subsampling_window: what a trainable coefficient multiplies: the ``mean`` of the window's four inputs (the
        specification), or their ``sum`` (LeCun et al. 1998).
      output: what `forward` returns: the logits of a ``softmax``, ``linear`` scores, scores ``squashed`` like hidden
        units, or the penalties of ``rbf`` units (distances from fixed bitmaps of the ten digits).
      initializer: a key of `initializers.INITIALIZERS`.
      classes: the number of output units.
    """

    activation: str = "sigmoid"
    connectivity: str = "table"
    subsampling: str = "trainable"
    subsampling_window: str = "mean"
    output: str = "softmax"
    initializer: str = "glorot_centered"
    classes: int = 10

    def __post_init__(self) -> None:
        check_choice("activation", self.activation, ACTIVATIONS)
        check_choice("connectivity", self.connectivity, CONNECTIVITIES)
        check_choice("subsampling", self.subsampling, SUBSAMPLINGS)
        check_choice("subsampling_window", self.subsampling_window, WINDOWS)
        check_choice("output", self.output, OUTPUTS)
        if self.output == "rbf" and self.classes != len(BITMAPS):
            bitmaps = f"{len(BITMAPS)} bitmaps, one per digit"
            raise InputError(f"output: 'rbf' has {bitmaps}; the data set has {self.classes} classes")
        check_choice("initializer", self.initializer, INITIALIZERS)


@flax.struct.dataclass
class Params:
    """The trainable numbers, one field per layer; None for subsampling without parameters, and for RBF outputs."""

    c1: Convolution
    s2: Subsampling | None
    c3: Convolution
    s4: Subsampling | None
    c5: Dense
    f6: Dense
    output: Dense | None


LAYERS = tuple(field.name for field in dataclasses.fields(Params))
"""The names of the layers with parameters, in order."""


def activations(
    params: Params, image: Float[Array, "32 32"], architecture: Architecture
) -> dict[str, Float[Array, "..."]]:
    """The activations of every layer for one image of normalized pixels, in order.

    Returns:
      ``c1`` [6, 28, 28], ``s2`` [6, 14, 14], ``c3`` [16, 10, 10], ``s4`` [16, 5, 5], ``c5`` [120], ``f6`` [84] and
      ``output`` [classes], before any softmax.
    """
    sigma = ACTIVATIONS[architecture.activation]
    c1 = sigma(convolve(image[None], params.c1, C1_TABLE))
    s2 = pool(c1, params.s2, architecture)
    c3 = sigma(convolve(s2, params.c3, CONNECTIVITIES[architecture.connectivity]))
    s4 = pool(c3, params.s4, architecture)
    c5 = sigma(dense(s4, params.c5))
    f6 = sigma(dense(c5, params.f6))
    output = output_of(f6, params.output, architecture)
    return {"c1": c1, "s2": s2, "c3": c3, "s4": s4, "c5": c5, "f6": f6, "output": output}


def pool(
    maps: Float[Array, "maps rows columns"], parameters: Subsampling | None, architecture: Architecture
) -> Float[Array, "maps rows//2 columns//2"]:
    """S2 or S4: sigma(beta avgpool + b) as specified, or plain average or max pooling."""
    if parameters is not None:
        return ACTIVATIONS[architecture.activation](subsample(maps, parameters, architecture.subsampling_window))
    return layers.average_windows(maps) if architecture.subsampling == "average" else layers.maximum_windows(maps)


def forward(params: Params, image: Float[Array, "32 32"], architecture: Architecture) -> Float[Array, " classes"]:
    """The output for one image: logits (``softmax``), scores, or penalties (``rbf``). Callers vmap.

    >>> architecture = Architecture(activation="tanh")
    >>> params = init(jax.random.key(0), architecture)
    >>> images = jnp.zeros((3, IMAGE_SIZE, IMAGE_SIZE))
    >>> jax.vmap(lambda image: forward(params, image, architecture))(images).shape
    (3, 10)
    """
    return activations(params, image, architecture)["output"]


def output_of(f6: Float[Array, "84"], parameters: Dense | None, architecture: Architecture) -> Float[Array, " classes"]:
    """The last layer: scores, squashed or not, or the penalties of RBF units, which have no parameters."""
    if parameters is None:
        return layers.rbf(f6, BITMAPS)
    scores = dense(f6, parameters)
    return ACTIVATIONS[architecture.activation](scores) if architecture.output == "squashed" else scores


PerClass = Float[Array, "*batch classes"]
"""One number for each class."""


def logits_of(outputs: PerClass, architecture: Architecture) -> PerClass:
    """The input of losses, from what `forward` returns: the larger, the likelier. Penalties change their sign."""
    return -outputs if architecture.output == "rbf" else outputs


def predict_scores(outputs: PerClass, architecture: Architecture) -> PerClass:
    """Class scores from what `forward` returns, the largest marks the class: probabilities for ``softmax``."""
    return jax.nn.softmax(outputs) if architecture.output == "softmax" else logits_of(outputs, architecture)


def decide(scores: Float[Array, "*batch classes"]) -> tuple[Int[Array, "*batch"], Float[Array, "*batch"]]:
    """The class with the best score, and the margin between the best and the second best score.

    LeCun et al. (1998, section III.C) reject images by this margin.
    """
    best, classes = jax.lax.top_k(scores, 2)
    return classes[..., 0], best[..., 0] - best[..., 1]


PROBABILISTIC = ("softmax", "rbf")
"""Outputs that define probabilities of the classes."""


def log_probabilities(outputs: PerClass, architecture: Architecture) -> PerClass:
    """Log-probabilities of the classes, from what `forward` returns for the outputs in `PROBABILISTIC`.

    RBF penalties are negative log-likelihoods of classes with equal priors (LeCun et al. 1998, section II.C).
    """
    return jax.nn.log_softmax(logits_of(outputs, architecture))


class LayerStart(NamedTuple):
    """`initializers.Start` as arrays, with a number for each output map or unit."""

    weight: Float[Array, " units"]
    bias: Float[Array, " units"]
    center: Float[Array, " units"]


Starts = dict[str, LayerStart]
"""The initial distributions of the layers with parameters, by name."""


def dense_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """The shapes of the kernels of C5, F6 and, unless it consists of RBF units, the output: inputs, then units."""
    shapes: dict[str, tuple[int, ...]] = {"c5": (len(CONNECTIVITIES[architecture.connectivity]), 5, 5, 120)}
    shapes["f6"] = 120, 84
    return shapes if architecture.output == "rbf" else {**shapes, "output": (84, architecture.classes)}


def starts_of(architecture: Architecture) -> Starts:
    """The initial distributions that `architecture.initializer` gives the layers.

    All else that `init` does is the same for all initializers and activations: given the distributions as an argument,
    they share a compiled program.
    """
    table, area = CONNECTIVITIES[architecture.connectivity], layers.KERNEL_SIZE**2

    def of(fan_in: Numbers, fan_out: float, units: int, centered: bool = True) -> LayerStart:
        """The distribution of units with `fan_in` inputs each, where an input is seen by `fan_out` units."""
        with jax.ensure_compile_time_eval():  # a user's own may compute with JAX
            start = INITIALIZERS[architecture.initializer](fan_in, fan_out, architecture.activation)
            numbers = start if centered else start._replace(center=0.0)
            wide = (np.broadcast_to(np.asarray(number, jnp.result_type(float)), (units,)) for number in numbers)
            return LayerStart(*map(jnp.asarray, wide))

    def convolution(table: Table, inputs: int, centered: bool = True) -> LayerStart:
        """A unit has 25 inputs per connected map, and an input is seen by 25 units of each connected map."""
        fan_in = np.array([area * float(len(sources)) for sources in table])
        return of(fan_in, fan_in.sum() / inputs, len(table), centered)

    found = {
        # C1's inputs are pixels, not outputs of a sigmoid: there is nothing to center.
        "c1": convolution(C1_TABLE, 1, centered=False),
        "c3": convolution(table, len(C1_TABLE)),
    }
    for name, (*inputs, units) in dense_shapes(architecture).items():  # each unit sees all inputs
        found[name] = of(float(math.prod(inputs)), float(units), units)
    if architecture.subsampling == "trainable":
        # A unit has 4 inputs with a common coefficient, and an input is seen by one unit.
        found |= {"s2": of(4.0, 1.0, len(C1_TABLE)), "s4": of(4.0, 1.0, len(table))}
    return found


def init(key: PRNGKeyArray, architecture: Architecture, starts: Starts | None = None) -> Params:
    """Random initial parameters, from a typed key; their distributions are `starts`, by default the architecture's.

    Each layer has its own random stream: a change of one layer's shape doesn't change the numbers of the others. For an
    example, see `forward`.
    """
    table, kernels = CONNECTIVITIES[architecture.connectivity], dense_shapes(architecture)
    start = starts_of(architecture) if starts is None else starts
    streams = jax.vmap(lambda index: jax.random.split(jax.random.fold_in(key, index)))(jnp.arange(len(LAYERS)))
    draws = dict(zip(LAYERS, uniform(streams, math.prod(kernels["c5"])), strict=True))
    return Params(
        c1=init_convolution(draws["c1"], start["c1"], C1_TABLE),
        s2=init_subsampling(draws["s2"], start["s2"], len(C1_TABLE)) if "s2" in start else None,
        c3=init_convolution(draws["c3"], start["c3"], table),
        s4=init_subsampling(draws["s4"], start["s4"], len(table)) if "s4" in start else None,
        c5=init_dense(draws["c5"], start["c5"], kernels["c5"]),
        f6=init_dense(draws["f6"], start["f6"], kernels["f6"]),
        output=init_dense(draws["output"], start["output"], kernels["output"]) if "output" in kernels else None,
    )


Draws = Float[Array, "2 numbers"]
"""Uniform numbers in [-1, 1], for a layer's weights and for its biases; at least as many as are needed."""


def init_convolution(draws: Draws, start: LayerStart, table: Table) -> Convolution:
    """C1 or C3."""
    output, _ = layers.connections(table)
    shape = len(output), layers.KERNEL_SIZE, layers.KERNEL_SIZE
    kernel = scaled(draws[0], shape, start.weight[output][:, None, None])
    shift = start.center * jnp.zeros(len(table), kernel.dtype).at[output].add(kernel.sum(axis=(1, 2)))
    return Convolution(kernel, scaled(draws[1], (len(table),), start.bias) - shift)


def init_subsampling(draws: Draws, start: LayerStart, maps: int) -> Subsampling:
    """S2 or S4."""
    coefficient = scaled(draws[0], (maps,), start.weight)
    return Subsampling(coefficient, scaled(draws[1], (maps,), start.bias) - start.center * coefficient)


def init_dense(draws: Draws, start: LayerStart, shape: tuple[int, ...]) -> Dense:
    """C5, F6 or the output."""
    kernel = scaled(draws[0], shape, start.weight)
    shift = start.center * kernel.sum(axis=tuple(range(kernel.ndim - 1)))
    return Dense(kernel, scaled(draws[1], shape[-1:], start.bias) - shift)


def connection_table(architecture: Architecture) -> dict[str, int]:
    """Connections by layer, counted as in LeCun et al. 1998: the inputs of each unit, and its bias if it is trainable.

    A shared parameter counts once per unit that uses it. Units of plain pooling have no bias.
    """
    table, area = CONNECTIVITIES[architecture.connectivity], layers.KERNEL_SIZE**2
    trainable = architecture.subsampling == "trainable"
    return {
        "c1": 28**2 * sum(area * len(sources) + 1 for sources in C1_TABLE),
        "s2": 14**2 * len(C1_TABLE) * (4 + trainable),
        "c3": 10**2 * sum(area * len(sources) + 1 for sources in table),
        "s4": 5**2 * len(table) * (4 + trainable),
        "c5": 120 * (5**2 * len(table) + 1),
        "f6": 84 * (120 + 1),
        "output": architecture.classes * (84 + (architecture.output != "rbf")),
    }


def count_parameters(params: Params) -> dict[str, int]:
    """The number of parameters by layer, of a single network."""
    return {name: sum(leaf.size for leaf in jax.tree.leaves(layer)) for name, layer in vars(params).items()}


def shapes(architecture: Architecture) -> Params:
    """The tree of parameters, with the shape and type of each array instead of its numbers."""
    return _shapes(architecture, jnp.result_type(float))


@functools.lru_cache(maxsize=64)
def _shapes(architecture: Architecture, default_float: Any) -> Params:
    """`shapes`; those of another default float type are others."""
    traced = jax.eval_shape(lambda: init(jax.random.key(0), architecture))
    # Without the mesh, if the caller is traced for one.
    found: Params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), traced)
    return found


CACHES.append(_shapes.cache_clear)


def parameter_table(architecture: Architecture) -> list[tuple[str, str, int]]:
    """One row per layer: its name, the shapes of its parameters, their number."""
    params = shapes(architecture)
    rows = []
    for name, count in count_parameters(params).items():
        leaves = jax.tree_util.tree_leaves_with_path(getattr(params, name))
        named = [f"{jax.tree_util.keystr(path, simple=True)} {list(leaf.shape)}" for path, leaf in leaves]
        rows.append((name, ", ".join(named) or "-", count))
    return rows
