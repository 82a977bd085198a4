"""Tests of run folders that strangers made: every command answers in one line, at once, and touches nothing else."""

import contextlib
import hashlib
import json
import os
import shutil
import socket
import time
from pathlib import Path

import few_digits
import launch
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorstore
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import lenet_jax
from lenet_jax.errors import InputError
from lenet_jax.experiments import stored
from lenet_jax.run import files
from lenet_jax.run import folder as run_folder

if not Path("/proc/self/clear_refs").exists():
    pytest.skip("the peak of memory is read from Linux's /proc", allow_module_level=True)

MAX_MEMORY, MAX_SECONDS = 2**30, 20
"""Of a command, whatever the run folder holds."""

CONFIG = f"""
from lenet_jax.experiments import base

def get_config():
    config = base.get_config()
    config.dataset = {few_digits.DATASET!r}
    config.train_size, config.validation_size, config.epochs, config.seeds = 400, 200, 6, 2
    config.activation = "tanh"
    config.sweep.padding = ("background", "edge")  # with one program, that of test_faults.py
    config.tune.learning_rate, config.tune_seeds = (0.05, 0.1), 1
    return config
"""

PACKAGE = Path(lenet_jax.__file__).parents[1]
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
    done = launch.run(["run", "--config=experiment.py", "--workdir=run"], folder)
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
        (call, calls), (answer, answers) = (launch.SERVER.Pipe() for _ in range(2))
        self.process = launch.SERVER.Process(target=serve, args=(str(self.folder), calls, answers), daemon=True)
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
    "long text": lambda table, one: table.assign(**{one: "x" * 10_000}),
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
}

VALUES = st.one_of(
    st.sampled_from(
        [
            None,
            True,
            -1,
            0,
            5,
            2**31,
            2**70,
            1e308,
            -0.5,
            "",
            "x" * 5000,
            "../../victim/x",
            "\x1b[31mred",
            "a\nb",
            "[/b]",
        ]
    ),
    st.sampled_from([[], {}, [1, 2], {"a": None}, ["x"], [[]], DELETE, DELETE, TWICE, RENAME, "idx:victim", "tfds:x"]),
    st.integers(),
    st.text(max_size=5),
    st.floats(allow_nan=False, allow_infinity=False),
)
NUMBERS = st.integers(0, 10_000)
DAMAGES = st.one_of(
    st.builds(field, st.sampled_from(JSON_FILES), NUMBERS, VALUES),
    st.builds(field, st.sampled_from(JSON_FILES), NUMBERS, VALUES),
    st.builds(column, st.sampled_from(TABLES), NUMBERS, st.sampled_from(sorted(COLUMN_CHANGES))),
    st.builds(replacing, NUMBERS, st.sampled_from(KINDS)),
    st.builds(cut, NUMBERS, st.floats(0, 1, exclude_max=True), st.binary(max_size=8)),
)


@pytest.mark.parametrize(
    "examples", [pytest.param(8, id="some"), pytest.param(200, marks=pytest.mark.slow, id="two_hundred")]
)
def test_a_hostile_run_folder_is_refused_in_one_line(good, worker, examples):
    @settings(max_examples=examples, phases=[Phase.generate], deadline=None, derandomize=True, database=None)
    @given(st.lists(DAMAGES, min_size=1, max_size=2))
    def of(damages):
        def damage(run):
            for one in damages:
                with contextlib.suppress(ValueError):  # the one before left nothing that can be changed
                    one(run)

        check(good, worker, damage)

    of()


def enlarge(run):
    """Gives an array of a state 2^40 numbers, of which none are there; orbax aborts the process when it reads it."""
    (state,) = (run / "checkpoints" / "padding=edge").glob("*/states/*/state")
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{state}/"}).result()
    about = json.loads(store.read("params/c1/kernel/.zarray").result().value)
    about |= {"shape": [2**40], "chunks": [2**10]}
    store.write("params/c1/kernel/.zarray", json.dumps(about).encode()).result()


def arms(change):
    return rewrite(run_folder.SUMMARY, lambda content: change(content["arms"][0]))


def written(name, text):
    return lambda run: (run / name).write_text(text)


def made(name, kind):
    return lambda run: replace(run / name, kind)


def changed(name, column, kind):
    return retable(name, lambda table: COLUMN_CHANGES[kind](table, column))


def repeated(name, text, rows):
    """A small file of a large table: each group of rows is the same text, again and again."""

    def damage(run):
        size = min(rows, 1_000_000)
        column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(size, np.int8)), pa.array([text]))
        table = pa.table(dict.fromkeys(("arm", "split", "metric"), column))
        with pq.ParquetWriter(run / name, table.schema, store_schema=False) as writer:
            for _ in range(rows // size):
                writer.write_table(table)
        assert (run / name).stat().st_size < 2**20

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (made("config.json", "deep"), "can't be read as JSON (more than 32 levels of nesting)"),
        (made("config.json", "deep object"), "can't be read as JSON (more than 32 levels of nesting)"),
        (made("config.json", "pipe"), "config.json' is a link, pipe or device"),
        (made("config.json", "zeros"), "config.json' is a link, pipe or device"),
        (made("summary.json", "outside"), "summary.json' is a link, pipe or device"),
        (made("metrics.parquet", "zeros"), "metrics.parquet' is a link, pipe or device"),
        (made("config.json", "holes"), "can't be read as JSON (more than 134217728 bytes"),
        (written("config.json", '{"a": [' + "[]," * 2**21 + "1]}"), "can't be read as JSON (more than 134217728 bytes"),
        (written("config.json", '{"epochs": NaN}'), "the number NaN is not finite"),
        (written("config.json", '{"epochs": 1e999}'), "the number 1e999 is not finite"),
        (written("config.json", '{"epochs": "many"}'), "config.json: epochs: expected an integer, got 'many'"),
        (rewrite("summary.json", lambda content: content.update(arms=5)), "arms: expected a list, got 5"),
        (
            rewrite("summary.json", lambda content: content.update(dataset=None)),
            "dataset: expected an object, got None",
        ),
        (rewrite("summary.json", lambda content: content.update(arms=2 * content["arms"])), "two with the same name"),
        (arms(lambda row: row.update(axes=None)), ".axes: expected an object, got None"),
        (arms(lambda row: row.update(axes={"padding": ["edge"]})), ".axes.padding: expected text, got ['edge']"),
        (arms(lambda row: row.update(name="\x1b[31m")), "expected a line of up to 2000 printable characters"),
        (
            arms(lambda row: row.update(chosen={"/../../x": 0.1}, chosen_at_edge=[])),
            "column '/../../x' has nothing; expected numbers",
        ),
        (arms(lambda row: row.update(chosen={"learning_rate": 7})), "that arm 'padding=background' chose are missing"),
        (arms(lambda row: row.update(seeds=True)), "seeds: expected an integer, got True"),
        (arms(lambda row: row.update(seeds=10**6)), "seeds is invalid, or does not fit the other fields"),
        (arms(lambda row: row["test_error"].update(ci95=[0.1])), "ci95: expected a list of 2, got [0.1]"),
        (arms(lambda row: row["settings"].update(epochs=None)), "epochs: expected an integer, got None"),
        (
            rewrite("provenance.json", lambda content: content.update(versions=[])),
            "versions: expected an object, got []",
        ),
        (changed("metrics.parquet", "value", "text"), "metrics.parquet: column 'value' has str; expected numbers"),
        (changed("metrics.parquet", "seed", "null"), "column 'seed' holds null; allowed is text"),
        (changed("metrics.parquet", "value", "lists"), "holds list<element: int64>; allowed is text"),
        (changed("metrics.parquet", "value", "twice"), "two rows have the same arm, seed, epoch, split, metric"),
        (changed("metrics.parquet", "epoch", "negative"), "column 'epoch' has other values than 0 to"),
        (changed("predictions.parquet", "label", "huge"), "column 'label' has other values than 0 to 255"),
        (changed("tuning.parquet", "learning_rate", "without"), "column 'learning_rate' has nothing; expected numbers"),
        (repeated("metrics.parquet", "x", 40_000_000), "bytes of memory"),
        (repeated("predictions.parquet", "x" * 100_000, 100_000), "column 'seed' has nothing; expected integers"),
        (changed("predictions.parquet", "label", "twice"), "arm 'padding=background': its rows don't stand together"),
        (retable("predictions.parquet", lambda table: table[1:]), "rows; its seeds and images have"),
        (
            retable("predictions.parquet", lambda table: table.assign(seed=table.seed + 100)),
            "other seeds than in metrics",
        ),
        (enlarge, "an array of shape (1099511627776,) in"),
    ],
)
def test_a_damaged_file_is_named(good, worker, damage, message):
    restore(good, worker.folder)
    damage(worker.folder / "run")
    code, output, memory, _ = worker.run(["classify", "run", "digit.png", "--arm=padding=edge"])
    assert (code, output.count("\n")) == (2, 1), (code, output)
    assert message in output
    assert memory < MAX_MEMORY


def test_compare_opens_no_data_set_that_a_run_names(good, worker):
    """Unless the user names it."""
    restore(good, worker.folder)
    named = worker.folder / "victim" / "idx"
    named.mkdir()
    for path in few_digits.FOLDER.iterdir():
        shutil.copy(path, named)
    with (named / "train-images-idx3-ubyte").open("r+b") as stream:  # 2 GiB of holes in a file of 4 KiB
        stream.write(bytes((0, 0, 8, 3)) + np.array([2**31 // 784, 28, 28], ">u4").tobytes())
        stream.truncate(2**31)

    def rename(content):
        for row in content["arms"]:
            row["settings"]["dataset"] = row["dataset"]["name"] = f"idx:{named}"

    rewrite(run_folder.SUMMARY, rename)(worker.folder / "run")
    for flags, images in (([], False), ([f"--dataset={few_digits.DATASET}"], True)):
        code, output, memory, _ = worker.run(["compare", "run", *flags])
        assert code == 0, output
        assert memory < MAX_MEMORY
        report = (worker.folder / "run" / "plots" / "report.html").read_text()
        assert ("<img" in report) == images
        assert ("compare --dataset=NAME opens those" in report) != images


def test_repeating_a_run_executes_nothing_of_its_folder(good, worker):
    """TFDS imports the module of a class that a data set names: the folder of data sets is not taken from a run."""
    restore(good, worker.folder)
    run = worker.folder / "run"
    data = run / "data" / "evil" / "1.0.0"
    data.mkdir(parents=True)
    about = {"name": "evil", "version": "1.0.0", "fileFormat": "array_record", "splits": []}
    (data / "dataset_info.json").write_text(json.dumps(about))
    (data / "features.json").write_text(json.dumps({"pythonClassName": "malware.Features"}))
    (worker.folder / "malware.py").write_text("open('executed', 'w').close()")
    command = ["run", f"--config={stored.__file__}:run", "--workdir=again"]
    hostile = {"dataset": "tfds:evil", "data_dir": "run/data"}
    rewrite(run_folder.CONFIG, lambda content: content.update(hostile))(run)
    assert stored.get_config(str(run)).data_dir == ""
    done = launch.run(command, worker.folder, real=True, environment={"PYTHONPATH": f".{os.pathsep}{PACKAGE}"})
    assert done.returncode == 2, done.stderr
    assert "'tfds:evil'" in done.stderr
    assert not (worker.folder / "executed").exists()
    rewrite(run_folder.CONFIG, lambda content: content.update(sweep={"arm": {"x": hostile}}))(run)
    with pytest.raises(InputError, match="sweeps data_dir, which a run folder must not choose"):
        stored.get_config(str(run))
