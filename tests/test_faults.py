"""What a run survives: every fault is a real one, in a process of its own."""

import contextlib
import json
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from lenet_jax import results

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
TABLES = (results.METRICS, results.PREDICTIONS, results.TUNING)
SMALL = [
    f"--config={EXPERIMENTS}/quickstart.py",
    "--config.sweep.activation=('tanh',)",
    "--config.validation_size=3600",
    "--config.seeds=2",
    "--config.epochs=6",
]
"""Two arms; one process trains them."""

TUNED = [*SMALL, "--config.tune.learning_rate=(0.003,0.01)", "--config.tune_seeds=1", "--config.tune_widenings=1"]
CROWD = [*SMALL, "--config.seeds=4", "--config.validation_size=0", "--config.epochs=20"]
"""Enough for worker processes."""


def command(workdir, arguments, *more):
    script = Path(sys.executable).parent / "lenet-jax"
    return [script, "run", *arguments, f"--workdir={workdir}", *more]


def lenet_jax(workdir, arguments, *more, **options):
    """Runs to the end."""
    return subprocess.run(command(workdir, arguments, *more), capture_output=True, text=True, timeout=500, **options)


class Running:
    """A run in the background; its lines go to a file, because nobody reads a pipe meanwhile."""

    def __init__(self, workdir, arguments, *more, **options):
        self.output = workdir.parent / f"{workdir.name}-{time.monotonic_ns()}.txt"
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                command(workdir, arguments, *more), stdout=output, stderr=subprocess.STDOUT, **options
            )

    def wait_for(self, condition):
        """Until it holds; the run must not end before."""
        deadline = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < deadline, self.output.read_text()
            assert self.process.poll() is None, self.output.read_text()
            time.sleep(0.02)

    def ended(self):
        """Its exit code and what it said."""
        code = self.process.wait(300)
        return code, self.output.read_text()

    def children(self):
        """Its worker processes."""
        return psutil.Process(self.process.pid).children(recursive=True)


def saved(workdir):
    """Folders of saved states, the last one last."""
    found = [path for path in workdir.glob("checkpoints/*/*/states/*") if path.name.isdigit()]
    return sorted(found, key=lambda path: (path.parent.stat().st_mtime, int(path.name)))


def assert_same(workdir, reference):
    """All tables byte for byte, the summary but for the times; nothing half written, no curve twice."""
    for name in TABLES:
        assert (workdir / name).exists() == (reference / name).exists()
        if (reference / name).exists():
            assert (workdir / name).read_bytes() == (reference / name).read_bytes(), name
    rows = []
    for folder in (workdir, reference):
        summary = json.loads((folder / results.SUMMARY).read_text())
        times = ("seconds", "samples_per_second", "predicted_memory")
        rows.append([{key: value for key, value in arm.items() if key not in times} for arm in summary["arms"]])
    assert rows[0] == rows[1]
    assert {path.name for path in workdir.iterdir()} == {path.name for path in reference.iterdir()}
    for arm in (workdir / "tensorboard").iterdir():
        assert len(list(arm.iterdir())) == 1


def reference(tmp_path_factory, arguments):
    folder = tmp_path_factory.mktemp("faults") / "whole"
    result = lenet_jax(folder, arguments)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return reference(tmp_path_factory, SMALL)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    return reference(tmp_path_factory, TUNED)


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    return reference(tmp_path_factory, CROWD)


def kill_often(workdir, arguments, kills, longest):
    """Kills a run that often at random moments, then lets it end."""
    rng = random.Random(0)
    for number in range(kills):
        run = Running(workdir, arguments, "--save_every=0")
        with contextlib.suppress(subprocess.TimeoutExpired):
            run.process.wait(rng.uniform(2, longest))
        workers = run.children() if run.process.poll() is None else []
        run.process.kill()
        code, output = run.ended()
        assert code == -signal.SIGKILL, f"{number} kills: {code} {output}"
        assert "Traceback" not in output
        assert not psutil.wait_procs(workers, timeout=20)[1], "no worker outlives the run"
    result = lenet_jax(workdir, arguments, "--save_every=0")
    assert result.returncode == 0, result.stderr
    return result


def test_kill(tuned, tmp_path):
    kill_often(tmp_path / "run", TUNED, 3, 7)
    assert_same(tmp_path / "run", tuned)
    provenance = json.loads((tmp_path / "run" / results.PROVENANCE).read_text())
    assert len(provenance["later_attempts"]) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("arguments", ["tuned", "crowd"])
def test_twenty_kills(arguments, request, tmp_path):
    """In one process, with tuning, and in worker processes. Kills come sooner than the run can end."""
    whole = request.getfixturevalue(arguments)
    # So long that twenty attempts of a few seconds don't end it: the first half of each is starting and compiling.
    kill_often(tmp_path / "run", {"tuned": TUNED, "crowd": CROWD}[arguments], 20, 4.5)
    assert_same(tmp_path / "run", whole)


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """A run that was killed in its second arm, after two states of it were saved."""
    folder = tmp_path_factory.mktemp("faults") / "cut"
    run = Running(folder, [*SMALL], "--save_every=0")
    run.wait_for(lambda: list(folder.glob("checkpoints/*/arm.json")) and len(states_of_second(folder)) == 2)
    run.process.kill()
    run.ended()
    assert len(states_of_second(folder)) == 2
    return folder


def states_of_second(folder):
    """Saved states of the arm that isn't finished, the newest first."""
    found = [path for path in saved(folder) if not (path.parents[2] / "arm.json").exists()]
    return sorted((path for path in found if (path / "commit_success.txt").exists()), key=lambda path: -int(path.name))


def largest(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def bomb(path):
    """A pickle that would leave a mark."""

    class Mark:
        def __reduce__(self):
            return os.system, (f"touch {path.parent}/unpickled",)

    path.write_bytes(pickle.dumps(Mark()))


DAMAGES = {
    "a flipped byte": lambda state: flip(largest(state)),
    "a truncated file": lambda state: os.truncate(largest(state), 1000),
    "an emptied file": lambda state: os.truncate(largest(state), 0),
    "metadata gone": lambda state: (state / "state" / "_METADATA").unlink(),
    "no JSON": lambda state: (state / "about" / "metadata").write_text("{"),
    "a pickle": lambda state: bomb(largest(state)),
}


DAMAGED_TABLES = ("metrics.parquet", "predictions.parquet", "trained.json")


def copied(cut, tmp_path):
    subprocess.run(["cp", "-a", cut, tmp_path / "run"], check=True)
    return tmp_path / "run"


@pytest.mark.parametrize(
    "damage",
    [name if name == "a flipped byte" else pytest.param(name, marks=pytest.mark.slow) for name in DAMAGES],
)
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_taken(damage, cut, small, tmp_path):
    run = copied(cut, tmp_path)
    newest = states_of_second(run)[0]
    DAMAGES[damage](newest)
    result = lenet_jax(run, SMALL)
    assert result.returncode == 0, result.stderr
    told = [line for line in result.stderr.splitlines() if "is damaged" in line]
    assert len(told) == 1, result.stderr
    assert str(newest) in told[0]
    assert "going on from the state before" in told[0]
    assert_same(run, small)
    assert not list(run.rglob("unpickled"))


@pytest.mark.slow
def test_if_both_are_damaged_the_members_start_anew(cut, small, tmp_path):
    run = copied(cut, tmp_path)
    for state in states_of_second(run):
        flip(largest(state))
    result = lenet_jax(run, SMALL)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("is damaged") == 2
    assert_same(run, small)


@pytest.mark.parametrize("name", ["arm.json", *(pytest.param(name, marks=pytest.mark.slow) for name in DAMAGED_TABLES)])
def test_a_damaged_table_of_a_finished_arm_is_made_again(name, cut, small, tmp_path):
    run = copied(cut, tmp_path)
    (path,) = [
        path
        for path in run.glob(f"checkpoints/*/**/{name}")
        if (path.parent / "arm.json").exists() or (path.parents[1] / "arm.json").exists()
    ]
    if name.endswith(".json"):
        path.write_text(path.read_text()[:-5])
    else:
        flip(path)
    result = lenet_jax(run, SMALL)
    assert result.returncode == 0, result.stderr
    assert str(path) in result.stderr
    assert_same(run, small)


def test_signals_save_and_the_same_command_goes_on(tuned, tmp_path):
    run = tmp_path / "run"
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        running = Running(run, TUNED, "--save_every=1000", start_new_session=True)
        running.wait_for(lambda: list(run.glob("checkpoints/attempts/*.json")))
        time.sleep(4)
        os.killpg(running.process.pid, number)
        ended, output = running.ended()
        assert ended in (code, 0), output
        if ended:
            assert output.strip().endswith("the same command goes on")
            assert "Traceback" not in output
    result = lenet_jax(run, TUNED)
    assert result.returncode == 0, result.stderr
    assert_same(run, tuned)


LONG = [*SMALL, "--config.validation_size=0", "--config.seeds=400", "--config.sweep.loss=('mse',)"]
"""A step of it takes some 15 seconds: worker processes, 1.6 million samples an epoch."""


@pytest.mark.slow
def test_the_first_signal_finishes_the_step_and_the_second_ends_at_once(tmp_path):
    running = Running(tmp_path / "run", LONG)
    running.wait_for(lambda: list((tmp_path / "run").glob("tensorboard/*")))
    time.sleep(12)  # the networks are evaluated once before they are trained
    workers = running.children()
    assert workers
    running.process.send_signal(signal.SIGINT)
    running.wait_for(lambda: "finishing the step, then saving; once more stops at once" in running.output.read_text())
    running.process.send_signal(signal.SIGINT)
    started = time.monotonic()
    code, output = running.ended()
    assert time.monotonic() - started < 2
    assert code == 130
    assert output.strip().endswith("stopped at once")
    assert not psutil.wait_procs(workers, timeout=20)[1]


def test_a_signal_before_anything_is_trained_ends_at_once(tmp_path):
    running = Running(tmp_path / "run", SMALL)
    running.wait_for(lambda: (tmp_path / "run" / results.CONFIG).exists())
    running.process.terminate()
    started = time.monotonic()
    code, output = running.ended()
    assert time.monotonic() - started < 15
    assert code == 143, output
    assert output.strip().endswith("the same command goes on")


def test_a_folder_has_one_owner(tmp_path):
    run = tmp_path / "run"
    first = Running(run, SMALL, "--save_every=0", "--config.epochs=2000")
    first.wait_for(lambda: saved(run))
    config = (run / results.CONFIG).read_bytes()
    for more, message in (
        (["--config.epochs=2000"], f"workdir: {str(run)!r} is in use by process {first.process.pid} on"),
        (["--config.epochs=2000", "--fresh"], "is in use by process"),
        (["--config.epochs=2000", "--only-arm=1"], "is in use by process"),
        ([], "another config (it differs in epochs)"),
    ):
        refused = lenet_jax(run, SMALL, *more)
        assert refused.returncode == 2, refused.stderr
        assert len(refused.stderr.splitlines()) == 1
        assert message in refused.stderr
    assert (run / results.CONFIG).read_bytes() == config
    first.process.terminate()
    assert first.ended()[0] == 143, "the owner went on all the time"
    assert saved(run)


@pytest.mark.slow
def test_a_killed_owner_owns_nothing(cut, tmp_path):
    run = copied(cut, tmp_path)
    first = Running(run, SMALL, "--save_every=0")
    first.wait_for(lambda: f"process {first.process.pid} " in (run / "checkpoints" / "lock").read_text())
    first.process.kill()
    first.ended()
    moved = lenet_jax(run, SMALL, "--fresh", "--config.epochs=1")
    assert moved.returncode == 0, moved.stderr


def test_fresh_moves_the_old_run_aside(small, tmp_path):
    run = copied(small, tmp_path)
    files = {path.relative_to(run): path.read_bytes() for path in run.rglob("*") if path.is_file()}
    result = lenet_jax(run, SMALL, "--fresh", "--config.epochs=1")
    assert result.returncode == 0, result.stderr
    (aside,) = tmp_path.glob("run-20*")
    assert f"{run} was moved to {aside}" in result.stderr
    lock = Path("checkpoints/lock")
    for path, content in files.items():
        assert path == lock or (aside / path).read_bytes() == content
    assert results.load(run).config["epochs"] == 1
    assert results.load(aside).config["epochs"] == 6
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("")
    refused = lenet_jax(tmp_path / "thesis", SMALL, "--fresh")
    assert refused.returncode == 2
    assert "holds no run that --fresh could move aside" in refused.stderr


def test_arms_as_jobs_of_their_own(small, tmp_path):
    """Two at the same time, in one folder: the last one writes the tables, the same as if one process had run both."""
    run = tmp_path / "run"
    jobs = [Running(run, SMALL, "--only-arm=1"), Running(run, SMALL, "--only-arm=loss=cross_entropy,activation=tanh")]
    jobs[0].wait_for(lambda: (run / results.CONFIG).exists())
    whole = lenet_jax(run, SMALL)
    assert whole.returncode == 2
    assert "is in use by process" in whole.stderr
    outputs = []
    for job in jobs:
        code, output = job.ended()
        assert code == 0, output
        outputs.append(output)
    assert any("run folder:" in output for output in outputs)
    assert_same(run, small)
    refused = lenet_jax(tmp_path / "other", SMALL, "--only-arm=3")
    assert refused.returncode == 2
    assert "only-arm: '3' is no arm; allowed are 1 (loss=mse,activation=tanh), 2 (" in refused.stderr
    assert not (tmp_path / "other").exists()


@pytest.fixture
def small_disk(tmp_path):
    """(size, options) -> mounts a file system of its own at tmp_path/disk."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(options):
        if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", disk], capture_output=True).returncode:
            pytest.skip("only root can mount a file system")
        return disk

    yield mount
    subprocess.run(["umount", "-l", disk], capture_output=True)


def test_a_full_disk(small, small_disk):
    disk = small_disk("size=2500k")
    result = lenet_jax(disk / "run", SMALL, "--save_every=0")
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert str(disk) in last
    assert last.endswith(
        "can't be written (No space left on device); all that was saved before is kept; the same command goes on"
    )
    before = saved(disk / "run")
    assert before
    subprocess.run(["mount", "-o", "remount,size=50m", disk], check=True)
    result = lenet_jax(disk / "run", SMALL)
    assert result.returncode == 0, result.stderr
    assert_same(disk / "run", small)


@pytest.mark.slow
def test_a_disk_that_is_full_from_the_start(small_disk):
    disk = small_disk("size=64k")
    (disk / "full").write_bytes(bytes(64 * 1024 - 4096))
    result = lenet_jax(disk / "run", SMALL)
    assert result.returncode in (1, 2)
    assert "No space left on device" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_a_folder_that_can_only_be_read(small_disk):
    disk = small_disk("ro,size=1m")
    result = lenet_jax(disk / "run", SMALL)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert f"workdir: '{disk}/run/checkpoints' can't be written (Read-only file system)" in result.stderr


def test_members_that_diverge_leave_the_others_alone(tmp_path):
    """Candidates of tuning train in one population: one of them with an absurd weight decay."""
    tables = {}
    for name, values in {"good": "(0.0,0.001)", "bad": "(0.0,0.001,1e30)"}.items():
        tune = [f"--config.tune.weight_decay={values}", "--config.tune_seeds=2", "--config.sweep.loss=('mse',)"]
        result = lenet_jax(tmp_path / name, SMALL, *tune, "--config.epochs=2")
        assert result.returncode == 0, result.stderr
        tables[name] = results.load(tmp_path / name).tuning
    bad = tables["bad"]
    lost = bad[(bad.weight_decay == 1e30) & (bad.epoch == 2)]
    assert not np.isfinite(lost[lost.metric == "loss"].value).any()
    assert (lost[(lost.metric == "error") & (lost.split == "validation")].value == 1).all(), "counted, not dropped"
    others = bad[bad.weight_decay < 1].reset_index(drop=True)
    assert others.equals(tables["good"].reset_index(drop=True)), "bit for bit"


def test_a_worker_that_runs_out_of_memory(crowd, tmp_path):
    """What Linux does then: SIGKILL. The others go on from what was saved, fewer at a time."""
    run = tmp_path / "run"
    running = Running(run, CROWD, "--save_every=0")
    running.wait_for(lambda: saved(run))
    victim = next(child for child in running.children() if "spawn_main" in " ".join(child.cmdline()))
    victim.kill()
    code, output = running.ended()
    assert code == 0, output
    assert "4 networks don't fit in memory together: going on with 2 at a time" in output
    assert_same(run, crowd)


@pytest.mark.slow
def test_a_population_that_does_not_fit_is_trained_in_chunks(tmp_path):
    """1,500 networks of 1 MB each in 3 GiB of address space, of which the program itself takes a good part."""
    few = ["--config.train_size=20", "--config.batch_size=20", "--config.epochs=1", "--config.validation_size=0"]
    limit = 3 * 2**30
    result = lenet_jax(
        tmp_path / "run",
        SMALL,
        *few,
        "--config.seeds=1500",
        "--config.store_predictions=False",
        "--config.sweep.loss=('mse',)",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / "run").glob("checkpoints/*/tested-*"))) > 1
    assert results.load(tmp_path / "run").summary["arms"][0]["seeds"] == 1500
