"""The schema of a run folder's files: annotations are the types of JSON fields, tables have required columns.

A run folder may come from anyone. All that reads one relies on what is checked here.
"""

import dataclasses
import functools
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from lenet_jax.errors import InputError, short_repr
from lenet_jax.experiments import base
from lenet_jax.run.names import MAX_NAME

Scalar = str | int | float | bool
"""Values of a sweep's axis."""

MAX_CLASSES = 256
"""Classes of a data set."""

LARGEST = {int: 2**63, float: 1e300}
"""Absolute values up to which numbers are accepted: those that a config may have, and with which sums stay finite."""

JSON_NAMES = {int: "an integer", float: "a number", str: "text", bool: "true or false", list: "a list", tuple: "a list"}

PROVENANCE_FIELDS: dict[str, Any] = {"command": str, "processor": str, "notes": list[str]}
PROVENANCE_FIELDS |= dict.fromkeys(("versions", "fingerprints", "jax_settings"), dict[str, str])
"""The fields of ``provenance.json`` and of attempts that are read, if they are there."""

TEXT, INTEGERS, NUMBERS = "text", "integers", "numbers"
IDENTITY = {"arm": TEXT, "seed": INTEGERS}
METRIC_COLUMNS = IDENTITY | {"epoch": NUMBERS, "split": TEXT, "metric": TEXT, "value": NUMBERS}
PREDICTION_COLUMNS = IDENTITY | {"image": INTEGERS, "label": INTEGERS, "predicted": INTEGERS, "margin": NUMBERS}
"""Column -> type. Others may follow."""

SCORE_COLUMNS = ("nll", "brier")
"""Columns of predictions that older runs lack: numbers, missing where outputs aren't probabilities."""

MEASURED = {"value", "label", "predicted", "margin", *SCORE_COLUMNS}
"""Columns that don't identify a row."""

RANGES = {"seed": 2**33, "epoch": 2**31, "image": 2**31, "label": MAX_CLASSES, "predicted": MAX_CLASSES}
"""Column -> upper end of its range, exclusive; the lower end is 0, and -1 for predictions."""


def fit(kind: Any, value: Any, where: str) -> Any:
    """A JSON value as an annotated type, with its tuples and dataclasses.

    Args:
      kind: int, float, str, bool, Any, a union of these, ``T | None``, ``list[T]``, ``tuple[T, ...]``,
        ``tuple[T, T]``, ``dict[str, T]``, or a dataclass. Fields of a dataclass that have a default may be missing;
        unknown ones are left out.
      value: as `files.read_json` returns it.
      where: the file and the field, for messages.

    Raises:
      InputError: the value has another type, or a number is too large.
    """
    origin, inner = typing.get_origin(kind) or kind, typing.get_args(kind)
    given = type(value)
    if origin is Any or (origin in (str, bool) and given is origin):
        return value
    if origin in (types.UnionType, typing.Union):
        allowed = [one for one in inner if one is not types.NoneType]
        optional = value is None and len(allowed) < len(inner)
        return None if optional else fit(given if given in allowed else allowed[0], value, where)
    if origin in LARGEST and given in (int, origin) and abs(value) <= LARGEST[origin]:
        return origin(value)
    if origin in (tuple, list) and given is list and (len(inner) in (1, len(value)) or Ellipsis in inner):
        return origin(fit(inner[0], each, f"{where}[{index}]") for index, each in enumerate(value))
    if origin is dict and given is dict:
        return {name: fit(inner[1], each, f"{where}.{name}") for name, each in value.items()}
    if dataclasses.is_dataclass(origin) and given is dict:
        hints, known = hints_of(kind), {}
        for field in dataclasses.fields(origin):
            if field.name in value:
                known[field.name] = fit(hints[field.name], value[field.name], f"{where}.{field.name}")
            elif field.default is dataclasses.MISSING:
                raise InputError(f"{where}: {field.name!r} is missing")
        return kind(**known)
    length = f" of {len(inner)}" if origin is tuple and Ellipsis not in inner else ""
    raise InputError(f"{where}: expected {JSON_NAMES.get(origin, 'an object')}{length}, got {short_repr(value)}")


hints_of = functools.cache(typing.get_type_hints)


def check_fields(fields: Mapping[str, Any], kinds: Mapping[str, Any], where: str) -> None:
    """Raises InputError if a field has another type than its `kind`; unknown fields may have any."""
    for name in kinds.keys() & fields.keys():
        fit(kinds[name], fields[name], f"{where}: {name}")


@functools.cache
def config_kinds() -> dict[str, Any]:
    """Config field -> its type, which is that of its default."""
    others = {tuple: list[str], ConfigDict: dict[str, Any]}
    return {name: others.get(type(default), type(default)) for name, default in base.get_config().items()}


def check_name(name: Any, where: str) -> None:
    """Raises InputError unless a text can be a name: of an arm, an axis, a split or a metric."""
    if not isinstance(name, str) or not name.strip() or not name.isprintable() or len(name) > MAX_NAME:
        raise InputError(f"{where}: expected a line of up to {MAX_NAME} printable characters, got {short_repr(name)}")


def check_range(column: str, values: pd.Series | np.ndarray, where: str) -> None:
    """Raises InputError if values of a column are outside its range, or missing."""
    low, high = -(column == "predicted"), RANGES.get(column, 0) - 1
    if column in RANGES and not ((values >= low) & (values <= high)).all():
        raise InputError(f"{where}: column {column!r} has other values than {low} to {high}")


def check_table(
    table: pd.DataFrame, columns: Mapping[str, str], tuned: Collection[str], seeds: Mapping[str, int], where: str
) -> None:
    """Raises InputError unless a table can be that of arms with these numbers of seeds (not checked if they are 0).

    `tuned` are more columns that identify a row, of numbers.
    """
    for column, wanted in {**columns, **dict.fromkeys(tuned, NUMBERS)}.items():
        kind = str(table[column].dtype).replace("category", "str") if column in table else "nothing"
        found = {"str": TEXT, "int": INTEGERS, "uin": INTEGERS, "flo": NUMBERS}.get(kind[:3], kind)
        if found != wanted and (found, wanted) != (INTEGERS, NUMBERS):
            raise InputError(f"{where}: column {column!r} has {kind}; expected {wanted}")
        check_range(column, table[column], where)
        for name in table[column].unique() if wanted == TEXT else ():
            check_name(name, f"{where}: column {column!r}")
    keys = [column for column in (*columns, *tuned) if column not in MEASURED]
    if table.duplicated(keys).any():
        raise InputError(f"{where}: two rows have the same {', '.join(keys)}")
    for arm, count in table.groupby("arm").seed.nunique().items():
        if (known := seeds.get(str(arm), -1)) not in (0, count):
            raise InputError(f"{where}: {count} seeds of arm {arm!r}; the summary has {max(known, 0)}")
