"""Populations on a CPU: a worker process for each core, with one thread, trains its share of the members.

In one process all of XLA's devices share a pool of threads, which take pieces of each other's work: members' arrays
move from core to core, and threads are put to sleep and woken for microseconds of work. Processes that are pinned to a
core each have none of that; `experiments/results/throughput` holds what it gains.

`Workers` has the functions of `population` that an experiment needs, and gives the same results.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, NamedTuple

import jax
import numpy as np

from lenet_jax import population
from lenet_jax.errors import WorkerError
from lenet_jax.population import Population
from lenet_jax.train import Evaluation, Images, Metrics, Predictions, Recipe

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

    def train_epoch(self) -> Metrics:
        """`population.train_epoch`."""
        return population.train_epoch(self.members)

    def evaluate(self, split: range) -> Evaluation:
        """`population.evaluate`."""
        return population.evaluate(self.members, split)

    def predict(self, split: range) -> Predictions:
        """`population.predict`."""
        return population.predict(self.members, split)


def serve(connection: Connection, core: int | None) -> None:
    """A worker's life: calls methods of its `Share` until the connection ends, with the process that started it.

    Args:
      connection: names of methods and arguments come in; (result, None) or (None, what it raised) goes out.
      core: where it runs; None leaves that to the system.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started it, which ends this one
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
        except EOFError:
            return
        try:
            connection.send((getattr(share, method)(*arguments), None))
        except Exception as error:  # raised where the result is awaited
            connection.send((None, error))


class Crowd(NamedTuple):
    """A population that is spread over workers.

    Attributes:
      size: the number of members.
      memory: bytes that training takes at its peak on all workers, as the compiler predicts.
    """

    size: int
    memory: int


class Workers:
    """A process a core. To be used in a `with` statement, whose end closes them."""

    def __init__(self, count: int) -> None:
        """Starts `count` processes, which get ready while this one goes on. On Linux each is pinned to a core."""
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [None] * count
        self._connections, self._processes = [], []
        for core in cores[:count]:
            here, there = SPAWN.Pipe()
            process = SPAWN.Process(target=serve, args=(there, core), daemon=True)
            process.start()
            there.close()  # so that the end of the process is the end of the connection
            self._connections.append(here)
            self._processes.append(process)
        self._images: Images | None = None
        self._compiled: set[tuple[Recipe, int, int]] = set()

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

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
            self._call("load", [(arrays,)] * len(self._processes))
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

        waiting = [job for job in dict.fromkeys(jobs) if key(*job) not in self._compiled]
        if jobs[0] in waiting and len(waiting) > 1:
            batch = waiting[: len(self._processes)]
            self._call("compile", [(recipe, self._share(members)) for recipe, members in batch])
            self._compiled.update(key(*job) for job in batch)

    def create(
        self, seeds: Sequence[int], hyper: Mapping[str, Sequence[float]], images: Images, recipe: Recipe
    ) -> Crowd:
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
        return Crowd(len(seeds), sum(self._call("create", shares)))

    def train_epoch(self, crowd: Crowd) -> Metrics:
        """As `population.train_epoch`."""
        metrics: Metrics = self._gather("train_epoch", (), crowd)
        return metrics

    def evaluate(self, crowd: Crowd, split: range) -> Evaluation:
        """As `population.evaluate`."""
        evaluation: Evaluation = self._gather("evaluate", (split,), crowd)
        return evaluation

    def predict(self, crowd: Crowd, split: range) -> Predictions:
        """As `population.predict`."""
        predictions: Predictions = self._gather("predict", (split,), crowd)
        return predictions

    def _share(self, members: int) -> int:
        """Members that a worker trains."""
        return -(-members // len(self._processes))

    def _gather(self, method: str, arguments: tuple[Any, ...], crowd: Crowd) -> Any:
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
    return WorkerError(f"worker process {process.pid} {how}{memory}")
