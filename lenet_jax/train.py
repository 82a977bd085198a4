"""Training and evaluating one member: pure functions of its state."""

import dataclasses
import enum

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8, UInt32

from lenet_jax import blocked, model, optim
from lenet_jax.curvature import diagonal
from lenet_jax.distortions import Augmentation, Distortion, distort, draw
from lenet_jax.losses import Loss
from lenet_jax.model import Architecture, Params
from lenet_jax.optim import Hyperparameters

IMAGE_SHAPE = (model.IMAGE_SIZE, model.IMAGE_SIZE)


MICROBATCH = 64
"""Samples whose activations stay in a core's cache. Larger batches train faster in microbatches than as a whole."""


def microbatches_for(batch_size: int) -> int:
    """Number of equal microbatches that each fit a core's cache; 1 if splitting the batch doesn't pay."""
    counts = (count for count in range(1, batch_size + 1) if batch_size % count == 0)
    count = next(count for count in counts if batch_size // count <= MICROBATCH)
    return count if batch_size // count >= MICROBATCH // 4 else 1


MAX_CALL_SAMPLES = 1_000_000
"""Samples x members above which an epoch is split into segments, between which a run can be saved and stopped: about
20 s on two cores."""

MAX_SEGMENTS = 16
"""Upper limit of segments per epoch: every segment redraws the order of the whole epoch."""


def divides_epoch(recipe: "Recipe", segments: int) -> bool:
    """Whether an epoch splits into this number of equal segments of whole steps, each with its curvature estimates."""
    estimates = recipe.curvature_estimates if recipe.optimizer == "sdlm" else 1
    return recipe.epoch_steps % segments == 0 and (estimates % segments == 0 or segments % estimates == 0)


def segments_for(recipe: "Recipe", members: int) -> int:
    """Number of equal segments in which a population trains an epoch; 1 if the epoch is short or can't be split."""
    allowed = [segments for segments in range(1, MAX_SEGMENTS + 1) if divides_epoch(recipe, segments)]
    wanted = members * recipe.epoch_steps * recipe.batch_size / MAX_CALL_SAMPLES
    return next((segments for segments in allowed if segments >= wanted), allowed[-1])


class Stream(enum.IntEnum):
    """Constants that a member's key is folded with: one stream of randomness for each use."""

    INIT = 0
    ORDER = 1
    AUGMENTATION = 2
    CURVATURE = 3


ORDERS = ("fresh", "constant", "stored")
"""Presentation orders: a random one each epoch, a random one for all epochs, as in 1998, or that of the data set."""


NO_AUGMENTATION = Augmentation()


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that is fixed when a training is compiled. Hashable.

    Attributes:
      microbatches: of a batch, computed one after the other; divides `batch_size`. Results differ by rounding only.
      segments: of an epoch, each a call of `train_segment`; `divides_epoch` must hold.
      train_size: training images.
      augmentation: see `distortions`.
      order: of `ORDERS`.
      curvature_patterns: images that ``sdlm`` measures the curvature on.
      curvature_estimates: how often it does so an epoch, at equal distances from its start on; divides `epoch_steps`.
      curvature_memory: share of the last estimate in the next one: above 0, a running mean.
      curvature_start: of `curvature.STARTS`.
      architecture, loss, optimizer, schedule, batch_size, epochs: as in the config.
    """

    architecture: Architecture
    loss: Loss
    optimizer: str
    schedule: str
    batch_size: int
    epochs: int
    train_size: int
    microbatches: int = 1
    segments: int = 1
    augmentation: Augmentation = NO_AUGMENTATION
    order: str = "fresh"
    curvature_patterns: int = 500
    curvature_estimates: int = 1
    curvature_memory: float = 0.0
    curvature_start: str = "target"

    @property
    def epoch_steps(self) -> int:
        """Updates an epoch. An incomplete last batch is left out: other samples each epoch if the order is fresh."""
        return self.train_size // self.batch_size

    def optimizer_of(self, hyper: Hyperparameters) -> optax.GradientTransformation:
        """The member's optimizer."""
        return optim.transformation(
            self.optimizer, self.schedule, self.epochs * self.epoch_steps, self.epoch_steps, hyper
        )


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

    def take(self, indices: Int[Array, " batch"]) -> tuple[Float[Array, "batch 32 32"], Int[Array, " batch"]]:
        """Normalized images and labels at these indices."""
        return self.pixels[indices].astype(self.scale.dtype) * self.scale + self.shift, self.labels[indices]


Batch = tuple[Float[Array, "1 4 8 16 2 batch"], Int[Array, " batch"]]
"""Images that `blocked.to_grid` has cut, and their labels."""


@flax.struct.dataclass
class Metrics:
    """Means over samples: the training loss, and the fraction classified wrong."""

    loss: Float[Array, ""]
    error: Float[Array, ""]


@flax.struct.dataclass
class TrainState:
    """One member in training.

    Attributes:
      params: its network.
      optimizer: the optax state.
      key: its random stream, `jax.random.key(seed)`.
      step: number of steps done.
      running: sums over the steps of the current epoch.
    """

    params: Params
    optimizer: optax.OptState
    key: PRNGKeyArray
    step: Int[Array, ""]
    running: Metrics


def init(seed: UInt32[Array, ""], hyper: Hyperparameters, recipe: Recipe) -> TrainState:
    """The state of member `seed` before training."""
    key = jax.random.key(seed)
    params = model.init(jax.random.fold_in(key, Stream.INIT), recipe.architecture)
    zero = jnp.zeros(())
    return TrainState(params, recipe.optimizer_of(hyper).init(params), key, jnp.int32(0), Metrics(zero, zero))


def misclassified(outputs: Float[Array, "batch classes"], labels: Int[Array, " batch"], recipe: Recipe) -> Array:
    """Whether each sample is classified wrong [batch]. A network at NaN or infinity classifies none right."""
    scores = model.predict_scores(outputs, recipe.architecture)
    return (scores.argmax(axis=-1) != labels) | ~jnp.isfinite(outputs).all(axis=-1)


def gradient_of(
    params: Params, grid: Float[Array, "1 4 8 16 2 batch"], labels: Int[Array, " batch"], recipe: Recipe
) -> tuple[Params, Metrics]:
    """The gradient of the loss, and the metrics, from images that `blocked.to_grid` has cut."""

    def objective(params: Params) -> tuple[Array, Metrics]:
        outputs = blocked.forward_grid(params, grid, recipe.architecture)
        loss = recipe.loss(model.logits_of(outputs, recipe.architecture), labels)
        return loss, Metrics(loss, misclassified(outputs, labels, recipe).mean())

    gradient, metrics = jax.grad(objective, has_aux=True)(params)
    return gradient, metrics


BatchIndices = tuple[Int[Array, "*batch"], Distortion | None]
"""Places of images to be presented, and how each is distorted."""


def gather_batch(images: Images, presentation: BatchIndices) -> Batch:
    """The images, ready for `gradient_of`."""
    indices, distortion = presentation
    pictures, labels = images.take(indices)
    if distortion is not None:
        pictures = jax.vmap(distort, in_axes=(0, 0, None))(pictures, distortion, images.shift)
    return blocked.to_grid(pictures), labels


def train_step(
    state: TrainState,
    batch: Batch,
    next_indices: BatchIndices,
    hyper: Hyperparameters,
    images: Images,
    recipe: Recipe,
) -> tuple[TrainState, Batch, Metrics]:
    """One optimizer step.

    Args:
      state: before it.
      batch: the first microbatch of the batch, loaded.
      next_indices: the microbatches that follow it, [microbatches, samples of a microbatch]: the rest of the batch, and
        the first microbatch of the next batch.
      hyper: the member's.
      images: of all splits.
      recipe: what is trained.

    Returns:
      the state after the step, the first microbatch of the next batch, and the metrics of the network before the step.
    """

    # Every microbatch loads the next one. As part of the carry it is written to memory once; if it were loaded where it
    # is used, XLA would gather every pixel again for each tile that reads it.
    def add_microbatch(
        carry: tuple[tuple[Params, Metrics], Batch], presentation: BatchIndices
    ) -> tuple[tuple[tuple[Params, Metrics], Batch], None]:
        total, batch = carry
        loaded = gather_batch(images, presentation)
        return (jax.tree.map(jnp.add, total, gradient_of(state.params, *batch, recipe)), loaded), None

    nothing = jax.tree.map(jnp.zeros_like, (state.params, Metrics(images.scale, images.scale)))
    (total, batch), _ = jax.lax.scan(add_microbatch, (nothing, batch), next_indices, unroll=recipe.microbatches == 1)
    gradient, metrics = jax.tree.map(lambda leaf: leaf / recipe.microbatches, total)
    change, optimizer = recipe.optimizer_of(hyper).update(gradient, state.optimizer, state.params)
    params = optax.apply_updates(state.params, change)
    return dataclasses.replace(state, params=params, optimizer=optimizer), batch, metrics


def train_epoch(
    state: TrainState, hyper: Hyperparameters, images: Images, recipe: Recipe
) -> tuple[TrainState, Metrics]:
    """One epoch. The metrics are means over the epoch, measured while training."""
    for _ in range(recipe.segments - 1):
        state, _ = train_segment(state, hyper, images, recipe)
    return train_segment(state, hyper, images, recipe)


def train_segment(
    state: TrainState, hyper: Hyperparameters, images: Images, recipe: Recipe
) -> tuple[TrainState, Metrics]:
    """Trains the next of an epoch's `recipe.segments`. The metrics are means over the epoch so far."""

    def step(carry: tuple[TrainState, Batch], next_indices: BatchIndices) -> tuple[tuple[TrainState, Batch], Metrics]:
        state, batch, metrics = train_step(*carry, next_indices, hyper, images, recipe)
        return (state, batch), metrics

    def stretch(carry: tuple[TrainState, Batch], steps: BatchIndices) -> tuple[tuple[TrainState, Batch], Metrics]:
        state, batch = carry
        if recipe.optimizer == "sdlm":
            state = with_curvature(state, images, recipe)
        (state, batch), metrics = jax.lax.scan(step, (state, batch), steps)
        return (dataclasses.replace(state, step=state.step + len(metrics.loss)), batch), metrics

    count = max(recipe.curvature_estimates // recipe.segments, 1) if recipe.optimizer == "sdlm" else 1

    def by_step(leaf: Array) -> Array:
        return jnp.roll(leaf, -1, axis=0).reshape(count, -1, recipe.microbatches, *leaf.shape[1:])

    done = state.step % recipe.epoch_steps
    microbatches = batch_indices(state, recipe)
    first = gather_batch(images, jax.tree.map(lambda leaf: leaf[0], microbatches))
    (state, _), metrics = jax.lax.scan(stretch, (state, first), jax.tree.map(by_step, microbatches), unroll=count == 1)
    before = jax.tree.map(lambda total: jnp.where(done == 0, 0, total), state.running)
    running: Metrics = jax.tree.map(lambda total, new: total + new.sum(), before, metrics)
    done = done + recipe.epoch_steps // recipe.segments
    return dataclasses.replace(state, running=running), jax.tree.map(lambda total: total / done, running)


def batch_indices(state: TrainState, recipe: Recipe) -> BatchIndices:
    """Indices of the images that a member sees in the next segment, [microbatches, samples of a microbatch]."""
    epoch, done = jnp.divmod(state.step, recipe.epoch_steps)
    epoch_of_order = epoch if recipe.order == "fresh" else 0
    order_key = jax.random.fold_in(jax.random.fold_in(state.key, Stream.ORDER), epoch_of_order)
    order = jnp.arange(recipe.train_size)
    if recipe.order != "stored":
        order = jax.random.permutation(order_key, order)
    count = recipe.epoch_steps * recipe.batch_size
    distortion = None
    if recipe.augmentation.augmentation != "none":
        key = jax.random.fold_in(jax.random.fold_in(state.key, Stream.AUGMENTATION), epoch)
        distortion = draw(key, count, recipe.augmentation)
    microbatch = recipe.batch_size // recipe.microbatches

    def of_segment(leaf: Array) -> Array:
        segment = jax.lax.dynamic_slice_in_dim(leaf, done * recipe.batch_size, count // recipe.segments)
        return segment.reshape(-1, microbatch, *leaf.shape[1:])

    microbatches: BatchIndices = jax.tree.map(of_segment, (order[:count], distortion))
    return microbatches


def with_curvature(state: TrainState, images: Images, recipe: Recipe) -> TrainState:
    """The state with the curvature of its network, if it is time for a new estimate.

    Each is measured on training images that are drawn for it.
    """
    interval = recipe.epoch_steps // recipe.curvature_estimates

    def estimated(state: TrainState) -> TrainState:
        estimate = state.step // interval
        key = jax.random.fold_in(jax.random.fold_in(state.key, Stream.CURVATURE), estimate)
        indices = jax.random.choice(key, recipe.train_size, (recipe.curvature_patterns,), replace=False)
        found = curvature(state.params, images, indices, recipe)
        if recipe.curvature_memory:
            kept = jnp.where(estimate == 0, 0, recipe.curvature_memory)
            before = optim.curvature_of(state.optimizer)
            found = jax.tree.map(lambda old, new: kept * old + (1 - kept) * new, before, found)
        return dataclasses.replace(state, optimizer=optax.tree.set(state.optimizer, curvature=found))

    if recipe.curvature_estimates >= recipe.segments:  # every stretch starts with one
        return estimated(state)
    due: TrainState = jax.lax.cond(state.step % interval == 0, estimated, lambda state: state, state)
    return due


def curvature(params: Params, images: Images, indices: Int[Array, " patterns"], recipe: Recipe) -> Params:
    """h_kk of every parameter, the mean over the images at these indices; see `lenet_jax.curvature`."""
    microbatches = indices.reshape(microbatches_for(len(indices)), -1)

    def add_microbatch(total: Params, indices: Int[Array, " microbatch"]) -> tuple[Params, None]:
        grid, labels = gather_batch(images, (indices, None))
        found = diagonal(params, grid, labels, recipe.architecture, recipe.loss, recipe.curvature_start)
        return jax.tree.map(jnp.add, total, found), None

    total, _ = jax.lax.scan(add_microbatch, jax.tree.map(jnp.zeros_like, params), microbatches)
    mean: Params = jax.tree.map(lambda leaf: leaf / len(microbatches), total)
    return mean
