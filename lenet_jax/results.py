"""The run folder: what a run leaves behind, and how to read it.

``config.json`` (resolved), ``provenance.json`` (where, when, with what), ``metrics.parquet`` (every number, long form),
``predictions.parquet`` (what every network makes of every test image, unless the config says no), ``tuning.parquet``
(the numbers of the members that hyperparameters were chosen by) and ``summary.json`` (a row an arm; written last, so
that its presence means a finished run).
"""

import contextlib
import dataclasses
import errno
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import secrets
import subprocess
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from lenet_jax.errors import InputError, StorageError

CONFIG, PROVENANCE, METRICS, SUMMARY = "config.json", "provenance.json", "metrics.parquet", "summary.json"
PREDICTIONS, TUNING = "predictions.parquet", "tuning.parquet"
CHECKPOINTS = "checkpoints"

ONLY_ARM = "all"
"""The name of the arm of a config that compares nothing."""

PACKAGES = ("lenet_jax", "jax", "jaxlib", "flax", "optax", "numpy", "ml_collections", "tensorflow_datasets")
"""Their versions are part of the provenance."""


@dataclasses.dataclass(frozen=True, repr=False)
class Run:
    """A finished run, as read from its folder.

    Attributes:
      folder: where it is.
      config, provenance, summary: the JSON files.
      metrics: one row a number: arm, a column a sweep axis, seed, epoch, split, metric, value. Split ``running`` is the
        training set while training, ``train`` the training set after it. A tuned hyperparameter has a column too.
      predictions: one row a test image and network: arm, seed, image (its place in the test set), label, predicted (-1
        where outputs were not finite), margin (by how much the best score led), and a column a sweep axis. None if the
        config said no.
      tuning: as metrics, of the members that hyperparameters were chosen by: a column for each that was tuned, no test
        split. None if nothing was tuned.
    """

    folder: Path
    config: dict[str, Any]
    provenance: dict[str, Any]
    summary: dict[str, Any]
    metrics: pd.DataFrame
    predictions: pd.DataFrame | None
    tuning: pd.DataFrame | None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.folder)!r}, arms={len(self.summary['arms'])})"


def format_value(value: Any) -> str:
    """A field's value as it stands in an arm's name."""
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def arm_named(wanted: str, names: Collection[str]) -> str:
    """The one of some arms' names that is meant, whose numbers may be written otherwise (3.0 for 3).

    What is none of them is returned as it is.
    """

    def usual(name: str) -> str:
        return re.sub(r"(?<==)[^,]+", lambda match: plain(match[0]), name)

    def plain(value: str) -> str:
        try:
            return format_value(float(value))
        except ValueError:
            return value

    meant = [name for name in names if usual(name) == usual(wanted)]
    return wanted if wanted in names or len(meant) != 1 else meant[0]


def describe_environment(command: str) -> dict[str, Any]:
    """Provenance that is known before a run: versions, machine, git commit, command."""
    import jax

    return {
        "command": command,
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "git_commit": git_commit(),
        "platform": platform.platform(),
        "processor": processor_name(),
        "devices": [f"{device.platform} {device.device_kind} {device.id}" for device in jax.devices()],
        "processes": jax.process_count(),
    }


def git_commit() -> str | None:
    """The commit of the source tree that this package runs from, with "+changes" if it has any; None if installed."""
    tree = Path(__file__).parent.parent
    if not (tree / ".git").exists():
        return None
    try:
        commit = subprocess.run(
            ["git", "-C", str(tree), "describe", "--always", "--abbrev=40", "--dirty=+changes", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip()


def processor_name() -> str:
    """The processor, as far as the system tells. On Linux with its model, which decides what XLA compiles to."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    first = dict(reversed([[part.strip() for part in line.split(":", 1)] for line in lines if ":" in line]))
    numbers = [f"{name} {first[name]}" for name in ("cpu family", "model", "stepping") if name in first]
    return ", ".join([first.get("model name", platform.machine()), *numbers])


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


def claim(folder: Path, config: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> None:
    """Makes `folder` the run folder of this config, unless it holds this run, finished. Arguments: see `finished`.

    Raises:
      InputError: it can't be written, or holds something else.
    """
    # Once more: loading data may have taken minutes, and another run the folder.
    if finished(folder, config, defaults):
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in (CONFIG, PROVENANCE, METRICS, PREDICTIONS, TUNING, SUMMARY):
            for path in folder.glob(f".{name}.*"):
                if is_partial(path, name):
                    path.unlink(missing_ok=True)
        write_json(folder / CONFIG, config)
    except OSError as error:
        raise InputError(f"workdir: {str(folder)!r} can't be written ({error.strerror or error})") from error
    except StorageError as error:
        raise InputError(f"workdir: {error}") from error


def finished(folder: Path, config: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> bool:
    """Whether `folder` holds this config's run, finished. Writes nothing.

    Args:
      folder: which may not exist.
      config: resolved.
      defaults: of fields that the run may be older than.

    Raises:
      InputError: the folder holds another config's run, or something that is no run.
    """
    field = f"workdir: {str(folder)!r}"
    try:
        if not folder.exists():
            return False
        if not folder.is_dir():
            raise InputError(f"{field} is a file; a folder is needed")
        if not (folder / CONFIG).exists():
            if holds_others(folder):
                raise InputError(f"{field} is not empty and holds no run; name a new folder")
            return False
        other = {**(defaults or {}), **read_json(folder / CONFIG)}
    except OSError as error:
        raise InputError(f"{field} can't be read ({error.strerror or error})") from error
    changed = sorted(key for key in {*config, *other} if config.get(key) != other.get(key))
    if changed:
        raise InputError(
            f"{field} holds a run with another config (it differs in {', '.join(changed)}); name another folder, or "
            "add --fresh to move it aside"
        )
    return (folder / SUMMARY).exists()


def holds_others(folder: Path) -> bool:
    """Whether a folder without config holds more than what a run leaves that is killed as it begins."""
    return any(path.name != CHECKPOINTS and not is_partial(path, CONFIG) for path in folder.iterdir())


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


def load(folder: str | Path) -> Run:
    """Reads a finished run.

    Raises:
      InputError: the folder holds none, or a file of it is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"run: {str(folder)!r} is not a folder")
    if (folder / CONFIG).exists() and not (folder / SUMMARY).exists():
        raise InputError(f"run: {str(folder)!r} is not finished; the command that began it goes on")
    config, provenance, summary = (read_json(folder / name) for name in (CONFIG, PROVENANCE, SUMMARY))
    metrics = read_table(folder / METRICS)
    columns = {"arm", "seed", "epoch", "split", "metric", "value"}
    arms = summary.get("arms") or [{}]
    whole = all({"name", "axes", "diverged"} <= set(arm) for arm in arms)
    if not columns <= set(metrics.columns) or "dataset" not in summary or not whole:
        raise InputError(f"run: {str(folder)!r} is damaged: {SUMMARY} or {METRICS} is not as a run writes it")
    optional = [read_table(folder / name) if (folder / name).exists() else None for name in (PREDICTIONS, TUNING)]
    return Run(folder, config, provenance, summary, metrics, *optional)


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
