"""Comparing arms: statistics over seeds and test images, differences paired by both, and what limits the claims."""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np

from lenet_jax import crossed, stats
from lenet_jax.analysis import contrasts, metrics
from lenet_jax.analysis.arms import ArmStatistics, arm_statistics, run_names, scores_of, swept_axes
from lenet_jax.analysis.caveats import claim_limits, comparability_notes, unknown_images
from lenet_jax.analysis.contrasts import TestedContrast, Wanted
from lenet_jax.errors import InputError, check_choice
from lenet_jax.run.folder import Run
from lenet_jax.run.names import arm_named, format_value

ALL_PAIRS = "all"
"""The baseline that compares every pair of arms."""

Pair = tuple[ArmStatistics, ArmStatistics]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Arms, the differences, main effects and interactions that were tested (`judgements`), and notes on its limits.

    Attributes:
      over: what its intervals and tests cover, one of `crossed.OVER`.
      scale: of the contrasts, a key of `contrasts.SCALES`.
      margin: largest contrast without practical importance, on the scale; None if not given.
    """

    runs: tuple[Run, ...]
    metric: str
    over: str
    scale: str
    margin: float | None
    arms: tuple[ArmStatistics, ...]
    judgements: tuple[TestedContrast, ...]
    notes: tuple[str, ...]

    def of_kind(self, *kinds: str) -> list[TestedContrast]:
        """The tested contrasts of some kinds."""
        return [tested for tested in self.judgements if tested.kind in kinds]


def compare_runs(
    runs: Sequence[Run],
    metric: str = "test_error",
    baseline: str = "",
    difference: float | None = None,
    over: str = "both",
    scale: str = contrasts.POINTS,
    margin: float | None = None,
) -> Comparison:
    """Compares the arms of runs.

    Args:
      runs: from `folder.load`.
      metric: see `metrics`.
      baseline: the arm that all others are compared with, or ``all`` for every pair. The default is the first arm of a
        single run; of several runs, the matching arm of the first one.
      difference: true difference to compute `contrasts.Needed` for, in the unit of the contrasts; by default each
        measured difference.
      over: what intervals and tests cover, one of `crossed.OVER`; ``both`` means ``seeds`` where answers to single
        images are unknown.
      scale: of the contrasts, a key of `contrasts.SCALES`.
      margin: largest contrast without practical importance, as a difference on the scale.

    Raises:
      InputError: a run has no such metric or is there twice, no arm can be compared with the baseline, or a mean is not
        on the scale.

    Examples:
      >>> from lenet_jax.run import folder
      >>> found = compare_runs([folder.load("experiments/results/connectivity")]).judgements[0]
      >>> low, high = found.estimate.interval()  # 95 % over seeds and test images
      >>> found.name, round(low, 4), round(high, 4)
      ('connectivity=full against connectivity=table', -0.0032, 0.0004)
    """
    for first, second in itertools.combinations(runs, 2):
        copied = first.provenance == second.provenance and first.summary == second.summary
        if (copied and "started" in first.provenance) or first.folder.resolve() == second.folder.resolve():
            raise InputError(f"run: {str(first.folder)!r} and {str(second.folder)!r} are the same run")
    if difference is not None and not math.isfinite(difference):
        raise InputError(f"difference: {difference!r}; allowed is a finite number")
    check_choice("over", over, crossed.OVER)
    check_choice("scale", scale, contrasts.SCALES)
    arms, metric = arm_statistics(runs, metric, over), metrics.restricted(runs, metric)
    covered = arms[0].over
    if over == "images" and covered != over:
        raise InputError(f"over: 'images' needs answers to single images; {unknown_images(runs, metric)}")
    pairs, notes = pairs_of(runs, arms, baseline)
    wanted: list[Wanted] = []
    for arm, other in pairs:
        seeds = paired(arm, other, metric)
        if isinstance(seeds, str):
            notes.append(seeds)
            continue
        if len(seeds) < max(arm.n, other.n):
            notes.append(f"{arm.label} and {other.label} are compared on their {len(seeds)} common seeds")
        name, subject = (f"{arm.label} {word} {other.label}" for word in ("against", "instead of"))
        wanted.append(Wanted("difference", name, subject, {arm.label: 1.0, other.label: -1.0}, seeds))
    if baseline and pairs and not wanted:
        raise InputError(f"baseline: no arm can be compared with {baseline!r}; {notes[-1]}")
    if len(runs) == 1:
        wanted += effects_of(arms)
    values = {arm.label: arm.values for arm in arms}
    scores = scores_of(runs, metric) if covered != "seeds" and wanted else {}
    tested = contrasts.judge(wanted, values, scores, covered, scale, margin or 0.0, difference)
    if over != covered == "seeds" and metric not in metrics.OF_ARM:
        notes.append(f"intervals and tests cover new seeds on these images only: {unknown_images(runs, metric)}")
    notes = [*comparability_notes(runs, arms), *notes, *claim_limits(runs, metric, arms, tested)]
    return Comparison(
        tuple(runs), metric, covered, scale, margin, tuple(arms), tuple(tested), tuple(dict.fromkeys(notes))
    )


def pairs_of(runs: Sequence[Run], arms: Sequence[ArmStatistics], baseline: str) -> tuple[list[Pair], list[str]]:
    """Pairs of arms to compare, and notes on arms without a partner."""
    if baseline == ALL_PAIRS:
        return [(second, first) for first, second in itertools.combinations(arms, 2)], []
    if baseline:
        baseline = arm_named(baseline, {name for arm in arms for name in (arm.arm, arm.label)})
        named = [arm for arm in arms if baseline in (arm.arm, arm.label)]
        if not named:
            check_choice("baseline", baseline, [*dict.fromkeys(arm.label for arm in arms), ALL_PAIRS])
        notes = [f"{baseline} is in several runs; the baseline is {named[0].label}"] if len(named) > 1 else []
        return [(arm, named[0]) for arm in arms if arm is not named[0]], notes
    if len(runs) == 1:
        return [(arm, arms[0]) for arm in arms[1:]], []
    return matched(runs, arms)


def matched(runs: Sequence[Run], arms: Sequence[ArmStatistics]) -> tuple[list[Pair], list[str]]:
    """Arms of later runs, each with the arm of the first run that agrees in all settings that any run varies."""
    first, *later = run_names(runs)
    varied: set[str] = set()
    for name in (first, *later):
        own = [arm for arm in arms if arm.run == name]
        # Not varied, but tuned: settings that were chosen.
        fields = {field for arm in own for field in arm.settings} - set(own[0].chosen if own else ())
        varied |= {field for field in fields if len({repr(arm.settings.get(field)) for arm in own}) > 1}
    keys = {arm.label: [repr(arm.settings.get(field)) for field in sorted(varied)] for arm in arms}
    pairs, notes = [], []
    for arm in (arm for arm in arms if arm.run != first):
        partners = [other for other in arms if other.run == first and keys[other.label] == keys[arm.label]]
        if len(partners) == 1:
            pairs.append((arm, partners[0]))
        else:
            count = "several counterparts" if partners else "no counterpart"
            notes.append(f"{arm.label} has {count} in {first}; --baseline compares all arms with one")
    return pairs, notes


def paired(arm: ArmStatistics, other: ArmStatistics, metric: str) -> tuple[int, ...] | str:
    """The seeds that two arms are compared on, or the reason why they are not."""
    both = f"{arm.label} and {other.label} are not paired"
    if metric in metrics.OF_ARM:
        return f"{both}: {metric} is a single number per arm"
    if arm.data != other.data:
        return f"{both}: they were measured on different images"
    if metric.endswith("_loss") and any(
        arm.settings.get(field) != other.settings.get(field) for field in loss_fields()
    ):
        return f"{both}: they have different losses"
    seeds = arm.values.index.intersection(other.values.index)
    if len(seeds) < (1 if arm.over == "images" else 2):
        few = "only one common seed (--over=images compares its networks)" if len(seeds) else "no common seed"
        return f"{both}: they have {few}"
    finite = np.isfinite(arm.values.loc[seeds]) & np.isfinite(other.values.loc[seeds])
    if not finite.all():
        return f"{both}: {int((~finite).sum())} of {len(seeds)} differences are not finite"
    return tuple(map(int, seeds))


def loss_fields() -> list[str]:
    """Config fields that define a loss; arms that differ in one are not compared by loss."""
    from lenet_jax.losses import Loss  # with JAX, which no other comparison needs

    return ["loss", "output", *(field.name for field in dataclasses.fields(Loss) if field.name != "name")]


def effects_of(arms: Sequence[ArmStatistics]) -> list[Wanted]:
    """Main effects and interactions, if the arms are a full product of two or more axes with the same seeds."""
    axes, first = swept_axes(arms), arms[0]
    cells = {tuple(arm.axes.get(axis) for axis in axes): arm for arm in arms}
    whole = len(axes) > 1 and len(cells) == len(arms) == math.prod(map(len, axes.values()))
    alike = all(arm.values.index.equals(first.values.index) and arm.data == first.data for arm in arms)
    finite = all(np.isfinite(arm.values).all() for arm in arms)
    if not (whole and alike and finite) or first.n < (1 if first.over == "images" else 2):
        return []
    # The effects of arms that are 1 each in turn are the weights of the arms.
    effects = stats.effects(axes, dict(zip(cells, np.eye(len(arms)), strict=True)))
    labels, seeds = [arm.label for arm in cells.values()], tuple(map(int, first.values.index))
    return [
        Wanted(*effect_words(effect), dict(zip(labels, effect.differences.tolist(), strict=True)), seeds)
        for effect in effects
    ]


def effect_words(effect: stats.Effect) -> tuple[str, str, str]:
    """Kind, name and subject of a main effect or an interaction, see `TestedContrast`."""
    changes = [(format_value(new), format_value(old)) for old, new in effect.changes]
    names = [f"{new} against {old}" for new, old in changes]
    over = " and ".join(effect.over)
    tail = f", over {over}" if over else ""
    if len(effect.axes) == 1:
        (axis,), ((new, old),) = effect.axes, changes
        return "main effect", f"{axis}: {names[0]}{tail}", f"Averaged over {over}, {axis} {new} instead of {old}"
    product = " x ".join(f"{axis} ({name})" for axis, name in zip(effect.axes, names, strict=True)) + tail
    return "interaction", product, f"The interaction {product}"
