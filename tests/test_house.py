"""Tests of the code as a whole: imports go one way, walls hold, modules stay short, what is public is documented."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import lenet_jax

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "lenet_jax"
WINGS = ("data", "run", "analysis")


def name_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


PATHS = {name_of(path): path for path in PACKAGE.glob("*.py") if not path.stem.startswith("__")}
for folder in WINGS:
    PATHS |= {name_of(path): path for path in (PACKAGE / folder).glob("*.py") if path.stem != "__init__"}
MODULES = {name: ast.parse(path.read_text()) for name, path in PATHS.items()}

LONGEST = 400
"""Lines of a module, without exceptions."""

COMMANDS = {"cli", "arguments"}

BRIDGE = {"run.folder", "run.files", "run.answers", "run.names", "run.tuning"}
"""What analysis reads a run by: the run folder, names of arms, and the pure functions that draw tuning curves."""

BEYOND = {
    ("analysis.networks", "run.checkpoints"): "trained networks are the last checkpoints of a run",
    ("analysis.networks", "run.parts"): "an experiment file that is named may define parts of its networks",
    ("analysis.evaluations", "run.schema"): "what describes an evaluation is checked like a run's files",
    ("analysis.dynamics", "run.arms"): "trains and measures networks of an experiment's config",
    ("analysis.dynamics", "run.plan"): "trains and measures networks of an experiment's config",
    ("analysis.dynamics", "run.parts"): "a notebook may define parts of its own",
    ("analysis.dynamics", "run.runner"): "notebooks run experiments",
}
"""Imports that reach beyond their wing, and why."""


def imported(tree):
    """Modules of this package that another one imports anywhere."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "lenet_jax":
            inner = node.module.removeprefix("lenet_jax").removeprefix(".")
            names = {f"{inner}.{alias.name}".removeprefix(".") for alias in node.names}
            found |= (names | {inner}) & set(MODULES)
    return found


GRAPH = {name: imported(tree) for name, tree in MODULES.items()}


def wing_of(name):
    """The wing of a module; science for those at the top, but for the commands."""
    return "commands" if name in COMMANDS else name.partition(".")[0] if "." in name else "science"


def test_imports_go_one_way():
    """There is no cycle, and docs/modules.md lists modules in an order in which each imports those above it."""
    list(TopologicalSorter(GRAPH).static_order())  # raises CycleError
    table = (ROOT / "docs" / "modules.md").read_text()
    order = [name.replace("/", ".") for name in re.findall(r"^\| \[.*?/lenet_jax/([\w/]+)\.py\)", table, re.MULTILINE)]
    assert sorted(order) == sorted(MODULES), "every module is in the tables, once"
    for index, name in enumerate(order):
        assert not GRAPH[name] & set(order[index + 1 :]), name


@pytest.mark.parametrize(
    ("wing", "allowed"),
    [
        ("science", {"science"}),
        ("data", {"science", "data"}),
        ("run", {"science", "data", "run"}),
        ("analysis", {"science", "data", "analysis"}),
    ],
)
def test_walls(wing, allowed):
    """Science knows arrays alone, data no arms, runs no analysis; analysis reaches runs through their folders."""
    for name in MODULES:
        if wing_of(name) == wing:
            reached = {other for other in GRAPH[name] if wing_of(other) not in allowed}
            if wing == "analysis":
                reached -= BRIDGE | {other for one, other in BEYOND if one == name}
            assert not reached, name


def test_every_exception_is_used():
    assert all(other in GRAPH[name] for name, other in BEYOND)


ON_DISK = {
    "library": "compiles the convolutions in C, once",
    "executables": "keeps compiled programs for other processes",
    "paths": "makes the folder of the two",
}


def test_science_opens_no_file_and_starts_no_process():
    """But for what makes programs, not results: see `ON_DISK`."""
    for name, tree in MODULES.items():
        if wing_of(name) == "science" and name not in ON_DISK:
            called = {
                node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                for node in ast.walk(tree)
                if isinstance(node, ast.Call)
            }
            forbidden = {"open", "read_text", "write_text", "read_bytes", "write_bytes", "mkdir", "Popen", "Process"}
            assert not called & forbidden, name


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module_is_short(name):
    assert len(PATHS[name].read_text().splitlines()) <= LONGEST


@pytest.mark.parametrize("name", sorted(MODULES))
def test_every_public_function_and_class_is_documented(name):
    """Ruff has that too, and methods."""
    body = MODULES[name].body
    assert ast.get_docstring(MODULES[name])
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name


def test_only_these_modules_are_used_by_nothing_else():
    used = set().union(*GRAPH.values())
    assert set(MODULES) - used == {"cli", "analysis.network_figures"}, "the program, and what notebooks use"


def test_the_package_is_found_where_a_folder_of_its_name_is(tmp_path):
    """As beside a clone: the folder would do for a namespace package."""
    (tmp_path / "lenet_jax").mkdir()
    code = "import lenet_jax; from lenet_jax.experiments import base; print(lenet_jax.__version__)"
    said = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == lenet_jax.__version__
