"""Distortions against scipy, and in the magnitudes that their fields promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from lenet_jax.distortions import Affine, Augmentation, distort, draw
from lenet_jax.errors import InputError

NOTHING = {"max_translation": 0.0, "max_scaling": 0.0, "max_squeezing": 0.0, "max_shear": 0.0}
COUNT = 2000


def drawn(**fields):
    return draw(jax.random.key(0), COUNT, Augmentation("affine", **{"distorted_share": 1.0, **NOTHING, **fields}))


def test_equals_scipys_affine_transform():
    image = np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32)
    affine = draw(jax.random.key(1), 5, Augmentation("affine", distorted_share=1.0))
    for matrix, shift in zip(affine.matrix, affine.shift, strict=True):
        offset = 15.5 + np.asarray(shift) - np.asarray(matrix) @ [15.5, 15.5]
        # Beyond the edge scipy's "grid-constant" blends with the background, as ours does.
        expected = scipy.ndimage.affine_transform(image, matrix, offset, order=1, mode="grid-constant", cval=-0.1)
        np.testing.assert_allclose(distort(jnp.asarray(image), Affine(matrix, shift), -0.1), expected, atol=1e-4)


def test_no_distortion_leaves_the_image():
    image = np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32)
    still = Affine(jnp.eye(2), jnp.zeros(2))
    np.testing.assert_array_equal(distort(jnp.asarray(image), still, 0.0), image)


def test_translation_moves_whole_pixels():
    image = jnp.zeros((32, 32)).at[10, 12].set(1.0)
    moved = distort(image, Affine(jnp.eye(2), jnp.array([2.0, -3.0])), 0.0)
    assert np.argwhere(moved == 1).tolist() == [[8, 15]]


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
    affine = draw(jax.random.key(2), COUNT, Augmentation("affine", distorted_share=0.9))
    still = (np.asarray(affine.matrix) == np.eye(2)).all(axis=(1, 2)) & (np.asarray(affine.shift) == 0).all(axis=1)
    assert 0.08 < still.mean() < 0.12


def test_an_unknown_augmentation_is_refused():
    with pytest.raises(InputError, match="augmentation: 'elastic' is not one of 'none', 'affine'"):
        Augmentation("elastic")
