"""How strong the distortions should be, which the paper does not specify.

Arms are judged on the last 10,000 training digits, never on the test set, after 13 epochs on the other 50,000.

Command: lenet-jax run --config=experiments/lenet5_1998_magnitudes.py
Cost: about 11 minutes on two CPU cores.
Result: experiments/results/lenet5_1998_magnitudes, and docs/reproduction.md.
"""

from ml_collections import ConfigDict

from lenet_jax.experiments import lenet5_1998_distorted


def get_config(arg: str | None = None) -> ConfigDict:
    """Four seeds per arm."""
    config = lenet5_1998_distorted.get_config(arg)
    config.store_predictions = False
    config.validation_size = 10000
    config.test_curve = False
    config.epochs = 13
    config.seeds = 4
    config.sweep.distortions = {
        "half": {"max_translation": 1.0, "max_scaling": 0.05, "max_squeezing": 0.05, "max_shear": 0.1},
        "default": {"max_translation": 2.0, "max_scaling": 0.1, "max_squeezing": 0.1, "max_shear": 0.2},
        "one_and_a_half": {"max_translation": 3.0, "max_scaling": 0.15, "max_squeezing": 0.15, "max_shear": 0.3},
    }
    return config
