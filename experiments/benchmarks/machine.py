"""What was measured on: the machine, the versions, how busy it was, and how fast it multiplies matrices."""

import datetime
import importlib.metadata
import importlib.util
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil

PACKAGES = ("lenet_jax", "jax", "jaxlib", "flax", "optax", "numpy", "torch")

MATRIX = 2048
"""Rows and columns of the matrices."""

BUSY_PERCENT = 5.0
"""More than this, makes timings doubtful."""


def cores() -> int:
    """Processor cores that this process may use."""
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
    """How busy all cores are while this program waits, in percent: by everything, and by its own idle workers."""

    total: float
    own: float


def busy(seconds: float = 1.0) -> Busy:
    """Waits so long and looks."""
    workers = psutil.Process().children(recursive=True)
    before = sum(sum(worker.cpu_times()[:2]) for worker in workers)
    total = psutil.cpu_percent(interval=seconds)
    used = sum(sum(worker.cpu_times()[:2]) for worker in workers) - before
    return Busy(total, 100 * used / seconds / cores())


def warn_if(busy: Busy) -> None:
    """Says on stderr that something else uses the processor."""
    if busy.total > BUSY_PERCENT:
        print(
            f"warning: the processor is {busy.total:.0f} % busy ({busy.own:.0f} % by this program's idle workers) "
            "before anything is timed: timings will be wrong",
            file=sys.stderr,
        )


def header() -> dict[str, Any]:
    """`describe`, and how busy the processor is before anything is timed, which is warned of."""
    found = busy()
    warn_if(found)
    return {**describe(), "busy_percent_before": found.total}


def flags_only(argv: Sequence[str]) -> None:
    """Ends a program that was given anything but flags."""
    if argv[1:]:
        sys.exit(f"{Path(argv[0]).name} takes flags only, not {argv[1]!r}")


def flops_of(multiply: Any, seconds: float) -> float:
    """Floating-point operations a second of a matrix product: the median over repetitions."""
    times = []
    multiply()
    deadline = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < deadline:
        start = time.perf_counter()
        multiply()
        times.append(time.perf_counter() - start)
    return 2 * MATRIX**3 / statistics.median(times)


def jax_matrix_product(seconds: float) -> float:
    """FLOP/s of a float32 matrix product in JAX, on all cores. For a fresh process."""
    import jax  # only here: the benchmark's main process runs no JAX, nor the next function's

    matrix = jax.random.normal(jax.random.key(0), (MATRIX, MATRIX))
    product = jax.jit(lambda a: a @ a)
    return flops_of(lambda: product(matrix).block_until_ready(), seconds)


def torch_matrix_product(seconds: float) -> float:
    """FLOP/s of a float32 matrix product in PyTorch, on all cores. For a fresh process."""
    import torch

    matrix = torch.randn(MATRIX, MATRIX)
    return flops_of(lambda: matrix @ matrix, seconds)
