"""Tests of checkpoints, file by file; test_faults.py has whole runs."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from lenet_jax.run import checkpoints, states
from lenet_jax.run.checkpoints import TESTED, ArmStore, Chunk
from lenet_jax.run.states import Checkpoint

MEMBERS = 4


def saved(step, members=MEMBERS):
    state = {"params/c1/bias": np.arange(members * 6, dtype=np.float32).reshape(members, 6)}
    state["step"] = np.full(members, step, np.int32)
    return Checkpoint(step, state, {"test/error": np.ones((1, members))}, 1.0, 2.0)


@pytest.fixture
def chunk(tmp_path):
    """A chunk of four members with two saved states."""
    chunk = Chunk(tmp_path / "arm" / f"{TESTED}-0-{MEMBERS}", ArmStore(tmp_path / "arm"))
    for step in (10, 20):
        chunk.save(saved(step))
    return chunk


def finish(chunk):
    nothing = pd.DataFrame()
    chunk.finish(checkpoints.PopulationResult(pd.DataFrame({"value": [1.0]}), nothing, 1.0, 2.0, 3, 4), chunk.latest())


@pytest.mark.parametrize("left", ["the whole", "the second half"])
def test_networks_are_found_whatever_an_interrupted_split_leaves(chunk, left, monkeypatch):
    """A process is killed before it removes the whole, or a disk is full before the first half is saved."""
    folder = chunk.folder.parent
    store = ArmStore(folder)
    with monkeypatch.context() as patches:
        if left == "the whole":
            patches.setattr(checkpoints.cleanup, "remove", lambda *_, **__: None)
            chunk.split_in_half()
        else:
            half = Chunk(folder / f"{TESTED}-2-{MEMBERS}", store)
            half.save(chunk.latest().part(slice(2, None)))
    start = 0
    while start < MEMBERS:  # as a resumed run does
        one = store.chunk(TESTED, start, MEMBERS - start)
        finish(one)
        start = one.stop
    store.finish({"name": "x"})
    expected = saved(20).state
    for _ in range(2):
        found = checkpoints.networks(store, MEMBERS)
        np.testing.assert_array_equal(found["params/c1/bias"], expected["params/c1/bias"])
        checkpoints.prune(folder.parent, [store])
    kept = {path.name for path in folder.iterdir()}
    assert kept == ({"tested-0-2", "tested-2-4"} if left == "the whole" else {"tested-0-4"})


def test_out_of_memory_while_reading_does_not_mean_a_corrupt_file(chunk, monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    with monkeypatch.context() as patches:
        patches.setattr(states.ocp.CheckpointManager, "restore", fail)
        for read in (chunk.latest, chunk.last):
            with pytest.raises(MemoryError):
                read()
    assert chunk.latest().step == 20
    assert {path.name for path in chunk.folder.iterdir()} == {"states"}


def test_every_corrupt_state_is_kept(chunk, monkeypatch, capsys):
    """A state that seems corrupt may be a disk that fails for a moment."""

    def fail(*_, **__):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patches:
        patches.setattr(states.ocp.CheckpointManager, "restore", fail)
        assert chunk.latest() is None
    assert {path.name for path in chunk.folder.iterdir()} == {"states", "damaged-10", "damaged-20"}
    assert capsys.readouterr().err.count("is corrupt ([Errno 5] Input/output error): moved to") == 2


def test_a_state_before_anything_was_measured(tmp_path):
    """In the middle of the first epoch, nothing has been measured, and orbax saves no empty tree."""
    chunk = Chunk(tmp_path / "arm" / f"{TESTED}-0-{MEMBERS}", ArmStore(tmp_path / "arm"))
    chunk.save(dataclasses.replace(saved(10), history={}))
    found = chunk.latest()
    assert (found.step, found.history) == (10, {})
    np.testing.assert_array_equal(found.state["params/c1/bias"], saved(10).state["params/c1/bias"])
