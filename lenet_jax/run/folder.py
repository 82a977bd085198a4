"""The run folder: what a run leaves behind, and how to read it.

``config.json`` (resolved), ``provenance.json`` (where, when, with what), ``metrics.parquet`` (every number, long form),
``predictions.parquet`` (what every network makes of every test image, unless the config says no), ``tuning.parquet``
(the numbers of the members that hyperparameters were chosen by) and ``summary.json`` (a row an arm; written last, so
that its presence means a finished run).
"""

import dataclasses
import hashlib
import importlib
import importlib.metadata
import platform
import re
import subprocess
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from lenet_jax.errors import InputError, StorageError
from lenet_jax.run import files

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
    tree = Path(__file__).parents[2]
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


def create(folder: Path, config: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> None:
    """Makes `folder` the run folder of this config, unless it holds this run, finished. Arguments: see `finished`.

    Raises:
      InputError: it can't be written, or holds something else.
    """
    # Once more: loading data may have taken minutes, and another run the folder.
    if is_finished(folder, config, defaults):
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in (CONFIG, PROVENANCE, METRICS, PREDICTIONS, TUNING, SUMMARY):
            for path in folder.glob(f".{name}.*"):
                if files.is_partial(path, name):
                    path.unlink(missing_ok=True)
        files.write_json(folder / CONFIG, config)
    except OSError as error:
        raise InputError(f"workdir: {str(folder)!r} can't be written ({error.strerror or error})") from error
    except StorageError as error:
        raise InputError(f"workdir: {error}") from error


def is_finished(folder: Path, config: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> bool:
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
        other = {**(defaults or {}), **files.read_json(folder / CONFIG)}
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
    return any(path.name != CHECKPOINTS and not files.is_partial(path, CONFIG) for path in folder.iterdir())


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
    config, provenance, summary = (files.read_json(folder / name) for name in (CONFIG, PROVENANCE, SUMMARY))
    metrics = files.read_table(folder / METRICS)
    columns = {"arm", "seed", "epoch", "split", "metric", "value"}
    arms = summary.get("arms") or [{}]
    whole = all({"name", "axes", "diverged"} <= set(arm) for arm in arms)
    if not columns <= set(metrics.columns) or "dataset" not in summary or not whole:
        raise InputError(f"run: {str(folder)!r} is damaged: {SUMMARY} or {METRICS} is not as a run writes it")
    optional = [files.read_table(folder / name) if (folder / name).exists() else None for name in (PREDICTIONS, TUNING)]
    return Run(folder, config, provenance, summary, metrics, *optional)


LONGEST_FOLDER = 120
"""Bytes of an arm's name, quoted, that its folder keeps. File systems allow 255."""


def folder_name(arm: str) -> str:
    """A folder name for an arm: one path component of ASCII, its own for every arm, and the arm's name where it can be.

    Percent signs that no quoting makes mark what had to be changed further, so that no two arms meet.
    """
    quoted = quote(arm, safe=" ,=+()")
    if len(quoted) > LONGEST_FOLDER:
        quoted = f"{quoted[:LONGEST_FOLDER]}%{hashlib.sha256(arm.encode()).hexdigest()[:16]}"
    return f"%{quoted}" if quoted[:1] in ("", ".") else quoted
