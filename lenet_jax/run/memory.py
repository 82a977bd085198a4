"""How much memory there is for training."""

import math
import re
import resource
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import psutil

from lenet_jax import distributed, train
from lenet_jax.errors import RunError, WorkerError, one_line
from lenet_jax.optim import HYPERPARAMETERS, Hyperparameters
from lenet_jax.train import Recipe, TrainState


def available() -> int:
    """Bytes that members' states may take on this machine."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        statistics = device.memory_stats() or {"bytes_limit": 2**34, "bytes_in_use": 0}
        return int(jax.local_device_count() * (statistics["bytes_limit"] - statistics["bytes_in_use"]) // 2)
    free = int(psutil.virtual_memory().available)
    ulimit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if ulimit != resource.RLIM_INFINITY:
        free = min(free, ulimit - int(psutil.Process().memory_info().vms))
    return max(min([free, *map(free_in, control_groups())]), 2**20) // 2


CGROUPS, OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
"""Linux's control groups, version 2, and which of them this process is in."""


def control_groups() -> list[Path]:
    """Those that limit this process's memory, from its own up: of a container, a systemd unit or a cluster's job."""
    own = re.search(r"^0::/(.*)$", OWN_CGROUP.read_text(), re.MULTILINE) if OWN_CGROUP.is_file() else None
    folder = CGROUPS / own[1] if own else CGROUPS
    every = [path for path in (folder, *folder.parents) if path.is_relative_to(CGROUPS)]
    return [path for path in every if (path / "memory.max").is_file()]


def free_in(group: Path) -> int:
    """Bytes that a control group may still take."""
    limit = (group / "memory.max").read_text().strip()
    if limit == "max":
        return sys.maxsize
    # Files that Linux keeps in memory, and drops when it needs the room, count as used.
    statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return int(limit) - int((group / "memory.current").read_text()) + int(statistics["inactive_file"])


SAVE_MEMORY_FACTOR = 4
"""Times a state that saving it takes, with all that orbax copies; measured: 3.4 (docs/scaling.md)."""


def member_memory(recipe: Recipe) -> int:
    """Bytes that one member's state takes at most: before and after an update, and where members are saved from.

    That is in the same memory on a CPU alone.
    """

    def state() -> TrainState:
        return train.init(jnp.uint32(0), Hyperparameters(**dict.fromkeys(HYPERPARAMETERS, jnp.zeros(()))), recipe)

    sizes: list[int] = [leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(state))]
    return (2 + (SAVE_MEMORY_FACTOR if jax.default_backend() == "cpu" else 0)) * sum(sizes)


def memory_for_members() -> int:
    """Bytes that members' states may take on all machines: half of what is free, the rest is for all else."""
    mebibytes = distributed.all_gather(np.int32(available() >> 20))  # JAX has no 64-bit integers
    total: int = max(int(mebibytes.min()), 1) * jax.process_count() * 2**20
    return total


def chunk_size(members: int, recipe: Recipe, most: int) -> int:
    """Members of the next chunk, so that they can be trained in as few equal chunks as memory needs.

    Args:
      members: that are left.
      recipe: theirs.
      most: that fit in memory, as far as is known.
    """
    most = min(most, max(memory_for_members() // member_memory(recipe), 1))
    return math.ceil(members / math.ceil(members / most))


def is_out_of_memory(error: Exception) -> bool:
    """Whether an engine failed because memory ran out."""
    text = str(error).lower()
    killed = isinstance(error, WorkerError) and error.killed
    refused = isinstance(error, jax.errors.JaxRuntimeError) and (
        "resource_exhausted" in text or "out of memory" in text
    )
    return killed or refused or isinstance(error, MemoryError)


def raise_out_of_memory(size: int, recipe: Recipe, error: Exception) -> None:
    """Ends a run that can't be helped with smaller chunks.

    Raises:
      RunError: a chunk has as few members as can be, or several processes would have to agree on a smaller one.
    """
    if size > 1 and jax.process_count() == 1:
        return
    fits = max(memory_for_members() // member_memory(recipe), 1)
    raise RunError(
        f"memory ran out with {size} networks of {member_memory(recipe) / 2**20:.1f} MiB each "
        f"({one_line(error)}); what is free now would hold {fits} and the data: free some, or ask "
        "for fewer seeds"
    ) from error
