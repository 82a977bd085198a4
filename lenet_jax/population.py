"""Populations: many networks, the members, trained in turns and sharded over devices.

Each worker process of `run.workers` has a population of its own; `programs` vmaps over members and shards them.
Members train in turns, whose programs don't depend on the number of turns. A CPU device trains one member in each, so
that a step uses the arrays of a single member; an accelerator trains its members side by side.
"""

import contextlib
import dataclasses
import functools
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from lenet_jax import distributed, executables, jax_settings, library, model
from lenet_jax import evaluate as evaluation
from lenet_jax.errors import InputError
from lenet_jax.evaluate import Evaluation, Predictions
from lenet_jax.model import Params
from lenet_jax.optim import Hyperparameters
from lenet_jax.paths import cache_folder
from lenet_jax.programs import PREDICTED_TOGETHER, Programs, compile_programs, mesh_of, shardings
from lenet_jax.train import Images, Metrics, Recipe, TrainState

Snapshot = dict[str, Any]
"""Path of an array in `TrainState`, with slashes -> its NumPy array [members, ...]."""

SIDE_BY_SIDE = {"cpu": 1}
"""The number of members that a device trains side by side, by platform; `ACCELERATOR_SIDE_BY_SIDE` on all others."""

ACCELERATOR_SIDE_BY_SIDE = 256
"""Members that an accelerator trains side by side; if it has more, in turns.

On an H100, 4,096 members train 20 % slower with 64, and 4 % faster with 1,024 in 1.8 times the memory
(experiments/results/accelerator).
"""


def configure(devices: int | None = None) -> None:
    """Sets the number of CPU devices (default: all cores), and caches compiled programs in the user's cache folder.

    Call it before JAX is used, which fixes the devices. Raises InputError if there are none.
    """
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", devices or library.cores())
    with contextlib.suppress(InputError):  # a user without a home folder has no cache
        jax.config.update("jax_compilation_cache_dir", str(cache_folder("xla")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", executables.KEPT_FROM)
    jax_settings.check_platform()


@dataclasses.dataclass
class Population:
    """Members in training.

    Attributes:
      states, hypers: the members' arrays, for each turn, sharded over the devices. The last members may be padding.
      images: all images, on every device.
      size: the number of members.
      programs: the programs compiled for them.
      memory: the peak memory of training in bytes, as predicted by the compiler: images, members and temporaries; with
        the members that wait for their turn.
    """

    states: list[TrainState]
    hypers: list[Hyperparameters]
    images: Images
    size: int
    programs: Programs
    memory: int


def turns_of(members: int, mesh: Mesh) -> tuple[int, int]:
    """The number of turns, and of members in each, which the devices share equally. The last turn may need padding."""
    width = SIDE_BY_SIDE.get(mesh.devices.flat[0].platform, ACCELERATOR_SIDE_BY_SIDE)
    turns = -(-members // (width * mesh.size))
    return turns, -(-members // (turns * mesh.size)) * mesh.size


@jax_settings.fixed()
def create(
    seeds: Sequence[int],
    hyper: Mapping[str, Sequence[float]],
    images: Images,
    recipe: Recipe,
    devices: Sequence[jax.Device] | None = None,
) -> Population:
    """A new population: compiles its programs, copies the images to the devices and initializes the members.

    `hyper` maps each field of `Hyperparameters` to the value of each member. All devices are used by default; in a run
    of one process, at most as many as members.
    """
    devices = list(devices or jax.devices())
    if jax.process_count() == 1:  # with several processes, each must take part in collective operations
        devices = devices[: len(seeds)]
    mesh = mesh_of(devices)
    turns, together = turns_of(len(seeds), mesh)
    shared, sharded = shardings(mesh)

    def by_turn(values: Sequence[float], dtype: Any) -> list[Array]:
        padded = np.array([*values, *[values[-1]] * (turns * together - len(seeds))], dtype)
        return [distributed.put(part, sharded) for part in np.split(padded, turns)]

    programs = compile_programs(recipe, together, len(images.labels), mesh)
    number = recipe.losses.index(recipe.loss) if recipe.losses else 0
    parts = {name: by_turn(values, np.float32) for name, values in hyper.items()}
    parts["loss_number"] = by_turn([number] * len(seeds), np.int32)
    hypers = [Hyperparameters(**dict(zip(parts, each, strict=True))) for each in zip(*parts.values(), strict=True)]
    on_all = functools.partial(jax.tree.map, lambda array: distributed.put(np.asarray(array), shared))
    starts = on_all(model.starts_of(recipe.architecture))
    states = [programs.init(*each, starts) for each in zip(by_turn(seeds, np.uint32), hypers, strict=True)]
    waiting = (turns - 1) * sum(leaf.nbytes for leaf in jax.tree.leaves(states[0]))
    return Population(
        states=states,
        hypers=hypers,
        images=on_all(images),
        size=len(seeds),
        programs=programs,
        memory=mesh.size * executables.memory_of(programs.train_segment) + waiting,
    )


@jax_settings.fixed()
def train_segment(population: Population) -> Metrics:
    """Trains every member for a segment (`train.train_segment`), updating the population; returns NumPy [members]."""
    measured = []
    for turn, hyper in enumerate(population.hypers):
        arguments = population.states[turn], hyper, population.images
        population.states[turn], metrics = population.programs.train_segment(*arguments)
        measured.append(metrics)
    return to_host(measured, population.size)


@jax_settings.fixed()
def measure_own(population: Population) -> dict[str, np.ndarray]:
    """The user's metrics of every member, name -> NumPy array [members]."""
    measured = [population.programs.measure_own(state, population.images) for state in population.states]
    return to_host(measured, population.size)


def evaluate(population: Population, split: range) -> Evaluation:
    """Evaluates every member on a range of the images; returns NumPy arrays [members]."""
    labels = jax.device_get(population.images.labels)[split.start : split.stop]
    cuts = range(PREDICTED_TOGETHER, len(split), PREDICTED_TOGETHER)
    return evaluation.evaluate(zip(predicted_parts(population, split), np.split(labels, cuts), strict=True))


def predict(population: Population, split: range) -> Predictions:
    """Classifies a range of the images by every member; returns NumPy arrays [members, images]."""
    found = list(predicted_parts(population, split))
    whole: Predictions = jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1), *found)
    return whole


def predicted_parts(population: Population, split: range) -> Iterator[Predictions]:
    """`predict` for `PREDICTED_TOGETHER` images at a time.

    In a run of one process, devices compute the next part while the host processes one; they hold two parts.
    """
    parts = [split[start : start + PREDICTED_TOGETHER] for start in range(0, len(split), PREDICTED_TOGETHER)]
    ahead = launch_predict(population, parts[0])
    for number, part in enumerate(parts, 1):
        answers = ahead
        if number < len(parts):
            ahead = launch_predict(population, parts[number])
        found = to_host(answers, population.size)
        del answers  # before the next part but one is computed
        yield jax.tree.map(operator.itemgetter((slice(None), slice(len(part)))), found)


@jax_settings.fixed()
def launch_predict(population: Population, part: range) -> list[Predictions]:
    """Starts `Programs.predict` for all turns; the last image of a part is repeated."""
    indices = np.minimum(np.arange(PREDICTED_TOGETHER, dtype=np.int32) + part.start, part[-1])
    placed = distributed.put(indices, population.images.scale.sharding)
    members = zip(population.states, population.hypers, strict=True)
    predict = population.programs.predict
    return [predict(state.params, hyper.loss_number, population.images, placed) for state, hyper in members]


Measured = TypeVar("Measured", Metrics, Params, Predictions, Snapshot)


def to_host(measured: Sequence[Measured], size: int) -> Measured:
    """The members' arrays of all turns as NumPy arrays, without the padding."""
    stacked = distributed.gather(measured)
    copied: Measured = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:size], stacked)
    return copied


def params(population: Population) -> Params:
    """The parameters of every member, NumPy arrays [members, ...]."""
    return to_host([state.params for state in population.states], population.size)


def snapshot(population: Population) -> Snapshot:
    """The state of every member, for `restore`."""
    return to_host([dict(leaves_of(state)) for state in population.states], population.size)


def restore(population: Population, saved: Snapshot) -> None:
    """Sets the state of every member to that of a `snapshot`.

    Raises:
      ValueError: the snapshot belongs to another recipe, or to another number of members.
    """
    if {len(array) for array in saved.values()} != {population.size}:
        raise ValueError(f"the arrays are not those of {population.size} members")
    expected = {name: (array.shape[1:], array.dtype) for name, array in leaves_of(population.states[0])}
    if {name: (array.shape[1:], array.dtype) for name, array in saved.items()} != expected:
        raise ValueError("the arrays are not those of this network and optimizer")
    keyed = functools.partial(jax.random.wrap_key_data, impl=jax_settings.PRNG)
    leaves, structure = jax.tree.flatten(population.states[0])
    mu = population.hypers[0].mu
    for turn in range(len(population.states)):
        rows = np.minimum(np.arange(len(mu)) + turn * len(mu), population.size - 1)  # padding repeats the last member
        arrays = [distributed.put(saved[name][rows], mu.sharding) for name in expected]
        pairs = zip(leaves, arrays, strict=True)
        restored = [array if leaf.dtype == array.dtype else keyed(array) for leaf, array in pairs]
        population.states[turn] = jax.tree.unflatten(structure, restored)


def leaves_of(tree: Any) -> list[tuple[str, Any]]:
    """The arrays of a tree with their paths, such as ``params/c1/kernel``; random keys as their data, uint32."""

    def data_of(leaf: Any) -> Any:
        return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf

    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), data_of(leaf)) for path, leaf in leaves]
