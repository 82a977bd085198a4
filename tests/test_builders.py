import gzip
import hashlib
import http.server
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from lenet_jax import builders, data
from lenet_jax.errors import InputError

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = FILES = tuple(builders.SOURCES["mnist"].checksums)


def idx_gz(array):
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return gzip.compress(header + array.tobytes(), mtime=0)


@pytest.fixture(scope="module")
def digits():
    """The four arrays of a small data set."""
    whole = data.load("mnist5k")
    return {
        "train_images": whole.train_images[:300],
        "train_labels": whole.train_labels[:300],
        "test_images": whole.test_images[:50],
        "test_labels": whole.test_labels[:50],
    }


@pytest.fixture(scope="module")
def contents(digits):
    return {file: idx_gz(digits[part]) for file, part in zip(FILES, data.IDX_PARTS, strict=True)}


class Handler(http.server.BaseHTTPRequestHandler):
    """Delivers `server.contents`, except where `server.faults` names a file."""

    def do_GET(self):
        file = self.path.removeprefix("/data/")
        self.server.requests.append(file)
        fault, content = self.server.faults.get(file), self.server.contents.get(file)
        if fault == "die":
            self.server.socket.close()  # refuses everybody from now on
            threading.Thread(target=self.server.shutdown).start()
        elif fault == "mute":
            self.server.stalled.set()
            self.server.released.wait(60)
        elif fault == "missing" or content is None:
            self.send_error(404)
        else:
            body = content[:-1] + b"?" if fault == "damaged" else content
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if fault in ("truncated", "stall") else body)
            if fault == "stall":
                self.wfile.flush()
                self.server.stalled.set()
                self.server.released.wait(60)

    def log_message(self, *arguments):
        pass


class Server(http.server.ThreadingHTTPServer):
    def __init__(self, contents, faults):
        super().__init__(("127.0.0.1", 0), Handler)
        self.contents, self.faults, self.requests = contents, faults, []
        self.stalled, self.released = threading.Event(), threading.Event()
        self.address = f"http://127.0.0.1:{self.server_port}/data/"
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    def stop(self):
        self.released.set()
        self.shutdown()
        self.thread.join()
        self.server_close()


@pytest.fixture
def serve(contents):
    servers = []

    def serve(**faults):
        server = Server(contents, {FILES[int(key[-1])]: fault for key, fault in faults.items()})
        servers.append(server)
        return server

    yield serve
    for server in servers:
        server.stop()


def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/"


@pytest.fixture
def publish(contents, monkeypatch):
    """Lets `mnist` be the small data set, published at the given addresses."""
    monkeypatch.delenv(builders.MIRROR_VARIABLE, raising=False)

    def publish(*addresses, contents=contents):
        checksums = {file: hashlib.sha256(content).hexdigest() for file, content in contents.items()}
        source = builders.Source("http://example.org/", addresses, checksums, tuple("0123456789"))
        monkeypatch.setitem(builders.SOURCES, "mnist", source)
        return source

    return publish


def refusal(folder):
    with pytest.raises(InputError) as caught:
        data.load("mnist", str(folder))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1000
    assert message.startswith("dataset: 'mnist' ")
    assert not list(
        Path(folder).glob("lenet_jax_digits/mnist/1.0.0*")
    )  # nothing that a later load would take for whole
    return message


def assert_holds(dataset, digits):
    assert (dataset.name, dataset.classes) == ("mnist", 10)
    for part, array in digits.items():
        np.testing.assert_array_equal(getattr(dataset, part), array)
        assert getattr(dataset, part).dtype == np.uint8
    assert dataset.fingerprint == data.Dataset(name="x", **digits).fingerprint


def kept_in(folder):
    return folder / "lenet_jax_digits/mnist/1.0.0/arrays.npz"


@pytest.fixture
def loaded(serve, publish, tmp_path, digits):
    """A folder that `mnist` was loaded into, and its server."""
    server = serve()
    publish(server.address)
    assert_holds(data.load("mnist", str(tmp_path)), digits)
    return tmp_path, server


def test_prepares_a_tfds_data_set(loaded, digits):
    folder, server = loaded
    assert server.requests == list(FILES)
    builder = tfds.builder("lenet_jax_digits/mnist", data_dir=folder)
    assert builder.info.file_format.value == "array_record"
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == {"train": 300, "test": 50}
    record = builder.as_data_source(split="test")[3]
    np.testing.assert_array_equal(record["image"][..., 0], digits["test_images"][3])
    assert record["label"] == digits["test_labels"][3]


def test_second_load_is_warm(loaded, digits):
    folder, server = loaded
    server.stop()
    start = time.perf_counter()
    dataset = data.load("mnist", str(folder))
    assert time.perf_counter() - start < 1
    assert_holds(dataset, digits)
    assert len(server.requests) == 4


def flip(position):
    def flipped(content):
        at = int(position * (len(content) - 1))
        return content[:at] + bytes((content[at] ^ 0x55,)) + content[at + 1 :]

    return flipped


@pytest.mark.parametrize(
    "damage",
    [
        None,
        lambda content: b"",
        lambda content: content[:-100],
        lambda content: b"PK\x03\x04 not a zip file",
        *(flip(position) for position in (0, 0.0001, 0.01, 0.5, 0.999, 1)),
    ],
    ids=["deleted", "empty", "truncated", "text", *(f"flip{i}" for i in range(6))],
)
def test_lost_arrays_are_read_again_from_the_records(loaded, digits, damage):
    folder, server = loaded
    kept = kept_in(folder)
    if damage is None:
        kept.unlink()
    else:
        kept.write_bytes(damage(kept.read_bytes()))
    assert_holds(data.load("mnist", str(folder)), digits)
    assert len(server.requests) == 4
    assert data.read_arrays("mnist", kept).fingerprint == data.Dataset(name="x", **digits).fingerprint  # whole again


def test_no_single_damaged_byte_goes_unnoticed(loaded, digits):
    kept = kept_in(loaded[0])
    whole = kept.read_bytes()
    expected = data.Dataset(name="x", **digits).fingerprint
    positions = np.random.default_rng(0).integers(len(whole), size=100).tolist()
    for at in [*range(100), *positions, *range(len(whole) - 100, len(whole))]:
        kept.write_bytes(whole[:at] + bytes((whole[at] ^ 0xFF,)) + whole[at + 1 :])
        dataset = data.read_arrays("mnist", kept)
        assert dataset is None or dataset.fingerprint == expected


def test_arrays_of_other_data_are_not_taken(loaded, digits):
    folder, _ = loaded
    other = {**digits, "train_images": digits["train_images"][::-1]}
    np.savez(kept_in(folder), fingerprint="sha256:0", **other)
    assert_holds(data.load("mnist", str(folder)), digits)


def test_arrays_that_cannot_be_kept_cost_only_time(loaded, digits):
    folder, _ = loaded
    kept_in(folder).unlink()
    (kept_in(folder) / "in the way").mkdir(parents=True)
    assert_holds(data.load("mnist", str(folder)), digits)
    assert not list(kept_in(folder).parent.glob("*.partial.npz"))


@pytest.mark.parametrize("damage", ["truncated", "zeroed", "missing", "info"])
def test_damaged_records_are_refused(loaded, damage):
    folder, _ = loaded
    kept_in(folder).unlink()
    (records,) = kept_in(folder).parent.glob("*-test.array_record*")
    if damage == "truncated":
        records.write_bytes(records.read_bytes()[:-100])
    elif damage == "zeroed":
        records.write_bytes(bytes(records.stat().st_size))
    elif damage == "missing":
        records.unlink()
    else:
        (records.parent / "dataset_info.json").write_text("{")
    with pytest.raises(InputError) as caught:
        data.load("mnist", str(folder))
    message = str(caught.value)
    assert message.startswith(f"dataset: 'mnist' can't be prepared in or read from '{folder}': ")
    assert "\n" not in message


def test_data_dir_from_the_environment(serve, publish, tmp_path, monkeypatch, digits):
    publish(serve().address)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "elsewhere"))
    assert_holds(data.load("mnist"), digits)
    assert kept_in(tmp_path / "elsewhere").is_file()


@pytest.mark.parametrize(
    ("fault", "answer", "missing"),
    [
        ("missing", "HTTP 404", {1}),
        ("truncated", "the transfer broke off", {1}),
        ("damaged", "wrong SHA-256", {1}),
        ("die", "no connection, or it broke off", {1, 2, 3}),
        ("mute", "no answer in 1 s", {1, 2, 3}),
        ("stall", "no connection, or it broke off", {1, 2, 3}),
    ],
)
def test_failed_download_and_its_second_try(serve, publish, tmp_path, monkeypatch, digits, fault, answer, missing):
    monkeypatch.setattr(builders, "TIMEOUT", 1)
    server = serve(file1=fault)
    publish(server.address)
    start = time.perf_counter()
    message = refusal(tmp_path)
    assert time.perf_counter() - start < 5  # a silent server is asked once
    lacking = ", ".join(FILES[number] for number in sorted(missing))
    assert f"could not be downloaded: {lacking} from '{server.address}' ({answer}" in message
    assert "--config.dataset=idx:FOLDER" in message
    assert builders.MIRROR_VARIABLE in message

    again = serve()
    publish(again.address)
    assert_holds(data.load("mnist", str(tmp_path)), digits)
    assert again.requests == [FILES[number] for number in sorted(missing)]  # the others were there


def test_interrupted_after_two_files(serve, publish, tmp_path, digits):
    server = serve(file2="die")
    publish(server.address)
    message = refusal(tmp_path)
    assert f"could not be downloaded: {TEST_IMAGES}, {TEST_LABELS} from" in message
    again = serve()
    publish(again.address)
    assert_holds(data.load("mnist", str(tmp_path)), digits)
    assert again.requests == [TEST_IMAGES, TEST_LABELS]


def test_offline(publish, tmp_path):
    first, second = closed_port(), closed_port()
    publish(first, second)
    message = refusal(tmp_path)
    for expected in (*FILES, f"'{first}' (no connection", f"'{second}' (no connection", "idx:FOLDER"):
        assert expected in message


@pytest.mark.parametrize("fault", ["missing", "truncated", "damaged", "die", "mute", "stall"])
def test_second_mirror(serve, publish, tmp_path, monkeypatch, digits, fault):
    monkeypatch.setattr(builders, "TIMEOUT", 1)
    first, second = serve(file0=fault), serve()
    publish(first.address, second.address)
    assert_holds(data.load("mnist", str(tmp_path)), digits)
    assert second.requests == (list(FILES) if fault in ("die", "mute", "stall") else [TRAIN_IMAGES])


def test_mirror_variable(serve, publish, tmp_path, monkeypatch, digits):
    official, mirror = serve(), serve()
    publish(official.address)
    monkeypatch.setenv(builders.MIRROR_VARIABLE, mirror.address.rstrip("/"))
    assert_holds(data.load("mnist", str(tmp_path)), digits)
    assert mirror.requests == list(FILES)
    assert official.requests == []


@pytest.mark.parametrize("mirror", ["no address", "/some/folder", "file:///some/folder", "http://"])
def test_mirror_variable_that_is_no_address(publish, tmp_path, monkeypatch, mirror):
    publish(closed_port())
    monkeypatch.setenv(builders.MIRROR_VARIABLE, mirror)
    assert "(no web address)" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"<html>not an IDX file</html>", "starts with bytes '3c68746d'"),
        (idx_gz(np.zeros(299, np.uint8)), "zip() argument 2 is shorter"),
        (idx_gz(np.full(300, 10, np.uint8)), "Class label 10 greater than configured num_classes 10"),
    ],
    ids=["html", "short", "label"],
)
def test_published_files_that_do_not_fit(serve, publish, tmp_path, contents, digits, content, expected):
    """Even with the right checksum: errors come out of TFDS's generator as one line, and nothing is left behind."""
    server = serve()
    server.contents = {**contents, TRAIN_LABELS: content}
    publish(server.address, contents=server.contents)
    with pytest.raises(InputError) as caught:
        data.load("mnist", str(tmp_path))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("lenet_jax_digits/mnist/1.0.0*"))

    server.contents = contents
    publish(server.address)
    assert_holds(data.load("mnist", str(tmp_path)), digits)


def test_data_dir_that_is_no_folder(publish, tmp_path):
    publish(closed_port())
    (tmp_path / "file").write_text("")
    assert f"can't be prepared in or read from '{tmp_path}/file'" in refusal(tmp_path / "file")


def test_read_only_data_dir(serve, publish, tmp_path):
    publish(serve().address)
    tmp_path.chmod(0o500)
    if os.access(tmp_path, os.W_OK):
        pytest.skip("this user may write everywhere")
    try:
        assert "Permission denied" in refusal(tmp_path)
    finally:
        tmp_path.chmod(0o700)


def test_killed_while_downloading(serve, publish, tmp_path, digits):
    server = serve(file2="stall")
    source = publish(server.address)
    code = f"""
from lenet_jax import builders, data
builders.SOURCES["mnist"] = builders.{source!r}
data.load("mnist", {str(tmp_path)!r})
"""
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as child:
        try:
            assert server.stalled.wait(50)
        finally:
            child.kill()
    assert server.requests == list(FILES[:3])
    assert not kept_in(tmp_path).parent.exists()

    again = serve()
    publish(again.address)
    assert_holds(data.load("mnist", str(tmp_path)), digits)
    assert again.requests == [TEST_IMAGES, TEST_LABELS]


@pytest.mark.parametrize("name", data.DOWNLOADED)
def test_sources_are_those_that_tfds_lists(name):
    listing = Path(tfds.__file__).parent / "url_checksums" / f"{name}.txt"
    listed = {}
    for line in listing.read_text().splitlines():
        address, _, checksum, _ = line.split("\t")
        listed[address] = checksum
    source = builders.SOURCES[name]
    assert {source.addresses[0] + file: checksum for file, checksum in source.checksums.items()} == listed
    assert tuple(file.removesuffix(".gz") for file in source.checksums) == tuple(
        file for file, _ in data.IDX_PARTS.values()
    )
    assert all(address.endswith("/") for address in source.addresses)
    assert len(source.labels) == 10


def test_mnist_has_two_mirrors():
    assert len(set(builders.SOURCES["mnist"].addresses)) == 2
    assert tuple(builders.SOURCES) == data.DOWNLOADED
