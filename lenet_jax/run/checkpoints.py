"""Checkpoints: what an unfinished run keeps, so that the same command resumes it.

``checkpoints/`` has a folder per arm, and in it one per chunk of members that train together, ``PHASE-START-STOP``: the
chunk's last two states (see `states`) and, once it is trained, its measurements (Parquet, JSON). A finished run keeps
only the last states of tested members: the trained networks. Nothing in these files is executed.
"""

import contextlib
import dataclasses
import re
import secrets
import shutil
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from lenet_jax import distributed
from lenet_jax.errors import InputError, one_line
from lenet_jax.population import Snapshot
from lenet_jax.run import cleanup, locks, schema
from lenet_jax.run.cleanup import ARM, ATTEMPTS, DAMAGED, STATES, TRAINED
from lenet_jax.run.files import digest_of, read_sealed, read_table, write_sealed, write_table, writing
from lenet_jax.run.folder import METRICS, PREDICTIONS, ArmSummary
from lenet_jax.run.plan import TESTED
from lenet_jax.run.progress import say
from lenet_jax.run.states import Checkpoint, OtherRunError, check_identity, read_state, steps_in, write_state

MAX_SAVE_OVERHEAD = 0.05
"""Largest fraction of the training time that is spent on saving, unless every segment is to be saved."""


class PopulationResult(NamedTuple):
    """Measurements of trained members.

    Attributes:
      metrics: one row per epoch, split, metric and seed.
      predictions: one row per seed and test image; no rows if the config doesn't ask for them.
      seconds, wall: training time, and time in total.
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
    """Members that train together, `start` to `stop` of their phase, and the folder of their files in a store."""

    def __init__(self, folder: Path, store: "ArmStore") -> None:
        self.folder = folder
        self.start, self.stop = (int(number) for number in folder.name.split("-")[-2:])
        self._store = store
        self._saved_at = time.monotonic()
        self._cost_s = 0.0

    @property
    def size(self) -> int:
        """The number of members."""
        return self.stop - self.start

    def load_result(self) -> PopulationResult | None:
        """The measurements, if the chunk is finished and no process finds a corrupt file, which is reported."""
        if not distributed.wait_visible(self.folder / TRAINED):
            return None
        found = None
        try:
            about = read_sealed(self.folder / TRAINED)
            check_identity(self.folder / TRAINED, about.pop("identity", None), self._store.identity)
            tables = {PREDICTIONS: pd.DataFrame()}
            digests = about.pop("sha256")
            for name in (METRICS, PREDICTIONS):
                if name in digests and digest_of(self.folder / name) != digests[name]:
                    raise InputError(f"{str(self.folder / name)!r} is corrupt")
                if name in digests:
                    tables[name] = read_table(self.folder / name)
            if PREDICTIONS in digests and not {*schema.SCORE_COLUMNS} <= {*tables[PREDICTIONS]}:
                raise InputError(f"{str(self.folder / PREDICTIONS)!r} is of a version that stored no nll and brier")
            found = PopulationResult(tables[METRICS], tables[PREDICTIONS], **about)
        except OtherRunError:
            raise
        except (InputError, KeyError, TypeError) as error:  # the last two: sealed, but not by us
            say(f"{one_line(error)}; these members are measured again")
        return found if distributed.all_gather(np.int32(found is not None)).all() else None

    def latest(self) -> Checkpoint | None:
        """The last valid state, for all processes of a run; None if there is none. Corrupt ones are moved aside."""
        states, found = self.folder / STATES, None
        for step in reversed(steps_in(states)) if distributed.primary() else ():
            try:
                found = read_state(states, step, self.size, self._store.identity)
                break
            except OtherRunError:
                raise
            except InputError as error:
                aside = self.folder / f"{DAMAGED}-{step}"
                say(f"{error}: moved to {str(aside)!r}, resuming from the state before")
                shutil.rmtree(aside, ignore_errors=True)
                (states / str(step)).rename(aside)
        agreed = distributed.from_primary(found.step if found else -1)
        return read_state(states, agreed, self.size, self._store.identity) if agreed >= 0 and not found else found

    def last(self) -> Checkpoint:
        """The state at the end of the training; raises InputError if it is missing or corrupt. Moves nothing."""
        steps = steps_in(self.folder / STATES)
        if not steps:
            raise InputError(f"run: {str(self.folder / STATES)!r} is missing")
        return read_state(self.folder / STATES, steps[-1], self.size, self._store.identity)

    def due(self) -> bool:
        """Whether it is time to save."""
        waited, every = time.monotonic() - self._saved_at, self._store.every
        return waited >= every and (not every or self._cost_s <= MAX_SAVE_OVERHEAD * waited)

    def save(self, saved: Checkpoint, since: float | None = None) -> None:
        """Saves a state and removes older ones; raises StorageError, and keeps them, if it can't be written whole.

        The cost of saving counts from `since`: `time.monotonic()` before the snapshot was taken; None for now.
        """
        started = time.monotonic() if since is None else since
        self._store.check_held()
        write_state(self.folder / STATES, saved, self._store.identity)
        self._saved_at = time.monotonic()
        self._cost_s = self._saved_at - started

    @distributed.primary_only
    def finish(self, trained: PopulationResult, last: Checkpoint | None) -> None:
        """Saves the measurements and the last state, if it is given, and removes all other states."""
        states = self.folder / STATES
        self._store.check_held()
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        if last is not None and not (states / str(last.step)).exists():
            self.save(last)
        about = trained._asdict() | {"identity": self._store.identity}
        tables = {METRICS: about.pop("metrics"), PREDICTIONS: about.pop("predictions")}
        about["sha256"] = {}
        for name, table in tables.items():
            if len(table):
                write_table(self.folder / name, table)
                about["sha256"][name] = digest_of(self.folder / name)
        write_sealed(self.folder / TRAINED, about)
        cleanup.remove(states, cleanup.OF_STATES, keep={states / str(last.step)} if last else ())

    def split_in_half(self) -> None:
        """Replaces this chunk by two, which get their parts of the saved state. Only one process calls it."""
        middle = self.start + self.size // 2
        phase = self.folder.name.rsplit("-", 2)[0]
        if saved := self.latest():
            # The first half comes last: once it exists, `chunk_at` finds it instead of the whole.
            second = Chunk(self.folder.with_name(f"{phase}-{middle}-{self.stop}"), self._store)
            second.save(saved.part(slice(middle - self.start, None)))
            first = Chunk(self.folder.with_name(f"{phase}-{self.start}-{middle}"), self._store)
            first.save(saved.part(slice(middle - self.start)))
        cleanup.remove(self.folder.parent, cleanup.Owned("", {re.escape(self.folder.name): cleanup.OF_CHUNK}))


@dataclasses.dataclass(frozen=True)
class ArmStore:
    """The checkpoints of an arm.

    Attributes:
      folder: their folder.
      every: seconds between states of members in training; 0 saves each segment.
      identity: see `plan.ArmPlan.identity`; "" reads everything, as readers of older runs have to.
      lock: of the run folder, in the process that writes.
    """

    folder: Path
    every: float = 0
    identity: str = ""
    lock: locks.Lock | None = None

    def check_held(self) -> None:
        """Raises StorageError if the run folder isn't this process's any more; see `locks.Lock.check_held`."""
        if self.lock:
            self.lock.check_held()

    def chunk(self, phase: str, start: int, size: int) -> Chunk:
        """The chunk of a phase that starts at a member: the one that was begun, or else a new one of this size."""
        begun = chunk_at(self, phase, start)
        stop = start + distributed.from_primary(begun.size if begun else size)
        return Chunk(self.folder / f"{phase}-{start}-{stop}", self)

    @property
    def finished(self) -> bool:
        """Whether the arm is finished, according to process 0, which removes a corrupt row."""
        path = self.folder / ARM
        if distributed.primary() and path.exists():
            try:
                self.row()
            except OtherRunError:
                raise
            except InputError as error:
                say(f"{error}; it is rebuilt")
                path.unlink()
        return distributed.wait_visible(path)

    def row(self) -> dict[str, Any]:
        """The arm's row of the summary; raises InputError if it is corrupt or another arm's."""
        row = read_sealed(self.folder / ARM)
        check_identity(self.folder / ARM, row.get("identity"), self.identity)
        ArmSummary.from_json(row)
        return row

    @distributed.primary_only
    def finish(self, row: Mapping[str, Any]) -> None:
        """Saves the arm's row of the summary, which marks it as finished."""
        self.check_held()
        write_sealed(self.folder / ARM, row)

    @property
    def needed(self) -> set[Path]:
        """What stays of a finished run: the trained networks, and the lock."""
        keep = {self.folder / cleanup.LOCK}
        for chunk in tested_chunks(self):
            states = chunk.folder / STATES
            keep |= {states / str(step) for step in steps_in(states)[-1:]}
        return keep


def chunk_at(store: ArmStore, phase: str, start: int) -> Chunk | None:
    """The smallest chunk of a phase that starts at a member: `Chunk.split_in_half` may leave the whole behind.

    A folder without anything saved isn't one: others may have put a file into it, so that it could not be removed.
    """
    found = [path for path in store.folder.glob(f"{phase}-{start}-*") if re.fullmatch(r".*-\d+-\d+", path.name)]
    begun = [Chunk(path, store) for path in found if (path / STATES).is_dir() or (path / TRAINED).is_file()]
    return min(begun, key=lambda chunk: chunk.size, default=None)


def tested_chunks(store: ArmStore) -> list[Chunk]:
    """The chunks of an arm's tested members, in order."""
    found: list[Chunk] = []
    while chunk := chunk_at(store, TESTED, found[-1].stop if found else 0):
        found.append(chunk)
    return found


def networks(store: ArmStore, members: int) -> Snapshot:
    """The last states of an arm's tested members, [members, ...]; raises InputError if some are missing."""
    chunks = tested_chunks(store)
    if sum(chunk.size for chunk in chunks) != members:
        raise InputError(
            f"run: {str(store.folder)!r} lacks the {members} trained networks, which stored results do not keep"
        )
    states = [chunk.last().state for chunk in chunks]
    return {name: np.concatenate([state[name] for state in states]) for name in states[0]}


@distributed.primary_only
def record_attempt(checkpoint_dir: Path, environment: Mapping[str, Any]) -> None:
    """Records an attempt at a run; reports if the first one had other versions or another processor.

    Raises:
      InputError: it had other data.
    """
    first, *_ = [*read_attempts(checkpoint_dir), environment]
    check_data(first.get("fingerprints", {}), environment["fingerprints"])
    for name in ("versions", "processor"):
        if first.get(name) != environment[name]:
            say(f"this run was begun with {name} {first.get(name)}: low-order digits may differ")
    for name, value in first.get("jax_settings", {}).items():
        if value != environment["jax_settings"].get(name, value):
            raise InputError(
                f"workdir: {str(checkpoint_dir.parent)!r} was begun with {name} {value!r}, and now it is "
                f"{environment['jax_settings'][name]!r}; set it as before, or pass --fresh to start again"
            )
    attempts = checkpoint_dir / ATTEMPTS
    with writing(attempts):
        attempts.mkdir(exist_ok=True)
    name = f"{environment['started'].replace(':', '-')}-{secrets.token_hex(4)}.json"
    write_sealed(attempts / name, environment)


def check_data(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raises InputError if a data set has another fingerprint than when the run began."""
    for name in before.keys() & now.keys():
        if before[name] != now[name]:
            raise InputError(
                f"dataset: {name!r} holds other images or labels than when this run began (fingerprint {now[name]}, "
                f"then {before[name]}); restore them, or name another folder for a new run"
            )


def read_attempts(checkpoint_dir: Path) -> list[dict[str, Any]]:
    """The environments of all attempts at a run, in order. Corrupt ones are reported and removed."""
    found = []
    ours = re.compile(cleanup.OF_ATTEMPTS.files)
    for path in filter(lambda path: ours.fullmatch(path.name), sorted((checkpoint_dir / ATTEMPTS).glob("*.json"))):
        try:
            attempt = read_sealed(path)
            schema.check_fields(attempt, schema.PROVENANCE_FIELDS, str(path))
            found.append(attempt)
        except InputError as error:
            say(f"{error}; the provenance will lack this attempt")
            path.unlink(missing_ok=True)
    return found


def prune(checkpoint_dir: Path, stores: Collection[ArmStore]) -> None:
    """Removes what a finished run doesn't need; the attempts last, as a sign that something is left to remove."""
    keep = {checkpoint_dir / cleanup.LOCK}.union(*(store.needed for store in stores))
    owned = cleanup.of_run([store.folder.name for store in stores])
    attempts = {ATTEMPTS: owned.folders[ATTEMPTS]}
    cleanup.remove(checkpoint_dir, owned, keep | {*(checkpoint_dir / ATTEMPTS).glob("*")})
    cleanup.remove(checkpoint_dir, cleanup.Owned("", attempts))


@distributed.primary_only
def prune_later(checkpoint_dir: Path, stores: Collection[ArmStore]) -> None:
    """Calls `prune` if the process that finished the run ended before it could, and no other process is at work."""
    if (checkpoint_dir / ATTEMPTS).is_dir() and not checkpoint_dir.is_symlink():
        owner = repr(str(checkpoint_dir.parent))
        with contextlib.suppress(OSError, InputError), locks.exclusive(checkpoint_dir, owner):
            prune(checkpoint_dir, stores)
