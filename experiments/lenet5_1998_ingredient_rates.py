"""Learning rates for the arms of `lenet5_1998_ingredients` where 1998's rate has no meaning or another scale.

Arms are judged on the last 10,000 training digits, never on the test set, after 3 epochs on the other 50,000.

Command: lenet-jax run --config=experiments/lenet5_1998_ingredient_rates.py
Cost: about 9 minutes on two CPU cores.
Result: experiments/results/lenet5_1998_ingredient_rates, and docs/reproduction.md.
"""

from ml_collections import ConfigDict

from lenet_jax.experiments import lenet5_1998


def get_config(arg: str | None = None) -> ConfigDict:
    """Four seeds per arm."""
    config = lenet5_1998.get_config(arg)
    config.store_predictions = False
    config.validation_size = 10000
    config.test_curve = False
    config.epochs = 3
    config.seeds = 4
    config.sweep.replaced = {
        "rbf_map_by_softmax_ce": {"output": "softmax", "loss": "cross_entropy"},
        "sdlm_by_sgd": {"optimizer": "sgd"},
        "sdlm_by_adam": {"optimizer": "adam"},
    }
    config.sweep.learning_rate = (3e-5, 1e-4, 3e-4, 1e-3)
    return config
