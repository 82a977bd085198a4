"""Populations on one accelerator: correctness, throughput, memory, and peers on the same accelerator.

It trains the network of `task.py` with the engine that an experiment uses on accelerators (`lenet_jax.population`).
Every point has its own process and compiles without the persistent cache. Stages:

- precision: relative errors against float64 on the CPU, with the package's precision and with JAX's default;
- equality: the same members trained on the accelerator and on the CPU; twice; alone; resumed in a new process;
- quickstart: by its command, on the accelerator and on the CPU;
- train: seconds to compile, samples x members trained and evaluated per second, memory predicted and allocated so far;
- width: the same for other values of `population.ACCELERATOR_SIDE_BY_SIDE`;
- torch, torch_compile, torch_graphs (CUDA graphs), flax_loop, flax_scan: `throughput.py`'s peers, in float32, not TF32.

Nothing is timed before one step from given weights on the first images agrees with the specification on the CPU
(`task.disagreement`); ours is a step of the whole population, or of as many members as train side by side. All
processes compile at the same time (alone they take less time) and are then timed one after the other. Rates are
medians of --rounds windows of at least --seconds and one call.

Cost: mostly compiling. One population took 18 s on 16 cores; the 15 points of `train` were not ready after 280 s.

    .venv/bin/python experiments/benchmarks/accelerator.py [--only=REGEX] [--out=FOLDER]

Writes FOLDER/accelerator.json and accelerator.md after each point. Rows already in that file are kept.
"""

import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import machine
import numpy as np
import ours
import pandas as pd
import peers_flax
import report
import task
from absl import app, flags
from workers import run_in_turn, wait_for_turn

from lenet_jax import blocked, layers, losses, model, population

POINTS = {
    "precision": [(0, 0)],
    "equality": [(0, 0), (1, 0)],
    "quickstart": [(0, 0), (1, 0)],
    "train": list(itertools.product((1, 8, 64, 512, 4096), (1, 32, 128))),
    "width": [(64, 32), (1024, 32), (4096, 32)],
    "flax_scan": [(1, 32), (64, 32), (512, 32)],
    "flax_loop": [(64, 32)],
    "torch": [(1, 32), (1, 128)],
    "torch_compile": [(1, 32), (1, 128)],
    "torch_graphs": [(1, 32), (1, 128)],
}
"""Stage -> points, a process each: members (of `width`, those side by side) and batch size."""

OURS, CHECKS = ("train", "width"), ("precision", "equality", "quickstart")
WIDTH_MEMBERS = 4096
EVALUATED_AT = 32  # the batch size of the points that also time the evaluation, which does not depend on it

INSIDE = flags.DEFINE_list("inside", [], "Internal: the point to measure in this process.")
ONLY = flags.DEFINE_string("only", "", "Regular expression that a point must match, such as ^train,(8|64),32.")
TRAIN_SIZE = flags.DEFINE_integer("train_size", 4000, "Images of mnist10k to train on, at most 4000.", upper_bound=4000)
EPOCHS = flags.DEFINE_integer("epochs", 10, "Epochs of the stage equality.", lower_bound=2)
ROUNDS = flags.DEFINE_integer("rounds", 3, "Number of timed windows.", lower_bound=1)
SECONDS = flags.DEFINE_float("seconds", 1.0, "Minimum length of a window, in seconds.", lower_bound=0.01)
LIMIT = flags.DEFINE_float("limit", 1800.0, "Time limit of a process, in seconds.")
OUT = flags.DEFINE_string("out", str(Path(__file__).parents[1] / "results" / "accelerator"), "Folder for the results.")


def emit(**row: Any) -> None:
    """Prints a row for the parent process."""
    print(json.dumps(row), flush=True)


def precision(images: task.Task, _: bool) -> None:
    """Relative errors against float64 on the CPU."""

    def objective(params: Any, batch: Any, labels: Any) -> Any:
        return losses.cross_entropy(blocked.forward(params, batch, task.ARCHITECTURE), labels)

    batch, labels = (np.asarray(array) for array in images.images.take(np.arange(128)))
    params = jax.tree.map(np.asarray, model.init(jax.random.key(0), task.ARCHITECTURE))
    matrices = np.random.default_rng(0).normal(size=(2, 512, 512))
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        double = jax.tree.map(np.float64, (params, batch))
        exact = jax.tree.map(np.asarray, jax.jit(jax.value_and_grad(objective))(*double, labels))

    def off(found: Any, right: Any) -> float:
        pairs = zip(jax.tree.leaves(found), jax.tree.leaves(right), strict=True)
        return max(float(np.linalg.norm(np.float64(a) - b) / np.linalg.norm(b)) for a, b in pairs)

    for device, chosen in itertools.product((jax.devices()[0], jax.devices("cpu")[0]), ("highest", None)):
        layers.PRECISION = chosen  # read when a function is traced
        jax.clear_caches()
        with jax.default_device(device):
            product = jax.jit(lambda a, b, chosen=chosen: jnp.matmul(a, b, precision=chosen))(*np.float32(matrices))
            loss, gradient = jax.jit(jax.value_and_grad(objective))(params, batch, labels)
        errors = {"product": off(product, matrices[0] @ matrices[1]), "loss": off(loss, exact[0])}
        emit(device=device.device_kind, precision=chosen or "JAX's default", **errors, gradient=off(gradient, exact[1]))


def equality(images: task.Task, resumed: bool) -> None:
    """Differences between trainings of the same members; `resumed`, from what another process saved halfway."""
    recipe, folder, many = task.recipe(32, TRAIN_SIZE.value), Path(OUT.value), EPOCHS.value

    def trained(seeds: range, epochs: int, platform: str | None = None, save: bool = False) -> Any:
        hyper, devices = task.hyperparameters(len(seeds)), jax.devices(platform)[:1]
        people = population.create(seeds, hyper, images.images, recipe, devices)
        if resumed:
            population.restore(people, dict(np.load(folder / "half.npz")))
        for epoch in range(epochs):
            population.train_segment(people)
            if save and epoch + 1 == epochs // 2:
                np.savez(folder / "half.npz", **population.snapshot(people))
        return population.snapshot(people)

    def compare(name: str, found: Any, expected: Any) -> None:
        off = {key: float(np.abs(np.float64(found[key]) - expected[key]).max()) for key in found}
        loss = float(np.abs(found["running/loss"] / expected["running/loss"] - 1).max())
        largest = max(value for key, value in off.items() if key.startswith("params"))
        emit(comparison=name, identical=not any(off.values()), parameters=largest, loss=loss)

    if resumed:
        rest = trained(range(8), many - many // 2)
        compare(f"resumed in a new process, {many} epochs", rest, dict(np.load(folder / "whole.npz")))
        return
    for epochs in (1, many):
        found = trained(range(8), epochs, save=epochs == many)
        compare(f"accelerator and CPU, {epochs} epochs", found, trained(range(8), epochs, "cpu"))
    np.savez(folder / "whole.npz", **found)
    compare(f"the same program twice, {many} epochs", trained(range(8), many), found)
    alone = jax.tree.map(lambda leaf: leaf[3:4], found)
    compare(f"member 3 alone and among 8, {many} epochs", trained(range(3, 4), many), alone)


def throughput(stage: str, images: task.Task, members: int, batch_size: int) -> None:
    """A point: checks it, waits for a line on stdin, and times it."""
    jax.config.update("jax_default_matmul_precision", "highest")  # of Flax; our products say so themselves
    if stage == "width":
        population.ACCELERATOR_SIDE_BY_SIDE, members = members, WIDTH_MEMBERS
    if stage.startswith("torch"):
        import peers_torch  # needed for these peers only

        modes = {"torch": False, "torch_compile": "default", "torch_graphs": "reduce-overhead"}
        device = "cuda" if jax.default_backend() == "gpu" else "cpu"
        create = partial(peers_torch.Session, compiled=modes[stage], device=device)
    elif stage.startswith("flax"):
        create = partial(peers_flax.Session, scan=stage == "flax_scan")
    else:
        create = ours.PopulationSession

    def measured(call: Callable[[float], task.Window], **row: Any) -> None:
        windows = [call(SECONDS.value) for _ in range(ROUNDS.value)]
        if not np.isfinite([window.loss for window in windows]).all():
            sys.exit("the loss is not finite")
        rates = [window.rate for window in windows]
        if stage in OURS:
            row |= {"width": population.ACCELERATOR_SIDE_BY_SIDE}
            row["peak_bytes"] = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
        emit(**row, per_second=statistics.median(rates), rounds=rates)

    with jax.default_device(jax.devices("cpu")[0]):
        weights, expected = ours.reference(images, batch_size)
    session = create(images, batch_size, members)
    if fault := task.disagreement(session.check(weights), expected):
        sys.exit(fault)
    session.warm_up(SECONDS.value)
    wait_for_turn()
    point = {"members": members, "batch_size": batch_size}
    if stage in OURS:
        point |= {"predicted_bytes": session.people.memory, "compile_seconds": session.compile_seconds}
    measured(session.train, **point)
    if stage in OURS and batch_size == EVALUATED_AT:
        session.evaluate(0)
        measured(session.evaluate, members=members, batch_size="evaluation")


def quickstart(_: task.Task, cpu: bool) -> None:
    """The quickstart, whole, by its command and with an empty cache of compiled programs; its test errors."""
    name, experiments = "cpu" if cpu else "accelerator", Path(__file__).parents[1]
    folder, platform = Path(OUT.value) / f"quickstart_{name}", {"JAX_PLATFORMS": "cpu"} if cpu else {}
    command = [sys.executable, "-c", "from lenet_jax.cli import main; main()", "run", f"--workdir={folder}"]
    environment = os.environ | platform | {"XDG_CACHE_HOME": f"{folder}_cache"}
    start = time.perf_counter()
    config = f"--config={experiments / 'quickstart.py'}"
    subprocess.run([*command, config], env=environment, check=True, stdout=sys.stderr)
    seconds, found = time.perf_counter() - start, {}
    for path in (folder, experiments / "results" / "quickstart"):
        table = pd.read_parquet(path / "metrics.parquet").query("split == 'test' and metric == 'error'")
        found[path] = table[table.epoch == table.epoch.max()].set_index(["arm", "seed"]).value
    new, stored = found.values()
    means = {f"error of {arm}": float(mean) for arm, mean in new.groupby("arm").mean().items()}
    emit(platform=name, seconds=seconds, largest_difference_from_stored=float((new - stored).abs().max()), **means)


def measure(stage: str, members: int, batch_size: int) -> None:
    """One point of `POINTS`, in this process."""
    jax.config.update("jax_enable_compilation_cache", False)
    images = task.load("mnist10k", TRAIN_SIZE.value)
    if stage in CHECKS:
        {"precision": precision, "equality": equality, "quickstart": quickstart}[stage](images, bool(members))
    else:
        throughput(stage, images, members, batch_size)
    emit(device=[jax.devices()[0].platform, jax.devices()[0].device_kind])


def run(points: list[tuple[str, int, int]]) -> None:
    """Starts a process for each point; all compile side by side, and then one after the other is timed."""
    path = Path(OUT.value) / "accelerator.json"
    results = json.loads(path.read_text()) if path.exists() else {"stages": {}, "failures": {}}
    command = ["timeout", f"{LIMIT.value}", sys.executable, *sys.argv]
    commands = [[*command, "--inside=" + ",".join(map(str, point))] for point in points]
    shared = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} if len(points) > 1 else {}
    for point, (rows, code) in zip(points, run_in_turn(commands, shared), strict=True):
        results["failures"] |= {", ".join(map(str, point)): code} if code else {}
        results |= {} if code else rows.pop()
        results["stages"].setdefault(point[0], []).extend(rows)
        print(f"{time.strftime('%H:%M:%S')} {point}: {rows}", file=sys.stderr, flush=True)
        results |= machine.describe()
        results["settings"] = {flag.name: flag.value for flag in (TRAIN_SIZE, EPOCHS, ROUNDS, SECONDS)}
        path.write_text(json.dumps(results, indent=1) + "\n")
        path.with_suffix(".md").write_text(report.accelerator_table(results))


def main(argv: list[str]) -> None:
    """Measures the points and writes the results."""
    machine.flags_only(argv)
    if INSIDE.value:
        return measure(INSIDE.value[0], *map(int, INSIDE.value[1:]))
    Path(OUT.value).mkdir(parents=True, exist_ok=True)
    points = [(stage, *point) for stage, among in POINTS.items() for point in among]
    points = [point for point in points if re.search(ONLY.value, ",".join(map(str, point)))]
    for point in points:
        if point[0] in CHECKS:
            run([point])
    return run([point for point in points if point[0] not in CHECKS])


if __name__ == "__main__":
    app.run(main)
