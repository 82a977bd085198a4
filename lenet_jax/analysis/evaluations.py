"""Trained networks on other digits: ``evaluations/NAME.parquet`` in a run folder, which `compare` reads as a test set.

Beside it, ``NAME.json`` says on what and with which networks it was measured. Nothing is trained.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import operator
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import rich.markup
from jax.sharding import Mesh
from jaxtyping import Array, Int
from rich.console import Console
from rich.progress import Progress

from lenet_jax import evaluate as evaluation
from lenet_jax import jax_settings, programs, stats, train
from lenet_jax.analysis.networks import TrainedRun
from lenet_jax.data import corruptions, datasets, preprocess
from lenet_jax.data.datasets import Dataset
from lenet_jax.errors import InputError, listed
from lenet_jax.evaluate import Predictions
from lenet_jax.model import Params
from lenet_jax.output import printable, unfailing
from lenet_jax.run import answers, files, schema
from lenet_jax.run.answers import Answers
from lenet_jax.run.folder import Run, describe_environment, folder_name
from lenet_jax.run.names import format_value
from lenet_jax.train import Images, Recipe

EVALUATIONS = "evaluations"


@dataclasses.dataclass(frozen=True)
class About:
    """What ``NAME.json`` says of an evaluation; its other fields are provenance.

    Attributes:
      name: the data set's; with a corruption and its severity, if there is one.
      fingerprint: of the data set, likewise.
      networks: arm -> SHA-256 of its networks' parameters.
      notes: what is doubtful about the test images.
      sha256: of ``NAME.parquet``.
    """

    name: str
    fingerprint: str
    networks: dict[str, str]
    notes: list[str]
    sha256: str


def evaluate(
    run: TrainedRun, dataset: Dataset, corrupted: Sequence[tuple[str, float]] = (("", 0.0),), command: str = ""
) -> Iterator[Run]:
    """Evaluates all networks of a run on the test images of a data set, for each corruption with its severity.

    Evaluations that the run folder has already of these networks and images are read. Others are written to it, each
    when it is complete.

    Yields:
      for each corruption the run as if its images had been the test set, see `on`.

    Raises:
      InputError: the run has no networks or damaged ones, or the data set has another number of classes.
    """
    for arm in run.arms:
        classes = run.architecture(arm.name).classes
        if classes != dataset.classes:
            raise InputError(
                f"dataset: {dataset.name!r} has {dataset.classes} classes, and networks of {str(run.folder)!r} have "
                f"{classes} outputs; choose a data set with {classes} classes"
            )
    networks = {arm.name: digest_of(run, arm.name) for arm in run.arms}
    notes = [f"dataset {dataset.name!r}: {note}" for note in datasets.notes_on(dataset) if note[:6] != "train "]
    for corruption, severity in corrupted:
        suffix = f"-{corruption}-{format_value(severity)}" if severity else ""
        about = About(f"{dataset.name}{suffix}", f"{dataset.fingerprint}{suffix}", networks, notes, "")
        found = stored(run, about)
        if found is None:
            write(run, about, answers_of(run, dataset, corruption, severity, about.name), command)
            found = on(run, about.name)
        yield found


def digest_of(run: TrainedRun, arm: str) -> str:
    """SHA-256 of the parameters of an arm's networks."""
    try:
        leaves = jax.tree.leaves(run.params(arm))
    except InputError as error:
        again = f"lenet-jax run --config=experiments/stored.py:{run.folder} --workdir=NEW"
        raise InputError(str(error) if again in str(error) else f"{error}; train it again with {again}") from error
    return hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in leaves)).hexdigest()


@functools.cache
def predictor(mesh: Mesh) -> Callable[[Params, Images, Int[Array, " images"], Recipe], Predictions]:
    """`evaluate.predict` of stacked networks, one for each device, compiled with the options of a run.

    For a run's own test images it gives the run's answers, bit for bit.
    """

    def predict(params: Params, images: Images, indices: Int[Array, " images"], recipe: Recipe) -> Predictions:
        of_one = functools.partial(evaluation.predict, recipe=recipe)
        found: Predictions = programs.over_members(of_one, mesh, 1)(params, images, indices)
        return found

    return jax.jit(predict, static_argnames="recipe", compiler_options=programs.options_for("predict", mesh))


@jax_settings.fixed()
def answers_of(run: TrainedRun, dataset: Dataset, corruption: str, severity: float, doing: str) -> dict[str, Answers]:
    """What all networks of a run answer for test images, corrupted or not; a terminal shows the progress."""
    mesh, labels = programs.mesh_of(jax.devices()), dataset.test_labels.astype(np.int32)
    indices = jnp.arange(len(labels))
    pixels: dict[str, np.ndarray] = {}
    found = {}
    console = Console(file=unfailing(sys.stderr))
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(rich.markup.escape(printable(doing)), total=sum(arm.seeds for arm in run.arms))
        for arm in run.arms:
            settings, scaling, _ = run.recorded(arm.name)
            if (padding := settings["padding"]) not in pixels:
                padded = preprocess.pad(dataset.test_images, padding)
                pixels[padding] = corruptions.corrupt(padded, corruption, severity) if severity else padded
            arrays = [pixels[padding], labels, np.float32(scaling["scale"]), np.float32(scaling["shift"])]
            images = Images(*map(jnp.asarray, arrays))
            recipe = programs.for_platform(train.of_architecture(run.architecture(arm.name)), mesh)
            parts = []
            for start in range(0, arm.seeds, mesh.size):
                members = np.minimum(np.arange(start, start + mesh.size), arm.seeds - 1)  # each device needs as many
                params = jax.tree.map(operator.itemgetter(members), run.params(arm.name))
                parts.append(jax.device_get(predictor(mesh)(params, images, indices, recipe)))
                bar.advance(task, mesh.size)
            merged = jax.tree.map(lambda *leaves, seeds=arm.seeds: np.concatenate(leaves)[:seeds], *parts)
            found[arm.name] = answers.of_networks(merged, labels, run.seeds(arm.name))
    return found


def path_of(run: Run, name: str) -> Path:
    """The table of an evaluation.

    Raises:
      InputError: the folder of evaluations is a link, which may lead anywhere.
    """
    folder = run.folder / EVALUATIONS
    if os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir()):
        raise InputError(f"run: {str(folder)!r} {files.SPECIAL}")
    return folder / f"{folder_name(name)}.parquet"


def write(run: Run, about: About, found: Mapping[str, Answers], command: str) -> None:
    """Writes an evaluation to the run folder; what describes it comes last and marks it as complete."""
    path = path_of(run, about.name)
    with files.writing(path.parent):
        path.parent.mkdir(exist_ok=True)
    for old in (path.with_suffix(".json"), path):
        for partial in files.partials_of(old):
            partial.unlink(missing_ok=True)
    table = answers.frame(found, {arm.name: arm.axes for arm in run.arms})
    files.write_table(path, table.astype(dict.fromkeys(table.select_dtypes("category"), str)))
    about = dataclasses.replace(about, sha256=files.digest_of(path))
    files.write_json(path.with_suffix(".json"), dataclasses.asdict(about) | describe_environment(command))


def read_about(path: Path) -> About:
    """What is said of an evaluation, whose table has this path; raises InputError if it is missing or damaged."""
    path = path.with_suffix(".json")
    about: About = schema.fit(About, files.read_json(path), f"run: {str(path)!r}")
    schema.check_name(about.name, f"run: {str(path)!r}")
    return about


def stored(run: Run, about: About) -> Run | None:
    """The run on this evaluation, if its folder has it, whole and of the same networks and images."""
    with contextlib.suppress(InputError):
        known = read_about(path_of(run, about.name))
        if dataclasses.replace(known, sha256="", notes=about.notes) == about:
            return on(run, about.name)
    return None


def names(run: Run) -> list[str]:
    """The names of a run's evaluations."""
    found = []
    for path in sorted(path_of(run, "").parent.glob("*.parquet")):
        with contextlib.suppress(InputError):
            found.append(read_about(path).name)
    return found


def on(run: Run, name: str) -> Run:
    """The run as if the images of an evaluation had been its test set.

    Of its test metrics, the error remains, and the negative log-likelihood and Brier score if both have them.

    Raises:
      InputError: there is no such evaluation, or its files are damaged.
    """
    path = path_of(run, name)
    if not os.path.lexists(path):
        known = names(run)
        has = f"allowed are {listed(known, name)}" if known else "there is none"
        more = f"lenet-jax evaluate {run.folder} --dataset=NAME makes one"
        raise InputError(f"on: {name!r} is not an evaluation of {str(run.folder)!r}; {has}; {more}")
    about, damaged = read_about(path), f"run: {str(path)!r} is damaged"
    found = answers.read(path, {arm.name: arm.seeds for arm in run.arms}, damaged)
    if about.name != name or files.digest_of(path) != about.sha256:
        raise InputError(f"{damaged}, or {path.with_suffix('.json').name!r} is of another one; evaluate again")
    if absent := [arm.name for arm in run.arms if arm.name not in found]:
        raise InputError(f"{damaged}: arm {absent[0]!r} is missing")
    first, *others = found.values()
    if not all(np.array_equal(one.images, first.images) and np.array_equal(one.labels, first.labels) for one in others):
        raise InputError(f"{damaged}: its arms have different images or labels")
    data: dict[str, str | int] = {"name": about.name, "fingerprint": about.fingerprint, "test": len(first.images)}
    arms = []
    for arm in run.arms:
        errors = stats.summarize(stats.round_errors(found[arm.name].wrong.mean(axis=1)))
        settings = None if arm.settings is None else {**arm.settings, "dataset": about.name}
        changed = dataclasses.replace(arm, dataset={**arm.dataset, **data}, settings=settings, test_error=errors)
        arms.append(json.loads(json.dumps(changed.to_json())))
    return dataclasses.replace(
        run,
        summary={**run.summary, "dataset": {**run.summary["dataset"], **data}, "arms": arms},
        provenance={**run.provenance, "notes": [*run.provenance.get("notes", []), *about.notes]},
        metrics=metrics_on(run.metrics, found),
        answers=found,
    )


def metrics_on(metrics: pd.DataFrame, found: Mapping[str, Answers]) -> pd.DataFrame:
    """A run's metrics with those of other test images at the last epoch."""
    values = {
        (arm, metric, seed): value
        for arm, one in found.items()
        for metric, scores in {"error": one.wrong, "nll": one.nll, "brier": one.brier}.items()
        if scores is not None
        for seed, value in zip(one.seeds.tolist(), scores.mean(axis=1, dtype=float).tolist(), strict=True)
    }
    tested = metrics.split == "test"
    last = metrics[tested & (metrics.epoch == metrics.groupby("arm").epoch.transform("max"))]
    keys = list(zip(last.arm, last.metric, last.seed, strict=True))
    measured = last.assign(value=[values.get(key, np.nan) for key in keys])[[key in values for key in keys]]
    return pd.concat([metrics[~tested], measured], ignore_index=True)
