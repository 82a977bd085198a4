"""Worker processes give the same results as one process, and none survives a killed one."""

import dataclasses
import os
import signal
import subprocess
import sys
from multiprocessing import forkserver

import launch
import numpy as np
import psutil
import pytest

from lenet_jax import population, programs
from lenet_jax.errors import InputError, WorkerError
from lenet_jax.losses import Loss
from lenet_jax.model import Architecture
from lenet_jax.run import processes
from lenet_jax.run import workers as run_workers
from lenet_jax.run.workers import Workers
from lenet_jax.train import Images, Recipe

RECIPE = Recipe(
    architecture=Architecture("tanh", initializer="glorot"),
    loss=Loss("cross_entropy"),
    optimizer="momentum",
    schedule="constant",
    batch_size=80,
    epochs=2,
    train_size=320,
)
SEEDS = [3, 1, 2]
HYPER = {"learning_rate": [0.05, 0.1, 0.02], "momentum": [0.9] * 3, "weight_decay": [0.0] * 3, "mu": [0.02] * 3}


@pytest.fixture(scope="module")
def images(digits):
    pixels, labels = digits
    return Images(pixels, labels, np.float32(1 / 255), np.float32(0))


@pytest.fixture
def forked(monkeypatch):
    """Forks workers from a process that has imported the program, which takes seconds; not for tests of their start."""
    # If the first worker started the server, all its forks would block the signals that are blocked meanwhile.
    forkserver.ensure_running()
    monkeypatch.setattr(processes, "SPAWN", launch.SERVER)


@pytest.fixture(scope="module")
def workers(images, tmp_path_factory):
    """Started by a script whose last lines are not behind `if __name__ == "__main__"`."""
    script = tmp_path_factory.mktemp("caller") / "script.py"
    script.write_text("raise SystemExit('run again')")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["__main__"], "__file__", str(script), raising=False)
        patch.setattr(sys.modules["__main__"], "__spec__", None)
        started = Workers(2)
        assert sys.modules["__main__"].__file__ == str(script)
    with started as crew:
        yield crew


def history(engine, images):
    """Metrics of two epochs, and of images that the members were not trained on."""
    members = engine.create(SEEDS, HYPER, images, RECIPE)
    assert members.memory > 0
    unseen = range(320, 400)
    metrics = [engine.train_segment(members), engine.train_segment(members), engine.evaluate(members, unseen)]
    return [*metrics, engine.predict(members, unseen)]


def test_workers_do_not_run_the_callers_script(workers, images):
    """As multiprocessing does."""
    workers.load(images)


def test_workers_give_the_same_results(workers, images, assert_close):
    workers.prepare([RECIPE], images)  # otherwise each worker would compile all programs
    there, here = history(workers, images), history(population, images)
    assert len(np.unique(there[0].loss)) == 3
    assert_close(there, here, 1e-5)


def test_workers_resume_from_a_snapshot(workers, images, forked):
    """Three members on two workers, of which one repeats its last member; also after a restart."""
    there = workers.create(SEEDS, HYPER, images, RECIPE)
    workers.train_segment(there)
    saved = workers.snapshot(there)
    assert {len(array) for array in saved.values()} == {3}
    expected = workers.train_segment(there)
    with Workers(2) as others:
        others.load(images)
        others.restart()
        again = others.create(SEEDS, HYPER, images, RECIPE)
        others.restore(again, saved)
        found = others.train_segment(again)
    np.testing.assert_array_equal(found.loss, expected.loss)


def test_a_worker_has_one_core(workers):
    workers._begin()  # which waits for their first answer
    assert [worker.process.is_alive() for worker in workers._workers] == [True, True]
    if hasattr(os, "sched_getaffinity"):
        pinned = [psutil.Process(worker.process.pid).cpu_affinity() for worker in workers._workers]
        assert all(len(cores) == 1 for cores in pinned)
        assert pinned[0] != pinned[1]


def test_what_arms_share_is_compiled_once_and_other_arms_ahead(images, monkeypatch):
    """As many arms as there are workers; a run names the arm that it trains twice."""
    shared_out = []
    crew = Workers(2, at_once=False)
    monkeypatch.setattr(crew, "_share_out", lambda _, keys: shared_out.append([(key.name, key.recipe) for key in keys]))
    others = [dataclasses.replace(RECIPE, batch_size=size) for size in (5, 20)]
    crew.prepare([RECIPE, RECIPE, *others], images)
    crew.prepare(others, images)
    crew.prepare(others[1:], images)
    (first, second, (predict, _), (init, _)), last = shared_out
    training = [programs.program_key("train_segment", recipe, 1)[:2] for recipe in (RECIPE, *others)]
    assert [first, second, *last] == training
    assert (predict, init) == ("predict", "init")


@pytest.mark.slow
def test_workers_divide_the_compilation(images, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    recipes = [RECIPE, dataclasses.replace(RECIPE, architecture=Architecture("sigmoid"))]

    def kept():
        return {path.name for path in (tmp_path / "lenet_jax" / "programs").iterdir()}

    with Workers(2) as crew:
        crew.prepare(recipes, images)
        prepared = kept()
        assert len(prepared) == len(recipes) * len(run_workers.COMPILED) - 1, "they share `init`"
        for recipe in recipes:
            crowd = crew.create(SEEDS, HYPER, images, recipe)
            assert np.isfinite(crew.train_segment(crowd).loss).all()
    # Each worker trained what the other one had compiled: the cache has not grown.
    assert kept() == prepared


def test_what_a_worker_raises_is_raised_here(workers, images):
    crowd = workers.create(SEEDS, HYPER, images, RECIPE)
    with pytest.raises(InputError, match="loss: 'huber' is not one of"):
        workers._call("predict", [(Raising(),)] * 2)
    assert workers.evaluate(crowd, range(10)).error.shape == (3,), "the workers continue"


class Raising:
    """An argument that raises an error in a worker as soon as it is used."""

    def __len__(self):
        return len(Loss("huber").name)


def test_a_killed_worker_is_reported(images, forked):
    with Workers(2) as crew:
        crew.load(images)
        os.kill(crew._workers[1].process.pid, signal.SIGKILL)
        with pytest.raises(WorkerError, match=r"was ended by SIGKILL; .* memory"):
            crew.create(SEEDS, HYPER, images, RECIPE)
    assert not any(worker.process.is_alive() for worker in crew._workers)


def test_workers_end_with_the_process_that_started_them(tmp_path):
    script = tmp_path / "start.py"
    script.write_text(
        "import time\n"
        "from lenet_jax.run import processes\n"
        "if __name__ == '__main__':\n"
        "    workers = processes.take(processes.core_numbers(2))\n"
        "    print(*[worker.process.pid for worker in workers], flush=True)\n"
        "    time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    children = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
    assert len(children) == 2
    parent.kill()
    parent.communicate()
    gone, alive = psutil.wait_procs(children, timeout=60)
    assert not alive
    assert len(gone) == 2
