"""Tests of the run folder."""

import dataclasses
import json
from pathlib import Path

import pandas as pd
import pytest
from made_runs import summary_row

from lenet_jax import stats
from lenet_jax.errors import InputError
from lenet_jax.run import files
from lenet_jax.run import folder as run_folder

STORED = Path(__file__).parents[1] / "experiments" / "results"


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "summary.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


ARMS = [summary_row("all", {})]


def make_run_folder(folder):
    for name in (run_folder.CONFIG, run_folder.PROVENANCE):
        files.write_json(folder / name, {})
    files.write_json(folder / run_folder.SUMMARY, {"dataset": {}, "arms": ARMS})
    files.write_table(
        folder / run_folder.METRICS,
        pd.DataFrame(
            {"arm": ["all"], "seed": [0], "epoch": [1], "split": ["test"], "metric": ["error"], "value": [0.25]}
        ),
    )
    return folder


def test_what_was_written_is_read(tmp_path):
    run = run_folder.load(make_run_folder(tmp_path))
    assert run.summary == {"dataset": {}, "arms": ARMS}
    assert run.metrics.value.tolist() == [0.25]
    assert [arm.name for arm in run.arms] == ["all"]


def test_a_row_of_the_summary_is_written_as_it_is_read():
    statistics = stats.summarize([0.01, 0.02])
    row = run_folder.ArmSummary(
        name="activation=tanh",
        axes={"activation": "tanh"},
        seeds=2,
        diverged=0,
        identity="0" * 64,
        chosen={"learning_rate": 0.1},
        chosen_at_edge=("learning_rate",),
        settings={"activation": "tanh", "order_seed": None},
        parameters=60850,
        classes=10,
        dataset={"name": "mnist10k"},
        scaling={"scale": 1.0, "shift": 0.0},
        train_error=statistics,
        test_error=statistics,
        seconds=1.0,
        samples_per_second=1000.0,
        predicted_memory=2**20,
    )
    written = json.loads(json.dumps(row.to_json()))
    assert list(written) == [field.name for field in dataclasses.fields(row) if field.name != "validation_error"]
    assert list(written["test_error"]) == ["mean", "std", "median", "ci95", "per_seed"]
    assert run_folder.ArmSummary.from_json(written | {"of_a_later_version": 1}) == row


@pytest.mark.parametrize("path", sorted(STORED.glob("*/summary.json")), ids=lambda path: path.parent.name)
def test_every_stored_row_is_read_and_written_back(path):
    """Those that lack fields, too."""
    rows = json.loads(path.read_text())["arms"]
    for row in rows:
        again = json.loads(json.dumps(run_folder.ArmSummary.from_json(row).to_json()))
        assert again == {"chosen_at_edge": []} | row


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: (folder / run_folder.SUMMARY).unlink(),
            r"is not finished; rerun the command that started it to resume",
        ),
        (lambda folder: (folder / run_folder.PROVENANCE).unlink(), r"provenance\.json' is missing"),
        (lambda folder: (folder / run_folder.CONFIG).write_text("{"), r"config\.json' can't be read as JSON"),
        (lambda folder: (folder / run_folder.CONFIG).write_text("[]"), r"config\.json' does not contain a JSON object"),
        (lambda folder: (folder / run_folder.METRICS).write_bytes(b"PAR1"), r"metrics\.parquet' can't be read"),
        (
            lambda folder: (folder / run_folder.SUMMARY).write_text("{}"),
            r"is damaged: summary\.json: dataset: expected an object, got None",
        ),
        *(
            (
                lambda folder, arms=arms: files.write_json(folder / run_folder.SUMMARY, {"dataset": {}, "arms": arms}),
                rf"is damaged: summary\.json: {message}",
            )
            for arms, message in (
                (
                    [{name: value for name, value in ARMS[0].items() if name != "seeds"}],
                    "arm 'all': 'seeds' is missing",
                ),
                ([ARMS[0] | {"test_error": {"mean": 0.5}}], "arm 'all'.test_error: 'std' is missing"),
                ([ARMS[0] | {"test_error": None}], "arm 'all'.test_error: expected an object, got None"),
                (["all"], r"arms\[0\]: expected an object, got 'all'"),
                (None, "arms: expected a list, got None"),
                ([], "no arms, or two with the same name"),
            )
        ),
        (lambda folder: (folder / run_folder.METRICS).unlink(), r"metrics\.parquet' can't be read"),
    ],
)
def test_a_damaged_run_is_refused_by_file_name(tmp_path, damage, message):
    damage(make_run_folder(tmp_path))
    with pytest.raises(InputError, match=message):
        run_folder.load(tmp_path)


def test_a_folder_belongs_to_one_config(tmp_path):
    folder = tmp_path / "run"
    assert not run_folder.is_finished(folder, {"epochs": 1})
    run_folder.create(folder, {"epochs": 1})
    assert not run_folder.is_finished(folder, {"epochs": 1})
    files.write_json(folder / run_folder.SUMMARY, {})
    assert run_folder.is_finished(folder, {"epochs": 1})
    with pytest.raises(InputError, match=r"another config \(it differs in epochs\)"):
        run_folder.is_finished(folder, {"epochs": 2})


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    for name in (".config.json.0123abcd", ".summary.json.0123abcd"):
        (folder / name).write_text("{")
    with pytest.raises(InputError, match="holds no run"):  # a summary is written by runs that have a config
        run_folder.is_finished(folder, {})
    (folder / ".summary.json.0123abcd").rename(folder / ".config.json.4567abcd")
    run_folder.create(folder, {"epochs": 1})
    (folder / ".summary.json.0123abcd").write_text("{")
    run_folder.create(folder, {"epochs": 1})
    assert {path.name for path in folder.iterdir()} == {"checkpoints", "config.json"}


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(InputError, match="not empty and holds no run"):
        run_folder.is_finished(tmp_path, {})
    with pytest.raises(InputError, match="is a file"):
        run_folder.is_finished(tmp_path / "thesis.tex", {})
    with pytest.raises(InputError, match="can't be written"):
        run_folder.create(tmp_path / "thesis.tex" / "run", {})


def test_only_leftovers_of_ours_are_removed(tmp_path):
    """A file of the user's that looks alike stays: ours end with eight hexadecimal digits."""
    run_folder.create(tmp_path, {"epochs": 1})
    ours, other = tmp_path / ".config.json.0123abcd", tmp_path / ".config.json.original"
    for path in (ours, other):
        path.write_text("{}")
    run_folder.create(tmp_path, {"epochs": 1})
    assert not ours.exists()
    assert other.exists()
