"""Losses against values worked out by hand."""

import functools

import jax
import numpy as np
import pytest

from lenet_jax.errors import InputError
from lenet_jax.losses import LOSSES, Loss, correct_penalty, cross_entropy, map_criterion, mse

pytestmark = pytest.mark.usefixtures("quick_compilation")

LABELS = np.array([1, 2], np.int32)

# softmax: [1/4, 1/2, 1/4] and [1/2, 1/4, 1/4]
LOGITS = np.log(np.array([[1, 2, 1], [6, 3, 3]], np.float32))

SCORES = np.array([[0, 1, 0], [2, -1, 0]], np.float32)

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
    found = jax.jit(lambda *batch: (mse(*batch, **options), loss(*batch)))(outputs, LABELS)
    np.testing.assert_allclose(found, [expected] * 2, rtol=1e-6)


@pytest.mark.parametrize("loss", [cross_entropy, Loss("cross_entropy")], ids=["function", "Loss"])
def test_cross_entropy(loss):
    # (log 2 + log 4) / 2 samples
    np.testing.assert_allclose(jax.jit(loss)(LOGITS, LABELS), 1.0397207708, rtol=1e-6)


def test_cross_entropy_of_a_confident_network_is_finite():
    np.testing.assert_allclose(jax.jit(cross_entropy)(np.array([[1000, 0]], np.float32), LABELS[:1]), 1000.0, rtol=1e-6)


PENALTIES = np.log(np.array([[2, 4, 4], [4, 2, 8]], np.float32))


def test_map_criterion():
    """y_D + log(e^-j + sum_i e^-y_i) with e^-j = 1/2: log 4 + log(1/2 + 1) and log 8 + log(1/2 + 7/8)."""
    expected = (np.log(4 * 1.5) + np.log(8 * 1.375)) / 2
    constant = float(np.log(2))
    # What losses are given are logits: penalties with their sign turned.
    loss = Loss("map", map_constant=constant)
    compute = jax.jit(lambda y, labels: (map_criterion(y, labels, constant=constant), loss(-y, labels)))
    np.testing.assert_allclose(compute(PENALTIES, LABELS), [expected] * 2, rtol=1e-6)


def test_correct_penalty():
    expected = (np.log(4) + np.log(8)) / 2
    loss = Loss("correct_penalty")
    compute = jax.jit(lambda y, labels: (correct_penalty(y, labels), loss(-y, labels)))
    np.testing.assert_allclose(compute(PENALTIES, LABELS), [expected] * 2, rtol=1e-6)


def test_map_criterion_of_large_penalties_is_finite():
    """e^-y is 0 in float32 from y = 104 on: then E = y_D - j."""
    loss = jax.jit(functools.partial(map_criterion, constant=20.0))
    np.testing.assert_allclose(loss(np.full((1, 3), 300, np.float32), np.array([0], np.int32)), 280.0)


@pytest.mark.parametrize("name", LOSSES)
def test_loss_is_a_mean_over_samples(name):
    loss = jax.jit(Loss(name))
    twice = loss(np.concatenate([LOGITS, LOGITS]), np.concatenate([LABELS, LABELS]))
    np.testing.assert_allclose(twice, loss(LOGITS, LABELS), rtol=1e-6)


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
        jax.jit(functools.partial(mse, **setting))(LOGITS, LABELS)
