"""The effect of each 1998 ingredient: LeNet-5 as in 1998, with one ingredient replaced by its modern counterpart.

Arms train for eight epochs, as in `lenet5_1998_choices`; with more epochs, all errors would decrease slightly.

Command: lenet-jax run --config=experiments/lenet5_1998_ingredients.py
Cost: about half an hour on two CPU cores.
Result: experiments/results/lenet5_1998_ingredients, and docs/reproduction.md, which also describes how the learning
rates were chosen.
"""

from ml_collections import ConfigDict

from lenet_jax.experiments import lenet5_1998


def get_config(arg: str | None = None) -> ConfigDict:
    """Five seeds per arm on all of MNIST; one arm per ingredient."""
    config = lenet5_1998.get_config(arg)
    config.store_predictions = False
    config.epochs = 8
    config.seeds = 5
    config.sweep.replaced = {
        "nothing": {},
        "rbf_map_by_softmax_ce": {"output": "softmax", "loss": "cross_entropy", "learning_rate": 3e-4},
        "sdlm_by_sgd": {"optimizer": "sgd", "learning_rate": 1e-3},
        "sdlm_by_adam": {"optimizer": "adam", "learning_rate": 1e-3},
        "scaled_tanh_by_tanh": {"activation": "tanh"},
        "scaled_tanh_by_relu": {"activation": "relu"},
        "subsampling_by_average": {"subsampling": "average"},
        "subsampling_by_max": {"subsampling": "max"},
        "table_by_full": {"connectivity": "full"},
        "initializer_by_glorot": {"initializer": "glorot"},
    }
    return config
