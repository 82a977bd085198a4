"""Reader for IDX files, the format that MNIST is published in (four bytes of magic, the sizes, then the bytes)."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from lenet_jax.errors import InputError

UNSIGNED_BYTE = 8
GZIP_MAGIC = b"\x1f\x8b"
DEFLATE_RATIO = 1032
"""No deflate stream expands further than this: a header that promises more is refused before anything is allocated."""


def read(path: Path, dimensions: int) -> np.ndarray:
    """The unsigned bytes of an IDX file, gzipped or not.

    Args:
      path: the file.
      dimensions: how many the file must have: 3 for images, 1 for labels.

    Returns:
      uint8, shaped as the header says.

    Raises:
      InputError: the file can't be read, is no such IDX file, or holds fewer or more bytes than its header promises.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as probe:
            zipped = probe.read(2) == GZIP_MAGIC
        with gzip.open(path, "rb") if zipped else path.open("rb") as stream:
            header = stream.read(4 + 4 * dimensions)
            if header[:4] != bytes((0, 0, UNSIGNED_BYTE, dimensions)) or len(header) < 4 + 4 * dimensions:
                raise InputError(
                    f"{str(path)!r}: starts with bytes {header[:4].hex()!r}; an IDX file of unsigned bytes with "
                    f"{dimensions} dimension(s) starts with '000008{dimensions:02x}' and its sizes"
                )
            shape = tuple(np.frombuffer(header, ">u4", dimensions, offset=4).tolist())
            promised = math.prod(shape)
            if promised > size * (DEFLATE_RATIO if zipped else 1):
                raise InputError(
                    f"{str(path)!r}: its header promises {shape} bytes, more than the file's {size} can hold"
                )
            content = stream.read(promised + 1)
    except (OSError, EOFError, zlib.error, MemoryError) as error:
        raise InputError(
            f"{str(path)!r}: can't be read ({error}); it is damaged, truncated or not accessible"
        ) from error
    if len(content) != promised:
        held = "more" if len(content) > promised else f"{len(content)}"
        raise InputError(f"{str(path)!r}: its header promises {promised} bytes {shape}, the file holds {held}")
    return np.frombuffer(content, np.uint8).reshape(shape)
