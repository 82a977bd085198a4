"""Evaluating one network: pure functions of its parameters."""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lenet_jax import blocked, model, train
from lenet_jax.model import Params
from lenet_jax.train import Images, Recipe

EVALUATION_CHUNK = 250
"""Images that are evaluated at once."""


CALIBRATION_BINS = 15


@flax.struct.dataclass
class Evaluation:
    """Means over samples, of a network that isn't trained meanwhile.

    The last three are NaN where the architecture makes no probabilities, see `model.log_probabilities`.

    Attributes:
      loss, error: as in `Metrics`.
      nll: negative log-likelihood of the right class, in nats.
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
    """What a network makes of images.

    Attributes:
      predicted: the class; -1 where outputs are not finite.
      margin: see `model.decide`. Scores are those of `model.predict_scores`: probabilities, scores or penalties.
    """

    predicted: Int[Array, " images"]
    margin: Float[Array, " images"]


def evaluate(params: Params, images: Images, start: Int[Array, ""], stop: Int[Array, ""], recipe: Recipe) -> Evaluation:
    """Measures the images from `start` up to `stop`, which aren't compiled in: one program serves every split."""

    def add_chunk(index: Int[Array, ""], total: tuple[Evaluation, Array]) -> tuple[Evaluation, Array]:
        indices = start + index * EVALUATION_CHUNK + jnp.arange(EVALUATION_CHUNK)
        pictures, labels = images.take(jnp.minimum(indices, stop - 1))
        outputs = blocked.forward(params, pictures, recipe.architecture)
        counted = indices < stop

        def add(total: Array, terms: Array) -> Array:
            return total + jnp.where(counted.reshape(-1, *[1] * total.ndim), terms, 0).sum(axis=0)

        summed: tuple[Evaluation, Array] = jax.tree.map(add, total, measure(outputs, labels, recipe))
        return summed

    chunks = (stop - start + EVALUATION_CHUNK - 1) // EVALUATION_CHUNK
    zero = jnp.zeros((), images.scale.dtype)
    nothing = Evaluation(zero, zero, zero, zero, zero), jnp.zeros(CALIBRATION_BINS, zero.dtype)
    total, gaps = jax.lax.fori_loop(0, chunks, add_chunk, nothing)
    total = dataclasses.replace(total, ece=total.ece + jnp.abs(gaps).sum())
    mean: Evaluation = jax.tree.map(lambda leaf: leaf / (stop - start), total)
    return mean


def measure(
    outputs: Float[Array, "batch classes"], labels: Int[Array, " batch"], recipe: Recipe
) -> tuple[Evaluation, Float[Array, "batch bins"]]:
    """Each sample's terms of the means [batch], and what it adds to the gap of its calibration bin.

    A bin's gap is the sum of its samples' confidence less the number of those that are right; `ece` is all gaps' sizes.
    """
    logits = model.logits_of(outputs, recipe.architecture)
    losses = jax.vmap(lambda logits, label: recipe.loss(logits[None], label[None]))(logits, labels)
    errors = train.misclassified(outputs, labels, recipe).astype(losses.dtype)
    if recipe.architecture.output not in model.PROBABILISTIC:
        unknown = jnp.full_like(losses, jnp.nan)
        return Evaluation(losses, errors, unknown, unknown, unknown), jnp.zeros((len(losses), CALIBRATION_BINS))
    logs = model.log_probabilities(outputs, recipe.architecture)
    probabilities = jnp.exp(logs)
    targets = jax.nn.one_hot(labels, logs.shape[-1], dtype=logs.dtype)
    confidence = probabilities.max(axis=-1)
    bins = jnp.clip(jnp.ceil(confidence * CALIBRATION_BINS).astype(jnp.int32) - 1, 0, CALIBRATION_BINS - 1)
    gaps = jax.nn.one_hot(bins, CALIBRATION_BINS, dtype=logs.dtype) * (confidence - (1 - errors))[:, None]
    evaluation = Evaluation(
        loss=losses,
        error=errors,
        nll=-jnp.take_along_axis(logs, labels[:, None], axis=-1)[:, 0],
        brier=jnp.square(probabilities - targets).sum(axis=-1),
        ece=jnp.zeros_like(losses),
    )
    return evaluation, gaps


def predict(params: Params, images: Images, indices: Int[Array, " indices"], recipe: Recipe) -> Predictions:
    """What the network makes of the images at these indices."""
    # In chunks, the last one filled up with the first image.
    chunks = jnp.pad(indices, (0, -len(indices) % EVALUATION_CHUNK)).reshape(-1, EVALUATION_CHUNK)

    def of_chunk(indices: Int[Array, " chunk"]) -> Predictions:
        outputs = blocked.forward(params, images.take(indices)[0], recipe.architecture)
        digits, margin = model.decide(model.predict_scores(outputs, recipe.architecture))
        return Predictions(jnp.where(jnp.isfinite(outputs).all(axis=-1), digits, -1), margin)

    found: Predictions = jax.tree.map(lambda leaf: leaf.ravel()[: len(indices)], jax.lax.map(of_chunk, chunks))
    return found
