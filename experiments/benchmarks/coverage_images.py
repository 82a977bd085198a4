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
from typing import Any

import machine
import numpy as np
import scipy.special
import worlds
from absl import app, flags
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
        layout = Layout.of(world.draw(rng, seeds, images)).contrast(WEIGHTS)
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
    found = {"max_t": corrected, "holm": np.array(stats.holm(own)), "uncorrected": own}
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
            layout = Layout.of(setting.draw(rng, seeds, images)).contrast(worlds.EFFECTS)
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
    drawn = (Layout.of(world.draw(rng, seeds, images)).contrast(worlds.EFFECTS[:1]) for _ in range(PILOT))
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


def table(results: dict[str, Any]) -> str:
    """Markdown page."""
    return json.dumps(results)


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
