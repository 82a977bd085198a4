"""Tests of the trackers: what they write is read back with the services' own readers."""

import json
import math
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lenet_jax.errors import InputError
from lenet_jax.run import folder as run_folder
from lenet_jax.run import trackers
from lenet_jax.run.trackers import TRACKERS, Band

pytestmark = [
    # TensorBoard's server brings an old html5lib.
    pytest.mark.filterwarnings("ignore:html5lib's sanitizer is deprecated:DeprecationWarning"),
    # MLflow queries SQLAlchemy 2.1 in a way that it has deprecated.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"),
]

NASTY = ("a=1,b=2", "a=1/b=2", "<script>alert(1)</script>", "..", ".", "", "/", "%", "%2F", "a\0b", "ü", "x" * 5000)
BANDS = (
    {"test_error": Band(0.5, 0.25, 0.75)},
    {"test_error": Band(0.25, 0.125, 0.5), "train_error": Band(0.0625, 0.03125, 0.125)},
)
SETTINGS = {"optimizer": "sgd", "note": "<script>", "epochs": 2, "augment": True, "rate": 0.5, "clip": math.inf}
VALUES = {"test_error": 0.375, "seconds": 12.5, "train_error": math.nan}


def track(tracker, *arms):
    """Two epochs of every arm."""
    for arm in arms:
        tracker.start(arm, SETTINGS)
        for epoch, bands in enumerate(BANDS, start=1):
            tracker.epoch(epoch, bands)
        tracker.finish(VALUES)
    tracker.close()


def hide(monkeypatch, package):
    """Makes a package look as if it was not installed."""
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)


@pytest.fixture
def quiet(monkeypatch, tmp_path):
    """Keeps services offline, and their files in a temporary folder."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_ALLOW_FILE_STORE", "WANDB_PROJECT", "WANDB_API_KEY", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)


def table(*rows):
    return pd.DataFrame(rows, columns=["split", "metric", "seed", "value"])


def test_bands():
    rows = [("test", "error", 0, 0.1), ("test", "error", 1, 0.3), ("test", "error", 2, 0.2), ("train", "loss", 0, 2.0)]
    assert trackers.bands_of(table(*rows)) == {
        "test_error": (pytest.approx(0.2), 0.1, 0.3),
        "train_loss": (2.0, 2.0, 2.0),
    }


def test_bands_are_over_the_finite_values():
    rows = [("test", "loss", 0, math.inf), ("test", "loss", 1, 0.5), ("test", "loss", 2, math.nan)]
    rows += [("train", "loss", seed, value) for seed, value in enumerate((math.nan, -math.inf))]
    assert trackers.bands_of(table(*rows)) == {"test_loss": (0.5, 0.5, 0.5)}


def test_bands_of_other_columns():
    assert trackers.bands_of(table()) == {}
    categories = table(("test", "error", 0, 0.5)).astype({"split": pd.CategoricalDtype(["train", "test"])})
    assert trackers.bands_of(categories.assign(value=np.float32(0.5))) == {"test_error": (0.5, 0.5, 0.5)}


def test_folder_names_are_safe_and_differ():
    names = [*NASTY, "x" * 5001, "../" * 100, "../" * 101]
    folders = [run_folder.folder_name(name) for name in names]
    assert len(set(folders)) == len(names)
    for folder in folders:
        assert folder.isascii()
        assert folder.isprintable()
        assert 0 < len(folder) < 200
        assert not set(folder) & set("/\\<>:\"|?*'")
        assert not folder.startswith(".")
    assert run_folder.folder_name("loss=mse,activation=tanh") == "loss=mse,activation=tanh"


def test_none_writes_nothing(tmp_path):
    track(TRACKERS["none"](tmp_path), "all")
    assert list(tmp_path.iterdir()) == []


def scalars(folder):
    """The scalars that TensorBoard reads from an arm's folder: tag -> [(step, value)]."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_reads_every_scalar(tmp_path):
    track(TRACKERS["tensorboard"](tmp_path), "a=1")
    assert scalars(tmp_path / "tensorboard" / "a=1") == {
        "test_error": [(1, 0.5), (2, 0.25)],
        "test_error/low": [(1, 0.25), (2, 0.125)],
        "test_error/high": [(1, 0.75), (2, 0.5)],
        "train_error": [(2, 0.0625)],
        "train_error/low": [(2, 0.03125)],
        "train_error/high": [(2, 0.125)],
        "final/test_error": [(2, 0.375)],
        "final/seconds": [(2, 12.5)],
    }


def test_tensorboard_can_be_read_while_an_arm_trains(tmp_path):
    tracker = TRACKERS["tensorboard"](tmp_path)
    tracker.start("a", SETTINGS)
    tracker.epoch(1, BANDS[0])
    assert scalars(tmp_path / "tensorboard" / "a")["test_error"] == [(1, 0.5)]
    tracker.close()
    tracker.close()  # a second call does nothing


def test_tensorboard_shows_arms_bands_and_settings(tmp_path):
    from google.protobuf import json_format
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.custom_scalar.custom_scalars_plugin import CustomScalarsPlugin
    from tensorboard.plugins.hparams import api_pb2, backend_context, get_experiment, list_session_groups

    track(TRACKERS["tensorboard"](tmp_path), *NASTY)
    logs = str(tmp_path / "tensorboard")
    runs = EventMultiplexer().AddRunsFromDirectory(logs)
    runs.Reload()
    assert sorted(runs.Runs()) == sorted(map(run_folder.folder_name, NASTY))
    context = TBContext(logdir=logs, data_provider=MultiplexerDataProvider(runs, logs))

    layout = json.loads(CustomScalarsPlugin(context).layout_impl(RequestContext(), ""))
    assert [
        (chart["title"], chart["margin"]["series"]) for category in layout["category"] for chart in category["chart"]
    ] == [
        (name, [{"value": name, "lower": f"{name}/low", "upper": f"{name}/high"}])
        for name in ("test_error", "train_error")
    ]

    hparams = backend_context.Context(context)
    experiment = get_experiment.Handler(RequestContext(), hparams, "", api_pb2.GetExperimentRequest()).run()
    assert {info.name for info in experiment.hparam_infos} == set(SETTINGS)
    request = api_pb2.ListSessionGroupsRequest(
        allowed_statuses=[api_pb2.STATUS_SUCCESS], start_index=0, slice_size=len(NASTY) + 1
    )
    # The page gets JSON, which has no infinity.
    found = json_format.MessageToDict(list_session_groups.Handler(RequestContext(), hparams, "", request).run())
    groups = {group["name"]: group for group in found["sessionGroups"]}
    assert set(groups) == set(map(run_folder.folder_name, NASTY))
    for group in groups.values():
        assert group["hparams"] == {**SETTINGS, "clip": "inf"}
        metrics = {metric["name"]["tag"]: metric["value"] for metric in group["metricValues"]}
        assert metrics == {"final/test_error": 0.375, "final/seconds": 12.5}


def test_tensorboard_replaces_an_earlier_attempt_at_an_arm(tmp_path):
    first = TRACKERS["tensorboard"](tmp_path)
    first.start("a", SETTINGS)
    first.epoch(1, {"test_error": Band(0.75, 0.75, 0.75)})
    first.epoch(9, {"test_error": Band(0.75, 0.75, 0.75)})
    first.close()
    folder = tmp_path / "tensorboard" / "a"
    # Event files of another time or machine have other names.
    for file in folder.iterdir():
        file.rename(file.with_name("events.out.tfevents.1000000000.elsewhere"))
    (folder / "mine.txt").touch()
    track(TRACKERS["tensorboard"](tmp_path), "b", "a")
    assert scalars(folder)["test_error"] == [(1, 0.5), (2, 0.25)]
    assert sorted(file.suffix for file in folder.iterdir() if not file.name.startswith("events")) == [".txt"]


def test_tensorboard_tags_are_safe(tmp_path):
    tracker = TRACKERS["tensorboard"](tmp_path)
    tracker.start("a", {})
    tracker.epoch(1, {"<b>/é": Band(0.5, 0.25, 0.75)})
    tracker.finish({"<b>": 0.5})
    assert set(scalars(tmp_path / "tensorboard" / "a")) == {"_b__é", "_b__é/low", "_b__é/high", "final/_b_"}


@pytest.mark.slow  # make test-slow installs MLflow
@pytest.mark.parametrize("store", ["sqlite", "file"])
def test_mlflow(tmp_path, monkeypatch, quiet, store):
    mlflow = pytest.importorskip("mlflow")
    if store == "sqlite":
        pytest.importorskip("sqlalchemy")
        uri = f"sqlite:///{tmp_path}/mlflow.db"  # the default in the current folder
    else:
        uri = (tmp_path / "store").as_uri()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRUNCATE_LONG_VALUES", "false")  # it would reject long values
    folder = tmp_path / "my run"
    track(TRACKERS["mlflow"](folder), *NASTY)
    again = TRACKERS["mlflow"](folder)  # finds the experiment
    again.start("stopped", {f"field{i}": "x" * 10_000 for i in range(250)} | {"empty": ""})
    again.close()

    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("my run")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    stopped = runs.pop("stopped")
    assert stopped.info.status == "FAILED"
    assert stopped.data.params == {f"field{i}": "x" * 6000 for i in range(250)} | {"empty": ""}
    # MLflow names a run without a name itself.
    assert len(runs) == len(NASTY)
    assert {name[:128] for name in NASTY if name} < set(runs)
    for run in runs.values():
        assert run.info.status == "FINISHED"
        assert run.data.params == {name: str(value) for name, value in SETTINGS.items()}
        assert run.data.metrics == {
            "test_error": 0.25,
            "test_error_low": 0.125,
            "test_error_high": 0.5,
            "train_error": 0.0625,
            "train_error_low": 0.03125,
            "train_error_high": 0.125,
            "final_test_error": 0.375,
            "final_seconds": 12.5,
        }
    history = client.get_metric_history(runs["a=1,b=2"].info.run_id, "test_error")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.5), (2, 0.25)]


@pytest.mark.slow
def test_mlflow_rejects_an_unusable_store(tmp_path, monkeypatch, quiet):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://me:secret@host")
    with pytest.raises(InputError, match=r"^tracker: 'mlflow' can't use the store 'nonsense://host' \(.*\)$"):
        TRACKERS["mlflow"](tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    TRACKERS["mlflow"](tmp_path / "run")
    client = mlflow.MlflowClient((tmp_path / "store").as_uri())
    client.delete_experiment(client.get_experiment_by_name("run").experiment_id)
    with pytest.raises(InputError, match=r"^tracker: 'mlflow' has a deleted experiment 'run'; "):
        TRACKERS["mlflow"](tmp_path / "run")


def wandb_records(file):
    """The records of an offline run, which are protocol buffers in LevelDB's log format."""
    from wandb.proto import wandb_internal_pb2

    data, offset, record = file.read_bytes(), 7, b""  # after wandb's own header
    while offset < len(data):
        block_left = 32768 - offset % 32768
        if block_left < 7:
            offset += block_left
            continue
        length, kind = struct.unpack("<HB", data[offset + 4 : offset + 7])
        record += data[offset + 7 : offset + 7 + length]
        offset += 7 + length
        if kind in (1, 4):  # whole, or its last part
            yield wandb_internal_pb2.Record.FromString(record)
            record = b""


def test_wandb_offline(tmp_path, quiet):
    pytest.importorskip("wandb")
    folder = tmp_path / "my run"
    folder.mkdir()
    tracker = TRACKERS["wandb"](folder)
    track(tracker, "<script>/.." + "x" * 500)
    tracker.start("stopped", {})
    tracker.close()

    def values(items):
        return {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}

    found = {}
    for file in Path(folder, "wandb").glob("offline-run-*/*.wandb"):
        records = list(wandb_records(file))
        (run,) = (record.run for record in records if record.WhichOneof("record_type") == "run")
        found[run.display_name] = run, records
    stopped, records = found.pop("stopped")
    assert [record.exit.exit_code for record in records if record.WhichOneof("record_type") == "exit"] == [1]
    ((name, (run, records)),) = found.items()
    assert name == ("<script>/.." + "x" * 500)[:128]
    assert run.run_group == stopped.run_group == "my run"
    config = values(run.config.update)
    assert {key: config[key] for key in SETTINGS} == SETTINGS
    history = [values(record.history.item) for record in records if record.WhichOneof("record_type") == "history"]
    assert [(row["_step"], row["test_error"], row["test_error/low"], row["test_error/high"]) for row in history] == [
        (1, 0.5, 0.25, 0.75),
        (2, 0.25, 0.125, 0.5),
    ]
    summary = {}
    for record in records:
        summary |= values(record.summary.update)
    assert summary["seconds"] == 12.5
    assert summary["test_error"] == 0.375
    assert summary["train_error"] == 0.0625  # from the last epoch: the final value isn't finite
    assert [record.exit.exit_code for record in records if record.WhichOneof("record_type") == "exit"] == [0]


def test_wandb_needs_a_login(tmp_path, monkeypatch, quiet):
    wandb = pytest.importorskip("wandb")

    def login():
        raise wandb.errors.UsageError("No API key configured.\nMore lines.")

    monkeypatch.setattr(wandb, "login", login)
    monkeypatch.setattr(wandb.setup().settings, "mode", "online")
    with pytest.raises(InputError, match=r"^tracker: 'wandb' can't log in \(No API key configured\..*\)$"):
        TRACKERS["wandb"](tmp_path)


@pytest.mark.parametrize(
    ("tracker", "package"),
    [
        ("tensorboard", "tensorboardX"),
        ("wandb", "wandb"),
        ("mlflow", "mlflow"),
        pytest.param("mlflow", "sqlalchemy", marks=pytest.mark.slow),
    ],
)
def test_missing_packages_are_named(tmp_path, monkeypatch, quiet, tracker, package):
    if package == "sqlalchemy":
        pytest.importorskip("mlflow")
    hide(monkeypatch, package)
    with pytest.raises(InputError) as error:
        TRACKERS[tracker](tmp_path)
    assert str(error.value) == (f"tracker: '{tracker}' needs the package {package}; pip install 'lenet_jax[{tracker}]'")


def test_services_are_imported_only_on_request():
    code = "import sys, lenet_jax.run.trackers; print({'tensorboardX', 'wandb', 'mlflow'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout == "set()\n"
