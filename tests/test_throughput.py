"""The step that the benchmark of throughput times is that of the specification."""

import jax
import pytest

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.mark.parametrize("batch_size", [1, pytest.param(32, marks=pytest.mark.slow), 128])
def test_the_timed_step_is_that_of_the_specification(load_benchmark, batch_size, monkeypatch):
    """One image takes the blocked form, 128 two microbatches of the native one, if there is a compiler."""
    ours = load_benchmark("ours")
    # Operation by operation, what isn't timed would take longer to compile than the steps.
    monkeypatch.setattr(ours.model, "init", jax.jit(ours.model.init, static_argnames="architecture"))
    monkeypatch.setattr(ours.train, "init", jax.jit(ours.train.init, static_argnames="recipe"))
    images = ours.task.load("mnist10k", 128)
    weights, expected = ours.reference(images, batch_size)
    found = ours.one_step(images, ours.task.recipe(batch_size, 128), weights)
    assert not ours.task.disagreement(found, expected)
