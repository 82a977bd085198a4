"""Counts how many intervals, computed from one test set, contain the errors on another one: MNIST's own test digits.

The networks of stored studies on mnist10k are evaluated on the 10,000 test digits of MNIST. Intervals of arms and of
all differences are computed as `lenet-jax compare` does, from the 5,000 test digits of mnist10k alone. The stored
results hold no networks: they are trained again first, from the same configs with the same seeds.

    .venv/bin/lenet-jax run --config=experiments/stored.py:experiments/results/STUDY --workdir=runs/STUDY
    .venv/bin/python experiments/benchmarks/new_digits.py runs/loss_function,runs/subsampling runs/quickstart

Runs joined by a comma are one study: arms with the same answers as an earlier one are left out. Cost: 3 minutes on two
cores, and an hour of training.
"""

import hashlib
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import machine
import numpy as np
import report
from absl import app, flags, logging
from tqdm import tqdm

from lenet_jax import crossed, stats
from lenet_jax.analysis import networks
from lenet_jax.analysis.networks import TrainedRun
from lenet_jax.crossed import Estimate, Layout
from lenet_jax.data import datasets
from lenet_jax.data.datasets import Dataset
from lenet_jax.paths import expanded

RESULTS = Path(__file__).parents[1] / "results"

BLOCK_IMAGES = 1000
"""Number of images that are classified at a time."""

DATASET = flags.DEFINE_string("dataset", "mnist", "Data set with the new test digits.")
OUT = flags.DEFINE_string("new_digits_out", str(RESULTS / "new_digits"), "Folder for the results.")


def answers_on(run: TrainedRun, arm: str, dataset: Dataset) -> np.ndarray:
    """Whether each network of an arm misclassifies each test image of a data set, [seeds, images]."""
    found = []
    for start in range(0, len(dataset.test_labels), BLOCK_IMAGES):
        images = run.normalize(dataset.test_images[start : start + BLOCK_IMAGES], arm)
        scores = np.asarray(networks.scores_of(run.params(arm), images, run.architecture(arm)))
        found.append(scores.argmax(axis=-1) != dataset.test_labels[start : start + BLOCK_IMAGES])
    return np.concatenate(found, axis=1)


def overlap(run: TrainedRun, dataset: Dataset) -> int:
    """Number of new test digits that the run's own data set contains, too."""
    own = datasets.load(run.config["dataset"])

    def digests(images: np.ndarray) -> list[bytes]:
        return [hashlib.sha256(image.tobytes()).digest() for image in images]

    known = set(digests(own.train_images) + digests(own.test_images))
    return sum(digest in known for digest in digests(dataset.test_images))


def judged(name: str, old: Estimate, new: Estimate, both: Any, seeds: Any) -> dict[str, Any]:
    """Whether intervals hold the new value, and its distance from the old one in standard errors of both image sets."""
    distance = (new.mean - old.mean) / float(np.hypot(old.se_images, new.se_images))
    row = {"name": name, "old": old.mean, "new": new.mean, "both": list(both), "seeds": list(seeds)}
    holds = {f"{over}_holds": bool(row[over][0] <= new.mean <= row[over][1]) for over in ("both", "seeds")}
    return row | holds | {"distance": distance}


def study(runs: list[TrainedRun], dataset: Dataset) -> dict[str, Any]:
    """All arms and differences of a study."""
    old, new = {}, {}
    arms = [(run, arm.name) for run in runs for arm in run.arms]
    for run, arm in tqdm(arms, desc="arms", disable=None):
        wrong = run.answers[arm].wrong
        if not any(np.array_equal(wrong, known) for known in old.values()):
            old[arm], new[arm] = wrong, answers_on(run, arm, dataset)
    names = list(old)
    before, after = Layout.of(list(old.values())), Layout.of(list(new.values()))
    images = before.shape[1]
    found = [
        judged(name, one, other, crossed.error_interval(one, images), stats.bootstrap_interval(per_seed))
        for name, one, other, per_seed in zip(names, before.estimates(), after.estimates(), before.seeds, strict=True)
    ]
    pairs = list(itertools.combinations(range(len(names)), 2))
    weights = np.array([np.eye(len(names))[second] - np.eye(len(names))[first] for first, second in pairs])
    before, after = before.contrast(weights), after.contrast(weights)
    low, high = stats.t_interval(before.seeds)
    differences = [
        judged(f"{names[second]} - {names[first]}", one, other, one.interval(), (low[row], high[row]))
        for row, ((first, second), one, other) in enumerate(
            zip(pairs, before.estimates(), after.estimates(), strict=True)
        )
    ]
    return {
        "runs": [run.folder.name for run in runs],
        "seeds": before.shape[0],
        "images": images,
        "new_images": after.shape[1],
        "arms": found,
        "differences": differences,
    }


def table(results: dict[str, Any]) -> str:
    """Markdown page with a table of arms and one of differences for each study."""

    def percent(value: float, sign: str = "") -> str:
        return f"{100 * value:{sign}.2f}"

    def rows(part: list[dict[str, Any]], sign: str) -> list[list[str]]:
        cells = []
        for row in part:
            ends = {over: " to ".join(percent(end, sign) for end in row[over]) for over in ("both", "seeds")}
            marked = [ends[over] + ("" if row[f"{over}_holds"] else " **misses**") for over in ("both", "seeds")]
            cells.append([row["name"], percent(row["old"], sign), *marked, percent(row["new"], sign)])
            cells[-1].append(f"{row['distance']:+.1f}")
        return cells

    columns = ("over seeds and images", "over seeds", "new digits", "distance")
    text = [
        "# Do intervals hold on new digits?\n",
        "Networks trained on mnist10k, evaluated on the 10,000 test digits of MNIST, by experiments/benchmarks/"
        "new_digits.py. Errors in percent, differences in percentage points; 95 % intervals, computed from the "
        "5,000 test digits of mnist10k alone. An interval holds if the mean error of the same networks on the new "
        "digits lies in it. This value is itself a sample: `distance` is new minus old in standard errors of the two "
        "sets of images, and beyond 2 the sets differ by more than sampling. Half of MNIST's test digits are by "
        "writers of another group, so that a shift of the population is mixed in; the simulations in "
        "[coverage](../coverage/images.md) have none. Intervals and values share networks and images, so that counts "
        "are not those of independent trials.\n",
        report.provenance(results),
        f"{results['overlap']} of the new digits are in mnist10k.\n",
        report.markdown(
            ("study", "what", "intervals", "hold, over seeds and images", "hold, over seeds", "distance below 2"),
            [
                [" + ".join(one["runs"]), part, str(len(one[part])), *(str(count) for count in counts(one[part]))]
                for one in results["studies"]
                for part in ("arms", "differences")
            ],
        ),
    ]
    for one in results["studies"]:
        text.append(f"## {' + '.join(one['runs'])}: {one['seeds']} seeds, {one['images']:,} images\n")
        text.append(report.markdown(("arm", "error", *columns), rows(one["arms"], "")))
        text.append(report.markdown(("difference", "points", *columns), rows(one["differences"], "+")))
    return "\n".join(text)


def counts(part: list[dict[str, Any]]) -> tuple[int, int, int]:
    """How many intervals over both, and over seeds, hold the new value; how many distances are below 2."""
    return (
        sum(row["both_holds"] for row in part),
        sum(row["seeds_holds"] for row in part),
        sum(abs(row["distance"]) < 2 for row in part),
    )


def main(argv: list[str]) -> None:
    """Evaluates the networks and writes the results."""
    if not argv[1:]:
        sys.exit("name at least one run folder")
    logging.set_verbosity(logging.WARNING)  # Orbax reports each file that it reads
    dataset = datasets.load(DATASET.value)
    results = machine.describe() | {"dataset": DATASET.value.partition(":")[0], "fingerprint": dataset.fingerprint}
    studies = [[networks.load_run(expanded(folder, "run")) for folder in names.split(",")] for names in argv[1:]]
    results["overlap"] = overlap(studies[0][0], dataset)
    results["studies"] = [study(runs, dataset) for runs in studies]
    out = expanded(OUT.value, "out")
    out.mkdir(parents=True, exist_ok=True)
    (out / "new_digits.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "new_digits.md").write_text(table(results))
    print(table(results))


if __name__ == "__main__":
    app.run(main)
