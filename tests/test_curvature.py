"""The curvature of SDLM against explicit loops over connections, and against exact second derivatives."""

import functools

import jax
import numpy as np
import pytest

from lenet_jax import blocked, curvature, model
from lenet_jax.layers import BITMAPS
from lenet_jax.losses import Loss
from lenet_jax.model import C1_TABLE, CONNECTIVITIES, Architecture

pytestmark = pytest.mark.usefixtures("quick_compilation")

# f'(a), from f(a)
SLOPES = {
    "sigmoid": lambda y: y * (1 - y),
    "tanh": lambda y: 1 - y**2,
    "scaled_tanh": lambda y: 1.7159 * 2 / 3 * (1 - (y / 1.7159) ** 2),
    "relu": lambda y: (y > 0).astype(float),
}


@functools.partial(jax.jit, static_argnames=("architecture", "loss", "start"))
def diagonal(params, images, labels, architecture, loss, start):
    """`curvature.diagonal` in one program: operation by operation, each would be compiled by itself."""
    return curvature.diagonal(params, blocked.to_grid(images), labels, architecture, loss, start)


activations = jax.jit(model.activations, static_argnames="architecture")


def of_convolution(inputs, kernel, of_sums, table):
    """Eq. 25 and 27 over every connection of C1 or C3: of kernels, biases and inputs."""
    of_kernel, of_inputs, index = np.zeros(kernel.shape), np.zeros(inputs.shape), 0
    rows, columns = of_sums.shape[1:]
    for i, sources in enumerate(table):
        for j in sources:
            for row, column in np.ndindex(5, 5):  # the connections of all units of a map that share this weight
                seen = j, slice(row, row + rows), slice(column, column + columns)
                of_kernel[index, row, column] = (of_sums[i] * inputs[seen] ** 2).sum()
                of_inputs[seen] += of_sums[i] * kernel[index, row, column] ** 2
            index += 1
    return of_kernel, of_sums.sum(axis=(1, 2)), of_inputs


def of_subsampling(inputs, layer, of_sums, architecture):
    """The same for S2 or S4: inputs reach their unit through a coefficient or a quarter, or only the largest does."""
    of_coefficient, of_inputs = np.zeros(len(inputs)), np.zeros(inputs.shape)
    for i, rows, columns in np.ndindex(inputs.shape):
        h = of_sums[i, rows // 2, columns // 2]
        if architecture.subsampling == "trainable":
            share = 1.0 if architecture.subsampling_window == "sum" else 0.25
            of_coefficient[i] += h * (share * inputs[i, rows, columns]) ** 2
            of_inputs[i, rows, columns] = h * (share * layer.coefficient[i]) ** 2
        elif architecture.subsampling == "average":
            of_inputs[i, rows, columns] = h / 16
        else:
            top, left = 2 * (rows // 2), 2 * (columns // 2)
            largest = inputs[i, top : top + 2, left : left + 2].max()
            of_inputs[i, rows, columns] = h * (inputs[i, rows, columns] == largest)
    return of_coefficient, of_sums.sum(axis=(1, 2)), of_inputs


def of_full_connection(inputs, kernel, of_sums):
    """The same for C5 or F6."""
    return inputs[:, None] ** 2 * of_sums, of_sums, (kernel**2 * of_sums).sum(axis=1)


def by_loops(params, image, architecture):
    """h_kk of one pattern, in the order of `jax.tree.leaves`.

    It starts from d2y_D/dx_j^2 = 2 for every F6 state, or from 2 for every output with squared error.
    """
    states = jax.device_get(activations(params, image, architecture))
    slopes = {name: SLOPES[architecture.activation](state) ** 2 for name, state in states.items()}
    trains = architecture.subsampling == "trainable"
    if not trains:
        slopes |= {"s2": 1.0, "s4": 1.0}
    params, table = jax.device_get(params), CONNECTIVITIES[architecture.connectivity]
    output, of_f6 = [], np.full(84, 2.0)
    if params.output is not None:
        of_sums = 2.0 * (slopes["output"] if architecture.output == "squashed" else np.ones(10))
        *output, of_f6 = of_full_connection(states["f6"], params.output.kernel, of_sums)
    f6, f6_bias, of_c5 = of_full_connection(states["c5"], params.f6.kernel, of_f6 * slopes["f6"])
    kernel = params.c5.kernel.reshape(400, 120)
    c5, c5_bias, of_s4 = of_full_connection(states["s4"].ravel(), kernel, of_c5 * slopes["c5"])
    of_sums = of_s4.reshape(16, 5, 5) * slopes["s4"]
    *s4, of_c3 = of_subsampling(states["c3"], params.s4, of_sums, architecture)
    c3, c3_bias, of_s2 = of_convolution(states["s2"], params.c3.kernel, of_c3 * slopes["c3"], table)
    *s2, of_c1 = of_subsampling(states["c1"], params.s2, of_s2 * slopes["s2"], architecture)
    c1, c1_bias, _ = of_convolution(image[None], params.c1.kernel, of_c1 * slopes["c1"], C1_TABLE)
    c5 = c5.reshape(params.c5.kernel.shape)
    pools = (s2, s4) if trains else ([], [])
    return [c1, c1_bias, *pools[0], c3, c3_bias, *pools[1], c5, c5_bias, f6, f6_bias, *output]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"subsampling_window": "sum"},
        {"activation": "sigmoid"},
        {"subsampling": "average", "connectivity": "full"},
        {"subsampling": "max"},
        {"output": "squashed", "activation": "tanh"},
        {"output": "linear"},
    ],
    ids=str,
)
def test_equals_loops_over_all_connections(fields, random_params):
    architecture = Architecture(**{"activation": "scaled_tanh", "output": "rbf"} | fields)
    loss = Loss("map") if architecture.output == "rbf" else Loss("mse", mse_point="linear", target_code="+-1")
    with jax.enable_x64(True):
        params = random_params(architecture)
        images = np.random.default_rng(0).normal(size=(2, 32, 32))
        found = diagonal(params, images, np.array([3, 7]), architecture, loss, "target")
        expected = [by_loops(params, image, architecture) for image in images]
    assert (found.output is None) == (architecture.output == "rbf")
    for leaf, *of_patterns in zip(jax.tree.leaves(found), *expected, strict=True):
        np.testing.assert_allclose(leaf, np.mean(of_patterns, axis=0), rtol=1e-9)


@pytest.mark.parametrize("loss", [Loss("cross_entropy"), Loss("mse", mse_point="linear", target_code="+-1")])
def test_is_exact_without_hidden_layers_and_shared_weights(loss, random_params):
    """The last layer alone, for a single pattern: all that eq. 27 leaves out is behind hidden layers."""
    architecture = Architecture("tanh", output="linear")
    with jax.enable_x64(True):
        params = random_params(architecture)
        image, labels = np.random.default_rng(1).normal(size=(1, 32, 32)), np.array([4])
        found = diagonal(params, image, labels, architecture, loss, "full")
        f6 = activations(params, image[0], architecture)["f6"]

        def criterion(kernel, bias):
            return loss((f6 @ kernel + bias)[None], jax.numpy.asarray(labels))

        of_kernel, of_bias = jax.jit(jax.hessian(criterion, argnums=(0, 1)))(params.output.kernel, params.output.bias)
    np.testing.assert_allclose(found.output.kernel, np.einsum("jiji->ji", of_kernel[0]), rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(found.output.bias, np.diag(of_bias[1]), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("start", curvature.STARTS)
@pytest.mark.parametrize(
    ("output", "subsampling"),
    [*((output, "trainable") for output in model.OUTPUTS), ("softmax", "average"), ("rbf", "max")],
)
def test_is_never_negative(start, output, subsampling, random_params):
    architecture = Architecture("scaled_tanh", subsampling=subsampling, output=output)
    params = random_params(architecture)
    images = np.float32(np.random.default_rng(2).normal(size=(4, 32, 32)))
    loss = Loss("map") if output == "rbf" else Loss("cross_entropy")
    found = diagonal(params, images, np.arange(4), architecture, loss, start)
    assert jax.tree.structure(found) == jax.tree.structure(params)
    for leaf in map(np.asarray, jax.tree.leaves(found)):
        assert (leaf >= 0).all()
        assert (leaf > 0).any()


def test_full_start_is_the_second_derivative_at_the_states():
    """Diagonal of the criterion's Hessian without the terms between different penalties."""
    loss, label = Loss("map", map_constant=20.0), np.array([2])
    with jax.enable_x64(True):
        # In the middle between 6 and 8, each 12 away, so that their penalties compete.
        states = (BITMAPS[[6]] + BITMAPS[[8]]) / 2 + 0.01 * np.random.default_rng(3).normal(size=(1, 84))
        found = jax.jit(curvature.start_in_full, static_argnums=2)(states, label, loss)
        penalties = np.square(states[0] - BITMAPS).sum(axis=1)
        exponentials = np.exp(-penalties)
        p = exponentials / (np.exp(-20.0) + exponentials.sum())
        slopes = (np.arange(10) == 2) - p  # dE/dy_i, and d2E/dy_i^2 is p_i (1 - p_i) in size
        expected = 2 * slopes.sum() + (p * (1 - p)) @ (2 * (states - BITMAPS)) ** 2
    assert 0.3 < p[6] < 0.7
    assert (expected > 0.1).sum() >= 12
    np.testing.assert_allclose(found[0], np.maximum(expected, 0), rtol=1e-6)
