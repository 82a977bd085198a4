"""The cost of a run on 1, 2, 4 and 8 host devices, to check the model of `cost.py` and docs/scaling.md.

Each point runs in a fresh process with the single-process engine (`population`), pinned to one core per device if there
are enough cores. It uses mnist10k, the network of `task.py` and batches of 32. Measured are

- seconds to compile all programs, without the persistent cache;
- seconds of an epoch of 4,000 images: the fastest within --seconds, after the first;
- the growth of the process in bytes, the compiler's prediction of it, and the compiler's count of FLOPs and bytes;
- seconds to take a snapshot, to save it with `checkpoints.Chunk` and to restore it; bytes on disk.

Then a large population trains for a short epoch, and the bytes per row of the tables of many members are measured. With
--dataset=idx:FOLDER (all of MNIST), the benchmark instead measures the fraction of an epoch spent on saving: 8 members,
worker processes as in experiments, medians of 4 epochs.

Cost: about 4 minutes on two cores that must be otherwise idle; with --dataset, about 1 minute. If other programs use
more than 5 % of the processor during a point (`others_percent`), it is measured again, up to --attempts times, and the
least disturbed attempt is kept. Rerunning the same command then measures only the disturbed points. --tables measures
the tables alone, whose sizes don't depend on the load; the other results stay those that are stored.

    .venv/bin/python experiments/benchmarks/devices.py [--dataset=idx:FOLDER | --tables] [--out=FOLDER]

Writes FOLDER/devices.json and devices.md, or checkpoint.json and checkpoint.md; FOLDER is experiments/results/devices
by default. Rewrites the marked blocks of docs/scaling.md (--doc) from both.
"""

import ctypes
import gc
import json
import os
import re
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import cost
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

ROOT = Path(__file__).parents[2]
BATCH = 32
LARGE = 1000
"""Number of members in the large population."""
SHORT = 320
"""Images in its epoch."""
PATIENCE = 60.0
"""Longest time, in seconds, that a point waits for other programs to become idle."""
REPEATS = 3
"""Number of snapshots, saves and restores per point."""

DEVICES = flags.DEFINE_multi_integer("devices", [1, 2, 4, 8], "Host devices; repeat the flag.", lower_bound=1)
MEMBERS = flags.DEFINE_multi_integer("members", [8, 64], "Members; repeat the flag.", lower_bound=1)
SECONDS = flags.DEFINE_float("seconds", 4.0, "Minimum seconds of measured epochs per point.", lower_bound=0.0)
DATASET = flags.DEFINE_string("dataset", "", "Measure the time of saving on this data set instead, as idx:FOLDER.")
TABLES = flags.DEFINE_bool("tables", False, "Measure the tables alone again; keep what else is stored.")
ATTEMPTS = flags.DEFINE_integer("attempts", 4, "Maximum number of measurements of a point.", lower_bound=1)
OUT = flags.DEFINE_string("out", str(ROOT / "experiments" / "results" / "devices"), "Folder for the results.")
DOC = flags.DEFINE_string("doc", str(ROOT / "docs" / "scaling.md"), "Page whose marked blocks are rewritten.")


TABLE_KINDS = ("predictions", "metrics")
"""The tables of a run whose rows are measured."""


class Point(NamedTuple):
    """A measurement that runs in one process; epochs are repeated for `seconds` (0: one epoch)."""

    devices: int
    members: int
    train_size: int
    seconds: float


class Growth:
    """Peak growth of this process in bytes, from construction on (Linux)."""

    def __init__(self) -> None:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # memory freed by compiling would be reused and hide the growth
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        self._before = psutil.Process().memory_info().rss

    def bytes(self) -> int:
        """Peak growth until now."""
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert found
        return int(found[1]) * 1024 - self._before


def timed(function: Any, *arguments: Any) -> tuple[Any, float]:
    """Result of a function call, and its duration in seconds."""
    start = time.perf_counter()
    result = function(*arguments)
    return result, time.perf_counter() - start


def measure(point: Point) -> dict[str, Any]:
    """Trains, saves and restores a population on `point.devices` devices. Call it in a fresh process."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: point.devices])

    import jax  # imported here: the main process does not run JAX

    from lenet_jax import population, programs

    population.configure(point.devices)
    jax.config.update("jax_enable_compilation_cache", False)
    images = task.load("mnist10k", point.train_size).images
    recipe = task.recipe(BATCH, point.train_size)
    used = min(point.devices, point.members)
    mesh = programs.mesh_of(jax.devices()[:used])
    turns, together = population.turns_of(point.members, mesh)
    compiled, compile_seconds = timed(programs.compile_programs, recipe, together, len(images.labels), mesh)
    analysis = compiled.train_segment.cost_analysis() or {}
    analysis = analysis[0] if isinstance(analysis, list) else analysis

    growth = Growth()
    hyper = task.hyperparameters(point.members)
    members, create_seconds = timed(population.create, range(point.members), hyper, images, recipe)
    passes, begun = [], time.perf_counter()
    while len(passes) < 2 or time.perf_counter() - begun < point.seconds:
        passes.append(timed(population.train_segment, members)[1])
        if not point.seconds:
            break
    grown = growth.bytes()
    seconds = min(passes[1:] or passes)
    return {
        **point._asdict(),
        "batch_size": BATCH,
        "samples": recipe.epoch_steps * BATCH,
        "members_padded": turns * together,
        "effective": min(used, machine.cores()),
        "compile_seconds": compile_seconds,
        "create_seconds": create_seconds,
        "passes": passes,
        "epoch_seconds": seconds,
        "samples_per_second": recipe.epoch_steps * BATCH * point.members / seconds,
        "grown_bytes": grown,
        "predicted_bytes": members.memory,
        "xla_flops": analysis.get("flops"),
        "xla_bytes": analysis.get("bytes accessed"),
        **saving(population, members),
    }


def saving(engine: Any, members: Any) -> dict[str, Any]:
    """Median seconds of snapshots, saves and restores of a population; bytes on disk, and in memory during a save."""
    from lenet_jax.run.checkpoints import STATES, ArmStore, Chunk
    from lenet_jax.run.states import Checkpoint

    times: dict[str, list[float]] = {"snapshot_seconds": [], "save_seconds": [], "restore_seconds": []}
    history = {f"test/{name}": np.zeros((1, members.size)) for name in ("loss", "error", "nll", "brier", "ece")}
    with tempfile.TemporaryDirectory() as folder:
        chunk = Chunk(Path(folder) / f"tested-0-{members.size}", ArmStore(Path(folder)))
        growth = Growth()
        for step in range(1, REPEATS + 1):
            state, seconds = timed(engine.snapshot, members)
            times["snapshot_seconds"].append(seconds)
            times["save_seconds"].append(timed(chunk.save, Checkpoint(step, state, history, 0.0, 0.0))[1])
        peak = growth.bytes()
        saved = chunk.folder / STATES / str(REPEATS)
        disk = sum(path.stat().st_size for path in saved.rglob("*") if path.is_file())
        for _ in range(REPEATS):
            found, reading = timed(chunk.latest)
            times["restore_seconds"].append(reading + timed(engine.restore, members, found.state)[1])
        again = engine.snapshot(members)
    assert all(np.array_equal(again[name], array) for name, array in state.items())
    size = sum(array.nbytes for array in state.values())
    return {name: statistics.median(values) for name, values in times.items()} | {
        "state_bytes": size,
        "disk_bytes": disk,
        "disk_share": disk / size,
        "save_peak_share": peak / size,
    }


def measure_tables(kind: str) -> dict[str, Any]:
    """Bytes per row of a table of many members, as a run makes and writes it. Call it in a fresh process."""
    import pandas as pd

    from lenet_jax import evaluate as evaluation
    from lenet_jax.experiments import base
    from lenet_jax.run import files, loop, plan, runner
    from lenet_jax.run.arms import Arm, expand

    config = base.get_config()
    config.epochs, config.test_curve = cost.EPOCHS, True
    arm = Arm("activation=tanh,loss=cross_entropy", {"activation": "tanh", "loss": "cross_entropy"}, {})
    rng = np.random.default_rng(0)
    if kind == "predictions":
        count = 200
        shape = count, cost.TEST
        margin, confidence = rng.random((2, *shape), np.float32)
        loss, nll, brier = rng.exponential(0.1, (3, *shape)).astype(np.float32)
        predicted = rng.integers(0, 10, shape, np.int32)
        found = evaluation.Predictions(predicted, margin, loss, nll, brier, confidence)
        labels = rng.integers(0, 10, cost.TEST, np.int32)
    else:
        count = 10_000
        epochs = {"running": cost.EPOCHS, "test": cost.EPOCHS + 1, "train": 1}
        names = dict.fromkeys(epochs, ("loss", "error", "nll", "brier", "ece")) | {"running": ("loss", "error")}
        history = {
            f"{split}/{name}": list(rng.random((epochs[split], count))) for split in epochs for name in names[split]
        }
    growth = Growth()
    if kind == "predictions":
        table = loop.prediction_frame(found, labels, range(count))
    else:
        table = loop.history_frame(
            history,
            range(cost.EPOCHS + 1),
            plan.Members(list(range(count)), {}),
            plan.make(expand(config)).arms[0].test,
        )
    table = pd.concat([table], ignore_index=True)
    if kind == "metrics":
        table = table.sort_values(["epoch", "split", "metric", "seed"], kind="stable")
    # Combines all arms as `runner.finish` does.
    table = pd.concat([runner.labelled(table, arm)], ignore_index=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.parquet"
        files.write_table(path, table)
        parquet = path.stat().st_size
        peak, rows = growth.bytes(), len(table)
        files.write_table(path, table.drop(columns=["nll", "brier"], errors="ignore"))
        scores = parquet - path.stat().st_size
    held = int(table.memory_usage(deep=True).sum())
    of_rows = {"held": held, "peak": peak, "parquet": parquet, "parquet_scores": scores}
    return {"rows": rows} | {name: size / rows for name, size in of_rows.items()}


def measure_checkpoint(name: str) -> dict[str, Any]:
    """Fraction of an epoch spent on saving, with worker processes. Call it in a fresh process."""
    import jax

    from lenet_jax import library, train
    from lenet_jax.run.checkpoints import ArmStore, Chunk
    from lenet_jax.run.states import Checkpoint
    from lenet_jax.run.workers import Workers

    count, epochs = 8, 4
    images = task.load(name).images
    recipe = task.recipe(BATCH, len(images.labels))
    parts = train.segments_for(recipe, count)
    assert parts == 1, "an epoch is one part"
    workers = min(library.cores(), count)
    rows: dict[str, list[float]] = {"epoch_seconds": [], "snapshot_seconds": [], "save_seconds": []}
    history = {f"test/{name}": np.zeros((1, count)) for name in ("loss", "error", "nll", "brier", "ece")}
    with tempfile.TemporaryDirectory() as folder, Workers(workers) as engine:
        chunk = Chunk(Path(folder) / f"tested-0-{count}", ArmStore(Path(folder)))
        members = engine.create(range(count), task.hyperparameters(count), images, recipe)
        for epoch in range(1, epochs + 1):
            rows["epoch_seconds"].append(timed(engine.train_segment, members)[1])
            state, seconds = timed(engine.snapshot, members)
            rows["snapshot_seconds"].append(seconds)
            saved = Checkpoint(epoch * recipe.epoch_steps, state, history, 0.0, 0.0)
            rows["save_seconds"].append(timed(chunk.save, saved)[1])
    shares = [(snapshot + save) / epoch for epoch, snapshot, save in zip(*rows.values(), strict=True)]
    medians = {key: statistics.median(values) for key, values in rows.items()}
    return medians | {
        "members": count,
        "workers": workers,
        "samples": recipe.epoch_steps * BATCH,
        "epochs": rows,
        "share": statistics.median(shares),
        "samples_per_second": recipe.epoch_steps * BATCH * count / medians["epoch_seconds"],
        "backend": jax.default_backend(),
    }


def fresh(function: Any, *arguments: Any) -> dict[str, Any]:
    """Calls a function in a fresh process, and repeats the call if other programs disturb it."""
    attempts: list[dict[str, Any]] = []
    timing = function is not measure_tables  # sizes do not depend on the load
    while len(attempts) < (ATTEMPTS.value if timing else 1):
        deadline = time.monotonic() + PATIENCE * timing
        while machine.busy().total > machine.BUSY_PERCENT and time.monotonic() < deadline:
            pass
        before, started = machine.cpu_seconds(), time.perf_counter()
        with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
            result: dict[str, Any] = pool.submit(function, *arguments).result()
        all_cores = (time.perf_counter() - started) * machine.cores()
        result["others_percent"] = 100 * (machine.cpu_seconds() - before) / all_cores
        attempts.append(result)
        if result["others_percent"] <= machine.BUSY_PERCENT:
            break
    result = min(attempts, key=lambda attempt: attempt["others_percent"])
    numbers = {key: value for key, value in result.items() if isinstance(value, float)}
    told = ", ".join(f"{key} {value:.4g}" for key, value in numbers.items())
    print(f"{time.strftime('%H:%M:%S')} {function.__name__} {arguments}: {told}", file=sys.stderr, flush=True)
    return result


def resumed(partial: machine.Partial, point: Point) -> dict[str, Any]:
    """Stored result of a point, or `fresh` if there is none."""
    return partial.obtain(repr(tuple(point)), lambda: fresh(measure, point))


def rewrite(page: Path, blocks: dict[str, str]) -> None:
    """Replaces the text between the marks of each block."""
    text = page.read_text()
    for name, block in blocks.items():
        text = re.sub(
            rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda m, b=block: m[1] + b + m[2], text, flags=re.S
        )
    page.write_text(text)


def main(argv: list[str]) -> None:
    """Measures, writes the results, and rewrites the page."""
    machine.flags_only(argv)
    if not DATASET.value and machine.cores() not in DEVICES.value:
        sys.exit(f"devices.py: --devices: {DEVICES.value} must include {machine.cores()}, the number of cores here")
    header = machine.header()
    out = expanded(OUT.value, "out")
    try:
        if DATASET.value:
            datasets.load(DATASET.value)  # reports unreadable data in one line
            results = header | fresh(measure_checkpoint, DATASET.value)
            name, table = "checkpoint", cost.checkpoint_block(results)
        elif TABLES.value:
            results = json.loads((out / "devices.json").read_text())
            results |= {"tables": {kind: fresh(measure_tables, kind) for kind in TABLE_KINDS}}
            results |= {"tables_date": header["date"], "tables_commit": header["commit"]}
            name = "devices"
        else:
            partial = machine.Partial(out / "partial.json", {key: header[key] for key in ("machine", "versions")})
            points = [
                resumed(partial, Point(devices, members, 4000, SECONDS.value))
                for devices in DEVICES.value
                for members in MEMBERS.value
            ]
            large = resumed(partial, Point(machine.cores(), LARGE, SHORT, 0.0))
            tables = {kind: fresh(measure_tables, kind) for kind in TABLE_KINDS}
            results = header | {"points": points, "large": large, "tables": tables}
            name = "devices"
            if all(one["others_percent"] <= machine.BUSY_PERCENT for one in (*points, large)):
                partial.done()
        if name == "devices":
            table = "\n".join([cost.devices_block(results), cost.flops_block(results), cost.tables_block(results)])
    except (InputError, BrokenProcessPool) as error:
        sys.exit(f"devices.py: {error}")
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    title = "Devices" if name == "devices" else f"Saving {results['members']} members on {DATASET.value}"
    (out / f"{name}.md").write_text(f"# {title}\n\n{report.provenance(results)}\n{table}")
    print(table)
    print(f"results are in {out}", file=sys.stderr)
    stored = [out / f"{kind}.json" for kind in ("devices", "checkpoint")]
    if all(path.exists() for path in stored) and expanded(DOC.value, "doc").exists():
        rewrite(expanded(DOC.value, "doc"), cost.blocks(*(json.loads(path.read_text()) for path in stored)))


if __name__ == "__main__":
    app.run(main)
