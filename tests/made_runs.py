"""Run folders with known numbers."""

import dataclasses
import functools
import itertools
import json

import numpy as np
import pandas as pd

from lenet_jax import stats
from lenet_jax.run import answers as run_answers
from lenet_jax.run import files
from lenet_jax.run import folder as run_folder
from lenet_jax.run.answers import Answers

ERRORS = {("mse", "tanh"): [0.05, 0.07, 0.06], ("cross_entropy", "tanh"): [0.03, 0.03, 0.06]}
AXES = ("loss", "activation")


def summary_row(name, dataset, errors=(0.05,), **fields):
    """A row of summary.json, as older runs have it; tests don't look at what isn't given."""
    error = json.loads(json.dumps(dataclasses.asdict(stats.summarize(errors))))
    row = {"name": name, "axes": {}, "seeds": len(errors), "diverged": 0, "chosen": {}, "parameters": 60850}
    row |= {"dataset": dataset, "train_error": error, "test_error": error}
    return row | {"seconds": 1.0, "samples_per_second": 1000.0, "predicted_memory": 2**20} | fields


def write_run(
    folder,
    errors=ERRORS,
    axes=AXES,
    fingerprint="sha256:0",
    diverged=0,
    first_seed=0,
    config=None,
    versions=None,
    chosen=None,
    names=None,
    test=1000,
    curves=("train", "test"),
    shared=None,
    scores=False,
):
    """A run folder whose arms have these errors at the last of two epochs, and twice as much at the first.

    Args:
      folder: to be made.
      errors: values of the axes -> error of each seed; arms may have different numbers of seeds.
      axes: their names.
      fingerprint, test: of the data set.
      diverged: of each arm's members, says the summary.
      first_seed: of all arms, or by arm.
      config, versions: as stored.
      chosen: by arm, tuned hyperparameters, and those of them at an edge.
      names: of named arms, which have no axes.
      curves: splits that were measured at both epochs; of train and test, others at the last one alone.
      shared: stores predictions, see `mistakes`; test errors are then rounded to whole images.
      scores: stores nll and brier of each image, too.
    """
    arms, tables, answered = [], [], {}
    data = {"name": "mnist10k", "fingerprint": fingerprint, "test": test}
    for index, (values, of_seeds) in enumerate(errors.items()):
        shown = {} if names else dict(zip(axes, values, strict=True))
        if shared is not None:
            wrong = mistakes(of_seeds, test, shared, index)
            of_seeds = wrong.mean(axis=1)
        name = names[index] if names else ",".join(f"{axis}={value}" for axis, value in shown.items())
        picked, edge = (chosen or {}).get(values, ({}, []))
        found = {"axes": shown, "diverged": diverged, "chosen": picked, "chosen_at_edge": edge, "seconds": 2.0 + index}
        arms.append(summary_row(name, data, of_seeds, **found))
        first = first_seed[values] if isinstance(first_seed, dict) else first_seed
        splits = dict.fromkeys((*curves, "train", "test"))
        if shared is not None:
            answered[name] = one = answers_of(wrong, first, scores)
            columns = {"arm": name, **shown, "epoch": 2, "split": "test", "seed": one.seeds}
            for metric in ("nll", "brier") if scores else ():
                tables.append(pd.DataFrame(columns | {"metric": metric, "value": getattr(one, metric).mean(axis=1)}))
        for epoch, split in itertools.product((1, 2), splits):
            if epoch == 1 and split not in curves:
                continue
            columns = {"arm": name, **shown, "epoch": epoch, "split": split}
            seeds = {"seed": range(first, first + len(of_seeds))}
            error = np.array(of_seeds, float) * (3 - epoch)
            for metric, value in (("error", error), ("loss", 10 * error)):
                tables.append(pd.DataFrame(columns | seeds | {"metric": metric, "value": value}))
    folder.mkdir(parents=True)
    files.write_table(folder / run_folder.METRICS, pd.concat(tables, ignore_index=True))
    if answered:
        of_arms = {arm["name"]: arm["axes"] for arm in arms}
        table = run_answers.frame(answered, of_arms)
        texts = table.select_dtypes("category").columns
        files.write_table(folder / run_folder.PREDICTIONS, table.astype(dict.fromkeys(texts, "str")))
    files.write_json(folder / run_folder.SUMMARY, {"dataset": data, "arms": arms})
    files.write_json(folder / run_folder.CONFIG, config or {})
    files.write_json(
        folder / run_folder.PROVENANCE, {"versions": versions or {}, "command": "lenet-jax run --config=x.py"}
    )
    return folder


def mistakes(errors, images, shared, arm=0):
    """Whether each network misclassifies each image, [seeds, images]: the hardest ones, as many as its error says.

    An image is as hard for all networks of all runs, but for chance: `shared` is this part of the variance.
    """
    common = np.random.default_rng(0).normal(size=images)
    own = np.random.default_rng([1, arm]).normal(size=(len(errors), images))
    hardest = np.argsort(np.argsort(-(np.sqrt(shared) * common + np.sqrt(1 - shared) * own), axis=1), axis=1)
    return hardest < np.round(np.array(errors)[:, None] * images)


def answers_of(wrong, first_seed=0, scores=False):
    """Answers with these mistakes, [seeds, images]; labels are 0 to 9 in turn."""
    (seeds, images), rng = wrong.shape, np.random.default_rng(2)
    labels = (np.arange(images) % 10).astype(np.int16)
    right = np.where(wrong, 0.3, 0.9) * rng.uniform(0.8, 1.0, wrong.shape)
    found = [run_answers.rounded(values) for values in (-np.log(right), 2 * (1 - right) ** 2)] if scores else []
    margin = rng.uniform(0, 1, wrong.shape).astype(np.float32)
    predicted = ((labels + wrong) % 10).astype(np.int16)
    return Answers(first_seed + np.arange(seeds), np.arange(images), labels, predicted, margin, *found)


def answers(predicted, labels=1, margin=1.0):
    """Answers of networks with the classes that they predict, [seeds, images]."""
    predicted = np.array(predicted, np.int16)
    seeds, images = map(np.arange, predicted.shape)
    labels = np.broadcast_to(np.array(labels, np.int16), len(images))
    return Answers(seeds, images, labels, predicted, np.broadcast_to(np.array(margin, np.float32), predicted.shape))


def predictions(margins, wrong, seed=0, arm="loss=mse,activation=tanh"):
    """A table like a run's: label 1, and 2 predicted where it is wrong."""
    columns = {"arm": arm, "seed": seed, "image": range(len(margins)), "label": 1}
    return pd.DataFrame(columns | {"predicted": 1 + np.array(wrong, int), "margin": margins})


def large_run(folder, arms=50, seeds=100, images=10_000, epochs=50):
    """A run of `arms` on two axes, with curves of two splits, whose networks err on the same images more often."""
    rng = np.random.default_rng(0)
    difficulty = rng.normal(-7, 2.8, images).astype(np.float32)  # logit of the rate of errors, of each image
    labels = rng.integers(0, 10, images).astype(np.int16)
    rates, activations = np.geomspace(0.001, 1, -(-arms // 5)), ("sigmoid", "tanh", "relu", "scaled_tanh", "swish")
    axes = [{"activation": name, "learning_rate": rate} for name in activations for rate in rates][:arms]
    names = [f"activation={one['activation']},learning_rate={one['learning_rate']:.15g}" for one in axes]
    means = {}  # arm -> (error, nll, brier) of each seed

    def answered(arm):
        skill = 0.1 * arm / arms + rng.normal(0, 0.1, (seeds, 1)).astype(np.float32)
        logit = difficulty - skill + rng.normal(0, 1, (seeds, images)).astype(np.float32)
        right = 1 / (1 + np.exp(logit))
        wrong, nll, brier = logit > 0, -np.log(np.maximum(right, 1e-12)), 2 * (1 - right) ** 2
        means[arm] = wrong.mean(axis=1), nll.mean(axis=1), brier.mean(axis=1)
        margin, predicted = np.abs(2 * right - 1), np.where(wrong, (labels + 1) % 10, labels)
        scores = run_answers.rounded(nll), run_answers.rounded(brier)
        found = {names[arm]: Answers(np.arange(seeds), np.arange(images), labels, predicted, margin, *scores)}
        return run_answers.frame(found, {names[arm]: axes[arm]}).astype({"arm": "str", "activation": "str"})

    def measured(arm):
        tables = []
        for split, first in {"running": 1, "validation": 0, "test": 0, "train": epochs}.items():
            at = np.arange(first, epochs + 1)
            ratio = 1 + 50 * np.exp(-at / (epochs / 10)) - 50 * np.exp(-10)  # of each epoch's value to the last one's
            error, nll, brier = (ratio[:, None] * values for values in means[arm])
            found = {"loss": nll, "error": np.minimum(error, 1), "nll": nll, "brier": brier, "ece": brier / 10}
            for metric in [*found][: 2 if split == "running" else 5]:
                columns = {"seed": np.tile(np.arange(seeds), len(at)), "epoch": np.repeat(at, seeds)}
                columns |= {"split": split, "metric": metric, "value": found[metric].ravel()}
                tables.append(pd.DataFrame({"arm": names[arm], **axes[arm], **columns}))
        return pd.concat(tables, ignore_index=True)

    folder.mkdir(parents=True)
    for name, make in ((run_folder.PREDICTIONS, answered), (run_folder.METRICS, measured)):
        parts = [functools.partial(make, arm) for arm in range(arms)]
        files.write_table(folder / name, parts[0](), *parts[1:])
    data = {"name": "mnist", "fingerprint": "sha256:0", "test": images, "validation": 1000}
    rows = [summary_row(name, data, means[arm][0], axes=axes[arm]) for arm, name in enumerate(names)]
    files.write_json(folder / run_folder.SUMMARY, {"dataset": data, "arms": rows})
    files.write_json(folder / run_folder.CONFIG, {"seeds": seeds, "epochs": epochs})
    files.write_json(folder / run_folder.PROVENANCE, {"command": "lenet-jax run --config=x.py"})
    return folder
