"""Which activation: sigmoid, tanh, the paper's 1.7159 tanh(2a/3), or ReLU?

All start from the initializer that suits them all (`glorot_centered`).

Command: lenet-jax run --config=experiments/activation.py
Cost: 6 minutes on two CPU cores that had other work as well.
Result: experiments/results/activation. tanh 3.99 % and 1998's scaled tanh 3.88 % are not told apart. Sigmoid has
10.34 %, with a median of 7.89 %: one of its 20 networks hardly learns. ReLU's 4.48 % is not told apart from tanh, but
is more than scaled tanh (0.60 points, 95 % interval over seeds 0.10 to 1.10).
"""

from ml_collections import ConfigDict

from lenet_jax.experiments import tuned


def get_config(arg: str | None = None) -> ConfigDict:
    """4 activations."""
    config = tuned.get_config(arg)
    config.sweep.activation = ("sigmoid", "tanh", "scaled_tanh", "relu")
    return config
