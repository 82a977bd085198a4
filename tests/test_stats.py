"""The statistics against SciPy, statsmodels, textbooks and explicit enumeration; and what is stored about them."""

import dataclasses
import itertools
import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from statsmodels.regression.linear_model import OLS

from lenet_jax import stats
from lenet_jax.crossed import Layout

ROOT = Path(__file__).parents[1]
STORED = ROOT / "experiments" / "results" / "coverage"

# Fisher (1935, "The Design of Experiments"): Darwin's cross- minus self-fertilized maize, eighths of an inch.
DARWIN = np.array([49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48], float)


def enumerated_p(values, places=9):
    """Share of all 2^n flips of signs whose sum lies as far from 0 as the observed one, for decimal numbers."""
    signs = np.array(list(itertools.product((1, -1), repeat=len(values))))
    sums = np.abs(np.round(signs @ np.asarray(values, float), places))
    return np.mean(sums >= sums[0])


# Summaries and intervals of a mean.


def test_summary_of_values_known_by_hand():
    summary = stats.summarize([0.1, 0.2, 0.6])
    assert summary.mean == pytest.approx(0.3)
    assert summary.median == 0.2
    assert summary.std == pytest.approx(math.sqrt(0.07))
    assert summary.per_seed == (0.1, 0.2, 0.6)
    low, high = summary.ci95
    assert 0.1 <= low < 0.3 < high <= 0.6


def test_diverged_values_become_null_in_json():
    summary = dataclasses.asdict(stats.summarize([0.1, float("nan")]))
    assert json.loads(json.dumps(summary, allow_nan=False)) == {
        "mean": None,
        "std": None,
        "median": None,
        "ci95": None,
        "per_seed": [0.1, None],
    }


# The level in closed form. t_0.975 is 12.706 with one degree of freedom, tan(0.475 pi); with two,
# 0.95 sqrt(2 / (1 - 0.95^2)) = 4.303; with four, as tables have it, 2.776. Phi(-x) = erfc(x / sqrt 2) / 2.
@pytest.mark.parametrize(
    ("n", "t"),
    [(2, math.tan(0.475 * math.pi)), (3, 0.95 * math.sqrt(2 / (1 - 0.95**2))), (5, 2.7764451), (30, 2.04523)],
)
def test_interval_is_scipys_bca_at_hesterbergs_level(n, t):
    values = np.random.default_rng(n).lognormal(size=n)
    tail = max(math.erfc(math.sqrt(n / (n - 1)) * t / math.sqrt(2)) / 2, 0.5 / stats.RESAMPLES)
    reference = scipy.stats.bootstrap(
        (values,), np.mean, method="BCa", confidence_level=1 - 2 * tail, n_resamples=9999, rng=0
    )
    assert stats.bootstrap_interval(values) == pytest.approx(tuple(reference.confidence_interval), rel=1e-6)


@pytest.mark.parametrize("n", [2, 7, 40, 2000])  # the last in several blocks of resamples
def test_resamples_and_levels_are_scipys(n):
    values = np.random.default_rng(n).lognormal(size=n)
    means = stats.resampled_means(values)
    reference = scipy.stats.bootstrap((values,), np.mean, confidence_level=0.9, n_resamples=9999, batch=5000, rng=0)
    np.testing.assert_allclose(means, reference.bootstrap_distribution, rtol=1e-12)
    ends = np.quantile(means, stats.bca_levels(values, means, 0.05))
    np.testing.assert_allclose(ends, reference.confidence_interval, rtol=1e-12)


def test_interval_of_many_values_is_hardly_expanded():
    values = np.random.default_rng(0).normal(size=300)
    plain = scipy.stats.bootstrap((values,), np.mean, confidence_level=0.95, n_resamples=9999, rng=0)
    assert stats.bootstrap_interval(values) == pytest.approx(tuple(plain.confidence_interval), abs=0.005)


def test_interval_is_wider_than_plain_bca_of_few_values():
    values = np.random.default_rng(0).normal(size=8)
    plain = scipy.stats.bootstrap((values,), np.mean, confidence_level=0.95, n_resamples=9999, rng=0)
    low, high = stats.bootstrap_interval(values)
    assert low < plain.confidence_interval.low < plain.confidence_interval.high < high


def test_interval_is_the_same_every_time():
    values = np.random.default_rng(1).normal(size=8)
    assert stats.bootstrap_interval(values) == stats.bootstrap_interval(list(values))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], None),
        ([0.5], None),
        ([0.1, float("nan")], None),
        ([0.1, 0.2, float("inf")], None),
        ([0.5, 0.5, 0.5], (0.5, 0.5)),
        ([0.0, 0.0], (0.0, 0.0)),
        ([1.0, 1.0 + 2e-16, 1.0], (1.0, 1.0)),  # equal but for rounding: BCa's jackknife is 0 / 0
        ([0.1, 0.2], (0.1, 0.2)),  # resamples have no other ends
    ],
)
def test_interval_where_there_is_little_to_say(values, expected):
    assert stats.bootstrap_interval(values) == expected


def test_interval_of_a_run_that_failed():
    low, high = stats.bootstrap_interval([0.9, 0.9, 0.9, 0.9, 0.1])
    assert 0.1 < low < 0.74 < high <= 0.9


def test_interval_where_bca_has_no_answer_is_the_percentile_bootstraps():
    """Squares of these numbers are 0 in floating point, and with them BCa's jackknife."""
    values = [1e-200, 2e-200, 4e-200]
    assert stats.bootstrap_interval(values) == (1e-200, 4e-200)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 10_000), min_size=2, max_size=12))
def test_interval_of_any_error_rates_holds_the_mean(counts):
    values = np.array(counts) / 10_000
    low, high = stats.bootstrap_interval(values)
    assert values.min() <= low <= high <= values.max()
    assert low - 1e-12 <= values.mean() <= high + 1e-12


def test_student_is_scipys_one_sample_t_test():
    values = np.random.default_rng(0).normal(size=(3, 4, 7))
    low, high = stats.t_interval(values)
    reference = scipy.stats.ttest_1samp(values, 0, axis=-1).confidence_interval(0.95)
    np.testing.assert_allclose(low, reference.low, rtol=1e-12)
    np.testing.assert_allclose(high, reference.high, rtol=1e-12)


def test_student_of_single_values_is_the_values():
    low, high = stats.t_interval(np.array([[0.5], [0.7]]))
    assert low.tolist() == high.tolist() == [0.5, 0.7]


# Where one more run would lie.


def test_prediction_interval_is_that_of_a_linear_model():
    values = np.random.default_rng(2).normal(0.01, 0.001, (3, 10))
    model = OLS(values[1], np.ones((10, 1))).fit().get_prediction(np.ones((1, 1)))
    low, high = stats.prediction_interval(values)
    assert (low[1], high[1]) == pytest.approx(model.conf_int(obs=True)[0], rel=1e-12)


def test_z_of_a_value_is_its_residual_left_out_of_the_fit():
    values, one = np.random.default_rng(3).normal(0.01, 0.001, 9), 0.014
    influence = OLS(np.append(values, one), np.ones((10, 1))).fit().get_influence()
    assert stats.prediction_z(one, values) == pytest.approx(influence.resid_studentized_external[-1], rel=1e-9)


@pytest.mark.parametrize("n", [2, 5, 10])
def test_95_percent_of_new_values_lie_in_the_prediction_interval(n):
    """Of 40,000 studies: the standard error of this fraction is 0.1 %."""
    values = np.random.default_rng(n).normal(2.0, 0.3, (40_000, n + 1))
    low, high = stats.prediction_interval(values[:, :-1])
    assert np.mean((low <= values[:, -1]) & (values[:, -1] <= high)) == pytest.approx(0.95, abs=0.005)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 10_000), min_size=2, max_size=12), st.integers(0, 10_000))
def test_a_value_is_outside_the_prediction_interval_where_its_z_says_so(counts, one):
    values = np.array(counts) / 10_000
    low, high = stats.prediction_interval(values)
    z, critical = stats.prediction_z(one / 10_000, values), scipy.stats.t.ppf(0.975, len(values) - 1)
    assume(abs(abs(z) - critical) > 1e-6)
    if len(set(counts)) > 1 or z:  # the ends of equal values differ from them by rounding errors
        assert (low <= one / 10_000 <= high) == (abs(z) <= critical)
    ends = stats.t_interval(values)
    assert low <= ends[0] <= ends[1] <= high


def test_predictions_where_there_is_little_to_say():
    equal = np.array([0.1 + 0.2, 0.3])
    assert [stats.prediction_z(one, equal) for one in (0.3, 0.4, 0.2)] == [0, math.inf, -math.inf]
    assert np.array(stats.prediction_interval(np.array([0.3]))).tolist() == [-math.inf, math.inf]
    assert np.isnan(stats.prediction_interval(np.array([0.3, math.nan]))).all()


def studies(rng, count, seeds, images, of_seeds=0.01, of_images=0.2, rest=0.2):
    """Tables [studies, seeds, images] with these standard deviations of seeds, images and residuals."""
    parts = (of_seeds, (count, seeds, 1)), (of_images, (count, 1, images)), (rest, (count, seeds, images))
    return 0.5 + sum(rng.normal(0, std, shape) for std, shape in parts)


@pytest.mark.parametrize("new", [50, 200, 1000])
def test_95_percent_of_new_runs_on_new_images_lie_where_they_are_predicted(new):
    """Of 500 studies: the standard error of this fraction is 1 %."""
    rng = np.random.default_rng(new)
    layout = Layout.of(list(studies(rng, 500, 10, 200)))
    low, high = np.transpose([one.interval() for one in layout.one_run(new)])
    runs = studies(rng, 500, 1, new).mean(axis=(1, 2))
    assert np.mean((low <= runs) & (runs <= high)) == pytest.approx(0.95, abs=0.03)
    low, high = stats.prediction_interval(layout.seeds)
    assert np.mean((low <= runs) & (runs <= high)) < 0.88 or new > 200, "that of seeds is for the same images"


def test_variance_of_a_new_run_on_new_images():
    """That of the run, and that of our mean; by default, on as many images."""
    layout = Layout.of(list(studies(np.random.default_rng(0), 3, 6, 40)))
    of_seeds, of_images, rest = layout.variances().T
    ours = of_seeds / 6 + of_images / 40 + rest / 240
    for new in (10, 40):
        found = layout.one_run(new)
        assert [one.se**2 for one in found] == pytest.approx(ours + of_seeds + of_images / new + rest / new)
        assert [one.mean for one in found] == pytest.approx(layout.seeds.mean(axis=1))
    assert layout.one_run() == layout.one_run(40)


def test_runs_that_do_not_vary_predict_themselves():
    (found,) = Layout.of([np.zeros((3, 5), bool)]).one_run()
    assert found.interval() == (0, 0)


# Differences between arms.


def test_p_is_scipys_permutation_test():
    rng = np.random.default_rng(0)
    for n in (3, 8, 12):
        first, second = rng.normal(size=(2, n)) + np.array([[0.7], [0.0]])
        permutation = scipy.stats.permutation_test(
            (first, second), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=np.inf
        )
        assert stats.sign_flip_test((first - second)[None])[0] == pytest.approx(permutation.pvalue)


def test_fishers_randomization_test_of_darwins_maize():
    """The one-sided p is 863 / 32,768 (Fisher 1935, section 21).

    15 pairs are more than are enumerated. p is twice the smaller of two tails, each counted in 9,999 flips: the
    standard error of a tail is sqrt(0.0263 (1 - 0.0263) / 9999) = 0.0016; four of them, twice.
    """
    exact = enumerated_p(DARWIN)
    assert exact == 2 * 863 / 32_768
    p = float(stats.sign_flip_test(DARWIN[None])[0])
    assert p == pytest.approx(exact, abs=2 * 4 * 0.0016)
    assert p != exact  # it was estimated
    # Student's t is 2.148 with 14 degrees of freedom, and t_0.975 2.145 (Fisher): the interval hardly leaves out 0.
    assert stats.t_interval(DARWIN)[0] == pytest.approx(20.933 * (1 - 2.145 / 2.148), abs=0.03)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-40, 40), min_size=2, max_size=9), st.sampled_from([1000, 10_000, 7]))
def test_p_equals_an_enumeration_of_all_flips_with_ties(counts, images):
    """Of differences of error rates: many sums are equal in theory, and differ by rounding."""
    errors = 0.1 + np.array(counts) / images - 0.1
    assert stats.sign_flip_test(errors[None])[0] == pytest.approx(enumerated_p(errors))


@pytest.mark.parametrize(
    ("counts", "expected"),
    # Sums of 6 or more: all but the 14 of 32 flips that sum to 0, 2 or 4. The others' sum is 0: any flip is as far.
    [([6, 1, 1, 1, -3], 18 / 32), ([-4, -5, 4, 5], 1.0), ([7, -2, 2, -3, -2], None)],
)
def test_p_counts_flips_that_are_equal_but_for_rounding(counts, expected):
    """SciPy's own permutation test, or rounding the values before they are summed, misses some of these ties."""
    p = stats.sign_flip_test(np.array([counts]) / 1000)[0]
    assert p == pytest.approx(enumerated_p(np.array(counts)))
    assert expected is None or p == pytest.approx(expected)


@pytest.mark.parametrize("sign", [1, -1])
def test_p_is_smallest_where_all_seeds_agree(sign):
    rng = np.random.default_rng(0)
    for n in (2, 5, 13, 40):
        p = stats.sign_flip_test(sign * rng.uniform(1, 2, size=(1, n)))[0]
        assert p == pytest.approx(stats.smallest_p(n))


def test_smallest_p():
    assert [stats.smallest_p(n) for n in (1, 2, 5, 6, 13)] == [1.0, 0.5, 0.0625, 0.03125, 2**-12]
    # With more seeds p is estimated: (0 + 1) / (9,999 + 1) on each side.
    assert stats.smallest_p(14) == stats.smallest_p(5000) == pytest.approx(2 / 10_000)


def test_p_of_differences_of_zero():
    assert stats.sign_flip_test(np.array([np.zeros(4), [0.0, 0.0, 0.0, 2.0]])).tolist() == [1.0, 1.0]


# Power.


def statsmodels_power(**known):
    from statsmodels.stats.power import TTestPower

    with warnings.catch_warnings():  # its solver says when it failed, which isn't tested here
        warnings.simplefilter("ignore")
        return TTestPower().solve_power(alpha=0.05, alternative="two-sided", **known)


@pytest.mark.parametrize("n", [2, 3, 5, 10, 34, 200, 1000])
@pytest.mark.parametrize("size", [0.01, 0.1, 0.5, -0.5, 1.0])
def test_power_equals_statsmodels(n, size):
    assert stats.power(n, size) == pytest.approx(statsmodels_power(nobs=n, effect_size=size, power=None), abs=1e-9)


@pytest.mark.parametrize(
    ("n", "size"), [(2, 1.0), (3, 10.0), (10, 3.0), (10, 10.0), (100, 3.0), (1000, 100.0), (6, 0.0)]
)
def test_power_equals_the_integral_over_all_standard_deviations(n, size):
    """Also where SciPy's noncentral t, and with it statsmodels, is NaN."""
    edge, shift = scipy.stats.t.ppf(0.975, n - 1), size * math.sqrt(n)

    def shown(std):
        normal = scipy.stats.norm
        given_std = normal.sf(edge * std - shift) + normal.cdf(-edge * std - shift)
        return given_std * scipy.stats.chi.pdf(std * math.sqrt(n - 1), n - 1) * math.sqrt(n - 1)

    expected, _ = quad(shown, 0, 12, points=[0.5, 1, 1.5], limit=500)
    assert stats.power(n, size) == pytest.approx(expected, abs=1e-6)


def test_the_textbook_has_34_pairs_for_a_medium_effect():
    """Cohen's d_z = 0.5, power 0.8, two-sided 5 %: 34 pairs (Faul et al. 2007, G*Power)."""
    assert stats.power(33, 0.5) < 0.8 <= stats.power(34, 0.5)


@pytest.mark.parametrize("n", [*range(2, 20), 34, 100, 333, 1000])
@pytest.mark.parametrize("level", [0.05, 0.05 / 6])
def test_the_detectable_size_is_what_power_detects(n, level):
    size = stats.detectable_size(n, level)
    assert stats.power(n, size, level) == pytest.approx(0.8, abs=1e-9)
    if n > 2 and level == 0.05:  # where statsmodels' solver gives up
        assert size == pytest.approx(statsmodels_power(nobs=n, power=0.8), rel=1e-4)


# Two arms, run against run.


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.lists(st.integers(0, 5), min_size=1, max_size=8))
def test_superiority_is_a_count_of_all_pairs(first, second):
    first, second = [value / 1000 for value in first], [value / 1000 for value in second]
    wins = sum((one < other) + 0.5 * (one == other) for one in first for other in second)
    found, low, high = stats.probability_of_superiority(first, second)
    assert found == pytest.approx(wins / (len(first) * len(second)))
    assert 0 <= low <= found <= high <= 1


def test_superior_is_the_arm_with_fewer_errors():
    assert stats.probability_of_superiority([0.01, 0.02], [0.03, 0.04, 0.05])[0] == 1.0
    assert stats.probability_of_superiority([0.03, 0.04], np.array([0.01]))[0] == 0.0
    assert stats.probability_of_superiority([0.01, 0.01], [0.01])[0] == 0.5


@pytest.mark.parametrize(("first", "second", "shift"), [(3, 3, 1), (8, 5, 0), (8, 8, 1), (2, 9, -0.5)])
def test_ends_of_the_interval_of_superiority_solve_newcombes_equation(first, second, shift):
    """Method 5 of Newcombe (2006): theta with |found - theta| = z sqrt(variance of the Mann-Whitney statistic)."""
    rng = np.random.default_rng(first)
    found, low, high = stats.probability_of_superiority(rng.normal(size=first), rng.normal(shift, 1, second))
    assert 0 < found < 1
    for theta in (low, high):
        spread = 1 + ((first + second) / 2 - 1) * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        deviation = math.sqrt(theta * (1 - theta) * spread / (first * second))
        assert abs(found - theta) == pytest.approx(scipy.stats.norm.ppf(0.975) * deviation, rel=1e-5)


def test_an_interval_of_superiority_is_defined_at_its_ends():
    """Of 8 against 8 runs that all win: as wide as that of half as many wins, mirrored."""
    found, low, high = stats.probability_of_superiority(np.arange(8), np.arange(8) + 10)
    assert (found, high) == (1.0, 1.0)
    assert 0.6 < low < 0.9
    mirrored = stats.probability_of_superiority(np.arange(8) + 10, np.arange(8))
    assert mirrored == pytest.approx((0.0, 0.0, 1 - low), abs=1e-6)


def test_intervals_of_superiority_hold_the_probability():
    """Of 300 pairs of arms of 8 and 10 independent runs: 95 % are 285, with a standard error of 4."""
    rng, truth, held = np.random.default_rng(0), scipy.stats.norm.cdf(0.8 / math.sqrt(2)), 0
    for _ in range(300):
        _, low, high = stats.probability_of_superiority(rng.normal(size=8), rng.normal(0.8, 1, 10))
        held += low <= truth <= high
    assert held == pytest.approx(285, abs=12)


# Factorial studies.


def test_effects_of_two_by_two_by_hand():
    """Yates's layout: (1) = 20, a = 30, b = 40, ab = 52: A = 11, B = 21, and A is 2 more at high b than at low b."""
    cells = {(0, 0): [20.0, 1.0], (1, 0): [30.0, 2.0], (0, 1): [40.0, 3.0], (1, 1): [52.0, 3.0]}
    first, second, both = stats.effects({"a": [0, 1], "b": [0, 1]}, {key: np.array(row) for key, row in cells.items()})
    assert (first.axes, first.changes, first.over) == (("a",), ((0, 1),), ("b",))
    assert (second.axes, second.changes, second.over) == (("b",), ((0, 1),), ("a",))
    assert (both.axes, both.changes, both.over) == (("a", "b"), ((0, 1), (0, 1)), ())
    assert first.differences.tolist() == [11.0, 0.5]
    assert second.differences.tolist() == [21.0, 1.5]
    assert both.differences.tolist() == [2.0, -1.0]


def test_effects_of_two_by_three_against_formulas():
    """Axes not in alphabetical order, of values that aren't sorted either."""
    axes = {"loss": ["mse", "cross_entropy"], "activation": ["tanh", "sigmoid", "relu"]}
    rng = np.random.default_rng(0)
    cells = {cell: rng.normal(size=4) for cell in itertools.product(*axes.values())}
    cells = dict(reversed(cells.items()))  # their order doesn't matter
    mse, cross = ({act: cells[loss, act] for act in axes["activation"]} for loss in axes["loss"])
    expected = [
        ((("mse", "cross_entropy"),), np.mean([cross[act] - mse[act] for act in mse], axis=0)),
        ((("tanh", "sigmoid"),), np.mean([of["sigmoid"] - of["tanh"] for of in (mse, cross)], axis=0)),
        ((("tanh", "relu"),), np.mean([of["relu"] - of["tanh"] for of in (mse, cross)], axis=0)),
        *(
            (
                (("mse", "cross_entropy"), ("tanh", other)),
                (cross[other] - cross["tanh"]) - (mse[other] - mse["tanh"]),
            )
            for other in ("sigmoid", "relu")
        ),
    ]
    found = stats.effects(axes, cells)
    assert [effect.axes for effect in found] == [
        ("loss",),
        ("activation",),
        ("activation",),
        ("loss", "activation"),
        ("loss", "activation"),
    ]
    for effect, (changes, differences) in zip(found, expected, strict=True):
        assert effect.changes == changes
        np.testing.assert_allclose(effect.differences, differences, rtol=1e-12)


def test_effects_of_two_by_two_by_two_against_formulas():
    axes = {"c": [0, 1], "a": [0, 1], "b": [0, 1]}
    y = np.random.default_rng(1).normal(size=(2, 2, 2, 5))
    found = {effect.axes: effect for effect in stats.effects(axes, {cell: y[cell] for cell in np.ndindex(2, 2, 2)})}
    assert list(found) == [("c",), ("a",), ("b",), ("c", "a"), ("c", "b"), ("a", "b")]
    assert found["c", "b"].over == ("a",)
    assert found["a",].over == ("c", "b")
    expected = {
        ("c",): (y[1] - y[0]).mean(axis=(0, 1)),
        ("a",): (y[:, 1] - y[:, 0]).mean(axis=(0, 1)),
        ("b",): (y[:, :, 1] - y[:, :, 0]).mean(axis=(0, 1)),
        ("c", "a"): ((y[1, 1] - y[1, 0]) - (y[0, 1] - y[0, 0])).mean(axis=0),
        ("c", "b"): ((y[1, :, 1] - y[1, :, 0]) - (y[0, :, 1] - y[0, :, 0])).mean(axis=0),
        ("a", "b"): ((y[:, 1, 1] - y[:, 1, 0]) - (y[:, 0, 1] - y[:, 0, 0])).mean(axis=0),
    }
    for names, differences in expected.items():
        np.testing.assert_allclose(found[names].differences, differences, rtol=1e-12)


def test_effects_equal_statsmodels_regression_on_sum_coding():
    """With levels coded as -1 and 1, a main effect is 2 and a two-way interaction 4 coefficients."""
    import statsmodels.api as sm

    axes = {"c": [0, 1], "a": [0, 1], "b": [0, 1]}
    y = np.random.default_rng(2).normal(size=(2, 2, 2, 6))
    codes = np.stack(np.meshgrid(*[[-1, 1]] * 3, range(6), indexing="ij")[:3], axis=-1).reshape(-1, 3)
    columns = [*codes.T, *(codes[:, i] * codes[:, j] for i, j in itertools.combinations(range(3), 2)), codes.prod(1)]
    fitted = sm.OLS(y.ravel(), sm.add_constant(np.stack(columns, axis=1))).fit()
    found = stats.effects(axes, {cell: y[cell] for cell in np.ndindex(2, 2, 2)})
    means = [effect.differences.mean() for effect in found]
    np.testing.assert_allclose(means, fitted.params[1:7] * [2, 2, 2, 4, 4, 4], rtol=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(2, 3), min_size=2, max_size=3))
def test_effects_of_arms_that_add_up_have_no_interaction(seed, sizes):
    rng = np.random.default_rng(seed)
    parts = [rng.normal(size=size) for size in sizes]
    assume(all(np.ptp(part) > 1e-6 for part in parts))
    axes = {name: list(range(size)) for name, size in zip("zxy", sizes, strict=False)}
    cells = {
        cell: np.full(2, sum(part[place] for part, place in zip(parts, cell, strict=True)))
        for cell in np.ndindex(*sizes)
    }
    for effect in stats.effects(axes, cells):
        if len(effect.axes) == 1:
            part, ((_, place),) = parts["zxy".index(effect.axes[0])], effect.changes
            np.testing.assert_allclose(effect.differences, part[place] - part[0], atol=1e-12)
        else:
            np.testing.assert_allclose(effect.differences, 0, atol=1e-12)


# The simulated studies.


@pytest.fixture(scope="module")
def benchmark(load_benchmark):
    return load_benchmark("coverage")


@pytest.fixture(scope="module")
def stored():
    return json.loads((STORED / "coverage.json").read_text())


def test_stored_intervals_of_paired_differences_hold_the_truth(stored):
    assert stored["studies"] >= 2000
    rows = {(row["setting"], row["n"]): row for row in stored["coverage"]}
    assert {n for _, n in rows} == {5, 10, 20}
    assert len(stored["realistic"]) == 3
    for setting in stored["realistic"]:
        for n in (10, 20):
            assert rows[setting, n]["studies"] >= 2000
            assert 0.93 <= rows[setting, n]["paired_student"] <= 0.97, (setting, n)


def test_stored_studies_without_a_difference_seldom_find_one(stored):
    assert {row["n"] for row in stored["family_wise"]} == {10, 20}
    for row in stored["family_wise"]:
        assert row["studies"] >= 2000
        assert row["comparisons"] == 6
        assert row["family_wise_error"] <= 0.06
        assert row["family_wise_error_uncorrected"] > 0.1  # or there was nothing to correct


def test_stored_studies_of_the_detectable_difference_show_it(stored):
    """The permutation test of 10 seeds or more has about the t-test's power; that of 5 can't reach 5 %."""
    for row in stored["power"]:
        assert row["power_student"] == pytest.approx(0.8, abs=0.04)
        assert row["power_permutation"] == (0 if row["n"] == 5 else pytest.approx(0.8, abs=0.04))


def test_the_stored_page_is_that_of_the_stored_numbers(benchmark, stored):
    assert benchmark.table(stored) == (STORED / "coverage.md").read_text()


def test_the_simulation_gives_what_is_stored(benchmark, stored):
    few = benchmark.simulate(3)
    for part in ("coverage", "family_wise", "power"):
        of_few = [(row["setting"], row["n"]) for row in few[part]]
        assert of_few == [(row["setting"], row["n"]) for row in stored[part]]
        assert all(row.keys() == other.keys() for row, other in zip(few[part], stored[part], strict=True))
    for row, other in zip(few["power"], stored["power"], strict=True):
        assert row["effect_size"] == pytest.approx(other["effect_size"], rel=1e-6)
    assert "| skewed | 20 |" in benchmark.table(stored | few)


def test_simulated_arms_are_what_their_truth_says(benchmark):
    """Means within 4 standard errors, standard deviations and correlations within 2 %, of 200,000 seeds."""
    for name, setting in benchmark.SETTINGS.items():
        first, second = setting.draw(np.random.default_rng(0), (200_000,))
        mean, difference, std = setting.truth()
        assert first.mean() == pytest.approx(mean, abs=4 * first.std() / math.sqrt(200_000))
        assert (second - first).mean() == pytest.approx(difference, abs=4 * std / math.sqrt(200_000)), name
        assert (second - first).std() == pytest.approx(std, rel=0.02), name
        if name in benchmark.REALISTIC:
            assert np.corrcoef(first, second)[0, 1] == pytest.approx(0.5, abs=0.1), name


def test_a_simulated_family_has_three_arms_and_three_effects(benchmark):
    cells = np.array([[1.0, 2.0], [2.0, 2.0], [4.0, 2.0], [9.0, 2.0]])
    differences = [values.tolist() for values in benchmark.family(cells)]
    assert differences == [[1, 0], [3, 0], [8, 0], [5, 0], [3, 0], [4, 0]]
