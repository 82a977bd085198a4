"""The arms of `ablation.py` at the learning rates that were chosen there: networks to test on distorted digits.

`lenet-jax evaluate` tests them on MNIST's test digits, translated, rotated, scaled, squeezed, thickened or with noise,
at rising severity: the stored `robustness.md` has its command.

Command: lenet-jax run --config=experiments/robustness.py
Cost: 24 million samples to train.
Result: experiments/results/robustness. Over seeds and test images, with squared error, tanh makes significantly fewer
errors than sigmoid at all 24 severities without noise; with cross-entropy, at 14 of them.
"""

from ml_collections import ConfigDict

from lenet_jax.experiments import base


def get_config(arg: str | None = None) -> ConfigDict:
    """4 arms on all of MNIST's training digits, without tuning."""
    config = base.get_config(arg)
    config.dataset = "mnist"
    config.seeds = 10
    config.sweep["loss,activation,learning_rate"] = (
        ("mse", "sigmoid", 0.03),
        ("mse", "tanh", 0.03),
        ("cross_entropy", "sigmoid", 0.1),
        ("cross_entropy", "tanh", 0.03),
    )
    return config
