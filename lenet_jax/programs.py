"""The programs of a population: what is compiled for the members of a turn, for which devices, and how.

The only module that vmaps over members and shards them over devices.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from lenet_jax import evaluate as evaluation
from lenet_jax import executables, jax_settings, library, model, native, train
from lenet_jax.evaluate import Predictions
from lenet_jax.model import IMAGE_SIZE, Architecture, Params, Starts
from lenet_jax.optim import HYPERPARAMETERS, Hyperparameters
from lenet_jax.registry import CACHES
from lenet_jax.train import Images, Metrics, Recipe, TrainState

MEMBER_AXIS = "members"
"""Name of the mesh axis that members are sharded over."""

PREDICTED_TOGETHER = 256
"""Images that a call of `Programs.predict` answers: one program serves splits of all sizes."""

CPU_OPTIONS: dict[str, Any] = {"xla_cpu_copy_insertion_use_region_analysis": True, "xla_backend_optimization_level": 1}
"""Compiler options on CPUs: fewer copies of parameters, which speeds up training with a batch size of 1; and less
optimization, which compiles sooner and gives faster programs with a sigmoid."""

GPU_PREDICT_OPTIONS: dict[str, Any] = {"xla_gpu_enable_triton_gemm": False}
"""Compiler options of `predict` on GPUs: matrix products by NVIDIA's library, not by XLA, which compiles many of its
own and times them."""

READ_BY = {"init": ("optimizer",), "predict": ("loss", "losses")}
"""The fields of a recipe that a program reads beside the architecture (see `program_key`); others read all fields."""

UNREAD = {"init": ("initializer", "activation"), "train_segment": ("initializer",), "predict": ("initializer",)}
"""The fields of the architecture that a program does not read. To `init` the initializer is an argument."""

ARITHMETIC = 3
"""Number of changes of the programs that changed rounding.

2: native convolutions, means of evaluations in float64; 3: less optimization, members in turns.
"""

AT_FIRST_USE = ("measure_own",)
"""Programs that are compiled when they are first used, as metrics are optional."""


def arithmetic() -> str:
    """What rounding depends on, beside the config and the processor; a run doesn't mix results of several."""
    form = "native" if native.preferred() else "blocked"
    return f"{ARITHMETIC}, {form}" + (", predict without Triton" if jax.default_backend() == "gpu" else "")


class Programs(NamedTuple):
    """The programs of a population, functions of the arrays of a turn; `train_segment` donates its state's memory.

    `predict` takes the members' numbers of losses, too, and indices of `PREDICTED_TOGETHER` images.
    """

    init: Callable[[Array, Hyperparameters, Starts], TrainState]
    train_segment: Callable[[TrainState, Hyperparameters, Images], tuple[TrainState, Metrics]]
    measure_own: Callable[[TrainState, Images], dict[str, Array]]
    predict: Callable[[Params, Array | int, Images, Array], Predictions]


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
    starts = jax.tree.map(lambda leaf: of_all(leaf.shape, leaf.dtype), model.starts_of(recipe.architecture))

    def init(seed: Array, hyper: Hyperparameters, starts: Starts) -> TrainState:
        return train.init(seed, hyper, recipe, starts)

    def predict(params: Params, number: Array, images: Images, indices: Array) -> Predictions:
        return evaluation.predict(params, images, indices, recipe, number)

    return {
        "init": Lowerable(jax.jit(over_members(init, mesh, 2)), (seeds, hyper, starts)),
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
    recipe, defaults = recipe.shared, Architecture()
    unread: dict[str, Any] = {field: getattr(defaults, field) for field in UNREAD.get(name, ())}
    recipe = dataclasses.replace(recipe, architecture=dataclasses.replace(recipe.architecture, **unread))
    if name in READ_BY:
        read = {field: getattr(recipe, field) for field in READ_BY[name]}
        recipe = dataclasses.replace(train.of_architecture(recipe.architecture), **read)
    return ProgramKey(name, recipe, 1 if name == "init" else image_count)


@functools.lru_cache(maxsize=128)
@jax_settings.fixed()
def compile_program(name: str, recipe: Recipe, image_count: int, members: int, mesh: Mesh) -> Any:
    """One of `Programs`, compiled here or read from disk; the first three arguments are a `ProgramKey`."""
    options = options_for(name, mesh)
    recipe = for_platform(recipe, mesh)

    def compile_it() -> jax.stages.Compiled:
        function, arguments = lowerables(recipe, members, image_count, mesh)[name]
        return executables.compiled(function.lower(*arguments), options)

    if name in AT_FIRST_USE:
        return lowerables(recipe, members, image_count, mesh)[name].function
    described = name, recipe, members, image_count, options, library.cores()
    return executables.obtain(described, [*mesh.devices.flat], compile_it)


CACHES.append(compile_program.cache_clear)


def options_for(name: str, mesh: Mesh) -> dict[str, Any]:
    """The compiler options of a program for these devices; others may round differently."""
    platform = mesh.devices.flat[0].platform
    if platform == "cpu":
        return CPU_OPTIONS
    return GPU_PREDICT_OPTIONS if platform == "gpu" and name == "predict" else {}


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
