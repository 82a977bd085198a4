"""Mean squared error or cross-entropy, sigmoid or tanh: LeNet-5 on MNIST, with a tuned learning rate for each arm.

Each arm tries six learning rates on a validation split of 10,000 digits. New networks then train at the best rate on
all 60,000 digits.

Command: lenet-jax run --config=experiments/ablation.py
         (without internet access, from a folder with MNIST's four files: --config.dataset=idx:FOLDER)
Cost: 60 million samples, 40 minutes on two CPU cores shared with other jobs.
Result: experiments/results/ablation. With sigmoid, cross-entropy makes fewer errors than squared error (0.87 percentage
points, 95 % interval over seeds and test images 0.69 to 1.05). With tanh, the difference is not significant (0.08,
-0.01 to 0.16).
"""

from ml_collections import ConfigDict

from lenet_jax.experiments import base


def get_config(arg: str | None = None) -> ConfigDict:
    """2 losses x 2 activations on MNIST."""
    config = base.get_config(arg)
    config.dataset = "mnist"
    config.seeds = 10
    config.sweep.loss = ("mse", "cross_entropy")
    config.sweep.activation = ("sigmoid", "tanh")
    config.validation_size = 10_000
    config.tune.learning_rate = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    config.tune_seeds = 3
    config.tune_widenings = 2
    config.refit = True
    return config
