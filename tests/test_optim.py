"""Optimizers and schedules against plain NumPy updates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lenet_jax.optim import OPTIMIZERS, SCHEDULES, Hyperparameters, sdlm, transformation

pytestmark = pytest.mark.usefixtures("quick_compilation")

STEPS, EPOCH_STEPS = 6, 2
RATE, MOMENTUM, DECAY, MU = 0.1, 0.8, 0.05, 0.02
START = np.array([1.0, -2.0, 0.5])
CURVATURE = np.array([0.0, 0.08, 3.0])
GRADIENTS = np.array(
    [[0.3, -1.0, 2.0], [0.1, 0.5, -1.0], [-0.7, 0.2, 0.4], [1.0, 0.0, -0.5], [0.2, -0.3, 0.9], [0.4, 0.1, 0.6]]
)

FACTORS = {
    "constant": lambda step: 1.0,
    "cosine": lambda step: (1 + np.cos(np.pi * step / STEPS)) / 2,
    "linear": lambda step: 1 - step / STEPS,
    "lecun1998": lambda step: [1, 1, 1, 1, 0.4, 0.4][step],
    "thirds": lambda step: [1, 1, 0.1, 0.1, 0.01, 0.01][step],
}


def expected_steps(optimizer, schedule):
    weights, trace, first, second = START.copy(), np.zeros(3), np.zeros(3), np.zeros(3)
    history = []
    for step, gradient in enumerate(GRADIENTS):
        decayed = gradient if optimizer == "adamw" else gradient + DECAY * weights
        if optimizer == "sgd":
            direction = decayed
        elif optimizer == "sdlm":
            direction = decayed / (MU + CURVATURE)
        elif optimizer == "momentum":
            trace = direction = MOMENTUM * trace + decayed
        else:
            first = MOMENTUM * first + (1 - MOMENTUM) * decayed
            second = 0.999 * second + 0.001 * decayed**2
            unbiased = first / (1 - MOMENTUM ** (step + 1)), second / (1 - 0.999 ** (step + 1))
            direction = unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8)
            if optimizer == "adamw":
                direction = direction + DECAY * weights
        weights = weights - RATE * FACTORS[schedule](step) * direction
        history.append(weights)
    return np.array(history)


def steps_of(name, schedule, rate):
    hyper = Hyperparameters(rate, *(jnp.asarray(value, rate.dtype) for value in (MOMENTUM, DECAY, MU)))
    optimizer = transformation(name, schedule, STEPS, EPOCH_STEPS, hyper)
    start = jnp.asarray(START, rate.dtype)
    state = optimizer.init(start)
    if name == "sdlm":
        state = optax.tree.set(state, curvature=jnp.asarray(CURVATURE, rate.dtype))

    def step(carry, gradient):
        weights, state = carry
        update, state = optimizer.update(gradient, state, weights)
        return (weights + update, state), weights + update

    return jax.lax.scan(step, (start, state), jnp.asarray(GRADIENTS, rate.dtype))[1]


@functools.partial(jax.jit, static_argnames="schedules")
def actual_steps(rate, schedules):
    """By optimizer and schedule: one program for all."""
    return {name: {schedule: steps_of(name, schedule, rate) for schedule in schedules} for name in OPTIMIZERS}


def test_every_schedule_is_tested():
    assert set(FACTORS) == set(SCHEDULES)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_six_steps(optimizer, schedule):
    with jax.enable_x64(True):
        history = actual_steps(np.array(RATE), tuple(SCHEDULES))[optimizer][schedule]
        # optax's linear schedule counts in float32.
        tolerance = 1e-6 if schedule == "linear" else 1e-12
        np.testing.assert_allclose(history, expected_steps(optimizer, schedule), rtol=tolerance)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_schedule_ends_at_zero(schedule):
    factor = jax.jit(lambda step: SCHEDULES[schedule](step, STEPS, EPOCH_STEPS))
    np.testing.assert_allclose(factor(STEPS), 0, atol=1e-7)


def test_the_rates_of_1998():
    """PAPER_1998.md: 5e-4 for 2 epochs, 2e-4 for 3, 1e-4 for 3, 5e-5 for 4, 1e-5 from then on."""
    factor = jax.jit(lambda step: SCHEDULES["lecun1998"](step, 60, 3))
    rates = [5e-4 * float(factor(3 * epoch + 2)) for epoch in range(20)]
    np.testing.assert_allclose(rates, [5e-4] * 2 + [2e-4] * 3 + [1e-4] * 3 + [5e-5] * 4 + [1e-5] * 8, rtol=1e-6)


def test_sdlm_is_its_own_optax_transformation():
    """w <- w - eta / (mu + h) dE/dw, with the curvature that the state holds, and none at first."""

    @jax.jit
    def updates(weights, curvature):
        optimizer = sdlm(0.5, MU)
        state = optimizer.init(weights)
        known = optax.tree.set(state, curvature=curvature)
        return optimizer.update(weights, state)[0], optimizer.update(weights, known)[0]

    first, second = updates(np.float32(START), np.float32(CURVATURE))
    np.testing.assert_allclose(first, -0.5 / MU * START, rtol=1e-6)
    np.testing.assert_allclose(second, -0.5 / (MU + CURVATURE) * START, rtol=1e-6)


together_steps = jax.jit(jax.vmap(lambda rate: actual_steps(rate, ("cosine",))))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_members_may_differ_in_learning_rate(optimizer):
    rates = np.array([0.01, 0.1, 1.0], np.float32)
    together = np.asarray(together_steps(rates)[optimizer]["cosine"])
    separate = [actual_steps(rate, ("cosine",))[optimizer]["cosine"] for rate in rates]
    np.testing.assert_allclose(together, separate, rtol=1e-5)
    assert len(np.unique(together[:, 0, 0])) == 3
