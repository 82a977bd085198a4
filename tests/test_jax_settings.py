"""What JAX is set to changes no seed; what changes rounding is recorded, and refused when a run is resumed."""

import contextlib

import jax
import numpy as np
import pytest

from lenet_jax import jax_settings, population, programs
from lenet_jax.distortions import Distortion, Elastic, distort
from lenet_jax.errors import InputError
from lenet_jax.losses import Loss
from lenet_jax.model import Architecture
from lenet_jax.run import checkpoints
from lenet_jax.train import Images, Recipe

RECIPE = Recipe(Architecture("tanh"), Loss("mse"), "sgd", "constant", batch_size=5, epochs=1, train_size=10)
HYPER = {"learning_rate": [0.1] * 2, "momentum": [0.0] * 2, "weight_decay": [0.0] * 2, "mu": [0.02] * 2}

ENVIRONMENT = {"versions": {}, "processor": "", "fingerprints": {}, "started": "2026-01-01T00:00:00+00:00"}


def trained(digits):
    """States before and after an epoch, and predictions, which are compiled on first use."""
    programs.compile_program.cache_clear()
    pixels, labels = digits
    images = Images(pixels[:20], labels[:20], np.float32(1 / 255), np.float32(0))
    members = population.create([0, 7], HYPER, images, RECIPE)
    start = population.snapshot(members)
    population.train_segment(members)
    population.restore(members, population.snapshot(members))
    return start, population.snapshot(members), population.predict(members, range(10, 20))


@contextlib.contextmanager
def seed_offset(offset):
    jax.config.update("jax_random_seed_offset", offset)  # it has no context manager
    try:
        yield
    finally:
        jax.config.update("jax_random_seed_offset", 0)


@pytest.mark.slow
def test_jax_settings_change_no_number(digits):
    """In one process; test_cli.py has the same with variables of the environment, in a process of its own."""
    expected = trained(digits)
    with jax.default_prng_impl("rbg"), seed_offset(5):
        other_keys = trained(digits)
    with (
        jax.threefry_partitionable(False),
        jax.enable_x64(True),
        jax.numpy_dtype_promotion("strict"),
        jax.disable_jit(True),
    ):
        other_types = trained(digits)
    for found in (other_keys, other_types):
        jax.tree.map(np.testing.assert_array_equal, found, expected)
        assert jax.tree.map(lambda leaf: leaf.dtype, found) == jax.tree.map(lambda leaf: leaf.dtype, expected)


def test_elastic_distortions_keep_their_random_numbers():
    matrix, image = np.eye(2, dtype=np.float32), np.eye(8, dtype=np.float32)
    drawn = Distortion(matrix, np.zeros(2, np.float32), Elastic(np.float32(1), np.uint32(3)))
    expected = jax.jit(distort)(image, drawn, 0.0)
    with jax.default_prng_impl("rbg"), seed_offset(5):
        np.testing.assert_array_equal(jax.jit(distort)(image, drawn, 0.0), expected)


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_keys_are_those_of_jax(seed):
    ours, theirs = (make(jax.numpy.uint32(seed)) for make in (jax_settings.key_of, jax.random.key))
    assert (jax.random.key_data(ours) == jax.random.key_data(theirs)).all()


def test_a_run_is_resumed_with_the_settings_that_it_was_begun_with(tmp_path):
    environment = ENVIRONMENT | {"jax_settings": jax_settings.described()}
    checkpoints.record_attempt(tmp_path, environment)
    with jax.default_matmul_precision("bfloat16"):
        assert jax_settings.described()["jax_default_matmul_precision"] == "bfloat16"
        changed = environment | {"jax_settings": jax_settings.described()}
    with pytest.raises(
        InputError, match=r"^workdir: .* begun with jax_default_matmul_precision 'None', and now it is 'b"
    ):
        checkpoints.record_attempt(tmp_path, changed)
    assert checkpoints.read_attempts(tmp_path) == [environment]
    checkpoints.record_attempt(tmp_path, environment)


def test_a_run_from_before_settings_were_recorded_can_be_resumed(tmp_path):
    checkpoints.record_attempt(tmp_path, ENVIRONMENT)
    checkpoints.record_attempt(tmp_path, ENVIRONMENT | {"jax_settings": jax_settings.described()})


def test_settings_can_be_set_again_which_workers_do():
    current = jax_settings.current()
    assert "jax_default_matmul_precision" in current
    for name, value in current.items():
        jax.config.update(name, value)
    assert jax_settings.current() == current
