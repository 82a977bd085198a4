"""Tests of the run folder."""

import json

import pandas as pd
import pytest

from lenet_jax.errors import InputError
from lenet_jax.run import files
from lenet_jax.run import folder as run_folder


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "summary.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


ARMS = [{"name": "all", "axes": {}, "diverged": 0}]


def make_run_folder(folder):
    for name in (run_folder.CONFIG, run_folder.PROVENANCE, run_folder.SUMMARY):
        files.write_json(folder / name, {"dataset": {}, "arms": ARMS})
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


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / run_folder.SUMMARY).unlink(), r"is not finished; the command that began it"),
        (lambda folder: (folder / run_folder.PROVENANCE).unlink(), r"provenance\.json' is missing"),
        (lambda folder: (folder / run_folder.CONFIG).write_text("{"), r"config\.json' can't be read as JSON"),
        (lambda folder: (folder / run_folder.CONFIG).write_text("[]"), r"config\.json' does not contain a JSON object"),
        (lambda folder: (folder / run_folder.METRICS).write_bytes(b"PAR1"), r"metrics\.parquet' can't be read"),
        (lambda folder: (folder / run_folder.SUMMARY).write_text("{}"), r"is damaged: summary\.json or metrics"),
        (
            lambda folder: files.write_json(folder / run_folder.SUMMARY, {"dataset": {}, "arms": []}),
            r"is damaged: summary\.json or metrics",
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
