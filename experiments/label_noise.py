"""Does squared error stand wrong labels better than cross-entropy?

0, 20 or 40 % of the training labels are wrong. Learning rates are chosen, and networks tested, by right labels.

Command: lenet-jax run --config=experiments/label_noise.py
Cost: 7 minutes on two CPU cores that had other work as well.
Result: experiments/results/label_noise. Yes: without wrong labels cross-entropy makes 0.25 percentage points fewer
errors than squared error (95 % interval over seeds 0.09 to 0.40); with 40 % of them it makes 0.39 more (0.11 to 0.67).
40 % of wrong labels cost 2.54 points (2.40 to 2.68), 20 % 0.86 (0.73 to 0.99).
"""

from ml_collections import ConfigDict

from lenet_jax.experiments import tuned


def get_config(arg: str | None = None) -> ConfigDict:
    """3 shares of wrong labels x 2 losses."""
    config = tuned.get_config(arg)
    config.sweep.label_noise = (0.0, 0.2, 0.4)
    config.sweep.loss = ("mse", "cross_entropy")
    return config
