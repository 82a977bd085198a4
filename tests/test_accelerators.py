"""The code path of accelerators, without one: programs are lowered for them, and members trained side by side."""

import re

import jax
import numpy as np
import pytest

from lenet_jax import population, programs
from lenet_jax.evaluate import METRICS
from lenet_jax.experiments import base
from lenet_jax.optim import HYPERPARAMETERS
from lenet_jax.run import plan
from lenet_jax.run.arms import expand

pytestmark = pytest.mark.usefixtures("quick_compilation")

MEMBERS, IMAGES = 4, 10_000


@pytest.fixture
def side_by_side(monkeypatch):
    """CPU devices train the same number of members side by side as accelerators."""
    monkeypatch.setattr(population, "SIDE_BY_SIDE", {})


def arm_of(**fields):
    config = base.get_config()
    config.update({"train_size": 320, "epochs": 2, "seeds": MEMBERS, "activation": "tanh"} | fields)
    return expand(config)[0]


FIELDS = {
    "the defaults": {},
    "1998": {
        "output": "rbf",
        "loss": "map",
        "optimizer": "sdlm",
        "activation": "scaled_tanh",
        "batch_size": 1,
        "learning_rate": 2.5e-4,
        "curvature_patterns": 100,
    },
    "today": {
        "loss": "cross_entropy",
        "activation": "relu",
        "subsampling": "max",
        "connectivity": "full",
        "optimizer": "adam",
        "augmentation": "elastic",
        "batch_size": 128,
        "train_size": 1280,
    },
}


SLOW = {name: pytest.param(name, marks=pytest.mark.slow) for name in FIELDS}


@pytest.mark.parametrize("name", [SLOW["the defaults"], "1998", "today"])
def test_programs_are_lowered_for_accelerators(side_by_side, name, monkeypatch):
    """All programs of a run; lowering fails for operations that a platform lacks."""
    monkeypatch.setitem(METRICS, "step", lambda state, images, recipe: state.step)
    arm = arm_of(**FIELDS[name], metrics=("step",))
    recipe = plan.make([arm]).arms[0].test.recipe
    mesh = programs.mesh_of(jax.devices()[:1])
    for program, lowerable in programs.lowerables(recipe, MEMBERS, IMAGES, mesh).items():
        exported = jax.export.export(lowerable.function, platforms=["cuda", "tpu"])(*lowerable.arguments)
        assert exported.platforms == ("cuda", "tpu")
        products = re.findall(r"stablehlo\.(?:dot_general|convolution).*", exported.mlir_module())
        assert products or program in ("init", "measure_own")
        assert all("precision = [HIGHEST, HIGHEST]" in line for line in products), "TF32 on GPUs, bfloat16 on TPUs"


@pytest.mark.parametrize("name", ["the defaults", SLOW["1998"]])
def test_members_side_by_side_are_those_trained_one_at_a_time(monkeypatch, assert_close, name):
    """With the width of accelerators, the CPU trains the same networks, up to rounding."""
    arm = arm_of(**FIELDS[name] | {"train_size": 64, "batch_size": 8, "curvature_patterns": 50})
    phase = plan.make([arm]).arms[0].test
    recipe, images = phase.recipe, plan.images_of(phase.dataset, phase.images)
    seeds = range(MEMBERS)
    hyper = {name: [arm.settings[name]] * MEMBERS for name in HYPERPARAMETERS}
    hyper["learning_rate"] = [arm.settings["learning_rate"] * factor for factor in (1, 0.5, 0.25, 0.125)]

    def trained(devices):
        programs.compile_program.cache_clear()
        members = population.create(seeds, hyper, images, recipe, devices)
        for _ in range(recipe.epochs):
            metrics = population.train_segment(members)
        split = range(5000, 5200)
        found = population.evaluate(members, split), population.predict(members, split)
        return population.snapshot(members), metrics, *found

    alone, *measured = trained(jax.devices()[:1])
    monkeypatch.setattr(population, "SIDE_BY_SIDE", {})
    together, *measured_together = trained(jax.devices()[:1])
    programs.compile_program.cache_clear()
    assert not np.array_equal(alone["params/c1/kernel"][0], alone["params/c1/kernel"][1])
    floats = {name for name, array in alone.items() if array.dtype == np.float32}
    for path in alone.keys() - floats:
        np.testing.assert_array_equal(together[path], alone[path], path)
    assert_close({path: together[path] for path in floats}, {path: alone[path] for path in floats}, 1e-4)
    for found, expected in zip(measured_together[:2], measured[:2], strict=True):
        assert_close(found, expected, 1e-3)
    assert (measured_together[2].predicted == measured[2].predicted).mean() > 0.99
