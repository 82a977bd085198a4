"""Does squared error stand wrong labels better than cross-entropy?

0, 20 or 40 % of the training labels are wrong; those of the validation and the test split are right. (With them the
choice is by clean labels, but for the last training, which has noise in all 4,000.)

Command: lenet-jax run --config=experiments/label_noise.py
"""

from lenet_jax.experiments import tuned
from ml_collections import ConfigDict


def get_config(arg: str | None = None) -> ConfigDict:
    """3 shares of wrong labels x 2 losses."""
    config = tuned.get_config(arg)
    config.sweep.label_noise = (0.0, 0.2, 0.4)
    config.sweep.loss = ("mse", "cross_entropy")
    return config
