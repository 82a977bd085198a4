"""What limits a comparison: of the runs, of the arms, and of what the tests can show."""

from collections.abc import Sequence
from typing import Any

from lenet_jax import stats
from lenet_jax.analysis import metrics
from lenet_jax.analysis.arms import FAILED, ArmStatistics, label, run_names, swept_axes
from lenet_jax.analysis.contrasts import TestedContrast
from lenet_jax.run.folder import PACKAGES, Run
from lenet_jax.run.names import format_value

MAX_ADVICE = 3
"""Undecided differences for which a comparison says what would show them."""


def comparability_notes(runs: Sequence[Run], arms: Sequence[ArmStatistics]) -> list[str]:
    """What limits a comparison: doubtful data, and differences in data or splits, epochs, settings, versions."""

    def differ(values: Sequence[Any]) -> bool:
        return any(value != values[0] for value in values)

    datasets = [{**run.summary["dataset"], "name": ""} for run in runs]
    measured_on = [{arm.data for arm in arms if arm.run == name} for name in run_names(runs)]
    ignored = ("sweep", "dataset", "data_dir", "seeds", "first_seed", "store_predictions")
    shared = [field for field in runs[0].config if all(field in run.config for run in runs) and field not in ignored]
    fields = [field for field in shared if differ([run.config[field] for run in runs])]
    versions = [run.provenance.get("versions", {}) for run in runs]
    changed = [name for name in PACKAGES if differ([version.get(name) for version in versions])]
    settings = [run.provenance["jax_settings"] for run in runs if "jax_settings" in run.provenance]
    set_otherwise = sorted({name for one in settings for name in one if one[name] != settings[0].get(name, one[name])})
    notes = {
        "warning: the runs used different data sets or splits of them": differ(datasets) or differ(measured_on),
        "warning: the runs trained for different numbers of epochs": "epochs" in fields,
        f"the runs' configs differ in {', '.join(fields)}": set(fields) - {"epochs"},
        f"warning: the runs were made with different versions of {', '.join(changed)}": changed,
        f"warning: the runs were made with different values of {', '.join(set_otherwise)}": set_otherwise,
    }
    of_data = [f"warning: {note}" for run in runs for note in run.provenance.get("notes", ())]
    return [*dict.fromkeys(of_data), *(note for note, applies in notes.items() if applies)]


def claim_limits(
    runs: Sequence[Run], metric: str, arms: Sequence[ArmStatistics], tested: Sequence[TestedContrast]
) -> list[str]:
    """Limits of the claims that can be made."""
    found, shown, of_networks = [], {arm.label for arm in arms}, metric not in metrics.OF_ARM
    for run, name in zip(runs, run_names(runs), strict=True):
        labels = [label(name, arm.name) for arm in run.arms]
        found += [f"{absent} has no {metrics.title(metric)}" for absent in labels if absent not in shown]
    over, few = arms[0].over, [arm.n for arm in arms if arm.n <= stats.FEW_SEEDS and of_networks]
    if few and max(few) < 2:
        found.append("with one seed per arm, the variation between seeds is unknown")
    elif few:
        coverage = 100 * (1 - 2 ** (1 - min(few)))
        found.append(
            f"{min(few)} seeds are few: the interval of a mean over seeds alone lies within the range of the values, "
            f"and covers the true mean in at most {coverage:.0f} % of studies (of symmetric values)"
        )
    for seeds in sorted({one.n for one in tested}) if over == "seeds" else ():
        if (smallest := stats.smallest_p(seeds)) >= stats.ALPHA:
            found.append(f"{seeds} seeds are too few for a claim: the smallest possible p-value is {smallest:.2g}")
    late: dict[str, int] = {}
    for run, name in zip(runs, run_names(runs), strict=True):
        late |= {label(name, arm): count for arm, count in metrics.unreached(run, metric).items() if count}
    for arm in arms:
        found += failures(arm, metric) if of_networks else []
        if arm.label in late:
            epochs = f"{metrics.epochs_to(metric)[1]} epochs"
            never = f"{late[arm.label]} of {arm.n} seeds of {arm.label} did not reach this error within {epochs}"
            found.append(f"{never}; they count as {epochs}")
        for name in arm.at_edge:
            value = format_value(arm.chosen[name])
            found.append(f"{arm.label} chose {name} {value}, at the edge of the grid; the optimum may lie beyond it")
    for run, name in zip(runs, run_names(runs), strict=True):
        rates = {arm.settings.get("learning_rate") for arm in arms if arm.run == name}
        if len(run.arms) > 1 and not run.config.get("tune") and len(rates) == 1:
            found.append("no hyperparameter was tuned; the shared values may suit some arms better than others")
    factorial = any(one.kind == "main effect" for one in tested)
    if len(runs) == 1 and len(swept_axes(arms)) > 1 and tested and not factorial:
        found.append("no main effects: they need all combinations of the axes, with the same seeds, images and labels")
    return [*found, *advice(tested)]


def failures(arm: ArmStatistics, metric: str) -> list[str]:
    """Networks of an arm that diverged or failed."""
    if arm.diverged == arm.n:
        return [f"all networks of {arm.label} diverged"]
    counts = [f"{arm.diverged} diverged"] * (arm.diverged > 0)
    counts += [f"{arm.failed} failed (test error above {100 * FAILED:.0f} % of a guess's)"] * (arm.failed > 0)
    if not counts:
        return []
    median = f"; the median is {metrics.show(arm.median, metric)}{metrics.unit(metric)}"
    mixed = "its mean, differences and effects mix networks that trained with networks that did not"
    return [f"of the {arm.n} networks of {arm.label}, {' and '.join(counts)}: {mixed}{median}"]


def advice(tested: Sequence[TestedContrast]) -> list[str]:
    """What would show the first undecided differences."""
    undecided = [one for one in tested if one.kind == "difference" and not (one.significant or one.equivalent)]
    found = []
    for name, (seeds, images, both) in [(one.name, one.needed) for one in undecided if one.needed][:MAX_ADVICE]:
        alone = [f"{rough(count):,} {what}" for count, what in ((seeds, "seeds"), (images, "test images")) if count]
        together = f"{rough(both[0]):,} seeds and {rough(both[1]):,} test images" if both else ""
        if len(alone) == 1:
            other = "seeds" if images else "test images"
            ways = f"{alone[0]} (more {other} alone do not suffice)"
        elif alone:
            ways = ", or ".join([*alone, together])
        elif together:
            ways = f"{together} (neither alone suffices)"
        else:
            continue
        found.append(f"{name}: to show a difference of this size in 80 % of studies takes about {ways}")
    return found


def rough(count: int) -> int:
    """A number rounded up to two digits: variances, and the difference itself, are known roughly."""
    step: int = 10 ** max(len(str(count)) - 2, 0)
    return -(-count // step) * step


def unknown_images(runs: Sequence[Run], metric: str) -> str:
    """Why there are no answers to single images."""
    without = [str(run.folder) for run in runs if not run.answers]
    if without and metrics.is_percent(metric):
        return f"{without[0]!r} stored no predictions (store_predictions=False)"
    return f"{metrics.title(metric)} is not known for two or more single test images"
