"""Choices that the paper leaves open, or that fail when followed to the letter: one change to `lenet5_1998` per arm.

Arms are judged on the last 10,000 training digits, never on the test set, after 8 epochs on the other 50,000.

Command: lenet-jax run --config=experiments/lenet5_1998_choices.py
Cost: about half an hour on two CPU cores.
Result: experiments/results/lenet5_1998_choices, and docs/reproduction.md.
"""

from ml_collections import ConfigDict

from lenet_jax.experiments import lenet5_1998


def get_config(arg: str | None = None) -> ConfigDict:
    """Four seeds per arm."""
    config = lenet5_1998.get_config(arg)
    config.store_predictions = False
    config.validation_size = 10000
    config.test_curve = False
    config.epochs = 8
    config.seeds = 4
    config.sweep.changed = {
        "nothing": {},
        "rate_of_the_paper": {"learning_rate": 5e-4},
        "rate_1e-4": {"learning_rate": 1e-4},
        "j_1": {"map_constant": 1.0},
        "j_60": {"map_constant": 60.0},
        "initial_range_of_the_paper": {"initializer": "lecun1998"},
        "sum": {"subsampling_window": "sum"},
        "full_curvature": {"curvature_start": "full"},
        "curvature_5_times_a_pass": {"curvature_estimates": 5},
        "running_mean_of_it": {"curvature_estimates": 5, "curvature_memory": 0.8},
        "mu_times_4": {"mu": 0.08},
        "fresh_order": {"order": "fresh"},
        "to_the_letter": {
            "learning_rate": 5e-4,
            "map_constant": 1.0,
            "initializer": "lecun1998",
            "subsampling_window": "sum",
        },
    }
    return config
