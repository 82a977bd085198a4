"""Populations: a member's numbers depend on nothing but its seed, its hyperparameters and the recipe."""

import contextlib
import dataclasses
import sys
import types
import weakref
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lenet_jax import executables, model, population, programs, train
from lenet_jax.distortions import Augmentation
from lenet_jax.initializers import INITIALIZERS, Start
from lenet_jax.losses import Loss
from lenet_jax.model import Architecture
from lenet_jax.optim import HYPERPARAMETERS, Hyperparameters
from lenet_jax.run import memory as run_memory
from lenet_jax.train import Images, Recipe

RECIPE = Recipe(
    architecture=Architecture("tanh", initializer="glorot"),
    loss=Loss("cross_entropy"),
    optimizer="momentum",
    schedule="cosine",
    batch_size=10,
    epochs=2,
    train_size=200,
)
SEEDS = [0, 1, 2, 3, 4]
RATES = [0.05, 0.1, 1e6, 0.08, 0.03]
DIVERGING = 2
TEST = range(300, 400)


@pytest.fixture(scope="module")
def images(digits):
    pixels, labels = digits
    return Images(pixels, labels, np.float32(1 / 255), np.float32(0))


def create(images, members, devices=None):
    """A population of some of the five members."""
    hyper = {
        "learning_rate": [RATES[member] for member in members],
        "momentum": [0.9] * len(members),
        "weight_decay": [1e-4] * len(members),
        "mu": [0.02] * len(members),
    }
    return population.create([SEEDS[member] for member in members], hyper, images, RECIPE, devices)


def run(people):
    """Trains a population to the end: its metrics after every epoch, and its parameters, without the padding."""
    history = [population.train_segment(people) for _ in range(RECIPE.epochs)]
    return [*history, population.evaluate(people, TEST), population.params(people)]


@dataclasses.dataclass
class Crowd:
    """The five members on two devices after training, and what was counted meanwhile."""

    result: object
    memory: int
    start: object
    traces_to_compile: int
    traces: int


@pytest.fixture(scope="module")
def crowd(images):
    traces = []
    gradient_of = train.gradient_of

    def counted(*arguments):
        traces.append(1)
        return gradient_of(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "gradient_of", counted)
        people = create(images, range(5))
        compiled, start = len(traces), [*people.states]
        result = run(people)
    return Crowd(result, people.memory, start, compiled, len(traces))


def members_of(result, members):
    return jax.tree.map(lambda leaf: leaf[np.array(members)], result)


def test_members_learn_and_differ(crowd):
    first, last, test, _ = crowd.result
    assert test.error.min() < 0.7
    for member in set(range(5)) - {DIVERGING}:
        assert last.loss[member] < first.loss[member]
    assert test.error.shape == (5,)
    assert len(np.unique(first.loss)) == 5


def test_a_diverging_member_is_counted_as_all_wrong(crowd):
    _, _, test, params = crowd.result
    assert not np.isfinite(params.output.bias[DIVERGING]).all()
    assert test.error[DIVERGING] == 1


@pytest.mark.parametrize("member", range(5))
def test_member_equals_a_lone_run(member, crowd, images):
    """Bit for bit, alone on one device: other members, padding, devices and a divergence have no effect."""
    lone = run(create(images, [member], devices=jax.devices()[1:]))
    jax.tree.map(np.testing.assert_array_equal, lone, members_of(crowd.result, [member]))


@pytest.mark.usefixtures("quick_compilation")
def test_member_equals_the_pure_functions(crowd, images):
    member = 1
    hyper = Hyperparameters(jnp.float32(RATES[member]), *jnp.float32([0.9, 1e-4, 0.02]))
    state = jax.jit(train.init, static_argnames="recipe")(jnp.uint32(SEEDS[member]), hyper, recipe=RECIPE)
    epoch = jax.jit(train.train_epoch, static_argnames="recipe")
    for expected in crowd.result[: RECIPE.epochs]:
        state, metrics = epoch(state, hyper, jax.tree.map(jnp.asarray, images), recipe=RECIPE)
        np.testing.assert_allclose(metrics.loss, expected.loss[member], rtol=1e-4)
    moved = members_of(crowd.result[-1], member)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), state.params, moved)


def test_a_snapshot_resumes_where_it_was_taken(crowd, images):
    """In another population on the same devices, bit for bit; without the padding, and with numbers for keys."""
    people = create(images, range(5))
    population.train_segment(people)
    saved = population.snapshot(people)
    assert saved["params/c1/kernel"].shape == (5, 6, 5, 5)
    assert saved["step"].tolist() == [RECIPE.epoch_steps] * 5
    assert saved["key"].dtype == np.uint32
    assert all(isinstance(array, np.ndarray) for array in saved.values())
    other = create(images, range(5))
    population.restore(other, saved)
    population.train_segment(other)
    jax.tree.map(np.testing.assert_array_equal, population.params(other), crowd.result[-1])


def test_a_snapshot_of_another_network_is_refused(crowd, images):
    people = create(images, range(5))
    saved = population.snapshot(people)
    del saved["params/c1/bias"]
    with pytest.raises(ValueError, match="not those of this network and optimizer"):
        population.restore(people, saved)
    others = {name: array[:4] for name, array in population.snapshot(people).items()}
    with pytest.raises(ValueError, match="not those of 5 members"):
        population.restore(people, others)


@pytest.mark.parametrize(
    "own", ["0::/system.slice/job.scope\n", "0::/\n", "0::/elsewhere/job\n", "5:memory:/x\n", None]
)
def test_memory_is_what_the_tightest_control_group_leaves(tmp_path, monkeypatch, own):
    groups = {"": ("max", 0, 0), "system.slice": (9 * 2**30, 2**30, 0), "system.slice/job.scope": (2**30, 2**29, 2**28)}
    for name, (limit, used, cached) in groups.items():
        folder = tmp_path / "cgroup" / name
        folder.mkdir(exist_ok=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\n")
    if own is not None:
        (tmp_path / "own").write_text(own)
    monkeypatch.setattr(run_memory, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(run_memory, "OWN_CGROUP", tmp_path / "own")
    tight = own is not None and "job.scope" in own
    assert [path.name for path in run_memory.control_groups()] == ["job.scope", "system.slice"] * tight + ["cgroup"]
    free = min(run_memory.free_in(group) for group in run_memory.control_groups())
    assert free == (3 * 2**28 if tight else sys.maxsize)
    assert run_memory.available() <= free // 2


@pytest.mark.slow
def test_members_side_by_side_give_the_same(crowd, images, monkeypatch):
    monkeypatch.setattr(population, "SIDE_BY_SIDE", {"cpu": 4})
    result = run(create(images, range(5)))
    well = [member for member in range(5) if member != DIVERGING]
    for (path, leaf), expected in zip(
        jax.tree_util.tree_leaves_with_path(members_of(result, well)),
        jax.tree.leaves(members_of(crowd.result, well)),
        strict=True,
    ):
        where = jax.tree_util.keystr(path)
        # Rounding may move one digit of the 100 to the other side of a decision.
        absolute = 0.0101 if where.endswith(".error") else 1e-4
        np.testing.assert_allclose(leaf, expected, rtol=1e-3, atol=absolute, err_msg=where)
    assert result[-2].error[DIVERGING] == 1


def test_a_training_is_traced_once(crowd):
    assert crowd.traces_to_compile == 1
    assert crowd.traces == 1


def test_arms_with_one_recipe_are_compiled_once(crowd, images):
    before = programs.compile_program.cache_info()
    people = population.create([7, 8, 9, 10, 11], dict.fromkeys(HYPERPARAMETERS, [0.1] * 5), images, RECIPE)
    after = programs.compile_program.cache_info()
    assert (after.hits, after.misses) == (before.hits + len(programs.Programs._fields), before.misses)
    assert people.memory == crowd.memory


OTHER = dataclasses.replace(
    RECIPE,
    architecture=Architecture("relu", initializer="lecun1998", output="linear"),
    loss=Loss("mse", "linear"),
    losses=(Loss("mse", "linear"), Loss("mse", "linear", mse_reduction="mean")),
    optimizer="sdlm",
    schedule="linear",
    batch_size=4,
    epochs=3,
    train_size=100,
    microbatches=2,
    segments=5,
    augmentation=Augmentation("elastic"),
    order="stored",
    curvature_patterns=100,
    curvature_estimates=5,
    curvature_memory=0.5,
    curvature_start="full",
    metrics=("step",),
    metrics_per_epoch=5,
)
"""A recipe with other values than `train.of_architecture` has, but for `native`, which the platform decides."""


@pytest.mark.parametrize("losses", [OTHER.losses, ()], ids=["losses", "loss"])
@pytest.mark.parametrize("name", programs.UNREAD)
def test_a_program_depends_on_what_it_reads_of_a_recipe_alone(name, losses):
    recipe, mesh = dataclasses.replace(OTHER, losses=losses), programs.mesh_of(jax.devices()[:1])

    def lowered(recipe, count):
        function, arguments = programs.lowerables(recipe, 1, count, mesh)[name]
        return function.lower(*arguments).as_text()

    key = programs.program_key(name, recipe, 400)
    same = {field for field, value in vars(key.recipe).items() if value == vars(OTHER)[field]}
    read = programs.READ_BY.get(name, vars(OTHER))
    assert same <= {*read, "architecture", "native"}
    wanted, found = vars(OTHER.architecture), vars(key.recipe.architecture)
    assert {field for field in wanted if found[field] != wanted[field]} == {*programs.UNREAD[name]}
    assert lowered(key.recipe, key.image_count) == lowered(recipe, 400)


def test_shapes_are_of_no_mesh():
    """Whoever asks first: a program that is traced for some devices may."""
    model._shapes.cache_clear()
    train.uses_curvature.cache_clear()
    for devices in (1, 2):
        mesh = programs.mesh_of(jax.devices()[:devices])
        function, arguments = programs.lowerables(RECIPE, devices, 400, mesh)["train_segment"]
        function.trace(*arguments)
        train.uses_curvature.cache_clear()


def test_no_implicit_transfers(crowd, images):
    people = create(images, range(5))
    with jax.transfer_guard("disallow"):
        with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
            jnp.ones(3) + np.ones(3)
        population.train_segment(people)
        metrics = population.evaluate(people, TEST)
    assert isinstance(metrics.error, np.ndarray)


def test_the_old_state_is_used_up(crowd, images):
    people = create(images, range(5))
    old = jax.tree.leaves(people.states)
    assert not any(leaf.is_deleted() for leaf in old)
    population.train_segment(people)
    assert all(leaf.is_deleted() for leaf in old)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(crowd.start))


def test_members_are_spread_over_both_devices(crowd, images):
    turns = create(images, range(5)).states
    assert len(turns) == 3, "five members and one of padding"
    for bias in (turn.params.output.bias for turn in turns):
        placed = {shard.device: shard.data.shape for shard in bias.addressable_shards}
        assert placed == dict.fromkeys(jax.devices(), (1, 10))


def test_evaluating_doesnt_change_the_members(crowd, images):
    people = create(images, range(5))
    first = population.evaluate(people, TEST)
    parts = [population.evaluate(people, part) for part in (range(300, 340), range(340, 400))]
    again = population.evaluate(people, TEST)
    jax.tree.map(np.testing.assert_array_equal, again, first)
    np.testing.assert_allclose(0.4 * parts[0].loss + 0.6 * parts[1].loss, first.loss, rtol=1e-5)


def test_predicted_memory(crowd, images):
    data = images.pixels.nbytes + images.labels.nbytes
    # Parameters and momenta of six members in float32, and the data on both devices.
    least = 6 * 2 * 60850 * 4 + 2 * data
    assert least < crowd.memory < 10 * least


def test_configure(monkeypatch, tmp_path):
    names = ("jax_num_cpu_devices", "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        population.configure()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "lenet_jax" / "xla")
    finally:
        for name, value in before.items():
            with contextlib.suppress(RuntimeError):
                jax.config.update(name, value)
    assert len(jax.devices()) == 2


def test_options_that_xla_does_not_know_are_left_out():
    lowered = jax.jit(lambda x: x + 1).lower(jnp.float32(1))
    assert executables.compiled(lowered, {"xla_cpu_no_such_option": True})(jnp.float32(1)) == 2
    assert executables.compiled(lowered, programs.CPU_OPTIONS)(jnp.float32(1)) == 2


def test_the_next_images_are_computed_while_answers_are_processed(monkeypatch):
    """Devices would wait otherwise; and they hold no more than two parts, since answers of many members are large."""
    done, held = [], weakref.WeakSet()
    people = population.Population([], [], None, 1, None, 0)

    class Answers:
        def __init__(self, first):
            self.of = np.arange(first, first + 256)[None]

    def launched(people, part):
        done.append((part.start, len(held)))
        held.add(answers := Answers(part.start))
        return answers

    def copied(answers, size):
        done.append(("copied", int(answers.of[0, 0])))
        return answers.of

    monkeypatch.setattr(population, "launch_predict", launched)
    monkeypatch.setattr(population, "to_host", copied)
    found = np.concatenate([*population.predicted_parts(people, range(100, 1000))], axis=1)
    assert found.tolist() == [[*range(100, 1000)]]
    rest = [("copied", 356), (868, 1), ("copied", 612), ("copied", 868)]
    assert done == [(100, 0), (356, 1), ("copied", 100), (612, 1), *rest]


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_only_devices_that_know_an_option_get_it(platform):
    mesh = mock.Mock(spec=jax.sharding.Mesh, devices=np.array([types.SimpleNamespace(platform=platform)]))
    train, predict = (programs.options_for(name, mesh) for name in ("train_segment", "predict"))
    assert bool(predict) == (platform != "tpu")
    assert {name.split("_")[1] for name in predict} <= {platform, "backend"}
    assert {name.split("_")[1] for name in train} <= {platform, "backend"} - {"gpu"}


def own_initializer(fan_in, fan_out, activation):
    """Of odd types: an array of one number, one of JAX's, and one with a number for each unit."""
    return Start(1 / np.sqrt(np.atleast_1d(fan_in)), jnp.ones(()), 0.5 * np.ones_like(fan_in))


def test_networks_with_any_initializer_come_from_one_program(monkeypatch, assert_close):
    """And are those of `train.init`, whose program has the initializer in it."""
    monkeypatch.setitem(INITIALIZERS, "own", own_initializer)
    before = programs.compile_program.cache_info().misses
    cases = [("lecun1998", "tanh"), ("glorot_centered", "sigmoid"), ("glorot", "relu"), ("own", "tanh")]
    for initializer, activation in cases:
        recipe = dataclasses.replace(RECIPE, architecture=Architecture(activation, initializer=initializer))
        (key,) = {programs.program_key("init", one, 400) for one in (recipe, RECIPE)}
        function = programs.compile_program(*key, 1, programs.mesh_of(jax.devices()[:1]))
        hyper = jax.tree.map(jnp.float32, Hyperparameters(0.1, 0.9, 0.0, 0.02))
        alone = dataclasses.replace(hyper, loss_number=jnp.int32(0))
        state = function(jnp.uint32([5]), jax.tree.map(lambda x: x[None], alone), model.starts_of(recipe.architecture))
        expected = jax.jit(train.init, static_argnames="recipe")(jnp.uint32(5), alone, recipe=recipe)
        assert_close(jax.tree.map(lambda leaf: leaf[0], state.params), expected.params, 1e-6)
    assert programs.compile_program.cache_info().misses <= before + 1
