"""A data set of few real digits, for runs whose subject is not the data: 5,000 test images take seconds to evaluate."""

import os
import shutil
import struct
import tempfile
from pathlib import Path

from PIL import Image

from lenet_jax.data import datasets, idx
from lenet_jax.experiments import base

TRAIN, TEST = 600, 200
FOLDER = Path(__file__).parents[1] / ".pytest_cache" / f"few_digits_{datasets.EMBEDDED_FINGERPRINT[-8:]}"
DATASET = f"idx:{FOLDER}"
"""The first 600 and 200 of the embedded digits, as four IDX files. Processes of one run use the same folder."""


def arrays():
    """The four arrays."""
    whole = datasets.load("mnist10k")
    return {
        "train_images": whole.train_images[:TRAIN],
        "train_labels": whole.train_labels[:TRAIN],
        "test_images": whole.test_images[:TEST],
        "test_labels": whole.test_labels[:TEST],
    }


def write():
    """Makes the folder, whole or not at all: several test processes start at once."""
    FOLDER.parent.mkdir(exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=FOLDER.parent))
    for part, array in arrays().items():
        header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
        (made / idx.PARTS[part][0]).write_bytes(header + array.tobytes())
    try:
        os.rename(made, FOLDER)
    except OSError:  # another process was faster
        shutil.rmtree(made)


if not FOLDER.exists():
    write()


def small(**fields):
    """A config that runs in seconds; the programs of its three tanh networks are compiled once for many tests."""
    config = base.get_config()
    config.update({"dataset": DATASET, "validation_size": 300, "batch_size": 20, "activation": "tanh"})
    config.update({"epochs": 2, "seeds": 3} | fields)
    return config


def save_digit(path):
    """Writes a digit as an image file: dark on white, as on paper."""
    Image.fromarray(255 - arrays()["test_images"][0]).resize((56, 56)).save(path)
    return path
