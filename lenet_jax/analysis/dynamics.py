"""Inside networks: layers during training, gradients of losses, paths between networks, rates and RBF codes of 1998.

For notebooks; `network_figures` draws the results. Functions take one network, and callers vmap. Images are normalized,
as from `train.Images.take`.
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
import optax
import pandas as pd
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from lenet_jax import blocked, curvature, model, optim, population, programs, train
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
from lenet_jax.run.parts import own_parts
from lenet_jax.train import Images, Recipe

RUNS = Path("runs")  # of the notebooks, beside them; git ignores the folder
LAYERS = tuple(field.name for field in dataclasses.fields(Params))
SATURATED_BELOW = 0.1  # a unit is saturated where its slope is below this fraction of its activation's largest slope
IMPOSSIBLE_LOGIT = -40.0  # of a class whose probability is 0 in single precision, if others are around 0


def run(config: ConfigDict, name: str) -> TrainedRun:
    """The run of a config in `RUNS/name`, trained unless the folder has it; another config's run is moved aside.

    So is one with parts of the notebook's own, which may have been defined again.
    """
    folder = RUNS / name
    fresh = bool(own_parts(arm.settings for arm in arms.expand(config)))
    try:
        run_folder.is_finished(folder, arms.describe(config), arms.describe(ConfigDict()))
    except InputError:
        fresh = True
    runner.run(config, folder, f"notebook {name}", fresh=fresh)
    return load_run(folder)


class SingleArm(NamedTuple):
    """One arm, ready to be trained or measured. `splits` are indices into `images`; `hyper` is by hyperparameter."""

    recipe: Recipe
    images: Images
    splits: dict[str, range]
    hyper: dict[str, float]
    seeds: list[int]

    def take(self, split: str, count: int) -> tuple[Float[Array, "count 32 32"], Int[Array, " count"]]:
        """The first `count` images of a split, normalized, and their labels."""
        return self.images.take(jnp.asarray(self.splits[split][:count]))


def resolve(config: ConfigDict | Mapping[str, Any]) -> SingleArm:
    """The arm of a config without a sweep, or of the ``settings`` of an arm in ``summary.json``.

    Raises:
      InputError: it has several arms, is tuned, or a field is wrong.
    """
    every = arms.expand(ConfigDict({**arms.DEFAULTS, **config}))
    if len(every) > 1 or every[0].tuning:
        raise InputError(f"sweep, tune: the config has {len(every)} arms, or tunes; needed is one, without tuning")
    phase = planning.make(every).arms[0].test
    return SingleArm(
        recipe=programs.for_platform(dataclasses.replace(phase.recipe, segments=1), programs.mesh_of(jax.devices())),
        images=jax.tree.map(jnp.asarray, planning.images_of(phase.dataset, phase.images)),
        splits=dict(phase.splits),
        hyper={name: float(phase.settings[name]) for name in optim.HYPERPARAMETERS},
        seeds=list(phase.seeds),
    )


def record_training(setting: SingleArm, measure: Callable[[Params], Any], segments: int = 1) -> Any:
    """Trains every seed and measures its network before training and after each of the equal segments of each epoch.

    `measure` maps one network to a tree of arrays. The result has the same tree, of NumPy arrays
    [1 + epochs x segments, seeds, ...].

    Raises:
      ValueError: an epoch can't be divided into that many equal segments.
    """
    if segments < 1 or not train.divides_epoch(setting.recipe, segments):
        raise ValueError(f"segments: {segments} doesn't divide the {setting.recipe.epoch_steps} steps of an epoch")
    size = len(setting.seeds)
    hyper = {name: [value] * size for name, value in setting.hyper.items()}
    recipe = dataclasses.replace(setting.recipe, segments=segments)
    members = population.create(setting.seeds, hyper, setting.images, recipe)
    of_members = jax.jit(jax.vmap(measure))

    def measure_all() -> Any:
        return jax.device_get(of_members(population.params(members)))

    found = [measure_all()]
    for _ in range(recipe.epochs * segments):
        population.train_segment(members)
        found.append(measure_all())
    return jax.tree.map(lambda *leaves: np.stack(leaves), *found)


@flax.struct.dataclass
class Layer:
    """Statistics of one layer of a network on a batch of images.

    Attributes:
      mean, spread: mean and standard deviation of the activations over units and images.
      signal: standard deviation of a unit's activation over images, root mean square over units. Where it is 0, later
        layers see the same input whatever the digit.
      slope: mean of sigma'(a) over units and images; 1 for layers without sigma.
      saturated: fraction of units and images with a slope below `SATURATED_BELOW` x the largest of the activation.
      gradient: Euclidean norm of the gradient of the loss with respect to its parameters; 0 if it has none.
      weights: Euclidean norm of its parameters.
    """

    mean: Float[Array, ""]
    spread: Float[Array, ""]
    signal: Float[Array, ""]
    slope: Float[Array, ""]
    saturated: Float[Array, ""]
    gradient: Float[Array, ""]
    weights: Float[Array, ""]


def preactivations(
    params: Params, images: Float[Array, "batch 32 32"], architecture: Architecture, allow_native: bool = False
) -> dict[str, Float[Array, "batch units"]]:
    """Preactivations a of every layer but RBF outputs.

    The order of the units of C1, S2 and C3 is that of `blocked` or `native`; the other layers have the model's.
    `allow_native`: see `blocked.to_grid`; only where `native.preferred()` is true.
    """
    passed, _ = blocked.passes(params, blocked.to_grid(images, allow_native), architecture)
    dense = model.dense_shapes(architecture)  # in all other layers, images are last
    return {layer.name: a if layer.name in dense else a.reshape(-1, len(images)).T for layer, _, a in passed}


def largest_derivative(architecture: Architecture) -> Float[Array, ""]:
    """The largest sigma'(a): 1/4 of the sigmoid, 1 of tanh and ReLU, 1.14 of the scaled tanh."""
    return curvature.derivative(jnp.linspace(-1.0, 1.0, 3), architecture).max()


def by_layer(
    params: Params, images: Float[Array, "batch 32 32"], labels: Int[Array, " batch"], recipe: Recipe
) -> dict[str, Layer]:
    """Statistics of every layer of one network on a batch, but RBF outputs, which have no preactivations."""
    architecture = recipe.architecture
    gradient, _ = train.gradient_of(params, blocked.to_grid(images, recipe.native), labels, recipe)
    a = preactivations(params, images, architecture, recipe.native)
    return {
        layer.name: layer_of(
            a[layer.name], layer.squashed, getattr(gradient, layer.name), getattr(params, layer.name), architecture
        )
        for layer in blocked.layers_of(architecture)
    }


def layer_of(
    a: Float[Array, "batch units"], squashed: bool, gradient: Any, parameters: Any, architecture: Architecture
) -> Layer:
    """Statistics of a layer from its preactivations, gradient and parameters."""
    activations = ACTIVATIONS[architecture.activation](a) if squashed else a
    slopes = curvature.derivative(a, architecture) if squashed else jnp.ones_like(a)
    largest = largest_derivative(architecture) if squashed else 1.0
    return Layer(
        mean=activations.mean(),
        spread=activations.std(),
        signal=jnp.sqrt(activations.var(axis=0).mean()),
        slope=slopes.mean(),
        saturated=(slopes < SATURATED_BELOW * largest).mean(),
        gradient=optax.tree.norm(gradient),
        weights=optax.tree.norm(parameters),
    )


def layer_table(recorded: Mapping[str, Layer], setting: SingleArm, segments: int = 1) -> pd.DataFrame:
    """Results of `record_training` with `by_layer` as a table: layer, epoch, seed, and the fields of `Layer`."""
    epochs = np.arange(len(next(iter(recorded.values())).mean)) / segments
    index = pd.MultiIndex.from_product([epochs, setting.seeds], names=["epoch", "seed"])
    tables = {
        name: pd.DataFrame({column: np.ravel(values) for column, values in vars(recorded[name]).items()}, index)
        for name in sorted(recorded, key=LAYERS.index)  # JAX sorts dictionaries
    }
    return pd.concat(tables, names=["layer"]).reset_index()


def logits_at(probability: Float[Array, ""], rivals: int) -> Float[Array, "10"]:
    """Logits that give class 0 this probability, and the next `rivals` classes equal shares of the rest."""
    rest = jnp.log1p(-probability) - jnp.log(jnp.float32(rivals))
    index = jnp.arange(10)
    return jnp.where(index == 0, jnp.log(probability), jnp.where(index <= rivals, rest, IMPOSSIBLE_LOGIT))


@functools.partial(jax.jit, static_argnames=("loss", "rivals"))
def logit_gradient(loss: Loss, probability: Float[Array, ""], rivals: int = 1) -> Float[Array, "10"]:
    """dE/ds_i: gradient of the loss with respect to the logits of `logits_at`, for the label 0."""
    of_logits = jax.grad(lambda logits: loss(logits[None], jnp.zeros(1, jnp.int32)))
    gradient: Array = of_logits(logits_at(probability, rivals))
    return gradient


@jax.jit  # one program, not three for each shape of an array
def interpolate(first: Params, second: Params, share: Float[Array, ""] | float) -> Params:
    """The network on the straight line from the first (share 0) to the second (share 1)."""
    between: Params = jax.tree.map(lambda one, other: (1 - share) * one + share * other, first, second)
    return between


def along(
    first: Params, second: Params, shares: Float[Array, " points"], setting: SingleArm, indices: range
) -> Evaluation:
    """Evaluation of networks on the line between two, on the images at these indices: means [points]."""
    predict = jax.jit(evaluation.predict, static_argnames="recipe")
    labels = np.asarray(setting.images.labels)[indices.start : indices.stop]
    networks = (interpolate(first, second, share) for share in shares)
    predicted = (predict(network, setting.images, jnp.asarray(indices), recipe=setting.recipe) for network in networks)
    found = [evaluation.evaluate([(predictions, labels)]) for predictions in predicted]
    means: Evaluation = jax.tree.map(lambda *leaves: np.stack(leaves), *found)
    return means


def barrier(shares: Float[np.ndarray, " points"], values: Float[np.ndarray, " points"]) -> float:
    """Largest rise of a path's values above the straight line between its ends; at least 0. Shares increase.

    Entezari et al. 2022 (arXiv:2110.06296), eq. 2.
    """
    shares, values = np.asarray(shares, float), np.asarray(values, float)
    return float(np.max(values - np.interp(shares, shares[[0, -1]], values[[0, -1]])))


def initial_state(setting: SingleArm, seed: int) -> train.TrainState:
    """The state of a seed's network before training."""
    start = jax.jit(train.init, static_argnames="recipe")
    state: train.TrainState = start(jnp.uint32(seed), hyperparameters(setting), recipe=setting.recipe)
    return state


def effective_rates(setting: SingleArm, seed: int) -> Params:
    """SDLM's learning rate of every parameter in a seed's first epoch, eta / (mu + h_kk) (LeCun et al. 1998, eq. 21).

    Raises:
      InputError: the optimizer is not ``sdlm``.
    """
    if setting.recipe.optimizer != "sdlm":
        raise InputError(f"optimizer: {setting.recipe.optimizer!r} has no curvature; allowed is 'sdlm'")
    estimate = jax.jit(train.with_curvature, static_argnames="recipe")
    state = estimate(initial_state(setting, seed), setting.images, recipe=setting.recipe)
    hyper, second = hyperparameters(setting), optim.curvature_of(state.optimizer)
    rates: Params = jax.tree.map(lambda leaf: hyper.learning_rate / (hyper.mu + leaf), second)
    return rates


def hyperparameters(setting: SingleArm) -> optim.Hyperparameters:
    """The hyperparameters of a network of the arm."""
    return optim.Hyperparameters(**{name: jnp.float32(value) for name, value in setting.hyper.items()})


def numbers_by_layer(params: Params) -> dict[str, Float[np.ndarray, " numbers"]]:
    """The numbers of each layer, in one row; layers without parameters are left out."""
    layers = {name: jax.tree.leaves(getattr(params, name)) for name in LAYERS}
    return {name: np.concatenate([np.ravel(leaf) for leaf in leaves]) for name, leaves in layers.items() if leaves}


class Reading(NamedTuple):
    """Classification of an image by a network with RBF outputs.

    Attributes:
      code: activations of F6.
      penalties: squared distances between the code and each digit's bitmap.
      order: classes by rising penalty: the answer, the runner-up, ...
      margin: the runner-up's penalty minus the answer's (`model.decide`).
    """

    code: Float[Array, "84"]
    penalties: Float[Array, "10"]
    order: Int[Array, "10"]
    margin: Float[Array, ""]


def read_code(params: Params, image: Float[Array, "32 32"], architecture: Architecture) -> Reading:
    """The code and the penalties of an image.

    Raises:
      InputError: the outputs are not RBF units.
    """
    if architecture.output != "rbf":
        raise InputError(f"output: {architecture.output!r} has no bitmaps; allowed is 'rbf'")
    activations = model.activations(params, image, architecture)
    penalties = activations["output"]
    _, margin = model.decide(-penalties)
    return Reading(activations["f6"], penalties, jnp.argsort(penalties), margin)
