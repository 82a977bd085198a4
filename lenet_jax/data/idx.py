"""IDX files, the format in which MNIST is published: four bytes of magic, the sizes, then the bytes."""

import gzip
import math
import os
import re
import stat
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lenet_jax.errors import InputError, listed

PARTS = {
    "train_images": ("train-images-idx3-ubyte", 3),
    "train_labels": ("train-labels-idx1-ubyte", 1),
    "test_images": ("t10k-images-idx3-ubyte", 3),
    "test_labels": ("t10k-labels-idx1-ubyte", 1),
}
"""Array of a data set -> usual name of its file, and number of dimensions."""

LABELS = ("train_labels", "test_labels")

PUBLISHED = re.compile(
    r"(?:([^.].*)-)?(train|t10k|test)-(images(?=.idx3)|labels(?=.idx[12]))[-.]idx(?:[13]-ubyte|[12]-int)(?:\.gz)?"
)
"""Names of files as MNIST, EMNIST (``emnist-letters-test-...``), QMNIST (``...-idx2-int``) and Kaggle publish them."""

PLACES = ("*idx*", "*/*idx*", "*/raw/*idx*", "*/*idx*/*idx*")  # torchvision: raw; Kaggle: folders of the files' names

UNSIGNED_BYTE, INTEGER = 8, 12  # types of values in the header
VALUES = {UNSIGNED_BYTE: ("u1", "bytes"), INTEGER: (">i4", "4-byte integers")}
DIGITS = 10  # classes of a data set at least: a set without a nine is still one of digits
GZIP_MAGIC = b"\x1f\x8b"

MAX_BYTES = 2**33  # contents: infinite MNIST's 8.1 million digits, the largest such set, are 6.4 GB
MAX_GZIP_RATIO = 100  # contents of a gzipped file, relative to its size: digits shrink to a fifth
MAX_SMALL_BYTES = 2**26  # contents of any gzipped file: sorted labels or blank images shrink to a thousandth
READ_BYTES = 2**20  # read at a time: memory is allocated for what a file holds, not for what it promises


def read(path: Path, dimensions: int, kind: int = UNSIGNED_BYTE) -> np.ndarray:
    """The array in an IDX file, gzipped or not, with this number of dimensions: 3 for images, 1 for labels.

    `kind` is a key of `VALUES`: unsigned bytes, or the 32-bit integers of QMNIST's labels.

    Raises:
      InputError: the file cannot be read, is not such an IDX file, is empty or far too large, or holds fewer or more
        bytes than its header promises.
    """
    name = repr(str(path))
    dtype, unit = np.dtype(VALUES[kind][0]), VALUES[kind][1]
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would block
            raise InputError(f"{name}: is a folder, a pipe or a device; expected a file")
        with path.open("rb") as probe:
            zipped = probe.read(2) == GZIP_MAGIC
        with gzip.open(path, "rb") if zipped else path.open("rb") as stream:
            header = stream.read(4 + 4 * dimensions)
            expected = bytes((0, 0, kind, dimensions))
            if header[:4] != expected or len(header) < 4 + 4 * dimensions:
                raise InputError(
                    f"{name}: starts with bytes {header[:4].hex()!r}; an IDX file of {unit} with "
                    f"{dimensions} dimension(s) starts with {expected.hex()!r} and its sizes"
                )
            shape = tuple(np.frombuffer(header, ">u4", dimensions, offset=4).tolist())
            promised = math.prod(shape) * dtype.itemsize
            most = max(MAX_SMALL_BYTES, MAX_GZIP_RATIO * status.st_size) if zipped else status.st_size
            allowed = min(most, MAX_BYTES)
            if not 0 < promised <= allowed:
                what = f"more than the {allowed} accepted from a file of {status.st_size}" if promised else "none"
                raise InputError(f"{name}: its header promises {shape} {unit}, {what}")
            content = bytearray()
            while piece := stream.read(min(READ_BYTES, promised + 1 - len(content))):
                content += piece
    except InputError:
        raise
    except (OSError, EOFError, ValueError, zlib.error, MemoryError) as error:  # ValueError: an impossible file name
        reason = str(error) or type(error).__name__
        raise InputError(f"{name}: can't be read ({reason}); it is damaged, truncated or not accessible") from error
    if len(content) != promised:
        held = "more" if len(content) > promised else f"{len(content)}"
        raise InputError(f"{name}: its header promises {promised} bytes {shape}, the file holds {held}")
    return np.frombuffer(content, dtype).reshape(shape)


def read_labels(path: Path) -> np.ndarray:
    """The labels in an IDX file, uint8 [N]; of several columns (QMNIST's have eight) the first.

    Raises:
      InputError: see `read`; or a label is not from 0 to 255.
    """
    stored = path.name.removesuffix(".gz").rsplit("idx")[-1]  # "1-ubyte", "1-int" or "2-int"
    labels = read(path, int(stored[0]), INTEGER if "int" in stored else UNSIGNED_BYTE)
    labels = labels.reshape(len(labels), -1)[:, 0]
    if labels.min() < 0 or labels.max() > 255:  # the cast to uint8 would wrap them
        raise InputError(f"{str(path)!r}: has labels {labels.min()} to {labels.max()}; allowed are 0 to 255")
    return labels.astype(np.uint8)


def read_parts(files: Mapping[str, Path]) -> dict[str, Any]:
    """The four arrays in IDX files; `files` has the keys of `PARTS`."""
    return {part: read_labels(files[part]) if part in LABELS else read(files[part], 3) for part in PARTS}


def read_folder(folder: Path, name: str) -> dict[str, Any]:
    """The data set in a folder of IDX files, or in a folder below it, as fields of `datasets.Dataset`.

    There are ten classes, or as many as the largest label needs; labels from 1 to ten or more become classes from 0.

    Args:
      folder: the folder. Where it holds several data sets, as EMNIST's does, the last part of the path is the prefix of
        one's files: ``gzip/emnist-letters``.
      name: the data set's, for messages.
    """
    prefix, files = choose(folder, name)
    arrays = read_parts(files)
    lowest, highest = min(arrays[part].min() for part in LABELS), max(arrays[part].max() for part in LABELS)
    first = np.uint8(lowest == 1 and highest >= DIGITS)  # digits without a zero stay what they are
    classes = max(DIGITS, int(highest - first) + 1)
    notes = []
    if highest >= DIGITS:
        notes.append(f"labels {lowest} to {highest} are read as {classes} classes, 0 to {classes - 1}")
        if prefix.startswith("emnist"):  # of digits, `datasets.notes_on` judges by the images
            notes.append("EMNIST publishes its images transposed; they are used as they are")
    return arrays | {part: arrays[part] - first for part in LABELS} | {"classes": classes, "notes": tuple(notes)}


def choose(folder: Path, name: str) -> tuple[str, dict[str, Path]]:
    """The prefix and the four files of the data set that a path stands for; see `read_folder`.

    Raises:
      InputError: a file is missing, or the path stands for none or several of the data sets found.
    """
    folder, prefix = (folder, "") if os.path.isdir(folder) else (folder.parent, folder.name)
    found = find(folder)
    complete = [key for key, files in found.items() if len(files) == len(PARTS)]
    choices = [key for key in complete if prefix in ("", key[1])]
    # What is in the folder itself goes before what is below it, and there MNIST's own names go before a prefix.
    for nearer in ([key for key in choices if key[0] == folder], [key for key in choices if key == (folder, prefix)]):
        choices = nearer or choices
    if len(choices) == 1:
        return choices[0][1], found[choices[0]]
    if complete:
        held = "holds several data sets" if choices else "is not a data set"
        allowed = [f"idx:{place / start}" for place, start in sorted(choices or complete)]
        raise InputError(f"dataset: {name!r} {held}; choose one of {listed(allowed, name)}")
    if prefix and not any(start == prefix for _, start in found):
        needed = ", ".join(f"{file}[.gz]" for file, _ in PARTS.values())
        what = "is no folder, and no IDX files begin like that"
        raise InputError(f"dataset: {name!r}: {str(folder / prefix)!r} {what}; needed are {needed}")
    (_, start), fullest = max(found.items(), key=lambda item: len(item[1]), default=((folder, ""), {}))
    missing = [f"{start and start + '-'}{file}[.gz]" for part, (file, _) in PARTS.items() if part not in fullest]
    raise InputError(
        f"dataset: {name!r} lacks {', '.join(missing)}; searched {str(folder / prefix)!r} and the folders in it"
    )


def find(folder: Path) -> dict[tuple[Path, str], dict[str, Path]]:
    """The folder and prefix of every data set in a folder and below it -> array -> its IDX file.

    A file beside others takes precedence over one in a folder of its own, a plain file over a gzipped one.
    """
    found: dict[tuple[Path, str], dict[str, Path]] = {}
    paths = {path for place in PLACES for path in folder.glob(place)}
    for path in sorted(paths, key=lambda path: (len(path.parts), path.suffix == ".gz", path)):
        published = PUBLISHED.fullmatch(path.name)
        if published and os.path.isfile(path):
            prefix, split, kind = published.groups(default="")
            place = path.parent.parent if PUBLISHED.fullmatch(path.parent.name) else path.parent
            files = found.setdefault((place, prefix), {})
            files.setdefault(f"{'train' if split == 'train' else 'test'}_{kind}", path)
    return found
