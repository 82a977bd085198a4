"""Distortions against scipy, and in the magnitudes that their fields promise."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import scipy.ndimage

from lenet_jax import distortions
from lenet_jax.distortions import SMOOTHNESS, Augmentation, Distortion, elastic_fields
from lenet_jax.errors import InputError

pytestmark = pytest.mark.usefixtures("quick_compilation")

NOTHING = {"max_translation": 0.0, "max_scaling": 0.0, "max_squeezing": 0.0, "max_shear": 0.0}
COUNT = 2000


STILL = Distortion(np.eye(2, dtype=np.float32), np.zeros(2, np.float32))

distort = jax.jit(distortions.distort)


@functools.partial(jax.jit, static_argnames="kind")
def draw_kind(seed, kind, magnitudes):
    return distortions.draw(jax.random.key(seed), COUNT, Augmentation(kind, **magnitudes))


def draw(seed, augmentation):
    """`COUNT` distortions, as NumPy arrays. All magnitudes share a program."""
    magnitudes = dataclasses.asdict(augmentation)
    return jax.device_get(draw_kind(seed, magnitudes.pop("augmentation"), magnitudes))


def drawn(**fields):
    return draw(0, Augmentation("affine", **{"distorted_share": 1.0, **NOTHING, **fields}))


def test_equals_scipys_affine_transform():
    image = np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32)
    affine = draw(1, Augmentation("affine", distorted_share=1.0))
    for matrix, shift in zip(affine.matrix[:5], affine.shift[:5], strict=True):
        offset = 15.5 + shift - matrix @ [15.5, 15.5]
        # Beyond the edge scipy's "grid-constant" blends with the background, as ours does.
        expected = scipy.ndimage.affine_transform(image, matrix, offset, order=1, mode="grid-constant", cval=-0.1)
        np.testing.assert_allclose(distort(image, Distortion(matrix, shift), -0.1), expected, atol=1e-4)


def test_no_distortion_leaves_the_image():
    image = np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32)
    np.testing.assert_array_equal(distort(image, STILL, 0.0), image)


def test_translation_moves_whole_pixels():
    image = np.zeros((32, 32), np.float32)
    image[10, 12] = 1
    moved = distort(image, STILL.replace(shift=np.array([2, -3], np.float32)), 0.0)
    assert np.argwhere(np.asarray(moved) == 1).tolist() == [[8, 15]]


def test_each_kind_alone_and_its_magnitude():
    translated = drawn(max_translation=3.0)
    np.testing.assert_array_equal(translated.matrix, np.broadcast_to(np.eye(2), (COUNT, 2, 2)))
    assert_fills(translated.shift, -3.0, 3.0)
    scaled = drawn(max_scaling=0.2)
    down, across = scaled.matrix[:, 0, 0], scaled.matrix[:, 1, 1]
    np.testing.assert_array_equal(down, across)
    assert_fills(down, 1 / 1.2, 1.2)
    squeezed = drawn(max_squeezing=0.2)
    np.testing.assert_allclose(squeezed.matrix[:, 0, 0] * squeezed.matrix[:, 1, 1], 1, rtol=1e-5)
    assert_fills(squeezed.matrix[:, 0, 0], 1 / 1.2, 1.2)
    sheared = drawn(max_shear=0.3)
    np.testing.assert_array_equal(sheared.matrix[:, 0], np.broadcast_to([1.0, 0.0], (COUNT, 2)))  # rows stay rows
    assert_fills(sheared.matrix[:, 1, 0], -0.3, 0.3)


def assert_fills(values, low, high):
    """All are between low and high, and some are close to each."""
    tolerance = 0.01 * (high - low)
    assert low - 1e-6 <= np.min(values) < low + tolerance
    assert high - tolerance < np.max(values) <= high + 1e-6


def test_the_share_that_is_distorted():
    affine = draw(2, Augmentation("affine", distorted_share=0.9))
    still = (affine.matrix == np.eye(2)).all(axis=(1, 2)) & (affine.shift == 0).all(axis=1)
    assert 0.08 < still.mean() < 0.12


def test_an_unknown_augmentation_is_refused():
    with pytest.raises(InputError, match="augmentation: 'rubber' is not one of 'none', 'affine', 'elastic'"):
        Augmentation("rubber")


def test_elastic_fields_are_smoothed_white_noise():
    """Of deviation 1 everywhere, and correlated over distances as noise that scipy's Gaussian filter has smoothed."""
    make = jax.jit(jax.vmap(lambda key: elastic_fields(key, 32, 32)[0]))
    fields = np.asarray(make(jax.random.split(jax.random.key(3), 4000)))
    assert np.abs(fields.mean(axis=0)).max() < 0.08
    np.testing.assert_allclose(fields.std(axis=0), 1, atol=0.06)
    noise = np.random.default_rng(0).normal(size=(300, 96, 96))
    smooth = scipy.ndimage.gaussian_filter(noise, (0, SMOOTHNESS, SMOOTHNESS), mode="wrap")
    for distance in (1, 3, 6, 10):
        expected = np.mean(smooth[:, :, distance:] * smooth[:, :, :-distance]) / np.mean(smooth**2)
        for found in (
            np.mean(fields[:, :, distance:] * fields[:, :, :-distance]),
            np.mean(fields[:, distance:] * fields[:, :-distance]),
        ):
            assert found == pytest.approx(expected, abs=0.03)


def test_elastic_distortions_move_every_pixel_by_their_field():
    image = np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32)
    elastic = draw(1, Augmentation("elastic", distorted_share=1.0))
    fields_of = jax.jit(lambda seed: elastic_fields(jax.random.key(seed), 32, 32))
    for index in range(4):
        one = jax.tree.map(lambda leaf, index=index: leaf[index], elastic)
        down, across = fields_of(one.elastic.seed)
        at = np.indices((32, 32)) - 15.5
        source = np.einsum("ij,jrc->irc", one.matrix, at) + 15.5 + one.shift[:, None, None]
        source += 1.4 * np.stack([down, across])
        expected = scipy.ndimage.map_coordinates(image + 0.1, source, order=1, mode="grid-constant") - 0.1
        np.testing.assert_allclose(distort(image, one, -0.1), expected, atol=1e-4)


def test_without_their_field_elastic_distortions_are_affine():
    affine, elastic = (draw(4, Augmentation(kind)) for kind in ("affine", "elastic"))
    np.testing.assert_array_equal(affine.matrix, elastic.matrix)
    np.testing.assert_array_equal(affine.shift, elastic.shift)
    still = elastic.elastic.displacement == 0
    assert 0.08 < still.mean() < 0.12
    assert (affine.shift[still] == 0).all(), "what isn't distorted is not at all"
    assert len(np.unique(elastic.elastic.seed)) == COUNT
    # Which image is distorted, and how, are drawn apart.
    seeds = elastic.elastic.seed / 2.0**32
    assert abs(seeds[still].mean() - seeds[~still].mean()) < 0.1
