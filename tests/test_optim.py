"""Optimizers and schedules against plain NumPy updates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lenet_jax.optim import OPTIMIZERS, SCHEDULES, Hyperparameters, transformation

STEPS = 5
RATE, MOMENTUM, DECAY = 0.1, 0.8, 0.05
START = np.array([1.0, -2.0, 0.5])
GRADIENTS = np.array([[0.3, -1.0, 2.0], [0.1, 0.5, -1.0], [-0.7, 0.2, 0.4]])

FACTORS = {
    "constant": lambda step: 1.0,
    "cosine": lambda step: (1 + np.cos(np.pi * step / STEPS)) / 2,
    "linear": lambda step: 1 - step / STEPS,
}


def expected_steps(optimizer, schedule):
    weights, trace, first, second = START.copy(), np.zeros(3), np.zeros(3), np.zeros(3)
    history = []
    for step, gradient in enumerate(GRADIENTS):
        decayed = gradient if optimizer == "adamw" else gradient + DECAY * weights
        if optimizer == "sgd":
            direction = decayed
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


def actual_steps(optimizer, schedule, rate):
    hyper = Hyperparameters(rate, jnp.asarray(MOMENTUM, rate.dtype), jnp.asarray(DECAY, rate.dtype))
    optimizer = transformation(optimizer, schedule, STEPS, hyper)
    weights = jnp.asarray(START, rate.dtype)
    state = optimizer.init(weights)
    history = []
    for gradient in jnp.asarray(GRADIENTS, rate.dtype):
        update, state = optimizer.update(gradient, state, weights)
        weights = weights + update
        history.append(weights)
    return jnp.stack(history)


def test_every_schedule_is_tested():
    assert set(FACTORS) == set(SCHEDULES)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_three_steps(optimizer, schedule):
    with jax.enable_x64(True):
        history = actual_steps(optimizer, schedule, jnp.array(RATE))
        # optax's linear schedule counts in float32.
        tolerance = 1e-6 if schedule == "linear" else 1e-12
        np.testing.assert_allclose(history, expected_steps(optimizer, schedule), rtol=tolerance)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_schedule_ends_at_zero(schedule):
    np.testing.assert_allclose(SCHEDULES[schedule](jnp.array(STEPS), STEPS), 0, atol=1e-7)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_members_may_differ_in_learning_rate(optimizer):
    rates = jnp.array([0.01, 0.1, 1.0])
    together = jax.vmap(lambda rate: actual_steps(optimizer, "cosine", rate))(rates)
    separate = jnp.stack([actual_steps(optimizer, "cosine", rate) for rate in rates])
    np.testing.assert_allclose(together, separate, rtol=1e-5)
    assert len(np.unique(together[:, 0, 0])) == 3
