"""The cost of a population: time, compile time and memory against members, batch size and training-set size.

Measured on mnist10k with the network of `task.py`, one axis at a time around 8 members, batches of 32 and 4,000 images:

- seconds per epoch and samples x members per second of `Workers.train_segment`: the median over epochs after the first;
- seconds of `Workers.create` without the persistent cache: starting JAX, compiling all programs, and initializing;
- the peak resident set size of all processes, its growth in the workers during creation and training, and the
  compiler's prediction of that growth.

Each point runs in fresh processes, so that its peak is its own. Exponents are fitted by least squares on logarithms:
seconds per epoch ~ axis^exponent. The ideal exponents are 1 for members (from the number of cores on) and for images,
and at most 0 for the batch size.

Then 1,000 members train for one short epoch. With --dataset=idx:FOLDER, the benchmark instead trains 64 members on that
data set, with all its training images in memory, for one epoch of --samples images.

Cost: about 3 minutes on two cores that must be otherwise idle.

    .venv/bin/python experiments/benchmarks/scaling.py [--dataset=idx:FOLDER] [--out=FOLDER]

Writes FOLDER/scaling.json, scaling.md and scaling.png; FOLDER is experiments/results/scaling by default. With
--dataset it writes FOLDER/memory.json and memory.md instead.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import machine
import numpy as np
import psutil
import report
import task
from absl import app, flags
from workers import SPAWN

from lenet_jax.data import datasets
from lenet_jax.errors import InputError
from lenet_jax.paths import expanded

RESULTS = Path(__file__).parents[1] / "results"

THOUSAND = 1000
SHORT_EPOCH = 320
"""Images per epoch for a thousand members."""

FULL_MEMBERS = 64
"""Number of members that train on the data set of --dataset."""

MEMBERS = flags.DEFINE_multi_integer("members", [1, 2, 4, 16, 64], "Members; repeat the flag.", lower_bound=1)
BATCH_SIZES = flags.DEFINE_multi_integer(
    "batch_sizes", [1, 8, 32, 128, 512], "Batch sizes; repeat the flag.", lower_bound=1
)
TRAIN_SIZES = flags.DEFINE_multi_integer(
    "train_sizes", [500, 1000, 2000, 4000], "Images of mnist10k; repeat the flag.", lower_bound=1, upper_bound=4000
)
BASE = flags.DEFINE_list("base", ["8", "32", "4000"], "Members, batch size and images while another axis varies.")
SECONDS = flags.DEFINE_float("seconds", 1.0, "Minimum seconds of measured epochs per point.", lower_bound=0.0)
MANY = flags.DEFINE_integer("many", THOUSAND, "Number of members in the short epoch; 0 skips it.", lower_bound=0)
DATASET = flags.DEFINE_string("dataset", "", f"Measure {FULL_MEMBERS} members on this data set instead, as idx:FOLDER.")
SAMPLES = flags.DEFINE_integer("samples", 6400, "Images of the epoch on --dataset; 0: all.", lower_bound=0)
OUT = flags.DEFINE_string("out", str(RESULTS / "scaling"), "Folder for the results.")


class Point(NamedTuple):
    """A measurement that runs in one process.

    Attributes:
      members, batch_size, train_size: settings of the training; an epoch has `train_size` images (0: all).
      seconds: minimum total time of the epochs measured after the first; 0: only the first epoch is measured.
      dataset: data set name for `datasets.load`. All its training images are in memory.
    """

    members: int
    batch_size: int
    train_size: int
    seconds: float
    dataset: str = "mnist10k"


def resident_peaks(processes: Sequence[psutil.Process]) -> int:
    """Sum of the peak resident set sizes of the processes since their peaks were cleared, in bytes (Linux).

    Shared memory, such as libraries, counts once per process.
    """
    total = 0
    for process in processes:
        # Not getrusage: a child process inherits its parent's peak.
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        total += int(dict(line.split(":", 1) for line in lines)["VmHWM"].split()[0]) * 1024
    return total


def measure(point: Point) -> dict[str, Any]:
    """Creates and trains a population, as an experiment does on a CPU. Call it in a fresh process."""
    from lenet_jax import library  # imported here: the main process does not run JAX
    from lenet_jax.run.workers import Workers

    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    whole = point.dataset != "mnist10k"
    images = task.load(point.dataset, 0 if whole else point.train_size)
    train_size = min(point.train_size or len(images.labels), len(images.labels))
    recipe = task.recipe(point.batch_size, train_size)
    with Workers(min(library.cores(), point.members)) as workers:
        there = images.images
        workers.load(there)
        children = psutil.Process().children()
        everyone = [psutil.Process(), *children]
        for process in children:
            Path(f"/proc/{process.pid}/clear_refs").write_text("5")  # resets the peak
        before = resident_peaks(children)

        start = time.perf_counter()
        hyper = task.hyperparameters(point.members)
        members = workers.create(range(point.members), hyper, there, recipe)
        created = time.perf_counter()

        epochs, begun = [], time.perf_counter()
        while len(epochs) < 2 or (point.seconds and time.perf_counter() - begun < point.seconds):
            start_epoch = time.perf_counter()
            metrics = workers.train_segment(members)
            epochs.append(time.perf_counter() - start_epoch)
            if not point.seconds:
                break
        peak, grown = resident_peaks(everyone), resident_peaks(children) - before
    seconds = statistics.median(epochs[1:] or epochs)
    trained = recipe.epoch_steps * recipe.batch_size
    return {
        "members": point.members,
        "batch_size": point.batch_size,
        "train_size": train_size,
        "images_in_memory": len(images.labels),
        "dataset": point.dataset,
        "seconds_per_epoch": seconds,
        "epochs": epochs,
        "samples_per_second": trained * point.members / seconds,
        "create_seconds": created - start,
        "peak_bytes": peak,
        "grown_bytes": grown,
        "predicted_bytes": members.memory,
        "diverged": int(np.sum(~np.isfinite(metrics.loss))),
    }


def run(point: Point) -> dict[str, Any]:
    """Calls `measure` in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
        result = pool.submit(measure, point).result()
    print(
        f"{time.strftime('%H:%M:%S')} {point.members} members, batch size {point.batch_size}, "
        f"{result['train_size']} images: {result['samples_per_second']:,.0f} samples/s, created in "
        f"{result['create_seconds']:.1f} s, {result['peak_bytes'] / 2**20:,.0f} MiB",
        file=sys.stderr,
        flush=True,
    )
    return result


def exponent(points: list[dict[str, Any]], axis: str) -> float | None:
    """Exponent of seconds per epoch against an axis: the least-squares slope of log on log. None for a single point.

    Points with fewer members than cores leave cores idle and are excluded.
    """
    points = [point for point in points if point["members"] >= machine.cores()]
    if len(points) < 2:
        return None
    slope, _ = np.polyfit(np.log([p[axis] for p in points]), np.log([p["seconds_per_epoch"] for p in points]), 1)
    return float(slope)


def sweep() -> dict[str, Any]:
    """Measures all three axes, and the point with many members."""
    base = dict(zip(("members", "batch_size", "train_size"), map(int, BASE.value), strict=True))
    axes = {"members": MEMBERS.value, "batch_size": BATCH_SIZES.value, "train_size": TRAIN_SIZES.value}
    done: dict[Point, dict[str, Any]] = {}
    for axis, values in axes.items():
        for value in values:
            point = Point(**(base | {axis: value}), seconds=SECONDS.value)
            done[point] = done.get(point) or run(point)
    points = {
        axis: [done[Point(**(base | {axis: value}), seconds=SECONDS.value)] for value in values]
        for axis, values in axes.items()
    }
    many = run(Point(MANY.value, base["batch_size"], SHORT_EPOCH, 0.0)) if MANY.value else None
    return {
        "base": base,
        "axes": points,
        "exponents": {axis: exponent(rows, axis) for axis, rows in points.items()},
        "many": many,
    }


def main(argv: list[str]) -> None:
    """Measures and writes the results."""
    machine.flags_only(argv)
    header = machine.header()
    out = expanded(OUT.value, "out")
    try:
        if DATASET.value:
            datasets.load(DATASET.value)  # reports unreadable data in one line
            results = header | {"full": run(Point(FULL_MEMBERS, 32, SAMPLES.value, 0.0, DATASET.value))}
            name, table = "memory", report.memory_table(results)
        else:
            results = header | sweep()
            name, table = "scaling", report.scaling_table(results)
    except (InputError, BrokenProcessPool) as error:
        sys.exit(f"scaling.py: {error}")
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / f"{name}.md").write_text(table)
    if name == "scaling":
        report.scaling_plot(results, out / "scaling.png")
    print(table)
    print(f"results are in {out}", file=sys.stderr)


if __name__ == "__main__":
    app.run(main)
