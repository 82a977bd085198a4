"""Trackers: services that draw an experiment's curves while it runs, behind one small interface."""

import importlib
import math
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import pandas as pd

from lenet_jax.errors import InputError
from lenet_jax.run import files
from lenet_jax.run import folder as run_folder

LONGEST_NAME = 128
"""Characters of a name that Weights & Biases and MLflow show; both refuse longer ones somewhere."""

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
"""Schemes of MLflow's tracking URIs that need SQLAlchemy."""

LONGEST_PARAM = 6000
"""Characters of a parameter's value that MLflow takes."""


class Band(NamedTuple):
    """A metric over the seeds whose value is finite: mean, smallest and largest."""

    mean: float
    low: float
    high: float


@runtime_checkable
class Tracker(Protocol):
    """Follows the arms of an experiment, one after the other: start, epoch, ..., epoch, finish. In the end, close."""

    def start(self, arm: str, settings: Mapping[str, Any]) -> None:
        """An arm begins; `settings` are all its config fields."""

    def epoch(self, epoch: int, bands: Mapping[str, Band]) -> None:
        """An epoch is done; `bands` by metric, such as ``test_error``. Errors are fractions."""

    def finish(self, values: Mapping[str, float]) -> None:
        """The arm is done; `values` are its final means by metric. Those that aren't finite are left out."""

    def close(self) -> None:
        """No more arms. An arm that isn't finished has failed."""


def bands_of(table: pd.DataFrame) -> dict[str, Band]:
    """The bands of one epoch, by ``split_metric``; without those that have no finite value.

    Args:
      table: columns split, metric, seed, value; a row a number.
    """
    finite = table[np.isfinite(table["value"].to_numpy(float))]
    groups = finite.groupby(["split", "metric"], sort=False, observed=True)["value"]
    return {
        f"{split}_{metric}": Band(float(values.mean()), float(values.min()), float(values.max()))
        for (split, metric), values in groups
    }


def key_of(name: str) -> str:
    """A metric's or field's name with only the characters that every service allows."""
    return re.sub(r"[^\w.-]", "_", name)


def import_for(tracker: str, package: str) -> Any:
    """Imports what a tracker needs. Here, not above: they are slow to import, and optional.

    Raises:
      InputError: it isn't installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        name = package.split(".")[0]
        raise InputError(
            f"tracker: {tracker!r} needs the package {name}; pip install 'lenet_jax[{tracker}]'"
        ) from error


class Nothing:
    """Tracks nothing."""

    def __init__(self, folder: Path) -> None:
        pass

    def start(self, arm: str, settings: Mapping[str, Any]) -> None:
        """See `Tracker`."""

    def epoch(self, epoch: int, bands: Mapping[str, Band]) -> None:
        """See `Tracker`."""

    def finish(self, values: Mapping[str, float]) -> None:
        """See `Tracker`."""

    def close(self) -> None:
        """See `Tracker`."""


class TensorBoard:
    """Event files in ``tensorboard/ARM`` of the run folder: an arm is a run.

    Scalars ``METRIC``, ``METRIC/low``, ``METRIC/high`` an epoch, ``final/METRIC`` at the end; a margin chart a metric
    in CUSTOM SCALARS; settings and final values in HPARAMS.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "tensorboard"
        self._summary = import_for("tensorboard", "tensorboardX.summary")
        self._event = import_for("tensorboard", "tensorboardX.proto.event_pb2").Event
        # Not SummaryWriter: its thread dies of a full disk, and a later call waits for it forever.
        self._open = import_for("tensorboard", "tensorboardX.event_file_writer").EventsWriter
        self._file: Any = None

    def start(self, arm: str, settings: Mapping[str, Any]) -> None:
        """See `Tracker`. Replaces what an earlier attempt left of this arm."""
        folder = self._folder / run_folder.folder_name(arm)
        with files.writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for stale in folder.glob("events.out.tfevents.*"):
                stale.unlink()
            self._file = self._open(str(folder / "events"))
        self._epoch = 0
        self._charts: dict[str, list[Any]] = {}
        # TensorBoard's JSON has no numbers that aren't finite: the whole HPARAMS tab would fail.
        self._settings = {
            name: value if isinstance(value, str | int) or is_finite(value) else str(value)
            for name, value in settings.items()
        }
        _, session, _ = self._summary.hparams(self._settings, {})
        self._write(session)
        self._flush()

    def epoch(self, epoch: int, bands: Mapping[str, Band]) -> None:
        """See `Tracker`."""
        self._epoch = epoch
        charts = dict(self._charts)
        for name, band in bands.items():
            key = key_of(name)
            tags = [key, f"{key}/low", f"{key}/high"]
            charts[key] = ["Margin", tags]
            for tag, value in zip(tags, band, strict=True):
                self._write(self._summary.scalar(tag, value))
        if charts != self._charts:  # TensorBoard takes the last layout of a run
            self._charts = charts
            self._write(self._summary.custom_scalars({"mean, lowest and highest seed": charts}))
        self._flush()

    def finish(self, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        finals = {f"final/{key_of(name)}": value for name, value in values.items()}
        for tag, value in finals.items():
            if is_finite(value):
                self._write(self._summary.scalar(tag, value))
        experiment, _, end = self._summary.hparams(self._settings, finals)
        self._write(experiment)
        self._write(end)
        self.close()

    def close(self) -> None:
        """See `Tracker`."""
        if self._file is not None:
            file, self._file = self._file, None
            with files.writing(self._folder):
                file.close()

    def _write(self, summary: Any) -> None:
        with files.writing(self._folder):
            self._file.write_event(self._event(wall_time=time.time(), step=self._epoch, summary=summary))

    def _flush(self) -> None:
        with files.writing(self._folder):
            self._file.flush()


class WandB:
    """A run of Weights & Biases an arm, in a group named after the run folder, with its files in that folder.

    Project, account and mode are the user's, by wandb's own environment variables: WANDB_PROJECT, WANDB_MODE, ...

    Raises:
      InputError: wandb isn't installed, or nobody is logged in.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._wandb = import_for("wandb", "wandb")
        self._run: Any = None
        # Before anything is trained, and while a person can still be asked for the key.
        if self._wandb.setup().settings.mode in ("online", "shared"):
            try:
                self._wandb.login()
            except self._wandb.Error as error:
                raise InputError(f"tracker: 'wandb' can't log in ({one_line(error)})") from error

    def start(self, arm: str, settings: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        self._run = self._wandb.init(
            name=arm[:LONGEST_NAME],
            group=self._folder.name[:LONGEST_NAME],
            config=dict(settings),
            dir=self._folder,
            reinit="create_new",  # leaves a run that the caller may have open alone
            settings=self._wandb.Settings(console="off"),  # a progress bar is no log
        )

    def epoch(self, epoch: int, bands: Mapping[str, Band]) -> None:
        """See `Tracker`."""
        values: dict[str, float] = {}
        for name, band in bands.items():
            key = key_of(name)
            values |= {key: band.mean, f"{key}/low": band.low, f"{key}/high": band.high}
        # Committed, or the last epoch would be written after the summary, and over it.
        self._run.log(values, step=epoch, commit=True)

    def finish(self, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self._run.summary.update({key_of(name): value for name, value in values.items() if is_finite(value)})
        run, self._run = self._run, None
        run.finish()

    def close(self) -> None:
        """See `Tracker`."""
        if self._run is not None:
            run, self._run = self._run, None
            run.finish(exit_code=1)


class MLflow:
    """An MLflow run an arm, in an experiment named after the run folder.

    Metrics ``METRIC``, ``METRIC_low``, ``METRIC_high`` with the epoch as step, ``final_METRIC`` at the end. The store
    is the user's, by MLFLOW_TRACKING_URI, or else MLflow's default, ``mlflow.db`` in the current folder.

    Raises:
      InputError: mlflow or its database's packages aren't installed, or the store can't be used.
    """

    def __init__(self, folder: Path) -> None:
        mlflow = import_for("mlflow", "mlflow")
        self._entities = import_for("mlflow", "mlflow.entities")
        self._run: str | None = None
        uri = mlflow.get_tracking_uri()
        if uri.startswith(DATABASES):
            for package in ("sqlalchemy", "alembic"):
                import_for("mlflow", package)
        name = folder.resolve().name
        try:
            self._client = mlflow.MlflowClient(uri)
            experiment = self._client.get_experiment_by_name(name)
            self._experiment = experiment.experiment_id if experiment else self._client.create_experiment(name)
        except Exception as error:  # of mlflow, a database or a network: all mean that the store can't be used
            shown = re.sub("//[^/]*@", "//", uri)  # without a password
            raise InputError(f"tracker: 'mlflow' can't use the store {shown!r} ({one_line(error)})") from error
        if experiment and experiment.lifecycle_stage == "deleted":
            raise InputError(f"tracker: 'mlflow' has a deleted experiment {name!r}; restore it, or name another folder")

    def start(self, arm: str, settings: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        self._run = self._client.create_run(self._experiment, run_name=arm[:LONGEST_NAME]).info.run_id
        self._epoch = 0
        params = [self._entities.Param(key_of(name), str(value)[:LONGEST_PARAM]) for name, value in settings.items()]
        self._client.log_batch(self._run, params=params)

    def epoch(self, epoch: int, bands: Mapping[str, Band]) -> None:
        """See `Tracker`."""
        self._epoch = epoch
        values: dict[str, float] = {}
        for name, band in bands.items():
            key = key_of(name)
            values |= {key: band.mean, f"{key}_low": band.low, f"{key}_high": band.high}
        self._log(values)

    def finish(self, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self._log({f"final_{key_of(name)}": value for name, value in values.items() if is_finite(value)})
        self._end("FINISHED")

    def close(self) -> None:
        """See `Tracker`."""
        if self._run is not None:
            self._end("FAILED")

    def _log(self, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [self._entities.Metric(key, float(value), now, self._epoch) for key, value in values.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def _end(self, status: str) -> None:
        run, self._run = self._run, None
        self._client.set_terminated(run, status)


def is_finite(value: object) -> bool:
    """Whether `value` is a number, and finite."""
    return isinstance(value, int | float) and math.isfinite(value)


def one_line(error: Exception) -> str:
    """The first line of an error's message, or its type."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


TRACKERS: Mapping[str, Callable[[Path], Tracker]] = {
    "none": Nothing,
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
}
"""By name. Each takes the run folder, whose name is the run's, and raises InputError if it can't work here."""
