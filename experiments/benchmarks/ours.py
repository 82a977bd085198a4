"""The reference arrangement: lenet_jax, trained as an experiment trains on a CPU."""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import task
from task import Outcome, Task, Weights, Window

from lenet_jax import losses, model, population, train
from lenet_jax.model import Params
from lenet_jax.optim import Hyperparameters
from lenet_jax.run.workers import Workers


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
    batch, labels = images.images.take(jnp.arange(batch_size))

    def objective(params: Params) -> jax.Array:
        outputs = jax.vmap(lambda image: model.forward(params, image, task.ARCHITECTURE))(jnp.asarray(batch))
        return losses.cross_entropy(outputs, jnp.asarray(labels))

    loss, gradient = jax.jit(jax.value_and_grad(objective))(params)
    updated = jax.tree.map(lambda value, slope: value - task.LEARNING_RATE * slope, params, gradient)
    return flatten(params), Outcome(float(loss), flatten(gradient), flatten(updated))


class Session:
    """A population in training."""

    def __init__(self, images: Task, batch_size: int, members: int) -> None:
        self.images, self.members = images, members
        self.recipe = task.recipe(batch_size, len(images.labels))
        self.workers = Workers(min(population.cores(), members))
        hyper = task.hyperparameters(members)
        self.crowd = self.workers.create(range(members), hyper, images.images, self.recipe)

    def check(self, weights: Weights) -> Outcome:
        """One step from these weights on the first images."""
        hyper = Hyperparameters(**{name: jnp.float32(value[0]) for name, value in task.hyperparameters(1).items()})
        params = unflatten(weights)
        state = train.init(jnp.uint32(0), hyper, self.recipe)
        state = state.replace(params=params, optimizer=self.recipe.optimizer_of(hyper).init(params))
        recipe = dataclasses.replace(self.recipe, microbatches=train.microbatches_for(self.recipe.batch_size))
        microbatches = jnp.arange(recipe.batch_size).reshape(recipe.microbatches, -1)

        def step(state: train.TrainState, images: train.Images) -> Any:
            first = train.gather_batch(images, microbatches[0])
            return train.train_step(state, first, jnp.roll(microbatches, -1, axis=0), hyper, images, recipe)

        (state, _), metrics = jax.jit(step)(state, jax.device_put(self.images.images))
        gradient = optax.tree.get(state.optimizer, "trace")
        return Outcome(float(metrics.loss), flatten(gradient), flatten(state.params))

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
