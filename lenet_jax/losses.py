"""Losses: means over a batch of outputs [batch, classes] with integer labels [batch].

Every convention that could confound a comparison of losses is a named argument; the defaults are the specification.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from lenet_jax.choices import CHOICES, register
from lenet_jax.errors import check_choice
from lenet_jax.registry import Registry

TARGET_CODES: Mapping[str, tuple[float, float]] = {"0/1": (0.0, 1.0), "+-1": (-1.0, 1.0)}
"""The targets of incorrect classes and of the correct class."""

register("target_code", TARGET_CODES)

MSE_POINTS, MSE_REDUCTIONS = CHOICES["mse_point"], CHOICES["mse_reduction"]


def mse(
    outputs: Float[Array, "batch classes"],
    labels: Int[Array, " batch"],
    *,
    point: str = "softmax",
    target_code: str = "0/1",
    reduction: str = "sum",
    factor: float = 1.0,
) -> Float[Array, ""]:
    """Mean squared error: factor * mean over samples of the sum over classes of (y - t)^2.

    Args:
      outputs: what `model.forward` returns for each sample.
      labels: the correct classes.
      point: y: a ``softmax`` of the outputs, or the outputs themselves (``linear``).
      target_code: t, a key of `TARGET_CODES`.
      reduction: over classes: ``sum`` (the specification) or ``mean`` (a tenth of it for ten classes).
      factor: 1 in the specification; 0.5 is common elsewhere.

    >>> logits = jnp.log(jnp.array([[1.0, 2.0, 1.0]]))  # softmax: 1/4, 1/2, 1/4
    >>> round(float(mse(logits, jnp.array([1]))), 4)  # 1/16 + 4/16 + 1/16
    0.375
    """
    check_choice("point", point, MSE_POINTS)
    check_choice("target_code", target_code, TARGET_CODES)
    check_choice("reduction", reduction, MSE_REDUCTIONS)
    y = jax.nn.softmax(outputs) if point == "softmax" else outputs
    incorrect, correct = TARGET_CODES[target_code]
    t = incorrect + (correct - incorrect) * jax.nn.one_hot(labels, outputs.shape[-1], dtype=outputs.dtype)
    errors = jnp.square(y - t)
    return factor * (errors.sum(axis=-1) if reduction == "sum" else errors.mean(axis=-1)).mean()


def cross_entropy(outputs: Float[Array, "batch classes"], labels: Int[Array, " batch"]) -> Float[Array, ""]:
    """Mean over samples of -log softmax(outputs)[label], in nats."""
    losses: Array = optax.losses.softmax_cross_entropy_with_integer_labels(outputs, labels)
    return losses.mean()


def map_criterion(
    penalties: Float[Array, "batch classes"], labels: Int[Array, " batch"], *, constant: float = 1.0
) -> Float[Array, ""]:
    """Mean over samples of y_D + log(e^-j + sum_i e^-y_i) (LeCun et al. 1998, eq. 9).

    y are the `penalties` that `model.forward` returns for RBF outputs, D is the label, and j is `constant`: the larger
    it is, the further penalties of incorrect classes are still pushed up.
    """
    correct = jnp.take_along_axis(penalties, labels[:, None], axis=1)[:, 0]
    rubbish = jnp.full((len(penalties), 1), -constant, penalties.dtype)
    return (correct + jax.nn.logsumexp(jnp.concatenate([rubbish, -penalties], axis=1), axis=1)).mean()


def correct_penalty(penalties: Float[Array, "batch classes"], labels: Int[Array, " batch"]) -> Float[Array, ""]:
    """Mean over samples of y_D, the penalty of the correct class (LeCun et al. 1998, eq. 8)."""
    return jnp.take_along_axis(penalties, labels[:, None], axis=1).mean()


@dataclasses.dataclass(frozen=True)
class Loss:
    """A loss with its settings. Hashable: a static argument of compiled functions.

    Attributes:
      name: a key of `LOSSES`.
      mse_point, target_code, mse_reduction, mse_factor: of `mse`; unused by other losses.
      map_constant: j, see `map_criterion`.
    """

    name: str = "mse"
    mse_point: str = "softmax"
    target_code: str = "0/1"
    mse_reduction: str = "sum"
    mse_factor: float = 1.0
    map_constant: float = 1.0

    def __post_init__(self) -> None:
        check_choice("loss", self.name, LOSSES)
        check_choice("mse_point", self.mse_point, MSE_POINTS)
        check_choice("target_code", self.target_code, TARGET_CODES)
        check_choice("mse_reduction", self.mse_reduction, MSE_REDUCTIONS)

    def __call__(self, outputs: Float[Array, "batch classes"], labels: Int[Array, " batch"]) -> Float[Array, ""]:
        """The loss of a batch, from what `model.logits_of` returns."""
        return LOSSES[self.name](outputs, labels, self)


LossFunction = Callable[[Array, Array, Loss], Array]
"""(`model.logits_of` the outputs [batch, classes], labels [batch], settings) -> scalar: the mean over the batch."""

LOSSES: Registry[LossFunction] = Registry(
    "loss",
    mse=lambda outputs, labels, loss: mse(
        outputs,
        labels,
        point=loss.mse_point,
        target_code=loss.target_code,
        reduction=loss.mse_reduction,
        factor=loss.mse_factor,
    ),
    cross_entropy=lambda outputs, labels, loss: cross_entropy(outputs, labels),
    map=lambda outputs, labels, loss: map_criterion(-outputs, labels, constant=loss.map_constant),
    correct_penalty=lambda outputs, labels, loss: correct_penalty(-outputs, labels),
)
"""Losses by name; those of penalties undo the sign of `model.logits_of`. An experiment file can add one, for instance
``LOSSES["logistic"] = lambda outputs, labels, loss: ...``. SDLM differentiates it twice."""
