"""Tests of the benchmark of whole jobs: what it exports, what it computes, and, with PyTorch, that it runs."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from lenet_jax import initializers, train

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "experiments" / "benchmarks"


pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def benchmark(load_benchmark):
    return load_benchmark("time_to_result")


@pytest.fixture(scope="module")
def job_torch(load_benchmark):
    return load_benchmark("job_torch")


@pytest.fixture(scope="module")
def exported(benchmark, tmp_path_factory):
    """(name of a job) -> its job.json, its images, and the start of the only network of `one`."""
    folder = tmp_path_factory.mktemp("jobs")

    def read(name):
        if not (folder / name).exists():
            benchmark.jobs.export(benchmark.JOBS[name], folder / name, given=name == "one")
        return json.loads((folder / name / "job.json").read_text()), folder / name

    with pytest.MonkeyPatch.context() as patch:
        # One program, not one per operation.
        patch.setattr(train, "init", jax.jit(train.init, static_argnames="recipe"))
        yield read


def test_the_quickstart_is_exported_as_it_is(exported):
    job, folder = exported("quickstart")
    assert [(arm["loss"], arm["activation"]) for arm in job["arms"]] == [
        (loss, activation) for loss in ("mse", "cross_entropy") for activation in ("sigmoid", "tanh")
    ]
    assert all(arm["tuning"] is None and arm["test"]["seeds"] == list(range(8)) for arm in job["arms"])
    phase = job["arms"][0]["test"]
    assert phase["splits"] == {"train": [0, 4000], "validation": [4000, 5000], "test": [5000, 10000]}
    assert phase["rates"] == [0.03]
    images = np.load(folder / job["images"])
    inputs = images["pixels"][:4000, 2:30, 2:30] * phase["scale"] + phase["shift"]
    assert abs(inputs.mean()) < 1e-6
    assert abs(inputs.std() - 1) < 1e-6


def test_the_order_and_the_weights_are_those_of_the_run(exported):
    _, folder = exported("one")
    with np.load(folder / "start-0.npz") as start:
        orders, kernel = start["orders"], start["f6.kernel"]
    assert orders.shape == (10, 4000)
    assert all((np.sort(order) == np.arange(4000)).all() for order in orders)
    assert len({order.tobytes() for order in orders}) == 10
    bound = initializers.glorot(120, 84, "tanh").weight
    assert 0.99 * bound < np.abs(kernel).max() <= bound


def test_the_tuned_job_is_a_tenth_of_the_ablation(exported):
    job, _ = exported("tuned")
    samples = sum(arm[kind]["samples"] for arm in job["arms"] for kind in ("tuning", "test"))
    ablation = 4 * 10 * (6 * 3 * 50_000 + 10 * 60_000)  # 60 million, as experiments/ablation.py says
    assert 0.095 < samples / ablation < 0.105
    for arm in job["arms"]:
        assert arm["tuning"]["rates"] == [0.003, 0.01, 0.03, 0.1, 0.3, 1.0]
        assert arm["tuning"]["evaluated"] == ["validation"]
        assert arm["test"]["splits"]["train"] == [0, 5000]


def test_one_network_is_exported(exported):
    (arm,) = exported("one")[0]["arms"]
    assert arm["test"]["seeds"] == [0]
    assert arm["test"]["epochs"] == 10


def test_fields_that_the_pytorch_job_does_not_follow_are_refused(benchmark, tmp_path):
    job = benchmark.JOBS["one"]._replace(fields={"optimizer": "adam"})
    with pytest.raises(benchmark.RefusalError, match="optimizer"):
        benchmark.jobs.export(job, tmp_path / "job", given=False)


def test_the_pytorch_job_imports_neither_jax_nor_torch_at_its_start():
    code = "import sys; import job_torch; print(*sorted({'jax', 'torch', 'lenet_jax'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=BENCHMARKS, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_rate_with_the_smallest_error_is_chosen(job_torch):
    assert job_torch.choose([0.1, 0.2, 0.4], [0.3, 0.3, 0.1, 0.2, 0.0, 0.4]) == 0.2
    assert job_torch.choose([0.1, 0.2], [0.1, 0.3, 0.3, 0.1]) == 0.1


def test_the_table_of_the_pytorch_job_has_means_and_paired_differences(job_torch):
    errors = {"a": np.array([0.02, 0.04, 0.03]), "b": np.array([0.03, 0.05, 0.04])}
    first, second, difference = (job_torch.table(errors).splitlines()[index].split() for index in (1, 2, 4))
    assert (first[1], second[1], difference[3:]) == ("3.00", "4.00", ["1.00", "1.00", "to", "1.00"])


def arrangement(seconds, errors):
    return {
        "seconds": seconds,
        "cpu_seconds": 2 * seconds,
        "others_percent": 1.0,
        "parts": {"arms": seconds},
        "errors": {"tanh": errors},
        "chosen": {"tanh": 0.03},
    }


@pytest.fixture
def rounds():
    peer = [0.046, 0.050, 0.048]
    return [
        {"lenet_jax_cold": arrangement(20.0, [0.045, 0.049, 0.047]), "torch": arrangement(50.0, peer)}
        | ({"torch_compile_cold": arrangement(200.0, peer)} if first else {})
        for first in (True, False)
    ] + [{"lenet_jax_cold": arrangement(25.0, [0.045, 0.049, 0.047]), "torch": arrangement(50.0, peer)}]


def test_ratios_are_of_the_same_round(benchmark, rounds):
    eager, compiled = benchmark.ratios(rounds)
    assert (eager["median"], eager["min"], eager["max"]) == (2.5, 2.0, 2.5)
    assert compiled["rounds"] == [10.0]


def test_errors_that_differ_by_more_than_their_intervals_are_refused(benchmark, rounds):
    (row,) = benchmark.compare_errors(rounds[0])
    assert row["means"] == pytest.approx([0.047, 0.048])
    rounds[0]["torch"]["errors"]["tanh"] = [0.146, 0.150, 0.148]
    with pytest.raises(benchmark.RefusalError, match="tanh"):
        benchmark.compare_errors(rounds[0])
    rounds[0]["torch"]["chosen"]["tanh"] = 0.1
    assert benchmark.compare_errors(rounds[0])


@pytest.mark.parametrize(
    ("loss", "errors", "message"), [(1e-3, [200, 200], "losses"), (1e-7, [200, 230], "230"), (1e-7, [200, 220], "")]
)
def test_networks_from_equal_weights_make_equal_errors(benchmark, loss, errors, message):
    checked = {"images": 5000, "arms": {"tanh": {"loss": [loss, 0.1], "errors": errors}}}
    if message:
        with pytest.raises(benchmark.RefusalError, match=message):
            benchmark.refuse_unequal(checked, 25)
    else:
        benchmark.refuse_unequal(checked, 25)


def test_the_report_has_medians_ratios_and_errors(benchmark, rounds):
    results = benchmark.machine.describe() | {
        "settings": {"fields": [], "once": ["torch_compile_cold"]},
        "check": {"images": 5000, "arms": {"tanh": {"loss": [1e-7, 1e-4], "errors": [200, 201]}}},
        "busy_percent_before": 1.0,
        "others_percent": 1.0,
        "jobs": {"one": benchmark.results_of(benchmark.JOBS["one"], rounds)},
    }
    text = benchmark.report.time_to_result_table(results)
    assert "| one | **20 s** | 2.5x |  |  | 50 s (PyTorch eager) |" in text
    assert "| torch.compile, cold, once | 200 | 200 | 200 | 10x (10 to 10) |" in text
    assert "| tanh | 4.70 | 4.20 to 5.20 | 4.80 | 4.30 to 5.30 | 0.03 |" in text
    assert "| tanh | 200 | 201 | 1.0e-07 | 1.0e-04 |" in text


def test_finished_measurements_are_kept_and_disturbed_ones_repeated(benchmark, tmp_path):
    path, calls = tmp_path / "partial.json", []

    def measure(others):
        calls.append(others)
        return {"others_percent": others}

    for _ in range(2):
        for others in (1.0, 50.0):
            benchmark.machine.Partial(path, {"commit": "a"}).obtain(str(others), lambda others=others: measure(others))
    assert calls == [1.0, 50.0, 50.0]
    benchmark.machine.Partial(path, {"commit": "b"}).obtain("1.0", lambda: measure(2.0))
    assert calls[-1] == 2.0


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch comes with the extra 'benchmarks'")
def test_the_benchmark_runs(tmp_path):
    fields = [f"--fields={field}" for field in ("epochs=1", "seeds=2", "tune_seeds=1")]
    command = [sys.executable, BENCHMARKS / "time_to_result.py", "--rounds=1", f"--out={tmp_path}", *fields]
    subprocess.run([*command, "--arrangements=lenet_jax_cold,lenet_jax_warm,torch"], check=True)
    jobs = json.loads((tmp_path / "time_to_result.json").read_text())["jobs"]
    assert list(jobs) == ["quickstart", "tuned", "one"]
    assert all(len(job["ratios"]) == 2 and len(job["rounds"]) == 1 for job in jobs.values())
