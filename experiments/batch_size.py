"""Which batch size works best, with the same number of epochs and a tuned learning rate for each?

Small batches take more steps per epoch, at the price of a longer training time.

Command: lenet-jax run --config=experiments/batch_size.py
Cost: 7 minutes on two CPU cores shared with other jobs.
Result: experiments/results/batch_size. Batches of 8 make the fewest errors, 3.59 %: at least 0.32 percentage points
fewer than any other size (64 is the closest; 95 % interval over seeds and test images 0.20 to 0.44). Batches of 128
make 4.27 %, more than batches of 32 and 64 (by 0.28 and 0.36 points). The other differences between 16, 32, 64 and 128
are not significant after correction.
"""

from ml_collections import ConfigDict

from lenet_jax.experiments import tuned


def get_config(arg: str | None = None) -> ConfigDict:
    """5 batch sizes."""
    config = tuned.get_config(arg)
    config.sweep.batch_size = (8, 16, 32, 64, 128)
    return config
