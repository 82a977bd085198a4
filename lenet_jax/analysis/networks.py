"""Trained networks: run folder -> parameters, and classification of images."""

import dataclasses
import functools
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lenet_jax import IMAGE_SIZE, blocked, model, native, population
from lenet_jax.data import preprocess
from lenet_jax.data.photos import SIDE
from lenet_jax.errors import InputError, check_choice
from lenet_jax.initializers import INITIALIZERS
from lenet_jax.layers import ACTIVATIONS
from lenet_jax.model import Architecture, Params
from lenet_jax.run import checkpoints, files, parts
from lenet_jax.run import folder as run_folder
from lenet_jax.run.folder import ArmSummary
from lenet_jax.run.names import arm_named
from lenet_jax.run.parts import EXPERIMENT


@dataclasses.dataclass(frozen=True, repr=False)
class TrainedRun(run_folder.Run):
    """A finished run with its networks, which are read on first use; see `folder.Run` for config and tables.

    Wherever an arm is named, "" stands for the one with the smallest mean test error.
    """

    _networks: dict[str, Params] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    def arm(self, name: str = "") -> ArmSummary:
        """An arm's row of ``summary.json``."""
        if not name:
            return min(self.arms, key=lambda row: 1.0 if row.test_error.mean is None else row.test_error.mean)
        rows = {row.name: row for row in self.arms}
        named = arm_named(name, rows)
        check_choice("arm", named, rows)
        return rows[named]

    def seeds(self, arm: str = "") -> list[int]:
        """Seeds of an arm's networks."""
        settings, _, _ = self.recorded(arm)
        return list(range(settings["first_seed"], settings["first_seed"] + self.arm(arm).seeds))

    def architecture(self, arm: str = "") -> Architecture:
        """The architecture of an arm's networks."""
        settings, _, classes = self.recorded(arm)
        for field, table in (("activation", ACTIVATIONS), ("initializer", INITIALIZERS)):
            if settings[field] not in table:
                raise InputError(
                    f"{field}: {settings[field]!r} is defined in an experiment file; pass it as "
                    "load_run(..., experiment=FILE) or lenet-jax classify --experiment=FILE "
                    f"({self.folder / EXPERIMENT} is a copy)"
                )
        names = {field.name for field in dataclasses.fields(Architecture)}
        return Architecture(**{name: value for name, value in settings.items() if name in names}, classes=classes)

    def params(self, arm: str = "", seed: int | None = None) -> Params:
        """The parameters of the network with this seed, or of all networks of an arm, stacked: leaves [seeds, ...].

        Raises:
          InputError: the run has no such arm or seed, or its networks are not stored any more.
        """
        name, seeds = self.arm(arm).name, self.seeds(arm)
        if name not in self._networks:
            folder = run_folder.arm_folder(self.folder / run_folder.CHECKPOINTS, name)
            if os.path.lexists(folder.parent):
                files.size_of(folder.parent)  # links and pipes are refused
            store = checkpoints.ArmStore(folder, identity=self.arm(arm).identity or "")
            arrays = checkpoints.networks(store, len(seeds))
            shapes = model.shapes(self.architecture(name))
            kinds = {
                f"params/{leaf}": ((len(seeds), *one.shape), one.dtype) for leaf, one in population.leaves_of(shapes)
            }
            if {leaf: (arrays[leaf].shape, arrays[leaf].dtype) for leaf in kinds.keys() & arrays.keys()} != kinds:
                raise InputError(f"run: {str(folder)!r} holds other networks than its settings describe")
            leaves = [jnp.asarray(arrays[leaf]) for leaf in kinds]
            self._networks[name] = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
        if seed is None:
            return self._networks[name]
        if seed not in seeds:
            raise InputError(f"seed: {seed} is not a seed of arm {name!r}; allowed are {seeds[0]} to {seeds[-1]}")
        one: Params = jax.tree.map(lambda leaf: leaf[seed - seeds[0]], self._networks[name])
        return one

    def normalize(self, images: np.ndarray, arm: str = "") -> Float[Array, "*images 32 32"]:
        """Pixels [..., 28, 28] or [..., 32, 32] from 0 to 255 as inputs of an arm's networks.

        Raises:
          InputError: images have another size, or pixels that are not finite numbers.
        """
        images = np.asarray(images)
        if images.dtype.kind not in "biuf":
            raise InputError(
                f"images: type {images.dtype}; allowed are numbers, which lenet_jax.read_image and then "
                "lenet_jax.to_mnist make from a file"
            )
        if not np.isfinite(images).all():
            raise InputError("images: some pixels are not finite; allowed are numbers from 0 to 255")
        if images.shape[-2:] not in ((SIDE, SIDE), (IMAGE_SIZE, IMAGE_SIZE)):
            shape = list(images.shape)
            raise InputError(f"images: shape {shape}; allowed is [..., 28, 28], as lenet_jax.to_mnist makes")
        settings, scaling, _ = self.recorded(arm)
        flat = images.reshape(-1, *images.shape[-2:])
        pixels = preprocess.pad(flat, settings["padding"]).astype(np.float32)
        scaled = np.float32(scaling["scale"]) * pixels + np.float32(scaling["shift"])
        return jnp.asarray(scaled.reshape(*images.shape[:-2], *pixels.shape[-2:]))

    def recorded(self, arm: str) -> tuple[dict[str, Any], dict[str, float], int]:
        """Settings, scaling and classes of an arm's networks, which runs from before networks were kept don't have."""
        row = self.arm(arm)
        if row.settings is None or row.scaling is None or row.classes is None:
            raise InputError(
                f"run: {str(self.folder)!r} holds no trained networks; train them again with "
                f"lenet-jax run --config=experiments/stored.py:{self.folder} --workdir=NEW"
            )
        if missing := {"activation", "initializer", "padding", "first_seed"} - set(row.settings):
            raise InputError(
                f"run: {str(self.folder)!r} is damaged: settings of arm {row.name!r} lack {min(missing)!r}"
            )
        return row.settings, row.scaling, row.classes


class Classification(NamedTuple):
    """Classes that networks assign to images.

    Attributes:
      digits: the class with the best score.
      scores: means over networks that didn't diverge: probabilities for ``softmax``, negative penalties for ``rbf``.
      margins: difference between the best and the second best score (`model.decide`); reject images with small ones.
      votes: number of networks that choose each class.
    """

    digits: Int[np.ndarray, " images"]
    scores: Float[np.ndarray, "images classes"]
    margins: Float[np.ndarray, " images"]
    votes: Int[np.ndarray, "images classes"]


def load_run(folder: str | Path, experiment: str | Path | None = None) -> TrainedRun:
    """Reads a finished run. No code in its folder is executed.

    `experiment` is the experiment file, if it defines parts of the networks, such as an activation; it is executed.

    Raises:
      InputError: the folder holds no finished run, a file of it is damaged, or the experiment file fails.

    Examples:
      >>> run = load_run("experiments/results/quickstart")
      >>> [arm.name for arm in run.arms][:2]
      ['loss=mse,activation=sigmoid', 'loss=mse,activation=tanh']
      >>> f"{run.arm('loss=mse,activation=tanh').test_error.mean:.3f}"
      '0.058'
    """
    run = run_folder.load(folder)
    if experiment:
        file = Path(experiment), parts.read(Path(experiment))
        parts.Definitions({}, file).check_unchanged(run.folder)
        parts.define(*file)
    return TrainedRun(**{field.name: getattr(run, field.name) for field in dataclasses.fields(run)})


def classify(run: TrainedRun, images: np.ndarray, arm: str = "", seed: int | None = None) -> Classification:
    """Classifies images of digits with a run's networks.

    Args:
      run: see `load_run`.
      images: pixels from 0 to 255, [28, 28] or [images, 28, 28], as in the data sets; see `photos.to_mnist`.
      arm: name of the arm; "" for the one with the smallest mean test error.
      seed: the seed of a single network; None averages all networks of the arm.

    Raises:
      InputError: there is no such arm or seed, all its networks diverged, or images have another shape.

    Examples:
      Runs in ``experiments/results`` are stored with predictions but without networks; rerun their config to get these:

      >>> from lenet_jax.data import datasets
      >>> images = datasets.load("mnist10k").test_images[:4]
      >>> run = load_run("experiments/results/quickstart")
      >>> run.predictions[(run.predictions.arm == run.arm().name) & (run.predictions.seed == 0)].predicted.tolist()[:4]
      [1, 7, 3, 6]
      >>> classify(load_run("runs/quickstart"), images, seed=0).digits.tolist()  # doctest: +SKIP
      [1, 7, 3, 6]
    """
    batch = run.normalize(images, arm)
    if batch.ndim > 3:
        raise InputError(f"images: shape {list(batch.shape)}; allowed is one image or [images, rows, columns]")
    params = run.params(arm, seed)
    if seed is not None:
        params = jax.tree.map(lambda leaf: leaf[None], params)
    batch = batch.reshape(-1, *batch.shape[-2:])
    allow_native = len(batch) >= native.LEAST_IMAGES and native.preferred()
    scores = np.asarray(scores_of(params, batch, run.architecture(arm), allow_native))
    scores = scores[np.isfinite(scores).all(axis=(1, 2))]
    if not len(scores):
        raise InputError(f"arm: all networks of {run.arm(arm).name!r} diverged; choose another arm or seed")
    mean = scores.mean(axis=0)
    digits, margins = map(np.asarray, model.decide(jnp.asarray(mean)))
    votes = np.eye(mean.shape[-1], dtype=int)[scores.argmax(axis=-1)].sum(axis=0)
    return Classification(digits, mean, margins, votes)


@functools.partial(jax.jit, static_argnames=("architecture", "allow_native"))
def scores_of(
    params: Params, images: Float[Array, "images 32 32"], architecture: Architecture, allow_native: bool
) -> Float[Array, "networks images classes"]:
    """Class scores of each network, one after the other, for each image."""
    outputs = jax.lax.map(lambda network: blocked.forward(network, images, architecture, allow_native), params)
    return model.predict_scores(outputs, architecture)
