"""Tests of the tests: in a copy of the package each of these faults is made, and a fast test has to notice it."""

import os
import shutil
import sys
from pathlib import Path
from subprocess import run
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]


class Mutation(NamedTuple):
    """A fault: `old` becomes `new` in a module, which the fast tests of some files, chosen by words, notice."""

    module: str
    old: str
    new: str
    tests: str
    words: str = ""


MUTATIONS = {
    "an activation is another one": Mutation("layers", "tanh=jnp.tanh", "tanh=jax.nn.sigmoid", "test_layers"),
    "a bias is dropped": Mutation(
        "layers",
        "(len(table), rows, columns) + parameters.bias[:, None, None]",
        "(len(table), rows, columns)",
        "test_layers",
    ),
    "a sign in the squared error": Mutation("losses", "jnp.square(y - t)", "jnp.square(y + t)", "test_losses"),
    "a sign of the cross-entropy": Mutation("losses", "return losses.mean()", "return -losses.mean()", "test_losses"),
    "a checkpoint's digest is skipped": Mutation(
        "run/states", "if saved.digest(found) != digest:", "if False:", "test_faults", "damage or flipped"
    ),
    "states of other runs are taken": Mutation(
        "run/states", "if wanted and found != wanted:", "if False:", "test_ownership", "another"
    ),
    "links are followed when a run is tidied": Mutation(
        "run/cleanup",
        "if entry.is_symlink():\n            yield",
        "if False:\n            yield",
        "test_ownership",
        "tidying",
    ),
    "every epoch has the same order": Mutation(
        "train", 'epoch if recipe.order == "fresh" else 0', "0 * epoch", "test_train", "order"
    ),
    "momentum is ignored": Mutation("optim", "optax.trace(hyper.momentum)", "optax.trace(0.0)", "test_optim"),
    "validation images are trained on": Mutation(
        "run/plan",
        'used = settings["train_size"] or remaining',
        'used = settings["train_size"] or total',
        "test_runner",
    ),
    "images past the split are measured": Mutation(
        "evaluate", "counted = indices < stop", "counted = indices <= stop", "test_train", "evaluat"
    ),
    "p-values are not corrected for the other contrasts": Mutation(
        "multiplicity",
        "np.maximum.accumulate(block[:, order[::-1]], axis=1)[:, ::-1]",
        "block[:, order]",
        "test_contrasts",
        "enumeration",
    ),
    "curvatures without squares": Mutation(
        "curvature", "squared = jax.tree.map(jnp.square, parameters)", "squared = parameters", "test_curvature"
    ),
    "workers' results are put together the wrong way round": Mutation(
        "run/workers", "np.concatenate(leaves)[", "np.concatenate(leaves[::-1])[", "test_workers"
    ),
    "a pixel is moved by padding": Mutation(
        "data/preprocess",
        "((0, 0), (margin, margin), (margin, margin))",
        "((0, 0), (margin + 1, margin - 1), (margin, margin))",
        "test_datasets",
    ),
    "the test images are evaluated after each epoch": Mutation(
        "run/plan", '0 if self.settings["test_curve"] else end', "0", "test_runner"
    ),
}


@pytest.fixture
def package(tmp_path):
    """A copy of the package, the experiments and the tests."""
    ignored = shutil.ignore_patterns("results", "__pycache__", "fuzz")
    for folder in ("lenet_jax", "experiments", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored, symlinks=True)
    (tmp_path / "setup.cfg").symlink_to(ROOT / "setup.cfg")
    return tmp_path


def outcome(package, tests, words, *options):
    """Runs the fast tests that `words` choose of these files, against the copy."""
    files = [f"tests/{stem}.py" for stem in tests.split()]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", *options]
    environment = os.environ | {"PYTHONPATH": str(package)}
    return run([*command, "-k", words, *files], cwd=package, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTATIONS)
def test_a_fault_is_noticed(name, package):
    mutation = MUTATIONS[name]
    module = package / "lenet_jax" / f"{mutation.module}.py"
    text = module.read_text()
    assert text.count(mutation.old) == 1
    module.write_text(text.replace(mutation.old, mutation.new))
    found = outcome(package, mutation.tests, mutation.words, "-x")
    assert found.returncode == 1, found.stdout[-2000:]
    assert " failed" in found.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("tests", "words"), sorted({(fault.tests, fault.words) for fault in MUTATIONS.values()}))
def test_nothing_is_noticed_without_a_fault(tests, words, package):
    found = outcome(package, tests, words)
    assert found.returncode == 0, found.stdout[-2000:]
