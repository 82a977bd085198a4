"""Holm's correction, beside which the corrections of `lenet_jax.multiplicity` are measured."""

import numpy as np


def holm(p_values: np.ndarray) -> np.ndarray:
    """p-values [tests] corrected for their number (Holm 1979).

    Examples:
      >>> holm(np.array([0.01, 0.04, 0.03])).round(3).tolist()
      [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    stepped = np.maximum.accumulate(p_values[order] * np.arange(len(order), 0, -1))
    return np.minimum(stepped[np.argsort(order)], 1.0)
