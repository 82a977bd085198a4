"""LeNet-5 as in 1998 with random distortions: nine of ten presentations are translated, scaled, squeezed and sheared.

Command: lenet-jax run --config=experiments/lenet5_1998_distorted.py
Cost: about 11 minutes on two CPU cores.
Result: experiments/results/lenet5_1998_distorted, and docs/reproduction.md, which also describes how the magnitudes
were chosen.
"""

from ml_collections import ConfigDict

from lenet_jax.experiments import lenet5_1998


def get_config(arg: str | None = None) -> ConfigDict:
    """`lenet5_1998` with distortions: the same seeds and number of presentations."""
    config = lenet5_1998.get_config(arg)
    config.augmentation = "affine"
    return config
