"""Any config and any command line is taken, or refused in one line that names a field: before anything is compiled."""

import contextlib
import functools
import io
import os
import re
import resource
import signal
import types
from pathlib import Path

import numpy as np
import psutil
import pytest
from absl import flags
from hypothesis import HealthCheck, Phase, given, reject, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict, config_dict

from lenet_jax import cli, optim
from lenet_jax.data import datasets
from lenet_jax.errors import InputError, one_line, short_repr
from lenet_jax.experiments import base
from lenet_jax.run import plan, runner
from lenet_jax.run.arms import FIELDS, MAX_ARMS, describe, expand

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections

DEFAULTS = base.get_config()
SECONDS = 10
"""Of an example. A refusal takes milliseconds."""

MEMORY = 2 * 2**30
"""Bytes that an example may take."""

# To explain a failure Hypothesis traces every line, which makes all of it slower.
COMMON = settings(
    deadline=None, phases=set(Phase) - {Phase.explain}, suppress_health_check=list(HealthCheck), print_blob=True
)
FEW = settings(COMMON, max_examples=300, derandomize=True)
MANY = settings(COMMON, max_examples=10_000)


FILE = f"--config={Path(base.__file__).parent / 'quickstart.py'}"


class TooSlowError(BaseException):
    """An example took longer than `SECONDS`. Not an Exception: the command line would make a refusal of it."""


class AcceptedError(Exception):
    """The command line would start to train."""


def too_slow(number, frame):
    raise TooSlowError


@contextlib.contextmanager
def bounded():
    """Ends what hangs or takes all memory."""
    before = signal.signal(signal.SIGALRM, too_slow)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with contextlib.suppress(ValueError, OSError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + MEMORY, limits[1]))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.fixture(scope="module", autouse=True)
def nothing_is_written_or_downloaded(tmp_path_factory):
    """An empty working directory that must stay so, digits that are loaded once, and no network."""
    folder = tmp_path_factory.mktemp("empty")

    def refuse(name, folder):
        raise InputError(f"dataset: {name!r} isn't had in tests")

    def accept(config, *arguments, **options):
        arms = expand(config)
        describe(config)
        plan.make(arms)
        raise AcceptedError

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(datasets, "load_embedded", functools.cache(datasets.load_embedded))
        patch.setattr(datasets.prepared, "load", refuse)
        patch.setattr(datasets.records, "load", refuse)
        patch.setattr(runner, "run", accept)
        with pytest.raises(AcceptedError):  # what it imports and loads takes seconds, once
            cli.dispatch(["run", FILE])
        yield
    assert list(folder.iterdir()) == []


def words(field):
    """The values that a field of text takes, as its refusal names them."""
    try:
        FIELDS[field](field, "?")
    except InputError as refusal:
        return re.findall(r"'([^']+)'", str(refusal).partition("one of")[2])
    return []


PATHS = ["", "~", "/", "..", "/dev/zero", "/etc/passwd", "a/../b", "x" * 300, "~nobody/x", "~a\0b", "\ud800", "*", "["]
NASTY = [
    *PATHS,
    *("a\nb", "\r", "\x1b[31m", "<script>alert(1)</script>", "<b>", "\u202eabc", "\u2028", "a.b", "a,b", "=", "--"),
    *("é", "数字", "🙂", "'", '"', "`|", "\\", "%s", "{0}", " ", "None", "nan", "x" * 5000, "arm", "seed", "all"),
]
DATASETS = ["mnist10k", "mnist", "kmnist", "tfds:x", "tfds:", "idx", "cifar", *(f"idx:{path}" for path in PATHS)]
NUMBERS = [
    *(
        0,
        1,
        -1,
        2,
        3,
        10,
        500,
        3999,
        4000,
        4001,
        4999,
        5000,
        5001,
        2**31 - 1,
        2**31,
        2**32 - 1,
        2**32,
        2**63,
        10**12,
        -(10**12),
    ),
    *(10**400, 10**4000, 0.0, -0.0, 5e-324, 1e-9, 0.5, 1.0, 1e38, 1e39, 1e308),
    *(float("nan"), float("inf"), -float("inf")),
]
ODD = st.sampled_from(
    [
        *(None, (), [], {}, set(), b"mse", 1j, ..., object(), len, types, ("mse",), {"a": 1}, {1: 2}),
        *(np.float32(0.1), np.int64(3), np.arange(3), np.bool_(True), np.str_("mse")),
        *(ConfigDict({"low": 1}), config_dict.placeholder(int)),
    ]
)
TEXT = st.one_of(st.sampled_from(NASTY), st.text(st.characters(), max_size=8))
SCALAR = st.one_of(st.sampled_from(NUMBERS), st.booleans(), TEXT, ODD, st.integers(), st.floats())


def right(field):
    """Values that a field may well have."""
    default = DEFAULTS[field]
    if field == "dataset":
        return mostly(st.just(default), st.sampled_from(DATASETS))
    if isinstance(default, str):
        return st.sampled_from([default, *words(field)])
    if isinstance(default, bool):
        return st.booleans()
    if isinstance(default, int):
        return st.sampled_from([default, 1, 2, 4, 16, 100, 2000])
    return st.sampled_from([default, 1]) | st.floats(0.001, 0.9)


def mostly(usual, rest):
    """The second strategy in 1 of 20 cases: where nearly all is odd, all is refused for the first thing."""
    return st.integers(0, 19).flatmap(lambda number: rest if number == 19 else usual)


def value_of(field):
    return mostly(right(field), SCALAR)


FIELD = st.sampled_from(list(FIELDS))
GROUP = st.lists(mostly(FIELD, TEXT), max_size=3, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: value_of(name) if name in FIELDS else SCALAR for name in names})
)
GROUPS = st.dictionaries(
    mostly(st.sampled_from(["a", "b", "LeNet", "1998"]), TEXT | st.integers()), mostly(GROUP, ODD), max_size=3
)
LONG = [tuple(range(1, 41)), tuple(number / 100_000 for number in range(1, 41)), ("mse",) * 1000]


@st.composite
def values_of(draw, names):
    """Rows of values for an axis of these names, most of them different."""
    size = draw(mostly(st.integers(1, 3), st.just(0)))
    rows = draw(st.lists(st.tuples(*map(value_of, names)), min_size=size, max_size=size, unique_by=repr))
    return draw(st.sampled_from([tuple, list]))(rows if len(names) > 1 else [row[0] for row in rows])


@st.composite
def axis(draw):
    """A sweep's axis: its name, and its values."""
    kind = draw(st.sampled_from(["field", "fields", "groups", "long", "odd"]))
    if kind == "field":
        name = draw(FIELD)
        return name, draw(values_of([name]))
    if kind == "fields":
        names = draw(st.lists(FIELD, min_size=2, max_size=3))
        return draw(mostly(st.just(","), st.sampled_from([", ", ",,", "."]))).join(names), draw(values_of(names))
    if kind == "groups":
        return draw(mostly(st.sampled_from(["era", "pooling", "arm"]), TEXT)), draw(GROUPS)
    if kind == "long":
        return draw(st.sampled_from(["seeds", "mu", "momentum", "loss", "epochs"])), draw(st.sampled_from(LONG))
    return draw(mostly(FIELD, TEXT)), draw(SCALAR | st.lists(SCALAR, max_size=3) | GROUPS)


HYPERPARAMETER = st.sampled_from(optim.HYPERPARAMETERS)
RANDOM_SET = st.fixed_dictionaries(
    {
        "low": mostly(st.floats(1e-6, 0.1), SCALAR),
        "high": mostly(st.floats(0.2, 0.9), SCALAR),
        "count": mostly(st.integers(1, 9), SCALAR),
    }
)
TRIED = st.one_of(
    st.lists(mostly(st.floats(0.001, 0.9), SCALAR), max_size=4).map(tuple),
    RANDOM_SET,
    st.dictionaries(mostly(st.sampled_from(["low", "high", "count"]), TEXT | st.integers()), SCALAR, max_size=3),
    st.sampled_from(LONG),
    SCALAR,
)
SWEEP = mostly(st.lists(axis(), min_size=1, max_size=4).map(dict), SCALAR)
TUNE = mostly(st.dictionaries(mostly(HYPERPARAMETER, TEXT), TRIED, max_size=4), SCALAR)
CONFIG = st.tuples(
    st.lists(FIELD, max_size=2, unique=True).flatmap(
        lambda names: st.fixed_dictionaries({name: value_of(name) for name in names})
    ),
    mostly(st.just({}), st.dictionaries(TEXT, SCALAR, max_size=1)),
    st.sampled_from([{}, {}, {"validation_size": 100}]),
    st.one_of(
        st.fixed_dictionaries({"sweep": SWEEP}),
        st.fixed_dictionaries({"tune": TUNE}),
        st.fixed_dictionaries({"sweep": SWEEP, "tune": TUNE}),
    ),
).map(lambda parts: functools.reduce(dict.__or__, parts))


def config_of(changes):
    """The config that a user's Python file could make of these."""
    try:
        config = ConfigDict(dict(changes), sort_keys=False)
        config.lock()
    except (ValueError, TypeError, AttributeError, KeyError):
        reject()  # ConfigDict doesn't take it: said to be wrong with the file, see `arguments.parse_config`
    return config


def assert_names_a_field(message, names):
    """One line of text without control characters, which begins with the name of a field or with an unknown one."""
    assert message.isprintable(), f"not one line: {message!r}"
    known = re.split("[:.]", message)[0] in DEFAULTS
    unknown = message.startswith(tuple(f"unknown config field {short_repr(name)}; " for name in names))
    assert known or unknown, f"names no field: {message!r}"


def check_config(changes):
    config = config_of(changes)
    with bounded():
        try:
            arms = expand(config)
            resolved = describe(config)
            plan.make(arms)
        except InputError as refusal:
            assert_names_a_field(str(refusal), changes)
        else:
            assert len({arm.name for arm in arms}) == len(arms)
            assert expand(ConfigDict(resolved, sort_keys=False)) == arms, "as read from config.json"


HUNDRED = tuple(range(1, 101))
RATES = tuple(float(number) for number in range(1, 1001))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"sweep": {"seeds": HUNDRED, "epochs": HUNDRED, "batch_size": HUNDRED}},
            "sweep: its axes make 1000000 arms; at most 10000 are allowed",
        ),
        ({"seeds": 10**12}, "seeds: 1000000000000 is out of range; must be at least 1 and at most 1000000"),
        (
            {"tune_seeds": 10**12},
            "tune_seeds: 1000000000000 is out of range; must be at least 1 and at most 1000000",
        ),
        ({"epochs": 10**12}, "epochs: 1000000000000 make 156000000000000 steps; allowed are up to 2147483647"),
        ({"epochs": 10**400}, "epochs: 1000"),
        (
            {"epochs": 10**5000},
            "epochs: a value of type int too long to show is out of range; integers have",
        ),
        ({"learning_rate": 10**400}, "learning_rate: 1000"),
        ({"sweep": {"learning_rate": (10**400,)}}, "sweep.learning_rate: 1000"),
        (
            {"sweep": {"epochs": 10**5000}},
            "sweep.epochs: expected a sequence of values, got a value of type int too long to show",
        ),
        (
            {"tune": {"mu": {"low": 1, "high": 2, "count": 10**12}}},
            "tune.mu: count must be an integer from 1 to 1000000, got 1000000000000",
        ),
        (
            {"validation_size": 100, "tune": {"mu": RATES, "learning_rate": RATES}},
            "tune: 1000000 combinations with 3 tune_seeds each exceed 1000000 members",
        ),
        ({"sweep": {"a\nb": (1,)}}, "sweep: names must be strings of one line, got 'a\\nb'"),
        ({"a\nb": 1}, "unknown config field 'a\\nb'"),
        ({"loss": {"a": 1, "b": 2}}, "loss: expected str, got {'a': 1, 'b': 2} (dict)"),
        ({"sweep": {"era": {"a": {1: 2, "loss": "mse"}}}}, "sweep.era.a: names must be strings of one line, got 1"),
        ({"tune": {"mu": {"a": 1, 2: 3}}}, "tune.mu: a random set needs the keys low, high, count; got 'a', 2"),
        ({"dataset": "idx:~a\0b"}, "dataset: 'idx:~a\\x00b' can't be read (embedded null byte)"),
        ({"dataset": "idx:" + "x" * 300}, "dataset: 'idx:xxx"),
    ],
)
def test_what_was_no_refusal_once_is_one(changes, message):
    with bounded(), pytest.raises(InputError) as refusal:
        plan.make(expand(config_of(changes)))
    assert str(refusal.value).startswith(message)
    assert str(refusal.value).isprintable()


def test_as_many_arms_as_are_allowed_take_no_time():
    with bounded():
        arms = expand(config_of({"sweep": {"seeds": HUNDRED, "epochs": HUNDRED}}))
        assert len(arms) == MAX_ARMS
        assert plan.make(arms[:1000]).arms  # with its types checked, as here, a tenth as fast


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.sweep.loss=" + "-" * 5000 + "1", "sweep.loss: '-----"),
        ("--config.sweep.loss=" + "(" * 5000, "sweep.loss: '((((("),
        ("--config=" + "x" * 300, "config: 'xxx"),
        ("--config.\x1b[31m=1", "unknown config field '\\x1b[31m'"),
        ("--devices=x", "flag --devices=x: invalid literal"),
        ("--tracker", "Missing value for flag --tracker"),
    ],
)
def test_arguments_that_were_not_refused_once_are(argument, message):
    with bounded(), pytest.raises((InputError, flags.Error)) as refusal:
        cli.dispatch(["run", FILE, argument])
    assert one_line(refusal.value).startswith(message)


@FEW
@given(CONFIG)
def test_a_config_is_taken_or_refused(changes):
    check_config(changes)


@pytest.mark.slow
@MANY
@given(CONFIG)
def test_many_configs_are_taken_or_refused(changes):
    check_config(changes)


BROKEN = ["(" * 50, "(" * 5000, "-" * 5000 + "1", "[" * 90 + "]" * 90, "{'a': " * 80 + "1" + "}" * 80, "1" * 5000]
BROKEN += ["0x" + "f" * 5000, "(1, 2", "{1: 2}", "{'a.b': {}}", "{[]: 1}", "{'': {}}", "{1, 2}", "lambda: 0", "f'{x}'"]
BROKEN += [
    "__import__('os')",
    "('mse',) * 3",
    "1 + 2",
    "10 ** 10 ** 10",
    "'\\ud800',",
    "b'mse',",
    "...",
    "1if 1else 2",
    "1_0,",
]
FLAGS = [
    "",
    "-",
    "--",
    "-h",
    "--help",
    "--helpfull",
    "=",
    "stray",
    "--=",
    "--config",
    "--config=",
    "--config=nowhere.py",
]
FLAGS += [
    "--config.",
    "--config.=1",
    "--config.sweep",
    "--config.sweep.",
    "--config.sweep.=1",
    "--config.tune",
    "--noconfig",
]
FLAGS += ["--config.sweep.loss", "--config.sweep.loss.a=1", "--config.sweep.arm.a.loss=mse", "--config.refit"]
FLAGS += [
    "--noconfig.refit",
    "-config.epochs=2",
    "--config.epochs",
    "--config.loss.x=1",
    "--config[0]=1",
    "--flagfile=/",
]
FLAGS += [
    "--flagfile=nowhere",
    "--undefok=x",
    "--fresh",
    "--nofresh",
    "--fresh=x",
    "--tracker=",
    "--tracker",
    "--workdir",
]
FLAGS += ["--devices=x", "--devices=-1", "--save_every=nan", "--save_every=-1", "--only-arm=all", "--config.loss==mse"]


def spelled(value):
    """A value as one types it."""
    return value if isinstance(value, str) else repr(value)


LITERAL = st.one_of(st.sampled_from(BROKEN), TEXT)
ARGUMENT = st.one_of(
    FIELD.flatmap(lambda name: value_of(name).map(lambda value: f"--config.{name}={spelled(value)}")),
    axis().map(lambda named: f"--config.sweep.{named[0]}={spelled(named[1])}"),
    st.tuples(HYPERPARAMETER, TRIED).map(lambda named: f"--config.tune.{named[0]}={spelled(named[1])}"),
    st.tuples(FIELD, LITERAL).map(lambda named: f"--config.sweep.{named[0]}={named[1]}"),
    st.tuples(axis(), st.integers(0, 30)).map(
        lambda cut: f"--config.sweep.{cut[0][0]}={cut[0][1]!r}"[: -cut[1] or None]
    ),
    mostly(st.sampled_from(FLAGS), TEXT),
    st.tuples(st.sampled_from(["--config.", "--config=", "--workdir=", "--tracker=", "--"]), TEXT).map("".join),
)
# What is no UTF-8, and no zero byte, is what a system hands over.
ARGUMENTS = st.lists(
    ARGUMENT.map(lambda text: os.fsdecode(text.replace("\0", "0").encode(errors="surrogatepass"))), max_size=4
)


def check_arguments(arguments, file):
    helped = any(argument.lstrip("-").startswith("h") for argument in arguments)
    outcomes = pytest.raises((InputError, flags.Error, AcceptedError, *([SystemExit] if helped else [])))
    with bounded(), contextlib.redirect_stdout(io.StringIO()), outcomes as outcome:
        cli.dispatch(["run", *([FILE] if file else []), *arguments])
    message = one_line(outcome.value)
    assert message.isprintable(), f"not one line: {message!r}"
    if isinstance(outcome.value, InputError | flags.Error):
        assert not message.startswith(": "), f"names no field: {message!r}"


@FEW
@given(ARGUMENTS, mostly(st.just(True), st.just(False)))
def test_a_command_line_is_taken_or_refused(arguments, file):
    check_arguments(arguments, file)


@pytest.mark.slow
@MANY
@given(ARGUMENTS, mostly(st.just(True), st.just(False)))
def test_many_command_lines_are_taken_or_refused(arguments, file):
    check_arguments(arguments, file)
