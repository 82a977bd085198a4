"""Experiment configs, one per file, each with `get_config()`. Installed as `lenet_jax.experiments`."""
