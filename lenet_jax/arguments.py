"""The command line's flags: absl and ml_collections, and what their messages mean."""

import ast
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from lenet_jax.errors import InputError, listed, wrong_type
from lenet_jax.experiments import base

FIELD, MAPPINGS = "--config.", ("sweep", "tune")
"""How arguments start that set a field, and the fields that are mappings: their keys are set one by one."""


SPELLINGS = {"--only_arm": "--only-arm", "--save-every": "--save_every"}
"""Flags as they may be written, too."""


def with_shipped(argument: str) -> str:
    """``--config=lenet_jax:NAME`` with the file of the experiment that comes with the package under this name."""
    given, _, rest = argument.partition("=lenet_jax:")
    if given != "--config" or not rest:
        return argument
    name, colon, more = rest.partition(":")
    folder = Path(base.__file__).parent
    known = sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))
    if name not in known:
        raise InputError(f"config: {name!r} is no experiment of lenet_jax; allowed are {', '.join(known)}")
    return f"{given}={folder / name}.py{colon}{more}"


def define_ways(values: flags.FlagValues) -> None:
    """The flags of `lenet-jax run` that say how it runs; none of them changes a result."""
    flags.DEFINE_string(
        "only-arm",
        "",
        "run this arm alone, by its name or its number from 1; the others are other jobs'",
        flag_values=values,
    )
    flags.DEFINE_bool("fresh", False, "start anew; what the run folder holds is moved aside", flag_values=values)
    flags.DEFINE_float(
        "save_every",
        10.0,
        "seconds after which networks in training are saved, at the end of a part of a pass (some 20 s); 0: after each "
        "part",
        lower_bound=0.0,
        flag_values=values,
    )
    flags.DEFINE_integer("devices", 0, "cores of a CPU to use; 0: all", lower_bound=0, flag_values=values)
    flags.DEFINE_bool(
        "distributed",
        False,
        "be one of several processes, which share the networks; on Slurm, Open MPI, Kubernetes and TPU pods this flag "
        "is enough",
        flag_values=values,
    )
    flags.DEFINE_string("coordinator", "", "with --distributed: HOST:PORT of process 0", flag_values=values)
    flags.DEFINE_integer("processes", 0, "with --distributed: how many there are", lower_bound=0, flag_values=values)
    flags.DEFINE_integer("process", -1, "with --distributed: this one's number, from 0", flag_values=values)


def joined(arguments: list[str]) -> list[str]:
    """Flags written ``--name value`` or ``-name=value`` as ``--name=value``."""
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


def check_fields(arguments: list[str]) -> None:
    """Refuses arguments that set a field which doesn't exist, or one to something of another type."""
    fields = base.get_config()
    for argument in arguments:
        if argument.startswith(FIELD):
            field, _, text = argument.removeprefix(FIELD).partition("=")
            if field not in fields:
                raise InputError(
                    f"{field if field.strip() else repr(argument)}: is no field; allowed are {listed(fields, field)}"
                )
            if field in MAPPINGS:
                raise InputError(f'{field}: set one key at a time, as in "{FIELD}{field}.learning_rate=(0.01,0.1)"')
            kind = type(fields[field])
            try:
                kind(text)
            except ValueError as error:
                raise InputError(f"{field}: {text!r} is not of type {kind.__name__}") from error


def parse_config(file: str, parse_flags: Callable[[], list[str]]) -> list[str]:
    """Parses flags; what is wrong with the config file is said in one line."""
    if file and not os.path.isfile(file):  # Path.is_file raises what it can't look at
        raise InputError(f"config: {file!r} is no file")
    try:
        return parse_flags()
    except (flags.UnrecognizedFlagError, BrokenPipeError):
        raise
    except Exception as error:  # whatever the user's Python file raises
        if isinstance(error, AttributeError) and "get_config" in str(error):
            raise InputError(f"config: {file!r} has no function get_config()") from error
        # config_flags packs some errors into a whole traceback, whose last line says what happened.
        text = (
            str(error).strip().splitlines()[-1]
            if isinstance(error, flags.Error)
            else f"{type(error).__name__}: {error}"
        )
        if text.startswith(("flag --", "Missing value for flag --")) and not text.startswith("flag --config="):
            raise InputError(text) from error  # the file can't help it
        ours = f"{InputError.__module__}.{InputError.__name__}: "
        if text.startswith(ours):
            raise InputError(text.removeprefix(ours)) from error
        if said := wrong_type(text):
            raise InputError(f"{said} (in {file!r})") from error
        raise InputError(f"config: {file!r} can't be used: {text}") from error


def with_keys(config: ConfigDict, arguments: list[str]) -> ConfigDict:
    """The config with keys of `MAPPINGS` from arguments like ``--config.sweep.loss=('mse',)``, new ones too."""
    changed = ConfigDict(config, sort_keys=False)
    for argument in arguments:
        path, _, text = argument.removeprefix(FIELD).partition("=")
        name, _, key = path.partition(".")
        mapping: Any = changed.get(name, ConfigDict())
        if not isinstance(mapping, ConfigDict):
            raise InputError(f"{name}: {mapping!r} is no mapping; write config.{name}.FIELD = (first, second)")
        if "." in key:
            raise InputError(f"{path}: is no field")
        # As they were written; iterating a ConfigDict sorts them.
        ordered = {known: mapping[known] for known in mapping._fields}
        try:
            values = ConfigDict(ordered | {key: ast.literal_eval(text)}, sort_keys=False)
        # TypeError: a key that can't be one; the last two: brackets or signs by the thousand
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
            raise InputError(f"{path}: {text!r} is no Python tuple, as in \"{FIELD}sweep.loss=('mse',)\"") from error
        with changed.unlocked():
            changed[name] = values
    return changed
