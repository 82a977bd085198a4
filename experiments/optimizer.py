"""Which optimizer works best: SGD, momentum, Adam, or 1998's stochastic diagonal Levenberg-Marquardt?

The grid has nine learning rates, half a decade apart, so that its range suits every optimizer.

Command: lenet-jax run --config=experiments/optimizer.py
Cost: 11 minutes on two CPU cores shared with other jobs.
Result: experiments/results/optimizer. With tuned learning rates, errors range from 3.68 % (SDLM) to 3.99 % (momentum).
Momentum makes more errors than SGD (by 0.24 percentage points, 95 % interval over seeds and test images 0.10 to 0.37)
and than SDLM (0.32, 0.14 to 0.49). The other differences are not significant.
"""

from ml_collections import ConfigDict

from lenet_jax.experiments import tuned


def get_config(arg: str | None = None) -> ConfigDict:
    """4 optimizers."""
    config = tuned.get_config(arg)
    config.sweep.optimizer = ("sgd", "momentum", "adam", "sdlm")
    config.tune.learning_rate = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    return config
