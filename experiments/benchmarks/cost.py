"""Cost model of a run: time, memory and disk against members.

`devices.py` makes the measurements, and docs/scaling.md presents the results. Predictions are for one arm of M members
on MNIST (60,000 + 10,000 images): 20 epochs, batches of 32, SGD with momentum, and an evaluation of the test images
after each epoch (`test_curve`).
"""

import math
from typing import Any, NamedTuple

import report
import task

from lenet_jax.run import memory

PARAMETERS = 60_850
UNITS = 4704 + 1176 + 1600 + 400 + 120 + 84 + 10
"""Number of outputs of all layers, C1 to the output, for one image."""

BLOCKED_UNITS, INPUTS = 20_246, 4_704
"""Numbers stored per training sample by `blocked`, fitted to the compiler's prediction."""

LARGEST = 120 * 400 * 4
"""Size in bytes of the largest array of a member, C5's kernel."""

STATE = 2 * 4 * PARAMETERS + 8 + 4 + 4 + 2 * 4
"""Size in bytes of a member's state: parameters, momentum, random key, two step counts, running loss and error."""

TRAINING_FLOP = 2 * task.training_multiply_adds()
"""FLOP per training sample; a multiply-add counts as two."""

FORWARD_FLOP = 2 * sum(task.multiply_adds().values())
"""FLOP per evaluated image."""

TRAIN, TEST, EPOCHS, BATCH = 60_000, 10_000, 20, 32

MEMBER_FLOP = EPOCHS * TRAIN * TRAINING_FLOP + ((EPOCHS + 1) * TEST + TRAIN) * FORWARD_FLOP
"""FLOP of one member's run: all epochs, the test images after each epoch and before the first, and the training images
at the end."""

METRIC_ROWS = 5 * (EPOCHS + 1) + 2 * EPOCHS + 5
"""Rows per member in the metrics table: test, running, train."""

SAMPLE_BYTES = 4 * 4 * UNITS + 8 * 4 * PARAMETERS // BATCH
"""Lower bound on the bytes that a sample moves through an accelerator's memory if no layer is fused with the next.

Each output and its gradient is written and read. In each step, the parameters are read forward and backward, and their
gradient is written; the optimizer reads gradient, momentum and parameters and writes the last two. All in float32.
"""

PEAK, BANDWIDTH = 67e12, 3.35e12
"""Published values for an H100 SXM: float32 FLOP/s without tensor cores, and bytes/s."""

ROOFLINE = min(PEAK / TRAINING_FLOP, BANDWIDTH / SAMPLE_BYTES)
"""Upper bound on samples x members per second for each H100."""

H100_RATE = 3_654_752
"""Samples x members per second of one H100, measured with 4,096 members and batches of 32 (results/accelerator)."""

KEPT = 3
"""Largest number of states on disk: two are kept while a third is written."""

CROWDING = 0.15
"""Relative increase in epoch time for each additional device per core, fitted to 4 and 8 devices on two cores."""

DAY = 86_400.0


class Machine(NamedTuple):
    """An assumed machine to predict for. Sizes are free bytes.

    Attributes:
      workers: number of cores or accelerators that train.
      rate: samples x members per second of each worker; 0: as measured on a core.
      device: memory for members on each accelerator; 0: members are in `host`.
      host: memory of process 0.
      disk: disk space for the run folder.
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
    Machine("one H100 (predicted from its measured rate)", 1, H100_RATE, 60e9, 240e9, 2e12),
    Machine("256 H100 (predicted from the rate of one)", 256, H100_RATE, 60e9, 240e9, 100e12),
)
MEMBERS = (1_000, 10_000, 100_000, 1_000_000)


class Prediction(NamedTuple):
    """Predicted needs of a run, in seconds and bytes.

    Attributes:
      chunk: number of members that train together.
      train: seconds of training and evaluation.
      save: seconds to checkpoint one chunk once.
      device: bytes on the fullest accelerator; 0 without one.
      states: bytes in process 0 while it saves a chunk; on a CPU, in all processes.
      predictions, metrics: bytes in process 0 while it writes these tables.
      disk: largest size of the checkpoints on disk.
      parquet: size of the predictions table on disk.
      limit: resources that exceed the machine (time: a day), with factors, worst first; if none, the longest phase.
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
    """Predicted seconds per epoch of a point, from the speed of a core at the base point; devices share the cores."""

    def work(one: dict[str, Any]) -> float:
        used = min(one["devices"], one["members"])
        crowding = 1 + CROWDING * (used / one["effective"] - 1)
        return one["samples"] * one["members_padded"] / one["effective"] * crowding

    return base["epoch_seconds"] * work(point) / work(base)


def device_bytes(point: dict[str, Any]) -> float:
    """Modelled bytes of a point on all devices, to match the compiler's: images, members, and one batch per device."""
    used = min(point["devices"], point["members"])
    members = point["members_padded"] // used
    images = point["train_size"] * (32 * 32 + 4)
    # Before and after a step, unless a device has a single member, which is updated in place.
    states = members * STATE * (2 if members > 1 else 1)
    # All values of a batch and the inputs of its blocks, as float32; the gradient, and two copies of it.
    batch = (BLOCKED_UNITS + INPUTS) * 4 * point["batch_size"] + 3 * 4 * PARAMETERS
    return float(used * (images + states + batch))


def base_of(results: dict[str, Any]) -> dict[str, Any]:
    """The base point, which gives the speed of a core: one device per core, and the fewest members."""
    return next(point for point in results["points"] if point["devices"] == results["machine"]["cores"])


def save_seconds(results: dict[str, Any], members: int) -> float:
    """Predicted seconds to save `members`: linear in their number, through the smallest and the largest point."""
    small, large = results["points"][0], results["large"]
    each = (large["save_seconds"] - small["save_seconds"]) / (large["members"] - small["members"])
    return small["save_seconds"] + each * (members - small["members"])


def predict(results: dict[str, Any], checkpoint: dict[str, Any], machine: Machine, members: int) -> Prediction:
    """Predicts the needs of `members` on a machine, from the measurements on this one."""
    large, tables = results["large"], results["tables"]
    core = checkpoint["samples_per_second"] / checkpoint["workers"]
    rate = machine.rate or core
    workers = min(machine.workers, members)
    train = math.ceil(members / workers) * MEMBER_FLOP / TRAINING_FLOP / rate
    room = machine.device * machine.workers if machine.device else machine.host
    # As in `memory.member_memory`: a CPU's memory also holds what saving needs.
    most = int(room / 2 / (2 * STATE if machine.device else (2 + memory.SAVE_MEMORY_FACTOR) * STATE))
    chunk = math.ceil(members / math.ceil(members / most))
    # Several processes gather array by array, and each array is whole on every device.
    device = 2 * STATE * math.ceil(chunk / machine.workers) if machine.device else 0.0
    if machine.device and machine.workers > 1:
        device += LARGEST * chunk
    # Memory for writing, the gathered states and, on a CPU, the members themselves.
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
    """Formats seconds in the largest unit in which the value is at least 1."""
    for size, unit in ((DAY, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= size:
            return f"{seconds / size:.{1 if seconds < 10 * size else 0}f} {unit}"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds:.2f} s"


def size(count: float) -> str:
    """Formats bytes in the largest unit in which the value is at least 1."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if count >= unit:
            return f"{count / unit:.{1 if count < 10 * unit else 0}f} {name}"
    return f"{count / 1e3:.0f} kB" if count else "-"


def measured_points(results: dict[str, Any]) -> list[dict[str, Any]]:
    """All points, with the large one last."""
    return [*results["points"], results["large"]]


def devices_block(results: dict[str, Any]) -> str:
    """Table of measured and predicted costs on 1, 2, 4 and 8 devices."""
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
    """Table of the arithmetic by layer, and the compiler's count."""
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
    """Table of the time to save, as a fraction of an epoch."""
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
    """Table of predictions for each machine."""
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
    """Table of bytes per row of the two large tables."""
    header = ("table", "rows measured", "bytes a row in memory", "at the peak", "in Parquet")
    rows = [
        [name, f"{found['rows']:,}", *(f"{found[key]:.1f}" for key in ("held", "peak", "parquet"))]
        for name, found in results["tables"].items()
    ]
    return report.markdown(header, rows)


def blocks(results: dict[str, Any], checkpoint: dict[str, Any]) -> dict[str, str]:
    """Name -> text between its marks in docs/scaling.md."""
    return {
        "devices": devices_block(results),
        "flops": flops_block(results),
        "tables": tables_block(results),
        "checkpoint": checkpoint_block(checkpoint),
        "predictions": predictions_block(results, checkpoint),
    }
