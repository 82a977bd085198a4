"""Populations: many networks, the members, trained in turns and sharded over devices.

The only module that vmaps over members and shards them over devices; `run.workers` distributes them over processes.
Members train in turns, whose programs don't depend on the number of turns. A CPU device trains one member in each, so
that a step uses the arrays of a single member; an accelerator trains its members side by side.
"""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from lenet_jax import distributed, executables, jax_settings, native, train
from lenet_jax import evaluate as evaluation
from lenet_jax.errors import InputError
from lenet_jax.evaluate import Evaluation, Predictions
from lenet_jax.model import IMAGE_SIZE, Architecture, Params
from lenet_jax.optim import HYPERPARAMETERS, Hyperparameters
from lenet_jax.paths import cache_folder
from lenet_jax.registry import CACHES
from lenet_jax.train import Images, Metrics, Recipe, TrainState

Snapshot = dict[str, Any]
"""Path of an array in `TrainState`, with slashes -> its NumPy array [members, ...]."""

MEMBER_AXIS = "members"
"""Name of the mesh axis that members are sharded over."""

SIDE_BY_SIDE = {"cpu": 1}
"""The number of members that a device trains side by side, by platform; `ACCELERATOR_SIDE_BY_SIDE` on all others."""

ACCELERATOR_SIDE_BY_SIDE = 256
"""Members that an accelerator trains side by side; if it has more, in turns.

On an H100, 4,096 members train 19 % slower with 64, and 4 % faster with 1,024 in 1.8 times the memory
(experiments/results/accelerator).
"""

PREDICTED_TOGETHER = 256
"""Images that a call of `Programs.predict` answers: one program serves splits of all sizes."""

CPU_OPTIONS: dict[str, Any] = {"xla_cpu_copy_insertion_use_region_analysis": True, "xla_backend_optimization_level": 1}
"""Compiler options on CPUs: fewer copies of parameters, which speeds up training with a batch size of 1; and less
optimization, which compiles sooner and gives faster programs with a sigmoid."""

READ_BY = {"init": ("optimizer",), "predict": ("loss", "losses")}
"""The fields of a recipe that a program reads beside the architecture (see `program_key`); others read all."""


def cores() -> int:
    """The number of processor cores that this process may use."""
    has_affinity = hasattr(os, "sched_getaffinity")  # macOS has none
    return len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1


def configure(devices: int | None = None) -> None:
    """Sets the number of CPU devices (default: all cores), and caches compiled programs in the user's cache folder.

    Call it before JAX is used, which fixes the devices. Raises InputError if there are none.
    """
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", devices or cores())
    with contextlib.suppress(InputError):  # a user without a home folder has no cache
        jax.config.update("jax_compilation_cache_dir", str(cache_folder("xla")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", executables.KEPT_FROM)
    jax_settings.check_platform()


ARITHMETIC = 3
"""Number of changes of the programs that changed rounding.

2: native convolutions, means of evaluations in float64; 3: less optimization, members in turns.
"""

AT_FIRST_USE = ("measure_own",)
"""Programs that are compiled when they are first used, as metrics are optional."""


def arithmetic() -> str:
    """What rounding depends on, beside the config and the processor; a run doesn't mix results of several."""
    return f"{ARITHMETIC}, {'native' if jax.default_backend() == 'cpu' and native.available() else 'blocked'}"


class Programs(NamedTuple):
    """The programs of a population, functions of the arrays of a turn; `train_segment` donates its state's memory.

    `predict` takes the members' numbers of losses, too, and indices of `PREDICTED_TOGETHER` images.
    """

    init: Callable[[Array, Hyperparameters], TrainState]
    train_segment: Callable[[TrainState, Hyperparameters, Images], tuple[TrainState, Metrics]]
    measure_own: Callable[[TrainState, Images], dict[str, Array]]
    predict: Callable[[Params, Array | int, Images, Array], Predictions]


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


def over_members(function: Callable[..., Any], mesh: Mesh, count: int) -> Callable[..., Any]:
    """Lifts a function of one member, whose first `count` arguments are the member's own, to the members of a turn.

    Within a turn, each device works on its part of the members without waiting for the others.
    """

    def on_device(*arguments: Any) -> Any:
        members, shared = arguments[:count], arguments[count:]
        if jax.tree.leaves(members)[0].shape[0] > 1:
            return jax.vmap(lambda *member: function(*member, *shared))(*members)
        alone = jax.tree.map(lambda leaf: leaf[0], members)  # vmap of a single member is slower
        return jax.tree.map(lambda leaf: leaf[None], function(*alone, *shared))

    def on_all_devices(*arguments: Any) -> Any:
        split = PartitionSpec(MEMBER_AXIS)
        specs = tuple(split if index < count else PartitionSpec() for index in range(len(arguments)))
        return jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=split, check_vma=False)(*arguments)

    return on_all_devices


class Lowerable(NamedTuple):
    """A jitted function and the shapes, types and shardings of its arguments, ready to be compiled."""

    function: Any
    arguments: tuple[Any, ...]


def lowerables(recipe: Recipe, members: int, image_count: int, mesh: Mesh) -> dict[str, Lowerable]:
    """The functions of a turn's members, by their names in `Programs`. Arguments: see `compile_programs`."""
    shared, sharded = shardings(mesh)

    def lifted(function: Callable[..., Any], count: int = 1) -> Callable[..., Any]:
        return over_members(functools.partial(function, recipe=recipe), mesh, count)

    of_members: Callable[..., Any] = functools.partial(jax.ShapeDtypeStruct, (members,), sharding=sharded)
    of_all: Callable[..., Any] = functools.partial(jax.ShapeDtypeStruct, sharding=shared)
    seeds, numbers = of_members(jnp.uint32), of_members(jnp.int32)
    hyper = Hyperparameters(**dict.fromkeys(HYPERPARAMETERS, of_members(jnp.float32)), loss_number=numbers)
    state = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((members, *leaf.shape), leaf.dtype, sharding=sharded), train.shapes(recipe)
    )
    pixels, labels = of_all((image_count, IMAGE_SIZE, IMAGE_SIZE), jnp.uint8), of_all((image_count,), jnp.int32)
    images = Images(pixels, labels, scale=of_all((), jnp.float32), shift=of_all((), jnp.float32))
    indices = of_all((PREDICTED_TOGETHER,), jnp.int32)

    def predict(params: Params, number: Array, images: Images, indices: Array) -> Predictions:
        return evaluation.predict(params, images, indices, recipe, number)

    return {
        "init": Lowerable(jax.jit(lifted(train.init, 2)), (seeds, hyper)),
        "train_segment": Lowerable(jax.jit(lifted(train.train_segment, 2), donate_argnums=0), (state, hyper, images)),
        "measure_own": Lowerable(jax.jit(lifted(evaluation.measure_own)), (state, images)),
        "predict": Lowerable(jax.jit(over_members(predict, mesh, 2)), (state.params, numbers, images, indices)),
    }


def compile_programs(recipe: Recipe, members: int, image_count: int, mesh: Mesh) -> Programs:
    """Compiles a population's programs, once for all arms that share them.

    `members`: of a turn, see `turns_of`. `image_count` counts the images of all splits.
    """
    keys = (program_key(name, recipe, image_count) for name in Programs._fields)
    return Programs(*(compile_program(*key, members, mesh) for key in keys))


class ProgramKey(NamedTuple):
    """What one of `Programs` depends on, beside the members of a turn and the mesh: arms with equal keys share it."""

    name: str
    recipe: Recipe
    image_count: int


def program_key(name: str, recipe: Recipe, image_count: int) -> ProgramKey:
    """The key of the program with this name for training with a recipe on so many images.

    Examples:
      >>> one = dataclasses.replace(train.of_architecture(Architecture()), train_size=4)
      >>> four = dataclasses.replace(one, batch_size=4)
      >>> [program_key(name, one, 8) == program_key(name, four, 8) for name in ("init", "train_segment", "predict")]
      [True, False, True]
    """
    recipe = recipe.shared
    if name not in READ_BY:
        return ProgramKey(name, recipe, image_count)
    architecture = recipe.architecture
    if name == "predict":
        architecture = dataclasses.replace(architecture, initializer=Architecture().initializer)
    read = {field: getattr(recipe, field) for field in READ_BY[name]}
    recipe = dataclasses.replace(train.of_architecture(architecture), **read)
    return ProgramKey(name, recipe, 1 if name == "init" else image_count)


@functools.lru_cache(maxsize=128)
@jax_settings.fixed()
def compile_program(name: str, recipe: Recipe, image_count: int, members: int, mesh: Mesh) -> Any:
    """One of `Programs`, compiled here or read from disk; the first three arguments are a `ProgramKey`."""
    options = options_for(mesh)
    recipe = for_platform(recipe, mesh)

    def compile_it() -> jax.stages.Compiled:
        function, arguments = lowerables(recipe, members, image_count, mesh)[name]
        return executables.compiled(function.lower(*arguments), options)

    if name in AT_FIRST_USE:
        return lowerables(recipe, members, image_count, mesh)[name].function
    described = name, recipe, members, image_count, options, cores()
    return executables.obtain(described, [*mesh.devices.flat], compile_it)


CACHES.append(compile_program.cache_clear)


def options_for(mesh: Mesh) -> dict[str, Any]:
    """The compiler options of programs for these devices; others may round differently."""
    return CPU_OPTIONS if mesh.devices.flat[0].platform == "cpu" else {}


def for_platform(recipe: Recipe, mesh: Mesh) -> Recipe:
    """The recipe as these devices compute it fastest."""
    if mesh.devices.flat[0].platform != "cpu":
        return recipe
    microbatches = train.microbatches_for(recipe.batch_size)
    return dataclasses.replace(recipe, microbatches=microbatches, native=native.available())


def mesh_of(devices: Sequence[jax.Device]) -> Mesh:
    """The devices as a mesh with a single axis, `MEMBER_AXIS`."""
    return Mesh(np.array(devices), (MEMBER_AXIS,))


def shardings(mesh: Mesh) -> tuple[NamedSharding, NamedSharding]:
    """The shardings of arrays that every device needs, and of the members' arrays."""
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(MEMBER_AXIS))


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
    states = [programs.init(*arguments) for arguments in zip(by_turn(seeds, np.uint32), hypers, strict=True)]
    waiting = (turns - 1) * sum(leaf.nbytes for leaf in jax.tree.leaves(states[0]))
    return Population(
        states=states,
        hypers=hypers,
        images=jax.tree.map(lambda array: distributed.put(np.asarray(array), shared), images),
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
    labels = jax.device_get(population.images.labels)
    parts = [split[start : start + PREDICTED_TOGETHER] for start in range(0, len(split), PREDICTED_TOGETHER)]
    return evaluation.evaluate((predict(population, part), labels[part.start : part.stop]) for part in parts)


@jax_settings.fixed()
def predict(population: Population, split: range) -> Predictions:
    """Classifies a range of the images by every member; returns NumPy arrays [members, images]."""
    shared, found = population.images.scale.sharding, []
    members = [
        (state.params, hyper.loss_number) for state, hyper in zip(population.states, population.hypers, strict=True)
    ]
    for start in range(split.start, split.stop, PREDICTED_TOGETHER):
        indices = np.minimum(np.arange(start, start + PREDICTED_TOGETHER, dtype=np.int32), split.stop - 1)
        placed = distributed.put(indices, shared)
        answers = [population.programs.predict(*member, population.images, placed) for member in members]
        found.append(to_host(answers, population.size))
    whole: Predictions = jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1)[:, : len(split)], *found)
    return whole


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
