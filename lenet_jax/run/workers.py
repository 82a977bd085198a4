"""Populations on a CPU: one single-threaded worker process per core, each training its share of the members.

In one process, all of XLA's devices share a thread pool, whose threads take parts of each other's work: members' arrays
move from core to core, and threads sleep and wake for microseconds of work. Processes pinned to a core avoid that;
`experiments/results/throughput` stores what they gain.
"""

import contextlib
import functools
import multiprocessing
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lenet_jax import jax_settings, output, population
from lenet_jax.errors import WorkerError
from lenet_jax.population import Snapshot
from lenet_jax.run.signals import STOPPING
from lenet_jax.train import Images, Recipe

SPAWN = multiprocessing.get_context("spawn")
"""Fresh processes: JAX's threads don't survive a fork."""

POLL_S = 0.2
"""How long a worker polls for a request before it sleeps: a virtual machine's core may be slower after its sleep."""


def serve(connection: Connection, core: int | None, settings: Mapping[str, Any]) -> None:
    """Main loop of a worker: executes requests until the connection closes, which is when its parent ends.

    A request is (name of a function, arguments), its answer (result, None) or (None, the exception). Without a core to
    run on, the system chooses one. `settings` are the parent's, see `jax_settings.current`.
    """
    sys.stdout, sys.stderr = map(output.unfailing, (sys.stdout, sys.stderr))  # the user's own parts may print
    for stopping in STOPPING:  # handled by the parent, which ends this process
        signal.signal(stopping, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
    if core is not None:
        os.sched_setaffinity(0, {core})
    os.environ |= {"NPROC": "1", "JAX_PLATFORMS": "cpu"}  # one XLA thread, no accelerator
    population.configure(devices=1)
    for name, value in settings.items():
        jax.config.update(name, value)
    held: dict[str, Any] = {}
    while True:
        awake_until = time.perf_counter() + POLL_S
        while not connection.poll() and time.perf_counter() < awake_until:
            pass
        try:
            name, arguments = connection.recv()
            try:
                result, failure = execute(held, name, arguments), None
            except Exception as error:  # raised in the parent
                result, failure = None, error
            connection.send((result, failure))
        except (EOFError, OSError):  # the parent is gone
            return


def execute(held: dict[str, Any], name: str, arguments: tuple[Any, ...]) -> Any:
    """Executes a request in a worker, which holds images and a population from one request to the next."""
    if name == "define":
        from lenet_jax.run import parts  # with pandas, which most workers do without

        parts.define(*arguments)
    elif name == "load":
        (held["images"],) = arguments
    elif name == "compile_programs":  # into the cache on disk, for all workers
        population.compile_programs(*arguments, population.mesh_of(jax.devices()[:1]))
    elif name == "create":
        seeds, hyper, recipe = arguments
        held["members"] = population.create(seeds, hyper, held["images"], recipe)
        return held["members"].memory
    else:
        return getattr(population, name)(held["members"], *arguments)
    return None


def end_with_parent() -> None:
    """Ends this process as soon as its parent has ended, even in the middle of an epoch."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


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
        self._cores: list[int | None] = [None] * count
        if hasattr(os, "sched_getaffinity"):
            self._cores = [*sorted(os.sched_getaffinity(0))[:count]]
        self._experiment = experiment
        self._clear()
        if at_once:
            self._start()

    def _clear(self) -> None:
        self._processes: list[Any] = []
        self._connections: list[Connection] = []
        self._images: Images | None = None
        self._compiled: set[tuple[Recipe, int, int]] = set()
        self._defined = False

    def _start(self) -> None:
        resource_tracker.ensure_running()  # if it were started later, it would unblock the signals
        for core in self._cores:
            here, there = SPAWN.Pipe()
            process = SPAWN.Process(target=serve, args=(there, core, jax_settings.current()), daemon=True)
            # A terminal sends Ctrl-C to all processes; a worker can't ignore it before it runs Python.
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
            # Multiprocessing runs the script that is `__main__` again in each process, with all that it does.
            script, sys.modules["__main__"] = sys.modules["__main__"], types.ModuleType("__main__")
            try:
                process.start()
            finally:
                sys.modules["__main__"] = script
                signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            there.close()  # so that the connection closes when the process ends
            self._connections.append(here)
            self._processes.append(process)

    def __exit__(self, *_: object) -> None:
        self.close()

    def restart(self) -> None:
        """Ends the processes, which frees their memory; the next call starts fresh ones without a population."""
        self.close()
        self._clear()

    def close(self) -> None:
        """Ends the processes at once, even in the middle of an epoch."""
        for process in self._processes:
            process.kill()  # it holds nothing that needs cleaning up
        for process in self._processes:
            process.join()

    def _call(self, name: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Calls a function on the first workers, with arguments for each; returns results, or raises an exception."""
        if not self._processes:
            self._start()
        if self._experiment and not self._defined:
            self._defined = True
            self._call("define", [self._experiment] * len(self._processes))
        used = list(zip(self._processes, self._connections, arguments, strict=False))
        for process, connection, values in used:
            with watching(process):
                connection.send((name, values))
        answers = []
        for process, connection, _ in used:
            with watching(process):
                answers.append(connection.recv())
        for _, failure in answers:
            if failure is not None:
                raise failure
        return [result for result, _ in answers]

    def _shares(self, members: int) -> list[np.ndarray]:
        """Indices of the members that each worker trains. All train equally many: the last may repeat members."""
        size = -(-members // len(self._cores))
        return [np.minimum(np.arange(start, start + size), members - 1) for start in range(0, members, size)]

    def load(self, images: Images) -> None:
        """Sends images to the workers, unless they have them."""
        if images is not self._images:
            arrays = jax.tree.map(np.asarray, images)
            self._call("load", [(arrays,)] * len(self._cores))
            self._images = images

    def prepare(self, jobs: Sequence[tuple[Recipe, int]], images: Images) -> None:
        """Compiles programs of future populations, a different one on each worker, unless the first is compiled.

        Otherwise all workers would compile one program at the same time. A job is a recipe and a number of members.
        """
        programs = [(recipe, len(self._shares(members)[0]), len(images.labels)) for recipe, members in jobs]
        waiting = [program for program in dict.fromkeys(programs) if program not in self._compiled]
        if programs[0] in waiting and len(waiting) > 1:
            batch = waiting[: len(self._cores)]
            self._call("compile_programs", batch)
            self._compiled.update(batch)

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
        return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: members.size], *results)

    train_segment = functools.partialmethod(_gather, "train_segment")
    evaluate = functools.partialmethod(_gather, "evaluate")
    predict = functools.partialmethod(_gather, "predict")
    measure_own = functools.partialmethod(_gather, "measure_own")
    snapshot = functools.partialmethod(_gather, "snapshot")

    def restore(self, members: WorkerPopulation, saved: Snapshot) -> None:
        """See `population.restore`."""
        if {len(array) for array in saved.values()} != {members.size}:  # the workers get padded arrays
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
