"""Refusals: what a user can mend, said in one line."""

import difflib
import re
from collections.abc import Collection
from typing import Any


class InputError(ValueError):
    """A config, data set, flag, path or file that can't be used.

    The message is one line that names the field or file, its value and what is allowed. The command line prints it and
    exits with 2.
    """


class RunError(RuntimeError):
    """A run that can't go on, through no fault of its config; what it saved is kept.

    The message is one line. The command line prints it, says how to go on, and exits with 1.
    """


class WorkerError(RunError):
    """A worker process ended by itself.

    Attributes:
      killed: by SIGKILL, which is what Linux sends when memory runs out.
    """

    def __init__(self, message: str, killed: bool = False) -> None:
        super().__init__(message)
        self.killed = killed


class ProcessError(RunError):
    """Another process of a distributed run ended, or can't be reached."""


class StorageError(RunError):
    """A file of the run folder can't be written."""


class Interrupted(BaseException):
    """The user or the system asked the run to stop, and it has saved what it had.

    Attributes:
      signal: number of the signal; the command line exits with 128 more.
    """

    def __init__(self, signal: int, message: str) -> None:
        super().__init__(message)
        self.signal = signal


def one_line(error: BaseException) -> str:
    """An error's message in one line that isn't too long."""
    return " ".join(str(error).split())[:200]


def wrong_type(text: str) -> str | None:
    """What ml_collections says of a value of another type than its field's, in our words; None for any other text."""
    said = re.search(r"field '(\w+)' .*?\. (.*) is of original type <class '(\w+)'> and .* <class '(\w+)'>", text, re.S)
    if not said:
        return None
    field, value, given, allowed = said.groups()
    return f"{field}: {repr(value) if given == 'str' else value} is not of type {allowed}"


def check_choice(field: str, value: object, allowed: Collection[str]) -> None:
    """Raises InputError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise InputError(f"{field}: {value!r} is not one of {listed(allowed, value)}")


LONGEST, NEAREST = 200, 4
"""Characters of names that are all listed; of more, the names that come nearest to what was given, so many."""


def listed(allowed: Collection[str], value: object) -> str:
    """What is allowed instead of a value, for a message of one line."""
    names = list(map(repr, allowed))
    if len(", ".join(names)) <= LONGEST or len(names) <= NEAREST:
        return ", ".join(names)
    given = repr(value)[:LONGEST]
    alike = sorted(names, key=lambda name: -difflib.SequenceMatcher(None, given, name).ratio())
    return f"{', '.join(alike[:NEAREST])} and {len(names) - NEAREST} more"


def short_repr(value: Any) -> str:
    """A value as messages have it: in one line, and not too long."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # an integer of thousands of digits
        text = f"a value of type {type(value).__name__} that is too long to show"
    return text if len(text) <= 200 else f"{text[:100]} ... {text[-100:]}"
