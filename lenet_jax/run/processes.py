"""Worker processes, one for each core: starting them, what they do, and how they end. Imports no JAX.

A worker takes seconds to import JAX. The command line therefore starts them, with `start_early`, before it imports as
much itself; `workers.Workers` takes them over.
"""

import gc
import importlib.util
import multiprocessing
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Mapping, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from lenet_jax import library, output
from lenet_jax.data.datasets import SMALLEST_TRAINING_SET
from lenet_jax.run.signals import STOPPING

SPAWN = multiprocessing.get_context("spawn")
"""Fresh processes: JAX's threads don't survive a fork."""

WORTH_WORKERS = 500_000
"""Samples x members above which worker processes gain more than the seconds that they take to start: on two cores, runs
of this size took equally long either way."""

POLL_S = 0.2
"""How long a worker polls for a request before it sleeps: a virtual machine's core may be slower after its sleep."""


class Worker(NamedTuple):
    """A process and the connection to it."""

    process: Any
    connection: Connection


EARLY: dict[tuple[int | None, ...], list[Worker]] = {}
"""Processes that were started early and nobody has taken yet, by the cores that they run on."""


def core_numbers(count: int = 0) -> list[int | None]:
    """The first `count` cores that this process may use, or all; None where the system chooses, as on macOS."""
    if hasattr(os, "sched_getaffinity"):
        return [*sorted(os.sched_getaffinity(0))[: count or None]]
    return [None] * (count or os.cpu_count() or 1)


def start_early(arms: Sequence[Mapping[str, Any]], devices: int = 0) -> None:
    """Starts processes if a run of arms with these settings will probably need them: a wrong guess costs only time.

    Meanwhile a thread compiles the convolutions, if they aren't yet: Python waits for it before it ends normally.
    Call `end_early` in the end: otherwise multiprocessing waits for them, as they ignore its SIGTERM.
    """
    unknown = any(each["dataset"].startswith(("idx:", "tfds:")) and not each["train_size"] for each in arms)
    samples = sum(each["epochs"] * each["seeds"] * (each["train_size"] or SMALLEST_TRAINING_SET) for each in arms)
    accelerated = (os.environ.get("JAX_PLATFORMS") or "cpu") != "cpu" or any(
        map(importlib.util.find_spec, ("jax_plugins", "libtpu"))
    )
    if samples >= WORTH_WORKERS and not (unknown or accelerated):
        wanted = core_numbers(devices)[: max(each["seeds"] for each in arms)]
        EARLY[tuple(wanted)] = start(wanted)
        threading.Thread(target=library.obtain).start()


def take(wanted: Sequence[int | None]) -> list[Worker]:
    """Processes on these cores: those that were started early, or new ones. Others that were started early end."""
    found = EARLY.pop(tuple(wanted), [])
    end_early()
    return found or start(wanted)


def end_early() -> None:
    """Ends the processes that were started early and that nobody has taken."""
    for workers in EARLY.values():
        end(workers)
    EARLY.clear()


def start(wanted: Sequence[int | None]) -> list[Worker]:
    """Starts a process on each of these cores, in the background. The first message to it is (experiment, settings)."""
    resource_tracker.ensure_running()  # if it were started later, it would unblock the signals
    started = []
    for core in wanted:
        here, there = SPAWN.Pipe()
        process = SPAWN.Process(target=serve, args=(there, core), daemon=True)
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
        started.append(Worker(process, here))
    return started


def end(workers: Sequence[Worker]) -> None:
    """Ends processes at once, even in the middle of an epoch."""
    for process, _ in workers:
        process.kill()  # it holds nothing that needs cleaning up
    for process, _ in workers:
        process.join()


def serve(connection: Connection, core: int | None) -> None:
    """Main loop of a worker: executes requests until the connection closes, which is when its parent ends.

    A request is (name of a function, arguments), its answer (result, None) or (None, the exception). Without a core to
    run on, the system chooses one.
    """
    sys.stdout, sys.stderr = map(output.unfailing, (sys.stdout, sys.stderr))  # the user's own parts may print
    for stopping in STOPPING:  # handled by the parent, which ends this process
        signal.signal(stopping, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
    if core is not None:
        os.sched_setaffinity(0, {core})
    os.environ |= {"NPROC": "1", "JAX_PLATFORMS": "cpu"}  # one XLA thread, no accelerator
    gc.set_threshold(10_000)  # as in `cli.main`
    from lenet_jax.run import requests

    held: dict[str, Any] = {}
    while True:
        awake_until = time.perf_counter() + POLL_S
        while not connection.poll() and time.perf_counter() < awake_until:
            pass
        try:
            name, arguments = connection.recv()
            try:
                result, failure = requests.execute(held, name, arguments), None
            except Exception as error:  # raised in the parent
                result, failure = None, error
            connection.send((result, failure))
        except (EOFError, OSError):  # the parent is gone
            return


def end_with_parent() -> None:
    """Ends this process as soon as its parent has ended, even in the middle of an epoch."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
