"""Which subsampling works best: trainable and squashed, as in 1998, or plain average or max pooling?

Command: lenet-jax run --config=experiments/subsampling.py
Cost: 6 minutes on two CPU cores shared with other jobs.
Result: experiments/results/subsampling. Trainable subsampling makes more errors than average pooling (by 0.47
percentage points, 95 % interval over seeds and test images 0.26 to 0.68) and than max pooling (0.59, 0.39 to 0.79).
Average and max pooling do not differ significantly.
"""

from ml_collections import ConfigDict

from lenet_jax.experiments import tuned


def get_config(arg: str | None = None) -> ConfigDict:
    """3 kinds of subsampling."""
    config = tuned.get_config(arg)
    config.sweep.subsampling = ("trainable", "average", "max")
    return config
