"""What a run costs, as a model: time, memory and disk against members. `devices.py` measures it; docs/scaling.md tells.

Predictions are for one arm of M members on MNIST (60,000 + 10,000 images), 20 epochs, batches of 32, SGD with momentum,
and the test images evaluated after each epoch (`test_curve`).
"""

import math
from typing import Any, NamedTuple

import report
import task

from lenet_jax.run import memory

PARAMETERS = 60_850
UNITS = 4704 + 1176 + 1600 + 400 + 120 + 84 + 10
"""Outputs of all layers, C1 to the output, of one image."""

BLOCKED_UNITS, INPUTS = 20_246, 4_704
"""Numbers that a sample's training keeps, as `blocked` computes it: fitted to what the compiler predicts."""

LARGEST = 120 * 400 * 4
"""Bytes of the largest array of a member, C5's kernel."""

STATE = 2 * 4 * PARAMETERS + 8 + 4 + 4 + 2 * 4
"""Bytes of a member's state: parameters, momentum, random key, two counts of updates, running loss and error."""

TRAINING_FLOP = 2 * task.training_multiply_adds()
"""Of one training sample. A multiply-add is two."""

FORWARD_FLOP = 2 * sum(task.multiply_adds().values())
"""Of one evaluated image."""

TRAIN, TEST, EPOCHS, BATCH = 60_000, 10_000, 20, 32

MEMBER_FLOP = EPOCHS * TRAIN * TRAINING_FLOP + ((EPOCHS + 1) * TEST + TRAIN) * FORWARD_FLOP
"""Of one member's run: all passes; the test images after each and before the first; the training images at the end."""

METRIC_ROWS = 5 * (EPOCHS + 1) + 2 * EPOCHS + 5
"""Rows of the metrics table of one member: test, running, train."""

SAMPLE_BYTES = 4 * 4 * UNITS + 8 * 4 * PARAMETERS // BATCH
"""Bytes that a sample moves through an accelerator's memory, at least, if no layer is fused with the next: every output
written and read, its gradient too; and a step's parameters: read forward, read backward, gradient written; then the
optimizer reads gradient, momentum and parameters and writes the last two. In float32."""

PEAK, BANDWIDTH = 67e12, 3.35e12
"""Of an H100 SXM, as published: float32 FLOP/s without tensor cores, and bytes/s."""

ROOFLINE = min(PEAK / TRAINING_FLOP, BANDWIDTH / SAMPLE_BYTES)
"""Samples x members per second and H100, at most."""

KEPT = 3
"""States on disk at most: two are kept while a third is written."""

CROWDING = 0.15
"""By how much longer a pass takes for each further device on a core; fitted to 4 and 8 devices on two cores."""

DAY = 86_400.0


class Machine(NamedTuple):
    """A machine to predict for, as assumed. Bytes are free ones.

    Attributes:
      workers: cores that each train, or accelerators.
      rate: samples x members per second of each; 0: as measured on a core.
      device: memory for members on each accelerator; 0: they are in `host`.
      host: memory of process 0.
      disk: for the run folder.
    """

    name: str
    workers: int
    rate: float
    device: float
    host: float
    disk: float


MACHINES = (
    Machine("laptop, 2 cores", 2, 0.0, 0.0, 12e9, 100e9),
    Machine("node, 64 cores", 64, 0.0, 0.0, 240e9, 2e12),
    Machine("one H100 (predicted, never measured)", 1, ROOFLINE, 60e9, 240e9, 2e12),
    Machine("256 H100 (predicted, never measured)", 256, ROOFLINE, 60e9, 240e9, 100e12),
)
MEMBERS = (1_000, 10_000, 100_000, 1_000_000)


class Prediction(NamedTuple):
    """What a run needs. Seconds and bytes.

    Attributes:
      chunk: members that train together.
      train: seconds of training and evaluation.
      save: seconds of one saving of one chunk.
      device: on the fullest accelerator; 0 without one.
      states: in process 0 while it saves a chunk; on a CPU in all processes.
      predictions, metrics: in process 0 while it writes these tables.
      disk: of checkpoints at most.
      parquet: of the predictions table.
      limit: what exceeds its machine, by how much, the worst first (time: a day); if nothing does, what takes longest.
    """

    chunk: int
    train: float
    save: float
    device: float
    states: float
    predictions: float
    metrics: float
    disk: float
    parquet: float
    limit: str


def epoch_seconds(point: dict[str, Any], base: dict[str, Any]) -> float:
    """Of a measured point, from the FLOP/s of one core, which another point gives: all devices share the cores."""

    def work(one: dict[str, Any]) -> float:
        used = min(one["devices"], one["members"])
        crowding = 1 + CROWDING * (used / one["effective"] - 1)
        return one["samples"] * one["members_padded"] / one["effective"] * crowding

    return base["epoch_seconds"] * work(point) / work(base)


def device_bytes(point: dict[str, Any]) -> float:
    """Of a measured point, on all devices, as the compiler predicts them: images, members, one batch on each."""
    used = min(point["devices"], point["members"])
    members = point["members_padded"] // used
    images = point["train_size"] * (32 * 32 + 4)
    # Before and after an update, unless a device has one alone, which is updated in place.
    states = members * STATE * (2 if members > 1 else 1)
    # All values of a batch and what its blocks are cut from, as float32; the gradient, and two copies of it.
    batch = (BLOCKED_UNITS + INPUTS) * 4 * point["batch_size"] + 3 * 4 * PARAMETERS
    return float(used * (images + states + batch))


def base_of(results: dict[str, Any]) -> dict[str, Any]:
    """The point that gives the speed of a core: as many devices as cores, and the fewest members."""
    return next(point for point in results["points"] if point["devices"] == results["machine"]["cores"])


def save_seconds(results: dict[str, Any], members: int) -> float:
    """Of saving so many members: a constant and a share for every byte, from the smallest and the largest point."""
    small, large = results["points"][0], results["large"]
    each = (large["save_seconds"] - small["save_seconds"]) / (large["members"] - small["members"])
    return small["save_seconds"] + each * (members - small["members"])


def predict(results: dict[str, Any], checkpoint: dict[str, Any], machine: Machine, members: int) -> Prediction:
    """What `members` need on a machine, from what was measured on this one."""
    large, tables = results["large"], results["tables"]
    core = checkpoint["samples_per_second"] / checkpoint["workers"]
    rate = machine.rate or core
    workers = min(machine.workers, members)
    train = math.ceil(members / workers) * MEMBER_FLOP / TRAINING_FLOP / rate
    room = machine.device * machine.workers if machine.device else machine.host
    # As `memory.member_memory`: a CPU's memory holds what saving takes, too.
    most = int(room / 2 / (2 * STATE if machine.device else (2 + memory.SAVE_MEMORY_FACTOR) * STATE))
    chunk = math.ceil(members / math.ceil(members / most))
    # Several processes gather array by array, and each array is whole on every device.
    device = 2 * STATE * math.ceil(chunk / machine.workers) if machine.device else 0.0
    if machine.device and machine.workers > 1:
        device += LARGEST * chunk
    # What writing takes; what was gathered; and on a CPU the members themselves.
    states = chunk * STATE * (large["save_peak_share"] + (1 if machine.device else 2))
    save = save_seconds(results, chunk)
    disk = STATE * (members + (KEPT - 1) * chunk) * large["disk_share"]
    rows = members * TEST
    predictions, metrics = rows * tables["predictions"]["peak"], members * METRIC_ROWS * tables["metrics"]["peak"]
    shares = {
        "device memory": device / machine.device if machine.device else 0.0,
        "states": states / machine.host,
        "predictions": predictions / machine.host,
        "metrics": metrics / machine.host,
        "checkpoints": disk / machine.disk,
        "time": train / DAY,
    }
    over = sorted((name for name in shares if shares[name] > 1), key=lambda name: -shares[name])
    limit = ", ".join(f"{name} {shares[name]:.{1 if shares[name] < 10 else 0}f}x" for name in over)
    if not over:
        saving = save * math.ceil(members / chunk)
        seconds = {"compiling": large["compile_seconds"], "training": train, "saving": saving}
        limit = "none; longest: " + max(seconds, key=lambda name: seconds[name])
    parquet = rows * tables["predictions"]["parquet"]
    return Prediction(chunk, train, save, device, states, predictions, metrics, disk, parquet, limit)


def duration(seconds: float) -> str:
    """In the largest unit that leaves at least 1."""
    for size, unit in ((DAY, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= size:
            return f"{seconds / size:.{1 if seconds < 10 * size else 0}f} {unit}"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds:.2f} s"


def size(count: float) -> str:
    """Bytes in the largest unit that leaves at least 1."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if count >= unit:
            return f"{count / unit:.{1 if count < 10 * unit else 0}f} {name}"
    return f"{count / 1e3:.0f} kB" if count else "-"


def measured_points(results: dict[str, Any]) -> list[dict[str, Any]]:
    """All, and the large one last."""
    return [*results["points"], results["large"]]


def devices_block(results: dict[str, Any]) -> str:
    """Measured and predicted on 1, 2, 4 and 8 devices."""
    base = base_of(results)
    header = (
        "devices",
        "members",
        "compile",
        "samples x members/s",
        "s an epoch",
        "predicted",
        "memory grown, MB",
        "compiler's, MB",
        "snapshot, s",
        "save, s",
        "restore, s",
        "on disk, MB",
        "predicted, MB",
    )
    rows = [
        [
            str(point["devices"]),
            f"{point['members']:,}",
            f"{point['compile_seconds']:.1f} s",
            f"{point['samples_per_second']:,.0f}",
            f"{point['epoch_seconds']:.2f}",
            f"{epoch_seconds(point, base):.2f}",
            f"{point['grown_bytes'] / 1e6:.0f}",
            f"{point['predicted_bytes'] / 1e6:.0f}",
            f"{point['snapshot_seconds']:.3f}",
            f"{point['save_seconds']:.2f}",
            f"{point['restore_seconds']:.2f}",
            f"{point['disk_bytes'] / 1e6:.2f}",
            f"{point['members'] * STATE / 1e6:.2f}",
        ]
        for point in measured_points(results)
    ]
    return report.markdown(header, rows)


def flops_block(results: dict[str, Any]) -> str:
    """The arithmetic by layer, and what the compiler counts."""
    forward = task.multiply_adds()
    rows = [[name, f"{count:,}", f"{count * (2 if name == 'c1' else 3):,}"] for name, count in forward.items()]
    rows.append(["all", f"{sum(forward.values()):,}", f"{task.training_multiply_adds():,}"])
    table = report.markdown(("layer", "forward, multiply-adds", "training, multiply-adds"), rows)
    point = results["points"][0]
    if not point["xla_flops"]:
        return table
    step = point["batch_size"] * TRAINING_FLOP
    return (
        f"{table}\nA step of {point['batch_size']} samples: {step / 1e6:.1f} MFLOP by hand; the compiler counts "
        f"{point['xla_flops'] / 1e6:.1f} MFLOP and {point['xla_bytes'] / 1e6:.1f} MB for the program.\n"
    )


def checkpoint_block(checkpoint: dict[str, Any]) -> str:
    """The share of an epoch that saving takes."""
    header = ("members", "epoch, s", "snapshot, s", "save, s", "share of the epoch", "samples x members/s")
    row = [
        str(checkpoint["members"]),
        f"{checkpoint['epoch_seconds']:.2f}",
        f"{checkpoint['snapshot_seconds']:.3f}",
        f"{checkpoint['save_seconds']:.3f}",
        f"{100 * checkpoint['share']:.1f} %",
        f"{checkpoint['samples_per_second']:,.0f}",
    ]
    return report.markdown(header, [row])


def predictions_block(results: dict[str, Any], checkpoint: dict[str, Any]) -> str:
    """A table for each machine."""
    header = (
        "members",
        "training",
        "members a chunk",
        "one saving",
        "device memory",
        "states",
        "predictions",
        "metrics",
        "checkpoints",
        "predictions.parquet",
        "limits, the first one first",
    )
    text = []
    for machine in MACHINES:
        rows = []
        for members in MEMBERS:
            found = predict(results, checkpoint, machine, members)
            sizes = (found.device, found.states, found.predictions, found.metrics, found.disk, found.parquet)
            times = duration(found.train), f"{found.chunk:,}", duration(found.save)
            rows.append([f"{members:,}", *times, *map(size, sizes), found.limit])
        text.append(f"**{machine.name[0].upper()}{machine.name[1:]}**\n\n{report.markdown(header, rows)}")
    return "\n".join(text)


def tables_block(results: dict[str, Any]) -> str:
    """Bytes a row of the two big tables."""
    header = ("table", "rows measured", "bytes a row in memory", "at the peak", "in Parquet")
    rows = [
        [name, f"{found['rows']:,}", *(f"{found[key]:.1f}" for key in ("held", "peak", "parquet"))]
        for name, found in results["tables"].items()
    ]
    return report.markdown(header, rows)


def blocks(results: dict[str, Any], checkpoint: dict[str, Any]) -> dict[str, str]:
    """Name -> what stands between its marks in docs/scaling.md."""
    return {
        "devices": devices_block(results),
        "flops": flops_block(results),
        "tables": tables_block(results),
        "checkpoint": checkpoint_block(checkpoint),
        "predictions": predictions_block(results, checkpoint),
    }
