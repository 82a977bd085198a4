import contextlib
import gzip
import hashlib
import http.server
import io
import json
import os
import pickle
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from test_datasets import DAMAGES, damage, flipped

from lenet_jax.data import datasets, prepared
from lenet_jax.errors import InputError

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = FILES = tuple(prepared.SOURCES["mnist"].checksums)


def idx_gz(array):
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return gzip.compress(header + array.tobytes(), mtime=0)


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
    return {file: idx_gz(digits[part]) for file, part in zip(FILES, datasets.IDX_PARTS, strict=True)}


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
            if fault == "held":
                self.server.stalled.set()
                self.server.released.wait(60)
            body = content[:-1] + b"?" if fault == "damaged" else content
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Disposition", 'attachment; filename="../../../outside"')  # nobody should listen
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
    monkeypatch.delenv(prepared.MIRROR_VARIABLE, raising=False)

    def publish(*addresses, contents=contents):
        checksums = {file: hashlib.sha256(content).hexdigest() for file, content in contents.items()}
        source = prepared.Source("http://example.org/", addresses, checksums, tuple("0123456789"))
        monkeypatch.setitem(prepared.SOURCES, "mnist", source)
        return source

    return publish


def refusal(folder):
    with pytest.raises(InputError) as caught:
        datasets.load("mnist", str(folder))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1000
    assert message.startswith("dataset: 'mnist' ")
    assert not list(kept_in(Path(folder)).parent.parent.glob("*"))  # nothing that a later load would take for whole
    return message


def assert_holds(dataset, digits):
    assert (dataset.name, dataset.classes) == ("mnist", 10)
    for part, array in digits.items():
        np.testing.assert_array_equal(getattr(dataset, part), array)
        assert getattr(dataset, part).dtype == np.uint8
    assert dataset.fingerprint == datasets.Dataset(name="x", **digits).fingerprint


def kept_in(folder):
    return folder / "lenet_jax_digits/mnist/1.0.0/arrays.npz"


@pytest.fixture
def loaded(serve, publish, tmp_path, digits):
    """A folder that `mnist` was loaded into, and its server."""
    server = serve()
    publish(server.address)
    assert_holds(datasets.load("mnist", str(tmp_path)), digits)
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
    dataset = datasets.load("mnist", str(folder))
    assert time.perf_counter() - start < 1
    assert_holds(dataset, digits)
    assert len(server.requests) == 4


LOADER = """
from lenet_jax.data import datasets, prepared
prepared.SOURCES["mnist"] = prepared.{source!r}
print(datasets.load("mnist", {folder!r}).fingerprint)
"""


def load_elsewhere(source, folder):
    """A process that loads `mnist` and prints its fingerprint."""
    code = LOADER.format(source=source, folder=str(folder))
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def told(capfd):
    """What users were told of damage, since the last call."""
    return [line for line in capfd.readouterr().err.splitlines() if "can't be read" in line]


def files_in(folder):
    """Everything in a folder: path -> bytes, None for a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


class Evil:
    """Pickled, it makes a folder where it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def npz(arrays, compression=zipfile.ZIP_STORED):
    """An .npz file of arrays, or of whatever bytes are to be their files."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, array in arrays.items():
            archive.writestr(f"{name}.npy", array if isinstance(array, bytes) else npy(array))
    return stream.getvalue()


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def npy_header(*shape):
    """The start of an .npy file that promises so much."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return stream.getvalue()


ARRAY_DAMAGES = {
    **{kind: (lambda arrays, kind=kind: DAMAGES[kind](npz(arrays))) for kind in DAMAGES if kind != "missing"},
    **{f"flip {at}": (lambda arrays, at=at: flipped(npz(arrays), at)) for at in (0, 0.0001, 0.5, 0.999)},
    "text": lambda arrays: b"PK\x03\x04 not a zip file",
    "other data": lambda arrays: npz({**arrays, "train_images": arrays["train_images"][::-1]}),
    "other type": lambda arrays: npz({**arrays, "train_images": arrays["train_images"].astype(np.int64)}),
    "a part": lambda arrays: npz({"train_images": arrays["train_images"]}),
    "pickled": lambda arrays: pickle.dumps(Evil()),
    "pickled member": lambda arrays: npz({**arrays, "train_images": np.array([Evil()], object)}),
    "absurd shape": lambda arrays: npz({**arrays, "train_images": npy_header(10**13, 28, 28)}),
    "large shape": lambda arrays: npz({**arrays, "train_images": npy_header(10**7, 28, 28)}),
    "large array": lambda arrays: npy_header(10**7, 28, 28),
    "bomb": lambda arrays: npz({**arrays, "train_images": np.zeros((10**5, 28, 28), np.uint8)}, zipfile.ZIP_DEFLATED),
}
"""The arrays -> what is in their file instead."""


@pytest.mark.parametrize("kind", ARRAY_DAMAGES)
def test_damaged_arrays_are_read_again_from_the_records(loaded, digits, capfd, monkeypatch, kind):
    folder, server = loaded
    monkeypatch.chdir(folder)  # where Evil would make its folder
    before, kept = files_in(folder), kept_in(folder)
    kept.write_bytes(ARRAY_DAMAGES[kind](digits))
    assert datasets.at_hand("mnist", str(folder)) is None
    assert_holds(datasets.load("mnist", str(folder)), digits)
    assert told(capfd) == [f"{str(kept)!r} is damaged or can't be read: back to the records"]
    assert len(server.requests) == 4
    assert files_in(folder) == before  # whole again
    assert_holds(datasets.at_hand("mnist", str(folder)), digits)
    assert_holds(datasets.load("mnist", str(folder)), digits)
    assert told(capfd) == []


def test_bomb_is_not_unpacked(loaded, digits):
    folder, _ = loaded
    kept_in(folder).write_bytes(ARRAY_DAMAGES["bomb"](digits))  # 78 MB in less than 200 kB
    assert kept_in(folder).stat().st_size < 200_000
    tracemalloc.start()
    try:
        assert datasets.at_hand("mnist", str(folder)) is None
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_missing_arrays_are_read_again_without_a_word(loaded, digits, capfd):
    folder, server = loaded
    before = files_in(folder)
    kept_in(folder).unlink()
    assert_holds(datasets.load("mnist", str(folder)), digits)
    assert files_in(folder) == before
    assert told(capfd) == []
    assert len(server.requests) == 4


def test_no_single_damaged_byte_goes_unnoticed(loaded, digits):
    kept = kept_in(loaded[0])
    whole = kept.read_bytes()
    expected = datasets.Dataset(name="x", **digits).fingerprint
    positions = np.random.default_rng(0).integers(len(whole), size=100).tolist()
    for at in [*range(100), *positions, *range(len(whole) - 100, len(whole))]:
        kept.write_bytes(whole[:at] + bytes((whole[at] ^ 0xFF,)) + whole[at + 1 :])
        dataset = datasets.read_arrays("mnist", kept.parent)
        assert dataset is None or dataset.fingerprint == expected


def test_arrays_that_cannot_be_kept_cost_only_time(loaded, digits):
    folder, _ = loaded
    kept_in(folder).unlink()
    (kept_in(folder) / "in the way").mkdir(parents=True)
    assert_holds(datasets.load("mnist", str(folder)), digits)
    assert not list(kept_in(folder).parent.glob("*.partial.npz"))


RECORDS = [f"lenet_jax_digits-{split}.array_record-00000-of-00001" for split in ("train", "test")]


@pytest.mark.parametrize("file", [*RECORDS, "dataset_info.json", datasets.NOTE])
@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_records_are_made_anew_from_the_downloads(loaded, digits, capfd, file, kind):
    folder, server = loaded
    place = kept_in(folder).parent
    before = files_in(folder)
    kept_in(folder).unlink()
    damage(place / file, kind)
    assert_holds(datasets.load("mnist", str(folder)), digits)
    (line,) = told(capfd)
    assert line.startswith("'mnist' can't be read (")
    assert line.endswith("): making it anew from its downloads")
    assert file in line
    assert str(place) in line
    assert len(server.requests) == 4  # the downloads were there
    assert files_in(folder) == before
    assert_holds(datasets.load("mnist", str(folder)), digits)
    assert told(capfd) == []


@pytest.mark.parametrize("position", np.random.default_rng(0).random(4).round(3).tolist())
def test_no_damaged_byte_of_the_records_goes_unnoticed(loaded, digits, capfd, position):
    folder, _ = loaded
    kept_in(folder).unlink()
    records = kept_in(folder).parent / RECORDS[0]
    records.write_bytes(flipped(records.read_bytes(), position))
    assert_holds(datasets.load("mnist", str(folder)), digits)
    assert RECORDS[0] in told(capfd)[0]


def rewrite_note(place, **changes):
    note = json.loads((place / datasets.NOTE).read_text())
    (place / datasets.NOTE).write_text(json.dumps(note | changes))


@pytest.mark.parametrize(
    ("file", "change"),
    [
        (RECORDS[0], lambda place: shutil.copy(place / RECORDS[1], place / RECORDS[0])),  # whole, but other ones
        (datasets.NOTE, lambda place: rewrite_note(place, name="kmnist")),
        (datasets.NOTE, lambda place: rewrite_note(place, fingerprint="sha256:0")),
        (datasets.NOTE, lambda place: rewrite_note(place, files=None)),
        ("../../../../secret", lambda place: rewrite_note(place, files={"../../../../secret": "0"})),
        (datasets.NOTE, lambda place: (shutil.rmtree(place), place.write_text("a file in its place"))),
    ],
    ids=["records", "name", "fingerprint", "files", "outside", "folder"],
)
def test_what_is_other_than_noted_is_made_anew(loaded, digits, capfd, file, change):
    folder, server = loaded
    before = files_in(folder)
    kept_in(folder).unlink()
    change(kept_in(folder).parent)
    assert_holds(datasets.load("mnist", str(folder)), digits)
    assert file in told(capfd)[0]
    assert files_in(folder) == before
    assert len(server.requests) == 4


def test_whole_arrays_need_no_records(loaded, digits, capfd):
    folder, _ = loaded
    for file in (*RECORDS, "dataset_info.json"):
        damage(kept_in(folder).parent / file, "flipped")
    assert_holds(datasets.load("mnist", str(folder)), digits)
    assert told(capfd) == []


def test_folder_of_an_earlier_version_gets_its_note(loaded, digits):
    folder, server = loaded
    before = files_in(folder)
    (kept_in(folder).parent / datasets.NOTE).unlink()
    np.savez(kept_in(folder), fingerprint=datasets.Dataset(name="x", **digits).fingerprint, **digits)
    assert_holds(datasets.load("mnist", str(folder)), digits)
    assert files_in(folder) == before
    assert len(server.requests) == 4


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("file", [TRAIN_IMAGES, TEST_LABELS])
def test_damaged_downloads_are_fetched_again(loaded, digits, file, kind):
    folder, server = loaded
    before = files_in(folder)
    damage(folder / "downloads/lenet_jax_mnist" / file, kind)
    shutil.rmtree(kept_in(folder).parent)
    assert_holds(datasets.load("mnist", str(folder)), digits)
    assert server.requests == [*FILES, file]
    assert files_in(folder) == before


@contextlib.contextmanager
def damaged_and_unchanged(folder):
    """Damages arrays and records, and sees to it that nothing of what is left changes."""
    damage(kept_in(folder), "flipped")
    damage(kept_in(folder).parent / RECORDS[1], "truncated")
    before = files_in(folder)
    yield
    assert files_in(folder) == before


def damaged_refusal(folder):
    with pytest.raises(InputError) as caught:
        datasets.load("mnist", str(folder))
    message = str(caught.value)
    assert message.startswith(
        f"dataset: 'mnist' can't be read (damaged or missing: {RECORDS[1]} in '{folder}/lenet_jax"
    )
    assert "nor made anew, and nothing was deleted: " in message
    assert "\n" not in message
    assert len(message) < 1200
    return message


@pytest.mark.parametrize("fault", ["missing", "truncated", "damaged", "die"])
def test_damaged_records_stay_where_nothing_can_be_downloaded(serve, publish, loaded, digits, fault):
    folder, _ = loaded
    damage(folder / "downloads/lenet_jax_mnist" / TEST_LABELS, "missing")
    publish(serve(file3=fault).address)
    with damaged_and_unchanged(folder):
        message = damaged_refusal(folder)
    assert f"'mnist' could not be downloaded: {TEST_LABELS} from" in message
    assert "--config.dataset=idx:FOLDER" in message

    again = serve()
    publish(again.address)
    assert_holds(datasets.load("mnist", str(folder)), digits)
    assert again.requests == [TEST_LABELS]


def test_damaged_records_stay_where_nothing_can_be_written(loaded, digits):
    folder, _ = loaded
    places = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    for path in places:
        path.chmod(0o500)
    try:
        if os.access(folder, os.W_OK):
            pytest.skip("this user may write everywhere")
        for path in (kept_in(folder), kept_in(folder).parent / RECORDS[1]):
            assert_holds(datasets.load("mnist", str(folder)), digits)  # as long as the records are whole
            path.write_bytes(flipped(path.read_bytes()))
        before = files_in(folder)
        message = damaged_refusal(folder)
        assert "Permission denied" in message
        assert message.endswith("; --config.data_dir=FOLDER names another folder")
        assert files_in(folder) == before
    finally:
        for path in places:
            path.chmod(0o700)


def test_damaged_records_stay_if_the_new_ones_are_read_otherwise(loaded, digits, monkeypatch):
    """A disk that loses what is written: nothing is replaced by that."""
    folder, _ = loaded
    read = prepared.read_splits
    monkeypatch.setattr(
        prepared, "read_splits", lambda *arguments: read(*arguments) | {"test_labels": 9 - digits["test_labels"]}
    )
    with damaged_and_unchanged(folder):
        assert "is read from" in damaged_refusal(folder)


def test_damaged_records_stay_or_are_made_anew_whenever_it_is_killed(loaded, digits):
    folder, server = loaded
    server.stop()  # the downloads are there
    place, rng = kept_in(folder).parent, np.random.default_rng(0)
    for _ in range(3):
        kept_in(folder).unlink(missing_ok=True)
        for records in place.glob(RECORDS[0]):
            records.write_bytes(b"damaged")
        earlier = set(place.parent.iterdir())
        with load_elsewhere(prepared.SOURCES["mnist"], folder) as process:
            while process.poll() is None and set(place.parent.iterdir()) <= earlier:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.1))
            process.kill()
            process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), "it came as far as loading"
    assert_holds(datasets.load("mnist", str(folder)), digits)
    assert [path.name for path in place.parent.iterdir()] == ["1.0.0"]  # nothing unfinished is left
    assert len(server.requests) == 4


@pytest.mark.parametrize("there", ["nothing", "damaged"])
def test_two_processes_at_once(serve, publish, tmp_path, digits, there):
    if there == "damaged":
        publish(serve().address)
        datasets.load("mnist", str(tmp_path))
        damage(kept_in(tmp_path), "flipped")
        damage(kept_in(tmp_path).parent / RECORDS[0], "missing")
        shutil.rmtree(tmp_path / "downloads")
    server = serve(file1="held")
    source = publish(server.address)
    with load_elsewhere(source, tmp_path) as first:
        assert server.stalled.wait(50)
        with load_elsewhere(source, tmp_path) as second:
            line = second.stderr.readline()
            server.released.set()
            outputs = [process.communicate(timeout=50) for process in (first, second)]
            assert line == f"waiting for another process to prepare '{tmp_path}/lenet_jax_digits/mnist'\n"
    assert (first.returncode, second.returncode) == (0, 0), outputs
    for printed, _ in outputs:
        assert printed.strip() == datasets.Dataset(name="x", **digits).fingerprint
    assert server.requests == list(FILES)
    assert ["can't be read" in errors for _, errors in outputs] == [there == "damaged", False]
    assert [path.name for path in kept_in(tmp_path).parent.parent.iterdir()] == ["1.0.0"]


def test_two_processes_without_locks(serve, publish, tmp_path, digits, monkeypatch):
    """Some network file systems have none: then both do the work, each in a folder of its own."""

    def refused(*arguments):
        raise OSError(95, "Operation not supported")

    publish(serve().address)
    monkeypatch.setattr(prepared.fcntl, "flock", refused)
    fetch, loaded = prepared.fetch, []

    def slow_fetch(*arguments):
        monkeypatch.setattr(prepared, "fetch", fetch)
        loaded.append(datasets.load("mnist", str(tmp_path)))  # another one, meanwhile
        return fetch(*arguments)

    monkeypatch.setattr(prepared, "fetch", slow_fetch)
    loaded.append(datasets.load("mnist", str(tmp_path)))
    for dataset in (*loaded, datasets.load("mnist", str(tmp_path))):
        assert_holds(dataset, digits)
    assert [path.name for path in kept_in(tmp_path).parent.parent.iterdir()] == ["1.0.0"]


def test_names_from_outside_lead_nowhere(serve, publish, tmp_path, contents, digits):
    """Neither what a server calls a file, nor the name inside a gzip or zip file."""
    folder, server = tmp_path / "a/b/c", serve()
    # The header of a gzip file, with a flag that says a name follows it.
    server.contents = {
        file: content[:3] + b"\x08" + content[4:10] + b"../../../outside\0" + content[10:]
        for file, content in contents.items()
    }
    publish(server.address, contents=server.contents)
    assert_holds(datasets.load("mnist", str(folder)), digits)
    kept_in(folder).write_bytes(npz({**digits, "../../../../../../outside": np.zeros(3)}))
    assert_holds(datasets.load("mnist", str(folder)), digits)
    assert not [path for path in tmp_path.rglob("*") if "outside" in path.name]
    assert {path.name for path in (folder / "downloads/lenet_jax_mnist").iterdir()} == set(FILES)


CONFIG = """
from lenet_jax.data import prepared
from lenet_jax.experiments import base

prepared.SOURCES["mnist"] = prepared.{source!r}


def get_config():
    config = base.get_config()
    config.dataset, config.data_dir = "mnist", {folder!r}
    config.seeds, config.epochs = 1, 1
    return config
"""


@pytest.mark.slow
def test_run_with_damaged_data(serve, publish, tmp_path, monkeypatch, digits):
    """The command as users type it: it says what is damaged, and trains on the right data or not at all."""
    source, server = publish(closed_port()), serve()
    (tmp_path / "config.py").write_text(CONFIG.format(source=source, folder=str(tmp_path)))
    script = Path(sys.executable).parent / "lenet-jax"

    def run(mirror):
        monkeypatch.setenv(prepared.MIRROR_VARIABLE, mirror)
        command = [script, "run", "--config=config.py", "--workdir=run", "--tracker=none"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)

    monkeypatch.setenv(prepared.MIRROR_VARIABLE, server.address)
    fingerprint = datasets.load("mnist", str(tmp_path)).fingerprint
    (tmp_path / "downloads/lenet_jax_mnist" / TRAIN_LABELS).unlink()
    with damaged_and_unchanged(tmp_path):
        refused = run(closed_port())
    assert refused.returncode == 2
    line, message = refused.stderr.splitlines()
    assert RECORDS[1] in line
    assert message.startswith(f"lenet-jax: dataset: 'mnist' can't be read (damaged or missing: {RECORDS[1]} in '")
    assert not (tmp_path / "run").exists()

    done = run(server.address)
    assert done.returncode == 0, done.stderr
    assert f"damaged or missing: {RECORDS[1]} in '{kept_in(tmp_path).parent}'" in done.stderr
    provenance = json.loads((tmp_path / "run/provenance.json").read_text())
    assert provenance["fingerprints"] == {"mnist": fingerprint}


def test_data_dir_from_the_environment(serve, publish, tmp_path, monkeypatch, digits):
    publish(serve().address)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "elsewhere"))
    assert_holds(datasets.load("mnist"), digits)
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
    monkeypatch.setattr(prepared, "TIMEOUT", 1)
    server = serve(file1=fault)
    publish(server.address)
    start = time.perf_counter()
    message = refusal(tmp_path)
    assert time.perf_counter() - start < 5  # a silent server is asked once
    lacking = ", ".join(FILES[number] for number in sorted(missing))
    assert f"could not be downloaded: {lacking} from '{server.address}' ({answer}" in message
    assert "--config.dataset=idx:FOLDER" in message
    assert prepared.MIRROR_VARIABLE in message

    again = serve()
    publish(again.address)
    assert_holds(datasets.load("mnist", str(tmp_path)), digits)
    assert again.requests == [FILES[number] for number in sorted(missing)]  # the others were there


def test_interrupted_after_two_files(serve, publish, tmp_path, digits):
    server = serve(file2="die")
    publish(server.address)
    message = refusal(tmp_path)
    assert f"could not be downloaded: {TEST_IMAGES}, {TEST_LABELS} from" in message
    again = serve()
    publish(again.address)
    assert_holds(datasets.load("mnist", str(tmp_path)), digits)
    assert again.requests == [TEST_IMAGES, TEST_LABELS]


def test_offline(publish, tmp_path):
    first, second = closed_port(), closed_port()
    publish(first, second)
    message = refusal(tmp_path)
    for expected in (*FILES, f"'{first}' (no connection", f"'{second}' (no connection", "idx:FOLDER"):
        assert expected in message


@pytest.mark.parametrize("fault", ["missing", "truncated", "damaged", "die", "mute", "stall"])
def test_second_mirror(serve, publish, tmp_path, monkeypatch, digits, fault):
    monkeypatch.setattr(prepared, "TIMEOUT", 1)
    first, second = serve(file0=fault), serve()
    publish(first.address, second.address)
    assert_holds(datasets.load("mnist", str(tmp_path)), digits)
    assert second.requests == (list(FILES) if fault in ("die", "mute", "stall") else [TRAIN_IMAGES])


def test_mirror_variable(serve, publish, tmp_path, monkeypatch, digits):
    official, mirror = serve(), serve()
    publish(official.address)
    monkeypatch.setenv(prepared.MIRROR_VARIABLE, mirror.address.rstrip("/"))
    assert_holds(datasets.load("mnist", str(tmp_path)), digits)
    assert mirror.requests == list(FILES)
    assert official.requests == []


@pytest.mark.parametrize("mirror", ["no address", "/some/folder", "file:///some/folder", "http://"])
def test_mirror_variable_that_is_no_address(publish, tmp_path, monkeypatch, mirror):
    publish(closed_port())
    monkeypatch.setenv(prepared.MIRROR_VARIABLE, mirror)
    assert "(no web address)" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"<html>not an IDX file</html>", "starts with bytes '3c68746d'"),
        (idx_gz(np.zeros(299, np.uint8)), "dataset: 'mnist' has 300 train images but 299 labels"),
        (idx_gz(np.full(300, 10, np.uint8)), "dataset: 'mnist' has the train label 10; allowed are 0 to 9"),
    ],
    ids=["html", "short", "label"],
)
def test_published_files_that_do_not_fit(serve, publish, tmp_path, contents, digits, content, expected):
    """Even with the right checksum: one line tells, and nothing is left behind."""
    server = serve()
    server.contents = {**contents, TRAIN_LABELS: content}
    publish(server.address, contents=server.contents)
    with pytest.raises(InputError) as caught:
        datasets.load("mnist", str(tmp_path))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("lenet_jax_digits/mnist/1.0.0*"))

    server.contents = contents
    publish(server.address)
    assert_holds(datasets.load("mnist", str(tmp_path)), digits)


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
    with load_elsewhere(source, tmp_path) as child:
        try:
            assert server.stalled.wait(50)
        finally:
            child.kill()
    assert server.requests == list(FILES[:3])
    assert not kept_in(tmp_path).parent.exists()

    again = serve()
    publish(again.address)
    assert_holds(datasets.load("mnist", str(tmp_path)), digits)
    assert again.requests == [TEST_IMAGES, TEST_LABELS]


@pytest.mark.parametrize("name", datasets.DOWNLOADED)
def test_sources_are_those_that_tfds_lists(name):
    listing = Path(tfds.__file__).parent / "url_checksums" / f"{name}.txt"
    listed = {}
    for line in listing.read_text().splitlines():
        address, _, checksum, _ = line.split("\t")
        listed[address] = checksum
    source = prepared.SOURCES[name]
    assert {source.addresses[0] + file: checksum for file, checksum in source.checksums.items()} == listed
    assert tuple(file.removesuffix(".gz") for file in source.checksums) == tuple(
        file for file, _ in datasets.IDX_PARTS.values()
    )
    assert all(address.endswith("/") for address in source.addresses)
    assert len(source.labels) == 10


def test_mnist_has_two_mirrors():
    assert len(set(prepared.SOURCES["mnist"].addresses)) == 2
    assert tuple(prepared.SOURCES) == datasets.DOWNLOADED
