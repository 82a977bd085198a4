"""IDX files, the format in which MNIST is published: four bytes of magic, the sizes, then the bytes."""

import gzip
import math
import os
import stat
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from lenet_jax.errors import InputError

PARTS = {
    "train_images": ("train-images-idx3-ubyte", 3),
    "train_labels": ("train-labels-idx1-ubyte", 1),
    "test_images": ("t10k-images-idx3-ubyte", 3),
    "test_labels": ("t10k-labels-idx1-ubyte", 1),
}
"""Array of a data set -> usual name of its file, and number of dimensions."""

UNSIGNED_BYTE = 8
GZIP_MAGIC = b"\x1f\x8b"

MAX_BYTES = 2**33  # contents: infinite MNIST's 8.1 million digits, the largest such set, are 6.4 GB
MAX_GZIP_RATIO = 100  # contents of a gzipped file, relative to its size: digits shrink to a fifth
MAX_SMALL_BYTES = 2**26  # contents of any gzipped file: sorted labels or blank images shrink to a thousandth
READ_BYTES = 2**20  # read at a time: memory is allocated for what a file holds, not for what it promises


def read(path: Path, dimensions: int) -> np.ndarray:
    """The uint8 array in an IDX file, gzipped or not, with this number of dimensions: 3 for images, 1 for labels.

    Raises:
      InputError: the file cannot be read, is not such an IDX file, is empty or far too large, or holds fewer or more
        bytes than its header promises.
    """
    name = repr(str(path))
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would block
            raise InputError(f"{name}: is a folder, a pipe or a device; expected a file")
        with path.open("rb") as probe:
            zipped = probe.read(2) == GZIP_MAGIC
        with gzip.open(path, "rb") if zipped else path.open("rb") as stream:
            header = stream.read(4 + 4 * dimensions)
            if header[:4] != bytes((0, 0, UNSIGNED_BYTE, dimensions)) or len(header) < 4 + 4 * dimensions:
                raise InputError(
                    f"{name}: starts with bytes {header[:4].hex()!r}; an IDX file of unsigned bytes with "
                    f"{dimensions} dimension(s) starts with '000008{dimensions:02x}' and its sizes"
                )
            shape = tuple(np.frombuffer(header, ">u4", dimensions, offset=4).tolist())
            promised = math.prod(shape)
            most = max(MAX_SMALL_BYTES, MAX_GZIP_RATIO * status.st_size) if zipped else status.st_size
            allowed = min(most, MAX_BYTES)
            if not 0 < promised <= allowed:
                what = f"more than the {allowed} accepted from a file of {status.st_size}" if promised else "none"
                raise InputError(f"{name}: its header promises {shape} bytes, {what}")
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
    return np.frombuffer(content, np.uint8).reshape(shape)


def read_folder(folder: Path, name: str) -> dict[str, Any]:
    """The four arrays in a folder of IDX files, or in one of torchvision's ``raw`` folders below it.

    `name` is the data set's, for messages.
    """
    folders = [folder, folder / "raw", *sorted(folder.glob("*/raw"))]
    found = [find(candidate) for candidate in folders]
    complete = [files for files in found if len(files) == len(PARTS)]
    if not complete:
        fullest = max(found, key=len)
        missing = ", ".join(f"{file}[.gz]" for part, (file, _) in PARTS.items() if part not in fullest)
        raise InputError(f"dataset: {name!r} lacks {missing}; searched {', '.join(map(repr, map(str, folders)))}")
    if len(complete) > 1 and complete[0] is not found[0]:
        several = ", ".join(repr(str(files["train_images"].parent)) for files in complete)
        raise InputError(f"dataset: {name!r} holds several data sets; choose one of the folders {several}")
    return {part: read(complete[0][part], dimensions) for part, (_, dimensions) in PARTS.items()}


def find(folder: Path) -> dict[str, Path]:
    """Array -> its IDX file, for those that are in a folder; a plain file takes precedence over a gzipped one."""
    files = {}
    for part, (file, _) in PARTS.items():
        # Published as train-images-idx3-ubyte; some programs unpack it as train-images.idx3-ubyte.
        paths = [folder / (name + suffix) for suffix in ("", ".gz") for name in (file, file.replace("-idx", ".idx"))]
        if found := [path for path in paths if os.path.isfile(path)]:
            files[part] = found[0]
    return files
