"""Tests of the run folder and of the numbers in it."""

import json

import numpy as np
import pandas as pd
import pytest

from lenet_jax import results
from lenet_jax.errors import InputError


def test_summary_of_values_known_by_hand():
    summary = results.summarize([0.1, 0.2, 0.3])
    assert summary["mean"] == pytest.approx(0.2)
    assert summary["std"] == pytest.approx(0.1)
    assert summary["per_seed"] == [0.1, 0.2, 0.3]
    low, high = summary["ci95"]
    assert 0.1 <= low < 0.2 < high <= 0.3


def test_interval_covers_the_mean_as_often_as_it_says():
    # 200 samples of 30 normal numbers: a 95 % interval holds the true mean in 95 % of them, +-3 standard errors.
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        low, high = results.interval(rng.normal(1.0, 0.3, 30))
        covered += low <= 1.0 <= high
    assert 0.88 <= covered / 200 <= 0.995


def test_interval_is_the_same_every_time():
    values = np.random.default_rng(1).normal(size=8)
    assert results.interval(values) == results.interval(values)


@pytest.mark.parametrize(
    ("values", "expected"), [([0.5], None), ([], None), ([0.5, 0.5, 0.5], (0.5, 0.5)), ([0.1, float("nan")], None)]
)
def test_interval_where_there_is_little_to_say(values, expected):
    assert results.interval(values) == expected


def test_diverged_values_become_null_in_json():
    summary = results.summarize([0.1, float("nan")])
    assert json.loads(json.dumps(summary, allow_nan=False)) == {
        "mean": None,
        "std": None,
        "ci95": None,
        "per_seed": [0.1, None],
    }


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "summary.json"
    results.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        results.write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


def run_folder(folder):
    for name in (results.CONFIG, results.PROVENANCE, results.SUMMARY):
        results.write_json(folder / name, {"dataset": {}, "arms": []})
    results.write_table(
        folder / results.METRICS,
        pd.DataFrame(
            {"arm": ["all"], "seed": [0], "epoch": [1], "split": ["test"], "metric": ["error"], "value": [0.25]}
        ),
    )
    return folder


def test_what_was_written_is_read(tmp_path):
    run = results.load(run_folder(tmp_path))
    assert run.summary == {"dataset": {}, "arms": []}
    assert run.metrics.value.tolist() == [0.25]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / results.SUMMARY).unlink(), r"summary\.json' is missing"),
        (lambda folder: (folder / results.CONFIG).write_text("{"), r"config\.json' can't be read as JSON"),
        (lambda folder: (folder / results.CONFIG).write_text("[]"), r"config\.json' holds no JSON object"),
        (lambda folder: (folder / results.METRICS).write_bytes(b"PAR1"), r"metrics\.parquet' can't be read"),
        (lambda folder: (folder / results.SUMMARY).write_text("{}"), r"is damaged: summary\.json or metrics"),
        (lambda folder: (folder / results.METRICS).unlink(), r"metrics\.parquet' can't be read"),
    ],
)
def test_a_damaged_run_is_refused_by_file_name(tmp_path, damage, message):
    damage(run_folder(tmp_path))
    with pytest.raises(InputError, match=message):
        results.load(tmp_path)


def test_a_folder_belongs_to_one_config(tmp_path):
    folder = tmp_path / "run"
    assert not results.finished(folder, {"epochs": 1})
    results.claim(folder, {"epochs": 1})
    assert not results.finished(folder, {"epochs": 1})
    results.write_json(folder / results.SUMMARY, {})
    assert results.finished(folder, {"epochs": 1})
    with pytest.raises(InputError, match=r"another config \(it differs in epochs\)"):
        results.finished(folder, {"epochs": 2})


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(InputError, match="not empty and holds no run"):
        results.finished(tmp_path, {})
    with pytest.raises(InputError, match="is a file"):
        results.finished(tmp_path / "thesis.tex", {})
    with pytest.raises(InputError, match="can't be written"):
        results.claim(tmp_path / "thesis.tex" / "run", {})
