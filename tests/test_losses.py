"""Losses against values worked out by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from lenet_jax.errors import InputError
from lenet_jax.losses import LOSSES, Loss, correct_penalty, cross_entropy, map_criterion, mse

LABELS = jnp.array([1, 2])

# softmax: [1/4, 1/2, 1/4] and [1/2, 1/4, 1/4]
LOGITS = jnp.log(jnp.array([[1.0, 2.0, 1.0], [6.0, 3.0, 3.0]]))

SCORES = jnp.array([[0.0, 1.0, 0.0], [2.0, -1.0, 0.0]])

MSE_CASES = [
    # Softmax, targets 0 and 1: (1/16 + 4/16 + 1/16 + 4/16 + 1/16 + 9/16) / 2 samples.
    ({}, LOGITS, 0.625),
    ({"factor": 0.5}, LOGITS, 0.3125),
    ({"reduction": "mean"}, LOGITS, 0.625 / 3),
    # Softmax, targets -1 and 1: (25/16 + 4/16 + 25/16 + 36/16 + 25/16 + 9/16) / 2.
    ({"target_code": "+-1"}, LOGITS, 3.875),
    # Scores, targets 0 and 1: (0 + 0 + 0 + 4 + 1 + 1) / 2.
    ({"point": "linear"}, SCORES, 3.0),
    # Scores, targets -1 and 1: (1 + 0 + 1 + 9 + 0 + 1) / 2.
    ({"point": "linear", "target_code": "+-1"}, SCORES, 6.0),
    ({"point": "linear", "target_code": "+-1", "reduction": "mean", "factor": 0.5}, SCORES, 1.0),
]


@pytest.mark.parametrize(("options", "outputs", "expected"), MSE_CASES)
def test_mse(options, outputs, expected):
    fields = {"point": "mse_point", "reduction": "mse_reduction", "factor": "mse_factor", "target_code": "target_code"}
    loss = Loss("mse", **{fields[name]: value for name, value in options.items()})
    np.testing.assert_allclose(mse(outputs, LABELS, **options), expected, rtol=1e-6)
    np.testing.assert_allclose(loss(outputs, LABELS), expected, rtol=1e-6)


@pytest.mark.parametrize("loss", [cross_entropy, Loss("cross_entropy")], ids=["function", "Loss"])
def test_cross_entropy(loss):
    # (log 2 + log 4) / 2 samples
    np.testing.assert_allclose(loss(LOGITS, LABELS), 1.0397207708, rtol=1e-6)


def test_cross_entropy_of_a_confident_network_is_finite():
    np.testing.assert_allclose(cross_entropy(jnp.array([[1000.0, 0.0]]), jnp.array([1])), 1000.0, rtol=1e-6)


PENALTIES = jnp.log(jnp.array([[2.0, 4.0, 4.0], [4.0, 2.0, 8.0]]))


def test_map_criterion():
    """y_D + log(e^-j + sum_i e^-y_i) with e^-j = 1/2: log 4 + log(1/2 + 1) and log 8 + log(1/2 + 7/8)."""
    expected = (np.log(4 * 1.5) + np.log(8 * 1.375)) / 2
    constant = float(np.log(2))
    np.testing.assert_allclose(map_criterion(PENALTIES, LABELS, constant=constant), expected, rtol=1e-6)
    # What losses are given are logits: penalties with their sign turned.
    np.testing.assert_allclose(Loss("map", map_constant=constant)(-PENALTIES, LABELS), expected, rtol=1e-6)


def test_correct_penalty():
    expected = (np.log(4) + np.log(8)) / 2
    np.testing.assert_allclose(correct_penalty(PENALTIES, LABELS), expected, rtol=1e-6)
    np.testing.assert_allclose(Loss("correct_penalty")(-PENALTIES, LABELS), expected, rtol=1e-6)


def test_map_criterion_of_large_penalties_is_finite():
    """e^-y is 0 in float32 from y = 104 on: then E = y_D - j."""
    np.testing.assert_allclose(map_criterion(jnp.full((1, 3), 300.0), jnp.array([0]), constant=20.0), 280.0)


@pytest.mark.parametrize("name", LOSSES)
def test_loss_is_a_mean_over_samples(name):
    twice = Loss(name)(jnp.concatenate([LOGITS, LOGITS]), jnp.concatenate([LABELS, LABELS]))
    np.testing.assert_allclose(twice, Loss(name)(LOGITS, LABELS), rtol=1e-6)


@pytest.mark.parametrize(
    ("field", "shown", "choices"),
    [
        ("name", "loss", "'mse', 'cross_entropy', 'map', 'correct_penalty'"),
        ("mse_point", "mse_point", "'softmax', 'linear'"),
        ("target_code", "target_code", "'0/1', '+-1'"),
        ("mse_reduction", "mse_reduction", "'sum', 'mean'"),
    ],
)
def test_unknown_setting_is_refused(field, shown, choices):
    with pytest.raises(InputError) as refusal:
        Loss(**{field: "huge"})
    assert str(refusal.value) == f"{shown}: 'huge' is not one of {choices}"


@pytest.mark.parametrize("setting", [{"point": "sofmax"}, {"target_code": "x"}, {"reduction": "avg"}])
def test_mse_refuses_unknown_settings(setting):
    field, value = next(iter(setting.items()))
    with pytest.raises(InputError, match=f"{field}: '{value}' is not one of"):
        mse(LOGITS, LABELS, **setting)
