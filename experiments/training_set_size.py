"""Figure 6 of the 1998 paper: the error with 15,000, 30,000 and 60,000 training digits.

Command: lenet-jax run --config=experiments/training_set_size.py
Cost: about 19 minutes on two CPU cores.
Result: experiments/results/training_set_size, and docs/reproduction.md.
"""

from ml_collections import ConfigDict

from lenet_jax.experiments import lenet5_1998


def get_config(arg: str | None = None) -> ConfigDict:
    """`lenet5_1998` on the first digits of the training set, 20 epochs each."""
    config = lenet5_1998.get_config(arg)
    config.store_predictions = False
    config.sweep.train_size = (15000, 30000, 60000)
    return config
