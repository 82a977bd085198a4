"""What every network of an arm answers for every test image, in arrays: 100 networks and 10,000 images take 6 MB."""

import dataclasses
import functools
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from jaxtyping import Bool, Float, Int

from lenet_jax.errors import InputError
from lenet_jax.run import files, schema

DTYPES: dict[str, Any] = {"seed": np.int64, "image": np.int32, "label": np.int16, "predicted": np.int16}
DTYPES |= dict.fromkeys(("margin", *schema.SCORE_COLUMNS), np.float32)
"""Column of ``predictions.parquet`` -> type of its array."""


@dataclasses.dataclass(frozen=True)
class Answers:
    """The answers of an arm's networks.

    Attributes:
      seeds, images: of the networks, and indices in the test set; rising.
      labels: of the images.
      predicted: classes, -1 if outputs were not finite.
      margin: of the best score over the second best, see `model.decide`.
      nll, brier: of each image (see `evaluate.Evaluation`), `rounded`; None if outputs aren't probabilities, and in
        older runs.
    """

    seeds: Int[np.ndarray, " seeds"]
    images: Int[np.ndarray, " images"]
    labels: Int[np.ndarray, " images"]
    predicted: Int[np.ndarray, "seeds images"]
    margin: Float[np.ndarray, "seeds images"]
    nll: Float[np.ndarray, "seeds images"] | None = None
    brier: Float[np.ndarray, "seeds images"] | None = None

    @functools.cached_property
    def wrong(self) -> Bool[np.ndarray, "seeds images"]:
        """Whether each network misclassifies each image; outputs that are not finite count as misclassified."""
        wrong: np.ndarray = self.predicted != self.labels
        return wrong


def read(path: Path, seeds: Mapping[str, int], where: str) -> dict[str, Answers]:
    """Reads a table of predictions, arm by arm: of 50 million rows, only those of one arm are in memory as rows.

    Args:
      path: of the table.
      seeds: arm -> number of its networks.
      where: the file, for messages on its contents.

    Returns:
      answers by arm, in the order of `seeds`; arms without predictions are left out.

    Raises:
      InputError: the file is damaged, or isn't that of such arms. The rows of an arm stand together, and are one for
        each of its networks and images.
    """
    found: dict[str, Answers] = {}
    with files.open_table(path) as (file, _):
        empty = file.schema_arrow.empty_table().to_pandas()
        scores = [name for name in schema.SCORE_COLUMNS if name in empty]
        schema.check_table(empty, schema.PREDICTION_COLUMNS, scores, seeds, where)
        for arm, pieces in itertools.groupby(pieces_of(file, where), key=lambda piece: piece[0]):
            schema.check_name(arm, f"{where}: column 'arm'")
            if arm not in seeds or arm in found:
                problem = "its rows don't stand together" if arm in found else "the summary doesn't have it"
                raise InputError(f"{where}: arm {arm!r}: {problem}")
            columns = [columns for _, columns in pieces]
            whole = {name: np.concatenate([piece.pop(name) for piece in columns]) for name in [*columns[0]]}
            found[arm] = arranged(whole, seeds[arm], f"{where}: arm {arm!r}")
    return {arm: found[arm] for arm in seeds if arm in found}


def pieces_of(file: pa.parquet.ParquetFile, where: str) -> Iterator[tuple[Any, dict[str, np.ndarray]]]:
    """Consecutive rows of one arm: its name (unchecked), and their columns in the types of `DTYPES`."""
    wanted = [name for name in DTYPES if name in file.schema_arrow.names]
    for batch in file.iter_batches(columns=["arm", *wanted], use_threads=False):
        names, codes = batch["arm"].dictionary, batch["arm"].indices.fill_null(-1).to_numpy()
        columns = {}
        for name in wanted:
            if batch[name].null_count and name in schema.RANGES:
                raise InputError(f"{where}: column {name!r} has rows without a value")
            values = batch[name].to_numpy(zero_copy_only=False)
            schema.check_range(name, values, where)
            with np.errstate(over="ignore"):  # of numbers that single precision can't hold, which we never write
                columns[name] = values.astype(DTYPES[name])
        for start, stop in itertools.pairwise([0, *np.flatnonzero(np.diff(codes)) + 1, len(codes)]):
            arm = names[int(codes[start])].as_py() if codes[start] >= 0 else None
            yield arm, {name: values[start:stop] for name, values in columns.items()}


def arranged(columns: dict[str, np.ndarray], count: int, where: str) -> Answers:
    """The answers of one arm, from its rows, by rising seed and image."""
    of_rows = columns.pop("seed"), columns.pop("image")
    seeds, images = map(np.unique, of_rows)
    if len(seeds) != count:
        raise InputError(f"{where}: rows of {len(seeds)} seeds follow each other; the summary has {count}")
    shape = len(seeds), len(images)
    expected = np.repeat(seeds, len(images)), np.tile(images, len(seeds))
    if len(of_rows[0]) != len(expected[0]):
        raise InputError(f"{where}: {len(of_rows[0])} rows; its seeds and images have {len(expected[0])} pairs")
    if not all(map(np.array_equal, of_rows, expected)):
        order = np.lexsort(of_rows[::-1])
        if not all(np.array_equal(rows[order], pairs) for rows, pairs in zip(of_rows, expected, strict=True)):
            raise InputError(f"{where}: two rows have the same seed, image")
        columns = {name: values[order] for name, values in columns.items()}
    tables = {name: values.reshape(shape) for name, values in columns.items()}
    labels = tables.pop("label")
    if (labels != labels[0]).any():
        raise InputError(f"{where}: an image has two labels")
    scores = {name: tables.pop(name) for name in schema.SCORE_COLUMNS if name in tables}
    stored = {name: values for name, values in scores.items() if not np.isnan(values).all()}
    return Answers(seeds, images, labels[0].copy(), **tables, **stored)


def rounded(scores: Float[np.ndarray, "*images"]) -> Float[np.ndarray, "*images"]:
    """Scores as they are stored: multiples of 2^-16 with 12 significant bits, which take half the space on disk.

    A network's mean changes by about 1e-5 of itself.
    """
    mantissa, exponent = np.frexp(np.round(scores.astype(np.float64) * 2**16) / 2**16)
    return np.ldexp(np.round(mantissa * 2**12) / 2**12, exponent).astype(np.float32)


def of_networks(predictions: Any, labels: np.ndarray, seeds: Sequence[int]) -> Answers:
    """The answers of an arm, from its `evaluate.Predictions` [seeds, images]."""
    return Answers(
        seeds=np.array(seeds),
        images=np.arange(len(labels)),
        labels=labels.astype(np.int16),
        predicted=np.asarray(predictions.predicted, np.int16),
        margin=np.asarray(predictions.margin),
        nll=rounded(np.asarray(predictions.nll)),
        brier=rounded(np.asarray(predictions.brier)),
    )


def rows_of(answers: Answers, scores: Collection[str]) -> dict[str, np.ndarray]:
    """The columns of an arm's rows in ``predictions.parquet``; `scores` that the arm doesn't have are missing (NaN)."""
    seeds, images = answers.predicted.shape
    unknown = np.full((seeds, images), np.nan, np.float32)
    measured = {name: getattr(answers, name) for name in scores}
    return {
        "seed": np.repeat(answers.seeds, images),
        "image": np.tile(answers.images.astype(np.int32), seeds),
        "label": np.tile(answers.labels, seeds),
        "predicted": answers.predicted.ravel(),
        "margin": answers.margin.ravel(),
        **{name: (unknown if values is None else values).ravel() for name, values in measured.items()},
    }


def frame(answers: Mapping[str, Answers], axes: Mapping[str, Mapping[str, schema.Scalar]]) -> pd.DataFrame:
    """The answers of all arms as the table in ``predictions.parquet``; `axes` are those of each arm."""
    scores = [name for name in schema.SCORE_COLUMNS if any(getattr(one, name) is not None for one in answers.values())]
    names = pd.DataFrame([{"arm": arm, **axes[arm]} for arm in answers])
    names = names.astype({name: "category" for name, kind in names.dtypes.items() if kind.kind == "O"})
    names = names.loc[names.index.repeat([one.predicted.size for one in answers.values()])].reset_index(drop=True)
    rows = [rows_of(one, scores) for one in answers.values()]
    return names.assign(**{name: np.concatenate([columns[name] for columns in rows]) for name in rows[0]})
