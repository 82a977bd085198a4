"""Tests of trained networks on other digits: `lenet-jax evaluate`, and `compare --on`."""

import dataclasses
import importlib.util
import json
import os
import shutil
import struct

import few_digits
import numpy as np
import pandas as pd
import ports
import pytest
from test_networks import RBF, TANH, small

import lenet_jax
from lenet_jax import cli
from lenet_jax.analysis import arms, compare, evaluations, metrics, report
from lenet_jax.data import corruptions, datasets, idx, preprocess
from lenet_jax.run import files, runner
from lenet_jax.run import folder as run_folder


def write(folder, **changed):
    """A folder of IDX files with few of the test digits, in another order, and what is changed; None leaves it out."""
    folder.mkdir()
    images, labels = (few_digits.arrays()[part][:40][::-1] for part in ("test_images", "test_labels"))
    arrays = {"train_images": images, "train_labels": labels, "test_images": images, "test_labels": labels} | changed
    for part, array in arrays.items():
        if array is not None:
            header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            (folder / idx.PARTS[part][0]).write_bytes(header + np.ascontiguousarray(array).tobytes())
    return f"idx:{folder}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    runner.run(small(), folder, "test")
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    """A copy of the run's folder."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """The name of a data set of other digits."""
    return write(tmp_path_factory.mktemp("other") / "digits")


def command(*arguments, code=0):
    """Runs a command in this process."""
    if code:
        with pytest.raises(SystemExit) as ended:
            cli.main(list(map(str, arguments)))
        assert ended.value.code == code
    else:
        cli.main(list(map(str, arguments)))


def test_on_the_own_test_set_networks_answer_what_they_answered_after_training(folder):
    run = lenet_jax.load_run(folder)
    (found,) = evaluations.evaluate(run, datasets.load(few_digits.DATASET))
    for arm, one in run.answers.items():
        for field in dataclasses.fields(one):
            np.testing.assert_array_equal(getattr(found.answers[arm], field.name), getattr(one, field.name), arm)
    assert found.answers[RBF].nll is not None
    for ours, theirs in zip(arms.arm_statistics([found]), arms.arm_statistics([run]), strict=True):
        assert ours.values.equals(theirs.values)
        assert (ours.interval, ours.ci95, ours.data[0]) == (theirs.interval, theirs.ci95, theirs.data[0])


def independent(run, arm, seed, pixels):
    """Arguments of a port of a network: parameters, inputs, activation."""
    settings, scaling, _ = run.recorded(arm)
    inputs = scaling["scale"] * preprocess.pad(pixels, settings["padding"]).astype(float) + scaling["shift"]
    return run.params(arm, seed), inputs, settings["activation"]


def test_a_port_to_numpy_makes_the_same_of_every_image(folder, other):
    """With other digits, in another order than those that the run was tested on."""
    run, dataset, arm = lenet_jax.load_run(folder), datasets.load(other), TANH
    (found,) = evaluations.evaluate(run, dataset)
    for row, seed in enumerate(run.seeds(arm)):
        port = independent(run, arm, seed, dataset.test_images)
        logits = ports.numpy_logits(*port)
        answers = found.answers[arm]
        np.testing.assert_array_equal(logits.argmax(axis=1), answers.predicted[row])
        scores = np.sort(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))
        np.testing.assert_allclose(scores[:, -1] - scores[:, -2], answers.margin[row], atol=1e-5)
    np.testing.assert_array_equal(found.answers[arm].labels, dataset.test_labels)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch comes with the extra 'benchmarks'")
def test_a_port_to_pytorch_makes_the_same_of_every_image(folder):
    run, dataset = lenet_jax.load_run(folder), datasets.load("mnist10k")
    (found,) = evaluations.evaluate(run, dataset)
    for row, seed in enumerate(run.seeds(TANH)):
        port = independent(run, TANH, seed, dataset.test_images)
        digits = ports.torch_logits(*port).argmax(axis=1)
        differ = digits != found.answers[TANH].predicted[row]
        assert (found.answers[TANH].margin[row][differ] < 1e-5).all(), "only where two scores are equal to rounding"
        assert differ.mean() < 1e-3


def test_a_repetition_predicts_nothing_and_other_networks_or_images_replace_it(folder, other, tmp_path, monkeypatch):
    run, dataset = lenet_jax.load_run(folder), datasets.load(other)
    calls = []
    answers_of = evaluations.answers_of
    monkeypatch.setattr(evaluations, "answers_of", lambda *given: calls.append(given[4]) or answers_of(*given))
    corrupted = [("", 0.0), ("rotation", 0.0), ("rotation", 20.0)]
    first = list(evaluations.evaluate(run, dataset, corrupted))
    assert calls == [other, f"{other}-rotation-20"], "severity 0 is the data set itself"
    again = list(evaluations.evaluate(run, dataset, corrupted))
    assert len(calls) == 2
    assert [one.summary for one in again] == [one.summary for one in first]
    changed = dataclasses.replace(dataset, test_labels=(dataset.test_labels + 1) % 10)
    (replaced,) = evaluations.evaluate(run, changed)
    assert calls[2:] == [other]
    assert replaced.summary["arms"][0]["test_error"] != first[0].summary["arms"][0]["test_error"]
    run._networks[TANH] = run._networks[TANH].replace(
        c1=run._networks[TANH].c1.replace(bias=run._networks[TANH].c1.bias + 1)
    )
    list(evaluations.evaluate(run, changed))
    assert calls[3:] == [other]


def test_corrupted_images_are_padded_before(folder):
    """A digit that moves by three pixels is still complete in 32 x 32."""
    run, dataset = lenet_jax.load_run(folder), datasets.load(few_digits.DATASET)
    (found,) = evaluations.evaluate(run, dataset, [("translation", 3)])
    moved = corruptions.corrupt(preprocess.pad(dataset.test_images, "background"), "translation", 3)
    expected = lenet_jax.classify(run, moved, TANH, seed=6)
    np.testing.assert_array_equal(expected.digits, found.answers[TANH].predicted[1])


def test_the_command_and_a_comparison_on_its_digits(folder, other, capsys):
    before = (folder / "predictions.parquet").read_bytes()
    command("evaluate", folder, f"--dataset={other}")
    said = capsys.readouterr().out
    assert said.count("\n") < 20
    assert f"lenet-jax compare {folder} --on={other}" in said
    command("compare", folder, f"--on={other}")
    said = capsys.readouterr().out
    assert "On digits, " in said
    out = folder / "plots" / run_folder.folder_name(f"on-{other}")
    table = pd.read_csv(out / "comparison.csv").set_index("arm")
    run = run_folder.load(folder)
    on = evaluations.on(run, other)
    for arm, one in on.answers.items():
        assert table.loc[arm, "mean"] == pytest.approx(one.wrong.mean(), abs=1e-6)
        assert table.loc[arm, "images"] == 40
    assert (folder / "predictions.parquet").read_bytes() == before
    assert not (folder / "plots" / "comparison.csv").exists(), "the comparison on the run's own digits stays apart"
    for metric in ("test_nll", "test_error_class_3"):
        values = metrics.by_arm(on, metric)[TANH]
        scores = metrics.per_image(on, metric)[TANH]
        np.testing.assert_allclose(values.to_numpy(), scores.values.mean(axis=1), rtol=1e-6)
    about = json.loads(evaluations.path_of(run, other).with_suffix(".json").read_text())
    assert about["command"] == f"lenet-jax evaluate {folder} --dataset={other}"
    assert about["versions"]["jax"]


def test_two_sets_of_digits_are_compared_one_after_the_other(folder, other, tmp_path, monkeypatch, capsys):
    run, shown = lenet_jax.load_run(folder), {}
    list(evaluations.evaluate(run, datasets.load(other), [("", 0), ("noise", 0.1)]))
    monkeypatch.setattr(report, "write", lambda comparison, out, *rest: shown.update({out: comparison}) or [])
    command("compare", folder, f"--on={other}", f"--on={other}-noise-0.1", f"--out={tmp_path}", "--baseline=all")
    assert [out.name for out in shown] == [run_folder.folder_name(name) for name in (other, f"{other}-noise-0.1")]
    assert all(out.parent == tmp_path for out in shown)
    clean, noisy = (comparison.runs[0] for comparison in shown.values())
    assert clean.summary != noisy.summary
    found = compare.compare_runs(
        [clean, dataclasses.replace(noisy, folder=tmp_path, provenance={})], baseline=f"run: {TANH}"
    )
    assert any("different images" in note for note in found.notes), "errors on other images are not paired"


def test_robustness_has_a_page_with_tables_and_figures(folder, other, capsys):
    command("evaluate", folder, f"--dataset={other}", "--corruption=rotation:0,30", "--corruption", "noise:0.2")
    said = capsys.readouterr().out
    assert "rotation: Test error (%)" in said
    out = folder / "evaluations" / run_folder.folder_name(f"{other}-robustness")
    page, table = (out / "robustness.md").read_text(), pd.read_csv(out / "robustness.csv")
    assert json.loads((out / "robustness.json").read_text())["config"]["seeds"] == 3
    differences = pd.read_csv(out / "differences.csv")
    assert differences.groupby(["corruption", "severity"]).size().tolist() == [1, 1, 1]
    assert len(table) == 6
    assert set(table.corruption) == {"rotation", "noise"}
    run = run_folder.load(folder)
    for row in table.itertuples():
        name = f"{other}-{row.corruption}-{row.severity:g}" if row.severity else other
        assert row.mean == pytest.approx(evaluations.on(run, name).answers[row.arm].wrong.mean(), abs=1e-6)
        assert row.ci95_low <= row.mean <= row.ci95_high
        low, high = (f"{100 * end:.2f}" for end in (row.ci95_low, row.ci95_high))
        assert f"({low} - {high})" in page
    linked = [part.split(")")[0] for part in page.split("](")[1:]]
    assert len(linked) == 3
    assert all((out / name).stat().st_size for name in linked)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"test_labels": np.arange(40, dtype=np.uint8) % 26}, "has 26 classes, and networks of"),
        (
            {"test_images": np.zeros((40, 16, 16), np.uint8)},
            "has test images of 16 x 16; allowed are 28 x 28 and 32 x 32",
        ),
        (
            {"test_labels": None, "train_labels": None},
            "lacks train-labels-idx1-ubyte[.gz], t10k-labels-idx1-ubyte[.gz]",
        ),
    ],
)
def test_data_that_networks_cannot_be_evaluated_on_are_refused(folder, tmp_path, changed, message, capsys):
    before = sorted(folder.rglob("*"))
    command("evaluate", folder, f"--dataset={write(tmp_path / 'digits', **changed)}", code=2)
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert sorted(folder.rglob("*")) == before, "nothing is written"


def lose(folder):
    shutil.rmtree(folder / "checkpoints")


def damage(folder):
    largest = max(folder.rglob("checkpoints/**/d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 255
    largest.write_bytes(content)


@pytest.mark.parametrize(("change", "message"), [(lose, "lacks the 3 trained networks"), (damage, "is corrupt")])
def test_a_run_without_its_networks_is_refused(folder, other, change, message, capsys):
    change(folder)
    command("evaluate", folder, f"--dataset={other}", code=2)
    said = capsys.readouterr().err
    assert message in said
    assert f"train it again with lenet-jax run --config=experiments/stored.py:{folder} --workdir=NEW" in said
    assert said.count("\n") == 1
    assert not (folder / "evaluations").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "RUN"], "write lenet-jax evaluate RUN --dataset=NAME"),
        (["evaluate", "--dataset=mnist10k"], "write lenet-jax evaluate RUN --dataset=NAME"),
        (["evaluate", "RUN", "--dataset=nothing"], "dataset: 'nothing' is not one of 'mnist10k'"),
        (["evaluate", "RUN", "--dataset=mnist10k", "--corruption=rotation"], "expected numbers, as in rotation:0,90"),
        (["compare", "RUN", "--on=qmnist"], "is not an evaluation of 'RUN'; there is none; lenet-jax evaluate RUN"),
        (["compare", "RUN", "--on=../victim"], "on: '../victim' is not an evaluation"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(folder, arguments, message, capsys):
    command(*(str(folder) if argument == "RUN" else argument for argument in arguments), code=2)
    said = capsys.readouterr().err
    assert message.replace("RUN", str(folder)) in said or message in said
    assert said.count("\n") == 1


def test_evaluations_that_exist_are_named(folder, other, capsys):
    list(evaluations.evaluate(lenet_jax.load_run(folder), datasets.load(other)))
    command("compare", folder, "--on=qmnist", code=2)
    assert f"allowed are {other!r}; lenet-jax evaluate" in capsys.readouterr().err


def link(path):
    content = path.read_bytes()
    target = path.parents[2] / "victim"
    target.write_bytes(content)
    path.unlink()
    path.symlink_to(target)


def rewrite(change):
    def damage(path):
        about = path.with_suffix(".json")
        content = json.loads(about.read_text())
        change(content)
        about.write_text(json.dumps(content))

    return damage


def without_an_arm(path):
    table = pd.read_parquet(path)
    table[table.arm != RBF].to_parquet(path, index=False)
    rewrite(lambda content: content.update(sha256=files.digest_of(path)))(path)


DAMAGES = {
    "a link": (link, "is a link, pipe or device"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-100]), "can't be read as Parquet"),
    "no description": (lambda path: path.with_suffix(".json").unlink(), "is missing"),
    "no field": (rewrite(lambda content: content.pop("fingerprint")), "'fingerprint' is missing"),
    "another type": (rewrite(lambda content: content.update(notes="x")), "notes: expected a list, got 'x'"),
    "a name that moves the cursor": (
        rewrite(lambda content: content.update(name="\x1b[31m")),
        "printable characters",
    ),
    "another name": (rewrite(lambda content: content.update(name="mnist")), "is of another one; evaluate again"),
    "another table": (rewrite(lambda content: content.update(sha256="0")), "is of another one; evaluate again"),
    "an arm is missing": (without_an_arm, "arm 'as in 1998' is missing"),
}


@pytest.fixture(scope="module")
def evaluated(trained, other, tmp_path_factory):
    """A copy of the run's folder with an evaluation."""
    folder = shutil.copytree(trained, tmp_path_factory.mktemp("whole") / "run")
    list(evaluations.evaluate(lenet_jax.load_run(folder), datasets.load(other)))
    return folder


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_evaluations_are_refused_and_made_again(evaluated, other, damage, message, tmp_path, capsys):
    folder = shutil.copytree(evaluated, tmp_path / "run")
    run, dataset = lenet_jax.load_run(folder), datasets.load(other)
    path = evaluations.path_of(run, other)
    damage(path)
    command("compare", folder, f"--on={other}", code=2)
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    (found,) = evaluations.evaluate(run, dataset)
    assert not path.is_symlink()
    assert found.answers[TANH].wrong.shape == (3, 40)


def test_a_folder_of_evaluations_that_is_a_link_is_not_followed(folder, other, tmp_path, capsys):
    (tmp_path / "victim").mkdir()
    (folder / "evaluations").symlink_to(tmp_path / "victim")
    for arguments in (["evaluate", folder, f"--dataset={other}"], ["compare", folder, f"--on={other}"]):
        command(*arguments, code=2)
        assert "is a link, pipe or device" in capsys.readouterr().err
    assert not os.listdir(tmp_path / "victim")
