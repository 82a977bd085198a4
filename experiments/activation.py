"""Which activation works best: sigmoid, tanh, the paper's 1.7159 tanh(2a/3), or ReLU?

All arms use the `glorot_centered` initializer, which suits all four activations.

Command: lenet-jax run --config=experiments/activation.py
Cost: 6 minutes on two CPU cores shared with other jobs.
Result: experiments/results/activation. tanh (3.99 %) and 1998's scaled tanh (3.88 %) do not differ significantly.
Sigmoid has a mean error of 10.34 % and a median of 7.89 %: one of its 20 networks hardly learns. ReLU (4.48 %) does not
differ significantly from tanh, nor, after correction, from scaled tanh (by 0.60 points, 95 % interval over seeds and
test images 0.08 to 1.12).
"""

from ml_collections import ConfigDict

from lenet_jax.experiments import tuned


def get_config(arg: str | None = None) -> ConfigDict:
    """4 activations."""
    config = tuned.get_config(arg)
    config.sweep.activation = ("sigmoid", "tanh", "scaled_tanh", "relu")
    return config
