"""Which subsampling: trainable and squashed, as in 1998, or plain average or max pooling?

Command: lenet-jax run --config=experiments/subsampling.py
"""

from lenet_jax.experiments import tuned
from ml_collections import ConfigDict


def get_config(arg: str | None = None) -> ConfigDict:
    """3 ways to subsample."""
    config = tuned.get_config(arg)
    config.sweep.subsampling = ("trainable", "average", "max")
    return config
