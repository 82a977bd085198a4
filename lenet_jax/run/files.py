"""Files of a run: written whole or not at all, and read with errors of one line."""

import contextlib
import errno
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from lenet_jax.errors import InputError, StorageError


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON, whole or not at all."""
    replace_file(path, lambda partial: partial.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n"))


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Writes Parquet, whole or not at all."""
    # Numbers that hardly repeat take half the space byte by byte; so do images' places as differences.
    encodings = {name: "BYTE_STREAM_SPLIT" for name, kind in table.dtypes.items() if kind.kind == "f"}
    encodings |= {"image": "DELTA_BINARY_PACKED"} if "image" in table else {}
    options: dict[str, Any] = {
        "compression": "zstd",
        "write_page_checksum": True,
        "column_encoding": encodings,
        "use_dictionary": [name for name in table if name not in encodings],
    }
    replace_file(path, lambda partial: table.to_parquet(partial, index=False, **options))


def replace_file(path: Path, write: Any) -> None:
    """Lets `write` make a file beside `path`, then puts it in its place in one step.

    Raises:
      StorageError: it can't be written.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with writing(path):
        try:
            write(partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def is_partial(path: Path, name: str) -> bool:
    """Whether a file is what `replace_file` leaves of a file when it is killed."""
    return path.name.startswith(f".{name}.") and len(path.name) == len(f".{name}.") + 8


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Names the file where writing fails: many libraries don't.

    Raises:
      StorageError: it failed.
    """
    try:
        yield
    except StorageError:
        raise
    except (OSError, RuntimeError, ValueError) as error:  # the last two are TensorStore's
        text = " ".join(str(error).split())
        known = next((reason for reason in map(os.strerror, DISK_ERRORS) if reason in text), "")
        if not known and not isinstance(error, OSError):
            raise
        reason = known or getattr(error, "strerror", None) or text[:200]
        raise StorageError(f"{str(path)!r} can't be written ({reason}); all that was saved before is kept") from error


DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO, errno.ENOENT)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
      InputError: the file is not there, can't be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise InputError(
            f"run: {str(path)!r} is missing; a run folder that `lenet-jax run` finished is needed"
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"run: {str(path)!r} can't be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"run: {str(path)!r} holds no JSON object")
    return content


def read_table(path: Path) -> pd.DataFrame:
    """A table from Parquet.

    Raises:
      InputError: the file is not there or damaged.
    """
    try:
        return pd.read_parquet(path, page_checksum_verification=True)
    except (OSError, ValueError) as error:
        raise InputError(f"run: {str(path)!r} can't be read as Parquet ({error})") from error


SEAL = "sha256 of the rest"
"""The field of sealed JSON files that tells whether anything else in them was damaged."""


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON with its SHA-256: a digit can be damaged, and it is JSON still."""
    write_json(path, {**content, SEAL: seal_of(content)})


def read_sealed(path: Path) -> dict[str, Any]:
    """What `write_sealed` wrote.

    Raises:
      InputError: the file is damaged.
    """
    content = read_json(path)
    if content.pop(SEAL, None) != seal_of(content):
        raise InputError(f"{str(path)!r} is damaged")
    return content


def seal_of(content: Mapping[str, Any]) -> str:
    """SHA-256 of what JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def digest_of(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
      InputError: it can't be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{str(path)!r} can't be read ({error.strerror})") from error
