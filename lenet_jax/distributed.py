"""Many processes as one run: JAX's own multi-process runtime, and what the processes must agree on.

Every process runs the same program on its own devices; process 0 alone writes and talks. With one process, all of this
does nothing.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding
from jaxtyping import Array

from lenet_jax.errors import InputError, ProcessError, one_line

HEARTBEAT_TIMEOUT_S = 30
"""Seconds without a sign of life after which a process counts as dead, and JAX ends the others."""

JOIN_TIMEOUT_S = 120
"""Seconds that the processes of a run wait for each other to start."""

VISIBILITY_TIMEOUT_S = 60
"""Seconds after which a file that one process wrote must be seen by the others."""


def join(coordinator: str, processes: int, process: int) -> None:
    """Joins the other processes of this run. Call it before JAX is used.

    Args:
      coordinator: HOST:PORT of process 0. Empty: what Slurm, Open MPI, Kubernetes or a TPU pod say; the others too.
      processes: how many there are; 0 for what the cluster says.
      process: this one's number, from 0; -1 for what the cluster says.

    Raises:
      InputError: no cluster is found, or the others can't be reached.
    """
    try:
        jax.distributed.initialize(
            coordinator or None,
            processes or None,
            None if process < 0 else process,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_S,
            initialization_timeout=JOIN_TIMEOUT_S,
        )
    except Exception as error:  # of many kinds, as the cluster has it
        reason = one_line(error)
        raise InputError(
            f"distributed: the processes don't come together at {coordinator or 'what the cluster says'!r} ({reason}). "
            "Slurm, Open MPI, Kubernetes and TPU pods need no address; elsewhere start each process with "
            "--coordinator=HOST:PORT --processes=COUNT --process=NUMBER"
        ) from error


def primary() -> bool:
    """Whether this process writes and talks."""
    return jax.process_index() == 0


def check_same(things: Mapping[str, Any]) -> None:
    """Refuses to go on if the processes don't all have the same.

    Args:
      things: name -> anything that JSON can hold.

    Raises:
      InputError: with the names of those that differ, and the processes that have them otherwise than process 0.
    """
    digests = [hashlib.sha256(json.dumps(thing, sort_keys=True).encode()).digest() for thing in things.values()]
    all_digests = all_gather(np.array([list(digest) for digest in digests], np.int32))
    for place, name in enumerate(things):
        others = np.flatnonzero((all_digests[:, place] != all_digests[0, place]).any(axis=-1))
        if len(others):
            raise InputError(
                f"distributed: process {', '.join(map(str, others))} has another {name} than process 0; start all with "
                "the same command, the same files and the same version"
            )


def wait_visible(path: Path) -> None:
    """Waits until every process sees a file that process 0 wrote before it called this.

    Raises:
      InputError: one doesn't see it.
    """
    here = path.exists()
    for _ in range(VISIBILITY_TIMEOUT_S) if jax.process_count() > 1 else ():
        if here:
            break
        time.sleep(1)  # network file systems take their time
        here = path.exists()
    blind = np.flatnonzero(all_gather(np.int32(here)) == 0)
    if len(blind):
        raise InputError(
            f"workdir: process {', '.join(map(str, blind))} doesn't see {str(path)!r}, which process 0 wrote; name a "
            "folder that all of them share"
        )


def all_gather(value: Any) -> np.ndarray:
    """Every process's value, [processes, ...]. All must call it, with values of one shape and type.

    Raises:
      ProcessError: another one has ended.
    """
    array = np.asarray(value)
    if jax.process_count() == 1:
        return array[None]
    with translate_errors():
        values: np.ndarray = np.asarray(multihost_utils.process_allgather(array))
        return values


def from_primary(value: Any) -> np.ndarray:
    """The value that process 0 has; see `everywhere`."""
    return np.asarray(all_gather(value)[0])


Tree = TypeVar("Tree")


def gather(tree: Tree) -> Tree:
    """Arrays that are spread over the devices of all processes, whole, as NumPy arrays, on each.

    Raises:
      ProcessError: another process has ended.
    """
    if jax.process_count() == 1:
        copied: Tree = jax.device_get(tree)
        return copied
    with translate_errors():
        gathered: Tree = multihost_utils.process_allgather(tree, tiled=True)
        return gathered


def put(array: np.ndarray, sharding: Sharding) -> Array:
    """An array that every process has whole, on the devices of all."""
    if jax.process_count() == 1:
        on_devices: Array = jax.device_put(array, sharding)
        return on_devices
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


@contextlib.contextmanager
def translate_errors() -> Iterator[None]:
    """Says what the error of a collective operation means: JAX raises what the network says.

    Raises:
      ProcessError: another process has ended.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):  # of this process; the caller knows what to do
            raise
        reason = one_line(error)
        raise ProcessError(
            f"process {jax.process_index()} of {jax.process_count()}: another process of this run has ended or can't "
            f"be reached ({reason})"
        ) from error
