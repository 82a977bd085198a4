"""Evaluating a single network: pure functions of its parameters."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lenet_jax import blocked, model, train
from lenet_jax.errors import InputError, one_line
from lenet_jax.model import Params
from lenet_jax.optim import placeholders
from lenet_jax.registry import CACHES, Registry
from lenet_jax.train import Images, Recipe, TrainState

EVALUATION_BATCH_SIZE = 64
"""Images evaluated together: their activations fit in a core's cache. Their number need not be a multiple of it."""

Metric = Callable[[TrainState, Images, Recipe], Array | Mapping[str, Array]]
"""A network in training, all images (see `train.Images`) and its recipe -> a number, or several by name."""

METRICS: Registry[Metric] = Registry("metrics")
"""Metrics that an experiment file defines: with ``METRICS["step"] = lambda state, images, recipe: state.step``,
``config.metrics = ("step",)`` measures ``state_step``. The first `recipe.train_size` images are trained on."""

CALIBRATION_BINS = 15
"""Bins of equal width of the winning probability, for the expected calibration error."""


@flax.struct.dataclass
class Predictions:
    """What a network answers for images, and the terms of the means in `Evaluation`.

    Attributes:
      predicted: the class; -1 if outputs aren't finite.
      margin: of the best score over the second best, see `model.decide`.
      loss: of the image alone.
      nll, brier: see `Evaluation`; NaN if outputs aren't probabilities, see `model.PROBABILISTIC`.
      confidence: the probability of the winning class; NaN if outputs aren't probabilities.
    """

    predicted: Int[Array, "*members images"]
    margin: Float[Array, "*members images"]
    loss: Float[Array, "*members images"]
    nll: Float[Array, "*members images"]
    brier: Float[Array, "*members images"]
    confidence: Float[Array, "*members images"]


@flax.struct.dataclass
class Evaluation:
    """Means over images; `nll`, `brier` and `ece` are NaN if outputs aren't probabilities, see `model.PROBABILISTIC`.

    Attributes:
      loss, error: as in `train.Metrics`.
      nll: negative log-likelihood of the correct class, in nats.
      brier: sum over classes of (probability - 0/1 target)^2, from 0 to 2 (Brier 1950).
      ece: expected calibration error, `CALIBRATION_BINS` bins of the winning probability (Guo et al. 2017, eq. 3).
    """

    loss: Float[np.ndarray, "*members"]
    error: Float[np.ndarray, "*members"]
    nll: Float[np.ndarray, "*members"]
    brier: Float[np.ndarray, "*members"]
    ece: Float[np.ndarray, "*members"]


def predict(
    params: Params,
    images: Images,
    indices: Int[Array, " indices"],
    recipe: Recipe,
    loss_number: Int[Array, ""] | int = 0,
) -> Predictions:
    """The network's answers for the images at these indices; `loss_number`: see `optim.Hyperparameters`."""
    padding = 0, -len(indices) % EVALUATION_BATCH_SIZE  # the last batch repeats the first image of the data set
    batches = jnp.pad(indices, padding).reshape(-1, EVALUATION_BATCH_SIZE)

    def predict_batch(indices: Int[Array, " batch"]) -> Predictions:
        inputs, labels = images.take(indices)
        outputs = blocked.forward(params, inputs, recipe.architecture, recipe.native)
        return answer(outputs, labels, recipe, loss_number)

    predictions = jax.lax.map(predict_batch, batches)
    unpadded: Predictions = jax.tree.map(lambda leaf: leaf.ravel()[: len(indices)], predictions)
    return unpadded


def answer(
    outputs: Float[Array, "batch classes"],
    labels: Int[Array, " batch"],
    recipe: Recipe,
    loss_number: Int[Array, ""] | int = 0,
) -> Predictions:
    """What outputs say of each image of a batch."""
    logits, loss = model.logits_of(outputs, recipe.architecture), recipe.loss_of(loss_number)
    losses = jax.vmap(lambda logits, label: loss(logits[None], label[None]))(logits, labels)
    digits, margin = model.decide(model.predict_scores(outputs, recipe.architecture))
    predicted = jnp.where(jnp.isfinite(outputs).all(axis=-1), digits, -1)
    if recipe.architecture.output not in model.PROBABILISTIC:
        unknown = jnp.full_like(losses, jnp.nan)
        return Predictions(predicted, margin, losses, unknown, unknown, unknown)
    logs = model.log_probabilities(outputs, recipe.architecture)
    probabilities = jnp.exp(logs)
    nll = -jnp.take_along_axis(logs, labels[:, None], axis=-1)[:, 0]
    brier = jnp.square(probabilities - jax.nn.one_hot(labels, logs.shape[-1], dtype=logs.dtype)).sum(axis=-1)
    return Predictions(predicted, margin, losses, nll, brier, confidence=probabilities.max(axis=-1))


def evaluate(parts: Iterable[tuple[Predictions, Int[np.ndarray, " images"]]]) -> Evaluation:
    """The means over all images, from predictions of some of them at a time [members, images] and their labels."""
    count = 0
    sums: dict[str, Any] = dict.fromkeys(("loss", "error", "nll", "brier"), 0.0)
    gaps: Any = 0.0  # of each bin: the sum of its images' confidence minus the number of correct ones
    for found, labels in parts:
        count += len(labels)
        wrong = np.asarray(found.predicted) != labels
        for name, terms in {"loss": found.loss, "error": wrong, "nll": found.nll, "brier": found.brier}.items():
            sums[name] += np.asarray(terms).sum(axis=-1, dtype=np.float64)
        confidence = np.asarray(found.confidence)
        bins = np.ceil(confidence * CALIBRATION_BINS).clip(1, CALIBRATION_BINS)
        # One bin after the other: an array with an axis of bins would be the largest of a run. NaN stays NaN.
        excess = confidence - ~wrong
        of_bins = (np.where(bins == index, excess, 0 * excess) for index in range(1, CALIBRATION_BINS + 1))
        gaps += np.stack([terms.sum(axis=-1, dtype=np.float64) for terms in of_bins], axis=-1)
    return Evaluation(ece=np.abs(gaps).sum(axis=-1) / count, **{name: total / count for name, total in sums.items()})


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
        zeros = placeholders()
        state, _ = train.train_segment(train.init(jnp.uint32(0), zeros, recipe), zeros, images, recipe)
        return measure_own(state, images, recipe)

    try:
        jax.eval_shape(traced)
    except InputError as error:
        raise InputError(str(error)) from error  # without what JAX added to it
    except Exception as error:  # whatever a user's function raises
        raise InputError(f"experiment: its own parts can't be computed ({one_line(error)})") from error


CACHES.append(check_own.cache_clear)
