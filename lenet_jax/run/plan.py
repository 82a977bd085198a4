"""What an arm trains on: the splits and images of its data set, and the recipe that is compiled."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from lenet_jax import train
from lenet_jax.data import datasets, preprocess
from lenet_jax.data.datasets import Dataset
from lenet_jax.distortions import Augmentation
from lenet_jax.errors import InputError
from lenet_jax.losses import Loss
from lenet_jax.model import Architecture
from lenet_jax.run import tuning
from lenet_jax.run.arms import Arm
from lenet_jax.train import Images, Recipe

MOST_UPDATES = 2**31 - 1
"""Updates of a training, which are counted in 32 bits."""


def data_key(arm: Arm) -> tuple[str, str]:
    """What names the arm's data set."""
    return arm.settings["dataset"], arm.settings["data_dir"]


def load_data(arms: list[Arm]) -> dict[tuple[str, str], Dataset]:
    """Every data set of the arms, each loaded once, and checked against the arms' fields.

    Raises:
      InputError: one can't be had, or it is too small for a field.
    """
    datasets = {key: load(*key) for key in dict.fromkeys(map(data_key, arms))}
    for arm in arms:
        total, settings = len(datasets[data_key(arm)].train_labels), arm.settings
        left = total - settings["validation_size"]
        if left < 1:
            raise InputError(f"validation_size: {settings['validation_size']} leaves none of {total} to train on")
        if settings["train_size"] > left:
            raise InputError(f"train_size: {settings['train_size']} is more than the {left} images that are left")
        used = settings["train_size"] or left
        if settings["batch_size"] > used:
            raise InputError(f"batch_size: {settings['batch_size']} is more than the {used} training images")
        for trained in (arm, with_chosen(arm, {})):
            recipe = recipe_of(trained, datasets[data_key(arm)])  # refuses an architecture that doesn't fit the data
            updates = recipe.epochs * recipe.epoch_steps
            if updates > MOST_UPDATES:
                raise InputError(f"epochs: {recipe.epochs} make {updates} steps; allowed are up to {MOST_UPDATES}")
            if recipe.uses_curvature:
                check_curvature(recipe)
    return datasets


def load(name: str, data_dir: str) -> Dataset:
    """`datasets.load`, which meets whatever a name that is a path may lead to."""
    try:
        return datasets.load(name, data_dir)
    except InputError:
        raise
    except (OSError, ValueError) as error:  # a name that is too long, a folder that may not be read, no text of a path
        raise InputError(f"dataset: {name!r} can't be read ({error})") from error


def with_chosen(arm: Arm, chosen: tuning.Values) -> Arm:
    """The arm as it trains once its hyperparameters are chosen."""
    merged = {"validation_size": 0} if arm.settings["refit"] else {}
    return dataclasses.replace(arm, settings=arm.settings | chosen | merged, tuning=None)


def check_curvature(recipe: Recipe) -> None:
    """Refuses what doesn't fit the training set of an arm with SDLM."""
    updates, estimates, patterns = recipe.epoch_steps, recipe.curvature_estimates, recipe.curvature_patterns
    if updates % estimates:
        raise InputError(f"curvature_estimates: {estimates} doesn't divide the {updates} steps of an epoch")
    if patterns > recipe.train_size:
        raise InputError(f"curvature_patterns: {patterns} is more than the {recipe.train_size} training images")


def splits_of(dataset: Dataset, arm: Arm) -> dict[str, range]:
    """Places of each split in the images of `images_of`."""
    total = len(dataset.train_labels)
    left = total - arm.settings["validation_size"]
    splits = {"train": range(arm.settings["train_size"] or left), "validation": range(left, total)}
    splits["test"] = range(total, total + len(dataset.test_labels))
    return {name: places for name, places in splits.items() if len(places)}


def images_of(dataset: Dataset, arm: Arm) -> Images:
    """All images, padded, as NumPy arrays; the normalization is measured on the training split alone."""
    images = np.concatenate([dataset.train_images, dataset.test_images])
    labels = np.concatenate([dataset.train_labels, dataset.test_labels])
    training = splits_of(dataset, arm)["train"].stop
    labels[:training] = preprocess.with_noise(labels[:training], arm.settings["label_noise"], dataset.classes)
    scaling = preprocess.NORMALIZATIONS[arm.settings["normalization"]](dataset.train_images[:training])
    pixels = preprocess.pad(images, arm.settings["padding"])
    arrays: list[Any] = [pixels, labels.astype(np.int32), np.float32(scaling.scale), np.float32(scaling.shift)]
    return Images(*arrays)


def image_key(arm: Arm) -> tuple[Any, ...]:
    """What `images_of` depends on."""
    fields = ("padding", "normalization", "validation_size", "train_size", "label_noise")
    return *data_key(arm), *(arm.settings[name] for name in fields)


def named(settings: dict[str, Any], kind: type, *but: str) -> dict[str, Any]:
    """The settings that are fields of a dataclass."""
    names = {field.name for field in dataclasses.fields(kind)} - set(but)
    return {name: settings[name] for name in names if name in settings}


def recipe_of(arm: Arm, dataset: Dataset) -> Recipe:
    """What is compiled for an arm."""
    settings = arm.settings
    return Recipe(
        architecture=Architecture(classes=dataset.classes, **named(settings, Architecture)),
        loss=Loss(name=settings["loss"], **named(settings, Loss)),
        augmentation=Augmentation(**named(settings, Augmentation)),
        train_size=len(splits_of(dataset, arm)["train"]),
        **named(settings, Recipe, "loss", "augmentation", "train_size"),
    )


def describe_data(dataset: Dataset, arm: Arm) -> dict[str, Any]:
    """A data set as the summary has it."""
    sizes = {name: len(places) for name, places in splits_of(dataset, arm).items()}
    return {"name": dataset.name, "fingerprint": dataset.fingerprint, "validation": 0} | sizes


class Members(NamedTuple):
    """Members of a population.

    Attributes:
      seeds: one a member.
      tuned: values of hyperparameters that are being tuned, one a member each; empty for members that are tested.
    """

    seeds: list[int]
    tuned: dict[str, list[float]]

    @property
    def tested(self) -> bool:
        """Whether these are an arm's own members, which are tested and tracked."""
        return not self.tuned

    def part(self, start: int, size: int) -> "Members":
        """So many of them."""
        return Members(
            self.seeds[start : start + size],
            {name: values[start : start + size] for name, values in self.tuned.items()},
        )


def seeds_of(arm: Arm) -> Members:
    """The members that are tested."""
    return Members([arm.settings["first_seed"] + place for place in range(arm.settings["seeds"])], {})


def candidates_of(arm: Arm, tried: tuning.Tuning) -> Members:
    """Members that try hyperparameters: every candidate with every tuning seed."""
    seeds = [arm.settings["tune_first_seed"] + place for place in range(arm.settings["tune_seeds"])]
    candidates = tried.candidates()
    values = {name: [candidate[name] for candidate in candidates for _ in seeds] for name in tried.names}
    return Members(seeds * len(candidates), values)


def phases(arm: Arm) -> list[tuple[Arm, Members]]:
    """What is trained for an arm: candidates if it is tuned, then the members that are tested."""
    tried = [(arm, candidates_of(arm, arm.tuning))] if arm.tuning else []
    return [*tried, (with_chosen(arm, {}), seeds_of(arm))]


def recipe_for(arm: Arm, members: Members, dataset: Dataset) -> Recipe:
    """What is compiled for members of an arm.

    How a pass is cut depends on the config alone, and not on how many of them fit in memory: a run that was stopped
    goes on with the same parts.
    """
    recipe = recipe_of(arm, dataset)
    return dataclasses.replace(recipe, segments=train.segments_for(recipe, len(members.seeds)))
