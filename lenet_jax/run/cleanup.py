"""What runs write into ``checkpoints/``, by name: nothing else is removed, and no link is followed.

Hidden files of others (``.DS_Store``, ``.nfs...``) are left alone.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from lenet_jax.errors import InputError
from lenet_jax.run.folder import METRICS, PREDICTIONS

LOCK, TURN, ATTEMPTS = "lock", "turn", "attempts"
ARM, TRAINED, STATES, DAMAGED = "arm.json", "trained.json", "states", "damaged"


class Owned(NamedTuple):
    """Names that we give to files of a folder, and to folders in it; None for folders that are ours as a whole."""

    files: str
    folders: Mapping[str, "Owned | None"]


def written(*names: str) -> str:
    """Pattern of files that `files.replace_file` writes, and of what it leaves when it is killed."""
    return "|".join(rf"{re.escape(name)}|\.{re.escape(name)}\.[0-9a-f]{{8}}" for name in names)


OF_STATES = Owned("", {r"\d+(\.orbax-checkpoint-tmp.*)?": None})
OF_CHUNK = Owned(written(TRAINED, METRICS, PREDICTIONS), {STATES: OF_STATES, rf"{DAMAGED}-\d+": None})
OF_ARM = Owned(f"{LOCK}|{written(ARM)}", {r"(tested|tried-\d+)-\d+-\d+": OF_CHUNK})
OF_ATTEMPTS = Owned(r"\.?[-\d]+T[-+\d]+-[0-9a-f]{8}\.json(\.[0-9a-f]{8})?", {})


def of_run(arms: Collection[str]) -> Owned:
    """What belongs in the ``checkpoints/`` of a run whose arms have these folders."""
    return Owned(f"{LOCK}|{TURN}", {ATTEMPTS: OF_ATTEMPTS, **{re.escape(arm): OF_ARM for arm in arms}})


def check_owned(checkpoint_dir: Path, arms: Collection[str]) -> None:
    """Raises InputError if ``checkpoints/`` is a link, or holds what no run with these arms wrote; it may not exist."""
    check_no_link(checkpoint_dir)
    for path, kind in entries(checkpoint_dir, of_run(arms)):
        if kind == "other" and not path.name.startswith("."):
            what = "is a link" if path.is_symlink() else "is not of this run"
            raise InputError(f"workdir: {str(path)!r} {what}; move it elsewhere, or name another folder")


def check_no_link(folder: Path) -> None:
    """Raises InputError if a folder inside a run folder is a link."""
    if folder.is_symlink():
        raise InputError(f"workdir: {str(folder)!r} is a link; only the run folder itself may be one")


def remove(folder: Path, owned: Owned, keep: Collection[Path] = ()) -> None:
    """Removes what is ours in a folder but `keep`, then folders that are empty. What can't be removed stays."""
    for path, kind in () if folder.is_symlink() else entries(folder, owned):
        if path not in keep:
            with contextlib.suppress(OSError):
                if kind == "file":
                    path.unlink()
                elif kind == "folder":
                    path.rmdir()
                elif kind == "whole":
                    shutil.rmtree(path)


def entries(folder: Path, owned: Owned) -> Iterator[tuple[Path, str]]:
    """What a folder contains, folders after their contents: a "file" or "folder" of ours, a "whole" one, or "other"."""
    try:
        with os.scandir(folder) as found:
            contents = sorted(found, key=lambda entry: entry.name)
    except OSError:  # it doesn't exist, or another process removed it
        return
    for entry in contents:  # with the types of that moment: other jobs rename and remove what is theirs
        path = Path(entry.path)
        matching = [inner for pattern, inner in owned.folders.items() if re.fullmatch(pattern, entry.name)]
        if entry.is_symlink():
            yield path, "other"
        elif entry.is_dir() and matching:
            if matching[0] is not None:
                yield from entries(path, matching[0])
            yield path, "whole" if matching[0] is None else "folder"
        else:
            ours = entry.is_file() and re.fullmatch(owned.files, entry.name)
            yield path, "file" if ours else "other"
