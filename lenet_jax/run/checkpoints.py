"""What a run keeps while it isn't finished, so that the same command goes on where it was stopped.

``checkpoints/`` of the run folder has a folder for each arm. In it is one for each chunk of members that train
together, ``STAGE-START-STOP``: its last two states (orbax), and, once it is trained, what was measured of it (Parquet,
JSON). After the run only the last states of the members that were tested are left: the trained networks.

Files are read as arrays, tables and JSON, and nothing in them is executed. Every state carries its SHA-256.
"""

import contextlib
import dataclasses
import errno
import functools
import hashlib
import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import pandas as pd

from lenet_jax import distributed
from lenet_jax.errors import InputError, one_line
from lenet_jax.population import Snapshot
from lenet_jax.run import files as run_files
from lenet_jax.run import folder as run_folder
from lenet_jax.run import locks
from lenet_jax.run.progress import say

ARM, TRAINED, STATES, ATTEMPTS = "arm.json", "trained.json", "states", "attempts"
HISTORY = "history"
"""Item of a state that holds what was measured, if anything was."""

TESTED, TRIED = "tested", "tried"
"""Stages: members that are an arm's result, and members that hyperparameters are chosen by."""

MAX_SAVE_OVERHEAD = 20
"""Saving takes at most one part in so many of the time."""

MIN_FREE_INODES = 100
"""More files and folders than orbax makes of a state."""

MAX_TO_KEEP = 2
"""States of a chunk that are kept: if the last one is damaged, there is the one before."""


class PopulationResult(NamedTuple):
    """What members left behind.

    Attributes:
      metrics: a row for each epoch, split, metric and seed.
      predictions: a row for each seed and test image; no rows if the config doesn't ask for them.
      seconds: of training alone.
      wall: seconds of everything.
      samples: trained on, of all members.
      memory: bytes that it took at its peak, as the compiler predicted.
    """

    metrics: pd.DataFrame
    predictions: pd.DataFrame
    seconds: float
    wall: float
    samples: int
    memory: int


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Members in the middle of their training.

    Attributes:
      step: updates done.
      state: of all members, see `population.snapshot`.
      history: ``split/metric`` -> values [epochs measured, members].
      seconds: of training so far.
      wall: seconds of everything so far.
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

    @property
    def digest(self) -> str:
        """SHA-256 of the arrays, their names and shapes."""
        found = hashlib.sha256()
        for kind in (self.state, self.history):
            for name in sorted(kind):
                array = np.ascontiguousarray(kind[name])
                found.update(f"{name} {array.dtype} {array.shape};".encode())
                found.update(array.data)
        return found.hexdigest()


def record_attempt(checkpoint_dir: Path, environment: Mapping[str, Any]) -> None:
    """Notes an attempt at a run; says so if an earlier one was made elsewhere: numbers can differ by rounding."""
    before = read_attempts(checkpoint_dir)
    for name in ("versions", "processor"):
        if before and before[0][name] != environment[name]:
            say(f"this run was begun with {name} {before[0][name]}: numbers may differ in their last digits")
    with run_files.writing(checkpoint_dir / ATTEMPTS):
        (checkpoint_dir / ATTEMPTS).mkdir(exist_ok=True)
    name = f"{environment['started'].replace(':', '-')}-{secrets.token_hex(4)}.json"
    run_files.write_sealed(checkpoint_dir / ATTEMPTS / name, environment)


def read_attempts(checkpoint_dir: Path) -> list[dict[str, Any]]:
    """The environments of all attempts at a run, the first one first. Those that are damaged are dropped, and told."""
    found = []
    for path in sorted((checkpoint_dir / ATTEMPTS).glob("*.json")):
        try:
            found.append(run_files.read_sealed(path))
        except InputError as error:
            say(f"{error}; the provenance won't have this attempt")
            path.unlink(missing_ok=True)
    return found


def prune(checkpoint_dir: Path) -> None:
    """Removes what a finished run needs no more; what tells of its attempts last, so that it is known what is left."""
    for folder in checkpoint_dir.iterdir():
        if folder.is_dir() and folder.name != ATTEMPTS:
            ArmStore(folder, 0).prune()
    (checkpoint_dir / locks.TURN).unlink(missing_ok=True)
    shutil.rmtree(checkpoint_dir / ATTEMPTS, ignore_errors=True)


def prune_later(checkpoint_dir: Path) -> None:
    """`prune`, if a run was ended before it came to it."""
    if (checkpoint_dir / ATTEMPTS).is_dir():
        with (
            contextlib.suppress(OSError, InputError),
            locks.exclusive(checkpoint_dir, repr(str(checkpoint_dir.parent))),
        ):
            prune(checkpoint_dir)


def check_space(folder: Path, saved: Checkpoint) -> None:
    """Raises OSError if a state doesn't fit on the disk: orbax would, with pages of tracebacks from its threads."""
    needed = sum(array.nbytes for kind in (saved.state, saved.history) for array in kind.values()) + 2**18
    disk = os.statvfs(folder)
    files = disk.f_favail if disk.f_files else MIN_FREE_INODES  # not all file systems have a limit
    if disk.f_bavail * disk.f_frsize < needed or files < MIN_FREE_INODES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Chunk:
    """Members that train together, and what is kept of them.

    Attributes:
      folder: where.
      start, stop: their places in the stage.
    """

    def __init__(self, folder: Path, every: float) -> None:
        """The chunk of a folder, to be saved `every` so many seconds; 0 is as often as possible."""
        self.folder = folder
        self.start, self.stop = (int(number) for number in folder.name.split("-")[-2:])
        self._every = every
        self._saved_at = time.monotonic()
        self._cost = 0.0

    @property
    def size(self) -> int:
        """The number of members."""
        return self.stop - self.start

    def load_result(self) -> PopulationResult | None:
        """What was measured, if the chunk is finished; None if not, or if a file is damaged, which is told.

        All processes of a run have it, or none.
        """
        if not distributed.from_primary(np.int32((self.folder / TRAINED).exists())):
            return None
        distributed.wait_visible(self.folder / TRAINED)
        found = None
        try:
            found = self._read_tables()
        except InputError as error:
            say(f"{error}; what it holds is measured again")
        return found if distributed.all_gather(np.int32(found is not None)).all() else None

    def _read_tables(self) -> PopulationResult:
        predictions = self.folder / run_folder.PREDICTIONS
        about = run_files.read_sealed(self.folder / TRAINED)
        for name, digest in about.pop("sha256").items():
            if run_files.digest_of(self.folder / name) != digest:
                raise InputError(f"{str(self.folder / name)!r} is damaged")
        return PopulationResult(
            run_files.read_table(self.folder / run_folder.METRICS),
            run_files.read_table(predictions) if predictions.exists() else pd.DataFrame(),
            **about,
        )

    def latest(self) -> Checkpoint | None:
        """The last state that is whole; None if there is none. Those that are damaged are moved aside, and told.

        All processes of a run get the same one.
        """
        found = None
        if distributed.primary() and (self.folder / STATES).is_dir():
            with self._manager() as manager:
                for step in sorted(manager.all_steps(), reverse=True):
                    try:
                        found = self._read(manager, step)
                        break
                    except MemoryError:  # nothing is wrong with the file
                        raise
                    except Exception as error:  # a damaged file raises nearly anything
                        self._set_aside(step, error)
        step = int(distributed.from_primary(np.int32(found.step if found else -1)))
        if step >= 0 and found is None:
            with self._manager() as manager:
                found = self._read(manager, step)
        return found

    def last(self) -> Checkpoint:
        """The state at the end of the training. Nothing is written.

        Raises:
          InputError: there is none that is whole.
        """
        states = self.folder / STATES
        try:
            with self._manager() as manager:
                return self._read(manager, max(manager.all_steps()))
        except MemoryError:
            raise
        except Exception as error:  # a damaged file raises nearly anything
            raise InputError(f"run: {str(states)!r} is gone or damaged ({one_line(error)})") from error

    def _set_aside(self, step: int, error: Exception) -> None:
        damaged = self.folder / f"damaged-{step}"
        path = self.folder / STATES / str(step)
        reason = one_line(error)
        say(f"{str(path)!r} is damaged ({reason}): moved to {str(damaged)!r}, going on from the state before")
        shutil.rmtree(damaged, ignore_errors=True)
        path.rename(damaged)

    @staticmethod
    def _read(manager: ocp.CheckpointManager, step: int) -> Checkpoint:
        arrays, about = ocp.args.StandardRestore(), ocp.args.JsonRestore()
        history = {HISTORY: arrays} if (manager.directory / str(step) / HISTORY).exists() else {}
        read = manager.restore(step, args=ocp.args.Composite(state=arrays, about=about, **history))
        expected = read.about.pop("digest")
        saved = Checkpoint(step, dict(read.state), dict(read.history) if history else {}, **read.about)
        if saved.digest != expected:
            raise ValueError("its SHA-256 is another one")
        return saved

    @contextlib.contextmanager
    def _manager(self) -> Iterator[ocp.CheckpointManager]:
        # Each process for itself: process 0 alone writes, and when the others read is settled by `latest`.
        alone = ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(), active_processes={jax.process_index()}
        )
        options = ocp.CheckpointManagerOptions(
            max_to_keep=MAX_TO_KEEP,
            enable_async_checkpointing=False,
            cleanup_tmp_directories=distributed.primary(),
            create=False,
            multiprocessing_options=alone,
        )
        silence_closed_loops()
        with ocp.CheckpointManager((self.folder / STATES).absolute(), options=options) as manager:
            yield manager

    def due(self) -> bool:
        """Whether it is time to save."""
        waited = time.monotonic() - self._saved_at
        return waited >= self._every and (not self._every or waited >= MAX_SAVE_OVERHEAD * self._cost)

    def save(self, saved: Checkpoint, since: float | None = None) -> None:
        """Keeps a state, whole or not at all, and drops older ones.

        Args:
          saved: the state.
          since: `time.monotonic` when it began to be taken, which is a part of what saving costs; None for now.

        Raises:
          StorageError: it can't be written. What was saved before is kept.
        """
        started = time.monotonic() if since is None else since
        if distributed.primary():
            about = {"seconds": saved.seconds, "wall": saved.wall, "digest": saved.digest}
            states = self.folder / STATES
            with run_files.writing(states):
                states.mkdir(parents=True, exist_ok=True)
                check_space(states, saved)
                with self._manager() as manager:
                    # orbax saves no empty tree, and in the first epoch nothing may have been measured.
                    history = {HISTORY: ocp.args.StandardSave(saved.history)} if saved.history else {}
                    state = ocp.args.StandardSave(saved.state)
                    manager.save(
                        saved.step, args=ocp.args.Composite(state=state, about=ocp.args.JsonSave(about), **history)
                    )
        self._saved_at = time.monotonic()
        self._cost = self._saved_at - started

    def finish(self, trained: PopulationResult, last: Checkpoint | None) -> None:
        """Keeps what was measured, and the last state if it is given; others are removed.

        Raises:
          StorageError: it can't be written.
        """
        if not distributed.primary():
            return
        states = self.folder / STATES
        with run_files.writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            if last is not None and not (states / str(last.step)).exists():
                self.save(last)
        about = trained._asdict()
        tables = {run_folder.METRICS: about.pop("metrics"), run_folder.PREDICTIONS: about.pop("predictions")}
        about["sha256"] = {}
        for name, table in tables.items():
            if len(table):
                run_files.write_table(self.folder / name, table)
                about["sha256"][name] = run_files.digest_of(self.folder / name)
        run_files.write_sealed(self.folder / TRAINED, about)
        if states.exists():
            for state in states.iterdir():
                if last is None or state.name != str(last.step):
                    shutil.rmtree(state, ignore_errors=True)

    def split_in_half(self) -> "Chunk":
        """The first half of these members as a chunk of its own. If some training is saved, both halves get theirs."""
        middle = self.start + self.size // 2
        stage = self.folder.name.rsplit("-", 2)[0]
        saved = self.latest()
        second, first = (
            Chunk(self.folder.with_name(f"{stage}-{start}-{stop}"), self._every)
            for start, stop in ((middle, self.stop), (self.start, middle))
        )
        if saved is not None:
            # The first half last: from then on it is found in the place of the whole.
            second.save(saved.part(slice(middle - self.start, None)))
            first.save(saved.part(slice(middle - self.start)))
        if distributed.primary():
            shutil.rmtree(self.folder, ignore_errors=True)
        return first


class ArmStore:
    """What is kept of an arm."""

    def __init__(self, folder: Path, every: float) -> None:
        """The store of a folder, whose chunks are saved `every` so many seconds."""
        self.folder = folder
        self._every = every

    def chunk(self, stage: str, start: int, size: int) -> Chunk:
        """The chunk of a stage that starts at a member: the one that was begun, else a new one of this size."""
        begun = chunk_at(self.folder, stage, start)
        stop = start + int(distributed.from_primary(np.int32(begun.size if begun else size)))
        return Chunk(self.folder / f"{stage}-{start}-{stop}", self._every)

    @property
    def finished(self) -> bool:
        """Whether the arm is: what process 0 says."""
        there = (self.folder / ARM).exists()
        if there and distributed.primary():
            try:
                self.row()
            except InputError as error:
                say(f"{error}; it is made again")
                (self.folder / ARM).unlink()
                there = False
        if not distributed.from_primary(np.int32(there)):
            return False
        distributed.wait_visible(self.folder / ARM)
        return True

    def row(self) -> dict[str, Any]:
        """The arm's row of the summary."""
        return run_files.read_sealed(self.folder / ARM)

    def finish(self, row: Mapping[str, Any]) -> None:
        """Keeps the arm's row of the summary: from then on it is finished."""
        if distributed.primary():
            run_files.write_sealed(self.folder / ARM, row)

    def prune(self) -> None:
        """Removes what the run folder has now, and leaves the trained networks."""
        left = {chunk.folder for chunk in tested_chunks(self.folder)}
        for path in self.folder.iterdir():
            if path.is_file() and path.name != locks.LOCK:
                path.unlink()
            elif path.is_dir():
                states = [state for state in (path / STATES).glob("*") if state.name.isdigit()]
                last = max(states, key=lambda state: int(state.name), default=None)
                if last is None or path not in left:
                    shutil.rmtree(path, ignore_errors=True)
                    continue
                for other in (*path.iterdir(), *(path / STATES).iterdir()):
                    if other.is_file():
                        other.unlink()
                    elif other not in (last, path / STATES):
                        shutil.rmtree(other, ignore_errors=True)


def chunk_at(folder: Path, stage: str, start: int) -> Chunk | None:
    """The smallest chunk of a stage that starts at a member: `Chunk.split_in_half` may leave the whole behind."""
    begun = [Chunk(path, 0) for path in folder.glob(f"{stage}-{start}-*") if path.is_dir()]
    return min(begun, key=lambda chunk: chunk.size, default=None)


def tested_chunks(folder: Path) -> list[Chunk]:
    """The chunks that hold an arm's tested members, one after the other."""
    found: list[Chunk] = []
    while chunk := chunk_at(folder, TESTED, found[-1].stop if found else 0):
        found.append(chunk)
    return found


def networks(folder: Path, members: int) -> Snapshot:
    """The last states of an arm's tested members, [members, ...], from what a finished run keeps of it.

    Raises:
      InputError: they are not all there.
    """
    chunks = tested_chunks(folder)
    if sum(chunk.size for chunk in chunks) != members:
        raise InputError(f"run: {str(folder)!r} doesn't hold the {members} trained networks (any more)")
    states = [chunk.last().state for chunk in chunks]
    return {name: np.concatenate([state[name] for state in states]) for name in states[0]}


@functools.cache
def silence_closed_loops() -> None:
    """Lets Python say nothing of closed event loops from now on.

    Where one array of a state can't be read or written, TensorStore's threads go on with the others, and have nobody
    left to tell: pages of tracebacks.
    """
    before = sys.unraisablehook

    def told(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = told
