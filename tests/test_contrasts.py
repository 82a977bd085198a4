"""Tests of contrasts over seeds and test images against formulas, simulations and enumerations of their own."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from absl.testing import flagsaver
from hypothesis import given, settings
from hypothesis import strategies as st
from made_runs import write_run

from lenet_jax import cli
from lenet_jax.analysis import arms, compare, contrasts, metrics, report, tables
from lenet_jax.analysis.contrasts import Wanted, judge
from lenet_jax.analysis.metrics import Scores
from lenet_jax.errors import InputError
from lenet_jax.run import folder as run_folder

LOSS, ACTIVATION = ("mse", "cross_entropy"), ("sigmoid", "tanh")
MEANS = dict(zip(itertools.product(LOSS, ACTIVATION), (0.14, 0.06, 0.136, 0.05), strict=True))
NOISE = np.random.default_rng(0).normal(0, 0.012, (4, 8))
ERRORS = {arm: mean + NOISE[index] for index, (arm, mean) in enumerate(MEANS.items())}
FIRST, SECOND = "loss=mse,activation=tanh", "loss=mse,activation=sigmoid"
"""The arms of the first difference."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A factorial study of 8 seeds and 1,000 images, with predictions, nll and brier of each image."""
    return run_folder.load(write_run(tmp_path_factory.mktemp("made") / "run", ERRORS, shared=0.9, scores=True))


@pytest.fixture(scope="module")
def compared(run):
    """(over) -> the comparison of all pairs, and effects."""
    return {over: compare.compare_runs([run], baseline="all", over=over) for over in ("both", "seeds", "images")}


def table(run, *names):
    """Errors as the rows of ``predictions.parquet`` have them: one frame [seeds, images] for each arm."""
    rows = run.predictions
    rows = rows.assign(wrong=(rows.predicted != rows.label).astype(float))
    return [rows[rows.arm == name].pivot(index="seed", columns="image", values="wrong") for name in names]


def anova(frame):
    """Mean squares of seeds, images and residuals of a frame [seeds, images], and their degrees of freedom."""
    seeds, images = frame.shape
    grand, of_seeds, of_images = frame.to_numpy().mean(), frame.mean(axis=1), frame.mean(axis=0)
    rest = frame.sub(of_seeds, axis=0).sub(of_images, axis=1) + grand
    freedom = seeds - 1, images - 1, (seeds - 1) * (images - 1)
    sums = (
        images * ((of_seeds - grand) ** 2).sum(),
        seeds * ((of_images - grand) ** 2).sum(),
        (rest**2).to_numpy().sum(),
    )
    return [one / df for one, df in zip(sums, freedom, strict=True)], freedom


def interval_over_both(frame, over="both"):
    """Interval of a frame's mean over seeds and images, or images alone; its standard error and degrees of freedom.

    The variance is MS(seeds) + MS(images) - MS(rest), at least MS(rest), over seeds x images. The variance of
    MS(images) follows from the fourth moment of the images' means, that of MS(seeds) from a normal distribution.
    """
    squares, (free_seeds, _, _) = anova(frame)
    of_seeds, of_images, rest = (square / frame.size for square in squares)
    by_image = frame.mean(axis=0)
    unsure = (scipy.stats.moment(by_image, 4) - scipy.stats.moment(by_image, 2) ** 2) / len(by_image) ** 3 / 2
    variance = of_images
    if over == "both":
        variance = max(of_seeds + max(of_images - rest, 0), rest)
        unsure += of_seeds**2 / free_seeds
    df, mean = variance**2 / unsure, frame.to_numpy().mean()
    reach = scipy.stats.t.ppf(0.975, df) * math.sqrt(variance)
    return (mean - reach, mean + reach), math.sqrt(variance), df


def differences_of(run):
    first, second = table(run, FIRST, SECOND)
    return first - second


def differences_in(comparison):
    return {one.name: one for one in comparison.of_kind("difference")}


# Intervals.


def test_intervals_over_both_seeds_and_images_are_each_their_formula(run, compared):
    frame = differences_of(run)
    of_seeds = scipy.stats.ttest_1samp(frame.mean(axis=1), 0).confidence_interval()
    of_images, _, _ = interval_over_both(frame, "images")
    both, se, df = interval_over_both(frame)
    expected = {"both": both, "seeds": tuple(of_seeds), "images": of_images}
    for over, ends in expected.items():
        found = differences_in(compared[over])[f"{FIRST} against {SECOND}"]
        assert found.estimate.interval() == pytest.approx(ends, rel=1e-9), over
        assert found.seeds_interval == pytest.approx(tuple(of_seeds), rel=1e-9)
        assert found.mean == pytest.approx(frame.to_numpy().mean())
    assert (found := differences_in(compared["both"])[f"{FIRST} against {SECOND}"]).estimate.se == pytest.approx(se)
    assert found.estimate.df == pytest.approx(df)
    assert found.estimate.p == pytest.approx(2 * scipy.stats.t.sf(abs(found.mean) / se, df))
    assert found.estimate.se_seeds == pytest.approx(scipy.stats.sem(frame.mean(axis=1)))
    assert found.estimate.se_images == pytest.approx(scipy.stats.sem(frame.mean(axis=0)))


def test_variances_below_those_of_residuals_are_taken_as_equal_to_them():
    """Every network errs on 30 images: seeds vary less than chance would have it, and images no more."""
    rng = np.random.default_rng(0)
    wrong = {name: rng.permuted(np.tile(np.arange(200) < 30, (6, 1)), axis=1) for name in "ab"}
    scores = {name: Scores(np.arange(6), np.arange(200), values) for name, values in wrong.items()}
    series = {name: pd.Series(values.mean(axis=1)) for name, values in wrong.items()}
    (found,) = judge([Wanted("difference", "", "", {"a": 1.0, "b": -1.0}, tuple(range(6)))], series, scores)
    frame = pd.DataFrame(wrong["a"].astype(float) - wrong["b"])
    (of_seeds, _, rest), _ = anova(frame)
    assert of_seeds < rest
    assert found.estimate.se == pytest.approx(math.sqrt(rest / frame.size))
    assert found.estimate.interval() == pytest.approx(interval_over_both(frame)[0])


def test_effects_have_the_formulas_of_their_weighted_sums(run, compared):
    """The interaction of axes that go from the first to the second value."""
    names = [f"loss={loss},activation={activation}" for loss, activation in ERRORS]
    frames = table(run, *names)
    expected = {
        "main effect": (frames[2] + frames[3] - frames[0] - frames[1]) / 2,
        "interaction": frames[3] - frames[2] - frames[1] + frames[0],
    }
    for kind, frame in expected.items():
        found = compared["both"].of_kind(kind)[0]
        assert found.estimate.interval() == pytest.approx(interval_over_both(frame)[0], rel=1e-9)


def test_an_arms_interval_is_students_on_the_logit_scale(run, compared):
    """And both parts together are wider than either."""
    for arm, frame in zip(compared["both"].arms, table(run, *[arm.arm for arm in compared["both"].arms]), strict=True):
        mean, (_, se, df) = frame.to_numpy().mean(), interval_over_both(frame)
        ends = scipy.special.logit(mean) + scipy.stats.t.ppf([0.025, 0.975], df) * se / (mean * (1 - mean))
        assert arm.interval == pytest.approx(tuple(scipy.special.expit(ends)), rel=1e-9)
        assert arm.mean == pytest.approx(mean)
        assert arm.ci95 == pytest.approx(arms.arm_statistics([run], over="seeds")[0].ci95) or arm.arm != SECOND
    widths = {over: [np.ptp(arm.interval) for arm in compared[over].arms] for over in compared}
    assert all(both > max(seeds, images) for both, seeds, images in zip(*widths.values(), strict=True))


def test_without_predictions_intervals_cover_these_images_only(tmp_path):
    run = run_folder.load(write_run(tmp_path / "run", ERRORS))
    comparison = compare.compare_runs([run])
    assert comparison.over == "seeds"
    note = f"intervals and tests cover new seeds on these images only: '{run.folder}' stored no predictions"
    assert any(one.startswith(note) for one in comparison.notes)
    assert not any("these images only" in one for one in compare.compare_runs([run], over="seeds").notes)
    frame = tables.frame(comparison.arms, "test_error")
    assert frame.ci95_low.tolist() == frame.seeds_low.tolist()
    assert frame.se_images.isna().all()
    with pytest.raises(InputError, match=r"^over: 'images' needs answers to single images; '.*' stored no predictions"):
        compare.compare_runs([run], over="images")


def test_one_run_without_predictions_is_enough_for_the_note(run, tmp_path):
    """Two runs are compared on seeds alone unless both stored predictions."""
    folders = [write_run(tmp_path / name, ERRORS, shared=shared) for name, shared in (("new", 0.7), ("old", None))]
    new, old = map(run_folder.load, folders)
    without = compare.compare_runs([new, old])
    assert without.over == "seeds"
    assert any("these images only" in note and "old" in note for note in without.notes)
    other = run_folder.load(write_run(tmp_path / "other", {arm: np.flip(of) for arm, of in ERRORS.items()}, shared=0.7))
    both = compare.compare_runs([new, other])
    assert both.over == "both"
    (first,), (second,) = table(other, FIRST), table(new, FIRST)
    found = differences_in(both)[f"other: {FIRST} against new: {FIRST}"]
    assert found.estimate.interval() == pytest.approx(interval_over_both(first - second)[0], rel=1e-9)


@pytest.mark.parametrize("metric", ["test_error_class_3", "test_nll", "test_brier"])
def test_other_metrics_of_images_have_both_parts(run, metric):
    comparison = compare.compare_runs([run], metric)
    assert comparison.over == "both"
    rows = run.predictions
    if metric.startswith("test_error"):
        rows = rows[rows.label == 3].assign(value=lambda rows: (rows.predicted != rows.label).astype(float))
    else:
        rows = rows.assign(value=rows[metric.removeprefix("test_")])
    first, second = (
        rows[rows.arm == name].pivot(index="seed", columns="image", values="value").astype(float)
        for name in (FIRST, SECOND)
    )
    found = differences_in(comparison)[f"{FIRST} against {SECOND}"]
    assert found.estimate.interval() == pytest.approx(interval_over_both(first - second)[0], rel=1e-4)
    assert comparison.arms[0].images == first.shape[1]


def test_one_network_an_arm_is_compared_over_images(tmp_path):
    errors = {arm: of[:1] for arm, of in ERRORS.items()}
    run = run_folder.load(write_run(tmp_path / "run", errors, shared=0.7))
    comparison = compare.compare_runs([run], over="images")
    frame = differences_of(run)
    found = comparison.judgements[0]
    one, se = frame.iloc[0], scipy.stats.sem(frame.iloc[0])
    df = se**4 / ((scipy.stats.moment(one, 4) - scipy.stats.moment(one, 2) ** 2) / len(one) ** 3 / 2)
    ends = one.mean() + scipy.stats.t.ppf([0.025, 0.975], df) * se
    assert found.estimate.interval() == pytest.approx(tuple(ends))
    assert found.p == pytest.approx(2 * scipy.stats.t.sf(abs(found.mean) / se, df))
    assert np.isnan(found.estimate.se_seeds)
    assert len(comparison.judgements) == 3 + 3
    default = compare.compare_runs([run])  # with a single seed, both are images alone
    assert default.over == "images"
    assert default.judgements[0].estimate.interval() == found.estimate.interval()
    assert "interval over 1 seeds" not in tables.summary(default)
    seeds = compare.compare_runs([run], over="seeds")
    assert not seeds.judgements
    assert any("only one common seed (--over=images compares its networks)" in note for note in seeds.notes)
    report.html(comparison, {}, {}, "", None)  # nothing of it needs a second seed
    tables.judgement_frame(comparison)


def test_columns_of_the_files_are_the_headline_and_its_parts(run, compared):
    comparison = compared["both"]
    found = tables.judgement_frame(comparison).set_index("name").loc[f"{FIRST} against {SECOND}"]
    frame = differences_of(run)
    assert (found.ci95_low, found.ci95_high) == pytest.approx(interval_over_both(frame)[0], rel=1e-9)
    of_seeds = scipy.stats.ttest_1samp(frame.mean(axis=1), 0).confidence_interval()
    assert (found.seeds_low, found.seeds_high) == pytest.approx(tuple(of_seeds))
    assert found.se_seeds == pytest.approx(scipy.stats.sem(frame.mean(axis=1)))
    assert found.se_images == pytest.approx(scipy.stats.sem(frame.mean(axis=0)))
    of_arms = tables.frame(comparison.arms, "test_error").set_index("arm").loc[FIRST]
    (frame,) = table(run, FIRST)
    arm = next(arm for arm in comparison.arms if arm.arm == FIRST)
    assert (of_arms.ci95_low, of_arms.ci95_high) == arm.interval
    assert (of_arms.seeds_low, of_arms.seeds_high) == arm.ci95
    assert of_arms.se_seeds == pytest.approx(scipy.stats.sem(frame.mean(axis=1)))
    assert of_arms.se_images == pytest.approx(scipy.stats.sem(frame.mean(axis=0)))
    assert (of_arms.over, of_arms.images) == ("both", 1000)


# Many tests.


def step_down(differences):
    """Corrected p-values of differences [contrasts, seeds]: all flips of signs, the largest t of what is left."""
    flips = np.array(list(itertools.product((1, -1), repeat=differences.shape[1])))

    def t(values):
        spread = values.std(axis=-1, ddof=1)
        return np.abs(values.mean(axis=-1)) / np.maximum(spread, 1e-15)

    observed, drawn = t(differences), t(flips[:, None, :] * differences)
    left, last, found = list(np.argsort(-observed)), 0.0, np.zeros(len(observed))
    while left:
        first = left[0]
        last = max(last, np.mean(drawn[:, left].max(axis=1) >= observed[first] * (1 - 1e-9)))
        found[first] = last
        left.pop(0)
    return found


def test_p_over_seeds_is_an_enumeration_of_all_flips():
    noise = np.random.default_rng(1).normal(0, 1, (3, 8))
    values = {"a": noise[0], "b": noise[1] + 0.9, "c": noise[2] + 0.3}
    series = {name: pd.Series(row) for name, row in values.items()}
    pairs = [("b", "a"), ("c", "a"), ("b", "c")]
    wanted = [
        Wanted("difference", f"{one}{other}", "", {one: 1.0, other: -1.0}, tuple(range(8))) for one, other in pairs
    ]
    found = judge(wanted, series, {}, "seeds")
    expected = step_down(np.array([values[one] - values[other] for one, other in pairs]))
    assert [one.p_corrected for one in found] == pytest.approx(expected.tolist())
    assert 0.01 < min(expected) < max(expected) < 1


def test_six_comparisons_of_eight_seeds_reach_the_floor_that_one_has(tmp_path):
    """Holm's method made it 6 x 2 / 2^8 = 0.047; it is printed as a bound."""
    errors = {(str(arm),): 0.1 - 0.01 * arm + NOISE[0] * (1 + arm % 2 / 10) for arm in range(7)}
    run = run_folder.load(write_run(tmp_path / "run", errors, axes=("loss",), shared=0.7))
    comparison = compare.compare_runs([run], over="seeds")
    assert [one.p_corrected for one in comparison.judgements] == [2 / 2**8] * 6
    header, lines, _ = tables.judgement_cells(comparison)
    assert [line[header.index("p (max-T)")] for line in lines] == ["<= 0.0078"] * 6
    assert "p <= 0.0078" in tables.summary(comparison)
    both = compare.compare_runs([run])
    assert not any(text.startswith("<=") for line in tables.judgement_cells(both)[1] for text in line)


def test_comparisons_of_different_seeds_are_corrected_together(tmp_path):
    """Two groups of common seeds, which max-T tests apart: the p-values of each are doubled (Bonferroni)."""
    first = {(name,): 0 for name in ("a", "b")} | {(name,): 3 for name in ("c", "d")}
    errors = {(name,): 0.05 - 0.004 * index + NOISE[index] for index, (name,) in enumerate(first)}
    run = run_folder.load(write_run(tmp_path / "run", errors, axes=("loss",), first_seed=first, shared=0.7))
    found = compare.compare_runs([run], over="seeds").judgements
    assert [one.n for one in found] == [8, 5, 5]
    arms = [run.answers[f"loss={name}"].wrong.mean(axis=1) for (name,) in first]
    own = [step_down(np.array([arms[1] - arms[0]])), step_down(np.array([one[:5] - arms[0][3:] for one in arms[2:]]))]
    assert [one.p_corrected for one in found] == pytest.approx(np.minimum(2 * np.concatenate(own), 1).tolist())
    for over in ("both", "images"):
        found = compare.compare_runs([run], over=over).judgements
        assert all(one.p_corrected >= min(2 * one.p, 1) for one in found)


def test_corrected_p_values_over_images_are_not_below_those_of_single_tests(compared):
    for over in ("both", "images"):
        assert all(one.p_corrected >= one.p for one in compared[over].judgements)


# Verdicts.


MARGIN = 0.02


@pytest.fixture(scope="module")
def judged(run):
    """With a margin of 2 points: the differences are about 4, 0.4, 5, 3.6, 1 and 4.6 points."""
    return compare.compare_runs([run], baseline="all", margin=MARGIN)


def test_chances_are_students_and_sum_to_one(judged):
    for one in judged.judgements:
        t = scipy.stats.t(one.estimate.df, one.mean, one.estimate.se)
        expected = t.cdf(-MARGIN), t.cdf(MARGIN) - t.cdf(-MARGIN), t.sf(MARGIN)
        assert one.chances == pytest.approx(expected, abs=1e-12)
        assert sum(one.chances) == pytest.approx(1)


def test_a_verdict_is_two_one_sided_tests_or_the_corrected_p_value(judged):
    seen = set()
    for one in judged.judgements:
        t = scipy.stats.t(one.estimate.df, one.mean, one.estimate.se)
        if max(t.cdf(-MARGIN), t.sf(MARGIN)) < 0.05:  # both one-sided tests reject a difference beyond the margin
            expected = "equivalent"
        elif one.p_corrected >= 0.05:
            expected = "undecided"
        else:
            expected = "present" if one.kind == "interaction" else "better" if one.mean < 0 else "worse"
        assert one.verdict(True) == expected
        seen.add(expected)
    assert seen >= {"equivalent", "better"}
    names = differences_in(judged)
    assert names[f"{FIRST} against {SECOND}"].verdict(True) == "better"
    assert names[f"{FIRST} against {SECOND}"].verdict(False) == "worse"  # of a speed
    assert names[f"loss=cross_entropy,activation=sigmoid against {SECOND}"].verdict(True) == "equivalent"


def test_without_a_margin_nothing_is_equivalent(compared):
    verdicts = {one.verdict(True) for one in compared["both"].judgements}
    assert "equivalent" not in verdicts
    assert verdicts >= {"better", "undecided"}
    assert "P(equivalent)" not in tables.judgement_cells(compared["both"])[0]


def test_a_present_interaction_has_no_better_side(tmp_path):
    errors = {arm: 0.1 + 0.05 * (arm == ("cross_entropy", "tanh")) + NOISE[i] for i, arm in enumerate(ERRORS)}
    run = run_folder.load(write_run(tmp_path / "run", errors, shared=0.7))
    comparison = compare.compare_runs([run], margin=0.001)
    (found,) = comparison.of_kind("interaction")
    assert found.verdict(True) == found.verdict(False) == "present"
    header, lines, _ = tables.judgement_cells(comparison)
    line = dict(zip(header, lines[-1], strict=True))
    assert (line["P(better)"], line["P(worse)"]) == ("-", "-")
    assert float(line["P(equivalent)"]) < 0.01


def test_verdicts_are_in_tables_files_and_page(judged, tmp_path):
    frame = tables.judgement_frame(judged)
    assert frame.verdict.tolist() == [one.verdict(True) for one in judged.judgements]
    assert frame[["p_better", "p_equivalent", "p_worse"]].sum(axis=1).tolist() == pytest.approx([1] * len(frame))
    better = frame[frame.verdict == "better"]
    assert (better.p_better > 0.9).all()
    header, lines, _ = tables.judgement_cells(judged)
    assert [line[header.index("verdict")] for line in lines] == frame.verdict.tolist()


@pytest.mark.parametrize(
    ("text", "metric", "scale", "expected"),
    [
        ("0.1", "test_error", "points", 0.001),
        (" 0.1 points ", "test_error", "points", 0.001),
        ("1e-1", "test_error_class_3", "points", 0.001),
        ("0.1", "test_nll", "points", 0.1),
        ("2 s", "seconds", "points", 2.0),
        ("3 epochs", "epochs_to_0.02", "points", 3.0),
        ("1.25", "test_error", "ratio", math.log(1.25)),
        ("2", "test_error", "logit", math.log(2)),
    ],
)
def test_a_margin_has_the_unit_of_its_scale(text, metric, scale, expected):
    assert contrasts.read_difference(text, metric, scale, "margin") == pytest.approx(expected)


BAD_MARGINS = [
    ("-0.1", "test_error", "points", "margin: '-0.1'; allowed is a number above 0 (points)"),
    ("0", "test_error", "points", "margin: '0'; allowed is a number above 0 (points)"),
    ("much", "test_error", "points", "margin: 'much'; allowed is a number above 0 (points)"),
    ("", "test_error", "points", "margin: ''; allowed is a number above 0 (points)"),
    ("nan", "test_nll", "points", "margin: 'nan'; allowed is a number above 0"),
    ("1e999", "test_nll", "points", "margin: '1e999'; allowed is a number above 0"),
    (
        "0.1 s",
        "test_error",
        "points",
        "margin: '0.1 s' has the unit 's'; allowed for test_error on this scale: 'points'",
    ),
    (
        "0.1 %",
        "test_error",
        "points",
        "margin: '0.1 %' has the unit '%'; allowed for test_error on this scale: 'points'",
    ),
    (
        "0.1 points",
        "seconds",
        "points",
        "margin: '0.1 points' has the unit 'points'; allowed for seconds on this scale: 's'",
    ),
    (
        "0.1 points",
        "test_nll",
        "points",
        "margin: '0.1 points' has the unit 'points'; allowed for test_nll on this scale: no",
    ),
    ("0.9", "test_error", "ratio", "margin: '0.9'; allowed is a number above 1"),
    ("1.1 points", "test_error", "ratio", "margin: '1.1 points' has the unit 'points'; allowed for test_error on this"),
]


@pytest.mark.parametrize(("text", "metric", "scale", "said"), BAD_MARGINS)
def test_a_bad_margin_is_refused(text, metric, scale, said):
    with pytest.raises(InputError) as refused:
        contrasts.read_difference(text, metric, scale, "margin")
    assert str(refused.value).startswith(said)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--margin=-1"],
        ["--margin=0.1 s"],
        ["--margin=nan"],
        ["--over=all"],
        ["--scale=percent"],
        ["--margin=1", "--scale=ratio"],
    ],
)
def test_bad_flags_end_with_one_line_and_nothing_written(run, tmp_path, capsys, arguments):
    before = sorted(run.folder.rglob("*"))
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as ended:
        cli.main(["compare", str(run.folder), f"--out={tmp_path / 'out'}", *arguments])
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert arguments[0].removeprefix("--").partition("=")[0] + ":" in said.err
    assert not (tmp_path / "out").exists()
    assert sorted(run.folder.rglob("*")) == before


# Other scales.


SLOPES = {
    "ratio": (np.log, lambda mean: 1 / mean),
    "logit": (lambda mean: np.log(mean / (1 - mean)), lambda mean: 1 / (mean * (1 - mean))),
}


@pytest.mark.parametrize("scale", SLOPES)
def test_a_scale_is_the_delta_method(run, scale):
    """The difference of f(means) has the variance of the table f'(mean 1) table 1 - f'(mean 2) table 2."""
    of, slope = SLOPES[scale]
    first, second = table(run, FIRST, SECOND)
    means = [frame.to_numpy().mean() for frame in (first, second)]
    _, se, df = interval_over_both(slope(means[0]) * first - slope(means[1]) * second)
    center = of(means[0]) - of(means[1])
    comparison = compare.compare_runs([run], scale=scale, margin=math.log(1.2))
    found = comparison.judgements[0]
    assert (found.mean, found.estimate.se, found.estimate.df) == pytest.approx((center, se, df), rel=1e-9)
    ends = np.exp(center + scipy.stats.t.ppf([0.025, 0.975], df) * se)
    row = tables.judgement_frame(comparison).iloc[0]
    assert (row["mean"], row.ci95_low, row.ci95_high) == pytest.approx((math.exp(center), *ends), rel=1e-9)
    cells = dict(zip(tables.judgement_cells(comparison)[0], tables.judgement_cells(comparison)[1][0], strict=True))
    assert cells["ratio"] == f"{math.exp(center):.2f}"
    assert cells["95 % CI"] == f"{ends[0]:.2f} to {ends[1]:.2f}"
    word = {"ratio": "multiplies it by", "logit": "multiplies its odds by"}[scale]
    assert f"activation=tanh instead of {SECOND} {word} 0." in tables.summary(comparison)
    assert found.verdict(True) == "better"
    equal = differences_in(comparison)[f"loss=cross_entropy,activation=sigmoid against {SECOND}"]
    t = scipy.stats.t(equal.estimate.df, equal.mean, equal.estimate.se)
    assert equal.chances[1] == pytest.approx(t.cdf(math.log(1.2)) - t.cdf(-math.log(1.2)))


@pytest.mark.parametrize("scale", SLOPES)
def test_a_scales_standard_error_is_that_of_simulated_studies(scale):
    """2,000 studies of two arms of 10 seeds and 400 images with known variances; their spread is known within 1.6 %."""
    rng = np.random.default_rng(0)
    of, _ = SLOPES[scale]
    seeds, images, studies = 10, 400, 2000
    shared = rng.normal(0, 0.3, (studies, 1, images))
    means, spread, made = (0.3, 0.2), (0.02, 0.01), []
    of_arms = []
    for mean, std in zip(means, spread, strict=True):
        of_seeds = rng.normal(0, std, (studies, seeds, 1))
        of_images, noise = (
            rng.normal(0, 0.2, (studies, images)),
            rng.normal(0, 0.3 / math.sqrt(seeds), (studies, images)),
        )
        of_arms.append(mean + of_seeds.mean(axis=(1, 2)) + (shared[:, 0] + of_images + noise).mean(axis=1))
        if not made:
            first = mean + of_seeds[0] + shared[0] + of_images[0] + rng.normal(0, 0.3, (seeds, images))
        made.append(
            first if not made else mean + of_seeds[0] + shared[0] + of_images[0] + rng.normal(0, 0.3, (seeds, images))
        )
    measured = np.std(of(of_arms[0]) - of(of_arms[1]))
    tables_of = dict(zip("ab", made, strict=True))
    scores = {name: Scores(np.arange(seeds), np.arange(images), values) for name, values in tables_of.items()}
    series = {name: pd.Series(values.mean(axis=1)) for name, values in tables_of.items()}
    wanted = [Wanted("difference", "a against b", "", {"a": 1.0, "b": -1.0}, tuple(range(seeds)))]
    (found,) = judge(wanted, series, scores, "both", scale)
    assert found.estimate.se == pytest.approx(measured, rel=0.15)  # estimated from one study


def test_an_arm_without_errors_has_no_ratio(tmp_path):
    errors = {("mse", "tanh"): [0.05, 0.06, 0.07], ("cross_entropy", "tanh"): [0.0, 0.0, 0.0]}
    run = run_folder.load(write_run(tmp_path / "run", errors, shared=0.7))
    for scale, allowed in (("ratio", "means above 0"), ("logit", "errors between 0 and 1")):
        said = f"scale: '{scale}' needs {allowed}, but loss=cross_entropy,activation=tanh has the mean 0; use "
        with pytest.raises(InputError, match=f"^{said}"):
            compare.compare_runs([run], scale=scale)
    arm = compare.compare_runs([run]).arms[1]
    low, high = scipy.stats.binomtest(0, 1000).proportion_ci(0.95)  # Clopper and Pearson's
    assert arm.interval == pytest.approx((low, high))


# Networks at chance.


def test_networks_that_failed_are_counted_and_told(tmp_path):
    errors = {("mse", "tanh"): [0.05, 0.9, 0.06, 0.9, 0.07], ("cross_entropy", "tanh"): [0.05, 0.06, 0.05, 0.06, 0.44]}
    run = run_folder.load(write_run(tmp_path / "run", errors, shared=0.7))
    comparison = compare.compare_runs([run])
    assert [arm.failed for arm in comparison.arms] == [2, 0]  # half of chance is 0.45
    header, lines, _ = tables.cells(comparison.arms, "test_error")
    assert [line[header.index("failed")] for line in lines] == ["2", "0"]
    assert [line[header.index("median")] for line in lines] == ["7.00", "6.00"]
    (note,) = [note for note in comparison.notes if "failed" in note]
    assert note.startswith(
        "of the 5 networks of loss=mse,activation=tanh, 2 failed (test error above 50 % of a guess's)"
    )
    assert note.endswith("the median is 7.00 %")
    assert tables.frame(comparison.arms, "test_error").failed.tolist() == [2, 0]
    fine = compare.compare_runs([run_folder.load(write_run(tmp_path / "fine", shared=0.7))])
    assert "failed" not in tables.cells(fine.arms, "test_error")[0]


# What a larger study would show.


def power_of(layout_variances, seeds, images, difference, level):
    """Power of a two-sided z-test with variances of seeds, images and residuals."""
    of_seeds, of_images, rest = layout_variances
    se = math.sqrt(of_seeds / seeds + of_images / images + rest / (seeds * images))
    z = scipy.stats.norm.isf(level / 2)
    return scipy.stats.norm.sf(z - abs(difference) / se)


def variances(frame):
    (of_seeds, of_images, rest), _ = anova(frame)
    seeds, images = frame.shape
    return max((of_seeds - rest) / images, 0), max((of_images - rest) / seeds, 0), rest


def test_needed_numbers_have_80_percent_power_in_the_variance_formula(run):
    difference = 0.025
    comparison = compare.compare_runs([run], difference=difference)
    found, level = comparison.judgements[0], 0.05 / len(comparison.judgements)
    parts = variances(differences_of(run))
    seeds, images, both = found.needed
    for pair in ((8, images), (seeds, 1000), both):
        assert power_of(parts, *pair, difference, level) >= 0.8 - 1e-9
    for pair in ((8, images - 1), (seeds - 1, 1000), (both[0] - 1, both[1] - 100)):
        assert power_of(parts, *pair, difference, level) < 0.8
    assert both[0] / both[1] == pytest.approx(8 / 1000, rel=1 / both[0])  # both grow alike, to whole seeds


def test_more_seeds_do_not_help_where_images_vary(tmp_path):
    """Both arms' networks agree among each other, and differ by single images."""
    errors = {("mse", "tanh"): np.full(6, 0.06), ("cross_entropy", "tanh"): np.full(6, 0.045)}
    run = run_folder.load(write_run(tmp_path / "run", errors, shared=0.3))
    rows = run.answers
    for one in rows.values():  # all seeds answer as the first
        one.predicted[:] = one.predicted[0]
    comparison = compare.compare_runs([run])
    found = comparison.judgements[0]
    assert found.needed.seeds is None
    assert found.needed.images > 1000
    assert any("(more seeds alone do not suffice)" in note for note in comparison.notes)


def test_more_images_do_not_help_where_seeds_vary():
    rng = np.random.default_rng(0)
    values = {name: 0.5 + rng.normal(0, 0.05, (6, 1)) + rng.normal(0, 0.01, (6, 500)) for name in "ab"}
    scores = {name: Scores(np.arange(6), np.arange(500), value) for name, value in values.items()}
    series = {name: pd.Series(value.mean(axis=1)) for name, value in values.items()}
    wanted = [Wanted("difference", "a against b", "", {"a": 1.0, "b": -1.0}, tuple(range(6)))]
    (found,) = judge(wanted, series, scores, difference=0.03)
    assert found.needed.images is None
    assert found.needed.seeds > 6
    parts, seeds = variances(pd.DataFrame(values["a"] - values["b"])), found.needed.seeds
    assert power_of(parts, seeds - 1, 500, 0.03, 0.05) < 0.8 <= power_of(parts, seeds, 500, 0.03, 0.05)


def test_four_seeds_advise_nothing(tmp_path):
    run = run_folder.load(write_run(tmp_path / "run", {arm: of[:4] for arm, of in ERRORS.items()}, shared=0.7))
    comparison = compare.compare_runs([run], difference=0.001)
    assert all(one.needed is None and one.detectable == {} for one in comparison.judgements)
    assert not any("80 %" in note for note in comparison.notes)


def test_detectable_differences_are_shown_by_80_percent(run, compared):
    found = differences_in(compared["both"])[f"{FIRST} against {SECOND}"]
    parts, level = variances(differences_of(run)), 0.05 / len(compared["both"].judgements)
    sizes = {"8 seeds, 1,000 images": (8, 1000), "32 seeds, 1,000 images": (32, 1000)}
    sizes |= {"8 seeds, 4,000 images": (8, 4000), "32 seeds, 4,000 images": (32, 4000)}
    assert list(found.detectable) == list(sizes)
    for name, size in sizes.items():
        assert power_of(parts, *size, found.detectable[name], level) == pytest.approx(0.8, abs=1e-6)


# Symmetry.


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.integers(2, 30), st.sampled_from(["points", "ratio", "logit"]))
def test_swapping_two_arms_mirrors_everything(seed, seeds, images, scale):
    rng = np.random.default_rng(seed)
    made = {name: rng.uniform(size=(seeds, images)) < rng.uniform(0.2, 0.8) for name in "ab"}
    for wrong in made.values():
        wrong[0, :2] = [True, False]  # some errors, and not only errors
    scores = {name: Scores(np.arange(seeds), np.arange(images), wrong) for name, wrong in made.items()}
    series = {name: pd.Series(wrong.mean(axis=1)) for name, wrong in made.items()}
    wanted = [[Wanted("difference", "", "", {a: 1.0, b: -1.0}, tuple(range(seeds)))] for a, b in ("ab", "ba")]
    for over in ("both", "seeds", "images"):
        (there,), (back,) = (judge(one, series, scores, over, scale, 0.05) for one in wanted)
        assert back.mean == pytest.approx(-there.mean, abs=1e-12)
        assert back.estimate.se == pytest.approx(there.estimate.se, abs=1e-12)
        assert back.estimate.interval() == pytest.approx(
            tuple(-end for end in there.estimate.interval()[::-1]), abs=1e-9
        )
        assert back.seeds_interval == pytest.approx(tuple(-end for end in there.seeds_interval[::-1]), abs=1e-9)
        assert back.p == pytest.approx(there.p, abs=1e-9)
        chance = 0 if over == "seeds" else 5 * math.sqrt(there.p_corrected * (1 - there.p_corrected) / 5000)
        assert back.p_corrected == pytest.approx(there.p_corrected, abs=1e-9 + chance)  # random, over images
        assert back.chances == pytest.approx(there.chances[::-1], abs=1e-9)
        assert back.equivalent == there.equivalent
        assert back.improvement[0] == pytest.approx(1 - there.improvement[0])
        assert back.improvement[1:] == pytest.approx([1 - end for end in there.improvement[:0:-1]], abs=1e-6)
        if there.significant and back.significant:
            assert {back.verdict(True), there.verdict(True)} in ({"better", "worse"}, {"equivalent"})
        assert back.needed == there.needed


def test_captions_say_the_margin_and_the_unit_of_a_difference_is_that_of_the_margin(run):
    comparison = compare.compare_runs([run], margin=contrasts.read_difference("0.5", "test_error", "points", "margin"))
    assert tables.differences_title(comparison).endswith("; margin 0.50 percentage points")
    ratios = compare.compare_runs([run], scale="ratio", margin=math.log(1.1))
    assert tables.differences_title(ratios).endswith("; SE of the logarithm; margin 1.10")
    with pytest.raises(InputError, match=r"^difference: '-1'; allowed is a number above 0 \(points\)$"):
        contrasts.read_difference("-1", "test_error", "points", "difference")


def test_predictions_of_other_seeds_or_images_are_not_paired(run):
    """Neither of a run folder, nor of answers that a caller makes."""
    first, second, *_ = scores = metrics.per_image(run, "test_error")
    shifted = {**scores, second: scores[second]._replace(seeds=scores[second].seeds + 100)}
    other = {**scores, second: scores[second]._replace(images=scores[second].images + 1)}
    for wrong in (shifted, other):
        with pytest.raises(InputError, match="other test images or seeds"):
            contrasts.check_images(wrong, scores[first].seeds.tolist())
    contrasts.check_images(scores, scores[first].seeds.tolist())
