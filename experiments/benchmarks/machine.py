"""Description of the machine: hardware, versions, load, and the speed of a matrix product."""

import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil

PACKAGES = ("lenet_jax", "jax", "jaxlib", "flax", "optax", "numpy", "torch")

MATRIX = 2048
"""Rows and columns of the matrices."""

BUSY_PERCENT = 5.0
"""Load above which timings are unreliable."""


def cores() -> int:
    """Number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def processor() -> str:
    """The processor's name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def describe() -> dict[str, Any]:
    """Machine, versions, command and date, for a results file."""
    installed = [package for package in PACKAGES if importlib.util.find_spec(package)]
    git = ["git", "-C", str(Path(__file__).parent)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {
        "machine": {
            "processor": processor(),
            "cores": cores(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "system": platform.platform(),
        },
        "versions": {"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in installed},
        "commit": commit,
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


class Busy(NamedTuple):
    """Load of all cores while this program waits, in percent: in total, and from its own idle workers."""

    total: float
    own: float


def busy(seconds: float = 1.0) -> Busy:
    """Measures the load over `seconds`."""
    workers = psutil.Process().children(recursive=True)
    before = sum(sum(worker.cpu_times()[:2]) for worker in workers)
    total = psutil.cpu_percent(interval=seconds)
    used = sum(sum(worker.cpu_times()[:2]) for worker in workers) - before
    return Busy(total, 100 * used / seconds / cores())


def warn_if(busy: Busy) -> None:
    """Warns on stderr if other programs use the processor."""
    if busy.total > BUSY_PERCENT:
        print(
            f"warning: the processor is {busy.total:.0f} % busy ({busy.own:.0f} % by this program's idle workers) "
            "before any timing: timings will be wrong",
            file=sys.stderr,
        )


def header() -> dict[str, Any]:
    """`describe`, and the load before any timing, with a warning if it is high."""
    found = busy()
    warn_if(found)
    return {**describe(), "busy_percent_before": found.total}


def cpu_seconds() -> float:
    """Processor seconds of all programs on this machine, except this process and its terminated children."""
    times, own = psutil.cpu_times(), os.times()
    everything = times.user + times.nice + times.system
    return everything - own.user - own.system - own.children_user - own.children_system


class Partial:
    """Results measured so far: an interrupted command resumes, and disturbed measurements are repeated."""

    def __init__(self, path: Path, where: dict[str, Any]) -> None:
        """Reads the results from a file, if it is from the same machine and versions."""
        self._path, self._held = path, {"where": where, "results": {}}
        if path.exists() and (held := json.loads(path.read_text()))["where"] == where:
            self._held = held

    def obtain(self, key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Stored result, or that of `measure`, which is stored unless its ``others_percent`` is high."""
        results = self._held["results"]
        if key not in results:
            found = measure()
            if found["others_percent"] > BUSY_PERCENT:
                return found
            results[key] = found
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps(self._held))
        return results[key]

    def done(self) -> None:
        """Deletes the file, once nothing needs another measurement."""
        self._path.unlink(missing_ok=True)


def flags_only(argv: Sequence[str]) -> None:
    """Exits if the command line has arguments other than flags."""
    if argv[1:]:
        sys.exit(f"{Path(argv[0]).name} takes flags only, not {argv[1]!r}")


def flops_of(multiply: Any, seconds: float) -> float:
    """Floating-point operations per second of a matrix product, as the median over repetitions."""
    times = []
    multiply()
    deadline = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < deadline:
        start = time.perf_counter()
        multiply()
        times.append(time.perf_counter() - start)
    return 2 * MATRIX**3 / statistics.median(times)


def jax_matrix_product(seconds: float) -> float:
    """FLOP/s of a float32 matrix product in JAX, on all cores. Call it in a fresh process."""
    import jax  # imported here: neither the benchmark's main process nor the next function's may run JAX

    matrix = jax.random.normal(jax.random.key(0), (MATRIX, MATRIX))
    product = jax.jit(lambda a: a @ a)
    return flops_of(lambda: product(matrix).block_until_ready(), seconds)


def torch_matrix_product(seconds: float) -> float:
    """FLOP/s of a float32 matrix product in PyTorch, on all cores. Call it in a fresh process."""
    import torch

    matrix = torch.randn(MATRIX, MATRIX)
    return flops_of(lambda: matrix @ matrix, seconds)
