"""The authors' later demonstration of LeNet-5, in their language Lush: squashed outputs with targets +-1 and MSE.

It simplifies the 1998 network: ten squashed outputs replace the RBF units, and pixels range from 0 to 2.55. It trains
for 3 x 10 epochs at rates of 1e-4, 1e-5 and 1e-6, with the digits in the order of the data set. Everything else is as
in `lenet5_1998`. The QMNIST page reports 0.82 % (+-0.2) for the demonstration.

Command: lenet-jax run --config=experiments/lush_demo.py
Cost: about a quarter of an hour on two CPU cores.
Result: experiments/results/lush_demo, and docs/reproduction.md.
"""

from ml_collections import ConfigDict

from lenet_jax.experiments import lenet5_1998


def get_config(arg: str | None = None) -> ConfigDict:
    """Ten seeds on all of MNIST."""
    config = lenet5_1998.get_config(arg)
    config.normalization = "hundredth"
    config.output = "squashed"
    config.loss = "mse"
    config.mse_point = "linear"
    config.target_code = "+-1"
    config.mse_factor = 0.5
    config.schedule = "thirds"
    config.learning_rate = 1e-4
    config.order = "stored"
    config.epochs = 30
    config.store_predictions = False
    return config
