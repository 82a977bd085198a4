"""Checkpoints: what an unfinished run keeps, so that the same command resumes it.

``checkpoints/`` of the run folder has a folder per arm, and in it one per chunk of members that train together,
``STAGE-START-STOP``: the chunk's last two states (see `states`) and, once it is trained, its measurements (Parquet,
JSON). A finished run keeps only the last states of tested members: the trained networks.

Files are read as arrays, tables and JSON; nothing in them is executed.
"""

import contextlib
import secrets
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from lenet_jax import distributed
from lenet_jax.errors import InputError, one_line
from lenet_jax.population import Snapshot
from lenet_jax.run import files as run_files
from lenet_jax.run import folder as run_folder
from lenet_jax.run import locks
from lenet_jax.run.plan import TESTED
from lenet_jax.run.progress import say
from lenet_jax.run.states import Checkpoint, read_state, state_manager, write_state

ARM, TRAINED, STATES, ATTEMPTS = "arm.json", "trained.json", "states", "attempts"
MAX_SAVE_OVERHEAD = 0.05
"""Largest fraction of the training time that is spent on saving, unless every segment is to be saved."""


class PopulationResult(NamedTuple):
    """Measurements of trained members.

    Attributes:
      metrics: one row per epoch, split, metric and seed.
      predictions: one row per seed and test image; no rows if the config doesn't ask for them.
      seconds: training time.
      wall: seconds in total.
      samples: samples trained on, over all members.
      memory: bytes at the peak, as the compiler predicted.
    """

    metrics: pd.DataFrame
    predictions: pd.DataFrame
    seconds: float
    wall: float
    samples: int
    memory: int


class Chunk:
    """Members that train together, and their files.

    Attributes:
      folder: the folder of the files.
      start, stop: the members' indices in the stage.
    """

    def __init__(self, folder: Path, every: float) -> None:
        """The chunk of a folder, saved `every` that many seconds; 0 saves every segment."""
        self.folder = folder
        self.start, self.stop = (int(number) for number in folder.name.split("-")[-2:])
        self._every = every
        self._saved_at = time.monotonic()
        self._cost_s = 0.0

    @property
    def size(self) -> int:
        """The number of members."""
        return self.stop - self.start

    def load_result(self) -> PopulationResult | None:
        """The measurements, if the chunk is finished; None if not, or if a file is corrupt, which is reported.

        All processes of a run get them, or none.
        """
        if not distributed.wait_visible(self.folder / TRAINED):
            return None
        found = None
        try:
            found = self._read_result()
        except InputError as error:
            say(f"{error}; these members are measured again")
        return found if distributed.all_gather(np.int32(found is not None)).all() else None

    def _read_result(self) -> PopulationResult:
        about = run_files.read_sealed(self.folder / TRAINED)
        for name, digest in about.pop("sha256").items():
            if run_files.digest_of(self.folder / name) != digest:
                raise InputError(f"{str(self.folder / name)!r} is corrupt")
        predictions = self.folder / run_folder.PREDICTIONS
        return PopulationResult(
            run_files.read_table(self.folder / run_folder.METRICS),
            run_files.read_table(predictions) if predictions.exists() else pd.DataFrame(),
            **about,
        )

    def latest(self) -> Checkpoint | None:
        """The last valid state, for all processes of a run; None if there is none. Corrupt ones are moved aside."""
        found = self._newest() if distributed.primary() else None
        step = distributed.from_primary(found.step if found else -1)
        if step >= 0 and not found:
            with state_manager(self.folder / STATES) as manager:
                found = read_state(manager, step)
        return found

    def _newest(self) -> Checkpoint | None:
        states = self.folder / STATES
        if states.is_dir():
            with state_manager(states) as manager:
                for step in sorted(manager.all_steps(), reverse=True):
                    try:
                        return read_state(manager, step)
                    except MemoryError:  # the file is valid
                        raise
                    except Exception as error:  # a corrupt file can raise anything
                        aside = self.folder / f"damaged-{step}"
                        say(
                            f"{str(states / str(step))!r} is corrupt ({one_line(error)}): moved to {str(aside)!r}, "
                            "resuming from the state before"
                        )
                        shutil.rmtree(aside, ignore_errors=True)
                        (states / str(step)).rename(aside)
        return None

    def last(self) -> Checkpoint:
        """The state at the end of the training. Writes nothing.

        Raises:
          InputError: it is missing or corrupt.
        """
        states = self.folder / STATES
        try:
            with state_manager(states) as manager:
                return read_state(manager, max(manager.all_steps()))
        except MemoryError:
            raise
        except Exception as error:  # a corrupt file can raise anything
            raise InputError(f"run: {str(states)!r} is missing or corrupt ({one_line(error)})") from error

    def due(self) -> bool:
        """Whether it is time to save."""
        waited = time.monotonic() - self._saved_at
        return waited >= self._every and (not self._every or self._cost_s <= MAX_SAVE_OVERHEAD * waited)

    def save(self, saved: Checkpoint, since: float | None = None) -> None:
        """Saves a state, whole or not at all, and removes older ones.

        Args:
          saved: the state.
          since: `time.monotonic()` before the snapshot, whose time counts as a cost of saving; None for now.

        Raises:
          StorageError: the state can't be written. States saved before are kept.
        """
        started = time.monotonic() if since is None else since
        write_state(self.folder / STATES, saved)
        self._saved_at = time.monotonic()
        self._cost_s = self._saved_at - started

    @distributed.primary_only
    def finish(self, trained: PopulationResult, last: Checkpoint | None) -> None:
        """Saves the measurements and the last state, if it is given, and removes all other states.

        Raises:
          StorageError: a file can't be written.
        """
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
        for state in states.glob("*"):
            if last is None or state.name != str(last.step):
                shutil.rmtree(state, ignore_errors=True)

    def split_in_half(self) -> "Chunk":
        """The first half of the members as a chunk of its own. Both halves get their part of the saved state."""
        middle = self.start + self.size // 2
        stage = self.folder.name.rsplit("-", 2)[0]
        first, second = (
            Chunk(self.folder.with_name(f"{stage}-{start}-{stop}"), self._every)
            for start, stop in ((self.start, middle), (middle, self.stop))
        )
        saved = self.latest()
        if saved is not None:
            # The first half comes last: once it exists, `chunk_at` finds it instead of the whole.
            second.save(saved.part(slice(middle - self.start, None)))
            first.save(saved.part(slice(middle - self.start)))
        shutil.rmtree(self.folder, ignore_errors=True)  # only one process splits, see `memory.smaller_limit`
        return first


class ArmStore:
    """The checkpoints of an arm."""

    def __init__(self, folder: Path, every: float) -> None:
        """The store of a folder, whose chunks are saved `every` that many seconds."""
        self.folder = folder
        self._every = every

    def chunk(self, stage: str, start: int, size: int) -> Chunk:
        """The chunk of a stage that starts at a member: the one that was begun, or else a new one of this size."""
        begun = chunk_at(self.folder, stage, start)
        stop = start + distributed.from_primary(begun.size if begun else size)
        return Chunk(self.folder / f"{stage}-{start}-{stop}", self._every)

    @property
    def finished(self) -> bool:
        """Whether the arm is finished, according to process 0, which removes a corrupt row."""
        path = self.folder / ARM
        if distributed.primary() and path.exists():
            try:
                self.row()
            except InputError as error:
                say(f"{error}; it is rebuilt")
                path.unlink()
        return distributed.wait_visible(path)

    def row(self) -> dict[str, Any]:
        """The arm's row of the summary."""
        return run_files.read_sealed(self.folder / ARM)

    @distributed.primary_only
    def finish(self, row: Mapping[str, Any]) -> None:
        """Saves the arm's row of the summary, which marks it as finished."""
        run_files.write_sealed(self.folder / ARM, row)

    def prune(self) -> None:
        """Removes what the run folder contains by now, and keeps the trained networks."""
        keep = {self.folder / locks.LOCK}
        for chunk in tested_chunks(self.folder):
            states = chunk.folder / STATES
            if steps := [int(path.name) for path in states.glob("*") if path.name.isdigit()]:
                keep |= {chunk.folder, states, states / str(max(steps))}
        for pattern in ("*", "*/*", f"*/{STATES}/*"):
            for path in self.folder.glob(pattern):
                if path not in keep and path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                elif path not in keep:
                    path.unlink()


def chunk_at(folder: Path, stage: str, start: int) -> Chunk | None:
    """The smallest chunk of a stage that starts at a member: `Chunk.split_in_half` may leave the whole behind."""
    begun = [Chunk(path, 0) for path in folder.glob(f"{stage}-{start}-*") if path.is_dir()]
    return min(begun, key=lambda chunk: chunk.size, default=None)


def tested_chunks(folder: Path) -> list[Chunk]:
    """The chunks of an arm's tested members, in order."""
    found: list[Chunk] = []
    while chunk := chunk_at(folder, TESTED, found[-1].stop if found else 0):
        found.append(chunk)
    return found


def networks(folder: Path, members: int) -> Snapshot:
    """The last states of an arm's tested members, [members, ...], in a finished run.

    Raises:
      InputError: some are missing.
    """
    chunks = tested_chunks(folder)
    if sum(chunk.size for chunk in chunks) != members:
        raise InputError(f"run: {str(folder)!r} doesn't contain the {members} trained networks (any more)")
    states = [chunk.last().state for chunk in chunks]
    return {name: np.concatenate([state[name] for state in states]) for name in states[0]}


@distributed.primary_only
def record_attempt(checkpoint_dir: Path, environment: Mapping[str, Any]) -> None:
    """Records an attempt at a run; reports if the first one had other versions or another processor."""
    before = read_attempts(checkpoint_dir)
    for name in ("versions", "processor"):
        if before and before[0][name] != environment[name]:
            say(f"this run was begun with {name} {before[0][name]}: low-order digits may differ")
    with run_files.writing(checkpoint_dir / ATTEMPTS):
        (checkpoint_dir / ATTEMPTS).mkdir(exist_ok=True)
    name = f"{environment['started'].replace(':', '-')}-{secrets.token_hex(4)}.json"
    run_files.write_sealed(checkpoint_dir / ATTEMPTS / name, environment)


def read_attempts(checkpoint_dir: Path) -> list[dict[str, Any]]:
    """The environments of all attempts at a run, in order. Corrupt ones are reported and removed."""
    found = []
    for path in sorted((checkpoint_dir / ATTEMPTS).glob("*.json")):
        try:
            found.append(run_files.read_sealed(path))
        except InputError as error:
            say(f"{error}; the provenance will lack this attempt")
            path.unlink(missing_ok=True)
    return found


def prune(checkpoint_dir: Path) -> None:
    """Removes what a finished run doesn't need; the attempts last, as a sign that something is left to remove."""
    for folder in checkpoint_dir.iterdir():
        if folder.is_dir() and folder.name != ATTEMPTS:
            ArmStore(folder, 0).prune()
    (checkpoint_dir / locks.TURN).unlink(missing_ok=True)
    shutil.rmtree(checkpoint_dir / ATTEMPTS, ignore_errors=True)


def prune_later(checkpoint_dir: Path) -> None:
    """Calls `prune` if the process that finished the run ended before it could."""
    if (checkpoint_dir / ATTEMPTS).is_dir():
        with (
            contextlib.suppress(OSError, InputError),
            locks.exclusive(checkpoint_dir, repr(str(checkpoint_dir.parent))),
        ):
            prune(checkpoint_dir)
