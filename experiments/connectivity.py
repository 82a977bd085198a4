"""How does C3's connection table, with 60 connections, compare with all 96 connections?

LeCun et al. 1998 (section II.B) introduced the table to break the symmetry and to limit the number of connections.

Command: lenet-jax run --config=experiments/connectivity.py
Cost: 6 minutes on two CPU cores shared with other jobs.
Result: experiments/results/connectivity. The difference is not significant: full connectivity makes 0.14 percentage
points fewer errors than the table (95 % interval over seeds and test images -0.04 to 0.32).
"""

from ml_collections import ConfigDict

from lenet_jax.experiments import tuned


def get_config(arg: str | None = None) -> ConfigDict:
    """2 connectivities."""
    config = tuned.get_config(arg)
    config.sweep.connectivity = ("table", "full")
    return config
