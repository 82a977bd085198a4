"""Seconds from the command to the finished comparison: whole experiments of lenet_jax, and the same in PyTorch.

Every job is timed as a user starts it, from the start of the first process to the end of the last:

- lenet_jax_cold: `lenet-jax run` and then `lenet-jax compare`, with an empty cache folder ($XDG_CACHE_HOME);
- lenet_jax_warm: the same again in a new run folder, with the cache that the cold run left;
- torch: `job_torch.py` in PyTorch eager, with one process per core, each with one thread;
- torch_compile_cold: the same with torch.compile and an empty cache folder ($TORCHINDUCTOR_CACHE_DIR);
- torch_compile_warm: the same again, with the cache that the cold run left.

The jobs are

- quickstart: `experiments/quickstart.py`, 4 arms of 8 networks;
- tuned: `experiments/ablation.py` at a tenth of its samples: the embedded digits instead of MNIST (a twelfth of the
  images) for 12 epochs instead of 10, and a fixed grid of learning rates;
- one: a single network with the quickstart's settings, without a second arm to compare it with.

Both sides train networks of the same architecture from the same initial distribution, with the same losses, learning
rates, batches, epochs and fresh random orders; they evaluate the same images at the same epochs with the same metrics,
store weights and predictions, and print a table with intervals. `training_torch.py` describes how the PyTorch code is
written, and why. Where the two differ, PyTorch does less: it reads images that are exported from lenet_jax before the
timing, doesn't count training errors during epochs, saves no checkpoints to resume from, and draws no figures.

Before any timing, one network of each arm of the quickstart trains on both sides from the same weights and with the
same orders of the images; the benchmark stops if their errors differ by more than --tolerance test images. It also
stops if the 95 % intervals of the two sides for the mean error of an arm don't overlap, unless tuning chose different
learning rates. Rounds interleave the arrangements: A B C, A B C, ... Those of --once are timed in the first round only.
Ratios are computed within each round; tables show their medians.

Cost: three rounds of the quickstart and of one network take a quarter of an hour on two cores, which must be
otherwise idle; with the other job and torch.compile it is hours. Finished rounds are stored in FOLDER/partial.json:
repeating the command measures only what is missing, and rounds during which other programs used more than 5 % of the
processor. Requires PyTorch: pip install 'lenet_jax[benchmarks]', or --python with an interpreter that has it.

    .venv/bin/python experiments/benchmarks/time_to_result.py [--jobs=quickstart,one] [--out=FOLDER]

Writes FOLDER/time_to_result.json (all rounds, machine, versions) and time_to_result.md; FOLDER is
experiments/results/time_to_result by default.
"""

import ast
import functools
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jobs
import machine
import numpy as np
import report
from absl import app, flags
from jobs import JOBS, Job, RefusalError

from lenet_jax import stats
from lenet_jax.errors import InputError
from lenet_jax.paths import expanded

HERE = Path(__file__).parent
EXPERIMENTS = HERE.parent


ARRANGEMENTS = ("lenet_jax_cold", "lenet_jax_warm", "torch", "torch_compile_cold", "torch_compile_warm")
OURS = ARRANGEMENTS[:2]

LOSS_TOLERANCE = 1e-5
"""Relative tolerance of the validation loss of equal initial weights."""

JOB_LIST = flags.DEFINE_list("jobs", list(JOBS), f"Of {', '.join(JOBS)}.")
TIMED = flags.DEFINE_list("arrangements", list(ARRANGEMENTS), f"Of {', '.join(ARRANGEMENTS)}.")
ONCE = flags.DEFINE_list("once", list(ARRANGEMENTS[3:]), "Arrangements that are timed in the first round only.")
ROUNDS = flags.DEFINE_integer("rounds", 3, "Number of times that each job is timed.", lower_bound=1)
TOLERANCE = flags.DEFINE_integer("tolerance", 10, "Largest difference of errors from equal weights, in test images.")
FIELDS = flags.DEFINE_multi_string("fields", [], "Config field of all jobs, as epochs=1, for a trial; repeat the flag.")
PYTHON = flags.DEFINE_string("python", sys.executable, "The Python interpreter of the PyTorch jobs.")
OUT = flags.DEFINE_string("out", str(EXPERIMENTS / "results" / "time_to_result"), "Folder for the results.")


# --- Timing


def timed(commands: list[list[str]], variables: dict[str, str], folder: Path) -> dict[str, Any]:
    """Runs commands one after the other in a folder, and times each.

    Raises:
      RefusalError: a command failed.
    """
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": ""} | variables
    folder.mkdir(parents=True, exist_ok=True)
    steps = []
    before, own, start = machine.cpu_seconds(), os.times(), time.perf_counter()
    for command in commands:
        began = time.perf_counter()
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
        steps.append(time.perf_counter() - began)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [""])[-1]
            raise RefusalError(f"{Path(command[0]).name} {command[1]} ended with code {done.returncode}: {last}")
    seconds, now = time.perf_counter() - start, os.times()
    return {
        "seconds": seconds,
        "steps": steps,
        "cpu_seconds": now.children_user + now.children_system - own.children_user - own.children_system,
        "others_percent": 100 * (machine.cpu_seconds() - before) / (seconds * machine.cores()),
    }


def time_ours(job: Job, folder: Path, cache: Path) -> dict[str, Any]:
    """Times `lenet-jax run` and `lenet-jax compare`, in a new run folder."""
    program = shutil.which("lenet-jax", path=str(Path(sys.executable).parent)) or "lenet-jax"
    fields = [f"--config.{name}={value}" for name, value in job.fields.items()]
    run = [program, "run", f"--config={EXPERIMENTS / job.experiment}.py", *fields, f"--workdir={folder}"]
    found = timed([run, [program, "compare", str(folder)]], {"XDG_CACHE_HOME": str(cache)}, folder.parent)
    arms = json.loads((folder / "summary.json").read_text())["arms"]
    of_run, compare = found.pop("steps")
    return found | {
        "parts": {**parts_of(arms, of_run), "compare": compare},
        "errors": {arm["name"]: arm["test_error"]["per_seed"] for arm in arms},
        "chosen": {arm["name"]: arm["settings"]["learning_rate"] for arm in arms},
    }


def parts_of(arms: list[dict[str, Any]], seconds: float) -> dict[str, float]:
    """Parts of a run of `seconds`, from the rows of its summary: its arms without training, training, and the rest.

    Training is not stored for networks that hyperparameters are chosen by: with tuning, it is part of the arms.
    """
    training = 0.0
    for arm in arms:
        settings, rate = arm["settings"], arm["samples_per_second"]
        batches = arm["dataset"]["train"] // settings["batch_size"]
        samples = batches * settings["batch_size"] * settings["epochs"] * arm["seeds"]
        training += 0 if arm["chosen"] else samples / rate
    in_arms = sum(arm["seconds"] for arm in arms)
    parts = {"training": training, "arms without training" if training else "arms": in_arms - training}
    return {name: value for name, value in parts.items() if value} | {"start-up and tables": seconds - in_arms}


def time_torch(path: Path, folder: Path, cache: Path, compiled: bool) -> dict[str, Any]:
    """Times the PyTorch job."""
    command = [PYTHON.value, str(HERE / "job_torch.py"), str(path), str(folder), *["--compile"] * compiled]
    found = timed([command], {"TORCHINDUCTOR_CACHE_DIR": str(cache)}, folder)
    found.pop("steps")
    results = json.loads((folder / "results.json").read_text())
    processes = min(machine.cores(), sum(len(arm["seeds"]) for arm in results.values()))
    training, evaluating = np.sum([arm["seconds"] for arm in results.values()], axis=0) / processes
    rest = found["seconds"] - training - evaluating
    return found | {
        "parts": {"training": training, "evaluation": evaluating, "rest": rest},
        "errors": {name: arm["errors"] for name, arm in results.items()},
        "chosen": {name: arm["rate"] for name, arm in results.items()},
    }


def time_round(job: Job, names: list[str], progress: str) -> dict[str, Any]:
    """Times a job in each of these arrangements; ``others_percent`` is the highest of any."""
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        path = jobs.exported(job, folder / "exported")
        for name in names:
            cache = folder / ("xla" if name in OURS else "inductor")
            if name in OURS:
                rows[name] = time_ours(job, folder / name, cache)
            else:
                rows[name] = time_torch(path, folder / name, cache, name != "torch")
            say(f"{progress}, {name}: {rows[name]['seconds']:.1f} s")
    return {"arrangements": rows, "others_percent": max(row["others_percent"] for row in rows.values())}


# --- Checks


def check_equal_start(quickstart: Job) -> dict[str, Any]:
    """Trains the first network of each arm on both sides, from equal weights and with equal orders of the images.

    Returns:
      The differences of the losses before training (relative, the largest) and after every epoch, and of the test
      errors (in images), by arm.
    """
    import pandas as pd

    job = quickstart._replace(fields={**quickstart.fields, "seeds": 1})
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        path = jobs.exported(job, folder / "exported", given=True)
        mine = time_ours(job, folder / "ours", folder / "xla")
        time_torch(path, folder / "torch", folder / "inductor", compiled=False)
        theirs = json.loads((folder / "torch" / "results.json").read_text())
        metrics = pd.read_parquet(folder / "ours" / "metrics.parquet")
        summary = json.loads((folder / "ours" / "summary.json").read_text())
    images = summary["dataset"]["test"]
    rows = {}
    for name, found in theirs.items():
        curve = metrics[(metrics.arm == name) & (metrics.split == "validation") & (metrics.metric == "loss")]
        losses = curve.sort_values("epoch").value.to_numpy()
        apart = np.abs(np.array(found["histories"][0]["validation/loss"]) / losses - 1)
        rows[name] = {
            "loss": apart.tolist(),
            "errors": [round(images * errors[0]) for errors in (mine["errors"][name], found["errors"])],
        }
    return {"arms": rows, "images": images, "others_percent": 0.0}


def refuse_unequal(checked: dict[str, Any], tolerance: int) -> None:
    """Raises RefusalError if the networks of `check_equal_start` differ by more than rounding."""
    for name, row in checked["arms"].items():
        mine, theirs = row["errors"]
        if not row["loss"][0] <= LOSS_TOLERANCE:
            raise RefusalError(f"{name}: equal weights give losses that differ by {row['loss'][0]:.1e} of the loss")
        if abs(mine - theirs) > tolerance:
            raise RefusalError(
                f"{name}: trained from equal weights, lenet_jax makes {mine} and PyTorch {theirs} errors on "
                f"{checked['images']} test images; allowed is a difference of {tolerance}"
            )


def compare_errors(rows: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean test errors of lenet_jax and of the first peer, with their 95 % intervals over seeds, by arm.

    Every peer's are checked. The intervals are None for a single seed.

    Raises:
      RefusalError: a peer's interval of an arm doesn't overlap lenet_jax's, although both chose the same learning rate.
    """
    ours = next((row for name, row in rows.items() if name in OURS), None)
    peers = {name: row for name, row in rows.items() if name not in OURS}
    compared = []
    for (peer, theirs), arm in itertools.product(peers.items(), ours["errors"] if ours else []):
        errors = [np.array(side["errors"][arm], float) for side in (ours, theirs)]
        rates = [side["chosen"][arm] for side in (ours, theirs)]
        intervals = [[float(end) for end in stats.t_interval(values)] for values in errors]
        several = min(map(len, errors)) > 1
        (low, high), (peer_low, peer_high) = intervals
        if several and rates[0] == rates[1] and not (low <= peer_high and peer_low <= high):
            raise RefusalError(
                f"{arm}: the mean error of lenet_jax is {low:.4f} to {high:.4f}, that of {peer} {peer_low:.4f} to "
                f"{peer_high:.4f} (95 % intervals)"
            )
        means = [float(values.mean()) for values in errors]
        if peer == next(iter(peers)):
            row = {"arm": arm, "means": means, "intervals": intervals if several else None, "learning_rates": rates}
            compared.append(row)
    return compared


# --- Results


def ratios(rounds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How many times longer each peer takes than lenet_jax: the ratio of each round, their median, least, greatest."""
    rows = []
    for ours in OURS:
        for peer in ARRANGEMENTS[2:]:
            values = [
                found[peer]["seconds"] / found[ours]["seconds"] for found in rounds if peer in found and ours in found
            ]
            if values:
                ends = {"median": statistics.median(values), "min": min(values), "max": max(values)}
                rows.append({"ours": ours, "peer": peer, **ends, "rounds": values})
    return rows


def results_of(job: Job, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """A job's entry in the results file."""
    names = [name for name in ARRANGEMENTS if name in rounds[0]]
    return {
        **job._asdict(),
        "seconds": {name: statistics.median(r[name]["seconds"] for r in rounds if name in r) for name in names},
        "ratios": ratios(rounds),
        "errors": compare_errors(rounds[0]),
        "rounds": rounds,
    }


def say(message: str) -> None:
    """Prints a line on stderr."""
    print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)


def refuse_bad_flags() -> None:
    """Raises RefusalError for invalid flags."""
    for flag, allowed in ((JOB_LIST, JOBS), (TIMED, ARRANGEMENTS), (ONCE, ARRANGEMENTS)):
        if unknown := set(flag.value) - set(allowed):
            raise RefusalError(f"--{flag.name}: {', '.join(sorted(unknown))} not in {', '.join(allowed)}")
    for index in range(2):
        names = names_of_round(index)
        for name in names:
            if (cold := name.replace("warm", "cold")) not in names:
                raise RefusalError(f"--arrangements: {name} needs {cold} in the same round, which fills its cache")
    for field in FIELDS.value:
        if "=" not in field:
            raise RefusalError(f"--fields: expected NAME=VALUE, got {field!r}")
    found = subprocess.run([PYTHON.value, "-c", "import torch"], capture_output=True, check=False)
    if found.returncode:
        raise RefusalError(
            f"{PYTHON.value} has no PyTorch: pip install 'lenet_jax[benchmarks]', or name one by --python"
        )


def names_of_round(index: int) -> list[str]:
    """The arrangements that are timed in a round, in order."""
    return [name for name in ARRANGEMENTS if name in TIMED.value and (index == 0 or name not in ONCE.value)]


def given_jobs() -> dict[str, Job]:
    """All jobs, with --fields."""
    pairs = [field.partition("=")[::2] for field in FIELDS.value]
    fields = {name: ast.literal_eval(value) if value[:1].isdigit() else value for name, value in pairs}
    return {name: job._replace(fields={**job.fields, **fields}) for name, job in JOBS.items()}


def header() -> dict[str, Any]:
    """`machine.header`, with the versions of the PyTorch job."""
    code = "import json, platform, torch; print(json.dumps([platform.python_version(), torch.__version__]))"
    python, torch = json.loads(subprocess.check_output([PYTHON.value, "-c", code], text=True))
    found = machine.header()
    versions = found["versions"] | {"torch": torch}
    if python != versions["python"]:
        versions["python of PyTorch"] = python
    return found | {"versions": versions, "settings": {"fields": FIELDS.value, "once": ONCE.value}}


def main(argv: list[str]) -> None:
    """Measures and writes the results."""
    machine.flags_only(argv)
    out = expanded(OUT.value, "out")
    try:
        refuse_bad_flags()
        results = header()
        kept = {key: results[key] for key in ("machine", "versions", "commit", "settings")}
        partial = machine.Partial(out / "partial.json", kept)
        described = given_jobs()
        wanted = {name: job for name, job in described.items() if name in JOB_LIST.value}
        checked = partial.obtain("check", lambda: check_equal_start(described["quickstart"]))
        refuse_unequal(checked, TOLERANCE.value)
        measured: dict[str, list[dict[str, Any]]] = {name: [] for name in wanted}
        for name, job in wanted.items():
            for index in range(ROUNDS.value):
                names, label = names_of_round(index), f"{name}, round {index + 1} of {ROUNDS.value}"
                key = f"{name}, round {index + 1}: {', '.join(names)}"
                found = partial.obtain(key, functools.partial(time_round, job, names, label))
                compare_errors(found["arrangements"])
                measured[name].append(found)
    except (RefusalError, InputError) as error:
        sys.exit(f"time_to_result.py: {error}")
    rounds = [found for job in measured.values() for found in job]
    results |= {
        "check": checked,
        "others_percent": max(found["others_percent"] for found in rounds),
        "jobs": {
            name: results_of(wanted[name], [found["arrangements"] for found in job]) for name, job in measured.items()
        },
    }
    if results["others_percent"] <= machine.BUSY_PERCENT:
        partial.done()
    (out / "time_to_result.json").write_text(json.dumps(results, indent=1) + "\n")
    table = report.time_to_result_table(results)
    (out / "time_to_result.md").write_text(table)
    print(table)
    say(f"results are in {out}")


if __name__ == "__main__":
    app.run(main)
