"""Tests of configs and the arms that they become."""

import importlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from lenet_jax.errors import InputError
from lenet_jax.experiments import ablation, base, quickstart
from lenet_jax.run.arms import FIELDS, describe, expand
from lenet_jax.run.candidates import Tuning, log_uniform

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
    assert {*FIELDS, "sweep", "tune"} == set(base.get_config())


@pytest.mark.parametrize("field", [name for name, value in base.get_config().items() if isinstance(value, str)])
def test_every_choice_is_checked(field):
    if field not in ("dataset", "data_dir"):
        with pytest.raises(InputError, match=f"^{field}: 'nonsense' is not one of '"):
            expand(small(**{field: "nonsense"}))


def test_errors_in_a_group_name_the_arm():
    config = with_sweep(small(), era={"old": {"activation": "swish"}})
    with pytest.raises(InputError, match=r"^sweep\.era\.old\.activation: 'swish' is not one of 'sigmoid', "):
        expand(config)
    config = with_sweep(small(), arm={"now": {}, "old": {"output": "linear"}})
    with pytest.raises(InputError, match=r"^mse_point: 'softmax' requires .* \(arm old\)$"):
        expand(config)


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


@pytest.mark.parametrize(
    ("field", "kind", "understood"),
    [
        ("learning_rate", np.float64, 0.1),
        ("learning_rate", np.float32, 0.5),
        ("learning_rate", jnp.float32, 0.5),
        ("learning_rate", np.array, 0.1),
        ("learning_rate", np.int64, 1.0),
        ("epochs", np.int64, 2),
        ("epochs", jnp.int32, 2),
        ("test_curve", np.bool_, True),
        ("loss", np.str_, "mse"),
    ],
)
def test_scalars_of_numpy_and_jax_are_values(field, kind, understood):
    """In a field, in a sweep, in a group and in a config that isn't ours; the run folder's config has them, too."""
    given = kind(understood)
    sweeps = [{}, {field: (given,)}, {"group": {"one": {field: given}}}]
    configs = [small(**({} if sweep else {field: given}), sweep=sweep) for sweep in sweeps]
    for config in [*configs, ConfigDict({field: given})]:
        (arm,) = expand(config)
        assert (arm.settings[field], type(arm.settings[field])) == (understood, type(understood))
        assert "Array" not in repr(describe(config))


@pytest.mark.parametrize("values", [np.logspace(-2, 0, 3), tuple(np.logspace(-2, 0, 3)), list(np.logspace(-2, 0, 3))])
def test_arrays_are_values_of_an_axis_and_of_a_grid(values):
    config = with_sweep(small(), learning_rate=values)
    assert [arm.name for arm in expand(config)] == ["learning_rate=0.01", "learning_rate=0.1", "learning_rate=1"]
    assert describe(config)["sweep"] == {"learning_rate": [0.01, 0.1, 1.0]}
    (arm,) = expand(small(tune={"learning_rate": values}, validation_size=100))
    assert arm.tuning == Tuning({"learning_rate": (0.01, 0.1, 1.0)})


def test_a_number_of_numpy_is_refused_as_the_number_that_it_is():
    with pytest.raises(InputError, match=r"^sweep\.epochs: expected int, got 2\.0 \(float\)$"):
        expand(with_sweep(small(), epochs=(np.float64(2),)))


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
        ({"epochs": 0}, "epochs: 0 is out of range; must be at least 1"),
        ({"seeds": -3}, "seeds: -3 is out of range"),
        ({"batch_size": 0}, "batch_size: 0 is out of range"),
        ({"validation_size": -1}, "validation_size: -1 is out of range"),
        ({"learning_rate": 0.0}, "learning_rate: 0.0 is out of range; must be more than 0"),
        ({"learning_rate": float("inf")}, "learning_rate: inf is out of range"),
        ({"momentum": 1.0}, "momentum: 1.0 is out of range; must be at least 0 and less than 1"),
        ({"weight_decay": float("nan")}, "weight_decay: nan is out of range"),
        ({"mse_factor": -1.0}, "mse_factor: -1.0 is out of range"),
        ({"first_seed": 2**32}, "first_seed: 4294967296 is out of range"),
        ({"first_seed": 2**32 - 1}, r"seeds: 3 seeds from first_seed 4294967295 exceed 2\*\*32 - 1"),
        ({"output": "linear"}, "mse_point: 'softmax' requires output 'softmax' or 'rbf', got output 'linear'"),
        (
            {"output": "linear", "loss": "cross_entropy"},
            "loss: 'cross_entropy' requires output 'softmax' or 'rbf', got output 'linear'",
        ),
        (
            {"output": "rbf", "mse_point": "linear"},
            "mse_point: 'linear' requires output 'softmax' or 'linear' or 'squashed', got output 'rbf'",
        ),
        ({"loss": "correct_penalty"}, "loss: 'correct_penalty' requires output 'rbf', got output 'softmax'"),
        ({"output": "squashed"}, "mse_point: 'softmax' requires output 'softmax' or 'rbf', got output 'squashed'"),
        ({"subsampling_window": "max"}, "subsampling_window: 'max' is not one of 'mean', 'sum'"),
        ({"augmentation": "rubber"}, "augmentation: 'rubber' is not one of 'none', 'affine', 'elastic'"),
        ({"distorted_share": 1.5}, "distorted_share: 1.5 is out of range; must be at least 0 and at most 1"),
        ({"curvature_start": "half"}, "curvature_start: 'half' is not one of 'target', 'full'"),
        ({"curvature_memory": 1.0}, "curvature_memory: 1.0 is out of range"),
        ({"order": "sorted"}, "order: 'sorted' is not one of 'fresh', 'constant', 'stored'"),
        ({"mu": 0.0}, "mu: 0.0 is out of range; must be more than 0"),
        ({"map_constant": 0.0}, "map_constant: 0.0 is out of range"),
        ({"label_noise": 1.1}, "label_noise: 1.1 is out of range; must be at least 0 and at most 1"),
        ({"metrics": (0.5,)}, r"metrics: 0\.5 is not in METRICS; allowed: none"),
        ({"metrics": ([1],)}, r"metrics: \[1\] is not in METRICS"),
    ],
)
def test_bad_values_are_refused_by_field(fields, message):
    with pytest.raises(InputError, match=message) as refusal:
        expand(small(**fields))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"hinge": (1, 2)}, r"sweep\.hinge: unknown config field 'hinge'; experiments/base\.py documents every field"),
        ({"sweep": (1, 2)}, r"sweep\.sweep: unknown config field 'sweep'"),
        ({"loss": ("mse", "hinge")}, "loss: 'hinge' is not one of"),
        ({"epochs": (1, "2")}, r"sweep\.epochs: expected int, got '2' \(str\)"),
        ({"store_predictions": (True, 1)}, r"sweep\.store_predictions: expected bool, got 1 \(int\)"),
        ({"epochs": (1, True)}, r"sweep\.epochs: expected int, got True \(bool\)"),
        ({"loss": "mse"}, r"sweep\.loss: expected a sequence of values, got 'mse'; write sweep\.loss=\('mse',\)"),
        ({"loss": ()}, r"sweep\.loss: expected a sequence of values, got \(\); write sweep\.loss=\(first, second\)"),
        ({"loss": ("mse", "mse")}, r"sweep\.loss: \('mse', 'mse'\) contains a value twice"),
        ({"loss": {"a": {"loss": "mse"}}}, r"sweep\.loss: the name of an axis of named groups must be neither"),
        ({"seed": {"a": {"loss": "mse"}}}, r"sweep\.seed: the name of an axis of named groups must be neither"),
        ({"era": {}}, r"sweep\.era: no groups; write sweep\.era = \{'name': \{'field': value\}\}"),
        ({"era": {"old": "rbf"}}, r"sweep\.era\.old: expected a mapping of names to values, got 'rbf'"),
        (
            {"era": {"old": {"loss": "map"}, "new": {"los": "mse"}}},
            r"sweep\.era\.new: unknown config field 'los'; did you mean 'loss'\?",
        ),
        ({"era": {"old": {"epochs": 1.5}}}, r"^sweep\.era\.old\.epochs: expected int, got 1\.5 \(float\)"),
        ({"era": {"old": {"loss": "map"}}, "loss": ("mse",)}, r"sweep\.loss: sets 'loss', which sweep\.era sets too"),
        ({"era": {1998: {"loss": "map"}}}, r"sweep\.era: names must be strings of one line, got 1998"),
        ({"loss,hinge": (("mse", 1),)}, r"sweep\.loss,hinge: unknown config field 'hinge'"),
        ({"epochs, seeds": ((1, 2),)}, r"sweep\.epochs, seeds: unknown config field ' seeds'; did you mean 'seeds'\?"),
        ({"epochs,seeds,epochs": ((1, 2, 3),)}, r"sweep\.epochs,seeds,epochs: contains a field twice"),
        ({"epochs,seeds": ((1, 2), (3,))}, r"sweep\.epochs,seeds: expected 2 values, one for each field, got \(3,\)"),
        (
            {"epochs,seeds": ((1, 2, 3),)},
            r"sweep\.epochs,seeds: expected 2 values, one for each field, got \(1, 2, 3\)",
        ),
        ({"epochs,seeds": (1, 2)}, r"sweep\.epochs,seeds: expected 2 values, one for each field, got 1"),
        ({"epochs,seeds": ()}, r"sweep\.epochs,seeds: expected a sequence of values, got \(\)"),
        ({"epochs,seeds": ((1, 0),)}, "seeds: 0 is out of range"),
        ({"epochs,seeds": ((1, 2.0),)}, r"sweep\.seeds: expected int, got 2\.0 \(float\)"),
        ({"epochs,seeds": ((1, 2), (2, 1), (1, 2))}, r"sweep\.epochs,seeds: .* contains a value twice"),
        ({"epochs,seeds": ((1, 2),), "seeds": (3,)}, r"sweep\.seeds: sets 'seeds', which sweep\.epochs,seeds sets too"),
        ({"arm": ("mse",)}, r"sweep\.arm: unknown config field 'arm'"),
        ({"arm": {}}, r"sweep\.arm: no groups"),
        (
            {"arm": {"a": {}}, "loss": ("mse",)},
            r"sweep\.arm: named arms allow no other axis; for a product, rename this axis",
        ),
        ({"arm": {"a": {"los": "mse"}}}, r"sweep\.arm\.a: unknown config field 'los'; did you mean 'loss'\?"),
    ],
)
def test_bad_axes_are_refused(axes, message):
    with pytest.raises(InputError, match=message) as refusal:
        expand(with_sweep(small(), **axes))
    assert "\n" not in str(refusal.value)


def test_fields_under_several_names_change_together():
    config = with_sweep(small(), **{"batch_size,learning_rate": ((16, 0.5), [8, 1])}, loss=("mse", "cross_entropy"))
    arms = expand(config)
    assert [arm.name for arm in arms] == [
        "batch_size=16,learning_rate=0.5,loss=mse",
        "batch_size=16,learning_rate=0.5,loss=cross_entropy",
        "batch_size=8,learning_rate=1,loss=mse",
        "batch_size=8,learning_rate=1,loss=cross_entropy",
    ]
    assert arms[3].axes == {"batch_size": 8, "learning_rate": 1.0, "loss": "cross_entropy"}
    assert {field: arms[3].settings[field] for field in arms[3].axes} == arms[3].axes
    assert expand(ConfigDict(describe(config))) == arms, "as read from config.json"


def test_named_arms_have_their_bare_names():
    groups = {"now": {}, "<script>": {"loss": "cross_entropy", "seeds": 5}, "1998": {"output": "rbf", "loss": "map"}}
    arms = expand(with_sweep(small(), arm=groups))
    assert [arm.name for arm in arms] == list(groups), "as written, not sorted"
    assert [arm.axes for arm in arms] == [{}, {}, {}]
    chosen = [[arm.settings[field] for field in ("output", "loss", "seeds")] for arm in arms]
    assert chosen == [["softmax", "mse", 3], ["softmax", "cross_entropy", 5], ["rbf", "map", 3]]


def tunable(**tune):
    """A config that may tune these."""
    config = small(validation_size=100)
    config.tune.update(tune)
    return config


def test_every_arm_tries_the_same_values():
    config = with_sweep(tunable(learning_rate=[0.1, 1, 0.01], momentum=(0.0, 0.9)), loss=("mse", "cross_entropy"))
    one, other = expand(config)
    assert one.tuning == other.tuning == Tuning({"learning_rate": (0.01, 0.1, 1.0), "momentum": (0.0, 0.9)})
    assert one.axes == {"loss": "mse"}
    assert expand(ConfigDict(describe(config))) == [one, other], "as read from config.json"
    assert expand(small(validation_size=100))[0].tuning is None


def test_random_sets_are_drawn_together_and_go_with_a_grid():
    spread = {"low": 1e-6, "high": 1e-2, "count": 4}
    config = tunable(weight_decay=spread, momentum=(0.5, 0.9), learning_rate={"low": 0.01, "high": 1, "count": 4})
    found = expand(config)[0].tuning
    assert found.grid == {"momentum": (0.5, 0.9)}
    assert [point["weight_decay"] for point in found.drawn] == log_uniform("weight_decay", 1e-6, 1e-2, 4)
    assert [point["learning_rate"] for point in found.drawn] == log_uniform("learning_rate", 0.01, 1.0, 4)


RATES = {"learning_rate": (0.01, 0.1)}


@pytest.mark.parametrize(
    ("tune", "fields", "axes", "message"),
    [
        (
            {"batch_size": (16, 32)},
            {},
            {},
            r"tune\.batch_size: not a tunable field; allowed are learning_rate, momentum, weig",
        ),
        ({"rate": (16, 32)}, {}, {}, r"tune\.rate: not a tunable field"),
        (
            {"learning_rate": ()},
            {},
            {},
            r"tune\.learning_rate: expected a sequence of values, got \(\); write tune\.learning_rate=",
        ),
        ({"learning_rate": 0.1}, {}, {}, r"tune\.learning_rate: expected a sequence of values, got 0\.1"),
        ({"learning_rate": "0.1"}, {}, {}, r"tune\.learning_rate: expected a sequence of values, got '0\.1'"),
        ({"learning_rate": (0.1, 1, 1.0)}, {}, {}, r"tune\.learning_rate: \(0\.1, 1, 1\.0\) contains a value twice"),
        ({"learning_rate": (0.1, 0.0)}, {}, {}, r"learning_rate: 0\.0 is out of range; must be more than 0"),
        ({"learning_rate": (0.1, "1")}, {}, {}, r"tune\.learning_rate: expected float, got '1' \(str\)"),
        ({"momentum": (0.9, 1.0)}, {}, {}, r"momentum: 1\.0 is out of range"),
        (
            {"mu": {"low": 1, "high": 2}},
            {},
            {},
            r"tune\.mu: a random set needs the keys low, high, count; got 'high', 'low'$",
        ),
        (
            {"mu": {"low": 1, "high": 2, "count": 3, "x": 4}},
            {},
            {},
            r"tune\.mu: a random set needs the keys low, high, count",
        ),
        ({"mu": {1: 2}}, {}, {}, r"tune\.mu: a random set needs the keys low, high, count; got 1"),
        ({"mu": {}}, {}, {}, r"tune\.mu: a random set needs the keys low, high, count; got none"),
        (
            {"mu": {"low": 2, "high": 1, "count": 3}},
            {},
            {},
            r"tune\.mu: expected 0 < low < high, got low 2\.0 and high 1\.0",
        ),
        (
            {"mu": {"low": 1, "high": 1, "count": 3}},
            {},
            {},
            r"tune\.mu: expected 0 < low < high, got low 1\.0 and high 1\.0",
        ),
        (
            {"weight_decay": {"low": 0, "high": 1, "count": 3}},
            {},
            {},
            r"tune\.weight_decay: expected 0 < low < high, got low 0\.0 and high 1\.0",
        ),
        ({"mu": {"low": 1, "high": float("inf"), "count": 3}}, {}, {}, "mu: inf is out of range"),
        (
            {"mu": {"low": 1, "high": 2, "count": 0}},
            {},
            {},
            r"tune\.mu: count must be an integer from 1 to 1000000, got 0",
        ),
        (
            {"mu": {"low": 1, "high": 2, "count": 2.0}},
            {},
            {},
            r"tune\.mu: count must be an integer from 1 to 1000000, got 2\.0",
        ),
        (
            {"mu": {"low": 1, "high": 2, "count": True}},
            {},
            {},
            r"tune\.mu: count must be an integer from 1 to 1000000, got True",
        ),
        (
            {"mu": {"low": 1, "high": 2, "count": 2}, "learning_rate": {"low": 1, "high": 2, "count": 3}},
            {},
            {},
            "tune: .*mu.* are sampled jointly; their counts must be equal",
        ),
        (
            RATES,
            {},
            {"learning_rate": (1, 2)},
            r"sweep\.learning_rate: sets 'learning_rate', which tune\.learning_rate s",
        ),
        (
            RATES,
            {},
            {"learning_rate,epochs": ((1, 2),)},
            r"sweep\.learning_rate,epochs: sets 'learning_rate', which tune\.learning_rate sets too",
        ),
        (
            RATES,
            {},
            {"arm": {"a": {"learning_rate": 1.0}}},
            r"sweep\.arm: sets 'learning_rate', which tune\.learning_rat",
        ),
        (RATES, {"validation_size": 0}, {}, "validation_size: 0 leaves no images for tuning; set it to a number of"),
        (
            RATES,
            {},
            {"validation_size": (10, 0)},
            r"validation_size: 0 leaves no images for tuning; .* \(arm validation_size=0\)",
        ),
        (RATES, {"tune_seeds": 0}, {}, "tune_seeds: 0 is out of range; must be at least 1"),
        (RATES, {"tune_widenings": -1}, {}, "tune_widenings: -1 is out of range"),
        (RATES, {"tune_first_seed": 2**32}, {}, "tune_first_seed: 4294967296 is out of range"),
        (
            RATES,
            {"tune_first_seed": 2**32 - 2},
            {},
            r"tune_seeds: 3 seeds from tune_first_seed 4294967294 exceed 2\*\*32 - 1",
        ),
        (RATES, {"refit": True, "train_size": 50}, {}, "refit: True requires train_size 0, got 50"),
        ({}, {"refit": True}, {}, "refit: True requires a field in tune; add one, or set validation_size to 0"),
    ],
)
def test_bad_tuning_is_refused_by_field(tune, fields, axes, message):
    config = with_sweep(tunable(**tune), **axes)
    config.update(fields)
    with pytest.raises(InputError, match=message) as refusal:
        expand(config)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("first", "count", "allowed"),
    [(8, 2, True), (8, 3, False), (9, 9, False), (10, 1, False), (11, 1, False), (12, 2, False), (13, 2, True)],
)
def test_tuning_needs_other_seeds_than_testing(first, count, allowed):
    """Tested are 10, 11 and 12."""
    config = tunable(**RATES)
    config.update({"first_seed": 10, "tune_first_seed": first, "tune_seeds": count})
    if allowed:
        assert expand(config)[0].tuning
    else:
        with pytest.raises(
            InputError, match=rf"tune_first_seed: seeds {first} to {first + count - 1} overlap .* 10 to 12"
        ):
            expand(config)


def test_a_tune_that_is_no_mapping_is_refused():
    with pytest.raises(InputError, match=r"tune: expected a mapping of names to values, got \(0\.1,\)"):
        expand(ConfigDict({"tune": (0.1,)}))


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
    with pytest.raises(InputError, match=r"sweep: expected a mapping of names to values, got \('mse',\)"):
        expand(ConfigDict({"sweep": ("mse",)}))


def test_arms_that_differ_little_have_different_names():
    names = [arm.name for arm in expand(with_sweep(small(), learning_rate=(0.1, 0.1000001)))]
    assert names == ["learning_rate=0.1", "learning_rate=0.1000001"]


def test_unknown_fields_are_refused():
    config = small()
    config.epoch = 3
    with pytest.raises(InputError, match=r"^unknown config field 'epoch'; did you mean 'epochs'\?$"):
        expand(config)
