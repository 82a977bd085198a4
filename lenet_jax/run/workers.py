"""Populations on a CPU: a worker process for each core, with one thread, trains its share of the members.

In one process all of XLA's devices share a pool of threads, which take pieces of each other's work: members' arrays
move from core to core, and threads are put to sleep and woken for microseconds of work. Processes that are pinned to a
core each have none of that; `experiments/results/throughput` holds what it gains.

`Workers` has the functions of `population` that an experiment needs, and gives the same results.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, NamedTuple

import jax
import numpy as np

from lenet_jax import population
from lenet_jax.errors import WorkerError
from lenet_jax.evaluate import Evaluation, Predictions
from lenet_jax.population import Population, Snapshot
from lenet_jax.run.signals import STOPPING
from lenet_jax.train import Images, Metrics, Recipe

SPAWN = multiprocessing.get_context("spawn")
"""Fresh processes: JAX's threads don't survive a fork."""

PATIENCE = 0.2
"""Seconds that a worker looks for its next command before it sleeps. A core of a virtual machine that has slept for a
moment can be slower for a while afterwards."""


class Share:
    """What a worker process does: `population`'s functions, for its share of the members.

    Attributes:
      images: what is trained on.
      members: in training.
    """

    images: Images
    members: Population

    def load(self, images: Images) -> None:
        """Takes the images that later populations train on."""
        self.images = images

    def compile(self, recipe: Recipe, members: int) -> None:
        """Compiles a population's programs into the cache on disk, where all workers find them."""
        mesh = population.mesh_of(jax.devices()[:1])
        population.compile_programs(recipe, members, len(self.images.labels), mesh)

    def create(self, seeds: Sequence[int], hyper: Mapping[str, Sequence[float]], recipe: Recipe) -> int:
        """`population.create`; returns its predicted memory."""
        self.members = population.create(seeds, hyper, self.images, recipe)
        return self.members.memory

    def train_segment(self) -> Metrics:
        """`population.train_segment`."""
        return population.train_segment(self.members)

    def evaluate(self, split: range) -> Evaluation:
        """`population.evaluate`."""
        return population.evaluate(self.members, split)

    def predict(self, split: range) -> Predictions:
        """`population.predict`."""
        return population.predict(self.members, split)

    def snapshot(self) -> Snapshot:
        """`population.snapshot`."""
        return population.snapshot(self.members)

    def restore(self, saved: Snapshot) -> None:
        """`population.restore`."""
        population.restore(self.members, saved)


def serve(connection: Connection, core: int | None) -> None:
    """A worker's life: calls methods of its `Share` until the connection ends, with the process that started it.

    Args:
      connection: names of methods and arguments come in; (result, None) or (None, what it raised) goes out.
      core: where it runs; None leaves that to the system.
    """
    for stopping in STOPPING:  # they are for the process that started it, which ends this one
        signal.signal(stopping, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
    if core is not None:
        os.sched_setaffinity(0, {core})
    os.environ |= {"NPROC": "1", "JAX_PLATFORMS": "cpu"}  # XLA's threads, and no accelerator
    population.configure(devices=1)
    share = Share()
    while True:
        awake_until = time.perf_counter() + PATIENCE
        while not connection.poll() and time.perf_counter() < awake_until:
            pass
        try:
            method, arguments = connection.recv()
            try:
                result, failure = getattr(share, method)(*arguments), None
            except Exception as error:  # raised where the result is awaited
                result, failure = None, error
            connection.send((result, failure))
        except (EOFError, OSError):  # the other end is gone
            return


def end_with_parent() -> None:
    """Ends this process when the one that started it has ended, even in the middle of an epoch."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class WorkerPopulation(NamedTuple):
    """A population that is spread over workers.

    Attributes:
      size: the number of members.
      memory: bytes that training takes at its peak on all workers, as the compiler predicts.
    """

    size: int
    memory: int


class Workers:
    """A process a core. To be used in a `with` statement, whose end closes them."""

    def __init__(self, count: int, at_once: bool = True) -> None:
        """Starts `count` processes, which get ready while this one goes on. On Linux each is pinned to a core.

        Args:
          count: of processes, at most one a core.
          at_once: or when they are needed.
        """
        cores: list[int | None] = [None] * count
        if hasattr(os, "sched_getaffinity"):
            cores = [*sorted(os.sched_getaffinity(0))]
        self._cores = cores[:count]
        self._connections: list[Connection] = []
        self._processes: list[Any] = []
        self._images: Images | None = None
        self._compiled: set[tuple[Recipe, int, int]] = set()
        if at_once:
            self._start()

    def _start(self) -> None:
        resource_tracker.ensure_running()  # starting it would unblock the signals
        for core in self._cores:
            here, there = SPAWN.Pipe()
            process = SPAWN.Process(target=serve, args=(there, core), daemon=True)
            # Ctrl-C goes to all processes of a terminal: this one can't ignore it before it runs Python.
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
            try:
                process.start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            there.close()  # so that the end of the process is the end of the connection
            self._connections.append(here)
            self._processes.append(process)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def restart(self) -> None:
        """Starts anew, without any population: what the old processes held in memory is free."""
        self.close()
        self._connections, self._processes = [], []
        self._images = None
        self._compiled = set()
        self._start()

    def close(self) -> None:
        """Ends the processes at once, also in the middle of an epoch."""
        for process in self._processes:
            process.kill()  # it holds nothing that is worth a goodbye
        for process in self._processes:
            process.join()

    def _call(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Calls a method of the workers' shares, with arguments for each; returns all results.

        Raises:
          WorkerError: a process ended.
          Exception: whatever the method raised.
        """
        if not self._processes:
            self._start()
        used = list(zip(self._connections, self._processes, arguments, strict=False))
        answers = []
        for connection, process, values in used:
            try:
                connection.send((method, values))
            except OSError as error:
                raise ended(process) from error
        for connection, process, _ in used:
            try:
                answers.append(connection.recv())
            except (EOFError, OSError) as error:
                raise ended(process) from error
        for _, failure in answers:
            if failure is not None:
                raise failure
        return [result for result, _ in answers]

    def load(self, images: Images) -> None:
        """Sends images to the workers, unless they have them."""
        if images is not self._images:
            arrays = jax.tree.map(np.asarray, images)
            self._call("load", [(arrays,)] * len(self._cores))
            self._images = images

    def prepare(self, jobs: Sequence[tuple[Recipe, int]], images: Images) -> None:
        """Compiles programs for populations to come, one on each worker, unless the first is compiled already.

        Workers that all compiled the same programs would take as long as one alone.

        Args:
          jobs: recipe and number of members of each, in the order in which they will be needed.
          images: what they train on.
        """
        self.load(images)

        def key(recipe: Recipe, members: int) -> tuple[Recipe, int, int]:
            return recipe, self._share(members), len(images.labels)

        programs = dict.fromkeys(key(*job) for job in jobs)
        waiting = [program for program in programs if program not in self._compiled]
        if key(*jobs[0]) in waiting and len(waiting) > 1:
            batch = waiting[: len(self._cores)]
            self._call("compile", [(recipe, share) for recipe, share, _ in batch])
            self._compiled.update(batch)

    def create(
        self, seeds: Sequence[int], hyper: Mapping[str, Sequence[float]], images: Images, recipe: Recipe
    ) -> WorkerPopulation:
        """As `population.create`. A worker whose share is smaller than the others' repeats its last member."""
        self.load(images)
        share = self._share(len(seeds))
        starts = range(0, len(seeds), share)

        def padded(values: Sequence[Any], start: int) -> list[Any]:
            own = list(values[start : start + share])
            return own + own[-1:] * (share - len(own))

        shares = [
            (padded(seeds, start), {name: padded(values, start) for name, values in hyper.items()}, recipe)
            for start in starts
        ]
        return WorkerPopulation(len(seeds), sum(self._call("create", shares)))

    def train_segment(self, crowd: WorkerPopulation) -> Metrics:
        """As `population.train_segment`."""
        metrics: Metrics = self._gather("train_segment", (), crowd)
        return metrics

    def evaluate(self, crowd: WorkerPopulation, split: range) -> Evaluation:
        """As `population.evaluate`."""
        evaluation: Evaluation = self._gather("evaluate", (split,), crowd)
        return evaluation

    def predict(self, crowd: WorkerPopulation, split: range) -> Predictions:
        """As `population.predict`."""
        predictions: Predictions = self._gather("predict", (split,), crowd)
        return predictions

    def snapshot(self, crowd: WorkerPopulation) -> Snapshot:
        """As `population.snapshot`."""
        saved: Snapshot = self._gather("snapshot", (), crowd)
        return saved

    def restore(self, crowd: WorkerPopulation, saved: Snapshot) -> None:
        """As `population.restore`."""
        if {len(array) for array in saved.values()} != {crowd.size}:  # what workers get is filled up
            raise ValueError(f"the arrays are not those of {crowd.size} members")
        share = self._share(crowd.size)
        starts = range(0, crowd.size, share)

        def part(array: np.ndarray, start: int) -> np.ndarray:
            return array[np.minimum(np.arange(start, start + share), len(array) - 1)]

        self._call("restore", [({name: part(array, start) for name, array in saved.items()},) for start in starts])

    def _share(self, members: int) -> int:
        """Members that a worker trains."""
        return -(-members // len(self._cores))

    def _gather(self, method: str, arguments: tuple[Any, ...], crowd: WorkerPopulation) -> Any:
        """Calls a method on all workers that have members, and puts their results one after the other."""
        used = -(-crowd.size // self._share(crowd.size))
        parts = self._call(method, [arguments] * used)
        return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: crowd.size], *parts)


def ended(process: Any) -> WorkerError:
    """What to say of a worker process that ended by itself."""
    process.join(5)
    code = process.exitcode
    how = f"was ended by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended with {code}"
    memory = "; SIGKILL is what Linux sends when memory runs out: fewer members need less" if code == -9 else ""
    return WorkerError(f"worker process {process.pid} {how}{memory}", killed=code == -9)
