"""Trained networks: a run folder -> their parameters, and what they make of pictures."""

import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lenet_jax import model, population
from lenet_jax.data import preprocess
from lenet_jax.data.photos import SIDE
from lenet_jax.errors import InputError, check_choice
from lenet_jax.model import Architecture, Params
from lenet_jax.run import checkpoints
from lenet_jax.run import folder as run_folder


@dataclasses.dataclass(frozen=True, repr=False)
class TrainedRun(run_folder.Run):
    """A finished run with its networks: see `folder.Run` for config, metrics and the rest, which are read at once.

    Networks are read when they are asked for. Wherever an arm is asked for, "" is the one with the smallest mean test
    error.
    """

    _read: dict[str, Params] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    @property
    def arms(self) -> list[str]:
        """Names of the arms, in the order of the config."""
        return [row["name"] for row in self.summary["arms"]]

    def row(self, arm: str = "") -> dict[str, Any]:
        """An arm's row of ``summary.json``.

        Raises:
          InputError: the run has no such arm.
        """
        rows: dict[str, dict[str, Any]] = {row["name"]: row for row in self.summary["arms"]}
        if not arm:
            return min(rows.values(), key=mean_error)
        named = run_folder.arm_named(arm, rows)
        check_choice("arm", named, rows)
        return rows[named]

    def seeds(self, arm: str = "") -> list[int]:
        """Seeds of an arm's networks."""
        settings = self._row(arm)["settings"]
        return list(range(settings["first_seed"], settings["first_seed"] + settings["seeds"]))

    def architecture(self, arm: str = "") -> Architecture:
        """What an arm's networks are."""
        row = self._row(arm)
        names = {field.name for field in dataclasses.fields(Architecture)}
        chosen = {name: value for name, value in row["settings"].items() if name in names}
        return Architecture(**chosen, classes=row["classes"])

    def params(self, arm: str = "", seed: int | None = None) -> Params:
        """The parameters of one network, or of all of an arm's, [seeds, ...] each.

        Raises:
          InputError: the run has no such arm or seed, or its networks are not there any more.
        """
        every = self._networks(self._row(arm)["name"])
        if seed is None:
            return every
        seeds = self.seeds(arm)
        if seed not in seeds:
            raise InputError(
                f"seed: {seed} is none of {self.row(arm)['name']!r}; allowed are {seeds[0]} to {seeds[-1]}"
            )
        one: Params = jax.tree.map(lambda leaf: leaf[seed - seeds[0]], every)
        return one

    def normalize(self, images: np.ndarray, arm: str = "") -> Float[Array, "*images 32 32"]:
        """Pixels [..., 28, 28] or [..., 32, 32] from 0 to 255 as an arm's networks see them.

        Raises:
          InputError: images of another size, or pixels that are no finite numbers.
        """
        images, sizes = np.asarray(images), (SIDE, model.IMAGE_SIZE)
        if images.dtype.kind not in "biuf":
            raise InputError(
                f"images: they are of type {images.dtype}; allowed are numbers, which lenet_jax.read and then "
                "lenet_jax.prepare make of a file"
            )
        side = images.shape[-1] if images.ndim else 0
        if not np.isfinite(images).all():
            raise InputError("images: they have pixels that are not finite")
        if side not in sizes or images.shape[-2:] != (side, side):
            raise InputError(
                f"images: their shape is {list(images.shape)}; allowed is [..., 28, 28], which lenet_jax.prepare makes"
            )
        row = self._row(arm)
        pixels = preprocess.pad(images.reshape(-1, side, side), row["settings"]["padding"]).astype(np.float32)
        scaled = np.float32(row["scaling"]["scale"]) * pixels + np.float32(row["scaling"]["shift"])
        return jnp.asarray(scaled.reshape(*images.shape[:-2], *pixels.shape[-2:]))

    def _row(self, arm: str) -> dict[str, Any]:
        """As `row`, of a run that tells what its networks are."""
        row = self.row(arm)
        if "scaling" not in row:
            raise InputError(
                f"run: {str(self.folder)!r} holds no trained networks; train them again with "
                f"--config=experiments/stored.py:{self.folder} --workdir=NEW"
            )
        return row

    def _networks(self, arm: str) -> Params:
        if arm not in self._read:
            folder = self.folder / run_folder.CHECKPOINTS / run_folder.folder_name(arm)
            arrays = checkpoints.networks(folder, len(self.seeds(arm)))
            init = functools.partial(model.init, architecture=self.architecture(arm))
            shapes = jax.eval_shape(init, jax.random.key(0))
            leaves = [jnp.asarray(arrays[f"params/{name}"]) for name, _ in population.leaves_of(shapes)]
            self._read[arm] = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
        return self._read[arm]


def mean_error(row: dict[str, Any]) -> float:
    """An arm's mean test error; one that isn't known counts as 1."""
    mean = row["test_error"]["mean"]
    return 1.0 if mean is None else float(mean)


class Classification(NamedTuple):
    """What networks make of images. With several networks, scores are their means; those that diverged are left out.

    Attributes:
      digits: the class with the best score.
      scores: of each class: probabilities for ``softmax`` outputs, penalties with their sign turned for ``rbf``.
      margins: by how much that leads the second best (`model.decide`); small ones are to be rejected.
      votes: how many networks would say each class.
    """

    digits: Int[np.ndarray, " images"]
    scores: Float[np.ndarray, "images classes"]
    margins: Float[np.ndarray, " images"]
    votes: Int[np.ndarray, "images classes"]


def load_run(folder: str | Path) -> TrainedRun:
    """Reads a finished run.

    Raises:
      InputError: the folder holds none, or a file of it is damaged.
    """
    run = run_folder.load(folder)
    return TrainedRun(**{field.name: getattr(run, field.name) for field in dataclasses.fields(run)})


def classify(run: TrainedRun, images: np.ndarray, arm: str = "", seed: int | None = None) -> Classification:
    """What a run's networks make of digits.

    Args:
      run: from `load_run`.
      images: pixels from 0 to 255, [28, 28] or [images, 28, 28], as the data sets have them: see `photos.to_mnist`.
      arm: whose networks; "" for those with the smallest mean test error.
      seed: of one of them; None for all together.

    Raises:
      InputError: there is no such arm or seed, all its networks diverged, or images have another shape.
    """
    batch = run.normalize(images, arm)
    if batch.ndim > 3:
        raise InputError(f"images: their shape is {list(batch.shape)}; allowed is one image or [images, rows, columns]")
    batch = batch[None] if batch.ndim == 2 else batch
    params = run.params(arm, seed)
    if seed is not None:
        params = jax.tree.map(lambda leaf: leaf[None], params)
    scores = np.asarray(scores_of(params, batch, run.architecture(arm)))
    scores = scores[np.isfinite(scores).all(axis=(1, 2))]
    if not len(scores):
        raise InputError(f"arm: {run.row(arm)['name']!r} has diverged, its networks give no finite scores")
    mean = scores.mean(axis=0)
    digits, margins = map(np.asarray, model.decide(jnp.asarray(mean)))
    votes = np.eye(mean.shape[-1], dtype=int)[scores.argmax(axis=-1)].sum(axis=0)
    return Classification(digits, mean, margins, votes)


@functools.partial(jax.jit, static_argnames="architecture")
def scores_of(
    params: Params, images: Float[Array, "images 32 32"], architecture: Architecture
) -> Float[Array, "networks images classes"]:
    """Class scores of each network for each image."""
    of_image = jax.vmap(model.forward, in_axes=(None, 0, None))
    outputs = jax.lax.map(lambda network: of_image(network, images, architecture), params)
    return model.predict_scores(outputs, architecture)
