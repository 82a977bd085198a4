"""Faults that a run survives: every fault is a real one, in a process of its own."""

import asyncio
import contextlib
import functools
import gc
import json
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import few_digits
import launch
import numpy as np
import psutil
import pytest
from tensorboardX.proto import event_pb2

from lenet_jax.errors import InputError
from lenet_jax.run import checkpoints, locks, signals, states
from lenet_jax.run import folder as run_folder

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
TABLES = (run_folder.METRICS, run_folder.PREDICTIONS, run_folder.TUNING)
SMALL = [
    f"--config={EXPERIMENTS}/quickstart.py",
    f"--config.dataset={few_digits.DATASET}",
    "--config.sweep.activation=('tanh',)",
    "--config.sweep.loss=('mse',)",
    "--config.sweep.momentum=(0.8,0.9)",
    "--config.train_size=400",
    "--config.validation_size=200",
    "--config.seeds=2",
    "--config.epochs=6",
]
"""Two arms with one program, trained in one process."""

SECOND = "loss=mse,activation=tanh,momentum=0.9"
ONE_ARM = [*SMALL, "--config.sweep.momentum=(0.9,)"]

TUNED = [*SMALL, "--config.tune.learning_rate=(0.003,0.01)", "--config.tune_seeds=1", "--config.tune_widenings=1"]
WHOLE = ["--config.dataset=mnist10k", "--config.train_size=4000", "--config.validation_size=0"]
CROWD = [*SMALL, *WHOLE, "--config.seeds=4", "--config.epochs=20"]
"""Large enough for worker processes."""

PAIR = [*ONE_ARM, "--config.seeds=4"]
"""Too small for worker processes, but see `first`."""


HARD = [*ONE_ARM, "--config.seeds=4", "--config.epochs=150"]
"""Likewise, and long enough to be killed many times."""


def command(workdir, arguments, *more):
    return ["run", *arguments, f"--workdir={workdir}", *more]


def first(arguments):
    """Python code that is executed before the program."""
    # Forces worker processes: a run large enough for them trains for half a minute.
    return "from lenet_jax.run import processes; processes.WORTH_WORKERS = 0" if arguments in (PAIR, HARD) else ""


def lenet_jax(workdir, arguments, *more, limit="", env=None):
    """Runs the program to its end, optionally under one of the shell's limits."""
    shell = ["sh", "-c", f'ulimit {limit} && exec "$@"', "sh"] if limit else []
    given = command(workdir, arguments, *more)
    if limit or env or first(arguments):
        code = f"{first(arguments)}; from lenet_jax import cli; cli.main()"
        program = [sys.executable, "-c", code] if first(arguments) else [launch.SCRIPT]
        return subprocess.run([*shell, *program, *given], capture_output=True, text=True, timeout=500, env=env)
    return launch.run(given, Path.cwd(), timeout=500)


class Running:
    """A run in the background, whose output goes to a file, because nothing reads a pipe meanwhile."""

    def __init__(self, workdir, arguments, *more, folder=None, start_new_session=False, env=None):
        self.output = (folder or workdir.parent) / f"{workdir.name}-{time.monotonic_ns()}.txt"
        self.output.touch()
        self.process = launch.start(
            command(workdir, arguments, *more),
            Path.cwd(),
            self.output,
            session=start_new_session,
            real=env is not None,  # it changes how Python starts
            environment=env,
            before=first(arguments),
        )

    def wait_for(self, condition):
        """Waits until a condition holds; the run must not end before."""
        deadline = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < deadline, self.output.read_text()
            assert self.process.poll() is None, self.output.read_text()
            time.sleep(0.02)

    def ended(self):
        """Waits for its end; returns exit code and output."""
        code = self.process.wait(300)
        return code, self.output.read_text()

    def children(self):
        """All processes started by the run."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def worker(self):
        """One of the worker processes."""
        return next(child for child in self.children() if "spawn_main" in " ".join(child.cmdline()))


def exists(folder, pattern):
    return any(folder.glob(pattern))


def saved(workdir):
    """Folders of saved states, from the oldest to the newest."""
    found = [path for path in workdir.glob("checkpoints/*/*/states/*") if path.name.isdigit()]
    return sorted(found, key=lambda path: (path.parent.stat().st_mtime, int(path.name)))


def files(workdir):
    """Files and folders of a run, without random parts and times in their names."""
    names = (str(path.relative_to(workdir)) for path in workdir.rglob("*") if path.name != "lock")
    return {re.sub(r"/d/[0-9a-f]{32}|tfevents\.\d+", "", name) for name in names}


def curves(folder):
    """Tags and steps of all events in an event file."""
    (file,) = folder.iterdir()
    content, found = file.read_bytes(), []
    while content:  # length, checksum, event, checksum
        length = int.from_bytes(content[:8], "little")
        event = event_pb2.Event.FromString(content[12 : 12 + length])
        found += [(value.tag, event.step) for value in event.summary.value]
        content = content[16 + length :]
    return sorted(found)


def assert_same(workdir, reference):
    """Results and files are the same; nothing is half written, no curve is there twice."""
    assert_tables(workdir, reference)
    assert files(workdir) == files(reference)
    for arm in (reference / "tensorboard").iterdir():
        assert curves(workdir / "tensorboard" / arm.name) == curves(arm)


def assert_tables(workdir, reference):
    """All tables are the same byte for byte, and so is the summary, except for times."""
    for name in TABLES:
        assert (workdir / name).exists() == (reference / name).exists()
        if (reference / name).exists():
            assert (workdir / name).read_bytes() == (reference / name).read_bytes(), name
    rows = []
    for folder in (workdir, reference):
        summary = json.loads((folder / run_folder.SUMMARY).read_text())
        times = ("seconds", "samples_per_second", "predicted_memory")
        rows.append([{key: value for key, value in arm.items() if key not in times} for arm in summary["arms"]])
    assert rows[0] == rows[1]


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
def pair(tmp_path_factory):
    return reference(tmp_path_factory, PAIR)


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    return reference(tmp_path_factory, CROWD)


def running_in(group):
    """Running processes of a session."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            if os.getsid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def assert_gone(session):
    """All processes of a session end within seconds."""
    deadline = time.monotonic() + 20
    while running_in(session):
        assert time.monotonic() < deadline, [process.cmdline() for process in running_in(session)]
        time.sleep(0.1)


def assert_killed(running, when=""):
    """Kills a run, which must not have ended before; checks that its worker processes end too."""
    running.process.kill()
    code, output = running.ended()
    assert code == -signal.SIGKILL, f"{when} {code} {output}"
    assert "Traceback" not in output
    assert_gone(running.process.pid)


def test_kill(small, tmp_path):
    """Kills a run in the middle of each arm; `make test-slow` kills at random moments."""
    run = tmp_path / "run"
    for arms in (0, 1):
        running = Running(run, SMALL, "--save-every=0", start_new_session=True)
        running.wait_for(
            lambda arms=arms: len(list(run.glob("checkpoints/*/arm.json"))) == arms and states_of_unfinished(run)
        )
        assert_killed(running)
    result = lenet_jax(run, SMALL, "--save-every=0")
    assert result.returncode == 0, result.stderr
    assert_same(run, small)
    assert len(json.loads((run / run_folder.PROVENANCE).read_text())["later_attempts"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("name", "arguments", "longest"), [("tuned", TUNED, 3.5), ("crowd", CROWD, 4.5)])
def test_twenty_kills(name, arguments, longest, request, tmp_path):
    """Kills at random moments: in one process, with tuning, and with worker processes."""
    run, whole = tmp_path / "run", request.getfixturevalue(name)
    rng = random.Random(0)
    for number in range(20):
        running = Running(run, arguments, "--save-every=0", start_new_session=True)
        # Short enough that twenty attempts don't finish the run: half of each is spent on starting and compiling.
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.process.wait(rng.uniform(2, longest))
        assert_killed(running, f"{number} kills")
    result = lenet_jax(run, arguments, "--save-every=0")
    assert result.returncode == 0, result.stderr
    assert_same(run, whole)


ENDS = [(number, whom) for number in ("KILL", "TERM", "HUP", "PIPE") for whom in ("parent", "worker", "all")]


@pytest.mark.slow
def test_forty_ends(tmp_path):
    """Any signal to any process at any moment, from the first to the last file: no orphan, and the same results."""
    whole = tmp_path / "whole"
    assert lenet_jax(whole, HARD).returncode == 0
    run, rng = tmp_path / "run", random.Random(1)
    for number in range(40):
        name, whom = ENDS[number % len(ENDS)]
        running = Running(run, HARD, "--save-every=0", start_new_session=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            if number < 34:
                running.process.wait(rng.uniform(0.3, 7))
            else:  # while the last files are written
                while not list(run.glob("checkpoints/*/arm.json")) and running.process.poll() is None:
                    time.sleep(0.001)
                running.process.wait(rng.uniform(0, 0.2))
        processes = running_in(running.process.pid)
        workers = [process for process in processes if process.pid != running.process.pid]
        chosen = {"parent": processes[:1], "worker": workers[:1] or processes, "all": processes}[whom]
        for process in chosen:
            with contextlib.suppress(psutil.Error):
                process.send_signal(getattr(signal, f"SIG{name}"))
        # Workers ignore what their parent handles, and Python ignores SIGPIPE.
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.process.wait(3)
        running.process.kill()
        code, output = running.ended()
        before_python_runs = (-signal.SIGTERM, -signal.SIGHUP, -signal.SIGPIPE)
        assert code in (0, 1, -9, 129, 143) or (code in before_python_runs and not output), (name, whom, output)
        assert "Traceback" not in output, (name, whom, output)
        assert_gone(running.process.pid)
    result = lenet_jax(run, HARD, "--save-every=0")
    assert result.returncode == 0, result.stderr
    assert_tables(run, whole)
    assert not [path for path in run.rglob(".*") if path.is_file()], "nothing half written"
    kept = {path.name for path in (run / "checkpoints").iterdir()} | {path.name for path in run.glob("checkpoints/*/*")}
    assert not {"attempts", "turn", "arm.json"} & kept


WATCH = """
import os, re, sys

if "run" in sys.orig_argv[:4]:  # the program itself, not its workers
    def kind(event, path):
        path = os.path.relpath(path, os.environ["FAULT_RUN"])
        path = re.sub(r"/d/[0-9a-f]{32}$", "/d/HASH", path)
        path = re.sub(r"\\.[0-9a-f]{8}$|-[0-9a-f]{8}\\.json", "", path)
        return f"{event} {re.sub('[0-9]+', '', path)}"

    def hook(event, arguments):
        if event not in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir") or not arguments[0]:
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        path = os.fsdecode(arguments[0]) if not isinstance(arguments[0], int) else ""
        if not os.path.isabs(path) and event in ("os.remove", "os.rmdir") and arguments[1] > 0:
            path = os.path.join(os.readlink(f"/proc/self/fd/{arguments[1]}"), path)
        if path.startswith(os.environ["FAULT_RUN"]):
            happened(kind(event, path))

    sys.addaudithook(hook)
"""
"""A sitecustomize.py: calls `happened` before every change in the run folder FAULT_RUN, except those that threads of
Parquet and orbax make."""

KILL = """
    def happened(kind):
        known = os.open(os.environ["FAULT_KNOWN"], os.O_RDWR | os.O_CREAT | os.O_APPEND)
        if f"{kind}\\n" not in os.read(known, 2**20).decode():
            os.write(known, f"{kind}\\n".encode())
            os.kill(os.getpid(), 9)
        os.close(known)
"""
"""Kills the program before the first change of each kind."""


def watched(tmp_path, run, action):
    """The environment of a run that executes an action before its changes of files."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(WATCH + action)
    return os.environ | {"PYTHONPATH": str(site), "FAULT_RUN": str(run), "FAULT_KNOWN": str(tmp_path / "known")}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_kill_before_every_kind_of_change(tuned, tmp_path):
    """One run is killed before the first time that it creates, renames or removes each kind of file."""
    run = tmp_path / "run"
    environment = watched(tmp_path, run, KILL)
    for kills in range(1000):
        result = lenet_jax(run, TUNED, "--save-every=0", env=environment)
        assert "Traceback" not in result.stderr
        assert "corrupt" not in result.stderr
        if not result.returncode:
            break
        assert result.returncode == -signal.SIGKILL, result.stderr
        known = (tmp_path / "known").read_text().splitlines()
        assert len(known) > kills  # threads get to another change before all of them are dead
        if (run / run_folder.SUMMARY).exists():
            assert_tables(run, tuned)
    assert len(known) > 50
    for kind in ("os.rename .config.json", "os.rename .metrics.parquet", "os.rmdir checkpoints/attempts"):
        assert kind in known
    assert_same(run, tuned)


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """A run that was killed in its second arm, after two saved states."""
    folder = tmp_path_factory.mktemp("faults") / "cut"
    run = Running(folder, [*SMALL], "--save-every=0")
    run.wait_for(lambda: list(folder.glob("checkpoints/*/arm.json")) and len(states_of_unfinished(folder)) == 2)
    run.process.kill()
    run.ended()
    assert len(states_of_unfinished(folder)) == 2
    return folder


def states_of_unfinished(folder):
    """Saved states of the unfinished arm, from the newest to the oldest."""
    found = [path for path in saved(folder) if not (path.parents[2] / "arm.json").exists()]
    return sorted((path for path in found if (path / "commit_success.txt").exists()), key=lambda path: -int(path.name))


def largest(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def bomb(path):
    """Replaces a file by a pickle that would create a file if it were executed."""

    class Mark:
        def __reduce__(self):
            return os.system, (f"touch {path.parent}/unpickled",)

    path.write_bytes(pickle.dumps(Mark()))


DAMAGES = {
    "a flipped byte": lambda state: flip(largest(state)),
    "a truncated file": lambda state: os.truncate(largest(state), 1000),
    "an emptied folder": lambda state: (shutil.rmtree(state), state.mkdir()),
    "metadata gone": lambda state: (state / "state" / "_METADATA").unlink(),
    "no JSON": lambda state: (state / "about" / "metadata").write_text("{"),
    "a pickle": lambda state: bomb(largest(state)),
}


def cut_off(path):
    os.truncate(path, path.stat().st_size - 5)


def another_digit(path):
    """Changes a digit; the file remains valid JSON."""
    text, count = re.subn(
        r"(?<=\d)(\d)(,?\n)", lambda match: f"{(int(match[1]) + 1) % 10}{match[2]}", path.read_text(), count=1
    )
    assert count == 1
    path.write_text(text)


DAMAGED_TABLES = {
    ("arm.json", "cut off"): cut_off,
    ("arm.json", "another digit"): another_digit,
    ("trained.json", "cut off"): cut_off,
    ("trained.json", "another digit"): another_digit,
    ("metrics.parquet", "a flipped byte"): flip,
    ("predictions.parquet", "a flipped byte"): flip,
}


def copied(cut, tmp_path):
    subprocess.run(["cp", "-a", cut, tmp_path / "run"], check=True)
    return tmp_path / "run"


@pytest.mark.parametrize(
    "damage",
    [name if name == "a flipped byte" else pytest.param(name, marks=pytest.mark.slow) for name in DAMAGES],
)
def test_a_corrupt_checkpoint_is_reported_and_the_one_before_is_used(damage, cut, small, tmp_path):
    run = copied(cut, tmp_path)
    newest = states_of_unfinished(run)[0]
    DAMAGES[damage](newest)
    result = lenet_jax(run, SMALL)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    reported = [line for line in result.stderr.splitlines() if "is corrupt" in line]
    assert len(reported) == 1, result.stderr
    assert str(newest) in reported[0]
    assert "resuming from the state before" in reported[0]
    assert_same(run, small)
    assert not list(run.rglob("unpickled"))


def test_damage_to_any_file_of_a_checkpoint_is_noticed(cut, tmp_path, caplog):
    """Only the last state or the one before is ever read, nothing is executed, and nobody sees a traceback."""
    newest, before = states_of_unfinished(cut)
    kept, steps = newest.parents[1], [int(newest.name), int(before.name)]
    folder = tmp_path / kept.name
    found = []
    for path in [None, *(path.relative_to(kept) for path in newest.rglob("*") if path.is_file())]:
        for damage in (flip, bomb) if path else [None]:
            shutil.copytree(kept, folder)
            if path:
                damage(folder / path)
            saved = checkpoints.Chunk(folder, checkpoints.ArmStore(folder.parent)).latest()
            found.append((saved.step, saved.digest("")))
            shutil.rmtree(folder)
    gc.collect()  # asyncio reports errors that nobody asked for when Python finds them as garbage
    assert not [record for record in caplog.records if record.exc_info]
    assert {step for step, _ in found} == set(steps)
    assert len(set(found)) == 2
    assert found[0][0] == steps[0]
    assert sum(step == steps[1] for step, _ in found) > 10
    assert not list(tmp_path.rglob("unpickled"))


def test_errors_of_the_other_arrays_of_a_corrupt_state_are_not_reported(caplog):
    """The first one is raised. Whether asyncio has others to report depends on time."""
    states.silence_threads()
    loop = asyncio.new_event_loop()
    for text in ("DATA_LOSS: Error decoding manifest [tensorstore_spec='{}']", "of the user"):
        loop.create_future().set_exception(ValueError(text))
    loop.close()
    gc.collect()
    assert [str(record.exc_info[1]) for record in caplog.records] == ["of the user"]


@pytest.mark.slow
def test_if_both_states_are_corrupt_training_starts_over(cut, small, tmp_path):
    run = copied(cut, tmp_path)
    for state in states_of_unfinished(run):
        flip(largest(state))
    result = lenet_jax(run, SMALL)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("is corrupt") == 2
    assert_same(run, small)


@pytest.mark.parametrize(
    ("name", "how"),
    DAMAGED_TABLES,
)
@pytest.mark.slow
def test_a_corrupt_table_of_a_finished_arm_is_rebuilt(name, how, cut, small, tmp_path):
    run = copied(cut, tmp_path)
    (path,) = [
        path
        for path in run.glob(f"checkpoints/*/**/{name}")
        if (path.parent / "arm.json").exists() or (path.parents[1] / "arm.json").exists()
    ]
    DAMAGED_TABLES[name, how](path)
    result = lenet_jax(run, SMALL)
    assert result.returncode == 0, result.stderr
    assert str(path) in result.stderr
    assert_same(run, small)


@pytest.mark.parametrize(
    ("number", "arguments", "stage"),
    [
        (signal.SIGINT, "small", "tested"),
        pytest.param(signal.SIGINT, "tuned", "tried", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, "tuned", "tested", marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_and_the_same_command_resumes(number, arguments, stage, request, tmp_path):
    """The signal goes to all processes of the session, as a terminal and Slurm send it."""
    whole = request.getfixturevalue(arguments)
    run, arguments = tmp_path / "run", {"small": SMALL, "tuned": TUNED}[arguments]
    running = Running(run, arguments, "--save-every=0", start_new_session=True)
    running.wait_for(functools.partial(exists, run, f"checkpoints/*/{stage}-*/states/*"))
    os.killpg(running.process.pid, number)
    code, output = running.ended()
    assert code == 128 + number, output
    assert output.strip().endswith("rerun the same command to resume")
    assert "Traceback" not in output
    result = lenet_jax(run, arguments)
    assert result.returncode == 0, result.stderr
    assert_same(run, whole)


LONG = [*ONE_ARM, *WHOLE, "--config.seeds=400"]
"""A segment takes about 15 seconds: worker processes train on 1.6 million samples per epoch."""


@pytest.mark.slow
def test_the_first_signal_finishes_the_segment_and_the_second_ends_at_once(tmp_path):
    running = Running(tmp_path / "run", LONG)
    running.wait_for(lambda: list((tmp_path / "run").glob("tensorboard/*")))
    time.sleep(12)  # the networks are evaluated once before they are trained
    workers = running.children()
    assert workers
    running.process.send_signal(signal.SIGINT)
    running.wait_for(lambda: "and saving; a second signal stops at once" in running.output.read_text())
    time.sleep(signals.REPEAT_S)
    running.process.send_signal(signal.SIGINT)
    started = time.monotonic()
    code, output = running.ended()
    assert time.monotonic() - started < 2
    assert code == 130
    assert output.strip().endswith("stopped at once")
    assert not psutil.wait_procs(workers, timeout=20)[1]


def test_ctrl_c_while_workers_start(tmp_path):
    """A terminal also sends it to workers, which can't ignore it before Python runs."""
    running = Running(tmp_path / "run", PAIR, start_new_session=True)
    running.wait_for(lambda: len(running.children()) > 1)
    time.sleep(0.5)
    os.killpg(running.process.pid, signal.SIGINT)
    started = time.monotonic()
    code, output = running.ended()
    assert time.monotonic() - started < 5
    assert code == 130
    assert output == "lenet-jax: stopped; rerun the same command to resume\n"
    assert_gone(running.process.pid)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_any_moment_of_the_start_ends_it_with_one_line(number, tmp_path):
    for wait in np.arange(0.5, 7, 0.5):
        running = Running(tmp_path / "run", CROWD, "--config.epochs=200", start_new_session=True)
        time.sleep(wait)
        os.killpg(running.process.pid, number)
        started = time.monotonic()
        code, output = running.ended()
        assert time.monotonic() - started < 8
        assert code == 128 + number, (wait, output)
        assert "Traceback" not in output
        assert output.strip().endswith("rerun the same command to resume"), (wait, output)
        assert_gone(running.process.pid)


def test_a_signal_that_a_launcher_repeats_is_one_signal(monkeypatch):
    """Slurm's time limit sends SIGTERM twice within milliseconds, and the second one ended the run without saving."""
    ended = []
    monkeypatch.setattr(signals, "exit_now", lambda code, message: ended.append((code, message)))
    monkeypatch.setattr(signals, "REPEAT_S", 0.2)
    with signals.Stop() as stop:
        stop.unsaved = True
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.02)
        assert (stop.signal, ended) == (signal.SIGTERM, [])
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
    assert ended == [(143, "stopped at once")]


@pytest.mark.slow
def test_signals_work_when_nothing_reads_the_output(tmp_path):
    read, write = os.pipe()
    arguments = command(tmp_path / "run", SMALL, "--config.epochs=2000", "--save-every=0")
    process = subprocess.Popen([launch.SCRIPT, *arguments], stderr=write)
    os.close(write)
    deadline = time.monotonic() + 120
    while not saved(tmp_path / "run"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.close(read)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143


def test_a_signal_before_anything_is_trained_ends_at_once(tmp_path):
    running = Running(tmp_path / "run", SMALL)
    running.wait_for(lambda: (tmp_path / "run" / run_folder.CONFIG).exists())
    running.process.terminate()
    started = time.monotonic()
    code, output = running.ended()
    assert time.monotonic() - started < 15
    assert code == 143, output
    assert output.strip().endswith("rerun the same command to resume")


@pytest.mark.slow
def test_a_folder_has_one_owner(tmp_path):
    run = tmp_path / "run"
    first = Running(run, SMALL, "--save-every=1000", "--config.epochs=2000")
    first.wait_for(functools.partial(exists, run, "tensorboard/*/*"))
    config = (run / run_folder.CONFIG).read_bytes()
    others = [
        (Running(run, SMALL, *more), message)
        for more, message in (
            (["--config.epochs=2000"], f"workdir: {str(run)!r} is in use by process {first.process.pid} on"),
            (["--config.epochs=2000", "--fresh"], "is in use by process"),
            ([], "another config (it differs in epochs)"),
        )
    ]
    for other, message in others:
        code, output = other.ended()
        assert code == 2, output
        assert len(output.splitlines()) == 1
        assert message in output
    assert (run / run_folder.CONFIG).read_bytes() == config
    assert not saved(run)
    first.process.terminate()
    code, output = first.ended()
    assert code == 143, "the owner was not disturbed"
    (state,) = saved(run)
    first, last = output.strip().splitlines()
    assert (
        first
        == "lenet-jax: SIGTERM: finishing the current segment of the epoch and saving; a second signal stops at once"
    )
    assert re.search(
        f"stopped in epoch .* of 2000 of .*; saved in {str(state.parents[1])!r}; rerun the same command to resume", last
    )


@pytest.mark.slow
def test_a_killed_owner_owns_nothing(cut, tmp_path):
    run = copied(cut, tmp_path)
    first = Running(run, SMALL, "--save-every=0")
    first.wait_for(lambda: f"process {first.process.pid} " in (run / "checkpoints" / "lock").read_text())
    first.process.kill()
    first.ended()
    moved = lenet_jax(run, SMALL, "--fresh", "--config.epochs=1")
    assert moved.returncode == 0, moved.stderr


def test_a_folder_that_cannot_be_moved_aside_is_an_error(monkeypatch, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "run" / "checkpoints")
    for folder in (Path(".."), tmp_path / "run"):
        with pytest.raises(InputError, match="contains the current folder"):
            locks.move_aside(folder)
    assert locks.move_aside(tmp_path / "other") is None
    monkeypatch.chdir(tmp_path)
    assert locks.move_aside(Path("run")).is_dir(), "as of a run that was killed at its start"
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_fresh_moves_the_old_run_aside(small, tmp_path):
    run = copied(small, tmp_path)
    before = {path.relative_to(run): path.read_bytes() for path in run.rglob("*") if path.is_file()}
    result = lenet_jax(run, ONE_ARM, "--fresh", "--config.epochs=1")
    assert result.returncode == 0, result.stderr
    (aside,) = tmp_path.glob("run-20*")
    assert f"{run} was moved to {aside}" in result.stderr
    lock = Path("checkpoints/lock")
    for path, content in before.items():
        assert path == lock or (aside / path).read_bytes() == content
    assert run_folder.load(run).config["epochs"] == 1
    assert run_folder.load(aside).config["epochs"] == 6
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("")
    refused = lenet_jax(tmp_path / "thesis", SMALL, "--fresh")
    assert refused.returncode == 2
    assert "holds no run that --fresh could move aside" in refused.stderr


@pytest.mark.slow
def test_arms_as_separate_jobs(small, tmp_path):
    """Two jobs run in one folder; the last one writes the same tables as a single process."""
    run = tmp_path / "run"
    jobs = [Running(run, SMALL, "--only-arm=1"), Running(run, SMALL, f"--only-arm={SECOND}")]
    outputs = []
    for job in jobs:
        code, output = job.ended()
        assert code == 0, output
        outputs.append(output)
    assert any("run folder:" in output for output in outputs)
    assert_same(run, small)
    with locks.exclusive(run / run_folder.CHECKPOINTS, repr(str(run)), shared=True):  # as a job does
        whole = lenet_jax(run, SMALL, "--fresh")
    assert whole.returncode == 2
    assert f"is in use by process {os.getpid()}" in whole.stderr
    refused = lenet_jax(tmp_path / "other", SMALL, "--only-arm=3")
    assert refused.returncode == 2
    assert (
        "only-arm: '3' is no arm; allowed are 1 to 2, and 'loss=mse,activation=tanh,momentum=0.8', '" in refused.stderr
    )
    assert not (tmp_path / "other").exists()


STOP = """
    def happened(kind):
        if kind == "os.rename .metrics.parquet":
            os.kill(os.getpid(), 19)
"""
"""Suspends the program, as Ctrl-Z does, when it writes the run's tables."""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_two_jobs_that_finish_together(small, tmp_path):
    """One waits while the other writes, and then finds the run finished."""
    run = tmp_path / "run"
    first = lenet_jax(run, SMALL, "--only-arm=1")
    assert first.returncode == 0
    assert f"1 of 2 arms are finished; {SECOND!r} is not" in first.stderr
    second = Running(run, SMALL, "--only-arm=2", env=watched(tmp_path, run, STOP))
    second.wait_for(lambda: psutil.Process(second.process.pid).status() == psutil.STATUS_STOPPED)
    again = Running(run, SMALL, "--only-arm=1")
    time.sleep(10)
    assert again.process.poll() is None, "it waits"
    second.process.send_signal(signal.SIGCONT)
    for job in (second, again):
        code, output = job.ended()
        assert code == 0, output
        assert "run folder:" in output
    assert_same(run, small)


@pytest.mark.slow
def test_an_arm_has_one_job(cut, tmp_path):
    run = copied(cut, tmp_path)
    job = Running(run, SMALL, "--only-arm=2", "--save-every=0")
    arm = run / "checkpoints" / SECOND
    job.wait_for((arm / "lock").exists)
    refused = lenet_jax(run, SMALL, "--only-arm=2")
    job.process.kill()
    job.ended()
    assert refused.returncode == 2, refused.stderr
    assert f"arm {SECOND!r} is in use by process" in refused.stderr


@pytest.fixture
def small_disk(tmp_path):
    """A function (mount options) -> path of a new file system."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(options):
        if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", disk], capture_output=True).returncode:
            pytest.skip("only root can mount a file system")
        return disk

    yield mount
    subprocess.run(["umount", "-l", disk], capture_output=True)


@pytest.mark.slow
def test_a_full_disk(small, small_disk):
    disk = small_disk("size=2500k")
    result = lenet_jax(disk / "run", SMALL, "--save-every=0")
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert str(disk) in last
    assert last.endswith(
        "can't be written (No space left on device); everything saved before is kept; rerun the same command to resume"
    )
    before = saved(disk / "run")
    assert before
    subprocess.run(["mount", "-o", "remount,size=50m", disk], check=True)
    result = lenet_jax(disk / "run", SMALL)
    assert result.returncode == 0, result.stderr
    assert_same(disk / "run", small)


@pytest.mark.slow
def test_a_file_that_cannot_be_written_whole(small, tmp_path):
    """A limit of the shell, which the array library hits in the middle of a checkpoint."""
    run = tmp_path / "run"
    refused = lenet_jax(run, SMALL, limit="-f 600")  # of 512 bytes
    assert refused.returncode == 1
    (line,) = refused.stderr.splitlines()
    assert line.endswith(
        "can't be written (File too large); everything saved before is kept; rerun the same command to resume"
    )
    result = lenet_jax(run, SMALL)
    assert result.returncode == 0, result.stderr
    assert_same(run, small)


@pytest.mark.slow
def test_a_disk_that_is_full_at_each_of_the_files(small, small_disk):
    """Each file of a run fails in turn: each attempt may create a few files more."""
    disk = small_disk("size=50m,nr_inodes=2")
    for files_allowed in [*range(2, 15), *range(15, 160, 8)]:
        subprocess.run(["mount", "-o", f"remount,nr_inodes={files_allowed}", disk], check=True)
        result = lenet_jax(disk / "run", SMALL, "--save-every=0")
        if not result.returncode:
            break
        lines = result.stderr.splitlines()
        assert result.returncode in (1, 2), result.stderr
        assert "can't be written (No space left on device)" in lines[-1], (files_allowed, result.stderr)
        assert all(line.startswith("arm ") for line in lines[:-1]), (files_allowed, result.stderr)
    subprocess.run(["mount", "-o", "remount,nr_inodes=10000", disk], check=True)
    result = lenet_jax(disk / "run", SMALL)
    assert result.returncode == 0, result.stderr
    assert_same(disk / "run", small)


@pytest.mark.slow
def test_a_disk_that_fills_up_while_curves_are_written(small_disk):
    disk = small_disk("size=20m")
    running = Running(disk / "run", SMALL, "--config.epochs=200", "--save-every=1000", folder=disk.parent)
    running.wait_for(lambda: list((disk / "run").glob("tensorboard/*/*")))
    with contextlib.suppress(OSError), (disk / "full").open("wb", buffering=0) as full:
        while True:
            full.write(bytes(4096))
    code, output = running.ended()
    assert code == 1, output
    assert "Traceback" not in output
    assert "tensorboard" in output
    assert "can't be written (No space left on device)" in output.splitlines()[-1]


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


def test_a_finished_run_that_can_only_be_read_is_shown(small, small_disk):
    disk = small_disk("size=20m")
    copied(small, disk)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    result = lenet_jax(disk / "run", SMALL)
    assert result.returncode == 0, result.stderr
    assert "already finished" in result.stderr


@pytest.mark.slow
def test_members_that_diverge_do_not_affect_the_others(tmp_path):
    """Tuning candidates train in one population, one of them with an absurd weight decay."""
    runs = {}
    for name, values in {"good": "(0.0,0.001)", "bad": "(0.0,0.001,1e30)"}.items():
        tune = [f"--config.tune.weight_decay={values}", "--config.tune_seeds=2", "--config.epochs=2"]
        runs[name] = Running(tmp_path / name, ONE_ARM, *tune)
    for run in runs.values():
        code, output = run.ended()
        assert code == 0, output
    good, bad = (run_folder.load(tmp_path / name).tuning for name in runs)
    lost = bad[(bad.weight_decay == 1e30) & (bad.epoch == 2)]
    assert not np.isfinite(lost[lost.metric == "loss"].value).any()
    assert (lost[(lost.metric == "error") & (lost.split == "validation")].value == 1).all(), "counted, not dropped"
    others = bad[bad.weight_decay < 1].reset_index(drop=True)
    assert others.equals(good.reset_index(drop=True)), "bit for bit"


@pytest.mark.slow
def test_a_worker_that_runs_out_of_memory(pair, tmp_path):
    """Linux sends SIGKILL then. The run resumes from the last checkpoint, with fewer members at a time."""
    run = tmp_path / "run"
    running = Running(run, PAIR, "--save-every=0")
    running.wait_for(functools.partial(exists, run, "checkpoints/*/*/states/*"))
    running.worker().kill()
    code, output = running.ended()
    assert code == 0, output
    assert "4 networks don't fit in memory together: continuing with 2 at a time" in output
    assert_tables(run, pair)


@pytest.mark.slow
def test_workers_that_always_run_out_of_memory(tmp_path):
    """They are killed as soon as they train, until a single member is left."""
    run = tmp_path / "run"
    running = Running(run, CROWD, "--save-every=0", "--devices=1", start_new_session=True)
    last = [0]

    def step():
        return max((int(path.name) for path in run.glob("checkpoints/*/*/states/*") if path.name.isdigit()), default=0)

    for _ in (4, 2, 1):
        running.wait_for(lambda: step() > last[-1])
        worker = running.worker()
        worker.suspend()
        time.sleep(0.5)  # for a checkpoint that is being written
        last.append(step())
        worker.kill()
    code, output = running.ended()
    assert code == 1, output
    lines = output.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == [f"{n} networks don't fit in memory together" for n in (4, 2)]
    assert "memory ran out with 1 networks of" in lines[2]
    assert lines[2].endswith("rerun the same command to resume")
    assert len(lines) == 3
    assert_gone(running.process.pid)


@pytest.mark.slow
def test_a_population_that_does_not_fit_is_trained_in_chunks(tmp_path):
    """1,500 networks of 1 MB each in 3 GiB of address space, which the program itself uses too."""
    few = ["--config.train_size=20", "--config.batch_size=20", "--config.epochs=1", "--config.validation_size=0"]
    result = lenet_jax(
        tmp_path / "run",
        ONE_ARM,
        *few,
        "--config.seeds=1500",
        "--config.store_predictions=False",
        limit=f"-v {3 * 2**20}",
    )
    assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / "run").glob("checkpoints/*/tested-*"))) > 1
    assert run_folder.load(tmp_path / "run").summary["arms"][0]["seeds"] == 1500
