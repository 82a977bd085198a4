"""Files of a run: written whole or not at all, and read with one-line errors."""

import contextlib
import errno
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from lenet_jax.errors import InputError, StorageError

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO, errno.ENOENT)
"""Errors of the disk, which some libraries report by their message only."""

SEAL = "sha256 of the rest"
"""The field of sealed JSON files that holds the digest of the other fields."""


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON, whole or not at all."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    replace_file(path, lambda partial: partial.write_text(text))


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Writes Parquet, whole or not at all."""
    # Floats that rarely repeat take half the space if they are split into bytes, and image indices as differences.
    encodings = {name: "BYTE_STREAM_SPLIT" for name, kind in table.dtypes.items() if kind.kind == "f"}
    encodings |= {"image": "DELTA_BINARY_PACKED"} if "image" in table else {}
    options: dict[str, Any] = {
        "compression": "zstd",
        "write_page_checksum": True,
        "column_encoding": encodings,
        "use_dictionary": [name for name in table if name not in encodings],
    }
    replace_file(path, lambda partial: table.to_parquet(partial, index=False, **options))


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Replaces a file in one step by another one, which `write` creates beside it, or raises StorageError."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with writing(path):
        try:
            write(partial)
            synchronize(partial)
            partial.replace(path)
            synchronize(path.parent)
        finally:
            partial.unlink(missing_ok=True)


def synchronize(path: Path) -> None:
    """Waits until a file, or the list of names of a folder, is on the disk: after a power cut it is still there."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems can't do this for folders
            raise
    finally:
        os.close(descriptor)


def partials_of(path: Path) -> Iterator[Path]:
    """What killed calls of `replace_file` left of a file."""
    return path.parent.glob(f".{path.name}.{'[0-9a-f]' * 8}")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Translates errors of writing a file into StorageError, which names it: many libraries don't."""
    try:
        yield
    except StorageError:
        raise
    except (OSError, RuntimeError, ValueError) as error:  # TensorStore raises the last two
        text = " ".join(str(error).split())
        known = next((reason for reason in map(os.strerror, DISK_ERRORS) if reason in text), "")
        if not known and not isinstance(error, OSError):
            raise
        reason = known or getattr(error, "strerror", None) or text[:200]
        raise StorageError(f"{str(path)!r} can't be written ({reason}); everything saved before is kept") from error


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; raises InputError if the file is missing, can't be read, or contains something else."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise InputError(f"run: {str(path)!r} is missing; name the folder of a finished `lenet-jax run`") from error
    except (OSError, ValueError) as error:
        raise InputError(f"run: {str(path)!r} can't be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"run: {str(path)!r} does not contain a JSON object")
    return content


def read_table(path: Path) -> pd.DataFrame:
    """Reads a table from Parquet; raises InputError if the file is missing or corrupt."""
    try:
        return pd.read_parquet(path, page_checksum_verification=True)
    except (OSError, ValueError) as error:
        raise InputError(f"run: {str(path)!r} can't be read as Parquet ({error})") from error


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON with its SHA-256: with a corrupt digit it would still be valid JSON."""
    write_json(path, {**content, SEAL: seal_of(content)})


def read_sealed(path: Path) -> dict[str, Any]:
    """Reads what `write_sealed` wrote; raises InputError if the file is missing or corrupt."""
    content = read_json(path)
    if content.pop(SEAL, None) != seal_of(content):
        raise InputError(f"{str(path)!r} is corrupt")
    return content


def seal_of(content: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON object."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def digest_of(path: Path) -> str:
    """SHA-256 of a file; raises InputError if it can't be read."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{str(path)!r} can't be read ({error.strerror})") from error
