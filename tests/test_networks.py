"""Tests of trained networks as a run folder keeps them."""

import dataclasses
import os
import shutil
from pathlib import Path

import few_digits
import jax
import jax.numpy as jnp
import launch
import numpy as np
import pytest
from PIL import Image

import lenet_jax
from lenet_jax import cli, model, stats
from lenet_jax.analysis import compare, metrics
from lenet_jax.data import datasets
from lenet_jax.errors import InputError
from lenet_jax.run import folder as run_folder
from lenet_jax.run import memory, plan, runner
from lenet_jax.run.arms import expand

TANH, RBF = "tanh", "as in 1998"  # not in alphabetical order


def small():
    config = few_digits.small(first_seed=5)
    config.sweep.arm = {
        TANH: {"learning_rate": 0.2, "padding": "edge"},
        RBF: {
            "activation": "scaled_tanh",
            "output": "rbf",
            "loss": "map",
            "normalization": "lecun1998",
            "learning_rate": 0.003,
            "order": "stored",
        },
    }
    return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    runner.run(small(), folder, "test")
    return folder


@pytest.fixture(scope="module")
def run(folder):
    return lenet_jax.load_run(folder)


@pytest.fixture(scope="module")
def test_digits():
    dataset = datasets.load(few_digits.DATASET)
    return dataset.test_images, dataset.test_labels


def test_predictions_say_what_every_network_makes_of_every_test_image(folder, test_digits):
    run = run_folder.load(folder)
    table = run.predictions
    assert list(table.columns) == ["arm", "seed", "image", "label", "predicted", "margin", "nll", "brier"]
    assert len(table) == 2 * 3 * 200
    np.testing.assert_array_equal(table.label[:200], test_digits[1])
    assert (table.margin >= 0).all()
    errors = (table.label != table.predicted).groupby([table.arm, table.seed]).mean()
    for arm in run.summary["arms"]:
        assert errors[arm["name"]].tolist() == pytest.approx(arm["test_error"]["per_seed"], abs=1e-6)
        assert arm["test_error"]["mean"] < 0.5, "it learned"
    for metric in ("test_error", "test_nll", "test_brier"):
        scores = metrics.per_image(run, metric)
        for arm, values in metrics.by_arm(run, metric).items():
            np.testing.assert_allclose(scores[arm].values.mean(axis=1), values, rtol=1e-4)
    # Probabilities differ by less than 1, penalties by more.
    assert table[table.arm == TANH].margin.max() <= 1
    assert table[table.arm == RBF].margin.max() > 1


def test_a_run_tells_of_its_arms(run):
    assert [arm.name for arm in run.arms] == [TANH, RBF]
    assert repr(run) == f"TrainedRun({str(run.folder)!r}, arms=2)"
    assert run.seeds(TANH) == [5, 6, 7]
    assert run.arm().name == TANH, "the one with the smallest error"
    assert run.architecture(RBF).output == "rbf"
    assert set(run.metrics.arm) == {RBF, TANH}
    assert run.config["validation_size"] == 300
    assert run.params().c1.kernel.shape == (3, 6, 5, 5)
    assert sum(leaf.size for leaf in jax.tree.leaves(run.params(RBF, 6))) == 60_000


@pytest.mark.parametrize("metric", ["train_error", "test_error"])
def test_the_summary_and_a_comparison_have_the_same_statistics(run, metric):
    rows = compare.arm_statistics([run], metric)
    assert [row.arm for row in rows] == [TANH, RBF]
    for row in rows:
        stored = getattr(run.arm(row.arm), metric)
        for field in dataclasses.fields(stats.Statistics):
            assert getattr(row, field.name) == getattr(stored, field.name), field.name


@pytest.mark.parametrize("arm", [RBF, TANH])
def test_networks_are_those_that_were_tested(run, test_digits, arm):
    """What one of them makes of the test digits is what the run has measured of it."""
    images, labels = test_digits
    for seed in run.seeds(arm):
        found = lenet_jax.classify(run, images, arm, seed)
        stored = run.predictions.query("arm == @arm and seed == @seed").sort_values("image")
        assert (found.digits == stored.predicted).mean() > 0.998
        np.testing.assert_allclose(found.margins, stored.margin, rtol=1e-3, atol=1e-3)
        assert (found.votes.argmax(axis=-1) == found.digits).all()
        errors = run.metrics.query(
            "arm == @arm and seed == @seed and split == 'test' and metric == 'error' and epoch == 2"
        )
        assert (found.digits != labels).mean() == pytest.approx(errors.value.item(), abs=2e-3)


def test_several_networks_give_their_mean(run, test_digits):
    images, _ = test_digits
    together = lenet_jax.classify(run, images)
    alone = [lenet_jax.classify(run, images, seed=seed) for seed in run.seeds()]
    np.testing.assert_allclose(together.scores, np.mean([one.scores for one in alone], axis=0), atol=1e-6)
    np.testing.assert_allclose(together.scores.sum(axis=-1), 1, atol=1e-5)
    assert (together.votes == sum(one.votes for one in alone)).all()
    assert (together.votes.sum(axis=-1) == 3).all()
    np.testing.assert_allclose(lenet_jax.classify(run, images[0], seed=5).scores, alone[0].scores[:1], atol=1e-6)


def test_images_are_normalized_as_in_training(run, test_digits):
    images, _ = test_digits
    for arm in expand(small()):
        phase = plan.make([arm]).arms[0].test
        whole = plan.images_of(phase.dataset, phase.images)
        expected = np.asarray(jax.tree.map(jnp.asarray, whole).take(jnp.arange(600, 610))[0])
        np.testing.assert_allclose(run.normalize(images[:10], arm.name), expected, atol=1e-6)
    assert run.normalize(np.zeros((2, 3, 32, 32))).shape == (2, 3, 32, 32)


@pytest.mark.slow
def test_networks_that_were_trained_in_chunks_are_put_together(run, tmp_path, monkeypatch):
    largest = expand(small())[0]  # the output layer of the other arm has no parameters
    recipe = plan.make([largest]).arms[0].test.recipe
    monkeypatch.setattr(memory, "memory_for_members", lambda: 2 * memory.member_memory(recipe))
    runner.run(small(), tmp_path / "run", "test")
    assert len(list((tmp_path / "run").glob(f"checkpoints/{TANH}/tested-*"))) == 2
    chunked = lenet_jax.load_run(tmp_path / "run").params(TANH)
    for leaf, expected in zip(jax.tree.leaves(chunked), jax.tree.leaves(run.params(TANH)), strict=True):
        np.testing.assert_allclose(leaf, expected, rtol=1e-3, atol=1e-4)


def refused(function, *arguments, **named):
    with pytest.raises(InputError) as error:
        function(*arguments, **named)
    return str(error.value)


def test_what_is_not_there_is_refused(run, tmp_path):
    image = np.zeros((28, 28), np.uint8)
    assert refused(lenet_jax.classify, run, image, "relu") == f"arm: 'relu' is not one of '{TANH}', '{RBF}'"
    assert refused(lenet_jax.classify, run, image, seed=4) == "seed: 4 is not a seed of arm 'tanh'; allowed are 5 to 7"
    assert "images: shape [30, 30]; allowed is [..., 28, 28]" in refused(lenet_jax.classify, run, np.zeros((30, 30)))
    assert "images: shape [1, 2, 32, 32]; allowed is one" in refused(lenet_jax.classify, run, np.zeros((1, 2, 28, 28)))
    assert "not finite" in refused(lenet_jax.classify, run, np.full((28, 28), np.nan))
    assert "images: type <U9; allowed are numbers" in refused(lenet_jax.classify, run, np.array("seven.png"))
    assert "is not a folder" in refused(lenet_jax.load_run, tmp_path / "none")
    stored = lenet_jax.load_run(Path(__file__).parent.parent / "experiments" / "results" / "lenet5_1998")
    assert "holds no trained networks; train them again with lenet-jax run --config=experiments/stored.py:" in refused(
        lenet_jax.classify, stored, image
    )
    for asked in (stored.params, stored.seeds, stored.architecture):
        assert "holds no trained networks" in refused(asked)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = lenet_jax.nothing


def test_networks_that_are_gone_or_damaged_are_told_and_nothing_is_changed(folder, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    (state,) = copy.glob(f"checkpoints/{TANH}/tested-0-3/states/*")
    largest = max((path for path in state.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    files = sorted(copy.rglob("*"))
    damaged = lenet_jax.load_run(copy)
    message = refused(damaged.params, TANH)
    assert f"run: '{state}' is corrupt (" in message
    assert sorted(copy.rglob("*")) == files
    assert damaged.params(RBF).output is None
    shutil.rmtree(copy / "checkpoints" / TANH)
    assert f"run: '{copy}/checkpoints/{TANH}' lacks the 3 trained networks" in refused(
        lenet_jax.load_run(copy).params, TANH
    )


def lenet_jax_classify(cwd, *arguments):
    return launch.run(["classify", *arguments], cwd)


def test_the_command_classifies_files(folder, run, test_digits, tmp_path):
    images, _ = test_digits
    expected = lenet_jax.classify(run, images[:4], TANH)
    for place, image in enumerate(images[:4]):
        Image.fromarray(255 - np.kron(image, np.ones((3, 3), np.uint8))).save(tmp_path / f"{place}.png")
    result = lenet_jax_classify(tmp_path, folder, *(f"{place}.png" for place in range(4)))
    assert result.returncode == 0, result.stderr
    assert not result.stderr
    assert "tanh: mean score of 3 networks" in result.stdout
    for row, (place, digit) in zip(
        [line.split() for line in result.stdout.splitlines() if ".png" in line], enumerate(expected.digits), strict=True
    ):
        assert row[0] == f"{place}.png"
        assert row[1] == str(digit)
        assert row[-2:] == ["of", "3"]
    assert "misread" not in result.stdout
    Image.fromarray(255 - np.kron(np.hstack(images[:2]), np.ones((3, 3), np.uint8))).save(tmp_path / "two.png")
    one = lenet_jax_classify(tmp_path, folder, "0.png", "two.png", f"--arm={RBF}", "--seed=6")
    assert "as in 1998: seed 6" in one.stdout
    assert "\ntwo.png may be misread: a second shape, perhaps of another digit" in one.stdout
    assert "probability" not in one.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "image: missing; write lenet-jax classify RUN IMAGE"),
        (["no.png"], "is not an image; PNG, JPEG, "),
        (["none.png"], "none.png' can't be read (No such file or directory)"),
        (["pipe.png"], "pipe.png' is not a regular file"),
        (["grey.png"], "grey.png': it has only one grey value; expected a digit"),
        (["--arm=relu", "fine.png"], "arm: 'relu' is not one of"),
        (["--seed=1", "fine.png"], "seed: 1 is not a seed of arm 'tanh'; allowed are 5 to 7"),
    ],
)
def test_the_command_refuses_in_one_line(folder, tmp_path, monkeypatch, capsys, arguments, message):
    """In this process: each of its own takes seconds to start."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "no.png").write_text("text")
    os.mkfifo(tmp_path / "pipe.png")
    Image.new("L", (40, 40), 200).save(tmp_path / "grey.png")
    Image.fromarray(np.pad(np.full((20, 4), 255, np.uint8), 10)).save(tmp_path / "fine.png")
    with pytest.raises(SystemExit) as refusal:
        cli.main(["classify", str(folder), *arguments])
    assert refusal.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_scores_are_those_of_the_specification(run, test_digits):
    """Not of the fast form that trained them."""
    image, params = run.normalize(test_digits[0][0]), run.params(TANH, 5)
    logits = jax.jit(model.forward, static_argnums=2)(params, image, run.architecture(TANH))
    np.testing.assert_allclose(
        lenet_jax.classify(run, test_digits[0][0], TANH, 5).scores[0], jax.nn.softmax(logits), atol=1e-6
    )


def test_networks_that_diverged_are_left_out(run, test_digits):
    """Of three, one; or all."""
    lost = dataclasses.replace(run, _networks={})
    kernel = run.params(TANH).c1.kernel
    for indices, votes in (([1], 2), ([0, 1, 2], None)):
        broken = run.params(TANH).c1.replace(kernel=kernel.at[jnp.array(indices)].set(jnp.nan))
        lost._networks[TANH] = run.params(TANH).replace(c1=broken)
        if votes is None:
            assert "all networks of 'tanh' diverged" in refused(lenet_jax.classify, lost, test_digits[0], TANH)
            continue
        found = lenet_jax.classify(lost, test_digits[0], TANH)
        assert (found.votes.sum(axis=-1) == votes).all()
        others = [lenet_jax.classify(run, test_digits[0], TANH, seed).scores for seed in (5, 7)]
        np.testing.assert_allclose(found.scores, np.mean(others, axis=0), atol=1e-6)
