"""Tests of the examples (``>>>``) in docstrings."""

import doctest
import importlib
import inspect
import pkgutil
from pathlib import Path

import jax
import nbclient
import nbformat
import pytest

import lenet_jax
from lenet_jax import model

ROOT = Path(__file__).parent.parent
MODULES = sorted(info.name for info in pkgutil.walk_packages(lenet_jax.__path__, "lenet_jax."))
SHOWN = {
    "lenet_jax.layers": ["convolve"],
    "lenet_jax.stats": ["bootstrap_interval", "sign_flip_test", "summarize", "t_interval"],
    "lenet_jax.analysis.compare": ["compare_runs"],
    "lenet_jax.analysis.networks": ["classify", "load_run"],
}
"""Functions that notebooks call, which carry an example."""

pytestmark = pytest.mark.usefixtures("quick_compilation")


def examples_of(module):
    """The examples of a module and of what it defines: name -> doctest."""
    named = {"": module} | {
        name: value for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__
    }
    found = {}
    for name, value in named.items():
        # Without a module, doctest also looks into functions that jaxtyping or JAX have wrapped.
        finder = doctest.DocTestFinder(recurse=inspect.isclass(value))
        for test in finder.find(value, name or module.__name__, module=False, globs=vars(module).copy()):
            found[test.name] = test
    return {name: test for name, test in found.items() if test.examples}


@pytest.mark.parametrize("name", MODULES)
def test_examples_are_true(name, monkeypatch):
    """Their paths are relative to the root of the repository."""
    monkeypatch.chdir(ROOT)
    for function in ("init", "activations"):  # one program each, not one per operation
        monkeypatch.setattr(model, function, jax.jit(getattr(model, function), static_argnames="architecture"))
    said, module = [], importlib.import_module(name)
    found = examples_of(module)
    for test in found.values():
        doctest.DocTestRunner().run(test, out=said.append)
    assert not said, "".join(said)
    written = Path(module.__file__).read_text().count(">>> ")
    assert sum(len(test.examples) for test in found.values()) >= written  # enumerations inherit those of int


@pytest.mark.parametrize("name", SHOWN)
def test_functions_that_notebooks_call_have_examples(name):
    found = examples_of(importlib.import_module(name))
    without = [
        function
        for function in SHOWN[name]
        if function not in found or all(doctest.SKIP in one.options for one in found[function].examples)
    ]
    assert not without


def test_an_example_that_is_false_is_found():
    """Also in a function that is wrapped, as all of lenet_jax are in the tests."""
    test = examples_of(importlib.import_module("lenet_jax.stats"))["sign_flip_test"]
    test.examples[0].want = "[0.5]\n"
    said = []
    doctest.DocTestRunner().run(test, out=said.append)
    assert "Expected:\n    [0.5]" in "".join(said)


def test_kernels_of_fast_tests_are_as_users_have_them(tmp_path):
    """They are forks of a process that has imported much, see launch.py."""
    code = "import sys\nimport matplotlib.pyplot as plt\nprint(sys.argv[1], sys.path)\nplt.plot([1, 2]);"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbclient.NotebookClient(notebook, kernel_name="python3").execute(cwd=tmp_path)
    said, picture = notebook.cells[0].outputs
    assert said.text.startswith("-f ")
    assert str(Path(__file__).parent) not in said.text
    assert "image/png" in picture.data


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_run_at_their_full_size(path, tmp_path):
    """`make test` makes their runs small: see the metadata of the cells with configs."""
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=600).execute(cwd=tmp_path)
