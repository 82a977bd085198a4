"""Tests of whole runs."""

import functools
import json
import shutil
import signal
import sys

import few_digits
import jax
import numpy as np
import pandas as pd
import pytest
from few_digits import small

from lenet_jax import evaluate as evaluation
from lenet_jax import population, programs, train
from lenet_jax.errors import InputError, Interrupted
from lenet_jax.experiments import lenet5_1998_distorted, stored
from lenet_jax.run import files, loop, plan, processes, runner, signals
from lenet_jax.run import folder as run_folder
from lenet_jax.run import memory as run_memory
from lenet_jax.run.arms import expand


def with_sweep(config, **axes):
    config.sweep.update(axes)
    return config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"validation_size": 600}, "validation_size: 600 leaves none of 600 to train on"),
        ({"batch_size": 301}, "batch_size: 301 is more than the 300 training images"),
        ({"train_size": 301}, "train_size: 301 is more than the 300 remaining images"),
        ({"train_size": 15}, "batch_size: 20 is more than the 15 training images"),
        (
            {"optimizer": "sdlm", "curvature_estimates": 2},
            "curvature_estimates: 2 doesn't divide the 15 steps of an epoch",
        ),
        (
            {"optimizer": "sdlm", "curvature_patterns": 301},
            "curvature_patterns: 301 is more than the 300 training images",
        ),
        ({"dataset": "cifar"}, "dataset: 'cifar' is not one of 'mnist10k'"),
        ({"dataset": "mnist10k", "validation_size": 5000}, "validation_size: 5000 leaves none of 5000 to train on"),
    ],
)
def test_fields_that_the_data_do_not_allow_are_refused_before_anything_is_written(tmp_path, fields, message):
    with pytest.raises(InputError, match=message):
        runner.run(small(**fields), tmp_path / "run", "test")
    assert not (tmp_path / "run").exists()


def test_splits_follow_one_another_and_normalization_sees_the_training_split_alone():
    arm = expand(small(dataset="mnist10k", validation_size=1000))[0]
    phase = plan.make([arm]).arms[0].test
    dataset = phase.dataset
    assert phase.splits == {"train": range(4000), "validation": range(4000, 5000), "test": range(5000, 10000)}
    images = plan.images_of(dataset, phase.images)
    training = np.asarray(images.pixels)[:4000, 2:30, 2:30] * np.asarray(images.scale) + np.asarray(images.shift)
    assert training.mean() == pytest.approx(0, abs=1e-5)
    assert training.std() == pytest.approx(1, abs=1e-5)
    np.testing.assert_array_equal(images.pixels[5000:, 2:30, 2:30], dataset.test_images)
    np.testing.assert_array_equal(images.labels[4000:5000], dataset.train_labels[4000:])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small run: 2 arms x 3 seeds."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    config = with_sweep(small(), weight_decay=(0.0, 1e30))
    return runner.run(config, folder, "lenet-jax run test"), config, folder


def test_a_run_leaves_what_the_design_says(finished):
    run, _, folder = finished
    assert {path.name for path in folder.iterdir()} == {
        "checkpoints",
        "config.json",
        "provenance.json",
        "metrics.parquet",
        "predictions.parquet",
        "summary.json",
    }
    assert run.tuning is None
    data = run.summary["dataset"]
    assert (data["name"], data["train"], data["validation"], data["test"]) == (few_digits.DATASET, 300, 300, 200)
    assert data["fingerprint"].startswith("sha256:")
    arm = run.summary["arms"][0]
    assert arm["name"] == "weight_decay=0"
    assert arm["axes"] == {"weight_decay": 0.0}
    assert (arm["seeds"], arm["diverged"], arm["parameters"]) == (3, 0, 60850)
    assert set(arm["test_error"]) == {"mean", "std", "median", "ci95", "per_seed"}
    assert arm["test_error"]["mean"] == pytest.approx(np.mean(arm["test_error"]["per_seed"]))
    assert 0 < arm["train_error"]["mean"] < 0.9
    assert arm["seconds"] > 0
    assert arm["samples_per_second"] > 0
    assert run.provenance["command"] == "lenet-jax run test"
    assert run.provenance["fingerprints"] == {few_digits.DATASET: data["fingerprint"]}
    assert run.provenance["versions"]["jax"] == jax.__version__
    assert run.config["epochs"] == 2


def test_metrics_hold_every_number_in_long_form(finished):
    run, _, _ = finished
    assert list(run.metrics.columns) == ["arm", "weight_decay", "seed", "epoch", "split", "metric", "value"]
    counts = run.metrics.groupby("split").size().to_dict()
    # 2 arms x 3 seeds, times metrics and the epochs at which a split is measured.
    assert counts == {"running": 6 * 2 * 2, "validation": 6 * 5 * 3, "test": 6 * 5, "train": 6 * 5}
    assert set(run.metrics[run.metrics.split == "test"].epoch) == {2}, "nobody shall choose by them"
    assert set(run.metrics[run.metrics.split == "test"].metric) == {"loss", "error", "nll", "brier", "ece"}
    assert set(run.metrics[run.metrics.split == "running"].metric) == {"loss", "error"}
    of_arm = run.metrics[(run.metrics.weight_decay == 0) & (run.metrics.metric == "error")]
    final = of_arm[(of_arm.split == "test") & (of_arm.epoch == 2)].sort_values("seed")
    assert final.value.round(7).tolist() == run.summary["arms"][0]["test_error"]["per_seed"]


def test_diverged_members_are_counted_and_stay_in_the_mean(finished):
    run, _, _ = finished
    diverged = run.summary["arms"][1]
    assert diverged["diverged"] == 3
    assert diverged["test_error"]["per_seed"] == [1.0, 1.0, 1.0]
    of_arm = run.metrics[(run.metrics.weight_decay == 1e30) & (run.metrics.epoch == 2) & (run.metrics.split == "test")]
    assert not np.isfinite(of_arm[of_arm.metric != "error"].value).any()


def test_the_run_equals_a_population_trained_by_hand(finished):
    run, config, _ = finished
    arm = expand(config)[0]
    phase = plan.make([arm]).arms[0].test
    dataset, recipe = phase.dataset, phase.recipe
    assert recipe.architecture.activation == "tanh"
    hyper = {"learning_rate": [0.03] * 3, "momentum": [0.9] * 3, "weight_decay": [0.0] * 3, "mu": [0.02] * 3}
    members = population.create([0, 1, 2], hyper, plan.images_of(dataset, phase.images), recipe)
    for _ in range(2):
        population.train_segment(members)
    error = population.evaluate(members, range(600, 800)).error
    assert error.tolist() == pytest.approx(run.summary["arms"][0]["test_error"]["per_seed"], abs=1e-6)


def test_a_finished_run_is_not_run_again(finished, monkeypatch):
    run, config, folder = finished
    monkeypatch.setattr(runner, "run_arm", lambda *_: pytest.fail("ran again"))
    assert runner.run(config, folder, "again").summary == run.summary


def test_a_run_never_overwrites_one_with_another_config(finished):
    _, config, folder = finished
    before = (folder / run_folder.SUMMARY).read_bytes()
    changed = config.copy_and_resolve_references()
    changed.epochs = 3
    with pytest.raises(InputError, match=r"another config \(it differs in epochs\)"):
        runner.run(changed, folder, "again")
    assert (folder / run_folder.SUMMARY).read_bytes() == before


@pytest.mark.slow
def test_an_arm_is_traced_once(tmp_path, monkeypatch):
    traces = []
    original = train.gradient_of

    def counted(*arguments):
        traces.append(arguments[3].loss.name)
        return original(*arguments)

    monkeypatch.setattr(train, "gradient_of", counted)
    programs.compile_program.cache_clear()
    config = with_sweep(small(seeds=2), loss=("mse", "cross_entropy"), learning_rate=(0.01, 0.05))
    runner.run(config, tmp_path / "run", "test")
    # Arms that differ in a hyperparameter or the loss share a program: one trace for four arms of two epochs.
    assert traces == ["mse"]


@pytest.mark.slow
def test_workers_and_chunks_change_nothing(tmp_path, monkeypatch):
    config = with_sweep(small(seeds=3, epochs=1, tune_seeds=2), weight_decay=(0.0, 0.1))
    config.tune.learning_rate = (0.002, 0.05)
    tables, predictions, tuning = {}, {}, {}
    for name, worth, memory in (
        ("one process", 1e9, 2**40),
        ("workers", 0, 2**40),
        ("chunks", 1e9, 2 * run_memory.member_memory(recipe_for(config))),
    ):
        monkeypatch.setattr(processes, "WORTH_WORKERS", worth)
        monkeypatch.setattr(run_memory, "memory_for_members", lambda memory=memory: memory)
        run = runner.run(config, tmp_path / name, "test")
        tables[name], predictions[name], tuning[name] = run.metrics, run.predictions, run.tuning
        assert [arm["chosen"] for arm in run.summary["arms"]] == [{"learning_rate": 0.05}] * 2
        assert [arm["predicted_memory"] > 0 for arm in run.summary["arms"]] == [True, True]
    expected = tables.pop("one process")
    for table in tables.values():
        pd.testing.assert_frame_equal(table, expected, rtol=1e-4, atol=1e-5)
    expected = tuning.pop("one process")
    assert expected.groupby(["learning_rate", "seed"]).ngroups == 4
    for table in tuning.values():
        pd.testing.assert_frame_equal(table, expected, rtol=1e-4, atol=1e-5)
    expected = predictions.pop("one process")
    assert expected.seed.drop_duplicates().tolist() == [0, 1, 2]
    for table in predictions.values():
        pd.testing.assert_frame_equal(table, expected, rtol=1e-3, atol=1e-4)


def recipe_for(config):
    arm = expand(config)[0]
    return plan.make([arm]).arms[0].test.recipe


def test_a_population_is_split_into_equal_chunks_that_fit(monkeypatch):
    recipe = recipe_for(small())
    # Parameters and momentum, in float32, before and after an update, and to save; key and counters are few bytes more.
    states = 2 + run_memory.SAVE_MEMORY_FACTOR * (jax.default_backend() == "cpu")
    assert run_memory.member_memory(recipe) == pytest.approx(states * 2 * 4 * 60_850, rel=0.001)
    monkeypatch.setattr(run_memory, "memory_for_members", lambda: 9 * run_memory.member_memory(recipe) // 2)
    assert run_memory.chunk_size(10, recipe, sys.maxsize) == 4
    assert run_memory.chunk_size(6, recipe, sys.maxsize) == 3
    assert run_memory.chunk_size(3, recipe, sys.maxsize) == 3
    assert run_memory.chunk_size(10, recipe, 2) == 2
    monkeypatch.setattr(run_memory, "memory_for_members", lambda: 1)
    assert run_memory.chunk_size(3, recipe, sys.maxsize) == 1


@pytest.mark.parametrize(
    ("output", "loss", "measured"),
    [
        ("softmax", "mse", ["loss", "error", "nll", "brier", "ece"]),
        ("rbf", "map", ["loss", "error", "nll", "brier", "ece"]),
        ("linear", "map", ["loss", "error"]),
        ("squashed", "map", ["loss", "error"]),
    ],
)
def test_probabilities_are_measured_where_there_are_any(output, loss, measured):
    recipe = recipe_for(small(output=output, loss=loss))
    found = evaluation.Evaluation(*np.arange(10, dtype=np.float32).reshape(5, 2))
    members = plan.Members([7, 8], {"mu": [0.1, 0.2]})
    history: dict = {}
    for _ in range(4):
        loop.record(history, "test", found, recipe)
    loop.record(history, "running", train.Metrics(np.float32([5, 6]), np.float32([7, 8])), recipe)
    phase = plan.make(expand(small(epochs=9, test_curve=True))).arms[0].test
    table = loop.history_frame(history, [3], members, phase)
    assert list(table.columns) == ["mu", "seed", "epoch", "split", "metric", "value"]
    assert table.metric.drop_duplicates().tolist() == measured
    assert table.value.tolist() == list(range(2 * len(measured)))
    assert table[["mu", "seed"]].drop_duplicates().to_numpy().tolist() == [[0.1, 7], [0.2, 8]]
    assert loop.history_frame(history, [1], members, phase).query("split == 'running'").value.tolist() == [5, 6, 7, 8]


def test_measurements_of_the_end_alone_have_its_epoch():
    recipe, found = recipe_for(small()), evaluation.Evaluation(*np.arange(5, dtype=np.float32).reshape(5, 1))
    phase = plan.make(expand(small(epochs=9))).arms[0].test
    assert phase.first_epochs == {"running": 1, "train": 9, "validation": 0, "test": 9, "state": 0}
    history: dict = {}
    for split in ("test", "train", "validation"):
        loop.record(history, split, found, recipe)
    members = plan.Members([7], {})
    table = loop.history_frame(history, range(10), members, phase)
    assert table.groupby("split").epoch.unique().map(list).to_dict() == {"test": [9], "train": [9], "validation": [0]}
    assert loop.history_frame(history, [4], members, phase).empty


class Interrupting:
    """An engine that is told to stop after so many trainings: the run saves what it has, and ends."""

    def __init__(self, monkeypatch, after):
        self.stop, self.left = signals.Stop(), after
        train_segment = population.train_segment

        def counted(members):
            self.left -= 1
            if not self.left:
                self.stop.signal = signal.SIGTERM
            return train_segment(members)

        monkeypatch.setattr(population, "train_segment", counted)


def interrupted(config, folder, after):
    with pytest.MonkeyPatch.context() as patch:
        engine = Interrupting(patch, after)
        with pytest.raises(Interrupted, match="stopped in epoch"):
            runner.run(config, folder, "test", stop=engine.stop)


def brief(**fields):
    """A config with the program of `small`, whose runs take as little time as they can."""
    return small(**{"train_size": 300, "validation_size": 200, "seeds": 2} | fields)


CURVES = {"validation alone": {}, "neither": {"validation_size": 0}, "test curve": {"test_curve": True}}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """(name of `CURVES`) -> a run with these fields, never interrupted."""
    folder = tmp_path_factory.mktemp("curves")
    return functools.cache(lambda name: runner.run(brief(**CURVES[name]), folder / name, "test"))


@pytest.mark.parametrize("name", CURVES)
def test_what_is_measured_at_which_epoch(name, measured):
    found = measured(name).metrics.groupby("split").epoch.unique().map(sorted).to_dict()
    expected = {"running": [1, 2], "train": [2], "test": [2], "validation": [0, 1, 2]}
    if name == "neither":
        del expected["validation"]
    if name == "test curve":
        expected["test"] = [0, 1, 2]
    assert found == expected


def test_a_test_curve_changes_nothing_else(measured):
    with_curve, without = measured("test curve"), measured("validation alone")
    common = with_curve.metrics[(with_curve.metrics.split != "test") | (with_curve.metrics.epoch == 2)]
    columns = ["split", "metric", "seed", "epoch"]
    tables = [table.sort_values(columns, ignore_index=True) for table in (common, without.metrics)]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    pd.testing.assert_frame_equal(with_curve.predictions, without.predictions, check_exact=True)


@pytest.mark.parametrize("after", [1, 2])
@pytest.mark.parametrize("name", CURVES)
def test_an_interrupted_run_goes_on_bit_for_bit(name, after, measured, tmp_path):
    config = brief(**CURVES[name])
    interrupted(config, tmp_path / "run", after)
    assert not (tmp_path / "run" / run_folder.METRICS).exists()
    run = runner.run(config, tmp_path / "run", "again")
    pd.testing.assert_frame_equal(run.metrics, measured(name).metrics, check_exact=True)
    pd.testing.assert_frame_equal(run.predictions, measured(name).predictions, check_exact=True)


def test_predictions_of_an_older_version_are_made_again(measured, tmp_path, monkeypatch):
    """One that stored no scores of single images, and was killed before it wrote the run's tables."""
    config, folder = brief(), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(runner, "finish", lambda *_: sys.exit("killed"))
        with pytest.raises(SystemExit):
            runner.run(config, folder, "test")
    (table,) = folder.glob("checkpoints/all/tested-*/predictions.parquet")
    files.write_table(table, files.read_table(table).drop(columns=["nll", "brier"]))
    about = files.read_sealed(table.with_name("trained.json"))
    about["sha256"][table.name] = files.digest_of(table)
    files.write_sealed(table.with_name("trained.json"), about)
    run = runner.run(config, folder, "again")
    expected = measured("validation alone")
    pd.testing.assert_frame_equal(run.metrics, expected.metrics, check_exact=True)
    pd.testing.assert_frame_equal(run.predictions, expected.predictions, check_exact=True)


def test_only_labels_that_are_trained_on_are_noisy():
    noisy, clean = (
        expand(small(dataset="mnist10k", validation_size=1000, label_noise=share))[0] for share in (0.3, 0.0)
    )
    phases = [plan.make([arm]).arms[0].test for arm in (noisy, clean)]
    dataset = phases[1].dataset
    before = dataset.train_labels.copy()
    found, expected = (np.asarray(plan.images_of(dataset, phase.images).labels) for phase in phases)
    assert (found[:4000] != expected[:4000]).mean() == pytest.approx(0.3, abs=0.02)
    np.testing.assert_array_equal(found[4000:], expected[4000:], "validation and test labels stay right")
    np.testing.assert_array_equal(expected, [*dataset.train_labels, *dataset.test_labels])
    np.testing.assert_array_equal(dataset.train_labels, before, "the data set itself isn't changed")
    # Images that train_size leaves out aren't trained on. The others' labels are those of the whole set.
    part = expand(small(dataset="mnist10k", validation_size=1000, label_noise=0.3, train_size=500))[0]
    of_part = np.asarray(plan.images_of(dataset, plan.make([part]).arms[0].test.images).labels)
    np.testing.assert_array_equal(of_part, [*found[:500], *expected[500:]])
    assert phases[0].images != phases[1].images, "images are made again between such arms"


def test_any_field_can_be_an_axis_also_the_data(tmp_path):
    config = with_sweep(brief(), validation_size=(300, 200), normalization=("unit", "standard"))
    run = runner.run(config, tmp_path / "run", "test")
    assert len(run.summary["arms"]) == 4
    # json has every value as it is
    assert json.loads((tmp_path / "run" / "config.json").read_text())["sweep"]["validation_size"] == [300, 200]


@pytest.mark.slow
def test_a_stored_run_can_be_made_again(tmp_path):
    """A run with all of 1998's parts; the whole, and one seed of it alone: the same numbers, exactly."""
    config = lenet5_1998_distorted.get_config()
    config.update({"dataset": "mnist10k", "train_size": 1000, "epochs": 2, "seeds": 3})
    # Not in alphabetical order.
    config.sweep.era = {"later": {"output": "softmax", "loss": "cross_entropy"}, "1998": {}}
    folder = tmp_path / "of_1998"
    run = runner.run(config, folder, "test")
    config = stored.get_config(str(folder))
    again = runner.run(config, tmp_path / "again", "test")
    assert again.config == run.config
    pd.testing.assert_frame_equal(again.metrics, run.metrics)
    pd.testing.assert_frame_equal(again.predictions, run.predictions)
    config.update({"first_seed": 1, "seeds": 1})
    alone = runner.run(config, tmp_path / "alone", "test")
    for arm, of_all in zip(alone.summary["arms"], run.summary["arms"], strict=True):
        assert arm["test_error"]["per_seed"] == of_all["test_error"]["per_seed"][1:2]


def test_arms_may_differ_in_whether_predictions_are_stored(tmp_path):
    config = with_sweep(brief(), store_predictions=(False, True))
    run = runner.run(config, tmp_path / "run", "test")
    assert run.predictions.arm.unique().tolist() == ["store_predictions=True"]
    assert run.predictions.predicted.dtype == np.int16
    assert len(run.metrics.arm.unique()) == 2


def test_a_run_of_an_older_version_is_its_own(finished, tmp_path):
    """Its config lacks fields that are new; their defaults are what it did."""
    _, config, folder = finished
    old = tmp_path / "old"
    shutil.copytree(folder, old)
    stored_config = json.loads((old / "config.json").read_text())
    newer = ("mu", "augmentation", "store_predictions", "label_noise", "tune", "tune_seeds", "refit", "test_curve")
    for field in newer:
        del stored_config[field]
    (old / "config.json").write_text(json.dumps(stored_config))
    for curve in (False, True):
        config.test_curve = curve
        assert runner.run(config, old, "again").provenance["command"] == "lenet-jax run test"


def test_a_folder_that_holds_no_run_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=r"needs a run folder; write --config=experiments/stored\.py:RUN"):
        stored.get_config()
    with pytest.raises(InputError, match=r"config\.json' is missing"):
        stored.get_config(str(tmp_path))
