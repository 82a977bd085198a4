"""What belongs to whom: files of others are neither changed nor removed, and states of other runs are never used."""

import contextlib
import json
import os
import shutil
import signal
import struct
import threading
import unicodedata

import few_digits
import numpy as np
import pandas as pd
import pytest
from few_digits import small
from hypothesis import given
from hypothesis import strategies as st

from lenet_jax.data import idx
from lenet_jax.errors import InputError, Interrupted, StorageError
from lenet_jax.experiments import stored
from lenet_jax.run import checkpoints, cleanup, files, locks, parts, runner, signals, states, trackers
from lenet_jax.run import folder as run_folder
from lenet_jax.run.checkpoints import ArmStore

FINISHED = (run_folder.SUMMARY, run_folder.METRICS, run_folder.PREDICTIONS, run_folder.PROVENANCE)


def stopped(config, folder, after=1):
    """A run that a signal stops after so many calls of the engine."""
    stop, calls = signals.Stop(), []
    train_segment = runner.population.train_segment

    def counted(members):
        calls.append(members)
        if len(calls) == after:
            stop.signal = signal.SIGTERM
        return train_segment(members)

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Interrupted):
        patch.setattr(runner.population, "train_segment", counted)
        runner.run(config, folder, "test", stop=stop)
        pytest.fail("the run was to be stopped")


def everything(folder):
    """Path -> content of all files, and the names of folders and links."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        if path.is_file() and not path.is_symlink()
        else path.is_symlink()
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of a small config."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    runner.run(small(), folder, "test")
    return folder


@pytest.fixture(scope="module")
def halved(tmp_path_factory):
    """A run that was stopped in its first epoch."""
    folder = tmp_path_factory.mktemp("halved") / "run"
    stopped(small(), folder)
    return folder


@pytest.fixture
def scratch(tmp_path):
    """A folder of somebody else, with files and folders named as ours are."""
    folder = tmp_path / "scratch"
    below = ("all/tested-0-3/states/9/state", "tested-0-3/trained.json", "trained.json", "states/9/state")
    for name in ("thesis.tex", "data/results.csv", *below):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("years of work")
    return folder


def copied(run, tmp_path):
    return shutil.copytree(run, tmp_path / "run")


def unfinished(folder):
    """As a run that was killed before it tidied up: attempts are still there."""
    attempts = folder / run_folder.CHECKPOINTS / cleanup.ATTEMPTS
    attempts.mkdir()
    files.write_sealed(attempts / "2026-01-01T00-00-00+00-00-0123abcd.json", {"versions": {}})
    return attempts


def test_checkpoints_that_are_a_link_are_refused(scratch, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "checkpoints").symlink_to(scratch)
    before = everything(tmp_path)
    for options in ({}, {"fresh": True}, {"only_arm": "1"}):
        with pytest.raises(InputError, match=r"'.*run/checkpoints' is a link; only the run folder itself may be one"):
            runner.run(small(), run, "test", **options)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("name", ["all", "other", "notes.txt", "all/tested-0-3", "all/tested-0-3/states", "attempts"])
@pytest.mark.parametrize("kind", ["link", "own"])
def test_checkpoints_with_anything_of_others_are_refused(name, kind, scratch, tmp_path):
    place = tmp_path / "run" / "checkpoints" / name
    place.parent.mkdir(parents=True)
    if kind == "link":
        place.symlink_to(scratch)
    elif name == "notes.txt":
        place.write_text("mine")
    else:
        (place / "my folder").mkdir(parents=True)
    before = everything(tmp_path)
    with pytest.raises(InputError, match=r"^workdir: '.*/checkpoints/.*' is (a link|not of this run); move it"):
        runner.run(small(), tmp_path / "run", "test")
    assert everything(tmp_path) == before


def test_hidden_files_of_the_system_are_left_alone(halved, tmp_path):
    run = copied(halved, tmp_path)
    for path in (".DS_Store", "all/.nfs0001", "all/tested-0-3/states/.DS_Store"):
        (run / "checkpoints" / path).write_text("system")
    runner.run(small(), run, "test")
    assert len(list(run.rglob(".DS_Store"))) == 2


def test_tidying_a_finished_run_removes_only_what_it_wrote(finished, scratch, tmp_path):
    """It was killed before it tidied up; meanwhile somebody has put links and folders beside its files."""
    run = copied(finished, tmp_path)
    attempts = unfinished(run)
    below = run / "checkpoints"
    chunk = below / "all" / "tested-0-3"
    (chunk / "trained.json").write_text("{}")
    (chunk / "states" / "7").mkdir()
    mine = [below / "zzz", below / "all" / "tried-0-0-2", chunk / "damaged-8", chunk / "states" / "5"]
    for link in mine:
        link.symlink_to(scratch)
    for folder in (below / "my folder", below / "all" / "notes", chunk / "states" / "best"):
        folder.mkdir()
        (folder / "notes.txt").write_text("mine")
    before = everything(scratch)
    runner.run(small(), run, "test")
    assert everything(scratch) == before
    assert all(link.is_symlink() for link in mine)
    assert len(list(run.rglob("notes.txt"))) == 3
    assert not attempts.exists()
    assert not (chunk / "trained.json").exists()
    assert {path.name for path in (chunk / "states").iterdir()} == {"5", "best", "30"}


@pytest.mark.parametrize("name", [locks.LOCK, locks.TURN, f"all/{locks.LOCK}"])
@pytest.mark.parametrize("kind", ["link", "file", "pipe"])
def test_a_lock_is_never_written_over_a_file_of_others(name, kind, scratch, tmp_path):
    path = tmp_path / "checkpoints" / name
    path.parent.mkdir(parents=True)
    if kind == "link":
        path.symlink_to(scratch / "thesis.tex")
    elif kind == "file":
        path.write_text("my own list of locks")
    else:
        os.mkfifo(path)
    before = everything(scratch)
    with pytest.raises(InputError, match=r"can't be written \(it is a link\)|is not a lock of lenet_jax"):
        locks.open_lock(path)
    if kind == "file":
        assert path.read_text() == "my own list of locks"
    assert everything(scratch) == before


@pytest.mark.parametrize("name", [run_folder.SUMMARY, run_folder.METRICS, run_folder.CONFIG])
def test_an_empty_file_of_a_finished_run_has_a_way_out(name, finished, tmp_path):
    """As a power cut leaves one that is not on the disk: the same command can't repair it."""
    run = copied(finished, tmp_path)
    (run / name).write_bytes(b"")
    with pytest.raises(
        InputError, match=rf"{name}' can't be read as .*; add --fresh to move the folder aside and train"
    ):
        runner.run(small(), run, "test")
    assert runner.run(small(), run, "test", fresh=True)
    assert len(list(tmp_path.glob("run-*"))) == 1


def test_the_lock_of_a_finished_run_names_nobody(finished):
    assert (finished / "checkpoints" / "lock").read_bytes() == b""


def test_states_of_another_config_are_not_taken_up(finished, halved, tmp_path):
    """The files of a run were removed, but for its checkpoints, and another config is run there."""
    for name, run in (("finished", finished), ("halved", halved)):
        folder = shutil.copytree(run, tmp_path / name)
        for path in (*FINISHED, run_folder.CONFIG):
            (folder / path).unlink(missing_ok=True)
        before = everything(folder / "checkpoints" / "all")
        with pytest.raises(
            InputError, match=r"checkpoints/all/.*' was saved by a run with other settings, data or programs; name"
        ):
            runner.run(small(learning_rate=0.02), folder, "test")
        assert everything(folder / "checkpoints" / "all") == before


def test_every_file_of_an_arm_says_what_it_belongs_to(halved, tmp_path):
    run = copied(halved, tmp_path)
    chunk = run / "checkpoints" / "all" / "tested-0-3"
    store = ArmStore(run / "checkpoints" / "all", identity="0" * 64)
    with pytest.raises(states.OtherRunError, match=r"states/15' was saved by a run with other settings"):
        checkpoints.Chunk(chunk, store).latest()
    files.write_sealed(chunk / "trained.json", {"identity": "1" * 64})
    with pytest.raises(states.OtherRunError, match=r"trained\.json' was saved by a run with other settings"):
        checkpoints.Chunk(chunk, store).load_result()
    for row, message in (({"identity": "1" * 64}, "a run with other settings"), ({}, "an older version")):
        files.write_sealed(store.folder / "arm.json", row)
        with pytest.raises(states.OtherRunError, match=rf"arm\.json' was saved by {message}"):
            _ = store.finished
    assert (store.folder / "arm.json").exists()


def test_the_times_in_a_state_are_sealed_too(halved, tmp_path):
    run = copied(halved, tmp_path)
    folder = run / "checkpoints" / "all" / "tested-0-3" / "states"
    about = folder / "15" / "about" / "metadata"
    content = json.loads(about.read_text())
    about.write_text(json.dumps(content | {"seconds": content["seconds"] + 1}))
    with pytest.raises(InputError, match=r"is corrupt \(wrong SHA-256\)"):
        states.read_state(folder, 15, 3, "")


def test_networks_of_another_arm_are_not_read(finished, tmp_path):
    run = copied(finished, tmp_path)
    content = json.loads((run / "summary.json").read_text())
    store = ArmStore(run / "checkpoints" / "all", identity=content["arms"][0]["identity"])
    assert len(checkpoints.networks(store, 3)["step"]) == 3
    with pytest.raises(InputError, match="was saved by a run with other settings, data or programs"):
        checkpoints.networks(ArmStore(store.folder, identity="0" * 64), 3)


def write_digits(folder, arrays):
    folder.mkdir(exist_ok=True)
    for part, array in arrays.items():
        header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
        (folder / idx.PARTS[part][0]).write_bytes(header + np.ascontiguousarray(array).tobytes())


def test_data_that_changed_between_two_attempts_are_refused(tmp_path, capsys):
    digits = few_digits.arrays()
    write_digits(tmp_path / "data", digits)
    config = small(dataset=f"idx:{tmp_path / 'data'}")
    stopped(config, tmp_path / "run")
    write_digits(tmp_path / "data", digits | {"train_images": 255 - digits["train_images"]})
    changed = (
        r"^dataset: 'idx:.*' holds other images or labels than when this run began \(fingerprint sha256:.*then sha"
    )
    with pytest.raises(InputError, match=changed):
        runner.run(config, tmp_path / "run", "test")
    write_digits(tmp_path / "data", digits)
    run = runner.run(config, tmp_path / "run", "test")
    write_digits(tmp_path / "data", digits | {"test_labels": 9 - digits["test_labels"]})
    with pytest.raises(InputError, match=changed):
        runner.run(config, tmp_path / "run", "test")
    stored.get_config(str(tmp_path / "run"))
    assert "no longer holds the images or labels that" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "data")
    again = runner.run(config, tmp_path / "run", "test")
    pd.testing.assert_frame_equal(again.metrics, run.metrics)


def test_a_run_folder_that_is_moved_meanwhile_is_not_made_again(tmp_path):
    moved, calls = tmp_path / "moved", []
    train_segment = runner.population.train_segment

    def moving(members):
        if not calls:
            (tmp_path / "run").rename(moved)
        calls.append(members)
        return train_segment(members)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner.population, "train_segment", moving)
        with pytest.raises(
            StorageError, match=r"checkpoints' was moved, removed or replaced while the run was at work"
        ):
            runner.run(small(), tmp_path / "run", "test", save_every=0)
    assert not (tmp_path / "run").exists()
    assert len(calls) == 1
    assert runner.run(small(), moved, "test")


def test_nothing_is_removed_before_its_replacement_is_on_the_disk(tmp_path, monkeypatch):
    """As the system would see it if the power failed: files reach the disk, then folders, then something is removed."""
    order = []
    fsync, unlink, rmtree = os.fsync, cleanup.Path.unlink, shutil.rmtree

    def log(kind, function):
        def logged(path, *arguments, **options):
            named = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else str(path)
            order.append((kind, named))
            return function(path, *arguments, **options)

        return logged

    monkeypatch.setattr(os, "fsync", log("on disk", fsync))
    monkeypatch.setattr(cleanup.Path, "unlink", log("remove", unlink))
    monkeypatch.setattr(cleanup.shutil, "rmtree", log("remove", rmtree))
    run = tmp_path / "run"
    runner.run(small(), run, "test")
    removed = [index for index, (kind, path) in enumerate(order) if kind == "remove" and path.endswith("trained.json")]
    before = {path for kind, path in order[: removed[0]] if kind == "on disk"}
    assert str(run) in before, "the names of the run's files"
    for name in FINISHED:
        assert any(path.startswith(f"{run}/.{name}.") for path in before), name
    last = run / "checkpoints" / "all" / "tested-0-3" / "states" / "30"
    assert {str(path) for path in last.rglob("*")} <= before


NAMES = st.text(st.sampled_from("aAbBéÉß\u017fsSkK=,. \u212a\u00c5A\u030a/%^"), min_size=1, max_size=6)


@given(NAMES, NAMES)
def test_folders_of_arms_differ_for_every_file_system(name, other):
    """macOS and Windows ignore the case, and normalize Unicode."""
    names = {name, other, name.upper(), name.lower(), name.swapcase(), unicodedata.normalize("NFD", name)}
    for form in ("NFC", "NFKD"):
        folders = {unicodedata.normalize(form, run_folder.folder_name(name)).casefold() for name in names}
        assert len(folders) == len(names)


def test_networks_in_folders_of_older_versions_are_found(tmp_path):
    (tmp_path / "bias=True").mkdir()
    assert run_folder.arm_folder(tmp_path, "bias=True") == tmp_path / "bias=True"
    assert run_folder.arm_folder(tmp_path, "bias=False") == tmp_path / "bias=^False"


def test_networks_that_diverged_are_read_however_small_their_files(tmp_path):
    """What is the same number everywhere takes hardly any space on disk."""
    lost = np.full((300, 16, 5, 5, 120), np.nan, np.float32)
    saved = states.Checkpoint(5, {"params/c5/kernel": lost, "step": np.full(300, 5, np.int32)}, {}, 1.0, 1.0)
    states.write_state(tmp_path, saved, "0" * 64)
    assert lost.nbytes > states.MAX_ARRAY_RATIO * files.size_of(tmp_path)
    np.testing.assert_array_equal(states.read_state(tmp_path, 5, 300, "0" * 64).state["params/c5/kernel"], lost)


def test_predictions_of_networks_that_diverged_are_read_however_small_their_file(tmp_path):
    images = np.arange(10_000, dtype=np.int32)
    columns = {"image": images, "label": (images % 10).astype(np.int16), "predicted": np.int16(-1)}
    one = pd.DataFrame(columns | {"margin": np.float32(np.nan)})
    table = pd.concat([one.assign(arm=f"learning_rate={arm}", seed=seed) for arm in range(12) for seed in range(20)])
    files.write_table(tmp_path / "predictions.parquet", table)
    size = (tmp_path / "predictions.parquet").stat().st_size
    assert table.memory_usage().sum() > files.MAX_TABLE_RATIO * size
    assert len(files.read_table(tmp_path / "predictions.parquet")) == len(table)


@pytest.mark.parametrize("below", ["", "all"])
def test_curves_are_written_through_no_link(below, scratch, tmp_path):
    """The tracker replaces the curves of an earlier attempt, which here are somebody else's."""
    link = tmp_path / "run" / "tensorboard" / below
    link.parent.mkdir(parents=True)
    link.symlink_to(scratch)
    (scratch / "events.out.tfevents.1").write_text("theirs")
    before = everything(scratch)
    with pytest.raises(InputError, match=r"tensorboard.*' is a link; only the run folder itself may be one"):
        trackers.TRACKERS["tensorboard"](tmp_path / "run")
    assert everything(scratch) == before


def test_what_another_job_renames_meanwhile_is_nobody_elses(tmp_path):
    """Jobs of other arms save while this one starts: orbax renames each state when it is whole."""
    states_of = tmp_path / "checkpoints" / "all" / "tested-0-3" / "states"
    states_of.mkdir(parents=True)
    ended = threading.Event()

    def save():
        while not ended.is_set():
            (states_of / "5.orbax-checkpoint-tmp").mkdir()
            (states_of / "5.orbax-checkpoint-tmp").rename(states_of / "5")
            (states_of / "5").rmdir()

    thread = threading.Thread(target=save)
    thread.start()
    try:
        for _ in range(3000):
            cleanup.check_owned(tmp_path / "checkpoints", ["all"])
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize("damage", [{"versions": 5}, {"fingerprints": [1]}, {"jax_settings": [1]}, {"processor": None}])
def test_a_damaged_attempt_is_left_out(damage, halved, tmp_path, capsys):
    run = copied(halved, tmp_path)
    (path,) = (run / "checkpoints" / "attempts").iterdir()
    files.write_sealed(path, files.read_sealed(path) | damage)
    assert checkpoints.read_attempts(run / "checkpoints") == []
    assert "the provenance will lack this attempt" in capsys.readouterr().err


@pytest.mark.parametrize("about", [{}, {"sha256": {}}, {"sha256": 5}, {"sha256": {"../../../thesis.tex": "0"}}])
def test_results_that_are_sealed_but_incomplete_are_measured_again(about, halved, tmp_path, capsys):
    run = copied(halved, tmp_path)
    chunk = checkpoints.Chunk(run / "checkpoints" / "all" / "tested-0-3", ArmStore(run / "checkpoints" / "all"))
    files.write_sealed(chunk.folder / "trained.json", about)
    assert chunk.load_result() is None
    assert "these members are measured again" in capsys.readouterr().err


def test_an_empty_folder_that_others_filled_is_no_chunk(tmp_path):
    """A chunk is split before its first state; what it leaves can't be removed, since a hidden file is in it."""
    (tmp_path / "tested-0-4").mkdir()
    (tmp_path / "tested-0-4" / ".DS_Store").write_text("system")
    store = ArmStore(tmp_path)
    store.chunk("tested", 0, 4).split_in_half()
    assert store.chunk("tested", 0, 2).folder.name == "tested-0-2"


def test_a_killed_copy_of_the_experiment_file_is_removed(tmp_path):
    for name in (".experiment.py.0123abcd", ".experiment.py.mine"):
        (tmp_path / name).write_text("half")
    (tmp_path / "mine.py").write_text("whole")
    parts.Definitions({"activation": ["mine"]}, (tmp_path / "mine.py", "whole")).store(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"mine.py", "experiment.py", ".experiment.py.mine"}
