"""Calibration of the statistics in `lenet_jax.stats`, measured on simulated studies with a known truth.

- Coverage: the fraction of 95 % intervals that contain the true value: Student's interval of paired differences
  (`stats.t_interval`), the expanded BCa bootstrap of an arm's mean (`stats.bootstrap_interval`)
  and, for comparison, plain BCa.
- Family-wise error: the fraction of studies without any true difference in which at least one of six comparisons is
  significant after Holm's correction.
- Power: the fraction of studies that show the difference given by `stats.detectable_size`, which should be 80 %.

All of these are over seeds alone; `coverage_images.py` simulates studies over seeds and images.

Cost: about 5 minutes on one core.

    .venv/bin/python experiments/benchmarks/coverage.py [--studies=2000] [--out=FOLDER]

Writes FOLDER/coverage.json and coverage.md; FOLDER is experiments/results/coverage by default.
"""

import importlib.metadata
import json
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import machine
import numpy as np
import report
import scipy.stats
from absl import app, flags
from holm import holm
from tqdm import tqdm

from lenet_jax import stats
from lenet_jax.paths import expanded

RESULTS = Path(__file__).parents[1] / "results"

SEEDS = (5, 10, 20)
"""Numbers of seeds per arm, for coverage and power."""

FAMILY_SEEDS = (10, 20)

FAMILY = 6
"""Comparisons in a study of 2 x 2 arms: three against the baseline, two main effects, one interaction."""

SIGNIFICANT = 1 - stats.CONFIDENCE

IMAGES = 10_000
"""Number of images in the simulated test set."""

CHUNK = 50
"""Number of studies computed at once: permutation tests of more need gigabytes."""

STUDIES = flags.DEFINE_integer("studies", 2000, "Number of simulated studies per setting.", lower_bound=1)
OUT = flags.DEFINE_string("out", str(RESULTS / "coverage"), "Folder for the results.")

Progress = Callable[[int], object]
"""Callback that takes the number of newly completed studies."""


class Normal(NamedTuple):
    """Normal values; a seed effect shared by all arms has half of the variance.

    Attributes:
      means: means of the arms.
      std: standard deviation of each arm.
    """

    means: tuple[float, ...]
    std: float

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Values [arms, *shape]."""
        shared, own = rng.normal(size=shape), rng.normal(size=(len(self.means), *shape))
        means = np.reshape(self.means, (-1, *[1] * len(shape)))
        return means + self.std * np.sqrt(0.5) * (shared + own)

    def truth(self) -> tuple[float, float, float]:
        """Mean of the first arm; mean and standard deviation of the second arm minus the first."""
        return self.means[0], self.means[1] - self.means[0], self.std


class Errors(NamedTuple):
    """Error rates on a test set: binomial counts around a lognormal rate, part of whose variation all arms share.

    Attributes:
      rates: median rates of the arms.
      shared, own: standard deviations of the logarithm of the rate, across arms and within each arm.
    """

    rates: tuple[float, ...]
    shared: float = 0.13
    own: float = 0.08

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Values [arms, *shape]."""
        shared, own = rng.normal(size=shape), rng.normal(size=(len(self.rates), *shape))
        rates = np.reshape(self.rates, (-1, *[1] * len(shape))) * np.exp(self.shared * shared + self.own * own)
        return rng.binomial(IMAGES, np.minimum(rates, 1)) / IMAGES

    def truth(self) -> tuple[float, float, float]:
        """Mean of the first arm; mean and standard deviation of the second arm minus the first."""
        first, second = self.rates[:2]
        mean, square = np.exp((self.shared**2 + self.own**2) / 2), np.exp(2 * (self.shared**2 + self.own**2))
        variances = [  # variance of the rate, plus variance of counting
            rate**2 * (square - mean**2) + (rate * mean - rate**2 * square) / IMAGES for rate in (first, second)
        ]
        covariance = first * second * mean**2 * np.expm1(self.shared**2)
        return first * mean, (second - first) * mean, float(np.sqrt(sum(variances) - 2 * covariance))


class Skewed(NamedTuple):
    """A lognormal first arm and a lognormal difference to the second arm, with skewness 1.75.

    Attributes:
      sigma: standard deviation of both logarithms.
    """

    sigma: float = 0.5

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Values [arms, *shape]."""
        first, added = np.exp(self.sigma * rng.normal(size=(2, *shape)))
        return np.stack([first, first + added])

    def truth(self) -> tuple[float, float, float]:
        """Mean of the first arm; mean and standard deviation of the second arm minus the first."""
        mean = np.exp(self.sigma**2 / 2)
        return mean, mean, float(mean * np.sqrt(np.expm1(self.sigma**2)))


Setting = Normal | Errors | Skewed

SETTINGS: dict[str, Setting] = {
    "normal": Normal((0.010, 0.011), 0.001),
    "errors of 1 % and 1.1 %": Errors((0.010, 0.011)),
    "errors of 1 % and 5 %": Errors((0.010, 0.050)),
    "skewed": Skewed(),
}
"""Settings with two arms each; the second is compared with the first."""

REALISTIC = tuple(name for name in SETTINGS if name != "skewed")
"""Settings for which coverage is promised; the skewed one shows where it fails."""

EQUAL: dict[str, Setting] = {"normal": Normal((0.010,) * 4, 0.001), "errors of 1 %": Errors((0.010,) * 4)}
"""Settings with four arms that do not differ."""


def chunks(part: str, name: str, n: int, studies: int) -> Iterator[tuple[np.random.Generator, int]]:
    """Yields a random generator for each chunk of studies, and the number of studies in the chunk."""
    for number, start in enumerate(range(0, studies, CHUNK)):
        # Seeded with the names, so that the numbers of a setting do not depend on the other settings.
        entropy = [zlib.crc32(part.encode()), zlib.crc32(name.encode()), n, number]
        yield np.random.default_rng(entropy), min(CHUNK, studies - start)


def plain_bca(values: np.ndarray) -> tuple[float, float]:
    """95 % BCa interval of the mean, without the expansion of `stats.bootstrap_interval`."""
    result = scipy.stats.bootstrap(
        (values,), np.mean, confidence_level=stats.CONFIDENCE, n_resamples=stats.RESAMPLES, rng=0
    )
    return tuple(result.confidence_interval)


def coverage(name: str, n: int, studies: int, done: Progress) -> dict[str, Any]:
    """Fractions of intervals that contain the true value, and the correlation of the arms, in studies of n seeds."""
    setting = SETTINGS[name]
    mean, difference, _ = setting.truth()
    held = {"paired_student": 0, "arm_bca_expanded": 0, "arm_bca_plain": 0}
    correlations = []
    for rng, count in chunks("coverage", name, n, studies):
        first, second = setting.draw(rng, (count, n))
        low, high = stats.t_interval(second - first)
        held["paired_student"] += ((low <= difference) & (difference <= high)).sum()
        for values in first:
            for method, ends in (
                ("arm_bca_expanded", stats.bootstrap_interval(values)),
                ("arm_bca_plain", plain_bca(values)),
            ):
                held[method] += ends[0] <= mean <= ends[1]
        correlations.append(np.corrcoef(first.ravel(), second.ravel())[0, 1])
        done(count)
    shares = {method: int(number) / studies for method, number in held.items()}
    return {"setting": name, "n": n, "studies": studies, "correlation": float(np.mean(correlations)), **shares}


def family(cells: np.ndarray) -> list[np.ndarray]:
    """Differences in a study of 2 x 2 arms, [4, seeds]: of each arm from the first, then the effects."""
    table = {(place // 2, place % 2): values for place, values in enumerate(cells)}
    effects = stats.effects({"row": [0, 1], "column": [0, 1]}, table)
    return [*(cells[1:] - cells[0]), *(effect.differences for effect in effects)]


def family_wise(name: str, n: int, studies: int, done: Progress) -> dict[str, Any]:
    """Fraction of studies without a true difference in which at least one comparison is significant."""
    corrected = uncorrected = 0
    for rng, count in chunks("family", name, n, studies):
        cells = EQUAL[name].draw(rng, (count, n)).swapaxes(0, 1)
        p = stats.sign_flip_test(np.array([row for study in cells for row in family(study)])).reshape(-1, FAMILY)
        corrected += sum(holm(of_study).min() < SIGNIFICANT for of_study in p)
        uncorrected += (p.min(axis=1) < SIGNIFICANT).sum()
        done(count)
    return {
        "setting": name,
        "n": n,
        "studies": studies,
        "comparisons": FAMILY,
        "family_wise_error": int(corrected) / studies,
        "family_wise_error_uncorrected": int(uncorrected) / studies,
    }


def apart(name: str, n: int) -> Setting:
    """Two arms that differ by the amount that n seeds show in 80 % of studies."""
    size = stats.detectable_size(n, SIGNIFICANT)
    if name == "normal":
        first = Normal((0.010, 0.010), 0.001)
        return first._replace(means=(0.010, 0.010 + first.truth()[2] * size))
    setting = Errors((0.010, 0.010))
    for _ in range(100):  # the variance grows with the error rate
        _, difference, std = setting.truth()
        setting = setting._replace(rates=(0.010, setting.rates[1] + (std * size - difference) / 2))
    return setting


def power(name: str, n: int, studies: int, done: Progress) -> dict[str, Any]:
    """Fractions of studies that show the detectable difference, by p < 0.05 and by a Student interval without 0."""
    setting = apart(name, n)
    shown = without_zero = 0
    for rng, count in chunks("power", name, n, studies):
        first, second = setting.draw(rng, (count, n))
        low, high = stats.t_interval(second - first)
        shown += (stats.sign_flip_test(second - first) < SIGNIFICANT).sum()
        without_zero += ((low > 0) | (high < 0)).sum()
        done(count)
    _, difference, std = setting.truth()
    return {
        "setting": name,
        "n": n,
        "studies": studies,
        "difference": float(difference),
        "effect_size": float(difference / std),
        "power_permutation": int(shown) / studies,
        "power_student": int(without_zero) / studies,
    }


def simulate(studies: int) -> dict[str, Any]:
    """Runs all simulations."""
    jobs = [
        *(("coverage", coverage, name, n) for name in SETTINGS for n in SEEDS),
        *(("family_wise", family_wise, name, n) for name in EQUAL for n in FAMILY_SEEDS),
        *(("power", power, name, n) for name in EQUAL for n in SEEDS),
    ]
    results: dict[str, Any] = {"studies": studies, "realistic": list(REALISTIC)}
    with tqdm(total=studies * len(jobs), unit="studies", unit_scale=True, disable=None) as bar:
        for part, job, name, n in jobs:
            bar.set_description(f"{part}, {name}, {n} seeds")
            results.setdefault(part, []).append(job(name, n, studies, bar.update))
    return results


def table(results: dict[str, Any]) -> str:
    """Markdown page with a table for each part."""
    studies = results["studies"]

    def percent(share: float) -> str:
        return f"{100 * share:.1f}"

    def rows(part: str, *columns: str) -> list[list[str]]:
        return [[row["setting"], str(row["n"]), *(percent(row[name]) for name in columns)] for row in results[part]]

    paired = [
        row["paired_student"]
        for row in results["coverage"]
        if row["n"] >= 10 and row["setting"] in results["realistic"]
    ]
    family_wise = [row["family_wise_error"] for row in results["family_wise"]]
    text = [
        "# Do the statistics hold what they promise?\n",
        f"{studies:,} simulated studies for each row, made by experiments/benchmarks/coverage.py; everything is "
        f"computed by `lenet_jax.stats` as `lenet-jax compare` does. A share near 95 % is uncertain by about "
        f"{196 * np.sqrt(0.95 * 0.05 / studies):.1f} points, near 80 % by "
        f"{196 * np.sqrt(0.8 * 0.2 / studies):.1f} (95 % of the time).\n",
        report.provenance(results),
        f"In short: with 10 and 20 seeds, and realistic numbers, intervals of paired differences hold the truth in "
        f"{percent(min(paired))} to {percent(max(paired))} % of studies (promised: 95 %), and at most "
        f"{percent(max(family_wise))} % of studies find a difference where there is none (promised: 5 %).\n",
        "## The settings\n",
        "- `normal`: normal values; half of an arm's variance is its seeds', alike in both arms.\n"
        f"- `errors of ...`: shares of {IMAGES:,} test images, binomial around an error rate that varies lognormally "
        f"between seeds (standard deviations of its logarithm: {Errors(()).shared:g} alike in both arms, "
        f"{Errors(()).own:g} in each). At 1 %, counting alone varies by another 0.1 of the rate.\n"
        f"- `skewed`: lognormal (sigma {Skewed().sigma:g}), and so is the difference: further from normal than errors "
        "of networks that learn. It is no part of the promise.\n",
        "## Coverage\n",
        "How many of the 95 % intervals hold the true value, in percent: 95 is right, less is too sure. `Paired "
        "difference`: Student's interval of the second arm minus the first, seed by seed. `Arm's mean`: the bootstrap "
        "interval beside an arm's mean in tables, BCa with quantiles expanded for few seeds; `plain BCa` is the same "
        "without the expansion, for the record. `Correlation` is that of the two arms over seeds.\n",
        report.markdown(
            ("setting", "seeds", "paired difference", "arm's mean", "plain BCa", "correlation"),
            [
                [*cells, f"{row['correlation']:.2f}"]
                for cells, row in zip(
                    rows("coverage", "paired_student", "arm_bca_expanded", "arm_bca_plain"),
                    results["coverage"],
                    strict=True,
                )
            ],
        ),
        "## Differences where there are none\n",
        f"Studies of 2 x 2 arms that are all equal in truth, each with {FAMILY} comparisons: three arms against the "
        "baseline, two main effects, their interaction. How many have any p < 0.05 by the permutation test, in "
        "percent: after Holm's correction (at most 5 is right), and without.\n",
        report.markdown(
            ("setting", "seeds", "after Holm", "uncorrected"),
            rows("family_wise", "family_wise_error", "family_wise_error_uncorrected"),
        ),
        "## Power\n",
        "Two arms that truly differ by `stats.detectable_size(seeds)` standard deviations. How many studies show it, "
        "in percent: by p < 0.05 of the permutation test, uncorrected, and by a Student interval without 0; 80 is "
        f"right. With 5 seeds no permutation test can have p < 0.05: the smallest is {stats.smallest_p(5):g}. `d_z` is "
        "the difference as a multiple of its standard deviation between seeds.\n",
        report.markdown(
            ("setting", "seeds", "permutation test", "Student's interval", "d_z"),
            [
                [*cells, f"{row['effect_size']:.2f}"]
                for cells, row in zip(
                    rows("power", "power_permutation", "power_student"), results["power"], strict=True
                )
            ],
        ),
    ]
    return "\n".join(text)


def main(argv: list[str]) -> None:
    """Simulates and writes the results."""
    machine.flags_only(argv)
    header = machine.describe()
    header["versions"]["scipy"] = importlib.metadata.version("scipy")
    results = header | simulate(STUDIES.value)
    out = expanded(OUT.value, "out")
    out.mkdir(parents=True, exist_ok=True)
    (out / "coverage.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "coverage.md").write_text(table(results))
    print(table(results))
    print(f"results are in {out}", file=sys.stderr)


if __name__ == "__main__":
    app.run(main)
