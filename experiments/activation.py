"""Which activation: sigmoid, tanh, the paper's 1.7159 tanh(2a/3), or ReLU?

All start from the initializer that suits them all (`glorot_centered`).

Command: lenet-jax run --config=experiments/activation.py
Cost: 6 minutes on two CPU cores that had other work as well.
Result: experiments/results/activation. tanh 3.72 % and 1998's scaled tanh 3.70 % aren't told apart; sigmoid has 8.22
%, 4.50 percentage points more than tanh (4.11 to 4.88). Of 20 ReLU networks one stays at chance; their median is 4.10
%.
"""

from ml_collections import ConfigDict

from lenet_jax.experiments import tuned


def get_config(arg: str | None = None) -> ConfigDict:
    """4 activations."""
    config = tuned.get_config(arg)
    config.sweep.activation = ("sigmoid", "tanh", "scaled_tanh", "relu")
    return config
