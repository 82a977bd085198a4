"""Data sets: a name becomes uint8 images and labels in memory, with a fingerprint.

Sources: the embedded ``mnist10k``; ``mnist``, ``fashion_mnist``, ``kmnist``, ``qmnist``, ``emnist`` (its digits) and
``usps``, downloaded and verified by `prepared.py`; ``idx:FOLDER``; ``tfds:NAME``.
"""

import contextlib
import dataclasses
import functools
import hashlib
from pathlib import Path

import numpy as np

from lenet_jax import IMAGE_SIZE
from lenet_jax.data import idx, prepared, records
from lenet_jax.data.sources import ALL_SOURCES
from lenet_jax.errors import InputError
from lenet_jax.paths import expanded

EMBEDDED = Path(__file__).with_name("mnist10k.npz")
EMBEDDED_FINGERPRINT = "sha256:916433c8bc50fea0842ffb377aacc8f3b4478e355d425ff5a5934ce2b2c5e254"

# Correlation above which mean images of the classes are those of digits. Those of MNIST's test digits have 0.98 with
# MNIST's training digits, and 0.29 with these transposed; those of five digits of them have up to 0.60.
MIN_LIKENESS = 0.6
MIN_DIGITS = 5  # classes that must be there to tell: two or three other shapes may be like transposed digits by chance
MAX_EXAMINED = 5000  # images, about

MIN_WHITE = 128  # brightest pixel of images with 256 grey values, at least; their background is darker

DATASETS = ("mnist10k", *ALL_SOURCES, "idx:FOLDER", "tfds:NAME")


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Images and labels as they were published.

    Images are uint8 [N, 28, 28] or [N, 32, 32], where 0 is the background; labels are uint8 [N], from 0. `notes` tell
    what was changed on loading.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: int = 10
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        field = f"dataset: {self.name!r} has"
        for split in ("train", "test"):
            images, labels = getattr(self, f"{split}_images"), getattr(self, f"{split}_labels")
            if images.ndim != 3 or images.shape[1:] not in ((28, 28), (IMAGE_SIZE, IMAGE_SIZE)):
                shape = " x ".join(map(str, images.shape[1:]))
                raise InputError(f"{field} {split} images of {shape}; allowed are 28 x 28 and 32 x 32, grey")
            if len(images) != len(labels):
                raise InputError(f"{field} {len(images)} {split} images but {len(labels)} labels")
            if not len(images):
                raise InputError(f"{field} no {split} images")
            if labels.max() >= self.classes:
                raise InputError(f"{field} the {split} label {labels.max()}; allowed are 0 to {self.classes - 1}")
        if self.train_images.shape[1:] != self.test_images.shape[1:]:
            raise InputError(f"{field} training and test images of different sizes")

    @functools.cached_property
    def fingerprint(self) -> str:
        """``sha256:`` and the SHA-256 of the four arrays, shapes included."""
        digest = hashlib.sha256()
        for part in idx.PARTS:
            array = np.ascontiguousarray(getattr(self, part))
            digest.update(f"{part} {array.dtype} {array.shape};".encode())
            digest.update(array.data)
        return f"sha256:{digest.hexdigest()}"


def notes_on(dataset: Dataset) -> list[str]:
    """What a user should know of a data set: its `notes`, and images that are not upright light digits on black."""
    notes = list(dataset.notes)
    for split in ("train", "test"):
        images = getattr(dataset, f"{split}_images")
        if images.max() < MIN_WHITE:
            notes.append(
                f"{split} images have pixels from {images.min()} to {images.max()}; expected 0 (background) to 255"
            )
        if np.median(images[:, [0, 0, -1, -1], [0, -1, 0, -1]]) >= MIN_WHITE:
            notes.append(f"{split} images have bright corners; expected a background of 0")
    splits = [split for split in ("train", "test") if looks_transposed(dataset, split)]
    if splits:
        notes.append(
            f"{' and '.join(splits)} images look transposed, as EMNIST publishes its own, and are used as they are; "
            "the data set 'emnist' has EMNIST's digits upright, others have to be transposed in their files"
        )
    return notes


def looks_transposed(dataset: Dataset, split: str) -> bool:
    """Whether a split's images are digits with their rows and columns exchanged.

    The mean images of the classes, less their common mean, are compared with those of `load_embedded`, transposed and
    as they are. False for other images than digits, and for fewer than `MIN_DIGITS` of the ten.
    """
    images, labels = getattr(dataset, f"{split}_images"), getattr(dataset, f"{split}_labels")
    step, margin = 1 + len(images) // MAX_EXAMINED, (images.shape[1] - 28) // 2
    images, labels = images[::step, margin : margin + 28, margin : margin + 28], labels[::step]
    digits = np.unique(labels)
    if dataset.classes != 10 or len(digits) < MIN_DIGITS:
        return False

    def deviations(means: np.ndarray) -> np.ndarray:
        differences = means - means.mean(axis=0)
        return np.asarray(differences / max(float(np.linalg.norm(differences)), 1e-9))

    found, expected = deviations(class_means(images, labels)), deviations(embedded_means()[digits])
    upright, transposed = (float((found * means).sum()) for means in (expected, expected.transpose(0, 2, 1)))
    return transposed > max(MIN_LIKENESS, upright)


def class_means(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The mean image of every class that there is, in rising order."""
    return np.stack([images[labels == label].mean(axis=0) for label in np.unique(labels)])


@functools.cache
def embedded_means() -> np.ndarray:
    """Mean images of MNIST's ten digits, [10, 28, 28]."""
    known = load_embedded()
    return class_means(known.train_images, known.train_labels)


def load(name: str, data_dir: str = "") -> Dataset:
    """Loads a data set, and downloads it first if necessary.

    Args:
      name: one of `DATASETS`.
      data_dir: the folder of downloads and of TFDS's data sets; "" for ``$TFDS_DATA_DIR`` or ``~/tensorflow_datasets``.

    Raises:
      InputError: the name is unknown, or the data are not available or do not fit.

    Examples:
      >>> digits = load("mnist10k")
      >>> digits.train_images.shape, digits.train_images.dtype
      ((5000, 28, 28), dtype('uint8'))
      >>> digits.test_labels[:8]
      array([1, 7, 3, 6, 0, 2, 4, 9], dtype=uint8)
    """
    check_name(name)
    kind, _, argument = name.partition(":")
    if name == "mnist10k":
        return load_embedded()
    if name == "mnist5k":
        contents = "5,000 training and 5,000 test digits"
        raise InputError(f"dataset: {name!r} was replaced by 'mnist10k', which has {contents}")
    if name in ALL_SOURCES:
        return Dataset(name=name, **prepared.load(name, prepared.data_folder(data_dir)))
    if kind == "idx":
        return Dataset(name=name, **idx.read_folder(expanded(argument, "dataset"), name))
    return Dataset(name=name, **records.load(argument, prepared.data_folder(data_dir)))


SMALLEST_TRAINING_SET = 5000
"""Training images of the smallest data set of `DATASETS` that isn't read from a user's folder."""


def check_name(name: str) -> None:
    """Raises InputError unless a name is one of `DATASETS`, or of a former one, of which finished runs may be."""
    kind, _, argument = name.partition(":")
    if name not in ("mnist10k", "mnist5k", *ALL_SOURCES) and not (kind in ("idx", "tfds") and argument):
        raise InputError(f"dataset: {name!r} is not one of {', '.join(map(repr, DATASETS))}")


def at_hand(name: str, data_dir: str = "") -> Dataset | None:
    """One of the package's own data sets, if nothing has to be downloaded; for names that may come from anyone."""
    with contextlib.suppress(OSError, ValueError):  # InputError, and what names raise that are not paths
        downloads = prepared.downloads_in(prepared.data_folder(data_dir), name)
        if name == "mnist10k" or (name in ALL_SOURCES and not prepared.unverified(name, downloads)):
            return load(name, data_dir)
    return None


def load_embedded() -> Dataset:
    """The embedded ``mnist10k``: MNIST's first 10,000 training digits, 5,000 for training and 5,000 for testing.

    Any contiguous part of either split is stratified by class, so also a validation split at the end of the training
    set. ``tests/rebuild_mnist10k.py`` makes the file.
    """
    try:
        # Opened here, because NumPy does not close a file that is not a zip file.
        with EMBEDDED.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            dataset = Dataset(name="mnist10k", **{part: stored[part] for part in idx.PARTS})
    except Exception as error:  # a damaged zip file raises nearly any error
        raise InputError(f"dataset: {str(EMBEDDED)!r} is missing or damaged; install lenet_jax again") from error
    if dataset.fingerprint != EMBEDDED_FINGERPRINT:
        raise InputError(f"dataset: {str(EMBEDDED)!r} does not hold the digits of 'mnist10k'; install lenet_jax again")
    return dataset
