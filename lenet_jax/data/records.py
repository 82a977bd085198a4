"""Data sets that TFDS has prepared, or can prepare, as arrays."""

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from lenet_jax import IMAGE_SIZE
from lenet_jax.errors import MAX_REASON, InputError, shortened


def load(name: str, folder: Path) -> dict[str, Any]:
    """Any TFDS image-classification data set of grey 28 x 28 or 32 x 32 images with a train and a test split.

    Data sets already prepared as ArrayRecord or Parquet are read without TensorFlow; preparing one needs it.

    Args:
      name: the name as TFDS has it, such as ``emnist/letters``.
      folder: the folder of TFDS's data sets.

    Returns:
      The four arrays (keys of `idx.PARTS`), and ``classes``, the number of classes.
    """
    import tensorflow_datasets as tfds

    field = f"dataset: {f'tfds:{name}'!r}"
    # Without TensorFlow, TFDS would first try to download for minutes, and would not list all data sets.
    hint = "" if importlib.util.find_spec("tensorflow") else "TensorFlow is needed: pip install 'lenet_jax[tensorflow]'"
    with one_line_errors(f"{field} can't be prepared in or read from {str(folder)!r}"):
        try:
            builder = tfds.builder(name, data_dir=folder)
        except tfds.core.registered.DatasetNotFoundError as error:
            reason = f"{field} is not known to TFDS {tfds.__version__} and not prepared in {str(folder)!r}"
            raise InputError(f"{reason}; to list all data sets {hint}" if hint else reason) from error
        except ImportError as error:
            if "tensorflow" not in str(error):
                raise
            raise InputError(f"{field} is not prepared in {str(folder)!r}. To prepare it {hint}") from error
        keys = builder.info.supervised_keys
        if keys is None or not isinstance(builder.info.features[keys[1]], tfds.features.ClassLabel):
            raise InputError(f"{field} is not an image classification: its supervised keys are {keys}")
        image, label = builder.info.features[keys[0]], builder.info.features[keys[1]]
        if image.shape not in ((28, 28, 1), (IMAGE_SIZE, IMAGE_SIZE, 1)) or image.np_dtype != np.uint8:
            kind = f"{np.dtype(image.np_dtype)} images of shape {image.shape}"
            raise InputError(f"{field} has {kind}; allowed are uint8 28 x 28 x 1 and 32 x 32 x 1")
        if label.num_classes is None or label.num_classes > 256:
            raise InputError(f"{field} has {label.num_classes} classes; allowed are up to 256")
        if hint and not os.path.isdir(builder.data_dir):
            raise InputError(f"{field} is not prepared in {str(folder)!r}. To prepare it {hint}")
        builder.download_and_prepare(file_format="array_record")
        return {**read_splits(builder, *keys), "classes": label.num_classes}


def read_splits(builder: Any, image_key: str, label_key: str) -> dict[str, Any]:
    """The train and test split of a prepared TFDS builder as arrays."""
    arrays = {}
    for split in ("train", "test"):
        source = builder.as_data_source(split=split)
        records = source.__getitems__(range(len(source)))  # faster than one by one
        labels = np.array([record[label_key] for record in records])
        if labels.min() < 0 or labels.max() > 255:  # the cast to uint8 would wrap them
            found = f"{split} labels {labels.min()} to {labels.max()}"
            raise InputError(f"dataset: {builder.name!r} has {found}; allowed are 0 to 255")
        arrays[f"{split}_images"] = np.stack([np.squeeze(record[image_key], -1) for record in records])
        arrays[f"{split}_labels"] = labels.astype(np.uint8)
    return arrays


@contextlib.contextmanager
def one_line_errors(start: str) -> Iterator[None]:
    """Silences TFDS's harmless warnings and turns each of its many kinds of errors into one line after `start`."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = shortened(f"{type(error).__name__}: {error}", MAX_REASON)  # TFDS's messages can have pages
        raise InputError(f"{start}: {reason}") from error
    finally:
        logging.set_verbosity(verbosity)
