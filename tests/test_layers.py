"""Each layer against its NumPy expectation."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from lenet_jax import layers, model
from lenet_jax.layers import BITMAPS

pytestmark = pytest.mark.usefixtures("quick_compilation")

RNG = np.random.default_rng(0)

convolve = jax.jit(layers.convolve, static_argnames="table")
subsample = jax.jit(layers.subsample, static_argnames="window")
rbf = jax.jit(lambda states: layers.rbf(states, BITMAPS))


def to_32_bits(*arrays):
    return [np.asarray(array, np.float32) for array in arrays]


@pytest.mark.parametrize(
    ("table", "inputs", "size"),
    [(model.C1_TABLE, 1, 32), (model.C3_TABLE, 6, 14), (((1,), (0, 2)), 3, 7)],
    ids=["c1", "c3", "small"],
)
def test_convolve(table, inputs, size):
    pairs = [(i, j) for i, sources in enumerate(table) for j in sources]
    x, kernel, bias = (
        RNG.normal(size=(inputs, size, size)),
        RNG.normal(size=(len(pairs), 5, 5)),
        RNG.normal(size=len(table)),
    )
    patches = np.lib.stride_tricks.sliding_window_view(x, (5, 5), axis=(1, 2))
    expected = np.repeat(bias, (size - 4) ** 2).reshape(len(table), size - 4, size - 4)
    for (i, j), weights in zip(pairs, kernel, strict=True):
        expected[i] += np.einsum("mnkl,kl->mn", patches[j], weights)
    x, kernel, bias = to_32_bits(x, kernel, bias)
    result = convolve(x, layers.Convolution(kernel, bias), table)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)


def test_convolve_doesnt_flip_the_kernel():
    x, kernel, bias = to_32_bits(np.arange(36).reshape(1, 6, 6), np.zeros((1, 5, 5)), [0.5])
    kernel[0, 0, 1] = 1
    result = convolve(x, layers.Convolution(kernel, bias), ((0,),))
    np.testing.assert_array_equal(result, [[[1.5, 2.5], [7.5, 8.5]]])


def test_connections_are_ordered_by_output_map_then_input_map():
    output, source = layers.connections(model.C3_TABLE)
    pairs = list(zip(output.tolist(), source.tolist(), strict=True))
    assert pairs == sorted(set(pairs))
    assert pairs[:4] == [(0, 0), (0, 1), (0, 2), (1, 1)]


def test_dense_kernel_is_zero_where_not_connected():
    (kernel,) = to_32_bits(RNG.normal(size=(3, 5, 5)))
    result = jax.jit(lambda kernel: layers.dense_kernel(kernel, ((1,), (0, 2)), 3))(kernel)
    expected = np.zeros((2, 3, 5, 5), np.float32)
    expected[0, 1], expected[1, 0], expected[1, 2] = kernel
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize(
    ("function", "reduce"),
    [(layers.average_windows, np.mean), (layers.maximum_windows, np.max)],
    ids=["average", "max"],
)
def test_windows(function, reduce):
    (maps,) = to_32_bits(RNG.normal(size=(3, 6, 8)))
    corners = [maps[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
    np.testing.assert_allclose(jax.jit(function)(maps), reduce(corners, axis=0), rtol=1e-6, atol=1e-6)


def test_subsample():
    maps, coefficient, bias = to_32_bits(np.arange(32).reshape(2, 4, 4), [2.0, -1.0], [0.5, 0.0])
    result = subsample(maps, layers.Subsampling(coefficient, bias), "mean")
    expected = [[[5.5, 9.5], [21.5, 25.5]], [[-18.5, -20.5], [-26.5, -28.5]]]
    np.testing.assert_allclose(result, expected, rtol=1e-6)
    sums = subsample(maps, layers.Subsampling(coefficient, bias), "sum")
    np.testing.assert_allclose(sums, 4 * (np.array(expected) - [[[0.5]], [[0]]]) + [[[0.5]], [[0]]], rtol=1e-6)


@pytest.mark.parametrize("shape", [(7,), (2, 3, 4)], ids=str)
def test_dense(shape):
    inputs, kernel, bias = to_32_bits(RNG.normal(size=shape), RNG.normal(size=(*shape, 5)), RNG.normal(size=5))
    expected = inputs.ravel() @ kernel.reshape(-1, 5) + bias
    result = jax.jit(layers.dense)(inputs, layers.Dense(kernel, bias))
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sigmoid", lambda a: 1 / (1 + np.exp(-a))),
        ("tanh", np.tanh),
        ("scaled_tanh", lambda a: 1.7159 * np.tanh(2 * a / 3)),
        ("relu", lambda a: np.where(a > 0, a, 0)),
    ],
)
def test_activation(name, expected):
    a = np.linspace(-5, 5, 41).reshape(1, 41)
    np.testing.assert_allclose(jax.jit(layers.ACTIVATIONS[name])(*to_32_bits(a)), expected(a), rtol=1e-5, atol=1e-6)


def test_every_activation_is_tested():
    (parametrize,) = [mark for mark in test_activation.pytestmark if mark.name == "parametrize"]
    assert {case[0] for case in parametrize.args[1]} == set(layers.ACTIVATIONS)


def test_scaled_tanh_maps_targets_to_themselves():
    np.testing.assert_allclose(jax.jit(layers.scaled_tanh)(*to_32_bits([-1.0, 1.0])), [-1, 1], atol=1e-4)


def test_shapes_are_checked_at_run_time():
    maps, kernel, bias = map(jnp.zeros, ((2, 6, 6), (2, 5, 5), (2,)))
    with pytest.raises(jaxtyping.TypeCheckError, match="maps"):
        layers.convolve(maps[0], layers.Convolution(kernel, bias), ((0,), (1,)))
    with pytest.raises(jaxtyping.TypeCheckError, match="kernel"):
        layers.dense_kernel(kernel[:, :4], ((0,), (1,)), 2)


def test_bitmaps_are_the_papers():
    """PAPER_1998.md: black pixels of each digit, and the smallest Hamming distance, between 6 and 8."""
    black = BITMAPS == 1
    assert (np.abs(BITMAPS) == 1).all()
    assert black.sum(axis=1).tolist() == [35, 27, 33, 32, 41, 35, 39, 25, 43, 39]
    distances = {(i, j): int((black[i] != black[j]).sum()) for i in range(10) for j in range(i)}
    assert min(distances.values()) == 12
    assert [pair for pair, distance in distances.items() if distance == 12] == [(8, 6)]


def test_a_bitmap_looks_like_its_digit():
    rows = BITMAPS[7].reshape(12, 7)
    assert ["".join("#" if pixel > 0 else "." for pixel in row) for row in rows[:4]] == [
        "#######",
        ".....##",
        ".....##",
        "....##.",
    ]


def test_rbf():
    states = np.random.default_rng(0).normal(size=(2, 84)).astype(np.float32)
    expected = [[np.square(state - center).sum() for center in BITMAPS] for state in states]
    np.testing.assert_allclose(rbf(states), expected, rtol=1e-5)
    assert np.asarray(rbf(BITMAPS[3]))[3] == 0
