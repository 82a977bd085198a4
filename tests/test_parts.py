"""A user's own parts: defined in an experiment file or a notebook, used without editing the package."""

import functools
import importlib
import json
import shutil
import signal
import sys
import textwrap
import time

import few_digits
import jax
import launch
import numpy as np
import pandas as pd
import psutil
import pytest

import lenet_jax
from lenet_jax import registry
from lenet_jax.analysis import compare, dynamics, metrics
from lenet_jax.errors import InputError
from lenet_jax.evaluate import METRICS
from lenet_jax.experiments import base
from lenet_jax.initializers import INITIALIZERS
from lenet_jax.layers import ACTIVATIONS
from lenet_jax.losses import LOSSES
from lenet_jax.optim import OPTIMIZERS, SCHEDULES
from lenet_jax.run import checkpoints, parts, processes, runner
from lenet_jax.run import folder as run_folder
from lenet_jax.run.arms import expand

SOON_COMPILED = {"connectivity": "full", "subsampling": "average", "order": "stored"}
"""Fields of programs that take less time to compile."""

OWN = textwrap.dedent(
    f"""
    import jax
    import jax.numpy as jnp

    from lenet_jax import blocked, train
    from lenet_jax.evaluate import METRICS
    from lenet_jax.experiments import base
    from lenet_jax.layers import ACTIVATIONS

    ACTIVATIONS["gelu"] = jax.nn.gelu


    def gradient_norm(state, images, recipe):
        pixels, labels = images.take(jnp.arange(100))
        gradient, _ = train.gradient_of(state.params, blocked.to_grid(pixels), labels, recipe)
        return {{name: jnp.linalg.norm(getattr(gradient, name).kernel) for name in ("output", "f6")}}


    METRICS["gradient_norm"] = gradient_norm


    def get_config(arg=None):
        config = base.get_config()
        config.update({SOON_COMPILED})
        config.dataset = {few_digits.DATASET!r}
        config.validation_size = 200
        config.train_size = 400
        config.epochs = 4
        config.seeds = 2
        config.metrics = ("gradient_norm",)
        config.sweep.activation = ("tanh", "gelu")
        return config
    """
)


def workers(count):
    """Python that is executed before a run: worker processes train it, however small it is.

    They are forks from before the experiment file is read, which import nothing again.
    """
    return (
        "import multiprocessing; from lenet_jax.run import processes; processes.WORTH_WORKERS = 0; "
        "processes.SPAWN = multiprocessing.get_context('fork'); "
        f"processes.start = lambda _, made=processes.start(processes.core_numbers()[:{count}]): made"
    )


NAMES = ["state_gradient_norm_output", "state_gradient_norm_f6"]


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """Each test starts and ends without parts of its own."""
    yield
    for table in registry.REGISTRIES.values():
        for name in table.own:
            del table[name]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A folder with `mine.py` and its run, trained by worker processes without interruption."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "mine.py").write_text(OWN)
    process = launch.start(["run", "--config=mine.py"], folder, folder / "whole.txt", before=workers(2))
    assert process.wait(300) == 0, (folder / "whole.txt").read_text()
    return folder


def test_own_parts_train_in_workers_and_end_in_metrics_and_comparisons(own):
    run = run_folder.load(own / "runs/mine")
    assert set(NAMES) <= set(metrics.names(run))
    table = run.metrics[run.metrics.split == "state"]
    assert sorted(table.epoch.unique()) == list(range(5)), "before training and after each epoch"
    assert len(table) == 2 * 2 * 5 * 2
    assert np.isfinite(table.value).all()
    found = compare.compare_runs([run], NAMES[0])
    assert [arm.arm for arm in found.arms] == ["activation=tanh", "activation=gelu"]
    assert found.arms[0].mean != found.arms[1].mean
    assert run.provenance["own_parts"] == {"activation": ["gelu"], "metrics": ["gradient_norm"]}
    assert (own / "runs/mine/experiment.py").read_text() == OWN
    shown = launch.run(["compare", "runs/mine", f"--metric={NAMES[1]}"], own)
    assert shown.returncode == 0, shown.stderr
    assert "gradient norm f6" in shown.stdout


def test_a_killed_run_with_own_parts_resumes_to_the_same_numbers(own, tmp_path):
    shutil.copy(own / "mine.py", tmp_path)
    arguments = ["run", "--config=mine.py", "--config.sweep.activation=('gelu',)", "--save-every=0", "--devices=1"]
    process = launch.start(arguments, tmp_path, tmp_path / "output.txt", session=True, before=workers(1))
    states = tmp_path / "runs/mine/checkpoints/activation=gelu"
    deadline = time.monotonic() + 200
    while not [path for path in states.glob("tested-*/states/*") if path.name.isdigit()]:
        assert time.monotonic() < deadline, (tmp_path / "output.txt").read_text()
        assert process.poll() is None, (tmp_path / "output.txt").read_text()
        time.sleep(0.02)
    for child in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        child.send_signal(signal.SIGKILL)
    process.wait(60)
    assert not (tmp_path / "runs/mine/summary.json").exists()
    changed = OWN.replace("jax.nn.gelu", "jax.nn.silu")
    (tmp_path / "mine.py").write_text(changed)
    refused = launch.run(arguments, tmp_path)
    assert refused.returncode == 2
    assert "experiment: 'mine.py' differs from" in refused.stderr
    assert refused.stderr.count("\n") == 1
    (tmp_path / "mine.py").write_text(OWN)
    process = launch.start(arguments, tmp_path, tmp_path / "again.txt", before=workers(1))
    assert process.wait(300) == 0, (tmp_path / "again.txt").read_text()
    whole, resumed = (pd.read_parquet(folder / "runs/mine/metrics.parquet") for folder in (own, tmp_path))
    whole = whole[whole.activation == "gelu"].reset_index(drop=True)
    pd.testing.assert_frame_equal(whole, resumed, check_exact=True)


def test_networks_with_own_parts_need_their_file_by_name(own):
    run = lenet_jax.load_run(own / "runs/mine")
    with pytest.raises(InputError, match=r"activation: 'gelu' is defined in an experiment file; .*experiment="):
        run.params("activation=gelu")
    assert run.params("activation=tanh").f6.bias.shape == (2, 84)
    run = lenet_jax.load_run(own / "runs/mine", experiment=own / "mine.py")
    assert run.params("activation=gelu").f6.bias.shape == (2, 84)


def test_classify_says_which_file_it_needs(own):
    image = few_digits.save_digit(own / "digit.png")
    arguments = ["classify", "runs/mine", image, "--arm=activation=gelu"]
    refused = launch.run(arguments, own)
    assert refused.returncode == 2
    assert "--experiment=" in refused.stderr
    shown = launch.run([*arguments, "--experiment=mine.py"], own)
    assert shown.returncode == 0, shown.stderr
    assert "digit.png" in shown.stdout
    missing = launch.run([*arguments, "--experiment=gone.py"], own)
    assert missing.returncode == 2
    assert "experiment: 'gone.py' can't be" in missing.stderr


def small_config(**fields):
    config = base.get_config()
    config.update({"dataset": few_digits.DATASET, "train_size": 200, "batch_size": 20, "epochs": 2, "seeds": 2})
    config.update(SOON_COMPILED | fields)
    return config


def test_parts_of_a_notebook_are_trained_in_its_process(tmp_path, monkeypatch):
    """Other processes don't know them."""
    monkeypatch.setattr(processes, "WORTH_WORKERS", 0)
    monkeypatch.setattr(dynamics, "RUNS", tmp_path)
    ACTIVATIONS["half_tanh"] = lambda a: jax.numpy.tanh(a) / 2
    METRICS["step"] = lambda state, images, recipe: state.step
    METRICS["loss"] = lambda state, images, recipe: jax.numpy.nan
    run = dynamics.run(small_config(activation="half_tanh", metrics=("step", "loss"), metrics_per_epoch=2), "own")
    assert run.arm().diverged == 0, "it is another loss"
    table = run.metrics[(run.metrics.split == "state") & (run.metrics.metric == "step")]
    assert table[table.seed == 0].value.tolist() == [0, 5, 10, 15, 20]
    assert table[table.seed == 0].epoch.tolist() == [0, 0.5, 1, 1.5, 2]
    assert not (tmp_path / "own/experiment.py").exists()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run without own parts, whose experiment file need not be there."""
    folder = tmp_path_factory.mktemp("plain")
    return runner.run(small_config(activation="tanh"), folder / "run", "test", experiment=folder / "gone.py")


def test_every_kind_of_part_can_be_ones_own_and_is_compiled_again_when_it_is_defined_again(
    plain, tmp_path, monkeypatch
):
    """Parts that are copies of the default ones, under another name, train the same networks.

    Another definition comes first, as when a cell of a notebook is executed again.
    """
    monkeypatch.setattr(dynamics, "RUNS", tmp_path)
    # sigmoid has a case of its own in the default initializer.
    config = small_config(activation="tanh")
    for field in ("activation", "initializer", "loss", "optimizer", "schedule"):
        table = registry.REGISTRIES[field]
        table["mine"] = functools.partial(
            lambda shipped, *arguments: shipped(*arguments), table[getattr(config, field)]
        )
        setattr(config, field, "mine")
    same, ACTIVATIONS["mine"] = ACTIVATIONS["mine"], lambda a: jax.nn.relu(a)
    other = dynamics.run(config, "own")
    assert not plain.metrics.value.equals(other.metrics.value)
    ACTIVATIONS["mine"] = same
    own = dynamics.run(config, "own")
    pd.testing.assert_frame_equal(plain.metrics, own.metrics)


@pytest.mark.parametrize(
    ("table", "name", "part", "message"),
    [
        (ACTIVATIONS, "tanh", jax.nn.gelu, "activation: 'tanh' is a part of lenet_jax"),
        (LOSSES, "my loss", jax.nn.gelu, "loss: 'my loss' is not a name"),
        (OPTIMIZERS, "mine", 3, "optimizer: 'mine' must be a function, not int"),
        (INITIALIZERS, "", jax.nn.gelu, "initializer: '' is not a name"),
        (SCHEDULES, "1st", jax.nn.gelu, "schedule: '1st' is not a name"),
    ],
)
def test_bad_parts_are_refused_in_one_line(table, name, part, message):
    with pytest.raises(InputError, match=message):
        table[name] = part


def test_a_metric_must_return_numbers(tmp_path):
    METRICS["all"] = lambda state, images, recipe: state.params.f6.bias
    with pytest.raises(InputError, match=r"metrics: 'all' returns an array of shape \(84,\); expected a number"):
        runner.run(small_config(metrics=("all",)), tmp_path / "run", "test")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("field", "part"),
    [
        ("activation", lambda a: a.nothing),
        ("loss", lambda outputs, labels, loss: outputs),
        ("optimizer", lambda hyper: hyper.nothing),
        ("metrics", lambda state, images, recipe: {"c1/kernel": state.step}),
        ("metrics", lambda state, images, recipe: {"a_b": 1, "a": {}}),
    ],
)
def test_parts_that_fail_are_refused_before_anything_is_written(field, part, tmp_path):
    registry.REGISTRIES[field]["mine"] = part
    value = ("mine",) if field == "metrics" else "mine"
    with pytest.raises(InputError, match=r"^(experiment|optimizer|metrics): [^\n]*$"):
        runner.run(small_config(**{field: value}), tmp_path / "run", "test")
    assert not (tmp_path / "run").exists()


def test_metrics_are_no_axis():
    METRICS["step"] = lambda state, images, recipe: state.step
    config = small_config()
    config.sweep.metrics = (("step",), ())
    with pytest.raises(InputError, match=r"sweep.metrics: 'metrics' can't be an axis; set config.metrics"):
        expand(config)


def test_another_file_than_the_runs_is_refused(own, tmp_path):
    other = tmp_path / "mine.py"
    other.write_text(OWN.replace("jax.nn.gelu", "jax.nn.silu"))
    with pytest.raises(InputError, match=r"experiment: .* differs from .*experiment.py"):
        lenet_jax.load_run(own / "runs/mine", experiment=other)


def test_a_module_that_the_experiment_file_imports_is_part_of_the_run(tmp_path, monkeypatch):
    """It decides the result as the file does, and only the file is copied into the run folder."""
    helper = tmp_path / "my_helper.py"
    helper.write_text("import jax\n\nactivation = jax.nn.relu\n")
    (tmp_path / "mine.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    ACTIVATIONS["mine"] = importlib.import_module("my_helper").activation
    monkeypatch.setattr(checkpoints, "prune", lambda *_: None)
    config = small_config(activation="mine")
    run = runner.run(config, tmp_path / "run", "test", experiment=tmp_path / "mine.py")
    assert list(run.provenance["experiment"]["imported"]) == ["my_helper.py"]
    (tmp_path / "link").symlink_to(tmp_path)
    assert parts.imported_from((tmp_path / "link").resolve()) == run.provenance["experiment"]["imported"]
    (tmp_path / "run" / "summary.json").unlink()
    helper.write_text("import jax\n\nactivation = jax.nn.silu\n")
    with pytest.raises(InputError, match="was saved by a run with other settings, data or programs"):
        runner.run(config, tmp_path / "run", "test", experiment=tmp_path / "mine.py")
    sys.modules.pop("my_helper")


def test_every_way_into_a_table_is_guarded():
    with pytest.raises(InputError, match="'tanh' is a part of lenet_jax"):
        ACTIVATIONS.update(tanh=jax.nn.gelu)


def test_unknown_metrics_are_refused():
    with pytest.raises(InputError, match="metrics: 'sharpness' is not in METRICS; allowed: none"):
        expand(small_config(metrics=("sharpness",)))


def test_runs_without_own_parts_are_as_before(plain):
    assert not (plain.folder / "experiment.py").exists()
    assert "own_parts" not in json.loads((plain.folder / "provenance.json").read_text())
    assert parts.own_parts(arm.settings for arm in expand(small_config())) == {}
