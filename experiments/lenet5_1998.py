"""LeNet-5 as in 1998: RBF outputs, the MAP criterion, stochastic diagonal Levenberg-Marquardt, 20 passes, online.

It departs from the paper in three places: initial weights in +-2.4/sqrt(F) instead of +-2.4/F, with which it hardly
trains; the mean instead of the sum in subsampling, and half the learning rate, which did a little better. The paper
leaves open j of the criterion, where the curvature starts, and how strong distortions are. All of these were chosen
on a validation split (`lenet5_1998_choices`).

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
