"""The report of the reproduction says what is stored, and the stored results are of the shipped experiments."""

import importlib
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from lenet_jax import stats
from lenet_jax.crossed import Layout
from lenet_jax.run import arms
from lenet_jax.run import folder as run_folder

ROOT = Path(__file__).parent.parent
STORED = ROOT / "experiments" / "results"
PAGE, FINDINGS = ROOT / "docs" / "reproduction.md", ROOT / "docs" / "findings.md"
PASSES = [f"training error of pass {epoch}" for epoch in (2, 3, 4)]
FINAL, FEWER = "test error, 60,000 digits", "training error, 15,000 digits"
DEMONSTRATION = "test error, the authors' later demonstration (QMNIST's page, +-0.2)"
T_9 = 2.262157
"""Student's 0.975 quantile for ten seeds, as tables have it."""

RUNS = sorted(folder.name for folder in STORED.iterdir() if (ROOT / "experiments" / f"{folder.name}.py").exists())


@pytest.fixture(scope="module")
def reproduction():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "experiments" / "reproduction")
        yield importlib.import_module("reproduction")


def test_tables_equal_the_stored_results(reproduction):
    assert set(reproduction.PAGES) == {PAGE}
    for page in reproduction.PAGES:
        assert reproduction.fill(page, STORED) == page.read_text()


def section(page, heading):
    """The text below a heading of a page, in one line."""
    return " ".join(page.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0].split())


@pytest.fixture(scope="module")
def compared(reproduction):
    """Name -> value of the paper and ours, of both tables."""
    rows = [*reproduction.errors(STORED), *(one for curve in reproduction.passes(STORED).values() for one in curve)]
    return {row.name: row for row in rows if row.paper is not None}


def test_the_papers_values_that_one_run_of_ours_would_not_show(reproduction, compared):
    outside = [row.name for row in reproduction.outside_of(list(compared.values()))]
    assert outside == [*PASSES[:2], FEWER, PASSES[2]]
    for row in compared.values():
        low, high = np.mean(row.ours) + np.array([-1, 1]) * T_9 * np.std(row.ours, ddof=1) * math.sqrt(1.1)
        assert (low <= row.paper / 100 <= high) == (row.name not in outside)
    assert {"test error of pass 2", DEMONSTRATION} < set(compared)
    assert len(compared) == 35


def test_conclusions_are_those_of_the_stored_results(reproduction, compared):
    """What the page says in sentences, and where else it is said."""
    said, findings = section(PAGE, "Agreement and disagreement"), section(FINDINGS, "The paper, reproduced")
    final, demonstration, fewer = compared[FINAL], compared[DEMONSTRATION], compared[FEWER]
    passes = [compared[name] for name in PASSES]
    above = [row.paper - 100 * row.ours.mean() for row in passes]
    low, high = stats.prediction_interval(final.ours)
    higher = 100 * demonstration.ours.mean() - demonstration.paper
    assert f"0.82; our mean is {higher:.2f} higher, with one run from {demonstration.cells()[2]}" in said
    assert f"half a point higher at the second pass (z = {passes[0].z:.1f})" in said
    assert above[0] == pytest.approx(0.5, abs=0.05)
    assert f"{above[1]:.2f} and {above[2]:.2f} higher at the third and fourth" in said
    assert f"(z = {passes[1].z:.1f} and {passes[2].z:.1f})" in said
    later = [compared[f"training error of pass {epoch}"].z for epoch in range(5, 15)]
    assert min(later) > 0, "the paper's later points all lie above our mean"
    assert f"reports 0.05 %; one run of ours would lie in {fewer.cells()[2]} (z = {fewer.z:.1f})" in said
    assert f"within ±{50 * (high - low):.2f} of our mean test error" in said
    assert f"one run of ours would lie in {final.cells()[2]}, on the same test images" in findings
    text = " ".join(PAGE.read_text().split())
    assert f"t = {T_9:.2f} is the quantile" in text
    assert f"beyond ±{T_9:.2f} the value" in text
    assert f"0.95 % over 10,000 independent digits ({100 * math.sqrt(0.0095 * 0.9905 / 10_000):.3f})" in text
    (answers,) = run_folder.load(STORED / "lenet5_1998").answers.values()
    elsewhere = [stats.percent(end) for end in Layout.of([answers.wrong]).one_run()[0].interval()]
    assert f"there, one run of ours would lie in {' to '.join(elsewhere)} instead of {final.cells()[2]}" in text


def test_the_notebook_shows_the_stored_results(reproduction, compared):
    cells = json.loads((ROOT / "notebooks" / "04_1998.ipynb").read_text())["cells"]
    outputs = [output["data"] for cell in cells for output in cell.get("outputs", ()) if "data" in output]
    shown = ["".join(data.get("text/markdown", ())) for data in outputs]
    assert reproduction.errors_table(STORED) in shown
    assert reproduction.rates_table(STORED) in shown
    said = " ".join(" ".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown").split())
    assert f"training error is 0.05 %, and one run of ours would lie in {compared[FEWER].cells()[2]} %" in said


def test_a_value_that_the_paper_does_not_have(reproduction):
    unknown = importlib.import_module("lenet_jax.experiments.reproduction.paper").Compared(
        "pass 20", None, np.array([0.01, 0.02, 0.03]), "2.00"
    )
    assert unknown.cells() == ["-", "2.00", "-2.97 to 6.97", "-"]
    assert unknown.z is None
    known = unknown._replace(paper=5.0)
    assert known.cells() == ["5.00", "2.00", "-2.97 to 6.97", "+2.6"]
    # Student's distribution with two degrees of freedom in closed form; z = 3 / sqrt(4/3).
    assert known.p == pytest.approx(1 - math.sqrt(6.75 / 8.75))
    far = known._replace(paper=8.0)
    assert reproduction.outside_of([known, far]) == [far]


def test_a_table_without_a_place_is_refused(reproduction, tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("<!-- passes -->\n<!-- /passes -->\n")
    monkeypatch.setitem(reproduction.PAGES, page, ("passes", "errors"))
    with pytest.raises(ValueError, match="has 0 blocks 'errors'"):
        reproduction.fill(page, STORED)


def test_every_link_leads_somewhere():
    text = PAGE.read_text()
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
    # A heading's anchor, as GitHub makes it.
    anchors = {
        "#" + re.sub(r"[^\w -]", "", line).lower().replace(" ", "-") for line in re.findall(r"^#+ (.*)", text, re.M)
    }
    assert len(links) > 10
    files = {link: PAGE.parent / link.partition("#")[0] for link in links if link not in anchors}
    assert [link for link, file in files.items() if link.startswith("#") or not file.exists()] == []


def test_all_runs_of_the_reproduction_are_stored_and_of_the_same_data():
    listed = re.search(r"REPRODUCTION := (.*?)\n\n", (ROOT / "Makefile").read_text(), re.DOTALL)
    names = listed.group(1).replace("\\", "").split()
    assert len(names) == 8
    fingerprints = set()
    for name in names:
        run = run_folder.load(STORED / name)
        for arm in run.summary["arms"]:
            fingerprints.add(arm["dataset"]["fingerprint"])
            assert arm["dataset"]["test"] == 10000
            chosen_on = run.config["validation_size"]
            assert arm["dataset"]["train"] == arm["axes"].get("train_size", 60000 - chosen_on)
    assert len(fingerprints) == 1


def test_the_same_seeds_gave_the_same_errors_in_two_runs():
    """Figure 6's networks for 60,000 digits are those of `lenet5_1998`, trained again in another run."""
    (plain,) = run_folder.load(STORED / "lenet5_1998").summary["arms"]
    sizes = {arm["axes"]["train_size"]: arm for arm in run_folder.load(STORED / "training_set_size").summary["arms"]}
    assert sizes[60000]["test_error"]["per_seed"] == plain["test_error"]["per_seed"]
    assert sizes[60000]["train_error"]["per_seed"] == plain["train_error"]["per_seed"]


@pytest.mark.parametrize("name", RUNS)
def test_stored_results_are_of_the_shipped_experiments(name):
    run = run_folder.load(STORED / name)
    shipped = arms.describe(importlib.import_module(f"lenet_jax.experiments.{name}").get_config())
    of_the_machine = {"dataset", "data_dir"}
    for field, value in run.config.items():
        assert field in of_the_machine or shipped[field] == value, field
    # Fields that are newer than the run have their defaults, which change nothing; older runs had the test curve.
    defaults = arms.describe(arms.base.get_config()) | {"test_curve": True}
    newer = {field: shipped[field] for field in shipped if field not in run.config}
    if run.config.get("validation_size"):
        assert not newer.pop("test_curve", False), "judged on the validation split alone"
    assert newer == {field: defaults[field] for field in newer}
    assert run.provenance["git_commit"]


@pytest.mark.usefixtures("quick_compilation")
def test_effective_rates_are_between_none_and_all_curvature(reproduction):
    """eta / (mu + h) is at most eta / mu, and where h is large, much less."""
    config = importlib.import_module("lenet_jax.experiments.lenet5_1998").get_config()
    config.update({"seeds": 1, "train_size": 600, "curvature_patterns": 100})

    class OneRun:
        config: dict

    run = OneRun()
    run.config = arms.describe(config)
    measured = reproduction.effective_rates(run, "mnist10k")
    assert set(measured["layers"]) == {"c1", "s2", "c3", "s4", "c5", "f6", "all weights"}
    low, high = measured["layers"]["all weights"]
    assert low < high / 100
    assert high <= config.learning_rate / config.mu
    assert (measured["seeds"], measured["fingerprint"][:7]) == (1, "sha256:")


def test_the_interval_of_a_difference_is_that_of_pairs(reproduction):
    first, second = ({"test_error": {"per_seed": errors}} for errors in ([0.03, 0.05, 0.07], [0.02, 0.04, 0.06]))
    assert reproduction.difference(first, second)["mean"] == pytest.approx(0.01)
    assert reproduction.difference(first, second)["ci95"] == pytest.approx([0.01, 0.01])
