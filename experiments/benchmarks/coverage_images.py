"""Calibration of the statistics of `lenet_jax.crossed` and `multiplicity`, on simulated studies that share test images.

The worlds (`worlds.py`) are made from stored predictions: all networks of a study answer the same images. The truth is
that of new seeds and new images. Measured for arms, differences and effects of 2 x 2 arms:

- Coverage: the fraction of 95 % intervals that contain the truth, of those over seeds and images (the headline), and of
  Student's over seeds alone; and the fraction of comparisons found equivalent when the true difference is the margin.
- Family-wise error: the fraction of studies with at least one significant comparison of arms that are equal in truth,
  by step-down max-T, by Holm's correction, and uncorrected.
- Power: the fraction of true differences that are found, and of studies with a false finding among equal arms.

Cost: about 20 minutes on one core, with OPENBLAS_NUM_THREADS=1.

    .venv/bin/python experiments/benchmarks/coverage_images.py [--image_studies=4000] [--image_workers=1]

Writes FOLDER/images.json and images.md; FOLDER is experiments/results/coverage, or --image_out.
"""

import concurrent.futures
import dataclasses
import functools
import importlib.metadata
import json
import sys
import zlib
from collections.abc import Iterable
from typing import Any

import machine
import numpy as np
import report
import scipy.special
import worlds
from absl import app, flags
from holm import holm
from tqdm import tqdm
from worlds import World

from lenet_jax import crossed, multiplicity, stats
from lenet_jax.crossed import Layout
from lenet_jax.paths import expanded

SEEDS, IMAGES = (8, 10, 20), (1_000, 5_000, 10_000)
"""Numbers of seeds and of images of a study, for coverage."""

TEST_SIZES = {"both": ((8, 1_000), (8, 5_000), (20, 5_000)), "seeds": ((8, 5_000), (20, 5_000))}
"""Numbers of seeds and of images of a study, for family-wise error and power over both and over seeds."""

TWO_BY_TWO = ("loss=mse", "loss=cross_entropy")

ABLATION = tuple(f"{loss},activation={activation}" for loss in TWO_BY_TWO for activation in ("sigmoid", "tanh"))
LABEL_NOISE = tuple(f"label_noise={noise},{loss}" for noise in ("0", "0.2") for loss in TWO_BY_TWO)

SKEWED = 3.0
"""How many times larger the effects of seeds are in the skewed world."""

DISTANCE = 3.0
"""True differences from the first arm, in standard errors, where power is measured."""

PILOT = 100
"""Number of studies that standard errors are taken from."""

PARTS = {"arm": slice(0, 4), "difference": slice(4, 7), "effect": slice(7, 10)}
"""Where the arms, the differences from the first arm, and the effects stand."""

WEIGHTS = np.vstack([np.eye(4), worlds.EFFECTS])

TRUE, NULL = [0, 2, 4], [1, 3, 5]
"""Contrasts of `worlds.EFFECTS` that are not 0, and that are, if the second and the fourth arm are worse."""

STUDIES = flags.DEFINE_integer("image_studies", 4000, "Number of simulated studies per setting.", lower_bound=2)
OUT = flags.DEFINE_string("image_out", str(worlds.RESULTS / "coverage"), "Folder for the results.")

WORKERS = flags.DEFINE_integer("image_workers", 1, "Number of processes.", lower_bound=1)


@functools.cache
def made_worlds() -> dict[str, World]:
    """The worlds, by name."""
    few, more = worlds.of_run("ablation", ABLATION), worlds.of_run("label_noise", LABEL_NOISE)
    skewed = dataclasses.replace(few, shared=SKEWED * few.shared, own=SKEWED * few.own, skewed=True)
    return {"errors of 1 to 2 %": few, "errors of 4 to 5 %": more, "skewed": skewed}


def generator(*names: Any) -> np.random.Generator:
    """Random numbers seeded with the names, so that those of a setting don't depend on the other settings."""
    return np.random.default_rng([zlib.crc32(str(name).encode()) for name in names])


def coverage(name: str, seeds: int, images: int, studies: int) -> dict[str, Any]:
    """Fractions of intervals that contain the truth, [arms, differences, effects], and mean lengths in points."""
    world = made_worlds()[name]
    truth, rng = WEIGHTS @ world.truth(), generator("coverage", name, seeds, images)
    held, length, equivalent = {"both": np.zeros(10), "seeds": np.zeros(10)}, np.zeros(10), np.zeros(10)
    for _ in range(studies):
        layout = Layout.of(list(world.draw(rng, seeds, images))).contrast(WEIGHTS)
        estimates = layout.estimates()
        ends = [crossed.error_interval(one, images) for one in estimates[:4]]
        low, high = np.array([*ends, *(one.interval() for one in estimates[4:])]).T
        held["both"] += (low <= truth) & (truth <= high)
        length += 100 * (high - low)
        low, high = stats.t_interval(layout.seeds)
        held["seeds"] += (low <= truth) & (truth <= high)
        low, high = np.array([one.interval(2 * stats.CONFIDENCE - 1) for one in estimates]).T
        equivalent += (-np.abs(truth) < low) & (high < np.abs(truth))
    row: dict[str, Any] = {"world": name, "seeds": seeds, "images": images, "studies": studies}
    for part, index in PARTS.items():
        for over, count in held.items():
            row[f"{part}_{over}"] = (count[index] / studies).tolist()
        row[f"{part}_length"] = (length[index] / studies).tolist()
    return row | {"equivalent_at_margin": (equivalent[4:] / studies).tolist()}


def significant(layout: Layout, over: str) -> dict[str, np.ndarray]:
    """Which contrasts are significant, by each correction."""
    if over == "both":
        own = np.array([one.p for one in layout.estimates()])
        corrected = multiplicity.over_images(layout, over)
    else:
        own, corrected = stats.sign_flip_test(layout.seeds), multiplicity.over_seeds(layout.seeds)
    found = {"max_t": corrected, "holm": holm(own), "uncorrected": own}
    return {method: p < stats.ALPHA for method, p in found.items()}


def errors_and_power(name: str, over: str, seeds: int, images: int, studies: int) -> dict[str, Any]:
    """Fractions of studies with false findings where all arms are equal, and of true differences that are found."""
    world, rng = made_worlds()[name], generator("tests", name, over, seeds, images)
    world = world.equal_on_average() if over == "both" else world.equal_on_images()
    row: dict[str, Any] = {"world": name, "over": over, "seeds": seeds, "images": images, "studies": studies}
    shift = shifted(world, over, seeds, images)
    row["difference"] = float(100 * (worlds.EFFECTS @ world.worse(shift).truth())[0])
    for setting in (world, world.worse(shift)):
        any_false, power = {}, {}
        for _ in range(studies):
            layout = Layout.of(list(setting.draw(rng, seeds, images))).contrast(worlds.EFFECTS)
            for method, found in significant(layout, over).items():
                false = found if setting is world else found[NULL]
                any_false[method] = any_false.get(method, 0) + int(false.any())
                power[method] = power.get(method, 0.0) + float(found[TRUE].mean())
        if setting is world:
            row["family_wise_error"] = {method: count / studies for method, count in any_false.items()}
        else:
            row["false_beside_true"] = {method: count / studies for method, count in any_false.items()}
            row["power"] = {method: share / studies for method, share in power.items()}
    return row


def shifted(world: World, over: str, seeds: int, images: int) -> float:
    """The shift of `World.worse` that makes the first difference `DISTANCE` standard errors."""
    rng = generator("pilot", over, seeds, images)
    drawn = (Layout.of(list(world.draw(rng, seeds, images))).contrast(worlds.EFFECTS[:1]) for _ in range(PILOT))
    square = float(np.mean([layout.estimates(over)[0].se ** 2 for layout in drawn]))
    rates = scipy.special.expit(world.logits[1][world.kinds])
    return DISTANCE * np.sqrt(square) / float((rates * (1 - rates)).mean())


def simulate(studies: int, workers: int) -> dict[str, Any]:
    """Runs all simulations."""
    made = made_worlds()
    results: dict[str, Any] = {"studies": studies, "skewed": SKEWED, "distance": DISTANCE}
    results["effects"] = {name: [world.shared, world.own] for name, world in made.items()}
    results["errors"] = {name: (100 * world.truth()).tolist() for name, world in made.items()}
    jobs: list[tuple[str, Any, tuple[Any, ...]]] = [
        # Half as many of the largest studies, and of tests, which take most of the time.
        ("coverage", coverage, (name, seeds, images, studies // (1 + (images == IMAGES[-1]))))
        for name in made
        for images in IMAGES
        for seeds in SEEDS
    ]
    jobs += [
        ("tests", errors_and_power, (name, over, *size, studies // 2))
        for name in list(made)[:2]
        for over, sizes in TEST_SIZES.items()
        for size in sizes
    ]
    with concurrent.futures.ProcessPoolExecutor(workers) as pool, tqdm(total=len(jobs), disable=None) as bar:
        waiting = [(part, pool.submit(job, *arguments)) for part, job, arguments in jobs]
        for _, future in waiting:
            future.add_done_callback(lambda _: bar.update())
        for part, future in waiting:
            results.setdefault(part, []).append(future.result())
    return results


def spread(shares: Iterable[float]) -> str:
    """The smallest and the largest share, in percent."""
    ends = [f"{100 * end:.1f}" for end in (min(shares), max(shares))]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def uncertainty(share: float, studies: int) -> str:
    """Half the width of the 95 % interval of a share, in points."""
    return f"{196 * np.sqrt(share * (1 - share) / studies):.1f}"


def table(results: dict[str, Any]) -> str:
    """Markdown page with the coverage of intervals and the errors and power of tests."""
    studies = results["studies"]
    promised = [row for row in results["coverage"] if row["world"] != "skewed"]
    held = {
        over: [share for row in promised for part in PARTS for share in row[f"{part}_{over}"]]
        for over in ("both", "seeds")
    }
    wrong = [row["family_wise_error"]["max_t"] for row in results["tests"]]
    effects = "; ".join(
        f"`{name}`: {sizes[0]:.2f} shared, {sizes[1]:.2f} of each arm" for name, sizes in results["effects"].items()
    )
    arms = "; ".join(
        f"`{name}`: {', '.join(f'{error:.2f}' for error in errors)} %" for name, errors in results["errors"].items()
    )
    text = [
        "# Do intervals over seeds and test images hold what they promise?\n",
        f"{studies:,} simulated studies for each row of the first table, {studies // 2:,} of each row with "
        f"{IMAGES[-1]:,} images and of the tables of tests, made by experiments/benchmarks/coverage_images.py. A share "
        f"near 95 % is uncertain by about {uncertainty(0.95, studies)} and {uncertainty(0.95, studies // 2)} points, "
        "95 % of the time.\n",
        report.provenance(results),
        f"In short: intervals over seeds and images contain the true value, of new seeds on new images, in "
        f"{spread(held['both'])} % of studies (promised: 95 %), except in the skewed world. Intervals over seeds alone "
        f"contain it in {spread(held['seeds'])} %. At most {100 * max(wrong):.1f} % of studies find a difference where "
        "there is none (promised: 5 %).\n",
        "## The worlds\n",
        "Each study has 2 x 2 arms whose networks answer the same images. `errors of 1 to 2 %` is made from the stored "
        "predictions of the ablation, `errors of 4 to 5 %` from those of label_noise (none and 20 %, both losses). "
        "Images are drawn from the stored ones with replacement. The probability that an arm misreads an image is the "
        "best linear prediction from the shares of stored networks that misread it. A seed moves the logits of all "
        "probabilities; answers are then drawn independently. Standard deviations of the seeds' effects, in logits, "
        f"from the stored components of variance: {effects}. In the skewed world, the first one with effects "
        f"{results['skewed']:g} times as large, they are lognormal with a skewness of 6.2. True errors of the arms: "
        f"{arms}. [coverage.md](coverage.md) has the simulations over seeds alone, on fixed images.\n",
        "## Coverage\n",
        "How many 95 % intervals contain the true value, in percent, smallest to largest of four arms, three "
        "differences from the first arm, and three effects (two main effects, one interaction). Arms have Student's "
        "interval on the logit scale (`crossed.error_interval`), the others Student's (`Estimate.interval`). `Over "
        "seeds alone`: Student's intervals of the means of seeds, for all ten values: they promise new seeds on the "
        "same images. `Length`: mean of the first arm's and of the first difference's interval, in points. "
        "`Equivalent`: how many of the six comparisons have a 90 % interval inside a margin that equals the true "
        "difference, largest share: at most 5 is right.\n",
        report.markdown(
            ("world", "seeds", "images", "arms", "differences", "effects", "over seeds alone", "length", "equivalent"),
            [
                [
                    row["world"],
                    str(row["seeds"]),
                    f"{row['images']:,}",
                    *(spread(row[f"{part}_both"]) for part in PARTS),
                    spread([share for part in PARTS for share in row[f"{part}_seeds"]]),
                    f"{row['arm_length'][0]:.2f}, {row['difference_length'][0]:.2f}",
                    f"{100 * max(row['equivalent_at_margin']):.1f}",
                ]
                for row in results["coverage"]
            ],
        ),
        "## Differences where there are none\n",
        "Six comparisons of 2 x 2 arms that are equal in truth. Over both: each drawn image gives its probabilities to "
        "the arms in a random order, so that arms differ on every image but not on average. Over seeds: all arms have "
        "the probabilities of the first arm. How many studies have any corrected p < 0.05, in percent: by step-down "
        "max-T (`multiplicity`), by Holm's correction of t-tests (over both) or of sign-flip tests (over seeds), and "
        "uncorrected. `Beside true ones`: the same among three comparisons of equal arms, where the second and the "
        f"fourth arm are worse, the first difference by {results['distance']:g} standard errors.\n",
        report.markdown(
            ("world", "over", "seeds", "images", "max-T", "Holm", "uncorrected", "beside true ones: max-T", "Holm"),
            [
                [
                    *tested(row),
                    *(f"{100 * row['family_wise_error'][method]:.1f}" for method in ("max_t", "holm", "uncorrected")),
                    *(f"{100 * row['false_beside_true'][method]:.1f}" for method in ("max_t", "holm")),
                ]
                for row in results["tests"]
            ],
        ),
        "## Power\n",
        "The same studies: how many of the three true differences are found, in percent.\n",
        report.markdown(
            ("world", "over", "seeds", "images", "difference, points", "max-T", "Holm", "uncorrected"),
            [
                [
                    *tested(row),
                    f"{row['difference']:.2f}",
                    *(f"{100 * row['power'][method]:.1f}" for method in ("max_t", "holm", "uncorrected")),
                ]
                for row in results["tests"]
            ],
        ),
    ]
    return "\n".join(text)


def tested(row: dict[str, Any]) -> list[str]:
    """The first cells of a row of tests."""
    return [row["world"], row["over"], str(row["seeds"]), f"{row['images']:,}"]


def main(argv: list[str]) -> None:
    """Simulates and writes the results."""
    machine.flags_only(argv)
    header = machine.describe()
    header["versions"]["scipy"] = importlib.metadata.version("scipy")
    results = header | simulate(STUDIES.value, WORKERS.value)
    out = expanded(OUT.value, "out")
    out.mkdir(parents=True, exist_ok=True)
    (out / "images.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "images.md").write_text(table(results))
    print(table(results))
    print(f"results are in {out}", file=sys.stderr)


if __name__ == "__main__":
    app.run(main)
