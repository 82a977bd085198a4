"""Mean squared error or cross-entropy, sigmoid or tanh: LeNet-5 on 4,000 real digits, with 8 seeds per arm.

1,000 of the 5,000 embedded training digits are held out for validation; they give the learning curves.

Command: lenet-jax run --config=experiments/quickstart.py
Cost: less than a minute on two CPU cores.
Result: experiments/results/quickstart, and the README's first table.
"""

from ml_collections import ConfigDict

from lenet_jax.experiments import base


def get_config(arg: str | None = None) -> ConfigDict:
    """2 losses x 2 activations on the embedded digits."""
    config = base.get_config(arg)
    config.validation_size = 1000  # for learning curves; the test digits are evaluated once, at the end
    config.sweep.loss = ("mse", "cross_entropy")
    config.sweep.activation = ("sigmoid", "tanh")
    return config
