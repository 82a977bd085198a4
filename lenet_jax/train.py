"""Training a single network: pure functions of its state."""

import dataclasses
import enum
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8, UInt32

from lenet_jax import blocked, model, optim
from lenet_jax.blocked import Grid
from lenet_jax.choices import CHOICES
from lenet_jax.curvature import diagonal
from lenet_jax.distortions import Augmentation, Distortion, distort, draw
from lenet_jax.jax_settings import key_of
from lenet_jax.losses import Loss
from lenet_jax.model import Architecture, Params, Starts
from lenet_jax.optim import Hyperparameters

MICROBATCH = 64
"""Samples whose activations fit in a core's cache. Larger batches train faster in microbatches than as a whole."""

MAX_CALL_SAMPLES = 1_000_000
"""Samples x members above which an epoch is split into segments, between which a run can be saved and stopped: about
20 s on two cores."""

MAX_SEGMENTS = 16
"""Upper limit of segments per epoch: each segment redraws the order of the whole epoch."""

ORDERS = CHOICES["order"]
"""Orders of presentation: random for each epoch, random once for all epochs (as in 1998), or that of the data set."""


class Stream(enum.IntEnum):
    """Constants that a network's key is folded with: one random stream for each use."""

    INIT = 0
    ORDER = 1
    AUGMENTATION = 2
    CURVATURE = 3


def microbatches_for(batch_size: int) -> int:
    """The number of equal microbatches that each fit in a core's cache; 1 if splitting the batch doesn't pay."""
    size = max(size for size in range(1, MICROBATCH + 1) if batch_size % size == 0)
    return batch_size // size if size >= MICROBATCH // 4 else 1


def divides_epoch(recipe: "Recipe", segments: int) -> bool:
    """Whether an epoch splits into this number of equal segments of whole steps, each with its curvature estimates."""
    estimates = recipe.curvature_estimates if recipe.uses_curvature else 1
    return recipe.epoch_steps % segments == 0 and (estimates % segments == 0 or segments % estimates == 0)


def segments_for(recipe: "Recipe", members: int) -> int:
    """The number of equal segments in which a population trains an epoch; 1 if it is short or can't be split."""
    least = recipe.metrics_per_epoch if recipe.metrics else 1
    counts = range(least, max(MAX_SEGMENTS, least) + 1, least)
    allowed = [segments for segments in counts if divides_epoch(recipe, segments)]
    wanted = members * recipe.epoch_steps * recipe.batch_size / MAX_CALL_SAMPLES
    return next((segments for segments in allowed if segments >= wanted), allowed[-1])


@functools.cache
def uses_curvature(optimizer: optim.Optimizer) -> bool:
    """Whether an entry of `optim.OPTIMIZERS` divides by the curvature, which training then has to measure."""

    def state(params: Params) -> optax.OptState:
        return optimizer(optim.placeholders()).init(params)

    return optim.curvature_of(jax.eval_shape(state, model.shapes(Architecture()))) is not None


LossOf = Callable[[Float[Array, "batch classes"], Int[Array, " batch"]], Float[Array, ""]]
"""Logits and labels of a batch -> their mean loss."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that is fixed when training is compiled. Hashable.

    Attributes:
      architecture, loss, optimizer, schedule, batch_size, epochs: as in the config.
      train_size: the number of training images.
      microbatches: parts of a batch, computed one after the other; divides `batch_size`. Only rounding depends on it.
      segments: parts of an epoch, one call of `train_segment` each; `divides_epoch` must hold.
      curvature_estimates: estimates per epoch; divides `epoch_steps`.
      curvature_start: a key of `curvature.STARTS`.
      metrics: keys of `evaluate.METRICS`.
      metrics_per_epoch: measurements of them at equal intervals; divides `segments`.
      losses: what members of a population may train with (see `Hyperparameters`): arms that differ in the loss alone
        share a program. Empty: `loss`.
      native: whether convolutions may be computed by `lenet_jax.native`. Only rounding depends on it.
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
    augmentation: Augmentation = dataclasses.field(default=Augmentation())
    order: str = "fresh"
    curvature_patterns: int = 500
    curvature_estimates: int = 1
    curvature_memory: float = 0.0
    curvature_start: str = "target"
    metrics: tuple[str, ...] = ()
    metrics_per_epoch: int = 1
    losses: tuple[Loss, ...] = ()
    native: bool = False

    @property
    def shared(self) -> "Recipe":
        """The same for all recipes that differ only in which of `losses` they train with."""
        return dataclasses.replace(self, loss=self.losses[0]) if self.losses else self

    def loss_of(self, number: Int[Array, ""] | int) -> LossOf:
        """The loss of a network: ``losses[number]``, or `loss` if there is no choice."""
        if len(self.losses) < 2:
            return self.loss
        return lambda logits, labels: jax.lax.switch(number, self.losses, logits, labels)

    @property
    def epoch_steps(self) -> int:
        """Steps per epoch. The samples of an incomplete last batch are skipped: others each epoch in a fresh order."""
        return self.train_size // self.batch_size

    def optimizer_of(self, hyper: Hyperparameters) -> optax.GradientTransformation:
        """The optimizer of a network with these hyperparameters."""
        steps = self.epochs * self.epoch_steps
        return optim.transformation(self.optimizer, self.schedule, steps, self.epoch_steps, hyper)

    @property
    def uses_curvature(self) -> bool:
        """Whether the optimizer needs the curvature, as ``sdlm`` does."""
        return uses_curvature(optim.OPTIMIZERS[self.optimizer])


def of_architecture(architecture: Architecture) -> Recipe:
    """A recipe for what depends on the architecture alone."""
    return Recipe(architecture, Loss(), "sgd", "constant", batch_size=1, epochs=1, train_size=1)


@flax.struct.dataclass
class Images:
    """All images of a data set: training, then validation, then test.

    Attributes:
      pixels: the stored values, padded to 32 x 32.
      labels: the correct classes.
      scale, shift: normalized pixel = pixel * scale + shift.
    """

    pixels: UInt8[Array, "images 32 32"]
    labels: Int[Array, " images"]
    scale: Float[Array, ""]
    shift: Float[Array, ""]

    def take(self, indices: Int[Array, " batch"]) -> tuple[Float[Array, "batch 32 32"], Int[Array, " batch"]]:
        """Normalized images and labels at these indices."""
        return self.pixels[indices].astype(self.scale.dtype) * self.scale + self.shift, self.labels[indices]


Batch = tuple[Grid, Int[Array, " batch"]]
"""Images in a layout of `blocked.to_grid`, and their labels."""


@flax.struct.dataclass
class Metrics:
    """Means over samples: the training loss, and the fraction of misclassified samples."""

    loss: Float[Array, ""]
    error: Float[Array, ""]


@flax.struct.dataclass
class TrainState:
    """The state of a network in training. Checkpoints store its fields by name.

    Attributes:
      key: `jax_settings.key_of(seed)`, from which all random streams derive.
      step: the number of steps done.
      running: sums of the metrics over the steps of the current epoch.
    """

    params: Params
    optimizer: optax.OptState
    key: PRNGKeyArray
    step: Int[Array, ""]
    running: Metrics


def init(seed: UInt32[Array, ""], hyper: Hyperparameters, recipe: Recipe, starts: Starts | None = None) -> TrainState:
    """The state of network `seed` before training. `starts`: see `model.init`; for an example, see `train_epoch`."""
    key = key_of(seed)
    return begin(model.init(jax.random.fold_in(key, Stream.INIT), recipe.architecture, starts), key, hyper, recipe)


def begin(params: Params, key: PRNGKeyArray, hyper: Hyperparameters, recipe: Recipe) -> TrainState:
    """The state before training of a network with these parameters and this `TrainState.key`."""
    zero = jnp.zeros(())
    return TrainState(params, recipe.optimizer_of(hyper).init(params), key, jnp.int32(0), Metrics(zero, zero))


def shapes(recipe: Recipe) -> TrainState:
    """The tree of a network's state, with the shape and type of each array instead of its numbers."""

    def state(params: Params) -> TrainState:
        return begin(params, key_of(jnp.uint32(0)), optim.placeholders(), recipe)

    found: TrainState = jax.eval_shape(state, model.shapes(recipe.architecture))
    return found


def misclassified(outputs: Float[Array, "batch classes"], labels: Int[Array, " batch"], recipe: Recipe) -> Array:
    """Whether each sample is misclassified [batch]. Outputs that are not finite count as misclassified."""
    scores = model.predict_scores(outputs, recipe.architecture)
    return (scores.argmax(axis=-1) != labels) | ~jnp.isfinite(outputs).all(axis=-1)


def gradient_of(
    params: Params, grid: Grid, labels: Int[Array, " batch"], recipe: Recipe, loss_number: Int[Array, ""] | int = 0
) -> tuple[Params, Metrics]:
    """The gradient of the loss, and the metrics, for images in a layout of `blocked.to_grid`."""

    def objective(params: Params) -> tuple[Array, Metrics]:
        outputs = blocked.forward_grid(params, grid, recipe.architecture)
        loss = recipe.loss_of(loss_number)(model.logits_of(outputs, recipe.architecture), labels)
        return loss, Metrics(loss, misclassified(outputs, labels, recipe).mean())

    gradient, metrics = jax.grad(objective, has_aux=True)(params)
    return gradient, metrics


BatchIndices = tuple[Int[Array, "*batch"], Distortion | None]
"""Indices of images to present, and the distortion of each."""


def gather_batch(images: Images, selected: BatchIndices, native: bool) -> Batch:
    """The normalized and distorted images, as `gradient_of` takes them."""
    indices, distortion = selected
    inputs, labels = images.take(indices)
    if distortion is not None:
        inputs = jax.vmap(distort, in_axes=(0, 0, None))(inputs, distortion, images.shift)
    return blocked.to_grid(inputs, native), labels


def train_step(
    state: TrainState, batch: Batch, next_indices: BatchIndices, hyper: Hyperparameters, images: Images, recipe: Recipe
) -> tuple[tuple[TrainState, Batch], Metrics]:
    """One optimizer step: the state after it, a gathered microbatch for the next step, and the metrics before the step.

    `batch` is the first microbatch of the step. `next_indices` [microbatches, samples of a microbatch] are those that
    follow it: the rest of the step, and the first microbatch of the next one, which is gathered but not trained on.
    """

    # Each iteration gathers the next microbatch. As part of the carry, it is written to memory once; if it were
    # gathered where it is used, XLA would gather every pixel again for each tile that reads it.
    def add_microbatch(carry: tuple[Any, Batch], indices: BatchIndices) -> tuple[tuple[Any, Batch], None]:
        total, batch = carry
        next_batch = gather_batch(images, indices, recipe.native)
        return (
            jax.tree.map(jnp.add, total, gradient_of(state.params, *batch, recipe, hyper.loss_number)),
            next_batch,
        ), None

    zeros = jax.tree.map(jnp.zeros_like, (state.params, Metrics(images.scale, images.scale)))
    (total, batch), _ = jax.lax.scan(add_microbatch, (zeros, batch), next_indices, unroll=recipe.microbatches == 1)
    gradient, metrics = jax.tree.map(lambda leaf: leaf / recipe.microbatches, total)
    updates, optimizer = recipe.optimizer_of(hyper).update(gradient, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    return (dataclasses.replace(state, params=params, optimizer=optimizer), batch), metrics


def train_epoch(
    state: TrainState, hyper: Hyperparameters, images: Images, recipe: Recipe
) -> tuple[TrainState, Metrics]:
    """Trains one epoch. The metrics are means over its steps, each measured before the step.

    >>> recipe = Recipe(Architecture(), Loss(), "sgd", "constant", batch_size=2, epochs=1, train_size=4)
    >>> hyper = Hyperparameters(*jnp.array([0.03, 0.9, 0.0, 0.02]))
    >>> images = Images(jnp.zeros((4, 32, 32), jnp.uint8), jnp.arange(4), jnp.float32(1 / 255), jnp.float32(0))
    >>> state = init(jnp.uint32(0), hyper, recipe)
    >>> state, metrics = train_epoch(state, hyper, images, recipe)
    >>> int(state.step), bool(jnp.isfinite(metrics.loss))
    (2, True)
    """
    for _ in range(recipe.segments - 1):
        state, _ = train_segment(state, hyper, images, recipe)
    return train_segment(state, hyper, images, recipe)


def train_segment(
    state: TrainState, hyper: Hyperparameters, images: Images, recipe: Recipe
) -> tuple[TrainState, Metrics]:
    """Trains the next of the epoch's segments. The metrics are means over the epoch so far."""

    # The steps between two estimates of the curvature; without estimates, the whole segment.
    def stretch(carry: tuple[TrainState, Batch], steps: BatchIndices) -> tuple[tuple[TrainState, Batch], Metrics]:
        state, batch = carry
        if recipe.uses_curvature:
            state = with_curvature(state, images, recipe)
        step = functools.partial(train_step, hyper=hyper, images=images, recipe=recipe)
        (state, batch), metrics = jax.lax.scan(lambda carry, indices: step(*carry, indices), (state, batch), steps)
        return (dataclasses.replace(state, step=state.step + len(metrics.loss)), batch), metrics

    stretches = max(recipe.curvature_estimates // recipe.segments, 1) if recipe.uses_curvature else 1

    # Each step is given the microbatches that follow its first one. What follows the last one of all is never used.
    def by_step(leaf: Array) -> Array:
        return jnp.roll(leaf, -1, axis=0).reshape(stretches, -1, recipe.microbatches, *leaf.shape[1:])

    done = state.step % recipe.epoch_steps
    indices = batch_indices(state, recipe)
    first = gather_batch(images, jax.tree.map(lambda leaf: leaf[0], indices), recipe.native)
    (state, _), metrics = jax.lax.scan(stretch, (state, first), jax.tree.map(by_step, indices), unroll=stretches == 1)
    running: Metrics = jax.tree.map(lambda old, new: jnp.where(done == 0, 0, old) + new.sum(), state.running, metrics)
    done = done + recipe.epoch_steps // recipe.segments
    return dataclasses.replace(state, running=running), jax.tree.map(lambda total: total / done, running)


def batch_indices(state: TrainState, recipe: Recipe) -> BatchIndices:
    """The images that the network sees in the next segment, [microbatches, samples of a microbatch].

    They depend only on the key and the step, so that a run resumes with the same images.
    """
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

    def of_segment(leaf: Array) -> Array:
        segment = jax.lax.dynamic_slice_in_dim(leaf, done * recipe.batch_size, count // recipe.segments)
        return segment.reshape(-1, recipe.batch_size // recipe.microbatches, *leaf.shape[1:])

    microbatches: BatchIndices = jax.tree.map(of_segment, (order[:count], distortion))
    return microbatches


def with_curvature(state: TrainState, images: Images, recipe: Recipe) -> TrainState:
    """The state with a new estimate of the curvature, from training images of its own, if one is due."""
    interval = recipe.epoch_steps // recipe.curvature_estimates

    def estimated(state: TrainState) -> TrainState:
        estimate = state.step // interval
        key = jax.random.fold_in(jax.random.fold_in(state.key, Stream.CURVATURE), estimate)
        indices = jax.random.choice(key, recipe.train_size, (recipe.curvature_patterns,), replace=False)
        new = curvature(state.params, images, indices, recipe)
        if recipe.curvature_memory:
            weight = jnp.where(estimate == 0, 0, recipe.curvature_memory)  # there is nothing before the first estimate
            old = optim.curvature_of(state.optimizer)
            new = jax.tree.map(lambda old, new: weight * old + (1 - weight) * new, old, new)
        return dataclasses.replace(state, optimizer=optax.tree.set(state.optimizer, curvature=new))

    if recipe.curvature_estimates >= recipe.segments:  # every stretch starts with an estimate
        return estimated(state)
    due: TrainState = jax.lax.cond(state.step % interval == 0, estimated, lambda state: state, state)
    return due


def curvature(params: Params, images: Images, indices: Int[Array, " patterns"], recipe: Recipe) -> Params:
    """h_kk of every parameter, averaged over the images at these indices; see `lenet_jax.curvature`."""
    microbatches = indices.reshape(microbatches_for(len(indices)), -1)

    def add_microbatch(total: Params, indices: Int[Array, " microbatch"]) -> tuple[Params, None]:
        grid, labels = gather_batch(images, (indices, None), recipe.native)
        mean = diagonal(params, grid, labels, recipe.architecture, recipe.loss, recipe.curvature_start)
        return jax.tree.map(jnp.add, total, mean), None

    total, _ = jax.lax.scan(add_microbatch, jax.tree.map(jnp.zeros_like, params), microbatches)
    mean: Params = jax.tree.map(lambda leaf: leaf / len(microbatches), total)
    return mean
