"""Training and evaluating one member: pure functions of its state."""

import dataclasses
import enum

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8, UInt32

from lenet_jax import blocked, model, optim
from lenet_jax.losses import Loss
from lenet_jax.model import Architecture, Params
from lenet_jax.optim import Hyperparameters

IMAGE_SHAPE = (model.IMAGE_SIZE, model.IMAGE_SIZE)

EVALUATION_CHUNK = 250
"""Images that are evaluated at once."""


class Stream(enum.IntEnum):
    """Constants that a member's key is folded with: one stream of randomness for each use."""

    INIT = 0
    ORDER = 1


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that is fixed when a training is compiled. Hashable."""

    architecture: Architecture
    loss: Loss
    optimizer: str
    schedule: str
    batch_size: int
    epochs: int
    train_size: int

    @property
    def epoch_steps(self) -> int:
        """Updates an epoch. An incomplete last batch is left out: other samples each epoch, as the order changes."""
        return self.train_size // self.batch_size

    def optimizer_of(self, hyper: Hyperparameters) -> optax.GradientTransformation:
        """The member's optimizer."""
        return optim.transformation(self.optimizer, self.schedule, self.epochs * self.epoch_steps, hyper)


@flax.struct.dataclass
class Images:
    """All images of a data set: training, then validation, then test.

    Attributes:
      pixels: as stored, padded to 32 x 32.
      labels: right classes.
      scale, shift: normalized pixel = pixel * scale + shift.
    """

    pixels: UInt8[Array, "images 32 32"]
    labels: Int[Array, " images"]
    scale: Float[Array, ""]
    shift: Float[Array, ""]

    def take(self, places: Int[Array, " batch"]) -> tuple[Float[Array, "batch 32 32"], Int[Array, " batch"]]:
        """Normalized images and labels of these places."""
        return self.pixels[places].astype(self.scale.dtype) * self.scale + self.shift, self.labels[places]


@flax.struct.dataclass
class TrainState:
    """One member in training.

    Attributes:
      params: its network.
      optimizer: the optax state.
      key: its random stream, `jax.random.key(seed)`.
      epoch: epochs done.
    """

    params: Params
    optimizer: optax.OptState
    key: PRNGKeyArray
    epoch: Int[Array, ""]


@flax.struct.dataclass
class Metrics:
    """Means over samples: the training loss, and the fraction classified wrong."""

    loss: Float[Array, ""]
    error: Float[Array, ""]


def init(seed: UInt32[Array, ""], hyper: Hyperparameters, recipe: Recipe) -> TrainState:
    """The state of member `seed` before training."""
    key = jax.random.key(seed)
    params = model.init(jax.random.fold_in(key, Stream.INIT), recipe.architecture)
    return TrainState(params, recipe.optimizer_of(hyper).init(params), key, jnp.zeros((), jnp.int32))


def wrong(outputs: Float[Array, "batch classes"], labels: Int[Array, " batch"], recipe: Recipe) -> Array:
    """Whether each sample is classified wrong [batch]. A network at NaN or infinity classifies none right."""
    scores = model.predict_scores(outputs, recipe.architecture)
    return (scores.argmax(axis=-1) != labels) | ~jnp.isfinite(outputs).all(axis=-1)


def train_step(
    state: TrainState,
    grid: Float[Array, "1 4 4 8 8 batch"],
    labels: Int[Array, " batch"],
    hyper: Hyperparameters,
    recipe: Recipe,
) -> tuple[TrainState, Metrics]:
    """One update, from images that `blocked.to_grid` has cut. The metrics are of the network before it."""

    def objective(params: Params) -> tuple[Array, Array]:
        outputs = blocked.forward_grid(params, grid, recipe.architecture)
        return recipe.loss(outputs, labels), wrong(outputs, labels, recipe).mean()

    (loss, error), gradient = jax.value_and_grad(objective, has_aux=True)(state.params)
    update, optimizer = recipe.optimizer_of(hyper).update(gradient, state.optimizer, state.params)
    params = optax.apply_updates(state.params, update)
    return dataclasses.replace(state, params=params, optimizer=optimizer), Metrics(loss, error)


def train_epoch(
    state: TrainState, hyper: Hyperparameters, images: Images, recipe: Recipe
) -> tuple[TrainState, Metrics]:
    """One pass over the training set in a fresh order. The metrics are means over the pass, measured while training."""
    order_key = jax.random.fold_in(jax.random.fold_in(state.key, Stream.ORDER), state.epoch)
    order = jax.random.permutation(order_key, recipe.train_size)
    batches = order[: recipe.epoch_steps * recipe.batch_size].reshape(recipe.epoch_steps, recipe.batch_size)

    def load(places: Int[Array, " batch"]) -> tuple[Float[Array, "1 4 4 8 8 batch"], Int[Array, " batch"]]:
        pictures, labels = images.take(places)
        return blocked.to_grid(pictures), labels

    # Each step loads the next one's batch. As part of the carry it is written to memory once; loaded where it is used,
    # XLA would gather every pixel anew for each tile that sees it.
    def step(
        carry: tuple[TrainState, tuple[Array, Array]], following: Int[Array, " batch"]
    ) -> tuple[tuple[TrainState, tuple[Array, Array]], Metrics]:
        state, batch = carry
        loaded = load(following)
        state, metrics = train_step(state, *batch, hyper, recipe)
        return (state, loaded), metrics

    (state, _), metrics = jax.lax.scan(step, (state, load(batches[0])), jnp.roll(batches, -1, axis=0))
    return dataclasses.replace(state, epoch=state.epoch + 1), jax.tree.map(jnp.mean, metrics)


def evaluate(params: Params, images: Images, start: Int[Array, ""], stop: Int[Array, ""], recipe: Recipe) -> Metrics:
    """Metrics over the images from `start` up to `stop`, which aren't compiled in: one program serves every split."""

    def add_chunk(index: Int[Array, ""], total: Metrics) -> Metrics:
        places = start + index * EVALUATION_CHUNK + jnp.arange(EVALUATION_CHUNK)
        pictures, labels = images.take(jnp.minimum(places, stop - 1))
        outputs = blocked.forward(params, pictures, recipe.architecture)
        losses = jax.vmap(lambda output, label: recipe.loss(output[None], label[None]))(outputs, labels)
        counted = places < stop
        return Metrics(
            total.loss + jnp.where(counted, losses, 0).sum(),
            total.error + (counted & wrong(outputs, labels, recipe)).sum(),
        )

    chunks = (stop - start + EVALUATION_CHUNK - 1) // EVALUATION_CHUNK
    zero = jnp.zeros((), images.scale.dtype)
    total = jax.lax.fori_loop(0, chunks, add_chunk, Metrics(zero, zero))
    return Metrics(total.loss / (stop - start), total.error / (stop - start))
