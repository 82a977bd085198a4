"""Inside networks: layers while they train, slopes of losses, paths between networks, rates and RBF codes of 1998.

For notebooks; `visualize` draws it. Functions take one network, and callers vmap; those that take images take them
normalized, as `train.Images.take` gives them.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from lenet_jax import blocked, curvature, model, optim, population, train
from lenet_jax import evaluate as evaluation
from lenet_jax.analysis.networks import TrainedRun, load_run
from lenet_jax.errors import InputError
from lenet_jax.evaluate import Evaluation
from lenet_jax.layers import ACTIVATIONS
from lenet_jax.losses import Loss
from lenet_jax.model import Architecture, Params
from lenet_jax.run import arms, runner
from lenet_jax.run import folder as run_folder
from lenet_jax.run import plan as planning
from lenet_jax.train import Images, Recipe

RUNS = Path("runs")
"""Where notebooks keep their runs: beside themselves; git ignores it."""

LAYERS = tuple(field.name for field in dataclasses.fields(Params))

SATURATED = 0.1
"""A unit counts as saturated where its slope is below this share of the largest one that its activation has."""


def run(config: ConfigDict, name: str) -> TrainedRun:
    """The run of a config in `RUNS`: trained now, or read if the folder `name` has it. Another config's is moved aside.

    Raises:
      InputError: see `runner.run`.
    """
    folder = RUNS / name
    try:
        run_folder.is_finished(folder, arms.describe(config), arms.describe(ConfigDict()))
        other = False
    except InputError:
        other = True
    runner.run(config, folder, f"notebook {name}", fresh=other)
    return load_run(folder)


class SingleArm(NamedTuple):
    """One arm, ready to be trained or measured.

    Attributes:
      recipe: what is compiled.
      images: of all splits.
      splits: places in `images`, by name.
      hyper: values of `optim.HYPERPARAMETERS`.
      seeds: of its members.
    """

    recipe: Recipe
    images: Images
    splits: dict[str, range]
    hyper: dict[str, float]
    seeds: list[int]

    def take(self, split: str, count: int) -> tuple[Float[Array, "count 32 32"], Int[Array, " count"]]:
        """The first so many images of a split, normalized, and their labels."""
        return self.images.take(jnp.asarray(self.splits[split][:count]))


def resolve(config: ConfigDict | Mapping[str, Any]) -> SingleArm:
    """What a config without a sweep, or the ``settings`` of an arm in ``summary.json``, says.

    Raises:
      InputError: it has several arms, is tuned, or a field is wrong.
    """
    every = arms.expand(ConfigDict({**arms.DEFAULTS, **config}))
    if len(every) > 1 or every[0].tuning:
        raise InputError(f"sweep, tune: the config has {len(every)} arms, or tunes; needed is one, without tuning")
    phase = planning.make(every).arms[0].test
    return SingleArm(
        recipe=dataclasses.replace(phase.recipe, segments=1),
        images=jax.tree.map(jnp.asarray, planning.images_of(phase.dataset, phase.images)),
        splits=dict(phase.splits),
        hyper={name: float(phase.settings[name]) for name in optim.HYPERPARAMETERS},
        seeds=list(phase.seeds),
    )


def record_training(setting: SingleArm, measure: Callable[[Params], Any], segments: int = 1) -> Any:
    """Trains every seed and measures its network before training and after each part of each pass.

    Args:
      setting: what is trained.
      measure: one network -> arrays in any tree; it is vmapped over the members.
      segments: of an epoch, which are equal.

    Returns:
      the tree of NumPy arrays [1 + epochs x segments, members, ...].

    Raises:
      ValueError: a pass can't be cut into so many segments.
    """
    if segments < 1 or not train.divides_epoch(setting.recipe, segments):
        raise ValueError(f"{segments} segments: the {setting.recipe.epoch_steps} updates of an epoch can't be cut so")
    size = len(setting.seeds)
    hyper = {name: [value] * size for name, value in setting.hyper.items()}
    recipe = dataclasses.replace(setting.recipe, segments=segments)
    members = population.create(setting.seeds, hyper, setting.images, recipe)
    of_members = jax.jit(jax.vmap(measure))

    def look() -> Any:
        params = jax.tree.map(lambda leaf: leaf[:size], jax.device_get(members.state.params))
        return jax.device_get(of_members(params))

    found = [look()]
    for _ in range(recipe.epochs * segments):
        population.train_segment(members)
        found.append(look())
    return jax.tree.map(lambda *leaves: np.stack(leaves), *found)


@flax.struct.dataclass
class Layer:
    """What a layer of one network does with a batch of images, and what the loss asks of it.

    Attributes:
      mean, spread: of its states, over units and images; the standard deviation.
      signal: the standard deviation of a unit's state from image to image, root mean square over units. What is
        left of the images: where it is 0, later layers see the same whatever the digit.
      slope: mean of sigma'(a) over units and images; 1 for layers that don't squash.
      saturated: share of units and images with a slope below `SATURATED` x the largest of the activation.
      gradient: Euclidean norm of the loss' gradient with respect to its parameters; 0 if it has none.
      weights: Euclidean norm of those parameters.
    """

    mean: Float[Array, ""]
    spread: Float[Array, ""]
    signal: Float[Array, ""]
    slope: Float[Array, ""]
    saturated: Float[Array, ""]
    gradient: Float[Array, ""]
    weights: Float[Array, ""]


def norm(tree: Any) -> Float[Array, ""]:
    """Euclidean norm of all numbers of a tree together."""
    return jnp.sqrt(sum((jnp.square(leaf).sum() for leaf in jax.tree.leaves(tree)), start=jnp.zeros(())))


def preactivations(
    params: Params, image: Float[Array, "32 32"], architecture: Architecture
) -> dict[str, Float[Array, " units"]]:
    """What sigma is taken of, a, in every layer that has preactivations: flat, in the order of `blocked`."""
    passed, _ = blocked.passes(params, blocked.to_grid(image[None]), architecture)
    return {part.name: found.ravel() for part, _, found in passed}


def largest_derivative(architecture: Architecture) -> Float[Array, ""]:
    """The largest sigma'(a): 1/4 of the sigmoid, 1 of tanh and ReLU, 1.14 of the scaled tanh."""
    return curvature.derivative(jnp.linspace(-1.0, 1.0, 3), architecture).max()


def by_layer(
    params: Params, images: Float[Array, "batch 32 32"], labels: Int[Array, " batch"], recipe: Recipe
) -> dict[str, Layer]:
    """Every layer of one network on a batch, see `Layer`. RBF outputs have no preactivations and are left out."""
    architecture = recipe.architecture
    gradient, _ = train.gradient_of(params, blocked.to_grid(images), labels, recipe)
    found = jax.vmap(preactivations, in_axes=(None, 0, None))(params, images, architecture)
    return {
        part.name: layer_of(
            found[part.name], part.squashed, getattr(gradient, part.name), getattr(params, part.name), architecture
        )
        for part in blocked.layers_of(architecture)
    }


def layer_of(
    a: Float[Array, "batch units"], squashed: bool, gradient: Any, parameters: Any, architecture: Architecture
) -> Layer:
    """A layer from its preactivations, the gradient with respect to its parameters, and those."""
    states = ACTIVATIONS[architecture.activation](a) if squashed else a
    slopes = curvature.derivative(a, architecture) if squashed else jnp.ones_like(a)
    largest = largest_derivative(architecture) if squashed else 1.0
    return Layer(
        mean=states.mean(),
        spread=states.std(),
        signal=jnp.sqrt(states.var(axis=0).mean()),
        slope=slopes.mean(),
        saturated=(slopes < SATURATED * largest).mean(),
        gradient=norm(gradient),
        weights=norm(parameters),
    )


def layer_table(followed: Mapping[str, Layer], setting: SingleArm, segments: int = 1) -> pd.DataFrame:
    """What `follow` returns of `by_layer` as a table: epoch, seed, layer, and a column for each field of `Layer`."""
    tables = []
    for name in sorted(followed, key=LAYERS.index):  # JAX sorts dictionaries
        layer = followed[name]
        times, members = np.indices(layer.mean.shape)
        columns = {field.name: np.ravel(getattr(layer, field.name)) for field in dataclasses.fields(Layer)}
        places = {"epoch": times.ravel() / segments, "seed": np.take(setting.seeds, members.ravel()), "layer": name}
        tables.append(pd.DataFrame(places | columns))
    return pd.concat(tables, ignore_index=True)


IMPOSSIBLE = -40.0
"""A logit whose class has no probability in single precision, beside logits around 0."""


def logits_at(probability: Float[Array, ""], rivals: int = 1, classes: int = 10) -> Float[Array, " classes"]:
    """Logits that give class 0 this probability, and the rest in equal parts to the next `rivals` classes."""
    rest = jnp.log1p(-probability) - jnp.log(jnp.float32(rivals))
    place = jnp.arange(classes)
    return jnp.where(place == 0, jnp.log(probability), jnp.where(place <= rivals, rest, IMPOSSIBLE))


@functools.partial(jax.jit, static_argnames=("loss", "rivals"))
def logit_gradient(loss: Loss, probability: Float[Array, ""], rivals: int = 1) -> Float[Array, " classes"]:
    """dE/ds_i, the loss' gradient with respect to the logits of `logits_at`, of which class 0 is right."""

    def of_logits(logits: Float[Array, " classes"]) -> Float[Array, ""]:
        return loss(logits[None], jnp.zeros(1, jnp.int32))

    gradient: Array = jax.grad(of_logits)(logits_at(probability, rivals))
    return gradient


def interpolate(first: Params, second: Params, share: Float[Array, ""] | float) -> Params:
    """The network on the straight line from the first (share 0) to the second (share 1)."""
    between: Params = jax.tree.map(lambda one, other: (1 - share) * one + share * other, first, second)
    return between


def along(
    first: Params, second: Params, shares: Float[Array, " points"], setting: SingleArm, places: range
) -> Evaluation:
    """Networks on the line between two, evaluated on these places of the images: means [points]."""
    ends = jnp.int32(places.start), jnp.int32(places.stop)
    found: Evaluation = evaluate_line(first, second, shares, setting.images, *ends, setting.recipe)
    return found


@functools.partial(jax.jit, static_argnames="recipe")
def evaluate_line(
    first: Params,
    second: Params,
    shares: Float[Array, " points"],
    images: Images,
    start: Int[Array, ""],
    stop: Int[Array, ""],
    recipe: Recipe,
) -> Evaluation:
    """`evaluate.evaluate` of every network on the line."""

    def at(share: Float[Array, ""]) -> Evaluation:
        return evaluation.evaluate(interpolate(first, second, share), images, start, stop, recipe)

    found: Evaluation = jax.lax.map(at, shares)
    return found


def barrier(shares: Float[np.ndarray, " points"], values: Float[np.ndarray, " points"]) -> float:
    """By how much a path's values rise above the straight line between its ends; 0 if they nowhere do.

    Entezari et al. 2022 (arXiv:2110.06296), eq. 2.
    """
    shares, values = np.asarray(shares, float), np.asarray(values, float)
    line = values[0] + (shares - shares[0]) / (shares[-1] - shares[0]) * (values[-1] - values[0])
    return float(np.max(values - line))


def initial_params(setting: SingleArm, seed: int) -> Params:
    """The network of a seed before training."""
    made: train.TrainState = start(jnp.uint32(seed), hyperparameters(setting), recipe=setting.recipe)
    return made.params


def effective_rates(setting: SingleArm, seed: int) -> Params:
    """SDLM's rate of every parameter in a seed's first pass, eta / (mu + h_kk) (LeCun et al. 1998, eq. 21).

    Raises:
      InputError: the optimizer is another one.
    """
    if setting.recipe.optimizer != "sdlm":
        raise InputError(f"optimizer: {setting.recipe.optimizer!r} has no curvature; needed is 'sdlm'")
    hyper = hyperparameters(setting)
    state = estimate(start(jnp.uint32(seed), hyper, recipe=setting.recipe), setting.images, recipe=setting.recipe)
    second = optim.curvature_of(state.optimizer)
    rates: Params = jax.tree.map(lambda leaf: hyper.learning_rate / (hyper.mu + leaf), second)
    return rates


start = jax.jit(train.init, static_argnames="recipe")
"""`train.init`, compiled."""

estimate = jax.jit(train.with_curvature, static_argnames="recipe")
"""`train.with_curvature`, compiled."""


def hyperparameters(setting: SingleArm) -> optim.Hyperparameters:
    """Those of each of its members."""
    return optim.Hyperparameters(**{name: jnp.float32(value) for name, value in setting.hyper.items()})


def numbers_by_layer(params: Params) -> dict[str, Float[np.ndarray, " numbers"]]:
    """All numbers of each layer that has any, in one row."""
    layers = {field.name: jax.tree.leaves(getattr(params, field.name)) for field in dataclasses.fields(params)}
    return {name: np.concatenate([np.ravel(leaf) for leaf in leaves]) for name, leaves in layers.items() if leaves}


class Reading(NamedTuple):
    """What a network with RBF outputs makes of an image.

    Attributes:
      code: the states of F6.
      penalties: squared distances of the code from each digit's bitmap.
      order: classes by rising penalty: the answer, the runner-up, ...
      margin: the runner-up's penalty less the answer's (`model.decide`).
    """

    code: Float[Array, "84"]
    penalties: Float[Array, "10"]
    order: Int[Array, "10"]
    margin: Float[Array, ""]


def read_code(params: Params, image: Float[Array, "32 32"], architecture: Architecture) -> Reading:
    """The code and the penalties of an image.

    Raises:
      InputError: the outputs are no RBF units.
    """
    if architecture.output != "rbf":
        raise InputError(f"output: {architecture.output!r} has no bitmaps; needed is 'rbf'")
    states = model.activations(params, image, architecture)
    penalties = states["output"]
    _, margin = model.decide(-penalties)
    return Reading(states["f6"], penalties, jnp.argsort(penalties), margin)
