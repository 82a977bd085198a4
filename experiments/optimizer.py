"""Which optimizer: plain gradient descent, momentum, Adam, or 1998's stochastic diagonal Levenberg-Marquardt?

Nine learning rates, half a decade apart, so that the range suits them all.

Command: lenet-jax run --config=experiments/optimizer.py
"""

from lenet_jax.experiments import tuned
from ml_collections import ConfigDict


def get_config(arg: str | None = None) -> ConfigDict:
    """4 optimizers."""
    config = tuned.get_config(arg)
    config.sweep.optimizer = ("sgd", "momentum", "adam", "sdlm")
    config.tune.learning_rate = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    return config
