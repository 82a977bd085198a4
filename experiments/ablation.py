"""Mean squared error against cross-entropy, sigmoid against tanh: LeNet-5 on MNIST, 5 seeds an arm.

Command: lenet-jax run --config=experiments/ablation.py
         (without internet access, from a folder with MNIST's four files: --config.dataset=idx:FOLDER)
Cost: 12 million samples, 8 minutes or more on two CPU cores.
"""

from lenet_jax.experiments import base
from ml_collections import ConfigDict


def get_config(arg: str | None = None) -> ConfigDict:
    """2 losses x 2 activations on MNIST."""
    config = base.get_config(arg)
    config.dataset = "mnist"
    config.seeds = 5
    config.sweep.loss = ("mse", "cross_entropy")
    config.sweep.activation = ("sigmoid", "tanh")
    return config
