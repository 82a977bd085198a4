"""Evaluating a single network: pure functions of its parameters."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lenet_jax import blocked, model, train
from lenet_jax.errors import InputError, one_line
from lenet_jax.model import Params
from lenet_jax.optim import HYPERPARAMETERS, Hyperparameters
from lenet_jax.registry import CACHES, Registry
from lenet_jax.train import Images, Recipe, TrainState

EVALUATION_BATCH_SIZE = 250
"""Images evaluated together. The number of images need not be a multiple of it."""

Metric = Callable[[TrainState, Images, Recipe], Array | Mapping[str, Array]]
"""A network in training, all images (see `train.Images`) and its recipe -> a number, or several by name."""

METRICS: Registry[Metric] = Registry("metrics")
"""Metrics that an experiment file defines: with ``METRICS["step"] = lambda state, images, recipe: state.step``,
``config.metrics = ("step",)`` measures ``state_step``. The first `recipe.train_size` images are trained on."""

CALIBRATION_BINS = 15
"""Bins of equal width of the winning probability, for the expected calibration error."""


@flax.struct.dataclass
class Evaluation:
    """Means over samples; `nll`, `brier` and `ece` are NaN if outputs aren't probabilities, see `model.PROBABILISTIC`.

    Attributes:
      loss, error: as in `train.Metrics`.
      nll: negative log-likelihood of the correct class, in nats.
      brier: sum over classes of (probability - 0/1 target)^2, from 0 to 2 (Brier 1950).
      ece: expected calibration error, `CALIBRATION_BINS` bins of the winning probability (Guo et al. 2017, eq. 3).
    """

    loss: Float[Array, ""]
    error: Float[Array, ""]
    nll: Float[Array, ""]
    brier: Float[Array, ""]
    ece: Float[Array, ""]


@flax.struct.dataclass
class Predictions:
    """A network's classes of images, -1 if outputs aren't finite; their margins (`model.decide`), nll and brier.

    The last two are the terms of the means in `Evaluation`.
    """

    predicted: Int[Array, " images"]
    margin: Float[Array, " images"]
    nll: Float[Array, " images"]
    brier: Float[Array, " images"]


def evaluate(params: Params, images: Images, start: Int[Array, ""], stop: Int[Array, ""], recipe: Recipe) -> Evaluation:
    """Evaluates the network on images `start` to `stop` - 1; as these are arrays, one program serves all splits."""

    def add_batch(index: Int[Array, ""], total: tuple[Evaluation, Array]) -> tuple[Evaluation, Array]:
        # The last batch repeats the last image; repetitions aren't counted.
        indices = start + index * EVALUATION_BATCH_SIZE + jnp.arange(EVALUATION_BATCH_SIZE)
        inputs, labels = images.take(jnp.minimum(indices, stop - 1))
        outputs = blocked.forward(params, inputs, recipe.architecture)
        counted = indices < stop

        def add(total: Array, terms: Array) -> Array:
            return total + jnp.where(counted.reshape(-1, *[1] * total.ndim), terms, 0).sum(axis=0)

        summed: tuple[Evaluation, Array] = jax.tree.map(add, total, measure(outputs, labels, recipe))
        return summed

    batches = (stop - start + EVALUATION_BATCH_SIZE - 1) // EVALUATION_BATCH_SIZE
    zero = jnp.zeros((), images.scale.dtype)
    zeros = Evaluation(zero, zero, zero, zero, zero), jnp.zeros(CALIBRATION_BINS, zero.dtype)
    total, gaps = jax.lax.fori_loop(0, batches, add_batch, zeros)
    total = dataclasses.replace(total, ece=total.ece + jnp.abs(gaps).sum())
    mean: Evaluation = jax.tree.map(lambda leaf: leaf / (stop - start), total)
    return mean


def measure(
    outputs: Float[Array, "batch classes"], labels: Int[Array, " batch"], recipe: Recipe
) -> tuple[Evaluation, Float[Array, "batch bins"]]:
    """The terms of each sample in the means [batch], and its contribution to the gap of each calibration bin.

    A bin's gap is the sum of its samples' confidence minus the number of correct ones; `ece` sums the absolute gaps.
    """
    logits = model.logits_of(outputs, recipe.architecture)
    losses = jax.vmap(lambda logits, label: recipe.loss(logits[None], label[None]))(logits, labels)
    errors = train.misclassified(outputs, labels, recipe).astype(losses.dtype)
    if recipe.architecture.output not in model.PROBABILISTIC:
        unknown = jnp.full_like(losses, jnp.nan)
        return Evaluation(losses, errors, unknown, unknown, unknown), jnp.zeros((len(losses), CALIBRATION_BINS))
    logs = model.log_probabilities(outputs, recipe.architecture)
    probabilities = jnp.exp(logs)
    nll = -jnp.take_along_axis(logs, labels[:, None], axis=-1)[:, 0]
    brier = jnp.square(probabilities - jax.nn.one_hot(labels, logs.shape[-1], dtype=logs.dtype)).sum(axis=-1)
    confidence = probabilities.max(axis=-1)
    bins = jnp.clip(jnp.ceil(confidence * CALIBRATION_BINS).astype(jnp.int32) - 1, 0, CALIBRATION_BINS - 1)
    gaps = jax.nn.one_hot(bins, CALIBRATION_BINS, dtype=logs.dtype) * (confidence - (1 - errors))[:, None]
    return Evaluation(losses, errors, nll, brier, ece=jnp.zeros_like(losses)), gaps


def measure_own(state: TrainState, images: Images, recipe: Recipe) -> dict[str, Float[Array, ""]]:
    """A network's values of the user's metrics: ``name``, or ``name_key`` for each key of a mapping."""
    values: dict[str, Array] = {}
    for name in recipe.metrics:
        found = METRICS[name](state, images, recipe)
        several = {f"{name}_{key}": found[key] for key in found} if isinstance(found, Mapping) else {name: found}
        for full, number in several.items():
            if not full.isidentifier() or full in values:
                raise InputError(f"metrics: {name!r} returns {full!r}; expected distinct names of letters and digits")
            value = values[full] = jnp.asarray(number, float)
            if value.shape:
                raise InputError(f"metrics: {name!r} returns an array of shape {value.shape}; expected a number")
    return values


@functools.cache
def check_own(recipe: Recipe) -> None:
    """Traces a training with the user's own parts; raises InputError if one fails or returns something unexpected."""

    def traced() -> Any:
        pixels = jnp.zeros((recipe.train_size, model.IMAGE_SIZE, model.IMAGE_SIZE), jnp.uint8)
        images = Images(pixels, jnp.zeros(recipe.train_size, int), jnp.ones(()), jnp.zeros(()))
        zeros = Hyperparameters(**dict.fromkeys(HYPERPARAMETERS, jnp.zeros(())))
        state, _ = train.train_segment(train.init(jnp.uint32(0), zeros, recipe), zeros, images, recipe)
        return measure_own(state, images, recipe)

    try:
        jax.eval_shape(traced)
    except InputError as error:
        raise InputError(str(error)) from error  # without what JAX added to it
    except Exception as error:  # whatever a user's function raises
        raise InputError(f"experiment: its own parts can't be computed ({one_line(error)})") from error


CACHES.append(check_own.cache_clear)


def predict(params: Params, images: Images, indices: Int[Array, " indices"], recipe: Recipe) -> Predictions:
    """The network's classification of the images at these indices."""
    padding = 0, -len(indices) % EVALUATION_BATCH_SIZE  # the last batch repeats the first image of the data set
    batches = jnp.pad(indices, padding).reshape(-1, EVALUATION_BATCH_SIZE)

    def predict_batch(indices: Int[Array, " batch"]) -> Predictions:
        inputs, labels = images.take(indices)
        outputs = blocked.forward(params, inputs, recipe.architecture)
        digits, margin = model.decide(model.predict_scores(outputs, recipe.architecture))
        terms, _ = measure(outputs, labels, recipe)
        return Predictions(jnp.where(jnp.isfinite(outputs).all(axis=-1), digits, -1), margin, terms.nll, terms.brier)

    predictions = jax.lax.map(predict_batch, batches)
    unpadded: Predictions = jax.tree.map(lambda leaf: leaf.ravel()[: len(indices)], predictions)
    return unpadded
