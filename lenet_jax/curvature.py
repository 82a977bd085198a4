"""The curvature of stochastic diagonal Levenberg-Marquardt: h_kk of LeCun et al. 1998, appendix C.

For each weight, h_kk is the mean over patterns of the sum over the connections u_ij that share the weight (eq. 23, 24)
of an estimate of d2E/du_ij^2 that ignores off-diagonal terms and is never negative (eq. 25 to 27):

    d2E/du_ij^2 = d2E/da_i^2 x_j^2                        (25)
    d2E/da_i^2  = f'(a_i)^2 sum_k u_ki^2 d2E/da_k^2       (27)

This is backpropagation with squares. For a layer with preactivations a = L(x, w), linear in inputs x and in weights w,
the transpose of x -> L(x, w^2) maps curvatures of the preactivations to those of the inputs, and the transpose of
w -> L(x^2, w) maps them to those of the weights, summed over all connections that share a weight. So one loop serves
every layer. Max pooling is treated as the selection that it makes for these inputs.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lenet_jax import blocked
from lenet_jax.choices import register
from lenet_jax.layers import ACTIVATIONS, BITMAPS, PRECISION, rbf
from lenet_jax.losses import Loss
from lenet_jax.model import Architecture, Params


def diagonal(
    params: Params,
    grid: blocked.Grid,
    labels: Int[Array, " batch"],
    architecture: Architecture,
    loss: Loss,
    start: str,
) -> Params:
    """h_kk of every parameter, averaged over a batch in a layout of `blocked.to_grid`.

    The criterion E is `loss`. With RBF outputs, the backward sweep starts from the curvature `start` of `STARTS` at F6.
    """
    passed, activations = blocked.passes(params, grid, architecture)
    if architecture.output == "rbf":
        curvatures = STARTS[start](activations, labels, loss)
    else:
        curvatures = second_derivatives(activations, labels, loss)
    by_layer: dict[str, Any] = {"output": None}
    for layer, inputs, preactivations in reversed(passed):
        if layer.squashed:
            curvatures = derivative(preactivations, architecture) ** 2 * curvatures
        by_layer[layer.name], curvatures = back(layer, inputs, getattr(params, layer.name), curvatures)
    mean: Params = jax.tree.map(lambda total: total / len(labels), Params(**by_layer))
    return mean


def back(layer: blocked.Layer, inputs: Array, parameters: Any, of_preactivations: Array) -> tuple[Any, Array]:
    """The curvatures of a layer's parameters (summed over patterns) and inputs, from those of its preactivations."""
    squared = jax.tree.map(jnp.square, parameters)
    (of_inputs,) = jax.vjp(lambda inputs: layer.linear(inputs, squared, 2), inputs)[1](of_preactivations)
    squares = jnp.square(inputs)
    _, transpose = jax.vjp(lambda parameters: layer.linear(squares, parameters, 2), parameters)
    return transpose(of_preactivations)[0], of_inputs


def derivative(preactivations: Array, architecture: Architecture) -> Array:
    """f'(a), the derivative of the squashing function."""
    activation, ones = ACTIVATIONS[architecture.activation], jnp.ones_like(preactivations)
    derivative: Array = jax.jvp(activation, (preactivations,), (ones,))[1]
    return derivative


def second_derivatives(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"], loss: Loss
) -> Float[Array, "batch classes"]:
    """d2E/ds_i^2 of each logit, negative ones set to 0."""

    def of_sample(logits: Array, label: Array) -> Array:
        return jnp.diag(jax.hessian(lambda logits: loss(logits[None], label[None]))(logits))

    return jnp.maximum(jax.vmap(of_sample)(logits, labels), 0)


def start_in_full(f6: Float[Array, "batch 84"], labels: Int[Array, " batch"], loss: Loss) -> Float[Array, "batch 84"]:
    """The curvature of the criterion: sum_i (dE/dy_i d2y_i/dx_j^2 + d2E/dy_i^2 (dy_i/dx_j)^2), at least 0.

    It vanishes for fitted patterns: with eq. 9, the sum of all dE/dy_i is e^-j / (e^-j + sum_i e^-y_i).
    """
    penalties = rbf(f6, BITMAPS)
    slopes = jax.vmap(jax.grad(lambda y, label: loss(-y[None], label[None])))(penalties, labels)
    curvatures = second_derivatives(-penalties, labels, loss)
    differences = 2 * (f6[:, None, :] - jnp.asarray(BITMAPS)[None])
    squares = jnp.einsum("pi,pij->pj", curvatures, jnp.square(differences), precision=PRECISION)
    return jnp.maximum(2 * slopes.sum(axis=1, keepdims=True) + squares, 0)


STARTS: dict[str, Callable[[Array, Array, Loss], Array]] = {
    "target": lambda f6, labels, loss: jnp.full_like(f6, 2.0),  # of y_D, the correct class's penalty: d2y_D/dx_j^2 = 2
    "full": start_in_full,
}
"""The curvature at F6's activations [batch, 84] with RBF outputs, by name; the paper doesn't specify it. With other
outputs, the sweep always starts from the criterion's second derivatives with respect to the outputs."""

register("curvature_start", STARTS)
