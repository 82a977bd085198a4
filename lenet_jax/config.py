"""Configs: `ConfigDict`s that take the scalars and arrays of NumPy and JAX as Python's numbers, strings and lists."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict


class Config(ConfigDict):  # type: ignore[misc]
    """A ConfigDict that converts values before it compares their types with its own, see `plain`."""

    def __setitem__(self, key: str, value: Any) -> None:
        value = value if isinstance(value, ConfigDict) else plain(value)
        super().__setitem__(key, ConfigDict(value) if isinstance(value, dict) else value)  # which a ConfigDict replaces


def plain(value: Any) -> Any:
    """The value in Python's own types, at any depth; dicts instead of ConfigDicts, with the keys in the order written.

    >>> import numpy as np
    >>> plain({"learning_rate": np.logspace(-2, 0, 3), "epochs": (np.int64(2), 5)})
    {'learning_rate': [0.01, 0.1, 1.0], 'epochs': (2, 5)}
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, ConfigDict):  # iterating it sorts the keys, and fails on mixed types
        value = {key: value[key] for key in value._fields}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return type(value)(map(plain, value)) if type(value) in (list, tuple) else value
