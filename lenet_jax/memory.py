"""How much memory there is for training."""

import re
import resource
import sys
from pathlib import Path

import jax
import psutil


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
