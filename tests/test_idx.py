import functools
import gzip
import os
import re
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from fuzz import idx_oracle

from lenet_jax.data import datasets, idx
from lenet_jax.errors import InputError

# Without the time: content names tests, and all processes that run them must have the same names.
packed = functools.partial(gzip.compress, mtime=0)


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
    return datasets.load("mnist10k").train_images[:30]


GOOD = idx_bytes(np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3))
LABELS = idx_bytes(np.arange(5, dtype=np.uint8))


def sizes(*shape):
    """A header without anything."""
    return struct.pack(">BBBB3I", 0, 0, 8, 3, *shape)


HUGE = struct.pack(">BBBB3I", 0, 0, 8, 3, 4294967295, 28, 28) + bytes(100)


def damaged(content):
    middle = len(content) // 2
    return content[:middle] + bytes(byte ^ 0xFF for byte in content[middle : middle + 8]) + content[middle + 8 :]


def bomb(promised):
    """100 MiB in 100 KiB, after a header."""
    header = struct.pack(">BBBB3I", 0, 0, 8, 3, promised, 1024, 1024)
    return packed(header) + 100 * packed(bytes(2**20))


def peak_of(read, *arguments):
    """Peak memory of the call in bytes."""
    tracemalloc.start()
    try:
        read(*arguments)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def in_members(content):
    """Several gzip files one after the other are one."""
    return b"".join(packed(content[start : start + 7]) for start in range(0, len(content), 7)) + packed(b"")


@pytest.mark.parametrize("pack", [bytes, packed, in_members], ids=["plain", "gzip", "members"])
def test_reads_what_was_written(tmp_path, digits, pack):
    for array in (digits, np.arange(10, dtype=np.uint8)):
        path = tmp_path / "file"  # gzip is recognized by the content, not by the name
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
        (packed(LABELS), "'00000801'"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "'89504e47'"),
        (b"pixel1,pixel2\n0,0\n", "'70697865'"),
        (struct.pack(">BBBB3I", 0, 0, 0x0D, 3, 1, 1, 1) + bytes(4), "'00000d03'"),  # IDX of floats
        (GOOD[:-1], "promises 60 bytes (5, 4, 3), the file holds 59"),
        (GOOD + b"x", "promises 60 bytes (5, 4, 3), the file holds more"),
        (packed(GOOD[:-1]), "the file holds 59"),
        (packed(GOOD + b"x"), "the file holds more"),
        (packed(GOOD) + b"trailing", "Not a gzipped file"),
        (packed(GOOD)[:-20], "damaged, truncated"),
        (damaged(packed(GOOD)), "damaged, truncated"),
        (packed(GOOD)[:-8] + bytes(8), "CRC check failed"),
        (packed(GOOD)[:5], "damaged, truncated"),
        (HUGE, "promises (4294967295, 28, 28) bytes, more than the 116 accepted from a file of 116"),
        (packed(HUGE), "promises (4294967295, 28, 28) bytes, more than the 67108864 accepted"),
        (bomb(100), "promises (100, 1024, 1024) bytes, more than the 67108864 accepted"),
        (bomb(1), "promises 1048576 bytes (1, 1024, 1024), the file holds more"),
        (packed(sizes(2**16, 2**10, 1)), "promises 67108864 bytes (65536, 1024, 1), the file holds 0"),
        (sizes(5, 4, 3), "promises (5, 4, 3) bytes, more than the 16 accepted"),
        (sizes(0, 28, 28), "promises (0, 28, 28) bytes, none"),
        (sizes(2**32 - 1, 0, 2**32 - 1), "promises (4294967295, 0, 4294967295) bytes, none"),
        (sizes(2**31, 2**31, 4), "promises (2147483648, 2147483648, 4) bytes, more than"),  # 0 in 64 bits
    ],
)
def test_refuses_what_is_not_a_whole_idx_file(tmp_path, content, expected):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    assert expected in refusal(path)


INTEGERS = struct.pack(">BBBB2I", 0, 0, 12, 2, 5, 8) + np.arange(40, dtype=">i4").tobytes()


def test_reads_integers(tmp_path):
    path = tmp_path / "qmnist-test-labels-idx2-int"
    path.write_bytes(INTEGERS)
    np.testing.assert_array_equal(idx.read(path, 2, idx.INTEGER), np.arange(40).reshape(5, 8))
    np.testing.assert_array_equal(idx.read_labels(path), np.arange(0, 40, 8))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            LABELS,
            "starts with bytes '00000801'; an IDX file of 4-byte integers with 2 dimension(s) starts with '00000c02'",
        ),
        (INTEGERS[:-16], "promises (5, 8) 4-byte integers, more than the 156 accepted from a file of 156"),
        (packed(INTEGERS[:-4]), "promises 160 bytes (5, 8), the file holds 156"),
        (INTEGERS + b"x", "promises 160 bytes (5, 8), the file holds more"),
        (struct.pack(">BBBB2I", 0, 0, 12, 2, 2**31, 2**31) + bytes(9), "more than the 21 accepted"),
    ],
)
def test_refuses_what_is_not_a_whole_file_of_integers(tmp_path, content, expected):
    path = tmp_path / "qmnist-test-labels-idx2-int"
    path.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(expected)):
        idx.read_labels(path)


@pytest.mark.parametrize("content", [HUGE, packed(HUGE), packed(sizes(2**16, 2**10, 1)), bomb(100), bomb(99), bomb(1)])
def test_a_lying_header_and_a_bomb_take_no_memory(tmp_path, content):
    path = tmp_path / "images"
    path.write_bytes(content)
    assert peak_of(refusal, path) < 8 * 2**20


def test_memory_is_taken_for_what_is_read(tmp_path):
    path = tmp_path / "images"
    path.write_bytes(packed(sizes(40, 1024, 1024)) + 40 * packed(bytes(2**20)))
    assert peak_of(idx.read, path, 3) < 2 * 40 * 2**20


def test_files_may_not_be_larger_than_any_data_set(tmp_path):
    path = tmp_path / "images"
    path.write_bytes(sizes(2**17, 2**8, 2**8 + 1))
    os.truncate(path, 2**34)  # sparse: it occupies no disk space
    assert "more than the 8589934592 accepted from a file of 17179869184" in refusal(path)


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parent / "fuzz" / "corpus").iterdir()), ids=lambda path: path.name
)
def test_what_fuzzing_found_stays_fixed(path):
    peak_of(idx_oracle.check, path.read_bytes())


def test_the_oracle_of_fuzzing_knows_the_reader(monkeypatch):
    """It fails if anything else comes out."""
    labels = b"\0\0" + LABELS
    for read in (
        lambda path, dimensions: np.arange(6, dtype=np.uint8),
        lambda path, dimensions: np.arange(5, dtype=np.int32),
        lambda path, dimensions: bytes(2**24) and np.arange(5, dtype=np.uint8),
        lambda path, dimensions: refuse(f"{path}: no"),
    ):
        monkeypatch.setattr(idx, "read", read)
        with pytest.raises(AssertionError):
            peak_of(idx_oracle.check, labels)
    monkeypatch.setattr(idx, "read", lambda path, dimensions: refuse(f"{path}: two\nlines"))
    with pytest.raises(AssertionError, match="not one line"):
        idx_oracle.check(labels[:-1])


def refuse(message):
    raise InputError(message)


def test_refuses_what_is_not_a_file(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "folder", tmp_path / "pipe", Path("/dev/zero")):
        assert "is a folder, a pipe or a device" in refusal(path)
    assert "No such file" in refusal(tmp_path / "two\nlines")  # and the message is still one
    assert "File name too long" in refusal(tmp_path / ("x" * 300))
    assert "embedded null" in refusal(tmp_path / "a\0b")


def test_follows_a_link(tmp_path):
    (tmp_path / "there").write_bytes(LABELS)
    (tmp_path / "here").symlink_to(tmp_path / "there")
    assert idx.read(tmp_path / "here", 1).tolist() == [0, 1, 2, 3, 4]


def test_refuses_an_unreadable_file(tmp_path):
    path = tmp_path / "images"
    path.write_bytes(GOOD)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read every file")
    assert "Permission denied" in refusal(path)
