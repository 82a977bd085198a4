"""Tests of the command line, in a process of its own as users run it."""

import json
import os
import pwd
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import few_digits
import launch
import pytest
from made_runs import write_run

import lenet_jax as package
from lenet_jax import arguments, cli
from lenet_jax.analysis import report
from lenet_jax.errors import InputError
from lenet_jax.experiments import base
from lenet_jax.run import folder as run_folder
from lenet_jax.run import limits, runner
from lenet_jax.run.arms import expand
from lenet_jax.run.candidates import Tuning, log_uniform

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
QUICK = [
    f"--config={EXPERIMENTS}/quickstart.py",
    f"--config.dataset={few_digits.DATASET}",
    "--config.sweep.activation=('tanh',)",
    "--config.epochs=1",
    "--config.seeds=2",
    "--config.train_size=400",
    "--config.validation_size=200",
]
"""Two arms with one program."""


def lenet_jax(folder, *arguments, real=False, **environment):
    """Runs the program in `folder`; see `launch`."""
    return launch.run(arguments, folder, real=real, environment=environment)


def assert_refused(result, *parts):
    """One line on stderr that has these parts, exit code 2."""
    assert result.returncode == 2, result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert result.stderr.startswith("lenet-jax: ")
    for part in parts:
        assert part in result.stderr


@pytest.fixture
def main(monkeypatch, capsys):
    """(folder, *arguments) -> the refusal of the command, in this process: each of its own takes seconds to start.

    That refusals end a process of its own so, too, `test_an_unknown_command_is_refused` shows.
    """

    monkeypatch.setattr(runner, "run_arm", lambda *_: pytest.fail("it trains"))

    def run(folder, *arguments):
        monkeypatch.chdir(folder)
        sys.modules.pop("config_config", None)  # the file of the test before, whose names would stay
        with pytest.raises(SystemExit) as refusal:
            cli.main(list(arguments))
        return subprocess.CompletedProcess(arguments, refusal.value.code, *capsys.readouterr())

    return run


def test_help_answers_within_a_second_and_without_jax(tmp_path):
    started = time.perf_counter()
    result = lenet_jax(tmp_path, "--help", real=True)
    assert time.perf_counter() - started < 1
    assert result.returncode == 0
    assert "lenet-jax run --config=FILE" in result.stdout
    check = "import sys, lenet_jax.cli; assert not {'jax', 'matplotlib', 'numpy', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)


WITHOUT_JAX = """
import sys
from lenet_jax import cli
slow = {"jax", "jaxlib", "flax", "optax", "orbax", "scipy", "pandas", "pyarrow", "matplotlib"}
for command in COMMANDS:
    try:
        cli.main(command.split())
        raise AssertionError(command)
    except SystemExit as error:
        assert error.code == 2, command
    assert not slow & set(sys.modules), command
"""


def test_wrong_values_are_reported_before_anything_slow_is_imported(tmp_path):
    """By a process of its own; what they say is tested below, and in test_arms.py."""
    (tmp_path / "mine.py").write_text(
        "from lenet_jax.experiments import base\ndef get_config():\n  c = base.get_config()\n  c.epochs = 0\n  return c"
    )
    run = f"run --config={EXPERIMENTS}/quickstart.py"
    wrong = {
        "epochs": "run --config=mine.py",
        "label_noise": f"{run} --dry-run --config.label_noise=2",
        "batch_size": f"{run} --config.batch_size=0",
        "loss": f"{run} --config.loss=foo",
        "metrics": f"{run} --config.metrics=('foo',)",
        "sweep.activation": f"{run} --config.sweep.activation=('foo',)",
        "sweep.era.old.order": run + " --config.sweep.era={'old':{'order':'foo'}}",
        "tune.mu": run + " --config.tune.mu={'low':2,'high':1,'count':3}",
        "mse_point": f"{run} --config.output=linear",
        "refit": f"{run} --config.refit",
        "dataset": f"{run} --config.dataset=foo",
        "tracker": f"{run} --tracker=foo",
        "only-arm": f"{run} --only-arm=9",
        "over": "compare . --over=foo",
        "scale": "compare . --scale=foo",
        "run": "compare nowhere",
    }
    code = WITHOUT_JAX.replace("COMMANDS", repr([*wrong.values()]))
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    reported = [line.removeprefix("lenet-jax: ").partition(":")[0] for line in result.stderr.splitlines()]
    assert reported == [*wrong]


def test_a_comparison_needs_neither_jax_nor_scipys_distributions(tmp_path):
    """They take longer to import than the rest; the table stands before Matplotlib is imported for the figures."""
    write_run(tmp_path / "run")
    check = """
import sys
from lenet_jax import cli
from lenet_jax.analysis import tables
shown = tables.print_comparison
def then(comparison, console):
    assert "matplotlib" not in sys.modules
    shown(comparison, console)
tables.print_comparison = then
cli.main(["compare", "run"])
assert "matplotlib" in sys.modules
found = {"jax", "scipy.stats", "scipy.optimize"} & set(sys.modules)
assert not found, found
"""
    subprocess.run([sys.executable, "-c", check], cwd=tmp_path, check=True)


@pytest.mark.parametrize("command", ["run", "compare", "classify"])
def test_help_of_a_command_lists_its_flags(tmp_path, command):
    result = lenet_jax(tmp_path, command, "--help")
    assert result.returncode == 0
    flags, _, general = result.stdout.partition("LeNet-5 experiments in JAX")
    assert general
    expected = {
        "run": ("--save-every", "--only-arm", "--tracker"),
        "compare": ("--difference",),
        "classify": ("--seed",),
    }
    assert [flag for flag in expected[command] if flag not in flags.replace("--[no]", "--")] == []
    assert re.findall(r"--[a-z]+_\w+", flags) == [], "flags are spelled with hyphens"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of the quickstart, made small."""
    folder = tmp_path_factory.mktemp("cli")
    # The script itself, as users start it.
    result = lenet_jax(folder, "run", *QUICK, "--workdir=runs/quick", real=True)
    assert result.returncode == 0, result.stderr
    return folder, result


def test_run_prints_the_table_and_says_where_things_are(finished):
    folder, result = finished
    assert "cross_entropy" in result.stdout
    assert "lenet-jax compare runs/quick" in result.stdout
    assert result.stderr.count("test error") == 2
    summary = json.loads((folder / "runs/quick/summary.json").read_text())
    assert [arm["seeds"] for arm in summary["arms"]] == [2, 2]
    command = json.loads((folder / "runs/quick/provenance.json").read_text())["command"]
    assert command.startswith("lenet-jax run --config=")


def test_variables_of_jax_change_no_number(finished, tmp_path):
    """Of those that change random numbers and types; read when JAX is imported, by each process of its own."""
    streams = {"JAX_DEFAULT_PRNG_IMPL": "rbg", "JAX_THREEFRY_PARTITIONABLE": "0", "JAX_RANDOM_SEED_OFFSET": "5"}
    types = {"JAX_ENABLE_X64": "1", "JAX_NUMPY_DTYPE_PROMOTION": "strict", "JAX_DISABLE_JIT": "1"}
    result = lenet_jax(tmp_path, "run", *QUICK, "--workdir=run", real=True, **streams, **types)
    assert result.returncode == 0, result.stderr
    expected = finished[0] / "runs/quick"
    for name in (run_folder.METRICS, run_folder.PREDICTIONS):
        assert (tmp_path / "run" / name).read_bytes() == (expected / name).read_bytes()
    recorded = [run_folder.load(folder).provenance["jax_settings"] for folder in (tmp_path / "run", expected)]
    assert recorded[0] == recorded[1]
    assert "XLA_FLAGS" in recorded[0]


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections
def test_every_path_may_begin_with_a_tilde(finished, tmp_path, monkeypatch, capsys):
    """As in `--out=~/x`, which shells leave alone; without a home folder, the refusal names the argument."""
    home, written = finished[0], []
    shutil.copy(EXPERIMENTS / "quickstart.py", home)
    (home / "blank.png").write_bytes(b"")
    run = ["run", "--config=~/quickstart.py", *QUICK[1:], "--workdir=~/runs/quick"]
    stored = ["run", f"--config={EXPERIMENTS}/stored.py:~/runs/quick", "--workdir=~/runs/quick"]
    compare = ["compare", "~/runs/quick", "--out=~/out"]
    classify = ["classify", "~/runs/quick", "~/blank.png", "--experiment=~/quickstart.py"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "write", lambda comparison, out, *_: written.append(out) or [])
    monkeypatch.setenv("HOME", str(home))
    for command in (run, stored):
        sys.modules.pop("config_config", None)
        cli.dispatch(command)
        assert "already finished" in capsys.readouterr().err
    cli.dispatch(compare)
    assert written == [home / "out"]
    with pytest.raises(InputError, match=f"^image: '{home}/blank.png' "):
        cli.dispatch(classify)
    with pytest.raises(InputError, match=r"^workdir: 'caf\\udce9' is not UTF-8; rename the file or folder"):
        cli.dispatch(["run", *QUICK, "--workdir=caf\udce9"])
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    commands = {
        "config": run,
        "workdir": ["run", *QUICK, "--workdir=~/run"],
        "dataset": ["run", *QUICK[:1], "--config.dataset=idx:~/digits"],
        "data_dir": ["run", *QUICK[:1], "--config.dataset=mnist"],
        "run": compare,
        "out": ["compare", str(home / "runs/quick"), "--out=~/out"],
        "experiment": ["classify", str(home / "runs/quick"), "image.png", "--experiment=~/quickstart.py"],
        "image": ["classify", str(home / "runs/quick"), "~/blank.png"],
    }
    for field, command in commands.items():
        with pytest.raises(InputError, match=f"^{field}: no home folder is known for '~/"):
            cli.dispatch(command)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="user namespaces are Linux's")
def test_a_user_without_a_name_and_home_and_a_platform_without_devices(tmp_path):
    """As in `docker run -u 12345`. The platform is looked for after the folder of compiled programs."""
    nameless = ["unshare", "--user", "--map-user=12345", "env", "-u", "HOME", "-u", "XDG_CACHE_HOME"]
    if subprocess.run([*nameless, "true"], capture_output=True).returncode:
        pytest.skip("this system lets nobody make user namespaces")
    command = [*nameless, "JAX_PLATFORMS=cuda", str(launch.SCRIPT), "run", *QUICK, "--workdir=run"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert_refused(result, "JAX_PLATFORMS: 'cuda' gives this JAX no device")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="macOS limits no address space")
@pytest.mark.parametrize(("limit", "said"), [("NOFILE", "ulimit -n: 24 open"), ("AS", "ulimit -v: 1048576 KiB of")])
def test_limits_that_no_run_can_live_with_are_refused(tmp_path, limit, said):
    value = {"NOFILE": 24, "AS": 2**30}[limit]
    before = f"import resource; resource.setrlimit(resource.RLIMIT_{limit}, ({value}, {value}))"
    process = launch.start(["run", *QUICK], tmp_path, tmp_path / "said", before=before)
    assert process.wait(60) == 2
    assert (tmp_path / "said").read_text().startswith(f"lenet-jax: {said}")
    assert len((tmp_path / "said").read_text().splitlines()) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_the_soft_limit_of_open_files_is_raised(monkeypatch):
    changed = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (24 if kind == resource.RLIMIT_NOFILE else -1, -1))
    monkeypatch.setattr(resource, "setrlimit", lambda *limit: changed.append(limit))
    limits.check_limits(cores=100)
    ((kind, (soft, hard)),) = changed
    assert (kind, hard) == (resource.RLIMIT_NOFILE, -1)
    assert soft > 800


def test_the_package_is_a_program():
    result = subprocess.run([sys.executable, "-m", "lenet_jax", "--version"], capture_output=True, text=True)
    assert (result.returncode, result.stdout.strip()) == (0, package.__version__)


def test_a_finished_run_is_refused_in_one_line_on_a_platform_that_is_not_there(finished):
    command = [str(launch.SCRIPT), "run", *QUICK]
    environment = os.environ | {"JAX_PLATFORMS": "cuda"}
    result = subprocess.run(command, cwd=finished[0], capture_output=True, text=True, env=environment)
    assert_refused(result, "JAX_PLATFORMS: 'cuda' gives this JAX no device (it isn't installed for that platform)")


WINDOWS = """
import multiprocessing, signal, sys
from ml_collections import config_flags
sys.platform = "win32"
del signal.SIGHUP
sys.modules |= dict.fromkeys(("fcntl", "resource", "pwd", "termios"))
from lenet_jax import cli
cli.main(sys.argv[1:])
"""
"""What Windows lacks can't be imported; what is imported first works there."""


def test_windows_is_refused_in_one_line(tmp_path):
    command = [sys.executable, "-c", WINDOWS, "run", *QUICK]
    assert_refused(subprocess.run(command, cwd=tmp_path, capture_output=True, text=True), "WSL2")


def test_compare_writes_pictures_and_names_them(finished):
    folder, _ = finished
    result = lenet_jax(folder, "compare", "runs/quick")
    assert result.returncode == 0, result.stderr
    plots = folder / "runs/quick/plots"
    assert "runs/quick/plots/report.html" in result.stdout
    assert (plots / "report.html").is_file()
    assert list(plots.glob("*.png"))


@pytest.mark.slow
def test_an_axis_can_be_replaced_and_added(tmp_path):
    arguments = ["--config.sweep.loss=('mse',)"]
    arguments.append("--config.sweep.batch_size,epochs=((20,1),(40,2))")
    arguments += ["--config.tune.learning_rate=(0.001,0.1)", "--config.tune_seeds=1"]
    result = lenet_jax(tmp_path, "run", *QUICK, *arguments)
    assert result.returncode == 0, result.stderr
    run = run_folder.load(tmp_path / "runs/quickstart")
    names = ["loss=mse,activation=tanh,batch_size=20,epochs=1", "loss=mse,activation=tanh,batch_size=40,epochs=2"]
    assert [arm["name"] for arm in run.summary["arms"]] == names
    assert run.tuning.groupby("arm").epoch.max().to_dict() == dict(zip(names, (1, 2), strict=True))
    for arm in run.summary["arms"]:
        assert f"{arm['name']}: learning_rate {arm['chosen']['learning_rate']:g}, best of 2 candidates" in result.stderr


def test_former_spellings_of_flags_are_replaced():
    given = ["--save_every=0", "--only_arm", "2", "--save-every", "5", "-config.epochs=1"]
    assert arguments.joined(given) == ["--save-every=0", "--only-arm=2", "--save-every=5", "--config.epochs=1"]


def with_keys(*given):
    """The arms of a config with a sweep and a tune of its own, changed by arguments."""
    config = base.get_config()
    config.validation_size = 100
    config.sweep.loss = ("mse", "cross_entropy")
    config.sweep.pooling = {"lenet": {}, "average": {"subsampling": "average"}}
    config.sweep.activation = ("tanh",)
    config.tune.momentum = (0.9,)
    config.tune.learning_rate = (0.1,)
    return expand(arguments.with_keys(config, list(given)))


def test_keys_of_a_mapping_keep_their_order():
    arms = with_keys("--config.sweep.batch_size=(16,)", "--config.sweep.loss=('map',)", "--config.tune.mu=(2,1)")
    assert [arm.name for arm in arms] == [
        "loss=map,pooling=lenet,activation=tanh,batch_size=16",
        "loss=map,pooling=average,activation=tanh,batch_size=16",
    ]
    assert arms[0].tuning == Tuning({"momentum": (0.9,), "learning_rate": (0.1,), "mu": (1.0, 2.0)})
    assert list(arms[0].tuning.grid) == ["momentum", "learning_rate", "mu"]


def test_a_random_set_and_named_arms_can_be_written_as_dicts():
    arms = with_keys("--config.tune.learning_rate={'low': 0.01, 'high': 1, 'count': 3}")
    assert [point["learning_rate"] for point in arms[0].tuning.drawn] == log_uniform("learning_rate", 0.01, 1.0, 3)
    arms = expand(
        arguments.with_keys(base.get_config(), ["--config.sweep.arm={'b': {'loss': 'mse'}, 'a': {'epochs': 2}}"])
    )
    assert [(arm.name, arm.settings["epochs"]) for arm in arms] == [("b", 10), ("a", 2)]


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--config.loss=hinge"], ["loss: 'hinge'", "'mse', 'cross_entropy'"]),
        (["--config.epochs=ten"], ["epochs: expected int, got 'ten'"]),
        (["--config.learning_rate=fast"], ["learning_rate: expected float, got 'fast'"]),
        (["--config.refit=x"], ["refit: expected bool, got 'x'"]),
        (["--config.refit"], ["refit: True requires a field in tune"]),
        (["--config.epochs=0"], ["epochs: 0", "at least 1"]),
        (["--config.seeds=-1"], ["seeds: -1", "at least 1"]),
        (["--config.epoch=1"], ["unknown config field 'epoch'; did you mean 'epochs'?"]),
        (["--config.sweep.hinge=(1,)"], ["sweep.hinge: unknown config field 'hinge'"]),
        (["--config.tune_seeds=0"], ["tune_seeds: 0", "at least 1"]),
        (["--config.sweep.loss=mse"], ["sweep.loss: 'mse' is not a Python literal"]),
        (["--config.sweep.loss=('hinge',)"], ["loss: 'hinge'"]),
        (["--config.dataset=cifar"], ["dataset: 'cifar'", "'mnist10k'"]),
        (["--config.dataset=idx:nowhere"], ["nowhere", "train-images-idx3-ubyte"]),
        (["--config.batch_size=4001"], ["batch_size: 4001"]),  # 1,000 of the 5,000 validate
        (["--config.dataset=mnist5k"], ["dataset: 'mnist5k' was replaced by 'mnist10k'"]),
        (["--workdir=/dev/null/run"], ["workdir: '/dev/null/run/checkpoints' can't be written"]),
        (["--nosuch=1"], ["nosuch"]),
        (["--tracker=visdom"], ["tracker: 'visdom' is not one of"]),
        (["stray"], ["argument: unexpected 'stray'"]),
        (["--save_every=nan"], ["save-every: expected a number of seconds, got nan"]),
        (["--save-every=-1"], ["flag --save-every=-1"]),
        (["--config.sweep=x"], ["sweep: set one key at a time"]),
        (["--config.loss", "hinge"], ["loss: 'hinge'"]),
    ],
)
def test_bad_input_is_refused_in_one_line_and_nothing_is_written(main, tmp_path, arguments, parts):
    assert_refused(main(tmp_path, "run", f"--config={EXPERIMENTS}/quickstart.py", *arguments), *parts)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "--config.sweep.loss,seeds=(('mse',1),('map',))",
            "sweep.loss,seeds: expected 2 values, one for each field, got ('map',)",
        ),
        ("--config.sweep.arm={'a': {}}", "sweep.arm: named arms allow no other axis"),
        (
            "--config.validation_size=0 --config.tune.learning_rate=(0.01,0.1)",
            "validation_size: 0 leaves no images for tuning",
        ),
        ("--config.tune.batch_size=(16,32)", "tune.batch_size: not a tunable field; allowed are learning_rate"),
        ("--config.tune.mu={'low': 1}", "tune.mu: a random set needs the keys low, high, count"),
        ("--config.tune.mu={[1]: 1}", "tune.mu: '{[1]: 1}' is not a Python literal"),
        ("--config.tune.mu={'a.b': 1}", "tune.mu: \"{'a.b': 1}\" is not a Python literal"),
        ("--config.tune=(0.1,)", "tune: set one key at a time"),
    ],
)
def test_bad_keys_are_refused_in_one_line(main, tmp_path, arguments, message):
    result = main(tmp_path, "run", f"--config={EXPERIMENTS}/quickstart.py", *re.split(" (?=--)", arguments))
    assert_refused(result)
    assert result.stderr.startswith(f"lenet-jax: {message}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (None, ["config: 'mine.py' is not a file"]),
        ("x = 1", ["config: 'mine.py' has no function get_config()"]),
        ("def get_config(): return 3", ["config: get_config() of 'mine.py' returns int"]),
        ("def get_config(:", ["config: 'mine.py' fails with SyntaxError", "line 1"]),
        ("import nothing_like_this", ["config: 'mine.py' fails with ModuleNotFoundError"]),
        (
            "from lenet_jax.experiments import base\ndef get_config():\n  c = base.get_config()\n  c.epochs = 'ten'",
            ["epochs: expected int, got 'ten' (in 'mine.py')"],
        ),
        (
            "from lenet_jax.experiments import base\ndef get_config():\n  c = base.get_config()\n  c.seeds = 4.0",
            ["seeds: expected int, got 4.0 (in 'mine.py')"],
        ),
    ],
)
def test_a_bad_config_file_is_refused(main, tmp_path, content, parts):
    if content:
        (tmp_path / "mine.py").write_text(content)
    assert_refused(main(tmp_path, "run", "--config=mine.py"), *parts)
    assert not (tmp_path / "runs").exists()


def test_without_a_config_the_flag_is_named(main, tmp_path):
    assert_refused(main(tmp_path, "run"), "config: missing", "--config=")
    assert_refused(main(tmp_path, "run", "mine.py"), "config: missing", "--config=mine.py")


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_a_run_of_another_config_is_left_alone(main, finished):
    folder, _ = finished
    before = (folder / "runs/quick/summary.json").read_bytes()
    result = main(folder, "run", *QUICK, "--config.epochs=2", "--workdir=runs/quick")
    assert_refused(result, "workdir: 'runs/quick'", "differs in epochs")
    assert (folder / "runs/quick/summary.json").read_bytes() == before


def test_the_same_command_again_does_nothing_and_shows_the_table(finished):
    folder, _ = finished
    result = lenet_jax(folder, "run", *QUICK, "--workdir=runs/quick")
    assert result.returncode == 0
    assert "already finished" in result.stderr
    assert "cross_entropy" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["run: missing"]),
        (["nowhere"], ["run: 'nowhere' is not a folder"]),
        (["."], ["config.json' is missing"]),
        (["runs/quick", "--metric=accuracy"], ["metric: 'accuracy'", "test_error"]),
    ],
)
def test_compare_refuses_bad_input(main, finished, arguments, parts):
    assert_refused(main(finished[0], "compare", *arguments), *parts)


def test_an_unknown_command_is_refused(tmp_path):
    assert_refused(lenet_jax(tmp_path, "train", real=True), "command: 'train'", "'run', 'compare'")


def test_without_network_the_files_and_the_way_round_are_named(tmp_path):
    # Port 9 of this machine: nobody listens there.
    environment = {"LENET_JAX_MIRROR": "http://127.0.0.1:9/mnist/", "TFDS_DATA_DIR": str(tmp_path / "tfds")}
    arguments = [f"--config={EXPERIMENTS}/ablation.py", "--workdir=run"]
    result = lenet_jax(tmp_path, "run", *arguments, **environment)
    assert result.returncode == 2
    # TFDS and its progress bars write before it; the refusal is the last line.
    line = result.stderr.splitlines()[-1]
    for part in ("'mnist' could not be downloaded", "train-images-idx3-ubyte.gz", "127.0.0.1:9", "idx:FOLDER"):
        assert part in line
    assert not (tmp_path / "run").exists()


def test_ctrl_c_says_how_to_go_on(tmp_path):
    arguments = ["run", *QUICK, "--config.epochs=5000", "--workdir=run"]
    process = launch.start(arguments, tmp_path, tmp_path / "output", tmp_path / "errors")
    while not (tmp_path / "run/config.json").exists():
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 130
    assert (tmp_path / "errors").read_text().splitlines()[-1].startswith("lenet-jax: stopped")


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("", "lenet-jax: config: 'stored.py' needs a run folder; write --config=experiments/stored.py:RUN"),
        (":nowhere", "lenet-jax: run: 'nowhere/config.json' is missing"),
    ],
)
def test_a_stored_run_that_is_not_there_is_refused(main, folder, message, tmp_path):
    result = main(tmp_path, "run", f"--config={EXPERIMENTS}/stored.py{folder}")
    assert_refused(result)
    assert result.stderr.startswith(message)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_seed_of_the_stored_quickstart_is_made_again(tmp_path):
    """Exactly, on the machine and with the versions that it was made with; elsewhere to 40 of the 5,000 test digits."""
    stored = run_folder.load(EXPERIMENTS / "results" / "quickstart")
    seed, name = 3, "loss=cross_entropy,activation=tanh"
    flags = ["--config.sweep.loss=('cross_entropy',)", "--config.sweep.activation=('tanh',)"]
    flags += [f"--config.first_seed={seed}", "--config.seeds=1", "--workdir=again"]
    # Compiled as it was then: other programs round in another way.
    as_then = {"XLA_FLAGS": ""}
    result = lenet_jax(
        tmp_path, "run", f"--config={EXPERIMENTS}/stored.py:{stored.folder}", *flags, real=True, **as_then
    )
    assert result.returncode == 0, result.stderr
    again = run_folder.load(tmp_path / "again")
    before = next(arm for arm in stored.summary["arms"] if arm["name"] == name)
    (after,) = again.summary["arms"]
    made = [run.provenance[field] for run in (stored, again) for field in ("processor", "cores", "versions")]
    tolerance = 0 if made[:3] == made[3:] else 0.008
    for split in ("train_error", "test_error"):
        error = round(before[split]["per_seed"][seed], 7)  # that run is older than the rounding of errors
        assert after[split]["per_seed"] == pytest.approx([error], abs=tolerance)


@pytest.mark.skipif(sys.platform != "linux", reason="terminals differ")
def test_a_terminal_of_80_columns_shows_the_bar_and_the_time_left(tmp_path, monkeypatch):
    """Through a pseudo-terminal, as a person sees it."""
    # The program of test_faults.py: compiled programs are kept.
    arguments = ["run", *QUICK, "--config.sweep.loss=('mse',)", "--config.epochs=6", "--workdir=run"]
    for name in ("COLUMNS", "LINES", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    run = launch.start(arguments, tmp_path, os.ttyname(theirs), environment={"TERM": "xterm-256color"})
    said = b""
    while run.poll() is None or select.select([ours], [], [], 0)[0]:
        if select.select([ours], [], [], 0.1)[0]:
            said += os.read(ours, 65536)
    os.close(theirs)
    os.close(ours)
    assert run.returncode == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.decode())
    assert re.search(r"arm 1/1 loss=mse,activation=tanh: 2 networks: (compiling|training)", text)
    assert re.search(r"━+ \d/6 epochs 0:00:\d\d remaining ", text)
    assert "loss=mse,activation=tanh: test error" in " ".join(text.split())
