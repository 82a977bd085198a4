"""Optimizers and learning rate schedules, as optax transformations.

Hyperparameters are arrays, not compile-time constants, so that members of a compiled population can differ in them.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from lenet_jax.choices import register
from lenet_jax.registry import Registry


@flax.struct.dataclass
class Hyperparameters:
    """Hyperparameters in which members of a population can differ.

    Attributes:
      learning_rate: its initial value, see `SCHEDULES`.
      momentum: the coefficient of ``momentum``, beta_1 of ``adam`` and ``adamw``.
      weight_decay: decoupled (times the learning rate) with ``adamw``, otherwise added to the gradient.
      mu: of `sdlm`.
      loss_number: which of `train.Recipe.losses` it trains with; not a config field.
    """

    learning_rate: Float[Array, ""]
    momentum: Float[Array, ""]
    weight_decay: Float[Array, ""]
    mu: Float[Array, ""]
    loss_number: Int[Array, ""] | int = 0


HYPERPARAMETERS = tuple(field.name for field in dataclasses.fields(Hyperparameters) if field.name != "loss_number")
"""The names of the hyperparameters, which are config fields."""

register("tune", HYPERPARAMETERS)


def placeholders() -> Hyperparameters:
    """Zeros for all hyperparameters, for tracing what doesn't depend on their values."""
    return Hyperparameters(**dict.fromkeys(HYPERPARAMETERS, jnp.zeros(())))


class CurvatureState(NamedTuple):
    """h_kk >= 0 of every parameter, 0 at first. The training loop sets it, see `train.with_curvature`."""

    curvature: optax.Params


def scale_by_curvature(mu: float | Array) -> optax.GradientTransformation:
    """Divides each gradient by mu + h_kk, where its state holds the curvature h_kk (LeCun et al. 1998, eq. 21)."""

    def init(params: optax.Params) -> CurvatureState:
        return CurvatureState(jax.tree.map(jnp.zeros_like, params))

    def update(
        gradient: optax.Updates, state: CurvatureState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, CurvatureState]:
        return jax.tree.map(lambda g, h: g / (mu + h), gradient, state.curvature), state

    return optax.GradientTransformation(init, update)


def curvature_of(state: optax.OptState) -> optax.Params | None:
    """The curvature in an optimizer's state; None for optimizers without one."""
    return optax.tree.get(state, "curvature")


def sdlm(learning_rate: float | Array, mu: float | Array) -> optax.GradientTransformation:
    """Stochastic diagonal Levenberg-Marquardt: w_k <- w_k - eta / (mu + h_kk) dE/dw_k (LeCun et al. 1998, eq. 18, 21).

    For use outside of this package, which chains `scale_by_curvature` with a schedule.

    `learning_rate` is eta; a positive `mu` bounds the rate of parameters without curvature.

    Examples:
      >>> optimizer = sdlm(learning_rate=0.1, mu=0.02)
      >>> state = optax.tree.set(optimizer.init(jnp.zeros(2)), curvature=jnp.array([0.08, 0.98]))
      >>> updates, state = optimizer.update(jnp.ones(2), state)
      >>> [round(float(update), 3) for update in updates]
      [-1.0, -0.1]
    """
    return optax.chain(scale_by_curvature(mu), optax.scale(-learning_rate))


Optimizer = Callable[[Hyperparameters], optax.GradientTransformation]
"""Hyperparameters -> a transformation of the gradient, without the learning rate and without its sign."""

OPTIMIZERS: Registry[Optimizer] = Registry(
    "optimizer",
    sgd=lambda hyper: optax.add_decayed_weights(hyper.weight_decay),
    momentum=lambda hyper: optax.chain(optax.add_decayed_weights(hyper.weight_decay), optax.trace(hyper.momentum)),
    adam=lambda hyper: optax.chain(optax.add_decayed_weights(hyper.weight_decay), optax.scale_by_adam(hyper.momentum)),
    sdlm=lambda hyper: optax.chain(optax.add_decayed_weights(hyper.weight_decay), scale_by_curvature(hyper.mu)),
    adamw=lambda hyper: optax.chain(optax.scale_by_adam(hyper.momentum), optax.add_decayed_weights(hyper.weight_decay)),
)
"""Optimizers by name. An experiment file can add one: ``OPTIMIZERS["lion"] = lambda hyper:
optax.scale_by_lion(hyper.momentum)``. The curvature is measured for those that use `scale_by_curvature`."""

LECUN1998_FACTORS = {0: 1.0, 2: 0.4, 5: 0.2, 8: 0.1, 12: 0.02}
"""First epoch (counted from 0) -> learning rate divided by the initial one, in 1998: 5e-4, 2e-4, 1e-4, 5e-5, 1e-5
(section III.C)."""


def steps_down(factors: Mapping[int, float], unit: int) -> optax.Schedule:
    """A piecewise constant schedule: the factor of each key applies from step ``key * unit`` on."""
    constants = [optax.constant_schedule(factor) for factor in factors.values()]
    return optax.join_schedules(constants, [start * unit for start in list(factors)[1:]])


Schedule = Callable[[Int[Array, ""], int, int], Array]
"""(step, steps in total, steps per epoch) -> factor of the learning rate; 1 at step 0."""

SCHEDULES: Registry[Schedule] = Registry(
    "schedule",
    constant=lambda step, steps, epoch_steps: jnp.ones(()),
    cosine=lambda step, steps, epoch_steps: optax.cosine_decay_schedule(1.0, steps)(step),
    linear=lambda step, steps, epoch_steps: optax.linear_schedule(1.0, 0.0, steps)(step),
    lecun1998=lambda step, steps, epoch_steps: steps_down(LECUN1998_FACTORS, epoch_steps)(step),
    thirds=lambda step, steps, epoch_steps: steps_down({0: 1.0, 1: 0.1, 2: 0.01}, -(-steps // 3))(step),
)
"""Learning rate schedules by name: cosine and linear decay to 0, lecun1998 decays by epochs, thirds by a factor of ten
after each third of the training. An experiment file can add one."""


def transformation(
    optimizer: str, schedule: str, steps: int, epoch_steps: int, hyper: Hyperparameters
) -> optax.GradientTransformation:
    """The optimizer of a single network that trains for `steps` steps in total, `epoch_steps` per epoch."""

    def rate(step: Array) -> Array:
        return -hyper.learning_rate * SCHEDULES[schedule](step, steps, epoch_steps)

    return optax.chain(OPTIMIZERS[optimizer](hyper), optax.scale_by_schedule(rate))
