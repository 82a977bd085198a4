"""Where data sets are published, and the checksums of their files."""

from collections import ChainMap
from typing import NamedTuple


class Source(NamedTuple):
    """Where a data set is published, and the names of its classes.

    The mirrors `addresses` end with a slash and are tried in this order. `checksums` maps the files, in the order that
    their reader expects, to their SHA-256. `layout` is a key of `formats.READERS`. Files that are published in a ZIP
    archive only have its name in `archive`, and its SHA-256 in `archive_checksum`.
    """

    homepage: str
    addresses: tuple[str, ...]
    checksums: dict[str, str]
    labels: tuple[str, ...] = tuple("0123456789")
    layout: str = "idx"
    archive: str = ""
    archive_checksum: str = ""


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
"""Four IDX files each, as TFDS lists them: `prepared.tfds_builder` makes them TFDS data sets."""

EMNIST = {  # SHA-256 as github.com/notwa/mnists lists them: NIST publishes these files in an archive only
    "emnist-digits-train-images-idx3-ubyte.gz": "f7c95004d14d81af89522e67d8f0c781dfb3bd544181c81bfe1eb6b41c35b726",
    "emnist-digits-train-labels-idx1-ubyte.gz": "6638a6ff5fe2eefd9cca2471995b46c82986b8e4b2a70d2f5ce8e05d7edb319e",
    "emnist-digits-test-images-idx3-ubyte.gz": "20ebe43509264f7639d37c835a3f0b009e90b29e00a099a03101abe1644a3f63",
    "emnist-digits-test-labels-idx1-ubyte.gz": "bad1834c45d5988e270b99d43b13edc3fd898f658ffbc2caf2846ef27f7b05b0",
}

OTHER_DIGITS = {
    "qmnist": Source(
        homepage="https://github.com/facebookresearch/qmnist",
        addresses=("https://raw.githubusercontent.com/facebookresearch/qmnist/master/",),
        checksums={
            "qmnist-train-images-idx3-ubyte.gz": "9e26a7bf1683614e065d7b76460ccd52807165b3f22561fb782bd9f38c52b51d",
            "qmnist-train-labels-idx2-int.gz": "2c05dc77f6b916b38e455e97ab129a42a444f3dbef09b278a366f82904e0dd9f",
            "qmnist-test-images-idx3-ubyte.gz": "43fc22bf7498b8fc98de98369d72f752d0deabc280a43a7bcc364ab19e57b375",
            "qmnist-test-labels-idx2-int.gz": "9fbcbe594c3766fdf4f0b15c5165dc0d1e57ac604e01422608bb72c906030d06",
        },
    ),
    "emnist": Source(
        homepage="https://www.nist.gov/itl/products-and-services/emnist-dataset",
        addresses=("https://biometrics.nist.gov/cs_links/EMNIST/",),
        checksums=EMNIST,
        layout="emnist",
        archive="gzip.zip",
        # As TFDS lists it.
        archive_checksum="fb9bb67e33772a9cc0b895e4ecf36d2cf35be8b709693c3564cea2a019fcda8e",
    ),
    "usps": Source(
        homepage="https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass.html#usps",
        addresses=("https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass/",),
        checksums={
            "usps.bz2": "3771e9dd6ba685185f89867b6e249233dd74652389f263963b3b741e994b034f",
            "usps.t.bz2": "a9c0164e797d60142a50604917f0baa604f326e9a689698763793fa5d12ffc4e",
        },
        layout="usps",
    ),
}
"""Other digits than MNIST's. SHA-256 of QMNIST and USPS are those of torchvision (``prototype/datasets/_builtin``)."""

ALL_SOURCES = ChainMap(OTHER_DIGITS, SOURCES)
"""Name -> source of every data set that is downloaded, `SOURCES` first."""
