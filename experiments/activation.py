"""Which activation: sigmoid, tanh, the paper's 1.7159 tanh(2a/3), or ReLU?

All start from the initializer that suits them all (`glorot_centered`).

Command: lenet-jax run --config=experiments/activation.py
"""

from lenet_jax.experiments import tuned
from ml_collections import ConfigDict


def get_config(arg: str | None = None) -> ConfigDict:
    """4 activations."""
    config = tuned.get_config(arg)
    config.sweep.activation = ("sigmoid", "tanh", "scaled_tanh", "relu")
    return config
