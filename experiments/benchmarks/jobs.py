"""The experiments that `time_to_result.py` times, and their export for `job_torch.py`."""

import importlib
import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import ours
from workers import SPAWN

from lenet_jax import model, optim, train
from lenet_jax.experiments import base
from lenet_jax.run import arms, plan


class Job(NamedTuple):
    """An experiment: a file of `experiments/`, and the fields that are set on the command line."""

    experiment: str
    fields: dict[str, Any]


JOBS = {
    "quickstart": Job("quickstart", {}),
    "tuned": Job("ablation", {"dataset": "mnist10k", "validation_size": 1000, "epochs": 12, "tune_widenings": 0}),
    "one": Job("base", {"validation_size": 1000, "loss": "cross_entropy", "activation": "tanh", "seeds": 1}),
}

PORTED = {"dataset", "validation_size", "train_size", "activation", "loss", "learning_rate", "momentum", "batch_size"}
PORTED |= {"epochs", "seeds", "first_seed", "tune_seeds", "tune_first_seed", "refit"}
"""Config fields that `job_torch.py` follows; the others must have their defaults."""


class RefusalError(Exception):
    """An error the user can fix, or a failed check, reported in one line."""


def export(job: Job, folder: Path, given: bool) -> None:
    """Writes what `job_torch.py` reads: job.json and images.npz.

    With `given`, also the initial weights of the first network of each arm, and its order of the images in each epoch.

    Raises:
      RefusalError: the PyTorch job doesn't know a field.
    """
    config = importlib.import_module(f"lenet_jax.experiments.{job.experiment}").get_config()
    config.update(job.fields)
    planned = plan.make(arms.expand(config))
    defaults = dict(arms.expand(base.get_config())[0].settings)
    folder.mkdir(parents=True)
    rows = []
    for index, arm in enumerate(planned.arms):
        settings = arm.test.settings
        if differing := {name for name, value in settings.items() if value != defaults[name]} - PORTED:
            raise RefusalError(f"job_torch.py knows no other {', '.join(sorted(differing))} than the default")
        names = {"name": arm.arm.name, "loss": settings["loss"], "activation": settings["activation"]}
        phases = {"tuning": phase_row(arm.tuning) if arm.tuning else None, "test": phase_row(arm.test)}
        if given:
            phases["test"]["given"] = f"start-{index}.npz"
            np.savez(folder / f"start-{index}.npz", **beginning(arm.test))
        rows.append(names | phases)
    images = plan.images_of(planned.arms[0].test.dataset, planned.arms[0].test.images)
    np.savez(folder / "images.npz", pixels=images.pixels, labels=images.labels)
    table = [[source in sources for source in range(6)] for sources in model.C3_TABLE]
    (folder / "job.json").write_text(json.dumps({"images": "images.npz", "table": table, "arms": rows}))


def phase_row(phase: Any) -> dict[str, Any]:
    """A phase of a plan, for the PyTorch job."""
    images = plan.images_of(phase.dataset, phase.images)
    settings = phase.settings
    return {
        "seeds": list(phase.seeds),
        "rates": [candidate.get("learning_rate", settings["learning_rate"]) for candidate in phase.candidates],
        "momentum": settings["momentum"],
        "batch_size": settings["batch_size"],
        "epochs": settings["epochs"],
        "splits": {name: (split.start, split.stop) for name, split in phase.splits.items()},
        "evaluated": list(phase.evaluated),
        "scale": float(images.scale),
        "shift": float(images.shift),
        "samples": phase.samples,
    }


def beginning(phase: Any) -> dict[str, np.ndarray]:
    """Initial weights of a phase's first network, and ``orders``: indices of its images [epochs, images]."""
    hyper = optim.Hyperparameters(*[jnp.float32(phase.settings[name]) for name in optim.HYPERPARAMETERS])
    state = train.init(jnp.uint32(phase.seeds[0]), hyper, phase.recipe)

    def order(step: jax.Array) -> jax.Array:
        indices, _ = train.batch_indices(state.replace(step=step), phase.recipe)
        return indices.ravel()

    steps = jnp.arange(phase.recipe.epochs) * phase.recipe.epoch_steps
    return {**ours.flatten(state.params), "orders": np.asarray(jax.lax.map(order, steps))}


def exported(job: Job, folder: Path, given: bool = False) -> Path:
    """Calls `export` in a fresh process; returns the path of job.json."""
    with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
        pool.submit(export, job, folder, given).result()
    return folder / "job.json"
