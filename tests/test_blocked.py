"""The fast forward function and its gradients against those of `model.forward`."""

import functools

import jax
import numpy as np
import pytest
from covering import pairwise
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lenet_jax import blocked, model
from lenet_jax.initializers import INITIALIZERS
from lenet_jax.layers import ACTIVATIONS
from lenet_jax.model import CONNECTIVITIES, OUTPUTS, SUBSAMPLINGS, WINDOWS, Architecture

pytestmark = pytest.mark.usefixtures("quick_compilation")


@functools.partial(jax.jit, static_argnames=("forward", "architecture"))
def outputs_and_gradients(params, images, weights, architecture, forward):
    """The outputs, and the gradients of a weighted sum of them."""

    def objective(params):
        outputs = forward(params, images, architecture)
        return (outputs * weights).sum(), outputs

    gradients, outputs = jax.grad(objective, has_aux=True)(params)
    return {"outputs": outputs, "gradients": gradients}


def one_by_one(params, images, weights, architecture):
    """The same from the model, with one program for all images."""
    pairs = zip(images, weights, strict=True)
    found = [outputs_and_gradients(params, *pair, architecture, model.forward) for pair in pairs]
    together = jax.tree.map(lambda *leaves: np.stack(leaves), *jax.device_get(found))
    return together | {"gradients": jax.tree.map(lambda leaf: leaf.sum(axis=0), together["gradients"])}


def draw(architecture, batch, seed):
    """Images, and weights of the outputs, in float64."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(batch, 32, 32)), rng.normal(size=(batch, architecture.classes))


TOLERANCES = {np.float64: 1e-10, np.float32: 1e-5}
"""By precision: the largest difference, relative to the largest number of an array."""


@pytest.mark.parametrize(
    ("activation", "connectivity", "subsampling", "precision"),
    pairwise(ACTIVATIONS, CONNECTIVITIES, SUBSAMPLINGS, TOLERANCES),
)
def test_equals_the_model(activation, connectivity, subsampling, precision, random_params, assert_close):
    check(Architecture(activation, connectivity, subsampling), precision, random_params, assert_close)


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize(("window", "output"), [("mean", "rbf"), ("sum", "rbf"), ("sum", "squashed")])
def test_equals_the_model_with_1998s_parts(window, output, precision, random_params, assert_close):
    architecture = Architecture("scaled_tanh", subsampling_window=window, output=output)
    check(architecture, precision, random_params, assert_close)


def check(architecture, precision, random_params, assert_close):
    """Outputs and gradients in this precision equal the model's in float64."""
    with jax.enable_x64(True):
        params = random_params(architecture)
        images, weights = draw(architecture, 2, 0)
        expected = one_by_one(params, images, weights, architecture)
    with jax.enable_x64(precision == np.float64):
        params, images, weights = jax.tree.map(precision, (params, images, weights))
        found = outputs_and_gradients(params, images, weights, architecture, blocked.forward)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype(precision)}
    assert_close(found, expected, TOLERANCES[precision])


ARCHITECTURES = st.builds(
    Architecture,
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    connectivity=st.sampled_from(sorted(CONNECTIVITIES)),
    subsampling=st.sampled_from(SUBSAMPLINGS),
    subsampling_window=st.sampled_from(WINDOWS),
    output=st.sampled_from(OUTPUTS),
    initializer=st.sampled_from(sorted(INITIALIZERS)),
)


@pytest.mark.slow
@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(architecture=ARCHITECTURES, batch=st.sampled_from([2, 5]), seed=st.integers(0, 2**32 - 1))
def test_equals_the_model_for_any_network(architecture, batch, seed, assert_close):
    # Only in float64: with glorot_centered, preactivations cancel, which costs both forms a digit in float32.
    with jax.enable_x64(True):
        params = model.init(jax.random.key(seed), architecture)
        images, weights = draw(architecture, batch, seed)
        fast = outputs_and_gradients(params, images, weights, architecture, blocked.forward)
        slow = one_by_one(params, images, weights, architecture)
        assert_close(fast, slow, 1e-10)
