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

EVALUATION_CHUNK = 250
"""Images that are evaluated at once."""

CALIBRATION_BINS = 15

CACHED_PIECE = 64
"""Samples whose activations stay in a core's cache. Larger batches train faster in pieces than as a whole."""


def pieces_of(batch_size: int) -> int:
    """Equal pieces of a batch that fit a core's cache; 1 if it has none that are worth it."""
    counts = (count for count in range(1, batch_size + 1) if batch_size % count == 0)
    count = next(count for count in counts if batch_size // count <= CACHED_PIECE)
    return count if batch_size // count >= CACHED_PIECE // 4 else 1


LONGEST_CALL = 1_000_000
"""Samples x members from which on a pass is trained in parts, between which it can be saved and stopped: some 20 s on
two cores."""

MOST_PARTS = 16
"""Every part draws the order of the whole pass anew."""


def can_be_cut(recipe: "Recipe", parts: int) -> bool:
    """Whether a pass has so many equal parts: of whole updates, with estimates of the curvature where they belong."""
    estimates = recipe.curvature_estimates if recipe.optimizer == "sdlm" else 1
    return recipe.epoch_steps % parts == 0 and (estimates % parts == 0 or parts % estimates == 0)


def parts_of(recipe: "Recipe", members: int) -> int:
    """Equal parts of a pass that a population trains one after the other; 1 if it is short or can't be cut."""
    allowed = [parts for parts in range(1, MOST_PARTS + 1) if can_be_cut(recipe, parts)]
    wanted = members * recipe.epoch_steps * recipe.batch_size / LONGEST_CALL
    return next((parts for parts in allowed if parts >= wanted), allowed[-1])


class Stream(enum.IntEnum):
    """Constants that a member's key is folded with: one stream of randomness for each use."""

    INIT = 0
    ORDER = 1
    AUGMENTATION = 2
    CURVATURE = 3


ORDERS = ("fresh", "constant", "stored")
"""Presentation orders: a random one each pass, a random one for all passes, as in 1998, or that of the data set."""


NO_AUGMENTATION = Augmentation()


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that is fixed when a training is compiled. Hashable.

    Attributes:
      pieces: of a batch, computed one after the other; divides `batch_size`. Results differ by rounding only.
      parts: of a pass, each a call of `train_part`; `can_be_cut` must hold.
      train_size: training images.
      augmentation: see `distortions`.
      order: of `ORDERS`.
      curvature_patterns: images that ``sdlm`` measures the curvature on.
      curvature_estimates: how often it does so a pass, at equal distances from its start on; divides `epoch_steps`.
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
    pieces: int = 1
    parts: int = 1
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

    def take(self, places: Int[Array, " batch"]) -> tuple[Float[Array, "batch 32 32"], Int[Array, " batch"]]:
        """Normalized images and labels of these places."""
        return self.pixels[places].astype(self.scale.dtype) * self.scale + self.shift, self.labels[places]


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
      step: updates done.
      running: sums over the updates of the current pass.
    """

    params: Params
    optimizer: optax.OptState
    key: PRNGKeyArray
    step: Int[Array, ""]
    running: Metrics


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


def init(seed: UInt32[Array, ""], hyper: Hyperparameters, recipe: Recipe) -> TrainState:
    """The state of member `seed` before training."""
    key = jax.random.key(seed)
    params = model.init(jax.random.fold_in(key, Stream.INIT), recipe.architecture)
    zero = jnp.zeros(())
    return TrainState(params, recipe.optimizer_of(hyper).init(params), key, jnp.int32(0), Metrics(zero, zero))


def wrong(outputs: Float[Array, "batch classes"], labels: Int[Array, " batch"], recipe: Recipe) -> Array:
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
        return loss, Metrics(loss, wrong(outputs, labels, recipe).mean())

    gradient, metrics = jax.grad(objective, has_aux=True)(params)
    return gradient, metrics


Presentation = tuple[Int[Array, "*batch"], Distortion | None]
"""Places of images to be presented, and how each is distorted."""


def load(images: Images, presentation: Presentation) -> Batch:
    """The images, ready for `gradient_of`."""
    places, distortion = presentation
    pictures, labels = images.take(places)
    if distortion is not None:
        pictures = jax.vmap(distort, in_axes=(0, 0, None))(pictures, distortion, images.shift)
    return blocked.to_grid(pictures), labels


def train_step(
    state: TrainState,
    batch: Batch,
    following: Presentation,
    hyper: Hyperparameters,
    images: Images,
    recipe: Recipe,
) -> tuple[TrainState, Batch, Metrics]:
    """One update.

    Args:
      state: before it.
      batch: the first piece of the batch, loaded.
      following: what comes after that piece, [pieces, samples of a piece]: the rest of the batch, and the first piece
        of the next one.
      hyper: the member's.
      images: of all splits.
      recipe: what is trained.

    Returns:
      the state after the update, the first piece of the next batch, and the metrics of the network before the update.
    """

    # Every piece loads the next one. As part of the carry it is written to memory once; loaded where it is used, XLA
    # would gather every pixel anew for each tile that sees it.
    def add_piece(
        carry: tuple[tuple[Params, Metrics], Batch], presentation: Presentation
    ) -> tuple[tuple[tuple[Params, Metrics], Batch], None]:
        total, batch = carry
        loaded = load(images, presentation)
        return (jax.tree.map(jnp.add, total, gradient_of(state.params, *batch, recipe)), loaded), None

    nothing = jax.tree.map(jnp.zeros_like, (state.params, Metrics(images.scale, images.scale)))
    (total, batch), _ = jax.lax.scan(add_piece, (nothing, batch), following, unroll=recipe.pieces == 1)
    gradient, metrics = jax.tree.map(lambda leaf: leaf / recipe.pieces, total)
    change, optimizer = recipe.optimizer_of(hyper).update(gradient, state.optimizer, state.params)
    params = optax.apply_updates(state.params, change)
    return dataclasses.replace(state, params=params, optimizer=optimizer), batch, metrics


def train_epoch(
    state: TrainState, hyper: Hyperparameters, images: Images, recipe: Recipe
) -> tuple[TrainState, Metrics]:
    """One pass over the training set. The metrics are means over the pass, measured while training."""
    for _ in range(recipe.parts - 1):
        state, _ = train_part(state, hyper, images, recipe)
    return train_part(state, hyper, images, recipe)


def train_part(state: TrainState, hyper: Hyperparameters, images: Images, recipe: Recipe) -> tuple[TrainState, Metrics]:
    """The next of a pass's `recipe.parts`. The metrics are means over what is done of the pass."""

    def step(carry: tuple[TrainState, Batch], following: Presentation) -> tuple[tuple[TrainState, Batch], Metrics]:
        state, batch, metrics = train_step(*carry, following, hyper, images, recipe)
        return (state, batch), metrics

    def stretch(carry: tuple[TrainState, Batch], steps: Presentation) -> tuple[tuple[TrainState, Batch], Metrics]:
        state, batch = carry
        if recipe.optimizer == "sdlm":
            state = with_curvature(state, images, recipe)
        (state, batch), metrics = jax.lax.scan(step, (state, batch), steps)
        return (dataclasses.replace(state, step=state.step + len(metrics.loss)), batch), metrics

    count = max(recipe.curvature_estimates // recipe.parts, 1) if recipe.optimizer == "sdlm" else 1

    def by_step(leaf: Array) -> Array:
        return jnp.roll(leaf, -1, axis=0).reshape(count, -1, recipe.pieces, *leaf.shape[1:])

    done = state.step % recipe.epoch_steps
    pieces = presentations(state, recipe)
    first = load(images, jax.tree.map(lambda leaf: leaf[0], pieces))
    (state, _), metrics = jax.lax.scan(stretch, (state, first), jax.tree.map(by_step, pieces), unroll=count == 1)
    before = jax.tree.map(lambda total: jnp.where(done == 0, 0, total), state.running)
    running: Metrics = jax.tree.map(lambda total, new: total + new.sum(), before, metrics)
    done = done + recipe.epoch_steps // recipe.parts
    return dataclasses.replace(state, running=running), jax.tree.map(lambda total: total / done, running)


def presentations(state: TrainState, recipe: Recipe) -> Presentation:
    """What a member sees in the next part of a pass, [pieces of the whole part, samples of a piece]."""
    epoch, done = jnp.divmod(state.step, recipe.epoch_steps)
    pass_of_order = epoch if recipe.order == "fresh" else 0
    order_key = jax.random.fold_in(jax.random.fold_in(state.key, Stream.ORDER), pass_of_order)
    order = jnp.arange(recipe.train_size)
    if recipe.order != "stored":
        order = jax.random.permutation(order_key, order)
    count = recipe.epoch_steps * recipe.batch_size
    distortion = None
    if recipe.augmentation.augmentation != "none":
        key = jax.random.fold_in(jax.random.fold_in(state.key, Stream.AUGMENTATION), epoch)
        distortion = draw(key, count, recipe.augmentation)
    piece = recipe.batch_size // recipe.pieces

    def of_part(leaf: Array) -> Array:
        part = jax.lax.dynamic_slice_in_dim(leaf, done * recipe.batch_size, count // recipe.parts)
        return part.reshape(-1, piece, *leaf.shape[1:])

    pieces: Presentation = jax.tree.map(of_part, (order[:count], distortion))
    return pieces


def with_curvature(state: TrainState, images: Images, recipe: Recipe) -> TrainState:
    """The state with the curvature of its network, if it is time for a new estimate.

    Each is measured on training images that are drawn for it.
    """
    interval = recipe.epoch_steps // recipe.curvature_estimates

    def estimated(state: TrainState) -> TrainState:
        estimate = state.step // interval
        key = jax.random.fold_in(jax.random.fold_in(state.key, Stream.CURVATURE), estimate)
        places = jax.random.choice(key, recipe.train_size, (recipe.curvature_patterns,), replace=False)
        found = curvature(state.params, images, places, recipe)
        if recipe.curvature_memory:
            kept = jnp.where(estimate == 0, 0, recipe.curvature_memory)
            before = optim.curvature_of(state.optimizer)
            found = jax.tree.map(lambda old, new: kept * old + (1 - kept) * new, before, found)
        return dataclasses.replace(state, optimizer=optax.tree.set(state.optimizer, curvature=found))

    if recipe.curvature_estimates >= recipe.parts:  # every stretch starts with one
        return estimated(state)
    due: TrainState = jax.lax.cond(state.step % interval == 0, estimated, lambda state: state, state)
    return due


def curvature(params: Params, images: Images, places: Int[Array, " patterns"], recipe: Recipe) -> Params:
    """h_kk of every parameter, the mean over the images of these places; see `lenet_jax.curvature`."""
    pieces = places.reshape(pieces_of(len(places)), -1)

    def add_piece(total: Params, places: Int[Array, " piece"]) -> tuple[Params, None]:
        grid, labels = load(images, (places, None))
        found = diagonal(params, grid, labels, recipe.architecture, recipe.loss, recipe.curvature_start)
        return jax.tree.map(jnp.add, total, found), None

    total, _ = jax.lax.scan(add_piece, jax.tree.map(jnp.zeros_like, params), pieces)
    mean: Params = jax.tree.map(lambda leaf: leaf / len(pieces), total)
    return mean


def evaluate(params: Params, images: Images, start: Int[Array, ""], stop: Int[Array, ""], recipe: Recipe) -> Evaluation:
    """Measures the images from `start` up to `stop`, which aren't compiled in: one program serves every split."""

    def add_chunk(index: Int[Array, ""], total: tuple[Evaluation, Array]) -> tuple[Evaluation, Array]:
        places = start + index * EVALUATION_CHUNK + jnp.arange(EVALUATION_CHUNK)
        pictures, labels = images.take(jnp.minimum(places, stop - 1))
        outputs = blocked.forward(params, pictures, recipe.architecture)
        counted = places < stop

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
    errors = wrong(outputs, labels, recipe).astype(losses.dtype)
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


def predict(params: Params, images: Images, places: Int[Array, " places"], recipe: Recipe) -> Predictions:
    """What the network makes of the images at these places."""
    # In chunks, the last one filled up with the first image.
    chunks = jnp.pad(places, (0, -len(places) % EVALUATION_CHUNK)).reshape(-1, EVALUATION_CHUNK)

    def of_chunk(places: Int[Array, " chunk"]) -> Predictions:
        outputs = blocked.forward(params, images.take(places)[0], recipe.architecture)
        digits, margin = model.decide(model.predict_scores(outputs, recipe.architecture))
        return Predictions(jnp.where(jnp.isfinite(outputs).all(axis=-1), digits, -1), margin)

    found: Predictions = jax.tree.map(lambda leaf: leaf.ravel()[: len(places)], jax.lax.map(of_chunk, chunks))
    return found
