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


def existing_folder(path: str | Path, field: str) -> Path:
    """The folder at this path, `expanded`; raises InputError if there is none."""
    folder = expanded(path, field)
    if not os.path.isdir(folder):
        raise InputError(f"{field}: {str(folder)!r} is not a folder")
    return folder
