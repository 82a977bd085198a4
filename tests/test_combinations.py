"""Components of 1998 and modern ones in random combinations, and a user's own: two steps each."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from lenet_jax import choices, crossed, curvature, distortions, initializers, losses, model, optim, registry, train
from lenet_jax.analysis import contrasts
from lenet_jax.data import preprocess
from lenet_jax.evaluate import METRICS
from lenet_jax.experiments import base
from lenet_jax.layers import ACTIVATIONS
from lenet_jax.run import plan, trackers
from lenet_jax.run.arms import DEFAULTS, FIELDS, expand

pytestmark = pytest.mark.usefixtures("quick_compilation")

CHOICES = {
    "label_noise": (0.0, 0.5),
    "normalization": preprocess.NORMALIZATIONS,
    "activation": ACTIVATIONS,
    "connectivity": model.CONNECTIVITIES,
    "subsampling": model.SUBSAMPLINGS,
    "subsampling_window": model.WINDOWS,
    "output": model.OUTPUTS,
    "initializer": initializers.INITIALIZERS,
    "loss": losses.LOSSES,
    "mse_point": losses.MSE_POINTS,
    "target_code": losses.TARGET_CODES,
    "optimizer": optim.OPTIMIZERS,
    "schedule": optim.SCHEDULES,
    "order": train.ORDERS,
    "augmentation": distortions.AUGMENTATIONS,
    "curvature_start": curvature.STARTS,
    "curvature_estimates": (1, 2),
    "curvature_memory": (0.0, 0.5),
    "batch_size": (1, 4),
}


def allowed(combination):
    """Cross-entropy, and MSE after softmax, need the output softmax or rbf; some losses need rbf, or exclude it."""
    loss, point, rbf = combination["loss"], combination["mse_point"], combination["output"] == "rbf"
    if (loss == "correct_penalty" and not rbf) or (loss == "mse" and point == "linear" and rbf):
        return False
    softmax = loss == "cross_entropy" or (loss == "mse" and point == "softmax")
    return combination["output"] in ("softmax", "rbf") or not softmax


COMBINATIONS = st.fixed_dictionaries({field: st.sampled_from(list(values)) for field, values in CHOICES.items()})


def arm_of(combination):
    """The arm of a sweep that has these values."""
    config = base.get_config()
    size = 2 * combination["batch_size"]
    config.update({"train_size": size, "curvature_patterns": size, "epochs": 1, "seeds": 2, "learning_rate": 1e-4})
    config.sweep.combination = ConfigDict({"plain": {}, "drawn": combination}, sort_keys=False)
    return expand(config)[1]


@functools.partial(jax.jit, static_argnames="recipe")
def trained(hyper, images, recipe):
    """The states before and after an epoch, and its metrics."""
    start = train.init(jnp.uint32(3), hyper, recipe)
    return start, *train.train_epoch(start, hyper, images, recipe)


def check(combination):
    """Trains two steps: parameters change and stay finite; returns the state after them."""
    arm = arm_of(combination)
    phase = plan.make([arm]).arms[0].test
    images, recipe = plan.images_of(phase.dataset, phase.images), phase.recipe
    hyper = optim.Hyperparameters(**{name: np.float32(arm.settings[name]) for name in optim.HYPERPARAMETERS})
    start, after, metrics = trained(hyper, images, recipe=recipe)
    assert np.isfinite(metrics.loss)
    moved = jax.tree.map(lambda new, old: not np.array_equal(new, old), after.params, start.params)
    assert any(jax.tree.leaves(moved))
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves((after.params, after.optimizer)))
    return after


def margin_loss(logits, labels, loss):
    """The mean over samples of the squared multiclass hinge loss."""
    correct = jnp.take_along_axis(logits, labels[:, None], axis=1)
    return jnp.square(jax.nn.relu(1 + logits - correct)).sum(axis=1).mean()


OWN_PARTS = {
    "activation": (ACTIVATIONS, jax.nn.gelu),
    "initializer": (initializers.INITIALIZERS, lambda fan_in, fan_out, activation: initializers.Start(0.05, 0.0)),
    "loss": (losses.LOSSES, margin_loss),
    "optimizer": (optim.OPTIMIZERS, lambda hyper: optax.scale_by_lion(hyper.momentum)),
    "schedule": (optim.SCHEDULES, lambda step, steps, epoch_steps: 0.5 ** (step / steps)),
    "connectivity": (model.CONNECTIVITIES, tuple((i, (i + 1) % 6) for i in range(6))),
}


@pytest.mark.parametrize("optimizer", ["sdlm", "own_optimizer"])
def test_a_users_own_parts(optimizer, monkeypatch):
    """An entry in its table is all that a new part needs, with 1998's optimizer as with others."""
    for field, (table, part) in OWN_PARTS.items():
        monkeypatch.setitem(table, f"own_{field}", part)
    check({field: f"own_{field}" for field in OWN_PARTS} | {"optimizer": optimizer, "batch_size": 4})


def test_the_curvature_is_measured_for_every_optimizer_that_uses_it(monkeypatch):
    def with_momentum(hyper):
        return optax.chain(optim.scale_by_curvature(hyper.mu), optax.trace(hyper.momentum))

    monkeypatch.setitem(optim.OPTIMIZERS, "own_sdlm", with_momentum)
    measured = optim.curvature_of(check({"optimizer": "own_sdlm", "batch_size": 4}).optimizer)
    assert all((leaf > 0).any() for leaf in jax.tree.leaves(jax.device_get(measured)))


def test_all_named_choices_take_part():
    """A new table of choices belongs here."""
    named = {field for field in FIELDS if isinstance(DEFAULTS[field], str)}
    assert named - set(CHOICES) == {"dataset", "data_dir", "padding", "mse_reduction"}
    assert {field.name for field in dataclasses.fields(train.Recipe)} <= {
        *CHOICES,
        *("architecture", "epochs", "train_size", "microbatches", "segments", "curvature_patterns"),
        *("metrics", "metrics_per_epoch", "losses", "native"),
    }


NAMED = {field: table for field, table in CHOICES.items() if field in choices.CHOICES} | {
    "padding": preprocess.PADDINGS,
    "mse_reduction": losses.MSE_REDUCTIONS,
    "metrics": METRICS,
    "tune": optim.HYPERPARAMETERS,
    "tracker": trackers.TRACKERS,
    "over": crossed.OVER,
    "scale": contrasts.SCALES,
}


def test_tables_have_the_names_by_which_values_are_checked_before_they_are_imported():
    assert {field: tuple(table) for field, table in NAMED.items()} == choices.CHOICES
    assert {field for field in FIELDS if isinstance(DEFAULTS[field], str)} - {"dataset", "data_dir"} <= set(NAMED)
    assert all(choices.values_of(field) is table for field, table in NAMED.items()), "what a user adds is a value, too"


@pytest.mark.parametrize("names", [["sgd"], ["momentum", "sgd", "adam", "sdlm", "adamw"], [*optim.OPTIMIZERS, "lion"]])
def test_a_table_with_other_names_is_refused(names):
    with pytest.raises(ValueError, match=r"^optimizer: the table has .*; its names must be those of choices\.CHOICES$"):
        registry.Registry("optimizer", **dict.fromkeys(names, abs))
    assert choices.values_of("optimizer") is optim.OPTIMIZERS is registry.REGISTRIES["optimizer"]


@settings(max_examples=3, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(combination=COMBINATIONS.filter(allowed))
def test_random_combinations(combination):
    check(combination)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(combination=COMBINATIONS.filter(allowed))
def test_many_random_combinations(combination):
    check(combination)
