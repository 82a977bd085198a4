"""Which batch size, at the same number of passes and each at its own learning rate?

Small batches make more updates of a pass: what they lose is time.

Command: lenet-jax run --config=experiments/batch_size.py
Cost: 4 minutes on two CPU cores that had other work as well.
Result: experiments/results/batch_size. Though each has its own learning rate, 64 and 128 make more errors than 8 and
16: 128 has 4.15 %, 0.67 percentage points more than 16 (0.44 to 0.89). 8, 16 and 32 aren't told apart.
"""

from ml_collections import ConfigDict

from lenet_jax.experiments import tuned


def get_config(arg: str | None = None) -> ConfigDict:
    """5 batch sizes."""
    config = tuned.get_config(arg)
    config.sweep.batch_size = (8, 16, 32, 64, 128)
    return config
