"""Several processes as one run, on JAX's own multi-process runtime.

Every process runs the same program on its own devices; process 0 alone writes files and prints. In a single process,
every function here returns at once.
"""

import contextlib
import functools
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding
from jaxtyping import Array

from lenet_jax.errors import InputError, ProcessError, one_line

HEARTBEAT_TIMEOUT_S, JOIN_TIMEOUT_S, VISIBILITY_TIMEOUT_S, LEAVE_S = 30, 120, 60, 1
"""Silence after which a process counts as dead; the longest wait for all processes to start, and to see a file; how
long process 0 leaves the others to end."""

Parameters = ParamSpec("Parameters")
Tree = TypeVar("Tree")


def join(coordinator: str, processes: int, process: int) -> None:
    """Joins the other processes of this run. Call it before JAX is used.

    Args:
      coordinator: HOST:PORT of process 0; empty to ask Slurm, Open MPI, Kubernetes or the TPU pod.
      processes: the number of processes; 0 to ask the cluster.
      process: the index of this process; -1 to ask the cluster.
    """
    try:
        jax.distributed.initialize(
            coordinator or None,
            processes or None,
            None if process < 0 else process,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_S,
            initialization_timeout=JOIN_TIMEOUT_S,
        )
    except Exception as error:  # its type depends on the cluster
        address = coordinator or "an address from the cluster"
        raise InputError(
            f"distributed: the processes can't connect at {address!r} ({one_line(error)}). Slurm, Open MPI, Kubernetes "
            "and TPU pods need no address; elsewhere start each process with --coordinator=HOST:PORT --processes=COUNT "
            "--process=NUMBER"
        ) from error


def leave() -> None:
    """Ends a process of several whose work is done, without JAX's shutdown: that aborts it if another one has died.

    Process 0 is the last: JAX aborts the others when its service is gone.
    """
    if jax.process_count() > 1:
        with contextlib.suppress(ProcessError):
            all_gather(np.int32(0))
        sys.stdout.flush()
        time.sleep(LEAVE_S if primary() else 0)
        os._exit(0)


def primary() -> bool:
    """Whether this is process 0, which writes files and prints."""
    return jax.process_index() == 0


def primary_only(write: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """Decorates a function that writes files: only process 0 executes it."""
    return functools.wraps(write)(lambda *values, **named: write(*values, **named) if primary() else None)


def check_same(values: Mapping[str, Any]) -> None:
    """Raises InputError if one of these named JSON values differs between processes."""
    digests = [hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest() for value in values.values()]
    all_digests = all_gather(np.array([list(digest) for digest in digests], np.int32))
    for index, name in enumerate(values):
        others = np.flatnonzero((all_digests[:, index] != all_digests[0, index]).any(axis=-1))
        if len(others):
            raise InputError(
                f"distributed: process {', '.join(map(str, others))} has another {name} than process 0; start all with "
                "the same command, the same files and the same version"
            )


def wait_visible(path: Path) -> bool:
    """Waits until all processes see a file, if process 0 does; returns whether it does."""
    if not from_primary(path.exists()):
        return False
    deadline = time.monotonic() + VISIBILITY_TIMEOUT_S
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(1)  # network file systems are slow to show new files
    blind = np.flatnonzero(all_gather(np.int32(path.exists())) == 0)
    if len(blind):
        raise InputError(
            f"workdir: process {', '.join(map(str, blind))} doesn't see {str(path)!r}, which process 0 wrote; name a "
            "folder that all of them share"
        )
    return True


def all_gather(value: Any) -> np.ndarray:
    """The values of all processes, [processes, ...]. All must call it, with values of one shape and type."""
    array = np.asarray(value)
    if jax.process_count() == 1:
        return array[None]
    with translate_errors():
        return np.asarray(multihost_utils.process_allgather(array))


def from_primary(value: int) -> int:
    """The value of process 0; see `all_gather`."""
    return int(all_gather(np.int32(value))[0])


def gather(trees: Sequence[Tree]) -> Tree:
    """Arrays that are sharded over the devices of all processes, stacked, as NumPy arrays in each process.

    `trees` have arrays of the same shapes. The result may be read-only.
    """
    with translate_errors():
        if jax.process_count() > 1:  # stacked before: each array takes messages between all processes
            whole: Tree = multihost_utils.process_allgather(stack(trees), tiled=True)
        else:
            fetched = jax.device_get(trees)
            # A single tree isn't copied.
            whole = jax.tree.map(lambda *leaves: np.stack(leaves) if len(leaves) > 1 else leaves[0][None], *fetched)
    return whole


@jax.jit
def stack(trees: Sequence[Tree]) -> Tree:
    """The arrays of several trees, stacked."""
    stacked: Tree = jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
    return stacked


def put(array: np.ndarray, sharding: Sharding) -> Array:
    """Puts an array, which every process holds whole, on the devices of all processes."""
    if jax.process_count() == 1:
        on_devices: Array = jax.device_put(array, sharding)
        return on_devices
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


@contextlib.contextmanager
def translate_errors() -> Iterator[None]:
    """Raises ProcessError if another process has ended, where JAX raises what the network layer reports."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or "RESOURCE_EXHAUSTED" in str(error):  # of this process: the caller handles it
            raise
        process = f"process {jax.process_index()} of {jax.process_count()}"
        ended = "another process of this run has ended or can't be reached"
        raise ProcessError(f"{process}: {ended} ({one_line(error)})") from error
