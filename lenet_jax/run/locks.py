"""Locks: which process may write to a run folder. Only process 0 of a distributed run takes them."""

import contextlib
import errno
import fcntl
import os
import socket
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from lenet_jax import distributed
from lenet_jax.errors import InputError, StorageError
from lenet_jax.run.cleanup import LOCK, TURN, check_no_link
from lenet_jax.run.files import writing
from lenet_jax.run.folder import CHECKPOINTS, holds_others
from lenet_jax.run.progress import say

HOLDER = "process "
"""What the text in a lock begins with."""


class Lock(NamedTuple):
    """A lock that this process holds."""

    path: Path
    stream: IO[str]

    def check_held(self) -> None:
        """Raises StorageError if the folder isn't the one that was locked: it was moved, removed or replaced."""
        try:
            same = os.path.samestat(os.fstat(self.stream.fileno()), self.path.stat(follow_symlinks=False))
        except OSError:
            same = False
        if not same:
            raise StorageError(
                f"{str(self.path.parent)!r} was moved, removed or replaced while the run was at work; nothing was "
                "written into it since. What is saved is in the folder that was moved"
            )


def open_lock(path: Path) -> IO[str]:
    """Opens a lock's file, and creates it if necessary. Raises InputError if it is a link or not a lock of ours."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        reason = "it is a link" if error.errno == errno.ELOOP else error.strerror or error
        raise InputError(f"workdir: {str(path)!r} can't be written ({reason})") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode) or os.read(descriptor, len(HOLDER)) not in (b"", HOLDER.encode()):
        os.close(descriptor)
        raise InputError(f"workdir: {str(path)!r} is not a lock of lenet_jax; move it, or name another folder")
    return os.fdopen(descriptor, "r+")


@contextlib.contextmanager
def exclusive(folder: Path, name: str, shared: bool = False) -> Iterator[Lock]:
    """Creates and locks a folder, named `name` in messages. The lock ends with the process, however it ends.

    Several processes may hold a `shared` lock. Raises InputError if another process holds the lock, or the folder can't
    be written.
    """
    path = folder / LOCK
    check_no_link(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"workdir: {str(folder)!r} can't be written ({error.strerror or error})") from error
    with open_lock(path) as stream:
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
            holder = f"{HOLDER}{os.getpid()} on {socket.gethostname()} ({' '.join(sys.argv)[:200]})\n"
            os.pwrite(stream.fileno(), os.fsencode(holder), 0)
        try:
            yield Lock(path, stream)
        finally:
            if not shared:
                with contextlib.suppress(OSError):
                    stream.truncate(0)


@contextlib.contextmanager
def wait_turn(checkpoint_dir: Path) -> Iterator[None]:
    """Locks the files that jobs of single arms (`--only-arm`) write in turn, once no other job holds them."""
    with contextlib.ExitStack() as held:
        if distributed.primary():
            with writing(checkpoint_dir / TURN):
                stream = held.enter_context(open_lock(checkpoint_dir / TURN))
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
