"""What a worker process does on request. It imports JAX, which `processes` leaves to the worker itself."""

from typing import Any

import jax

from lenet_jax import population, programs
from lenet_jax.errors import RunError
from lenet_jax.run import parts


def execute(held: dict[str, Any], name: str, arguments: tuple[Any, ...]) -> Any:
    """Executes a request in a worker, which holds images and a population from one request to the next."""
    if name == "configure":
        settings, experiment, arithmetic = arguments
        population.configure(devices=1)
        for setting, value in settings.items():
            jax.config.update(setting, value)
        if experiment:
            parts.define(*experiment)
        if (own := programs.arithmetic()) != arithmetic:  # it could not compile or load the convolutions
            raise RunError(f"a worker process computes as {own!r} and the run as {arithmetic!r}")
    elif name == "load":
        (held["images"],) = arguments
    elif name == "compile_program":  # onto the disk, for all workers
        mesh = programs.mesh_of(jax.devices()[:1])
        programs.compile_program(*arguments, population.turns_of(1, mesh)[1], mesh)
    elif name == "create":
        seeds, hyper, recipe = arguments
        held["members"] = population.create(seeds, hyper, held["images"], recipe)
        return held["members"].memory
    else:
        return getattr(population, name)(held["members"], *arguments)
    return None
