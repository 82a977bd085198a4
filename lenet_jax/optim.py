"""Optimizers: a name, a schedule and a member's hyperparameters become an optax transformation.

The hyperparameters are arrays, not compile-time constants: members of one compiled population may differ in them.
"""

from collections.abc import Callable, Mapping

import flax.struct
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
    """

    learning_rate: Float[Array, ""]
    momentum: Float[Array, ""]
    weight_decay: Float[Array, ""]


OPTIMIZERS: Mapping[str, Callable[[Hyperparameters], optax.GradientTransformation]] = {
    "sgd": lambda hyper: optax.add_decayed_weights(hyper.weight_decay),
    "momentum": lambda hyper: optax.chain(
        optax.add_decayed_weights(hyper.weight_decay), optax.trace(decay=hyper.momentum)
    ),
    "adam": lambda hyper: optax.chain(
        optax.add_decayed_weights(hyper.weight_decay), optax.scale_by_adam(b1=hyper.momentum)
    ),
    "adamw": lambda hyper: optax.chain(
        optax.scale_by_adam(b1=hyper.momentum), optax.add_decayed_weights(hyper.weight_decay)
    ),
}
"""What each optimizer makes of the gradient before the learning rate."""

SCHEDULES: Mapping[str, Callable[[Int[Array, ""], int], Array]] = {
    "constant": lambda step, steps: jnp.ones(()),
    "cosine": lambda step, steps: optax.cosine_decay_schedule(1.0, steps)(step),
    "linear": lambda step, steps: optax.linear_schedule(1.0, 0.0, steps)(step),
}
"""(step, steps in all) -> factor on the learning rate, from 1 on; cosine and linear fall to 0."""


def transformation(optimizer: str, schedule: str, steps: int, hyper: Hyperparameters) -> optax.GradientTransformation:
    """The optimizer of one member.

    Args:
      optimizer: a key of `OPTIMIZERS`.
      schedule: a key of `SCHEDULES`.
      steps: updates in the whole training.
      hyper: scalars, traced or not.
    """
    return optax.chain(
        OPTIMIZERS[optimizer](hyper),
        optax.scale_by_schedule(lambda step: -hyper.learning_rate * SCHEDULES[schedule](step, steps)),
    )
