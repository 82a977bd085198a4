"""LeNet-5 with tanh and cross-entropy on 5,000 real digits, with a tuned learning rate: the base of the studies.

Each arm tries six learning rates, and up to three more beyond an edge of the grid, with three seeds on a validation
split of 1,000 digits. New networks with 20 other seeds then train at the best rate on all 5,000 digits; only they are
tested.

Command: lenet-jax run --config=experiments/tuned.py
"""

from ml_collections import ConfigDict

from lenet_jax.experiments import base


def get_config(arg: str | None = None) -> ConfigDict:
    """One arm; each study adds its axis."""
    config = base.get_config(arg)
    config.activation = "tanh"
    config.loss = "cross_entropy"
    config.seeds = 20
    config.validation_size = 1000
    config.tune.learning_rate = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    config.tune_seeds = 3
    config.tune_widenings = 3
    config.refit = True
    return config
