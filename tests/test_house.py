"""Tests of the code as a whole: imports go one way, modules stay short, what is public is documented."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import lenet_jax

ROOT = Path(__file__).parent.parent
MODULES = {
    path.stem: ast.parse(path.read_text()) for path in (ROOT / "lenet_jax").glob("*.py") if path.stem != "__init__"
}

LONGEST = 400
"""Lines of a module."""

LONGER = {
    "checkpoints": "all that is known of the layout of checkpoints/, and who may write there",
    "train": "a training step, a pass and an evaluation, which share their types",
    "experiment": "a run from its config to its folder",
    "compare": "a comparison, of which each function computes one part",
}
"""Modules that are longer, and why they are one."""


def imported(tree):
    """Modules of this package that another one imports anywhere."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "lenet_jax":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lenet_jax."):
            found.add(node.module.split(".")[1])
    return found & set(MODULES)


def test_imports_go_one_way():
    """There is no cycle, and docs/modules.md lists modules in an order in which each imports those above it."""
    graph = {name: imported(tree) for name, tree in MODULES.items()}
    list(TopologicalSorter(graph).static_order())  # raises CycleError
    table = (ROOT / "docs" / "modules.md").read_text()
    rows = [re.findall(r"/lenet_jax/(\w+)\.py\)", line) for line in table.splitlines() if line.startswith("| [")]
    order = [name for row in rows for name in row]
    assert sorted(order) == sorted(MODULES), "every module is in the table, once"
    for place, name in enumerate(order):
        assert not graph[name] & set(order[place + 1 :]), name


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module_is_short_or_has_a_reason(name):
    lines = len((ROOT / "lenet_jax" / f"{name}.py").read_text().splitlines())
    assert (lines > LONGEST) == (name in LONGER)
    assert lines <= 1.4 * LONGEST


@pytest.mark.parametrize("name", sorted(MODULES))
def test_every_public_function_and_class_is_documented(name):
    """Ruff has that too, and methods."""
    body = MODULES[name].body
    assert ast.get_docstring(MODULES[name])
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name


def test_only_these_modules_are_used_by_nothing_else():
    used = set().union(*(imported(tree) for tree in MODULES.values()))
    assert set(MODULES) - used == {"cli", "visualize"}, "the program, and what notebooks use"


def test_the_package_is_found_where_a_folder_of_its_name_is(tmp_path):
    """As beside a clone: the folder would do for a namespace package."""
    (tmp_path / "lenet_jax").mkdir()
    code = "import lenet_jax; from lenet_jax.experiments import base; print(lenet_jax.__version__)"
    said = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == lenet_jax.__version__
