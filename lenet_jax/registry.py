"""Registries: parts by name, to which an experiment file or a notebook may add its own.

After ``ACTIVATIONS["gelu"] = jax.nn.gelu``, for example, "gelu" is a value of the config field.
"""

from collections import UserDict
from collections.abc import Callable
from typing import Any, TypeVar

import jax

from lenet_jax.choices import register
from lenet_jax.errors import InputError

Part = TypeVar("Part")

REGISTRIES: dict[str, "Registry[Any]"] = {}
"""All registries by the config field whose values they are."""

CACHES: list[Callable[[], None]] = [jax.clear_caches]
"""Functions that forget compiled programs, which hold the functions that they were compiled from."""


class Registry(UserDict[str, Part]):
    """Values of a config field by name: the package's parts, which can't be replaced, and a user's own.

    Examples:
      >>> from lenet_jax.layers import ACTIVATIONS
      >>> ACTIVATIONS["square"] = lambda x: x * x
      >>> ACTIVATIONS["square"](3), ACTIVATIONS.own
      (9, ['square'])
      >>> del ACTIVATIONS["square"]
    """

    def __init__(self, field: str, /, **shipped: Part) -> None:
        self.data = dict(shipped)
        self.field, self.shipped = field, frozenset(shipped)
        register(field, self)
        REGISTRIES[field] = self

    @property
    def own(self) -> list[str]:
        """Names of the parts that a user added."""
        return [name for name in self if name not in self.shipped]

    def __setitem__(self, name: str, part: Part) -> None:
        """Adds a part, or replaces one that was added before. Raises InputError for an invalid name or part."""
        if not isinstance(name, str) or not name.isidentifier():
            raise InputError(f"{self.field}: {name!r} is not a name for a part; use one word of letters, digits and _")
        if name in self.shipped and self[name] is not part:
            raise InputError(f"{self.field}: {name!r} is a part of lenet_jax; give yours another name")
        if not callable(part):
            raise InputError(f"{self.field}: {name!r} must be a function, not {type(part).__name__}")
        if self.get(name, part) is not part:
            for forget in CACHES:
                forget()
        super().__setitem__(name, part)

    def __delitem__(self, name: str) -> None:
        """Removes a part, and compiled programs that contain it."""
        super().__delitem__(name)
        for forget in CACHES:
            forget()
