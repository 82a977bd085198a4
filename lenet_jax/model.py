"""LeNet-5: its architecture, its parameters, and the forward pass of one image.

`activations` is the specification: seven lines from C1 to the output.
"""

import dataclasses
import math
from collections.abc import Mapping

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lenet_jax import IMAGE_SIZE as IMAGE_SIZE
from lenet_jax import initializers
from lenet_jax.errors import InputError, check_choice
from lenet_jax.initializers import Numbers, Start
from lenet_jax.layers import (
    ACTIVATIONS,
    BITMAPS,
    KERNEL,
    Convolution,
    Dense,
    Subsampling,
    Table,
    average_windows,
    connections,
    convolve,
    dense,
    maximum_windows,
    rbf,
    subsample,
)

C1_TABLE: Table = ((0,),) * 6
"""Six maps, each of which sees the one input plane."""

C3_TABLE: Table = (
    *((0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5)),
    *((0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5)),
    *((0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5)),
    (0, 1, 2, 3, 4, 5),
)
"""C3's 60 connections (LeCun et al. 1998, table I)."""

CONNECTIVITIES: Mapping[str, Table] = {"table": C3_TABLE, "full": (tuple(range(6)),) * 16}
SUBSAMPLINGS = ("trainable", "average", "max")
WINDOWS = ("mean", "sum")
OUTPUTS = ("softmax", "linear", "squashed", "rbf")


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Everything about the network that isn't a number to learn. Hashable: a static argument of compiled functions.

    Attributes:
      activation: the squashing function, a key of `layers.ACTIVATIONS`.
      connectivity: C3's connections, a key of `CONNECTIVITIES`.
      subsampling: S2 and S4. ``trainable`` is the specification (coefficient, bias, squashing); ``average`` and ``max``
        are plain pooling, with neither parameters nor squashing.
      subsampling_window: what a trainable coefficient multiplies: the ``mean`` of the window's four inputs (the
        specification), or their ``sum`` (LeCun et al. 1998).
      output: ``softmax`` (forward returns its logits), ``linear`` (forward returns the scores themselves), ``squashed``
        (scores, squashed as hidden states are) or ``rbf`` (forward returns penalties, distances from fixed bitmaps of
        the ten digits).
      initializer: a key of `INITIALIZERS`.
      classes: the number of output units.

    Raises:
      InputError: a value is unknown; the message names the field.
    """

    activation: str = "sigmoid"
    connectivity: str = "table"
    subsampling: str = "trainable"
    subsampling_window: str = "mean"
    output: str = "softmax"
    initializer: str = "lecun1998"
    classes: int = 10

    def __post_init__(self) -> None:
        check_choice("activation", self.activation, ACTIVATIONS)
        check_choice("connectivity", self.connectivity, CONNECTIVITIES)
        check_choice("subsampling", self.subsampling, SUBSAMPLINGS)
        check_choice("subsampling_window", self.subsampling_window, WINDOWS)
        check_choice("output", self.output, OUTPUTS)
        if self.output == "rbf" and self.classes != len(BITMAPS):
            raise InputError(f"output: 'rbf' has {len(BITMAPS)} bitmaps, one a digit; the data set has {self.classes}")
        check_choice("initializer", self.initializer, initializers.INITIALIZERS)


@flax.struct.dataclass
class Params:
    """The trainable numbers, one field a layer; None for subsampling without parameters, and for RBF outputs."""

    c1: Convolution
    s2: Subsampling | None
    c3: Convolution
    s4: Subsampling | None
    c5: Dense
    f6: Dense
    output: Dense | None


def activations(
    params: Params, image: Float[Array, "32 32"], architecture: Architecture
) -> dict[str, Float[Array, "..."]]:
    """The state of every layer for one image, in order.

    Args:
      params: as `init` returns them.
      image: normalized pixels.
      architecture: the one that `params` were made for.

    Returns:
      ``c1`` [6, 28, 28], ``s2`` [6, 14, 14], ``c3`` [16, 10, 10], ``s4`` [16, 5, 5], ``c5`` [120], ``f6`` [84] and
      ``output`` [classes]: the output before any softmax.
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
    return average_windows(maps) if architecture.subsampling == "average" else maximum_windows(maps)


def forward(params: Params, image: Float[Array, "32 32"], architecture: Architecture) -> Float[Array, " classes"]:
    """What the loss starts from, for one image: logits (``softmax``), scores or penalties (``rbf``). Callers vmap."""
    return activations(params, image, architecture)["output"]


def output_of(f6: Float[Array, "84"], parameters: Dense | None, architecture: Architecture) -> Float[Array, " classes"]:
    """The last layer: weighted sums, perhaps squashed, or distances from the bitmaps where there are no weights."""
    if parameters is None:
        return rbf(f6, BITMAPS)
    scores = dense(f6, parameters)
    return ACTIVATIONS[architecture.activation](scores) if architecture.output == "squashed" else scores


def logits_of(outputs: Float[Array, "*batch classes"], architecture: Architecture) -> Float[Array, "*batch classes"]:
    """What losses work on, the more the likelier: what `forward` returns, penalties with their sign turned."""
    return -outputs if architecture.output == "rbf" else outputs


def predict_scores(
    outputs: Float[Array, "*batch classes"], architecture: Architecture
) -> Float[Array, "*batch classes"]:
    """Class scores of which the largest wins, from what `forward` returns: probabilities for ``softmax``."""
    return jax.nn.softmax(outputs) if architecture.output == "softmax" else logits_of(outputs, architecture)


def decide(scores: Float[Array, "*batch classes"]) -> tuple[Int[Array, "*batch"], Float[Array, "*batch"]]:
    """The class with the best score, and its margin: by how much that leads the second best.

    LeCun et al. (1998, section III.C) reject images on this difference.
    """
    best, classes = jax.lax.top_k(scores, 2)
    return classes[..., 0], best[..., 0] - best[..., 1]


PROBABILISTIC = ("softmax", "rbf")
"""Outputs that make probabilities."""


def log_probabilities(
    outputs: Float[Array, "*batch classes"], architecture: Architecture
) -> Float[Array, "*batch classes"]:
    """Logarithms of the classes' probabilities, from what `forward` returns.

    Those of ``softmax`` outputs; with ``rbf`` the penalties are negative log-likelihoods of classes that are equally
    likely beforehand (LeCun et al. 1998, section II.C). Scores of other outputs are no probabilities.
    """
    return jax.nn.log_softmax(logits_of(outputs, architecture))


def init(key: PRNGKeyArray, architecture: Architecture) -> Params:
    """Random parameters.

    Every layer draws from a stream of its own: a change of one layer's shape leaves the others' numbers as they were.

    Args:
      key: a typed key.
      architecture: its `initializer` says how.
    """
    table = CONNECTIVITIES[architecture.connectivity]
    keys = {field.name: jax.random.fold_in(key, place) for place, field in enumerate(dataclasses.fields(Params))}
    trainable = architecture.subsampling == "trainable"
    return Params(
        c1=init_convolution(keys["c1"], C1_TABLE, 1, architecture),
        s2=init_subsampling(keys["s2"], len(C1_TABLE), architecture) if trainable else None,
        c3=init_convolution(keys["c3"], table, len(C1_TABLE), architecture),
        s4=init_subsampling(keys["s4"], len(table), architecture) if trainable else None,
        c5=init_dense(keys["c5"], (len(table), 5, 5, 120), architecture),
        f6=init_dense(keys["f6"], (120, 84), architecture),
        output=None
        if architecture.output == "rbf"
        else init_dense(keys["output"], (84, architecture.classes), architecture),
    )


def start_of(fan_in: Numbers, fan_out: float, architecture: Architecture) -> Start:
    """What the architecture's initializer says of units with `fan_in` inputs each."""
    return initializers.INITIALIZERS[architecture.initializer](fan_in, fan_out, architecture.activation)


def init_convolution(key: PRNGKeyArray, table: Table, inputs: int, architecture: Architecture) -> Convolution:
    """C1 or C3: units have 25 inputs a connected map, an input is seen by 25 units of each map connected to it."""
    area = KERNEL**2
    weight_key, bias_key = jax.random.split(key)
    output, _ = connections(table)
    fan_in = np.array([area * float(len(sources)) for sources in table])
    start = start_of(fan_in, area * len(output) / inputs, architecture)
    kernel = initializers.uniform(
        weight_key, (len(output), KERNEL, KERNEL), np.asarray(start.weight)[output][:, None, None]
    )
    # C1's inputs are pixels, not outputs of a sigmoid.
    center = start.center if inputs > 1 else 0.0
    shift = center * jnp.zeros(len(table), kernel.dtype).at[output].add(kernel.sum(axis=(1, 2)))
    return Convolution(kernel, initializers.uniform(bias_key, (len(table),), start.bias) - shift)


def init_subsampling(key: PRNGKeyArray, maps: int, architecture: Architecture) -> Subsampling:
    """S2 or S4: units have 4 inputs, with one coefficient for them all; an input is seen by one unit."""
    weight_key, bias_key = jax.random.split(key)
    start = start_of(4.0, 1.0, architecture)
    coefficient = initializers.uniform(weight_key, (maps,), start.weight)
    return Subsampling(coefficient, initializers.uniform(bias_key, (maps,), start.bias) - start.center * coefficient)


def init_dense(key: PRNGKeyArray, shape: tuple[int, ...], architecture: Architecture) -> Dense:
    """C5, F6 or the output: every unit sees every input."""
    weight_key, bias_key = jax.random.split(key)
    start = start_of(float(math.prod(shape[:-1])), float(shape[-1]), architecture)
    kernel = initializers.uniform(weight_key, shape, start.weight)
    shift = start.center * kernel.sum(axis=tuple(range(kernel.ndim - 1)))
    return Dense(kernel, initializers.uniform(bias_key, shape[-1:], start.bias) - shift)


def connection_table(architecture: Architecture) -> dict[str, int]:
    """Connections by layer, as LeCun et al. 1998 count them: a unit's inputs, and its bias if that trains.

    Parameters count once for every unit that shares them. Plain pooling has inputs and no biases.
    """
    table = CONNECTIVITIES[architecture.connectivity]
    trainable = architecture.subsampling == "trainable"

    def convolution(table: Table, side: int) -> int:
        return side**2 * (KERNEL**2 * len(connections(table)[0]) + len(table))

    return {
        "c1": convolution(C1_TABLE, 28),
        "s2": 14**2 * len(C1_TABLE) * (4 + trainable),
        "c3": convolution(table, 10),
        "s4": 5**2 * len(table) * (4 + trainable),
        "c5": 120 * (5**2 * len(table) + 1),
        "f6": 84 * (120 + 1),
        "output": architecture.classes * (84 + (architecture.output != "rbf")),
    }


def count_parameters(params: Params) -> dict[str, int]:
    """Trainable numbers by layer; sum the values for the total. Works on one network, not on a population."""
    layers = {field.name: getattr(params, field.name) for field in dataclasses.fields(params)}
    return {name: sum(leaf.size for leaf in jax.tree.leaves(layer)) for name, layer in layers.items()}


def parameter_table(architecture: Architecture) -> list[tuple[str, str, int]]:
    """A row a layer: its name, the shapes of its parameters, their number."""
    params = jax.eval_shape(lambda: init(jax.random.key(0), architecture))
    rows = []
    for name, count in count_parameters(params).items():
        leaves = jax.tree_util.tree_leaves_with_path(getattr(params, name))
        shapes = [f"{jax.tree_util.keystr(path, simple=True)} {list(leaf.shape)}" for path, leaf in leaves]
        rows.append((name, ", ".join(shapes) or "-", count))
    return rows
