"""Which process may write to a run folder."""

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
from lenet_jax.run import files
from lenet_jax.run import folder as run_folder
from lenet_jax.run.progress import say

LOCK, TURN = "lock", "turn"


@contextlib.contextmanager
def exclusive(folder: Path, name: str, shared: bool = False) -> Iterator[None]:
    """Makes this process the owner of a folder until it ends, however it ends.

    Args:
      folder: which is made if need be.
      name: what to call it.
      shared: with others that share it.

    Raises:
      InputError: another process has it, or it can't be written.
    """
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise InputError(f"workdir: {str(folder)!r} can't be written ({error.strerror or error})") from error
    with open(file, "r+") as stream:
        try:
            fcntl.flock(stream, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"workdir: {name} is in use by {stream.read().strip() or 'another process'}; wait for it to end, or "
                "name another folder"
            ) from error
        except OSError as error:
            say(f"{str(path)!r} can't be locked ({error.strerror}): see to it that no other process uses the folder")
        with contextlib.suppress(OSError):  # a full disk: the name of the owner is a courtesy
            stream.truncate(0)
            stream.write(f"process {os.getpid()} on {socket.gethostname()} ({' '.join(sys.argv)[:200]})\n")
            stream.flush()
        yield


@contextlib.contextmanager
def wait_turn(checkpoint_dir: Path) -> Iterator[None]:
    """Waits until no other job is in here: those of single arms share a folder, and write some of its files in turns.

    Raises:
      StorageError: the folder can't be written.
    """
    if not distributed.primary():
        yield
        return
    with files.writing(checkpoint_dir / TURN):
        file = os.open(checkpoint_dir / TURN, os.O_RDWR | os.O_CREAT, 0o666)
    with open(file):
        with contextlib.suppress(OSError):  # no locks there: `owned` said so
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def move_aside(workdir: Path) -> Path | None:
    """Renames a run folder, so that a new run can have its name; returns the new name, or None if there is none.

    Raises:
      InputError: it holds no run, a process is at it, or it can't be renamed.
    """
    if not workdir.exists():
        return None
    if not (workdir / run_folder.CONFIG).exists() and run_folder.holds_others(workdir):
        raise InputError(f"workdir: {str(workdir)!r} holds no run that --fresh could move aside; name a new folder")
    if Path.cwd().is_relative_to(workdir.resolve()):
        raise InputError(f"workdir: {str(workdir)!r} is where you are, and --fresh would move it; go to another folder")
    with exclusive(workdir / run_folder.CHECKPOINTS, repr(str(workdir))):
        moved = workdir.with_name(f"{workdir.name}-{time.strftime('%Y-%m-%dT%H-%M-%S')}")
        try:
            workdir.rename(moved)
        except OSError as error:
            raise InputError(
                f"workdir: {str(workdir)!r} can't be moved to {str(moved)!r} ({error.strerror})"
            ) from error
    return moved
