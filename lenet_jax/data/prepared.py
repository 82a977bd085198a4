"""Downloaded data sets: verified IDX files, which every load reads, and TFDS records of them for users of TFDS.

The downloads are the only cache: parsing and checking them is faster than reading TFDS records.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lenet_jax.data import idx, records
from lenet_jax.errors import InputError, check_choice
from lenet_jax.paths import expanded

MIRROR_VARIABLE = "LENET_JAX_MIRROR"  # environment variable: an address to use instead of the official ones
TIMEOUT_S = 30  # without an answer; then the next mirror is tried
UNFINISHED = "incomplete."  # prefix of folders in which TFDS and we write; those left by killed processes are removed


class Source(NamedTuple):
    """Where a data set is published, and the names of its classes.

    The mirrors `addresses` end with a slash and are tried in this order. `checksums` maps the four files, in the order
    of `idx.PARTS`, to their SHA-256 as TFDS lists it.
    """

    homepage: str
    addresses: tuple[str, ...]
    checksums: dict[str, str]
    labels: tuple[str, ...]


FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")

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
        labels=FASHION,
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


def data_folder(data_dir: str) -> Path:
    """The folder of all data sets: `data_dir`, or TFDS's if it is empty."""
    return expanded(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets", "data_dir")


def load(name: str, folder: Path) -> dict[str, Any]:
    """The four arrays of a data set (keys of `idx.PARTS`); files that are missing or damaged are downloaded first."""
    downloads = downloads_in(folder, name)
    if unverified(name, downloads):
        error = f"dataset: {name!r} can't be stored in {str(downloads)!r} (--config.data_dir names another folder)"
        with records.one_line_errors(error), exclusive(downloads):
            download(name, downloads)
    files = zip(idx.PARTS.items(), SOURCES[name].checksums, strict=True)
    return {part: idx.read(downloads / file, dimensions) for (part, (_, dimensions)), file in files}


def downloads_in(folder: Path, name: str) -> Path:
    """The folder of a data set's downloaded files."""
    return folder / "downloads" / f"lenet_jax_{name}"


def unverified(name: str, downloads: Path) -> list[str]:
    """The files of a data set that are missing, unreadable or not what was published."""

    def checksum(path: Path) -> str:
        with contextlib.suppress(OSError):
            if path.is_file():  # opening a pipe would block
                with path.open("rb") as stream:
                    return hashlib.file_digest(stream, "sha256").hexdigest()
        return ""

    return [file for file, published in SOURCES[name].checksums.items() if checksum(downloads / file) != published]


def download(name: str, downloads: Path) -> None:
    """Downloads the files of a data set that are not there; each appears whole and verified, or not at all."""
    import pooch
    import requests

    def reason(error: Exception) -> str:
        if isinstance(error, requests.HTTPError) and error.response is not None:
            return f"HTTP {error.response.status_code}"
        if isinstance(error, requests.Timeout):
            return f"no answer in {TIMEOUT_S} s"
        if isinstance(error, requests.ConnectionError):
            return "no connection, or connection lost"
        if isinstance(error, requests.RequestException):
            return "not a web address" if isinstance(error, ValueError) else "transfer interrupted"
        return "wrong SHA-256: the file is damaged or a different one"

    source, mirror = SOURCES[name], os.environ.get(MIRROR_VARIABLE)
    addresses = [mirror.rstrip("/") + "/"] if mirror else list(source.addresses)
    missing, answers = [], {}
    pooch.get_logger().setLevel("WARNING")
    for file in unverified(name, downloads):  # again: another process may have downloaded them meanwhile
        path = downloads / file
        if os.path.lexists(path):
            print(f"{str(path)!r} is damaged: downloading it again", file=sys.stderr, flush=True)
        for address in tuple(addresses):
            with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=downloads) as scratch:
                try:
                    downloader = pooch.HTTPDownloader(progressbar=True, timeout=TIMEOUT_S)
                    checksum = f"sha256:{source.checksums[file]}"
                    whole = Path(pooch.retrieve(address + file, checksum, file, scratch, downloader=downloader))
                except (requests.RequestException, ValueError) as error:
                    answers[address] = reason(error)
                    if isinstance(error, requests.ConnectionError | requests.Timeout):
                        addresses.remove(address)
                else:
                    whole.chmod(0o644)  # pooch makes files private, but others may use the folder
                    whole.replace(path)
                    break
        else:
            missing.append(file)
    if missing:
        tried = "; ".join(f"{address!r} ({answer})" for address, answer in answers.items())
        raise InputError(
            f"dataset: {name!r} could not be downloaded: {', '.join(missing)} from {tried}. Put the files into a "
            f"folder and use --config.dataset=idx:FOLDER, or set {MIRROR_VARIABLE} to an address that has them"
        )


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Creates a folder and admits one process at a time; all at once where file locks are not supported."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            lock = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, lock)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"waiting for another process to prepare {str(folder)!r}", file=sys.stderr, flush=True)
                fcntl.flock(lock, fcntl.LOCK_EX)
            for left in folder.glob(f"{UNFINISHED}*"):
                shutil.rmtree(left, ignore_errors=True)
        yield


def tfds_builder(name: str, data_dir: str = "") -> Any:
    """The TFDS builder of `mnist`, `fashion_mnist` or `kmnist`; TFDS's own builders of these sets need TensorFlow.

    The first call writes the records; every call compares them with the downloads. Afterwards
    ``tfds.builder("lenet_jax_digits/mnist")`` finds them, too.

    Raises:
      InputError: the name is unknown, the data cannot be downloaded or stored, or the records are damaged.
    """
    import tensorflow_datasets as tfds

    check_choice("dataset", name, SOURCES)
    folder = data_folder(data_dir)
    arrays, prepared = load(name, folder), folder / "lenet_jax_digits" / name / "1.0.0"
    error = f"dataset: TFDS records in {str(prepared)!r} can't be used; if they are damaged, delete that folder"
    with records.one_line_errors(error), exclusive(prepared.parent):
        write_records(name, folder, arrays)
        builder = tfds.builder_from_directory(prepared)
        found = records.read_splits(builder, "image", "label")
        same = all(np.array_equal(found[part], arrays[part]) for part in arrays)
        if not same or tuple(builder.info.features["label"].names) != SOURCES[name].labels:
            raise InputError(f"{error}: they differ from the downloads")
    return builder


def write_records(name: str, folder: Path, arrays: dict[str, Any]) -> None:
    """Writes the TFDS records of a data set, whole or not at all, unless they exist."""
    import tensorflow_datasets as tfds

    class LenetJaxDigits(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[misc, call-arg]
        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = tuple(tfds.core.BuilderConfig(name=name) for name in SOURCES)

        def _info(self) -> Any:
            image = tfds.features.Tensor(shape=(28, 28, 1), dtype=np.uint8, encoding="none")
            features = {"image": image, "label": tfds.features.ClassLabel(names=list(SOURCES[name].labels))}
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("image", "label"),
                homepage=SOURCES[name].homepage,
                disable_shuffling=True,  # the order in which they were published
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {split: self._generate_examples(split) for split in ("train", "test")}

        def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
            pairs = zip(arrays[f"{split}_images"], arrays[f"{split}_labels"], strict=True)
            for index, (image, label) in enumerate(pairs):
                yield index, {"image": image[..., None], "label": int(label)}

    LenetJaxDigits(config=name, data_dir=folder, file_format="array_record").download_and_prepare(
        download_dir=folder / "downloads",
        download_config=tfds.download.DownloadConfig(try_download_gcs=False),  # not Google's prepared data sets
    )
