"""How well photos of digits are read: synthetic sheets of paper of many kinds, before and after a change of the reader.

Real test digits are drawn on the sheets of `sheets.KINDS`, saved as files, read by `lenet_jax.data.photos`, and
classified by the networks of a run; `--before` names the commit of an earlier photos.py that reads the same files.

Cost: about half an hour on one core, after the quickstart (experiments/quickstart.py), which trains the networks.

    .venv/bin/python experiments/benchmarks/photos.py [--run=runs/quickstart] [--before=COMMIT] [--out=FOLDER]

Writes FOLDER/photos.json and photos.md; FOLDER is experiments/results/photos by default.
"""

import importlib.metadata
import json
import subprocess
import sys
import tempfile
import types
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import machine
import numpy as np
import report
import sheets
from absl import app, flags
from PIL import Image
from tqdm import tqdm

from lenet_jax.analysis import networks
from lenet_jax.data import datasets, photos
from lenet_jax.errors import InputError

ROOT = Path(__file__).parents[2]
READER = "lenet_jax/data/photos.py"

CONFIDENT = 0.9
"""Mean probability of the networks above which an answer is confident."""

DATASET = "mnist10k"
RUN = flags.DEFINE_string("run", "runs/quickstart", "Run folder; its best arm's networks classify.")
DIGITS = flags.DEFINE_integer("digits", 200, "Test digits per kind of sheet.", lower_bound=1)
BEFORE = flags.DEFINE_string("before", "6d9ebc7", "Commit of the earlier reader.")
KINDS = flags.DEFINE_list("kinds", list(sheets.KINDS), "Kinds of sheets.")
OUT = flags.DEFINE_string("out", str(ROOT / "experiments" / "results" / "photos"), "Folder for the results.")


def chosen(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Distinct test digits and their labels, the same ones every time."""
    digits = datasets.load(DATASET)
    order = np.random.default_rng(0).permutation(len(digits.test_labels))[:count]
    return digits.test_images[order], digits.test_labels[order]


def sheet(kind: str, index: int, images: np.ndarray) -> Image.Image:
    """The sheet of a kind that shows the digit of this index; it does not depend on other kinds or digits."""
    rng = np.random.default_rng([zlib.crc32(kind.encode()), index])
    return sheets.KINDS[kind](rng, images[index], images[(index + 1) % len(images)])


def files(kind: str, images: np.ndarray, folder: Path) -> Iterator[Path]:
    """The sheets of a kind as files, one after the other under the same name."""
    for index in range(len(images)):
        picture = sheet(kind, index, images)
        path = folder / ("sheet.jpg" if picture.format == "JPEG" else "sheet.png")
        # A JPEG is saved as it was compressed, not again.
        picture.save(path, **({"quality": "keep"} if picture.format else {"compress_level": 1}))
        yield path


def earlier(commit: str) -> types.ModuleType:
    """The reader of a commit."""
    code = subprocess.run(
        ["git", "-C", str(ROOT), "show", f"{commit}:{READER}"], capture_output=True, text=True, check=True
    ).stdout
    module = types.ModuleType("earlier_photos")
    exec(compile(code, f"{commit}:{READER}", "exec"), module.__dict__)
    return module


def prepared(reader: types.ModuleType, path: Path) -> tuple[np.ndarray | None, bool]:
    """The digit in MNIST's form, or None for a picture that is refused; whether there is a note."""
    try:
        picture = reader.read_image(path)
        if not hasattr(reader, "examine"):  # before there were notes
            return reader.to_mnist(picture), False
        digit, notes = reader.examine(picture)
        return digit, bool(notes)
    except InputError:
        return None, False


def score(kind: str, found: list[tuple[np.ndarray | None, bool]], labels: np.ndarray, run: Any) -> dict[str, Any]:
    """Shares of sheets; a picture that is refused counts as noted."""
    read = [digit is not None for digit, _ in found]
    noted = np.array([note or digit is None for digit, note in found])
    right, confident = np.zeros((2, len(found)), bool)
    if any(read):
        classified = networks.classify(run, np.stack([digit for digit, _ in found if digit is not None]))
        right[read] = (classified.digits == labels[read]) & (kind not in sheets.WITHOUT_ANSWER)
        confident[read] = classified.scores.max(axis=1) > CONFIDENT
    return {
        "right": float(right.mean()),
        "noted": float(noted.mean()),
        "right_and_noted": float((right & noted).mean()),
        "right_or_noted": float((right | noted).mean()),
        "confident_wrong": float((~right & confident).mean()),
        "confident_wrong_without_note": float((~right & confident & ~noted).mean()),
    }


def measure(run: Any) -> list[dict[str, Any]]:
    """A row for each kind of sheet and reader."""
    images, labels = chosen(DIGITS.value)
    readers = {"before": earlier(BEFORE.value), "after": photos}
    rows = []
    with tempfile.TemporaryDirectory() as folder, tqdm(total=len(KINDS.value) * len(labels), disable=None) as bar:
        for kind in KINDS.value:
            bar.set_description(kind)
            found: dict[str, list[Any]] = {name: [] for name in readers}
            for path in files(kind, images, Path(folder)):
                for name, reader in readers.items():
                    found[name].append(prepared(reader, path))
                bar.update()
            rows += [{"kind": kind, "reader": name, **score(kind, found[name], labels, run)} for name in readers]
    return rows


def headline(results: dict[str, Any]) -> str:
    """The means over all kinds, in one sentence."""

    def percents(column: str) -> list[str]:
        means = [np.mean([row[column] for row in results["kinds"] if row["reader"] == r]) for r in ("after", "before")]
        return [f"{100 * mean:.1f} %" for mean in means]

    good, wrong = percents("right_or_noted"), percents("confident_wrong_without_note")
    return (
        f"On {len(results['kinds']) // 2} kinds of sheets with {results['digits']} test digits each, {good[0]} are "
        f"read right or noted ({good[1]} before), and {wrong[0]} are read wrong with a probability above "
        f"{results['confident']} and no note ({wrong[1]} before)."
    )


def page(results: dict[str, Any]) -> str:
    """Markdown page with the table."""
    held = {(row["kind"], row["reader"]): row for row in results["kinds"]}
    readers = ("before", "after")
    columns = ("right", "right_or_noted", "confident_wrong_without_note")
    kinds = list(dict.fromkeys(row["kind"] for row in results["kinds"]))

    def cells(values: list[float]) -> list[str]:
        return [f"{100 * value:.1f}" for value in values]

    def row_of(kind: str) -> list[float]:
        shares = [held[kind, reader][column] for column in columns for reader in readers]
        return [*shares, held[kind, "after"]["right_and_noted"]]

    rows = [row_of(kind) for kind in kinds]
    heads = [f"{column.replace('_', ' ')}, {reader}" for column in columns for reader in readers]
    return "\n".join(
        [
            "# Photos of digits\n",
            f"{results['digits']} test digits of {results['dataset']} on each kind of synthetic sheet "
            "(experiments/benchmarks/sheets.py), saved as files, read by lenet_jax.data.photos and classified by the "
            f"{results['networks']} networks of the arm `{results['arm']}` of {results['run']} "
            f"(test error {100 * results['test_error']:.2f} %), by their mean probability; made by "
            "experiments/benchmarks/photos.py.\n",
            report.provenance(results),
            f"{headline(results)}\n",
            "Percent of sheets. `Noted`: a note says that the picture may be misread, or it is refused. `Confident`: "
            f"the mean probability is above {results['confident']}. `Before` is {READER} of commit "
            f"{results['before']}. No answer is right on sheets with two digits or none: only a "
            "note is. The last column counts needless notes.\n",
            report.markdown(
                ("sheet", *heads, "right and noted, after"),
                [
                    *([kind, *cells(row)] for kind, row in zip(kinds, rows, strict=True)),
                    ["**all**", *cells(list(np.mean(rows, axis=0)))],
                ],
            ),
        ]
    )


def main(argv: list[str]) -> None:
    """Measures and writes the results."""
    machine.flags_only(argv)
    header = machine.describe()
    header["versions"] |= {package: importlib.metadata.version(package) for package in ("scipy", "pillow")}
    run = networks.load_run(RUN.value)
    arm = run.arm()
    settings = {
        "run": RUN.value,
        "arm": arm.name,
        "networks": len(run.seeds()),
        "test_error": arm.test_error.mean,
        "trained_on": arm.dataset,
        "trained_by": {name: run.provenance[name] for name in ("command", "git_commit")},
        "dataset": DATASET,
        "digits": DIGITS.value,
        "confident": CONFIDENT,
        "before": BEFORE.value,
    }
    results = header | settings | {"kinds": measure(run)}
    out = Path(OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    (out / "photos.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "photos.md").write_text(page(results))
    print(page(results))
    print(f"results are in {out}", file=sys.stderr)


if __name__ == "__main__":
    app.run(main)
