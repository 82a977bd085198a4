"""A whole experiment in PyTorch, as `time_to_result.py` times it beside `lenet-jax run` and `lenet-jax compare`.

One process per core, each with one thread, trains networks one after the other; with fewer networks than cores, the
processes share the cores among them. Arms that tune a learning rate choose the one with the smallest mean validation
error and then train new networks. At the end it prints the arms' mean test errors and their paired differences, with
95 % intervals over seeds.

    python job_torch.py JOB.json FOLDER [--compile]

JOB.json is what `time_to_result.py` exports; it names the file with the images. FOLDER receives results.json (every
measurement), predictions.npz (class, margin, nll and brier of each test image), and the weights of each network. The
program does not import lenet_jax or JAX, and imports PyTorch only in the processes that train.
"""

import itertools
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

RESAMPLES = 10_000
"""Bootstrap resamples of the intervals."""

state: dict[str, Any] = {}
"""Of a process that trains: the job, the images, and the networks by arm."""


class Trained(NamedTuple):
    """A network's measurements.

    Attributes:
      history: split/metric -> values, one for each epoch at which it was measured.
      predictions: of the test images; empty in tuning.
      seconds: training, evaluating.
    """

    history: dict[str, list[float]]
    predictions: dict[str, np.ndarray]
    seconds: tuple[float, float]


def start(index: Any, path: Path, folder: Path, threads: int, compiled: bool) -> None:
    """Prepares a process that trains: its share of the cores, PyTorch, the images."""
    with index.get_lock():
        first, index.value = index.value, index.value + threads
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[first : first + threads])

    import torch  # imported here: the process that only distributes the work does not need it

    torch.set_num_threads(threads)
    job = json.loads(path.read_text())
    arrays = np.load(path.with_name(job["images"]))
    state.update(job=job, path=path, arrays=dict(arrays), folder=folder, compiled=compiled, data={}, networks={})


def train(arm: int, kind: str, rate: float, seed: int) -> Trained:
    """Trains and evaluates one network of an arm; `kind` is tuning or test."""
    import torch
    import training_torch as training

    job, arrays = state["job"], state["arrays"]
    settings = job["arms"][arm]
    phase = settings[kind]
    scaling = phase["scale"], phase["shift"]
    if scaling not in state["data"]:
        state["data"][scaling] = training.prepared(arrays["pixels"], arrays["labels"], *scaling)
    if arm not in state["networks"]:
        table = np.array(job["table"])
        state["networks"][arm] = training.Network(table, settings["activation"], settings["loss"], state["compiled"])
    data, network = state["data"][scaling], state["networks"][arm]

    torch.manual_seed(seed)
    training.initialize(network.model)
    count = phase["splits"]["train"][1]
    orders: Any = (torch.randperm(count) for _ in range(phase["epochs"]))
    if given := phase.get("given"):  # initial weights and orders of lenet_jax
        with np.load(state["path"].with_name(given)) as start:
            training.set_weights(network.model, start, network.table)
            orders = [torch.from_numpy(order) for order in start["orders"].astype(np.int64)]
        if fault := training.misfit(network.model):
            raise ValueError(f"initial weights of lenet_jax have another distribution: {fault}")

    history: dict[str, list[float]] = {}
    predictions: dict[str, np.ndarray] = {}
    seconds = [0.0, 0.0]

    def evaluate(split: str) -> None:
        began = time.perf_counter()
        means, each = network.evaluate(data, *phase["splits"][split])
        for name, value in means.items():
            history.setdefault(f"{split}/{name}", []).append(value)
        if split == "test":
            predictions.update(each)
        seconds[1] += time.perf_counter() - began

    evaluated = phase["evaluated"]
    if "validation" in evaluated:
        evaluate("validation")
    began = time.perf_counter()
    for epoch, loss in enumerate(network.train(data, phase, rate, orders), 1):
        seconds[0] += time.perf_counter() - began
        history.setdefault("running/loss", []).append(loss)
        for split in evaluated if epoch == phase["epochs"] else {"validation"} & {*evaluated}:
            evaluate(split)
        began = time.perf_counter()
    if kind == "test":
        torch.save(network.model.state_dict(), state["folder"] / f"{arm}-{seed}.pt")
    return Trained(history, predictions, (seconds[0], seconds[1]))


def submitted(pool: Executor, arm: int, kind: str, phase: dict[str, Any], rates: Sequence[float]) -> list[Future]:
    """The networks of a phase: every learning rate with every seed."""
    return [pool.submit(train, arm, kind, rate, seed) for rate, seed in itertools.product(rates, phase["seeds"])]


def choose(rates: Sequence[float], errors: Sequence[float]) -> float:
    """The rate with the smallest mean error, the smallest such rate; `errors` has those of each rate in turn."""
    means = np.reshape(errors, (len(rates), -1)).mean(axis=1)
    return min(zip(means.tolist(), rates, strict=True))[1]


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of the mean."""
    drawn = np.random.default_rng(0).choice(values, (RESAMPLES, len(values))).mean(axis=1)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return float(low), float(high)


def row(name: str, errors: np.ndarray) -> str:
    """A line of the table, in percent; a single seed has no interval."""
    low, high = interval(errors)
    ends = f"{100 * low:8.2f} to {100 * high:.2f}" if len(errors) > 1 else ""
    return f"{name:60} {100 * errors.mean():7.2f} {ends}"


def table(errors: dict[str, np.ndarray]) -> str:
    """The arms' mean test errors [seeds], and the paired differences of all pairs of arms."""
    lines = ["test error (%), mean and 95 % interval over seeds", *(row(name, e) for name, e in errors.items())]
    lines += ["paired differences"] * (len(errors) > 1)
    lines += [row(f"{b} - {a}", errors[b] - errors[a]) for a, b in itertools.combinations(errors, 2)]
    return "\n".join(lines)


def run(path: Path, folder: Path, compiled: bool) -> None:
    """Carries out the job."""
    job = json.loads(path.read_text())
    arms = job["arms"]
    phases = [[arm[kind] for arm in arms if arm[kind]] for kind in ("tuning", "test")]
    networks = max(sum(len(phase["rates"]) * len(phase["seeds"]) for phase in kind) for kind in phases)
    cores = len(os.sched_getaffinity(0))
    processes = min(cores, networks)
    threads = cores // processes
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    spawn = multiprocessing.get_context("spawn")
    given = (spawn.Value("i", 0), path, folder, threads, compiled)
    # A single network needs no other process.
    pool: Executor = (
        ThreadPoolExecutor(1, initializer=start, initargs=given)
        if processes == 1
        else ProcessPoolExecutor(processes, mp_context=spawn, initializer=start, initargs=given)
    )
    results: dict[str, Any] = {}
    predictions: dict[str, np.ndarray] = {}
    with pool:
        tuning = [
            submitted(pool, index, "tuning", arm["tuning"], arm["tuning"]["rates"]) if arm["tuning"] else []
            for index, arm in enumerate(arms)
        ]
        tests = []
        for index, (arm, tried) in enumerate(zip(arms, tuning, strict=True)):
            rates = arm["test"]["rates"]
            if tried:
                errors = [future.result().history["validation/error"][-1] for future in tried]
                rates = [choose(arm["tuning"]["rates"], errors)]
            tests.append((rates[0], submitted(pool, index, "test", arm["test"], rates)))
        for arm, tried, (rate, tested) in zip(arms, tuning, tests, strict=True):
            trained = [future.result() for future in tested]
            results[arm["name"]] = {
                "rate": rate,
                "seeds": arm["test"]["seeds"],
                "errors": [network.history["test/error"][-1] for network in trained],
                "histories": [network.history for network in trained],
                "tuning": [future.result().history for future in tried],
                "seconds": np.sum([f.result().seconds for f in (*tried, *tested)], axis=0).tolist(),
            }
            for name in trained[0].predictions:
                predictions[f"{arm['name']}/{name}"] = np.stack([n.predictions[name] for n in trained])
    (folder / "results.json").write_text(json.dumps(results))
    np.savez(folder / "predictions.npz", **predictions)
    print(table({name: np.array(found["errors"]) for name, found in results.items()}))


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]), "--compile" in sys.argv[3:])
