"""Counts how many intervals, computed from one test set, contain the errors on other digits.

The networks of stored studies on mnist10k, MNIST's first 10,000 training digits, are evaluated on MNIST's other 50,000
training digits and on its 10,000 test digits. Intervals of arms and of all differences are computed as `lenet-jax
compare` does, from the 5,000 test digits of mnist10k alone. The stored results hold no networks: they are trained again
first, from the same configs with the same seeds.

    .venv/bin/lenet-jax run --config=experiments/stored.py:experiments/results/STUDY --workdir=runs/STUDY
    .venv/bin/python experiments/benchmarks/new_digits.py runs/loss_function,runs/subsampling runs/quickstart

Runs joined by a comma are one study: arms with the same answers as an earlier one are left out. Cost: 5 minutes on two
cores, and half an hour of training.
"""

import functools
import hashlib
import itertools
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import machine
import numpy as np
import report
from absl import app, flags, logging
from tqdm import tqdm

from lenet_jax import blocked, crossed, model, stats
from lenet_jax.analysis import networks
from lenet_jax.analysis.networks import TrainedRun
from lenet_jax.crossed import Estimate, Layout
from lenet_jax.data import datasets
from lenet_jax.data.datasets import Dataset
from lenet_jax.model import Architecture, Params
from lenet_jax.paths import expanded

RESULTS = Path(__file__).parents[1] / "results"

EMBEDDED = 10_000
"""Number of MNIST's training digits that mnist10k consists of, the first ones."""

BLOCK_IMAGES = 500
"""Number of images that are classified at a time."""

DATASET = flags.DEFINE_string("dataset", "mnist", "MNIST: `mnist`, or `idx:` and a folder of its files.")
OUT = flags.DEFINE_string("new_digits_out", str(RESULTS / "new_digits"), "Folder for the results.")


class Digits(NamedTuple):
    """Images [images, 28, 28] and their labels."""

    images: np.ndarray
    labels: np.ndarray


def new_digits(dataset: Dataset) -> dict[str, Digits]:
    """The digits of MNIST that mnist10k does not have, by name."""
    rest = Digits(dataset.train_images[EMBEDDED:], dataset.train_labels[EMBEDDED:])
    return {"train": rest, "test": Digits(dataset.test_images, dataset.test_labels)}


@functools.partial(jax.jit, static_argnames="architecture")
def digits_of(params: Params, images: jax.Array, architecture: Architecture) -> jax.Array:
    """Classes of images [images, 32, 32] by each of the stacked networks, [networks, images]."""
    outputs = jax.lax.map(lambda network: blocked.forward(network, images, architecture), params)
    return model.decide(model.predict_scores(outputs, architecture))[0]


def answers_on(run: TrainedRun, arm: str, digits: Digits) -> np.ndarray:
    """Whether each network of an arm misclassifies each image, [seeds, images]."""
    found = []
    for start in range(0, len(digits.labels), BLOCK_IMAGES):
        images = run.normalize(digits.images[start : start + BLOCK_IMAGES], arm)
        chosen = np.asarray(digits_of(run.params(arm), images, run.architecture(arm)))
        found.append(chosen != digits.labels[start : start + BLOCK_IMAGES])
    return np.concatenate(found, axis=1)


def overlap(digits: Digits) -> int:
    """Number of new digits that mnist10k contains, too."""
    own = datasets.load("mnist10k")

    def digests(images: np.ndarray) -> list[bytes]:
        return [hashlib.sha256(image.tobytes()).digest() for image in images]

    known = set(digests(own.train_images) + digests(own.test_images))
    return sum(digest in known for digest in digests(digits.images))


def judged(name: str, old: Estimate, new: Mapping[str, Estimate], both: Any, seeds: Any) -> dict[str, Any]:
    """Whether intervals hold the new values, and their distance from the old one in standard errors of both sets."""
    row: dict[str, Any] = {"name": name, "old": old.mean, "both": list(both), "seeds": list(seeds), "new": {}}
    for digits, one in new.items():
        distance = (one.mean - old.mean) / float(np.hypot(old.se_images, one.se_images))
        holds = {f"{over}_holds": bool(row[over][0] <= one.mean <= row[over][1]) for over in ("both", "seeds")}
        row["new"][digits] = {"value": one.mean, "distance": distance} | holds
    return row


def study(runs: list[TrainedRun], new_sets: Mapping[str, Digits]) -> dict[str, Any]:
    """All arms and differences of a study."""
    old: dict[str, np.ndarray] = {}
    new: dict[str, list[np.ndarray]] = {name: [] for name in new_sets}
    arms = [(run, arm.name) for run in runs for arm in run.arms]
    for run, arm in tqdm(arms, desc="arms", disable=None):
        wrong = run.answers[arm].wrong
        if not any(np.array_equal(wrong, known) for known in old.values()):
            old[arm] = wrong
            for name, digits in new_sets.items():
                new[name].append(answers_on(run, arm, digits))
    names, before = list(old), Layout.of(list(old.values()))
    after = {name: Layout.of(tables) for name, tables in new.items()}
    pairs = list(itertools.combinations(range(len(names)), 2))
    weights = np.array([np.eye(len(names))[second] - np.eye(len(names))[first] for first, second in pairs])
    low, high = stats.t_interval(before.contrast(weights).seeds)

    def rows(weights: np.ndarray, titles: list[str], intervals: Any, seeds: Any) -> list[dict[str, Any]]:
        own = before.contrast(weights).estimates()
        others = {name: layout.contrast(weights).estimates() for name, layout in after.items()}
        return [
            judged(title, one, {name: found[row] for name, found in others.items()}, intervals(one), seeds[row])
            for row, (title, one) in enumerate(zip(titles, own, strict=True))
        ]

    images = before.shape[1]
    return {
        "runs": [run.folder.name for run in runs],
        "seeds": before.shape[0],
        "images": images,
        "arms": rows(
            np.eye(len(names)),
            names,
            lambda one: crossed.error_interval(one, images),
            [stats.bootstrap_interval(per_seed) for per_seed in before.seeds],
        ),
        "differences": rows(
            weights,
            [f"{names[second]} - {names[first]}" for first, second in pairs],
            lambda one: one.interval(),
            list(zip(low.tolist(), high.tolist(), strict=True)),
        ),
    }


def counts(part: list[dict[str, Any]], digits: str) -> list[int]:
    """How many intervals over both, and over seeds, hold the new value, and how many distances are below 2."""
    new = [row["new"][digits] for row in part]
    held = [sum(row[f"{over}_holds"] for row in new) for over in ("both", "seeds")]
    return [*held, sum(abs(row["distance"]) < 2 for row in new)]


def table(results: dict[str, Any]) -> str:
    """Markdown page with a table of counts, and tables of arms and of differences for each study."""

    def percent(value: float, sign: str = "") -> str:
        return f"{100 * value:{sign}.2f}"

    def rows(part: list[dict[str, Any]], sign: str) -> list[list[str]]:
        cells = []
        for row in part:
            ends = [" to ".join(percent(end, sign) for end in row[over]) for over in ("both", "seeds")]
            cells.append([row["name"], percent(row["old"], sign), *ends])
            for new in row["new"].values():
                missed = [over for over in ("both", "seeds") if not new[f"{over}_holds"]]
                outside = f" (outside: {', '.join(missed)})" if missed else ""
                cells[-1] += [percent(new["value"], sign) + outside, f"{new['distance']:+.1f}"]
        return cells

    sizes = results["new_images"]
    columns = ("over both", "over seeds", "other training digits", "distance", "test digits", "distance")
    text = [
        "# Do intervals hold on new digits?\n",
        f"Networks trained on mnist10k, MNIST's first {EMBEDDED:,} training digits, evaluated on MNIST's other "
        f"{sizes['train']:,} training digits and on its {sizes['test']:,} test digits by experiments/benchmarks/"
        "new_digits.py. Errors are in percent, differences in percentage points. The 95 % intervals over seeds and "
        "images (`both`) and over seeds alone follow from the 5,000 test digits of mnist10k. An interval holds if the "
        "mean error of the same networks on the new digits lies in it. That value is a sample, too: `distance` is new "
        "minus old in standard errors of both sets of images; beyond 2, they differ by more than sampling.\n",
        "MNIST's test digits are by other writers than its training digits: a shift of the population is mixed in. The "
        "other training digits are from the population of mnist10k. All intervals of a study share its networks and "
        "images, so that they hold or miss together: "
        "[the simulations](../coverage/images.md) are the measurement of coverage.\n",
        report.provenance(results),
        f"{results['overlap']} of the new digits are in mnist10k.\n",
        report.markdown(
            ("study", "new digits", "of", "intervals", "over both hold", "over seeds hold", "distance below 2"),
            [
                [" + ".join(one["runs"]), digits, part, str(len(one[part])), *map(str, counts(one[part], digits))]
                for one in results["studies"]
                for digits in sizes
                for part in ("arms", "differences")
            ],
        ),
    ]
    for one in results["studies"]:
        text.append(f"## {' + '.join(one['runs'])}: {one['seeds']} seeds\n")
        text.append(report.markdown(("arm", "error", *columns), rows(one["arms"], "")))
        text.append(report.markdown(("difference", "points", *columns), rows(one["differences"], "+")))
    return "\n".join(text)


def main(argv: list[str]) -> None:
    """Evaluates the networks and writes the results."""
    if not argv[1:]:
        sys.exit("name at least one run folder")
    logging.set_verbosity(logging.WARNING)  # Orbax reports each file that it reads
    dataset = datasets.load(DATASET.value)
    results = machine.describe() | {"dataset": DATASET.value.partition(":")[0], "fingerprint": dataset.fingerprint}
    studies = [[networks.load_run(expanded(folder, "run")) for folder in names.split(",")] for names in argv[1:]]
    new_sets = new_digits(dataset)
    results["new_images"] = {name: len(digits.labels) for name, digits in new_sets.items()}
    results["overlap"] = sum(map(overlap, new_sets.values()))
    results["studies"] = [study(runs, new_sets) for runs in studies]
    out = expanded(OUT.value, "out")
    out.mkdir(parents=True, exist_ok=True)
    (out / "new_digits.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "new_digits.md").write_text(table(results))
    print(table(results))


if __name__ == "__main__":
    app.run(main)
