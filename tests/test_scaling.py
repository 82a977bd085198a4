"""Tests that docs/scaling.md says what is stored, and that its model agrees with what was measured."""

import json
import re
import sys
from pathlib import Path

import pytest

from lenet_jax import model, train
from lenet_jax.run import arms, memory, states

ROOT = Path(__file__).parent.parent
STORED = ROOT / "experiments" / "results" / "devices"
PAGE = (ROOT / "docs" / "scaling.md").read_text()

sys.path.append(str(ROOT / "experiments" / "benchmarks"))
import cost  # noqa: E402

RESULTS = json.loads((STORED / "devices.json").read_text())
CHECKPOINT = json.loads((STORED / "checkpoint.json").read_text())
POINTS = RESULTS["points"]
NAMES = [f"{point['devices']} devices, {point['members']} members" for point in POINTS]


@pytest.mark.parametrize(("name", "block"), cost.blocks(RESULTS, CHECKPOINT).items())
def test_the_page_says_what_is_stored(name, block):
    assert re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", PAGE, re.DOTALL).group(1) == block


def test_the_page_says_what_one_accelerator_measured():
    stages = json.loads((STORED.parent / "accelerator" / "accelerator.json").read_text())["stages"]
    rates = {(row["members"], row["batch_size"]): f"{row['per_second']:,.0f}" for row in stages["train"]}
    assert f"{cost.H100_RATE:,}" == rates[4096, 32]
    errors = {row["gradient"] for row in stages["precision"]} | {row["parameters"] for row in stages["equality"]} - {0}
    assert all(number in PAGE for number in [*rates.values(), *(f"{error:.1e}" for error in errors)])
    assert f"took {stages['quickstart'][0]['seconds']:.0f} s with" in PAGE
    sizes = [row.get(name, 0) for row in stages["train"][1:] for name in ("predicted_bytes", "peak_bytes")]
    assert all(f"| {size / 1e6:,.0f} |" in PAGE for size in sizes if size)


def test_all_points_are_stored():
    assert [(point["devices"], point["members"]) for point in POINTS] == [(d, m) for d in (1, 2, 4, 8) for m in (8, 64)]
    assert all(one["others_percent"] < 5 for one in (*POINTS, RESULTS["large"], CHECKPOINT)), "nothing else ran"


@pytest.mark.parametrize("point", POINTS, ids=NAMES)
def test_time_is_predicted_within_25_percent(point):
    assert cost.epoch_seconds(point, cost.base_of(RESULTS)) == pytest.approx(point["epoch_seconds"], rel=0.25)


@pytest.mark.parametrize("point", [*POINTS, RESULTS["large"]], ids=[*NAMES, "large"])
def test_bytes_are_predicted_within_10_percent(point):
    assert point["state_bytes"] == pytest.approx(point["members"] * cost.STATE, rel=1e-3)
    assert point["disk_bytes"] == pytest.approx(point["members"] * cost.STATE, rel=0.1)


@pytest.mark.parametrize("point", [*POINTS, RESULTS["large"]], ids=[*NAMES, "large"])
def test_the_compilers_memory_is_predicted_within_8_percent(point):
    assert point["predicted_bytes"] == pytest.approx(cost.device_bytes(point), rel=0.08)
    if point["members"] > 8:
        assert point["predicted_bytes"] == pytest.approx(cost.device_bytes(point), rel=0.01)


def test_the_memory_of_many_members_is_predicted_within_25_percent():
    """Few members take less than JAX's own buffers."""
    large = RESULTS["large"]
    assert large["predicted_bytes"] == pytest.approx(2 * cost.STATE * large["members"], rel=0.1)
    assert large["grown_bytes"] == pytest.approx(large["predicted_bytes"], rel=0.25)
    assert large["save_peak_share"] < memory.SAVE_MEMORY_FACTOR


def test_saving_takes_at_most_a_twentieth_of_an_epoch():
    assert CHECKPOINT["samples"] == cost.TRAIN
    assert CHECKPOINT["share"] <= 0.05


def test_the_constants_of_the_model_are_those_of_the_code():

    sizes = [count for _, _, count in model.parameter_table(cost.task.ARCHITECTURE)]
    assert sum(sizes) == cost.PARAMETERS
    assert memory.member_memory(cost.task.recipe(32, 4000)) == pytest.approx(
        (2 + memory.SAVE_MEMORY_FACTOR) * cost.STATE, rel=1e-3
    )
    assert states.MAX_TO_KEEP + 1 == cost.KEPT
    assert cost.MEMBERS[-1] == arms.MAX_MEMBERS
    assert (train.MAX_CALL_SAMPLES, train.MAX_SEGMENTS) == (1_000_000, 16)


def test_an_arm_can_be_cut_as_the_page_says():
    from lenet_jax.experiments import base

    config = base.get_config()
    config.seeds = 50_000
    config.sweep.first_seed = tuple(range(0, 1_000_000, 50_000))
    assert len(arms.expand(config)) == 20
