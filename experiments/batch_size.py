"""Which batch size, at the same number of passes and each at its own learning rate?

Small batches make more updates of a pass: what they lose is time.

Command: lenet-jax run --config=experiments/batch_size.py
"""

from lenet_jax.experiments import tuned
from ml_collections import ConfigDict


def get_config(arg: str | None = None) -> ConfigDict:
    """5 batch sizes."""
    config = tuned.get_config(arg)
    config.sweep.batch_size = (8, 16, 32, 64, 128)
    return config
