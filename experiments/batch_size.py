"""Which batch size, at the same number of passes and each at its own learning rate?

Small batches make more updates of a pass: what they lose is time.

Command: lenet-jax run --config=experiments/batch_size.py
Cost: 7 minutes on two CPU cores that had other work as well.
Result: experiments/results/batch_size. 8 makes the fewest errors, 3.59 %, at least 0.32 percentage points fewer than
any other (64; 95 % interval over seeds 0.21 to 0.43). 128 makes 4.27 %, more than 32 and 64 (0.28 and 0.36 points). 64
makes fewer than 16 (0.18, 0.05 to 0.32); no other difference between 16, 32, 64 and 128 is shown.
"""

from ml_collections import ConfigDict

from lenet_jax.experiments import tuned


def get_config(arg: str | None = None) -> ConfigDict:
    """5 batch sizes."""
    config = tuned.get_config(arg)
    config.sweep.batch_size = (8, 16, 32, 64, 128)
    return config
