"""Experiment configs, one a file, each with `get_config()`. Installed as `lenet_jax.experiments`."""
