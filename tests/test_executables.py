"""Programs on disk: what is read is what was compiled, and nothing else is read."""

import os
import pickle
from pathlib import Path

import jax
import jax.numpy as jnp
import launch
import numpy as np
import pytest

from lenet_jax import executables
from lenet_jax.layers import ACTIVATIONS


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """The folder of programs, which are kept there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(executables, "KEEP", True)
    return tmp_path / "lenet_jax" / "programs"


UNIQUE = np.random.default_rng().uniform()  # JAX's own cache, which all tests share, has no program with this number


def compile_double():
    compile_double.calls += 1
    return jax.jit(lambda x: jnp.where(x == UNIQUE, x, 2 * x)).lower(jax.ShapeDtypeStruct((3,), jnp.float32)).compile()


@pytest.fixture(autouse=True)
def count():
    compile_double.calls = 0


def doubled(program="double"):
    return executables.obtain(program, jax.devices()[:1], compile_double)(jnp.arange(3.0)).tolist()


def test_a_program_is_compiled_once(kept):
    assert doubled() == doubled() == [0.0, 2.0, 4.0]
    assert compile_double.calls == 1
    (path,) = kept.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    doubled("another")
    assert compile_double.calls == 2


def test_a_key_covers_the_sources_and_the_versions(kept, monkeypatch):
    doubled()
    monkeypatch.setattr(executables, "surroundings", lambda: "others")
    doubled()
    assert compile_double.calls == 2
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
    doubled()
    assert compile_double.calls == 3


def test_a_digest_changes_with_a_source(tmp_path, monkeypatch):
    package = Path(executables.__file__).parent
    for path in package.glob("*.py"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert executables.digest_of(tmp_path) == executables.SOURCES
    with (tmp_path / "layers.py").open("a") as file:
        file.write("\n")
    before = executables.surroundings.__wrapped__()
    monkeypatch.setattr(executables, "SOURCES", executables.digest_of(tmp_path))
    assert executables.surroundings.__wrapped__() != before


@pytest.mark.parametrize(
    "damage", [b"", b"not a program", pickle.dumps(("x", None, None))], ids=["empty", "text", "pickle"]
)
def test_a_damaged_program_is_compiled_again(kept, damage):
    doubled()
    (path,) = kept.iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage)
    assert doubled() == [0.0, 2.0, 4.0]
    assert compile_double.calls == 2
    assert len(path.read_bytes()) == pytest.approx(len(whole), rel=0.1)


class Planted:
    """Runs when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, (os.environ["XDG_CACHE_HOME"] + "/planted",)


@pytest.mark.parametrize("how", ["others can write to it", "a link", "others can write to the folder"])
def test_what_others_may_have_written_is_not_run(kept, tmp_path, how):
    doubled()
    (path,) = kept.iterdir()
    path.write_bytes(pickle.dumps(Planted()))
    if how == "a link":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    else:
        (path if how == "others can write to it" else kept).chmod(0o777)
    assert doubled() == [0.0, 2.0, 4.0]
    assert not (tmp_path / "planted").exists()


def test_programs_with_own_parts_are_not_kept(kept):
    ACTIVATIONS["own"] = jnp.sin
    try:
        doubled()
    finally:
        del ACTIVATIONS["own"]
    assert not kept.exists() or not [*kept.iterdir()]


def test_without_a_folder_programs_are_compiled(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(executables, "KEEP", True)
    assert doubled() == [0.0, 2.0, 4.0]


TRAINED = """
import numpy as np
from lenet_jax import population, train
from lenet_jax.losses import Loss
from lenet_jax.model import Architecture
from lenet_jax.train import Images, Recipe
population.configure(1)
traced, original = [], train.train_segment
def counted(*arguments, **named):
    traced.append(1)
    return original(*arguments, **named)
train.train_segment = counted
pixels = np.random.default_rng(0).integers(0, 255, (64, 32, 32), np.uint8)
images = Images(pixels, np.arange(64, dtype=np.int32) % 10, np.float32(1 / 255), np.float32(0))
recipe = Recipe(Architecture("tanh"), Loss(), "sgd", "constant", batch_size=16, epochs=1, train_size=64)
hyper = {"learning_rate": [0.1], "momentum": [0.9], "weight_decay": [0.0], "mu": [0.02]}
members = population.create([3], hyper, images, recipe)
losses = [population.train_segment(members).loss.tolist() for _ in range(2)]
print(len(traced), losses, members.memory, population.evaluate(members, range(64)).nll.tolist())
"""


def test_another_process_trains_with_what_one_has_compiled(tmp_path, own_cache):
    """Bit for bit, and without tracing it; the state's memory is used again, too."""
    (tmp_path / "trained.py").write_text(TRAINED)

    def run(output):
        environment = {"XDG_CACHE_HOME": own_cache, "JAX_PLATFORMS": "cpu"}
        before = "import runpy; runpy.run_path('trained.py')"
        process = launch.start(["--version"], tmp_path, output, environment=environment, before=before)
        assert process.wait(100) == 0, output.read_text()
        traced, rest = output.read_text().split(" ", 1)
        return int(traced), rest

    (first, results), (second, again) = run(tmp_path / "first"), run(tmp_path / "second")
    assert first > 0
    assert second == 0
    assert again == results
