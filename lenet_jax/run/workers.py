"""Populations on a CPU: one single-threaded worker process per core, each training its share of the members.

In one process, all of XLA's devices share a thread pool, whose threads take parts of each other's work: members' arrays
move from core to core, and threads sleep and wake for microseconds of work. Processes pinned to a core avoid that;
`experiments/results/throughput` stores what they gain.
"""

import contextlib
import functools
import itertools
import signal
import types
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lenet_jax import jax_settings, programs
from lenet_jax.errors import WorkerError
from lenet_jax.population import Snapshot
from lenet_jax.programs import ProgramKey
from lenet_jax.run import processes
from lenet_jax.run.processes import Worker
from lenet_jax.train import Images, Recipe

COMPILED = ("train_segment", "predict", "init")
"""The programs of a population that workers compile for each other; the one that takes longest comes first."""


class WorkerPopulation(NamedTuple):
    """A population of `size` members on workers; `memory`: bytes at the peak on all, as the compiler predicts."""

    size: int
    memory: int


class Workers(contextlib.AbstractContextManager["Workers"]):
    """A process per core with the functions of the module `population`; the end of a `with` statement closes them.

    Args:
      count: the number of processes, at most one per core; on Linux each is pinned to one.
      at_once: whether to start them now, in the background, rather than when they are first needed.
      experiment: a file that defines own parts, which each process executes.
    """

    def __init__(self, count: int, at_once: bool = True, experiment: tuple[Path, str] | None = None) -> None:
        self._cores = processes.core_numbers(count)
        self._experiment = experiment
        self._clear()
        if at_once:
            self._start()

    def _clear(self) -> None:
        self._workers: list[Worker] = []
        self._images: Images | None = None
        self._compiled: set[ProgramKey] = set()
        self._configured = False

    def __exit__(self, *_: object) -> None:
        self.close()

    def restart(self) -> None:
        """Ends the processes, which frees their memory; the next call starts fresh ones without a population."""
        self.close()
        self._clear()

    def close(self) -> None:
        """Ends the processes at once, even in the middle of an epoch."""
        processes.end(self._workers)

    def _start(self) -> None:
        self._workers = processes.take(self._cores)

    def _begin(self) -> None:
        """Starts the processes, unless they run; and tells them what all requests depend on."""
        if not self._workers:
            self._start()
        if not self._configured:
            self._configured = True
            told = jax_settings.current(), self._experiment, programs.arithmetic()
            self._call("configure", [told] * len(self._workers))

    def _call(self, name: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Calls a function on the first workers, with arguments for each; returns results, or raises an exception."""
        self._begin()
        used = list(zip(self._workers, arguments, strict=False))
        for worker, values in used:
            with watching(worker.process):
                worker.connection.send((name, values))
        answers = []
        for worker, _ in used:
            with watching(worker.process):
                answers.append(worker.connection.recv())
        for _, failure in answers:
            if failure is not None:
                raise failure
        return [result for result, _ in answers]

    def _shares(self, members: int) -> list[np.ndarray]:
        """Indices of the members that each worker trains."""
        return np.array_split(np.arange(members), min(members, len(self._cores)))

    def load(self, images: Images) -> None:
        """Sends images to the workers, unless they have them."""
        if images is not self._images:
            arrays = jax.tree.map(np.asarray, images)
            self._call("load", [(arrays,)] * len(self._cores))
            self._images = images

    def prepare(self, recipes: Sequence[Recipe], images: Images) -> None:
        """Compiles the programs of the next populations, each on the first worker that is free, unless they are known.

        Otherwise all workers would compile the same program at the same time.
        """
        count = len(images.labels)
        keys = [tuple(programs.program_key(name, recipe, count) for name in COMPILED) for recipe in recipes]
        unknown = [of_recipe for of_recipe in dict.fromkeys(keys) if not self._compiled.issuperset(of_recipe)]
        if keys[0] in unknown:
            by_name = zip(*unknown[: len(self._cores)], strict=True)
            batch = [key for key in dict.fromkeys(itertools.chain(*by_name)) if key not in self._compiled]
            self._share_out("compile_program", batch)
            self._compiled.update(batch)

    def _share_out(self, name: str, tasks: Sequence[tuple[Any, ...]]) -> None:
        """Calls a function with each of these arguments, in order, on whichever worker is free."""
        self._begin()
        waiting = list(tasks)
        failures: list[Exception] = []
        free, busy = list(self._workers), dict[Any, Worker]()
        while busy or (waiting and not failures):
            while waiting and free and not failures:
                worker = free.pop(0)
                with watching(worker.process):
                    worker.connection.send((name, waiting.pop(0)))
                busy[worker.connection] = worker
            for connection in wait([*busy]):
                free.append(worker := busy.pop(connection))
                with watching(worker.process):
                    _, failure = worker.connection.recv()
                failures += [failure] if failure is not None else []
        if failures:
            raise failures[0]

    def create(
        self, seeds: Sequence[int], hyper: Mapping[str, Sequence[float]], images: Images, recipe: Recipe
    ) -> WorkerPopulation:
        """See `population.create`."""
        self.load(images)
        arguments = []
        for share in self._shares(len(seeds)):
            values = {name: [values[index] for index in share] for name, values in hyper.items()}
            arguments.append(([seeds[index] for index in share], values, recipe))
        return WorkerPopulation(len(seeds), sum(self._call("create", arguments)))

    def _gather(self, name: str, members: WorkerPopulation, *arguments: Any) -> Any:
        """Calls a function of `population` on every worker's share, and concatenates the results."""
        results = self._call(name, [arguments] * len(self._shares(members.size)))
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *results)

    train_segment = functools.partialmethod(_gather, "train_segment")
    evaluate = functools.partialmethod(_gather, "evaluate")
    predict = functools.partialmethod(_gather, "predict")
    measure_own = functools.partialmethod(_gather, "measure_own")
    snapshot = functools.partialmethod(_gather, "snapshot")

    def restore(self, members: WorkerPopulation, saved: Snapshot) -> None:
        """See `population.restore`."""
        if {len(array) for array in saved.values()} != {members.size}:  # workers see their shares alone
            raise ValueError(f"the arrays are not those of {members.size} members")
        shares = self._shares(members.size)
        self._call("restore", [({name: array[share] for name, array in saved.items()},) for share in shares])


Engine = Workers | types.ModuleType
"""What trains populations: worker processes or, in this process, the module `population`."""


@contextlib.contextmanager
def watching(process: Any) -> Iterator[None]:
    """Raises WorkerError, which describes how a process ended, if its connection closes."""
    try:
        yield
    except (EOFError, OSError) as error:
        process.join(5)
        code = process.exitcode
        how = f"was ended by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended with {code}"
        killed = code == -signal.SIGKILL
        memory = "; Linux sends SIGKILL when memory runs out: fewer members need less" if killed else ""
        raise WorkerError(f"worker process {process.pid} {how}{memory}", killed) from error
