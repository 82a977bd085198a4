import gzip
import io
import os
import pickle
import re
import shutil
import struct
import time

import few_digits
import numpy as np
import PIL.Image
import pytest
import scipy.stats
import tensorflow_datasets as tfds
from few_digits import small

import lenet_jax
from lenet_jax.analysis import compare, report
from lenet_jax.data import datasets, idx, preprocess, records
from lenet_jax.errors import InputError
from lenet_jax.run import plan, runner
from lenet_jax.run.arms import expand

NAMES = {part: file for part, (file, _) in idx.PARTS.items()}


def idx_bytes(array):
    kind, stored = (8, array) if array.dtype == np.uint8 else (12, array.astype(">i4"))
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, kind, array.ndim, *array.shape) + stored.tobytes()


def refusal(name, data_dir=""):
    with pytest.raises(InputError) as caught:
        datasets.load(name, str(data_dir))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1000
    return message


@pytest.fixture(scope="module")
def mnist10k():
    return datasets.load("mnist10k")


@pytest.fixture(scope="module")
def digits(mnist10k):
    """The four arrays of a small data set."""
    return {
        "train_images": mnist10k.train_images[:40],
        "train_labels": mnist10k.train_labels[:40],
        "test_images": mnist10k.test_images[:20],
        "test_labels": mnist10k.test_labels[:20],
    }


def write(folder, arrays, zipped=(), spell=lambda name: name):
    folder.mkdir(parents=True, exist_ok=True)
    for part, array in arrays.items():
        content = idx_bytes(array)
        if part in zipped:
            (folder / (spell(NAMES[part]) + ".gz")).write_bytes(gzip.compress(content))
        else:
            (folder / spell(NAMES[part])).write_bytes(content)


def flipped(content, position=0.01):
    """The content with one byte changed, at a position from 0 (first byte) to 1 (last)."""
    at = int(position * (len(content) - 1))
    return content[:at] + bytes((content[at] ^ 0x55,)) + content[at + 1 :]


DAMAGES = {
    "flipped": flipped,
    "truncated": lambda content: content[: len(content) // 2],
    "zeroed": lambda content: bytes(len(content)),
    "empty": lambda content: b"",
    "missing": None,
}
"""Damage to a file: changed bytes, or a missing file."""


def damage(path, kind):
    content = path.read_bytes()
    path.unlink()
    if DAMAGES[kind]:
        path.write_bytes(DAMAGES[kind](content))


class TestMnist10k:
    def test_sizes(self, mnist10k):
        for images, labels in (
            (mnist10k.train_images, mnist10k.train_labels),
            (mnist10k.test_images, mnist10k.test_labels),
        ):
            assert images.shape == (5000, 28, 28)
            assert labels.shape == (5000,)
            assert labels.dtype == np.uint8
            assert set(labels) == set(range(10))

    def test_every_part_is_stratified(self, mnist10k):
        """Counts of a class up to any image differ by less than one from its share of them."""
        for labels in (mnist10k.train_labels, mnist10k.test_labels):
            ones = np.eye(10)[labels]
            expected = np.arange(1, len(labels) + 1)[:, None] * ones.mean(axis=0)
            assert np.abs(ones.cumsum(axis=0) - expected).max() < 1

    def test_the_splits_are_alike(self, mnist10k):
        counts = [np.bincount(labels) for labels in (mnist10k.train_labels, mnist10k.test_labels)]
        assert np.abs(counts[0] - counts[1]).max() <= 1
        assert (sum(counts).min(), sum(counts).max()) == (863, 1127)  # of MNIST's first 10,000 training digits

    def test_real_digits(self, mnist10k):
        for images in (mnist10k.train_images, mnist10k.test_images):
            assert images.dtype == np.uint8
            assert (images.min(), images.max()) == (0, 255)
            assert 32 < images.mean() < 35  # MNIST's mean is 33.3
            assert (images[:, 0] == 0).mean() > 0.99  # the background
        # Digits look like their label: the nearest class mean finds most of them.
        means = np.stack([mnist10k.train_images[mnist10k.train_labels == digit].mean(0).ravel() for digit in range(10)])
        tests = mnist10k.test_images[:1000].reshape(1000, -1).astype(float)
        nearest = ((tests[:, None] - means) ** 2).sum(-1).argmin(1)
        assert 0.75 < (nearest == mnist10k.test_labels[:1000]).mean() < 0.95

    def test_train_and_test_share_no_image(self, mnist10k):
        train, test = ({image.tobytes() for image in part} for part in (mnist10k.train_images, mnist10k.test_images))
        assert (len(train), len(test), len(train & test)) == (5000, 5000, 0)

    def test_fingerprint_is_fixed(self, mnist10k):
        assert mnist10k.fingerprint == "sha256:916433c8bc50fea0842ffb377aacc8f3b4478e355d425ff5a5934ce2b2c5e254"

    def test_fingerprint_sees_every_part(self, digits):
        seen = {datasets.Dataset(name="x", **digits).fingerprint}
        for part in digits:
            changed = digits[part].copy()
            changed.flat[0] ^= 1
            seen.add(datasets.Dataset(name="x", **{**digits, part: changed}).fingerprint)
        assert len(seen) == 5

    def test_loads_within_a_second(self):
        start = time.perf_counter()
        datasets.load("mnist10k")
        assert time.perf_counter() - start < 1

    def test_the_retired_name_is_refused_and_the_new_one_named(self):
        assert refusal("mnist5k") == (
            "dataset: 'mnist5k' was replaced by 'mnist10k', which has 5,000 training and 5,000 test digits"
        )

    @pytest.mark.parametrize("kind", [*DAMAGES, "flipped at the end", "not npz", "pickled"])
    def test_a_damaged_file_is_refused(self, tmp_path, monkeypatch, kind):
        copy = tmp_path / "mnist10k.npz"
        copy.write_bytes(datasets.EMBEDDED.read_bytes())
        if kind in DAMAGES:
            damage(copy, kind)
        elif kind == "flipped at the end":
            copy.write_bytes(flipped(copy.read_bytes(), 0.99))
        else:
            copy.write_bytes(b"PK" if kind == "not npz" else pickle.dumps({"train_images": 1}))
        monkeypatch.setattr(datasets, "EMBEDDED", copy)
        message = refusal("mnist10k")
        assert message == f"dataset: {str(copy)!r} is missing or damaged; install lenet_jax again"

    def test_no_flipped_byte_is_trained_on(self, tmp_path, monkeypatch, mnist10k):
        """Bytes that the arrays do not depend on, such as dates in the zip file, may change."""
        content, copy = datasets.EMBEDDED.read_bytes(), tmp_path / "mnist10k.npz"
        monkeypatch.setattr(datasets, "EMBEDDED", copy)
        refused = 0
        for position in np.random.default_rng(0).uniform(size=20):
            copy.write_bytes(flipped(content, position))
            try:
                loaded = datasets.load("mnist10k")
            except InputError:
                refused += 1
            else:
                assert loaded.fingerprint == mnist10k.fingerprint
        assert refused > 15

    def test_a_file_with_other_arrays_is_refused(self, tmp_path, monkeypatch, mnist10k, digits):
        copy = tmp_path / "mnist10k.npz"
        monkeypatch.setattr(datasets, "EMBEDDED", copy)
        whole = {part: getattr(mnist10k, part) for part in digits}
        others = [digits, whole | {"test_labels": whole["train_labels"]}]
        for arrays in others:
            np.savez(copy, **arrays)
            assert refusal("mnist10k") == (
                f"dataset: {str(copy)!r} does not hold the digits of 'mnist10k'; install lenet_jax again"
            )
        for arrays in ({"train_images": digits["train_images"]}, digits | {"train_labels": digits["train_labels"][1:]}):
            np.savez(copy, **arrays)
            assert refusal("mnist10k").startswith("dataset: ")


class TestIdx:
    @pytest.mark.parametrize(
        "zipped", [(), tuple(NAMES), ("train_images", "test_labels")], ids=["plain", "gz", "mixed"]
    )
    @pytest.mark.parametrize("subfolder", [".", "raw", "MNIST/raw"])
    @pytest.mark.parametrize("spell", [str, lambda name: name.replace("-idx", ".idx")], ids=["-idx", ".idx"])
    def test_layouts_give_the_same_data(self, tmp_path, digits, zipped, subfolder, spell):
        write(tmp_path / subfolder, digits, zipped, spell)
        dataset = datasets.load(f"idx:{tmp_path}")
        assert dataset.name == f"idx:{tmp_path}"
        assert dataset.classes == 10
        for part, array in digits.items():
            np.testing.assert_array_equal(getattr(dataset, part), array)
        assert dataset.fingerprint == datasets.Dataset(name="x", **digits).fingerprint

    def test_home_folder(self, tmp_path, digits, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        write(tmp_path / "digits", digits)
        assert len(datasets.load("idx:~/digits").train_images) == 40
        assert "no home folder is known for '~no_such_user/digits'" in refusal("idx:~no_such_user/digits")

    def test_32_pixels(self, tmp_path, digits):
        larger = {part: preprocess.pad(array, "edge") if array.ndim == 3 else array for part, array in digits.items()}
        write(tmp_path, larger)
        assert datasets.load(f"idx:{tmp_path}").test_images.shape == (20, 32, 32)

    def test_the_folder_itself_goes_before_those_below(self, tmp_path, digits):
        write(tmp_path, digits)
        write(tmp_path / "other" / "raw", {**digits, "train_images": digits["train_images"] // 2})
        assert datasets.load(f"idx:{tmp_path}").fingerprint == datasets.Dataset(name="x", **digits).fingerprint

    def test_several_data_sets_below_are_ambiguous(self, tmp_path, digits):
        for name in ("MNIST", "FashionMNIST"):
            write(tmp_path / name / "raw", digits)
        message = refusal(f"idx:{tmp_path}")
        assert f"choose one of 'idx:{tmp_path}/FashionMNIST/raw', 'idx:{tmp_path}/MNIST/raw'" in message
        assert datasets.load(f"idx:{tmp_path}/FashionMNIST").classes == 10

    def test_folders_are_not_mixed(self, tmp_path, digits):
        write(tmp_path / "a" / "raw", {part: digits[part] for part in ("train_images", "train_labels", "test_images")})
        write(tmp_path / "b" / "raw", {"test_labels": digits["test_labels"]})
        assert "lacks t10k-labels-idx1-ubyte[.gz]; searched" in refusal(f"idx:{tmp_path}")

    @pytest.mark.parametrize("part", NAMES)
    def test_missing_file(self, tmp_path, digits, part):
        write(tmp_path, digits)
        path = tmp_path / NAMES[part]
        path.unlink()
        message = refusal(f"idx:{tmp_path}")
        assert f"lacks {path.name}[.gz]; searched '{tmp_path}'" in message
        path.mkdir()  # a directory in its place changes nothing
        assert refusal(f"idx:{tmp_path}") == message

    def test_missing_folder(self, tmp_path):
        message = refusal(f"idx:{tmp_path}/nowhere\n")
        assert all(file in message for file in NAMES.values())
        assert f"{tmp_path}/nowhere" in message

    @pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gz"])
    def test_truncated_file_is_named(self, tmp_path, digits, zipped):
        write(tmp_path, digits, NAMES if zipped else ())
        path = tmp_path / ("t10k-images-idx3-ubyte" + ".gz" * zipped)
        path.write_bytes(path.read_bytes()[:-50])
        assert str(path) in refusal(f"idx:{tmp_path}")

    def test_swapped_files(self, tmp_path, digits):
        write(tmp_path, digits)
        images, labels = tmp_path / NAMES["train_images"], tmp_path / NAMES["train_labels"]
        swap = images.read_bytes()
        images.write_bytes(labels.read_bytes())
        labels.write_bytes(swap)
        assert re.search(r"train-images-idx3-ubyte': starts with bytes '00000801'", refusal(f"idx:{tmp_path}"))

    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ({"train_labels": np.zeros(39, np.uint8)}, "has 40 train images but 39 labels"),
            ({"test_labels": np.zeros(21, np.uint8)}, "has 20 test images but 21 labels"),
            (
                {"train_images": np.zeros((40, 30, 30), np.uint8)},
                "has train images of 30 x 30; allowed are 28 x 28 and 32 x 32, grey",
            ),
            ({"train_images": np.zeros((40, 28, 32), np.uint8)}, "has train images of 28 x 32"),
            ({"test_images": np.zeros((20, 32, 32), np.uint8)}, "different sizes"),
        ],
    )
    def test_files_that_do_not_fit(self, tmp_path, digits, changes, expected):
        write(tmp_path, {**digits, **changes})
        message = refusal(f"idx:{tmp_path}")
        assert expected in message
        assert f"dataset: 'idx:{tmp_path}'" in message

    @pytest.mark.parametrize("shape", [(0, 28, 28), (20, 0, 0)])
    def test_file_without_a_pixel_is_named(self, tmp_path, digits, shape):
        write(tmp_path, {**digits, "test_images": np.zeros(shape, np.uint8)})
        assert f"'{tmp_path}/t10k-images-idx3-ubyte': its header promises {shape} bytes, none" in refusal(
            f"idx:{tmp_path}"
        )

    def test_unreadable_folder(self, tmp_path, digits):
        write(tmp_path / "closed", digits)
        (tmp_path / "closed").chmod(0)
        if os.access(tmp_path / "closed", os.R_OK):
            pytest.skip("this user may read every file")
        try:
            assert "lacks" in refusal(f"idx:{tmp_path}/closed")
        finally:
            (tmp_path / "closed").chmod(0o700)


def with_classes(digits, classes, first=0):
    """The digits with labels from `first` on, of this many classes: all occur in training."""
    return {**digits, **{part: np.arange(len(digits[part])) % classes + first for part in NAMES if "labels" in part}}


def as_bytes(arrays):
    return {part: array.astype(np.uint8) for part, array in arrays.items()}


def write_files(folder, arrays, names, prefix=""):
    """Gzipped where the name ends so."""
    for name, array in zip(names, arrays.values(), strict=True):
        path = folder / (prefix + name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(idx_bytes(array)) if name.endswith(".gz") else idx_bytes(array))


EMNIST_NAMES = [name.replace("t10k", "test") + ".gz" for name in NAMES.values()]
QMNIST_NAMES = [name.replace("idx1-ubyte", "idx2-int") for name in EMNIST_NAMES]


class TestPublishedLayouts:
    """Folders as EMNIST, QMNIST, Fashion-MNIST and Kaggle's MNIST are published, and as torchvision unpacks them."""

    @pytest.mark.parametrize("below", ["", "gzip", "EMNIST/raw"])
    def test_emnist(self, tmp_path, digits, below):
        sets = {
            "emnist-byclass-": as_bytes(
                with_classes({p: np.tile(a, (4,) + (1,) * (a.ndim - 1)) for p, a in digits.items()}, 62)
            ),
            "emnist-digits-": digits,
            "emnist-letters-": as_bytes(with_classes(digits, 26, first=1)),
        }
        for prefix, arrays in sets.items():
            write_files(tmp_path / below, arrays, EMNIST_NAMES, prefix)
        (tmp_path / below / "._emnist-digits-train-images-idx3-ubyte.gz").write_bytes(b"made by macOS")
        message = refusal(f"idx:{tmp_path}")
        assert f"choose one of 'idx:{tmp_path / below}/emnist-byclass', 'idx:" in message
        (choice,) = re.findall(r"'(idx:[^']*letters)'", message)
        letters = datasets.load(choice)
        assert letters.classes == 26
        np.testing.assert_array_equal(letters.train_labels, sets["emnist-letters-"]["train_labels"] - 1)
        np.testing.assert_array_equal(letters.test_labels, sets["emnist-letters-"]["test_labels"] - 1)
        np.testing.assert_array_equal(letters.test_images, digits["test_images"])
        assert "labels 1 to 26 are read as 26 classes, 0 to 25" in letters.notes
        assert datasets.load(f"idx:{tmp_path}/emnist-letters").fingerprint == letters.fingerprint
        assert datasets.load(f"idx:{tmp_path}/emnist-byclass").classes == 62
        numbers = datasets.load(f"idx:{tmp_path}/emnist-digits")
        assert (numbers.classes, numbers.fingerprint) == (10, datasets.Dataset(name="x", **digits).fingerprint)

    @pytest.mark.parametrize("below", ["", "QMNIST/raw"])
    def test_qmnist(self, tmp_path, digits, below):
        """Its labels are 32-bit numbers in eight columns: the class, the NIST series, the writer, ..."""
        columns = np.random.default_rng(0).integers(0, 2**20, (40, 7))
        labels = {part: digits[part].astype(int) for part in NAMES if "labels" in part}
        labels = {part: np.column_stack([array, columns[: len(array)]]) for part, array in labels.items()}
        write_files(tmp_path / below, {**digits, **labels}, QMNIST_NAMES, "qmnist-")
        dataset = datasets.load(f"idx:{tmp_path}")
        assert dataset.fingerprint == datasets.Dataset(name="x", **digits).fingerprint
        assert dataset.classes == 10

    @pytest.mark.parametrize("label", [-1, 256])
    def test_labels_that_are_no_bytes(self, tmp_path, digits, label):
        labels = {part: np.full((len(digits[part]), 8), label) for part in NAMES if "labels" in part}
        write_files(tmp_path, {**digits, **labels}, QMNIST_NAMES, "qmnist-")
        file = f"{tmp_path}/qmnist-train-labels-idx2-int.gz"
        assert refusal(f"idx:{tmp_path}") == f"{file!r}: has labels {label} to {label}; allowed are 0 to 255"

    @pytest.mark.parametrize("below", ["", "archive"])
    @pytest.mark.parametrize("both", [False, True])
    def test_kaggle(self, tmp_path, digits, below, both):
        """Each file is in a folder of its name; the archive has it a second time beside the folder."""
        write_files(tmp_path / below, digits, [f"{name}/{name}" for name in NAMES.values()])
        if both:
            write_files(tmp_path / below, digits, [name.replace("-idx", ".idx") for name in NAMES.values()])
        dataset = datasets.load(f"idx:{tmp_path}")
        assert dataset.fingerprint == datasets.Dataset(name="x", **digits).fingerprint

    def test_fashion_mnist_one_folder_deeper(self, tmp_path, digits):
        write_files(tmp_path / "data" / "fashion", digits, [name + ".gz" for name in NAMES.values()])
        for name in ("data", "data/fashion"):
            assert len(datasets.load(f"idx:{tmp_path}/{name}").train_images) == 40

    def test_labels_from_one_that_fit_ten_classes_stay(self, tmp_path, digits):
        """Digits without a zero are digits."""
        write(tmp_path, as_bytes(with_classes(digits, 9, first=1)))
        dataset = datasets.load(f"idx:{tmp_path}")
        assert (dataset.classes, dataset.train_labels.max(), dataset.notes) == (10, 9, ())

    def test_an_unprefixed_set_goes_before_others_beside_it(self, tmp_path, digits):
        write_files(tmp_path, as_bytes(with_classes(digits, 26, first=1)), EMNIST_NAMES, "emnist-letters-")
        write(tmp_path, digits)
        assert datasets.load(f"idx:{tmp_path}").classes == 10
        assert datasets.load(f"idx:{tmp_path}/emnist-letters").classes == 26

    def test_a_mistyped_prefix(self, tmp_path, digits):
        write_files(tmp_path, digits, EMNIST_NAMES, "emnist-digits-")
        expected = f"'idx:{tmp_path}/emnist-letters' is not a data set; choose one of 'idx:{tmp_path}/emnist-digits'"
        assert refusal(f"idx:{tmp_path}/emnist-letters") == f"dataset: {expected}"

    def test_a_missing_file_of_a_prefixed_set(self, tmp_path, digits):
        write_files(tmp_path, digits, EMNIST_NAMES, "emnist-digits-")
        (tmp_path / "emnist-digits-test-labels-idx1-ubyte.gz").unlink()
        for missing in ("none", "emnist-letters"):
            message = f"'{tmp_path}/{missing}' is no folder, and no IDX files begin like that"
            assert message in refusal(f"idx:{tmp_path}/{missing}")
        assert "lacks emnist-digits-t10k-labels-idx1-ubyte[.gz]; searched" in refusal(f"idx:{tmp_path}")


class TestNotes:
    def test_of_real_digits_there_are_none(self, mnist10k):
        assert datasets.notes_on(mnist10k) == []

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            (lambda images: images // 128, "pixels from 0 to 1; expected 0 (background) to 255"),
            (lambda images: images // 16, "pixels from 0 to 15; expected 0 (background) to 255"),
            (lambda images: 255 - images, "bright corners; expected a background of 0"),
        ],
    )
    def test_implausible_pixels(self, digits, change, expected):
        half = datasets.Dataset(name="x", **{**digits, "test_images": change(digits["test_images"])})
        assert datasets.notes_on(half) == [f"test images have {expected}"]
        images = {part: change(digits[part]) for part in ("train_images", "test_images")}
        assert len(datasets.notes_on(datasets.Dataset(name="x", **{**digits, **images}))) == 2

    def test_a_run_reports_and_records_what_is_doubtful(self, tmp_path, capsys):
        """Real digits, sorted by class, with pixels 0 and 1."""
        arrays = few_digits.arrays()
        order = np.argsort(arrays["train_labels"], kind="stable")
        arrays |= {part: arrays[part][order] for part in ("train_images", "train_labels")}
        write(tmp_path / "digits", {part: array // 128 if array.ndim == 3 else array for part, array in arrays.items()})
        run = runner.run(small(dataset=f"idx:{tmp_path}/digits"), tmp_path / "run", "test")
        scale = "images have pixels from 0 to 1; expected 0 (background) to 255"
        lacking = ("300 train images is of class 5, 6, 7, 8, 9", "300 validation images is of class 0, 1, 2, 3")
        notes = [f"train {scale}", f"test {scale}", *(f"none of the {found}" for found in lacking)]
        notes = [f"dataset 'idx:{tmp_path}/digits': {note}" for note in notes]
        assert run.provenance["notes"] == notes
        assert capsys.readouterr().err.splitlines()[: len(notes)] == notes
        assert compare.compare_runs([run]).notes[: len(notes)] == tuple(f"warning: {note}" for note in notes)

    def test_of_the_splits_of_every_phase(self, tmp_path):
        """`refit` trains on the validation images, too: what a split lacks depends on the phase."""
        arrays = few_digits.arrays()
        nines_last = np.argsort(arrays["train_labels"] == 9, kind="stable")
        arrays |= {part: arrays[part][nines_last] for part in ("train_images", "train_labels")}
        write(tmp_path, arrays)
        config = small(dataset=f"idx:{tmp_path}", validation_size=int((arrays["train_labels"] == 9).sum()), refit=True)
        config.tune.learning_rate = (0.1, 0.2)
        count, all_but_nine = 600 - config.validation_size, ", ".join("012345678")
        lacking = (f"{count} train images is of class 9", f"{600 - count} validation images is of class {all_but_nine}")
        expected = [f"dataset 'idx:{tmp_path}': none of the {found}" for found in lacking]
        assert plan.make(expand(config)).notes == expected

    @pytest.mark.slow
    def test_networks_of_26_classes(self, tmp_path, capsys):
        labels = {"train_labels": np.arange(600) % 26 + 1, "test_labels": np.arange(200) % 26 + 1}
        arrays = as_bytes(few_digits.arrays() | labels)
        write_files(tmp_path / "gzip", arrays, EMNIST_NAMES, "emnist-letters-")
        config = small(dataset=f"idx:{tmp_path}/gzip/emnist-letters", label_noise=0.5)
        run = runner.run(config, tmp_path / "run", "test")
        assert run.arms[0].classes == 26
        assert set(run.predictions.label) == set(range(26))
        assert [note.partition("': ")[2] for note in run.provenance["notes"]] == [
            "labels 1 to 26 are read as 26 classes, 0 to 25",
            "EMNIST publishes its images transposed; they are used as they are",
        ]
        found = lenet_jax.classify(lenet_jax.load_run(tmp_path / "run"), arrays["test_images"][:2])
        assert found.scores.shape == (2, 26)
        report.write(compare.compare_runs([run]), tmp_path / "plots")

    def test_an_output_for_digits_refuses_more_classes(self, tmp_path, digits):
        write(tmp_path, as_bytes(with_classes(digits, 26)))
        fields = {"dataset": f"idx:{tmp_path}", "validation_size": 0, "output": "rbf"}
        with pytest.raises(
            InputError, match="output: 'rbf' has 10 bitmaps, one per digit; the data set has 26 classes"
        ):
            plan.make(expand(small(**fields)))


@pytest.mark.parametrize("name", ["idx:a\0b", f"idx:{'x' * 5000}", f"idx:{'x' * 300}/y", "idx:~/nowhere", "mnist6k"])
def test_what_is_not_at_hand(name):
    assert datasets.at_hand(name) is None


def test_labels_beyond_the_classes_are_refused(digits):
    arrays = {**digits, "test_labels": np.full(20, 10, np.uint8)}
    with pytest.raises(InputError, match="dataset: 'x' has the test label 10; allowed are 0 to 9"):
        datasets.Dataset(name="x", **arrays)


@pytest.mark.parametrize(
    "name", ["", "mnist6k", "MNIST10K", "mnist10k ", "mnist5k ", "idx", "idx:", "tfds:", "mnist:x", "a\nb"]
)
def test_unknown_names(name):
    message = refusal(name)
    assert message.startswith(f"dataset: {name!r} is not one of 'mnist10k', 'mnist'")
    assert message.endswith("'idx:FOLDER', 'tfds:NAME'")


class TestPadding:
    def test_background(self, digits):
        padded = preprocess.pad(digits["train_images"], "background")
        assert padded.shape == (40, 32, 32)
        assert padded.dtype == np.uint8
        np.testing.assert_array_equal(padded[:, 2:30, 2:30], digits["train_images"])
        assert padded.sum() == digits["train_images"].sum()

    def test_edge(self):
        images = np.random.default_rng(0).integers(1, 256, (3, 28, 28)).astype(np.uint8)
        nearest = np.clip(np.arange(32) - 2, 0, 27)
        np.testing.assert_array_equal(preprocess.pad(images, "edge"), images[:, nearest][:, :, nearest])

    @pytest.mark.parametrize("padding", preprocess.PADDINGS)
    def test_32_pixels_stay(self, padding):
        images = np.random.default_rng(0).integers(0, 256, (3, 32, 32)).astype(np.uint8)
        np.testing.assert_array_equal(preprocess.pad(images, padding), images)

    def test_unknown(self):
        with pytest.raises(InputError, match=r"^padding: 'reflect' is not one of 'background', 'edge'$"):
            preprocess.pad(np.zeros((1, 28, 28), np.uint8), "reflect")


class TestNormalization:
    @pytest.mark.parametrize(("name", "black", "white"), [("unit", 0, 1), ("lecun1998", -0.1, 1.175)])
    def test_range(self, digits, name, black, white):
        scale, shift = preprocess.NORMALIZATIONS[name](digits["train_images"])
        assert (shift, 255 * scale + shift) == pytest.approx((black, white), abs=1e-12)

    def test_standard_against_numpy(self, mnist10k):
        images = mnist10k.train_images
        scale, shift = preprocess.NORMALIZATIONS["standard"](images)
        assert scale == pytest.approx(1 / images.std(dtype=np.float64), rel=1e-12)
        assert shift == pytest.approx(-images.mean(dtype=np.float64) / images.std(dtype=np.float64), rel=1e-12)
        normalized = images * scale + shift
        assert (normalized.mean(), normalized.std()) == pytest.approx((0, 1), abs=1e-9)

    @pytest.mark.parametrize("grey", [0, 7, 255])
    def test_standard_refuses_one_grey(self, grey):
        with pytest.raises(InputError, match=r"^normalization: 'standard' needs .*$"):
            preprocess.NORMALIZATIONS["standard"](np.full((5, 28, 28), grey, np.uint8))

    def test_names(self):
        assert set(preprocess.NORMALIZATIONS) == {"unit", "lecun1998", "standard", "hundredth"}

    def test_hundredth(self):
        assert preprocess.NORMALIZATIONS["hundredth"](np.zeros((1, 28, 28), np.uint8)) == (0.01, 0.0)


class TestNoise:
    @pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
    def test_share_and_no_right_label_among_the_wrong(self, mnist10k, share):
        labels = mnist10k.train_labels
        noisy = preprocess.with_noise(labels, share, 10)
        assert noisy.dtype == labels.dtype
        assert (noisy != labels).mean() == pytest.approx(share, abs=0.02)
        assert ((noisy != labels).sum() == len(labels)) == (share == 1)
        np.testing.assert_array_equal(preprocess.with_noise(labels, share, 10), noisy)

    def test_every_other_class_is_as_likely(self, mnist10k):
        labels = mnist10k.train_labels.astype(int)
        shifts = np.bincount((preprocess.with_noise(labels, 1.0, 10) - labels) % 10, minlength=10)
        assert shifts[0] == 0
        assert scipy.stats.chisquare(shifts[1:]).pvalue > 0.01

    def test_smaller_shares_are_part_of_larger_ones(self, mnist10k):
        labels = mnist10k.train_labels
        some, more = preprocess.with_noise(labels, 0.2, 10), preprocess.with_noise(labels, 0.6, 10)
        wrong = some != labels
        np.testing.assert_array_equal(more[wrong], some[wrong])
        assert (more != labels).sum() > 2 * wrong.sum()

    def test_more_labels_change_none_of_the_first(self, mnist10k):
        labels = mnist10k.train_labels
        np.testing.assert_array_equal(
            preprocess.with_noise(labels[:777], 0.6, 10), preprocess.with_noise(labels, 0.6, 10)[:777]
        )

    def test_a_single_class_without_noise(self):
        np.testing.assert_array_equal(preprocess.with_noise(np.zeros(5, np.uint8), 0.0, 1), np.zeros(5))


def png(image):
    stream = io.BytesIO()
    PIL.Image.fromarray(image[..., 0]).save(stream, "png")
    return stream.getvalue()


TENSOR = tfds.features.Tensor(shape=(28, 28, 1), dtype=np.uint8, encoding="none")


class Strokes(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A data set prepared by somebody else: TFDS finds its files but not this class."""

    VERSION = tfds.core.Version("1.0.0")
    supervised_keys = ("image", "label")
    image = TENSOR
    label = tfds.features.ClassLabel(num_classes=10)
    splits = ("train", "test")
    encode = staticmethod(lambda image: image)
    arrays = None

    def _info(self):
        features = tfds.features.FeaturesDict({"image": self.image, "label": self.label})
        keys = self.supervised_keys
        return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=keys, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in self.splits}

    def _generate_examples(self, split):
        for index, (image, label) in enumerate(zip(self.arrays["images"], self.arrays["labels"], strict=True)):
            yield index, {"image": self.encode(image), "label": label}


@pytest.fixture
def prepare(tmp_path, digits):
    def prepare(file_format="array_record", images=digits["train_images"], labels=digits["train_labels"], **changes):
        arrays = {"images": images[..., None], "labels": labels.tolist()}
        cls = type("Strokes", (Strokes,), {**changes, "arrays": arrays}, skip_registration=True)
        cls(data_dir=tmp_path, file_format=file_format).download_and_prepare()

    return prepare


class TestTfds:
    @pytest.mark.parametrize("file_format", ["array_record", "parquet"])
    @pytest.mark.parametrize(
        "changes",
        [{}, {"image": tfds.features.Image(shape=(28, 28, 1), encoding_format="png"), "encode": staticmethod(png)}],
        ids=["tensor", "png"],
    )
    def test_reads_what_is_prepared_without_tensorflow(self, prepare, tmp_path, digits, caplog, file_format, changes):
        prepare(file_format, **changes)
        caplog.clear()
        dataset = datasets.load("tfds:strokes", str(tmp_path))
        assert dataset.name == "tfds:strokes"
        assert dataset.classes == 10
        assert dataset.train_labels.dtype == np.uint8
        assert dataset.train_images.dtype == np.uint8
        for split in ("train", "test"):
            np.testing.assert_array_equal(getattr(dataset, f"{split}_images"), digits["train_images"])
            np.testing.assert_array_equal(getattr(dataset, f"{split}_labels"), digits["train_labels"])
        assert not caplog.records

    def test_data_dir_from_the_environment(self, prepare, tmp_path, monkeypatch):
        prepare()
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
        assert len(datasets.load("tfds:strokes").train_images) == 40

    def test_many_classes(self, prepare, tmp_path):
        labels = np.array([255, 200, *range(38)])
        prepare(labels=labels, label=tfds.features.ClassLabel(num_classes=256))
        dataset = datasets.load("tfds:strokes", str(tmp_path))
        assert dataset.classes == 256
        np.testing.assert_array_equal(dataset.train_labels, labels)

    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            (
                {
                    "images": np.zeros((40, 30, 30), np.uint8),
                    "image": tfds.features.Tensor(shape=(30, 30, 1), dtype=np.uint8),
                },
                "has uint8 images of shape (30, 30, 1); allowed are uint8 28 x 28 x 1 and 32 x 32 x 1",
            ),
            (
                {
                    "images": np.zeros((40, 28, 28), np.float32),
                    "image": tfds.features.Tensor(shape=(28, 28, 1), dtype=np.float32),
                },
                "has float32 images",
            ),
            ({"supervised_keys": None}, "is not an image classification: its supervised keys are None"),
            (
                {"label": tfds.features.Scalar(dtype=np.int64)},
                "is not an image classification: its supervised keys are ('image', 'label')",
            ),
            ({"label": tfds.features.ClassLabel(num_classes=300)}, "has 300 classes; allowed are up to 256"),
            ({"labels": np.full(40, -1)}, "labels -1 to -1; allowed are 0 to 255"),  # unknown, in TFDS
            ({"splits": ("train",)}, "test"),
        ],
        ids=["size", "float", "unsupervised", "regression", "classes", "unlabelled", "split"],
    )
    def test_what_does_not_fit(self, prepare, tmp_path, changes, expected):
        prepare(**changes)
        message = refusal("tfds:strokes", tmp_path)
        assert expected in message
        assert "strokes" in message

    @pytest.mark.parametrize("file", ["strokes-train.array_record-00000-of-00001", "dataset_info.json"])
    @pytest.mark.parametrize("kind", DAMAGES)
    def test_damaged_records(self, prepare, tmp_path, file, kind):
        prepare()
        damage(tmp_path / "strokes/1.0.0" / file, kind)
        assert refusal("tfds:strokes", tmp_path).startswith("dataset: 'tfds:strokes' ")

    def test_another_format(self, prepare, tmp_path):
        prepare()
        info = tmp_path / "strokes/1.0.0/dataset_info.json"
        info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
        assert "file format FileFormat.TFRECORD is not supported" in refusal("tfds:strokes", tmp_path)

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("no_such_set", f"is not known to TFDS {tfds.__version__} and not prepared in"),
            ("no/such/set", "can't be prepared in or read from"),
            ("a b", "can't be prepared in or read from"),
            ("mnist/nope", "BuilderConfig nope not found"),
            ("mnist:9.9.9", "cannot be loaded at version 9.9.9"),
            ("cifar10", "has uint8 images of shape (32, 32, 3)"),
        ],
    )
    def test_names_that_do_not_fit(self, tmp_path, name, expected):
        message = refusal(f"tfds:{name}", tmp_path)
        assert message.startswith(f"dataset: 'tfds:{name}' ")
        assert expected in message

    @pytest.mark.parametrize("name", ["../strokes", "{}/strokes", "in/../strokes"])
    def test_names_stay_in_their_folder(self, prepare, tmp_path, name):
        prepare()
        (tmp_path / "in").mkdir()
        name = name.format(tmp_path)
        assert f"'tfds:{name}' can't be prepared in or read from '{tmp_path}/in'" in refusal(
            f"tfds:{name}", tmp_path / "in"
        )

    @pytest.mark.skipif(records.importlib.util.find_spec("tensorflow") is not None, reason="TensorFlow is installed")
    @pytest.mark.parametrize("name", ["mnist", "emnist/letters", "coco"])
    def test_what_needs_tensorflow_is_refused_at_once(self, tmp_path, name):
        start = time.perf_counter()
        message = refusal(f"tfds:{name}", tmp_path)
        assert time.perf_counter() - start < 5
        assert f"'tfds:{name}' is not prepared in '{tmp_path}'" in message
        assert "pip install 'lenet_jax[tensorflow]'" in message
        assert not list(tmp_path.iterdir())

    def test_verbosity_is_put_back(self, tmp_path):
        from absl import logging

        before = logging.get_verbosity()
        refusal("tfds:no_such_set", tmp_path)
        assert logging.get_verbosity() == before

    def test_long_reasons_are_shortened(self, prepare, tmp_path):
        prepare()
        shutil.copy(__file__, tmp_path / "strokes/1.0.0/features.json")
        assert refusal("tfds:strokes", tmp_path).startswith("dataset: 'tfds:strokes' can't be prepared in or read from")
