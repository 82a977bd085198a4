"""Tests of the comparison and its tables, on runs with known numbers."""

import io
import itertools
import json
import math
import shutil

import numpy as np
import pytest
import scipy.stats
from made_runs import ERRORS, write_run
from rich.console import Console

from lenet_jax import stats
from lenet_jax.analysis import arms, compare, report, tables
from lenet_jax.errors import InputError, check_choice
from lenet_jax.run import files
from lenet_jax.run import folder as run_folder
from lenet_jax.run.names import ONLY_ARM, arm_named

NOISE = np.random.default_rng(0).normal(0, 0.001, (6, 12))
"""By arm and seed."""


def load(*folders):
    return [run_folder.load(folder) for folder in folders]


def factorial(tmp_path, **changes):
    """A 2 x 2 study of 12 seeds: tanh is 0.02 better than sigmoid, cross-entropy 0.01 better than MSE."""
    errors = {
        (loss, activation): 0.06 - 0.01 * (loss == "cross_entropy") - 0.02 * (activation == "tanh") + NOISE[place]
        for place, (loss, activation) in enumerate(itertools.product(("mse", "cross_entropy"), ("sigmoid", "tanh")))
    }
    return run_folder.load(write_run(tmp_path / "run", errors, **changes)), errors


def test_statistics_at_the_last_epoch(tmp_path):
    rows = arms.arm_statistics(load(write_run(tmp_path / "run", diverged=1)))
    assert [row.arm for row in rows] == ["loss=mse,activation=tanh", "loss=cross_entropy,activation=tanh"]
    assert rows[0].axes == {"loss": "mse", "activation": "tanh"}
    assert (rows[0].n, rows[0].diverged) == (3, 1)
    assert rows[0].mean == pytest.approx(0.06)
    assert rows[0].std == pytest.approx(0.01)
    assert rows[1].median == pytest.approx(0.03)
    assert rows[0].values.to_dict() == {0: 0.05, 1: 0.07, 2: 0.06}
    assert rows[0].ci95 == stats.bootstrap_interval([0.05, 0.07, 0.06])


def test_losses_are_defined_by_all_their_settings():
    assert set(compare.loss_fields()) == {
        *("loss", "output", "mse_point", "target_code", "mse_reduction", "mse_factor", "map_constant"),
    }


def test_differences_are_taken_seed_by_seed_against_the_first_arm(tmp_path):
    run, errors = factorial(tmp_path)
    found = [judgement for judgement in compare.compare_runs([run]).judgements if judgement.kind == "difference"]
    assert [judgement.name for judgement in found] == [
        f"loss={loss},activation={activation} against loss=mse,activation=sigmoid"
        for loss, activation in list(errors)[1:]
    ]
    expected = np.round(errors["mse", "tanh"], 7) - np.round(errors["mse", "sigmoid"], 7)
    t_test = scipy.stats.ttest_1samp(expected, 0)
    assert found[0].mean == pytest.approx(expected.mean(), abs=1e-12)
    assert found[0].seeds_interval == pytest.approx(tuple(t_test.confidence_interval()), abs=1e-12)
    assert found[0].estimate.interval() == found[0].seeds_interval  # answers to single images are unknown
    assert (found[0].n, found[0].p) == (12, 2 / 4096)  # all seeds have the same sign
    assert found[0].effect_size == pytest.approx(t_test.statistic / np.sqrt(12))
    assert found[0].improvement[0] == 1.0


def test_effects_of_a_factorial_sweep_are_told(tmp_path):
    run, _ = factorial(tmp_path)
    effects = {
        judgement.name: judgement
        for judgement in compare.compare_runs([run]).judgements
        if judgement.kind != "difference"
    }
    assert list(effects) == [
        "loss: cross_entropy against mse, over activation",
        "activation: tanh against sigmoid, over loss",
        "loss (cross_entropy against mse) x activation (tanh against sigmoid)",
    ]
    loss, activation, interaction = effects.values()
    assert loss.mean == pytest.approx(-0.01, abs=0.001)
    assert activation.seeds_interval[0] < -0.02 + 0.001
    assert activation.mean == pytest.approx(-0.02, abs=0.001)
    assert interaction.seeds_interval[0] < 0 < interaction.seeds_interval[1]
    assert [effect.kind for effect in effects.values()] == ["main effect", "main effect", "interaction"]


def test_all_that_is_tested_is_corrected_together(tmp_path):
    judgements = compare.compare_runs([factorial(tmp_path)[0]], baseline="all").judgements
    assert len(judgements) == 6 + 3
    # 12 seeds of one sign: 2/4096, the smallest p-value. Flipping some of them makes no sum as extreme in any contrast,
    # so correction changes nothing; Holm's would multiply it by nine. The interaction alone isn't shown.
    smallest = [judgement for judgement in judgements if judgement.p == 2 / 4096]
    assert len(smallest) == 8
    assert {judgement.p_corrected for judgement in smallest} == {2 / 4096}
    assert judgements[-1].p_corrected == judgements[-1].p > 0.05


def test_any_arm_can_be_the_baseline(tmp_path):
    found = compare.compare_runs([factorial(tmp_path)[0]], baseline="loss=mse,activation=tanh").judgements
    assert sum(judgement.name.endswith(" against loss=mse,activation=tanh") for judgement in found) == 3
    with pytest.raises(InputError, match=r"baseline: 'tanh' is not one of 'loss=mse,activation=sigmoid', .*'all'"):
        compare.compare_runs([run_folder.load(tmp_path / "run")], baseline="tanh")


def test_a_difference_asked_for_is_finite(tmp_path):
    with pytest.raises(InputError, match="difference: nan; allowed is a finite number"):
        compare.compare_runs([factorial(tmp_path)[0]], difference=math.nan)


def test_what_is_not_paired_is_not_paired(tmp_path):
    errors = {("mse", "tanh"): NOISE[0][:4] + 0.05, ("cross_entropy", "tanh"): NOISE[1][:4] + 0.05}
    apart = run_folder.load(
        write_run(tmp_path / "apart", errors, first_seed={("mse", "tanh"): 0, ("cross_entropy", "tanh"): 4})
    )
    comparison = compare.compare_runs([apart])
    assert not comparison.judgements
    assert any("are not paired: they have no common seed" in note for note in comparison.notes)
    with pytest.raises(
        InputError, match="baseline: no arm can be compared with 'loss=mse,activation=tanh'; loss=cross"
    ):
        compare.compare_runs([apart], baseline="loss=mse,activation=tanh")


def test_common_seeds_are_paired(tmp_path):
    errors = {("mse", "tanh"): [0.05, 0.06, 0.07, 0.09], ("cross_entropy", "tanh"): [0.04, 0.05, 0.06]}
    run = run_folder.load(
        write_run(tmp_path / "run", errors, first_seed={("mse", "tanh"): 0, ("cross_entropy", "tanh"): 1})
    )
    comparison = compare.compare_runs([run])
    contrast = comparison.judgements[0]
    assert contrast.n == 3
    assert any("are compared on their 3 common seeds" in note for note in comparison.notes)
    assert contrast.mean == pytest.approx((0.04 - 0.06 + 0.05 - 0.07 + 0.06 - 0.09) / 3)


def test_other_test_images_are_not_paired(tmp_path):
    folders = [write_run(tmp_path / "a"), write_run(tmp_path / "b", fingerprint="sha256:1")]
    comparison = compare.compare_runs(load(*folders))
    assert not comparison.judgements
    assert "warning: the runs used different data sets or splits of them" in comparison.notes
    assert any("measured on different images" in note for note in comparison.notes)


def test_numbers_that_are_not_finite_are_not_tested(tmp_path):
    errors = {("mse", "tanh"): [0.05, np.nan, 0.07], ("mse", "relu"): [0.04, 0.05, 0.06]}
    comparison = compare.compare_runs(load(write_run(tmp_path / "run", errors)), "test_loss")
    assert not comparison.judgements
    assert any("1 of 3 differences are not finite" in note for note in comparison.notes)
    assert comparison.arms[0].mean is None
    assert "relu" in tables.summary(comparison)


def test_losses_of_different_kinds_are_not_compared(tmp_path):
    run = run_folder.load(write_run(tmp_path / "run"))
    comparison = compare.compare_runs([run], "train_loss")
    assert not comparison.judgements
    assert any("they have different losses" in note for note in comparison.notes)
    assert len(compare.compare_runs([run], "train_error").judgements) == 1


def test_networks_that_never_reach_an_error_count_as_their_epochs(tmp_path):
    """Errors at the two epochs: 0.1, 0.05; 0.08, 0.04; 0.4, 0.2."""
    errors = {("mse", "tanh"): [0.05, 0.04], ("mse", "relu"): [0.2, 0.2], ("mse", "sigmoid"): [0.05, 0.05]}
    comparison = compare.compare_runs(load(write_run(tmp_path / "run", errors)), "epochs_to_0.09")
    assert [arm.mean for arm in comparison.arms] == [1.5, 2.0, 2.0]
    assert [judgement.mean for judgement in comparison.judgements] == [0.5, 0.5]
    assert (
        "2 of 2 seeds of loss=mse,activation=relu did not reach this error within 2 epochs; they count as 2 epochs"
    ) in comparison.notes
    assert sum("did not reach" in note for note in comparison.notes) == 1
    title = "epochs to an error of 9 % (restricted to 2 epochs)"
    assert title in tables.summary(comparison)
    assert title.capitalize() in tables.arms_title(comparison.arms, comparison.metric)
    assert title in tables.differences_title(comparison)
    overview = report.overview_cells(compare.compare_runs(comparison.runs))[1]
    assert ["epochs to an error of 2 % (restricted to 2 epochs)", "2.0", "2.0", "2.0"] in overview


def test_one_number_an_arm_is_not_tested(tmp_path):
    comparison = compare.compare_runs(load(write_run(tmp_path / "run")), "seconds")
    assert [arm.mean for arm in comparison.arms] == [2.0, 3.0]
    assert any("seconds is a single number per arm" in note for note in comparison.notes)


def test_arms_of_several_runs_meet_by_their_axes(tmp_path):
    """The second run fixes an axis that the first one sweeps, and has an arm that the first one lacks."""
    first = write_run(tmp_path / "first", config={"loss": "mse", "activation": "sigmoid", "epochs": 2})
    errors = {("tanh",): [0.06, 0.08, 0.07], ("relu",): [0.05, 0.05, 0.05]}
    config = {"loss": "mse", "activation": "sigmoid", "epochs": 5, "optimizer": "adam"}
    second = write_run(tmp_path / "second", errors, axes=("activation",), config=config, versions={"jax": "0.1"})
    for folder, value in ((first, "default"), (second, "bfloat16")):
        provenance = json.loads((folder / "provenance.json").read_text())
        settings = {"jax_default_matmul_precision": value, "XLA_FLAGS": ""}
        (folder / "provenance.json").write_text(json.dumps(provenance | {"jax_settings": settings}))
    comparison = compare.compare_runs(load(first, second))
    assert [judgement.name for judgement in comparison.judgements] == [
        "second: activation=tanh against first: loss=mse,activation=tanh"
    ]
    assert comparison.judgements[0].mean == pytest.approx(0.01)
    assert "warning: the runs trained for different numbers of epochs" in comparison.notes
    assert "warning: the runs were made with different versions of jax" in comparison.notes
    expected = "warning: the runs were made with different values of jax_default_matmul_precision"
    assert expected in comparison.notes
    assert any(note.startswith("second: activation=relu has no counterpart in first") for note in comparison.notes)


def test_named_arms_of_several_runs_meet_by_their_names(tmp_path):
    folders = [write_run(tmp_path / name, names=["old", "new"]) for name in "ab"]
    names = [judgement.name for judgement in compare.compare_runs(load(*folders)).judgements]
    assert names == ["b: old against a: old", "b: new against a: new"]


def test_too_few_seeds_for_a_claim_are_said(tmp_path):
    notes = compare.compare_runs(load(write_run(tmp_path / "run"))).notes
    assert any(note.startswith("3 seeds are few") and "covers the true mean in at most 75 %" in note for note in notes)
    assert "3 seeds are too few for a claim: the smallest possible p-value is 0.25" in notes
    mixed = {("mse", "tanh"): NOISE[0], ("cross_entropy", "tanh"): NOISE[1] - 1, ("map", "tanh"): NOISE[2][:2]}
    notes = compare.compare_runs(load(write_run(tmp_path / "mixed", mixed))).notes
    assert [note for note in notes if "a claim" in note] == [
        "2 seeds are too few for a claim: the smallest possible p-value is 0.5"
    ]
    enough = compare.compare_runs([factorial(tmp_path / "many")[0]]).notes
    assert not any("seeds are" in note for note in enough)


def test_a_choice_at_the_edge_and_a_sweep_without_tuning_are_said(tmp_path):
    chosen = {("mse", "tanh"): ({"learning_rate": 1.0}, ["learning_rate"])}
    config = {"tune": {"learning_rate": [0.1, 1.0]}}
    tuned = compare.compare_runs(load(write_run(tmp_path / "tuned", chosen=chosen, config=config))).notes
    assert any(
        note.startswith("loss=mse,activation=tanh chose learning_rate 1, at the edge of the grid") for note in tuned
    )
    assert not any("was tuned" in note for note in tuned)
    plain = compare.compare_runs(load(write_run(tmp_path / "plain"))).notes
    assert any(note.startswith("no hyperparameter was tuned") for note in plain)


def test_the_summary_is_in_sentences(tmp_path):
    comparison = compare.compare_runs([factorial(tmp_path)[0]])
    text = tables.summary(comparison)
    assert text.startswith("On mnist10k, loss=cross_entropy,activation=tanh has the lowest test error: 3.0")
    gain = f"{-100 * comparison.judgements[2].mean:.2f}"
    assert f"instead of loss=mse,activation=sigmoid lowers it by {gain} percentage points" in text
    assert "Averaged over loss, activation tanh instead of sigmoid lowers it by " in text
    assert "not significant" not in text
    one = tables.summary(compare.compare_runs(load(write_run(tmp_path / "one", {("mse", "tanh"): [0.05, 0.07]}))))
    assert (
        one == "On mnist10k, the mean test error is 6.00 % (95 % interval over 2 seeds, on these images: 5.00 to 7.00)."
    )


def test_the_table_says_percent_and_fits_80_columns(tmp_path):
    printed = io.StringIO()
    comparison = compare.compare_runs([factorial(tmp_path)[0]])
    tables.print_comparison(comparison, Console(width=80, file=printed))
    text = printed.getvalue()
    assert "cross_entropy tanh" in text
    assert f"{100 * comparison.arms[0].mean:.2f}" in text
    assert "percentage points" in text
    assert max(map(len, text.splitlines())) <= 80


def test_members_that_diverged_are_in_the_table_and_the_notes(tmp_path):
    printed = io.StringIO()
    comparison = compare.compare_runs(load(write_run(tmp_path / "run", diverged=2)))
    tables.print_comparison(comparison, Console(file=printed))
    assert "diverged" in printed.getvalue()
    note, _ = [note for note in comparison.notes if " 2 diverged" in note]
    assert note.startswith(
        "of the 3 networks of loss=mse,activation=tanh, 2 diverged: its mean, differences and effects"
    )
    notes = compare.compare_runs(load(write_run(tmp_path / "all", diverged=3))).notes
    assert "all networks of loss=mse,activation=tanh diverged" in notes


def test_an_arm_that_nothing_is_compared_with_needs_no_name(tmp_path):
    one = {"errors": {(): [0.05, 0.06, 0.07]}, "names": [ONLY_ARM]}
    rows = arms.arm_statistics(load(write_run(tmp_path / "run", **one)))
    assert [row.arm for row in rows] == [ONLY_ARM]
    header, line = tables.markdown(rows, "test_error").splitlines()[::2]
    assert header == "| mean | 95 % CI | std | median | n |"
    assert line.startswith("| 6.00 | 5.00 - 7.00 |")
    several = load(write_run(tmp_path / "a", **one), write_run(tmp_path / "b", **one))
    assert tables.markdown(arms.arm_statistics(several), "test_error").startswith("| run | mean | 95 % CI ")


@pytest.mark.parametrize("written", ["rate=0.1,depth=3", "rate=0.10,depth=3.0", "rate=1e-1,depth=3"])
def test_numbers_in_an_arms_name_may_be_written_otherwise(written):
    assert arm_named(written, ["rate=0.1,depth=3", "rate=0.1,depth=4"]) == "rate=0.1,depth=3"


@pytest.mark.parametrize("written", ["rate=0.1", "rate=0.1,depth=5", "depth=3,rate=0.1", "=", ""])
def test_a_name_that_is_no_arms_stays_as_it_is(written):
    assert arm_named(written, ["rate=0.1,depth=3", "rate=0.10,depth=4", "plain"]) == written


def test_of_many_arms_a_refusal_names_the_nearest():
    names = [f"activation=tanh,learning_rate={rate},subsampling=average" for rate in range(20)]
    with pytest.raises(InputError) as refused:
        check_choice("arm", "activation=tanh,learning_rate=17", names)
    assert str(refused.value).startswith("arm: 'activation=tanh,learning_rate=17' is not one of 'activation=tanh,")
    assert "learning_rate=17,subsampling" in str(refused.value)
    assert str(refused.value).endswith(" and 16 more")


def test_the_markdown_is_a_table(tmp_path):
    lines = tables.markdown(arms.arm_statistics(load(write_run(tmp_path / "run"))), "test_error").splitlines()
    assert lines[0] == "| loss | activation | mean | 95 % CI | std | median | n |"
    assert lines[2] == "| mse | tanh | 6.00 | 5.00 - 7.00 | 1.00 | 6.00 | 3 |"


def test_several_runs_are_told_apart(tmp_path):
    folders = [write_run(tmp_path / "a" / "run"), write_run(tmp_path / "b")]
    assert [row.run for row in arms.arm_statistics(load(*folders))] == ["run", "run", "b", "b"]
    assert arms.arm_statistics(load(*folders))[2].label == "b: loss=mse,activation=tanh"


def test_runs_with_the_same_name_are_told_apart_by_path(tmp_path):
    folders = [write_run(tmp_path / "a" / "run"), write_run(tmp_path / "b" / "run")]
    assert arms.run_names(load(*folders)) == [str(folder) for folder in folders]


def test_a_run_is_not_compared_with_itself(tmp_path):
    """Under the same path, another one, through a link, or as a copy."""
    write_run(tmp_path / "run")
    files.write_json(tmp_path / "run" / run_folder.PROVENANCE, {"started": "2026-01-01T00:00:00+00:00"})
    (tmp_path / "link").symlink_to("run")
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    for other in ("run", "../" + tmp_path.name + "/run", "link", "copy"):
        with pytest.raises(InputError, match=r"^run: '.*run' and '.*' are the same run$"):
            compare.compare_runs(load(tmp_path / "run", tmp_path / other))


def test_unknown_metrics_are_refused(tmp_path):
    with pytest.raises(InputError, match="metric: 'accuracy' is not one of test_error"):
        compare.compare_runs(load(write_run(tmp_path / "run")), "accuracy")


def test_the_frames_hold_plain_numbers(tmp_path):
    comparison = compare.compare_runs(load(write_run(tmp_path / "run", ERRORS)))
    frame = tables.frame(comparison.arms, "test_error")
    assert frame["mean"].tolist() == pytest.approx([0.06, 0.04])
    assert (frame.best.tolist(), frame.worst.tolist()) == ([0.05, 0.03], [0.07, 0.06])
    speeds = tables.frame(arms.arm_statistics(comparison.runs, "samples_per_second"), "samples_per_second")
    assert (speeds.best.tolist(), speeds.worst.tolist()) == ([1000.0] * 2, [1000.0] * 2)
    expected = {"arm", "n", "mean", "std", "median", "ci95_low", "ci95_high", "best", "worst", "failed", "diverged"}
    assert expected <= set(frame.columns)
    differences = tables.judgement_frame(comparison)
    assert differences.loc[0, "mean"] == pytest.approx(-0.02)
    expected = {"kind", "name", "p", "p_corrected", "ci95_low", "ci95_high", "verdict", "improvement", "seeds_needed"}
    assert expected <= set(differences.columns)


def test_an_arm_without_the_metric_is_left_out_and_named(tmp_path):
    folder = write_run(tmp_path / "run")
    table = files.read_table(folder / run_folder.METRICS)
    files.write_table(folder / run_folder.METRICS, table[(table.loss == "mse") | (table.metric == "error")])
    comparison = compare.compare_runs([run_folder.load(folder)], "test_loss")
    assert [arm.arm for arm in comparison.arms] == ["loss=mse,activation=tanh"]
    assert "loss=cross_entropy,activation=tanh has no test loss" in comparison.notes


def test_training_errors_on_other_training_images_are_not_paired(tmp_path):
    folder = write_run(tmp_path / "run")
    summary = files.read_json(folder / run_folder.SUMMARY)
    for arm, size in zip(summary["arms"], (1000, 2000), strict=True):
        arm["dataset"] = {**summary["dataset"], "train": size}
    files.write_json(folder / run_folder.SUMMARY, summary)
    run = run_folder.load(folder)
    assert any("different images" in note for note in compare.compare_runs([run], "train_error").notes)
    assert len(compare.compare_runs([run], "test_error").judgements) == 1


def test_training_errors_on_other_labels_are_not_paired(tmp_path):
    errors = {(0.0,): [0.05, 0.07, 0.06], (0.2,): [0.25, 0.27, 0.26]}
    run = run_folder.load(write_run(tmp_path / "run", errors, axes=("label_noise",)))
    assert any("different images" in note for note in compare.compare_runs([run], "train_error").notes)
    assert len(compare.compare_runs([run]).judgements) == 1


def test_rounding_is_no_effect(tmp_path):
    """Arms that add up exactly: what is left of the interaction is the computer's."""
    errors = {("mse", "sigmoid"): 0.05, ("mse", "tanh"): 0.03, ("ce", "sigmoid"): 0.06, ("ce", "tanh"): 0.04}
    wobble = np.arange(10) / 1000
    run = run_folder.load(write_run(tmp_path / "run", {arm: error + wobble for arm, error in errors.items()}))
    interaction = compare.compare_runs([run]).judgements[-1]
    assert interaction.kind == "interaction"
    assert (interaction.mean, interaction.p, interaction.p_corrected, interaction.needed) == (0, 1, 1, None)


def test_a_tuned_run_meets_the_swept_value_that_it_chose(tmp_path):
    chosen = {("mse",): ({"learning_rate": 0.3}, [])}
    tuned = write_run(tmp_path / "tuned", {("mse",): [0.05, 0.06]}, axes=("loss",), chosen=chosen)
    errors = {("mse", 0.03): [0.05, 0.06], ("mse", 0.3): [0.07, 0.08]}
    swept = write_run(tmp_path / "swept", errors, axes=("loss", "learning_rate"))
    names = [judgement.name for judgement in compare.compare_runs(load(tuned, swept)).judgements]
    assert names == ["swept: loss=mse,learning_rate=0.3 against tuned: loss=mse"]


def test_named_arms_meet_others_by_their_fields(tmp_path):
    named = write_run(tmp_path / "named", names=["old", "new"])
    summary = files.read_json(named / run_folder.SUMMARY)
    for arm, loss in zip(summary["arms"], ("mse", "cross_entropy"), strict=True):
        arm["settings"] = {"loss": loss, "activation": "tanh"}
    files.write_json(named / run_folder.SUMMARY, summary)
    names = [judgement.name for judgement in compare.compare_runs(load(named, write_run(tmp_path / "run"))).judgements]
    assert names == [
        "run: loss=mse,activation=tanh against named: old",
        "run: loss=cross_entropy,activation=tanh against named: new",
    ]


def test_an_older_run_has_the_defaults_of_newer_fields(tmp_path):
    older = write_run(tmp_path / "older", {("mse",): [0.05, 0.06]}, axes=("loss",))
    errors = {("mse", 0.0): [0.05, 0.06], ("mse", 0.2): [0.07, 0.08]}
    newer = write_run(tmp_path / "newer", errors, axes=("loss", "label_noise"))
    names = [judgement.name for judgement in compare.compare_runs(load(older, newer)).judgements]
    assert names == ["newer: loss=mse,label_noise=0.0 against older: loss=mse"]
