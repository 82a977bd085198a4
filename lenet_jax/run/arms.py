"""Arms: a config becomes the trainings that it asks for, every field checked.

The only place that reads fields from a ConfigDict.
"""

import collections
import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from lenet_jax import curvature, distortions, errors, initializers, layers, losses, model, optim, train
from lenet_jax.data import preprocess
from lenet_jax.errors import InputError, check_choice, listed
from lenet_jax.experiments import base
from lenet_jax.run import folder, tuning
from lenet_jax.run.tuning import Tuning

Check = Callable[[str, Any], None]

DEFAULTS = base.get_config()

MOST_ARMS = 10_000
"""Arms of a config."""

MOST_MEMBERS = 1_000_000
"""Members of an arm that are tested, and members that tune it: lists that fit in memory. More is a slip of the hand."""


def plain(name: Any) -> str:
    """A name as messages have it: bare, if it is one line of text."""
    return name if isinstance(name, str) and name.strip() and name.isprintable() else errors.short_repr(name)


def choice(allowed: Collection[str]) -> Check:
    """A check that a value is one of `allowed`."""
    return lambda field, value: check_choice(field, value, allowed)


def number(low: float, high: float = math.inf, *, open_low: bool = False, open_high: bool = False) -> Check:
    """A check that a value is finite and in a range; an open end isn't part of it."""
    wanted = f"{'more than' if open_low else 'at least'} {low:.15g}"
    if high < math.inf:
        wanted += f" and {'less than' if open_high else 'at most'} {high:.15g}"

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
    "padding": choice(preprocess.PADDINGS),
    "normalization": choice(preprocess.NORMALIZATIONS),
    "validation_size": number(0),
    "train_size": number(0),
    "label_noise": number(0, 1),
    "activation": choice(layers.ACTIVATIONS),
    "connectivity": choice(model.CONNECTIVITIES),
    "subsampling": choice(model.SUBSAMPLINGS),
    "subsampling_window": choice(model.WINDOWS),
    "output": choice(model.OUTPUTS),
    "initializer": choice(initializers.INITIALIZERS),
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
    "elastic_displacement": number(0, 10),
    "epochs": number(1),
    "seeds": number(1, MOST_MEMBERS),
    "first_seed": number(0, 2**32, open_high=True),
    "store_predictions": anything,
    "test_curve": anything,
    "tune_seeds": number(1, MOST_MEMBERS),
    "tune_first_seed": number(0, 2**32, open_high=True),
    "tune_widenings": number(0),
    "refit": anything,
}
"""Every field of a config but `sweep` and `tune`, with the check of its value; types are those of the defaults."""


MEASURED = ("arm", "seed", "epoch", "split", "metric", "value", "image", "label", "predicted", "margin")
"""Columns of the tables in a run folder, which stand beside those of the sweep's axes."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """One combination of the sweep's values.

    Attributes:
      name: ``loss=mse,activation=tanh``; ``all`` without a sweep.
      axes: the values that make this arm.
      settings: every field; those that are tuned, before that.
      tuning: what is tried for the fields that are tuned; None if none is.
    """

    name: str
    axes: dict[str, Any]
    settings: dict[str, Any]
    tuning: Tuning | None = None


def expand(config: ConfigDict) -> list[Arm]:
    """The arms of a config: the product of its sweep's axes.

    Raises:
      InputError: a field or a value is not allowed; the message names it.
    """
    unknown = [name for name in keys(config) if name not in DEFAULTS]
    if unknown:
        raise InputError(f"{plain(unknown[0])}: is no field; allowed are {listed(DEFAULTS, unknown[0])}")
    fields = {field: check_value(field, config.get(field, DEFAULTS[field])) for field in FIELDS}
    sweep, tune = (config.get(name, {}) for name in ("sweep", "tune"))
    for name, mapping in (("sweep", sweep), ("tune", tune)):
        if not isinstance(mapping, Mapping | ConfigDict):
            raise InputError(
                f"{name}: {errors.short_repr(mapping)} is no mapping; write config.{name}.FIELD = (first, second)"
            )
    axes = {axis: check_axis(axis, sweep[axis]) for axis in in_order("sweep", sweep)}
    if NAMED_ARMS in axes and len(axes) > 1:
        raise InputError(f"sweep.{NAMED_ARMS}: named arms stand alone; for a product give that axis another name")
    tuned = check_tune(tune)
    check_settings_once(axes, tuned.names if tuned else [])
    count = math.prod(map(len, axes.values()))
    if count > MOST_ARMS:
        raise InputError(f"sweep: its axes make {count} arms; allowed are up to {MOST_ARMS}")
    arms = []
    for combination in itertools.product(*axes.values()):
        shown = {name: value for choice in combination for name, value in choice.shown.items()}
        name = ",".join(f"{axis}={folder.format_value(value)}" for axis, value in shown.items()) or folder.ONLY_ARM
        if NAMED_ARMS in axes:
            name, shown = shown[NAMED_ARMS], {}
        settings = dict(fields)
        for choice in combination:
            settings |= choice.settings
        arms.append(Arm(name, shown, settings, tuned))
    names = collections.Counter(arm.name for arm in arms)
    for arm in arms:
        check_name(arm.name, names[arm.name])
        check_together(arm)
    return arms


def check_name(name: str, arms: int) -> None:
    """Refuses an arm's name that isn't one line of text, or that several arms have."""
    if not name.strip() or not name.isprintable():
        raise InputError(f"sweep: {name!r} is no name for an arm; needed is one line of text")
    if arms > 1:
        raise InputError(f"sweep: {name!r} is the name of two arms; give their groups other names")


def check_value(field: str, value: Any) -> Any:
    """The value with the type of the field's default, if it is allowed."""
    wanted = type(DEFAULTS[field])
    if type(value) is int and abs(value) >= 2**63:  # more than arrays hold, and some more than a float does
        raise InputError(f"{field}: {errors.short_repr(value)} is out of range; allowed are integers of 64 bits")
    if wanted is float and type(value) is int:
        value = float(value)
    if type(value) is not wanted:
        raise InputError(
            f"{field}: {errors.short_repr(value)} is of type {type(value).__name__}; allowed is {wanted.__name__}"
        )
    FIELDS[field](field, value)
    return value


def in_range(field: str, value: Any) -> bool:
    """Whether a field may have the value."""
    try:
        check_value(field, value)
    except InputError:
        return False
    return True


class Choice(NamedTuple):
    """One value of a sweep axis.

    Attributes:
      shown: columns and values by which the arms are told apart.
      settings: the fields that it sets.
    """

    shown: dict[str, Any]
    settings: dict[str, Any]


NAMED_ARMS = "arm"
"""The axis whose groups of fields are the arms themselves, under their bare names."""


def check_axis(axis: str, values: Any) -> list[Choice]:
    """A sweep axis, if it is allowed: a field with values, fields that change together, or named groups of fields."""
    if isinstance(values, Mapping | ConfigDict):
        return check_groups(axis, values)
    names = axis.split(",")
    for name in names:
        if name not in FIELDS:
            raise InputError(f"sweep.{axis}: {name!r} is no field; allowed are {listed(FIELDS, name)}")
    if len(set(names)) < len(names):
        raise InputError(f"sweep.{axis}: names a field twice")
    if not isinstance(values, tuple | list) or not values:
        raise InputError(
            f"sweep.{axis}: {errors.short_repr(values)} is no list of values; write sweep.{axis}=(first, second)"
        )
    rows: list[Any] = [(value,) for value in values] if len(names) == 1 else list(values)
    for row in rows:
        if not isinstance(row, tuple | list) or len(row) != len(names):
            raise InputError(
                f"sweep.{axis}: {errors.short_repr(row)} is no list of {len(names)} values, one for each field"
            )
    checked = [{name: check_value(name, value) for name, value in zip(names, row, strict=True)} for row in rows]
    if len({tuple(row.values()) for row in checked}) < len(checked):
        raise InputError(f"sweep.{axis}: {errors.short_repr(tuple(values))} names a value twice; every arm must differ")
    return [Choice(row, row) for row in checked]


def check_groups(axis: str, groups: Mapping[str, Any] | ConfigDict) -> list[Choice]:
    """A sweep axis whose values each set several fields."""
    if axis != NAMED_ARMS and (axis in FIELDS or axis in MEASURED):
        raise InputError(f"sweep.{axis}: named groups of fields need an axis name that is neither a field nor a column")
    checked = []
    for name in in_order(f"sweep.{axis}", groups):
        fields = groups[name]
        if not isinstance(fields, Mapping | ConfigDict):
            raise InputError(f"sweep.{axis}.{name}: {errors.short_repr(fields)} is no mapping of fields to values")
        names = in_order(f"sweep.{axis}.{name}", fields)
        unknown = [field for field in names if field not in FIELDS]
        if unknown:
            raise InputError(
                f"sweep.{axis}.{name}: {unknown[0]!r} is no field; allowed are {listed(FIELDS, unknown[0])}"
            )
        checked.append(Choice({axis: name}, {field: check_value(field, fields[field]) for field in names}))
    if not checked:
        raise InputError(f"sweep.{axis}: is empty; write sweep.{axis} = {{'name': {{'field': value}}}}")
    return checked


RANDOM_SET = ("low", "high", "count")
"""Keys of a random set of values in `tune`."""


def check_tune(tune: Mapping[str, Any] | ConfigDict) -> Tuning | None:
    """What `tune` asks for, if it is allowed."""
    grid, drawn = {}, {}
    for name in in_order("tune", tune):
        values = tune[name]
        if name not in optim.HYPERPARAMETERS:
            raise InputError(f"tune.{name}: can't be tuned; allowed are {', '.join(optim.HYPERPARAMETERS)}")
        if isinstance(values, Mapping | ConfigDict):
            drawn[name] = check_random_set(name, values)
        elif isinstance(values, tuple | list) and values:
            checked = [check_value(name, value) for value in values]
            if len(set(checked)) < len(checked):
                raise InputError(f"tune.{name}: {errors.short_repr(tuple(values))} names a value twice")
            grid[name] = tuple(sorted(checked))
        else:
            raise InputError(
                f"tune.{name}: {errors.short_repr(values)} is no list of values; "
                f"write tune.{name}=(first, second) or tune.{name}={{'low': 0.001, 'high': 1.0, 'count': 8}}"
            )
    if len({len(values) for values in drawn.values()}) > 1:
        raise InputError(f"tune: {', '.join(drawn)} are drawn together; count must be the same")
    if not grid and not drawn:
        return None
    points = [dict(zip(drawn, point, strict=True)) for point in zip(*drawn.values(), strict=True)]
    return Tuning(grid, tuple(points) or ({},))


def check_random_set(name: str, values: Mapping[str, Any] | ConfigDict) -> list[float]:
    """Values drawn for a hyperparameter, see `tuning.log_uniform`."""
    given = keys(values)
    if set(given) != set(RANDOM_SET):
        raise InputError(
            f"tune.{name}: a random set needs {', '.join(RANDOM_SET)}, "
            f"but has {', '.join(sorted(map(plain, given))) or 'none'}"
        )
    low, high = (check_value(name, values[end]) for end in ("low", "high"))
    count = values["count"]
    if not 0 < low < high:
        raise InputError(f"tune.{name}: low {low!r} and high {high!r}; needed is 0 < low < high")
    if type(count) is not int or not 1 <= count <= MOST_MEMBERS:
        raise InputError(
            f"tune.{name}: count {errors.short_repr(count)}; allowed is a whole number from 1 on, to {MOST_MEMBERS}"
        )
    return tuning.log_uniform(name, low, high, count)


def keys(mapping: Mapping[str, Any] | ConfigDict) -> list[Any]:
    """The keys as they were written; iterating a ConfigDict made from a dict sorts them, and fails on mixed types."""
    return list(mapping._fields if isinstance(mapping, ConfigDict) else mapping)


def in_order(path: str, mapping: Mapping[str, Any] | ConfigDict) -> list[str]:
    """The keys as they were written, if they are names."""
    names = keys(mapping)
    for name in names:
        if not isinstance(name, str):
            raise InputError(f"{path}.{plain(name)}: names are text; write {plain(name)!r}")
        if plain(name) != name:
            raise InputError(f"{path}: {errors.short_repr(name)} is no name; needed is one line of text")
    return names


def check_settings_once(axes: Mapping[str, list[Choice]], tuned: Collection[str]) -> None:
    """Refuses two axes that set the same field, or one that sets what is tuned: the second would undo the first."""
    setters = {field: f"tune.{field}" for field in tuned}
    for axis, choices in axes.items():
        for field in sorted({field for choice in choices for field in choice.settings}):
            if field in setters:
                raise InputError(f"sweep.{axis}: sets {field!r}, which {setters[field]} sets too")
            setters[field] = f"sweep.{axis}"


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
    if arm.tuning:
        check_tuned(settings, arm.tuning)
    elif settings["refit"]:
        raise InputError("refit: True needs fields to tune; name some in tune, or set validation_size to 0")


def check_tuned(settings: dict[str, Any], tried: Tuning) -> None:
    """Refuses fields that don't go together with tuning."""
    seeds, tune_seeds = (
        range(settings[first], settings[first] + settings[count])
        for first, count in (("first_seed", "seeds"), ("tune_first_seed", "tune_seeds"))
    )
    if not settings["validation_size"]:
        raise InputError("validation_size: 0 leaves nothing to tune on; set it to a number of training images")
    if tune_seeds.stop > 2**32:
        raise InputError(f"tune_seeds: {len(tune_seeds)} from tune_first_seed {tune_seeds.start} on pass 2**32 - 1")
    if max(seeds.start, tune_seeds.start) < min(seeds.stop, tune_seeds.stop):
        raise InputError(
            f"tune_first_seed: seeds {tune_seeds.start} to {tune_seeds[-1]} meet the arms' own, {seeds.start} to "
            f"{seeds[-1]}; tuning needs other seeds than testing"
        )
    combinations = math.prod(map(len, tried.grid.values())) * len(tried.drawn)
    if combinations * len(tune_seeds) > MOST_MEMBERS:
        raise InputError(
            f"tune: {combinations} combinations with {len(tune_seeds)} seeds (tune_seeds) each make more than "
            f"{MOST_MEMBERS} members"
        )
    if settings["refit"] and settings["train_size"]:
        raise InputError(f"refit: True needs train_size 0, but it is {settings['train_size']}")


def describe(config: ConfigDict) -> dict[str, Any]:
    """The resolved config as JSON has it, every field included."""
    content: dict[str, Any] = json.loads(DEFAULTS.to_json()) | json.loads(config.to_json())
    return content
