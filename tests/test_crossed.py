"""Statistics over seeds and images against REML, the pigeonhole bootstrap, enumeration and simulation."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import example, given, settings
from hypothesis import strategies as st
from statsmodels.regression.mixed_linear_model import MixedLM
from test_stats import STORED

from lenet_jax import crossed, multiplicity, stats
from lenet_jax.crossed import Estimate, Layout

SIDES = {"seed": st.integers(0, 2**32 - 1), "seeds": st.integers(2, 9), "images": st.integers(2, 30)}


def normal_table(rng, seeds, images, sizes=(1.0, 1.0, 1.0)):
    """A table [seeds, images] with effects of seeds and images, and residuals, of these sizes."""
    shapes = (seeds, 1), (1, images), (seeds, images)
    return sum(size * rng.normal(size=shape) for size, shape in zip(sizes, shapes, strict=True))


def numbers(estimates):
    return np.array([[one.mean, one.se, one.df, one.se_seeds, one.se_images] for one in estimates])


# One table.


def test_components_are_those_of_reml():
    table = normal_table(np.random.default_rng(0), 6, 15, (1.0, 2.0, 0.7))
    rows, columns = np.indices(table.shape).reshape(2, -1)
    data = pd.DataFrame({"y": table.ravel(), "seed": rows, "image": columns})
    crossing = {name: f"0 + C({name})" for name in ("seed", "image")}
    model = MixedLM.from_formula("y ~ 1", groups=np.ones(len(data)), vc_formula=crossing, data=data)
    fitted = model.fit(reml=True)
    of_images, of_seeds = fitted.vcomp  # in alphabetical order
    (variances,) = Layout.of([table]).variances()
    # Balanced tables with positive components: both estimators are the same (Searle et al. 1992, section 4.8).
    np.testing.assert_allclose(variances, [of_seeds, of_images, fitted.scale], rtol=1e-3)
    assert Layout.of([table]).estimates()[0].se == pytest.approx(float(fitted.bse_fe.iloc[0]), rel=1e-3)


def test_standard_error_and_the_pigeonhole_bootstrap():
    """Owen (2007): its variance holds the residual part three times, ours holds it once."""
    table = normal_table(np.random.default_rng(1), 12, 150) > 0.8
    rng, count = np.random.default_rng(2), 20_000
    seeds, images = table.shape
    drawn = [rng.multinomial(size, np.full(size, 1 / size), count) / size for size in table.shape]
    resampled = np.einsum("rs,rs->r", drawn[0], drawn[1] @ table.T.astype(float))
    layout = Layout.of([table])
    of_seeds, of_images, rest = (one[0] for one in layout.mean_squares())
    # Resampled effects vary by (n - 1) / n of their variance.
    kept = (seeds - 1) / seeds, (images - 1) / images
    expected = kept[0] * of_seeds / seeds + kept[1] * of_images / images + kept[0] * kept[1] * rest / (seeds * images)
    assert resampled.var() == pytest.approx(expected, rel=0.04)
    # The mean squares of seeds and of images hold the residuals once each.
    ours = of_seeds / seeds + of_images / images - rest / (seeds * images)
    assert layout.estimates()[0].se ** 2 == pytest.approx(ours, rel=1e-9)


@settings(max_examples=25, deadline=None)
@given(**SIDES, factor=st.sampled_from([-3.0, 0.01, 100.0]))
def test_estimates_follow_scale_and_no_order(seed, seeds, images, factor):
    rng = np.random.default_rng(seed)
    table = normal_table(rng, seeds, images)
    for over in crossed.OVER:
        expected = numbers(Layout.of([table]).estimates(over))
        order = table[rng.permutation(seeds)][:, rng.permutation(images)]
        np.testing.assert_allclose(numbers(Layout.of([order]).estimates(over)), expected, rtol=1e-6)
        scaled = numbers(Layout.of([factor * table]).estimates(over))
        factors = factor, abs(factor), 1.0, abs(factor), abs(factor)
        np.testing.assert_allclose(scaled, expected * factors, rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(**SIDES)
def test_contrasts_are_tables_of_weighted_sums(seed, seeds, images):
    rng = np.random.default_rng(seed)
    tables, weights = rng.normal(size=(3, seeds, images)), np.array([[1.0, -1.0, 0.0], [0.5, 0.5, -1.0]])
    combined = Layout.of(list(np.tensordot(weights, tables, 1)))
    found = Layout.of(list(tables)).contrast(weights)
    np.testing.assert_allclose(numbers(found.estimates()), numbers(combined.estimates()), rtol=1e-6, atol=1e-12)
    moved = numbers(found.shifted(np.array([5.0, -1.0])).estimates())
    np.testing.assert_allclose(moved[:, 0], [5.0, -1.0])
    np.testing.assert_allclose(moved[:, 1:], numbers(combined.estimates())[:, 1:], rtol=1e-5)


@pytest.mark.parametrize("over", ["seeds", "images"])
def test_over_one_of_both_it_is_students_standard_error(over):
    table = normal_table(np.random.default_rng(3), 7, 40)
    values = table.mean(axis=1 if over == "seeds" else 0)
    estimate = Layout.of([table]).estimates(over)[0]
    assert estimate.se == pytest.approx(values.std(ddof=1) / np.sqrt(len(values)))
    assert estimate.se == getattr(estimate, f"se_{over}")
    if over == "seeds":
        assert estimate.interval() == pytest.approx([float(end) for end in stats.t_interval(values)])
        assert estimate.p == pytest.approx(scipy.stats.ttest_1samp(values, 0).pvalue)


def test_degrees_of_freedom_of_normal_images_are_their_number():
    """Half the variance of a normal sample's variance is its square over its degrees of freedom."""
    table = normal_table(np.random.default_rng(4), 5, 100_000, (0.0, 1.0, 0.0))
    assert Layout.of([table]).estimates("images")[0].df == pytest.approx(100_000, rel=0.02)
    rare = np.zeros((5, 1000), bool)
    rare[:, :10] = True  # the variance of ten errors is as uncertain as that of about twenty normal values
    assert Layout.of([rare]).estimates("images")[0].df == pytest.approx(20.6, abs=1)


def test_intervals_of_normal_tables_hold_the_truth():
    rng, held = np.random.default_rng(5), {"both": 0, "seeds": 0}
    for _ in range(1000):
        layout = Layout.of([normal_table(rng, 8, 60, (0.4, 1.0, 1.0))])
        for over in held:
            low, high = layout.estimates(over)[0].interval()
            held[over] += low <= 0 <= high
    assert 930 <= held["both"] <= 970
    assert held["seeds"] < 900


@pytest.mark.parametrize("shape", [(1, 30), (5, 1), (5, 30)])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_tables_that_do_not_vary(shape, value):
    estimate = Layout.of([np.full(shape, value)]).estimates()[0]
    assert (estimate.mean, estimate.se, estimate.interval()) == (value, 0.0, (value, value))
    assert estimate.p == float(value == 0)
    assert np.isnan(estimate.se_seeds) == (shape[0] == 1)
    assert np.isnan(estimate.se_images) == (shape[1] == 1)
    assert estimate.chances(0.5) == ((0.0, 1.0, 0.0) if value == 0 else (0.0, 0.0, 1.0))


def test_values_that_are_not_finite_leave_no_number():
    table = normal_table(np.random.default_rng(6), 4, 20)
    table[1, 3] = np.nan
    found = numbers(Layout.of([table, np.ones((4, 20))]).estimates())
    assert np.isnan(found[0, [0, 1, 3, 4]]).all()
    assert found[1, 0] == 1


def test_a_single_seed_has_no_interval_over_seeds():
    table = normal_table(np.random.default_rng(7), 1, 50)
    for over in crossed.OVER:
        estimate = Layout.of([table]).estimates(over)[0]
        assert estimate.se == pytest.approx(table.std(ddof=1) / np.sqrt(50))
        assert np.isnan(estimate.se_seeds)


# Intervals of errors, and probabilities.


@given(errors=st.integers(1, 199), se=st.floats(1e-4, 0.05))
def test_intervals_of_errors_are_in_range(errors, se):
    low, high = crossed.error_interval(Estimate(errors / 200, se, 10.0, se, se), 200)
    assert 0 <= low < errors / 200 < high <= 1


@pytest.mark.parametrize("errors", [0, 50])
def test_intervals_without_errors_are_exact(errors):
    exact = scipy.stats.binomtest(errors, 50).proportion_ci(method="exact")
    assert crossed.error_interval(Estimate(errors / 50, 0.0, 4.0, 0.0, 0.0), 50) == pytest.approx(tuple(exact))


@given(mean=st.floats(-3, 3), df=st.floats(1, 1000), margin=st.floats(0, 3))
def test_chances_and_p_values_are_those_of_student(mean, df, margin):
    estimate = Estimate(mean, 0.7, df, 0.5, 0.5)
    assert sum(estimate.chances(margin)) == pytest.approx(1)
    below, _, above = estimate.chances(0.0)
    assert 2 * min(below, above) == pytest.approx(estimate.p, abs=1e-12)
    low, high = estimate.interval(1 - estimate.p)
    assert min(abs(low), abs(high)) == pytest.approx(0, abs=1e-6)


# Many contrasts.


def enumerated(differences):
    """Step-down max-T (Westfall and Young 1993) over all flips of signs, by the definition."""

    def statistics(values):
        return np.abs(values.mean(axis=1)) / values.std(axis=1, ddof=1)

    observed = statistics(differences)
    flips = [statistics(differences * signs) for signs in itertools.product((-1, 1), repeat=differences.shape[1])]
    order, found, last = np.argsort(-observed), np.empty(len(observed)), 0.0
    for place, index in enumerate(order):
        rest = order[place:]
        last = max(last, np.mean([one[rest].max() >= observed[index] * (1 - 1e-9) for one in flips]))
        found[index] = last
    return found


@pytest.mark.parametrize("over", ["both", "images"])
def test_an_effect_that_is_0_in_theory_hides_no_other(over):
    """Main effects of two axes with three values each, of which the second one changes no answer."""
    rng = np.random.default_rng(0)
    tables = [rng.uniform(size=(5, 1000)) < share for share in (0.1, 0.2, 0.3)]
    arms = Layout.of([table for table in tables for _ in range(3)])
    first, second = np.eye(3) - 1 / 3, np.ones(3) / 3
    effects, of_nothing = (
        [np.outer(*pair).ravel() for pair in pairs]
        for pairs in ([(row, second) for row in first], [(second, row) for row in first])
    )
    alone = multiplicity.over_images(arms.contrast(np.array(effects)), over)
    found = multiplicity.over_images(arms.contrast(np.array(effects + of_nothing)), over)
    assert alone[[0, 2]].max() < 0.01
    np.testing.assert_allclose(found, [*alone, 1, 1, 1], atol=0.02)  # random


@pytest.mark.parametrize("seed", range(10))
def test_a_sum_that_is_0_in_theory_is_not_extreme(seed):
    """Two arms with the same errors in another order: as computed, the sum of the differences of logits is about 0."""
    rng = np.random.default_rng(seed)
    wrong = rng.integers(2, 12, 6)
    one, other = (np.log(errors / (14 - errors)) for errors in (wrong, rng.permutation(wrong)))
    assert multiplicity.over_seeds((one - other)[None]).tolist() == [1.0]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), images=st.sampled_from([1_000, 10_000, 60_000]))
@example(seed=63, images=60_000)
def test_differences_of_a_few_images_in_large_errors_have_exact_ties(seed, images):
    """As computed, differences carry the rounding of the errors; as whole numbers of images, they are exact."""
    rng = np.random.default_rng(seed)
    wrong = rng.integers(0, images, 7) + np.array([rng.integers(-3, 4, 7), np.zeros(7, int)])
    differences = np.subtract(*wrong / images)
    if differences.any():
        counts = np.subtract(*wrong)
        sums = np.abs([counts @ signs for signs in itertools.product((-1, 1), repeat=7)])
        assert multiplicity.over_seeds(differences[None])[0] == np.mean(sums >= abs(counts.sum()))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), contrasts=st.integers(1, 4), seeds=st.integers(3, 7))
def test_max_t_over_seeds_is_that_of_enumeration(seed, contrasts, seeds):
    rng = np.random.default_rng(seed)
    differences = rng.normal(size=(contrasts, seeds)) + rng.normal(size=seeds) + rng.normal(size=(contrasts, 1))
    found = multiplicity.over_seeds(differences)
    np.testing.assert_allclose(found, enumerated(differences))
    own = stats.sign_flip_test(differences)
    assert (found >= own - 1e-12).all()
    assert found.max() <= 1
    if contrasts == 1:
        np.testing.assert_allclose(found, own)
    order = rng.permutation(contrasts)
    np.testing.assert_allclose(multiplicity.over_seeds(-2 * differences[order]), found[order])


def related_contrasts(rng, shift):
    """Three differences from the first of four arms whose errors are shared in part."""
    hard = np.abs(rng.normal(size=500)) - 2.2 + 0.3 * rng.normal(size=(12, 1))
    tables = [hard + 0.3 * rng.normal(size=(12, 500)) + shift * arm > 0 for arm in range(4)]
    return Layout.of(tables).contrast(np.eye(4)[1:] - np.eye(4)[0])


@pytest.mark.parametrize("over", crossed.OVER)
def test_max_t_is_less_severe_than_holms_correction(over):
    rng, smaller = np.random.default_rng(8), 0
    for shift in (0.0, 0.05, 0.1):
        layout = related_contrasts(rng, shift)
        if over == "seeds":
            own, found = stats.sign_flip_test(layout.seeds), multiplicity.over_seeds(layout.seeds)
        else:
            own, found = np.array([one.p for one in layout.estimates(over)]), multiplicity.over_images(layout, over)
        severe = np.empty(3)  # statsmodels' searches for garbage each time, which takes longer than all the rest
        severe[own.argsort()] = np.maximum.accumulate(np.sort(own) * [3, 2, 1]).clip(max=1)
        assert (own <= found + 1e-12).all()
        assert (found <= severe + 0.01).all()
        smaller += (found < severe - 0.002).sum()
    assert smaller >= 2


@pytest.mark.parametrize("seeds", [1, 12])
@pytest.mark.parametrize("over", ["both", "images"])
def test_a_single_contrast_has_its_own_p_value(over, seeds):
    table = normal_table(np.random.default_rng(9), seeds, 300) + 0.25
    layout = Layout.of([table])
    (estimate,), (found,) = layout.estimates(over), multiplicity.over_images(layout, over)
    assert estimate.p <= found <= estimate.p + 0.03


@pytest.mark.parametrize("shape", [(1, 30), (4, 1), (4, 30)])
def test_contrasts_that_do_not_vary_have_p_values_of_one_and_zero(shape):
    layout = Layout.of([np.zeros(shape), np.ones(shape)])
    for over in ("both", "images"):
        found = multiplicity.over_images(layout, over)
        assert found[0] == 1
        assert found[1] < 0.001
    if shape[0] > 1:
        assert multiplicity.over_seeds(layout.seeds).tolist() == [1.0, stats.smallest_p(shape[0])]


# The simulated studies.


@pytest.fixture(scope="module")
def benchmark(load_benchmark):
    return load_benchmark("coverage_images")


@pytest.fixture(scope="module")
def simulated():
    return json.loads((STORED / "images.json").read_text())


def test_the_true_errors_of_a_world_are_those_of_many_networks(benchmark):
    for name, world in benchmark.made_worlds().items():
        answers = world.draw(np.random.default_rng(0), 200, 1000)
        for estimate, truth in zip(Layout.of(list(answers)).estimates(), world.truth(), strict=True):
            assert abs(estimate.mean - truth) < 4 * estimate.se, name
        assert np.ptp(world.equal_on_images().truth()) == 0
    np.testing.assert_allclose(world.equal_on_average().truth(), world.truth().mean(), rtol=1e-9)


def test_worlds_have_the_errors_of_the_stored_runs(benchmark, simulated):
    for name, world in benchmark.made_worlds().items():
        np.testing.assert_allclose(100 * world.truth(), simulated["errors"][name], rtol=1e-6)


def test_simulations_run_small(benchmark):
    name = next(iter(benchmark.made_worlds()))
    row = benchmark.coverage(name, 8, 1000, 4)
    assert len(row["arm_both"]) == 4
    assert row["difference_length"][0] > 0
    tested = benchmark.errors_and_power(name, "seeds", 8, 1000, 4)
    assert set(tested["power"]) == {"max_t", "holm", "uncorrected"}


def test_stored_intervals_hold_what_they_promise(benchmark, simulated):
    """Between 93 and 97 % in every setting, for arms, differences and effects, but in the skewed one."""
    promised = [row for row in simulated["coverage"] if row["world"] != "skewed"]
    assert len(promised) == 18
    shares = [share for row in promised for part in benchmark.PARTS for share in row[f"{part}_both"]]
    assert min(shares) >= 0.93
    assert max(shares) <= 0.97
    for row in simulated["tests"]:
        assert row["family_wise_error"]["max_t"] <= 0.055, row
        assert row["power"]["max_t"] > row["power"]["holm"]


def test_the_stored_page_is_made_from_the_stored_numbers(benchmark, simulated):
    assert benchmark.table(simulated) == (STORED / "images.md").read_text()


def test_the_page_of_new_digits_is_made_from_the_stored_numbers(load_benchmark):
    stored = STORED.parent / "new_digits"
    results = json.loads((stored / "new_digits.json").read_text())
    assert load_benchmark("new_digits").table(results) == (stored / "new_digits.md").read_text()
