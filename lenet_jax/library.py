"""The shared library of convolution.c, compiled where it is first used if there is a C compiler, and the processor.

Imports no JAX.
"""

import fcntl
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import tempfile
from importlib import metadata
from pathlib import Path

from lenet_jax.errors import InputError
from lenet_jax.paths import cache_folder, check_private, made_private

SOURCE = Path(__file__).with_name("convolution.c")

OPTIONS = (
    "-O3",
    "-std=gnu11",
    "-fPIC",
    "-shared",
    "-mcpu=native" if platform.machine() != "x86_64" else "-march=native",
)


def obtain() -> Path | None:
    """The library, whose name is a digest of all that it depends on; None if it can't be compiled."""
    try:
        folder = made_private(cache_folder("native"))
        parts = [SOURCE.read_bytes(), metadata.version("jaxlib").encode(), *map(str.encode, OPTIONS), processor()]
        library = folder / f"{hashlib.sha256(b'|'.join(parts)).hexdigest()[:16]}.so"
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # of processes that start together one compiles, the others wait
            if not library.exists():
                compile_to(library)
        check_private(library)
    except (InputError, OSError, ValueError, subprocess.SubprocessError):
        return None
    return library


def processor() -> bytes:
    """What the processor can do, as far as the system says: a home folder may be shared by different machines."""
    described = Path("/proc/cpuinfo")
    lines = described.read_bytes().splitlines() if described.exists() else []
    flags = [line for line in lines if line.startswith((b"flags", b"Features", b"model name"))]
    return b"|".join([platform.machine().encode(), *sorted(set(flags))])


def cores() -> int:
    """The number of processor cores that this process may use."""
    has_affinity = hasattr(os, "sched_getaffinity")  # macOS has none
    return len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1


def compile_to(path: Path) -> None:
    """Compiles the C code to a shared library. Raises OSError or SubprocessError if that isn't possible."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    jaxlib = importlib.util.find_spec("jaxlib")
    if compiler is None or jaxlib is None or jaxlib.origin is None:
        raise FileNotFoundError("no C compiler, or no headers")
    headers = Path(jaxlib.origin).parent / "include"
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        command = [compiler, *OPTIONS, f"-I{headers}", "-o", str(made), str(SOURCE)]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        made.chmod(0o700)  # whatever the umask: see `check_private`
        made.replace(path)
