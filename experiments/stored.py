"""A stored run, repeated from its folder: the same config, the same seeds, the same errors on the same machine.

Command: lenet-jax run --config=experiments/stored.py:experiments/results/quickstart --workdir=runs/again
A run with parts of its own is repeated with its experiment file instead, of which its folder has a copy.
The folder of data sets (data_dir) is not taken from there, since TFDS may execute what it holds: --config.data_dir=DIR.
Fields can be overridden as in any config, for example to repeat one seed: --config.first_seed=3 --config.seeds=1
"""

import contextlib
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from lenet_jax.errors import InputError
from lenet_jax.experiments import base
from lenet_jax.paths import expanded
from lenet_jax.run import files, folder, plan, schema
from lenet_jax.run.progress import say


def get_config(arg: str | None = None) -> ConfigDict:
    """The config of the run whose folder is `arg`. Fields added since that run have their defaults."""
    if not arg:
        raise InputError("config: 'stored.py' needs a run folder; write --config=experiments/stored.py:RUN")
    config = base.get_config()
    # Runs from before test_curve existed evaluated the test images after each epoch.
    run = expanded(arg, "run")
    stored = {"test_curve": True} | files.read_json(run / folder.CONFIG) | {"data_dir": ""}
    if "data_dir" in fields_of(stored.get("sweep")):
        raise InputError(
            f"config: {arg!r} sweeps data_dir, which a run folder must not choose; use its experiment file"
        )
    schema.check_fields(stored, schema.config_kinds(), f"config: {str(run / folder.CONFIG)!r}")
    config.update(stored)
    with contextlib.suppress(InputError):  # the data may be elsewhere now, and named by --config.dataset
        note_other_data(run, config.dataset)
    return config


def fields_of(sweep: Any) -> set[str]:
    """The names of all fields that a sweep sets."""
    if not isinstance(sweep, dict):
        return set()
    return {name for axis in sweep for name in axis.split(",")}.union(*map(fields_of, sweep.values()))


def note_other_data(run: Path, dataset: str) -> None:
    """Says so if a folder of IDX files is not any more what a run was trained on; others are not opened for that."""
    trained_on = files.read_json(run / folder.PROVENANCE).get("fingerprints", {}).get(dataset)
    if trained_on and dataset.startswith("idx:") and plan.load(dataset, "").fingerprint != trained_on:
        say(f"dataset: {dataset!r} no longer holds the images or labels that {str(run)!r} was trained on")
