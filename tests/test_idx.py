import gzip
import os
import struct
import tracemalloc

import numpy as np
import pytest

from lenet_jax import data, idx
from lenet_jax.errors import InputError


def idx_bytes(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def refusal(path, dimensions=3):
    with pytest.raises(InputError) as caught:
        idx.read(path, dimensions)
    message = str(caught.value)
    assert "\n" not in message
    assert repr(path.name)[1:-1] in message
    return message


@pytest.fixture(scope="module")
def digits():
    return data.load("mnist5k").train_images[:30]


GOOD = idx_bytes(np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3))
LABELS = idx_bytes(np.arange(5, dtype=np.uint8))
HUGE = struct.pack(">BBBB3I", 0, 0, 8, 3, 4294967295, 28, 28) + bytes(100)


def damaged(content):
    middle = len(content) // 2
    return content[:middle] + bytes(byte ^ 0xFF for byte in content[middle : middle + 8]) + content[middle + 8 :]


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_reads_what_was_written(tmp_path, digits, pack):
    for array in (digits, np.arange(10, dtype=np.uint8)):
        path = tmp_path / "file"  # gzip is told by the content, not the name
        path.write_bytes(pack(idx_bytes(array)))
        read = idx.read(path, array.ndim)
        assert read.dtype == np.uint8
        np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "starts with bytes ''"),
        (GOOD[:10], "starts with bytes '00000803'"),
        (LABELS, "'00000801'"),
        (gzip.compress(LABELS), "'00000801'"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "'89504e47'"),
        (b"pixel1,pixel2\n0,0\n", "'70697865'"),
        (struct.pack(">BBBB3I", 0, 0, 0x0D, 3, 1, 1, 1) + bytes(4), "'00000d03'"),  # IDX of floats
        (GOOD[:-1], "promises 60 bytes (5, 4, 3), the file holds 59"),
        (GOOD + b"x", "promises 60 bytes (5, 4, 3), the file holds more"),
        (gzip.compress(GOOD[:-1]), "the file holds 59"),
        (gzip.compress(GOOD + b"x"), "the file holds more"),
        (gzip.compress(GOOD) + b"trailing", "Not a gzipped file"),
        (gzip.compress(GOOD)[:-20], "damaged, truncated"),
        (damaged(gzip.compress(GOOD)), "damaged, truncated"),
        (gzip.compress(GOOD)[:-8] + bytes(8), "CRC check failed"),
        (gzip.compress(GOOD)[:5], "damaged, truncated"),
        (HUGE, "promises (4294967295, 28, 28) bytes, more than"),
        (gzip.compress(HUGE), "promises (4294967295, 28, 28) bytes, more than"),
    ],
)
def test_refuses_what_is_no_whole_idx_file(tmp_path, content, expected):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    assert expected in refusal(path)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_a_lying_header_allocates_nothing(tmp_path, pack):
    path = tmp_path / "images"
    path.write_bytes(pack(HUGE))
    tracemalloc.start()
    try:
        refusal(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**20


def test_refuses_what_is_no_file(tmp_path):
    (tmp_path / "folder").mkdir()
    assert "Is a directory" in refusal(tmp_path / "folder")
    assert "No such file" in refusal(tmp_path / "two\nlines")  # and the message is still one


def test_refuses_an_unreadable_file(tmp_path):
    path = tmp_path / "images"
    path.write_bytes(GOOD)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read every file")
    assert "Permission denied" in refusal(path)
