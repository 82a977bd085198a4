"""Optimizers: a name, a schedule and a member's hyperparameters become an optax transformation.

The hyperparameters are arrays, not compile-time constants: members of one compiled population may differ in them.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


@flax.struct.dataclass
class Hyperparameters:
    """What members may differ in, apart from the seed.

    Attributes:
      learning_rate: at its highest, see `SCHEDULES`.
      momentum: of ``momentum``; Adam's beta_1.
      weight_decay: of ``adamw`` decoupled (times the learning rate); of the others added to the gradient.
      mu: of ``sdlm``; see there.
    """

    learning_rate: Float[Array, ""]
    momentum: Float[Array, ""]
    weight_decay: Float[Array, ""]
    mu: Float[Array, ""]


HYPERPARAMETERS = tuple(field.name for field in dataclasses.fields(Hyperparameters))
"""Their names, which are config fields."""


class CurvatureState(NamedTuple):
    """The state of `scale_by_curvature`.

    Attributes:
      curvature: h_kk of every parameter, none below 0. Whoever trains sets it, see `train.train_epoch`.
    """

    curvature: optax.Params


def scale_by_curvature(mu: float | Array) -> optax.GradientTransformation:
    """Divides every gradient by mu + h_kk, the curvature that its state holds (LeCun et al. 1998, eq. 21)."""

    def init(params: optax.Params) -> CurvatureState:
        return CurvatureState(jax.tree.map(jnp.zeros_like, params))

    def update(
        gradient: optax.Updates, state: CurvatureState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, CurvatureState]:
        del params
        return jax.tree.map(lambda slope, bend: slope / (mu + bend), gradient, state.curvature), state

    return optax.GradientTransformation(init, update)


def curvature_of(state: optax.OptState) -> optax.Params:
    """The curvature that an optimizer's state holds."""
    return optax.tree.get(state, "curvature")


def sdlm(learning_rate: float | Array, mu: float | Array) -> optax.GradientTransformation:
    """Stochastic diagonal Levenberg-Marquardt: w_k <- w_k - eta / (mu + h_kk) dE/dw_k (LeCun et al. 1998, eq. 18, 21).

    For other programs than this one, which chains its schedule after `scale_by_curvature`.

    Args:
      learning_rate: eta.
      mu: bounds the rate where there is no curvature; above 0.
    """
    return optax.chain(scale_by_curvature(mu), optax.scale(-learning_rate))


OPTIMIZERS: Mapping[str, Callable[[Hyperparameters], optax.GradientTransformation]] = {
    "sgd": lambda hyper: optax.add_decayed_weights(hyper.weight_decay),
    "momentum": lambda hyper: optax.chain(
        optax.add_decayed_weights(hyper.weight_decay), optax.trace(decay=hyper.momentum)
    ),
    "adam": lambda hyper: optax.chain(
        optax.add_decayed_weights(hyper.weight_decay), optax.scale_by_adam(b1=hyper.momentum)
    ),
    "sdlm": lambda hyper: optax.chain(optax.add_decayed_weights(hyper.weight_decay), scale_by_curvature(hyper.mu)),
    "adamw": lambda hyper: optax.chain(
        optax.scale_by_adam(b1=hyper.momentum), optax.add_decayed_weights(hyper.weight_decay)
    ),
}
"""What each optimizer makes of the gradient before the learning rate."""

LECUN1998_FACTORS = {0: 1.0, 2: 0.4, 5: 0.2, 8: 0.1, 12: 0.02}
"""From each of these passes on (counted from 0), 1998's rate is so many times its first: 5e-4, 2e-4, 1e-4, 5e-5, 1e-5
(section III.C)."""


def steps_down(factors: Mapping[int, float], unit: int) -> optax.Schedule:
    """A schedule that is constant from each key on; keys count units of so many updates."""
    constants = [optax.constant_schedule(factor) for factor in factors.values()]
    return optax.join_schedules(constants, [start * unit for start in list(factors)[1:]])


SCHEDULES: Mapping[str, Callable[[Int[Array, ""], int, int], Array]] = {
    "constant": lambda step, steps, epoch_steps: jnp.ones(()),
    "cosine": lambda step, steps, epoch_steps: optax.cosine_decay_schedule(1.0, steps)(step),
    "linear": lambda step, steps, epoch_steps: optax.linear_schedule(1.0, 0.0, steps)(step),
    "lecun1998": lambda step, steps, epoch_steps: steps_down(LECUN1998_FACTORS, epoch_steps)(step),
    "thirds": lambda step, steps, epoch_steps: steps_down({0: 1.0, 1: 0.1, 2: 0.01}, -(-steps // 3))(step),
}
"""(step, steps in all, steps a pass) -> factor on the learning rate, from 1 on. Cosine and linear fall to 0, lecun1998
falls pass by pass, thirds falls to a tenth after each third of the training."""


def transformation(
    optimizer: str, schedule: str, steps: int, epoch_steps: int, hyper: Hyperparameters
) -> optax.GradientTransformation:
    """The optimizer of one member.

    Args:
      optimizer: a key of `OPTIMIZERS`.
      schedule: a key of `SCHEDULES`.
      steps: updates in the whole training.
      epoch_steps: updates in a pass.
      hyper: scalars, traced or not.
    """
    return optax.chain(
        OPTIMIZERS[optimizer](hyper),
        optax.scale_by_schedule(lambda step: -hyper.learning_rate * SCHEDULES[schedule](step, steps, epoch_steps)),
    )
