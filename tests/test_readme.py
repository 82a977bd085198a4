"""Tests that the README says what is stored."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import few_digits
import pandas as pd
import programs
import pytest

from lenet_jax.analysis import compare, report, tables
from lenet_jax.data import datasets
from lenet_jax.run import arms
from lenet_jax.run import folder as run_folder

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = dict(re.findall(r"<!-- results:(\S+) -->\n(.*?)<!-- /results -->", README, re.DOTALL))


@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_tables_equal_the_stored_results(name):
    run = run_folder.load(ROOT / "experiments" / "results" / name)
    assert BLOCKS[name] == tables.markdown(compare.arm_statistics([run]), "test_error")


def test_the_speed_table_equals_the_stored_benchmark(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments" / "benchmarks")
    import report

    stored = json.loads((ROOT / "experiments" / "results" / "throughput" / "throughput.json").read_text())
    block = re.search(r"<!-- throughput -->\n(.*?)<!-- /throughput -->", README, re.DOTALL)
    header, rule, *rows = report.throughput_summary(stored).splitlines(keepends=True)
    assert block.group(1) == "".join([header, rule, *(row for row in rows if row.startswith("| 8 |"))])
    assert not stored["failures"]


def test_the_finding_of_the_ablation_is_stored():
    """Every number of the paragraph, in its order; gains are differences with their sign turned."""
    run = run_folder.load(ROOT / "experiments" / "results" / "ablation")
    found = {judgement.name: judgement for judgement in compare.compare_runs([run], baseline="all").judgements}
    names = [
        "loss: cross_entropy against mse, over activation",
        "activation: tanh against sigmoid, over loss",
        "loss (cross_entropy against mse) x activation (tanh against sigmoid)",
        "loss=cross_entropy,activation=sigmoid against loss=mse,activation=sigmoid",
        "loss=cross_entropy,activation=tanh against loss=mse,activation=tanh",
    ]
    expected = []
    for name in names:
        contrast = found[name].contrast
        mean, low, high = (100 * value for value in (contrast.mean, contrast.low, contrast.high))
        expected += [mean, low, high] if "x" in name.split() else [-mean, -high, -low]
    text = re.search(r"<!-- finding:ablation -->\n(.*?)<!-- /finding -->", README, re.DOTALL).group(1)
    said = [float(number) for number in re.findall(r"-?\d\.\d\d", text)]
    unsure = found[names[-1]]
    assert said == [*(float(f"{value:.2f}") for value in expected), float(f"{unsure.contrast.p:.2f}")]
    assert len(found) == 9
    assert max(judgement.p_holm for name, judgement in found.items() if name != names[-1]) < 0.05
    assert f"some {unsure.seeds} seeds" in text
    assert "0.87 percentage" in (ROOT / "experiments" / "ablation.py").read_text()


STORED = ROOT / "experiments" / "results"
TUNED = sorted(path.parent.name for path in STORED.glob("*/config.json") if json.loads(path.read_text()).get("tune"))


def test_all_tuned_studies_are_stored():
    names = {"activation", "batch_size", "connectivity", "label_noise", "loss_function", "optimizer", "subsampling"}
    assert set(TUNED) == names | {"ablation", "modern", "specification"}


@pytest.mark.parametrize("name", TUNED)
def test_what_a_study_says_in_its_docstring_is_stored(name):
    """Every number with two digits, with its sign turned where a difference is told from its other end."""
    run = run_folder.load(ROOT / "experiments" / "results" / name)
    stored = (run.folder / "plots" / "comparison.md").read_text()
    assert stored == report.markdown(compare.compare_runs([run], baseline="all"))
    result = (ROOT / "experiments" / f"{name}.py").read_text().split('"""')[1].partition("Result: ")[2]
    assert result.startswith(f"experiments/results/{name}.")
    said = set(re.findall(r"\d+\.\d\d", result))
    assert said
    assert said <= set(re.findall(r"\d+\.\d\d", stored))


def test_what_the_readme_says_of_coverage_is_stored():
    """The ranges, of settings with 10 and 20 seeds, are those of the stored page's first sentence."""
    text = (ROOT / "experiments" / "results" / "coverage" / "coverage.md").read_text()
    low, high, errs = re.search(r"in ([\d.]+) to ([\d.]+) % of studies.* at most ([\d.]+) %", text).groups()
    said = " ".join(README.split())
    assert f"{low} to {high} % for normal values and for errors of 1 and 5 %" in said
    skewed = re.findall(r"\| skewed \| [12]0 \| ([\d.]+) ", text)
    assert f"in {min(skewed)} to {max(skewed)} % for strongly skewed values" in said
    assert f"errs in at most {errs} %" in said


def test_notebooks_show_what_came_out_with_the_embedded_digits_as_they_are():
    outputs = [
        "".join(output.get("text", ()))
        for path in (ROOT / "notebooks").glob("*.ipynb")
        for cell in json.loads(path.read_text())["cells"]
        for output in cell.get("outputs", ())
    ]
    assert len(outputs) > 30
    assert set(re.findall(r"sha256:\w+", "".join(outputs))) == {datasets.EMBEDDED_FINGERPRINT}


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_every_link_leads_somewhere(page):
    text = (ROOT / page).read_text()
    links = [link.partition("#") for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
    assert len(links) > (20 if page == "README.md" else -1)
    assert [path for path, _, _ in links if not (ROOT / path).exists()] == []
    for path, _, anchor in links:
        if anchor:
            headings = re.findall(r"^#+ (.*)$", (ROOT / (path or page)).read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


SMALL = [
    f"--config.dataset={few_digits.DATASET}",
    "--config.sweep.activation=('tanh',)",
    "--config.epochs=1",
    "--config.first_seed=2",
    "--config.seeds=2",
    "--config.train_size=400",
    "--config.validation_size=200",
]
"""Added to the runs of the README; programs are those of test_cli.py."""


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """A folder as of somebody who has run `make quickstart`."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / ".venv").symlink_to(Path(sys.executable).parents[1])
    (folder / "experiments").symlink_to(ROOT / "experiments")
    (folder / "docs").symlink_to(ROOT / "docs")
    makefile = (ROOT / "Makefile").read_text()
    recipe = re.findall(r"^\t\$\(BIN\)/(lenet-jax [^>\n]*quickstart[^\s>]*)", makefile, re.MULTILINE)
    assert len(recipe) == 2
    said(folder, f".venv/bin/{recipe[0]}")
    return folder


def said(folder, command):
    """What a command prints."""
    parts = shlex.split(command)
    if parts[1] == "run" and "stored.py" not in command:
        parts += SMALL
    if programs.FORKED:
        result = programs.run(parts[1:], folder)
    else:
        result = subprocess.run(parts, cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, (command, result.stderr)
    return result.stdout


@pytest.mark.slow
def test_the_commands_in_the_readme_run(started):
    """All, in their order."""
    commands = re.findall(r"(?:^    |`)(\.venv/bin/lenet-jax (?!run --config=mine)[^`\n]*)", README, re.MULTILINE)
    printed = {command: said(started, command) for command in commands}
    assert len(printed) == 9
    again = [run_folder.load(started / "runs" / name).metrics for name in ("quickstart", "again")]
    pd.testing.assert_frame_equal(*again)
    assert (started / "runs" / "figures" / "report.html").exists()
    (classified,) = (text for command, text in printed.items() if "classify" in command)
    (row,) = [line for line in classified.splitlines() if "seven.png" in line]
    assert row.split()[1] in "0123456789"  # these networks have hardly trained


def test_targets_and_extras_in_the_readme_exist():
    for target in re.findall(r"`?make (\S+?)[`\n]", README):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
    extras = set(re.findall(r"\.\[(\w+)\]", README))
    assert extras >= {"tensorboard", "notebooks"}
    for extra in extras:
        assert re.search(rf"^{extra} =$", (ROOT / "setup.cfg").read_text(), re.MULTILINE), extra


def test_the_python_in_the_readme_runs(started, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(started)
    assert any("classify" in block for block in blocks)
    assert {"quickstart", "initializer"} <= set(BLOCKS)
    for block in blocks:
        names = {}
        # The run of this test has one epoch.
        shown = block.replace("run.metrics.query", "errors = run.metrics.query").replace("epoch == 10", "epoch == 1")
        exec(compile(shown, "README.md", "exec"), names)
        if "run" in names:
            assert set(names["errors"].index) == set(names["run"].arms)
        if "get_config" in names:
            assert arms.expand(names["get_config"]())


def test_every_config_field_in_the_readme_exists():
    from lenet_jax.experiments import base

    fields = set(base.get_config())
    named = re.findall(r"config\.(\w+)", README)
    assert named
    assert set(named) <= fields | {"json", "get_config"}


def test_what_the_readme_says_of_learning_rates_is_stored():
    run = run_folder.load(ROOT / "experiments" / "results" / "learning_rate")
    rows = compare.arm_statistics([run], "validation_error")
    means = {(row.axes["loss"], row.axes["activation"], row.axes["learning_rate"]): row.mean for row in rows}
    pairs = {key[:2] for key in means}
    best = {pair: min((means[key], key[2]) for key in means if key[:2] == pair)[1] for pair in pairs}
    assert best == {
        ("mse", "sigmoid"): 0.03,
        ("mse", "tanh"): 0.1,
        ("cross_entropy", "sigmoid"): 0.03,
        ("cross_entropy", "tanh"): 0.1,
    }
    for loss in ("mse", "cross_entropy"):
        for rate in (0.1, 0.03):
            assert f"{100 * means[loss, 'tanh', rate]:.2f} %" in README
    sigmoid = [row for row in rows if row.axes["activation"] == "sigmoid"]
    at_a_tenth = [row.values for row in sigmoid if row.axes["learning_rate"] == 0.1]
    poor = sorted(value for values in at_a_tenth for value in values if value > 0.1)
    assert (len(poor), sum(map(len, at_a_tenth))) == (5, 8)
    assert f"errors of {100 * poor[0]:.0f} to {100 * poor[-1]:.0f} %" in README
