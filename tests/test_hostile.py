"""Tests of run folders that strangers made: every command answers in one line, at once, and touches nothing else."""

import hashlib
import json
import os
import shutil
import socket
import time
from pathlib import Path

import few_digits
import numpy as np
import pandas as pd
import programs
import pytest
import tensorstore
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import lenet_jax
from lenet_jax.errors import InputError
from lenet_jax.run import files
from lenet_jax.run import folder as run_folder

MAX_MEMORY, MAX_SECONDS = 2**30, 20
"""Of a command, whatever the run folder holds."""

CONFIG = f"""
from lenet_jax.experiments import base

def get_config():
    config = base.get_config()
    config.dataset = {few_digits.DATASET!r}
    config.train_size, config.validation_size, config.epochs, config.seeds = 100, 50, 1, 2
    config.sweep.activation = ("tanh", "relu")
    config.tune.learning_rate, config.tune_seeds = (0.05, 0.1), 1
    return config
"""

JSON_FILES = (run_folder.CONFIG, run_folder.PROVENANCE, run_folder.SUMMARY)
TABLES = (run_folder.METRICS, run_folder.PREDICTIONS, run_folder.TUNING)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder with a finished run in ``run``, its experiment, a digit to classify, and somebody's files."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "experiment.py").write_text(CONFIG)
    few_digits.save_digit(folder / "digit.png")
    (folder / "victim").mkdir()
    (folder / "victim" / "thesis.json").write_text('{"chapters": 5}')
    done = programs.run(["run", "--config=experiment.py", "--workdir=run"], folder)
    assert done.returncode == 0, done.stderr
    return folder


def serve(folder, calls, answers):
    """What a worker does: commands, one after the other, in the same process, which has compiled everything before."""
    from lenet_jax import cli, errors

    os.chdir(folder)
    output = os.open("output", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(output, number)
    while arguments := calls.recv():
        Path("/proc/self/clear_refs").write_text("5")  # the peak of memory counts from here on
        os.truncate(output, 0)
        started, code = time.monotonic(), 0
        try:
            if arguments[0] == "load_run":
                run = lenet_jax.load_run(arguments[1])
                run.params()
            else:
                cli.main(arguments)
        except SystemExit as error:
            code = error.code
        except errors.InputError as error:
            code = 2
            print(f"lenet-jax: {error}", flush=True)
        except BaseException as error:
            code = f"{type(error).__name__}: {error}"
        peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        answers.send((code, 1024 * int(peak.split()[1]), time.monotonic() - started))


class Worker:
    """A process that runs commands in a folder; another one takes over when it hangs or is aborted."""

    def __init__(self, folder):
        self.folder, self.process = folder, None

    def start(self):
        (call, calls), (answer, answers) = (programs.SERVER.Pipe() for _ in range(2))
        self.process = programs.SERVER.Process(target=serve, args=(str(self.folder), calls, answers), daemon=True)
        self.process.start()
        self.call, self.answer = call, answer
        calls.close(), answers.close()

    def run(self, arguments, limit=MAX_SECONDS):
        """Exit code, output, bytes of memory at the peak and seconds of a command."""
        if self.process is None or not self.process.is_alive():
            self.start()
            limit += 10  # imports
        self.call.send(arguments)
        try:
            code, memory, seconds = self.answer.recv() if self.answer.poll(limit) else ("hangs", 0, limit)
        except EOFError:
            self.process.join()
            code, memory, seconds = self.process.exitcode, 0, 0
        if code == "hangs":
            self.process.kill()
            self.process.join()
        return code, (self.folder / "output").read_text(errors="replace"), memory, seconds


@pytest.fixture(scope="module")
def worker(good):
    folder = good.with_name(f"{good.name}-case")
    folder.mkdir()
    made = Worker(folder)
    yield made
    if made.process is not None:
        made.process.kill()


def digest_of(folder):
    """A digest of all that is in a folder, but for the run and what commands print."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if name.parts[0] not in ("run", "output"):
            status = path.lstat()
            digest.update(f"{name} {status.st_mode} {status.st_size} {status.st_mtime_ns};".encode())
            digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


def commands():
    from lenet_jax import cli

    found = [["load_run", "run"], ["compare", "run"], ["classify", "run", "digit.png"]]
    found += [["evaluate", "run", f"--dataset={few_digits.DATASET}"]] if "evaluate" in cli.COMMANDS else []
    return [*found, ["run", "--config=experiment.py", "--workdir=run"]]


def restore(good, folder):
    """Makes a folder what the good one is, with the same times."""
    for path in folder.iterdir():
        if path.name == "output":
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    shutil.copytree(good, folder, dirs_exist_ok=True)


def check(good, worker, damage):
    """Damages a copy of the run and gives it to every command; the messages of those that refuse it."""
    restore(good, worker.folder)
    damage(worker.folder / "run")
    before, said = digest_of(worker.folder), []
    for arguments in commands():
        trains = arguments[0] == "run"  # what is missing, with warnings
        code, output, memory, seconds = worker.run(arguments, limit=300 if trains else MAX_SECONDS)
        told = f"{arguments[0]}: {code}, {memory >> 20} MiB, {seconds:.1f} s: {output[-2000:]}"
        assert code in (0, 2), told
        assert memory <= MAX_MEMORY, told
        assert seconds <= MAX_SECONDS or (trains and code == 0), told
        assert "Traceback" not in output, told
        if code == 2:
            lines = output.splitlines()
            assert lines[-1].startswith("lenet-jax: "), told
            assert lines[-1].isprintable(), told
            assert len(lines) == 1 or trains, told
            said.append(lines[-1])
        assert digest_of(worker.folder) == before, told
    return said


# --- Damages: functions of the run folder


def rewrite(name, change):
    """Changes a JSON file; a sealed one gets a new seal, as a forger would make it."""

    def damage(run):
        path = run / name
        content = json.loads(path.read_text())
        change(content)
        if files.SEAL in content:
            content.pop(files.SEAL)
            content[files.SEAL] = files.seal_of(content)
        path.write_text(json.dumps(content))

    return damage


def retable(name, change):
    """Changes a table."""

    def damage(run):
        change(pd.read_parquet(run / name)).to_parquet(run / name, index=False)

    return damage


def replace(path, kind):
    """Puts something else where a file or a folder was."""
    target = path.parent / "victim"
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        here = os.open(path.parent, os.O_RDONLY)
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(f"/proc/self/fd/{here}/{path.name}")  # a path of a socket is short
        os.close(here)
    elif kind == "holes":
        with path.open("wb") as stream:
            stream.truncate(2**33)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "deep":
        path.write_text("[" * 200_000 + "]" * 200_000)
    elif kind == "deep object":
        path.write_text('{"a":' * 3_000 + "1" + "}" * 3_000)
    elif kind != "missing":
        target = {"zeros": "/dev/zero", "loop": path.name, "outside": run_of(path).parent / "victim"}[kind]
        path.symlink_to(target)


def run_of(path):
    """The run folder that a path is in."""
    return path if path.name == "run" else run_of(path.parent)


KINDS = ("pipe", "folder", "socket", "holes", "empty", "deep", "deep object", "missing", "zeros", "loop", "outside")


def place(index):
    """One of a run's files and folders, by number; the files at the top are chosen half of the time."""

    def find(run):
        top = [run / name for name in (*JSON_FILES, *TABLES)]
        below = sorted(path for path in (run / "checkpoints").rglob("*"))
        return (top if index % 2 else [run / "checkpoints", *below])[(index // 2) % len(top if index % 2 else below)]

    return find


def replacing(index, kind):
    def damage(run):
        path = place(index)(run)
        if os.path.lexists(path):
            replace(path, kind)

    return damage


def cut(index, where, what):
    """Overwrites bytes of a file, or ends it there."""

    def damage(run):
        path = place(index)(run)
        if path.is_file() and not path.is_symlink():
            content = bytearray(path.read_bytes())
            at = int(where * len(content))
            content[at : at + len(what) if what else None] = what
            path.write_bytes(content)

    return damage


def fields(content, path=()):
    """The paths of all values in a JSON object."""
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in inner:
        yield (*path, key)
        yield from fields(value, (*path, key))


DELETE, TWICE, RENAME = "<delete>", "<twice>", "<rename>"


def field(name, number, value):
    """Replaces, deletes, doubles or renames one field of a JSON file."""

    def change(content):
        paths = list(fields(content))
        *path, key = paths[number % len(paths)]
        for step in path:
            content = content[step]
        if value == DELETE:
            del content[key]
        elif value == TWICE and isinstance(content, list):
            content.append(content[key])
        elif value == RENAME and isinstance(content, dict):
            content["../x\n"] = content.pop(key)
        else:
            content[key] = value

    def damage(run):
        if (run / name).is_file() and not (run / name).is_symlink():
            rewrite(name, change)(run)

    return damage


def column(name, number, change):
    """Changes a column of a table."""

    def of(table):
        column = table.columns[number % len(table.columns)]
        return COLUMN_CHANGES[change](table, column)

    def damage(run):
        if (run / name).is_file() and not (run / name).is_symlink():
            retable(name, of)(run)

    return damage


COLUMN_CHANGES = {
    "text": lambda table, one: table.assign(**{one: table[one].astype(str)}),
    "escapes": lambda table, one: table.assign(**{one: "\x1b[31m../../x"}),
    "long text": lambda table, one: table.assign(**{one: "x" * 1_000_000}),
    "lists": lambda table, one: table.assign(**{one: [[1, 2]] * len(table)}),
    "times": lambda table, one: table.assign(**{one: pd.Timestamp(0)}),
    "truth": lambda table, one: table.assign(**{one: True}),
    "null": lambda table, one: table.assign(**{one: None}),
    "infinite": lambda table, one: table.assign(**{one: np.inf}),
    "huge": lambda table, one: table.assign(**{one: 2**62}),
    "negative": lambda table, one: table.assign(**{one: -5}),
    "fraction": lambda table, one: table.assign(**{one: 0.5}),
    "without": lambda table, one: table.drop(columns=one),
    "twice": lambda table, one: pd.concat([table, table]),
    "none": lambda table, one: table[:0],
    "half": lambda table, one: table[::2],
    "many": lambda table, one: pd.concat([table[:1]] * 20_000_000),
}

VALUES = st.one_of(
    st.sampled_from(
        [None, True, -1, 0, 5, 2**31, 2**70, 1e308, -0.5, "", "x" * 5000, "../../victim/x", "\x1b[31mred", "a\nb", "[/b]"]
    ),
    st.sampled_from([[], {}, [1, 2], {"a": None}, ["x"], [[]], DELETE, DELETE, TWICE, RENAME, "idx:victim", "tfds:x"]),
    st.integers(),
    st.text(max_size=5),
    st.floats(allow_nan=False, allow_infinity=False),
)
NUMBERS = st.integers(0, 10_000)
# Tables of many rows are made slowly, and tested below.
CHANGES = sorted(set(COLUMN_CHANGES) - {"many"})
DAMAGES = st.one_of(
    st.builds(field, st.sampled_from(JSON_FILES), NUMBERS, VALUES),
    st.builds(field, st.sampled_from(JSON_FILES), NUMBERS, VALUES),
    st.builds(column, st.sampled_from(TABLES), NUMBERS, st.sampled_from(CHANGES)),
    st.builds(replacing, NUMBERS, st.sampled_from(KINDS)),
    st.builds(cut, NUMBERS, st.floats(0, 1, exclude_max=True), st.binary(max_size=8)),
)


@pytest.mark.parametrize(
    "examples", [pytest.param(12, id="some"), pytest.param(200, marks=pytest.mark.slow, id="two_hundred")]
)
def test_a_hostile_run_folder_is_refused_in_one_line(good, worker, examples):
    @settings(max_examples=examples, phases=[Phase.generate], deadline=None, derandomize=True, database=None)
    @given(st.lists(DAMAGES, min_size=1, max_size=2))
    def of(damages):
        def damage(run):
            for one in damages:
                one(run)

        check(good, worker, damage)

    of()
