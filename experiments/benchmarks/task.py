"""The training task of the benchmarks, and the check of each arrangement's outcome.

One network (tanh, C3's table of 60 connections, trainable subsampling, softmax), one loss (cross-entropy), one
optimizer (SGD with momentum, constant learning rate), one data set (the first images of mnist10k, padded to 32 x 32,
standardized).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lenet_jax import model
from lenet_jax.data import datasets, preprocess
from lenet_jax.losses import Loss
from lenet_jax.train import Images, Recipe

ARCHITECTURE = model.Architecture(activation="tanh", initializer="glorot")
MOMENTUM = 0.9
LEARNING_RATE = 0.001
"""Small enough for batches of one image: arithmetic on overflowing numbers would have another speed."""

LOSS_TOLERANCE = 1e-5
"""Relative tolerance of the loss."""

GRADIENT_TOLERANCE = 1e-4
"""Relative tolerance of the gradient of each parameter: norm of the difference / norm."""

UPDATE_TOLERANCE = 1e-6
"""Absolute tolerance of each parameter after the step."""

Weights = Mapping[str, np.ndarray]
"""Parameters or gradients by name (``c1.kernel``), in the shapes of `lenet_jax.model.Params`."""


class Task(NamedTuple):
    """Training images as NumPy arrays.

    Attributes:
      pixels: uint8 [N, 32, 32].
      labels: int32 [N].
      scale, shift: normalized pixel = pixel * scale + shift.
    """

    pixels: np.ndarray
    labels: np.ndarray
    scale: float
    shift: float

    @property
    def normalized(self) -> np.ndarray:
        """Input of the network: float32 [N, 32, 32]."""
        return self.pixels.astype(np.float32) * np.float32(self.scale) + np.float32(self.shift)

    @property
    def images(self) -> Images:
        """The same images, in the form that lenet_jax takes."""
        return Images(self.pixels, self.labels, np.float32(self.scale), np.float32(self.shift))


class Window(NamedTuple):
    """A timed window of training.

    Attributes:
      samples: samples x members trained.
      seconds: wall time.
      loss: loss of the last step or epoch, averaged over members; shows that the numbers are finite.
    """

    samples: int
    seconds: float
    loss: float

    @property
    def rate(self) -> float:
        """Samples x members per second."""
        return self.samples / self.seconds


class Outcome(NamedTuple):
    """One step from given weights on the first images, as an arrangement computes it.

    Attributes:
      loss: loss of the batch.
      gradient: gradient, read from the momentum buffer, which holds nothing else after the first step.
      updated: weights after the step.
    """

    loss: float
    gradient: Weights
    updated: Weights


def load(name: str, train_size: int = 0) -> Task:
    """The first `train_size` training images of a data set of lenet_jax (0: all)."""
    dataset = datasets.load(name)
    scaling = preprocess.standardize(dataset.train_images)
    count = train_size or len(dataset.train_labels)
    pixels = preprocess.pad(dataset.train_images[:count], "background")
    return Task(pixels, dataset.train_labels[:count].astype(np.int32), scaling.scale, scaling.shift)


def recipe(batch_size: int, train_size: int) -> Recipe:
    """The training recipe for lenet_jax."""
    return Recipe(
        architecture=ARCHITECTURE,
        loss=Loss("cross_entropy"),
        optimizer="momentum",
        schedule="constant",
        batch_size=batch_size,
        epochs=1,
        train_size=train_size,
    )


def hyperparameters(members: int) -> dict[str, Sequence[float]]:
    """Hyperparameters for `population.create`, the same for every member."""
    values = {"learning_rate": LEARNING_RATE, "momentum": MOMENTUM, "weight_decay": 0.0, "mu": 1.0}
    return {name: [value] * members for name, value in values.items()}


def disagreement(outcome: Outcome, reference: Outcome) -> str:
    """Differences from the reference that exceed the tolerances; empty if there are none."""
    faults = []
    difference = abs(outcome.loss / reference.loss - 1)
    if not difference <= LOSS_TOLERANCE:
        faults.append(f"loss {outcome.loss:.7g} instead of {reference.loss:.7g}")
    for name, expected in reference.gradient.items():
        difference = np.linalg.norm(outcome.gradient[name] - expected) / np.linalg.norm(expected)
        if not difference <= GRADIENT_TOLERANCE:
            faults.append(f"gradient of {name} off by {difference:.1e} of its norm")
    for name, expected in reference.updated.items():
        difference = np.abs(outcome.updated[name] - expected).max()
        if not difference <= UPDATE_TOLERANCE:
            faults.append(f"updated {name} off by {difference:.1e}")
    return "; ".join(faults)


def multiply_adds() -> dict[str, int]:
    """Multiply-adds of the forward pass of one image, by layer: its connections (4 per unit in subsampling)."""
    c1, c3 = len(model.C1_TABLE), len(model.C3_TABLE)
    connections3 = sum(map(len, model.C3_TABLE))
    return {
        "c1": c1 * 28 * 28 * 25,
        "s2": c1 * 14 * 14 * 4,
        "c3": connections3 * 10 * 10 * 25,
        "s4": c3 * 5 * 5 * 4,
        "c5": c3 * 5 * 5 * 120,
        "f6": 120 * 84,
        "output": 84 * ARCHITECTURE.classes,
    }


def training_multiply_adds() -> int:
    """Multiply-adds of one training sample.

    The forward pass, weight gradient and input gradient cost the same; C1 needs no input gradient.
    """
    forward = multiply_adds()
    return 3 * sum(forward.values()) - forward["c1"]
