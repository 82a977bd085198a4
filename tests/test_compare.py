"""Tests of the comparison, on runs with known numbers."""

import io
import itertools

import numpy as np
import pytest
from made_runs import ERRORS, write_run
from rich.console import Console

from lenet_jax import compare, results, stats
from lenet_jax.errors import InputError

NOISE = np.random.default_rng(0).normal(0, 0.001, (6, 12))
"""By arm and seed."""


def load(*folders):
    return [results.load(folder) for folder in folders]


def factorial(tmp_path, **changes):
    """A 2 x 2 study of 12 seeds: tanh is 0.02 better than sigmoid, cross-entropy 0.01 better than MSE."""
    errors = {
        (loss, activation): 0.06 - 0.01 * (loss == "cross_entropy") - 0.02 * (activation == "tanh") + NOISE[place]
        for place, (loss, activation) in enumerate(itertools.product(("mse", "cross_entropy"), ("sigmoid", "tanh")))
    }
    return results.load(write_run(tmp_path / "run", errors, **changes)), errors


def test_statistics_at_the_last_epoch(tmp_path):
    rows = compare.statistics(load(write_run(tmp_path / "run", diverged=1)))
    assert [row.arm for row in rows] == ["loss=mse,activation=tanh", "loss=cross_entropy,activation=tanh"]
    assert rows[0].axes == {"loss": "mse", "activation": "tanh"}
    assert (rows[0].n, rows[0].diverged) == (3, 1)
    assert rows[0].mean == pytest.approx(0.06)
    assert rows[0].std == pytest.approx(0.01)
    assert rows[1].median == pytest.approx(0.03)
    assert (rows[0].best, rows[0].worst) == (0.05, 0.07)
    assert rows[0].values.to_dict() == {0: 0.05, 1: 0.07, 2: 0.06}
    assert rows[0].ci95 == stats.interval([0.05, 0.07, 0.06])


def test_differences_are_taken_seed_by_seed_against_the_first_arm(tmp_path):
    run, errors = factorial(tmp_path)
    found = [judgement for judgement in compare.analyse([run]).judgements if judgement.kind == "difference"]
    assert [judgement.name for judgement in found] == [
        f"loss={loss},activation={activation} against loss=mse,activation=sigmoid"
        for loss, activation in list(errors)[1:]
    ]
    expected = np.round(errors["mse", "tanh"], 7) - np.round(errors["mse", "sigmoid"], 7)
    assert found[0].contrast.mean == pytest.approx(expected.mean(), abs=1e-12)
    assert found[0].contrast == stats.contrasts([expected])[0]
    assert found[0].improvement == 1.0


def test_effects_of_a_factorial_sweep_are_told(tmp_path):
    run, _ = factorial(tmp_path)
    effects = {
        judgement.name: judgement for judgement in compare.analyse([run]).judgements if judgement.kind != "difference"
    }
    assert list(effects) == [
        "loss: cross_entropy against mse, over activation",
        "activation: tanh against sigmoid, over loss",
        "loss (cross_entropy against mse) x activation (tanh against sigmoid)",
    ]
    loss, activation, interaction = effects.values()
    assert loss.contrast.mean == pytest.approx(-0.01, abs=0.001)
    assert activation.contrast.low < -0.02 + 0.001
    assert activation.contrast.mean == pytest.approx(-0.02, abs=0.001)
    assert interaction.contrast.low < 0 < interaction.contrast.high
    assert [effect.kind for effect in effects.values()] == ["main effect", "main effect", "interaction"]


def test_all_that_is_tested_is_corrected_together(tmp_path):
    judgements = compare.analyse([factorial(tmp_path)[0]], baseline="all").judgements
    assert len(judgements) == 6 + 3
    assert [judgement.p_holm for judgement in judgements] == stats.holm(
        [judgement.contrast.p for judgement in judgements]
    )


def test_any_arm_can_be_the_baseline(tmp_path):
    found = compare.analyse([factorial(tmp_path)[0]], baseline="loss=mse,activation=tanh").judgements
    assert sum(judgement.name.endswith(" against loss=mse,activation=tanh") for judgement in found) == 3
    with pytest.raises(InputError, match=r"baseline: 'tanh' is not one of 'loss=mse,activation=sigmoid', .*'all'"):
        compare.analyse([results.load(tmp_path / "run")], baseline="tanh")


def test_seeds_needed_for_a_difference_asked_for(tmp_path):
    run, errors = factorial(tmp_path)
    found = compare.analyse([run], difference=0.001).judgements[0]
    std = np.std(errors["mse", "tanh"] - errors["mse", "sigmoid"], ddof=1)
    assert found.seeds == stats.seeds_needed(0.001, std) > 12


def test_what_is_not_paired_is_not_paired(tmp_path):
    errors = {("mse", "tanh"): NOISE[0][:4] + 0.05, ("cross_entropy", "tanh"): NOISE[1][:4] + 0.05}
    apart = results.load(
        write_run(tmp_path / "apart", errors, first_seed={("mse", "tanh"): 0, ("cross_entropy", "tanh"): 4})
    )
    comparison = compare.analyse([apart])
    assert not comparison.judgements
    assert any("are not paired: no seed is common to them" in note for note in comparison.notes)
    with pytest.raises(InputError, match="baseline: nothing can be taken against 'loss=mse,activation=tanh'"):
        compare.analyse([apart], baseline="loss=mse,activation=tanh")


def test_common_seeds_are_paired(tmp_path):
    errors = {("mse", "tanh"): [0.05, 0.06, 0.07, 0.09], ("cross_entropy", "tanh"): [0.04, 0.05, 0.06]}
    run = results.load(
        write_run(tmp_path / "run", errors, first_seed={("mse", "tanh"): 0, ("cross_entropy", "tanh"): 1})
    )
    contrast = compare.analyse([run]).judgements[0].contrast
    assert contrast.n == 3
    assert contrast.mean == pytest.approx((0.04 - 0.06 + 0.05 - 0.07 + 0.06 - 0.09) / 3)


def test_other_test_images_are_not_paired(tmp_path):
    folders = [write_run(tmp_path / "a"), write_run(tmp_path / "b", fingerprint="sha256:1")]
    comparison = compare.analyse(load(*folders))
    assert not comparison.judgements
    assert "warning: the runs used different data sets or splits of them" in comparison.notes
    assert any("measured on different images" in note for note in comparison.notes)


def test_numbers_that_are_not_finite_are_not_tested(tmp_path):
    errors = {("mse", "tanh"): [0.05, np.nan, 0.07], ("cross_entropy", "tanh"): [0.04, 0.05, 0.06]}
    comparison = compare.analyse(load(write_run(tmp_path / "run", errors)), "test_loss")
    assert not comparison.judgements
    assert any("1 of 3 differences are not finite" in note for note in comparison.notes)
    assert comparison.arms[0].mean is None
    assert "cross_entropy" in compare.summary(comparison)


def test_one_number_an_arm_is_not_tested(tmp_path):
    comparison = compare.analyse(load(write_run(tmp_path / "run")), "seconds")
    assert [arm.mean for arm in comparison.arms] == [2.0, 3.0]
    assert any("seconds is one number for an arm" in note for note in comparison.notes)


def test_arms_of_several_runs_meet_by_their_axes(tmp_path):
    """The second run fixes an axis that the first one sweeps, and has an arm that the first one lacks."""
    first = write_run(tmp_path / "first", config={"loss": "mse", "activation": "sigmoid", "epochs": 2})
    errors = {("tanh",): [0.06, 0.08, 0.07], ("relu",): [0.05, 0.05, 0.05]}
    config = {"loss": "mse", "activation": "sigmoid", "epochs": 5, "optimizer": "adam"}
    second = write_run(tmp_path / "second", errors, axes=("activation",), config=config, versions={"jax": "0.1"})
    comparison = compare.analyse(load(first, second))
    assert [judgement.name for judgement in comparison.judgements] == [
        "second: activation=tanh against first: loss=mse,activation=tanh"
    ]
    assert comparison.judgements[0].contrast.mean == pytest.approx(0.01)
    assert "warning: the runs trained for different numbers of epochs" in comparison.notes
    assert "warning: the runs were made with different versions of jax" in comparison.notes
    assert any(note.startswith("second: activation=relu has no counterpart in first") for note in comparison.notes)


def test_named_arms_of_several_runs_meet_by_their_names(tmp_path):
    folders = [write_run(tmp_path / name, names=["old", "new"]) for name in "ab"]
    names = [judgement.name for judgement in compare.analyse(load(*folders)).judgements]
    assert names == ["b: old against a: old", "b: new against a: new"]


def test_too_few_seeds_for_a_claim_are_said(tmp_path):
    notes = compare.analyse(load(write_run(tmp_path / "run"))).notes
    assert "3 seeds are few: the intervals are rough" in notes
    assert any(note.startswith("3 seeds are too few for a claim: with 1 comparisons no") for note in notes)
    enough = compare.analyse([factorial(tmp_path / "many")[0]]).notes
    assert not any("few" in note for note in enough)


def test_a_choice_at_the_edge_and_a_sweep_without_tuning_are_said(tmp_path):
    chosen = {("mse", "tanh"): ({"learning_rate": 1.0}, ["learning_rate"])}
    config = {"tune": {"learning_rate": [0.1, 1.0]}}
    tuned = compare.analyse(load(write_run(tmp_path / "tuned", chosen=chosen, config=config))).notes
    assert any(
        note.startswith("loss=mse,activation=tanh chose learning_rate 1, the edge of what was tried") for note in tuned
    )
    assert not any("was tuned" in note for note in tuned)
    plain = compare.analyse(load(write_run(tmp_path / "plain"))).notes
    assert any(note.startswith("no hyperparameter was tuned") for note in plain)


def test_the_summary_is_in_sentences(tmp_path):
    text = compare.summary(compare.analyse([factorial(tmp_path)[0]]))
    assert text.startswith("On mnist5k, loss=cross_entropy,activation=tanh has the lowest test error: 3.0")
    assert "instead of loss=mse,activation=sigmoid lowers it by 3.0" in text
    assert "Over loss, tanh instead of sigmoid lowers it by " in text
    assert "don't show" not in text
    one = compare.summary(compare.analyse(load(write_run(tmp_path / "one", {("mse", "tanh"): [0.05, 0.07]}))))
    assert one == "On mnist5k, the mean test error is 6.00 % (95 % interval 5.00 to 7.00, 2 seeds)."


def test_the_table_says_percent_and_fits_80_columns(tmp_path):
    printed = io.StringIO()
    comparison = compare.analyse([factorial(tmp_path)[0]])
    compare.print_comparison(comparison, Console(width=80, file=printed))
    text = printed.getvalue()
    assert "cross_entropy tanh" in text
    assert f"{100 * comparison.arms[0].mean:.2f}" in text
    assert "percentage points" in text
    assert max(map(len, text.splitlines())) <= 80


def test_members_that_diverged_are_in_the_table(tmp_path):
    printed = io.StringIO()
    compare.print_comparison(compare.analyse(load(write_run(tmp_path / "run", diverged=2))), Console(file=printed))
    assert "diverged" in printed.getvalue()


def test_the_markdown_is_a_table(tmp_path):
    lines = compare.markdown(compare.statistics(load(write_run(tmp_path / "run"))), "test_error").splitlines()
    assert lines[0] == "| loss | activation | n | mean | std | median | 95 % CI | diverged |"
    assert lines[2] == "| mse | tanh | 3 | 6.00 | 1.00 | 6.00 | 5.00 - 7.00 | 0 |"


def test_several_runs_are_told_apart(tmp_path):
    folders = [write_run(tmp_path / "a" / "run"), write_run(tmp_path / "b")]
    assert [row.run for row in compare.statistics(load(*folders))] == ["run", "run", "b", "b"]
    assert compare.statistics(load(*folders))[2].label == "b: loss=mse,activation=tanh"


def test_runs_with_the_same_name_are_told_apart_by_path(tmp_path):
    folders = [write_run(tmp_path / "a" / "run"), write_run(tmp_path / "b" / "run")]
    assert compare.run_names(load(*folders)) == [str(folder) for folder in folders]


def test_unknown_metrics_are_refused(tmp_path):
    with pytest.raises(InputError, match="metric: 'accuracy' is not one of test_error"):
        compare.analyse(load(write_run(tmp_path / "run")), "accuracy")


def test_the_frames_hold_plain_numbers(tmp_path):
    comparison = compare.analyse(load(write_run(tmp_path / "run", ERRORS)))
    arms = compare.frame(comparison.arms, "test_error")
    assert arms["mean"].tolist() == pytest.approx([0.06, 0.04])
    assert {"arm", "n", "mean", "std", "median", "ci95_low", "ci95_high", "best", "worst", "diverged"} <= set(
        arms.columns
    )
    differences = compare.judgement_frame(comparison.judgements, "test_error")
    assert differences.loc[0, "mean"] == pytest.approx(-0.02)
    assert {"kind", "name", "p", "p_holm", "low", "high", "improvement", "seeds_for_80_percent"} <= set(
        differences.columns
    )
