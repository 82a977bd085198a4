"""Tests of downloaded data sets: real HTTP servers, real processes that are killed, real damage."""

import gzip
import hashlib
import http.server
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from test_datasets import DAMAGES, damage, flipped, idx_bytes

from lenet_jax.data import datasets, idx, prepared
from lenet_jax.errors import InputError

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = FILES = tuple(prepared.SOURCES["mnist"].checksums)


def idx_gz(array):
    return gzip.compress(idx_bytes(array), mtime=0)


@pytest.fixture(scope="module")
def digits():
    """The four arrays of a small data set."""
    whole = datasets.load("mnist10k")
    return {
        "train_images": whole.train_images[:300],
        "train_labels": whole.train_labels[:300],
        "test_images": whole.test_images[:50],
        "test_labels": whole.test_labels[:50],
    }


@pytest.fixture(scope="module")
def contents(digits):
    return {file: idx_gz(digits[part]) for file, part in zip(FILES, idx.PARTS, strict=True)}


class Handler(http.server.BaseHTTPRequestHandler):
    """Delivers `server.contents`, except where `server.faults` names a file."""

    def do_GET(self):
        file = self.path.removeprefix("/data/")
        self.server.requests.append(file)
        fault, content = self.server.faults.get(file), self.server.contents.get(file)
        if fault == "die":
            self.server.socket.close()  # refuses all connections from now on
            threading.Thread(target=self.server.shutdown).start()
        elif fault == "mute":
            self.server.stalled.set()
            self.server.released.wait(60)
        elif fault == "missing" or content is None:
            self.send_error(404)
        else:
            if fault == "held":
                self.server.stalled.set()
                self.server.released.wait(60)
            body = content[:-1] + b"?" if fault == "damaged" else content
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Disposition", 'attachment; filename="../../../outside"')  # to be ignored
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
    """Makes `mnist` the small data set, published at the given addresses."""
    monkeypatch.delenv(prepared.MIRROR_VARIABLE, raising=False)

    def publish(*addresses, contents=contents):
        checksums = {file: hashlib.sha256(content).hexdigest() for file, content in contents.items()}
        source = prepared.Source("http://example.org/", addresses, checksums, tuple("abcdefghij"))
        monkeypatch.setitem(prepared.SOURCES, "mnist", source)
        return source

    return publish


def load(folder):
    return datasets.load("mnist", str(folder))


def downloads(folder):
    return folder / "downloads/lenet_jax_mnist"


def records(folder):
    return folder / "lenet_jax_digits/mnist/1.0.0"


def files_in(folder):
    """Everything in a folder: path -> bytes, None for a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def refusal(folder, action=load):
    with pytest.raises(InputError) as caught:
        action(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1000
    return message


def assert_holds(dataset, digits):
    assert (dataset.name, dataset.classes) == ("mnist", 10)
    for part, array in digits.items():
        np.testing.assert_array_equal(getattr(dataset, part), array)
        assert getattr(dataset, part).dtype == np.uint8
    assert dataset.fingerprint == datasets.Dataset(name="x", **digits).fingerprint


@pytest.fixture
def loaded(serve, publish, tmp_path, digits):
    """A folder that `mnist` was loaded into, and its server."""
    server = serve()
    publish(server.address)
    assert datasets.at_hand("mnist", str(tmp_path)) is None
    assert_holds(load(tmp_path), digits)
    return tmp_path, server


LOAD = """
import sys
from lenet_jax.data import datasets, prepared
prepared.SOURCES["mnist"] = prepared.{source!r}
print(datasets.load("mnist", {folder!r}).fingerprint)
assert "tensorflow_datasets" not in sys.modules, "takes a second to import"
"""
BUILD = """
from lenet_jax.data import prepared
prepared.SOURCES["mnist"] = prepared.{source!r}
prepared.tfds_builder("mnist", {folder!r})
"""


def elsewhere(code, source, folder):
    """A process that runs the code."""
    code = code.format(source=source, folder=str(folder))
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


class TestDownloads:
    def test_a_second_load_needs_a_second_at_most_and_the_four_files(self, loaded, digits):
        folder, server = loaded
        server.stop()
        assert server.requests == list(FILES)
        assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == sorted(FILES)
        assert all(path.stat().st_mode & 0o777 == 0o644 for path in downloads(folder).iterdir())  # others may read them
        start = time.perf_counter()
        assert_holds(load(folder), digits)
        assert_holds(datasets.at_hand("mnist", str(folder)), digits)
        assert time.perf_counter() - start < 1

    def test_data_of_the_previous_version_are_loaded_and_left_alone(self, loaded, digits):
        """It kept the arrays and a note beside TFDS records."""
        folder, server = loaded
        server.stop()
        prepared.tfds_builder("mnist", str(folder))
        np.savez(records(folder) / "arrays.npz", **{part: array // 2 for part, array in digits.items()})
        (records(folder) / "fingerprint.json").write_text("{}")
        before = files_in(folder)
        assert_holds(load(folder), digits)
        prepared.tfds_builder("mnist", str(folder))
        assert files_in(folder) == before

    @pytest.mark.parametrize("kind", DAMAGES)
    @pytest.mark.parametrize("file", FILES)
    def test_damaged_files_are_downloaded_again(self, loaded, digits, capfd, file, kind):
        folder, server = loaded
        before = files_in(folder)
        damage(downloads(folder) / file, kind)
        assert datasets.at_hand("mnist", str(folder)) is None
        capfd.readouterr()
        assert_holds(load(folder), digits)
        reported = f"'{downloads(folder) / file}' is damaged: downloading it again\n" in capfd.readouterr().err
        assert reported == (kind != "missing")
        assert server.requests == [*FILES, file]
        assert files_in(folder) == before

    def test_no_damaged_byte_goes_unnoticed(self, loaded):
        path = downloads(loaded[0]) / TEST_IMAGES
        whole = path.read_bytes()
        positions = np.random.default_rng(0).integers(len(whole), size=100).tolist()
        for at in [*range(50), *positions, *range(len(whole) - 50, len(whole))]:
            path.write_bytes(whole[:at] + bytes((whole[at] ^ 0xFF,)) + whole[at + 1 :])
            assert prepared.unverified("mnist", path.parent) == [TEST_IMAGES]

    def test_folders_and_pipes_are_not_read(self, loaded, digits):
        folder, _ = loaded
        path = downloads(folder) / TRAIN_LABELS
        path.unlink()
        os.mkfifo(path)
        assert_holds(load(folder), digits)
        path.unlink()
        (path / "mine").mkdir(parents=True)
        expected = f"can't be stored in '{downloads(folder)}' (--config.data_dir names another folder): IsADirectory"
        assert expected in refusal(folder)
        assert (path / "mine").exists()
        assert f"can't be stored in '{folder}/downloads/lenet_jax_mnist/{TEST_LABELS}" in refusal(
            downloads(folder) / TEST_LABELS
        )

    def test_read_only_data_dir(self, serve, publish, loaded, tmp_path, digits):
        folder, _ = loaded
        downloads(folder).chmod(0o500)
        try:
            if os.access(downloads(folder), os.W_OK):
                pytest.skip("this user may write everywhere")
            assert_holds(load(folder), digits)
            path = downloads(folder) / TEST_LABELS
            path.write_bytes(flipped(path.read_bytes()))
            assert "Permission denied" in refusal(folder)
        finally:
            downloads(folder).chmod(0o700)

    def test_names_from_outside_lead_nowhere(self, serve, publish, tmp_path, contents, digits):
        """Neither what a server calls a file, nor the name inside a gzip file."""
        folder, server = tmp_path / "a/b/c", serve()
        # The header of a gzip file, with a flag that says a name follows it.
        server.contents = {
            file: content[:3] + b"\x08" + content[4:10] + b"../../../outside\0" + content[10:]
            for file, content in contents.items()
        }
        publish(server.address, contents=server.contents)
        assert_holds(load(folder), digits)
        assert not [path for path in tmp_path.rglob("*") if "outside" in path.name]
        assert {path.name for path in downloads(folder).iterdir()} == set(FILES)

    def test_published_files_that_do_not_fit(self, serve, publish, tmp_path, contents, digits):
        """Even with the right checksum."""
        server = serve()
        for content, expected in (
            (b"<html>not an IDX file</html>", "starts with bytes '3c68746d'"),
            (idx_gz(np.zeros(299, np.uint8)), "dataset: 'mnist' has 300 train images but 299 labels"),
        ):
            server.contents = {**contents, TRAIN_LABELS: content}
            publish(server.address, contents=server.contents)
            assert expected in refusal(tmp_path)


class TestProcesses:
    @pytest.mark.parametrize("there", ["nothing", "damaged"])
    def test_two_at_once(self, serve, publish, tmp_path, digits, there):
        if there == "damaged":
            publish(serve().address)
            load(tmp_path)
            for file in FILES:
                damage(downloads(tmp_path) / file, "flipped")
        server = serve(file1="held")
        source = publish(server.address)
        with elsewhere(LOAD, source, tmp_path) as first:
            assert server.stalled.wait(50)
            with elsewhere(LOAD, source, tmp_path) as second:
                line = second.stderr.readline()
                server.released.set()
                outputs = [process.communicate(timeout=50) for process in (first, second)]
        assert line == f"waiting for another process to prepare '{downloads(tmp_path)}'\n"
        assert (first.returncode, second.returncode) == (0, 0), outputs
        assert {printed.strip() for printed, _ in outputs} == {datasets.Dataset(name="x", **digits).fingerprint}
        assert server.requests == list(FILES)
        assert {path.name for path in downloads(tmp_path).iterdir()} == set(FILES)

    def test_two_without_locks(self, serve, publish, tmp_path, digits, monkeypatch):
        """Some network file systems have none: then both download, each into a folder of its own."""

        def refused(*arguments):
            raise OSError(95, "Operation not supported")

        publish(serve().address)
        monkeypatch.setattr(prepared.fcntl, "flock", refused)
        download, loaded = prepared.download, []

        def slow_download(*arguments):
            monkeypatch.setattr(prepared, "download", download)
            loaded.append(load(tmp_path))  # another one, meanwhile
            return download(*arguments)

        monkeypatch.setattr(prepared, "download", slow_download)
        loaded.append(load(tmp_path))
        for dataset in (*loaded, load(tmp_path)):
            assert_holds(dataset, digits)

    def test_killed_while_downloading(self, serve, publish, tmp_path, digits):
        server = serve(file2="stall")
        source = publish(server.address)
        with elsewhere(LOAD, source, tmp_path) as child:
            try:
                assert server.stalled.wait(50)
            finally:
                child.kill()
        assert server.requests == list(FILES[:3])
        (downloads(tmp_path) / "mine").mkdir()

        again = serve()
        publish(again.address)
        assert_holds(load(tmp_path), digits)
        assert again.requests == [TEST_IMAGES, TEST_LABELS]
        assert {path.name for path in downloads(tmp_path).iterdir()} == {*FILES, "mine"}  # nothing unfinished is left


class TestMirrors:
    @pytest.mark.parametrize(
        ("fault", "answer", "missing"),
        [
            ("missing", "HTTP 404", [1]),
            ("truncated", "transfer interrupted", [1]),
            ("damaged", "wrong SHA-256", [1]),
            ("die", "no connection, or connection lost", [1, 2, 3]),
            ("mute", "no answer in 1 s", [1, 2, 3]),
            ("stall", "no connection, or connection lost", [1, 2, 3]),
        ],
    )
    def test_failed_download(self, serve, publish, tmp_path, monkeypatch, digits, fault, answer, missing):
        """What was there stays, damaged or whole, and the next try downloads only the rest."""
        monkeypatch.setattr(prepared, "TIMEOUT_S", 1)
        server = serve(file1=fault)
        publish(server.address)
        downloads(tmp_path).mkdir(parents=True)
        (downloads(tmp_path) / TRAIN_LABELS).write_bytes(b"damaged")
        start = time.perf_counter()
        message = refusal(tmp_path)
        assert time.perf_counter() - start < 5  # a silent server is asked once
        lacking = [FILES[number] for number in missing]
        assert message.startswith(
            f"dataset: 'mnist' could not be downloaded: {', '.join(lacking)} from '{server.address}' ({answer}"
        )
        assert "use the data set idx:FOLDER" in message
        assert prepared.MIRROR_VARIABLE in message
        assert (downloads(tmp_path) / TRAIN_LABELS).read_bytes() == b"damaged"
        assert {path.name for path in downloads(tmp_path).iterdir()} == {*FILES} - {*lacking} | {TRAIN_LABELS}

        again = serve()
        publish(again.address)
        assert_holds(load(tmp_path), digits)
        assert again.requests == lacking

    def test_offline(self, publish, tmp_path):
        first, second = closed_port(), closed_port()
        publish(first, second)
        message = refusal(tmp_path)
        for expected in (*FILES, f"'{first}' (no connection", f"'{second}' (no connection", "idx:FOLDER"):
            assert expected in message

    @pytest.mark.parametrize("fault", ["missing", "truncated", "damaged", "die", "mute", "stall"])
    def test_second_mirror(self, serve, publish, tmp_path, monkeypatch, digits, fault):
        monkeypatch.setattr(prepared, "TIMEOUT_S", 1)
        first, second = serve(file0=fault), serve()
        publish(first.address, second.address)
        assert_holds(load(tmp_path), digits)
        assert second.requests == (list(FILES) if fault in ("die", "mute", "stall") else [TRAIN_IMAGES])

    def test_environment_variables(self, serve, publish, tmp_path, monkeypatch, digits):
        official, mirror = serve(), serve()
        publish(official.address)
        monkeypatch.setenv(prepared.MIRROR_VARIABLE, mirror.address.rstrip("/"))
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
        assert_holds(datasets.load("mnist"), digits)
        assert downloads(tmp_path).is_dir()
        assert mirror.requests == list(FILES)
        assert official.requests == []

    @pytest.mark.parametrize("mirror", ["no address", "/some/folder", "file:///some/folder", "http://"])
    def test_mirror_variable_that_is_not_an_address(self, publish, tmp_path, monkeypatch, mirror):
        publish(closed_port())
        monkeypatch.setenv(prepared.MIRROR_VARIABLE, mirror)
        assert "(not a web address)" in refusal(tmp_path)


def build(folder):
    return prepared.tfds_builder("mnist", str(folder))


READ = """
import sys
import tensorflow_datasets as tfds
builder = tfds.builder("lenet_jax_digits/mnist", data_dir={folder!r})
record = builder.as_data_source(split="test")[3]
print(record["label"], record["image"].sum())
assert not {{"tensorflow", "lenet_jax"}} & set(sys.modules)
"""
RECORDS = [f"lenet_jax_digits-{split}.array_record-00000-of-00001" for split in ("train", "test")]


class TestRecords:
    """TFDS records, which are written for users of TFDS; `datasets.load` does not need them."""

    def test_tfds_reads_them_without_tensorflow_and_without_us(self, loaded, digits):
        folder, server = loaded
        server.stop()
        builder = build(folder)
        assert builder.info.file_format.value == "array_record"
        assert {name: split.num_examples for name, split in builder.info.splits.items()} == {"train": 300, "test": 50}
        assert builder.info.features["label"].names == list("abcdefghij")
        with elsewhere(READ, None, folder) as process:
            printed, errors = process.communicate()
        assert printed.split() == [str(digits[part][3].sum()) for part in ("test_labels", "test_images")], errors
        assert {path.name for path in records(folder).parent.iterdir()} == {"1.0.0"}
        dataset = datasets.load("tfds:lenet_jax_digits/mnist", str(folder))
        assert dataset.fingerprint == load(folder).fingerprint

    def test_they_are_written_once(self, loaded):
        folder, _ = loaded
        times = []
        for _ in range(2):
            build(folder)
            times.append({path.name: path.stat().st_mtime_ns for path in records(folder).iterdir()})
        assert times[0] == times[1]

    def test_damage_is_reported_in_one_line_and_loading_needs_no_records(self, loaded, digits):
        folder, _ = loaded
        build(folder)
        whole = files_in(folder)
        for file in (*RECORDS, "dataset_info.json", "features.json", "label.labels.txt"):
            path = records(folder) / file
            for kind in DAMAGES:
                damage(path, kind)
                before = files_in(folder)
                expected = f"dataset: TFDS records in '{records(folder)}' can't be used; if they are damaged, delete"
                assert refusal(folder, build).startswith(expected)
                assert_holds(load(folder), digits)
                assert files_in(folder) == before
                path.write_bytes(whole[str(path.relative_to(folder))])
        shutil.copy(records(folder) / RECORDS[1], records(folder) / RECORDS[0])  # whole, but others
        assert "can't be used" in refusal(folder, build)
        shutil.rmtree(records(folder))  # as the message says
        build(folder)
        assert files_in(folder).keys() == whole.keys()

    def test_killed_while_writing(self, loaded):
        folder, server = loaded
        server.stop()
        source, parent, rng = prepared.SOURCES["mnist"], records(folder).parent, np.random.default_rng(0)
        (parent / "mine").mkdir(parents=True)
        for _ in range(3):
            earlier = set(parent.iterdir())
            with elsewhere(BUILD, source, folder) as process:
                while process.poll() is None and set(parent.iterdir()) <= earlier:
                    time.sleep(0.001)
                time.sleep(rng.uniform(0, 0.1))
                process.kill()
                process.communicate()
            assert process.returncode in (0, -signal.SIGKILL), "it came as far as writing"
        build(folder)
        assert {path.name for path in parent.iterdir()} == {"1.0.0", "mine"}  # nothing unfinished is left

    def test_two_at_once(self, loaded):
        folder, _ = loaded
        with prepared.exclusive(records(folder).parent):
            other = elsewhere(BUILD, prepared.SOURCES["mnist"], folder)
            line = other.stderr.readline()
            assert line == f"waiting for another process to prepare '{records(folder).parent}'\n"
            assert not records(folder).exists()
        other.communicate(timeout=50)
        assert other.returncode == 0
        assert build(folder)

    def test_unknown_name(self, tmp_path):
        with pytest.raises(InputError, match=r"^dataset: 'mnist10k' is not one of 'mnist', 'fashion_mnist', 'kmnist'$"):
            prepared.tfds_builder("mnist10k", str(tmp_path))


@pytest.mark.parametrize("name", prepared.SOURCES)
def test_sources_are_those_that_tfds_lists(name):
    listing = Path(tfds.__file__).parent / "url_checksums" / f"{name}.txt"
    listed = {}
    for line in listing.read_text().splitlines():
        address, _, checksum, _ = line.split("\t")
        listed[address] = checksum
    source = prepared.SOURCES[name]
    assert {source.addresses[0] + file: checksum for file, checksum in source.checksums.items()} == listed
    assert tuple(file.removesuffix(".gz") for file in source.checksums) == tuple(file for file, _ in idx.PARTS.values())
    assert all(address.endswith("/") for address in source.addresses)
    assert len(source.labels) == 10
    assert len(set(source.addresses)) == (2 if name == "mnist" else 1)
