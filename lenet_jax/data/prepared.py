"""What needs TFDS: reading its data sets, and a builder for those that are published as four IDX files.

TFDS's own builders of these sets need TensorFlow to prepare; this one does not. Downloads are verified against the
SHA-256 sums that TFDS lists.
"""

import contextlib
import fcntl
import hashlib
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pooch
import requests
import tensorflow_datasets as tfds
from absl import logging

from lenet_jax.data import idx
from lenet_jax.errors import InputError

MIRROR_VARIABLE = "LENET_JAX_MIRROR"
"""Environment variable: an address that holds the files, used instead of the official ones."""

TIMEOUT = 30
"""Seconds without an answer after which a mirror is given up."""

UNFINISHED = "unfinished."
"""How the names of folders start in which data sets are written."""


class Source(NamedTuple):
    """Where a data set is published: the same four files at each address.

    Attributes:
      homepage: what to cite and read.
      addresses: mirrors, in the order in which they are tried; each ends with a slash.
      checksums: file name -> SHA-256, in the order of `datasets.IDX_PARTS`.
      labels: class names.
    """

    homepage: str
    addresses: tuple[str, ...]
    checksums: dict[str, str]
    labels: tuple[str, ...]


SOURCES = {
    "mnist": Source(
        homepage="http://yann.lecun.com/exdb/mnist/",
        addresses=(
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
        ),
        checksums={
            "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
        labels=tuple("0123456789"),
    ),
    "fashion_mnist": Source(
        homepage="https://github.com/zalandoresearch/fashion-mnist",
        addresses=("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
        checksums={
            "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
        labels=(
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
    ),
    "kmnist": Source(
        homepage="http://codh.rois.ac.jp/kmnist/",
        addresses=("http://codh.rois.ac.jp/kmnist/dataset/kmnist/",),
        checksums={
            "train-images-idx3-ubyte.gz": "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4",
            "train-labels-idx1-ubyte.gz": "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17",
            "t10k-images-idx3-ubyte.gz": "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5",
            "t10k-labels-idx1-ubyte.gz": "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c",
        },
        labels=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    ),
}


def fetch(name: str, downloads: Path) -> dict[str, Path]:
    """Downloads a data set's four files into a folder of its own in `downloads`, or finds them there.

    A file that is there whole isn't fetched again, so an interrupted download is taken up at the file it stopped in.

    Returns:
      file name -> path, each with the SHA-256 that `SOURCES` lists.

    Raises:
      InputError: no mirror delivered; the message lists the files, the mirrors with their answers, and the way round.
    """
    source, folder = SOURCES[name], downloads / f"lenet_jax_{name}"
    mirror = os.environ.get(MIRROR_VARIABLE)
    addresses = (mirror.rstrip("/") + "/",) if mirror else source.addresses
    paths, missing, answers, silent = {}, [], {}, set()
    pooch.get_logger().setLevel("WARNING")
    for file, checksum in source.checksums.items():
        # A file that is there is found through any address; one that isn't should not wait for a silent mirror again.
        for address in addresses:
            if address in silent and not (folder / file).exists():
                continue
            try:
                downloader = pooch.HTTPDownloader(progressbar=True, timeout=TIMEOUT)
                path = pooch.retrieve(address + file, f"sha256:{checksum}", file, folder, downloader=downloader)
            except (requests.RequestException, ValueError) as error:
                answers[address] = describe(error)
                if isinstance(error, requests.ConnectionError | requests.Timeout):
                    silent.add(address)
            else:
                paths[file] = Path(path)
                break
        else:
            missing.append(file)
    if missing:
        tried = "; ".join(f"{address!r} ({answer})" for address, answer in answers.items())
        raise InputError(
            f"dataset: {name!r} could not be downloaded: {', '.join(missing)} from {tried}. Put the files into a "
            f"folder and use --config.dataset=idx:FOLDER, or set {MIRROR_VARIABLE} to an address that has them"
        )
    return paths


def describe(error: Exception) -> str:
    """What went wrong with a download, in a few words."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"HTTP {error.response.status_code}"
    if isinstance(error, requests.Timeout):
        return f"no answer in {TIMEOUT} s"
    if isinstance(error, requests.ConnectionError):
        return "no connection, or it broke off"
    if isinstance(error, requests.RequestException):
        return "no web address" if isinstance(error, ValueError) else "the transfer broke off"
    return "wrong SHA-256: the file is damaged or another one"


@contextlib.contextmanager
def exclusive_preparation(folder: Path) -> Iterator[None]:
    """Makes a folder and lets one process in at a time; the others wait. Where there are no locks, all go in.

    What earlier processes left unfinished, because they were killed, is removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as closing:
        with contextlib.suppress(OSError):
            lock = os.open(folder, os.O_RDONLY)
            closing.callback(os.close, lock)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"waiting for another process to prepare {str(folder)!r}", file=sys.stderr, flush=True)
                fcntl.flock(lock, fcntl.LOCK_EX)
            for left in folder.glob(f"{UNFINISHED}*"):
                shutil.rmtree(left, ignore_errors=True)
        yield


def reader(name: str, folder: Path) -> tfds.core.DatasetBuilder:
    """The TFDS builder of a data set in a folder."""
    return LenetJaxDigits(config=name, data_dir=folder, file_format="array_record")


@contextlib.contextmanager
def written(name: str, folder: Path, place: Path) -> Iterator[tfds.core.DatasetBuilder]:
    """Writes the records of a data set elsewhere; at the end they take the place of what was there, if all went well.

    They are never taken from Google's store of prepared data sets.

    Args:
      name: of the data set.
      folder: which TFDS keeps data sets in.
      place: the folder in it that this one belongs in.

    Yields:
      the builder of what is written.
    """
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=place.parent) as scratch:
        builder = reader(name, Path(scratch))
        config = tfds.download.DownloadConfig(try_download_gcs=False)
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS would say that they are here, where they don't stay
            builder.download_and_prepare(download_dir=folder / "downloads", download_config=config)
        yield builder
        if place.exists():
            place.rename(Path(scratch) / "damaged")
        made = Path(builder.data_dir)
        made.rename(place)
        with contextlib.suppress(OSError):  # there already, but for the first time: which config TFDS takes by itself
            (made.parents[1] / ".config").rename(place.parents[1] / ".config")


def checksums(place: Path) -> dict[str, str]:
    """File -> SHA-256, of all files in a folder."""
    files = [path for path in sorted(place.iterdir()) if path.is_file()]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def check(place: Path, noted: Mapping[str, str]) -> None:
    """Raises InputError unless the files of a folder have the checksums that were noted."""
    found = checksums(place)
    damaged = [file for file, checksum in noted.items() if found.get(file) != checksum]
    if damaged:
        raise InputError(f"damaged or missing: {', '.join(damaged)} in {str(place)!r}")


class LenetJaxDigits(tfds.core.GeneratorBasedBuilder):  # type: ignore[misc]  # TFDS has no types
    """`mnist`, `fashion_mnist` and `kmnist` as TFDS configs of one builder, prepared without TensorFlow."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = tuple(tfds.core.BuilderConfig(name=name) for name in SOURCES)

    def _info(self) -> tfds.core.DatasetInfo:
        source = SOURCES[self.builder_config.name]
        image = tfds.features.Tensor(shape=(28, 28, 1), dtype=np.uint8, encoding="none")
        label = tfds.features.ClassLabel(names=list(source.labels))
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict({"image": image, "label": label}),
            supervised_keys=("image", "label"),
            homepage=source.homepage,
            disable_shuffling=True,  # the order in which they were published
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        name = self.builder_config.name
        files = list(fetch(name, Path(dl_manager.download_dir)).values())
        return {"train": self._generate_examples(*files[:2]), "test": self._generate_examples(*files[2:])}

    def _generate_examples(self, images: Path, labels: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        pairs = zip(idx.read(images, 3), idx.read(labels, 1), strict=True)
        for index, (image, label) in enumerate(pairs):
            yield index, {"image": image[..., None], "label": int(label)}


def read_splits(builder: Any, image_key: str, label_key: str) -> dict[str, np.ndarray]:
    """The train and test split of a prepared TFDS builder as arrays."""
    arrays = {}
    for split in ("train", "test"):
        records = list(builder.as_data_source(split=split))
        labels = np.array([record[label_key] for record in records])
        if labels.min() < 0 or labels.max() > 255:  # the cast to uint8 would wrap them
            raise InputError(
                f"dataset: {builder.name!r} has {split} labels {labels.min()} to {labels.max()}; allowed are 0 to 255"
            )
        arrays[f"{split}_images"] = np.stack([np.squeeze(record[image_key], -1) for record in records])
        arrays[f"{split}_labels"] = labels.astype(np.uint8)
    return arrays


@contextlib.contextmanager
def one_line_errors(refusal: str) -> Iterator[None]:
    """Keeps TFDS's harmless warnings quiet, and turns each of its many kinds of errors into one line.

    Raises:
      InputError: `refusal` and the error's message, shortened: TFDS's can run to pages.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{refusal}: {brief(error)}") from error
    finally:
        logging.set_verbosity(verbosity)


def brief(error: Exception) -> str:
    """An error in one line that isn't too long; a refusal of ours as it is."""
    if isinstance(error, InputError):
        return str(error).removeprefix("dataset: ")
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return reason if len(reason) <= 500 else f"{reason[:250]} ... {reason[-250:]}"
