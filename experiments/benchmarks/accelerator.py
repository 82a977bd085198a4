"""Populations on one accelerator: correctness, throughput, memory, and peers on the same accelerator.

It trains the network of `task.py` with the engine that an experiment uses on accelerators (`lenet_jax.population`).
Every point has its own process, one at a time, and compiles without the persistent cache. The stages are

- precision: relative errors, against float64 on the CPU, of a matrix product and of a batch's loss and gradient, with
  the package's precision and with JAX's default;
- equality: the same members trained on the accelerator and on the CPU; twice; alone; resumed in a new process;
- quickstart: that experiment by its command, on the accelerator and on the CPU;
- train: seconds to compile, samples x members trained and images x members evaluated per second, and memory: predicted
  by the compiler for training, and the most that the process had allocated by then (batch sizes in ascending order);
- width: the same for other values of `population.ACCELERATOR_SIDE_BY_SIDE`;
- torch, torch_compile, torch_graphs (CUDA graphs), flax_loop, flax_scan: the peers of `throughput.py`, in float32
  without TF32. PyTorch trains one network at a time.

Nothing is timed before one step from given weights on the first images agrees with the specification on the CPU
(`task.disagreement`); ours is a step of the whole population, or of as many members as train side by side. Rates are
medians of --rounds windows of at least --seconds and one call; in each window, all results have arrived.

    .venv/bin/python experiments/benchmarks/accelerator.py [--stage=NAME ...] [--out=FOLDER]

Writes FOLDER/accelerator.json and accelerator.md after each point. Other stages already in that file are kept.
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
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

from lenet_jax import blocked, layers, losses, model, population

POINTS = {
    "precision": ((0,), (0,)),
    "equality": ((0, 1), (0,)),
    "quickstart": ((0, 1), (0,)),
    "train": ((1, 8, 64, 512, 4096), (1, 32, 128)),
    "width": ((64, 1024, 4096), (32,)),
    "flax_scan": ((1, 8, 64, 512), (32,)),
    "flax_loop": ((1, 64), (32,)),
    "torch": ((1,), (1, 32, 128)),
    "torch_compile": ((1,), (1, 32, 128)),
    "torch_graphs": ((1,), (1, 32, 128)),
}
"""Stage -> a process each (members; of `width`, members side by side), and the batch sizes that it measures."""

OURS = ("train", "width")

STAGE = flags.DEFINE_multi_enum("stage", list(POINTS), list(POINTS), "Stages to run; repeat the flag.")
INSIDE = flags.DEFINE_string("inside", "", "Internal: the point to measure in this process.")
LARGEST = flags.DEFINE_integer("largest", 4096, "Largest number of members.")
TRAIN_SIZE = flags.DEFINE_integer("train_size", 4000, "Images of mnist10k to train on, at most 4000.", upper_bound=4000)
EPOCHS = flags.DEFINE_integer("epochs", 10, "Epochs of the stage equality.", lower_bound=2)
ROUNDS = flags.DEFINE_integer("rounds", 3, "Number of timed windows.", lower_bound=1)
SECONDS = flags.DEFINE_float("seconds", 1.0, "Minimum length of a window, in seconds.", lower_bound=0.01)
LIMIT = flags.DEFINE_float("limit", 120.0, "Time limit of a process, in seconds.")
OUT = flags.DEFINE_string("out", str(Path(__file__).parents[1] / "results" / "accelerator"), "Folder for the results.")


def emit(**row: Any) -> None:
    """Prints a row for the parent process."""
    print(json.dumps(row), flush=True)


def precision(images: task.Task) -> None:
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


def throughput(stage: str, images: task.Task, members: int, batch_sizes: Sequence[int]) -> None:
    """An arrangement with each batch size, then our evaluation."""
    jax.config.update("jax_default_matmul_precision", "highest")  # of Flax; our products say so themselves
    if stage == "width":
        population.ACCELERATOR_SIDE_BY_SIDE, members = members, LARGEST.value
    if stage.startswith("torch"):
        import peers_torch  # needed for these peers only

        modes = {"torch": False, "torch_compile": "default", "torch_graphs": "reduce-overhead"}
        device = "cuda" if jax.default_backend() == "gpu" else "cpu"
        create = partial(peers_torch.Session, compiled=modes[stage], device=device)
    elif stage.startswith("flax"):
        create = partial(peers_flax.Session, scan=stage == "flax_scan")
    else:
        create = ours.PopulationSession

    def measured(call: Callable[[float], task.Window]) -> dict[str, Any]:
        windows = [call(SECONDS.value) for _ in range(ROUNDS.value)]
        refuse("" if np.isfinite([window.loss for window in windows]).all() else "the loss is not finite")
        rates = [window.rate for window in windows]
        peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
        own = {"width": population.ACCELERATOR_SIDE_BY_SIDE, "peak_bytes": peak} if stage in OURS else {}
        return {"members": members, "per_second": statistics.median(rates), "rounds": rates, **own}

    for batch_size in batch_sizes:
        with jax.default_device(jax.devices("cpu")[0]):
            weights, expected = ours.reference(images, batch_size)
        session = create(images, batch_size, members)
        refuse(task.disagreement(session.check(weights), expected))
        session.warm_up(SECONDS.value)
        row = {"batch_size": batch_size, **measured(session.train)}
        if stage in OURS:
            row |= {"predicted_bytes": session.people.memory, "compile_seconds": session.compile_seconds}
        emit(**row)
    if stage in OURS:
        session.evaluate(0)
        emit(batch_size="evaluation", **measured(session.evaluate))


def refuse(fault: str) -> None:
    """Ends the process if there is a fault."""
    if fault:
        sys.exit(fault)


def quickstart(name: str) -> None:
    """The quickstart, whole, by its command and with an empty cache of compiled programs; its test errors."""
    folder, experiments = Path(OUT.value) / f"quickstart_{name}", Path(__file__).parents[1]
    command = [sys.executable, "-m", "lenet_jax.cli", "run", f"--config={experiments / 'quickstart.py'}"]
    platform = {"JAX_PLATFORMS": "cpu"} if name == "cpu" else {}
    environment = os.environ | platform | {"XDG_CACHE_HOME": f"{folder}_cache"}
    start = time.perf_counter()
    subprocess.run([*command, f"--workdir={folder}"], env=environment, check=True, stdout=sys.stderr)
    seconds, found = time.perf_counter() - start, {}
    for path in (folder, experiments / "results" / "quickstart"):
        table = pd.read_parquet(path / "metrics.parquet").query("split == 'test' and metric == 'error'")
        found[path] = table[table.epoch == table.epoch.max()].set_index(["arm", "seed"]).value
    new, stored = found.values()
    means = {f"error of {arm}": float(mean) for arm, mean in new.groupby("arm").mean().items()}
    emit(platform=name, seconds=seconds, largest_difference_from_stored=float((new - stored).abs().max()), **means)


def measure(stage: str, members: int) -> None:
    """One point of `POINTS`, in this process."""
    jax.config.update("jax_enable_compilation_cache", False)
    images = task.load("mnist10k", TRAIN_SIZE.value)
    if stage == "precision":
        precision(images)
    elif stage == "equality":
        equality(images, resumed=bool(members))
    elif stage == "quickstart":
        quickstart(("accelerator", "cpu")[members])
    else:
        throughput(stage, images, members, POINTS[stage][1])
    emit(device=[jax.devices()[0].platform, jax.devices()[0].device_kind])


def main(argv: list[str]) -> None:
    """Runs each point in a process and writes the results after it."""
    machine.flags_only(argv)
    if INSIDE.value:
        stage, members = INSIDE.value.split(",")
        measure(stage, int(members))
        return
    out = Path(OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "accelerator.json"
    results = json.loads(path.read_text()) if path.exists() else {"stages": {}, "failures": {}}
    for stage in STAGE.value:
        results["stages"][stage] = rows = []
        for members in (members for members in POINTS[stage][0] if members <= LARGEST.value):
            command = ["timeout", f"{LIMIT.value}", sys.executable, *sys.argv, f"--inside={stage},{members}"]
            ended = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            found = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
            if ended.returncode:
                results["failures"][f"{stage}, {members}"] = ended.returncode
            else:
                results["device"] = found.pop()["device"]
            rows += found
            print(f"{time.strftime('%H:%M:%S')} {stage} {members}: {found}", file=sys.stderr, flush=True)
            results |= machine.describe()
            results["settings"] = {flag.name: flag.value for flag in (TRAIN_SIZE, EPOCHS, ROUNDS, SECONDS)}
            path.write_text(json.dumps(results, indent=1) + "\n")
            (out / "accelerator.md").write_text(report.accelerator_table(results))


if __name__ == "__main__":
    app.run(main)
