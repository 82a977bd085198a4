"""What a run will do: every arm resolved once, before anything is compiled or written."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lenet_jax import evaluate as evaluation
from lenet_jax import optim, train
from lenet_jax.data import datasets, preprocess
from lenet_jax.data.datasets import Dataset
from lenet_jax.distortions import Augmentation
from lenet_jax.errors import MAX_LISTED, InputError, one_line, shortened
from lenet_jax.losses import Loss
from lenet_jax.model import Architecture
from lenet_jax.run.arms import Arm
from lenet_jax.run.candidates import Tuning, Values
from lenet_jax.run.files import seal_of
from lenet_jax.run.parts import own_parts
from lenet_jax.train import Images, Recipe

MAX_STEPS = 2**31 - 1
"""Optimizer steps of a training, which are counted in 32 bits."""

TESTED, TRIED = "tested", "tried"
"""Names of phases: members that are an arm's result, and (with a number) members that hyperparameters are chosen by."""

STATE = "state"
"""The split, in tables, of the user's metrics."""


@dataclasses.dataclass(frozen=True)
class ImageSpec:
    """All that images depend on: `images_of` reads nothing else. Fields of the config, with `train_size` resolved."""

    dataset: str
    data_dir: str
    padding: str
    normalization: str
    label_noise: float
    train_size: int


class Members(NamedTuple):
    """Seeds of a population's members, and their values of hyperparameters that are being tuned (none in the test)."""

    seeds: list[int]
    tuned: dict[str, list[float]]


@dataclasses.dataclass(frozen=True)
class Phase:
    """One population of an arm: candidates that it is tuned by, or the members that are tested.

    Attributes:
      name: ``tested``, ``tried-0``, ``tried-1``, ...: prefix of folders in the arm's ``checkpoints/``.
      settings: all fields of the config, for the records.
      seeds, candidates: every candidate (values of tuned hyperparameters; {} in the test) is trained with every seed.
      splits, evaluated: indices of every split in the images, and of those that are measured.
    """

    arm: str
    dataset: Dataset
    name: str
    settings: Mapping[str, Any]
    seeds: range
    candidates: tuple[Values, ...]
    recipe: Recipe
    images: ImageSpec
    splits: Mapping[str, range]
    evaluated: Mapping[str, range]

    @property
    def is_test(self) -> bool:
        """Whether these are the arm's own members."""
        return self.name == TESTED

    @property
    def size(self) -> int:
        """Number of members: every candidate with every seed."""
        return len(self.candidates) * len(self.seeds)

    @property
    def samples(self) -> int:
        """Training samples x members of all epochs."""
        return self.recipe.epochs * self.recipe.train_size * self.size

    @property
    def first_epochs(self) -> dict[str, int]:
        """The epoch from which on each split is measured.

        The training set is evaluated once, at the end; `running` costs nothing in between. The test set too, unless
        `test_curve` is set, so that no choice can depend on it.
        """
        end = self.recipe.epochs
        test = 0 if self.settings["test_curve"] else end
        return {"running": 1, "train": end, "validation": 0, "test": test, STATE: 0}

    @property
    def predicted(self) -> range | None:
        """Indices of the images whose predictions are stored; None if the config wants none."""
        return self.evaluated.get("test") if self.settings["store_predictions"] else None

    def members(self, start: int, size: int) -> Members:
        """`size` members from index `start` on; those of one candidate are adjacent."""
        pairs = [divmod(index, len(self.seeds)) for index in range(start, start + size)]
        tuned = {name: [self.candidates[which][name] for which, _ in pairs] for name in self.candidates[0]}
        return Members([self.seeds[index] for _, index in pairs], tuned)

    def hyper(self, members: Members) -> dict[str, list[float]]:
        """Every field of `optim.Hyperparameters`, one value per member."""
        fixed = {name: [float(self.settings[name])] * len(members.seeds) for name in optim.HYPERPARAMETERS}
        return fixed | members.tuned


@dataclasses.dataclass(frozen=True)
class ArmPlan:
    """The populations of an arm: the first that tries hyperparameters, if any, and the one that is tested."""

    arm: Arm
    tuning: Phase | None
    test: Phase

    @property
    def phases(self) -> list[Phase]:
        """What is trained, as far as it is known before."""
        return [*([self.tuning] if self.tuning else []), self.test]

    def identity(self, parts: str, arithmetic: str) -> str:
        """SHA-256 of all that decides the arm's result: its settings, its data, the digest of the user's own parts.

        `arithmetic`: see `programs.arithmetic`.

        What is saved carries it, and what carries another one is never read as this arm's.
        """
        deciding = {"name": self.arm.name, "settings": self.arm.settings, "data": self.test.dataset.fingerprint}
        tuned = dataclasses.asdict(self.arm.tuning) if self.arm.tuning else None
        return seal_of(deciding | {"tuning": tuned, "parts": parts, "arithmetic": arithmetic})


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that a run does, in the order of its arms."""

    arms: tuple[ArmPlan, ...]

    @property
    def phases(self) -> list[Phase]:
        """Those of all arms."""
        return [phase for arm in self.arms for phase in arm.phases]

    @property
    def fingerprints(self) -> dict[str, str]:
        """Name of each data set -> its fingerprint."""
        return {arm.test.dataset.name: arm.test.dataset.fingerprint for arm in self.arms}

    @property
    def notes(self) -> list[str]:
        """One line for each thing that is doubtful about the data sets and their splits; see `data_notes`."""
        distinct = {(id(phase.dataset), *phase.splits.items()): phase for phase in self.phases}
        return list(dict.fromkeys(note for phase in distinct.values() for note in data_notes(phase)))


def make(arms: Sequence[Arm]) -> Plan:
    """Resolves the arms of a config; see `arms.expand`. Every data set is loaded once.

    Raises:
      InputError: a data set can't be loaded, or it is too small for a field of an arm.
    """
    loaded: dict[tuple[str, str], Dataset] = {}
    plans = []
    for arm in arms:
        key = arm.settings["dataset"], arm.settings["data_dir"]
        if key not in loaded:
            loaded[key] = load(*key)
        tuning = phase_of(arm, loaded[key], f"{TRIED}-0", arm.tuning) if arm.tuning else None
        plans.append(ArmPlan(arm, tuning, phase_of(arm, loaded[key], TESTED)))
    return Plan(tuple(sharing_programs(plans)))


def sharing_programs(plans: Sequence[ArmPlan]) -> list[ArmPlan]:
    """The plans with `Recipe.losses` set: recipes that differ in the loss alone become one program."""
    losses: dict[Recipe, dict[Loss, None]] = {}  # in the order of the arms
    for recipe in (phase.recipe for plan in plans for phase in plan.phases):
        losses.setdefault(dataclasses.replace(recipe, loss=Loss()), {})[recipe.loss] = None

    def sharing(phase: Phase) -> Phase:
        found = tuple(losses[dataclasses.replace(phase.recipe, loss=Loss())])
        # A user's own metrics read the loss of the recipe, and the curvature its second derivatives.
        alone = len(found) < 2 or phase.recipe.metrics or phase.recipe.uses_curvature
        return phase if alone else dataclasses.replace(phase, recipe=dataclasses.replace(phase.recipe, losses=found))

    return [
        dataclasses.replace(plan, tuning=plan.tuning and sharing(plan.tuning), test=sharing(plan.test))
        for plan in plans
    ]


def refine(plan: ArmPlan, chosen: Values) -> Phase:
    """The population that is tested, with the values that tuning chose; its recipe is the same."""
    return dataclasses.replace(plan.test, settings={**plan.test.settings, **chosen})


def phase_of(arm: Arm, dataset: Dataset, name: str, tuning: Tuning | None = None) -> Phase:
    """A phase of an arm, checked against its data set; `tuning` holds its candidates, None makes it the test.

    Raises:
      InputError: the data set is too small for a field.
    """
    settings = dict(arm.settings)
    if tuning is None and settings["refit"]:
        settings["validation_size"] = 0  # the validation images are trained on, too
    splits = splits_of(settings, dataset)
    first, count = ("first_seed", "seeds") if tuning is None else ("tune_first_seed", "tune_seeds")
    seeds = range(settings[first], settings[first] + settings[count])
    candidates = tuple(tuning.candidates()) if tuning else ({},)
    recipe = recipe_of(settings, dataset.classes, len(splits["train"]))
    if tuning is not None:
        recipe = dataclasses.replace(recipe, metrics=())
    # Segments depend on the config alone, not on how many members fit in memory: a resumed run has the same ones.
    segments = train.segments_for(recipe, len(candidates) * len(seeds))
    return Phase(
        arm=arm.name,
        dataset=dataset,
        name=name,
        settings=settings,
        seeds=seeds,
        candidates=candidates,
        recipe=dataclasses.replace(recipe, segments=segments),
        images=ImageSpec(train_size=recipe.train_size, **named(settings, ImageSpec, "train_size")),
        splits=splits,
        # Tuning never sees the test images.
        evaluated=splits if tuning is None else {"validation": splits["validation"]},
    )


def load(name: str, data_dir: str) -> Dataset:
    """`datasets.load`, with one-line errors for names that are paths to anything."""
    try:
        return datasets.load(name, data_dir)
    except InputError:
        raise
    except (OSError, ValueError) as error:  # the name is too long or not a path, or the folder is unreadable
        raise InputError(f"dataset: {name!r} can't be read ({error})") from error


def splits_of(settings: Mapping[str, Any], dataset: Dataset) -> dict[str, range]:
    """Indices of each split in the images of `images_of`.

    Raises:
      InputError: the data set is too small for a field.
    """
    total = len(dataset.train_labels)
    remaining = total - settings["validation_size"]
    if remaining < 1:
        raise InputError(f"validation_size: {settings['validation_size']} leaves none of {total} to train on")
    if settings["train_size"] > remaining:
        raise InputError(f"train_size: {settings['train_size']} is more than the {remaining} remaining images")
    used = settings["train_size"] or remaining
    if settings["batch_size"] > used:
        raise InputError(f"batch_size: {settings['batch_size']} is more than the {used} training images")
    splits = {"train": range(used), "validation": range(remaining, total)}
    splits["test"] = range(total, total + len(dataset.test_labels))
    return {name: indices for name, indices in splits.items() if len(indices)}


def images_of(dataset: Dataset, spec: ImageSpec) -> Images:
    """All images, padded, as NumPy arrays; the normalization is measured on the training images alone."""
    images = np.concatenate([dataset.train_images, dataset.test_images])
    labels = np.concatenate([dataset.train_labels, dataset.test_labels])
    training = spec.train_size
    labels[:training] = preprocess.with_noise(labels[:training], spec.label_noise, dataset.classes)
    scaling = preprocess.NORMALIZATIONS[spec.normalization](dataset.train_images[:training])
    pixels = preprocess.pad(images, spec.padding)
    arrays: list[Any] = [pixels, labels.astype(np.int32), np.float32(scaling.scale), np.float32(scaling.shift)]
    return Images(*arrays)


def named(settings: Mapping[str, Any], kind: type, *but: str) -> dict[str, Any]:
    """The settings that are fields of a dataclass."""
    names = {field.name for field in dataclasses.fields(kind)} - set(but)
    return {name: settings[name] for name in names if name in settings}


def recipe_of(settings: Mapping[str, Any], classes: int, train_size: int) -> Recipe:
    """What is compiled for these settings.

    Raises:
      InputError: a field doesn't fit the training set.
    """
    recipe = Recipe(
        architecture=Architecture(classes=classes, **named(settings, Architecture)),
        loss=Loss(name=settings["loss"], **named(settings, Loss)),
        augmentation=Augmentation(**named(settings, Augmentation)),
        train_size=train_size,
        **named(settings, Recipe, "loss", "augmentation", "train_size"),
    )
    steps = recipe.epochs * recipe.epoch_steps
    if steps > MAX_STEPS:
        raise InputError(f"epochs: {recipe.epochs} make {steps} steps; allowed are up to {MAX_STEPS}")
    if recipe.metrics and not train.divides_epoch(recipe, recipe.metrics_per_epoch):
        times, steps = recipe.metrics_per_epoch, recipe.epoch_steps
        raise InputError(f"metrics_per_epoch: {times} doesn't divide the {steps} steps of an epoch")
    try:
        uses_curvature = recipe.uses_curvature
    except Exception as error:  # whatever a user's optimizer raises
        raise InputError(f"optimizer: {recipe.optimizer!r} can't be used ({one_line(error)})") from error
    estimates, patterns, steps = recipe.curvature_estimates, recipe.curvature_patterns, recipe.epoch_steps
    if uses_curvature and steps % estimates:
        raise InputError(f"curvature_estimates: {estimates} doesn't divide the {steps} steps of an epoch")
    if uses_curvature and patterns > train_size:
        raise InputError(f"curvature_patterns: {patterns} is more than the {train_size} training images")
    if own_parts([settings]):
        evaluation.check_own(recipe)
    return recipe


def data_notes(phase: Phase) -> list[str]:
    """What `datasets.notes_on` says of a phase's data set, and the classes that its splits lack."""
    dataset, notes = phase.dataset, datasets.notes_on(phase.dataset)
    labels = np.concatenate([dataset.train_labels, dataset.test_labels])
    for split, indices in phase.splits.items():
        absent = np.setdiff1d(np.arange(dataset.classes), labels[indices.start : indices.stop])
        if len(absent):
            classes = shortened(", ".join(map(str, absent)), MAX_LISTED)
            notes.append(f"none of the {len(indices)} {split} images is of class {classes}")
    return [f"dataset {dataset.name!r}: {note}" for note in notes]


def describe_data(phase: Phase) -> dict[str, Any]:
    """The data set of a phase as the summary has it."""
    sizes = {name: len(indices) for name, indices in phase.splits.items()}
    return {"name": phase.dataset.name, "fingerprint": phase.dataset.fingerprint, "validation": 0} | sizes
