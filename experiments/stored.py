"""A stored run, repeated from its folder: the same config, the same seeds, the same errors on the same machine.

Command: lenet-jax run --config=experiments/stored.py:experiments/results/quickstart --workdir=runs/again
A run with parts of its own is repeated with its experiment file instead, of which its folder has a copy.
Fields can be overridden as in any config, for example to repeat one seed: --config.first_seed=3 --config.seeds=1
"""

from ml_collections import ConfigDict

from lenet_jax.errors import InputError
from lenet_jax.experiments import base
from lenet_jax.paths import expanded
from lenet_jax.run import files, folder


def get_config(arg: str | None = None) -> ConfigDict:
    """The config of the run whose folder is `arg`. Fields added since that run have their defaults."""
    if not arg:
        raise InputError("config: 'stored.py' needs a run folder; write --config=experiments/stored.py:RUN")
    config = base.get_config()
    # Runs from before test_curve existed evaluated the test images after each epoch.
    config.update({"test_curve": True} | files.read_json(expanded(arg, "run") / folder.CONFIG))
    return config
