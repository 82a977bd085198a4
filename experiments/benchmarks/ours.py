"""The reference arrangement: lenet_jax, trained as an experiment trains on a CPU."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import task
from task import Outcome, Task, Weights, Window

from lenet_jax import library, losses, model, population, programs, train
from lenet_jax.model import Params
from lenet_jax.optim import Hyperparameters
from lenet_jax.run.workers import Workers

MAX_STEPS = 500
"""Steps per epoch of a `PopulationSession`, at most."""


def configure() -> None:
    """Configures JAX as an experiment does. Checks run in this process, training runs in worker processes."""
    population.configure()


def flatten(params: Params) -> dict[str, np.ndarray]:
    """Parameters of one network -> weights by name."""
    layers = {field.name: getattr(params, field.name) for field in dataclasses.fields(params)}
    return {
        f"{layer}.{field.name}": np.asarray(getattr(value, field.name))
        for layer, value in layers.items()
        for field in dataclasses.fields(value)
    }


def unflatten(weights: Weights) -> Params:
    """Inverse of `flatten`."""
    like = jax.eval_shape(lambda: model.init(jax.random.key(0), task.ARCHITECTURE))
    return jax.tree.unflatten(jax.tree.structure(like), [jnp.asarray(value) for value in weights.values()])


def reference(images: Task, batch_size: int) -> tuple[Weights, Outcome]:
    """Weights, and the expected outcome of one step on the first images, from the specification (`model.forward`)."""
    params = model.init(jax.random.key(0), task.ARCHITECTURE)
    batch, labels = jax.device_put(images.images).take(jnp.arange(batch_size))

    def objective(params: Params) -> jax.Array:
        outputs = jax.vmap(lambda image: model.forward(params, image, task.ARCHITECTURE))(jnp.asarray(batch))
        return losses.cross_entropy(outputs, jnp.asarray(labels))

    loss, gradient = jax.jit(jax.value_and_grad(objective))(params)
    updated = jax.tree.map(lambda value, slope: value - task.LEARNING_RATE * slope, params, gradient)
    return flatten(params), Outcome(float(loss), flatten(gradient), flatten(updated))


def one_step(images: Task, recipe: train.Recipe, weights: Weights) -> Outcome:
    """One step from these weights on the first images, as a worker computes it."""
    hyper = Hyperparameters(**{name: jnp.float32(value[0]) for name, value in task.hyperparameters(1).items()})
    params = unflatten(weights)
    mesh = programs.mesh_of(jax.devices()[:1])
    recipe = programs.for_platform(recipe, mesh)
    state = train.init(jnp.uint32(0), hyper, recipe)
    state = state.replace(params=params, optimizer=recipe.optimizer_of(hyper).init(params))
    microbatches = jnp.arange(recipe.batch_size).reshape(recipe.microbatches, -1)

    def step(state: train.TrainState, images: train.Images) -> Any:
        first = train.gather_batch(images, (microbatches[0], None), recipe.native)
        following = jnp.roll(microbatches, -1, axis=0), None
        return train.train_step(state, first, following, hyper, images, recipe)

    options = programs.options_for("train_segment", mesh)
    (state, _), metrics = jax.jit(step, compiler_options=options)(state, jax.device_put(images.images))
    gradient = optax.tree.get(state.optimizer, "trace")
    return Outcome(float(metrics.loss), flatten(gradient), flatten(state.params))


class Session:
    """A population in training."""

    def __init__(self, images: Task, batch_size: int, members: int) -> None:
        self.images, self.members = images, members
        self.recipe = task.recipe(batch_size, len(images.labels))
        self.workers = Workers(min(library.cores(), members))
        hyper = task.hyperparameters(members)
        self.crowd = self.workers.create(range(members), hyper, images.images, self.recipe)

    def check(self, weights: Weights) -> Outcome:
        """See `one_step`."""
        return one_step(self.images, self.recipe, weights)

    def warm_up(self, seconds: float) -> Window:
        """One epoch, the unit that is timed."""
        return self.train(0)

    def train(self, seconds: float) -> Window:
        """Trains whole epochs for at least `seconds`."""
        epochs, start = 0, time.perf_counter()
        while not epochs or time.perf_counter() - start < seconds:
            metrics = self.workers.train_segment(self.crowd)
            epochs += 1
        elapsed = time.perf_counter() - start
        samples = epochs * self.recipe.epoch_steps * self.recipe.batch_size * self.members
        return Window(samples, elapsed, float(metrics.loss.mean()))

    def close(self) -> None:
        """Ends the worker processes."""
        self.workers.close()


class PopulationSession:
    """A population in training on JAX's first device, as an experiment trains on an accelerator."""

    def __init__(self, images: Task, batch_size: int, members: int) -> None:
        recipe = task.recipe(batch_size, min(MAX_STEPS * batch_size, len(images.labels)))
        recipe = dataclasses.replace(recipe, segments=train.segments_for(recipe, members))
        self.images, self.members, self.recipe = images, members, recipe
        start = time.perf_counter()
        mesh = programs.mesh_of(jax.devices()[:1])
        programs.compile_programs(recipe, population.turns_of(members, mesh)[1], len(images.labels), mesh)
        self.compile_seconds = time.perf_counter() - start
        self.people = self.create(members, recipe)

    def create(self, members: int, recipe: train.Recipe) -> population.Population:
        """A population on the first device."""
        hyper, devices = task.hyperparameters(members), jax.devices()[:1]
        return population.create(range(members), hyper, self.images.images, recipe, devices)

    def check(self, weights: Weights) -> Outcome:
        """One step of the members that train side by side, from these weights on the first images: the last member."""
        members, batch_size = min(self.members, population.ACCELERATOR_SIDE_BY_SIDE), self.recipe.batch_size
        recipe = dataclasses.replace(self.recipe, train_size=batch_size, segments=1, order="stored")
        people = self.create(members, recipe)
        params = jax.tree.map(lambda leaf: np.repeat(leaf[None], members, axis=0), unflatten(weights))
        given = {f"params/{name}": np.asarray(array) for name, array in population.leaves_of(params)}
        population.restore(people, population.snapshot(people) | given)
        loss = population.train_segment(people).loss
        trees = optax.tree.get(people.states[-1].optimizer, "trace"), people.states[-1].params
        gradient, updated = (flatten(jax.tree.map(lambda leaf: leaf[-1], tree)) for tree in trees)
        return Outcome(float(loss[-1]), gradient, updated)

    def warm_up(self, seconds: float) -> Window:
        """One segment of an epoch, the unit that is timed."""
        return self.train(0)

    def train(self, seconds: float) -> Window:
        """Trains whole segments for at least `seconds`."""
        samples = self.members * (self.recipe.epoch_steps // self.recipe.segments) * self.recipe.batch_size
        return self.timed(lambda: population.train_segment(self.people).loss, samples, seconds)

    def evaluate(self, seconds: float) -> Window:
        """Evaluates the images for at least `seconds`."""
        split = range(len(self.images.labels))
        return self.timed(lambda: population.evaluate(self.people, split).loss, self.members * len(split), seconds)

    def timed(self, call: Callable[[], np.ndarray], samples: int, seconds: float) -> Window:
        """A window of calls, each of which handles so many samples x members and returns the losses."""
        calls, start = 0, time.perf_counter()
        while not calls or time.perf_counter() - start < seconds:
            loss = call()
            calls += 1
        return Window(calls * samples, time.perf_counter() - start, float(loss.mean()))
