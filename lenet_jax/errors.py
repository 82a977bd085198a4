"""Refusals: what a user can mend, said in one line."""

from collections.abc import Collection


class InputError(ValueError):
    """A config, data set, flag, path or file that can't be used.

    The message is one line that names the field or file, its value and what is allowed. The command line prints it and
    exits with 2.
    """


class WorkerError(RuntimeError):
    """A worker process that ended by itself. The message is one line; the command line prints it and exits with 1."""


def check_choice(field: str, value: object, allowed: Collection[str]) -> None:
    """Raises InputError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise InputError(f"{field}: {value!r} is not one of {', '.join(map(repr, allowed))}")
