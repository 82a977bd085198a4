"""The report of the reproduction says what is stored, and the stored results are of the shipped experiments."""

import importlib
import re
from pathlib import Path

import pytest

from lenet_jax.run import arms
from lenet_jax.run import folder as run_folder

ROOT = Path(__file__).parent.parent
STORED = ROOT / "experiments" / "results"
PAGE = ROOT / "docs" / "reproduction.md"
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
    assert [link for link in links if link not in anchors and not (PAGE.parent / link).exists()] == []


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
