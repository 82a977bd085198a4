"""Memory for training: how many members fit in it together, and what to do when it runs out.

When it runs out in spite of the estimate, the run continues with half as many members at a time: `smaller_limit`
decides, `checkpoints.Chunk.split_in_half` divides what was saved, and `workers.Workers.restart` frees the memory.
"""

import functools
import math
import re
import resource
import sys
from pathlib import Path

import jax
import numpy as np
import psutil

from lenet_jax import distributed, train
from lenet_jax.errors import RunError, WorkerError, one_line
from lenet_jax.registry import CACHES
from lenet_jax.run.progress import say
from lenet_jax.train import Recipe

SAVE_MEMORY_FACTOR = 4
"""Memory for saving a state, as a multiple of the state, with orbax's copies; measured: 3.4 (docs/scaling.md)."""

CGROUPS, OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
"""Linux's control groups, version 2, and the file that names that of this process."""


def available() -> int:
    """Bytes that members' states may take on this machine: half of what is free."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        statistics = device.memory_stats() or {"bytes_limit": 2**34, "bytes_in_use": 0}
        return int(jax.local_device_count() * (statistics["bytes_limit"] - statistics["bytes_in_use"]) // 2)
    free = int(psutil.virtual_memory().available)
    ulimit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if ulimit != resource.RLIM_INFINITY:
        free = min(free, ulimit - int(psutil.Process().memory_info().vms))
    return max(min([free, *map(free_in, control_groups())]), 2**20) // 2


def control_groups() -> list[Path]:
    """The groups that limit this process, from its own upwards: of a container, a systemd unit or a cluster job."""
    own = re.search(r"^0::/(.*)$", OWN_CGROUP.read_text(), re.MULTILINE) if OWN_CGROUP.is_file() else None
    folder = CGROUPS / own[1] if own else CGROUPS
    every = [path for path in (folder, *folder.parents) if path.is_relative_to(CGROUPS)]
    return [path for path in every if (path / "memory.max").is_file()]


def free_in(group: Path) -> int:
    """Bytes that a control group may still take."""
    limit = (group / "memory.max").read_text().strip()
    if limit == "max":
        return sys.maxsize
    # Cached files count as used, but Linux drops them when it needs the memory.
    statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return int(limit) - int((group / "memory.current").read_text()) + int(statistics["inactive_file"])


def memory_for_members() -> int:
    """Bytes that members' states may take on all machines."""
    mebibytes = distributed.all_gather(np.int32(available() >> 20))  # JAX has no 64-bit integers
    return max(int(mebibytes.min()), 1) * int(jax.process_count()) * 2**20


def state_copies() -> int:
    """A member's states in memory: before and after a step and, on a CPU, the copies made to save it."""
    return 2 + (SAVE_MEMORY_FACTOR if jax.default_backend() == "cpu" else 0)


@functools.lru_cache(maxsize=32)
def state_size(recipe: Recipe) -> int:
    """Bytes of one member's state."""
    sizes: list[int] = [leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(train.shapes(recipe))]
    return sum(sizes)


CACHES.append(state_size.cache_clear)


def member_memory(recipe: Recipe) -> int:
    """Bytes that one member needs."""
    return state_copies() * state_size(recipe)


def members_that_fit(recipe: Recipe) -> int:
    """Members that fit in memory together, at least one."""
    return max(memory_for_members() // member_memory(recipe), 1)


def chunk_size(members: int, recipe: Recipe, limit: int) -> int:
    """The size of the next chunk of `members`, in as few equal chunks as memory and the known limit allow."""
    return math.ceil(members / math.ceil(members / min(limit, members_that_fit(recipe))))


def is_out_of_memory(error: Exception) -> bool:
    """Whether an engine failed because memory ran out."""
    if isinstance(error, jax.errors.JaxRuntimeError):
        return re.search("resource_exhausted|out of memory", str(error), re.IGNORECASE) is not None
    return isinstance(error, MemoryError) or (isinstance(error, WorkerError) and error.killed)


def smaller_limit(size: int, recipe: Recipe, error: Exception) -> int:
    """The most members to train together from now on, after training `size` of them raised an error.

    Raises:
      Exception: the error, if it has nothing to do with memory.
      RunError: this chunk has a single member, or several processes would have to agree on a smaller one.
    """
    if not is_out_of_memory(error):
        raise error
    if size == 1 or jax.process_count() > 1:
        raise RunError(
            f"memory ran out with {size} networks of {member_memory(recipe) / 2**20:.1f} MiB each ({one_line(error)}); "
            f"what is free now would hold {available() // member_memory(recipe)} and the data: free some, or ask for "
            "fewer seeds"
        ) from error
    say(f"{size} networks don't fit in memory together: continuing with {size // 2} at a time")
    return size // 2
