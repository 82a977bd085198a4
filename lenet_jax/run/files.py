"""Files of a run: written whole or not at all, and read with one-line errors."""

import contextlib
import errno
import hashlib
import json
import math
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet

from lenet_jax.errors import InputError, StorageError, one_line

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO, errno.ENOENT)
"""Errors of the disk, which some libraries report by their message only."""

MAX_JSON_BYTES, MAX_JSON_ITEMS, MAX_JSON_DEPTH = 2**27, 2**22, 32
"""Of a JSON file: its bytes, its values (memory grows with both), and levels of nesting."""

MAX_SMALL_TABLE, MAX_TABLE_RATIO = 2**29, 200
"""Bytes in memory of any table, and of a larger one relative to its file: predictions of networks that have diverged
are the same number again and again, and shrink most."""

SPECIAL = "is a link, pipe or device; a run folder has files and folders alone (cp -rL replaces links)"

SEAL = "sha256 of the rest"
"""The field of sealed JSON files that holds the digest of the other fields."""


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON, whole or not at all."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    replace_file(path, lambda partial: partial.write_text(text))


def write_table(path: Path, table: pd.DataFrame, *more: Callable[[], pd.DataFrame]) -> None:
    """Writes Parquet, whole or not at all: a table, and below it tables that are made one by one, with its columns."""
    # Floats that rarely repeat take half the space if they are split into bytes, and image indices as differences.
    encodings = {name: "BYTE_STREAM_SPLIT" for name, kind in table.dtypes.items() if kind.kind == "f"}
    encodings |= {"image": "DELTA_BINARY_PACKED"} if "image" in table else {}
    schema = pa.Schema.from_pandas(table, preserve_index=False)
    options: dict[str, Any] = {
        "compression": "zstd",
        "write_page_checksum": True,
        "column_encoding": encodings,
        "use_dictionary": [name for name in table if name not in encodings],
    }

    def write(partial: Path) -> None:
        with pa.parquet.ParquetWriter(partial, schema, **options) as writer:
            for make in (lambda: table, *more):
                writer.write_table(pa.Table.from_pandas(make(), schema, preserve_index=False))

    replace_file(path, write)


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


def open_file(path: Path) -> BufferedReader:
    """Opens a file of a run folder, which may come from anyone: neither follows a link nor waits for a pipe.

    Raises:
      OSError: it is missing or can't be opened.
      InputError: it is not a regular file.
    """
    try:
        stream = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
        if stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            return stream
        stream.close()
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO, errno.EISDIR):  # of a link, a socket and a folder
            raise
    raise InputError(f"run: {str(path)!r} {SPECIAL}")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
      InputError: the file is missing, can't be read, is too large, has a number that is not finite, or contains
        something else.
    """

    def finite(text: str) -> float:
        if math.isfinite(value := float(text)):
            return value
        raise ValueError(f"the number {text} is not finite")

    def depth(value: Any) -> int:
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return 1 + max(map(depth, inner), default=0)

    try:
        with open_file(path) as stream:
            data = stream.read(MAX_JSON_BYTES + 1)
        if len(data) > MAX_JSON_BYTES or sum(map(data.count, (b",", b"[", b"{"))) > MAX_JSON_ITEMS:
            raise ValueError(f"more than {MAX_JSON_BYTES} bytes or {MAX_JSON_ITEMS} values")
        content = json.loads(data, parse_float=finite, parse_constant=finite)
        if depth(content) > MAX_JSON_DEPTH:
            raise RecursionError
    except FileNotFoundError as error:
        raise InputError(f"run: {str(path)!r} is missing; name the folder of a finished `lenet-jax run`") from error
    except InputError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        deep = f"more than {MAX_JSON_DEPTH} levels of nesting"
        reason = deep if isinstance(error, RecursionError) else one_line(error)
        raise InputError(f"run: {str(path)!r} can't be read as JSON ({reason})") from error
    if not isinstance(content, dict):
        raise InputError(f"run: {str(path)!r} does not contain a JSON object")
    return content


@contextlib.contextmanager
def open_table(path: Path) -> Iterator[tuple[pa.parquet.ParquetFile, int]]:
    """Opens a Parquet table of text, which is read as codes, numbers and truth values.

    With it comes the number of bytes that it may take in memory beyond those of its codes and numbers.

    Raises:
      InputError: the file is missing or corrupt, has other columns, or would take far more memory than it is large.
    """
    try:
        with open_file(path) as stream:
            status = os.fstat(stream.fileno())
            held = min(status.st_size, 512 * status.st_blocks or status.st_size)  # less than its size if it has holes
            spare = max(MAX_SMALL_TABLE, MAX_TABLE_RATIO * held)
            with pa.parquet.ParquetFile(stream) as file:
                text = check_columns(file.schema_arrow)
                check_memory(memory_of(file), spare)
                spare -= memory_of(file)
            # Codes of many rows take little memory, but a small file can repeat a long text a million times.
            stream.seek(0)
            with pa.parquet.ParquetFile(stream, read_dictionary=text, page_checksum_verification=True) as file:
                yield file, spare
    except InputError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"run: {str(path)!r} can't be read as Parquet ({one_line(error)})") from error


def check_columns(schema: pa.Schema) -> list[str]:
    """The columns that hold text; raises ValueError if one holds anything but text, numbers or truth values."""
    for name, kind in zip(schema.names, schema.types, strict=True):
        plain = is_text(kind) or (pa.types.is_primitive(kind) and not pa.types.is_temporal(kind))
        if not plain or schema.names.count(name) > 1:
            raise ValueError(f"column {name!r} holds {kind}; allowed is text, a number or a truth value, once")
    return [field.name for field in schema if is_text(field.type)]


def is_text(kind: pa.DataType) -> bool:
    """Whether a column's type is text."""
    return kind in (pa.string(), pa.large_string())


def memory_of(file: pa.parquet.ParquetFile) -> int:
    """Bytes of a table's numbers, and of the codes of its text, in memory."""
    about = file.metadata
    groups = [about.row_group(index) for index in range(about.num_row_groups)]
    stated = sum(group.column(index).total_uncompressed_size for group in groups for index in range(about.num_columns))
    widths = [8 if is_text(kind) else -(-kind.bit_width // 8) for kind in file.schema_arrow.types]
    return int(max(stated, about.num_rows * sum(widths)))


def check_memory(needed: int, allowed: int) -> None:
    """Raises ValueError if a table takes too many bytes of memory."""
    if needed > allowed:
        raise ValueError(f"it takes {needed} bytes of memory; {allowed} are accepted from a file of its size")


def read_table(path: Path, categories: bool = False) -> pd.DataFrame:
    """Reads a table, text as sorted categories if asked for: one code a row; for errors see `open_table`."""
    with open_table(path) as (file, spare):
        table = file.read(use_threads=False)
        if categories:
            coded: pd.DataFrame = table.unify_dictionaries().to_pandas(split_blocks=True)
            for name in coded.select_dtypes("category"):
                coded[name] = coded[name].cat.set_categories(sorted(coded[name].cat.categories))
            return coded
        text = {name: pa.large_string() for name in table.column_names if pa.types.is_dictionary(table[name].type)}
        chunks = [chunk for name in text for chunk in table[name].chunks]
        lengths = [pa.compute.max(pa.compute.binary_length(chunk.dictionary)).as_py() or 0 for chunk in chunks]
        grown = sum(len(chunk) * length for chunk, length in zip(chunks, lengths, strict=True))
        check_memory(grown, spare)
        fields = [(field.name, text.get(field.name, field.type)) for field in table.schema]
        decoded: pd.DataFrame = table.cast(pa.schema(fields)).to_pandas()
        return decoded


def size_of(folder: Path) -> int:
    """Bytes in all files below a folder; raises InputError for anything but files and folders."""
    found = 0
    for path in (folder, *folder.rglob("*")):
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode) and (path == folder or not stat.S_ISREG(status.st_mode)):
            raise InputError(f"run: {str(path)!r} {SPECIAL}")
        found += status.st_size if path.is_file() else 0
    return found


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
        with open_file(path) as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{str(path)!r} can't be read ({error.strerror})") from error
