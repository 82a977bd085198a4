"""What the IDX reader must do with any file whatever: the oracle of `make fuzz`, which the tests replay."""

import gzip
import math
import os
import struct
import tempfile
import tracemalloc
import zlib
from pathlib import Path

import numpy as np

from lenet_jax.data import idx
from lenet_jax.errors import InputError

MEMORY = 4 * 2**20
"""Bytes that the reader may take beside twice what it reads: a piece, gzip's buffers, messages."""


def flipped(content, place):
    """The content with one byte changed."""
    place %= max(len(content), 1)
    return content[:place] + bytes(byte ^ 0xFF for byte in content[place : place + 1]) + content[place + 1 :]


PACKINGS = (
    lambda content, number: content,
    lambda content, number: gzip.compress(content, mtime=0),
    lambda content, number: gzip.compress(content[:number], mtime=0) + gzip.compress(content[number:], mtime=0),
    lambda content, number: gzip.compress(content, mtime=0) + content[:number],
    lambda content, number: flipped(gzip.compress(content, mtime=0), number),
    lambda content, number: gzip.compress(content, mtime=0)[: -number or None],
    lambda content, number: gzip.compress(content + bytes(number * 1024), mtime=0),
    lambda content, number: content + bytes(number * 1024),
)
"""Content and a number from 0 to 255 -> a file. Fuzzers don't get behind gzip's CRC by themselves."""


def file_of(data):
    """What the bytes of a fuzzer stand for: the dimensions asked for, and a file."""
    kind, number = (*data[:2], 0, 0)[:2]
    return 3 if kind & 1 else 1, PACKINGS[(kind >> 1) % len(PACKINGS)](data[2:], number)


def unpacked(file):
    """All that a file holds, without limits; None if it is damaged."""
    try:
        return gzip.decompress(file) if file[:2] == b"\x1f\x8b" else file
    except (OSError, EOFError, zlib.error, struct.error):
        return None


def wanted(content, dimensions):
    """The array that the content of a file is; None if it is no whole IDX file, or has no bytes."""
    start = 4 + 4 * dimensions
    if content is None or len(content) <= start or content[:4] != bytes((0, 0, 8, dimensions)):
        return None
    shape = struct.unpack_from(f">{dimensions}I", content, 4)
    return np.frombuffer(content[start:], np.uint8).reshape(shape) if math.prod(shape) == len(content) - start else None


def check(data):
    """Raises AssertionError unless the reader takes what it must, refuses the rest in one line, and wastes no memory.

    Memory is measured where tracemalloc runs; a fuzzer would be six times slower with it.
    """
    dimensions, file = file_of(data)
    content = unpacked(file)
    expected = wanted(content, dimensions)
    descriptor, name = tempfile.mkstemp()
    with open(descriptor, "wb") as stream:
        stream.write(file)
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    try:
        found = idx.read(Path(name), dimensions)
    except InputError as error:
        message = str(error)
        assert expected is None, f"refused: {message}"
        assert name in message
        assert message.isprintable(), f"not one line: {message!r}"
    else:
        assert expected is not None, f"taken: {found.shape}"
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, expected)
    finally:
        os.unlink(name)
    peak = tracemalloc.get_traced_memory()[1] - before
    # A damaged file may hold anything up to its damage; deflate makes no more than 1,032 bytes of one.
    held = len(file) * 1032 if content is None else len(content)
    assert peak < 2 * held + MEMORY, f"{peak} bytes of memory for {held}"
