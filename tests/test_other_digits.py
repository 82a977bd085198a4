"""QMNIST, EMNIST's digits and USPS from a real server on this machine, and images that look transposed."""

import bz2
import hashlib
import io
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from few_digits import small
from scipy import ndimage
from test_datasets import DAMAGES, EMNIST_NAMES, as_bytes, damage, with_classes, write, write_files
from test_prepared import Server, closed_port, files_in, idx_gz

from lenet_jax.data import datasets, formats, idx, prepared, sources
from lenet_jax.errors import InputError
from lenet_jax.run import plan
from lenet_jax.run.arms import expand

NAMES = tuple(sources.OTHER_DIGITS)
FILES = {name: tuple(sources.OTHER_DIGITS[name].checksums) for name in NAMES}


@pytest.fixture(scope="module")
def mnist10k():
    return datasets.load("mnist10k")


@pytest.fixture(scope="module")
def digits(mnist10k):
    """The four arrays of a small data set."""
    arrays = {part: getattr(mnist10k, part) for part in idx.PARTS}
    return {part: array[: 40 if "train" in part else 30] for part, array in arrays.items()}


def usps_lines(images, labels):
    """Digits of MNIST as LIBSVM publishes USPS: the middle of every image, 16 x 16."""
    pixels = images[:, 6:22, 6:22].reshape(len(images), -1) / 127.5 - 1
    lines = [
        f"{label + 1} " + " ".join(f"{at}:{value:.4g}" for at, value in enumerate(row, 1)) + " \n"
        for label, row in zip(labels.astype(int), pixels, strict=True)
    ]
    return "".join(lines)


@pytest.fixture(scope="module")
def contents(digits):
    """Data set -> its files as they are published, inside an archive or not."""
    eight = {part: np.zeros((len(digits[part]), 8), int) for part in idx.LABELS}
    for part, columns in eight.items():
        columns[:, 0], columns[:, 2] = digits[part], 2099
    qmnist = [idx_gz(eight.get(part, array)) for part, array in digits.items()]
    emnist = [idx_gz(array if part in idx.LABELS else array.transpose(0, 2, 1)) for part, array in digits.items()]
    usps = [usps_lines(digits[f"{split}_images"], digits[f"{split}_labels"]) for split in ("train", "test")]
    usps = [bz2.compress(text.encode()) for text in usps]
    return {
        name: dict(zip(FILES[name], files, strict=True))
        for name, files in zip(NAMES, (qmnist, emnist, usps), strict=True)
    }


def zipped(files):
    with zipfile.ZipFile(stream := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        for folder, name in (("gzip/", "emnist-letters-mapping.txt"), ("__MACOSX/gzip/._", FILES["emnist"][0])):
            archive.writestr(folder + name, b"not wanted")
        for name, content in files.items():
            archive.writestr(f"gzip/{name}", content)
    return stream.getvalue()


@pytest.fixture
def publish(contents, monkeypatch):
    """(name, faults=file -> fault) -> a server of a data set, which becomes the published one."""
    monkeypatch.delenv(prepared.MIRROR_VARIABLE, raising=False)
    servers = []

    def publish(name, faults=None, files=None, **changes):
        files = files or contents[name]
        sums = {file: hashlib.sha256(content).hexdigest() for file, content in files.items()}
        served = {"gzip.zip": zipped(files)} if name == "emnist" else files
        server = Server(served, faults or {})
        servers.append(server)
        source = sources.OTHER_DIGITS[name]._replace(addresses=(server.address,), checksums=sums)
        if name == "emnist":
            source = source._replace(archive_checksum=hashlib.sha256(served["gzip.zip"]).hexdigest())
        monkeypatch.setitem(sources.OTHER_DIGITS, name, source._replace(**changes))
        return server

    yield publish
    for server in servers:
        server.stop()


def downloads(folder, name):
    return folder / "downloads" / f"lenet_jax_{name}"


def requested(name):
    """What a load of a data set asks a server for, if nothing is there."""
    return ["gzip.zip"] if name == "emnist" else list(FILES[name])


def refusal(name, folder):
    with pytest.raises(InputError) as caught:
        datasets.load(name, str(folder))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    return str(caught.value)


class TestDownloads:
    @pytest.mark.parametrize("name", NAMES)
    def test_loaded_once_and_at_hand_from_then_on(self, publish, tmp_path, digits, name):
        server = publish(name)
        assert datasets.at_hand(name, str(tmp_path)) is None
        loaded = datasets.load(name, str(tmp_path))
        assert loaded.name == name
        assert loaded.classes == 10
        for part in idx.LABELS:
            np.testing.assert_array_equal(getattr(loaded, part), digits[part])
        if name != "usps":
            assert loaded.fingerprint == datasets.Dataset(name=name, **digits).fingerprint
        assert {path.name for path in downloads(tmp_path, name).iterdir()} == set(FILES[name])  # not the archive
        assert all(path.stat().st_mode & 0o777 == 0o644 for path in downloads(tmp_path, name).iterdir())
        assert datasets.load(name, str(tmp_path)).fingerprint == loaded.fingerprint
        assert datasets.at_hand(name, str(tmp_path)).fingerprint == loaded.fingerprint
        assert server.requests == requested(name)

    def test_an_experiment_takes_the_name_and_tells_what_was_changed(self, publish, tmp_path):
        expected = {"qmnist": [], "emnist": ["they were turned upright"], "usps": ["20 x 20 and centred in 28 x 28"]}
        for name in NAMES:
            publish(name)
            made = plan.make(expand(small(dataset=name, data_dir=str(tmp_path), validation_size=0, train_size=0)))
            told = [note for note in made.notes if "none of the" not in note]
            assert len(told) == len(expected[name])
            assert all(part in note for part, note in zip(expected[name], told, strict=True))

    @pytest.mark.parametrize("kind", DAMAGES)
    @pytest.mark.parametrize("name", NAMES)
    def test_only_damaged_files_are_replaced(self, publish, tmp_path, capfd, name, kind):
        server = publish(name)
        loaded, folder, file = datasets.load(name, str(tmp_path)), downloads(tmp_path, name), FILES[name][1]
        before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
        damage(folder / file, kind)
        assert datasets.at_hand(name, str(tmp_path)) is None
        assert datasets.load(name, str(tmp_path)).fingerprint == loaded.fingerprint
        assert server.requests == requested(name) + (["gzip.zip"] if name == "emnist" else [file])
        after = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
        assert {file for file in after if after[file] != before[file]} == {file}
        assert ("is damaged: downloading it again" in capfd.readouterr().err) == (kind != "missing")

    @pytest.mark.parametrize("fault", ["missing", "truncated", "damaged", "die", "stall"])
    @pytest.mark.parametrize("name", NAMES)
    def test_a_failed_download_leaves_whole_files_and_is_continued(self, publish, tmp_path, monkeypatch, name, fault):
        monkeypatch.setattr(prepared, "TIMEOUT_S", 0.5)
        failing = requested(name)[-1]
        server = publish(name, {failing: fault})
        message = refusal(name, tmp_path)
        lacking = FILES[name] if name == "emnist" else (failing,)
        assert message.startswith(
            f"dataset: {name!r} could not be downloaded: {', '.join(lacking)} from '{server.address}'"
        )
        advice = (
            "use the data set idx:FOLDER" if name == "qmnist" else f"Put the files into '{downloads(tmp_path, name)}'"
        )
        assert advice in message
        assert {path.name for path in downloads(tmp_path, name).iterdir()} == set(FILES[name]) - set(lacking)
        again = publish(name)
        datasets.load(name, str(tmp_path))
        assert again.requests == [failing]

    @pytest.mark.parametrize("name", NAMES)
    def test_own_mirror(self, publish, tmp_path, monkeypatch, name):
        mirror = publish(name)
        monkeypatch.setenv(prepared.MIRROR_VARIABLE, mirror.address)
        source = sources.OTHER_DIGITS[name]._replace(addresses=(closed_port(),))
        monkeypatch.setitem(sources.OTHER_DIGITS, name, source)
        assert datasets.load(name, str(tmp_path)).test_labels.size == 30

    def test_files_put_there_by_hand_need_no_server(self, publish, tmp_path, contents):
        """As the message of a failed download says."""
        publish("emnist").stop()
        downloads(tmp_path, "emnist").mkdir(parents=True)
        for file, content in contents["emnist"].items():
            (downloads(tmp_path, "emnist") / file).write_bytes(content)
        assert datasets.load("emnist", str(tmp_path)).train_labels.size == 40

    @pytest.mark.parametrize("fault", ["another file", "no such file", "no archive"])
    def test_an_archive_with_other_contents(self, publish, tmp_path, contents, fault):
        """Even with the right checksum."""
        held = dict(list(contents["emnist"].items())[: 1 if fault == "no such file" else 4])
        sums = {file: hashlib.sha256(content).hexdigest() for file, content in contents["emnist"].items()}
        server = publish("emnist", files=held, checksums=sums | ({FILES["emnist"][3]: "0" * 64}))
        if fault == "no archive":
            server.contents = {"gzip.zip": b"<html>"}
            source = sources.OTHER_DIGITS["emnist"]._replace(archive_checksum=hashlib.sha256(b"<html>").hexdigest())
            sources.OTHER_DIGITS["emnist"] = source  # publish puts it back
        assert "(wrong SHA-256: the file is damaged or a different one)" in refusal("emnist", tmp_path)
        assert not files_in(downloads(tmp_path, "emnist"))

    def test_names(self, tmp_path):
        assert "'mnist10k', 'mnist', 'fashion_mnist', 'kmnist', 'qmnist', 'emnist', 'usps'," in refusal("qminst", "")
        with pytest.raises(InputError, match="'usps' is not one of 'mnist', 'fashion_mnist', 'kmnist'"):
            prepared.tfds_builder("usps", str(tmp_path))

    @pytest.mark.parametrize("name", NAMES)
    def test_sources(self, name):
        source = sources.OTHER_DIGITS[name]
        assert all(address.startswith("https://") and address.endswith("/") for address in source.addresses)
        assert all(re.fullmatch("[0-9a-f]{64}", checksum) for checksum in source.checksums.values())
        assert len(set(source.checksums.values())) == len(source.checksums)
        assert source.layout in formats.READERS
        if source.archive:
            listing = (Path(tfds.__file__).parent / "url_checksums" / f"{name}.txt").read_text().split()
            assert [source.addresses[0] + source.archive, source.archive_checksum] == listing[0::2][:2]


class TestUsps:
    @pytest.fixture
    def read(self, tmp_path):
        def read(content):
            (tmp_path / "usps.bz2").write_bytes(
                content if isinstance(content, bytes) else bz2.compress(content.encode())
            )
            return formats.read_libsvm(tmp_path / "usps.bz2")

        return read

    @pytest.fixture
    def line(self):
        pixels = np.full((16, 16), -1.0)
        pixels[2:14, 5:8] = 0.5, 1, -0.25
        return "10 " + " ".join(f"{at}:{value:g}" for at, value in enumerate(pixels.ravel(), 1)) + "\n"

    def test_values_rows_and_labels(self, read, line):
        """Row by row; labels from 1 are digits from 0."""
        ink, labels = read(line + line.replace("10 ", "1 ", 1))
        assert labels.tolist() == [9, 0]
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(ink[0, 2:14, 5:8], [[0.75, 1, 0.375]] * 12)
        assert ink.sum() == 2 * 12 * (0.75 + 1 + 0.375)

    def test_the_form_of_mnist(self, tmp_path, read, line):
        """Light on black, 20 pixels high, its mass in the middle."""
        read(line)
        arrays = formats.read_usps([tmp_path / "usps.bz2"] * 2)
        image = arrays["test_images"][0].astype(int)
        rows = np.flatnonzero(image.any(axis=1))
        assert (image.shape, arrays["test_images"].dtype, image.max()) == ((28, 28), np.uint8, 255)
        assert (len(rows), rows[0], image[0, 0]) == (20, 4, 0)
        assert np.allclose(ndimage.center_of_mass(image), 13.5, atol=0.6)

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            (lambda line: line.replace("10 ", "0 ", 1), "its line 2 is something else; expected lines of a label"),
            (lambda line: line.replace("10 ", "11 ", 1), "its line 2"),
            (lambda line: line.replace("10 ", "1.5 ", 1), "its line 2"),
            (lambda line: line.replace(" 7:", " 8:", 1), "its line 2"),
            (lambda line: line.replace("1:-1", "1:-1.1", 1), "its line 2"),
            (lambda line: line.replace("1:-1", "1:nan", 1), "its line 2"),
            (lambda line: re.sub(r":\S+", ":-1", line), "its line 2"),
            (lambda line: line.rpartition(" ")[0] + "\n", "can't be read"),
            (lambda line: line.replace("1:-1", "1:x", 1), "can't be read (could not convert string 'x' to float64"),
            (lambda line: "<html>\n", "can't be read"),
            (lambda line: "\xff\0\n", "can't be read"),
        ],
    )
    def test_a_line_of_another_form(self, read, line, change, expected):
        with pytest.raises(InputError) as caught:
            read(line + change(line) + line)
        assert expected in str(caught.value)
        assert "usps.bz2': " in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        "content", [b"", b"<html>", bz2.compress(b""), bz2.compress(b"1 2\n"), bz2.compress(b"1" * 99)[:-9]]
    )
    def test_another_file(self, read, content):
        with pytest.raises(InputError) as caught:
            read(content)
        assert "\n" not in str(caught.value)


def transposed(images):
    return np.ascontiguousarray(images.transpose(0, 2, 1))


class TestOrientation:
    def noted(self, images, labels, count=None):
        """Whether both splits of a data set of these images look transposed."""
        arrays = {"train_images": images, "train_labels": labels, "test_images": images, "test_labels": labels}
        found = [note for note in datasets.notes_on(datasets.Dataset("x", **arrays)) if "look transposed" in note]
        assert not found or found[0].startswith("train and test images look transposed, as EMNIST publishes its own")
        return bool(found)

    @pytest.mark.parametrize("part", [slice(0, 2500), slice(2500, 5000), slice(0, 100), slice(4900, 5000)])
    def test_halves_and_hundreds_of_mnist(self, mnist10k, part):
        images, labels = mnist10k.test_images[part], mnist10k.test_labels[part]
        assert not self.noted(images, labels)
        assert self.noted(transposed(images), labels)
        assert self.noted(np.pad(transposed(images), ((0, 0), (2, 2), (2, 2))), labels)

    @pytest.mark.parametrize("kept", [(0, 2, 5, 8, 9), (0, 1, 2, 3, 4), (1, 3, 5, 7, 9), (0, 3, 6, 8, 9)])
    def test_some_classes(self, mnist10k, kept):
        some = np.isin(mnist10k.test_labels, kept)
        images, labels = mnist10k.test_images[some], mnist10k.test_labels[some]
        order = np.argsort(labels, kind="stable")  # a data set may be sorted
        assert not self.noted(images[order], labels[order])
        assert self.noted(transposed(images[order]), labels[order])

    def test_too_few_classes_do_not_tell(self, mnist10k):
        some = mnist10k.test_labels < 4
        assert not self.noted(transposed(mnist10k.test_images[some]), mnist10k.test_labels[some])

    @pytest.mark.parametrize(
        "turn",
        [
            lambda images: np.rot90(images, 1, (1, 2)),
            lambda images: np.rot90(images, -1, (1, 2)),
            lambda images: images[:, ::-1],
            lambda images: images[:, :, ::-1],
            lambda images: images[:, ::-1, ::-1],
            lambda images: 255 - images,
            lambda images: images // 128,
            lambda images: 0 * images,
        ],
    )
    def test_images_that_are_changed_otherwise(self, mnist10k, turn):
        assert not self.noted(turn(mnist10k.test_images[:1000]), mnist10k.test_labels[:1000])

    def test_other_images_than_digits(self, mnist10k):
        """Classes with other labels, and shapes of no digit."""
        rng = np.random.default_rng(0)
        labels = np.arange(1000) % 10
        for _ in range(10):
            digits = rng.permutation(10)[mnist10k.test_labels[:1000]].astype(np.uint8)
            if (digits != mnist10k.test_labels[:1000]).mean() > 0.7:
                assert not self.noted(transposed(mnist10k.test_images[:1000]), digits)
            shapes = ndimage.gaussian_filter(rng.normal(size=(10, 28, 28)), (0, 3, 3))
            images = np.clip(255 * shapes[labels] / shapes.max(), 0, 255).astype(np.uint8)
            assert not self.noted(images, labels.astype(np.uint8))

    @pytest.mark.parametrize("change", [transposed, lambda images: images])
    def test_a_run_on_a_folder_notes_it_once(self, tmp_path, mnist10k, change):
        """Whatever the names of its files: EMNIST's may have been turned upright."""
        arrays = {part: getattr(mnist10k, part)[:600] for part in idx.PARTS}
        arrays = {part: array if part in idx.LABELS else change(array) for part, array in arrays.items()}
        write(tmp_path / "mine", arrays)
        write_files(tmp_path / "gzip", arrays, EMNIST_NAMES, "emnist-digits-")
        for folder in ("mine", "gzip"):
            name = f"idx:{tmp_path / folder}"
            loaded = datasets.load(name)
            assert loaded.fingerprint == datasets.Dataset(name="x", **arrays).fingerprint  # used as they are
            notes = plan.make(expand(small(dataset=name, validation_size=0, train_size=0))).notes
            expected = (
                f"dataset {name!r}: train and test images look transposed, as EMNIST publishes its own, and are used"
            )
            assert [note.startswith(expected) for note in notes] == [True] * (change is transposed)

    def test_emnists_letters_are_noted_by_name(self, tmp_path, digits):
        write_files(tmp_path, as_bytes(with_classes(digits, 26, first=1)), EMNIST_NAMES, "emnist-letters-")
        letters = datasets.load(f"idx:{tmp_path}")
        assert datasets.notes_on(letters)[1:] == ["EMNIST publishes its images transposed; they are used as they are"]
