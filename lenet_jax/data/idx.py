"""Reader for IDX files, the format that MNIST is published in (four bytes of magic, the sizes, then the bytes)."""

import gzip
import math
import stat
import zlib
from pathlib import Path

import numpy as np

from lenet_jax.errors import InputError

UNSIGNED_BYTE = 8
GZIP_MAGIC = b"\x1f\x8b"

LARGEST = 2**33
"""Bytes that a file may promise, 8 GiB: the 8.1 million digits of infinite MNIST, the largest such set, are 6.4 GB."""

GZIP_RATIO = 100
"""So many times its own size a gzipped file may promise: digits shrink to a fifth, what shrinks further is no data."""

GZIP_SMALL = 2**26
"""What a gzipped file of any size may promise, 64 MiB: sorted labels or blank images do shrink to a thousandth."""

PIECE = 2**20
"""Bytes read at a time: memory is taken for what a file holds, not for what it promises."""


def read(path: Path, dimensions: int) -> np.ndarray:
    """The unsigned bytes of an IDX file, gzipped or not.

    Args:
      path: the file.
      dimensions: how many the file must have: 3 for images, 1 for labels.

    Returns:
      uint8, shaped as the header says.

    Raises:
      InputError: the file can't be read, is no such IDX file, is empty or far too large, or holds fewer or more bytes
        than its header promises.
    """
    name = repr(str(path))
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # to open a pipe would wait for somebody to write
            raise InputError(f"{name}: is a folder, a pipe or a device; a file is needed")
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
            allowed = min(LARGEST, max(GZIP_SMALL, GZIP_RATIO * status.st_size) if zipped else status.st_size)
            if not 0 < promised <= allowed:
                what = f"more than the {allowed} that are taken from a file of {status.st_size}" if promised else "none"
                raise InputError(f"{name}: its header promises {shape} bytes, {what}")
            content = bytearray()
            while piece := stream.read(min(PIECE, promised + 1 - len(content))):
                content += piece
    except InputError:
        raise
    except (OSError, EOFError, ValueError, zlib.error, MemoryError) as error:  # ValueError: no name of any file
        raise InputError(
            f"{name}: can't be read ({str(error) or type(error).__name__}); it is damaged, truncated or not accessible"
        ) from error
    if len(content) != promised:
        held = "more" if len(content) > promised else f"{len(content)}"
        raise InputError(f"{name}: its header promises {promised} bytes {shape}, the file holds {held}")
    return np.frombuffer(content, np.uint8).reshape(shape)
