"""States of populations on disk, in orbax's format. All that orbax needs special care for is here.

A state is written whole or not at all, with the SHA-256 of its arrays, which is checked when it is read.
"""

import contextlib
import dataclasses
import errno
import functools
import hashlib
import logging
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from lenet_jax import distributed
from lenet_jax.errors import InputError, one_line
from lenet_jax.population import Snapshot
from lenet_jax.run.files import seal_of, size_of, synchronize, writing

MIN_FREE_INODES = 100
"""Free inodes required to save a state: more than orbax uses."""

MAX_MEMBER_BYTES, MAX_MEMBERS, MAX_ARRAY_RATIO = 2**20, 2**10, 100
"""Bytes of an array per member, of at most so many; and of a larger one relative to all files of its state. Members
that have diverged take hardly any space in files."""

MAX_TO_KEEP = 2
"""States kept in a folder: if the last one is corrupt, training resumes from the one before."""


class OtherRunError(InputError):
    """Something that was saved belongs to other settings or data."""


def check_identity(path: Path, found: str | None, wanted: str) -> None:
    """Raises OtherRunError unless what was saved has the wanted identity ("" for any); see `plan.ArmPlan.identity`."""
    if wanted and found != wanted:
        problem = (
            "was saved by a run with other settings, data or programs" if found else "was saved by an older version"
        )
        raise OtherRunError(f"run: {str(path)!r} {problem}; name another folder, or add --fresh to move it aside")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Members in the middle of their training.

    Attributes:
      step: steps done.
      state: the state of all members, see `population.snapshot`.
      history: ``split/metric`` -> values [measured epochs, members].
      seconds, wall: training time so far, and time in total.
    """

    step: int
    state: Snapshot
    history: dict[str, np.ndarray]
    seconds: float
    wall: float

    def part(self, members: slice) -> "Checkpoint":
        """Some of the members, with their share of the time."""
        state = {name: array[members] for name, array in self.state.items()}
        history = {name: array[:, members] for name, array in self.history.items()}
        share = len(state["step"]) / len(self.state["step"])
        return Checkpoint(self.step, state, history, share * self.seconds, share * self.wall)

    def digest(self, identity: str | None) -> str:
        """SHA-256 of the arrays, their names and shapes, of the times and the identity; see `check_identity`."""
        found = hashlib.sha256()
        if identity is not None:  # older versions left the rest out
            found.update(seal_of({"identity": identity, "seconds": self.seconds, "wall": self.wall}).encode())
        for arrays in (self.state, self.history):
            for name in sorted(arrays):
                array = np.ascontiguousarray(arrays[name])
                found.update(f"{name} {array.dtype} {array.shape};".encode())
                found.update(array.data)
        return found.hexdigest()


@contextlib.contextmanager
def state_manager(states: Path) -> Iterator[ocp.CheckpointManager]:
    """The orbax manager of a folder of states, for this process alone: `Chunk.latest` coordinates processes."""
    silence_threads()
    options = ocp.CheckpointManagerOptions(
        max_to_keep=MAX_TO_KEEP,
        enable_async_checkpointing=False,
        cleanup_tmp_directories=distributed.primary(),
        create=False,
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(), active_processes={jax.process_index()}
        ),
    )
    with ocp.CheckpointManager(states.absolute(), options=options) as manager:
        yield manager


def steps_in(states: Path) -> list[int]:
    """The steps of the states in a folder, in order."""
    return sorted(int(path.name) for path in states.glob("*") if path.name.isdecimal())


def read_state(states: Path, step: int, members: int, identity: str) -> Checkpoint:
    """Reads a state of so many members.

    Raises:
      InputError: it is corrupt.
      OtherRunError: its identity differs; "" accepts any.
    """
    try:
        trees = {name: ocp.args.StandardRestore(tree) for name, tree in arrays_in(states / str(step), members).items()}
        with state_manager(states) as manager:
            read = manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore(), **trees))
        digest, found = read.about.pop("digest"), read.about.pop("identity", None)
        saved = Checkpoint(step, dict(read.state), dict(read.history) if "history" in trees else {}, **read.about)
        if saved.digest(found) != digest:
            raise ValueError("wrong SHA-256")
    except MemoryError:  # the file is valid
        raise
    except Exception as error:  # a corrupt file can raise anything
        raise InputError(f"run: {str(states / str(step))!r} is corrupt ({one_line(error)})") from error
    check_identity(states / str(step), found, identity)
    return saved


def arrays_in(state: Path, members: int) -> dict[str, Any]:
    """The trees of arrays in a state, ``state`` and perhaps ``history``, as zeros that take no memory.

    Their sizes are checked before orbax reads them: it would end the process if memory ran out.

    Raises:
      ValueError, InputError: the state has links or pipes, or arrays far larger than its files.
    """
    size = size_of(state)

    def array(leaf: Any) -> np.ndarray:
        shape, chunk, dtype = tuple(leaf.shape), tuple(leaf.storage.chunk_shape), np.dtype(leaf.dtype)
        needed = max(map(math.prod, (shape, chunk))) * dtype.itemsize
        if not shape or needed > max(MAX_MEMBER_BYTES * min(members, MAX_MEMBERS), MAX_ARRAY_RATIO * size):
            raise ValueError(f"an array of shape {shape} in {size} bytes")
        return np.broadcast_to(np.zeros((), dtype), shape)

    items = [state / item for item in ("state", "history") if (state / item).exists()]
    trees = {item.name: ocp.StandardCheckpointHandler().metadata(item.absolute()).tree for item in items}
    found: dict[str, Any] = jax.tree.map(array, trees)
    return found


@distributed.primary_only
def write_state(states: Path, saved: Checkpoint, identity: str) -> None:
    """Adds a state to a folder; see `Chunk.save`."""
    about = {"seconds": saved.seconds, "wall": saved.wall, "identity": identity, "digest": saved.digest(identity)}
    items = {"state": ocp.args.StandardSave(saved.state), "about": ocp.args.JsonSave(about)}
    if saved.history:  # orbax saves no empty tree, and in the first epoch nothing may have been measured
        items["history"] = ocp.args.StandardSave(saved.history)
    with writing(states):
        states.mkdir(parents=True, exist_ok=True)
        check_space(states, saved)
        with state_manager(states) as manager:
            manager.save(saved.step, args=ocp.args.Composite(**items))
        state = states / str(saved.step)
        for path in (*state.rglob("*"), state, states):  # orbax removes the state before the last with the next one
            synchronize(path)


def check_space(states: Path, saved: Checkpoint) -> None:
    """Raises OSError if a state doesn't fit on the disk: orbax would leave a part of it there."""
    needed = sum(array.nbytes for arrays in (saved.state, saved.history) for array in arrays.values()) + 2**18
    disk = os.statvfs(states)
    inodes = disk.f_favail if disk.f_files else MIN_FREE_INODES  # some file systems have no limit
    if disk.f_bavail * disk.f_frsize < needed or inodes < MIN_FREE_INODES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@functools.cache
def silence_threads() -> None:
    """Stops threads from printing tracebacks of errors that are also raised, and reported in one line."""
    before = sys.unraisablehook

    def report(unraisable: Any) -> None:
        # If one array of a state fails, orbax stops, but TensorStore's threads continue with the others.
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = report
    logging.getLogger("absl").addFilter(lambda record: "/orbax/" not in record.pathname or not record.exc_info)
    # asyncio reports the errors of the other arrays when Python collects them as garbage.
    logging.getLogger("asyncio").addFilter(lambda record: "tensorstore" not in record.getMessage())
