"""Tests of the answers of networks, read from tables with known and with damaged rows."""

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from made_runs import answers, large_run, predictions

from lenet_jax.analysis import compare
from lenet_jax.errors import InputError
from lenet_jax.run import answers as run_answers
from lenet_jax.run import files
from lenet_jax.run import folder as run_folder

ARMS = ("first", "second")


def table():
    """Two arms, three networks, four images; the last network of the second arm diverged."""
    of = [(arm, seed, [arm == "first", 0, seed == 1, 1]) for arm in ARMS for seed in (0, 1, 2)]
    rows = pd.concat([predictions([0.1, 0.2, 0.3, seed], wrong, seed, arm) for arm, seed, wrong in of])
    rows = rows.reset_index(drop=True).assign(nll=np.where(rows.arm == "first", 0.5, np.nan))
    rows.loc[20:, ["predicted", "margin"]] = [-1, np.nan]
    return rows


def read(path, rows, seeds=(3, 3)):
    files.write_table(path / "predictions.parquet", rows)
    return run_answers.read(path / "predictions.parquet", dict(zip(ARMS, seeds, strict=True)), "here")


def test_answers_are_read_in_order(tmp_path):
    """By arm as in the summary, by rising seed and image, in whatever order an arm's rows are."""
    rows = table()
    shuffled = pd.concat([part.sample(frac=1, random_state=0) for _, part in reversed([*rows.groupby("arm")])])
    for found in (read(tmp_path, rows), read(tmp_path, shuffled)):
        assert list(found) == list(ARMS)
        first, second = found.values()
        assert first.seeds.tolist() == [0, 1, 2]
        assert first.images.tolist() == [0, 1, 2, 3]
        assert first.labels.tolist() == [1, 1, 1, 1]
        assert first.predicted.tolist() == [[2, 1, 1, 2], [2, 1, 2, 2], [2, 1, 1, 2]]
        assert second.predicted.tolist() == [[1, 1, 1, 2], [1, 1, 2, 2], [-1] * 4]
        np.testing.assert_array_equal(second.margin[1:], np.float32([[0.1, 0.2, 0.3, 1], [np.nan] * 4]))
        assert second.wrong.mean(axis=1).tolist() == [0.25, 0.5, 1.0]
        assert (first.nll == 0.5).all()
        assert second.nll is first.brier is None
        kinds = [values.dtype for values in (first.predicted, first.labels, first.margin, first.nll, first.wrong)]
        assert kinds == [np.int16, np.int16, np.float32, np.float32, bool]


def test_the_table_of_answers_is_the_one_they_were_read_from(tmp_path):
    rows = table().assign(rate=0.1).astype({"label": np.int16, "predicted": np.int16, "image": np.int32})
    rows = rows.astype({"margin": np.float32, "nll": np.float32})
    again = run_answers.frame(read(tmp_path, rows), {arm: {"rate": 0.1} for arm in ARMS})
    expected = rows[["arm", "rate", "seed", "image", "label", "predicted", "margin", "nll"]].astype({"arm": "category"})
    pd.testing.assert_frame_equal(again, expected)


def test_rows_in_many_batches(tmp_path):
    """Arms begin and end within a batch of rows, and within a row group."""
    count = 50_000
    rng = np.random.default_rng(0)
    made = {arm: answers(rng.integers(0, 10, (3, count)), rng.integers(0, 10, count)) for arm in ARMS}
    found = read(tmp_path, run_answers.frame(made, {arm: {} for arm in ARMS}).astype({"arm": "str"}))
    for arm in ARMS:
        np.testing.assert_array_equal(found[arm].predicted, made[arm].predicted)
        np.testing.assert_array_equal(found[arm].labels, made[arm].labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[1:], "arm 'first': 11 rows; its seeds and images have 12 pairs"),
        (lambda rows: rows[rows.seed > 0], "arm 'first': rows of 2 seeds follow each other; the summary has 3"),
        (lambda rows: rows.assign(image=rows.image.replace(1, 0)), "12 rows; its seeds and images have 9 pairs"),
        (
            lambda rows: rows.assign(image=[0, 0, 2, 3, 1, 1, 2, 3, *range(4)] * 2),
            "arm 'first': two rows have the same seed, image",
        ),
        (lambda rows: rows.assign(label=range(24)), "arm 'first': an image has two labels"),
        (lambda rows: rows.sort_values("seed", kind="stable"), "arm 'first': rows of 1 seeds follow each other"),
        (lambda rows: rows.sort_values("image", kind="stable"), "arm 'first': its rows don't stand together"),
        (lambda rows: rows.assign(arm="third"), "arm 'third': the summary doesn't have it"),
        (lambda rows: rows.assign(arm="first\n"), "column 'arm': expected a line of up to 2000 printable characters"),
        (lambda rows: rows.assign(arm=None).astype({"arm": "str"}), "column 'arm': expected a line of up to 2000"),
        (lambda rows: rows.assign(arm=1), "column 'arm' has int64; expected text"),
        (lambda rows: rows.assign(seed=rows.seed - 1), "column 'seed' has other values than 0 to"),
        (lambda rows: rows.assign(predicted=rows.predicted - 1), "column 'predicted' has other values than -1 to 255"),
        (lambda rows: rows.assign(label=2**62), "column 'label' has other values than 0 to 255"),
        (lambda rows: rows.astype({"seed": "Int64"}).replace({"seed": {1: None}}), "'seed' has rows without a value"),
        (lambda rows: rows.assign(nll="x"), "column 'nll' has str; expected numbers"),
        (lambda rows: rows.drop(columns="margin"), "column 'margin' has nothing; expected numbers"),
    ],
)
def test_what_cannot_be_answers_is_refused(tmp_path, change, message):
    with pytest.raises(InputError) as refusal:
        read(tmp_path, change(table()))
    assert message in str(refusal.value)
    assert str(refusal.value).startswith("here: ")


def test_numbers_beyond_single_precision_are_infinite(tmp_path):
    assert np.isinf(read(tmp_path, table().assign(margin=1e300))["first"].margin).all()


def test_stored_scores_are_close_to_those_measured():
    """Within 2^-13 of themselves and half of 2^-16; what is not a number stays."""
    values = np.float32([0, 1e-7, 1e-3, 0.1234567, 1.999999, 17.654321, np.inf, np.nan])
    found = run_answers.rounded(values)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, values, rtol=2.0**-13, atol=2.0**-17)
    assert len(np.unique(run_answers.rounded(np.linspace(1, 2, 100_000, dtype=np.float32)))) == 2**11 + 1


def test_a_made_run_is_compared(tmp_path):
    """The run that the next test makes large."""
    run = run_folder.load(large_run(tmp_path / "run", 3, 4, 500, 2))
    found = compare.compare_runs([run])
    assert [arm.mean for arm in found.arms] == pytest.approx([arm.test_error.mean for arm in run.arms])
    assert found.over == "both"
    assert {one.wrong.shape for one in run.answers.values()} == {(4, 500)}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss is Linux's")
def test_a_run_of_fifty_million_answers_is_compared_within_30_seconds_and_2_gib(tmp_path):
    """Seconds are those of the processor, whatever else it does meanwhile; idle threads of BLAS would add to them."""
    folder = large_run(tmp_path / "run")
    command = [sys.executable, "-m", "lenet_jax", "compare", str(folder), f"--out={tmp_path / 'out'}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"OPENBLAS_NUM_THREADS": "1"})
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    assert len(pd.read_csv(tmp_path / "out" / "comparison.csv")) == 50
    assert used.ru_utime + used.ru_stime < 30
    assert 1024 * used.ru_maxrss < 2**31
