"""Tests of the pictures of a network, on known numbers."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from lenet_jax import layers, model
from lenet_jax.analysis import network_figures
from lenet_jax.model import Architecture

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture
def axes():
    return Figure().add_subplot()


def drawn(axes):
    return np.ma.filled(axes.get_images()[0].get_array().astype(float), np.nan)


def test_maps_are_side_by_side(axes):
    state = np.arange(3 * 2 * 2.0).reshape(3, 2, 2)
    assert network_figures.maps(state, axes, "three", across=2) is axes
    nan = np.nan
    expected = [[0, 1, nan, 4, 5], [2, 3, nan, 6, 7], [nan] * 5, [8, 9, nan, nan, nan], [10, 11, nan, nan, nan]]
    np.testing.assert_array_equal(drawn(axes), expected)
    assert axes.get_title() == "three"


def test_units_are_wrapped(axes):
    network_figures.maps(jnp.arange(5.0), axes, across=3)
    np.testing.assert_array_equal(drawn(axes), [[0, 1, 2], [3, 4, np.nan]])
    np.testing.assert_array_equal(
        drawn(network_figures.maps(jnp.arange(5.0), Figure().add_subplot())), [[0, 1, 2, 3, 4]]
    )


def test_kernels_have_one_scale_with_white_at_0(axes):
    kernel = np.linspace(-3, 1, 50).reshape(2, 5, 5)
    assert network_figures.kernels(kernel, axes) is axes
    assert axes.get_images()[0].get_clim() == (-3, 3)
    assert drawn(axes).shape == (5, 11)
    assert network_figures.kernels(np.zeros((1, 5, 5)), Figure().add_subplot())


def test_the_connections_are_those_of_the_table(axes):
    assert network_figures.connections(model.C3_TABLE, axes) is axes
    there = drawn(axes)
    assert there.shape == (6, 16)
    assert axes.get_title() == "60 connections"
    assert [tuple(np.flatnonzero(column)) for column in there.T] == list(model.C3_TABLE)


def test_the_best_score_has_another_colour(axes):
    assert network_figures.scores([0.1, 0.7, 0.2], axes, "p") is axes
    colours = [bar.get_facecolor() for bar in axes.patches]
    assert colours[0] == colours[2] != colours[1]
    assert [bar.get_height() for bar in axes.patches] == [0.1, 0.7, 0.2]


def test_codes_are_pictures_of_digits(axes):
    network_figures.code(np.arange(84) / 84, axes)
    np.testing.assert_allclose(drawn(axes)[1, 0], 7 / 84)
    one = drawn(network_figures.code(layers.BITMAPS[1], Figure().add_subplot()))
    assert one.shape == (12, 7)
    np.testing.assert_array_equal(one.ravel(), layers.BITMAPS[1])


@pytest.mark.parametrize("subsampling", ["trainable", "max"])
def test_all_states_of_an_image(subsampling):
    architecture = Architecture(subsampling=subsampling, output="linear")
    image = jnp.asarray(np.random.default_rng(1).normal(size=(32, 32)).astype(np.float32))
    compute = jax.jit(lambda key: model.activations(model.init(key, architecture), image, architecture))
    figure = network_figures.states(compute(jax.random.key(0)), image)
    assert [axes.get_title(loc="left").split(":")[0] for axes in figure.axes] == [
        *("input, 32 x 32", "C1", "S2", "C3", "S4", "C5", "F6", "output")
    ]
    figure.savefig(io.BytesIO())


def test_a_picture_is_ink_on_paper(axes):
    assert network_figures.picture(np.eye(4), axes, "diagonal") is axes
    assert axes.get_images()[0].get_cmap().name == "gray_r"
