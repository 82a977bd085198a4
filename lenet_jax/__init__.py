"""LeNet-5 in pure JAX functions: populations of networks trained in one compiled program, compared with statistics.

The science is at the top: `layers`, `initializers`, `model`, `blocked`, `losses`, `optim`, `train`, `evaluate`,
`population`, `stats`. `data` loads data sets, `run` runs experiments, `analysis` reads their results. Import the
modules you use; this package imports none of them by itself, so that the command line starts fast.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lenet_jax.analysis.networks import classify, load_run
    from lenet_jax.data.photos import read_image, to_mnist

__version__ = "0.1.0"

IMAGE_SIZE = 32
"""Height and width of an input image, in pixels. Here, because data are read without JAX."""

__all__ = ["classify", "load_run", "read_image", "to_mnist"]

_HOMES = dict.fromkeys(["classify", "load_run"], "analysis.networks")
_HOMES |= dict.fromkeys(["read_image", "to_mnist"], "data.photos")
_FORMER = {"prepare": "to_mnist", "read": "read_image"}  # former names still work


def __getattr__(name: str) -> Any:
    """Imports a public name on first use."""
    name = _FORMER.get(name, name)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
