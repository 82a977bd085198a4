"""Locks: which process may write to a run folder. Only process 0 of a distributed run takes them."""

import contextlib
import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from lenet_jax import distributed
from lenet_jax.errors import InputError
from lenet_jax.run.files import writing
from lenet_jax.run.folder import CHECKPOINTS, holds_others
from lenet_jax.run.progress import say

LOCK, TURN = "lock", "turn"


@contextlib.contextmanager
def exclusive(folder: Path, name: str, shared: bool = False) -> Iterator[None]:
    """Creates and locks a folder, named `name` in messages. The lock ends with the process, however it ends.

    Several processes may hold a `shared` lock. Raises InputError if another process holds the lock, or the folder can't
    be written.
    """
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = path.open("a+")
    except OSError as error:
        raise InputError(f"workdir: {str(folder)!r} can't be written ({error.strerror or error})") from error
    with stream:
        try:
            fcntl.flock(stream, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            stream.seek(0)
            owner = stream.read().strip() or "another process"
            problem = f"{name} is in use by {owner}; wait for it to end, or name another folder"
            raise InputError(f"workdir: {problem}") from error
        except OSError as error:
            say(f"{str(path)!r} can't be locked ({error.strerror}): make sure that no other process uses the folder")
        with contextlib.suppress(OSError):  # on a full disk, messages do without the owner's name
            stream.truncate(0)
            holder = f"process {os.getpid()} on {socket.gethostname()} ({' '.join(sys.argv)[:200]})\n"
            os.write(stream.fileno(), os.fsencode(holder))
        yield


@contextlib.contextmanager
def wait_turn(checkpoint_dir: Path) -> Iterator[None]:
    """Locks the files that jobs of single arms (`--only-arm`) write in turn, once no other job holds them."""
    with contextlib.ExitStack() as held:
        if distributed.primary():
            with writing(checkpoint_dir / TURN):
                stream = held.enter_context((checkpoint_dir / TURN).open("a"))
            with contextlib.suppress(OSError):  # a file system without locks, which `exclusive` has reported
                fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def move_aside(workdir: Path) -> Path | None:
    """Renames a run folder, to free its name for a new run; returns its new path, or None if there is no folder."""
    field = f"workdir: {str(workdir)!r}"
    if not workdir.exists():
        return None
    if not workdir.is_dir():
        raise InputError(f"{field} is a file; a folder is needed")
    if holds_others(workdir):
        raise InputError(f"{field} holds no run that --fresh could move aside; name a new folder")
    if Path.cwd().is_relative_to(workdir.resolve()):
        raise InputError(f"{field} contains the current folder, and --fresh would move it; change to another one")
    with exclusive(workdir / CHECKPOINTS, repr(str(workdir))):
        moved = workdir.with_name(f"{workdir.name}-{time.strftime('%Y-%m-%dT%H-%M-%S')}")
        try:
            workdir.rename(moved)
        except OSError as error:
            raise InputError(f"{field} can't be moved to {str(moved)!r} ({error.strerror})") from error
    return moved
