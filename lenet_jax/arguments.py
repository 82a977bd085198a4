"""Command-line arguments of `lenet-jax run`: its flags, and overrides of config fields."""

import ast
import functools
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from lenet_jax.errors import InputError, check_field, short_repr
from lenet_jax.experiments import base
from lenet_jax.paths import expanded

FIELD, MAPPINGS = "--config.", ("sweep", "tune")
"""Prefix of arguments that set a field, and the fields that are mappings, whose keys are set one by one."""

SPELLINGS = {"--only_arm": "--only-arm", "--save_every": "--save-every"}
"""Former spellings of flags, which still work."""


def with_shipped(argument: str) -> str:
    """Replaces ``lenet_jax:NAME`` in ``--config=lenet_jax:NAME`` by the file of that experiment, and expands ``~``."""
    if argument.startswith("--config=~"):
        return f"--config={expanded(argument.removeprefix('--config='), 'config')}"
    flag, _, rest = argument.partition("=lenet_jax:")
    if flag != "--config" or not rest:
        return argument
    name, colon, more = rest.partition(":")
    folder = Path(base.__file__).parent
    known = sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))
    if name not in known:
        raise InputError(f"config: {name!r} is not an experiment of lenet_jax; allowed are {', '.join(known)}")
    return f"{flag}={folder / name}.py{colon}{more}"


def definers(values: flags.FlagValues) -> list[Callable[..., object]]:
    """Functions that define string, integer, float and bool flags of a command, as those of absl."""
    defines = (flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_float, flags.DEFINE_bool)
    return [functools.partial(define, flag_values=values) for define in defines]


def define_run_flags(values: flags.FlagValues) -> None:
    """Defines the flags of `lenet-jax run` other than the config; none of them changes a result."""
    string, integer, number, switch = definers(values)
    string("workdir", None, "run folder; default: runs/NAME for the config NAME.py")
    string("tracker", "tensorboard", "logger of learning curves: tensorboard (run folder), wandb, mlflow or none")
    string("only-arm", "", "run a single arm, given by its name or its number from 1; other jobs run the others")
    switch("dry-run", False, "measure and print time, memory, disk and what the design can show; write nothing")
    switch("fresh", False, "move an existing run folder aside and start again")
    saving = "seconds between checkpoints, at the end of a segment of an epoch (about 20 s); 0: after every segment"
    number("save-every", 10.0, saving, lower_bound=0.0)
    integer("devices", 0, "number of CPU cores to use; 0: all", lower_bound=0)
    clusters = "on Slurm, Open MPI, Kubernetes and TPU pods no other flag is needed"
    switch("distributed", False, f"run as one of several processes that share the networks; {clusters}")
    string("coordinator", "", "with --distributed: HOST:PORT of process 0")
    integer("processes", 0, "with --distributed: number of processes", lower_bound=0)
    integer("process", -1, "with --distributed: index of this process, from 0")


def joined(arguments: list[str]) -> list[str]:
    """Flags written ``--name value`` or ``-name=value`` as ``--name=value``, in their present spelling."""
    result: list[str] = []
    for given in arguments:
        flag, equals, value = given.partition("=")
        argument = f"{SPELLINGS.get(flag, flag)}{equals}{value}"
        waits = bool(result) and result[-1].startswith("--") and "=" not in result[-1] and result[-1] != "--help"
        if waits and not argument.startswith("-"):
            result[-1] += f"={argument}"
        elif argument.startswith("-") and not argument.startswith("--") and argument != "-h":
            result.append(f"-{argument}")
        else:
            result.append(argument)
    return result


def check_overrides(arguments: list[str]) -> None:
    """Checks names and types of fields set by arguments: config_flags' messages don't say which exist."""
    fields = base.get_config()
    given = [argument.removeprefix(FIELD) for argument in arguments if argument.startswith(FIELD)]
    for field, equals, text in (setting.partition("=") for setting in given):
        check_field(field, fields)
        if field in MAPPINGS:
            raise InputError(f'{field}: set one key at a time, as in "{FIELD}{field}.learning_rate=(0.01,0.1)"')
        kind = type(fields[field])
        parse = flags.BooleanParser().parse if kind is bool else kind
        try:
            parse(text if equals else "true")
        except ValueError as error:
            raise InputError(f"{field}: expected {kind.__name__}, got {short_repr(text)}") from error


def parse_config(file: str, parse_flags: Callable[[], list[str]]) -> list[str]:
    """Parses flags with `parse_flags`, which executes the config file, and reports errors of the file in one line."""
    if file and not os.path.isfile(file):  # Path.is_file raises for some names
        raise InputError(f"config: {file!r} is not a file")
    # A bytecode file would hide a change of the config file within the same second.
    writes_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        return parse_flags()
    except (flags.UnrecognizedFlagError, BrokenPipeError):
        raise
    except Exception as error:  # whatever the user's Python file raises
        if isinstance(error, AttributeError) and "get_config" in str(error):
            raise InputError(f"config: {file!r} has no function get_config()") from error
        text = f"{type(error).__name__}: {error}"
        if isinstance(error, flags.Error):  # its message may contain a traceback, which ends with the error itself
            text = str(error).strip().splitlines()[-1]
        other_flag = text.startswith(("flag --", "Missing value for flag --")) and not text.startswith("flag --config=")
        ours = f"{InputError.__module__}.{InputError.__name__}: "
        if other_flag or text.startswith(ours):  # the file is not to blame, or its message is one of ours
            raise InputError(text.removeprefix(ours)) from error
        raise InputError(wrong_type(text, file) or f"config: {file!r} fails with {text}") from error
    finally:
        sys.dont_write_bytecode = writes_bytecode


def wrong_type(text: str, file: str) -> str | None:
    """Our words for ml_collections' error about a field's type; None if `text` is another error."""
    pattern = r"field '(\w+)' .*?\. (.*) is of original type <class '(\w+)'> and .* <class '(\w+)'>"
    found = re.search(pattern, text, re.DOTALL)
    if not found:
        return None
    field, value, given, allowed = found.groups()
    return f"{field}: expected {allowed}, got {short_repr(value) if given == 'str' else value} (in {file!r})"


def with_keys(config: ConfigDict, arguments: list[str]) -> ConfigDict:
    """The config with keys of `MAPPINGS` set by arguments like ``--config.sweep.loss=('mse',)``; keys may be new.

    config_flags could add keys by itself (``accept_new_attributes``), but not keys with a comma; and it would append
    to a tuple when a flag is repeated, keep only the keys of a dict that replaces a tuple, and read ``('mse'`` as text.
    """
    changed = ConfigDict(config, sort_keys=False)
    for argument in arguments:
        path, _, text = argument.removeprefix(FIELD).partition("=")
        name, _, key = path.partition(".")
        mapping: Any = changed.get(name, ConfigDict())
        if not isinstance(mapping, ConfigDict):
            raise InputError(f"{name}: expected a mapping of fields to values, got {short_repr(mapping)}")
        if "." in key:
            raise InputError(f"{path}: unknown key {key!r}; write {FIELD}{name}.FIELD=(first,second)")
        ordered = {known: mapping[known] for known in mapping._fields}  # iterating a ConfigDict sorts the keys
        try:
            values = ConfigDict(ordered | {key: ast.literal_eval(text)}, sort_keys=False)
        # TypeError: a key that is not hashable; the last two: thousands of nested brackets or signs
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
            problem = f"{path}: {short_repr(text)} is not a Python literal"
            raise InputError(f"{problem}; write a tuple, as in \"{FIELD}sweep.loss=('mse',)\"") from error
        with changed.unlocked():
            changed[name] = values
    return changed
