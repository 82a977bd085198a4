"""Limits of the shell (`ulimit`) that a run needs, checked before anything is imported or started."""

import resource

from lenet_jax.errors import InputError

FILES, FILES_PER_CORE = 64, 8
"""Open files that are enough for a run, with a margin."""

ADDRESS_SPACE, ADDRESS_SPACE_PER_CORE = 5 * 2**29, 2**26
"""Bytes of address space, most of which is reserved but never used: with less, XLA's threads abort the process."""


def check_limits(cores: int = 1) -> None:
    """Raises InputError if a limit is too low for a run on so many cores; raises the soft limit of open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = FILES + FILES_PER_CORE * cores
    if hard != resource.RLIM_INFINITY and hard < files:
        raise InputError(f"ulimit -n: {hard} open files are allowed; a run needs {files}")
    if soft != resource.RLIM_INFINITY and soft < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    needed = ADDRESS_SPACE + ADDRESS_SPACE_PER_CORE * cores
    if space != resource.RLIM_INFINITY and space < needed:
        raise InputError(f"ulimit -v: {space >> 10} KiB of address space are allowed; a run needs {needed >> 10}")
