"""Names of arms, and of the values in them."""

import re
from collections.abc import Collection
from typing import Any

ONLY_ARM = "all"
"""The name of the only arm of a config without a sweep."""

MAX_NAME = 2000
"""Characters of a name of an arm, axis, split or metric."""


def format_value(value: Any) -> str:
    """A field's value as in an arm's name."""
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def arm_named(wanted: str, names: Collection[str]) -> str:
    """The one of `names` that equals `wanted` up to the notation of numbers (3.0 for 3); else `wanted` itself."""

    def plain(value: re.Match[str]) -> str:
        try:
            return format_value(float(value[0]))
        except ValueError:
            return value[0]

    def usual(name: str) -> str:
        return re.sub(r"(?<==)[^,]+", plain, name)

    meant = [name for name in names if usual(name) == usual(wanted)]
    return wanted if wanted in names or len(meant) != 1 else meant[0]
