"""Training throughput of lenet_jax, PyTorch and Flax, measured in one run on one machine.

The metric is samples x members trained per second, for the same network, data, optimizer and batch size (see
`task.py`). The arrangements are

- lenet_jax: `workers.Workers.train_segment`, with one worker process per core, as an experiment trains on a CPU;
- torch: PyTorch eager, on all cores. Members train one after another, so the rate does not depend on their number: it
  is measured once for each batch size and shown for every number of members;
- torch_compile: the same, compiled by torch.compile in its default mode;
- torch_processes: one single-threaded PyTorch process per core, each with its own seed, timed over the same window;
  their rates are summed. With one member, only one process would have work, but the figure is still the sum;
- torch_compile_processes: both;
- flax_loop: Flax Linen vmapped over members, one jitted step called from a Python loop;
- flax_scan: the same, inside `jax.lax.scan` over steps.

`peers_torch.py` and `peers_flax.py` describe how the peers are written, and why.

Each arrangement has its own processes, which are idle while others are timed. Before any timing, each must reproduce
the loss, the gradient and the step that the specification (`lenet_jax.model.forward`) gives for the same weights and
images; otherwise the program stops. After a warm-up, rounds interleave the arrangements: A B C, A B C, ... A window
lasts at least --seconds and at least one call. If a single call of an arrangement takes longer than --longest, it is
timed once, in its warm-up. Ratios are computed within each round; tables show their medians. Tables also show the
useful arithmetic (from the network's connections) as a fraction of the machine's float32 matrix product.

Cost: about 20 minutes on two cores that must be otherwise idle. PyTorch's threads spin while they wait for each other,
and other programs slow them down disproportionately. Requires PyTorch: pip install 'lenet_jax[benchmarks]'.

    .venv/bin/python experiments/benchmarks/throughput.py [--out=FOLDER]

Writes FOLDER/throughput.json (all rounds, machine, versions), throughput.md and throughput.png; FOLDER is
experiments/results/throughput by default.
"""

import importlib.util
import itertools
import json
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import machine
import report
import task
from absl import app, flags
from task import Task, Window
from workers import SPAWN, WorkerError, Workers

from lenet_jax.paths import expanded


class Arrangement(NamedTuple):
    """An implementation of the training, to be timed.

    Attributes:
      module: module with `configure` and `Session`.
      options: keyword arguments of both, for each process.
      vmapped: whether it trains a given number of members together; if not, it is measured once per batch size.
      setup: approximate setup time, in seconds.
    """

    module: str
    options: list[dict[str, Any]]
    vmapped: bool
    setup: float


OURS = "lenet_jax"
A_CORE_EACH = [{"threads": 1, "seed": seed} for seed in range(machine.cores())]
ARRANGEMENTS = {
    OURS: Arrangement("ours", [{}], True, 6),
    "torch": Arrangement("peers_torch", [{}], False, 1),
    "torch_compile": Arrangement("peers_torch", [{"compiled": True}], False, 15),
    "torch_processes": Arrangement("peers_torch", A_CORE_EACH, False, 1),
    "torch_compile_processes": Arrangement(
        "peers_torch", [{"compiled": True, **options} for options in A_CORE_EACH], False, 15
    ),
    "flax_loop": Arrangement("peers_flax", [{"scan": False}], True, 4),
    "flax_scan": Arrangement("peers_flax", [{"scan": True}], True, 8),
}

RESULTS = Path(__file__).parents[1] / "results"

BATCH_SIZES = flags.DEFINE_multi_integer(
    "batch_sizes", [1, 32, 128, 512], "Batch sizes; repeat the flag.", lower_bound=1
)
MEMBERS = flags.DEFINE_multi_integer("members", [1, 8, 64], "Numbers of members; repeat the flag.", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 3, "Number of timed windows per arrangement.", lower_bound=1)
SECONDS = flags.DEFINE_float("seconds", 2.0, "Minimum length of a window, in seconds.", lower_bound=0.01)
LONGEST = flags.DEFINE_float("longest", 20.0, "Time an arrangement once if a single call takes longer, in seconds.")
TRAIN_SIZE = flags.DEFINE_integer("train_size", 4000, "Images of mnist10k to train on, at most 4000.", upper_bound=4000)
PEERS = flags.DEFINE_list("arrangements", list(ARRANGEMENTS), f"Of {', '.join(ARRANGEMENTS)}; lenet_jax always runs.")
OUT = flags.DEFINE_string("out", str(RESULTS / "throughput"), "Folder for the results.")


class RefusalError(Exception):
    """An error the user can fix, reported in one line."""


class Measurement(NamedTuple):
    """Timings of an arrangement at one batch size and number of members (0: any), with one window per round."""

    arrangement: str
    batch_size: int
    members: int
    windows: list[Window]

    @property
    def rates(self) -> list[float]:
        """Samples x members per second, round by round."""
        return [window.rate for window in self.windows]

    @property
    def summary(self) -> dict[str, Any]:
        """Entry for the results file."""
        rates = self.rates
        return {
            "arrangement": self.arrangement,
            "batch_size": self.batch_size,
            "members": self.members or "any",
            "samples_per_second": statistics.median(rates),
            "rounds": [
                {"samples": window.samples, "seconds": window.seconds, "samples_per_second": window.rate}
                for window in self.windows
            ],
        }


def progress(message: str) -> None:
    """Prints a line on stderr."""
    print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)


def joined(windows: list[Window]) -> Window:
    """Combines the windows of processes that started together: their rates add up."""
    # Windows differ in length by part of a step. The seconds make samples / seconds the sum of the rates.
    samples, rate = sum(window.samples for window in windows), sum(window.rate for window in windows)
    return Window(samples, samples / rate, sum(window.loss for window in windows) / len(windows))


def prepare(name: str, workers: Workers, key: tuple[int, int], expected: Any, seconds: float) -> Window:
    """Creates a session, checks it and warms it up. Returns the window of the last warm-up call.

    Raises:
      RefusalError: the loss, gradient or step differs from the specification.
      WorkerError: the session does not run.
    """
    weights, outcome = expected
    workers.ask("create", key)
    for checked in workers.ask("check", key, weights):
        if fault := task.disagreement(checked, outcome):
            batch_size, members = key
            raise RefusalError(
                f"{name} (batch size {batch_size}, {members} members) violates the specification: {fault}"
            )
    return joined(workers.ask("warm_up", key, seconds))


def measure_batch_size(
    batch_size: int, everyone: dict[str, Workers], members: list[int], rounds: int, seconds: float, longest: float
) -> tuple[list[Measurement], machine.Busy, dict[str, str]]:
    """Measures all arrangements at one batch size.

    Returns:
      The measurements, the load while all arrangements were idle (percent), and failures by arrangement.
    """
    expected = everyone[OURS].ask("reference", None, batch_size)[0]
    measurements: dict[tuple[str, int], Measurement] = {}
    failures: dict[str, str] = {}
    for count, (name, workers) in itertools.product(members, everyone.items()):
        vmapped = ARRANGEMENTS[name].vmapped
        if name in failures or (not vmapped and count != members[0]):
            continue
        key = (batch_size, count if vmapped else 1)
        start = time.perf_counter()
        try:
            window = prepare(name, workers, key, expected, seconds)
        except WorkerError as error:
            if name == OURS:
                raise
            failures[name] = f"batch size {batch_size}: {error}"
            progress(f"{name}: FAILED, {failures[name]}")
            continue
        slow = window.seconds > longest
        measurements[name, key[1]] = Measurement(name, batch_size, count if vmapped else 0, [window] if slow else [])
        taken = time.perf_counter() - start
        progress(f"batch {batch_size:3}, {name} x {key[1]}: checked and warm after {taken:.0f} s")

    busy = machine.busy()
    machine.warn_if(busy)
    timed = [item for item in measurements.items() if not item[1].windows]
    for turn in range(rounds):
        for (name, count), measurement in timed:
            window = joined(everyone[name].ask("train", (batch_size, count), seconds))
            if not window.loss < float("inf"):
                raise RefusalError(f"{name}, batch size {batch_size}: the loss is {window.loss} after training")
            measurement.windows.append(window)
        ours = ", ".join(f"{m.rates[-1]:,.0f}" for m in measurements.values() if m.arrangement == OURS)
        progress(f"batch {batch_size:3}, round {turn + 1} of {rounds}: lenet_jax {ours} samples/s")
    for workers in everyone.values():
        workers.ask("drop")
    return list(measurements.values()), busy, failures


def ratios(measurements: list[Measurement], members: list[int]) -> list[dict[str, Any]]:
    """Speed of lenet_jax relative to each peer: the ratio of each round, and their median, minimum and maximum."""
    rows = []
    ours = {(m.batch_size, m.members): m for m in measurements if m.arrangement == OURS}
    peers = [m for m in measurements if m.arrangement != OURS]
    for peer, count in itertools.product(peers, members):
        if peer.members in (0, count) and (peer.batch_size, count) in ours:
            pairs = zip(ours[peer.batch_size, count].rates, peer.rates, strict=False)  # slow peers have a single round
            values = [mine / theirs for mine, theirs in pairs]
            rows.append(
                {
                    "peer": peer.arrangement,
                    "batch_size": peer.batch_size,
                    "members": count,
                    "median": statistics.median(values),
                    "min": min(values),
                    "max": max(values),
                    "rounds": values,
                }
            )
    return rows


def matrix_products(seconds: float) -> dict[str, float]:
    """FLOP/s of a matrix product in JAX and in PyTorch, each in a fresh process."""
    functions = {"jax": machine.jax_matrix_product, "torch": machine.torch_matrix_product}
    with ProcessPoolExecutor(1, mp_context=SPAWN, max_tasks_per_child=1) as pool:
        return {name: pool.submit(function, seconds).result() for name, function in functions.items()}


def estimate_minutes(names: list[str]) -> float:
    """Approximate duration of the whole run on two cores, in minutes."""
    total = 20.0
    for name in names:
        arrangement = ARRANGEMENTS[name]
        counts = MEMBERS.value if arrangement.vmapped else [1]
        for batch_size, count in itertools.product(BATCH_SIZES.value, counts):
            # A window lasts at least one call: an epoch of all members (ours), two steps (Flax's scan).
            rate = 22_000 if batch_size == 1 else 50_000
            call = {OURS: TRAIN_SIZE.value * count / rate, "flax_scan": 2 * batch_size * count / 1_000}.get(name, 0.0)
            windows = 1 if call > LONGEST.value else 1 + ROUNDS.value
            total += arrangement.setup + windows * max(call, SECONDS.value)
    return total / 60


def results(
    measurements: list[Measurement],
    products: list[dict[str, float]],
    busy: dict[int, machine.Busy],
    failures: dict[str, str],
) -> dict[str, Any]:
    """Contents of the results file."""
    peak = max(max(product.values()) for product in products)
    operations = 2 * task.training_multiply_adds()
    rows = [measurement.summary for measurement in measurements]
    for row in rows:
        row["useful_flops"] = row["samples_per_second"] * operations
        row["fraction_of_matrix_product"] = row["useful_flops"] / peak
    flags_used = {flag.name: flag.value for flag in (BATCH_SIZES, MEMBERS, ROUNDS, SECONDS, LONGEST, TRAIN_SIZE, PEERS)}
    return {
        **machine.describe(),
        "settings": flags_used | {"learning_rate": task.LEARNING_RATE, "momentum": task.MOMENTUM},
        "arithmetic": {
            "forward_multiply_adds": task.multiply_adds() | {"total": sum(task.multiply_adds().values())},
            "training_multiply_adds": task.training_multiply_adds(),
            "training_flop": operations,
        },
        "matrix_product_flops": {"best": peak, "runs": products},
        "busy_percent_while_idle": {size: percent._asdict() for size, percent in busy.items()},
        "measurements": rows,
        "ratios": ratios(measurements, MEMBERS.value),
        "failures": failures,
    }


def run(names: list[str], images: Task) -> dict[str, Any]:
    """Measures everything."""
    products = [matrix_products(SECONDS.value)]
    progress("matrix product: " + ", ".join(f"{name} {flops / 1e9:.0f} GFLOP/s" for name, flops in products[0].items()))
    everyone = {name: Workers(ARRANGEMENTS[name].module, ARRANGEMENTS[name].options, images) for name in names}
    measurements: list[Measurement] = []
    busy: dict[int, machine.Busy] = {}
    failures: dict[str, str] = {}
    start = time.perf_counter()
    try:
        for done, batch_size in enumerate(BATCH_SIZES.value, 1):
            able = {name: workers for name, workers in everyone.items() if name not in failures}
            measured, busy[batch_size], failed = measure_batch_size(
                batch_size, able, MEMBERS.value, ROUNDS.value, SECONDS.value, LONGEST.value
            )
            measurements += measured
            failures |= failed
            taken = (time.perf_counter() - start) / 60
            progress(f"batch size {batch_size} done: {done} of {len(BATCH_SIZES.value)} after {taken:.1f} minutes")
    finally:
        for workers in everyone.values():
            workers.close()
    products.append(matrix_products(SECONDS.value))
    return results(measurements, products, busy, failures)


def refuse_bad_flags() -> None:
    """Raises RefusalError for invalid flags."""
    unknown = set(PEERS.value) - set(ARRANGEMENTS)
    if unknown:
        raise RefusalError(f"--arrangements: {', '.join(sorted(unknown))} not in {', '.join(ARRANGEMENTS)}")
    if TRAIN_SIZE.value < 2 * max(BATCH_SIZES.value):
        raise RefusalError(f"--train_size: {TRAIN_SIZE.value} is less than two batches of {max(BATCH_SIZES.value)}")
    if importlib.util.find_spec("torch") is None:
        raise RefusalError("PyTorch is not installed: pip install 'lenet_jax[benchmarks]'")


def main(argv: list[str]) -> None:
    """Measures and writes the results."""
    machine.flags_only(argv)
    try:
        refuse_bad_flags()
        names = [name for name in ARRANGEMENTS if name in PEERS.value or name == OURS]
        machine.warn_if(machine.busy())
        progress(f"this will take about {estimate_minutes(names):.0f} minutes on two cores")
        measured = run(names, task.load("mnist10k", TRAIN_SIZE.value))
    except (RefusalError, WorkerError) as error:
        sys.exit(f"throughput.py: {error}")
    out = expanded(OUT.value, "out")
    out.mkdir(parents=True, exist_ok=True)
    (out / "throughput.json").write_text(json.dumps(measured, indent=1) + "\n")
    table = report.throughput_table(measured)
    (out / "throughput.md").write_text(table)
    report.throughput_plot(measured, out / "throughput.png")
    print(table)
    progress(f"results are in {out}")


if __name__ == "__main__":
    app.run(main)
