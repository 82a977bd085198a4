"""Strings of files in media with a syntax of their own, and output that nobody reads."""

import dataclasses
import io
import multiprocessing
import os
import subprocess
import sys

import launch
import markdown_it
import numpy as np
import pytest
from made_runs import write_run
from rich.console import Console
from test_cli import QUICK

from lenet_jax import cli, output, stats
from lenet_jax.analysis import compare, metrics, tables
from lenet_jax.programs import arithmetic
from lenet_jax.run import folder as run_folder
from lenet_jax.run import processes
from lenet_jax.run.progress import Progress

NASTY = "_x_ *y* `z` [red]a[/red] [b](c) ![d](e) <img src=f> &lt; $g$ ~~h~~ | :cat: # \\ snake_case \x1b]0;i\x07"


def test_markdown_shows_a_name_as_it_is():
    page = markdown_it.MarkdownIt("gfm-like", {"linkify": False}).parse(tables.markdown_table(["a"], [[NASTY]], 0))
    inline = [token for token in page if token.type == "inline"][1]
    assert {token.type for token in inline.children} <= {"text", "text_special"}
    assert "".join(token.content for token in inline.children) == output.printable(NASTY).replace("&#36;", "$")


def unchecked(run):
    """A run whose names hold control characters for ESC, which `folder.load` refuses: a second line of defence."""

    def controlling(axes):
        return {name.replace("ESC", "\x1b"): value.replace("ESC", "\x1b") for name, value in axes.items()}

    changed = dataclasses.replace(run, metrics=run.metrics.assign(arm=run.metrics.arm.str.replace("ESC", "\x1b")))
    vars(changed)["arms"] = tuple(
        dataclasses.replace(arm, name=arm.name.replace("ESC", "\x1b"), axes=controlling(arm.axes)) for arm in run.arms
    )
    return changed


def test_no_name_controls_the_terminal_or_is_markup(tmp_path):
    """Names of arms, axes, values, runs and data sets, in tables, sentences and notes."""
    errors = {("[/red]:cat:",): [0.05, 0.06], ("ESC[2J",): [0.07, 0.09]}
    folders = [write_run(tmp_path / name, errors, axes=("ESC]0;[x]",)) for name in ("run\x1b[2J", "other")]
    run, other = (unchecked(run_folder.load(folder)) for folder in folders)
    run.summary["dataset"]["name"] = "\x1b[31m"
    for runs in ([run], [run, other]):
        shown = Console(file=io.StringIO(), width=200)
        tables.print_comparison(compare.compare_runs(runs), shown)
        text = shown.file.getvalue()
        assert "\x1b" not in text
        assert "[/red]:cat:" in text
        assert "\\x1b[2J" in text


def test_progress_shows_names_as_they_are(tmp_path, capsys):
    errors = {("[/red]:cat:ESC[2J",): [0.05, 0.06]}
    run = unchecked(run_folder.load(write_run(tmp_path / "run", errors, axes=("loss",))))
    with Progress(1, 1) as progress:
        progress.start(run.arms[0].name, 1)
        progress.finish(run.arms[0])
    assert "loss=[/red]:cat:\\x1b[2J: test error 5.50%" in capsys.readouterr().err


def test_the_title_of_a_classification_is_no_markup():
    from lenet_jax.analysis.networks import Classification

    found = Classification(*map(np.array, ([3], [np.eye(10)[3]], [0.5], [2 * np.eye(10, dtype=int)[3]])))
    shown = Console(file=io.StringIO(), width=80)
    for title in ("LeNet [max pooling]", "[/max]", "\x1b[2J"):
        shown.print(cli.classification(["[/x]\x1b.png"], found, title, True))
    text = shown.file.getvalue()
    assert "\x1b" not in text
    assert all(part in text for part in ("LeNet [max pooling]", "[/max]", "\\x1b[2J", "[/x]\\x1b.png"))


def test_one_result_is_one_number_everywhere(tmp_path, capsys):
    """Means of four seeds of 10,000 images, of which a quarter are ties, in the precision of training and of tables."""
    rng = np.random.default_rng(0)
    for wrong in rng.integers(400, 500, (16, 4)):
        single = wrong.astype(np.float32) / np.float32(10_000)
        run = run_folder.load(write_run(tmp_path / str(wrong), {("mse",): single.astype(float)}, axes=("loss",)))
        (arm,) = compare.arm_statistics([run])
        with Progress(1, 1) as progress:
            progress.chosen({}, 1, float(single.mean()), [])
            progress.chosen({}, 1, float(np.float64(single).mean()), [])
            progress.finish(run.arms[0])
        said = {line.partition("error ")[2].partition("%")[0] for line in capsys.readouterr().err.splitlines()}
        shown = {
            metrics.show(value, "test_error") for value in (arm.mean, float(arm.values.mean()), float(single.mean()))
        }
        assert shown == said == {stats.percent(sum(map(int, wrong)) / 40_000)}


@pytest.mark.parametrize("width", [80, 60, 40, 30])
def test_no_number_is_cropped(tmp_path, width):
    axes = ("loss", "activation", "optimizer", "batch_size", "initializer")
    names = {("cross_entropy", "sigmoid", "adam", 16, "glorot_uniform"), ("mse", "tanh", "sgd", 1024, "lecun_uniform")}
    errors = {values: [0.608 + 0.01 * index, 0.627, 0.611] for index, values in enumerate(sorted(names))}
    chosen = {values: ({"learning_rate": 0.0123, "weight_decay": 1e-5}, []) for values in errors}
    for tuned, diverged in (({}, 0), (chosen, 2)):
        folder = tmp_path / str(diverged)
        run = run_folder.load(write_run(folder, errors, axes=axes, chosen=tuned, diverged=diverged))
        comparison = compare.compare_runs([run])
        shown = Console(file=io.StringIO(), width=width)
        tables.print_comparison(comparison, shown)
        text = shown.file.getvalue()
        assert max(map(len, text.splitlines())) <= max(width, 45)  # narrower terminals fold the lines themselves
        _, lines, numbers = tables.cells(comparison.arms, "test_error")
        _, differences, _ = tables.judgement_cells(comparison)
        wanted = [cell for line in lines for cell in line[-numbers:]]
        missing = [cell for cell in [*wanted, *differences[0][2:4]] if cell not in text]
        assert missing == []


TINY = ["run", *QUICK, "--config.sweep.loss=('mse','cross_entropy')", "--workdir=run"]


def finishes(process, folder):
    assert process.wait(300) == 0
    assert len(run_folder.load(folder / "run").arms) == 2


def test_a_run_goes_on_when_the_reader_of_its_output_has_ended(tmp_path):
    """As in `lenet-jax run ... | tee log`, after its first line."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    process = launch.start(TINY, tmp_path, pipe)
    with open(pipe) as reader:
        assert "arm 1/2" in reader.readline()
    finishes(process, tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="terminals differ")
def test_a_run_goes_on_when_its_terminal_is_closed_and_sighup_is_ignored(tmp_path):
    """As after `nohup` or `disown`; a SIGHUP that is not ignored ends the run."""
    ours, theirs = os.openpty()
    before = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    process = launch.start(TINY, tmp_path, os.ttyname(theirs), session=True, before=before)
    said = b""
    while b"arm 1/2" not in said:
        said += os.read(ours, 65536)
    os.close(theirs)
    os.close(ours)
    finishes(process, tmp_path)


def serve_into(pipe, connection):
    """A worker whose output goes into a pipe."""
    write = os.open(pipe, os.O_WRONLY)
    os.dup2(write, 1)
    os.dup2(write, 2)
    processes.serve(connection, None)


def test_a_worker_goes_on_when_the_reader_of_its_output_has_ended(tmp_path):
    """The user's own parts may print there."""
    experiment = "print('x' * 100_000, flush=True)\nprint('again', flush=True)\n"
    os.mkfifo(tmp_path / "pipe")
    here, there = multiprocessing.Pipe()
    worker = launch.SERVER.Process(target=serve_into, args=(tmp_path / "pipe", there), daemon=True)
    worker.start()
    there.close()  # so that the worker's end ends this test
    open(tmp_path / "pipe").close()
    here.send(("configure", ({}, (tmp_path / "own.py", experiment), arithmetic())))
    assert here.recv() == (None, None)
    worker.kill()
    worker.join()


def test_a_full_disk_is_reported_on_stderr():
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [launch.SCRIPT, "--version"], stdout=full, stderr=subprocess.PIPE, text=True, env=environment
        )
    assert (result.returncode, result.stderr) == (0, "lenet-jax: stdout can't be written (No space left on device)\n")
