"""Which loss works best: squared error on softmax or on linear outputs, with targets 0/1 or +-1, or cross-entropy?

Textbooks and libraries mean different things by "MSE". Each variant is an arm with its own tuned learning rate.

Command: lenet-jax run --config=experiments/loss_function.py
Cost: 11 minutes on two CPU cores shared with other jobs.
Result: experiments/results/loss_function. Squared error on linear outputs with targets +-1 makes the fewest errors,
3.24 % (95 % interval over seeds and test images 2.83 to 3.71): 0.75 percentage points fewer than cross-entropy (0.45 to
1.05). Cross-entropy makes 0.25 points fewer than squared error on softmax (0.06 to 0.44).
"""

from ml_collections import ConfigDict

from lenet_jax.experiments import tuned


def get_config(arg: str | None = None) -> ConfigDict:
    """4 criteria."""
    config = tuned.get_config(arg)
    config.sweep.criterion = {
        "MSE on softmax": {"loss": "mse", "mse_point": "softmax"},
        "MSE on linear (0/1)": {"loss": "mse", "output": "linear", "mse_point": "linear"},
        "MSE on linear (+-1)": {"loss": "mse", "output": "linear", "mse_point": "linear", "target_code": "+-1"},
        "cross-entropy": {"loss": "cross_entropy"},
    }
    return config
