"""From the files of a download to arrays: IDX files, EMNIST's transposed images, USPS's text."""

import bz2
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lenet_jax.data import idx
from lenet_jax.errors import InputError, one_line

USPS_SIDE = 16  # height and width of a USPS image, in pixels
USPS_INDICES = np.arange(1, USPS_SIDE**2 + 1)  # of a line's pixels, row by row


def read_idx(files: Sequence[Path]) -> dict[str, Any]:
    """The four arrays in IDX files, which are in the order of `idx.PARTS`."""
    return idx.read_parts(dict(zip(idx.PARTS, files, strict=True)))


def read_emnist(files: Sequence[Path]) -> dict[str, Any]:
    """EMNIST's digits, turned upright: in its files the rows of an image are its columns."""
    arrays = read_idx(files)
    upright = {part: array.transpose(0, 2, 1).copy() for part, array in arrays.items() if part not in idx.LABELS}
    return arrays | upright | {"notes": ("EMNIST publishes its images transposed; they were turned upright",)}


def read_usps(files: Sequence[Path]) -> dict[str, Any]:
    """USPS's digits, 16 x 16, in the form of MNIST: `photos.fitted`, the rule that photos of digits go through.

    A USPS image is filled by its digit. Padded to 28 x 28 its strokes would end four pixels short of where MNIST's do;
    enlarged to 28 x 28 they would be wider than any of MNIST's.

    Args:
      files: of training and test images, see `read_libsvm`.
    """
    from lenet_jax.data import photos  # with SciPy and Pillow, which the other data sets don't need

    rule = "USPS's 16 x 16 images were scaled to a box of 20 x 20 and centred in 28 x 28 by mass, as photos of digits"
    arrays: dict[str, Any] = {"notes": (rule,)}
    for split, path in zip(("train", "test"), files, strict=True):
        ink, arrays[f"{split}_labels"] = read_libsvm(path)
        arrays[f"{split}_images"] = np.array([photos.fitted(image) for image in ink], np.uint8)
    return arrays


def read_libsvm(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Ink [N, 16, 16], from 0 (background) to 1, and digits, uint8 [N], in a bzip2 file as LIBSVM publishes USPS.

    Its lines are ``LABEL 1:VALUE ... 256:VALUE``. Labels 1 to 10 are the digits 0 to 9; values are from -1
    (background) to 1 (ink).

    Raises:
      InputError: the file can't be read, or a line has another form.
    """
    form = "expected lines of a label from 1 to 10 and pixels 1:VALUE to 256:VALUE, from -1 to 1 and not all of them -1"
    try:
        with bz2.open(path, "rt", errors="replace") as stream:
            lines = stream.read().replace(":", " ").splitlines()
        table = np.loadtxt(lines or ["no line"], comments=None, ndmin=2)  # of no lines NumPy would only warn
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"{str(path)!r}: can't be read ({one_line(error)}); {form}") from error
    if table.shape[1] != 1 + 2 * len(USPS_INDICES):
        raise InputError(f"{str(path)!r}: its lines have {table.shape[1]} numbers; {form}")
    labels, indices, values = table[:, 0], table[:, 1::2], table[:, 2::2]
    expected = (indices == USPS_INDICES).all(axis=1) & np.isin(labels, range(1, 11))
    expected &= (np.abs(values) <= 1).all(axis=1) & (values > -1).any(axis=1)
    if not expected.all():
        raise InputError(f"{str(path)!r}: its line {np.argmin(expected) + 1} is something else; {form}")
    return (values.reshape(-1, USPS_SIDE, USPS_SIDE) + 1) / 2, (labels - 1).astype(np.uint8)


READERS = {"idx": read_idx, "emnist": read_emnist, "usps": read_usps}
"""Layout of a data set's files -> what reads them, in the order of `Source.checksums`, as fields of a `Dataset`."""
