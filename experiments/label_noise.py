"""Is squared error more robust to wrong labels than cross-entropy?

0, 20 or 40 % of the training labels are wrong. The labels used for tuning and for testing are correct.

Command: lenet-jax run --config=experiments/label_noise.py
Cost: 7 minutes on two CPU cores shared with other jobs.
Result: experiments/results/label_noise. Yes. Without wrong labels, cross-entropy makes 0.25 percentage points fewer
errors than squared error (95 % interval over seeds and test images 0.06 to 0.44). It loses this lead with wrong labels
(interaction with 40 % of them 0.64 points, 0.27 to 1.01), but 0.39 points more errors (0.07 to 0.71) are not
significant after correction. 40 % wrong labels cost 2.54 points (2.17 to 2.91), and 20 % cost 0.86 points (0.61 to
1.11).
"""

from ml_collections import ConfigDict

from lenet_jax.experiments import tuned


def get_config(arg: str | None = None) -> ConfigDict:
    """3 shares of wrong labels x 2 losses."""
    config = tuned.get_config(arg)
    config.sweep.label_noise = (0.0, 0.2, 0.4)
    config.sweep.loss = ("mse", "cross_entropy")
    return config
