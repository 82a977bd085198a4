"""The command line: flags and subcommands, nothing else.

JAX is imported only once a command really runs, so that help and refusals come at once.
"""

import ast
import math
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import flags
from ml_collections import ConfigDict, config_flags

import lenet_jax
from lenet_jax import signals
from lenet_jax.errors import InputError, Interrupted, RunError, listed, wrong_type
from lenet_jax.experiments import base

HELP = f"""lenet-jax {lenet_jax.__version__}: LeNet-5 as a laboratory

  lenet-jax run --config=FILE [--workdir=DIR] [--config.FIELD=VALUE ...]
      Trains every arm of an experiment over its seeds and writes a run folder. The same command goes on with a run
      that was stopped.
  lenet-jax compare RUN [RUN ...] [--metric=test_error] [--baseline=ARM] [--out=DIR]
      Compares the arms of finished runs: statistics, figures, and a report.html.
  lenet-jax classify RUN IMAGE [IMAGE ...] [--arm=ARM] [--seed=SEED]
      Says which digit image files show, with a run's trained networks.

Examples:
  lenet-jax run --config=experiments/quickstart.py
  lenet-jax run --config=lenet_jax:quickstart          (the same, from anywhere: experiments come with the package)
  lenet-jax run --config=experiments/ablation.py --config.epochs=2 --config.sweep.loss="('mse',)"
  lenet-jax compare runs/quickstart
  lenet-jax classify runs/quickstart mine.png

`lenet-jax COMMAND --help` lists a command's flags; experiments/base.py documents every config field."""

FIELD, MAPPINGS = "--config.", ("sweep", "tune")
"""How arguments start that set a field, and the fields that are mappings: their keys are set one by one."""

SPELLINGS = {"--only_arm": "--only-arm", "--save-every": "--save_every"}
"""Flags as they may be written, too."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line.

    The exit code is 0, 2 for a refusal, 1 if a run can't go on, or 130 after Ctrl-C and 143 after SIGTERM.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        dispatch(arguments)
    except (InputError, flags.Error) as error:
        given = [argument.partition("=")[0] for argument in joined(arguments)]
        if "--distributed" in given:  # JAX would wait minutes for the other processes
            end(2, one_line(error))
        print(f"lenet-jax: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except RunError as error:
        end(1, f"{one_line(error)}; the same command goes on")
    except Interrupted as error:
        end(128 + error.signal, f"{one_line(error)}; the same command goes on")
    except BrokenPipeError:  # the reader of our output, head or less, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        end(130, "stopped")


def end(code: int, message: str) -> NoReturn:
    """Ends the program with one line.

    Not sys.exit: computations may still run in XLA's threads, and tearing Python down under them crashes.
    """
    try:
        print(f"lenet-jax: {message}", file=sys.stderr, flush=True)
        sys.stdout.flush()
    finally:  # nobody may be left to read it
        os._exit(code)


def one_line(error: BaseException) -> str:
    """An error's message without line breaks, and with other control characters written out."""
    text = " ".join(str(error).split())
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def dispatch(arguments: list[str]) -> None:
    """Calls the command that the first argument names."""
    if not arguments or arguments[0] in ("--help", "-h", "help", "--helpfull"):
        print(HELP)
    elif arguments[0] == "--version":
        print(lenet_jax.__version__)
    elif arguments[0] in COMMANDS:
        COMMANDS[arguments[0]](arguments[1:])
    else:
        raise InputError(
            f"command: {arguments[0]!r} is not one of {', '.join(map(repr, COMMANDS))}; see lenet-jax --help"
        )


def parse(command: str, values: flags.FlagValues, arguments: list[str]) -> list[str]:
    """Parses a command's flags, prints their help if asked, and returns the other arguments."""
    flags.DEFINE_bool("help", False, "show this help", short_name="h", flag_values=values)
    rest = list(values([command, *arguments])[1:])
    if values.help:
        print(f"lenet-jax {command}\n\n{values.module_help(__name__)}\n\n{HELP}")
        sys.exit(0)
    return rest


def run_command(arguments: list[str]) -> None:
    """`lenet-jax run`."""
    arguments = joined(arguments)
    # A key that the config file's sweep or tune doesn't have can be added: config_flags would refuse it as unknown.
    keys = [argument for argument in arguments if argument.startswith(tuple(f"{FIELD}{name}." for name in MAPPINGS))]
    others = [with_shipped(argument) for argument in arguments if argument not in keys]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", None, "experiment config, a Python file", flag_values=values, sys_argv=["run", *others]
    )
    flags.DEFINE_string(
        "tracker",
        "tensorboard",
        "where curves go while it runs: tensorboard (files in the run folder), wandb, mlflow or none",
        flag_values=values,
    )
    flags.DEFINE_string("workdir", None, "run folder; default: runs/ and the config file's name", flag_values=values)
    define_ways(values)
    files = [argument.partition("=")[2] for argument in others if argument.startswith("--config=")]
    file = files[-1] if files else ""
    if not file and not {"--help", "-h"} & set(others):
        file = next((argument for argument in others if argument.endswith(".py")), "experiments/quickstart.py")
        raise InputError(f"config: none is given; write --config=FILE, as in --config={file}")
    check_fields(others)
    rest = parse_config(file.partition(":")[0], lambda: parse("run", values, others))
    if rest:
        raise InputError(f"argument: {rest[0]!r} is not expected; flags are written --name=value")
    config = values.config
    if not isinstance(config, ConfigDict):
        raise InputError(f"config: get_config() of {file!r} returns {type(config).__name__}; allowed is ConfigDict")
    config = with_keys(config, keys)

    workdir = Path(values.workdir or Path("runs") / Path(file.partition(":")[0]).stem)
    if not math.isfinite(values.save_every):
        raise InputError(f"save_every: {values.save_every} is no number of seconds")
    with signals.Stop():  # imports take seconds, in which an exception can get lost
        from rich.console import Console

        from lenet_jax import cluster, compare, experiment, tables

        if values.distributed:
            cluster.join(values.coordinator, values.processes, values.process)
        with signals.Stop() as stop:  # anew: joining leaves JAX with SIGTERM
            run = experiment.run(
                config,
                workdir,
                shlex.join(["lenet-jax", "run", *arguments]),
                values.tracker,
                only_arm=values["only-arm"].value or "",
                fresh=values.fresh,
                save_every=values.save_every,
                devices=values.devices,
                stop=stop,
            )
    if run is None or not cluster.primary():
        return
    Console().print(tables.table(compare.statistics([run]), "test_error"))
    program = sys.argv[0] if Path(sys.argv[0]).name == "lenet-jax" else "lenet-jax"
    print(f"run folder: {workdir}\ndraw it:    {program} compare {workdir}")


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


def compare_command(arguments: list[str]) -> None:
    """`lenet-jax compare`."""
    values = flags.FlagValues()
    flags.DEFINE_string(
        "metric",
        "test_error",
        "what is compared: a split and what was measured, as in test_error, validation_nll or train_loss; or "
        "test_error_class_3, epochs_to_0.02, seconds, samples_per_second",
        flag_values=values,
    )
    flags.DEFINE_string(
        "out",
        None,
        "folder for tables, figures and report.html; default: RUN/plots (RUN/plots/METRIC for others than the test "
        "error), or compare-A-B beside the runs",
        flag_values=values,
    )
    flags.DEFINE_string(
        "baseline",
        "",
        "arm that the others are taken against, or 'all' for every pair; default: the first arm, or with several runs "
        "each arm's counterpart in the first run",
        flag_values=values,
    )
    flags.DEFINE_float(
        "difference",
        None,
        "difference, in the metric's unit (errors are fractions), for which the seeds needed are told; default: the "
        "measured ones",
        lower_bound=0.0,
        flag_values=values,
    )
    folders = [Path(folder) for folder in parse("compare", values, arguments)]
    if not folders:
        raise InputError(
            "run: none is given; write lenet-jax compare RUN, for example lenet-jax compare runs/quickstart"
        )

    if len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError(f"run: a folder is named twice in {', '.join(map(str, folders))}")

    from rich.console import Console

    from lenet_jax import compare, report, results, tables

    comparison = compare.analyse(
        [results.load(folder) for folder in folders], values.metric, values.baseline, values.difference
    )
    out = Path(values.out) if values.out else default_out(folders, values.metric)
    files = report.write(comparison, out, shlex.join(["lenet-jax", "compare", *arguments]))
    tables.print_comparison(comparison, Console())
    others = [str(file) for file in files if file.suffix not in (".png", ".svg")]
    print("written:", *others, f"{out}{os.sep}*.png, *.svg", sep="\n  ")


def classify_command(arguments: list[str]) -> None:
    """`lenet-jax classify`."""
    values = flags.FlagValues()
    flags.DEFINE_string(
        "arm", "", "whose networks; default: the arm with the smallest mean test error", flag_values=values
    )
    flags.DEFINE_integer("seed", None, "one network, by its seed; default: all of the arm", flag_values=values)
    folder, *files = parse("classify", values, arguments) or [""]
    if not folder or not files:
        raise InputError("image: none is given; write lenet-jax classify RUN IMAGE, as in runs/quickstart mine.png")

    import numpy as np
    from rich.console import Console

    from lenet_jax import pictures, tables, trained

    run = trained.load_run(folder)
    digits = np.stack([pictures.prepare(pictures.read(file), file) for file in files])
    found = trained.classify(run, digits, values.arm, values.seed)
    name, networks = run.row(values.arm)["name"], int(found.votes[0].sum())
    which = f"seed {values.seed}" if values.seed is not None else f"{networks} networks, their mean score"
    if values.seed is None and (diverged := len(run.seeds(values.arm)) - networks):
        which += f" ({diverged} more diverged)"
    probabilities = run.architecture(values.arm).output == "softmax"
    Console().print(tables.classification(files, found, f"{name}: {which}", probabilities))


def default_out(folders: Sequence[Path], metric: str) -> Path:
    """Where a comparison goes: into the run if it is of one alone."""
    together = folders[0].parent / "-".join(["compare", *(folder.name for folder in folders)])
    place = folders[0] / "plots" if len(folders) == 1 else together
    return place if metric == "test_error" else place / metric


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "run": run_command,
    "compare": compare_command,
    "classify": classify_command,
}
