"""The command line: subcommands and their flags.

JAX is imported only when a command runs, so that help and errors appear at once: values are checked before.
"""

import atexit
import contextlib
import gc
import math
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags
from ml_collections import ConfigDict, config_flags

import lenet_jax
from lenet_jax import arguments
from lenet_jax.choices import values_of
from lenet_jax.errors import (
    MAX_MESSAGE,
    MAX_VALUE,
    InputError,
    Interrupted,
    RunError,
    check_choice,
    one_line,
    shortened,
)
from lenet_jax.output import printable, unfailing
from lenet_jax.paths import existing_folder, expanded
from lenet_jax.run import signals

if TYPE_CHECKING:
    from rich.table import Table

    from lenet_jax.analysis.networks import Classification
    from lenet_jax.run.arms import Arm

HELP = f"""lenet-jax {lenet_jax.__version__}: LeNet-5 experiments in JAX

  lenet-jax run --config=FILE [--workdir=DIR] [--config.FIELD=VALUE ...]
      Trains every arm of an experiment with each of its seeds and writes a run folder. Rerun the same command to
      resume.
  lenet-jax compare RUN [RUN ...] [--metric=test_error] [--baseline=ARM] [--out=DIR]
      Compares the arms of finished runs: statistics, figures, and a report.html.
  lenet-jax evaluate RUN --dataset=NAME [--corruption=rotation:0,10,20 ...]
      Tests a run's trained networks on other digits; `compare RUN --on=NAME` compares its arms on these.
  lenet-jax classify RUN IMAGE [IMAGE ...] [--arm=ARM] [--seed=SEED]
      Classifies images of digits with the trained networks of a run.

Examples:
  lenet-jax run --config=experiments/quickstart.py
  lenet-jax run --config=lenet_jax:quickstart          (the same from any folder)
  lenet-jax run --config=experiments/ablation.py --config.epochs=2 --config.sweep.loss="('mse',)"
  lenet-jax compare runs/quickstart
  lenet-jax classify runs/quickstart mine.png

`lenet-jax COMMAND --help` lists a command's flags; experiments/base.py documents every config field."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line.

    The exit code is 0, 1 for a failed run, 2 for a user error, 130 after Ctrl-C, 143 after SIGTERM or 129 after SIGHUP.
    """
    gc.set_threshold(10_000)  # imports create many objects and no garbage: searching it less often saves time
    atexit.register(gc.freeze)  # else Python searches all objects once more before it ends
    argv = list(sys.argv[1:] if argv is None else argv)
    sys.stdout, sys.stderr = map(unfailing, (sys.stdout, sys.stderr))
    try:
        dispatch(argv)
    except (InputError, flags.Error) as error:
        message = one_line(error, MAX_MESSAGE)
        if "--distributed" in [argument.partition("=")[0] for argument in arguments.joined(argv)]:
            signals.exit_now(2, message)  # in a normal exit JAX waits minutes for the other processes
        print(f"lenet-jax: {message}", file=sys.stderr)
        sys.exit(2)
    except (RunError, Interrupted) as error:
        code = 128 + error.signal if isinstance(error, Interrupted) else 1
        signals.exit_now(code, f"{one_line(error, MAX_MESSAGE)}; rerun the same command to resume")
    except KeyboardInterrupt:
        signals.exit_now(130, "stopped")


def dispatch(argv: list[str]) -> None:
    """Runs the command named by the first argument."""
    if not argv or argv[0] in ("--help", "-h", "help", "--helpfull"):
        print(HELP)
    elif argv[0] == "--version":
        print(lenet_jax.__version__)
    elif sys.platform == "win32":
        raise InputError("platform: 'win32' is not supported; on Windows use WSL2, in which Linux's lenet-jax runs")
    elif argv[0] in COMMANDS:
        COMMANDS[argv[0]](argv[1:])
    else:
        raise InputError(f"command: {argv[0]!r} is not one of {', '.join(map(repr, COMMANDS))}; see lenet-jax --help")


def parse(command: str, values: flags.FlagValues, argv: list[str]) -> list[str]:
    """Parses a command's flags and returns the other arguments; with ``--help``, prints help and exits."""
    flags.DEFINE_bool("help", False, "show this help", short_name="h", flag_values=values)
    rest = list(values([command, *argv])[1:])
    if values.help:
        listed = "\n".join(map(values.module_help, (__name__, arguments.__name__)))
        print(f"lenet-jax {command}\n\n{listed}\n\n{HELP}")
        sys.exit(0)
    return rest


def run_command(argv: list[str]) -> None:
    """`lenet-jax run`."""
    from lenet_jax.run import limits

    argv = arguments.joined(argv)
    # Keys of sweep and tune may be new, which config_flags would refuse: `arguments.with_keys` sets them afterwards.
    mappings = tuple(f"{arguments.FIELD}{name}." for name in arguments.MAPPINGS)
    keys = [argument for argument in argv if argument.startswith(mappings)]
    others = [arguments.with_shipped(argument) for argument in argv if argument not in keys]
    values = flags.FlagValues()
    help_text = "experiment config, a Python file"
    config_flags.DEFINE_config_file("config", None, help_text, flag_values=values, sys_argv=["run", *others])
    arguments.define_run_flags(values)
    files = [argument.removeprefix("--config=") for argument in others if argument.startswith("--config=")]
    file = files[-1] if files else ""
    if not file and not {"--help", "-h"} & set(others):
        file = next((argument for argument in others if argument.endswith(".py")), "experiments/quickstart.py")
        raise InputError(f"config: missing; write --config=FILE, for example --config={file}")
    arguments.check_overrides(others)
    rest = arguments.parse_config(file.partition(":")[0], lambda: parse("run", values, others))
    if rest:
        raise InputError(f"argument: unexpected {rest[0]!r}; write flags as --name=value")
    config = values.config
    if not isinstance(config, ConfigDict):
        raise InputError(f"config: get_config() of {file!r} returns {type(config).__name__}; expected ConfigDict")
    config = arguments.with_keys(config, keys)

    workdir = Path(values.workdir or Path("runs") / Path(file.partition(":")[0]).stem)
    save_every: Any = values["save-every"].value
    if not math.isfinite(save_every):
        raise InputError(f"save-every: expected a number of seconds, got {save_every}")
    limits.check_limits()
    experiment, only_arm = Path(file.partition(":")[0]), values["only-arm"].value or ""
    arms_of_config = check_values(config, only_arm, values.tracker)
    if values["dry-run"].value:
        dry_run(config, experiment, only_arm, values)
        return
    # Importing takes seconds, in which a KeyboardInterrupt can get lost.
    with signals.Stop(), early_workers(arms_of_config, workdir, values):
        from rich.console import Console

        from lenet_jax import distributed
        from lenet_jax.analysis import arms, tables
        from lenet_jax.run import runner

        if values.distributed:
            distributed.join(values.coordinator, values.processes, values.process)
        with signals.Stop() as stop:  # again: joining installs JAX's handler of SIGTERM
            run = runner.run(
                config,
                workdir,
                shlex.join(["lenet-jax", "run", *argv]),
                values.tracker,
                experiment=experiment,
                only_arm=only_arm,
                fresh=values.fresh,
                save_every=save_every,
                devices=values.devices,
                stop=stop,
            )
    if run is not None and distributed.primary():
        Console().print(tables.table(arms.arm_statistics([run]), "test_error", Console()), crop=False)
        program = sys.argv[0] if Path(sys.argv[0]).name == "lenet-jax" else "lenet-jax"
        again = shlex.join([program, "compare", str(run.folder)])
        print(printable(f"run folder: {run.folder}"), printable(f"next:       {again}"), sep="\n")
    distributed.leave()


def check_values(config: ConfigDict, only_arm: str, tracker: str) -> "list[Arm]":
    """The arms, checked as far as it needs no JAX, before seconds of imports; `runner.run` checks them for itself."""
    from lenet_jax.data import datasets
    from lenet_jax.run.arms import expand, select_arms

    check_choice("tracker", tracker, values_of("tracker"))
    arms = expand(config)
    select_arms(arms, only_arm)
    for name in dict.fromkeys(arm.settings["dataset"] for arm in arms):
        datasets.check_name(name)
    return arms


@contextlib.contextmanager
def early_workers(arms: "Sequence[Arm]", workdir: Path, values: flags.FlagValues) -> Iterator[None]:
    """Starts worker processes before JAX is imported here, if the run will need them as far as can be said now."""
    from lenet_jax.run import processes

    finished = (expanded(workdir, "workdir") / "summary.json").exists() and not values.fresh
    try:
        if not (finished or values.distributed):
            processes.start_early([arm.settings for arm in arms], values.devices)
        yield
    finally:
        processes.end_early()


def dry_run(config: ConfigDict, experiment: Path, only_arm: str, values: flags.FlagValues) -> None:
    """`lenet-jax run --dry-run`."""
    if values.distributed:
        raise InputError("dry-run: measures a single process; omit --distributed")
    with signals.Stop():
        from rich.console import Console

        from lenet_jax.run import forecast

        found = forecast.forecast(config, experiment, only_arm, values.devices)
    Console().print(forecast.table(found), crop=False)
    print(*found.notes, sep="\n")


def compare_command(argv: list[str]) -> None:
    """`lenet-jax compare`."""
    values = flags.FlagValues()
    string, _, _, _ = arguments.definers(values)
    examples = "validation_nll, train_loss; or test_error_class_3, epochs_to_0.02, seconds, samples_per_second"
    string("metric", "test_error", f"metric to compare: a split and a measurement, for example {examples}")
    plots = "RUN/plots (RUN/plots/METRIC for metrics other than the test error), or compare-A-B beside the runs"
    string("out", None, f"folder for tables, figures and report.html; default: {plots}")
    first = "the first arm, or with several runs each arm's counterpart in the first run"
    string("baseline", "", f"arm that the others are compared with, or 'all' for every pair; default: {first}")
    string("dataset", "", "data set of misread digits in the report; default: of the package's own, that of the runs")
    on = "evaluation, such as qmnist, as the test set: `lenet-jax evaluate` makes it; several: repeat the flag"
    flags.DEFINE_multi_string("on", [], on, flag_values=values)
    covered = (
        "new seeds and test images (both), new seeds on these images (seeds), these networks on new images (images)"
    )
    string("over", "both", f"what intervals and tests cover: {covered}")
    string("scale", "points", "compare differences (points), ratios of means (ratio) or ratios of odds (logit)")
    unit = "percentage points of errors, a ratio above 1 with --scale=ratio or logit, else the metric's unit"
    string("margin", None, f"largest difference without practical importance, for verdicts; in {unit}")
    string("difference", None, f"true difference, for the numbers of seeds and images that show it; in {unit}")
    folders = [existing_folder(folder, "run") for folder in parse("compare", values, argv)]
    if not folders:
        raise InputError("run: missing; write lenet-jax compare RUN, for example lenet-jax compare runs/quickstart")
    for flag in ("over", "scale"):
        check_choice(flag, values[flag].value, values_of(flag))

    from rich.console import Console

    from lenet_jax.analysis import compare, contrasts, tables
    from lenet_jax.run import folder as run_folder

    images = None
    if values.dataset:
        from lenet_jax.run import plan  # with JAX

        images = plan.load(values.dataset, "")
    runs = [run_folder.load(folder) for folder in folders]
    margin, difference = (
        None
        if (text := values[name].value) is None
        else contrasts.read_difference(text, values.metric, values.scale, name)
        for name in ("margin", "difference")
    )
    compared = {"": runs}
    if values.on:
        from lenet_jax.analysis import evaluations

        if not values.metric.startswith(("test_error", "test_nll", "test_brier")):
            measured = "test_error, test_error_class_3, test_nll and test_brier"
            raise InputError(
                f"metric: {values.metric!r} is not measured by evaluations; allowed with --on are {measured}"
            )
        compared = {name: [evaluations.on(run, name) for run in runs] for name in values.on}
    for name, runs in compared.items():
        comparison = compare.compare_runs(
            runs, values.metric, values.baseline, difference, values.over, values.scale, margin
        )
        tables.print_comparison(comparison, Console())
        from lenet_jax.analysis import report  # with Matplotlib, which takes most of the time: the table is shown

        out = expanded(values.out, "out") if values.out else report.default_folder(runs, values.metric, name)
        out = out / run_folder.folder_name(name) if values.out and len(compared) > 1 else out
        files = report.write(comparison, out, shlex.join(["lenet-jax", "compare", *argv]), images)
        others = [printable(str(file)) for file in files if file.suffix not in (".png", ".svg")]
        print("written:", *others, printable(f"{out}{os.sep}*.png, *.svg"), sep="\n  ")


def classify_command(argv: list[str]) -> None:
    """`lenet-jax classify`."""
    values = flags.FlagValues()
    string, integer, _, _ = arguments.definers(values)
    string("arm", "", "arm of the networks; default: the arm with the lowest mean test error")
    integer("seed", None, "seed of a single network; default: all networks of the arm")
    string("experiment", None, "experiment file that defines parts of the networks; it is executed")
    folder, *files = parse("classify", values, argv) or [""]
    if not folder or not files:
        raise InputError("image: missing; write lenet-jax classify RUN IMAGE, for example runs/quickstart mine.png")
    existing_folder(folder, "run")

    import numpy as np
    from rich.console import Console

    from lenet_jax import jax_settings
    from lenet_jax.analysis import networks
    from lenet_jax.data import photos

    jax_settings.check_platform()
    run = networks.load_run(folder, values.experiment and expanded(values.experiment, "experiment"))
    examined = [photos.examine(photos.read_image(expanded(file, "image")), file) for file in files]
    found = networks.classify(run, np.stack([digit for digit, _ in examined]), values.arm, values.seed)
    name, count = run.arm(values.arm).name, int(found.votes[0].sum())
    which = f"seed {values.seed}" if values.seed is not None else f"mean score of {count} networks"
    if values.seed is None and (diverged := len(run.seeds(values.arm)) - count):
        which += f" ({diverged} others diverged)"
    probabilities = run.architecture(values.arm).output == "softmax"
    Console().print(classification(files, found, f"{name}: {which}", probabilities))
    for file, (_, notes) in zip(files, examined, strict=True):
        if notes:
            print(f"{shortened(file, MAX_VALUE)} may be misread: {'; '.join(notes)}")


def evaluate_command(argv: list[str]) -> None:
    """`lenet-jax evaluate`."""
    values = flags.FlagValues()
    string, _, _, _ = arguments.definers(values)
    string("dataset", None, "data set whose test images the networks are evaluated on")
    string("data-dir", "", "folder of downloads and of TFDS's data sets")
    corruption = "corruption with its severities, such as rotation:0,10,20,30; several: repeat the flag"
    flags.DEFINE_multi_string("corruption", [], corruption, flag_values=values)
    string("out", None, "folder for tables and figures of corruptions; default: RUN/evaluations/NAME-robustness")
    string("experiment", None, "experiment file that defines parts of the networks; it is executed")
    rest = parse("evaluate", values, arguments.joined(argv))
    if len(rest) != 1 or not values.dataset:
        raise InputError("evaluate: expected a run and a data set; write lenet-jax evaluate RUN --dataset=NAME")
    existing_folder(rest[0], "run")

    from rich.console import Console

    from lenet_jax import population
    from lenet_jax.analysis import compare, evaluations, networks, robustness, tables
    from lenet_jax.data import corruptions
    from lenet_jax.run import plan

    corrupted = corruptions.parse(";".join(values.corruption)) if values.corruption else {"": [0.0]}
    population.configure()
    run = networks.load_run(rest[0], values.experiment and expanded(values.experiment, "experiment"))
    dataset = plan.load(values.dataset, values["data-dir"].value or "")
    pairs = [(name, severity) for name, severities in corrupted.items() for severity in severities]
    command = shlex.join(["lenet-jax", "evaluate", *argv])
    found: dict[str, dict[float, Any]] = {name: {} for name in corrupted}
    for (name, severity), result in zip(pairs, evaluations.evaluate(run, dataset, pairs, command), strict=True):
        found[name][severity] = compare.compare_runs([result], baseline=compare.ALL_PAIRS if len(run.arms) > 1 else "")
    if not values.corruption:
        Console().print(tables.table(found[""][0.0].arms, "test_error", Console()), crop=False)
    else:
        for name, of_severities in found.items():
            title = f"{name}: {robustness.title(of_severities)}"
            Console().print(tables.text_table(title, robustness.cells(of_severities), Console()), crop=False)
        default = evaluations.path_of(run, f"{dataset.name}-robustness").with_suffix("")
        if default.is_symlink() and not values.out:
            raise InputError(f"out: {str(default)!r} is a link; name the folder that it leads to as --out")
        out = expanded(values.out, "out") if values.out else default
        written = robustness.write(found, run, dataset, out, command)
        print("written:", *(printable(str(file)) for file in written), sep="\n  ")
    again = shlex.join(["lenet-jax", "compare", str(run.folder), f"--on={result.summary['dataset']['name']}"])
    print(printable(f"next:       {again}"))


COMMANDS = {
    "run": run_command,
    "compare": compare_command,
    "evaluate": evaluate_command,
    "classify": classify_command,
}


def classification(names: Sequence[str], found: "Classification", title: str, probabilities: bool) -> "Table":
    """A table of classified images, one row per image; `probabilities`: whether the scores are probabilities."""
    import numpy as np
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(title=Text(printable(title)), box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    made.add_column("image", overflow="fold")
    score = "probability" if probabilities else "score"
    for column in ("digit", score, "next", "margin", "agree"):
        made.add_column(column, justify="right", no_wrap=True)

    def show(value: float) -> str:
        return f"{100 * value:.1f} %" if probabilities else f"{value:.2f}"

    for name, digit, scores, margin, votes in zip(names, *found, strict=True):
        second = int(np.argsort(scores)[-2])
        agree = f"{votes[digit]} of {votes.sum()}"
        made.add_row(Text(printable(name)), str(digit), show(scores[digit]), str(second), show(margin), agree)
    return made
