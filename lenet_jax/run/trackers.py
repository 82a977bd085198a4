"""Trackers: services that draw the curves of a run while it trains, behind one small interface."""

import importlib
import math
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from lenet_jax.choices import register
from lenet_jax.errors import InputError, one_line
from lenet_jax.run import files
from lenet_jax.run import folder as run_folder
from lenet_jax.run.cleanup import check_no_link

MAX_NAME_LENGTH, MAX_PARAM_LENGTH = 128, 6000
"""Characters of a name that Weights & Biases and MLflow accept everywhere, and of a parameter's value in MLflow."""


class Band(NamedTuple):
    """A metric's mean, smallest and largest value, over the seeds whose value is finite."""

    mean: float
    low: float
    high: float


class Tracker:
    """Follows the arms of a run in turn: start, epoch, ..., epoch, finish; in the end, close. Here it does nothing."""

    def __init__(self, folder: Path) -> None:
        """Prepares tracking of a run folder, whose name is the run's; InputError if the tracker can't work here."""

    def start(self, arm: str, settings: Mapping[str, Any]) -> None:
        """An arm begins; `settings` are all its config fields."""

    def epoch(self, epoch: int, bands: Mapping[str, Band]) -> None:
        """An epoch is done; `bands` by metric, such as ``test_error``. Errors are fractions."""

    def finish(self, values: Mapping[str, float]) -> None:
        """The arm is done; `values` are its final means by metric. Those that aren't finite are left out."""

    def close(self) -> None:
        """No more arms. An arm that isn't finished has failed."""


def band_of(values: pd.Series | np.ndarray) -> Band:
    """The band of finite values, at least one."""
    return Band(float(values.mean()), float(values.min()), float(values.max()))


def bands_of(table: pd.DataFrame) -> dict[str, Band]:
    """The bands of one epoch, by ``split_metric``, from columns split, metric and value; finite values only."""
    finite = table[np.isfinite(table["value"].to_numpy(float))]
    groups = finite.groupby(["split", "metric"], sort=False, observed=True)["value"]
    return {f"{split}_{metric}": band_of(values) for (split, metric), values in groups}


def key_of(name: str) -> str:
    """A metric's or field's name with only the characters that every service allows."""
    return re.sub(r"[^\w.-]", "_", name)


def scalars_of(bands: Mapping[str, Band], separator: str) -> dict[str, float]:
    """The numbers of bands, as ``METRIC``, ``METRIC/low`` and ``METRIC/high`` for the separator "/"."""
    values: dict[str, float] = {}
    for name, band in bands.items():
        key = key_of(name)
        values |= {key: band.mean, f"{key}{separator}low": band.low, f"{key}{separator}high": band.high}
    return values


def numbers_of(values: Mapping[str, Any], prefix: str = "") -> dict[str, int | float]:
    """The finite numbers among values, as ``PREFIX`` + ``NAME``."""
    numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
    return {f"{prefix}{key_of(name)}": value for name, value in numbers.items() if math.isfinite(value)}


def import_for(tracker: str, package: str) -> Any:
    """Imports a package that a tracker needs: they are optional, and slow to import."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        name, install = package.split(".")[0], f"pip install 'lenet_jax[{tracker}]'"
        raise InputError(f"tracker: {tracker!r} needs the package {name}; {install}") from error


class TensorBoard(Tracker):
    """Event files in ``tensorboard/ARM`` of the run folder: each arm is a run of TensorBoard.

    Scalars ``METRIC``, ``METRIC/low``, ``METRIC/high`` per epoch, ``final/METRIC`` at the end; margin charts in CUSTOM
    SCALARS; settings and final values in HPARAMS.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "tensorboard"
        for path in (self._folder, *self._folder.glob("*")):
            check_no_link(path)
        self._summary = import_for("tensorboard", "tensorboardX.summary")
        self._event = import_for("tensorboard", "tensorboardX.proto.event_pb2").Event
        # Not SummaryWriter: its thread dies when the disk is full, and the next call waits for it forever.
        self._open = import_for("tensorboard", "tensorboardX.event_file_writer").EventsWriter
        self._file: Any = None

    def start(self, arm: str, settings: Mapping[str, Any]) -> None:
        """See `Tracker`. Replaces the events of an earlier attempt at this arm."""
        folder = self._folder / run_folder.folder_name(arm)
        with files.writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for stale in folder.glob("events.out.tfevents.*"):
                stale.unlink()
            self._file = self._open(str(folder / "events"))
        self._epoch = 0
        self._charts: dict[str, list[Any]] = {}
        # As text if not a finite number: otherwise the HPARAMS tab fails as a whole.
        self._settings = {name: str(value) for name, value in settings.items()} | numbers_of(settings)
        _, session, _ = self._summary.hparams(self._settings, {})
        self._write(session)

    def epoch(self, epoch: int, bands: Mapping[str, Band]) -> None:
        """See `Tracker`."""
        self._epoch = epoch
        summaries = [self._summary.scalar(tag, value) for tag, value in scalars_of(bands, "/").items()]
        charts = self._charts | {key: ["Margin", [key, f"{key}/low", f"{key}/high"]] for key in map(key_of, bands)}
        if charts != self._charts:  # TensorBoard uses the last layout of a run
            self._charts = charts
            summaries.append(self._summary.custom_scalars({"mean, lowest and highest seed": charts}))
        self._write(*summaries)

    def finish(self, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        finals = numbers_of(values, "final/")
        experiment, _, end = self._summary.hparams(self._settings, finals)
        self._write(*[self._summary.scalar(tag, value) for tag, value in finals.items()], experiment, end)
        self.close()

    def close(self) -> None:
        """See `Tracker`."""
        file, self._file = self._file, None
        if file is not None:
            with files.writing(self._folder):
                file.close()

    def _write(self, *summaries: Any) -> None:
        with files.writing(self._folder):
            for summary in summaries:
                self._file.write_event(self._event(wall_time=time.time(), step=self._epoch, summary=summary))
            self._file.flush()


class WandB(Tracker):
    """A run of Weights & Biases per arm, in a group named after the run folder, with its files in that folder.

    The user sets project, account and mode by wandb's own environment variables: WANDB_PROJECT, WANDB_MODE, ...
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._wandb = import_for("wandb", "wandb")
        self._run: Any = None
        # Before anything is trained, while wandb can still ask the user for a key.
        if self._wandb.setup().settings.mode in ("online", "shared"):
            try:
                self._wandb.login()
            except self._wandb.Error as error:
                raise InputError(f"tracker: 'wandb' can't log in ({one_line(error)})") from error

    def start(self, arm: str, settings: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        self._run = self._wandb.init(
            name=arm[:MAX_NAME_LENGTH],
            group=self._folder.name[:MAX_NAME_LENGTH],
            config=dict(settings),
            dir=self._folder,
            reinit="create_new",  # does not end a run that the caller may have open
            settings=self._wandb.Settings(console="off"),  # does not log the progress bar
        )

    def epoch(self, epoch: int, bands: Mapping[str, Band]) -> None:
        """See `Tracker`."""
        # Without commit, the last epoch would be written after the summary and overwrite it.
        self._run.log(scalars_of(bands, "/"), step=epoch, commit=True)

    def finish(self, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self._run.summary.update(numbers_of(values))
        self.close(exit_code=0)

    def close(self, exit_code: int = 1) -> None:
        """See `Tracker`."""
        run, self._run = self._run, None
        if run is not None:
            run.finish(exit_code=exit_code)


class MLflow(Tracker):
    """An MLflow run per arm, in an experiment named after the run folder.

    Metrics ``METRIC``, ``METRIC_low``, ``METRIC_high`` with the epoch as step, ``final_METRIC`` at the end. The user
    sets the store by MLFLOW_TRACKING_URI; MLflow's default is ``mlflow.db`` in the current folder.
    """

    def __init__(self, folder: Path) -> None:
        mlflow = import_for("mlflow", "mlflow")
        self._entities = import_for("mlflow", "mlflow.entities")
        self._run: str | None = None
        uri = mlflow.get_tracking_uri()
        if uri.startswith(("sqlite", "postgresql", "mysql", "mssql")):  # databases
            for package in ("sqlalchemy", "alembic"):
                import_for("mlflow", package)
        name = folder.resolve().name
        try:
            self._client = mlflow.MlflowClient(uri)
            experiment = self._client.get_experiment_by_name(name)
            self._experiment = experiment.experiment_id if experiment else self._client.create_experiment(name)
        except Exception as error:  # from mlflow, a database or the network
            shown = re.sub("//[^/]*@", "//", uri)  # without a password
            raise InputError(f"tracker: 'mlflow' can't use the store {shown!r} ({one_line(error)})") from error
        if experiment and experiment.lifecycle_stage == "deleted":
            raise InputError(f"tracker: 'mlflow' has a deleted experiment {name!r}; restore it, or name another folder")

    def start(self, arm: str, settings: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        self._run = self._client.create_run(self._experiment, run_name=arm[:MAX_NAME_LENGTH]).info.run_id
        self._epoch = 0
        params = [self._entities.Param(key_of(name), str(value)[:MAX_PARAM_LENGTH]) for name, value in settings.items()]
        self._client.log_batch(self._run, params=params)

    def epoch(self, epoch: int, bands: Mapping[str, Band]) -> None:
        """See `Tracker`."""
        self._epoch = epoch
        self._log(scalars_of(bands, "_"))

    def finish(self, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self._log(numbers_of(values, "final_"))
        self.close("FINISHED")

    def close(self, status: str = "FAILED") -> None:
        """See `Tracker`."""
        run, self._run = self._run, None
        if run is not None:
            self._client.set_terminated(run, status)

    def _log(self, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [self._entities.Metric(key, float(value), now, self._epoch) for key, value in values.items()]
        self._client.log_batch(self._run, metrics=metrics)


TRACKERS = {"none": Tracker, "tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}
"""By name, the values of ``--tracker``."""

register("tracker", TRACKERS)
