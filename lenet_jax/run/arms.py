"""Arms: checks every field of a config and expands it into the arms that it compares, without JAX.

The only module that reads fields from a ConfigDict.
"""

import collections
import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from lenet_jax.choices import values_of
from lenet_jax.config import plain
from lenet_jax.errors import InputError, check_choice, check_field, listed, short_repr
from lenet_jax.experiments import base
from lenet_jax.run import candidates
from lenet_jax.run.candidates import Tuning
from lenet_jax.run.names import MAX_NAME, ONLY_ARM, arm_named, format_value

Check = Callable[[str, Any], object]
"""Raises InputError if the value of a field is not allowed; the arguments are the field and the value."""

DEFAULTS = base.get_config()

MAX_ARMS, MAX_MEMBERS = 10_000, 1_000_000
"""Arms of a config; tested members of an arm, and members that tune it. Larger values are assumed to be typos."""


def choice(field: str, value: Any) -> None:
    """A check that a value is one of those of the field, see `choices`."""
    check_choice(field, value, values_of(field))


def number(low: float, high: float = math.inf, *, open_low: bool = False, open_high: bool = False) -> Check:
    """A check that a value is finite and in a range; open ends are excluded."""
    wanted = f"{'more than' if open_low else 'at least'} {low:.15g}"
    if high < math.inf:
        wanted += f" and {'less than' if open_high else 'at most'} {high:.15g}"

    def check(field: str, value: Any) -> None:
        inside = (low < value if open_low else low <= value) and (value < high if open_high else value <= high)
        if not (math.isfinite(value) and inside):
            raise InputError(f"{field}: {value!r} is out of range; must be {wanted}")

    return check


def known_metrics(field: str, names: tuple[Any, ...]) -> None:
    """A check that metrics are defined."""
    known = [*map(repr, values_of(field))]
    for name in map(short_repr, names):
        if name not in known:
            raise InputError(f"{field}: {name} is not in METRICS; allowed: {', '.join(known) or 'none'}")


FIELDS: Mapping[str, Check] = {
    # Any value of their types: data sets are checked when they are loaded, before anything is compiled.
    **dict.fromkeys(["dataset", "data_dir", "store_predictions", "test_curve", "refit"], lambda field, value: None),
    **dict.fromkeys(["padding", "normalization"], choice),
    "validation_size": number(0),
    "train_size": number(0),
    "label_noise": number(0, 1),
    **dict.fromkeys(["activation", "connectivity", "subsampling", "subsampling_window", "output"], choice),
    **dict.fromkeys(["initializer", "loss", "mse_point", "target_code", "mse_reduction"], choice),
    "mse_factor": number(0, open_low=True),
    "map_constant": number(0, open_low=True),
    "optimizer": choice,
    "learning_rate": number(0, open_low=True),
    "momentum": number(0, 1, open_high=True),
    "weight_decay": number(0),
    "mu": number(0, open_low=True),
    "curvature_patterns": number(1),
    "curvature_estimates": number(1),
    "curvature_memory": number(0, 1, open_high=True),
    **dict.fromkeys(["curvature_start", "schedule"], choice),
    "batch_size": number(1),
    **dict.fromkeys(["order", "augmentation"], choice),
    "distorted_share": number(0, 1),
    **dict.fromkeys(["max_translation", "max_scaling", "max_squeezing", "max_shear"], number(0)),
    "elastic_displacement": number(0, 10),
    "epochs": number(1),
    "metrics": known_metrics,
    "metrics_per_epoch": number(1),
    "seeds": number(1, MAX_MEMBERS),
    "first_seed": number(0, 2**32, open_high=True),
    "tune_seeds": number(1, MAX_MEMBERS),
    "tune_first_seed": number(0, 2**32, open_high=True),
    "tune_widenings": number(0),
}
"""Every field of a config except `sweep` and `tune`, with the check of its value; types are those of the defaults."""

MEASURED = ("arm", "seed", "epoch", "split", "metric", "value", "image", "label", "predicted", "margin")
"""Columns of the tables in a run folder, which an axis of named groups must not repeat."""

ALLOWED_OUTPUTS = {
    ("loss", "cross_entropy"): ("softmax", "rbf"),
    ("loss", "correct_penalty"): ("rbf",),
    ("mse_point", "softmax"): ("softmax", "rbf"),
    ("mse_point", "linear"): ("softmax", "linear", "squashed"),
}
"""Outputs with which a value of a field can be combined; other values go with all outputs."""

NAMED_ARMS = "arm"
"""The axis whose groups define the arms directly; they are named after the groups alone."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """One combination of the sweep's values.

    Attributes:
      name: ``loss=mse,activation=tanh``; ``all`` without a sweep.
      axes: the values of the sweep's axes.
      settings: the value of every field; tuned fields have the value before tuning.
      tuning: the values to try for tuned fields; None without tuning.
    """

    name: str
    axes: dict[str, Any]
    settings: dict[str, Any]
    tuning: Tuning | None = None


class Choice(NamedTuple):
    """One value of a sweep axis: what identifies it in names and tables, and the fields that it sets."""

    shown: dict[str, Any]
    settings: dict[str, Any]


def expand(config: ConfigDict) -> list[Arm]:
    """The arms of a config: the product of its sweep's axes.

    Raises:
      InputError: a field or a value is not allowed; the message names it.
    """
    given = plain(config)
    for name in given:
        check_field(name, DEFAULTS)
    defaults = {field: check_value(field, given.get(field, DEFAULTS[field])) for field in FIELDS}
    sweep, tune = (given.get(name, {}) for name in ("sweep", "tune"))
    axes = {axis: check_axis(axis, sweep[axis]) for axis in names_of("sweep", sweep)}
    if NAMED_ARMS in axes and len(axes) > 1:
        raise InputError(f"sweep.{NAMED_ARMS}: named arms allow no other axis; for a product, rename this axis")
    tuned = check_tune(tune)
    check_settings_once(axes, tuned.names if tuned else [])
    count = math.prod(map(len, axes.values()))
    if count > MAX_ARMS:
        raise InputError(f"sweep: its axes make {count} arms; at most {MAX_ARMS} are allowed")
    arms = [combine(defaults, choices, tuned) for choices in itertools.product(*axes.values())]
    names = collections.Counter(arm.name for arm in arms)
    for arm in arms:
        if not arm.name.strip() or not arm.name.isprintable() or len(arm.name) > MAX_NAME:
            allowed = f"a name is one line of up to {MAX_NAME} characters"
            raise InputError(f"sweep: invalid arm name {short_repr(arm.name)}; {allowed}")
        if names[arm.name] > 1:
            raise InputError(f"sweep: two arms have the name {arm.name!r}; rename their groups")
        try:
            check_together(arm.settings, arm.tuning)
        except InputError as error:
            raise InputError(f"{error} (arm {arm.name})" if len(arms) > 1 else str(error)) from error
    return arms


def select_arms(arms: list[Arm], wanted: str) -> list[Arm]:
    """The arm with this name or number, or all if none is named.

    Raises:
      InputError: there is no such arm.
    """
    named = arm_named(wanted, [arm.name for arm in arms])
    found = [arm for number, arm in enumerate(arms, 1) if named in ("", arm.name, str(number))]
    if not found:
        allowed = listed([arm.name for arm in arms], wanted)
        raise InputError(f"only-arm: {wanted!r} is not an arm; allowed are 1 to {len(arms)}, and {allowed}")
    return found


def combine(defaults: Mapping[str, Any], choices: Collection[Choice], tuned: Tuning | None) -> Arm:
    """The arm with one choice of each axis."""
    shown = {name: value for choice in choices for name, value in choice.shown.items()}
    settings = {name: value for choice in choices for name, value in choice.settings.items()}
    name = ",".join(f"{axis}={format_value(value)}" for axis, value in shown.items()) or ONLY_ARM
    if NAMED_ARMS in shown:
        name, shown = shown[NAMED_ARMS], {}
    return Arm(name, shown, {**defaults, **settings}, tuned)


def check_value(field: str, value: Any, where: str = "") -> Any:
    """The value with the type of the field's default, if it is allowed; `where` precedes the field in messages."""
    wanted, given = type(DEFAULTS[field]), type(value)
    if given is int and abs(value) >= 2**63:  # exceeds arrays' integers, and may exceed floats
        raise InputError(f"{where}{field}: {short_repr(value)} is out of range; integers have at most 64 bits")
    if (given, wanted) in ((int, float), (list, tuple)):  # JSON has no tuples
        value = wanted(value)
    elif given is not wanted:
        raise InputError(f"{where}{field}: expected {wanted.__name__}, got {short_repr(value)} ({given.__name__})")
    try:
        FIELDS[field](field, value)
    except InputError as error:
        raise InputError(f"{where}{error}") from error
    return value


def in_range(field: str, value: Any) -> bool:
    """Whether a field may have the value."""
    try:
        check_value(field, value)
    except InputError:
        return False
    return True


def check_axis(axis: str, values: Any) -> list[Choice]:
    """The choices of a sweep axis: a field, several fields that change together, or named groups of fields."""
    if isinstance(values, Mapping):
        return check_groups(axis, values)
    path, names = f"sweep.{axis}", axis.split(",")
    for name in names:
        check_field(name, FIELDS, f"{path}: ")
        if isinstance(DEFAULTS[name], tuple):  # tables have a column per axis, of single values
            raise InputError(f"{path}: {name!r} can't be an axis; set config.{name}")
    if len(set(names)) < len(names):
        raise InputError(f"{path}: contains a field twice")

    def check_row(row: Any) -> tuple[Any, ...]:
        row = row if len(names) > 1 else (row,)
        if not isinstance(row, tuple | list) or len(row) != len(names):
            raise InputError(f"{path}: expected {len(names)} values, one for each field, got {short_repr(row)}")
        return tuple(check_value(name, value, "sweep.") for name, value in zip(names, row, strict=True))

    rows = [dict(zip(names, row, strict=True)) for row in check_sequence(path, values, check_row)]
    return [Choice(row, row) for row in rows]


def check_sequence(path: str, values: Any, check: Callable[[Any], Any]) -> list[Any]:
    """The checked values of a sequence that is neither empty nor contains a value twice."""
    if not isinstance(values, tuple | list) or not values:
        example = f"{short_repr(values)}," if isinstance(values, str | int | float) else "first, second"
        raise InputError(f"{path}: expected a sequence of values, got {short_repr(values)}; write {path}=({example})")
    checked = [check(value) for value in values]
    if len(set(checked)) < len(checked):
        raise InputError(f"{path}: {short_repr(tuple(values))} contains a value twice; values must differ")
    return checked


def check_groups(axis: str, groups: Mapping[Any, Any]) -> list[Choice]:
    """The choices of a sweep axis that consists of named groups of fields."""
    path = f"sweep.{axis}"
    if axis != NAMED_ARMS and (axis in FIELDS or axis in MEASURED):
        raise InputError(f"{path}: the name of an axis of named groups must be neither a field nor a column of results")
    choices = []
    for group in names_of(path, groups):
        fields, where = groups[group], f"{path}.{group}"
        names = names_of(where, fields)
        for name in names:
            check_field(name, FIELDS, f"{where}: ")
        choices.append(Choice({axis: group}, {name: check_value(name, fields[name], f"{where}.") for name in names}))
    if not choices:
        raise InputError(f"{path}: no groups; write {path} = {{'name': {{'field': value}}}}")
    return choices


def check_tune(tune: Any) -> Tuning | None:
    """The values to try for tuned fields; None without any."""
    grid, drawn, tunable = {}, {}, values_of("tune")
    for name in names_of("tune", tune):
        values, path = tune[name], f"tune.{name}"
        if name not in tunable:
            raise InputError(f"{path}: not a tunable field; allowed are {', '.join(tunable)}")
        if isinstance(values, Mapping):
            drawn[name] = check_random_set(name, values)
        else:
            check = functools.partial(check_value, name, where="tune.")
            grid[name] = tuple(sorted(check_sequence(path, values, check)))
    if len({len(values) for values in drawn.values()}) > 1:
        raise InputError(f"tune: {', '.join(drawn)} are sampled jointly; their counts must be equal")
    points = [dict(zip(drawn, point, strict=True)) for point in zip(*drawn.values(), strict=True)]
    return Tuning(grid, tuple(points) or ({},)) if grid or drawn else None


def check_random_set(name: str, values: Mapping[Any, Any]) -> list[float]:
    """Random values of a hyperparameter, see `candidates.log_uniform`."""
    if set(values) != {"low", "high", "count"}:
        given = ", ".join(sorted(map(short_repr, values))) or "none"
        raise InputError(f"tune.{name}: a random set needs the keys low, high, count; got {given}")
    low, high = (check_value(name, values[end], "tune.") for end in ("low", "high"))
    count = values["count"]
    if not 0 < low < high:
        raise InputError(f"tune.{name}: expected 0 < low < high, got low {low!r} and high {high!r}")
    if type(count) is not int or not 1 <= count <= MAX_MEMBERS:
        raise InputError(f"tune.{name}: count must be an integer from 1 to {MAX_MEMBERS}, got {short_repr(count)}")
    return candidates.log_uniform(name, low, high, count)


def names_of(path: str, mapping: Any) -> list[str]:
    """The keys of a mapping in the order written, if they are names."""
    if not isinstance(mapping, Mapping):
        raise InputError(f"{path}: expected a mapping of names to values, got {short_repr(mapping)}")
    for name in mapping:
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise InputError(f"{path}: names must be strings of one line, got {short_repr(name)}")
    return list(mapping)


def check_settings_once(axes: Mapping[str, list[Choice]], tuned: Collection[str]) -> None:
    """Checks that no field is set by two axes, or by an axis and by tuning: the second would overwrite the first."""
    setters = {field: f"tune.{field}" for field in tuned}
    for axis, choices in axes.items():
        for field in sorted({field for choice in choices for field in choice.settings}):
            if field in setters:
                raise InputError(f"sweep.{axis}: sets {field!r}, which {setters[field]} sets too")
            setters[field] = f"sweep.{axis}"


def check_together(settings: Mapping[str, Any], tuned: Tuning | None) -> None:
    """Checks that the fields of an arm are compatible."""
    field = "mse_point" if settings["loss"] == "mse" else "loss"
    allowed = ALLOWED_OUTPUTS.get((field, settings[field]), values_of("output"))
    if settings["output"] not in allowed:
        wanted = " or ".join(map(repr, allowed))
        raise InputError(f"{field}: {settings[field]!r} requires output {wanted}, got output {settings['output']!r}")
    seeds = seed_range(settings, "seeds", "first_seed")
    if tuned is None:
        if settings["refit"]:
            raise InputError("refit: True requires a field in tune; add one, or set validation_size to 0 instead")
        return
    if not settings["validation_size"]:
        raise InputError("validation_size: 0 leaves no images for tuning; set it to a number of training images")
    tune_seeds = seed_range(settings, "tune_seeds", "tune_first_seed")
    if max(seeds.start, tune_seeds.start) < min(seeds.stop, tune_seeds.stop):
        own, other = (f"{some[0]} to {some[-1]}" for some in (seeds, tune_seeds))
        raise InputError(f"tune_first_seed: seeds {other} overlap the arms' own, {own}; tuning needs others")
    candidates, each = math.prod(map(len, tuned.grid.values())) * len(tuned.drawn), len(tune_seeds)
    if candidates * each > MAX_MEMBERS:
        raise InputError(f"tune: {candidates} combinations with {each} tune_seeds each exceed {MAX_MEMBERS} members")
    if settings["refit"] and settings["train_size"]:
        raise InputError(f"refit: True requires train_size 0, got {settings['train_size']}")


def seed_range(settings: Mapping[str, Any], count: str, first: str) -> range:
    """The seeds given by the fields `count` and `first`, if they fit in 32 bits."""
    seeds = range(settings[first], settings[first] + settings[count])
    if seeds.stop > 2**32:
        raise InputError(f"{count}: {len(seeds)} seeds from {first} {seeds.start} exceed 2**32 - 1")
    return seeds


def describe(config: ConfigDict) -> dict[str, Any]:
    """The resolved config with all its fields, as in config.json."""
    return dict(json.loads(DEFAULTS.to_json()) | json.loads(json.dumps(plain(config))))
