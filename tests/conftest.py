"""Set-up of all tests: two CPU devices, strict ranks, shapes checked at run time, and what makes the fast ones fast.

`XLA_FLAGS= make test` compiles and starts programs as users do.
"""

import gc
import importlib.util
import os
import shutil
from pathlib import Path

import jax
import jaxtyping
import launch
import numpy as np
import pytest
from absl import flags
from beartype import BeartypeConf, beartype
from jax._src import xla_bridge  # nothing public tells whether JAX has begun
from jupyter_client.provisioning import local_provisioner


def check_types(function):
    """The type checker of functions in modules with arrays; an int is a float, as static type checkers have it.

    Constructors are left alone: JAX calls those of parameter trees with stacked members, shapes and other placeholders.
    """
    if function.__name__ == "__init__":
        return function
    return beartype(conf=BeartypeConf(is_pep484_tower=True))(function)


PACKAGE = Path(__file__).parents[1] / "lenet_jax"
# The static type checker knows all other types. To check them here, too, would take long.
SHAPED = [path for path in PACKAGE.rglob("*.py") if "jaxtyping" in path.read_text()]
MODULES = [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in SHAPED]
jaxtyping.install_import_hook(MODULES, "conftest.check_types")
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Compiling is most of what the tests do. One cache serves all test processes and the programs that they start, and
# leaves the user's alone. Its keys are the programs themselves: no stale program can be used.
CACHE_HOME = Path(__file__).parents[1] / ".pytest_cache" / "home"
os.environ["XDG_CACHE_HOME"] = str(CACHE_HOME)
jax.config.update("jax_compilation_cache_dir", str(CACHE_HOME / "lenet_jax" / "xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
gc.set_threshold(20_000, 20, 20)  # garbage is searched for more rarely than by default
# The test processes, which inherit it, share the cores: NumPy's further threads would only wait for work, busily.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Of the options that were measured these make the fast tests the fastest: with no optimization at all, computing loses
# what compiling gains. XLA ends the process when it doesn't know an option.
QUICK = "--xla_backend_optimization_level=1 --xla_cpu_parallel_codegen_split_count=1"
if jax.__version_info__ < (0, 11):
    QUICK += " --xla_cpu_use_fusion_emitters=false"


COMPILING = {f"test_{name}.py" for name in ("accelerators", "blocked", "combinations", "distributed", "workers")}
"""Files that take longer than their size says."""


def pytest_collection_modifyitems(items):
    """The longest files first, so that the last ones that run side by side are short."""
    # Stable: in a file the order stays.
    items.sort(key=lambda item: (item.path.name not in COMPILING, -item.path.stat().st_size))


def pytest_collection_finish(session):
    """Compiles in half the time, here and in programs that tests start, and forks these, unless slow tests run.

    The fast tests' programs run for seconds; importing and compiling them takes longer. Slow tests depend on how fast
    users' programs are, and all tests of a session compare results of the same kind of program.
    """
    from lenet_jax import executables

    gc.freeze()  # what was imported is not searched for garbage again
    executables.KEPT_FROM = 0.0  # tests wait for small programs, too
    executables.KEEP = False  # tests replace functions; the programs that they start are the user's and keep theirs
    if "XLA_FLAGS" not in os.environ and not any(item.get_closest_marker("slow") for item in session.items):
        # XLA reads it once, with the first array.
        assert not xla_bridge.backends_are_initialized(), "a test module makes a JAX array when it is imported"
        os.environ["XLA_FLAGS"] = QUICK
        launch.FORKED = True
        local_provisioner.launch_kernel = launch.start_kernel


@pytest.fixture(scope="session")
def digits():
    """400 digits and their labels: uint8 [400, 32, 32], int32 [400]."""

    from lenet_jax.data import datasets, preprocess

    dataset = datasets.load("mnist10k")
    return preprocess.pad(dataset.train_images[:400], "background"), dataset.train_labels[:400].astype(np.int32)


@pytest.fixture(scope="session")
def random_params():
    """(architecture, seed=0) -> parameters that are all random, biases too, of the current default float type."""

    from lenet_jax import model

    def make(architecture, seed=0):
        rng = np.random.default_rng(seed)

        def draw(leaf):
            # Kernels such that sums of up to 400 inputs are of order 1; coefficients and biases of order 1.
            scale = 0.1 if len(leaf.shape) > 1 else 1.0
            return jax.numpy.asarray((scale * rng.normal(size=leaf.shape)).astype(leaf.dtype))

        return jax.tree.map(draw, model.shapes(architecture))

    return make


@pytest.fixture(scope="session")
def assert_close():
    """(tree, expected, tolerance): every leaf differs by at most tolerance x the largest number of the expected one."""

    def check(tree, expected, tolerance):
        assert jax.tree.structure(tree) == jax.tree.structure(expected)
        for (path, leaf), other in zip(
            jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(expected), strict=True
        ):
            limit = tolerance * np.abs(other).max()
            np.testing.assert_allclose(leaf, other, rtol=0, atol=limit, err_msg=jax.tree_util.keystr(path))

    return check


@pytest.fixture
def own_cache(tmp_path):
    """A test's own XDG_CACHE_HOME: empty except for the compiled convolutions, which take seconds."""
    from lenet_jax import library

    folder, compiled = tmp_path / "cache", library.obtain()
    if compiled is not None:
        shutil.copytree(compiled.parent, folder / "lenet_jax" / compiled.parent.name)
    return str(folder)


@pytest.fixture(scope="module")
def load_benchmark():
    """(name) -> a script of experiments/benchmarks, by its path: there are other modules of these names.

    Its flags are removed after the tests of a file: several scripts have the same ones.
    """
    folder, before = Path(__file__).parents[1] / "experiments" / "benchmarks", set(flags.FLAGS)

    def load(name):
        spec = importlib.util.spec_from_file_location(f"{name}_benchmark", folder / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield load
    for name in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, name)


@pytest.fixture(scope="module")
def quick_compilation():
    """For modules that test mathematics, where compiling takes longer than computing."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
