"""The convolutions in C against those of `layers`, and what happens where they can't be compiled."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lenet_jax import blocked, layers, library, native, programs
from lenet_jax.layers import Convolution
from lenet_jax.model import C1_TABLE, CONNECTIVITIES, Architecture

pytestmark = [
    pytest.mark.skipif(not native.available(), reason="there is no C compiler"),
    pytest.mark.usefixtures("quick_compilation"),
]


def by_window(maps, parameters, table):
    """`layers.convolve` of every image, in the order of `native.convolve`."""
    of_one = functools.partial(layers.convolve, parameters=parameters, table=table)
    found = jax.vmap(of_one, in_axes=-1, out_axes=-1)(maps)
    outputs, rows, columns, batch = found.shape
    windows = found.reshape(outputs, rows // 2, 2, columns // 2, 2, batch).transpose(2, 4, 0, 1, 3, 5)
    return windows.reshape(4, outputs, -1, batch)


@functools.partial(jax.jit, static_argnames=("convolve", "table"))
def outputs_and_gradients(maps, parameters, slopes, convolve, table):
    outputs, backward = jax.vjp(lambda maps, parameters: convolve(maps, parameters, table), maps, parameters)
    return outputs, backward(slopes)


TABLES = {"c1": (C1_TABLE, 32), **{name: (table, 14) for name, table in CONNECTIVITIES.items()}}
TABLES["sparse"] = ((0,), (1, 3), (0, 2, 5)), 14  # a map, 4, that no output sees


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    layer=st.sampled_from(sorted(TABLES)),
    batch=st.sampled_from([16, 17, 31, 32, 50]),
    double=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_the_convolution(layer, batch, double, seed, assert_close):
    """Outputs and all gradients, for batches that fill vectors and those that don't, in both precisions."""
    table, size = TABLES[layer]
    rng = np.random.default_rng(seed)
    inputs, count = (1 if layer == "c1" else 6), sum(map(len, table))
    with jax.enable_x64(double):
        kind = np.float64 if double else np.float32
        maps = kind(rng.normal(size=(inputs, size, size, batch)))
        parameters = Convolution(*(kind(rng.normal(size=shape)) for shape in ((count, 5, 5), len(table))))
        slopes = kind(rng.normal(size=(4, len(table), (size - 4) ** 2 // 4, batch)))
        fast = outputs_and_gradients(maps, parameters, slopes, convolve=native.convolve, table=table)
        slow = outputs_and_gradients(maps, parameters, slopes, convolve=by_window, table=table)
        assert {leaf.dtype for leaf in jax.tree.leaves(fast)} == {np.dtype(kind)}
        assert_close(fast, slow, 1e-12 if double else 1e-5)


def test_mixed_precisions_are_promoted(assert_close):
    rng = np.random.default_rng(0)
    maps, slopes = np.float32(rng.normal(size=(1, 32, 32, 16))), rng.normal(size=(4, 6, 196, 16))
    with jax.enable_x64(True):
        parameters = Convolution(rng.normal(size=(6, 5, 5)), rng.normal(size=6))
        outputs, gradients = outputs_and_gradients(maps, parameters, slopes, convolve=native.convolve, table=C1_TABLE)
        expected = outputs_and_gradients(np.float64(maps), parameters, slopes, convolve=by_window, table=C1_TABLE)
    assert (outputs.dtype, gradients[0].dtype) == (np.float64, np.float32)
    assert_close((outputs, gradients[1]), (expected[0], expected[1][1]), 1e-12)


def test_vmapped_networks_are_those_one_by_one(assert_close):
    rng = np.random.default_rng(0)
    maps = jnp.asarray(np.float32(rng.normal(size=(1, 32, 32, 16))))
    kernels, biases = np.float32(rng.normal(size=(3, 6, 5, 5))), np.ones((3, 6), np.float32)
    of_one = jax.jit(lambda *arrays: native.convolve(maps, Convolution(*arrays), C1_TABLE))
    together = jax.jit(jax.vmap(of_one))(kernels, biases)
    alone = [of_one(*arrays) for arrays in zip(kernels, biases, strict=True)]
    assert_close(together, np.stack(alone), 1e-6)


@pytest.mark.parametrize("architecture", [Architecture("tanh"), Architecture("relu", "full", "max", output="rbf")])
def test_the_network_is_the_blocked_one(architecture, random_params, assert_close):
    params = jax.tree.map(np.float32, random_params(architecture))
    images = np.float32(np.random.default_rng(0).normal(size=(20, 32, 32)))
    few = images[: native.LEAST_IMAGES - 1]
    native_grid = functools.partial(blocked.to_grid, allow_native=True)
    assert jax.eval_shape(native_grid, images).shape == (1, 32, 32, 20)
    assert jax.eval_shape(native_grid, few) == jax.eval_shape(blocked.to_grid, few), "few images take blocks"

    def gradient(allow_native):
        def objective(params, images):
            return jnp.square(blocked.forward(params, images, architecture, allow_native)).mean()

        return jax.jit(jax.value_and_grad(objective))(params, images)

    assert_close(gradient(True), gradient(False), 2e-5)


@pytest.mark.parametrize(("batch", "kind"), [(15, jnp.float32), (16, jnp.bfloat16)])
def test_other_arrays_are_refused(batch, kind):
    """The C code would read beyond them."""

    def convolved():
        parameters = Convolution(jnp.zeros((6, 5, 5), kind), jnp.zeros(6, kind))
        return native.convolve(jnp.zeros((1, 32, 32, batch), kind), parameters, C1_TABLE)

    with pytest.raises(ValueError, match=f"{batch} images of .*; the C code takes 16 or more, float32 or float64"):
        jax.eval_shape(convolved)


def test_without_a_compiler_the_blocked_form_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert library.obtain() is None
    (tmp_path / "cc").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "cc").chmod(0o700)
    assert library.obtain() is None, "a compiler that fails"
    program = "from lenet_jax import native, programs; print(native.available(), programs.arithmetic())"
    command = [sys.executable, "-c", program]
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"False {programs.ARITHMETIC}, blocked"


def test_a_library_that_others_can_change_is_not_loaded(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = library.obtain()
    assert path.parent == tmp_path / "lenet_jax" / "native"
    monkeypatch.setenv("PATH", "")
    assert library.obtain() == path, "it is compiled once"
    path.chmod(0o777)
    assert library.obtain() is None
    path.chmod(0o700)
    other = tmp_path / "other.so"
    path.rename(other)
    path.symlink_to(other)
    assert library.obtain() is None, "a link"
