"""Which subsampling: trainable and squashed, as in 1998, or plain average or max pooling?

Command: lenet-jax run --config=experiments/subsampling.py
Cost: 5 minutes on two CPU cores that had other work as well.
Result: experiments/results/subsampling. Max pooling makes 0.39 percentage points fewer errors than trainable
subsampling (0.09 to 0.70, p = 0.043); average pooling, between them, isn't told from either.
"""

from ml_collections import ConfigDict

from lenet_jax.experiments import tuned


def get_config(arg: str | None = None) -> ConfigDict:
    """3 ways to subsample."""
    config = tuned.get_config(arg)
    config.sweep.subsampling = ("trainable", "average", "max")
    return config
