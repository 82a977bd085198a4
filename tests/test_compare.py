"""Tests of the comparison and its figures, on runs with known numbers."""

import io
import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from lenet_jax import compare, plots, results
from lenet_jax.errors import InputError

ERRORS = {("mse", "tanh"): [0.05, 0.07, 0.06], ("cross_entropy", "tanh"): [0.03, 0.03, 0.06]}


def write_run(folder, errors=ERRORS, fingerprint="sha256:0", diverged=0):
    """A run folder whose arms have these errors at the last of two epochs, and twice as much at the first."""
    arms, tables = [], []
    for (loss, activation), values in errors.items():
        name = f"loss={loss},activation={activation}"
        arms.append({"name": name, "axes": {"loss": loss, "activation": activation}, "diverged": diverged})
        for epoch, split in itertools.product((1, 2), ("train", "test")):
            columns = {"arm": name, "loss": loss, "activation": activation, "epoch": epoch, "split": split}
            table = {"seed": range(len(values)), "metric": "error", "value": np.array(values) * (3 - epoch)}
            tables.append(pd.DataFrame(columns | table))
    folder.mkdir(parents=True)
    results.write_table(folder / results.METRICS, pd.concat(tables))
    results.write_json(folder / results.SUMMARY, {"dataset": {"fingerprint": fingerprint}, "arms": arms})
    for name in (results.CONFIG, results.PROVENANCE):
        results.write_json(folder / name, {})
    return folder


def test_statistics_at_the_last_epoch(tmp_path):
    rows = compare.statistics([results.load(write_run(tmp_path / "run", diverged=1))])
    assert [row.arm for row in rows] == ["loss=mse,activation=tanh", "loss=cross_entropy,activation=tanh"]
    assert rows[0].axes == {"loss": "mse", "activation": "tanh"}
    assert (rows[0].n, rows[0].diverged) == (3, 1)
    assert rows[0].mean == pytest.approx(0.06)
    assert rows[0].std == pytest.approx(0.01)
    assert (rows[0].best, rows[0].worst) == (0.05, 0.07)
    assert rows[0].per_seed == (0.05, 0.07, 0.06)
    assert rows[0].ci95 == results.interval([0.05, 0.07, 0.06])


def test_the_table_says_percent(tmp_path):
    printed = io.StringIO()
    compare.compare([write_run(tmp_path / "run")], "test_error", tmp_path / "out", Console(width=80, file=printed))
    text = printed.getvalue()
    assert "cross_entropy tanh" in text
    assert "6.00 1.00" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 80


def test_files_of_a_comparison(tmp_path, capsys):
    files = compare.compare([write_run(tmp_path / "run")], "test_error", tmp_path / "out" / "deep", Console())
    assert [file.name for file in files] == [
        "comparison.csv",
        "comparison.md",
        "test_error_learning_curves.png",
        "test_error_final_values.png",
    ]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files[2:])
    assert files[1].read_text().splitlines()[2] == "| mse | tanh | 3 | 6.00 | 1.00 | 5.00 - 7.00 | 5.00 | 7.00 | 0 |"
    table = pd.read_csv(files[0])
    assert table["mean"].tolist() == pytest.approx([0.06, 0.04])
    assert {"arm", "n", "mean", "std", "ci95_low", "ci95_high", "best", "worst", "diverged"} <= set(table.columns)


def test_several_runs_are_told_apart_and_different_data_warned_about(tmp_path, capsys):
    folders = [write_run(tmp_path / "a" / "run"), write_run(tmp_path / "b", fingerprint="sha256:1")]
    rows = compare.statistics([results.load(folder) for folder in folders])
    assert [row.run for row in rows] == ["run", "run", "b", "b"]
    compare.compare(folders, "test_error", tmp_path / "out", Console())
    assert "different data sets" in capsys.readouterr().out


def test_runs_with_the_same_name_are_told_apart_by_path(tmp_path):
    folders = [write_run(tmp_path / "a" / "run"), write_run(tmp_path / "b" / "run")]
    names = compare.run_names([results.load(folder) for folder in folders])
    assert names == [str(folder) for folder in folders]


def test_a_run_named_twice_is_refused(tmp_path):
    folder = write_run(tmp_path / "run")
    with pytest.raises(InputError, match="named twice"):
        compare.compare([folder, tmp_path / "." / "run"], "test_error", tmp_path / "out", Console())


def test_unknown_metrics_are_refused(tmp_path):
    run = results.load(write_run(tmp_path / "run"))
    with pytest.raises(InputError, match="metric: 'accuracy' is not one of 'train_error', 'test_error'"):
        compare.statistics([run], "accuracy")


def test_a_comparison_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match=r"out: .* can't be written"):
        compare.compare([write_run(tmp_path / "run")], "test_error", tmp_path / "out", Console())


def test_learning_curves_draw_every_seed_and_the_mean(tmp_path):
    run = results.load(write_run(tmp_path / "run"))
    axes = plots.learning_curves(compare.curves([run], "test_error"), "test_error", Figure().add_subplot())
    lines = [line.get_ydata() for line in axes.get_lines()]
    assert len(lines) == 2 * (3 + 1)
    np.testing.assert_allclose(lines[3], [0.12, 0.06])
    assert axes.get_ylabel() == "test error (%)"
    assert axes.get_legend().get_texts()[0].get_text() == "loss=mse\nactivation=tanh"


def test_learning_curves_leave_out_what_diverged():
    curve = pd.DataFrame({0: [0.9, np.nan], 1: [0.9, np.nan]}, index=[0, 1])
    axes = plots.learning_curves({"arm": curve}, "test_loss", Figure().add_subplot())
    assert [len(line.get_xdata()) for line in axes.get_lines()] == [1, 1, 1]
    curve[1] = [0.9, 0.5]
    axes = plots.learning_curves({"arm": curve}, "test_loss", Figure().add_subplot())
    np.testing.assert_allclose(axes.get_lines()[-1].get_ydata(), [0.9, 0.5])


def test_final_values_show_every_seed(tmp_path):
    axes = plots.final_values({"a": ([0.1, 0.2], (0.1, 0.2)), "b": ([0.3], None)}, "test_error", Figure().add_subplot())
    points = [line.get_xdata() for line in axes.get_lines() if line.get_marker() == "o"]
    assert [list(values) for values in points] == [[0.1, 0.2], [0.3]]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["a", "b"]
    assert [text.get_text() for text in axes.texts] == ["15.00", "30.00"]


def predictions(margins, wrong, seed=0):
    """A table like a run's: label 1, and 2 predicted where it is wrong."""
    columns = {"arm": "loss=mse,activation=tanh", "seed": seed, "image": range(len(margins)), "label": 1}
    return pd.DataFrame(columns | {"predicted": 1 + np.array(wrong, int), "margin": margins})


def test_the_least_sure_are_rejected_first():
    """Of 100 images the two least sure are wrong, and the surest."""
    margins, wrong = np.arange(100) / 100, np.isin(np.arange(100), [0, 1, 99])
    curve = compare.reject_curve(pd.concat([predictions(margins, wrong), predictions(margins, ~wrong, seed=1)]))
    assert list(curve.columns) == [0, 1]
    expected = {0.0: 0.03, 0.01: 2 / 99, 0.019: 2 / 99, 0.02: 1 / 98, 0.1: 1 / 90}
    for share, error in expected.items():
        row = np.abs(curve.index - share).argmin()
        assert curve[0].iloc[row] == pytest.approx(error)
        assert curve[1].iloc[row] == pytest.approx(1 - error)


def test_reject_curves_are_drawn_where_predictions_are(tmp_path):
    folder = write_run(tmp_path / "run", dict([next(iter(ERRORS.items()))]))
    results.write_table(folder / results.PREDICTIONS, predictions(np.arange(50), np.arange(50) < 5))
    files = compare.compare([folder], "test_error", tmp_path / "out", Console(file=io.StringIO()))
    assert "reject_curves.png" in [file.name for file in files]


def test_reject_curves_show_the_mean():
    curve = pd.DataFrame({0: [0.02, 0.01], 1: [0.04, 0.03]}, index=[0.0, 0.1])
    axes = plots.reject_curves({"one": curve}, Figure().add_subplot())
    np.testing.assert_allclose(axes.lines[0].get_xdata(), [0, 10])
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [3, 2])


def test_digits_are_drawn_with_captions():
    made = plots.digits([np.eye(4)] * 5, list("abcde"), columns=3)
    assert len(made.axes) == 6
    assert [axes.get_title() for axes in made.axes] == [*"abcde", ""]
    np.testing.assert_array_equal(made.axes[0].images[0].get_array(), np.eye(4))
