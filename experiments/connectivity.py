"""What is C3's connection table worth: its 60 connections, or all 96?

LeCun et al. 1998 (section II.B) broke the symmetry with it and kept the number of connections down.

Command: lenet-jax run --config=experiments/connectivity.py
Cost: 6 minutes on two CPU cores that had other work as well.
Result: experiments/results/connectivity. No difference is shown: all connections make 0.14 percentage points fewer
errors (95 % interval over seeds -0.03 to 0.31) than the table; about 56 seeds would be needed.
"""

from ml_collections import ConfigDict

from lenet_jax.experiments import tuned


def get_config(arg: str | None = None) -> ConfigDict:
    """2 connectivities."""
    config = tuned.get_config(arg)
    config.sweep.connectivity = ("table", "full")
    return config
