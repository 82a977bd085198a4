"""Populations: many members in one compiled program, spread over devices.

The only index that vmaps over members and shards them over devices; `workers` spreads them over processes. A CPU device
trains its members one after the other, so that a step works on one member's arrays alone. On accelerators a device
trains its members side by side.
"""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from lenet_jax import distributed, train
from lenet_jax import evaluate as evaluation
from lenet_jax.evaluate import Evaluation, Predictions
from lenet_jax.model import Params
from lenet_jax.optim import HYPERPARAMETERS, Hyperparameters
from lenet_jax.train import Images, Metrics, Recipe, TrainState

Snapshot = dict[str, Any]
"""Path of an array in `TrainState`, with slashes -> its NumPy array [members, ...]."""

MEMBERS = "members"
"""Name of the mesh axis that members are sharded over."""


WIDTHS = {"cpu": 1}
"""Members that one device trains side by side, by platform; other platforms: `ACCELERATOR_WIDTH`."""

ACCELERATOR_WIDTH = 256
"""More members than this are trained in turns. Not measured yet."""


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS has no affinity


UNOPTIMIZED: dict[str, Any] = {"xla_backend_optimization_level": 0}
"""Compiler options of programs that run once."""

CPU_OPTIONS: dict[str, Any] = {"xla_cpu_copy_insertion_use_region_analysis": True}
"""Compiler options on CPUs: fewer copies of parameters, which makes training with a batch size of 1 faster."""


def configure(devices: int | None = None) -> None:
    """Makes CPU cores devices, and keeps compiled programs in the user's cache folder.

    Call it before JAX is used: afterwards its devices stay as they are.

    Args:
      devices: their number; all cores by default.
    """
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", devices or cores())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lenet_jax" / "xla"
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


class Programs(NamedTuple):
    """The compiled programs of a population, and what they need.

    Attributes:
      init: (seeds [members], hyper [members]) -> state.
      train_segment: (state, hyper, images) -> state, metrics [members]; the state passed in is used up.
      evaluate: (params, images, start, stop) -> evaluations [members].
      predict: (params, images, indices) -> predictions [members, indices]; compiled when first used.
    """

    init: Callable[[Array, Hyperparameters], TrainState]
    train_segment: Callable[[TrainState, Hyperparameters, Images], tuple[TrainState, Metrics]]
    evaluate: Callable[[Params, Images, Array, Array], Evaluation]
    predict: Callable[[Params, Images, Array], Predictions]


@dataclasses.dataclass
class Population:
    """Members in training.

    Attributes:
      state, hyper: of all members, sharded over the devices; those from `size` on are padding.
      images: on every device.
      size: the number of members.
      programs: compiled for them.
      memory: bytes that training takes at its peak, as the compiler predicts: data, members, and temporaries.
    """

    state: TrainState
    hyper: Hyperparameters
    images: Images
    size: int
    programs: Programs
    memory: int


def over_members(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """A function of one member, for all: (member, *shared) -> result becomes (members, *shared) -> results.

    Every device takes its share of the members, some side by side, the others in turn. No device waits for another.
    """
    width = WIDTHS.get(mesh.devices.flat[0].platform, ACCELERATOR_WIDTH)

    def share(members: Any, *shared: Any) -> Any:
        count = jax.tree.leaves(members)[0].shape[0]
        side_by_side = min(width, count)
        # With a batch size, lax.map vmaps even one member, which is slower than not to.
        batch_size = side_by_side if side_by_side > 1 else None
        return jax.lax.map(lambda member: function(member, *shared), members, batch_size=batch_size)

    def spread(members: Any, *shared: Any) -> Any:
        specs = (PartitionSpec(MEMBERS), *(PartitionSpec() for _ in shared))
        sharded = jax.shard_map(share, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(MEMBERS), check_vma=False)
        return sharded(members, *shared)

    return spread


class Lowerable(NamedTuple):
    """A population's function and the shapes of its arguments, from which it is compiled.

    Attributes:
      function: jitted.
      arguments: their shapes, types and shardings.
    """

    function: Any
    arguments: tuple[Any, ...]


def lowerables(recipe: Recipe, members: int, image_count: int, mesh: Mesh) -> dict[str, Lowerable]:
    """Functions of all members, by the names that they have in `Programs`. Arguments: see `compile_programs`."""
    shared, sharded = shardings(mesh)

    def shaped(sharding: NamedSharding, make: Callable[[], Any]) -> Any:
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), jax.eval_shape(make)
        )

    def init_one(member: tuple[Array, Hyperparameters]) -> TrainState:
        return train.init(*member, recipe)

    def train_one(member: tuple[TrainState, Hyperparameters], images: Images) -> tuple[TrainState, Metrics]:
        return train.train_segment(*member, images, recipe)

    def evaluate_one(params: Params, images: Images, start: Array, stop: Array) -> Evaluation:
        return evaluation.evaluate(params, images, start, stop, recipe)

    def predict_one(params: Params, images: Images, indices: Array) -> Predictions:
        return evaluation.predict(params, images, indices, recipe)

    init, train_segment, evaluate, predict = (
        over_members(function, mesh) for function in (init_one, train_one, evaluate_one, predict_one)
    )
    numbers = shaped(sharded, lambda: jnp.zeros(members, jnp.float32))
    hyper = Hyperparameters(**dict.fromkeys(HYPERPARAMETERS, numbers))
    seeds = shaped(sharded, lambda: jnp.zeros(members, jnp.uint32))
    none = jnp.zeros(members)
    nothing = Hyperparameters(**dict.fromkeys(HYPERPARAMETERS, none))
    state = shaped(sharded, lambda: init((jnp.zeros(members, jnp.uint32), nothing)))
    images = shaped(
        shared,
        lambda: Images(
            pixels=jnp.zeros((image_count, *train.IMAGE_SHAPE), jnp.uint8),
            labels=jnp.zeros(image_count, jnp.int32),
            scale=jnp.zeros(()),
            shift=jnp.zeros(()),
        ),
    )
    index = shaped(shared, lambda: jnp.zeros((), jnp.int32))
    indices = shaped(shared, lambda: jnp.zeros(image_count, jnp.int32))
    return {
        "init": Lowerable(jax.jit(lambda seeds, hyper: init((seeds, hyper))), (seeds, hyper)),
        "train_segment": Lowerable(
            jax.jit(lambda state, hyper, images: train_segment((state, hyper), images), donate_argnums=0),
            (state, hyper, images),
        ),
        "evaluate": Lowerable(jax.jit(evaluate), (state.params, images, index, index)),
        "predict": Lowerable(jax.jit(predict), (state.params, images, indices)),
    }


@functools.lru_cache(maxsize=32)
def compile_programs(recipe: Recipe, members: int, image_count: int, mesh: Mesh) -> Programs:
    """Compiles a population's programs, once for all arms that share a recipe.

    Args:
      recipe: what is trained.
      members: a multiple of the number of devices.
      image_count: images in the data set, of all splits.
      mesh: the devices.
    """
    options: dict[str, Any] = {}
    if mesh.devices.flat[0].platform == "cpu":
        options = CPU_OPTIONS
        recipe = dataclasses.replace(recipe, microbatches=train.microbatches_for(recipe.batch_size))
    lowered = lowerables(recipe, members, image_count, mesh)

    def compiled_as(name: str, options: dict[str, Any]) -> Any:
        function, arguments = lowered[name]
        return compiled(function.lower(*arguments), options)

    return Programs(
        init=compiled_as("init", UNOPTIMIZED),  # runs once: optimising it would take longer than running it
        train_segment=compiled_as("train_segment", options),
        predict=lowered["predict"].function,  # as many images as it is given
        evaluate=compiled_as("evaluate", options),
    )


def compiled(lowered: jax.stages.Lowered, options: dict[str, Any]) -> jax.stages.Compiled:
    """The program, compiled with these options; without them if this version of XLA doesn't know one."""
    try:
        return lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if not str(error).startswith("INVALID_ARGUMENT"):
            raise
        return lowered.compile()


def mesh_of(devices: Sequence[jax.Device]) -> Mesh:
    """The devices as a mesh whose one axis members are sharded over."""
    return Mesh(np.array(devices), (MEMBERS,))


def shardings(mesh: Mesh) -> tuple[NamedSharding, NamedSharding]:
    """How arrays that every device needs lie, and how members' arrays do."""
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(MEMBERS))


def predicted_memory(program: Any, mesh: Mesh) -> int:
    """Bytes that a compiled program takes on all devices: arguments, results that don't reuse them, and temporaries."""
    analysis = program.memory_analysis()
    if analysis is None:
        return 0
    results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return int(mesh.size * (analysis.argument_size_in_bytes + results + analysis.temp_size_in_bytes))


def create(
    seeds: Sequence[int],
    hyper: Mapping[str, Sequence[float]],
    images: Images,
    recipe: Recipe,
    devices: Sequence[jax.Device] | None = None,
) -> Population:
    """A new population: compiles its programs, puts everything on the devices and initializes the members.

    Args:
      seeds: one a member.
      hyper: fields of `Hyperparameters`, one value a member each.
      images: of all splits.
      recipe: what is trained.
      devices: those to use, all by default; of one process's no more than there are members are used.
    """
    devices = list(devices or jax.devices())
    if jax.process_count() == 1:  # others would wait for results that aren't theirs
        devices = devices[: len(seeds)]
    mesh = mesh_of(devices)
    padding = -len(seeds) % len(devices)
    shared, sharded = shardings(mesh)

    def padded(values: Sequence[float], dtype: Any) -> Array:
        return distributed.put(np.array([*values, *[values[-1]] * padding], dtype), sharded)

    programs = compile_programs(recipe, len(seeds) + padding, len(images.labels), mesh)
    member_hyper = Hyperparameters(**{name: padded(values, np.float32) for name, values in hyper.items()})
    return Population(
        state=programs.init(padded(seeds, np.uint32), member_hyper),
        hyper=member_hyper,
        images=jax.tree.map(lambda array: distributed.put(np.asarray(array), shared), images),
        size=len(seeds),
        programs=programs,
        memory=predicted_memory(programs.train_segment, mesh),
    )


def train_segment(population: Population) -> Metrics:
    """Trains every member for a segment of an epoch, in index; waits for it. See `train.train_segment`.

    Returns:
      its metrics as NumPy arrays [members].
    """
    state, metrics = population.programs.train_segment(population.state, population.hyper, population.images)
    population.state = state
    return to_host(metrics, population.size)


def evaluate(population: Population, split: range) -> Evaluation:
    """What is measured of every member over a range of the images, as NumPy arrays [members]."""
    shared = population.images.scale.sharding
    bounds = [distributed.put(np.array(bound, np.int32), shared) for bound in (split.start, split.stop)]
    return to_host(population.programs.evaluate(population.state.params, population.images, *bounds), population.size)


def predict(population: Population, split: range) -> Predictions:
    """What every member makes of a range of the images, as NumPy arrays [members, images]."""
    indices = distributed.put(np.arange(split.start, split.stop, dtype=np.int32), population.images.scale.sharding)
    return to_host(population.programs.predict(population.state.params, population.images, indices), population.size)


Measured = TypeVar("Measured", Metrics, Evaluation, Predictions, Snapshot)


def to_host(measured: Measured, size: int) -> Measured:
    """Copies what was measured of members from the devices, without the padding."""
    copied: Measured = jax.tree.map(lambda leaf: np.asarray(leaf)[:size], distributed.gather(measured))
    return copied


def snapshot(population: Population) -> Snapshot:
    """The state of every member, as NumPy arrays [members, ...] by their path in `TrainState`.

    Random keys are given as their data, uint32. What comes from here goes back with `restore`.
    """
    return to_host({name: key_data_of(leaf) for name, leaf in leaves_of(population.state)}, population.size)


def restore(population: Population, saved: Snapshot) -> None:
    """Takes up a state that `snapshot` gave, of as many members and of the same recipe.

    Raises:
      ValueError: it is another recipe's, or of another number of members.
    """
    if {len(array) for array in saved.values()} != {population.size}:
        raise ValueError(f"the arrays are not those of {population.size} members")
    expected = {
        name: (key_data_of(leaf).shape[1:], key_data_of(leaf).dtype) for name, leaf in leaves_of(population.state)
    }
    if {name: (array.shape[1:], array.dtype) for name, array in saved.items()} != expected:
        raise ValueError("the arrays are not those of this network and optimizer")

    def padded(name: str, leaf: Any) -> Any:
        array = saved[name]
        rows = np.minimum(np.arange(leaf.shape[0]), len(array) - 1)
        on_devices = distributed.put(array[rows], population.hyper.mu.sharding)
        return jax.random.wrap_key_data(on_devices) if is_key(leaf) else on_devices

    leaves = [padded(name, leaf) for name, leaf in leaves_of(population.state)]
    population.state = jax.tree.unflatten(jax.tree.structure(population.state), leaves)


def leaves_of(tree: Any) -> list[tuple[str, Any]]:
    """The arrays of a tree with their paths, such as ``params/c1/kernel``."""
    found = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in found]


def is_key(leaf: Array) -> bool:
    """Whether an array holds random keys."""
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def key_data_of(leaf: Array) -> Array:
    """The array, or the data of its random keys."""
    return jax.random.key_data(leaf) if is_key(leaf) else leaf
