"""Tuning: what is tried and chosen, and that neither the test set nor the members that are tested see any of it."""

import itertools

import few_digits
import numpy as np
import pandas as pd
import pytest
import scipy.stats
from test_datasets import write

from lenet_jax import population
from lenet_jax.run import candidates, runner, tuning
from lenet_jax.run import folder as run_folder
from lenet_jax.run.candidates import Tuning

RATES = (0.01, 0.1, 1.0)
TUNED, TESTED, VALIDATION = (1_000_000, 1_000_001), range(2), range(350, 600)


def table_of(errors, metric="error", split="validation"):
    """A tuning table: {(values of a candidate): its errors by seed}, at epoch 2; at epoch 1 the best is the worst."""
    rows = []
    for values, by_seed in errors.items():
        for seed, error in enumerate(by_seed):
            for epoch, value in ((1, 1 - error), (2, error)):
                named = dict(zip(("learning_rate", "momentum"), values, strict=False))
                rows.append({**named, "seed": seed, "epoch": epoch, "split": split, "metric": metric, "value": value})
    return pd.DataFrame(rows)


def test_candidates_are_all_combinations_of_the_grid_with_every_point():
    points = ({"learning_rate": 0.5, "mu": 0.1}, {"learning_rate": 0.2, "mu": 0.3})
    found = Tuning({"momentum": (0.0, 0.9), "weight_decay": (0.0, 1e-4)}, points)
    assert found.names == ["momentum", "weight_decay", "learning_rate", "mu"]
    assert found.candidates() == [
        {"momentum": momentum, "weight_decay": decay, **point}
        for momentum in (0.0, 0.9)
        for decay in (0.0, 1e-4)
        for point in points
    ]
    assert Tuning({"mu": (1.0, 2.0)}).candidates() == [{"mu": 1.0}, {"mu": 2.0}]
    assert Tuning({}, points).candidates() == list(points)


def test_the_smallest_mean_error_at_the_last_epoch_is_chosen():
    # The best single seed is that of 0.01, the best median that of 1.
    table = table_of({(0.01,): [0.1, 0.6, 0.6], (0.1,): [0.3, 0.3, 0.3], (1.0,): [0.29, 0.29, 0.4]})
    assert tuning.choose(table, ["learning_rate"]) == {"learning_rate": 0.1}
    other = [table_of({(1.0,): [0.0] * 3}, metric="loss"), table_of({(1.0,): [0.0] * 3}, split="train")]
    assert tuning.choose(pd.concat([table, *other]), ["learning_rate"]) == {"learning_rate": 0.1}


def test_of_equal_errors_the_smallest_values_are_chosen():
    table = table_of({(0.1, 0.9): [0.3], (0.1, 0.0): [0.3], (0.01, 0.9): [0.4], (1.0, 0.0): [0.3]})
    assert tuning.choose(table, ["learning_rate", "momentum"]) == {"learning_rate": 0.1, "momentum": 0.0}
    assert tuning.choose(table, ["momentum", "learning_rate"]) == {"momentum": 0.0, "learning_rate": 0.1}


def test_a_diverged_member_counts_as_all_wrong():
    table = table_of({(0.1,): [0.4, 0.4], (1.0,): [0.1, 1.0]})
    assert tuning.choose(table, ["learning_rate"]) == {"learning_rate": 0.1}
    assert tuning.choose(table_of({(0.1,): [1.0], (1.0,): [1.0]}), ["learning_rate"]) == {"learning_rate": 0.1}


@pytest.mark.parametrize(
    ("tried", "chosen", "edges"),
    [
        ((0.01, 0.1, 1.0), 0.01, ["learning_rate"]),
        ((0.01, 0.1, 1.0), 0.1, []),
        ((0.01, 0.1, 1.0), 1.0, ["learning_rate"]),
        ((0.0, 0.1), 0.0, []),
        ((0.0, 0.1), 0.1, ["learning_rate"]),
        ((0.1,), 0.1, []),
    ],
)
def test_edges(tried, chosen, edges):
    table = table_of({(value,): [0.5] for value in tried})
    assert tuning.at_edge({"learning_rate": chosen}, table, ["learning_rate"]) == edges
    assert tuning.at_edge({"learning_rate": chosen}, table, []) == [], "drawn values have no edge"


def test_edges_of_several():
    table = table_of({values: [0.5] for values in itertools.product((0.01, 0.1, 1.0), (0.0, 0.9))})
    names = ["learning_rate", "momentum"]
    assert tuning.at_edge({"learning_rate": 1.0, "momentum": 0.9}, table, names) == ["learning_rate", "momentum"]
    assert tuning.at_edge({"learning_rate": 0.1, "momentum": 0.9}, table, names) == ["momentum"]
    assert tuning.at_edge({"learning_rate": 0.01, "momentum": 0.0}, table, names) == ["learning_rate"]


@pytest.mark.parametrize(
    ("grid", "value", "further"),
    [
        ((0.01, 0.03, 0.1), 0.1, 0.333333),
        ((0.01, 0.03, 0.1), 0.01, 0.00333333),
        ((0.01, 0.1), 0.1, 1.0),
        ((0.01, 0.03, 0.1), 0.03, None),
        ((0.1,), 0.1, None),
        ((0.0, 0.1), 0.1, None),
        ((0.0, 0.1, 0.2), 0.2, 0.4),
        ((0.1, 0.10000001), 0.1, None),
    ],
)
def test_beyond_an_edge_a_grid_goes_on_in_its_last_ratio(grid, value, further):
    assert candidates.beyond(Tuning({"momentum": (0.5, 0.9), "mu": grid}), "mu", value) == further


def test_beyond_what_was_drawn_there_is_nothing():
    assert candidates.beyond(Tuning({}, ({"mu": 0.1}, {"mu": 0.2})), "mu", 0.2) is None


def test_widening_adds_a_value_with_all_others():
    first = Tuning({"momentum": (0.5, 0.9), "mu": (0.1, 1.0)}, ({"learning_rate": 0.1}, {"learning_rate": 0.2}))
    more, new = candidates.widened(first, "mu", 0.01)
    assert more.grid == {"momentum": (0.5, 0.9), "mu": (0.01, 0.1, 1.0)}
    assert list(more.grid) == list(first.grid)
    assert {point["mu"] for point in new.candidates()} == {0.01}
    old, added, together = ([tuple(one.items()) for one in some.candidates()] for some in (first, new, more))
    assert sorted(old + added) == sorted(together)
    assert more.drawn == new.drawn == first.drawn


def test_random_values_are_uniform_in_the_logarithm():
    low, high = 0.001, 10.0
    values = np.array(candidates.log_uniform("learning_rate", low, high, 4000))
    assert low <= values.min() < 1.01 * low
    assert 0.99 * high < values.max() <= high
    place = np.log(values / low) / np.log(high / low)
    assert scipy.stats.kstest(place, "uniform").pvalue > 0.05
    assert scipy.stats.kstest((values - low) / (high - low), "uniform").pvalue < 1e-9


def test_random_values_leave_no_part_of_the_range_out():
    values = np.array(candidates.log_uniform("momentum", 1e-6, 1e-2, 4))
    assert sorted((np.log10(values) + 6).astype(int)) == [0, 1, 2, 3]


def test_random_values_are_always_the_same_for_a_name():
    first = candidates.log_uniform("learning_rate", 0.001, 1.0, 20)
    assert candidates.log_uniform("learning_rate", 0.001, 1.0, 20) == first
    other = candidates.log_uniform("mu", 0.001, 1.0, 20)
    assert abs(scipy.stats.spearmanr(first, other).statistic) < 0.5
    assert candidates.log_uniform("mu", 0.5, 0.50001, 50) == pytest.approx([0.5] * 50, abs=2e-5)


# Whole runs: 300 digits to train and 250 to validate, with the programs of all small runs.


def small(tune=None, **fields):
    config = few_digits.small(train_size=300, validation_size=len(VALIDATION), seeds=len(TESTED))
    config.update({"learning_rate": 0.1, "tune_seeds": len(TUNED)} | fields)
    config.tune.update(tune or {})
    return config


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """Two arms that try three rates."""
    config = small({"learning_rate": RATES})
    config.sweep.weight_decay = (0.0, 0.01)
    return runner.run(config, tmp_path_factory.mktemp("runs") / "tuned", "test")


def final_errors(table):
    """Mean validation error of each candidate at the last epoch, computed another way than by the package."""
    found = {}
    for row in table.to_dict("records"):
        if (row["epoch"], row["split"], row["metric"]) == (2, "validation", "error"):
            found.setdefault(row["learning_rate"], []).append(row["value"])
    assert {len(values) for values in found.values()} == {len(TUNED)}
    return {rate: np.mean(values) for rate, values in found.items()}


def test_the_tuning_table_holds_every_candidate_and_no_test_split(tuned):
    table = tuned.tuning
    assert list(table.columns) == [
        *("arm", "weight_decay", "learning_rate", "seed", "epoch", "split", "metric", "value"),
    ]
    assert set(table.split) == {"running", "validation"}
    counts = table.groupby(["arm", "split"]).size().to_dict()
    # 6 members; `running` has 2 metrics at 2 epochs, validation 5 metrics at 3.
    assert counts == {
        (arm, split): count
        for arm in ("weight_decay=0", "weight_decay=0.01")
        for split, count in (("running", 24), ("validation", 90))
    }
    for _, of_arm in table.groupby("arm"):
        pairs = set(zip(of_arm.learning_rate, of_arm.seed, strict=True))
        assert pairs == set(itertools.product(RATES, TUNED)), "the same seeds for every rate and arm"
    assert not set(table.seed) & set(tuned.metrics.seed)
    assert set(tuned.metrics.seed) == set(TESTED)
    assert set(tuned.metrics.split) == {"running", "validation", "train", "test"}


def test_the_best_candidate_is_chosen_and_noted(tuned):
    for row in tuned.summary["arms"]:
        errors = final_errors(tuned.tuning[tuned.tuning.arm == row["name"]])
        best = min(errors, key=errors.get)
        assert max(errors.values()) > errors[best] + 0.1, "there is something to choose"
        assert row["chosen"] == {"learning_rate": best}
        assert row["chosen_at_edge"] == (["learning_rate"] if best in (RATES[0], RATES[-1]) else [])
        assert set(tuned.metrics[tuned.metrics.arm == row["name"]].learning_rate) == {best}
    assert run_folder.load(tuned.folder).summary == tuned.summary


def of_first_arm(tuned, table):
    """Rows of the first arm without what a plain run doesn't have."""
    rows = table[table.arm == "weight_decay=0"]
    return rows.drop(columns=["arm", "weight_decay"]).reset_index(drop=True)


def test_tuning_leaves_no_trace_in_what_is_tested(tuned, tmp_path):
    chosen = tuned.summary["arms"][0]["chosen"]
    plain = runner.run(small(**chosen), tmp_path / "plain", "test")
    assert plain.tuning is None
    assert not (plain.folder / run_folder.TUNING).exists()
    assert "learning_rate" not in plain.metrics
    assert (plain.summary["arms"][0]["chosen"], plain.summary["arms"][0]["chosen_at_edge"]) == ({}, [])
    found = of_first_arm(tuned, tuned.metrics).drop(columns="learning_rate")
    pd.testing.assert_frame_equal(found, plain.metrics.drop(columns="arm"), check_exact=True)
    predictions = of_first_arm(tuned, tuned.predictions)
    pd.testing.assert_frame_equal(predictions, plain.predictions.drop(columns="arm"), check_exact=True)


def test_a_candidate_equals_a_lone_run_with_its_rate_and_seeds(tuned, tmp_path):
    rate = RATES[0]
    fields = {"learning_rate": rate, "first_seed": TUNED[0], "tune_first_seed": 0}
    lone = runner.run(small(**fields), tmp_path / "lone", "test").metrics.drop(columns="arm")
    lone = lone[lone.seed.isin(TUNED)]
    table = of_first_arm(tuned, tuned.tuning)
    found = table[table.learning_rate == rate].drop(columns="learning_rate").reset_index(drop=True)
    expected = lone[(lone.split == "running") | (lone.split == "validation")].reset_index(drop=True)
    # Texts are categories of their own table.
    found, expected = (one.astype(dict.fromkeys(one.select_dtypes("category"), "str")) for one in (found, expected))
    pd.testing.assert_frame_equal(found, expected, check_exact=True)


@pytest.fixture
def watched(monkeypatch):
    """What the engine is asked to evaluate and to predict, with the seeds of whom."""
    asked, seeds_of = [], {}
    create, evaluate, predict = population.create, population.evaluate, population.predict

    def note(seeds, *arguments):
        members = create(seeds, *arguments)
        seeds_of[id(members)] = (members, tuple(seeds))  # kept, so that no other one gets its id
        return members

    def asking(function):
        def ask(members, split):
            asked.append((seeds_of[id(members)][1], split))
            with pytest.MonkeyPatch.context() as patch:  # an evaluation predicts its images, part by part
                patch.setattr(population, "predict", predict)
                return function(members, split)

        return ask

    monkeypatch.setattr(population, "create", note)
    monkeypatch.setattr(population, "evaluate", asking(evaluate))
    monkeypatch.setattr(population, "predict", asking(predict))
    return asked


def test_the_test_set_plays_no_part_in_choosing(tuned, watched, tmp_path):
    """Another test set changes neither what is measured for tuning nor the choice; and nobody asks for it."""
    rng = np.random.default_rng(0)
    other = {
        "test_images": rng.integers(0, 256, (200, 28, 28)).astype(np.uint8),
        "test_labels": rng.integers(0, 10, 200).astype(np.uint8),
    }
    write(tmp_path / "digits", few_digits.arrays() | other)
    config = small({"learning_rate": RATES}, dataset=f"idx:{tmp_path}/digits")
    config.sweep.weight_decay = (0.0, 0.01)
    run = runner.run(config, tmp_path / "run", "test")
    pd.testing.assert_frame_equal(run.tuning, tuned.tuning, check_exact=True)
    for row, before in zip(run.summary["arms"], tuned.summary["arms"], strict=True):
        assert row["chosen"] == before["chosen"]
        assert row["validation_error"] == before["validation_error"]
        assert row["test_error"]["mean"] > before["test_error"]["mean"] + 0.1, "it is another test set"
    tuning_seeds = tuple(TUNED) * len(RATES)
    for_tuning = [split for seeds, split in watched if set(seeds) & set(TUNED)]
    assert for_tuning == [VALIDATION] * 6, "3 evaluations an arm"
    assert {seeds for seeds, _ in watched} == {tuning_seeds, tuple(TESTED)}
    tested = [split for seeds, split in watched if seeds == tuple(TESTED)]
    assert range(600, 800) in tested, "this is how it would show"
    # All of an arm's tuning is done before any of its test images is looked at.
    assert [seeds == tuning_seeds for seeds, _ in watched[:4]] == [True, True, True, False]


def test_the_chosen_values_can_train_on_the_validation_images_too(tmp_path):
    config = small({"learning_rate": RATES}, refit=True, train_size=0, validation_size=300)
    run = runner.run(config, tmp_path / "refit", "test")
    (row,) = run.summary["arms"]
    plain = runner.run(small(**row["chosen"], train_size=0, validation_size=0), tmp_path / "plain", "test")
    pd.testing.assert_frame_equal(run.metrics.drop(columns="learning_rate"), plain.metrics, check_exact=True)
    pd.testing.assert_frame_equal(run.predictions, plain.predictions, check_exact=True)
    assert set(run.metrics.split) == {"running", "train", "test"}
    assert run.summary["dataset"] == plain.summary["dataset"] == row["dataset"]
    assert (row["dataset"]["train"], row["dataset"]["validation"]) == (600, 0)
    errors = final_errors(run.tuning)
    assert row["chosen"] == {"learning_rate": min(errors, key=errors.get)}


def test_a_grid_is_widened_at_its_edge(tuned, tmp_path, capsys):
    config = small({"learning_rate": (0.0001, 0.001, 0.01)})
    config.sweep.tune_widenings = (0, 1, 5)
    run = runner.run(config, tmp_path / "run", "test")
    lines = [line for line in capsys.readouterr().err.splitlines() if "candidates" in line]
    tried = [sorted(set(table.learning_rate)) for _, table in run.tuning.groupby("arm")]
    rows = run.summary["arms"]
    assert [row["chosen"]["learning_rate"] for row in rows] == [0.01, 0.1, 0.1]
    # The last arm needed two of its five: 0.1 is better than 0.01 and than 1.
    assert tried == [[0.0001, 0.001, 0.01], [0.0001, 0.001, 0.01, 0.1], [0.0001, 0.001, 0.01, 0.1, 1.0]]
    assert [row["chosen_at_edge"] for row in rows] == [["learning_rate"], ["learning_rate"], []]
    assert len(lines) == 3
    for line, row, count in zip(lines, rows, (3, 4, 5), strict=True):
        rate = row["chosen"]["learning_rate"]
        error = final_errors(run.tuning[run.tuning.arm == row["name"]])[rate]
        told = (
            f"{row['name']}: learning_rate {rate:g}, best of {count} candidates (validation error {100 * error:.2f}%)"
        )
        assert told in line
        assert ("; learning_rate at the edge of the grid" in line) == bool(row["chosen_at_edge"])
    # What was tried later is as good as tried at once.
    shared = RATES[:2]
    before, after = (
        table[table.learning_rate.isin(shared)].drop(columns=["arm", axis]).reset_index(drop=True)
        for table, axis in (
            (tuned.tuning[tuned.tuning.weight_decay == 0], "weight_decay"),
            (run.tuning[run.tuning.tune_widenings == 5], "tune_widenings"),
        )
    )
    by = ["epoch", "split", "metric", "learning_rate", "seed"]
    before, after = (table.sort_values(by, ignore_index=True) for table in (before, after))
    pd.testing.assert_frame_equal(after, before, check_exact=True)


def test_no_value_beyond_what_a_field_may_be_is_tried(tmp_path):
    """0.99 is best where the rate is far too small, and 0.99^2 / 0.9 is more than 1."""
    config = small({"momentum": (0.0, 0.9, 0.99)}, learning_rate=0.003, tune_widenings=3)
    run = runner.run(config, tmp_path / "run", "test")
    assert set(run.tuning.momentum) == {0.0, 0.9, 0.99}
    (row,) = run.summary["arms"]
    assert (row["chosen"], row["chosen_at_edge"]) == ({"momentum": 0.99}, ["momentum"])


def test_a_random_set(tmp_path):
    config = small({"learning_rate": {"low": 0.001, "high": 1.0, "count": 3}}, tune_widenings=2)
    run = runner.run(config, tmp_path / "run", "test")
    assert set(run.tuning.learning_rate) == set(candidates.log_uniform("learning_rate", 0.001, 1.0, 3))
    errors = final_errors(run.tuning)
    best = min(errors, key=errors.get)
    (row,) = run.summary["arms"]
    assert row["chosen"] == {"learning_rate": best}
    assert best in (min(errors), max(errors))
    assert row["chosen_at_edge"] == [], "drawn values have no edge"


def test_two_hyperparameters(tmp_path):
    grid = {"momentum": (0.9, 0.0), "learning_rate": RATES}
    run = runner.run(small(grid, tune_seeds=1), tmp_path / "run", "test")
    at_end = run.tuning[(run.tuning.epoch == 2) & (run.tuning.metric == "error") & (run.tuning.split == "validation")]
    errors = {(row.momentum, row.learning_rate): row.value for row in at_end.itertuples()}
    assert set(errors) == set(itertools.product((0.0, 0.9), RATES))
    assert len(at_end) == 6
    momentum, rate = min(sorted(errors), key=errors.get)
    (row,) = run.summary["arms"]
    assert row["chosen"] == {"momentum": momentum, "learning_rate": rate}
    assert list(run.metrics.columns[-2:]) == ["momentum", "learning_rate"]
    assert set(run.metrics.momentum) == {momentum}
