"""Arms: a config becomes the trainings that it asks for, every field checked.

The only place that reads fields from a ConfigDict.
"""

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from ml_collections import ConfigDict

from lenet_jax import curvature, data, distortions, layers, losses, model, optim, results, train
from lenet_jax.errors import InputError, check_choice
from lenet_jax.experiments import base

Check = Callable[[str, Any], None]


def choice(allowed: Collection[str]) -> Check:
    """A check that a value is one of `allowed`."""
    return lambda field, value: check_choice(field, value, allowed)


def number(low: float, high: float = math.inf, *, open_low: bool = False, open_high: bool = False) -> Check:
    """A check that a value is finite and in a range; an open end isn't part of it."""
    wanted = f"{'more than' if open_low else 'at least'} {low:g}"
    if high < math.inf:
        wanted += f" and {'less than' if open_high else 'at most'} {high:g}"

    def check(field: str, value: Any) -> None:
        low_enough = value < high if open_high else value <= high
        high_enough = value > low if open_low else value >= low
        if not (math.isfinite(value) and low_enough and high_enough):
            raise InputError(f"{field}: {value!r} is out of range; allowed is {wanted}")

    return check


def anything(field: str, value: Any) -> None:
    """No check here: the value is checked where it is used, before anything is compiled."""


FIELDS: Mapping[str, Check] = {
    "dataset": anything,
    "data_dir": anything,
    "padding": choice(data.PADDINGS),
    "normalization": choice(data.NORMALIZATIONS),
    "validation_size": number(0),
    "train_size": number(0),
    "activation": choice(layers.ACTIVATIONS),
    "connectivity": choice(model.CONNECTIVITIES),
    "subsampling": choice(model.SUBSAMPLINGS),
    "subsampling_window": choice(model.WINDOWS),
    "output": choice(model.OUTPUTS),
    "initializer": choice(model.INITIALIZERS),
    "loss": choice(losses.LOSSES),
    "mse_point": choice(losses.MSE_POINTS),
    "target_code": choice(losses.TARGET_CODES),
    "mse_reduction": choice(losses.MSE_REDUCTIONS),
    "mse_factor": number(0, open_low=True),
    "map_constant": number(0, open_low=True),
    "optimizer": choice(optim.OPTIMIZERS),
    "learning_rate": number(0, open_low=True),
    "momentum": number(0, 1, open_high=True),
    "weight_decay": number(0),
    "mu": number(0, open_low=True),
    "curvature_patterns": number(1),
    "curvature_estimates": number(1),
    "curvature_memory": number(0, 1, open_high=True),
    "curvature_start": choice(curvature.STARTS),
    "schedule": choice(optim.SCHEDULES),
    "batch_size": number(1),
    "order": choice(train.ORDERS),
    "augmentation": choice(distortions.AUGMENTATIONS),
    "distorted_share": number(0, 1),
    "max_translation": number(0),
    "max_scaling": number(0),
    "max_squeezing": number(0),
    "max_shear": number(0),
    "epochs": number(1),
    "seeds": number(1),
    "first_seed": number(0, 2**32, open_high=True),
    "store_predictions": anything,
}
"""Every field of a config but `sweep`, with the check of its value; types are those of the defaults."""


MEASURED = ("arm", "seed", "epoch", "split", "metric", "value", "image", "label", "predicted", "margin")
"""Columns of the tables in a run folder, which stand beside those of the sweep's axes."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """One combination of the sweep's values.

    Attributes:
      name: ``loss=mse,activation=tanh``; ``all`` without a sweep.
      axes: the values that make this arm.
      settings: every field.
    """

    name: str
    axes: dict[str, Any]
    settings: dict[str, Any]


def expand(config: ConfigDict) -> list[Arm]:
    """The arms of a config: the product of its sweep's axes.

    Raises:
      InputError: a field or a value is not allowed; the message names it.
    """
    defaults = base.get_config()
    unknown = sorted(set(config) - set(defaults))
    if unknown:
        raise InputError(f"{unknown[0]}: is no field; allowed are {', '.join(defaults)}")
    fields = {field: check_value(field, config.get(field, defaults[field])) for field in FIELDS}
    sweep = config.get("sweep", {})
    if not isinstance(sweep, Mapping | ConfigDict):
        raise InputError(f"sweep: {sweep!r} is no mapping; write config.sweep.FIELD = (first, second)")
    axes = {axis: check_axis(axis, sweep[axis]) for axis in in_order(sweep)}
    check_settings_once(axes)
    arms = []
    for combination in itertools.product(*axes.values()):
        chosen = dict(zip(axes, combination, strict=True))
        name = ",".join(f"{axis}={results.format_value(value)}" for axis, value in chosen.items()) or "all"
        settings = dict(fields)
        for axis, value in chosen.items():
            settings |= axes[axis][value]
        arms.append(Arm(name, chosen, settings))
    for arm in arms:
        check_together(arm)
    return arms


def check_value(field: str, value: Any) -> Any:
    """The value with the type of the field's default, if it is allowed."""
    default = base.get_config()[field]
    wanted = type(default)
    if wanted is float and type(value) is int:
        value = float(value)
    if type(value) is not wanted:
        raise InputError(f"{field}: {value!r} is of type {type(value).__name__}; allowed is {wanted.__name__}")
    FIELDS[field](field, value)
    return value


Axis = dict[Any, dict[str, Any]]
"""A sweep axis: each of its values, and the fields that it sets."""


def check_axis(axis: str, values: Any) -> Axis:
    """A sweep axis, if it is allowed: a field with values, or any other name with named groups of fields."""
    if isinstance(values, Mapping | ConfigDict):
        return check_groups(axis, values)
    if axis not in FIELDS:
        raise InputError(f"sweep.{axis}: is no field; allowed are {', '.join(FIELDS)}")
    if not isinstance(values, tuple | list) or not values:
        raise InputError(f"sweep.{axis}: {values!r} is no list of values; write sweep.{axis}=(first, second)")
    checked = [check_value(axis, value) for value in values]
    if len(set(checked)) < len(checked):
        raise InputError(f"sweep.{axis}: {tuple(values)!r} names a value twice; every arm must differ")
    return {value: {axis: value} for value in checked}


def check_groups(axis: str, groups: Mapping[str, Any] | ConfigDict) -> Axis:
    """A sweep axis whose values each set several fields."""
    if axis in FIELDS or axis in MEASURED:
        raise InputError(f"sweep.{axis}: named groups of fields need an axis name that is neither a field nor a column")
    checked: Axis = {}
    for name in in_order(groups):
        fields = groups[name]
        if not isinstance(fields, Mapping | ConfigDict):
            raise InputError(f"sweep.{axis}.{name}: {fields!r} is no mapping of fields to values")
        unknown = [field for field in fields if field not in FIELDS]
        if unknown:
            raise InputError(f"sweep.{axis}.{name}: {unknown[0]!r} is no field; allowed are {', '.join(FIELDS)}")
        checked[name] = {field: check_value(field, value) for field, value in fields.items()}
    if not checked:
        raise InputError(f"sweep.{axis}: is empty; write sweep.{axis} = {{'name': {{'field': value}}}}")
    return checked


def in_order(mapping: Mapping[str, Any] | ConfigDict) -> list[str]:
    """The keys as they were written: a ConfigDict made from a dict sorts them when it is iterated, but not as JSON."""
    return list(json.loads(mapping.to_json_best_effort())) if isinstance(mapping, ConfigDict) else list(mapping)


def check_settings_once(axes: Mapping[str, Axis]) -> None:
    """Refuses two axes that set the same field: the second would undo the first."""
    setters: dict[str, str] = {}
    for axis, values in axes.items():
        for field in sorted({field for fields in values.values() for field in fields}):
            if field in setters:
                raise InputError(f"sweep.{axis}: sets {field!r}, which sweep.{setters[field]} sets too")
            setters[field] = axis


def check_together(arm: Arm) -> None:
    """Refuses fields that don't go together."""
    settings = arm.settings
    output = settings["output"]
    if output == "rbf" and settings["loss"] == "mse" and settings["mse_point"] == "linear":
        raise InputError(f"mse_point: 'linear' has no meaning for the penalties of output 'rbf' (arm {arm.name})")
    if output != "rbf" and settings["loss"] == "correct_penalty":
        raise InputError(f"loss: 'correct_penalty' needs output 'rbf', but output is {output!r} (arm {arm.name})")
    if output in ("linear", "squashed"):
        if settings["loss"] == "cross_entropy":
            raise InputError(f"loss: 'cross_entropy' needs output 'softmax', but output is {output!r} (arm {arm.name})")
        if settings["loss"] == "mse" and settings["mse_point"] == "softmax":
            raise InputError(f"mse_point: 'softmax' needs output 'softmax', but output is {output!r} (arm {arm.name})")
    if settings["first_seed"] + settings["seeds"] > 2**32:
        raise InputError(f"seeds: {settings['seeds']} from first_seed {settings['first_seed']} on pass 2**32 - 1")


def describe(config: ConfigDict) -> dict[str, Any]:
    """The resolved config as JSON has it, every field included."""
    content: dict[str, Any] = json.loads(base.get_config().to_json()) | json.loads(config.to_json())
    return content
