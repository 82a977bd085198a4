"""Tests of configs and the arms that they become."""

import importlib
from pathlib import Path

import pytest
from lenet_jax.experiments import ablation, base, quickstart
from ml_collections import ConfigDict

from lenet_jax.arms import FIELDS, describe, expand
from lenet_jax.errors import InputError

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
SHIPPED = sorted(path.stem for path in EXPERIMENTS.glob("*.py") if path.stem not in ("__init__", "base", "stored"))


def small(**fields):
    """A config to start from."""
    config = base.get_config()
    config.update({"activation": "tanh", "epochs": 2, "seeds": 3} | fields)
    return config


def with_sweep(config, **axes):
    config.sweep.update(axes)
    return config


def test_every_field_has_a_check_and_every_check_a_field():
    assert {*FIELDS, "sweep"} == set(base.get_config())


def test_arms_are_the_product_of_the_axes_in_their_order():
    config = with_sweep(small(), loss=("mse", "cross_entropy"), learning_rate=(0.1, 0.01))
    arms = expand(config)
    assert [arm.name for arm in arms] == [
        "loss=mse,learning_rate=0.1",
        "loss=mse,learning_rate=0.01",
        "loss=cross_entropy,learning_rate=0.1",
        "loss=cross_entropy,learning_rate=0.01",
    ]
    assert arms[3].settings["loss"] == "cross_entropy"
    assert arms[3].settings["learning_rate"] == 0.01
    assert arms[3].settings["activation"] == "tanh"


def test_without_a_sweep_there_is_one_arm():
    assert [arm.name for arm in expand(small())] == ["all"]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_experiments_can_be_expanded(name):
    arms = expand(importlib.import_module(f"lenet_jax.experiments.{name}").get_config())
    assert len({arm.name for arm in arms}) == len(arms) == max(len(arms), 1)


@pytest.mark.parametrize("module", [quickstart, ablation])
def test_shipped_experiments_are_two_by_two(module):
    arms = expand(module.get_config())
    assert [(arm.axes["loss"], arm.axes["activation"]) for arm in arms] == [
        ("mse", "sigmoid"),
        ("mse", "tanh"),
        ("cross_entropy", "sigmoid"),
        ("cross_entropy", "tanh"),
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss": "hinge"}, "loss: 'hinge' is not one of 'mse', 'cross_entropy'"),
        ({"activation": "swish"}, "activation: 'swish' is not one of 'sigmoid'"),
        ({"connectivity": "half"}, "connectivity: 'half'"),
        ({"subsampling": "min"}, "subsampling: 'min'"),
        ({"output": "rbf2"}, "output: 'rbf2'"),
        ({"initializer": "zero"}, "initializer: 'zero'"),
        ({"mse_point": "end"}, "mse_point: 'end'"),
        ({"target_code": "gray"}, "target_code: 'gray'"),
        ({"mse_reduction": "max"}, "mse_reduction: 'max'"),
        ({"optimizer": "lion"}, "optimizer: 'lion'"),
        ({"schedule": "up"}, "schedule: 'up'"),
        ({"padding": "wrap"}, "padding: 'wrap'"),
        ({"normalization": "none"}, "normalization: 'none'"),
        ({"epochs": 0}, "epochs: 0 is out of range; allowed is at least 1"),
        ({"seeds": -3}, "seeds: -3 is out of range"),
        ({"batch_size": 0}, "batch_size: 0 is out of range"),
        ({"validation_size": -1}, "validation_size: -1 is out of range"),
        ({"learning_rate": 0.0}, "learning_rate: 0.0 is out of range; allowed is more than 0"),
        ({"learning_rate": float("inf")}, "learning_rate: inf is out of range"),
        ({"momentum": 1.0}, "momentum: 1.0 is out of range; allowed is at least 0 and less than 1"),
        ({"weight_decay": float("nan")}, "weight_decay: nan is out of range"),
        ({"mse_factor": -1.0}, "mse_factor: -1.0 is out of range"),
        ({"first_seed": 2**32}, "first_seed: 4294967296 is out of range"),
        ({"first_seed": 2**32 - 1}, r"seeds: 3 from first_seed 4294967295 on pass 2\*\*32 - 1"),
        ({"output": "linear"}, "mse_point: 'softmax' needs output 'softmax', but output is 'linear'"),
        ({"output": "linear", "loss": "cross_entropy"}, "loss: 'cross_entropy' needs output 'softmax'"),
        (
            {"output": "rbf", "mse_point": "linear"},
            "mse_point: 'linear' has no meaning for the penalties of output 'rbf'",
        ),
        ({"loss": "correct_penalty"}, "loss: 'correct_penalty' needs output 'rbf', but output is 'softmax'"),
        ({"output": "squashed"}, "mse_point: 'softmax' needs output 'softmax', but output is 'squashed'"),
        ({"subsampling_window": "max"}, "subsampling_window: 'max' is not one of 'mean', 'sum'"),
        ({"augmentation": "elastic"}, "augmentation: 'elastic' is not one of 'none', 'affine'"),
        ({"distorted_share": 1.5}, "distorted_share: 1.5 is out of range; allowed is at least 0 and at most 1"),
        ({"curvature_start": "half"}, "curvature_start: 'half' is not one of 'target', 'full'"),
        ({"curvature_memory": 1.0}, "curvature_memory: 1.0 is out of range"),
        ({"order": "sorted"}, "order: 'sorted' is not one of 'fresh', 'constant', 'stored'"),
        ({"mu": 0.0}, "mu: 0.0 is out of range; allowed is more than 0"),
        ({"map_constant": 0.0}, "map_constant: 0.0 is out of range"),
    ],
)
def test_bad_values_are_refused_by_field(fields, message):
    with pytest.raises(InputError, match=message) as refusal:
        expand(small(**fields))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"hinge": (1, 2)}, r"sweep\.hinge: is no field; allowed are dataset"),
        ({"sweep": (1, 2)}, r"sweep\.sweep: is no field"),
        ({"loss": ("mse", "hinge")}, "loss: 'hinge' is not one of"),
        ({"epochs": (1, "2")}, "epochs: '2' is of type str; allowed is int"),
        ({"store_predictions": (True, 1)}, "store_predictions: 1 is of type int; allowed is bool"),
        ({"epochs": (1, True)}, "epochs: True is of type bool; allowed is int"),
        ({"loss": "mse"}, r"sweep\.loss: 'mse' is no list of values"),
        ({"loss": ()}, r"sweep\.loss: \(\) is no list of values"),
        ({"loss": ("mse", "mse")}, r"sweep\.loss: \('mse', 'mse'\) names a value twice"),
        ({"loss": {"a": {"loss": "mse"}}}, r"sweep\.loss: named groups of fields need an axis name that is neither"),
        ({"seed": {"a": {"loss": "mse"}}}, r"sweep\.seed: named groups of fields need an axis name that is neither"),
        ({"era": {}}, r"sweep\.era: is empty; write sweep\.era = \{'name': \{'field': value\}\}"),
        ({"era": {"old": "rbf"}}, r"sweep\.era\.old: 'rbf' is no mapping of fields to values"),
        ({"era": {"old": {"loss": "map"}, "new": {"los": "mse"}}}, r"sweep\.era\.new: 'los' is no field; allowed are"),
        ({"era": {"old": {"epochs": 1.5}}}, "epochs: 1.5 is of type float; allowed is int"),
        ({"era": {"old": {"loss": "map"}}, "loss": ("mse",)}, r"sweep\.loss: sets 'loss', which sweep\.era sets too"),
    ],
)
def test_bad_axes_are_refused(axes, message):
    with pytest.raises(InputError, match=message):
        expand(with_sweep(small(), **axes))


def test_a_group_of_fields_is_one_value_of_an_axis():
    groups = {"now": {}, "1998": {"output": "rbf", "loss": "map"}}
    config = with_sweep(small(), era=groups, activation=("tanh", "scaled_tanh"))
    arms = expand(config)
    assert list(describe(config)["sweep"]["era"]) == ["now", "1998"], "as written, not sorted"
    assert [arm.name for arm in arms] == [
        "era=now,activation=tanh",
        "era=now,activation=scaled_tanh",
        "era=1998,activation=tanh",
        "era=1998,activation=scaled_tanh",
    ]
    assert arms[3].axes == {"era": "1998", "activation": "scaled_tanh"}
    chosen = [[arm.settings[field] for field in ("output", "loss", "activation")] for arm in (arms[0], arms[3])]
    assert chosen == [["softmax", "mse", "tanh"], ["rbf", "map", "scaled_tanh"]]


def test_a_sweep_that_is_no_mapping_is_refused():
    with pytest.raises(InputError, match=r"sweep: \('mse',\) is no mapping"):
        expand(ConfigDict({"sweep": ("mse",)}))


def test_arms_that_differ_little_have_different_names():
    names = [arm.name for arm in expand(with_sweep(small(), learning_rate=(0.1, 0.1000001)))]
    assert names == ["learning_rate=0.1", "learning_rate=0.1000001"]


def test_unknown_fields_are_refused():
    config = small()
    config.epoch = 3
    with pytest.raises(InputError, match="epoch: is no field; allowed are dataset"):
        expand(config)
