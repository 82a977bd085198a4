"""Why the sigmoid network stalls, and which initializer trains it: every initializer, with sigmoid and with tanh.

Command: lenet-jax run --config=experiments/initializer.py
Cost: 3 minutes on two CPU cores shared with other jobs.
Result: experiments/results/initializer, and the table of initializers in docs/findings.md.
"""

from ml_collections import ConfigDict

from lenet_jax.experiments import base


def get_config(arg: str | None = None) -> ConfigDict:
    """5 initializers x 2 activations, cross-entropy, on the embedded digits."""
    config = base.get_config(arg)
    config.loss = "cross_entropy"
    config.seeds = 4
    config.sweep.activation = ("sigmoid", "tanh")
    config.sweep.initializer = ("lecun1998", "lecun1998_sqrt", "glorot", "bengio2012", "glorot_centered")
    return config
