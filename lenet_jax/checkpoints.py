"""What a run keeps while it isn't finished, so that the same command goes on where it was stopped.

``checkpoints/`` of the run folder has a folder for each arm. In it is one for each chunk of members that train
together, ``STAGE-START-STOP``: its last two states (orbax), and, once it is trained, what was measured of it (Parquet,
JSON). After the run only the last states of the members that were tested are left: the trained networks.

Files are read as arrays, tables and JSON, and nothing in them is executed. Every state carries its SHA-256.
"""

import contextlib
import dataclasses
import errno
import fcntl
import functools
import hashlib
import os
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import pandas as pd

from lenet_jax import cluster, results
from lenet_jax.errors import InputError, brief
from lenet_jax.population import Snapshot
from lenet_jax.progress import say

LOCK, TURN, ARM, TRAINED, STATES, ATTEMPTS = "lock", "turn", "arm.json", "trained.json", "states", "attempts"
HISTORY = "history"
"""Item of a state that holds what was measured, if anything was."""

TESTED, TRIED = "tested", "tried"
"""Stages: members that are an arm's result, and members that hyperparameters are chosen by."""

SHARE = 20
"""Saving takes at most one part in so many of the time."""

FILES = 100
"""More files and folders than orbax makes of a state."""

KEPT = 2
"""States of a chunk that are kept: if the last one is damaged, there is the one before."""


class Trained(NamedTuple):
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
class Saved:
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

    def part(self, members: slice) -> "Saved":
        """Some of the members, with their share of the time."""
        state = {name: array[members] for name, array in self.state.items()}
        history = {name: array[:, members] for name, array in self.history.items()}
        share = len(state["step"]) / len(self.state["step"])
        return Saved(self.step, state, history, share * self.seconds, share * self.wall)

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


@contextlib.contextmanager
def owned(folder: Path, name: str, shared: bool = False) -> Iterator[None]:
    """Makes this process the owner of a folder until it ends, however it ends.

    Args:
      folder: which is made if need be.
      name: what to call it.
      shared: with others that share it.

    Raises:
      InputError: another process has it, or it can't be written.
    """
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise InputError(f"workdir: {str(folder)!r} can't be written ({error.strerror or error})") from error
    with open(file, "r+") as stream:
        try:
            fcntl.flock(stream, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"workdir: {name} is in use by {stream.read().strip() or 'another process'}; wait for it to end, or "
                "name another folder"
            ) from error
        except OSError as error:
            say(f"{str(path)!r} can't be locked ({error.strerror}): see to it that no other process uses the folder")
        with contextlib.suppress(OSError):  # a full disk: the name of the owner is a courtesy
            stream.truncate(0)
            stream.write(f"process {os.getpid()} on {socket.gethostname()} ({' '.join(sys.argv)[:200]})\n")
            stream.flush()
        yield


@contextlib.contextmanager
def alone(kept: Path) -> Iterator[None]:
    """Waits until no other job is in here: those of single arms share a folder, and write some of its files in turns.

    Raises:
      StorageError: the folder can't be written.
    """
    if not cluster.primary():
        yield
        return
    with results.writing(kept / TURN):
        file = os.open(kept / TURN, os.O_RDWR | os.O_CREAT, 0o666)
    with open(file):
        with contextlib.suppress(OSError):  # no locks there: `owned` said so
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def move_aside(workdir: Path) -> Path | None:
    """Renames a run folder, so that a new run can have its name; returns the new name, or None if there is none.

    Raises:
      InputError: it holds no run, a process is at it, or it can't be renamed.
    """
    if not workdir.exists():
        return None
    if not (workdir / results.CONFIG).exists() and results.holds_others(workdir):
        raise InputError(f"workdir: {str(workdir)!r} holds no run that --fresh could move aside; name a new folder")
    if Path.cwd().is_relative_to(workdir.resolve()):
        raise InputError(f"workdir: {str(workdir)!r} is where you are, and --fresh would move it; go to another folder")
    with owned(workdir / results.CHECKPOINTS, repr(str(workdir))):
        moved = workdir.with_name(f"{workdir.name}-{time.strftime('%Y-%m-%dT%H-%M-%S')}")
        try:
            workdir.rename(moved)
        except OSError as error:
            raise InputError(
                f"workdir: {str(workdir)!r} can't be moved to {str(moved)!r} ({error.strerror})"
            ) from error
    return moved


def begin(kept: Path, environment: Mapping[str, Any]) -> None:
    """Notes an attempt at a run; says so if an earlier one was made elsewhere: numbers can differ by rounding."""
    before = attempts(kept)
    for name in ("versions", "processor"):
        if before and before[0][name] != environment[name]:
            say(f"this run was begun with {name} {before[0][name]}: numbers may differ in their last digits")
    with results.writing(kept / ATTEMPTS):
        (kept / ATTEMPTS).mkdir(exist_ok=True)
    name = f"{environment['started'].replace(':', '-')}-{secrets.token_hex(4)}.json"
    results.write_sealed(kept / ATTEMPTS / name, environment)


def attempts(kept: Path) -> list[dict[str, Any]]:
    """The environments of all attempts at a run, the first one first. Those that are damaged are dropped, and told."""
    found = []
    for path in sorted((kept / ATTEMPTS).glob("*.json")):
        try:
            found.append(results.read_sealed(path))
        except InputError as error:
            say(f"{error}; the provenance won't have this attempt")
            path.unlink(missing_ok=True)
    return found


def tidy(kept: Path) -> None:
    """Removes what a finished run needs no more; what tells of its attempts last, so that it is known what is left."""
    for folder in kept.iterdir():
        if folder.is_dir() and folder.name != ATTEMPTS:
            Store(folder, 0).tidy()
    (kept / TURN).unlink(missing_ok=True)
    shutil.rmtree(kept / ATTEMPTS, ignore_errors=True)


def tidy_later(kept: Path) -> None:
    """`tidy`, if a run was ended before it came to it."""
    if (kept / ATTEMPTS).is_dir():
        with contextlib.suppress(OSError, InputError), owned(kept, repr(str(kept.parent))):
            tidy(kept)


def check_space(folder: Path, saved: Saved) -> None:
    """Raises OSError if a state doesn't fit on the disk: orbax would, with pages of tracebacks from its threads."""
    needed = sum(array.nbytes for kind in (saved.state, saved.history) for array in kind.values()) + 2**18
    disk = os.statvfs(folder)
    files = disk.f_favail if disk.f_files else FILES  # not all file systems have a limit
    if disk.f_bavail * disk.f_frsize < needed or files < FILES:
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

    def trained(self) -> Trained | None:
        """What was measured, if the chunk is finished; None if not, or if a file is damaged, which is told.

        All processes of a run have it, or none.
        """
        if not cluster.of_primary(np.int32((self.folder / TRAINED).exists())):
            return None
        cluster.check_sees(self.folder / TRAINED)
        found = None
        try:
            found = self._read_tables()
        except InputError as error:
            say(f"{error}; what it holds is measured again")
        return found if cluster.everywhere(np.int32(found is not None)).all() else None

    def _read_tables(self) -> Trained:
        predictions = self.folder / results.PREDICTIONS
        about = results.read_sealed(self.folder / TRAINED)
        for name, digest in about.pop("sha256").items():
            if results.digest_of(self.folder / name) != digest:
                raise InputError(f"{str(self.folder / name)!r} is damaged")
        return Trained(
            results.read_table(self.folder / results.METRICS),
            results.read_table(predictions) if predictions.exists() else pd.DataFrame(),
            **about,
        )

    def latest(self) -> Saved | None:
        """The last state that is whole; None if there is none. Those that are damaged are moved aside, and told.

        All processes of a run get the same one.
        """
        found = None
        if cluster.primary() and (self.folder / STATES).is_dir():
            with self._manager() as manager:
                for step in sorted(manager.all_steps(), reverse=True):
                    try:
                        found = self._read(manager, step)
                        break
                    except MemoryError:  # nothing is wrong with the file
                        raise
                    except Exception as error:  # a damaged file raises nearly anything
                        self._set_aside(step, error)
        step = int(cluster.of_primary(np.int32(found.step if found else -1)))
        if step >= 0 and found is None:
            with self._manager() as manager:
                found = self._read(manager, step)
        return found

    def last(self) -> Saved:
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
            raise InputError(f"run: {str(states)!r} is gone or damaged ({brief(error)})") from error

    def _set_aside(self, step: int, error: Exception) -> None:
        damaged = self.folder / f"damaged-{step}"
        path = self.folder / STATES / str(step)
        reason = brief(error)
        say(f"{str(path)!r} is damaged ({reason}): moved to {str(damaged)!r}, going on from the state before")
        shutil.rmtree(damaged, ignore_errors=True)
        path.rename(damaged)

    @staticmethod
    def _read(manager: ocp.CheckpointManager, step: int) -> Saved:
        arrays, about = ocp.args.StandardRestore(), ocp.args.JsonRestore()
        history = {HISTORY: arrays} if (manager.directory / str(step) / HISTORY).exists() else {}
        read = manager.restore(step, args=ocp.args.Composite(state=arrays, about=about, **history))
        expected = read.about.pop("digest")
        saved = Saved(step, dict(read.state), dict(read.history) if history else {}, **read.about)
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
            max_to_keep=KEPT,
            enable_async_checkpointing=False,
            cleanup_tmp_directories=cluster.primary(),
            create=False,
            multiprocessing_options=alone,
        )
        hush()
        with ocp.CheckpointManager((self.folder / STATES).absolute(), options=options) as manager:
            yield manager

    def due(self) -> bool:
        """Whether it is time to save."""
        waited = time.monotonic() - self._saved_at
        return waited >= self._every and (not self._every or waited >= SHARE * self._cost)

    def save(self, saved: Saved, since: float | None = None) -> None:
        """Keeps a state, whole or not at all, and drops older ones.

        Args:
          saved: the state.
          since: `time.monotonic` when it began to be taken, which is a part of what saving costs; None for now.

        Raises:
          StorageError: it can't be written. What was saved before is kept.
        """
        started = time.monotonic() if since is None else since
        if cluster.primary():
            about = {"seconds": saved.seconds, "wall": saved.wall, "digest": saved.digest}
            states = self.folder / STATES
            with results.writing(states):
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

    def finish(self, trained: Trained, last: Saved | None) -> None:
        """Keeps what was measured, and the last state if it is given; others are removed.

        Raises:
          StorageError: it can't be written.
        """
        if not cluster.primary():
            return
        states = self.folder / STATES
        with results.writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            if last is not None and not (states / str(last.step)).exists():
                self.save(last)
        about = trained._asdict()
        tables = {results.METRICS: about.pop("metrics"), results.PREDICTIONS: about.pop("predictions")}
        about["sha256"] = {}
        for name, table in tables.items():
            if len(table):
                results.write_table(self.folder / name, table)
                about["sha256"][name] = results.digest_of(self.folder / name)
        results.write_sealed(self.folder / TRAINED, about)
        if states.exists():
            for state in states.iterdir():
                if last is None or state.name != str(last.step):
                    shutil.rmtree(state, ignore_errors=True)

    def halved(self) -> "Chunk":
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
        if cluster.primary():
            shutil.rmtree(self.folder, ignore_errors=True)
        return first


class Store:
    """What is kept of an arm."""

    def __init__(self, folder: Path, every: float) -> None:
        """The store of a folder, whose chunks are saved `every` so many seconds."""
        self.folder = folder
        self._every = every

    def chunk(self, stage: str, start: int, size: int) -> Chunk:
        """The chunk of a stage that starts at a member: the one that was begun, else a new one of this size."""
        begun = chunk_at(self.folder, stage, start)
        stop = start + int(cluster.of_primary(np.int32(begun.size if begun else size)))
        return Chunk(self.folder / f"{stage}-{start}-{stop}", self._every)

    @property
    def finished(self) -> bool:
        """Whether the arm is: what process 0 says."""
        there = (self.folder / ARM).exists()
        if there and cluster.primary():
            try:
                self.row()
            except InputError as error:
                say(f"{error}; it is made again")
                (self.folder / ARM).unlink()
                there = False
        if not cluster.of_primary(np.int32(there)):
            return False
        cluster.check_sees(self.folder / ARM)
        return True

    def row(self) -> dict[str, Any]:
        """The arm's row of the summary."""
        return results.read_sealed(self.folder / ARM)

    def finish(self, row: Mapping[str, Any]) -> None:
        """Keeps the arm's row of the summary: from then on it is finished."""
        if cluster.primary():
            results.write_sealed(self.folder / ARM, row)

    def tidy(self) -> None:
        """Removes what the run folder has now, and leaves the trained networks."""
        left = {chunk.folder for chunk in tested_chunks(self.folder)}
        for path in self.folder.iterdir():
            if path.is_file() and path.name != LOCK:
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
    """The chunk of a stage that starts at a member: the smallest one, for `Chunk.halved` may leave the whole behind."""
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
def hush() -> None:
    """Lets Python say nothing of closed event loops from now on.

    Where one array of a state can't be read or written, TensorStore's threads go on with the others, and have nobody
    left to tell: pages of tracebacks.
    """
    before = sys.unraisablehook

    def told(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = told
