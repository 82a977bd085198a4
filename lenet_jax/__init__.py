"""lenet_jax: LeNet-5 as a laboratory.

The modules in the order in which data flows through them: `data`, `layers`, `model`, `blocked`, `losses`, `optim`,
`train`, `population`, `results`, `experiment`, `trained`, `plots`, `compare`, `cli`. Import the ones you use; this
package imports none of them by itself, so that the command line answers at once.

For notebooks there are `load_run`, `classify`, `read` and `prepare`: a finished run and its networks, and pictures of
digits for them.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lenet_jax.pictures import prepare, read
    from lenet_jax.trained import classify, load_run

__version__ = "0.1.0"

__all__ = ["classify", "load_run", "prepare", "read"]

_HOMES = {"classify": "trained", "load_run": "trained", "prepare": "pictures", "read": "pictures"}


def __getattr__(name: str) -> Any:
    """Imports what is asked for first now."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
