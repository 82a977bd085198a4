"""Tests that the README says what is stored."""

import json
import re
from pathlib import Path

import pytest

from lenet_jax import compare, results

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = dict(re.findall(r"<!-- results:(\S+) -->\n(.*?)<!-- /results -->", README, re.DOTALL))


@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_tables_equal_the_stored_results(name):
    run = results.load(ROOT / "experiments" / "results" / name)
    assert BLOCKS[name] == compare.markdown(compare.statistics([run]), "test_error")


def test_the_speed_table_equals_the_stored_benchmark(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments" / "benchmarks")
    import report

    stored = json.loads((ROOT / "experiments" / "results" / "throughput" / "throughput.json").read_text())
    block = re.search(r"<!-- throughput -->\n(.*?)<!-- /throughput -->", README, re.DOTALL)
    assert block.group(1) == report.throughput_summary(stored)
    assert not stored["failures"]


def test_there_are_tables_and_every_link_leads_somewhere():
    assert {"quickstart", "initializer"} <= set(BLOCKS)
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_python_in_the_readme_runs(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "quickstart").symlink_to(ROOT / "experiments" / "results" / "quickstart")
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


def test_every_config_field_in_the_readme_exists():
    from lenet_jax.experiments import base

    fields = set(base.get_config())
    named = re.findall(r"config\.(\w+)", README)
    assert named
    assert set(named) <= fields | {"json", "get_config"}


def test_what_the_readme_says_of_learning_rates_is_stored():
    run = results.load(ROOT / "experiments" / "results" / "learning_rate")
    rows = compare.statistics([run], "validation_error")
    means = {(row.axes["loss"], row.axes["activation"], row.axes["learning_rate"]): row.mean for row in rows}
    arms = {key[:2] for key in means}
    best = {arm: min((means[key], key[2]) for key in means if key[:2] == arm)[1] for arm in arms}
    assert best == {
        ("mse", "sigmoid"): 0.03,
        ("mse", "tanh"): 0.1,
        ("cross_entropy", "sigmoid"): 0.03,
        ("cross_entropy", "tanh"): 0.03,
    }
    for rate in (0.1, 0.03):
        assert f"{100 * means['mse', 'tanh', rate]:.2f} %" in README
