"""Tests of the metrics of a run, on runs with known numbers."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from made_runs import answers, predictions, write_run

from lenet_jax.analysis import compare, metrics
from lenet_jax.errors import InputError
from lenet_jax.run import files
from lenet_jax.run import folder as run_folder


@pytest.fixture
def run(tmp_path):
    return run_folder.load(write_run(tmp_path / "run"))


def with_predictions(tmp_path, *tables):
    folder = write_run(tmp_path / "run")
    files.write_table(folder / run_folder.PREDICTIONS, pd.concat(tables, ignore_index=True))
    return run_folder.load(folder)


def test_values_by_seed_at_the_last_epoch(run):
    values = metrics.by_arm(run, "test_error")
    assert list(values) == ["loss=mse,activation=tanh", "loss=cross_entropy,activation=tanh"]
    assert values["loss=mse,activation=tanh"].to_dict() == {0: 0.05, 1: 0.07, 2: 0.06}
    assert metrics.by_arm(run, "train_loss")["loss=mse,activation=tanh"].tolist() == pytest.approx([0.5, 0.7, 0.6])


def test_errors_of_single_precision_are_equal_where_counts_are(tmp_path):
    """Differences of float32 errors aren't equal where those of the counts of wrong images are."""
    noisy = np.array([0.0095, 0.0096, 0.0097, 0.0098], np.float32)
    run = run_folder.load(write_run(tmp_path / "run", {("mse", "tanh"): noisy.astype(float)}))
    values = metrics.by_arm(run, "test_error")["loss=mse,activation=tanh"]
    assert values.tolist() == [0.0095, 0.0096, 0.0097, 0.0098]


def test_a_member_that_diverged_keeps_its_place(tmp_path):
    folder = write_run(tmp_path / "run", {("mse", "tanh"): [0.1, np.nan, 0.3]})
    values = metrics.by_arm(run_folder.load(folder), "test_loss")["loss=mse,activation=tanh"]
    assert list(values.index) == [0, 1, 2]
    assert np.isnan(values[1])


def test_epochs_to_an_error(tmp_path):
    """Errors are 0.1, 0.08, 0.2 at the first epoch and half of it at the second."""
    run = run_folder.load(write_run(tmp_path / "run", {("mse", "tanh"): [0.05, 0.04, 0.1]}))
    assert metrics.by_arm(run, "epochs_to_0.09")["loss=mse,activation=tanh"].tolist() == [2, 1, np.inf]
    assert metrics.title("epochs_to_0.09") == "epochs to an error of 9 %"
    assert metrics.by_arm(run, "epochs_to_0.09_within_2")["loss=mse,activation=tanh"].tolist() == [2, 1, 2]
    assert metrics.by_arm(run, "epochs_to_0.09_within_1")["loss=mse,activation=tanh"].tolist() == [1, 1, 1]
    assert metrics.title("epochs_to_0.09_within_2") == "epochs to an error of 9 % (restricted to 2 epochs)"
    assert [metrics.unreached(run, f"epochs_to_0.09{end}") for end in ("", "_within_2", "_within_1")] == [
        {},
        {"loss=mse,activation=tanh": 1},
        {"loss=mse,activation=tanh": 2},
    ]
    assert "epochs_to_0.02" in metrics.names(run)


def with_epochs(run, errors):
    """The run of a single arm with these errors [seeds, epochs] on the test images, from the first epoch on."""
    tables = [
        pd.DataFrame({"seed": range(len(errors)), "epoch": epoch, "value": of_seeds})
        for epoch, of_seeds in enumerate(np.transpose(errors), 1)
    ]
    columns = {"arm": run.arms[0].name, "split": "test", "metric": "error"}
    return dataclasses.replace(run, metrics=pd.concat(tables, ignore_index=True).assign(**columns))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of one arm, for `with_epochs`."""
    return run_folder.load(write_run(tmp_path_factory.mktemp("made") / "run", {("mse", "tanh"): [0.5, 0.5]}))


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_the_mean_of_restricted_epochs_is_the_area_under_kaplan_meiers_curve(made, data):
    """SciPy's estimate of the survival function, of networks that are censored at the end of training."""
    seeds, epochs = data.draw(st.integers(2, 8)), data.draw(st.integers(1, 7))
    reached = data.draw(st.lists(st.integers(1, 2 * epochs), min_size=seeds, max_size=seeds))
    run = with_epochs(made, [[0.01 if epoch >= first else 0.5 for epoch in range(1, epochs + 1)] for first in reached])
    metric = metrics.restricted([run], "epochs_to_0.02")
    assert metric == f"epochs_to_0.02_within_{epochs}"
    found = metrics.by_arm(run, metric)["loss=mse,activation=tanh"]

    seen = [first for first in reached if first <= epochs]
    censored = scipy.stats.CensoredData(uncensored=seen, right=[epochs] * (seeds - len(seen)))
    steps = np.arange(epochs)  # the curve is constant between epochs
    area = scipy.stats.ecdf(censored).sf.evaluate(steps).sum()
    assert found.mean() == pytest.approx(area)
    assert metrics.unreached(run, metric) == {"loss=mse,activation=tanh": seeds - len(seen)}


def test_epochs_are_restricted_to_those_that_all_arms_trained(made):
    short, long = with_epochs(made, [[0.5, 0.1], [0.5, 0.5]]), with_epochs(made, [[0.5, 0.5, 0.1], [0.1] * 3])
    metric = metrics.restricted([short, long], "epochs_to_0.2")
    assert metric == "epochs_to_0.2_within_2"
    assert metrics.restricted([short, long], metric) == metric
    assert metrics.restricted([short, long], "test_error") == "test_error"
    assert [metrics.by_arm(run, metric)["loss=mse,activation=tanh"].tolist() for run in (short, long)] == [
        [2, 2],
        [2, 1],
    ]
    assert [*metrics.unreached(short, metric).values(), *metrics.unreached(long, metric).values()] == [1, 1]
    with pytest.raises(InputError) as refusal:
        metrics.by_arm(short, "epochs_to_0.2_within_3")
    folder = str(short.folder)
    assert str(refusal.value) == (f"metric: 'epochs_to_0.2_within_3' needs 3 epochs, but an arm of {folder!r} has 2")


def test_epochs_to_an_error_are_of_the_validation_split_where_the_test_images_have_no_curve(tmp_path):
    """Its errors are those of the made run: 0.1, 0.08, 0.2, then half of it. Test errors would all be 2."""
    errors = {("mse", "tanh"): [0.05, 0.04, 0.1]}
    run = run_folder.load(write_run(tmp_path / "run", errors, curves=("validation", "running")))
    assert metrics.by_arm(run, "epochs_to_0.09")["loss=mse,activation=tanh"].tolist() == [2, 1, np.inf]
    assert "epochs_to_0.02" in metrics.names(run)


def test_epochs_to_an_error_are_compared_on_one_kind_of_curve(tmp_path):
    errors = {("mse", "tanh"): [0.05, 0.04, 0.1]}
    old = run_folder.load(write_run(tmp_path / "old", errors))
    new = run_folder.load(write_run(tmp_path / "new", errors, curves=("validation", "running")))
    with pytest.raises(InputError) as refusal:
        compare.arm_statistics([old, new], "epochs_to_0.09")
    assert str(refusal.value) == (
        f"metric: 'epochs_to_0.09' would be read from test_error of {str(old.folder)!r}; validation_error of "
        f"{str(new.folder)!r}; give all runs the same kind of curve"
    )


def test_epochs_to_an_error_need_a_curve(tmp_path):
    folder = write_run(tmp_path / "run", curves=("running",))
    run = run_folder.load(folder)
    with pytest.raises(InputError) as refusal:
        metrics.by_arm(run, "epochs_to_0.09")
    assert str(refusal.value) == (
        f"metric: 'epochs_to_0.09' needs a curve, but run {str(folder)!r} has neither a validation split "
        "(validation_size) nor test_curve=True"
    )
    assert not [name for name in metrics.names(run) if name.startswith("epochs_to")]


@pytest.mark.parametrize(
    ("curves", "metric", "shown"),
    [
        (("test", "validation", "running"), "test_error", "test_error"),
        (("validation", "running"), "test_error", "validation_error"),
        (("running",), "test_error", "running_error"),
        ((), "test_error", None),
        (("validation", "running"), "train_loss", "running_loss"),
        (("test", "validation"), "train_loss", None),
        (("validation", "running"), "validation_error", "validation_error"),
        (("running",), "validation_error", None),
        (("validation", "running"), "seconds", None),
    ],
)
def test_the_curve_that_is_shown_for_a_metric(tmp_path, curves, metric, shown):
    run = run_folder.load(write_run(tmp_path / "run", curves=curves))
    assert metrics.curve_metric([run], metric) == shown


def test_the_curve_that_is_shown_is_one_that_all_runs_have(tmp_path):
    runs = [
        run_folder.load(write_run(tmp_path / name, curves=curves))
        for name, curves in (("a", ("test", "validation", "running")), ("b", ("validation", "running")))
    ]
    assert metrics.curve_metric(runs, "test_error") == "validation_error"


@pytest.mark.parametrize(
    "metric",
    ["epochs_to_", "epochs_to_2", "epochs_to_0", "epochs_to_x", "epochs_to_-0.1"]
    + [f"epochs_to_0.1_within_{last}" for last in ("", "0", "2.5", "-1")],
)
def test_an_error_that_is_no_fraction_is_refused(run, metric):
    with pytest.raises(InputError, match=f"metric: '{metric}'; allowed is an error between 0 and 1"):
        metrics.by_arm(run, metric)


def test_numbers_of_an_arm_as_a_whole(run):
    assert [values.tolist() for values in metrics.by_arm(run, "seconds").values()] == [[2.0], [3.0]]


def test_error_of_a_class(tmp_path):
    run = with_predictions(tmp_path, *(predictions(np.ones(4), [1, 0, 0, seed == 1], seed) for seed in range(3)))
    found = metrics.by_arm(run, "test_error_class_1")["loss=mse,activation=tanh"].to_dict()
    assert found == {0: 0.25, 1: 0.5, 2: 0.25}
    assert "test_error_class_1" in metrics.names(run)
    with pytest.raises(InputError, match="metric: 'test_error_class_7' is not one of"):
        metrics.by_arm(run, "test_error_class_7")


def test_scores_of_single_images(tmp_path):
    """Of a run with two arms, of which one has probabilities."""
    arms = ("loss=mse,activation=tanh", "loss=cross_entropy,activation=tanh")
    tables = [predictions(np.ones(3), [1, 0, seed == 1], seed, arm) for arm in arms for seed in range(3)]
    tables = [one.assign(label=[1, 2, 1], nll=np.nan if index < 3 else 0.5) for index, one in enumerate(tables)]
    run = with_predictions(tmp_path, *tables)
    errors = metrics.per_image(run, "test_error")
    assert list(errors) == list(arms)
    assert errors[arms[0]].images.tolist() == [0, 1, 2]
    assert errors[arms[0]].values.tolist() == [[True, True, False], [True, True, True], [True, True, False]]
    of_class = metrics.per_image(run, "test_error_class_1")[arms[0]]
    assert of_class.images.tolist() == [0, 2]
    assert of_class.values.tolist() == [[True, False], [True, True], [True, False]]
    assert list(metrics.per_image(run, "test_nll")) == [arms[1]]
    assert (metrics.per_image(run, "test_nll")[arms[1]].values == 0.5).all()
    for metric in ("test_brier", "test_loss", "train_error", "test_error_class_3", "seconds"):
        assert metrics.per_image(run, metric) == {}


def test_what_needs_predictions_says_so(run):
    with pytest.raises(
        InputError, match=r"metric: 'test_error_class_1' needs predictions, but .* store_predictions=False"
    ):
        metrics.by_arm(run, "test_error_class_1")


def test_unknown_metrics_are_refused(run):
    with pytest.raises(InputError, match=r"metric: 'accuracy' is not one of test_error, test_loss, .*seconds"):
        metrics.by_arm(run, "accuracy")


@pytest.mark.parametrize(
    ("value", "metric", "text"),
    [
        (0.0123, "test_error", "1.23"),
        (0.0123, "test_error_class_3", "1.23"),
        (0.0123, "test_nll", "0.0123"),
        (12345.6, "samples_per_second", "12,346"),
        (12.34, "seconds", "12.3"),
        (np.inf, "epochs_to_0.02", "-"),
        (None, "test_error", "-"),
    ],
)
def test_values_as_text(value, metric, text):
    assert metrics.show(value, metric) == text


def test_curves_have_a_column_a_seed(run):
    curve = metrics.curves(run, "test_error")["loss=mse,activation=tanh"]
    np.testing.assert_allclose(curve.to_numpy(), [[0.1, 0.14, 0.12], [0.05, 0.07, 0.06]])
    assert metrics.has_curve(run, "test_error")
    assert not metrics.has_curve(run, "seconds")


def test_confusion_is_a_share_of_the_class():
    found = metrics.confusion(answers([[0, 0, 1], [0, 1, -1]], [0, 0, 1]))
    assert found.loc[0].to_dict() == {-1: 0.0, 0: 0.75, 1: 0.25}
    assert found.loc[1].to_dict() == {-1: 0.5, 0: 0.0, 1: 0.5}
    assert metrics.confusion(answers([[2, 2]], [2, 4])).to_dict() == {2: {2: 1.0, 4: 1.0}, 4: {2: 0.0, 4: 0.0}}


def test_the_fraction_of_networks_that_misclassify_an_image():
    both = {"first": answers([[2, 1], [2, 1]]), "second": answers([[1, 1], [2, 1]])}
    found = metrics.misclassified_fraction(both)
    np.testing.assert_allclose(found, [[1.0, 0.5], [0.0, 0.0]])
    assert list(found) == ["first", "second"]


def test_the_least_sure_are_rejected_first():
    """Of 100 images the two least sure are wrong, and the surest."""
    margins, wrong = np.arange(100) / 100, np.isin(np.arange(100), [0, 1, 99])
    curve = metrics.reject_curve(answers([1 + wrong, 2 - wrong], margin=margins))
    assert list(curve.columns) == [0, 1]
    expected = {0.0: 0.03, 0.01: 2 / 99, 0.019: 2 / 99, 0.02: 1 / 98, 0.1: 1 / 90}
    for share, error in expected.items():
        row = np.abs(curve.index - share).argmin()
        assert curve[0].iloc[row] == pytest.approx(error)
        assert curve[1].iloc[row] == pytest.approx(1 - error)
