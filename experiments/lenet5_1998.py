"""LeNet-5 as in 1998: RBF outputs, the MAP criterion, stochastic diagonal Levenberg-Marquardt, 20 epochs, online.

It departs from the paper in three ways. The initial weights lie in +-2.4/sqrt(F) instead of +-2.4/F, with which the
network hardly trains. Subsampling takes the mean instead of the sum, and the learning rate is half the paper's; both
have a slightly lower error. The paper does not specify j of the criterion, where the curvature starts, or the strength
of the distortions. All of these were chosen on a validation split (`lenet5_1998_choices`, `lenet5_1998_magnitudes`).

Command: lenet-jax run --config=experiments/lenet5_1998.py
Cost: about 11 minutes on two CPU cores.
Result: experiments/results/lenet5_1998, and docs/reproduction.md.
"""

from ml_collections import ConfigDict

from lenet_jax.experiments import base


def get_config(arg: str | None = None) -> ConfigDict:
    """Ten seeds on all of MNIST."""
    config = base.get_config(arg)
    config.dataset = "mnist"
    config.normalization = "lecun1998"
    config.activation = "scaled_tanh"
    config.output = "rbf"
    config.initializer = "lecun1998_sqrt"
    config.loss = "map"
    config.map_constant = 20.0
    config.optimizer = "sdlm"
    config.learning_rate = 2.5e-4
    config.mu = 0.02
    config.schedule = "lecun1998"
    config.order = "constant"
    config.batch_size = 1
    config.epochs = 20
    config.seeds = 10
    config.store_predictions = True
    config.test_curve = True  # figure 5 of the paper
    return config
