"""The package as others install it: built, and run from outside the source tree."""

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_wheel_runs_the_quickstart_from_an_empty_folder(tmp_path):
    """In an environment of its own, with what the wheel asks for and nothing else."""
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", tmp_path / "dist", ROOT], check=True, capture_output=True
    )
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert len(list((tmp_path / "dist").glob("*.tar.gz"))) == 1
    names = zipfile.ZipFile(wheel).namelist()
    for name in (
        "experiments/quickstart.py",
        "analysis/report.html.jinja",
        "data/canvas.html",
        "data/mnist10k.npz",
        "data/mnist10k.LICENSE",
    ):
        assert f"lenet_jax/{name}" in names
    assert not [name for name in names if "results" in name.split("/")[:-1] or name.startswith("tests")]
    venv.create(tmp_path / "venv")
    programs = tmp_path / "venv" / "bin"
    uv = Path(sys.executable).with_name("uv")
    into = ["--python", programs / "python", "--constraint", ROOT / "constraints.txt"]
    subprocess.run([uv, "pip", "install", "--quiet", *into, wheel], check=True, capture_output=True)
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def lenet_jax(*arguments):
        result = subprocess.run(
            [programs / "lenet-jax", *arguments], cwd=empty, env=environment, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    lenet_jax("run", "--config=lenet_jax:quickstart", "--config.seeds=2", "--config.epochs=2")
    summary = json.loads((empty / "runs" / "quickstart" / "summary.json").read_text())
    assert len(summary["arms"]) == 4
    assert summary["arms"][3]["test_error"]["mean"] < 0.2
    assert "written:" in lenet_jax("compare", "runs/quickstart")
    provenance = json.loads((empty / "runs" / "quickstart" / "provenance.json").read_text())
    assert provenance["git_commit"] is None
    assert "--config=lenet_jax:quickstart" in provenance["command"]
