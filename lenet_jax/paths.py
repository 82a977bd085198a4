"""Paths as users write them."""

import os
from pathlib import Path

from lenet_jax.errors import InputError


def expanded(path: str | Path, field: str) -> Path:
    """The path with ``~`` or ``~user`` at its start replaced by that home folder: shells leave it in ``--out=~/x``.

    Raises:
      InputError: there is no such home folder, and no file of that name; or the name is not UTF-8, which some libraries
        can't open. `field` is what the path was given for.
    """
    found = Path(os.path.expanduser(path))
    if str(found).startswith("~") and not os.path.lexists(found):
        raise InputError(f"{field}: no home folder is known for {str(path)!r}; set HOME, or write the whole path")
    try:
        str(found).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{field}: {str(path)!a} is not UTF-8; rename the file or folder") from error
    return found


def cache_folder(name: str) -> Path:
    """A folder for files of this user that can be made again; it may not exist yet."""
    return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "XDG_CACHE_HOME") / "lenet_jax" / name


def made_private(folder: Path) -> Path:
    """The folder, made if needed. Raises OSError if it can't be made, or as `check_private` does."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_private(folder)
    return folder


def check_private(*paths: Path) -> None:
    """Raises PermissionError if a path is a link, not this user's, or writable by others: we run what it holds."""
    for path in paths:
        status = path.lstat()
        if status.st_uid != os.getuid() or path.is_symlink() or status.st_mode & 0o022:
            raise PermissionError(f"{str(path)!r} is not only this user's")


def existing_folder(path: str | Path, field: str) -> Path:
    """The folder at this path, `expanded`; raises InputError if there is none."""
    folder = expanded(path, field)
    if not os.path.isdir(folder):
        raise InputError(f"{field}: {str(folder)!r} is not a folder")
    return folder
