"""Which learning rate suits each arm of the quickstart? Every arm at every rate, judged on a validation split.

The quickstart uses one learning rate for all its arms, which is fair only if the rate suits them all. This experiment
checks that.

Command: lenet-jax run --config=experiments/learning_rate.py
Cost: 11 minutes on two CPU cores shared with other jobs.
Result: experiments/results/learning_rate.
"""

from ml_collections import ConfigDict

from lenet_jax.experiments import base


def get_config(arg: str | None = None) -> ConfigDict:
    """5 learning rates x 2 losses x 2 activations; 1,000 of the 5,000 training digits are held out for validation."""
    config = base.get_config(arg)
    config.validation_size = 1000
    config.seeds = 4
    config.sweep.loss = ("mse", "cross_entropy")
    config.sweep.activation = ("sigmoid", "tanh")
    config.sweep.learning_rate = (0.003, 0.01, 0.03, 0.1, 0.3)
    return config
