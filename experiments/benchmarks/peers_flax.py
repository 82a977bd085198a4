"""The Flax Linen peers: vmapped over seeds, with a jitted step called from a Python loop or inside a scan.

The code follows Flax's documentation (nn.compact modules, optax, one jitted step, donated state), on JAX's default
single CPU device with XLA's own threads. Where there was a choice, it uses the alternative that was measured faster:

- C3's table: nn.Conv's own `mask` over a full 6 -> 16 convolution. Three grouped convolutions (3, 4 and 6 inputs per
  map) took 2 to 300 times as long.
- The images are on the device, and a batch is gathered inside the compiled step.
- A single member is not vmapped.
- The loop waits for results only occasionally (at least once per epoch), so that dispatch overlaps with computation.
- The accuracy is not computed, although lenet_jax computes it.
"""

import time
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import task
from jax import Array
from task import Outcome, Task, Weights, Window

from lenet_jax.layers import connections
from lenet_jax.model import C3_TABLE

CHECKED_MEMBERS = 2
"""Largest number of members for which the step of the scan is checked; compiling it for more would take long."""

PIECES = 4
"""Number of times that the loop waits for its results in a timed window."""

MAPS, SOURCES = connections(C3_TABLE)
MASK = np.zeros((5, 5, 6, 16), np.float32)
MASK[:, :, SOURCES, MAPS] = 1

OPTIMIZER = optax.sgd(task.LEARNING_RATE, momentum=task.MOMENTUM)

State = tuple[Any, optax.OptState]
"""Parameters and optimizer state."""


def configure(scan: bool = False) -> None:
    """Does nothing: JAX keeps its defaults."""


class Subsampling(nn.Module):
    """S2 or S4: coefficient x average + bias, with one coefficient and one bias per map."""

    @nn.compact
    def __call__(self, maps: Array) -> Array:
        """Maps [batch, 2r, 2c, maps] -> [batch, r, c, maps]."""
        coefficient = self.param("coefficient", nn.initializers.ones, maps.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, maps.shape[-1:])
        return nn.avg_pool(maps, (2, 2), strides=(2, 2)) * coefficient + bias


class LeNet5(nn.Module):
    """Images [batch, 32, 32, 1] -> logits [batch, 10]."""

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """C1 to the output."""
        c1 = nn.tanh(nn.Conv(6, (5, 5), padding="VALID", name="c1")(images))
        s2 = nn.tanh(Subsampling(name="s2")(c1))
        c3 = nn.tanh(nn.Conv(16, (5, 5), padding="VALID", mask=MASK, name="c3")(s2))
        s4 = nn.tanh(Subsampling(name="s4")(c3))
        c5 = nn.tanh(nn.Dense(120, name="c5")(s4.reshape(len(images), -1)))
        f6 = nn.tanh(nn.Dense(84, name="f6")(c5))
        return nn.Dense(10, name="output")(f6)


def to_flax(weights: Weights) -> dict[str, Any]:
    """Weights of lenet_jax -> variables of `LeNet5`. Weights of missing C3 connections are 1: they must not matter."""
    c3 = np.ones((5, 5, 6, 16), np.float32)
    c3[:, :, SOURCES, MAPS] = np.moveaxis(weights["c3.kernel"], 0, -1)
    kernels = {
        "c1": np.moveaxis(weights["c1.kernel"], 0, -1)[:, :, None],
        "c3": c3,
        "c5": np.moveaxis(weights["c5.kernel"], 0, 2).reshape(400, 120),
        "f6": weights["f6.kernel"],
        "output": weights["output.kernel"],
    }
    params: dict[str, Any] = {
        layer: {"kernel": kernel, "bias": weights[f"{layer}.bias"]} for layer, kernel in kernels.items()
    }
    for layer in ("s2", "s4"):
        params[layer] = {name: weights[f"{layer}.{name}"] for name in ("coefficient", "bias")}
    return {"params": params}


def from_flax(variables: Any) -> dict[str, np.ndarray]:
    """Inverse of `to_flax`."""
    params = jax.tree.map(np.array, variables["params"])
    weights = {f"{layer}.{name}": value for layer, values in params.items() for name, value in values.items()}
    weights["c1.kernel"] = np.moveaxis(weights["c1.kernel"][:, :, 0], -1, 0)
    weights["c3.kernel"] = np.moveaxis(weights["c3.kernel"][:, :, SOURCES, MAPS], -1, 0)
    weights["c5.kernel"] = np.moveaxis(weights["c5.kernel"].reshape(5, 5, 16, 120), 2, 0)
    return weights


def init(key: Array) -> State:
    """Initial state of one member."""
    variables = LeNet5().init(key, jnp.zeros((1, 32, 32, 1)))
    return variables, OPTIMIZER.init(variables)


def step(state: State, images: Array, labels: Array, places: Array) -> tuple[State, Array]:
    """One step of one member on the images at the given indices: the new state, and the loss before the step."""
    variables, optimizer = state

    def objective(variables: Any) -> Array:
        logits = LeNet5().apply(variables, images[places])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels[places]).mean()

    loss, gradient = jax.value_and_grad(objective)(variables)
    update, optimizer = OPTIMIZER.update(gradient, optimizer, variables)
    return (optax.apply_updates(variables, update), optimizer), loss


def step_of(members: int) -> Any:
    """`step` for all members: with more than one, state and indices have a leading member axis."""
    return jax.vmap(step, in_axes=(0, None, None, 0)) if members > 1 else step


def epoch_of(members: int) -> Any:
    """A scan of `step_of(members)` over indices [steps, (members,) batch]."""

    def epoch(state: State, images: Array, labels: Array, places: Array) -> tuple[State, Array]:
        return jax.lax.scan(lambda state, places: step_of(members)(state, images, labels, places), state, places)

    return epoch


def repeat(tree: Any, members: int) -> Any:
    """A copy of the tree for every member, stacked."""
    return jax.tree.map(lambda leaf: jnp.stack([leaf] * members), tree) if members > 1 else tree


class Session:
    """Members in training.

    Attributes:
      steps: number of steps in one call of the compiled program (scan), or between two waits (loop).
    """

    def __init__(self, images: Task, batch_size: int, members: int, scan: bool = False) -> None:
        self.scan, self.members, self.batch_size = scan, members, batch_size
        self.images = jax.device_put(images.normalized[..., None])
        self.labels = jax.device_put(images.labels)
        self.random = np.random.default_rng(0)
        keys = jax.random.split(jax.random.key(0), members)
        self.state = jax.jit(jax.vmap(init))(keys) if members > 1 else jax.jit(init)(keys[0])
        self.epoch_steps = len(images.labels) // batch_size
        # A scan of one step would be compiled without a loop.
        self.steps = 2 if scan else 1
        self.program = jax.jit(step_of(members), donate_argnums=0)
        if scan:
            self.compile_scan()

    def compile_scan(self) -> None:
        """Compiles the scan for the current number of steps."""
        arguments = (self.state, self.images, self.labels, self.places(self.steps))
        self.program = jax.jit(epoch_of(self.members), donate_argnums=0).lower(*arguments).compile()

    def places(self, steps: int) -> np.ndarray:
        """Indices of batches, in each member's own random order: [steps, (members,) batch]."""
        count = len(self.labels)
        orders = [self.random.permutation(count)[: steps * self.batch_size] for _ in range(self.members)]
        places = np.stack(orders).astype(np.int32).reshape(self.members, steps, self.batch_size).swapaxes(0, 1)
        return np.ascontiguousarray(places if self.members > 1 else places[:, 0])

    def check(self, weights: Weights) -> Outcome:
        """One step of every member from these weights on the first images; returns the outcome of the last member."""
        members = min(self.members, CHECKED_MEMBERS) if self.scan else self.members
        program = jax.jit(step_of(members)) if self.scan else self.program
        variables = jax.tree.map(jnp.asarray, to_flax(weights))
        state = repeat((variables, OPTIMIZER.init(variables)), members)
        places = repeat(jnp.arange(self.batch_size, dtype=jnp.int32), members)
        (variables, optimizer), loss = program(state, self.images, self.labels, places)
        last = partial(jax.tree.map, lambda leaf: np.asarray(leaf)[-1] if members > 1 else np.asarray(leaf))
        gradient = optax.tree.get(optimizer, "trace")
        return Outcome(float(last(loss)), from_flax(last(gradient)), from_flax(last(variables)))

    def warm_up(self, seconds: float) -> Window:
        """Chooses the number of steps so that a window has several calls or waits, each of at most one epoch."""
        window = self.train(0)
        for _ in range(2):  # the first call also allocates memory
            if window.seconds > seconds / PIECES:
                return window
            window = self.train(0)
        per_step = window.seconds / self.steps
        self.steps = int(np.clip(seconds / PIECES / per_step, self.steps, max(self.epoch_steps, self.steps)))
        if self.scan:
            self.compile_scan()
        return self.train(0)

    def train(self, seconds: float) -> Window:
        """Trains for at least `seconds`, in whole calls of the scan or intervals between two waits of the loop."""
        rounds, start = 0, time.perf_counter()
        while not rounds or time.perf_counter() - start < seconds:
            places = self.places(self.steps)
            for batch in [places] if self.scan else places:
                self.state, loss = self.program(self.state, self.images, self.labels, batch)
            loss.block_until_ready()
            rounds += 1
        elapsed = time.perf_counter() - start
        samples = rounds * self.steps * self.batch_size * self.members
        return Window(samples, elapsed, float(np.asarray(loss).mean()))

    def close(self) -> None:
        """Does nothing: a session holds no resources."""
