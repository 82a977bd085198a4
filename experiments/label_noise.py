"""Does squared error stand wrong labels better than cross-entropy?

0, 20 or 40 % of the training labels are wrong. Learning rates are chosen, and networks tested, by right labels.

Command: lenet-jax run --config=experiments/label_noise.py
Cost: 4 minutes on two CPU cores that had other work as well.
Result: experiments/results/label_noise. Not shown: 40 % of wrong labels cost 2.65 percentage points (2.32 to 2.98),
20 % 1.17 (0.94 to 1.39). Cross-entropy makes 0.29 percentage points fewer errors (0.13 to 0.46) over all shares; that
this depends on the share isn't shown.
"""

from ml_collections import ConfigDict

from lenet_jax.experiments import tuned


def get_config(arg: str | None = None) -> ConfigDict:
    """3 shares of wrong labels x 2 losses."""
    config = tuned.get_config(arg)
    config.sweep.label_noise = (0.0, 0.2, 0.4)
    config.sweep.loss = ("mse", "cross_entropy")
    return config
