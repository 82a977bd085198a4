"""Several devices and several processes: real processes that connect on 127.0.0.1."""

import json
import os
import re
import signal
import socket
import time
from pathlib import Path

import few_digits
import launch
import numpy as np
import pandas as pd
import pytest

from lenet_jax.run import folder as run_folder

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
TINY = [
    f"--config={EXPERIMENTS}/quickstart.py",
    f"--config.dataset={few_digits.DATASET}",
    "--config.sweep.activation=('tanh',)",
    "--config.sweep.loss=('mse',)",
    "--config.train_size=400",
    "--config.validation_size=200",
    "--config.seeds=5",  # divisible by neither two nor four devices, which train them in three and in two turns
    "--config.epochs=6",  # one process has the program of test_faults.py
    "--tracker=none",
]
TUNED = [*TINY, "--config.tune.learning_rate=(0.03,0.1,0.3)", "--config.tune_seeds=1"]


def start(folder, *arguments, before=""):
    """Starts a process, whose output goes to a file, because nothing reads a pipe meanwhile."""
    output = folder / f"output-{len(list(folder.glob('output-*')))}"
    output.touch()
    process = launch.start(["run", *arguments], folder, output, before=before)
    process.output = output
    return process


def start_all(folder, *arguments, processes=2, own=None, before=None):
    """The processes of one run, with two devices each; `own` and `before` have arguments and Python code by process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = ["--distributed", f"--coordinator=127.0.0.1:{port}", f"--processes={processes}", "--devices=2"]
    return [
        start(
            folder,
            *arguments,
            *meeting,
            f"--process={number}",
            *(own or {}).get(number, []),
            before=(before or {}).get(number, ""),
        )
        for number in range(processes)
    ]


def ended(process, within=240):
    """Its exit code and what it printed."""
    code = process.wait(within)
    return code, process.output.read_text()


GLOO = re.compile(r"^\[Gloo\]|peer ranks")
"""Output of JAX's collectives; two threads can interleave their lines."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same tuned arm on two devices of one process, and in two processes with two devices each."""
    folder = tmp_path_factory.mktemp("cluster")
    alone = start(folder, *TUNED, "--workdir=2", "--devices=2")
    outputs = []
    for process in [*start_all(folder, *TUNED, "--workdir=2x2"), alone]:
        code, output = ended(process)
        assert code == 0, output
        outputs.append(output)
    assert "test error" in outputs[0]
    assert not [line for line in outputs[1].splitlines() if line and not GLOO.search(line)], "only process 0 prints"
    return {name: run_folder.load(folder / name) for name in ("2", "2x2")}


def on_devices(folder, devices):
    """The same run in one process."""
    code, output = ended(start(folder, *TUNED, f"--workdir={devices}", f"--devices={devices}"))
    assert code == 0, output
    return run_folder.load(folder / str(devices))


def test_two_processes_give_exactly_what_one_gives(runs):
    one, two = runs["2"], runs["2x2"]
    for name in (run_folder.METRICS, run_folder.PREDICTIONS, run_folder.TUNING):
        assert (two.folder / name).read_bytes() == (one.folder / name).read_bytes()
    assert set(one.metrics.seed) == {*range(5)}
    assert one.summary["arms"][0]["test_error"]["mean"] < 0.5, "it learned"
    assert two.provenance["processes"] == 2
    assert len(two.provenance["devices"]) == 4


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 4])
def test_any_number_of_devices_gives_the_same(runs, devices, tmp_path):
    """Only rounding differs: the order of sums in a matrix product depends on the number of threads."""
    run, expected = on_devices(tmp_path, devices), runs["2"]
    (arm,), (expected_arm,) = run.summary["arms"], expected.summary["arms"]
    assert arm["chosen"] == expected_arm["chosen"]
    one = 1.01 / few_digits.TEST
    # At most one test image is classified differently.
    np.testing.assert_allclose(arm["test_error"]["per_seed"], expected_arm["test_error"]["per_seed"], atol=one)
    for table, expected_table in ((run.metrics, expected.metrics), (run.tuning, expected.tuning)):
        columns = [column for column in table if column != "value"]
        pd.testing.assert_frame_equal(table[columns], expected_table[columns])
        losses = table.metric == "loss"
        np.testing.assert_allclose(table.value[losses], expected_table.value[losses], rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_others_and_a_single_process_resumes(runs, tmp_path, victim):
    arguments = [*TINY, "--workdir=run", "--save-every=0", "--config.epochs=400"]
    processes = start_all(tmp_path, *arguments)
    wait_for(lambda: list(tmp_path.glob("run/checkpoints/*/tested-*/states/[0-9]*/commit_success.txt")), processes)
    processes[victim].kill()
    processes[victim].wait()
    killed = time.monotonic()
    code, output = ended(processes[1 - victim])
    assert time.monotonic() - killed < 60
    if victim == 0 and code == -signal.SIGABRT:  # JAX missed its service, in process 0, first
        assert "coordination service" in output
    else:
        assert code == 1, output
        assert "another process of this run has ended" in output
        assert output.strip().endswith("rerun the same command to resume")
    before = saved_steps(tmp_path / "run")
    assert before
    # One process resumes the run, and stops when it gets a signal.
    alone = start(tmp_path, *arguments)
    wait_for(lambda: saved_steps(tmp_path / "run") > before, [alone])
    alone.send_signal(signal.SIGTERM)
    code, output = ended(alone)
    assert code == 143, output
    assert output.strip().endswith("rerun the same command to resume")


def wait_for(condition, processes):
    """Waits until a condition holds; fails if a process ends before."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes), [ended(process) for process in processes]
        time.sleep(0.05)


def saved_steps(run):
    """The step of the last saved state, in a list; empty if there is none."""
    return sorted(int(path.name) for path in run.glob("checkpoints/*/tested-*/states/*") if path.name.isdigit())[-1:]


@pytest.mark.slow
def test_a_process_killed_when_all_is_written_disturbs_nobody(tmp_path):
    """JAX's shutdown waits for it, and aborts the others."""
    kill = "from lenet_jax import distributed; import os; distributed.leave = lambda: os.kill(os.getpid(), 9)"
    processes = start_all(tmp_path, *TINY, "--workdir=run", before={1: kill})
    assert ended(processes[1])[0] == -signal.SIGKILL
    code, output = ended(processes[0], within=20)
    assert code == 0, output
    assert "run folder: run" in output


@pytest.mark.slow
def test_a_hanging_process_ends_the_others(tmp_path):
    """JAX aborts them when a heartbeat is missing."""
    processes = start_all(tmp_path, *TINY, "--workdir=run", "--save-every=0", "--config.epochs=4000")
    wait_for(lambda: saved_steps(tmp_path / "run"), processes)
    processes[1].send_signal(signal.SIGSTOP)
    try:
        code, output = ended(processes[0], within=120)
    finally:
        processes[1].kill()
        processes[1].wait()
    assert code == -signal.SIGABRT, output  # which a shell shows as 134
    assert saved_steps(tmp_path / "run")


@pytest.mark.slow
def test_sigterm_to_one_process_stops_all(tmp_path):
    arguments = [*TINY, "--workdir=run", "--save-every=0", "--config.epochs=400"]
    processes = start_all(tmp_path, *arguments)
    wait_for(lambda: saved_steps(tmp_path / "run"), processes)
    processes[1].send_signal(signal.SIGTERM)
    for process in processes:
        code, output = ended(process)
        assert code == 143, output
        assert "rerun the same command to resume" in output


def test_processes_must_agree(tmp_path):
    processes = start_all(tmp_path, *TINY, "--workdir=run", own={1: ["--config.epochs=4"]})
    for process in processes:
        code, output = ended(process)
        assert code == 2, output
        assert "distributed: process 1 has another config than process 0" in output
    assert not (tmp_path / "run").exists()


def test_a_missing_cluster_is_an_error(tmp_path):
    code, output = ended(start(tmp_path, *TINY, "--distributed"))
    assert code == 2, output
    assert len(output.splitlines()) == 1, output
    assert "--coordinator=HOST:PORT --processes=COUNT --process=NUMBER" in output
    assert json.dumps(os.listdir(tmp_path)) == '["output-0"]'
