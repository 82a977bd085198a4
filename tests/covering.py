"""Fewer combinations of many, for `pytest.mark.parametrize`."""

import itertools

import pytest


def pairwise(*axes):
    """All combinations, as parameters; slow tests are those not needed to have every pair of two axes' values.

    Values that are tuples are parameters of their own.
    """
    product = list(itertools.product(*axes))
    missing = set().union(*map(pairs_of, product))
    chosen = set()
    while missing:
        best = max(product, key=lambda combination: len(pairs_of(combination) & missing))
        chosen.add(best)
        missing -= pairs_of(best)
    return [
        pytest.param(*flat(combination), marks=() if combination in chosen else pytest.mark.slow)
        for combination in product
    ]


def pairs_of(combination):
    """Each two of its values, with their indices."""
    return set(itertools.combinations(enumerate(combination), 2))


def flat(combination):
    """Its values, and those of tuples in it."""
    return [part for value in combination for part in (value if isinstance(value, tuple) else (value,))]
