"""The run folder: the files of a run, and how to read them.

``config.json`` (resolved), ``provenance.json`` (where, when, with what), ``metrics.parquet`` (long form),
``predictions.parquet`` (unless ``store_predictions=False``), ``tuning.parquet`` (metrics of the networks that
hyperparameters were chosen by) and ``summary.json`` (one row an arm; written last: its presence marks a finished run).
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from lenet_jax import stats
from lenet_jax.errors import InputError, StorageError, short_repr
from lenet_jax.paths import existing_folder
from lenet_jax.run import answers, files, schema, tuning
from lenet_jax.run.answers import Answers
from lenet_jax.run.schema import Scalar

CONFIG, PROVENANCE, METRICS, SUMMARY = "config.json", "provenance.json", "metrics.parquet", "summary.json"
PREDICTIONS, TUNING = "predictions.parquet", "tuning.parquet"
CHECKPOINTS = "checkpoints"

PACKAGES = ("lenet_jax", "jax", "jaxlib", "flax", "optax", "numpy", "ml_collections", "tensorflow_datasets")
"""Packages whose versions are part of the provenance."""

MAX_FOLDER_BYTES = 120
"""Length of an arm's quoted name up to which its folder has it in full. File systems allow 255."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArmSummary:
    """One row of ``summary.json``. Fields with a default are missing in older runs, or where they don't apply.

    Attributes:
      axes: sweep axis -> value.
      seeds, diverged: number of networks, and of those with a loss that was not finite at some epoch.
      identity: digest of settings and data; states with another one are not of this arm.
      chosen: tuned hyperparameter -> chosen value.
      chosen_at_edge: tuned hyperparameters whose chosen value is at the edge of the grid.
      settings: all config fields of the arm, with the chosen values.
      parameters: trainable parameters of a network.
      dataset: its name, fingerprint, and sizes of the splits.
      scaling: ``scale`` and ``shift`` from pixels to inputs.
      train_error, validation_error, test_error: at the last epoch.
      seconds, samples_per_second: wall time, with tuning, compilation and evaluation; speed of the last training.
      predicted_memory: in bytes.
    """

    name: str
    axes: dict[str, Scalar]
    seeds: int
    diverged: int
    identity: str | None = None
    chosen: dict[str, float]
    chosen_at_edge: tuple[str, ...] = ()
    settings: dict[str, Any] | None = None
    parameters: int
    classes: int | None = None
    dataset: dict[str, str | int]
    scaling: dict[str, float] | None = None
    train_error: stats.Statistics
    validation_error: stats.Statistics | None = None
    test_error: stats.Statistics
    seconds: float
    samples_per_second: float
    predicted_memory: int

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "ArmSummary":
        """The row as read from JSON, without unknown keys; raises InputError if a field is missing or invalid."""
        where = f"{SUMMARY}: arm {short_repr(row.get('name'))}"
        arm: ArmSummary = schema.fit(cls, dict(row), where)
        for name in (arm.name, *arm.axes, *arm.chosen):
            schema.check_name(name, where)
        errors = [error for error in (arm.train_error, arm.validation_error, arm.test_error) if error]
        conditions = {
            "axes": "".join(map(str, arm.axes.values())).isprintable(),
            "seeds": arm.seeds > 0 and all(len(error.per_seed) == arm.seeds for error in errors),
            "diverged": 0 <= arm.diverged <= arm.seeds,
            "chosen_at_edge": set(arm.chosen_at_edge) <= set(arm.chosen),
            "classes": 0 < (arm.classes or 1) <= schema.MAX_CLASSES,
            "scaling": arm.scaling is None or set(arm.scaling) == {"scale", "shift"},
        }
        if wrong := [name for name, holds in conditions.items() if not holds]:
            raise InputError(f"{where}: {wrong[0]} is invalid, or does not fit the other fields")
        schema.check_fields(arm.settings or {}, schema.config_kinds(), f"{where}: settings")
        return arm

    def to_json(self) -> dict[str, Any]:
        """The row as written to JSON, without fields that are None."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


@dataclasses.dataclass(frozen=True, repr=False)
class Run:
    """A finished run, as read from its folder.

    Attributes:
      folder: its path.
      config, provenance, summary: the JSON files; see `arms` for the rows of the summary.
      metrics: one row a value, with the columns arm, seed, epoch, split, metric, value, one for each sweep axis and one
        for each tuned hyperparameter. Split ``running`` is the training set during an epoch, ``train`` after it.
      answers: of each arm's networks for every test image, by arm; empty if ``store_predictions=False``.
      tuning: as metrics, of the networks that hyperparameters were chosen by, with a column for each tuned one and no
        test split. None without tuning.
    """

    folder: Path
    config: dict[str, Any]
    provenance: dict[str, Any]
    summary: dict[str, Any]
    metrics: pd.DataFrame
    answers: Mapping[str, Answers]
    tuning: pd.DataFrame | None

    @functools.cached_property
    def arms(self) -> tuple[ArmSummary, ...]:
        """The rows of the summary, in the order of the config."""
        return tuple(ArmSummary.from_json(row) for row in self.summary["arms"])

    @functools.cached_property
    def at_end(self) -> "Run":
        """The run with only the last epoch of each arm in its metrics."""
        last = self.metrics.groupby("arm").epoch.transform("max")
        return dataclasses.replace(self, metrics=self.metrics[self.metrics.epoch == last])

    @functools.cached_property
    def predictions(self) -> pd.DataFrame | None:
        """The answers as a table, made on first use; None without answers.

        One row for each network and test image, with the columns arm, one for each sweep axis, seed, image (its index
        in the test set), label, predicted, margin, nll and brier; see `answers.Answers`.
        """
        return answers.frame(self.answers, {arm.name: arm.axes for arm in self.arms}) if self.answers else None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.folder)!r}, arms={len(self.arms)})"


def describe_environment(command: str) -> dict[str, Any]:
    """Provenance known before a run: versions, machine, git commit, command, JAX's settings."""
    import jax

    from lenet_jax import jax_settings

    return {
        "command": command,
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "git_commit": git_commit(),
        "platform": platform.platform(),
        "processor": processor_name(),
        "devices": [f"{device.platform} {device.device_kind} {device.id}" for device in jax.devices()],
        "processes": jax.process_count(),
        "jax_settings": jax_settings.described(),
    }


def git_commit() -> str | None:
    """The commit of the source tree of this package, with "+changes" if it is modified; None if it is installed."""
    tree = Path(__file__).parents[2]
    if not (tree / ".git").exists():
        return None
    git = ["git", "-C", str(tree), "describe", "--always", "--abbrev=40", "--dirty=+changes", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def processor_name() -> str:
    """The processor as the system reports it; on Linux with its model, which determines what XLA compiles to."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    first = dict(reversed([[part.strip() for part in line.split(":", 1)] for line in lines if ":" in line]))
    numbers = [f"{name} {first[name]}" for name in ("cpu family", "model", "stepping") if name in first]
    return ", ".join([first.get("model name", platform.machine()), *numbers])


def create(folder: Path, config: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> None:
    """Makes `folder` the run folder of this config, unless it holds this run, finished; see `is_finished`."""
    # Checked again: loading data may have taken minutes, in which another run may have taken the folder.
    if is_finished(folder, config, defaults):
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in (CONFIG, PROVENANCE, METRICS, PREDICTIONS, TUNING, SUMMARY):
            for path in files.partials_of(folder / name):
                path.unlink(missing_ok=True)
        files.write_json(folder / CONFIG, config)
    except OSError as error:
        raise InputError(f"workdir: {str(folder)!r} can't be written ({error.strerror or error})") from error
    except StorageError as error:
        raise InputError(f"workdir: {error}") from error


def is_finished(folder: Path, config: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> bool:
    """Whether `folder`, which may not exist, holds this resolved config's run, finished. Writes nothing.

    `defaults` are values of fields that older runs lack. Raises InputError if the folder holds anything else.
    """
    field = f"workdir: {str(folder)!r}"
    try:
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{field} is a file; a folder is needed")
        if holds_others(folder):
            raise InputError(f"{field} is not empty and holds no run; name a new folder")
        if not (folder / CONFIG).exists():
            return False
    except OSError as error:
        raise InputError(f"{field} can't be read ({error.strerror or error})") from error
    with naming_a_way_out():
        other = {**(defaults or {}), **files.read_json(folder / CONFIG)}
    changed = sorted(key for key in {*config, *other} if config.get(key) != other.get(key))
    if changed:
        raise InputError(
            f"{field} holds a run with another config (it differs in {', '.join(changed)}); name another folder, or "
            "add --fresh to move it aside"
        )
    return (folder / SUMMARY).exists()


@contextlib.contextmanager
def naming_a_way_out() -> Iterator[None]:
    """Adds what a user can do to the error of a damaged run: the command that trains it can't repair it."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{error}; add --fresh to move the folder aside and train again") from error


def holds_others(folder: Path) -> bool:
    """Whether a folder exists that holds no config, but more than a run leaves that was killed at its start."""
    if not folder.exists() or (folder / CONFIG).exists():
        return False
    return bool(set(folder.iterdir()) - {folder / CHECKPOINTS, *files.partials_of(folder / CONFIG)})


def load(folder: str | Path) -> Run:
    """Reads a finished run.

    Raises:
      InputError: the folder holds no finished run, or a file of it is damaged.
    """
    folder = existing_folder(folder, "run")
    field = f"run: {str(folder)!r}"
    if os.path.lexists(folder / CONFIG) and not os.path.lexists(folder / SUMMARY):
        raise InputError(f"{field} is not finished; rerun the command that started it to resume")
    config, provenance, summary = (files.read_json(folder / name) for name in (CONFIG, PROVENANCE, SUMMARY))
    metrics = files.read_table(folder / METRICS, categories=True)
    tried = files.read_table(folder / TUNING, categories=True) if os.path.lexists(folder / TUNING) else None
    run = Run(folder, config, provenance, summary, metrics, {}, tried)
    try:
        check_contents(run)
    except InputError as error:
        raise InputError(f"{field} is damaged: {error}") from error
    if not os.path.lexists(folder / PREDICTIONS):
        return run
    seeds = {arm.name: arm.seeds for arm in run.arms}
    found = answers.read(folder / PREDICTIONS, seeds, f"{field} is damaged: {PREDICTIONS}")
    measured = {str(arm): sorted(of_arm.unique()) for arm, of_arm in metrics.groupby("arm", observed=True).seed}
    if other := [arm for arm, one in found.items() if one.seeds.tolist() != measured[arm]]:
        raise InputError(f"{field} is damaged: {PREDICTIONS}: arm {other[0]!r} has other seeds than in {METRICS}")
    return dataclasses.replace(run, answers=found)


def check_contents(run: Run) -> None:
    """Raises InputError unless all that was read from a run's folder can be the results of one run."""
    schema.check_fields(run.config, schema.config_kinds(), CONFIG)
    schema.check_fields(run.provenance, schema.PROVENANCE_FIELDS, PROVENANCE)
    for name, kind in {"dataset": dict[str, str | int], "arms": list[dict[str, Any]]}.items():
        schema.fit(kind, run.summary.get(name), f"{SUMMARY}: {name}")
    seeds = {arm.name: arm.seeds for arm in run.arms}
    if not seeds or len(seeds) < len(run.arms):
        raise InputError(f"{SUMMARY}: no arms, or two with the same name")
    schema.check_table(run.metrics, schema.METRIC_COLUMNS, (), seeds, METRICS)
    if absent := set(seeds) - set(run.metrics.arm.unique()):
        raise InputError(f"{METRICS}: arm {min(absent)!r} is missing")
    if run.tuning is not None:
        tuned = [*dict.fromkeys(name for arm in run.arms for name in arm.chosen)]
        schema.check_table(run.tuning, schema.METRIC_COLUMNS, tuned, dict.fromkeys(seeds, 0), TUNING)
        tables = dict(iter(run.tuning.groupby("arm")))
        for arm in (arm for arm in run.arms if arm.chosen):
            tried = tuning.final_errors(tables.get(arm.name, run.tuning[:0]))
            if not (tried[list(arm.chosen)] == pd.Series(arm.chosen)).all(axis=1).any():
                raise InputError(f"{TUNING}: the values that arm {arm.name!r} chose are missing")


def quote_name(arm: str) -> str:
    """An arm's name in ASCII; the folder of an arm in older runs."""
    return quote(arm, safe=" ,=+()")


def arm_folder(checkpoint_dir: Path, arm: str) -> Path:
    """The folder of an arm in ``checkpoints/``, also if an older version named it."""
    folder, older = checkpoint_dir / folder_name(arm), checkpoint_dir / quote_name(arm)
    return older if older.is_dir() and not folder.is_dir() else folder


def folder_name(arm: str) -> str:
    """A folder name for an arm: one ASCII path component, unique to the arm, equal to its name where possible.

    Percent signs that quoting can't produce mark further changes, and ``^`` stands before capital letters, so that no
    two arms share a folder, also where file systems ignore the case (as macOS does).
    """
    quoted = re.sub("%..|[A-Z]", lambda found: found[0] if found[0][0] == "%" else f"^{found[0]}", quote_name(arm))
    if len(quoted) > MAX_FOLDER_BYTES:
        quoted = f"{quoted[:MAX_FOLDER_BYTES]}%{hashlib.sha256(arm.encode()).hexdigest()[:16]}"
    return f"%{quoted}" if quoted[:1] in ("", ".") else quoted
