"""Data sets: a name becomes uint8 images and labels in memory, with a fingerprint.

Sources: the embedded ``mnist10k``; ``mnist``, ``fashion_mnist`` and ``kmnist`` (downloaded, verified, prepared as TFDS
data sets by `builders.py`); ``idx:FOLDER``; ``tfds:NAME``.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from lenet_jax.data import idx
from lenet_jax.errors import InputError

IMAGE_SIZE = 32
"""LeNet-5 takes 32 x 32 images."""

ARRAYS = "arrays.npz"
"""File beside a prepared data set's records that holds it whole."""

NOTE = "fingerprint.json"
"""File beside them that tells what they must be: noted once, when the data set was made of verified downloads."""

EMBEDDED = Path(__file__).with_name("mnist10k.npz")
EMBEDDED_FINGERPRINT = "sha256:916433c8bc50fea0842ffb377aacc8f3b4478e355d425ff5a5934ce2b2c5e254"

DOWNLOADED = ("mnist", "fashion_mnist", "kmnist")
DATASETS = ("mnist10k", *DOWNLOADED, "idx:FOLDER", "tfds:NAME")

IDX_PARTS = {
    "train_images": ("train-images-idx3-ubyte", 3),
    "train_labels": ("train-labels-idx1-ubyte", 1),
    "test_images": ("t10k-images-idx3-ubyte", 3),
    "test_labels": ("t10k-labels-idx1-ubyte", 1),
}
"""Array -> usual name of its file and number of dimensions."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Images and labels as they were published.

    Attributes:
      name: as in a config.
      train_images, test_images: uint8 [N, 28, 28] or [N, 32, 32]; 0 is the background.
      train_labels, test_labels: uint8 [N], from 0.
      classes: the number of classes.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: int = 10

    def __post_init__(self) -> None:
        for split in ("train", "test"):
            images, labels = getattr(self, f"{split}_images"), getattr(self, f"{split}_labels")
            if images.ndim != 3 or images.shape[1:] not in ((28, 28), (IMAGE_SIZE, IMAGE_SIZE)):
                shape = " x ".join(map(str, images.shape[1:]))
                raise InputError(f"dataset: {self.name!r} has {split} images of {shape}; 28 x 28 or 32 x 32 grey fits")
            if len(images) != len(labels):
                raise InputError(f"dataset: {self.name!r} has {len(images)} {split} images but {len(labels)} labels")
            if not len(images):
                raise InputError(f"dataset: {self.name!r} has no {split} images")
            if labels.max() >= self.classes:
                raise InputError(
                    f"dataset: {self.name!r} has the {split} label {labels.max()}; allowed are 0 to {self.classes - 1}"
                )
        if self.train_images.shape[1:] != self.test_images.shape[1:]:
            raise InputError(f"dataset: {self.name!r} has training and test images of different sizes")

    @functools.cached_property
    def fingerprint(self) -> str:
        """``sha256:`` and the SHA-256 of the four arrays, shapes included."""
        digest = hashlib.sha256()
        for part in IDX_PARTS:
            array = np.ascontiguousarray(getattr(self, part))
            digest.update(f"{part} {array.dtype} {array.shape};".encode())
            digest.update(array.data)
        return f"sha256:{digest.hexdigest()}"


def load(name: str, data_dir: str = "") -> Dataset:
    """Loads a data set, preparing it first if need be.

    Args:
      name: ``mnist10k``, ``mnist``, ``fashion_mnist``, ``kmnist``, ``idx:FOLDER`` or ``tfds:NAME``.
      data_dir: where TFDS keeps its data sets; empty for ``$TFDS_DATA_DIR`` or ``~/tensorflow_datasets``.

    Raises:
      InputError: the name is unknown, or the data can't be had or don't fit.
    """
    kind, _, argument = name.partition(":")
    if name == "mnist10k":
        return load_embedded()
    if name == "mnist5k":
        raise InputError("dataset: 'mnist5k' is retired; 'mnist10k' has 5,000 digits to train on and 5,000 to test on")
    if name in DOWNLOADED:
        return load_prepared(name, tfds_folder(data_dir))
    if kind == "idx" and argument:
        return load_idx(Path(os.path.expanduser(argument)), name)
    if kind == "tfds" and argument:
        return load_tfds(argument, tfds_folder(data_dir))
    raise InputError(f"dataset: {name!r} is not one of {', '.join(map(repr, DATASETS))}")


def at_hand(name: str, data_dir: str = "") -> Dataset | None:
    """The data set, if it can be loaded at once: nothing is downloaded or prepared."""
    with contextlib.suppress(InputError):
        if name in DOWNLOADED:
            return read_arrays(name, prepared_in(tfds_folder(data_dir), name))
        if not name.startswith("tfds:"):
            return load(name, data_dir)
    return None


def tfds_folder(data_dir: str) -> Path:
    """The folder that TFDS keeps its data sets in."""
    return Path(os.path.expanduser(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"))


def prepared_in(folder: Path, name: str) -> Path:
    """The folder in TFDS's that holds one of our own data sets: builder, config and version, as TFDS names them."""
    return folder / "lenet_jax_digits" / name / "1.0.0"


def load_embedded() -> Dataset:
    """The embedded ``mnist10k``: MNIST's first 10,000 training digits, 5,000 to train and 5,000 to test.

    Every stretch of either split is stratified by class: a validation split off the training set's end too. The file is
    made by ``tests/rebuild_mnist10k.py``.

    Raises:
      InputError: the file is missing or damaged.
    """
    try:
        # Opened here: of a file that is no zip file, NumPy leaves it open.
        with EMBEDDED.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            dataset = Dataset(name="mnist10k", **{part: stored[part] for part in IDX_PARTS})
    except Exception as error:  # a damaged zip file raises nearly any error
        raise InputError(f"dataset: {str(EMBEDDED)!r} is missing or damaged; install lenet_jax again") from error
    if dataset.fingerprint != EMBEDDED_FINGERPRINT:
        raise InputError(f"dataset: {str(EMBEDDED)!r} does not hold the digits of 'mnist10k'; install lenet_jax again")
    return dataset


def load_idx(folder: Path, name: str) -> Dataset:
    """The four IDX files of a folder, gzipped or not; torchvision's ``raw`` folders below it are found too.

    Raises:
      InputError: a file is missing, damaged, or not what its name says.
    """
    places = [folder, folder / "raw", *sorted(folder.glob("*/raw"))]
    holdings = [idx_files(place) for place in places]
    whole = [files for files in holdings if len(files) == len(IDX_PARTS)]
    if not whole:
        fullest = max(holdings, key=len)
        lacking = ", ".join(f"{file}[.gz]" for part, (file, _) in IDX_PARTS.items() if part not in fullest)
        raise InputError(f"dataset: {name!r} lacks {lacking}; looked in {', '.join(map(repr, map(str, places)))}")
    if len(whole) > 1 and whole[0] is not holdings[0]:
        several = ", ".join(repr(str(files["train_images"].parent)) for files in whole)
        raise InputError(f"dataset: {name!r} holds several data sets; name the folder of one of them: {several}")
    arrays: dict[str, Any] = {part: idx.read(whole[0][part], dimensions) for part, (_, dimensions) in IDX_PARTS.items()}
    return Dataset(name=name, **arrays)


def idx_files(place: Path) -> dict[str, Path]:
    """Array -> its IDX file, for those that lie in the folder `place`; a plain file goes before a gzipped one."""
    files = {}
    for part, (file, _) in IDX_PARTS.items():
        # train-images-idx3-ubyte is how the file is named on its web page, train-images.idx3-ubyte how some unpack it.
        names = [spelling + suffix for suffix in ("", ".gz") for spelling in (file, file.replace("-idx", ".idx"))]
        found = [place / spelling for spelling in names if os.path.isfile(place / spelling)]
        if found:
            files[part] = found[0]
    return files


def load_prepared(name: str, folder: Path) -> Dataset:
    """One of our own TFDS data sets: from the arrays kept beside its records, else from the records, else downloaded.

    The arrays exist because reading 70,000 records takes seconds. What is damaged is told on stderr and made anew: the
    arrays from the records, the records from the downloads, whose checksums are known.

    Raises:
      InputError: it can't be downloaded, or the folder can't be used. What was there is left as it was.
    """
    from lenet_jax.data import prepared  # TFDS takes long to import, and arrays are read without it

    place = prepared_in(folder, name)
    if dataset := read_arrays(name, place):
        return dataset

    refusal = f"dataset: {name!r} can't be prepared in or read from {str(folder)!r}"
    with prepared.one_line_errors(refusal), prepared.exclusive_preparation(place.parent):
        if not place.exists():
            return prepare(name, folder)
        try:  # the arrays again: this process may have waited for another one that made them
            return read_arrays(name, place) or read_records(name, folder)
        except Exception as error:  # a TFDS that can't read the records may write some that it can
            damage = f"{name!r} can't be read ({prepared.brief(error)})"
        print(f"{damage}: making it anew from its downloads", file=sys.stderr, flush=True)
        try:
            return prepare(name, folder)
        except Exception as error:
            way = "" if isinstance(error, InputError) else "; --config.data_dir=FOLDER names another folder"
            reason = prepared.brief(error)
            raise InputError(f"dataset: {damage} nor made anew, and nothing was deleted: {reason}{way}") from error


def prepare(name: str, folder: Path) -> Dataset:
    """Downloads one of our own data sets, or finds it downloaded, and writes its records, arrays and note."""
    from lenet_jax.data import prepared

    files = zip(IDX_PARTS.items(), prepared.fetch(name, folder / "downloads").values(), strict=True)
    arrays: dict[str, Any] = {part: idx.read(path, dimensions) for (part, (_, dimensions)), path in files}
    dataset = Dataset(name=name, **arrays)
    with prepared.written(name, folder, prepared_in(folder, name)) as builder:
        records: dict[str, Any] = prepared.read_splits(builder, "image", "label")
        if Dataset(name=name, **records).fingerprint != dataset.fingerprint:
            raise InputError(f"dataset: {name!r} is read from {str(folder)!r} other than it was written")
        place = Path(builder.data_dir)
        note = {"name": name, "fingerprint": dataset.fingerprint, "files": prepared.checksums(place)}
        (place / NOTE).write_text(json.dumps(note, indent=2) + "\n")
        write_arrays(dataset, place / ARRAYS)
    return dataset


def read_records(name: str, folder: Path) -> Dataset:
    """One of our own data sets from its records; keeps its arrays.

    Raises:
      InputError: a file isn't what was noted. TFDS raises many kinds of errors.
    """
    from lenet_jax.data import prepared

    place = prepared_in(folder, name)
    kept = place / ARRAYS
    expected, files = read_note(name, place)
    prepared.check(place, files)
    if kept.exists():
        print(f"{str(kept)!r} is damaged or can't be read: back to the records", file=sys.stderr, flush=True)
    arrays: dict[str, Any] = prepared.read_splits(prepared.reader(name, folder), "image", "label")
    dataset = Dataset(name=name, **arrays)
    if dataset.fingerprint != expected:
        raise InputError(f"{NOTE} in {str(place)!r} is damaged")
    write_arrays(dataset, kept)
    return dataset


def read_note(name: str, place: Path) -> tuple[str, dict[str, str]]:
    """What was noted of a prepared data set: its fingerprint, and its files with their SHA-256.

    Raises:
      InputError: it is missing, damaged or another data set's.
    """
    try:
        note = json.loads((place / NOTE).read_bytes())
        if note["name"] == name:
            return (note["fingerprint"], dict(note["files"]))
    except Exception:  # damaged JSON raises nearly any error
        pass
    raise InputError(f"{NOTE} in {str(place)!r} is damaged or missing")


def read_arrays(name: str, place: Path) -> Dataset | None:
    """What `write_arrays` wrote, or None if it is missing, damaged or not what was noted."""
    try:
        expected, _ = read_note(name, place)
        with (place / ARRAYS).open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            # They are not compressed: a file that promises more than its size would only fill the memory.
            if sum(member.file_size for member in stored.zip.infolist()) > os.fstat(stream.fileno()).st_size:
                return None
            dataset = Dataset(name=name, **{part: stored[part] for part in IDX_PARTS})
        return dataset if dataset.fingerprint == expected else None
    except Exception:  # a damaged zip file raises nearly any error; whatever it is, the records are there
        return None


def write_arrays(dataset: Dataset, path: Path) -> None:
    """Writes the arrays, whole or not at all."""
    partial = path.with_name(f"{path.stem}.{os.getpid()}.partial.npz")
    # Where the folder can't be written (others may keep it for us), the next load only takes longer.
    with contextlib.suppress(OSError):
        try:
            np.savez(partial, **{part: getattr(dataset, part) for part in IDX_PARTS})
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def load_tfds(name: str, folder: Path) -> Dataset:
    """Any TFDS image-classification data set of grey 28 x 28 or 32 x 32 images with a train and a test split.

    One that is prepared already, as ArrayRecord or Parquet, is read without TensorFlow; to prepare one takes it.

    Raises:
      InputError: TFDS doesn't know it, can't prepare or read it here, or its images or labels don't fit.
    """
    import tensorflow_datasets as tfds

    from lenet_jax.data import prepared

    field = f"dataset: {f'tfds:{name}'!r}"
    # Without TensorFlow TFDS would first try to download for minutes, and hide a part of the data sets that it knows.
    hint = "" if importlib.util.find_spec("tensorflow") else "TensorFlow is needed: pip install 'lenet_jax[tensorflow]'"
    with prepared.one_line_errors(f"{field} can't be prepared in or read from {str(folder)!r}"):
        try:
            builder = tfds.builder(name, data_dir=folder)
        except tfds.core.registered.DatasetNotFoundError as error:
            reason = f"{field} is not known to TFDS {tfds.__version__} and not prepared in {str(folder)!r}"
            raise InputError(f"{reason}; to know all data sets {hint}" if hint else reason) from error
        except ImportError as error:
            if "tensorflow" not in str(error):
                raise
            raise InputError(f"{field} is not prepared in {str(folder)!r}. To prepare it {hint}") from error
        keys = builder.info.supervised_keys
        if keys is None or not isinstance(builder.info.features[keys[1]], tfds.features.ClassLabel):
            raise InputError(f"{field} is no image classification: its supervised keys are {keys}")
        image, label = builder.info.features[keys[0]], builder.info.features[keys[1]]
        if image.shape not in ((28, 28, 1), (IMAGE_SIZE, IMAGE_SIZE, 1)) or image.np_dtype != np.uint8:
            kind = np.dtype(image.np_dtype)
            raise InputError(f"{field} has {kind} images of shape {image.shape}; uint8 28 x 28 x 1 or 32 x 32 x 1 fits")
        if label.num_classes is None or label.num_classes > 256:
            raise InputError(f"{field} has {label.num_classes} classes; allowed are up to 256")
        if hint and not os.path.isdir(builder.data_dir):
            raise InputError(f"{field} is not prepared in {str(folder)!r}. To prepare it {hint}")
        builder.download_and_prepare(file_format="array_record")
        arrays = prepared.read_splits(builder, *keys)
    return Dataset(name=f"tfds:{name}", classes=label.num_classes, **arrays)
