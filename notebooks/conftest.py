"""Notebooks train for seconds: their kernels compile as a user's do, whatever tests/conftest.py sets for fast tests."""

import os

UNOPTIMIZED = "JAX_DISABLE_MOST_OPTIMIZATIONS"


def pytest_runtest_setup(item):
    """Kernels inherit the environment."""
    item.unoptimized = os.environ.pop(UNOPTIMIZED, None)


def pytest_runtest_teardown(item):
    """As it was."""
    if item.unoptimized is not None:
        os.environ[UNOPTIMIZED] = item.unoptimized
