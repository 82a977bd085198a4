"""`lenet-jax run --dry-run`: what it says is what happens, and nothing is written."""

import contextlib
import json
import re
import time
from pathlib import Path

import few_digits
import launch
import psutil
import pytest
from statsmodels.stats.power import TTestPower

from lenet_jax.analysis import compare
from lenet_jax.experiments import base
from lenet_jax.run import arms, forecast, plan
from lenet_jax.run import folder as run_folder

ROOT = Path(__file__).parent.parent
STORED = ROOT / "experiments" / "results"
TINY = [
    f"--config={ROOT}/experiments/quickstart.py",
    f"--config.dataset={few_digits.DATASET}",
    "--config.train_size=400",
    "--config.validation_size=200",
    "--config.sweep.loss=('mse',)",
    "--config.sweep.activation=('tanh',)",
    "--config.sweep.weight_decay=(0.0,0.001)",  # two arms of one program, that of test_faults.py
    "--config.seeds=6",
    "--config.epochs=6",
]


def design(**fields):
    """What a config's design can show."""
    config = base.get_config()
    config.update(fields)
    return forecast.design(plan.make(arms.expand(config)).arms)


THREE = {"activation": ("sigmoid", "tanh", "relu")}


SHOWN = ", and 80 % of studies show a difference of "
NEVER = ": none can be significant. Over test images, differences can."


@pytest.mark.parametrize(
    ("seeds", "sweep", "said"),
    [
        (6, THREE, f"6 seeds, 2 comparisons: over seeds alone, no p-value below 0.031{SHOWN}"),
        (7, THREE, f"7 seeds, 2 comparisons: over seeds alone, no p-value below 0.016{SHOWN}"),
        (2, THREE, f"2 seeds, 2 comparisons: over seeds alone, no p-value below 0.5{NEVER}"),
        (1, THREE, "Nothing can be compared over seeds"),
        (8, {}, "Nothing can be compared over seeds"),
        # Many comparisons raise the floor of Holm's p-values, but not that of max-T.
        (
            9,
            {"mu": tuple(range(1, 302))},
            f"9 seeds, 300 comparisons: over seeds alone, no p-value below 0.0039{SHOWN}",
        ),
        # Arms without common seeds are not compared.
        (6, {"first_seed": (0, 3, 6)}, f"3 seeds, 1 comparison: over seeds alone, no p-value below 0.25{NEVER}"),
    ],
)
def test_the_design(seeds, sweep, said):
    assert design(seeds=seeds, sweep=sweep).startswith(said)


def test_the_designs_difference_is_that_of_the_t_test():
    """At 0.05 by 2 comparisons."""
    said = design(seeds=8, sweep=THREE)
    size = float(re.search(r"a difference of (\S+) standard deviations", said)[1])
    power = TTestPower().power(size, 8, 0.025, alternative="two-sided")
    assert power == pytest.approx(0.8, abs=0.04)  # two digits are shown


@pytest.mark.parametrize("name", ["quickstart", "connectivity", "initializer", "label_noise"])
def test_the_number_of_comparisons_is_that_of_a_comparison(name):
    run = run_folder.load(STORED / name)
    made = arms.expand(__import__(f"lenet_jax.experiments.{name}", fromlist=["get_config"]).get_config())
    count = len(compare.compare_runs([run]).judgements)
    assert f"{run.config['seeds']} seeds, {count} comparison" in forecast.design(plan.make(made).arms)


def test_sizes_on_disk_are_those_stored():
    stored = json.loads((STORED / "devices" / "devices.json").read_text())
    assert pytest.approx(stored["large"]["disk_share"], abs=1e-3) == forecast.STATE_ON_DISK
    assert pytest.approx(stored["tables"]["predictions"]["parquet"], abs=0.05) == forecast.ROW_ON_DISK
    assert pytest.approx(stored["tables"]["predictions"]["peak"], abs=0.05) == forecast.ROW_IN_MEMORY
    sizes = [stored["tables"]["predictions"][name] for name in ("parquet", "parquet_scores")]
    said = "takes {:.1f} bytes, of which its `nll` and `brier`, rounded to 12 bits, take {:.1f}".format(*sizes)
    assert said in " ".join((STORED.parents[1] / "docs" / "running.md").read_text().split())


def total(said):
    """Networks, seconds, and MiB of memory and disk."""
    networks, *times = re.search(r"^ *in all +(\S+) +(\S+) +(\S+) *$", said, re.MULTILINE).groups()
    seconds = [sum(int(part) * 60**power for power, part in enumerate(reversed(text.split(":")))) for text in times]
    sizes = re.search(r"^Memory: (\S+) MiB. Disk: (\S+) MiB", said, re.MULTILINE).groups()
    return int(networks), sum(seconds), *(int(text.replace(",", "")) for text in sizes)


def bytes_in(folder):
    """Of all files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_dry_run_writes_nothing_and_predicts_the_disk(tmp_path, own_cache):
    cache = {"XDG_CACHE_HOME": own_cache}
    dry = launch.run(["run", *TINY, "--workdir=run", "--dry-run"], tmp_path, environment=cache)
    assert dry.returncode == 0, dry.stderr
    left = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert all(re.fullmatch(r"lock|\w+\.so", name) for name in left), "but for the compiled convolutions"
    networks, _, _, disk = total(dry.stdout)
    assert networks == 12
    assert "6 seeds, 1 comparison: over seeds alone, no p-value below 0.031" in dry.stdout
    assert launch.run(["run", *TINY, "--workdir=run"], tmp_path).returncode == 0
    assert bytes_in(tmp_path / "run") / 2**20 == pytest.approx(disk, rel=0.1, abs=0.5)


@pytest.mark.parametrize("arguments", [["--config.epochs=0"], ["--only-arm=9"], ["--distributed"]])
def test_what_a_dry_run_refuses(tmp_path, arguments):
    refused = launch.run(["run", *TINY, *arguments, "--dry-run"], tmp_path)
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1, refused.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["--config.epochs=50"],  # in one process
        # In worker processes.
        ["--config.dataset=mnist10k", "--config.train_size=0", "--config.seeds=16"],
        ["--config.tune.learning_rate=(0.01,0.03)", "--config.tune_seeds=4", "--config.epochs=30"],
    ],
)
def test_time_and_memory_are_predicted_within_a_factor_of_two(tmp_path, arguments):
    given = [
        argument for argument in TINY if argument.partition("=")[0] not in [one.partition("=")[0] for one in arguments]
    ]
    dry = launch.run(["run", *given, *arguments, "--dry-run"], tmp_path)
    assert dry.returncode == 0, dry.stderr
    _, seconds, memory, _ = total(dry.stdout)
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    started, most = time.monotonic(), 0
    process = launch.start(["run", *given, *arguments, "--workdir=run"], tmp_path, tmp_path / "log", environment=cache)
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            most = max(most, sum(one.memory_info().rss for one in (watched, *watched.children(recursive=True))))
        time.sleep(0.1)
    took = time.monotonic() - started
    assert process.returncode == 0, (tmp_path / "log").read_text()
    print(f"{seconds} s predicted, {took:.1f} s; {memory} MiB predicted, {most / 2**20:.0f} MiB")
    assert took / 2 <= seconds <= took * 2
    assert most / 2 <= memory * 2**20 <= most * 2
