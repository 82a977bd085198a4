"""Tables and plots of the benchmarks, made from their results files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

OURS = "lenet_jax"

# Okabe and Ito's colour-blind-safe colours; markers and dashes distinguish the lines as well.
STYLES: dict[str, dict[str, Any]] = {
    OURS: {"color": "#D55E00", "marker": "o", "linewidth": 2.5, "zorder": 5},
    "torch": {"color": "#0072B2", "marker": "s"},
    "torch_compile": {"color": "#56B4E9", "marker": "v"},
    "torch_processes": {"color": "#0072B2", "marker": "D", "linestyle": "--"},
    "torch_compile_processes": {"color": "#56B4E9", "marker": "^", "linestyle": "--"},
    "flax_loop": {"color": "#009E73", "marker": "P"},
    "flax_scan": {"color": "#000000", "marker": "X", "linestyle": ":"},
}

LABELS = {
    OURS: "lenet_jax",
    "torch": "PyTorch eager",
    "torch_compile": "torch.compile",
    "torch_processes": "PyTorch, a process a core",
    "torch_compile_processes": "torch.compile, a process a core",
    "flax_loop": "Flax vmap, Python loop",
    "flax_scan": "Flax vmap, lax.scan",
}


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def short(number: float) -> str:
    """Formats a number with at least two digits and no exponent."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.1f}" if number >= 1 else f"{number:.2f}"


def provenance(results: dict[str, Any]) -> str:
    """One line with the machine, the versions and the date."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    where = f"{results['machine']['processor']}, {results['machine']['cores']} cores"
    return f"{where}; {versions}; {results['date']}.\n"


def throughput_table(results: dict[str, Any]) -> str:
    """One table for each number of members, with a row per batch size and a column per arrangement."""
    settings = results["settings"]
    names = list(dict.fromkeys(row["arrangement"] for row in results["measurements"]))
    measured = {(m["arrangement"], m["batch_size"], m["members"]): m for m in results["measurements"]}
    ratios = {(r["peer"], r["batch_size"], r["members"]): r for r in results["ratios"]}

    def cell(name: str, batch_size: int, members: int) -> str:
        row = measured.get((name, batch_size, members)) or measured.get((name, batch_size, "any"))
        if row is None:
            return "failed"
        rate = f"{row['samples_per_second']:,.0f}"
        if name == OURS:
            return f"**{rate}** ({row['fraction_of_matrix_product']:.0%} of peak)"
        ratio = ratios[name, batch_size, members]
        once = ", once" if len(ratio["rounds"]) < settings["rounds"] else ""
        return f"{rate} ({short(ratio['median'])}x, {short(ratio['min'])} to {short(ratio['max'])}{once})"

    peak = results["matrix_product_flops"]
    products = " and ".join(
        f"{max(run[name] for run in peak['runs']) / 1e9:.0f} ({label})"
        for name, label in (("jax", "JAX"), ("torch", "PyTorch"))
    )
    text = [
        "# Training throughput\n",
        f"Samples x members per second: median of {settings['rounds']} interleaved rounds of at least "
        f"{settings['seconds']:g} s each. In brackets: how many times faster lenet_jax is, as median, least and "
        "greatest of the rounds' ratios (`once`: a single call took longer than "
        f"{settings['longest']:g} s and was timed once); "
        "for lenet_jax, its useful arithmetic as a fraction of the peak.\n",
        provenance(results),
        f"A training sample takes {results['arithmetic']['training_multiply_adds'] / 1e3:,.0f} k multiply-adds "
        f"({results['arithmetic']['forward_multiply_adds']['total'] / 1e3:,.0f} k forward) = "
        f"{results['arithmetic']['training_flop'] / 1e6:.2f} MFLOP. "
        f"Float32 matrix product, 2048 x 2048, GFLOP/s: {products}; the higher one is the peak.\n",
    ]
    for members in settings["members"]:
        header = ["batch size", *(LABELS[name] for name in names)]
        rows = [[str(b), *(cell(name, b, members) for name in names)] for b in settings["batch_sizes"]]
        text += [f"## {members} member{'s' * (members > 1)}\n", markdown(header, rows)]
    text.append(
        "PyTorch's columns don't depend on the number of members: members train one after another, or one a core. "
        "`A process a core` trains as many members as there are cores, even in the table of a single member.\n"
    )
    total, own = (max(busy[key] for busy in results["busy_percent_while_idle"].values()) for key in ("total", "own"))
    text.append(
        f"While every arrangement waited, the processor was at most {total:.0f} % busy, "
        f"at most {own:.0f} % by their processes.\n"
    )
    text += [f"{LABELS[name]} FAILED: {reason}\n" for name, reason in results["failures"].items()]
    return "\n".join(text)


def throughput_summary(results: dict[str, Any]) -> str:
    """Table for the README: lenet_jax, the best PyTorch and the best Flax arrangement at each batch size."""
    measured = results["measurements"]
    rows = []
    for count in results["settings"]["members"]:
        # One process per core trains as many members as there are cores, which does not apply to a single member.
        left_out = ("torch_processes", "torch_compile_processes") if count == 1 else ()
        for size in results["settings"]["batch_sizes"]:
            here = [
                row
                for row in measured
                if row["batch_size"] == size and row["members"] in (count, "any") and row["arrangement"] not in left_out
            ]
            ours = next(row for row in here if row["arrangement"] == OURS)
            cells = [str(count), str(size), f"**{ours['samples_per_second']:,.0f}**"]
            for family in ("torch", "flax"):
                best = max(
                    (row for row in here if row["arrangement"].startswith(family)),
                    key=lambda row: row["samples_per_second"],
                )
                ratio = next(
                    row["median"]
                    for row in results["ratios"]
                    if (row["peer"], row["batch_size"], row["members"]) == (best["arrangement"], size, count)
                )
                cells += [f"{best['samples_per_second']:,.0f} ({LABELS[best['arrangement']]})", f"{short(ratio)}x"]
            rows.append([*cells, f"{ours['fraction_of_matrix_product']:.0%}"])
    header = ["networks", "batch size", "lenet_jax", "best PyTorch", "", "best Flax", "", "of peak"]
    return markdown(header, rows)


def throughput_plot(results: dict[str, Any], path: Path) -> None:
    """Samples x members per second against batch size, with one panel for each number of members."""
    import matplotlib as mpl  # imported here: worker processes import this module's caller but do not plot

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    members, sizes = results["settings"]["members"], results["settings"]["batch_sizes"]
    names = list(dict.fromkeys(row["arrangement"] for row in results["measurements"]))
    figure, axes = plt.subplots(
        1, len(members), figsize=(1.2 + 3.6 * len(members), 5.2), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, count in zip(axes[0], members, strict=True):
        for name in names:
            rows = [r for r in results["measurements"] if r["arrangement"] == name and r["members"] in (count, "any")]
            rows.sort(key=lambda row: row["batch_size"])
            rates = [row["samples_per_second"] for row in rows]
            axis.plot([row["batch_size"] for row in rows], rates, label=LABELS[name], **STYLES[name])
            for row in rows:  # slowest and fastest round
                ends = [round["samples_per_second"] for round in row["rounds"]]
                axis.vlines(row["batch_size"], min(ends), max(ends), color=STYLES[name]["color"], linewidth=1)
        axis.set(title=f"{count} member{'s' * (count > 1)}", xlabel="batch size", xscale="log", yscale="log")
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.minorticks_off()
        axis.yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("samples x members per second")
    axes[0, 0].yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, 1 + len(members)), frameon=False)
    figure.suptitle(f"Training LeNet-5 on {results['machine']['cores']} cores: more is better")
    figure.savefig(path, dpi=150)
    plt.close(figure)


AXES = {"members": "members", "batch_size": "batch size", "train_size": "training images"}
IDEAL = {"members": "1, from the number of cores on", "batch_size": "0 or less", "train_size": "1"}

POINT_HEADER = (
    "members",
    "batch size",
    "images of the epoch",
    "seconds an epoch",
    "samples x members per second",
    "seconds to create",
    "peak memory, MiB",
    "grown by, MiB",
    "predicted, MiB",
)


def point_row(point: dict[str, Any]) -> list[str]:
    """Table row for a point of the scaling benchmark."""
    grown = point["grown_bytes"]
    return [
        f"{point['members']:,}",
        str(point["batch_size"]),
        f"{point['train_size']:,}",
        f"{point['seconds_per_epoch']:.3g}",
        f"{point['samples_per_second']:,.0f}",
        f"{point['create_seconds']:.1f}",
        *(f"{size / 2**20:,.0f}" for size in (point["peak_bytes"], grown, point["predicted_bytes"])),
    ]


MEMORY_NOTE = (
    "Peak memory is the sum of the largest resident sets of all processes, Python and JAX included; what they share "
    "counts for each. The workers' grew by so much since they had loaded the data, which includes what JAX and "
    "compiling take. Predicted is what the compiler says that training alone takes.\n"
)


def scaling_table(results: dict[str, Any]) -> str:
    """One table for each axis, with its exponent, and one for many members."""
    text = ["# Scaling\n", provenance(results), MEMORY_NOTE]
    for axis, points in results["axes"].items():
        fitted = results["exponents"][axis]
        text.append(f"## {AXES[axis].capitalize()}\n")
        if fitted is not None:
            text.append(f"Seconds an epoch ~ ({AXES[axis]})^{fitted:.2f}; ideal: {IDEAL[axis]}.\n")
        text.append(markdown(POINT_HEADER, [point_row(point) for point in points]))
    if results["many"]:
        text += ["## Many members\n", markdown(POINT_HEADER, [point_row(results["many"])])]
    return "\n".join(text)


def memory_table(results: dict[str, Any]) -> str:
    """Table for the point on a full data set."""
    point = results["full"]
    title = f"# {point['members']} members on {point['dataset']}: {point['images_in_memory']:,} images in memory\n"
    return "\n".join([title, provenance(results), MEMORY_NOTE, markdown(POINT_HEADER, [point_row(point)])])


def scaling_plot(results: dict[str, Any], path: Path) -> None:
    """Plots seconds per epoch with its fit, seconds to create, and peak memory (rows) against each axis (columns)."""
    import matplotlib as mpl  # imported here, as above

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(3, len(AXES), figsize=(11, 8.5), sharex="col", sharey="row", layout="constrained")
    for column, (axis, label) in enumerate(AXES.items()):
        points = results["axes"][axis]
        at = [point[axis] for point in points]
        fitted = results["exponents"][axis]
        title = label if fitted is None else f"{label}: epoch ~ n^{fitted:.2f}"
        axes[0, column].plot(at, [point["seconds_per_epoch"] for point in points], color="#D55E00", marker="o")
        axes[1, column].plot(at, [point["create_seconds"] for point in points], color="#009E73", marker="s")
        grown = [point["grown_bytes"] / 2**20 for point in points]
        predicted = [point["predicted_bytes"] / 2**20 for point in points]
        axes[2, column].plot(at, grown, color="#0072B2", marker="D", label="grown by")
        axes[2, column].plot(at, predicted, color="#56B4E9", marker="^", linestyle="--", label="predicted")
        axes[0, column].set(title=title, xscale="log", yscale="log")
        axes[2, column].set(xlabel=label, yscale="log")
        axes[2, column].set_xticks(at, [str(value) for value in at])
        axes[2, column].xaxis.set_minor_locator(mpl.ticker.NullLocator())
    labels = ("seconds an epoch", "seconds to create\n(compile, initialize)", "memory, MiB")
    for row, label in zip(axes, labels, strict=True):
        row[0].set_ylabel(label)
        for axis in row:
            if axis.get_yscale() == "log":
                axis.yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
                axis.yaxis.set_minor_locator(mpl.ticker.NullLocator())
                axis.yaxis.set_major_formatter("{x:g}")
            axis.grid(alpha=0.3)
            axis.spines[["top", "right"]].set_visible(False)
    axes[1, 0].set_ylim(bottom=0)
    axes[2, 0].legend(frameon=False)
    base = results["base"]
    figure.suptitle(
        f"Cost of a population on {results['machine']['cores']} cores, around {base['members']} members, "
        f"batches of {base['batch_size']}, {base['train_size']:,} images"
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)


def accelerator_table(results: dict[str, Any]) -> str:
    """A table for each stage of the accelerator benchmark."""
    accelerator = results.get("device", ["", "unknown"])[1]
    text = ["# One accelerator\n", f"{accelerator}; host: {provenance(results)}"]
    for stage, rows in results["stages"].items():
        names = list(dict.fromkeys(name for row in rows for name in row if name != "rounds"))
        names += ["slowest window", "fastest window"] * any("rounds" in row for row in rows)
        ends = [
            {"slowest window": min(row.get("rounds", [0])), "fastest window": max(row.get("rounds", [0]))}
            for row in rows
        ]
        cells = [
            [accelerator_cell(name, (row | end).get(name)) for name in names]
            for row, end in zip(rows, ends, strict=True)
        ]
        header = [name.replace("_bytes", ", MB").replace("_", " ") for name in names]
        text += [f"## {stage}\n", markdown(header, cells)]
    text += [f"FAILED: {point}, exit code {code}\n" for point, code in results["failures"].items()]
    return "\n".join([*text, *results.get("notes", [])]).rstrip("\n") + "\n"


def accelerator_cell(name: str, value: Any) -> str:
    """A cell of `accelerator_table`; bytes in MB."""
    if name.endswith("_bytes") and value is not None:
        value /= 1e6
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < abs(value) < 0.01 else f"{value:.3g}" if value < 10 else short(value)
    return (
        "" if value is None else f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    )


JOB_LABELS = {
    "lenet_jax_cold": "lenet_jax, cold",
    "lenet_jax_warm": "lenet_jax, warm",
    "torch": "PyTorch eager",
    "torch_compile_cold": "torch.compile, cold",
    "torch_compile_warm": "torch.compile, warm",
}


def time_to_result_summary(results: dict[str, Any]) -> str:
    """Table for the README: seconds of lenet_jax, cold and warm, and of the fastest PyTorch arrangement of each job."""
    rows = []
    for name, job in results["jobs"].items():
        peers = {peer: seconds for peer, seconds in job["seconds"].items() if peer.startswith("torch")}
        ratios = {(row["ours"], row["peer"]): row["median"] for row in job["ratios"]}
        best = min(peers, key=peers.__getitem__) if peers else None
        cells = [name]
        for ours in ("lenet_jax_cold", "lenet_jax_warm"):
            seconds = f"**{short(job['seconds'][ours])} s**" if ours in job["seconds"] else ""
            cells += [seconds, f"{short(ratios[ours, best])}x" if (ours, best) in ratios else ""]
        rows.append([*cells, f"{short(peers[best])} s ({JOB_LABELS[best]})" if best else ""])
    return markdown(["job", "lenet_jax, cold", "", "lenet_jax, warm", "", "fastest PyTorch"], rows)


def time_to_result_table(results: dict[str, Any]) -> str:
    """The summary, and for each job a table of its arrangements and one of the errors of both sides."""
    checked = results["check"]
    fields = results["settings"]["fields"]
    text = [
        "# Seconds to the finished comparison\n",
        "Whole jobs, from the command to the table: start-up, compiling, training, evaluation, saving, statistics. "
        "Medians of interleaved rounds. `4.0x`: lenet_jax finishes 4 times sooner, the median of the ratios within "
        "rounds. Cold: with empty caches of compiled programs; warm: the same job once more. "
        "`experiments/benchmarks/time_to_result.py` describes the jobs and how they are timed.\n",
        provenance(results),
        *([f"TRIAL with {', '.join(fields)}: not the jobs' own size.\n"] if fields else []),
        time_to_result_summary(results),
    ]
    for name, job in results["jobs"].items():
        chosen = "".join(f" --config.{field}={value}" for field, value in job["fields"].items())
        text += [f"## {name}\n", f"    lenet-jax run --config=experiments/{job['experiment']}.py{chosen}\n"]
        text += [
            markdown(["arrangement", *TIME_COLUMNS], [time_row(job, arrangement) for arrangement in job["seconds"]])
        ]
        if job["errors"]:
            text.append(markdown(ERROR_COLUMNS, [error_row(row) for row in job["errors"]]))
    text.append("## Checks\n")
    text.append(
        "One network of each arm trained on both sides from the same weights, with the same images in the same order. "
        f"Errors on {checked['images']:,} test images, and the relative difference of the validation losses:\n"
    )
    rows = [
        [arm, *map(str, row["errors"]), f"{row['loss'][0]:.1e}", f"{max(row['loss']):.1e}"]
        for arm, row in checked["arms"].items()
    ]
    text.append(markdown(["arm", "lenet_jax", "PyTorch", "before training", "largest of all epochs"], rows))
    text.append(
        f"Before the timing, the processor was {results['busy_percent_before']:.0f} % busy; during it, other programs "
        f"used at most {results['others_percent']:.1f} %.\n"
    )
    return "\n".join(text)


TIME_COLUMNS = (
    "seconds",
    "least",
    "greatest",
    "lenet_jax cold is faster",
    "lenet_jax warm is faster",
    "CPU s",
    "parts, s",
)
ERROR_COLUMNS = ("arm", "lenet_jax, %", "95 %", "PyTorch, %", "95 %", "learning rates")


def time_row(job: dict[str, Any], name: str) -> list[str]:
    """Row of an arrangement: its seconds, the ratios to it, processor seconds and parts of the first round."""
    rounds = [found[name] for found in job["rounds"] if name in found]
    seconds = [found["seconds"] for found in rounds]
    ratios = {row["ours"]: row for row in job["ratios"] if row["peer"] == name}
    cells = [JOB_LABELS[name] + ", once" * (len(rounds) < len(job["rounds"]))]
    cells += [short(job["seconds"][name]), short(min(seconds)), short(max(seconds))]
    for ours in ("lenet_jax_cold", "lenet_jax_warm"):
        found = ratios.get(ours)
        cells.append(f"{short(found['median'])}x ({short(found['min'])} to {short(found['max'])})" if found else "")
    parts = ", ".join(f"{part} {short(value)}" for part, value in rounds[0]["parts"].items())
    return [*cells, short(rounds[0]["cpu_seconds"]), parts]


def error_row(row: dict[str, Any]) -> list[str]:
    """Row of an arm: mean test error and its interval, of both sides."""
    cells = [row["arm"]]
    for mean, ends in zip(row["means"], row["intervals"] or (None, None), strict=True):
        cells += [f"{100 * mean:.2f}", " to ".join(f"{100 * end:.2f}" for end in ends) if ends else ""]
    return [*cells, ", ".join(f"{rate:g}" for rate in dict.fromkeys(row["learning_rates"]))]
