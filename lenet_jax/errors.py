"""Errors the user can fix, reported in one line."""

import difflib
from collections.abc import Collection
from typing import Any

from lenet_jax.output import printable

MAX_MESSAGE, MAX_REASON, MAX_VALUE = 2000, 500, 200
"""Characters of a message, of another error's message within it, and of a value; longer ones lose their middle."""

MAX_LISTED, MAX_SUGGESTED = 200, 4
"""Characters of allowed names that are listed completely; the number of similar ones listed otherwise."""


class InputError(ValueError):
    """An invalid config, data set, flag, path or file; the command line prints the message and exits with 2.

    The message is one line that names the field or file, its value and what is allowed.
    """


class RunError(RuntimeError):
    """A run that cannot continue although its config is valid; its checkpoints are kept.

    The command line prints the message, one line, says how to resume, and exits with 1.
    """


class WorkerError(RunError):
    """A worker process ended unexpectedly; `killed`: by SIGKILL, which Linux sends when memory runs out."""

    def __init__(self, message: str, killed: bool = False) -> None:
        super().__init__(message)
        self.killed = killed


class ProcessError(RunError):
    """Another process of a distributed run ended or is unreachable."""


class StorageError(RunError):
    """A file of the run folder cannot be written."""


class Interrupted(BaseException):
    """A signal stopped the run, after a checkpoint; the command line exits with 128 + `signal`."""

    def __init__(self, signal: int, message: str) -> None:
        super().__init__(message)
        self.signal = signal


def one_line(error: BaseException, limit: int = MAX_REASON) -> str:
    """An error's message in one printable line of about `limit` characters; the error's type if it has no message."""
    return shortened(str(error).strip() or type(error).__name__, limit)


def short_repr(value: Any) -> str:
    """The repr of a value in one printable line of about `MAX_VALUE` characters."""
    try:
        return shortened(repr(value), MAX_VALUE)
    except ValueError:  # an integer of thousands of digits
        return f"a value of type {type(value).__name__} too long to show"


def shortened(text: str, limit: int) -> str:
    """Text in one line, with control characters escaped, and without its middle if it is long."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= limit else f"{line[: limit // 2]} ... {line[-limit // 2 :]}"


def check_choice(field: str, value: object, allowed: Collection[str]) -> None:
    """Raises InputError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise InputError(f"{field}: {value!r} is not one of {listed(allowed, value)}")


def check_field(name: object, fields: Collection[str], where: str = "") -> None:
    """Raises InputError unless `name` is one of the config's fields; `where` names the key that contains it."""
    if name not in fields:
        near = difflib.get_close_matches(name, fields, n=1) if isinstance(name, str) else []
        hint = f"did you mean {near[0]!r}?" if near else "experiments/base.py documents every field"
        raise InputError(f"{where}unknown config field {short_repr(name)}; {hint}")


def listed(allowed: Collection[str], value: object) -> str:
    """The allowed values for a message: all of them if they are few, otherwise those most similar to `value`."""
    names = list(map(repr, allowed))
    if len(", ".join(names)) <= MAX_LISTED or len(names) <= MAX_SUGGESTED:
        return ", ".join(names)
    given = repr(value)[:MAX_LISTED]
    similar = sorted(names, key=lambda name: -difflib.SequenceMatcher(None, given, name).ratio())
    return f"{', '.join(similar[:MAX_SUGGESTED])} and {len(names) - MAX_SUGGESTED} more"
