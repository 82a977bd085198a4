"""Downloaded data sets: verified files, which every load reads, and TFDS records of IDX files for users of TFDS.

The downloads are the only cache: parsing and checking them is faster than reading TFDS records.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lenet_jax.data import formats, records
from lenet_jax.data.sources import ALL_SOURCES, SOURCES, Source
from lenet_jax.errors import InputError, check_choice
from lenet_jax.paths import expanded

MIRROR_VARIABLE = "LENET_JAX_MIRROR"  # environment variable: an address to use instead of the official ones
TIMEOUT_S = 30  # without an answer; then the next mirror is tried
UNFINISHED = "incomplete."  # prefix of folders in which TFDS and we write; those left by killed processes are removed


def data_folder(data_dir: str) -> Path:
    """The folder of all data sets: `data_dir`, or TFDS's if it is empty."""
    return expanded(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets", "data_dir")


def load(name: str, folder: Path) -> dict[str, Any]:
    """A data set as fields of `datasets.Dataset`; files that are missing or damaged are downloaded first."""
    downloads = downloads_in(folder, name)
    if unverified(name, downloads):
        error = f"dataset: {name!r} can't be stored in {str(downloads)!r} (--config.data_dir names another folder)"
        with records.one_line_errors(error), exclusive(downloads):
            download(name, downloads)
    source = ALL_SOURCES[name]
    return formats.READERS[source.layout]([downloads / file for file in source.checksums])


def downloads_in(folder: Path, name: str) -> Path:
    """The folder of a data set's downloaded files."""
    return folder / "downloads" / f"lenet_jax_{name}"


def checksum(path: Path) -> str:
    """The SHA-256 of a file, or "" if it is missing or unreadable."""
    with contextlib.suppress(OSError):
        if path.is_file():  # opening a pipe would block
            with path.open("rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest()
    return ""


def unverified(name: str, downloads: Path) -> list[str]:
    """The files of a data set that are missing, unreadable or not what was published."""
    return [file for file, known in ALL_SOURCES[name].checksums.items() if checksum(downloads / file) != known]


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

    source, mirror = ALL_SOURCES[name], os.environ.get(MIRROR_VARIABLE)
    addresses = [mirror.rstrip("/") + "/"] if mirror else list(source.addresses)
    missing, answers = [], {}
    pooch.get_logger().setLevel("WARNING")
    wanted = unverified(name, downloads)  # again: another process may have downloaded them meanwhile
    for file in wanted:
        if os.path.lexists(downloads / file):
            print(f"{str(downloads / file)!r} is damaged: downloading it again", file=sys.stderr, flush=True)
    published = {source.archive: wanted} if source.archive and wanted else {file: [file] for file in wanted}
    for file, contents in published.items():
        for address in tuple(addresses):
            with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=downloads) as scratch:
                try:
                    downloader = pooch.HTTPDownloader(progressbar=True, timeout=TIMEOUT_S)
                    known = f"sha256:{source.archive_checksum or source.checksums[file]}"
                    whole = Path(pooch.retrieve(address + file, known, file, scratch, downloader=downloader))
                    if source.archive:
                        unpack(whole, source, contents)
                except (requests.RequestException, ValueError, KeyError, zipfile.BadZipFile) as error:
                    answers[address] = reason(error)
                    if isinstance(error, requests.ConnectionError | requests.Timeout):
                        addresses.remove(address)
                else:
                    for content in contents:
                        verified = whole.with_name(content)
                        verified.chmod(0o644)  # pooch makes files private, but others may use the folder
                        verified.replace(downloads / content)
                    break
        else:
            missing += contents
    if missing:
        tried = "; ".join(f"{address!r} ({answer})" for address, answer in answers.items())
        here = "a folder and use the data set idx:FOLDER" if source.layout == "idx" else repr(str(downloads))
        raise InputError(
            f"dataset: {name!r} could not be downloaded: {', '.join(missing)} from {tried}. Put the files into {here}, "
            f"or set {MIRROR_VARIABLE} to an address that has {source.archive or 'them'}"
        )


def unpack(archive: Path, source: Source, files: list[str]) -> None:
    """Extracts files of a ZIP archive, in whatever folder they are in it, into the archive's own folder.

    Raises:
      ValueError, KeyError: a file has another SHA-256 than `source` says, or is not there.
    """
    with zipfile.ZipFile(archive) as contents:
        members = {Path(member).name: member for member in contents.namelist()}
        for file in files:
            with contents.open(members[file]) as packed, archive.with_name(file).open("wb") as target:
                shutil.copyfileobj(packed, target)
            if checksum(archive.with_name(file)) != source.checksums[file]:
                raise ValueError(f"{file} in {archive.name} has another SHA-256")


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
